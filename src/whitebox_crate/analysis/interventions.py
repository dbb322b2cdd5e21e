"""intervene: runs a model with other constants, or without some of its heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from .._hooks import Hook, hooks_here, uncompiled
from .._indices import resolve_index, resolve_indices, resolve_layers
from ..errors import InputError
from ..layers import ISTA, ODL
from ..models import ImageTransformer
from ..models._wrappers import transformer_in
from .operators import Heads, attention_of, coder_of, refuse_folded


@contextmanager
def intervene(
    model: nn.Module,
    *,
    step_size: float | None = None,
    sparsity: float | None = None,
    mask_heads: Mapping[int, Sequence[int]] | None = None,
    layers: int | Sequence[int] | None = None,
) -> Iterator[None]:
    """Runs a model with other constants, or without some heads, inside a block.

    `step_size` is eta and `sparsity` is lambda of ISTA (arXiv 2308.16271, Eq. 7) or ODL; the threshold is their
    product. A head that is switched off adds nothing to any token; the bias of the output projection stays. At the end
    of the block everything is restored, whatever happens inside. Blocks may be nested, also with `capture`, which then
    sees the changed states. An inner constant wins over an outer one; heads that are switched off add up. A compiled
    model runs uncompiled inside.

    This holds only for the thread or task of the block (`contextvars`): others run the unchanged model, with its own
    constants. With gradient checkpointing, call `backward` inside the block, because layers run again there.

    Args:
        model: A model of this package; it may be compiled, distributed or features-only.
        step_size: eta, at least 0.
        sparsity: lambda, at least 0.
        mask_heads: For each layer, the heads to switch off. Negative numbers count from the end.
        layers: The layers in which `step_size` and `sparsity` hold; see `capture`.

    Raises:
        InputError: If nothing is to be changed, a constant is negative or not finite, or a layer has no sparse coding.
        UnknownNameError: If a layer or head does not exist.

    Example:
        >>> model, images = create_model("crate_nano", pretrained=True).eval(), torch.zeros(1, 3, 96, 96)
        >>> with torch.no_grad(), intervene(model, sparsity=0.5, mask_heads={4: [1]}):
        ...     changed = model(images)
        >>> torch.equal(changed, model(images))
        False
    """
    core = transformer_in(model)
    constants = {"step_size": step_size, "sparsity": sparsity}
    given = {name: _constant(name, value) for name, value in constants.items() if value is not None}
    if not given and mask_heads is None:
        raise InputError("nothing to change: give step_size, sparsity or mask_heads")
    if not given and layers is not None:
        raise InputError(
            "layers needs step_size or sparsity, but neither is given (mask_heads has its own): leave layers out"
        )
    where = resolve_layers(layers, len(core.layers())) if given else []
    coders = [_sparse_coding(core, index) for index in where]
    masked: list[tuple[Heads, list[int]]] = []
    if not isinstance(mask_heads, Mapping | None):
        raise InputError(
            f"mask_heads must be a dict from layers to lists of heads, such as {{-2: [0, 3]}}, not {mask_heads!r}"
        )
    for layer, heads in (mask_heads or {}).items():
        attention = attention_of(core, resolve_index("layer", layer, len(core.layers())))
        masked.append((attention, resolve_indices("head", heads, attention.num_heads)))

    with ExitStack() as stack:
        off = [Hook(a.proj, "before", _without(heads, a.num_heads), changes=True) for a, heads in masked]
        changed: dict[tuple[nn.Module, str], float] = {
            (coder, name): value for coder in coders for name, value in given.items()
        }
        stack.enter_context(hooks_here(off, changed))
        stack.enter_context(uncompiled)
        yield


def _without(heads: Sequence[int], num_heads: int) -> Callable[[tuple[Tensor]], tuple[Tensor]]:
    def switch_off(args: tuple[Tensor]) -> tuple[Tensor]:
        kept = torch.ones(num_heads, dtype=torch.bool, device=args[0].device)
        kept[list(heads)] = False
        every = kept.repeat_interleave(args[0].shape[-1] // num_heads)
        return (torch.where(every, args[0], 0),)  # not a product, since 0 x infinity is not zero

    return switch_off


def _sparse_coding(core: ImageTransformer, index: int) -> ISTA | ODL:
    refuse_folded(core)
    coder = coder_of(core.layers()[index])
    if coder is None:
        raise InputError(
            f"layer {index} of {type(core).__name__} has neither eta nor lambda: it does not code sparsely; give "
            "layers that do, or only mask_heads"
        )
    return coder


def _constant(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise InputError(f"{name} must be a finite number, at least 0, not {value!r}")
    return float(value)
