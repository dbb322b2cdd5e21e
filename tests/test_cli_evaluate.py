"""`whitebox-crate evaluate`: the same numbers however often it is killed and by however many processes it runs."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_images import labels, make_folder, make_voc, noise, save_mask
from PIL import Image

import whitebox_crate.cli as cli
from whitebox_crate import create_model, save_pretrained
from whitebox_crate.images import load_image
from whitebox_crate.preprocess import image_to_tensor, resize_to_grid
from whitebox_crate.segmentation import all_cls_attention, attention_masks, mask_iou, upsample

SMALL = {"depth": 4, "embed_dim": 32, "num_heads": 2, "img_size": 48, "num_classes": 3}


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def evaluate(*words: object) -> int:
    return cli.main(["evaluate", *map(str, words)])


def lines(folder: Path) -> list[dict[str, Any]]:
    """Every whole line that any process wrote."""
    found = [line for path in folder.glob("records-*.jsonl") for line in path.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in found if line.endswith(b"\n")]


class TestVoc:
    def test_two_processes_give_what_one_gives_to_the_bit(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = make_voc(tmp_path)
        one, two = tmp_path / "one", tmp_path / "two"
        words = ["evaluate", "voc", "--root", str(tmp_path), "--size", "48", "--out"]
        assert cli.main([*words, str(one)]) == 0
        shown = capsys.readouterr()
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        run = subprocess.run(
            [*torchrun, "-m", "whitebox_crate.cli", *words, str(two)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        assert (two / "results.json").read_bytes() == (one / "results.json").read_bytes()
        assert run.stdout == shown.out.replace(str(one), str(two))  # once, not by each process
        shares = [{json.loads(line)["item"] for line in path.open()} for path in sorted(two.glob("records-*"))]
        assert [len(share) for share in shares] == [3, 3]
        assert set.union(*shares) == set(names)

    @pytest.mark.usefixtures("own_threads")
    def test_two_workers_give_what_one_gives_to_the_bit(self, tmp_path: Path) -> None:
        make_voc(tmp_path)
        for more in ([], ["--method", "multiscale"]):
            outs = [tmp_path / f"{workers} {len(more)}" for workers in (1, 2)]
            for number, out in enumerate(outs, start=1):  # of workers, and of PyTorch's threads: one for each
                words = ["--root", tmp_path, "--size", 48, *more, "--workers", number, "--threads", number]
                assert evaluate("voc", *words, "--out", out) == 0
            for file in ("results.json", "records-0.jsonl"):
                assert (outs[0] / file).read_bytes() == (outs[1] / file).read_bytes()

    def test_the_numbers_are_those_of_the_functions(self, tmp_path: Path) -> None:
        (name,) = make_voc(tmp_path, 1)
        assert evaluate("voc", "--root", tmp_path, "--size", 48, "--layer", 2, "--out", tmp_path / "out") == 0
        home = tmp_path / "VOCdevkit" / "VOC2012"
        model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
        seen = resize_to_grid(load_image(home / "JPEGImages" / f"{name}.jpg"), model.patch_embed.patch_size, 48)
        maps = all_cls_attention(model, image_to_tensor(seen)[None])[0].detach()
        target = labels(0)
        for rule, of in results(tmp_path / "out")["rules"].items():
            masks = upsample(attention_masks(maps, 0.6, rule), target.shape)
            person, valid = (np.asarray(of) for of in (target == 15, target != 255))
            ious = mask_iou(masks, maps.new_tensor(person).bool(), valid=maps.new_tensor(valid).bool())
            assert of["miou_by_layer"] == pytest.approx(ious.amax(-1).tolist())
            assert of["by_class"] == {"person": {"images": 1, "iou": pytest.approx(float(ious[2].max()))}}

    def test_what_it_writes_and_says(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_voc(tmp_path)
        out = tmp_path / "out"
        words = ["voc", "--root", tmp_path, "--size", 48, "--rules", "mean", "mass", "--out", out]
        assert evaluate(*words) == 0
        shown = capsys.readouterr()
        found = results(out)
        assert set(found["rules"]) == {"mass", "mean"}
        assert found["settings"] == json.loads((out / "settings.json").read_text())
        assert (found["settings"]["size"], found["settings"]["void"], found["broken"]) == (48, 255, [])
        assert set(found["versions"]) == {"whitebox_crate", "torch"}
        assert found["layer"] == 5
        assert shown.out == (out / "results.md").read_text() + f"\n{out / 'results.json'}\n"
        assert "6 measured in" in shown.err
        # Another layer for the table by class is no other measurement.
        before = lines(out)
        assert evaluate(*words, "--layer", 0) == 0
        assert results(out)["layer"] == 0
        assert lines(out) == before

    def test_other_settings_need_another_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_voc(tmp_path, 2)
        words = ["voc", "--root", tmp_path, "--size", 48, "--out", tmp_path / "out"]
        assert evaluate(*words) == 0
        assert evaluate(*words, "--keep", 0.5) == 1
        assert "keep is 0.6 there, 0.5 here; choose another folder" in capsys.readouterr().err
        model = create_model("crate_nano", pretrained=True)
        model.cls_token.data.add_(1)
        checkpoint = save_pretrained(model, tmp_path / "other") / "model.safetensors"
        assert evaluate(*words, "--checkpoint", checkpoint) == 1
        assert "weights is '" in capsys.readouterr().err

    def test_a_folder_of_records_is_of_one_data_set(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The names of another one may be the same."""
        (name, *_) = make_voc(tmp_path, 2)
        home = tmp_path / "VOCdevkit" / "VOC2012"
        words = ["voc", "--root", tmp_path, "--size", 48, "--out", tmp_path / "out"]
        assert evaluate(*words) == 0
        before = (tmp_path / "out" / "results.json").read_bytes()
        for path in (home / "JPEGImages" / f"{name}.jpg", home / "SegmentationClass" / f"{name}.png"):
            own = path.read_bytes()
            path.write_bytes(path.with_stem("2007_000000").read_bytes() + b"0")
            assert evaluate(*words) == 1
            assert f"{name} has changed since it was measured" in capsys.readouterr().err
            path.write_bytes(own)
        assert evaluate(*words) == 0
        assert (tmp_path / "out" / "results.json").read_bytes() == before
        (home / "classes.txt").write_text("15 someone\n2 bike\n")
        assert evaluate(*words) == 1
        assert "'15': 'person'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("part", "name", "value"), [("model_args", "step_size", 0.2), ("pretrained_cfg", "mean", [0.5, 0.5, 0.5])]
    )
    def test_a_model_is_more_than_its_weights(
        self, part: str, name: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_voc(tmp_path, 1)
        folder = save_pretrained(create_model("crate_nano", depth=2, step_size=0.1), tmp_path / "model")
        words = ["voc", "--root", tmp_path, "--size", 48, "--model", f"local-dir:{folder}", "--out", tmp_path / "out"]
        assert evaluate(*words) == 0
        config = json.loads((folder / "config.json").read_text())
        assert config[part][name] != value
        config[part][name] = value
        (folder / "config.json").write_text(json.dumps(config))
        assert evaluate(*words) == 1
        said = capsys.readouterr().err
        assert "records of other settings" in said and ("'step_size': 0.1" in said or "mean is [0.485" in said)

    @pytest.mark.parametrize(("name", "layer"), [("vit_nano", 3), ("crate_nano", 2), ("crate_mhsa", 2)])
    def test_a_layer_that_was_not_measured_is_the_papers(self, name: str, layer: int, tmp_path: Path) -> None:
        make_voc(tmp_path, 1)
        folder = save_pretrained(create_model(name, **SMALL), tmp_path / "model")
        words = ["voc", "--root", tmp_path, "--size", 48, "--model", f"local-dir:{folder}", "--out", tmp_path / "out"]
        assert evaluate(*words) == 0
        assert results(tmp_path / "out")["layer"] == layer

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--split", "test"], "list of images in"),
            (["--layer", "9"], "layer 9"),
            (["--device", "abacus"], "no device 'abacus'"),
            (["--device", "meta"], "no device 'meta'"),
            (["--root", "nowhere"], "no JPEGImages"),
            (["--out", "/dev/null/out"], "cannot make the folder"),
        ],
    )
    def test_refusals_say_what_is_wrong(
        self, words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_voc(tmp_path, 1)
        assert evaluate("voc", "--root", tmp_path, "--out", tmp_path / "out", *words) == 1
        assert says in capsys.readouterr().err
        assert not (tmp_path / "out" / "results.json").exists()


class TestFolder:
    def test_killed_and_started_again_it_scores_nothing_twice(self, tmp_path: Path) -> None:
        names = make_folder(tmp_path, 40)
        words = ["folder", "--root", str(tmp_path), "--size", "96", "--out"]
        killed, whole = tmp_path / "killed", tmp_path / "whole"
        process = multiprocessing.get_context("fork").Process(target=evaluate, args=(*words, killed))
        process.start()
        until = time.monotonic() + 60
        while len(lines(killed)) < 4 and time.monotonic() < until:
            time.sleep(0.005)
        process.kill()
        process.join()
        before = lines(killed)
        assert 4 <= len(before) < 40
        assert not (killed / "results.json").exists()
        assert evaluate(*words, killed) == 0
        assert lines(killed)[: len(before)] == before
        assert sorted(line["item"] for line in lines(killed)) == names
        assert evaluate(*words, whole) == 0
        assert (killed / "results.json").read_bytes() == (whole / "results.json").read_bytes()

    @pytest.mark.parametrize("damage", ["jpeg", "size", "colours", "mask"])
    def test_a_broken_one_is_refused_or_reported(
        self, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = make_folder(tmp_path)
        image, mask = (tmp_path / kind / f"{names[2]}.{end}" for kind, end in (("images", "jpg"), ("masks", "png")))
        if damage == "jpeg":
            image.write_bytes(image.read_bytes()[:700])
        elif damage == "size":
            save_mask(labels(1), mask)
        elif damage == "colours":
            Image.open(mask).convert("RGB").save(mask)
        else:
            mask.unlink()
        words = ["folder", "--root", tmp_path, "--size", 48, "--out", tmp_path / "out"]
        assert evaluate(*words) == 1
        said = capsys.readouterr().err
        assert (image if damage == "jpeg" else mask).name in said and "--skip-broken" in said
        assert not (tmp_path / "out" / "results.json").exists()
        assert evaluate(*words, "--skip-broken") == 0
        shown = capsys.readouterr()
        found = results(tmp_path / "out")
        assert [broken["image"] for broken in found["broken"]] == [names[2]]
        assert found["images"] == 5
        assert "1 broken images left out" in shown.out
        assert f"skipped, broken: {names[2]}" in shown.err
        # Repaired, it is measured, and the others are not again.
        noise(2).save(image)
        Image.fromarray(labels(2)).save(mask)
        before = lines(tmp_path / "out")
        assert evaluate(*words) == 0
        assert results(tmp_path / "out")["images"] == 6
        assert [line["item"] for line in lines(tmp_path / "out")[len(before) :]] == [names[2]]

    def test_all_broken_is_an_error(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in make_folder(tmp_path, 2):
            (tmp_path / "images" / f"{name}.jpg").write_bytes(b"no picture")
        assert evaluate("folder", "--root", tmp_path, "--skip-broken", "--out", tmp_path / "out") == 1
        assert "all 2 images are broken; the first, photo 00" in capsys.readouterr().err

    def test_objects_and_void(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_folder(tmp_path, 2)
        (tmp_path / "classes.txt").write_text("15 boot\n2 toy\n")
        words = ["folder", "--root", tmp_path, "--size", 48, "--out"]
        assert evaluate(*words, tmp_path / "a") == 0
        assert {name: of["images"] for name, of in results(tmp_path / "a")["rules"]["mass"]["by_class"].items()} == {
            "boot": 2,
            "toy": 1,
        }
        assert evaluate(*words, tmp_path / "b", "--objects") == 0
        assert "by_class" not in results(tmp_path / "b")["rules"]["mass"]
        assert evaluate(*words, tmp_path / "c", "--void", 15) == 0
        assert results(tmp_path / "c")["images_without_objects"] == 1
        assert "1 more have no object" in capsys.readouterr().out

    def test_a_model_of_grey_images_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_folder(tmp_path, 1)
        folder = save_pretrained(create_model("vit_nano", depth=1, in_chans=1), tmp_path / "grey")
        assert evaluate("folder", "--root", tmp_path, "--model", f"local-dir:{folder}", "--out", tmp_path / "o") == 1
        assert "takes 1 channels" in capsys.readouterr().err

    def test_settings_name_noise_only_where_it_is_added(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_folder(tmp_path, 1)
        words = ["folder", "--root", tmp_path, "--size", 48, "--objects", "--out", tmp_path / "out"]
        assert evaluate(*words) == 0
        path = tmp_path / "out" / "settings.json"
        settings = json.loads(path.read_text())
        assert "noise" not in settings and settings["classes"] is None
        path.write_text(json.dumps({**settings, "noise": None}))
        assert evaluate(*words) == 1
        assert "other settings: noise is None there, missing here; choose" in capsys.readouterr().err

    def test_missing_files_are_told_before_a_model_is_made(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_folder(tmp_path, 1)
        next((tmp_path / "masks").iterdir()).unlink()
        assert evaluate("folder", "--root", tmp_path, "--model", "no_such", "--out", tmp_path / "o") == 1
        assert "are missing" in capsys.readouterr().err


def test_masks_of_a_method_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path, 3)
    words = ["folder", "--root", tmp_path, "--size", 48, "--out", tmp_path / "out", "--method"]
    assert evaluate(*words, "multiscale", "--edges", "smooth") == 0
    found = results(tmp_path / "out")
    assert found["all"]["images"] == 3 and found["settings"]["edges"] == "smooth"
    assert "multiscale with edges smooth" in capsys.readouterr().out
    assert evaluate(*words, "attention", "--edges", "smooth", "--keep", 0.3, "--out", tmp_path / "kept") == 0
    assert results(tmp_path / "kept")["settings"]["method_settings"]["keep"] == 0.3
    for given, said in ((("--keep", 0.3), "'keep'"), (("--rules", "mass"), "leave --rules out")):
        capsys.readouterr()
        assert evaluate(*words, "multiscale", *given, "--out", tmp_path / "refused") == 1
        assert said in capsys.readouterr().err and not (tmp_path / "refused").exists()
    with pytest.raises(SystemExit):
        evaluate(*words, "multiscal")
    assert "'multiscale'" in capsys.readouterr().err
