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
        arguments: Words after the command's name; the words of this process if None.

    Returns:
        0, or 1 after an error. The message of the error is on stderr, if there is one.
    """
    for name in ("stdout", "stderr"):  # closed, as by `2>&-`: print would write errors to stdout instead
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, for as long as the process runs
    for stream in (sys.stdout, sys.stderr):  # a label that a terminal cannot show must not stop the other pictures
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # A failed connection is reported once, by an error, and not at each try before.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    options = build_parser().parse_args(arguments)

    def run(options: Namespace) -> int:
        module, _, name = options.run.partition(".")
        code: int = getattr(importlib.import_module(f"{__name__}.{module}"), name)(options)
        return code

    return answer(run, options)


def answer(run: Callable[[Namespace], int], options: Namespace) -> int:
    """Runs a command with its options. Gives the exit status; after an error it is 1, with the message on stderr."""
    try:
        if options.threads:
            importlib.import_module("torch").set_num_threads(options.threads)
        code = run(options)
        print(end="", flush=True)  # here, so that a closed pipe is handled below
        return code
    except WhiteboxCrateError as error:
        print(f"whitebox-crate: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader stopped, as `head` does: nothing is left to say
        _close_stdout()
        return 1
    except OSError as error:  # a full disk, or a path that was not checked before
        _close_stdout()
        with suppress(OSError):
            print(f"whitebox-crate: error: {shown(str(error))}; check the path and the free space", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("whitebox-crate: interrupted", file=sys.stderr)
        return 130


def _close_stdout() -> None:
    """Drops the output that is still to be written; else Python complains about it when it ends."""
    with suppress(OSError, ValueError):  # tests replace stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
