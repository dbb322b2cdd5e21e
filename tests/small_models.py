"""Registered models at a size that tests can afford, with no parameter left at its initial zero or one."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from whitebox_crate import ImageTransformer, create_model, model_entrypoint

DEPTH, DIM, CLASSES = 3, 48, 5
GRID = (2, 3)  # rows and columns differ, so that a transposed grid shows

# One model of each family, by what tests call it.
FAMILIES = {
    "crate": "crate_nano_patch6_96",
    "sth": "crate_sth_paper_small_patch8_224",
    "tied": "crate_tied_paper_small_patch8_224",
    "attention_only": "crate_attention_only_paper_small_patch8_224",
    "alpha": "crate_alpha_tiny_patch16_224",
    "mae": "crate_mae_tiny_patch16_224",
    "mlp": "crate_mlp_paper_small_patch8_224",
    "mhsa": "crate_mhsa_paper_small_patch8_224",
    "vit": "vit_nano_patch6_96",
    "tost": "tost_tiny_12_patch8_224",
    "registers": "vit_base_patch16_reg4_simdinov2",
    "cbt": "cbt_tiny_patch8_224",
    "crate_cbt": "crate_cbt_paper_small_patch8_224",
}


def mostly_slow(cases: Iterable[str], *quick: str) -> list[Any]:
    """Cases of which only `quick` run without `-m slow`: the others take the same way through the code."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def one_of_each_kind(names: Iterable[str]) -> list[str]:
    """The first model of every kind: sizes and patches of one kind are the same model once it is small.

    What is left of a name without both is its kind, as "vit_reg4_dinov2".
    """
    kinds: dict[str, str] = {}
    for name in names:
        sizes = r"(_paper)?_(nano|pico|tiny|small|base|medium|large)(_\d+)?_patch\d+(_\d+)?"
        kinds.setdefault(re.sub(sizes, "", name), name)
    return list(kinds.values())


def patch_of(name: str) -> int:
    """The patch size that this model has by default."""
    size: int = inspect.signature(model_entrypoint(name)).parameters["patch_size"].default
    return size


def small_options(name: str, **options: Any) -> dict[str, Any]:
    """Options that make the model of this name small; `options` go before them."""
    patch = patch_of(name)
    small: dict[str, Any] = {"depth": DEPTH, "embed_dim": DIM, "num_heads": 2, "num_classes": CLASSES}
    if name.startswith("cbt"):
        small["pool"] = "patches"  # the released one is for square grids
    return {**small, "img_size": (GRID[0] * patch, GRID[1] * patch), **options}


def trained(model: ImageTransformer) -> dict[str, nn.Parameter]:
    """The parameters that a loss on the logits trains: no fixed positions, and not CRATE-MAE's decoder."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in named.items() if not name.startswith(("mask_token", "decoder_"))}


@torch.no_grad()
def shake(model: torch.nn.Module) -> None:
    """Adds noise to parameters and statistics: a norm that does nothing and a bias of zero hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for value in (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())):
        value.add_(0.1 * torch.randn(value.shape, generator=generator))


def small_model(name: str, **options: Any) -> ImageTransformer:
    """A small model of this name in evaluation mode; the same weights at each call."""
    torch.manual_seed(0)
    model: ImageTransformer = create_model(name, **small_options(name, **options))
    shake(model)
    return model.eval()


def images_for(model: ImageTransformer, batch: int = 2, grid: tuple[int, int] | None = None, seed: int = 2) -> Tensor:
    """Noise of the size that the model expects, or of another patch grid; the same at each call of one seed."""
    patch_height, patch_width = model.patch_embed.patch_size
    size = model.img_size if grid is None else (grid[0] * patch_height, grid[1] * patch_width)
    return torch.randn(batch, model.in_chans, *size, generator=torch.Generator().manual_seed(seed))
