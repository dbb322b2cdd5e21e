"""`evaluate coco` as a whole, on a toy data set."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from toy_data import write_toy

import whitebox_crate.cli as cli
from whitebox_crate.evaluation.coco import average_precision, read_annotations, read_results

coding = pytest.importorskip("faster_coco_eval").mask

IMAGES = 6
OPTIONS = ("--size", "48", "--threads", "1")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"), IMAGES)


@pytest.fixture
def root(toy: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(toy / "COCO", tmp_path / "COCO"))


def evaluate(root: Path, out: Path, *words: str) -> int:
    return cli.main(["evaluate", "coco", "--root", str(root), "--out", str(out), *OPTIONS, *words])


def results_of(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("results.json", "scores.json", "scores.md")}


@pytest.fixture(scope="module")
def whole(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert evaluate(toy / "COCO", out) == 0
    return out


class TestEvaluate:
    def test_scores_are_those_of_the_results(self, toy: Path, whole: Path) -> None:
        annotations = read_annotations(toy / "COCO/annotations/instances_val2017.json")
        results = read_results(whole / "results.json")
        scores = json.loads((whole / "scores.json").read_text())
        assert scores["detection"] == average_precision(annotations, results, "bbox")
        assert scores["segmentation"] == average_precision(annotations, results, "segm")
        assert scores["images"] == IMAGES and scores["masks"] == len(results) > IMAGES / 2 and not scores["broken"]
        assert scores["settings"]["layer"] == 5 and scores["settings"]["tau"] == 0.15  # the weights' best layer
        table = (whole / "scores.md").read_text()
        shown = re.findall(r"\| (detection|segmentation) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", table)
        assert shown == [(k, *(f"{100 * scores[k][ap]:.1f}" for ap in ("AP50", "AP75", "AP"))) for k, *_ in shown]
        assert len(shown) == 2

    def test_a_finished_run_measures_nothing_again(
        self,
        toy: Path,
        whole: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out = Path(shutil.copytree(whole, tmp_path / "out"))
        for name in results_of(out):
            (out / name).unlink()
        monkeypatch.setattr(
            "whitebox_crate.evaluation.maskcut.maskcut_results", lambda *_, **__: pytest.fail("measured")
        )
        assert evaluate(toy / "COCO", out) == 0
        assert results_of(out) == results_of(whole)
        assert "| segmentation |" in capsys.readouterr().out

    def test_a_killed_run_goes_on(self, toy: Path, whole: Path, tmp_path: Path) -> None:
        out = Path(shutil.copytree(whole, tmp_path / "out"))
        records = out / "records-0.jsonl"
        records.write_bytes(records.read_bytes()[: records.stat().st_size // 2])
        assert evaluate(toy / "COCO", out) == 0
        assert results_of(out) == results_of(whole)

    @pytest.mark.skipif(sys.platform == "win32", reason="gloo")
    @pytest.mark.slow
    def test_two_processes_find_the_same(self, toy: Path, whole: Path, tmp_path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "whitebox_crate.cli", "evaluate", "coco", "--root", str(toy / "COCO")]
        started = [
            subprocess.Popen(
                [*command, "--out", str(tmp_path / "out"), *OPTIONS],
                env=os.environ
                | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                stdout=subprocess.DEVNULL,
            )
            for rank in range(2)
        ]
        assert [process.wait(timeout=120) for process in started] == [0, 0]
        for rank in range(2):
            assert (tmp_path / "out" / f"records-{rank}.jsonl").stat().st_size
        assert results_of(tmp_path / "out") == results_of(whole)

    def test_other_settings_are_refused(self, toy: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = results_of(whole)
        assert evaluate(toy / "COCO", whole, "--tau", "0.3") == 1
        assert "tau is 0.15 there, 0.3 here" in capsys.readouterr().err
        assert results_of(whole) == before

    def test_other_images_or_annotations_of_the_same_names_are_refused(
        self, root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = Path(shutil.copytree(whole, tmp_path / "out"))
        path = root / "val2017" / "000000000003.jpg"
        path.write_bytes(path.read_bytes() + b"0")
        assert evaluate(root, out) == 1
        assert "000000000003.jpg has changed since" in capsys.readouterr().err
        path.write_bytes(path.read_bytes()[:-1])
        path = root / "annotations" / "instances_val2017.json"
        path.write_text(path.read_text() + " ")
        assert evaluate(root, out) == 1
        assert "annotations is '" in capsys.readouterr().err

    def test_features_of_another_state(self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert evaluate(toy / "COCO", tmp_path / "out", "--state", "output", "--layer", "5") == 0
        assert "MaskCut on output of layer 5" in capsys.readouterr().out
        settings = json.loads((tmp_path / "out" / "scores.json").read_text())["settings"]
        assert (settings["state"], settings["layer"]) == ("output", 5)


class TestBadInput:
    def test_a_missing_image_is_told_before_anything_is_measured(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (root / "val2017" / "000000000004.jpg").unlink()
        assert evaluate(root, tmp_path / "out", "--model", "no_such_model") == 1
        said = capsys.readouterr().err
        assert "1 of 6 images" in said and "--skip-broken" in said
        assert not (tmp_path / "out").exists()

    def test_a_damaged_image_stops_the_run_or_is_reported(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = root / "val2017" / "000000000003.jpg"
        path.write_bytes(path.read_bytes()[:300])
        assert evaluate(root, tmp_path / "out") == 1
        assert "000000000003.jpg" in capsys.readouterr().err
        assert not (tmp_path / "out" / "scores.json").exists()
        assert evaluate(root, tmp_path / "out", "--skip-broken") == 0
        shown = capsys.readouterr()
        assert "2 measured before" in shown.err and "000000000003.jpg" in shown.err
        assert "in 1 broken images, named in scores.json, nothing was found" in shown.out
        scores = json.loads((tmp_path / "out" / "scores.json").read_text())
        assert [broken["image"] for broken in scores["broken"]] == ["000000000003.jpg"]
        assert 3 not in {result["image_id"] for result in read_results(tmp_path / "out" / "results.json")}

    def test_an_image_of_another_size(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Image.new("RGB", (40, 40)).save(root / "val2017" / "000000000001.jpg")
        assert evaluate(root, tmp_path / "out") == 1
        assert "40 x 40" in capsys.readouterr().err

    def test_only_broken_images(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.rmtree(root / "val2017")
        assert evaluate(root, tmp_path / "out", "--skip-broken") == 1
        assert "all 6 images are broken" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--split", "train2017"], "instances_train2017.json"),
            (["--annotations", "gone.json"], "gone.json"),
            (["--layer", "6"], "layer 6"),
            (["--model", "crate_nan"], "crate_nano"),
            (["--device", "cuda:99"], "cuda:99"),
            (["--device", "meta"], "meta"),
        ],
    )
    def test_bad_options(
        self, words: list[str], said: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert evaluate(toy / "COCO", tmp_path / "out", *words) == 1
        shown = capsys.readouterr().err
        assert said in shown and "Traceback" not in shown
        assert not (tmp_path / "out").exists()

    def test_without_the_evaluator_the_extra_is_named_at_once(
        self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
        assert evaluate(toy / "COCO", tmp_path / "out") == 1
        assert "whitebox-crate[eval]" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
