"""The command recipes.train: the composites that the shipped weights learnt from, by the options of `train`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled_images import make_folder

import recipes.train
from recipes.objects import Objects
from whitebox_crate import create_model

ROOT = Path(__file__).parents[2]
WORDS = ("--set", "depth=1", "--model", "crate_nano", "--steps", "3", "--batch-size", "4", "--sizes", "12")


@pytest.fixture
def composites(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Path]]:
    """Three objects in place of photographs and garments; the folders of backgrounds that are asked for."""
    images = torch.zeros(3, 4, 16, 16, dtype=torch.uint8)
    images[:, 3, 4:12, 2:14] = 255
    asked: list[Sequence[Path]] = []

    def wallpapers(split: str, roots: Sequence[Path] = ()) -> torch.Tensor:
        assert split == "train"
        asked.append(roots)
        return torch.arange(5 * 3 * 256, dtype=torch.uint8).view(5, 3, 16, 16)

    for source in ("photographs", "garments"):
        objects = Objects(images, torch.arange(3), ("a", "b", "c"))
        monkeypatch.setattr(recipes.train, source, lambda split, objects=objects: objects)
    monkeypatch.setattr(recipes.train, "wallpapers", wallpapers)
    return asked


def run(*words: object) -> int:
    return recipes.train.main([str(word) for word in words])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("data", ["photographs", "garments"])
def test_ends_with_a_folder_that_loads(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], composites: object
) -> None:
    assert run(*WORDS, "--data", data, "--out", tmp_path) == 0
    assert str(tmp_path / "model") in capsys.readouterr().out
    model = create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert (model.num_classes, model.img_size, len(model.blocks)) == (3, (12, 12), 1)
    assert model.pretrained_cfg.label_names == ("a", "b", "c")
    assert read(tmp_path / "recipe.json")["changed"] == {
        "steps": 3,
        "batch_size": 4,
        "sizes": [12],
        "size_starts": [0.0],
    }


def test_the_same_command_gives_the_same_weights(tmp_path: Path, composites: object) -> None:
    for name in ("one", "two"):
        assert run(*WORDS, "--out", tmp_path / name) == 0
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_more_backgrounds_join_those_of_the_packages(
    tmp_path: Path, composites: list[Sequence[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    made = recipes.train.Composites

    def counted(objects: Objects, backgrounds: torch.Tensor, size: int, name: str) -> Any:
        seen.append(len(backgrounds))
        return made(objects, backgrounds, size, name)

    monkeypatch.setattr(recipes.train, "Composites", counted)
    assert run(*WORDS, "--backgrounds", "mine", "ours", "--out", tmp_path) == 0
    assert composites == [(), [Path("mine"), Path("ours")]] and seen == [10]


def test_masks_are_measured_every_so_many_steps(tmp_path: Path, composites: object) -> None:
    make_folder(tmp_path / "masks", count=2)
    words = (*WORDS, "--masks", tmp_path / "masks", "--validate-every", "2")
    assert run(*words, "--out", tmp_path / "out") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_mask_iou" in line] == [2, 3]
    assert run(*words, "--validate-every", 0, "--out", tmp_path / "never") == 1
    assert 0 < read(tmp_path / "out" / "model" / "metrics.json")["mask_iou"] < 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "2"], "--steps"),
        (["--preset", "finetune"], "--steps"),
        (["--set", "num_classes=1"], "3 classes"),
        (["--validation", "held_out"], "./FOLDER"),
        (["--data", "garments", "--backgrounds", "x"], "--backgrounds"),
        (["--objective", "mae", "--model", "crate_nano"], "crate_mae"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], composites: object
) -> None:
    more = ["--steps", "3", "--batch-size", "4"] if "--preset" not in words and "--epochs" not in words else []
    assert run(*more, *words, "--out", tmp_path / "out") == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("words", [["--streaming"], ["--crop", "random"], ["--label-column", "x"], ["--split", "test"]])
def test_composites_are_drawn_and_not_read(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], composites: object
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*words, "--out", tmp_path)
    assert words[0] in capsys.readouterr().err


def test_the_commands_of_the_pages_parse() -> None:
    found = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"^python -m recipes\.train (.*)$", text, flags=re.MULTILINE)
    assert len(found) > 5
    for words in found:
        recipes.train.build_parser().parse_args(shlex.split(words))
