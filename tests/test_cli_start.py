"""The first word of the command line: parsed without PyTorch, and answered where it is not known."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import get_args

import pytest

import whitebox_crate.cli as cli
from whitebox_crate import list_models
from whitebox_crate.cli.arguments import RULES
from whitebox_crate.evaluation import attention
from whitebox_crate.segmentation.attention import MaskRule

# Runs the command line in a process of its own, whose last line says whether PyTorch was imported.
PROBE = """
import runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
except SystemExit as stop:
    print()
    print(stop.code, "torch" in sys.modules)
"""


def probe(*words: str, module: str = "whitebox_crate") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROBE, module, *words], capture_output=True, text=True, timeout=300)


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of commands that run."""
    commands = getattr(parser, "commands", None)
    if commands is None:
        yield parser
    else:
        for below in commands.choices.values():
            yield from leaves(below)


LEAVES = list(leaves(cli.build_parser()))


class TestWithoutTorch:
    @pytest.mark.parametrize(
        "words", [["--help"], ["--version"], ["train", "--help"], ["curves", "epochs", "--help"]], ids=" ".join
    )
    def test_help(self, words: list[str]) -> None:
        done = probe(*words)
        assert done.stdout.splitlines()[-1] == "0 False", done.stderr

    @pytest.mark.parametrize(
        "words", [["clasify"], ["segment", "--haed", "1"], ["segment", "--rule", "maen"], ["train"]], ids=" ".join
    )
    def test_errors(self, words: list[str]) -> None:
        done = probe(*words)
        assert done.stdout.splitlines()[-1] == "2 False", done.stderr
        assert done.stderr.startswith("usage: whitebox-crate")

    @pytest.mark.parametrize("module", ["whitebox_crate", "whitebox_crate.cli"])
    def test_a_command_that_runs(self, module: str) -> None:
        done = probe("list", "vit_nano*", module=module)
        assert done.stdout.split() == [*list_models("vit_nano*"), "0", "True"], done.stderr


class TestUnknown:
    @pytest.mark.parametrize(
        ("words", "prog", "said"),
        [
            ("clasify cat.jpg", "whitebox-crate", "unknown command 'clasify'; did you mean 'classify'?"),
            ("xyz", "whitebox-crate", "unknown command 'xyz'; whitebox-crate --help shows all"),
            ("evaluate vox", "whitebox-crate evaluate", "unknown command 'vox'; did you mean 'voc'?"),
            ("--verson", "whitebox-crate", "unknown option '--verson'; did you mean '--version'?"),
            ("segment --haed 1", "whitebox-crate segment", "unknown option '--haed'; did you mean '--head'?"),
            ("segment --haed=1", "whitebox-crate segment", "unknown option '--haed'; did you mean '--head'?"),
            # what is missing too is said later
            ("evaluate voc --rot x", "whitebox-crate evaluate voc", "unknown option '--rot'; did you mean '--root'?"),
            # what stands after a command is not the business of the one above it
            ("--foo train --revision x", "whitebox-crate", "unknown option '--foo'; whitebox-crate --help shows all"),
            ("convert in out more", "whitebox-crate convert", "unrecognized arguments: more"),
            ("list -x", "whitebox-crate list", "unrecognized arguments: -x"),
        ],
    )
    def test_the_close_match_and_whose_help_explains(
        self, words: str, prog: str, said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stop:
            cli.main(words.split())
        err = capsys.readouterr().err
        assert stop.value.code == 2
        # and no more, or what is wrong would be lost among forty options
        assert err == f"usage: {prog} [-h] ...  (--help shows all)\n{prog}: error: {said}\n"

    @pytest.mark.parametrize(
        ("command", "option", "what"),
        [
            ("segment", "keep", "a share in (0, 1]"),
            ("heads", "keep", "a share in (0, 1]"),
            ("evaluate voc --root . --out out", "keep", "a share in (0, 1]"),
            ("curves layers --root . --out out", "keep", "a share in (0, 1]"),
            ("segment", "tau", "a cosine in [0, 1)"),
            ("evaluate coco --root . --out out", "tau", "a cosine in [0, 1)"),
        ],
    )
    @pytest.mark.parametrize("value", ["-0.1", "1.5", "nan", "much"])
    def test_numbers_out_of_range(
        self, command: str, option: str, what: str, value: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stop:
            cli.build_parser().parse_args([*command.split(), f"--{option}={value}"])
        assert stop.value.code == 2
        assert f"argument --{option}: {what}, not {value!r}" in capsys.readouterr().err

    def test_words_that_look_unknown(self) -> None:
        """After -- come files, whatever their names."""
        options = cli.build_parser().parse_args(["segment", "--checkpoint=file", "--", "--haed"])
        assert (str(options.checkpoint), [str(path) for path in options.images]) == ("file", ["--haed"])


@pytest.mark.parametrize("parser", LEAVES, ids=lambda parser: parser.prog)
def test_every_command_has_its_function(parser: argparse.ArgumentParser) -> None:
    module, _, name = parser.get_default("run").partition(".")
    assert callable(getattr(importlib.import_module(f"whitebox_crate.cli.{module}"), name))


@pytest.mark.parametrize("parser", LEAVES, ids=lambda parser: parser.prog)
def test_every_command_that_runs_a_model_takes_a_device(parser: argparse.ArgumentParser) -> None:
    flags = parser._option_string_actions
    makes_one = "--set" in flags  # convert runs none, and train runs it where accelerate says
    assert ("--device" in flags) == ("--model" in flags and not makes_one)


def test_the_device_is_chosen_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["classify", "--device", "cpu"]) == 0
    assert re.fullmatch(r"crate_nano runs on cpu \(\d+ threads?\)\n", capsys.readouterr().err)
    assert cli.main(["classify", "--device", "abacus"]) == 1
    assert "no device 'abacus'" in capsys.readouterr().err


def test_rules_are_those_of_the_library() -> None:
    assert get_args(MaskRule) == attention.RULES == RULES


@pytest.mark.parametrize("words", ["list", "list --pretrained", "classify"])
def test_a_pipe_that_nobody_reads_is_left_without_a_word(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "whitebox_crate", *words.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writer)
    said = [line for line in done.stderr.splitlines() if " runs on " not in line]
    assert (done.returncode, said) == (1, [])
