"""Recorder: hooks that read the states of a plan, under the layer that runs.

A model keeps its fused attention. A forward hook computes the requested rows of attention once more, from the
projections (`_rows`). The model's output does not change by a bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ._hooks import Hook
from ._indices import resolve_indices
from ._plan import Plan
from ._rows import RowChoice, through_rows
from .backbones import Readable
from .errors import CaptureError, InputError
from .layers import Reading, Rows


class Recorder:
    """Reads the states of a plan while a model runs.

    Args:
        core: The model.
        plan: The states, and where they are.
        heads: See `capture`.
        rows: The rows of attention to keep.
        eager: See `capture`.

    Attributes:
        found: The states of the last forward pass, by state and layer.
    """

    def __init__(self, core: Readable, plan: Plan, heads: Sequence[int] | None, rows: RowChoice, eager: bool) -> None:
        self.core, self.plan, self.heads, self.rows, self.eager = core, plan, heads, rows, eager
        self.found: dict[tuple[str, int], Any] = {}
        self.mixing: dict[str, Rows] = {}  # the last rows; their product with the values comes next
        self.last, self.running = -1, False

    def hooks(self) -> list[Hook]:
        """The hooks that read the states of the plan."""
        # Every forward pass embeds its images once; a new pass forgets the last one.
        hooks = [Hook(self.core.patch_embed, "before", self._begin)]
        every: dict[nn.Module, list[int]] = {}  # one module may serve as several layers, and so may a part of it
        for index, block in enumerate(self.plan.modules):
            every.setdefault(block, []).append(index)
        places = {block: indices for block, indices in every.items() if set(indices) & set(self.plan.layers)}
        parts: dict[tuple[nn.Module, str, str], Hook] = {}
        for block, indices in places.items():
            hooks.append(Hook(block, "before", partial(self._enter, indices)))
            readings = next(self.plan.readings[index] for index in indices if index in self.plan.readings)
            for state, reading in readings.items():
                for hook in self._hooks_of(state, reading):
                    parts.setdefault((hook.module, hook.when, state), hook)
        hooks += parts.values()
        return hooks + [Hook(block, "after", self._leave) for block in places]

    def _begin(self, _: Any) -> None:
        self.found.clear()
        self.last, self.running = -1, False

    def _enter(self, indices: Sequence[int], _: Any) -> None:
        """Notes which layer runs. Layers run in order; gradient checkpointing runs a layer again, which is ignored."""
        following = [index for index in indices if index > self.last]
        if following:
            self.last = following[0]
        self.running = bool(following) and self.last in self.plan.layers

    def _leave(self, *_: Any) -> None:
        self.running = False

    def _keep(self, state: str, make: Callable[[], Any]) -> None:
        if self.running:
            self.found[state, self.last] = make()

    def _hooks_of(self, state: str, reading: Reading) -> list[Hook]:
        """The hooks that read one state of a layer."""
        chosen = self._heads_of(reading)

        def keep(*seen: Any) -> None:
            with _unseen_by_checkpointing(self.core):
                self._keep(state, lambda: self._part(state, reading.read(*seen), chosen, bool(reading.num_heads)))

        def keep_and_write(_: Any, out: Tensor) -> Tensor | None:
            """Gives the layer the same tensor that is kept, so that gradients of the logits reach it."""
            if reading.write is None or not (self.running and chosen is None and out.requires_grad):
                keep(out)
                return None
            kept = reading.read(out)
            self._keep(state, lambda: kept)
            written: Tensor = reading.write(out, kept)
            return written

        if reading.inside:
            hooks = _hooks_inside(reading, keep)
        elif reading.when == "before":
            hooks = [Hook(reading.module, "before", lambda args: keep(*args))]
        else:
            hooks = [Hook(reading.module, "after", keep_and_write if reading.num_heads else lambda _, out: keep(out))]
        if self.eager and reading.mixed is not None:
            hooks.append(self._hook_of_mixed(state, reading.mixed, chosen or range(reading.num_heads)))
        return hooks

    def _hook_of_mixed(self, state: str, mixed: nn.Module, heads: Sequence[int]) -> Hook:
        """The hook that sends gradients of the output through the captured rows."""

        def lead(args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if not self.running:
                return None
            rows = self.found.get((state, self.last))
            if rows is None:
                raise CaptureError(
                    f"layer {self.last} computed no {state!r}: a part of it ran without its hooks, as compiled, "
                    "exported or replaced code does; run the layer as it was made, or capture without eager"
                )
            if not rows.requires_grad:
                return None
            left, _, _, values = self.mixing.pop(state)
            if values is None:
                raise InputError(
                    f"layer {self.last} does not multiply rows of {state!r} by values (dropout of attention in "
                    "training does not): call model.eval(), or capture without eager"
                )
            return through_rows(args[0], rows, values, heads, self.rows.tokens(left.shape[2])), *args[1:]

        return Hook(mixed, "before", lead, first=True)

    def _heads_of(self, reading: Reading) -> list[int] | None:
        """The heads of a state that were asked for; None for all heads, or for a state that is not per head."""
        asked = self.heads if reading.num_heads else None
        return None if asked is None else resolve_indices("head", asked, reading.num_heads)

    def _part(self, state: str, found: Tensor | Rows, chosen: Sequence[int] | None, of_heads: bool) -> Any:
        """The part of a state that was asked for."""
        if isinstance(found, Rows):
            if chosen is not None:
                left, right, make, values = found
                found = Rows(left[:, chosen], right[:, chosen], make, None if values is None else values[:, chosen])
            if self.eager:
                self.mixing[state] = found
            return self.rows.of(found)
        if chosen is not None:
            return found[:, chosen]
        # A copy of the keys: the trace shall not keep queries and values alive.
        return found.clone() if of_heads and found.untyped_storage().nbytes() > found.nbytes else found


def _hooks_inside(reading: Reading, keep: Callable[..., None]) -> list[Hook]:
    """Hooks that call `keep` with a module's arguments by name and the outputs of the modules inside it."""
    names = inspect.signature(reading.module.forward)
    seen: dict[int, Any] = {}

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.clear()
        seen[0] = names.bind(*args, **kwargs).arguments

    def note(place: int, _: Any, out: Any) -> None:
        seen[place] = out
        if len(seen) > len(reading.inside):
            keep(*(seen[place] for place in sorted(seen)))
            seen.clear()

    inside = [Hook(part, "after", partial(note, place)) for place, part in enumerate(reading.inside, start=1)]
    return [Hook(reading.module, "before", begin, with_kwargs=True), *inside]


def _unseen_by_checkpointing(core: Readable) -> Any:
    """Hides tensors from checkpointing, which counts what a layer saves for the backward pass."""
    return saved_tensors_hooks(_same, _same) if core.grad_checkpointing else nullcontext()


def _same(tensor: Tensor) -> Tensor:
    return tensor
