"""segment and compare at the command line: the files that are left, what is said, and what is gone on with."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import whitebox_crate.cli as cli
import whitebox_crate.cli.segmenting as commands
from whitebox_crate import create_model, save_pretrained, segment
from whitebox_crate.cli.arguments import COMPARED
from whitebox_crate.segmentation import EDGES, METHODS
from whitebox_crate.segmentation.draw import draw_panels
from whitebox_crate.segmentation.encoding import run_lengths
from whitebox_crate.segmenting import SHORT_SIDE, Segmentation

JOURNAL = "segmented.jsonl"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((70, 50), 60).convert("RGB").save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photographs, and what is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        Image.effect_noise((60 + index, 50), 60).convert("RGB").save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("no photograph")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and those within, by its name there."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def run(*words: object) -> int:
    return cli.main(["segment", *map(str, words)])


def test_choices_are_those_of_the_library() -> None:
    assert tuple(METHODS) == cli.arguments.METHODS
    assert tuple(EDGES) == cli.arguments.EDGES


class TestFiles:
    def test_samples_of_the_package(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--out", tmp_path / "out") == 0
        pictures = {f"{where}{name}.png" for where in ("", "masks/") for name in ("cat", "coffee", "rocket")}
        assert files(tmp_path / "out").keys() == {*pictures, JOURNAL}
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert all("multiscale, layer" in line and str(tmp_path / "out") in line for line in lines)

    def test_a_mask_is_that_of_the_library(self, photo: Path, tmp_path: Path) -> None:
        assert run(photo, "--save", "mask,map,boxes,overlay", "--out", tmp_path / "out") == 0
        found = segment(photo)
        mask = Image.open(tmp_path / "out" / "masks" / "photo.png")
        assert mask.mode == "L" and mask.size == (70, 50)
        assert np.array_equal(np.asarray(mask), 255 * found.mask.numpy())
        assert np.array_equal(np.load(tmp_path / "out" / "maps" / "photo.npy"), found.maps.numpy())
        (box,) = json.loads((tmp_path / "out" / "boxes" / "photo.json").read_text())
        assert box == {"box": found.boxes[0].tolist(), "score": found.score}
        assert Image.open(tmp_path / "out" / "overlays" / "photo.png").size == (70, 50)
        assert not (tmp_path / "out" / "photo.png").exists()

    def test_several_objects_are_numbered(self, tmp_path: Path) -> None:
        photo = Path(cli.__file__).parents[1] / "samples" / "rocket.jpg"
        assert run(photo, "--method", "maskcut", "--n", "2", "--out", tmp_path / "out") == 0
        found = segment(photo, method="maskcut", n=2)
        assert len(found.masks) == 2
        expected = (found.masks * torch.tensor([1, 2])[:, None, None]).sum(0)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "masks" / "rocket.png")), expected.numpy())

    def test_a_panel_has_three_pictures_of_its_proportions(self, photo: Path, tmp_path: Path) -> None:
        assert run(photo, "--out", tmp_path) == 0
        sheet = Image.open(tmp_path / "photo.png")
        assert (sheet.width - 8) / 3 - 8 == pytest.approx(SHORT_SIDE * 70 / 50)

    def test_options_are_obeyed(self, photo: Path, tmp_path: Path) -> None:
        layer, of = ["--layer", "0"], ["--method", "attention", "--layer", "1"]
        one, two = [*of, "--head", "0"], [*of, "--head", "0,-1"]
        others = (["--size", "48"], ["--edges", "patches"], ["--method", "maskcut"], [*of, "--rule", "mass"])
        options = ([], layer, one, two, [*of, "--head", "all"], *others)
        for index, words in enumerate(options):
            assert run(photo, "--out", tmp_path / str(index), *words) == 0
        sheets = [(tmp_path / str(index) / "photo.png").read_bytes() for index in range(len(options))]
        assert len(set(sheets)) == len(options)

    def test_a_class_is_looked_for_by_name_or_index(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for label in ("cup", "325", "dog"):
            assert run(photo, "--label", label, "--save", "map", "--out", tmp_path / label) == 0
        names = create_model("crate_nano", pretrained=True).pretrained_cfg.label_names
        maps = {label: np.load(tmp_path / label / "maps" / "photo.npy") for label in ("cup", "325", "dog")}
        assert names[325] == "cup" and np.array_equal(maps["cup"], maps["325"])
        assert np.array_equal(maps["cup"], segment(photo, label="cup").maps.numpy())
        assert not np.array_equal(maps["cup"], maps["dog"])
        assert "(crate_nano, class, cup, 24 x" in capsys.readouterr().out

    def test_keep_widens_the_mask(self, photo: Path, tmp_path: Path) -> None:
        kept = []
        for keep in ("0.2", "0.9"):
            assert (
                run(photo, "--method", "attention", "--rule", "entries", "--keep", keep, "--out", tmp_path / keep) == 0
            )
            kept.append(np.asarray(Image.open(tmp_path / keep / "masks" / "photo.png")).mean())
        assert kept[0] < kept[1]

    def test_pictures_of_one_name_do_not_overwrite_each_other(self, photo: Path, tmp_path: Path) -> None:
        other = tmp_path / "other" / "photo.jpg"
        other.parent.mkdir()
        other.write_bytes(photo.read_bytes())
        assert run(photo, other, "--save", "panel", "--out", tmp_path / "out") == 0
        assert files(tmp_path / "out").keys() == {"photo.png", "photo-2.png", JOURNAL}

    def test_another_model_from_a_folder(self, photo: Path, tmp_path: Path) -> None:
        folder = save_pretrained(create_model("vit_nano", depth=2), tmp_path / "vit")
        assert run(photo, "--model", f"local-dir:{folder}", "--out", tmp_path / "out") == 0
        weights = folder / "model.safetensors"
        assert run(photo, "--model", "crate_nano", "--checkpoint", weights, "--out", tmp_path / "not") == 1
        assert not (tmp_path / "not").exists()


class TestCoco:
    @pytest.fixture
    def document(self, folder: Path, tmp_path: Path) -> Path:
        assert run(folder, "--method", "maskcut", "--save", "coco", "--out", tmp_path / "out", "-q") == 0
        return tmp_path / "out" / "coco.json"

    def test_it_says_what_was_found(self, folder: Path, document: Path) -> None:
        read = json.loads(document.read_text())
        assert [image["file_name"] for image in read["images"]] == [f"{index}.png" for index in range(5)]
        assert [annotation["id"] for annotation in read["annotations"]] == list(range(1, 1 + len(read["annotations"])))
        for image in read["images"]:
            found = segment(folder / image["file_name"], method="maskcut")
            own = [one for one in read["annotations"] if one["image_id"] == image["id"]]
            assert (image["width"], image["height"]) == found.photo.size
            assert [one["bbox"] for one in own] == found.boxes.tolist()
            assert [one["score"] for one in own] == found.scores.tolist()
            assert [one["segmentation"] for one in own] == [run_lengths(mask) for mask in found.masks]

    def test_files_are_named_from_where_it_is_run_now(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What was done before was noted under the names that the photographs had there."""
        for place, name in ((tmp_path, "photos"), (folder, ".")):
            monkeypatch.chdir(place)
            assert run(name, "--save", "coco", "--json", "--out", tmp_path / "out") == 0
            lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert [Path(line["image"]) for line in lines] == [Path(name, f"{index}.png") for index in range(5)]
            images = json.loads((tmp_path / "out" / "coco.json").read_text())["images"]
            assert [image["file_name"] for image in images] == [f"{index}.png" for index in range(5)]

    @pytest.mark.parametrize("library", ["faster_coco_eval", "pycocotools"])
    def test_the_official_evaluators_read_and_score_it(self, library: str, folder: Path, document: Path) -> None:
        pytest.importorskip(library)
        api: Any = importlib.import_module(f"{library}.coco" if library == "pycocotools" else library)
        evaluator: Any = (
            importlib.import_module("pycocotools.cocoeval").COCOeval
            if library == "pycocotools"
            else api.COCOeval_faster
        )
        truth = api.COCO(str(document))
        for image in truth.dataset["images"]:
            found = segment(folder / image["file_name"], method="maskcut")
            own = truth.loadAnns(truth.getAnnIds(imgIds=[image["id"]]))
            assert all(
                np.array_equal(truth.annToMask(one), mask.numpy()) for one, mask in zip(own, found.masks, strict=True)
            )
        for kind in ("bbox", "segm"):
            evaluation = evaluator(truth, truth.loadRes(json.loads(document.read_text())["annotations"]), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[0] == pytest.approx(1)  # what was found, scored against itself

    @pytest.mark.parametrize("fill", [False, True])
    def test_run_lengths_of_one_side_alone(self, fill: bool) -> None:
        counts = run_lengths(torch.full((3, 2), fill))["counts"]
        assert counts == ([0, 6] if fill else [6])


class TestResume:
    SAVE = ("--save", "mask,panel,overlay,map,boxes,coco")

    def test_killed_and_resumed_the_files_are_the_same(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(folder, *self.SAVE, "--out", tmp_path / "whole") == 0
        done: list[object] = []

        def killed(*arguments: Any, **options: Any) -> Any:
            if len(done) == 3:
                raise KeyboardInterrupt
            done.append(arguments)
            return segment(*arguments, **options)

        monkeypatch.setattr(commands, "segment_photo", killed)
        assert run(folder, *self.SAVE, "--out", tmp_path / "parts") == 130
        with (tmp_path / "parts" / JOURNAL).open("ab") as file:
            file.write(b'{"item": "3", "depe')  # what a kill leaves of a line
        done.clear()
        assert run(folder, *self.SAVE, "--out", tmp_path / "parts") == 0
        assert len(done) == 2  # the others were there already
        assert files(tmp_path / "parts") == files(tmp_path / "whole")

    @pytest.mark.usefixtures("own_threads")
    def test_with_workers_the_files_are_those_of_one_by_one(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One cannot be read, and one run is interrupted: all files are whole, to the byte."""
        (folder / "2b.png").write_bytes((folder / "2.png").read_bytes()[:60])
        said = {}
        for workers, threads in ((1, 1), (3, 3)):  # one thread for each
            out, words = tmp_path / str(workers), ["--workers", workers, "--threads", threads]
            assert run(folder, *self.SAVE, *words, "--out", out) == 1
            said[workers] = capsys.readouterr()
            assert "2b.png" in said[workers].err
        assert files(tmp_path / "3") == files(tmp_path / "1")
        assert said[3].out == said[1].out.replace(str(tmp_path / "1"), str(tmp_path / "3"))

        asked: list[object] = []

        def interrupted(*arguments: Any, **options: Any) -> Any:
            asked.append(arguments)
            if len(asked) == 3:
                raise KeyboardInterrupt
            return segment(*arguments, **options)

        monkeypatch.setattr(commands, "segment_photo", interrupted)
        assert run(folder, *self.SAVE, "--workers", 3, "--out", tmp_path / "parts") == 130
        whole, parts = files(tmp_path / "1"), files(tmp_path / "parts")
        parts.pop(JOURNAL, None)
        assert parts.items() <= whole.items() and len(parts) < len(whole)
        assert run(folder, *self.SAVE, "--workers", 3, "--out", tmp_path / "parts") == 1
        assert files(tmp_path / "parts") == whole

    def test_what_has_changed_is_done_again(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[object] = []

        def counted(*arguments: Any, **options: Any) -> Any:
            done.append(arguments)
            return segment(*arguments, **options)

        monkeypatch.setattr(commands, "segment_photo", counted)

        def looked_at(*words: object) -> int:
            done.clear()
            assert run(folder, "--out", tmp_path / "out", *words) == 0
            return len(done)

        assert looked_at() == 5
        assert looked_at() == 0
        Image.effect_noise((60, 50), 60).convert("RGB").save(folder / "1.png")
        assert looked_at() == 1
        (tmp_path / "out" / "masks" / "2.png").unlink()
        assert looked_at() == 1
        assert looked_at("--layer", "0") == 5
        assert looked_at() == 5  # the files are those of the layer 0
        assert looked_at("--save", "mask,boxes") == 5
        assert looked_at("--save", "coco") == 0
        monkeypatch.setattr(commands, "REVISION", commands.REVISION + 1)
        assert looked_at() == 5


class TestSaid:
    def test_json(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for _ in range(2):  # found, and found before
            assert run(folder, "--json", "--out", tmp_path / "out") == 0
            lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert [line["image"] for line in lines] == [str(folder / f"{index}.png") for index in range(5)]
            for line in lines:
                assert line["grid"] == [24, round(24 * line["width"] / line["height"])]
                assert line["objects"][0].keys() == {"box", "score", "area"}
                assert all(Path(file).is_file() for file in line["files"].values())

    def test_quiet(self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(photo, tmp_path / "missing.jpg", "-q", "--out", tmp_path / "out") == 1
        shown = capsys.readouterr()
        assert not shown.out and "missing.jpg" in shown.err and len(shown.err.splitlines()) == 1

    def test_many_patches_are_announced(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("whitebox_crate.cli._forecast.SAY_EVERY", 0.0)
        assert run(photo, "--method", "attention", "--size", "390", "--out", tmp_path / "out") == 0
        err = capsys.readouterr().err
        assert "photo.jpg: 65 x 91 = 5,915 patches, about 0:00:" in err
        assert "photo.jpg: layer 6 of 6" in err
        assert run(photo, "--out", tmp_path / "out") == 0
        assert "patches" not in capsys.readouterr().err

    def test_workers_make_the_trial_runs_of_a_forecast_once(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sizes = list[int]()

        def counted(*arguments: Any, **options: Any) -> Segmentation:
            sizes.append(options["size"])
            return segment(*arguments, **options)

        monkeypatch.setattr(commands, "segment_photo", counted)
        monkeypatch.setattr("whitebox_crate.cli._forecast.MANY", 100)
        monkeypatch.setattr("whitebox_crate.cli._forecast.TRIALS", (16, 36))
        assert run(folder, "--size", "96", "--workers", "3", "--out", tmp_path / "out") == 0
        assert len(sizes) == 5 + 3 and sizes.count(96) == 5
        assert capsys.readouterr().err.count("patches, about") == 5

    @pytest.mark.parametrize("name", ["segment", "compare", "attention"])
    def test_a_size_of_hardly_a_patch_is_answered_with_a_hint(
        self, name: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hint = "--size 7 makes 1 x 1 patches of a square photograph: too few to show an object"
        for side, hints in ((7, 1), (48, 0)):
            assert cli.main([name, str(photo), "--size", str(side), "--out", str(tmp_path / "out")]) == 0
            assert (hint in capsys.readouterr().err) == hints
        assert cli.main(["segment", str(photo), "--size", "7", "-q", "--out", str(tmp_path / "new")]) == 0
        assert capsys.readouterr().err == ""

    def test_a_damaged_picture_does_not_stop_the_others(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        damaged = tmp_path / "damaged.png"
        Image.new("RGB", (64, 64)).save(damaged)
        damaged.write_bytes(damaged.read_bytes()[:60])
        assert run(damaged, photo, "--save", "panel,coco", "--out", tmp_path / "out") == 1
        assert files(tmp_path / "out").keys() == {"photo.png", JOURNAL, "coco.json"}
        assert "damaged.png" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["missing.jpg"], "missing.jpg"),
            (["--model", "crate_nan"], "crate_nano"),
            (["--model", "crate_base"], "pretrained"),
            (["--layer", "6"], "layer 6"),
            (["--head", "4"], "head 4"),
            (["--head", "0,4"], "head 4"),
            (["--keep", "0.5", "--rule", "mean"], "--keep"),
            (["--model", "local-dir:nowhere"], "no folder nowhere"),
            (["--method", "attention", "--n", "2"], "'n'"),
            (["--n", "2", "--head", "1"], "n, head"),
            (["--method", "maskcut", "--head", "1"], "'head'"),
            (["--method", "maskcut", "--n", "300"], "255"),
            (["--device", "abacus"], "abacus"),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_written(
        self, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(*words, "--out", tmp_path / "out") == 1
        shown = capsys.readouterr()
        assert said in shown.err and "Traceback" not in shown.err
        assert not shown.out and not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda path: path.write_text("text"), "not an image"),
            (lambda path: path.mkdir(), "holds no image"),
            (lambda path: Image.new("RGB", (1, 1)).save(path), "1 x 1"),
            (lambda path: path.write_bytes(b""), "not an image"),
        ],
    )
    def test_what_is_no_photograph(
        self, make: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make(tmp_path / "bad.png")
        assert run(tmp_path / "bad.png", "--out", tmp_path / "out") == 1
        err = capsys.readouterr().err
        assert said in err and "bad.png" in err and "Traceback" not in err
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").touch()
        assert run("--out", tmp_path / "file" / "out") == 1
        assert "--out" in capsys.readouterr().err
        assert (tmp_path / "file").read_bytes() == b""


class TestCompare:
    @pytest.fixture
    def other(self, tmp_path: Path) -> str:
        return f"local-dir:{save_pretrained(create_model('vit_nano', depth=2), tmp_path / 'vit')}"

    def test_two_models_side_by_side(self, photo: Path, other: str, tmp_path: Path) -> None:
        words = ["compare", str(photo), "--model", "crate_nano", "--model", other, "--out", str(tmp_path / "out")]
        assert cli.main(words) == 0
        assert files(tmp_path / "out").keys() == {"photo.png"}
        assert cli.main([*words, "--method", "maskcut", "--out", str(tmp_path / "cut")]) == 0
        sheets = [Image.open(tmp_path / name / "photo.png") for name in ("out", "cut")]
        assert sheets[0].size == sheets[1].size and sheets[0].tobytes() != sheets[1].tobytes()
        whole = Image.open(tmp_path / "out" / "photo.png")
        left, right = (
            whole.crop((8 + (448 + 8) * column, 26, 8 + (448 + 8) * column + 448, 26 + 320)).tobytes()
            for column in (1, 2)
        )
        assert left != right

    def test_below_the_photograph_is_what_both_mark(self, photo: Path, other: str, tmp_path: Path) -> None:
        words = ["compare", str(photo), "--model", "crate_nano", "--model", other, "--out", str(tmp_path)]
        assert cli.main(words) == 0
        one, two = (segment(photo, model) for model in ("crate_nano", other))
        both = replace(one, masks=(one.mask & two.mask)[None])
        assert both.mask.any() and not torch.equal(both.mask, one.mask)
        expected = both.pictures()[2][0]
        sheet = Image.open(tmp_path / "photo.png")
        top = sheet.height // 2 + 26
        assert sheet.crop((8, top, 8 + expected.width, top + expected.height)).tobytes() == expected.tobytes()

    def test_two_masks_of_nothing_agree(self, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def nothing(*arguments: Any, **options: Any) -> Segmentation:
            found = segment(*arguments, **options)
            return replace(found, masks=found.masks[:0], scores=found.scores[:0])

        said = list[str]()

        def drawn(panels: list[Image.Image], captions: list[str], columns: int) -> Image.Image:
            said.extend(captions)
            return draw_panels(panels, captions, columns)

        monkeypatch.setattr(commands, "segment_photo", nothing)
        monkeypatch.setattr(commands, "draw_panels", drawn)
        assert cli.main(["compare", str(photo), "--out", str(tmp_path / "out")]) == 0
        assert "what both mark: IoU of the two 1.00" in said

    def test_without_a_name_it_compares_what_comes_with_the_package(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["compare", str(photo), "--out", str(tmp_path / "out")]) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in COMPARED) and len(set(COMPARED)) == 2

    def test_it_takes_two(self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["compare", str(photo), "--model", "crate_nano", "--out", str(tmp_path / "out")]) == 1
        assert "--model A --model B" in capsys.readouterr().err
