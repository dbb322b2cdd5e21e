"""Typed errors. Each message says what was wrong, shows the value, and names the next step."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self, TypeIs

MANY_NAMES = 30  # a message lists no more
LONGEST = 4000  # characters of a message; a value in it may be as long as a file


def printable(text: str) -> str:
    """Text that is safe to show in a terminal: control characters become Python escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def shown(text: str) -> str:
    """`printable` text, shortened in the middle if it is too long for a message."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return printable(text)


def listed(names: Iterable[object], most: int = 8) -> str:
    """The first of several names, and how many more there are, for a message."""
    names = list(names)
    first = ", ".join(map(repr, names[:most]))
    return first + (f" and {len(names) - most} more" if len(names) > most else "")


class WhiteboxCrateError(Exception):
    """Base of every error that this package raises on purpose.

    Messages show values, which may come from foreign files or servers. So messages hold no control characters, and
    long ones are shortened in the middle.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class InputError(WhiteboxCrateError, ValueError):
    """A tensor, image or argument that the called function cannot take."""


class UnknownNameError(WhiteboxCrateError, LookupError, RuntimeError):
    """A model, tag, state, layer, head or option that does not exist."""

    @classmethod
    def of(cls, kind: str, name: object, known: Iterable[object], hint: str = "") -> Self:
        """Builds the error, with the close matches among `known`, or with all names if none is close.

        Args:
            kind: The kind of name, for example "model".
            name: The name that was asked for.
            known: The names that exist.
            hint: The next step, a sentence at the end. If there are many names, it says how to list them.
        """
        names = sorted(str(k) for k in known)
        close = difflib.get_close_matches(str(name), names, n=5, cutoff=0.5)
        if close:
            rest = f"did you mean {', '.join(repr(c) for c in close)}?"
        elif hint and len(names) > MANY_NAMES:
            rest = f"none of the {len(names)} known names is close."
        else:
            rest = f"known: {listed(names, MANY_NAMES)}." if names else "none exists."
        return cls(f"unknown {kind} {name!r}; {rest}" + (f" {hint}" if hint else ""))


class UnknownOptionError(UnknownNameError, TypeError):
    """An option that a model's class does not have. It is a TypeError too, as in Python and timm."""


class WeightsError(WhiteboxCrateError, RuntimeError):
    """Weights that are missing, unreadable, or do not fit the model."""


class MissingExtraError(WhiteboxCrateError, ImportError):
    """An optional dependency that is not installed."""


class OutputError(WhiteboxCrateError, OSError):
    """A file or folder that cannot be written."""


class ProcessError(WhiteboxCrateError, RuntimeError):
    """Another process of the same run has failed, or does not answer."""


class CaptureError(WhiteboxCrateError, RuntimeError):
    """A state that a capture should read but that the model never computed."""


def require(module: str, extra: str) -> Any:
    """Imports an optional dependency.

    Args:
        module: Name of the module to import, for example "PIL.Image".
        extra: The extra of this package that installs it, for example "images".

    Raises:
        MissingExtraError: If it is not installed, or cannot be imported; the message has the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            what, upgrade = "not installed", ""
        else:  # one of its own dependencies is missing or too old
            what, upgrade = f"installed, but cannot be imported ({error})", "--upgrade "
        raise MissingExtraError(
            f"{module} is needed here and is {what}: pip install {upgrade}'whitebox-crate[{extra}]'"
        ) from error


def is_finite(value: object) -> bool:
    """Whether a value is a finite number that a float can hold. (Integers of Python may be larger.)"""
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:
        return False


def is_whole(value: object) -> TypeIs[int]:
    """Whether a value is a whole number: of Python or numpy, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole_number(what: str, value: Any, least: int = 1) -> int:
    """A whole number as Python's.

    Args:
        what: Name of the argument, for the message, for example "workers".
        value: Its value.
        least: The least that it may be.

    Raises:
        InputError: If the value is no whole number, or is below `least`.
    """
    if not is_whole(value) or value < least:
        raise InputError(f"{what} must be a whole number, at least {least}, not {value!r:.50}")
    return int(value)


def check_kind(what: str, value: object, kind: Any, advice: str) -> None:
    """Refuses an argument of another type.

    Args:
        what: Name of the argument, for the message, for example "maps".
        value: Its value.
        kind: The type, or a tuple or union of types.
        advice: The next step, for the message.

    Raises:
        InputError: If the value has another type.
    """
    if not isinstance(value, kind):
        raise InputError(f"{what} cannot be a {type(value).__name__}; {advice}")
