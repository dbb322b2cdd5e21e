"""The `whitebox-crate` command: list models, classify, segment and analyze photographs, evaluate, convert, train."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..errors import WhiteboxCrateError, shown
from .arguments import build_parser

__all__ = ["answer", "build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the command's name; those of the process if None.

    Returns:
        0; 1 after an error, whose message is on stderr.
    """
    for stream in (sys.stdout, sys.stderr):  # a label that a terminal cannot show must not lose the other pictures
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # That no connection comes about is said once, by an error, and not at each try before.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
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
        _close_stdout()
        return 1
    except OSError as error:  # of the output, as a full disk, or of a path that nothing above has met
        _close_stdout()
        with suppress(OSError):
            print(f"whitebox-crate: error: {shown(str(error))}; look at paths and free space", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("whitebox-crate: interrupted", file=sys.stderr)
        return 130


def _close_stdout() -> None:
    """Leads what is still to be written nowhere: Python would complain of it at its end."""
    with suppress(OSError, ValueError):  # where tests put something else in its place
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
