"""Makes a CRATE twice as wide that computes the same function, to train it further (Net2Net, arXiv 1511.05641).

    python -m recipes.widen --model crate_nano.scene_composites --out runs/widened

Each token of the wide network is that of the narrow one, twice. LayerNorm keeps this, since mean and variance stay. A
matrix W that reads a doubled token becomes (W/2 + E, W/2 - E). E cancels until training tells the two copies apart. The
wide network has each head twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from whitebox_crate import ImageTransformer, create_model
from whitebox_crate.errors import InputError
from whitebox_crate.models import Crate


@torch.no_grad()
def widen(narrow: ImageTransformer, wide: ImageTransformer, *, apart: float = 0.5, seed: int = 0) -> None:
    """Gives a CRATE the function of another one, which has half the width and half the heads.

    Args:
        narrow: The CRATE to copy.
        wide: The CRATE to fill, with heads as wide as those of `narrow`.
        apart: Standard deviation of E, as a share of that of W/2.
        seed: Seed of E.

    Raises:
        InputError: If one is no CRATE, or if a parameter of `wide` has other sizes. Then `wide` is as before.
    """
    if not (isinstance(narrow, Crate) and isinstance(wide, Crate)):
        raise InputError(f"only a CRATE is made wider, not {type(narrow).__name__} into {type(wide).__name__}")
    generator = torch.Generator().manual_seed(seed)
    known, grown = dict(narrow.named_parameters()), {}
    for name, parameter in wide.named_parameters():
        if name not in known:
            raise InputError(f"the narrow network has no {name}; the wide one needs its depth and its kind")
        old = known[name]
        if parameter.dim() == 2:  # a matrix reads along its rows and writes along its columns
            new = _matrix(old, tuple(parameter.shape), apart, generator, symmetric=name.endswith("dictionary"))
        else:
            new = torch.cat([old, old], -1) if parameter.shape[-1] == 2 * old.shape[-1] else old
        if new.shape != parameter.shape:
            raise InputError(
                f"{name} is {tuple(parameter.shape)} in the wide network, {tuple(old.shape)} in the narrow one"
            )
        grown[name] = new
    wide.load_state_dict(grown)


def _matrix(old: Tensor, shape: tuple[int, ...], apart: float, generator: torch.Generator, symmetric: bool) -> Tensor:
    """The weights W with twice the columns, the rows, or both.

    Of a dictionary (`symmetric`) both sums have to hold, over its columns for D x and over its rows for D^T x, so its
    blocks are (D/2 + E, D/2 - E) and (D/2 - E, D/2 + E).
    """

    def halved() -> Tensor:
        noise = apart * (old.std() / 2) * torch.randn(old.shape, generator=generator)
        return torch.cat([old / 2 + noise, old / 2 - noise], 1)

    if shape[1] != 2 * old.shape[1]:
        return torch.cat([old, old]) if shape[0] == 2 * old.shape[0] else old
    if shape[0] != 2 * old.shape[0]:
        return halved()
    upper = halved()
    return torch.cat([upper, upper.roll(old.shape[1], 1) if symmetric else halved()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="crate_nano", help="weights to start from: name, name.tag or local-dir:PATH")
    add("--seed", type=int, default=0)
    add("--out", type=Path, required=True, help="folder for the wide network, which `local-dir:OUT` names")
    options = parser.parse_args()
    narrow = create_model(options.model, pretrained=True, dynamic_img_size=True)
    if not isinstance(narrow, Crate):
        raise InputError(f"{options.model} makes a {type(narrow).__name__}, and only a CRATE is made wider here")
    wide = create_model(
        narrow.architecture,
        embed_dim=2 * narrow.embed_dim,
        num_heads=2 * narrow.num_heads,
        num_classes=narrow.num_classes,
        img_size=narrow.img_size,
        dynamic_img_size=True,
    )
    widen(narrow, wide, seed=options.seed)
    wide.pretrained_cfg = narrow.pretrained_cfg
    wide.save_pretrained(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
