"""The parts of a model's description: equations, notes and parameters, in TeX and in plain ASCII."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

Symbols: TypeAlias = Mapping[str, "Line"]
Role: TypeAlias = Literal["trained", "fixed", "buffer"]

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
        markdown: The equation or the note.
        plain: The same in plain ASCII, if the rules from TeX to text do not give it.
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
    """An entry of the state dict, and its symbol in the equations: trained, fixed, or a buffer such as a mean."""

    symbol: Line
    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Part:
    """The content under one heading. `repeats` is the number of layers with parameters of these names."""

    title: str
    equations: tuple[Line, ...]
    notes: tuple[Line, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    repeats: int = 1


def named(
    module: nn.Module, prefix: str, symbols: Symbols, only: Collection[str] | None = None
) -> tuple[Parameter, ...]:
    """Entries of a module's state dict with their symbols, in its order."""
    roles: dict[str, Role] = {
        name: "trained" if parameter.requires_grad else "fixed" for name, parameter in module.named_parameters()
    }
    return tuple(
        Parameter(symbols.get(name, Line("")), prefix + name, tuple(tensor.shape), roles.get(name, "buffer"))
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


def drops_note(*rates: tuple[float, str]) -> list[Line]:
    """A note on dropout rates, if any."""
    shares = ", ".join(f"{number(rate)} {what}" for rate, what in rates if rate)
    return [Line(f"left out at random, in training alone: {shares}")] if shares else []


def each(symbol: str, count: int) -> str:
    """`1, ..., 4`, or `U_1, ..., U_4` with a symbol. One or two entries are written out."""
    last = f"{symbol}{{{count}}}" if symbol else str(count)
    return last if count == 1 else ", ".join([f"{symbol}1", *([r"\dots"] if count > 2 else []), last])


def norm_symbols(module: str, index: str) -> dict[str, Line]:
    """Symbols of a LayerNorm."""
    return {f"{module}.weight": Line(rf"$\gamma_{index}$"), f"{module}.bias": Line(rf"$\beta_{index}$")}


def ln(index: str, argument: str) -> str:
    return rf"\operatorname{{LN}}_{index}({argument})"


def softmax(scores: str) -> str:
    return rf"\operatorname{{softmax}}\left( {scores} / \sqrt p \right)"


def eps_note(**norms: nn.Module) -> Line:
    """The eps of LayerNorms, by their index."""
    values = {index: number(float(getattr(norm, "eps", 0.0))) for index, norm in norms.items()}
    return Line(", ".join(rf"$\epsilon$ of $\operatorname{{LN}}_{i}$ = ${value}$" for i, value in values.items()))
