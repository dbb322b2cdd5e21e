"""capture: reads attention and every other inner state while a model runs, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._hooks import hooks_here, uncompiled
from ._indices import resolve_index
from ._plan import Plan, State, known_states
from ._recording import Recorder
from ._rows import Queries, Reduce, RowChoice
from .backbones import Readable, readable
from .errors import CaptureError, InputError, UnknownNameError, WhiteboxCrateError, check_kind


class Trace(Mapping[tuple[str, int], Any]):
    """The states that a capture read in the last forward pass: `trace[state, layer]`.

    It holds tensors, or the results of `reduce`, but not the model. A tensor belongs to the autograd graph if the
    forward pass did. Under `torch.no_grad()` it does not, and can be plotted directly. A trace is a mapping: `len`,
    `in`, `keys`, `items` and `get` cover the states that were read.
    """

    def __init__(
        self, states: Sequence[State], layers: Sequence[int], depth: int, tensors: Mapping[tuple[str, int], Any]
    ) -> None:
        self.states = tuple(states)
        self.layers = tuple(layers)
        self._depth = depth
        self._tensors = tensors

    def __getitem__(self, key: tuple[str, int]) -> Any:
        if not isinstance(key, tuple) or len(key) != 2:
            raise InputError(f"a trace is read as trace[state, layer], for example trace['attention', -2], not {key!r}")
        state, layer = key
        index = resolve_index("layer", layer, self._depth)
        if state not in self.states:
            raise UnknownNameError.of("captured state", state, self.states, "Name it in the call of capture.")
        if index not in self.layers:
            raise UnknownNameError(f"layer {layer} was not captured; the captured layers are {self.layers}")
        if (state, index) not in self._tensors:
            raise CaptureError(
                f"layer {layer} computed no {state!r}: call the model inside the with block, in the same thread. If "
                "you did, compiled or exported code ran, which runs no hooks: call the module that you gave to capture"
            )
        return self._tensors[state, index]

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None

    def get(self, key: Any, default: Any = None) -> Any:
        """`trace[key]` if it was read, else the default."""
        try:
            return self[key]
        except WhiteboxCrateError:
            return default

    # A mapping would compare tensors, which have no single truth value, and would not be hashable.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def to(self, device: str | torch.device) -> Trace:
        """A trace of the same states on another device."""
        moved = {key: _map(value, lambda tensor: tensor.to(device)) for key, value in self.items()}
        return Trace(self.states, self.layers, self._depth, moved)

    def stack(self, state: str) -> Any:
        """One state of all captured layers.

        Returns:
            (layers, ...), in the order of `layers`: for attention (layers, batch, heads, queries, tokens). A tuple of
            such tensors if `reduce` gave tuples.

        Raises:
            UnknownNameError: If the state was not captured.
            CaptureError: If the model did not compute it.
            InputError: If layers have tensors of different shapes.
        """
        values = [self[state, layer] for layer in self.layers]
        shapes = [_shapes(value) for value in values]
        if len(set(shapes)) > 1:
            raise InputError(
                f"layers of different shapes do not stack: {state!r} has shapes {shapes}; use trace[state, layer]"
            )
        if isinstance(values[0], Tensor):
            return torch.stack(values)
        return tuple(torch.stack(parts) for parts in zip(*values, strict=True))

    def __repr__(self) -> str:
        shapes = (f"{state}, {layer}: {_shapes(value)}" for (state, layer), value in self._tensors.items())
        return f"Trace({'; '.join(shapes)})"


@contextmanager
def capture(
    model: nn.Module,
    *states: State,
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: Queries = "cls",
    chunk: int | None = None,
    reduce: Reduce | None = None,
    eager: bool = False,
) -> Iterator[Trace]:
    """Reads inner states of a model while it runs.

    The states follow the steps of arXiv 2308.16271, Algorithm 1, for a layer z -> z':

    - `tokens`: z, (batch, tokens, dim).
    - `projections`: w = U^T LN(z) of each head, (batch, heads, tokens, head_dim). In attention with separate query,
      key and value, these are the keys.
    - `attention`: softmax(w w^T / sqrt(head_dim)), (batch, heads, queries, tokens).
    - `compressed`: the tokens after attention, (batch, tokens, dim).
    - `output`: z', (batch, tokens, dim).

    A layer has the states of its operators (`Block.readings`). Without `layers`, all layers that have all requested
    states are read.

    A trace sees the forward passes of its own thread or task (`contextvars`). So one model may serve several threads,
    each with its own captures. While any block is open, compiled models run uncompiled in all threads.

    Token 0 is [CLS]. Registers follow, if there are any, and then the patches, row by row. Only the requested states
    are computed. A compiled model runs uncompiled inside the block, so that its hooks run; its output is then the
    output of the uncompiled model.

    `tokens`, `projections` of all heads, `compressed` and `output` are the model's own tensors, so gradients of the
    logits reach them. `attention` is computed beside the model, because a fused kernel does not show it. Its gradients
    reach parameters and images, but no gradient of the logits reaches it. With `eager` one does: the output of
    attention gets its gradient through the captured rows times the values. The output itself stays the fused kernel's,
    to the bit. Gradients equal those of eager attention up to rounding. This costs one more product, and memory for
    rows and gradients: batch * heads * queries * tokens values each in every layer.

    At high resolution, memory cannot hold all rows of attention. With `chunk` and `reduce` they never exist at once:
    `reduce=lambda rows: rows.mean(dim=1, keepdim=True)` takes the mean over heads, `lambda rows: rows.topk(8)` the
    eight tokens that each token attends to most. `whitebox_crate.save_attention` writes all rows to disk.

    Args:
        model: A model of this package, or one with a backbone that an adapter knows (`whitebox_crate.backbones`):
            timm's VisionTransformer and others. Compiled by `torch.compile`, distributed or features-only is fine.
        *states: What to read.
        layers: Which layers, counted from 0, negative ones from the end; an int n for the last n; None for all.
        heads: Which heads of `projections` and `attention`; None for all.
        queries: Which rows of `attention`: "cls", "all", or token indices.
        chunk: How many rows of `attention` are computed at once; None for all.
        reduce: Called with each chunk (batch, heads, rows, tokens); gives a tensor or a tuple of tensors. The results
            of all chunks are concatenated along dimension 2. None keeps the rows.
        eager: Whether gradients of the logits reach `attention`. In nested blocks, the rows of the outermost get them.

    Yields:
        The trace: the states of the last forward pass of the whole model. It stays valid after the block.

    Raises:
        UnknownNameError: If a state, layer, head or query does not exist.
        InputError: If no adapter knows the model, or it has no [CLS] and `queries` is not given. If no state is named,
            indices are not a list of integers, `chunk` is not a positive integer, or `reduce` returns something else.
            If `chunk`, `reduce`, `eager` or `heads` is given for states that have no rows or heads. With `eager`: if
            `reduce` is given, the model checkpoints gradients, or a layer does not multiply rows by values (for example
            with dropout of attention in training).
        CaptureError: With `eager`: if no hook has read the rows that a layer multiplies by values.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> with torch.inference_mode(), capture(model, "attention", "output", layers=[-2]) as trace:
        ...     logits = model(torch.zeros(1, 3, 96, 96))
        >>> trace["attention", -2].shape  # (batch, heads, [CLS], [CLS] and 16 x 16 patches)
        torch.Size([1, 4, 1, 257])
        >>> trace["output", -2].shape
        torch.Size([1, 257, 128])
    """
    core = readable(model)
    if not states:
        raise InputError(f"name at least one state to capture: {', '.join(known_states(core))}")
    for state in states:
        check_kind("a state", state, str, "give names, one after the other, for example 'attention', 'output'")
    rows = RowChoice(queries, chunk, reduce)
    plan = Plan.of(core, states, layers)
    if isinstance(queries, str) and queries == "cls" and plan.any_of_rows and not core.has_class_token:
        raise InputError(
            "this backbone has no [CLS], so it has no row for queries='cls'; give queries='all', or token indices"
        )
    if not plan.any_of_rows and (chunk is not None or reduce is not None or eager):
        raise InputError(
            f"chunk, reduce and eager need rows of attention, but only {', '.join(states)} is captured; leave them out"
        )
    if heads is not None and not plan.any_of_heads:
        raise InputError(
            f"heads needs projections or attention, but only {', '.join(states)} is captured: leave heads out"
        )
    if eager:
        _check_eager(core, plan, reduce)
    recorder = Recorder(core, plan, heads, rows, eager)
    with hooks_here(recorder.hooks()), uncompiled:
        yield Trace(states, plan.layers, len(plan.modules), recorder.found)


def _check_eager(core: Readable, plan: Plan, reduce: Reduce | None) -> None:
    """Raises InputError unless gradients of the output can pass through the rows."""
    if reduce is not None:
        raise InputError("eager sends gradients to the rows, but reduce does not keep the rows: leave one of them out")
    if core.grad_checkpointing:
        raise InputError(
            "eager keeps rows for the backward pass, but checkpointing drops them: set_grad_checkpointing(False)"
        )
    for layer, readings in plan.readings.items():
        for state, reading in readings.items():
            if reading.rows and reading.mixed is None:
                raise InputError(
                    f"{state!r} of layer {layer} shows no product of rows and values: capture it without eager"
                )


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(value) if isinstance(value, Tensor) else tuple(_map(part, change) for part in value)


def _shapes(value: Any) -> tuple[Any, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else tuple(_shapes(part) for part in value)
