"""The `whitebox-crate` command: list models, classify, segment and analyze photographs, evaluate, convert, train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from .._version import __version__
from ..errors import WhiteboxCrateError
from .analyze import add_analyze
from .curves import add_curves
from .evaluate import add_evaluate
from .figures import add_heads, add_noise, add_pca
from .pictures import add_classify, add_segment
from .training import add_train
from .weights import add_convert, add_list


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the command's name; those of the process if None.

    Returns:
        0; 1 after an error, whose message is on stderr.
    """
    options = build_parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        code: int = options.run(options)
    except WhiteboxCrateError as error:
        print(f"whitebox-crate: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("whitebox-crate: interrupted", file=sys.stderr)
        return 130
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser("whitebox-crate", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_list,
        add_classify,
        add_segment,
        add_pca,
        add_heads,
        add_noise,
        add_analyze,
        add_convert,
        add_evaluate,
        add_curves,
        add_train,
    ):
        add(commands)
    return parser
