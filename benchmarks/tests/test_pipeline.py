"""From files to masks: the stages one after the other do what the whole does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from labelled_images import make_folder

from benchmarks import pipeline, speed
from benchmarks.pipeline import PROCESSES, evaluating, segmenting
from whitebox_crate.evaluation import read_folder
from whitebox_crate.evaluation.attention import score_image
from whitebox_crate.ready import ready_model
from whitebox_crate.segmenting import segment


def test_the_stages_make_the_whole(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    [(_, pair)] = read_folder(tmp_path).items
    for way, item in ((segmenting(tmp_path), pair.image), (evaluating(tmp_path), pair)):
        seen = {"item": item}
        for stage in way.stages.values():
            seen = stage(seen)
        way.whole(item)
        if "segmentation" in seen:
            assert torch.equal(seen["segmentation"].masks, segment(pair.image, "crate_nano", device="cpu").masks)
        else:
            wanted = score_image(ready_model("crate_nano", "cpu"), pair)
            for label, rules in seen["scores"].items():
                assert {rule: of.tolist() for rule, of in rules.items()} == wanted[str(label)]


def test_nothing_is_measured_while_other_work_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path, 1)
    monkeypatch.setattr(speed.os, "getloadavg", lambda: (1.25, 0.0, 0.0))
    words = ["--photos", str(tmp_path), "--large", str(tmp_path), "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["pipeline", *words, "--rounds", "0"])
    with pytest.raises(SystemExit):
        pipeline.main()
    assert "load is 1.25" in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()


def test_a_share_is_that_of_rounds_of_its_own() -> None:
    found = {"whole": {"one core": [2.0], PROCESSES: [3.0]}, "slowest_alone": {"one core": [4.0]}}
    assert pipeline.rate(found, "one core") == "2.0 a second (0.50)"
    assert pipeline.rate(found, PROCESSES) == "3.0 a second"
