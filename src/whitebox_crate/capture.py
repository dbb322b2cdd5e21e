"""capture: reads attention and every other inner state while a model runs, and leaves nothing behind.

A model keeps its fused attention: the attention rows that were asked for are computed once more, from the projections,
in a forward hook. Its output does not change by a bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .errors import CaptureError, InputError, UnknownNameError
from .models import Block, FeatureExtractor, ImageTransformer
from .models._base import resolve_index, resolve_indices, resolve_layers

State = Literal["tokens", "projections", "attention", "compressed", "output"]
Queries: TypeAlias = Literal["cls", "all"] | Sequence[int]


class Trace:
    """The states that a capture has seen, of the last forward pass: `trace[state, layer]`.

    It holds tensors, not the model. A tensor belongs to the autograd graph if the forward pass did.
    """

    def __init__(self, states: Sequence[str], layers: Sequence[int], depth: int) -> None:
        self.states = tuple(states)
        self.layers = tuple(layers)
        self._depth = depth
        self._tensors: dict[tuple[str, int], Tensor] = {}

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        if not isinstance(key, tuple) or len(key) != 2:
            raise InputError(f"a trace is read as trace[state, layer], for example trace['attention', -2], not {key!r}")
        state, layer = key
        index = resolve_index("layer", layer, self._depth)
        if state not in self.states:
            raise UnknownNameError.of("captured state", state, self.states, "Name it in the call of capture.")
        if index not in self.layers:
            raise UnknownNameError(f"layer {layer} was not captured; captured were {self.layers}")
        if (state, index) not in self._tensors:
            raise CaptureError(
                f"no {state!r} of layer {layer} came by: call the model inside the with block; if it was called, it "
                "ran as compiled or exported code, which runs no hooks: call the module that capture was given"
            )
        return self._tensors[state, index]

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        shapes = (f"{state}, {layer}: {tuple(t.shape)}" for (state, layer), t in self._tensors.items())
        return f"Trace({'; '.join(shapes)})"


@contextmanager
def capture(
    model: nn.Module,
    *states: State,
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: Queries = "cls",
) -> Iterator[Trace]:
    """Reads inner states of a model while it runs.

    The states follow the steps of arXiv 2308.16271, Algorithm 1, for a layer z -> z':

    - `tokens`: z, (batch, tokens, dim).
    - `projections`: w = U^T LN(z) of each head, (batch, heads, tokens, head_dim); of attention with separate query,
      key and value, the keys.
    - `attention`: softmax(w w^T / sqrt(head_dim)), (batch, heads, queries, tokens).
    - `compressed`: the tokens after attention, (batch, tokens, dim).
    - `output`: z', (batch, tokens, dim).

    Token 0 is [CLS]; the patches follow, rows of the grid first. Only what is asked for is ever computed. A compiled
    model runs uncompiled inside the block, so that its hooks run: its output is then the uncompiled model's.

    Args:
        model: A model of this package; compiled by `torch.compile`, distributed or features-only is fine.
        *states: What to read.
        layers: Which layers, counted from 0, negative ones from the end; an int n for the last n; None for all.
        heads: Which heads of `projections` and `attention`; None for all.
        queries: Which rows of `attention`: "cls", "all", or token indices.

    Yields:
        The trace: the states of the last forward pass of the whole model, still there after the block.

    Raises:
        UnknownNameError: If a state, layer, head or query does not exist.
        InputError: If the model is not one of this package, no state is named, or indices are no list of integers.
    """
    core = _core(model)
    if not states:
        raise InputError(f"name at least one state to capture: {', '.join(get_args(State))}")
    for state in states:
        if state not in get_args(State):
            raise UnknownNameError.of("state", state, get_args(State))
    if isinstance(queries, str) and queries not in ("cls", "all"):
        raise UnknownNameError.of("queries", queries, ("cls", "all"), "Token indices are fine too.")
    indices = resolve_layers(layers, len(core.blocks))
    trace = Trace(states, indices, len(core.blocks))
    with ExitStack() as stack:
        # Every forward pass embeds once and begins afresh; a layer that gradient checkpointing runs again does not.
        forget = core.patch_embed.register_forward_pre_hook(lambda _, __: trace._tensors.clear())
        stack.callback(forget.remove)
        for index in indices:
            block = _unwrap(core.blocks[index])
            for state in states:

                def keep(value: Tensor, key: tuple[str, int] = (state, index)) -> None:
                    trace._tensors.setdefault(key, value)

                stack.callback(_hook(core, block, state, heads, queries, keep).remove)
        if "torch._dynamo" in sys.modules:  # otherwise nothing can be compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield trace


def _core(model: nn.Module) -> ImageTransformer:
    """The model itself, inside whatever wraps it."""
    inner = _unwrap(model)
    if isinstance(inner, FeatureExtractor):
        inner = inner.model
    if not isinstance(inner, ImageTransformer):
        raise InputError(
            f"capture reads models of this package, not {type(inner).__name__}; exported models and others have no "
            "layers it knows. For attention of another backbone, pass its maps to whitebox_crate.segmentation"
        )
    return inner


def _unwrap(module: nn.Module) -> nn.Module:
    """What torch.compile and distributed training wrap, in any order."""
    for wrapper in ("_orig_mod", "module"):
        inner = getattr(module, wrapper, None)
        if isinstance(inner, nn.Module):
            return _unwrap(inner)
    return module


def _hook(
    core: ImageTransformer,
    block: nn.Module,
    state: State,
    heads: Sequence[int] | None,
    queries: Queries,
    keep: Callable[[Tensor], None],
) -> Any:
    """Registers the hook that reads one state of one layer."""
    if not isinstance(block, Block):
        raise InputError(f"a layer is a Block, not {type(block).__name__}")
    attention = block.attention
    chosen = None if heads is None else resolve_indices("head", heads, attention.num_heads)
    if state == "tokens":
        return block.register_forward_pre_hook(lambda _, args: keep(args[0]))
    if state == "output":
        return block.register_forward_hook(lambda _, __, out: keep(out))
    if state == "compressed":
        return block.norm2.register_forward_pre_hook(lambda _, args: keep(args[0]))

    def read(_: nn.Module, __: Any, projected: Tensor) -> None:
        # Checkpointing counts the tensors that a layer saves for the backward pass: those saved here are not its own.
        apart = saved_tensors_hooks(_same, _same) if core.grad_checkpointing else nullcontext()
        with apart:
            q, k, _v = attention.split_heads(projected)
            if chosen is not None:
                q, k = q[:, chosen], k[:, chosen]
            keep(k if state == "projections" else _attention_rows(q, k, queries))

    return attention.qkv.register_forward_hook(read)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _attention_rows(q: Tensor, k: Tensor, queries: Queries) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) for the asked queries; (batch, heads, queries, tokens)."""
    if not isinstance(queries, str):
        q = q[:, :, resolve_indices("query token", queries, q.shape[2])]
    elif queries == "cls":
        q = q[:, :, :1]
    rows: Tensor = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)
    return rows
