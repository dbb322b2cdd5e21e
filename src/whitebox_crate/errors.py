"""Typed errors: each message says what was wrong, shows the value, and names the next step."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

MANY_NAMES = 30  # more are not listed in a message
LONGEST = 4000  # characters of a message: what was given may be a file


def printable(text: str) -> str:
    """Text as a terminal may show it: what would move the cursor, or cannot be encoded, as an escape of Python."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def shown(text: str) -> str:
    """`printable`, and no longer than a message should be: shortened in the middle."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return printable(text)


def listed(names: Iterable[object], most: int = 8) -> str:
    """The first of some names, as a message shows them, and how many more there are."""
    names = list(names)
    first = ", ".join(map(repr, names[:most]))
    return first + (f" and {len(names) - most} more" if len(names) > most else "")


class WhiteboxCrateError(Exception):
    """Base of every error this package raises on purpose.

    Messages show what was given, and so what strangers wrote into files or a server answered: they are shortened in
    the middle, and hold no control characters.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class InputError(WhiteboxCrateError, ValueError):
    """A tensor, image or argument that the called function cannot take."""


class UnknownNameError(WhiteboxCrateError, LookupError, RuntimeError):
    """A model, tag, state, layer, head or option that does not exist."""

    @classmethod
    def of(cls, kind: str, name: object, known: Iterable[object], hint: str = "") -> Self:
        """Builds the error with the close matches among `known`, or all of them if none is close.

        Args:
            kind: What was looked up, for example "model".
            name: The name that was asked for.
            known: The names that exist.
            hint: A sentence to append, the next step. Where there are many names, it says how to list them.
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
    """An option that a model's class does not have; Python, and so timm, calls it a TypeError."""


class WeightsError(WhiteboxCrateError, RuntimeError):
    """Weights that are absent, unreadable, or do not fit the model."""


class MissingExtraError(WhiteboxCrateError, ImportError):
    """An optional dependency that is not installed."""


class OutputError(WhiteboxCrateError, OSError):
    """A file or folder that cannot be written."""


class ProcessError(WhiteboxCrateError, RuntimeError):
    """Another process of the same run that failed, or does not answer."""


class CaptureError(WhiteboxCrateError, RuntimeError):
    """A state that was asked of a capture but never came by."""


def require(module: str, extra: str) -> Any:
    """Imports an optional dependency.

    Args:
        module: Name of the module to import, for example "PIL.Image".
        extra: The extra of this package that installs it, for example "images".

    Raises:
        MissingExtraError: If it is not installed, or is and cannot be imported; the message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            what, upgrade = "not installed", ""
        else:  # something that it needs is missing or too old
            what, upgrade = f"installed, but cannot be imported ({error})", "--upgrade "
        raise MissingExtraError(
            f"{module} is needed here and is {what}: pip install {upgrade}'whitebox-crate[{extra}]'"
        ) from error


def is_finite(value: object) -> bool:
    """Whether a value is a number, and one that a float can hold: whole numbers of Python may be larger."""
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:
        return False


def check_kind(what: str, value: object, kind: Any, advice: str) -> None:
    """Refuses an argument of another type.

    Args:
        what: Which argument, for the message: "maps".
        value: What was given.
        kind: The type, or a tuple or union of types.
        advice: What to do, for the message.

    Raises:
        InputError: If it is of another type.
    """
    if not isinstance(value, kind):
        raise InputError(f"{what} cannot be a {type(value).__name__}; {advice}")
