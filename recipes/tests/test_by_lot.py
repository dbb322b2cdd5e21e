"""Photographs drawn by lot are of the half that nothing was chosen on, the same ones for one seed."""

import json
import sys
from pathlib import Path

import pytest
from labelled_images import make_folder
from PIL import Image

from recipes import by_lot
from whitebox_crate.errors import InputError
from whitebox_crate.evaluation.folders import read_folder


def test_the_lot_falls_among_the_half_to_report_on(tmp_path: Path) -> None:
    make_folder(tmp_path, 8)
    items = list(read_folder(tmp_path).items)
    names = [name for name, _ in items]
    chosen = [name for name, _ in by_lot.drawn(items[::-1], 3, seed=1)]
    assert set(chosen) < set(sorted(names)[1::2]) and len(set(chosen)) == 3
    assert chosen == [name for name, _ in by_lot.drawn(items, 3, seed=1)]
    assert chosen != [name for name, _ in by_lot.drawn(items, 3, seed=4)]
    with pytest.raises(InputError, match="cannot draw 5 of 4 photographs; give a smaller --count"):
        by_lot.drawn(items, 5, seed=0)


def test_picture_and_numbers_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, 4)
    command = ["by_lot", "--data", str(tmp_path), "--out", str(tmp_path / "new" / "lot"), "--count", "2"]
    monkeypatch.setattr(sys, "argv", command)
    by_lot.main()
    found = json.loads((tmp_path / "new" / "lot.json").read_text())["photographs"]
    assert len(found) == 2 and all(0 <= of[kind] <= 1 for of in found for kind in ("CRATE", "ViT", "box"))
    with Image.open(tmp_path / "new" / "lot.png") as sheet:
        assert sheet.width > 8 * by_lot.PANEL[0]
