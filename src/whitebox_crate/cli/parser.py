"""Parser: argparse that answers an unknown word with close matches, and groups options in --help."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, NoReturn

from ..errors import shown

MOST_THREADS = 1024  # more are refused by the system, in its own words


class Parser(argparse.ArgumentParser):
    """The parser of a command. It may have commands of its own."""

    commands: Any = None  # the result of `add_subparsers`

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        options["allow_abbrev"] = False  # or a new option would change what --ou means
        super().__init__(prog, **options)
        self.sections: dict[str, Any] = {}

    def error(self, message: str) -> NoReturn:
        """Ends with the mistake and what was typed; a usage of forty options would hide it."""
        self.exit(2, f"usage: {self.prog} [-h] ...  (--help shows all)\n{self.prog}: error: {shown(message)}\n")

    def add_commands(self, metavar: str) -> Any:
        """Makes this a parser of commands; `add_parser` of the result adds them."""
        self.commands = self.add_subparsers(required=True, metavar=metavar)
        return self.commands

    def section(self, title: str) -> Any:
        """The options that --help shows under a title."""
        if title not in self.sections:
            self.sections[title] = self.add_argument_group(title)
        return self.sections[title]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuses unknown words; argparse leaves that to the parsers above, and these show their own usage."""
        words = list(sys.argv[1:] if args is None else args)
        self._look_for_unknown(words)
        options, rest = super().parse_known_args(words, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return options, rest

    def _look_for_unknown(self, words: Sequence[str]) -> None:
        """Looks before argparse does: argparse would name a missing option first."""
        own = list(takewhile(lambda word: word != "--", words))
        if self.commands is not None:
            own = list(takewhile(lambda word: word.startswith("-"), own))
            command = words[len(own) :][:1]
            if command and command[0] not in {*self.commands.choices, "--"}:
                self._unknown("command", command[0], self.commands.choices)
        for flag in (word.partition("=")[0] for word in own if word.startswith("--") and " " not in word):
            if flag not in self._option_string_actions:
                self._unknown("option", flag, self._option_string_actions)

    def _unknown(self, kind: str, word: str, known: Iterable[str]) -> NoReturn:
        close = difflib.get_close_matches(word, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"{self.prog} --help shows all"
        self.error(f"unknown {kind} {word!r}; {hint}")


def command(commands: Any, name: str, run: str, summary: str, example: str) -> Parser:
    """Adds a command. `run` names a module beside this one and its function, for example "pictures.classify"."""
    parser = _described(commands, name, summary, example)
    parser.add_argument("--threads", type=_threads, metavar="N", help="processor threads (default: PyTorch chooses)")
    parser.set_defaults(run=run)
    return parser


def group(commands: Any, name: str, metavar: str, summary: str, example: str) -> Any:
    """Adds a command that has commands of its own; `command` adds those to the result."""
    return _described(commands, name, summary, example).add_commands(metavar)


def _described(commands: Any, name: str, summary: str, example: str) -> Parser:
    sentence = f"{summary[0].upper()}{summary[1:]}."
    parser: Parser = commands.add_parser(name, help=summary, description=sentence, epilog=f"example: {example}")
    return parser


def positive(text: str) -> int:
    """A whole number, at least 1."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,17}", text):
        raise argparse.ArgumentTypeError(f"a positive number, not {text!r}")
    return int(text)


def share(text: str) -> float:
    """A number in (0, 1]."""
    return _number(text, "a share in (0, 1]", lambda value: 0 < value <= 1)


def cosine(text: str) -> float:
    """A number in [0, 1)."""
    return _number(text, "a cosine in [0, 1)", lambda value: 0 <= value < 1)


def _number(text: str, what: str, fits: Callable[[float], bool]) -> float:
    with suppress(ValueError):
        if fits(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"{what}, not {text!r}")


def _threads(text: str) -> int:
    if positive(text) > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"at most {MOST_THREADS}, not {text}")
    return int(text)
