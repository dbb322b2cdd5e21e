"""Plan: which states of which layers a capture reads, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from torch import nn

from ._indices import resolve_layers
from .backbones import Backbone, Readable, readable
from .errors import UnknownNameError
from .layers import Reading, layer_readings
from .models import Block
from .models._wrappers import unwrap

# Operators and adapters name their own states (`Block.readings`); these are the names in this package.
State: TypeAlias = str
LAYER_STATES = ("tokens", "output")  # see `layer_readings`


def known_states(model: nn.Module) -> tuple[str, ...]:
    """The states that `capture` can read in at least one layer of a model.

    Raises:
        InputError: If no adapter knows the model.
    """
    return in_order(name for names in _states_by_layer(readable(model)).values() for name in names)


def layers_with(model: nn.Module, *states: State, layers: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """The layers, counted from 0, in which `capture` can read these states.

    Args:
        model: See `capture`.
        *states: The states; a layer must have all of them.
        layers: Layers that must have the states (see `capture`), or None for all layers that have them.

    Raises:
        UnknownNameError: If a layer does not exist, or a named layer lacks a state; the message lists the states that
            it has.
        InputError: If no adapter knows the model, or a module in place of a layer.
    """
    return tuple(Plan.of(readable(model), states, layers).layers)


def in_order(inner: Iterable[str]) -> tuple[str, ...]:
    """The states of a layer in the order of computation, each once: its input, the states inside, its output."""
    return ("tokens", *dict.fromkeys(inner), "output")


def _states_by_layer(core: Readable) -> dict[int, Mapping[str, Reading]]:
    """The states inside each known layer."""
    layers = [unwrap(layer) for layer in core.layers()]
    known = {i: layer for i, layer in enumerate(layers) if isinstance(core, Backbone) or isinstance(layer, Block)}
    return {index: core.readings_of(layer) for index, layer in known.items()}


@dataclass(frozen=True)
class Plan:
    """The states to read, and where they are.

    Attributes:
        modules: All layers of the model, unwrapped.
        layers: The layers that are read.
        readings: For each of these layers, the readings of its states.
    """

    modules: Sequence[nn.Module]
    layers: Sequence[int]
    readings: Mapping[int, Mapping[str, Reading]]

    @classmethod
    def of(cls, core: Readable, states: Sequence[str], layers: int | Sequence[int] | None) -> Plan:
        """The readings of these states. With layers None: in the layers that have all states.

        Raises:
            UnknownNameError: If a layer does not exist, or lacks a state.
            InputError: If a module in place of a layer is unknown.
        """
        modules = [unwrap(layer) for layer in core.layers()]
        asked = resolve_layers(layers, len(modules))
        inner = [state for state in states if state not in LAYER_STATES]
        found = {index: core.readings_of(modules[index]) if inner else {} for index in asked}
        having = [index for index in asked if set(inner) <= set(found[index])]
        if not having or (layers is not None and len(having) < len(asked)):
            cls._refuse(core, inner, {index: in_order(found[index]) for index in asked})
        whole = {index: {**layer_readings(modules[index]), **found[index]} for index in having}
        return cls(modules, having, {i: {state: of_layer[state] for state in states} for i, of_layer in whole.items()})

    @staticmethod
    def _refuse(core: Readable, states: Sequence[str], has: Mapping[int, Sequence[str]]) -> NoReturn:
        known = known_states(core)
        for state in states:
            if state not in known:
                raise UnknownNameError.of("state", state, known)
        layer, lacking = next((i, s) for i, names in has.items() for s in states if s not in names)
        having = [str(i) for i, names in _states_by_layer(core).items() if set(states) <= set(names)]
        raise UnknownNameError(
            f"layer {layer} has no state {lacking!r}; it has {', '.join(has[layer])}; "
            + (f"the layers {', '.join(having)} have it" if having else "no layer has all the states asked for")
        )

    def _any(self, holds: Callable[[Reading], object]) -> bool:
        return any(holds(reading) for of_layer in self.readings.values() for reading in of_layer.values())

    @property
    def any_of_rows(self) -> bool:
        """Whether a state has rows that are computed on demand."""
        return self._any(lambda reading: reading.rows)

    @property
    def any_of_heads(self) -> bool:
        """Whether a state is per head."""
        return self._any(lambda reading: reading.num_heads)
