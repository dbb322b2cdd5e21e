"""Typed errors: each message says what was wrong, shows the value, and names the next step."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


class WhiteboxCrateError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(WhiteboxCrateError, ValueError):
    """A tensor, image or argument that the called function cannot take."""


class UnknownNameError(WhiteboxCrateError, LookupError, RuntimeError):
    """A model, tag, state, layer, head or option that does not exist."""

    @classmethod
    def of(cls, kind: str, name: object, known: Iterable[object], hint: str = "") -> UnknownNameError:
        """Builds the error with the close matches among `known`, or all of them if none is close.

        Args:
            kind: What was looked up, for example "model".
            name: The name that was asked for.
            known: The names that exist.
            hint: A sentence to append, the next step.
        """
        names = sorted(str(k) for k in known)
        close = difflib.get_close_matches(str(name), names, n=5, cutoff=0.5)
        if close:
            rest = f"did you mean {', '.join(repr(c) for c in close)}?"
        else:
            shown = ", ".join(repr(n) for n in names[:30]) + (", ..." if len(names) > 30 else "")
            rest = f"known: {shown}." if names else "none exists."
        return cls(f"unknown {kind} {name!r}; {rest}" + (f" {hint}" if hint else ""))


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
        MissingExtraError: If it is not installed; the message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed here and is not installed: pip install 'whitebox-crate[{extra}]'"
        ) from error
