"""The `whitebox-crate` command: list models, classify, segment and analyze photographs, evaluate, convert, train."""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

from ..errors import WhiteboxCrateError
from .arguments import build_parser

__all__ = ["answer", "build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the command's name; those of the process if None.

    Returns:
        0; 1 after an error, whose message is on stderr.
    """
    options = build_parser().parse_args(arguments)

    def run(options: Namespace) -> int:
        module, _, name = options.run.partition(".")
        code: int = getattr(importlib.import_module(f"{__name__}.{module}"), name)(options)
        return code

    return answer(run, options)


def answer(run: Callable[[Namespace], int], options: Namespace) -> int:
    """Runs a command with its options; the exit status, after an error 1 with its message on stderr."""
    try:
        if options.threads:
            importlib.import_module("torch").set_num_threads(options.threads)
        code = run(options)
        sys.stdout.flush()  # here, where a pipe that nobody reads is answered
        return code
    except WhiteboxCrateError as error:
        print(f"whitebox-crate: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads has enough, as `head` has: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("whitebox-crate: interrupted", file=sys.stderr)
        return 130
