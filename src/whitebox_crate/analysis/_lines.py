"""What a model's description is made of: equations, notes and parameters, in TeX and from that in plain ASCII."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

Symbols: TypeAlias = Mapping[str, "Line"]

# TeX to plain text, one after the other.
_PLAIN: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(?:([\d.]+) \\cdot )?10\^\{(-?\d+)\}", lambda power: f"{power[1] or 1}e{int(power[2]):+03d}"),
    (r"\\(?:left|Bigl)\( ", "("),
    (r" \\(?:right|Bigr)\)", ")"),
    (r"\\lvert (.*?) \\rvert", r"|\1|"),
    (r"\\sqrt (\w)", r"sqrt(\1)"),
    (r"\\hat (\w)", r"\1^"),
    (r"\\(?:operatorname|text)\{(\w+)\}", r"\1"),
    (r"\\(?:[,;]|quad|mathbf) ", ""),
    (r"\\top", "T"),
    (r"\\dots", "..."),
    (r"\\epsilon", "eps"),
    (r"\\([A-Za-z]+)", r"\1"),
    (r"_\{(\d+)\}", r"_\1"),
    (r"\$", ""),
)


@dataclass(frozen=True)
class Line:
    """An equation in TeX, or a note in Markdown with TeX between dollar signs.

    Attributes:
        markdown: The one or the other.
        plain: The same in plain ASCII, where the rules of TeX to text do not give it.
    """

    markdown: str
    plain: str = ""

    @property
    def text(self) -> str:
        """The same in plain ASCII."""
        text = self.plain or self.markdown
        for pattern, plain in () if self.plain else _PLAIN:
            text = re.sub(pattern, plain, text)
        return text


@dataclass(frozen=True)
class Parameter:
    """An entry of the state dict, and its symbol in the equations."""

    symbol: Line
    name: str
    shape: tuple[int, ...]
    trained: bool

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Part:
    """What stands under one heading; `repeats` says how many layers have parameters of these names."""

    title: str
    equations: tuple[Line, ...]
    notes: tuple[Line, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    repeats: int = 1


def named(
    module: nn.Module, prefix: str, symbols: Symbols, only: Collection[str] | None = None
) -> tuple[Parameter, ...]:
    """Entries of a module's state dict with their symbols, in its order."""
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    return tuple(
        Parameter(symbols.get(name, Line("")), prefix + name, tuple(tensor.shape), trained.get(name, False))
        for name, tensor in module.state_dict().items()
        if only is None or name in only
    )


def math_symbols(**symbols: str) -> dict[str, Line]:
    """Symbols of parameters whose names have `__` for the dot, in TeX."""
    return {name.replace("__", "."): Line(f"${symbol}$") for name, symbol in symbols.items()}


def number(value: float) -> str:
    """A number in TeX."""
    mantissa, e, exponent = f"{value:.6g}".partition("e")
    power = f"10^{{{int(exponent)}}}" if e else ""
    return mantissa if not e else power if mantissa == "1" else rf"{mantissa} \cdot {power}"
