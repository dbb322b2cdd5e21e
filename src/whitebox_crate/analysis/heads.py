"""Heads: what each one adds to its layer and to a class, what the model does without it, and where attention leads.

Three statements of different strength, for MSSA and ViT's attention alike:

- `head_outputs`: the output projection is linear, so attention's output is exactly a sum over heads, and a bias.
- `head_contributions(..., method="ablation")`: the logit with less the logit without a head. Exact as an answer to that
  question, but not additive: LayerNorm, softmax and ISTA come after it, and what is left is off the usual path.
- `head_contributions(..., method="gradient")`: the first-order estimate of the same, for all heads by one backward
  pass.

A direct contribution to the logit, through the residual path with the layers after it held fixed, is not offered: ISTA
has no residual (arXiv 2308.16271, Eq. 8), so CRATE has no such path.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from .._indices import resolve_index, resolve_indices, resolve_layers
from ..capturing import Queries, capture
from ..errors import InputError, UnknownNameError
from ..layers import ISTA, MHSA, MSSA, ODL
from ..models import ImageTransformer
from ..models._wrappers import transformer_in
from .batches import refuse_folded
from .layer_subspaces import attention_of, coder_of, head_weights

Method: TypeAlias = Literal["ablation", "gradient"]


@dataclass(frozen=True)
class HeadOutputs:
    """Attention's output as a sum over heads; see `head_outputs`.

    Attributes:
        parts: (batch, layers, heads, queries, dim): what each head adds to each token.
        bias: (layers, dim): the bias of the output projection, which belongs to no head; 0 where there is none.
        layers: Which layers, from 0.
    """

    parts: Tensor
    bias: Tensor
    layers: tuple[int, ...]

    @property
    def total(self) -> Tensor:
        """Attention's output up to rounding, (batch, layers, queries, dim)."""
        return self.parts.sum(2) + self.bias[:, None]


def head_outputs(
    model: nn.Module, images: Tensor, layers: int | Sequence[int] | None = None, queries: Queries = "cls"
) -> HeadOutputs:
    """Splits the output of each layer's attention by head: `MSSA(z) = sum_k P_k w_k softmax(...) + b`.

    The output projection P = [P_1, ..., P_K] is linear, so the split is exact up to rounding. It ends there: what
    follows (LayerNorm, then ISTA, ODL or MLP) is not linear.

    Args:
        model: A model of this package, compiled or not; it runs as it is.
        images: (batch, in_chans, height, width), float.
        layers: As in `capture`.
        queries: Which tokens: "cls", "all", or token indices. All tokens of a large model take much memory.

    Raises:
        InputError: If the model is not one of this package, or does not take the images.
        UnknownNameError: If a layer or token does not exist.
    """
    core = transformer_in(model)
    indices = resolve_layers(layers, len(core.blocks))
    if isinstance(queries, str) and queries not in ("cls", "all"):
        raise UnknownNameError.of("queries", queries, ("cls", "all"), "Token indices are fine too.")
    _check_images(core, images)
    attended: dict[int, Tensor] = {}
    with ExitStack() as stack:
        _eager(stack)
        for index in indices:
            stack.callback(_keep_attended(attention_of(core, index), attended, index).remove)
        model(images)
    parts: dict[int, Tensor] = {}
    for index in indices:  # after the pass: what a hook computed would count as the layer's to gradient checkpointing
        attention = attention_of(core, index)
        of_heads = rearrange(attended[index], "b n (h p) -> b h n p", h=attention.num_heads)
        if not isinstance(queries, str):
            of_heads = of_heads[:, :, resolve_indices("query token", queries, of_heads.shape[2])]
        elif queries == "cls":
            of_heads = of_heads[:, :, :1]
        parts[index] = torch.einsum("bhnp,dhp->bhnd", of_heads, head_weights(attention))
    biases = [getattr(attention_of(core, index).proj, "bias", None) for index in indices]
    zero = parts[indices[0]].new_zeros(core.embed_dim)
    return HeadOutputs(
        torch.stack([parts[index] for index in indices], dim=1),
        torch.stack([zero if bias is None else bias.detach() for bias in biases]),
        tuple(indices),
    )


def head_contributions(
    model: nn.Module,
    images: Tensor,
    classes: int | Sequence[int] | Tensor,
    *,
    layers: int | Sequence[int] | None = None,
    method: Method = "ablation",
) -> Tensor:
    """How much each head speaks for a class.

    - "ablation": logit minus logit without the head, that is with its part of `head_outputs` left out for all tokens;
      the bias stays. The layers before it are not run again, those after it are, once for each head.
    - "gradient": `<d logit / d h, part>`, h being the tokens after attention. This is the linear term of the ablation.
      It is exact if the logit is affine in h on the way from with to without the head, and otherwise off by the
      curvature: of second order in the head's part, and more where that way crosses a kink of ReLU. The terms of a
      layer's heads add up to the term of all of them.

    The model runs as it is, uncompiled, whatever autograd mode the caller is in; no gradient is left on a parameter.

    Args:
        model: A model of this package with a head, compiled or not.
        images: (batch, in_chans, height, width), float, finite.
        classes: One class for all images, or one for each.
        layers: As in `capture`.
        method: "ablation" or "gradient".

    Returns:
        Detached, (batch, layers, heads), the dtype of the logits, in units of a logit.

    Raises:
        InputError: If the model gives no logits, or the images are not finite or not of its shape.
        UnknownNameError: If a class, layer or the method does not exist.
    """
    if method not in get_args(Method):
        raise UnknownNameError.of("method", method, get_args(Method))
    core = transformer_in(model)
    indices = resolve_layers(layers, len(core.blocks))
    if not core.num_classes or not core.global_pool:
        raise InputError(
            f"one logit for each image and class is needed, but the model has {core.num_classes} classes and "
            f"the pooling {core.global_pool!r}; see reset_classifier"
        )
    _check_images(core, images)
    chosen = _classes(classes, len(images), core.num_classes).to(images.device)
    with ExitStack() as stack:
        _eager(stack)
        if method == "gradient":
            return _by_gradient(core, images, chosen, indices)
        return _by_ablation(core, images, chosen, indices)


@torch.no_grad()
def _by_ablation(core: ImageTransformer, images: Tensor, classes: Tensor, layers: list[int]) -> Tensor:
    with capture(core, "tokens", layers=layers) as trace:
        whole = core(images)
    logits = whole.gather(1, classes[:, None])[:, 0]
    result = []
    for layer in layers:
        without = []
        for head in range(attention_of(core, layer).num_heads):
            with intervene(core, mask_heads={layer: [head]}):
                without.append(_logits_from(core, trace["tokens", layer], layer).gather(1, classes[:, None])[:, 0])
        result.append(logits[:, None] - torch.stack(without, dim=1))
    return torch.stack(result, dim=1)


def _by_gradient(core: ImageTransformer, images: Tensor, classes: Tensor, layers: list[int]) -> Tensor:
    attended: dict[int, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for layer in layers:
            stack.callback(_keep_attended(attention_of(core, layer), attended, layer).remove)
        # The images need a gradient, so that a model whose parameters are frozen has one too.
        logits = _logits_from(core, core.embed(images.detach().clone().requires_grad_()), 0)
        wanted = logits.gather(1, classes.clone()[:, None]).sum()  # images do not see each other: one pass for all
        gradients = torch.autograd.grad(wanted, [attended[layer] for layer in layers])
    # <dl/dh, P_k a_k> = <P_k^T dl/dh, a_k>, and the gradient for attention's heads a is P^T dl/dh already.
    terms = [
        rearrange(gradient * attended[layer].detach(), "b n (h p) -> b h (n p)", h=attention_of(core, layer).num_heads)
        for layer, gradient in zip(layers, gradients, strict=True)
    ]
    return torch.stack([term.sum(-1) for term in terms], dim=1)


def _keep_attended(attention: MSSA | MHSA, attended: dict[int, Tensor], layer: int) -> Any:
    """A hook that keeps what enters the output projection, (batch, tokens, heads * head_dim)."""

    def keep(_: nn.Module, args: tuple[Tensor]) -> None:
        attended.setdefault(layer, args[0])  # checkpointing runs a layer again

    return attention.proj.register_forward_pre_hook(keep)


def _check_images(core: ImageTransformer, images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images are a floating point tensor, normalised, not {got}: see create_transform")
    core.grid_of(images)
    if not images.isfinite().all():
        raise InputError(f"{int((~images.isfinite()).sum())} values of the images are NaN or infinite")


def _logits_from(core: ImageTransformer, tokens: Tensor, layer: int) -> Tensor:
    """The rest of the model, from the input of this layer on."""
    for block in core.blocks[layer:]:
        tokens = block(tokens)
    return core.forward_head(core.norm(tokens))


@contextmanager
def intervene(
    model: nn.Module,
    *,
    step_size: float | None = None,
    sparsity: float | None = None,
    mask_heads: Mapping[int, Sequence[int]] | None = None,
    layers: int | Sequence[int] | None = None,
) -> Iterator[None]:
    """Runs a model with other constants, or without some heads, for the length of a block.

    `step_size` is eta and `sparsity` lambda of ISTA (arXiv 2308.16271, Eq. 7) or ODL: the threshold is their product. A
    head that is switched off adds nothing to any token; the bias of the output projection stays. What came before is
    put back whatever happens inside. Blocks may be nested, in one another and with `capture`, which then sees what is
    changed; an inner constant goes before an outer one, and heads switched off add up. A compiled model runs uncompiled
    inside.

    With gradient checkpointing, call `backward` inside the block: layers run again there. The model itself is changed:
    other threads that run it see that too.

    Args:
        model: A model of this package, compiled, distributed or features-only as well.
        step_size: eta, at least 0.
        sparsity: lambda, at least 0.
        mask_heads: By layer, which heads are switched off; negative ones count from the end.
        layers: Where `step_size` and `sparsity` hold, as in `capture`.

    Raises:
        InputError: If nothing is to be changed, a constant is negative or no finite number, or a layer has no sparse
            coding.
        UnknownNameError: If a layer or head does not exist.
    """
    core = transformer_in(model)
    constants = {"step_size": step_size, "sparsity": sparsity}
    given = {name: _constant(name, value) for name, value in constants.items() if value is not None}
    if not given and mask_heads is None:
        raise InputError("nothing to change: give step_size, sparsity or mask_heads")
    if not given and layers is not None:
        raise InputError("layers says where step_size and sparsity hold, and neither is given; mask_heads has its own")
    where = resolve_layers(layers, len(core.blocks)) if given else []
    coders = [_sparse_coding(core, index) for index in where]
    masked: list[tuple[MSSA | MHSA, list[int]]] = []
    for layer, heads in ({} if mask_heads is None else _mapping(mask_heads)).items():
        attention = attention_of(core, resolve_index("layer", layer, len(core.blocks)))
        masked.append((attention, resolve_indices("head", heads, attention.num_heads)))

    with ExitStack() as stack:
        for coder in coders:
            for name, value in given.items():
                stack.callback(setattr, coder, name, getattr(coder, name))  # first, so that nothing comes between
                setattr(coder, name, value)
        for attention, off in masked:
            stack.callback(attention.proj.register_forward_pre_hook(_without(off, attention.num_heads)).remove)
        _eager(stack)
        yield


def _without(heads: Sequence[int], num_heads: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    def switch_off(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        kept = torch.ones(num_heads, dtype=torch.bool, device=args[0].device)
        kept[list(heads)] = False
        every = kept.repeat_interleave(args[0].shape[-1] // num_heads)
        return (torch.where(every, args[0], 0),)  # not a product: 0 x infinity is no zero

    return switch_off


def attention_rollout(model: nn.Module, images: Tensor, layer: int = -1, skip: float = 0.5) -> Tensor:
    """How much of each input token is in each token after a layer, if attention were all (Abnar and Zuidema, 2020).

    The product, from layer 0 to `layer`, of `skip I + (1 - skip) A`, with A the mean of the heads' attention. Rows are
    those of the later tokens; each sums to 1. Neither ISTA nor an MLP moves anything from token to token, so attention
    and skip are all ways that there are, in CRATE too, with either form of `skip`. Their weights are an assumption,
    though: the half that the authors give to the skip fits no model in particular; in CRATE the skip may carry tokens
    much larger than MSSA's output, or less, and the output projection, sign and all, does not count.

    Args:
        model: A model of this package, compiled or not.
        images: (batch, in_chans, height, width), float.
        layer: The last layer of the product, from 0; negative from the end.
        skip: Weight of the identity, in [0, 1].

    Returns:
        (batch, tokens, tokens), [CLS] first, the dtype of the attention.

    Raises:
        InputError: If the model is not one of this package, does not take the images, or `skip` is no share.
        UnknownNameError: If there is no such layer.
    """
    core = transformer_in(model)
    last = resolve_index("layer", layer, len(core.blocks))
    if not 0 <= skip <= 1:
        raise InputError(f"skip is a share in [0, 1], not {skip!r}")
    _check_images(core, images)
    tokens = core.embed(images)
    rollout = torch.eye(tokens.shape[1], dtype=tokens.dtype, device=tokens.device).expand(len(tokens), -1, -1)
    for index in range(last + 1):  # a layer at a time: attention of all tokens is large
        with capture(core, "attention", layers=[index], queries="all") as trace:
            tokens = core.blocks[index](tokens)
        attention = trace["attention", index].mean(1)
        rollout = (1 - skip) * (attention @ rollout) + skip * rollout
    return rollout


def cls_rollout(model: nn.Module, images: Tensor, layer: int = -1, skip: float = 0.5) -> Tensor:
    """The [CLS] row of `attention_rollout` on the patch grid, (batch, rows, columns); arguments as there.

    The share of [CLS] itself is left out, so that a map sums to less than 1.
    """
    core = transformer_in(model)
    row = attention_rollout(model, images, layer, skip)[:, 0, core.num_prefix_tokens :]
    return row.reshape(len(row), *core.grid_of(images))


def _sparse_coding(core: ImageTransformer, index: int) -> ISTA | ODL:
    refuse_folded(core)
    coder = coder_of(core.blocks[index])
    if coder is None:
        raise InputError(
            f"layer {index} of {type(core).__name__} has neither eta nor lambda: it does not code sparsely; give "
            "layers that do, or mask_heads alone"
        )
    return coder


def _constant(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise InputError(f"{name} is a finite number, at least 0, not {value!r}")
    return float(value)


def _mapping(mask_heads: Mapping[int, Sequence[int]]) -> Mapping[int, Sequence[int]]:
    if not isinstance(mask_heads, Mapping):
        raise InputError(f"mask_heads is a dict from layers to lists of heads, as {{-2: [0, 3]}}, not {mask_heads!r}")
    return mask_heads


def _classes(classes: int | Sequence[int] | Tensor, batch: int, num_classes: int) -> Tensor:
    """One class index for each image, int64 (batch,)."""
    listed: Any = classes.tolist() if isinstance(classes, Tensor) else classes
    if not isinstance(listed, Sequence):
        return torch.full((batch,), resolve_index("class", listed, num_classes))
    found = resolve_indices("class", listed, num_classes)
    if len(found) != batch:
        raise InputError(f"{batch} images have one class each, or one in common, not {len(found)}")
    return torch.tensor(found)


def _eager(stack: ExitStack) -> None:
    """Until the stack closes, compiled code runs uncompiled, so that hooks and constants count."""
    if "torch._dynamo" in sys.modules:  # otherwise nothing can be compiled, and importing it takes seconds
        stack.enter_context(torch.compiler.set_stance("force_eager"))
