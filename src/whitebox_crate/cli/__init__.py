"""The `whitebox-crate` command: list models, classify, segment and analyze photographs, evaluate, convert, train."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from ..errors import WhiteboxCrateError
from .arguments import build_parser

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the command's name; those of the process if None.

    Returns:
        0; 1 after an error, whose message is on stderr.
    """
    options = build_parser().parse_args(arguments)
    try:
        module, _, name = options.run.partition(".")
        run: Callable[..., int] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        if options.threads:
            importlib.import_module("torch").set_num_threads(options.threads)
        return run(options)
    except WhiteboxCrateError as error:
        print(f"whitebox-crate: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("whitebox-crate: interrupted", file=sys.stderr)
        return 130
