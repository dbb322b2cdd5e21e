"""The page on what the papers report: its commands are commands, its names are models, and these have the sizes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from whitebox_crate import create_model, is_model, list_pretrained
from whitebox_crate.cli import build_parser

PAGE = (Path(__file__).parents[1] / "docs" / "papers.md").read_text(encoding="utf-8")
COMMANDS = [
    *re.findall(r"^whitebox-crate (.*)$", PAGE, re.MULTILINE),
    *re.findall(r"`whitebox-crate ([^`]*)`", PAGE),
]
SIZES = re.findall(r"\| `(\w+)` \| ([\d,]+) \| ([\d.]+) \|", PAGE)


def test_each_table_has_its_command() -> None:
    sections = PAGE.split("\n## ")[1:]
    tables = [section for section in sections if "|---|" in section]
    assert len(tables) == 8
    assert all("whitebox-crate " in section or ".measure(model)" in section for section in tables)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse_and_name_models_that_there_are(command: str) -> None:
    options = build_parser().parse_args(shlex.split(command))
    for name in {getattr(options, "model", None), getattr(options, "pretrained", None)} - {None, ""}:
        assert name.startswith("local-dir:") or is_model(name) or name in list_pretrained()


@pytest.mark.parametrize(("name", "classes", "millions"), SIZES, ids=[name for name, _, _ in SIZES])
def test_models_have_as_many_parameters_as_reported(name: str, classes: str, millions: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=int(classes.replace(",", "")))
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{count:.{len(millions.partition('.')[2])}f}" == millions


def test_all_sizes_of_the_page_are_read() -> None:
    assert len(SIZES) == 11 and len(COMMANDS) > 18
