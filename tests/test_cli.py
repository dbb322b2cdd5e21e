"""The command line: what it writes, what it says, and what is left when something is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import dino_training_of, jax_of, two_part_of
from golden_data import load_case
from PIL import Image
from safetensors.torch import save_file
from small_models import small_model
from torch import Tensor

import whitebox_crate.cli as cli
from whitebox_crate import create_model, get_pretrained_cfg, list_models, list_pretrained, save_pretrained
from whitebox_crate.evaluation.figures import SHORT_SIDE
from whitebox_crate.images import load_image
from whitebox_crate.preprocess import create_transform


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((70, 50), 60).convert("RGB").save(path)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


class TestList:
    def test_every_model_is_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["list"]) == 0
        assert capsys.readouterr().out.split() == list_models()

    def test_wildcards_and_weights(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["list", "vit_*_patch8_*", "crate_tiny_*"]) == 0
        assert capsys.readouterr().out.split() == list_models(["vit_*_patch8_*", "crate_tiny_*"])
        assert cli.main(["list", "--pretrained"]) == 0
        assert capsys.readouterr().out.split() == list_pretrained()

    def test_no_match_is_an_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["list", "resnet*"]) == 1
        assert capsys.readouterr().err


class TestClassify:
    @pytest.fixture
    def other(self, tmp_path: Path) -> str:
        """A model of three classes and of a size of its own, in a folder."""
        cfg = {"label_names": ("one", "two", "three"), "crop_pct": 0.5, "interpolation": "bilinear"}
        model = create_model("vit_nano", depth=1, num_classes=3, img_size=(36, 48), pretrained_cfg_overlay=cfg)
        return f"local-dir:{save_pretrained(model, tmp_path / 'vit')}"

    def lines(self, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
        assert cli.main(["classify", "--json", *words]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    def test_samples_of_the_package(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["classify", "--top", "2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [Path(line.split()[0]).name for line in lines[::3]] == ["cat.jpg", "coffee.jpg", "rocket.jpg"]
        labels = create_model("crate_nano", pretrained=True).pretrained_cfg.label_names
        for line in lines[1::3] + lines[2::3]:
            share, label = line.split(maxsplit=1)
            assert 0 < float(share.removesuffix("%")) < 100
            assert label in labels

    def test_json_is_what_the_model_says_of_its_own_transform(
        self, photo: Path, other: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (line,) = self.lines(capsys, str(photo), "--model", other)
        model = create_model(other, pretrained=True).eval()
        pixels = create_transform((36, 48), "bilinear", crop_pct=0.5)(load_image(photo))
        expected = model(pixels[None])[0].softmax(-1).tolist()
        assert (line["image"], line["model"]) == (str(photo), other)
        assert len(line["classes"]) == 3  # fewer than --top
        shares = [found["probability"] for found in line["classes"]]
        assert shares == sorted(shares, reverse=True)
        for found in line["classes"]:
            assert found["probability"] == pytest.approx(expected[found["index"]], abs=1e-6)
            assert found["label"] == ("one", "two", "three")[found["index"]]

    def test_without_names_the_index_is_shown(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = save_pretrained(create_model("vit_nano", depth=1, num_classes=3), tmp_path / "vit")
        (line,) = self.lines(capsys, str(photo), "--model", f"local-dir:{folder}", "--top", "1")
        assert [found["label"] for found in line["classes"]] == [None]
        assert cli.main(["classify", str(photo), "--model", f"local-dir:{folder}", "--top", "1"]) == 0
        assert f"class {line['classes'][0]['index']}" in capsys.readouterr().out

    def test_a_model_of_grey_images(self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = save_pretrained(create_model("vit_nano", depth=1, num_classes=3, in_chans=1), tmp_path / "grey")
        assert len(self.lines(capsys, str(photo), "--model", f"local-dir:{folder}")) == 1

    def test_a_picture_that_fails_does_not_stop_the_others(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Image.new("RGB", (2000, 1)).save(tmp_path / "panorama.png")
        words = ["missing.png", str(tmp_path / "panorama.png"), str(photo)]
        assert cli.main(["classify", "--json", *words]) == 1
        shown = capsys.readouterr()
        assert [json.loads(line)["image"] for line in shown.out.splitlines()] == [str(photo)]
        assert "missing.png" in shown.err
        assert "panorama.png: 1 x 2000" in shown.err

    @pytest.mark.parametrize("options", [{"num_classes": 0}, {"num_classes": 3, "global_pool": ""}])
    def test_a_model_that_does_not_classify_says_what_to_do(
        self, options: dict[str, Any], photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = save_pretrained(create_model("vit_nano", depth=1, **options), tmp_path / "vit")
        assert cli.main(["classify", str(photo), "--model", f"local-dir:{folder}"]) == 1
        shown = capsys.readouterr()
        assert not shown.out
        assert "whitebox-crate list --pretrained" in shown.err

    def test_damaged_weights_are_told_from_probabilities(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = create_model("vit_nano", depth=1, num_classes=3)
        torch.nn.init.constant_(model.head.bias, float("nan"))
        folder = save_pretrained(model, tmp_path / "vit")
        assert cli.main(["classify", str(photo), "--model", f"local-dir:{folder}"]) == 1
        assert "not finite" in capsys.readouterr().err


def test_a_file_that_registers_a_model_is_a_command_that_knows_it(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is made of the blocks of the page "Extend"; what does not import it says so."""
    page = Path(__file__).parents[1] / "docs" / "extend.md"
    blocks = re.findall(r"```python\n(.+?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.py").write_text("".join(blocks), encoding="utf-8")

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-c", "from mine import model; from whitebox_crate import save_pretrained; save_pretrained(model, 'saved')")
    assert "crate_mine" in run("mine.py", "list", "crate_mine")
    assert "local-dir:saved" in run("mine.py", "classify", str(photo), "--model", "local-dir:saved")
    assert "4 x 6 patches" in run("mine.py", "segment", str(photo), "--model", "local-dir:saved", "--size", "16")
    assert cli.main(["classify", str(photo), "--model", f"local-dir:{tmp_path / 'saved'}"]) == 1
    assert "whitebox_crate.cli.main()" in capsys.readouterr().err


def test_attention_shows_every_head(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attention", str(photo), "--layer", "-1", "--out", str(tmp_path)]) == 0
    assert "layer 5, 4 heads" in capsys.readouterr().out
    sheet = Image.open(tmp_path / "photo.png")
    assert sheet.width > 5 * SHORT_SIDE


def test_attention_shows_which_patch_belongs_to_which_head_of_a_tost(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pretrained(small_model("tost_tiny_12_patch8_224"), tmp_path / "tost")
    words = ["attention", str(photo), "--model", f"local-dir:{folder}", "--size", "48", "--out", str(tmp_path)]
    sheets = []
    for layer, of in (((), 2), (("--layer", "0"), 0)):
        assert cli.main([*words, "--state", "membership", *layer]) == 0
        assert f"layer {of}, 2 heads, 6 x" in capsys.readouterr().out
        sheets.append(np.asarray(Image.open(tmp_path / "photo.png")))
    assert sheets[0].shape == sheets[1].shape and not np.array_equal(*sheets)
    assert cli.main(words) == 0
    assert "layer 4, 2 heads" in capsys.readouterr().out
    assert cli.main([*words, "--state", "membership", "--layer", "-1"]) == 1
    assert "layer 4 has no state 'membership'" in capsys.readouterr().err
    assert cli.main([*words, "--state", "membership", "--label", "1"]) == 1
    assert "leave out --label or --state membership" in capsys.readouterr().err


def test_attention_shows_what_speaks_for_classes(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets = {}
    for words in (("cup",), ("cup", "spoon"), ("spoon", "cup"), ("cup", "spoon", "--layer", "-2")):
        labels = [word for label in words[:2] for word in ("--label", label)]
        assert cli.main(["attention", str(photo), *labels, *words[2:], "--out", str(tmp_path)]) == 0
        sheets[words] = np.asarray(Image.open(tmp_path / "photo.png"))
    assert "(crate_nano, layer 4, classes cup, spoon, 24 x" in capsys.readouterr().out.splitlines()[-1]
    one, two, turned, of_layer = sheets.values()
    assert np.array_equal(two[:, : one.shape[1] - 8], one[:, :-8]) and two.shape[1] > 1.4 * one.shape[1]
    assert not np.array_equal(two, turned) and not np.array_equal(two, of_layer)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attention", "--label", "cupp"], "did you mean 'cup'"),
        (["segment", "--label", "476"], "there are 476"),
        (["segment", "--label", "cup", "--layer", "1"], "no method has all the settings"),
    ],
)
def test_classes_that_are_none_are_said_before_anything_is_drawn(
    words: list[str], message: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, str(photo), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["attention", "segment"])
def test_a_model_without_classes_has_no_class_maps(
    command: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pretrained(create_model("vit_nano", depth=1, num_classes=0), tmp_path / "vit")
    words = [command, str(photo), "--label", "0", "--model", f"local-dir:{folder}", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 1
    assert {"attention": "num_classes 0", "segment": "has 0 classes"}[command] in capsys.readouterr().err


def numbered(state: dict[str, Tensor], path: Path) -> None:
    """As JAX scripts save: the arrays by name, and those of the optimizer with them."""
    arrays = {name: value.numpy() for name, value in state.items()}
    np.savez(path, **arrays, **{f"opt/{name}": value for name, value in arrays.items()}, chrono=np.ones(3))


def wrapped(state: dict[str, Tensor], path: Path) -> None:
    parallel = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": parallel, "epoch": 3, "optimizer": {"lr": 0.1}}, path)


def legacy(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


SAVERS = {"torch": torch.save, "legacy": legacy, "wrapped": wrapped, "safetensors": save_file}


class TestConvert:
    def logits(self, words: list[str], tmp_path: Path, images: Tensor) -> Tensor:
        """What the converted model makes of images, loaded from its folder."""
        assert cli.main(["convert", str(tmp_path / "file"), str(tmp_path / "out"), *words]) == 0
        model = create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        with torch.inference_mode():
            logits: Tensor = model(images)
        return logits

    @pytest.mark.parametrize("saver", SAVERS)
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("crate_square", ["--set", "num_heads=4"]),
            ("crate_alpha_square", ["--set", "num_heads=4"]),
            ("timm_vit", ["--set", "num_heads=2"]),
        ],
    )
    def test_any_file_of_any_format(self, saver: str, name: str, words: list[str], tmp_path: Path) -> None:
        case = load_case(name)
        SAVERS[saver](case.group("state"), tmp_path / "file")
        logits = self.logits(words, tmp_path, case["input/img"])
        torch.testing.assert_close(logits, case["output/logits"], rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("crate_rect", ["--set", "num_heads=3", "img_size=24x40"]),
            ("crate_rectpatch", ["--set", "num_heads=2", "--set", "img_size=16x24", "patch_size=4x8"]),
            ("crate_heads1", ["--set", "num_heads=1"]),
            ("crate_heads1_proj", ["--set", "num_heads=1"]),
            ("crate_meanpool", ["--set", "num_heads=2", "global_pool=mean"]),
            ("crate_innerdim_ista", ["--set", "num_heads=3", "step_size=0.25"]),
            ("crate_small_scale", ["--set", "num_heads=2", "--model", "crate_tiny"]),
            ("crate_alpha_rect", ["--set", "num_heads=3", "img_size=24x16", "img_size=16x24"]),
            ("crate_alpha_heads1", ["--set", "num_heads=1"]),
            ("crate_alpha_small_scale", ["--set", "num_heads=2"]),
            ("timm_vit_small_scale", ["--set", "num_heads=2"]),
        ],
    )
    def test_what_shapes_do_not_tell_is_set(self, name: str, words: list[str], tmp_path: Path) -> None:
        case = load_case(name)
        torch.save(case.group("state"), tmp_path / "file")
        logits = self.logits(words, tmp_path, case["input/img"])
        torch.testing.assert_close(logits, case["output/logits"], rtol=0, atol=1e-5)

    def test_a_two_part_head(self, tmp_path: Path) -> None:
        case = load_case("crate_square")
        torch.save(two_part_of(case), tmp_path / "file")
        logits = self.logits(["--set", "num_heads=4"], tmp_path, case["input/img"])
        torch.testing.assert_close(logits, case["output/logits"], rtol=0, atol=1e-5)

    def test_the_jax_original(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Its arrays alone tell heads and eps; with the eps of the port, the logits are those of the port."""
        case = load_case("crate_alpha_square")
        numbered(jax_of(case), tmp_path / "file.npz")
        (tmp_path / "file.npz").rename(tmp_path / "file")
        logits = self.logits(["--set", "norm_eps=1e-5"], tmp_path, case["input/img"])
        torch.testing.assert_close(logits, case["output/logits"], rtol=0, atol=1e-5)
        self.logits([], tmp_path, case["input/img"])
        assert create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).norm.eps == 1e-6
        assert "norm_eps=1e-06" in capsys.readouterr().out

    def test_crate_mae(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        case = load_case("crate_mae_basic")
        torch.save({"model": case.group("state")}, tmp_path / "file")
        self.logits(["--set", "num_heads=4", "decoder_num_heads=2"], tmp_path, case["input/img"])
        assert "unused decoder_embed.weight" in capsys.readouterr().out
        model = create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        result = model.reconstruct(case["input/img"], noise=case["input/noise"])
        torch.testing.assert_close(result.pred, case["output/pred"], rtol=0, atol=1e-5)
        torch.testing.assert_close(result.loss, case["output/loss"], rtol=0, atol=1e-5)

    def test_dino_in_training(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        case = load_case("timm_vit")
        torch.save(dino_training_of(case), tmp_path / "file")
        logits = self.logits(["--set", "num_heads=2"], tmp_path, case["input/img"])
        torch.testing.assert_close(logits, case["output/logits"], rtol=0, atol=1e-5)
        assert "unused head.mlp.0.weight" in capsys.readouterr().out

    def test_it_says_what_it_did_and_how_to_go_on(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        case = load_case("crate_rect")
        torch.save(case.group("state"), tmp_path / "file")
        self.logits(["--set", "num_heads=3", "img_size=24x40", "--model", "crate_small"], tmp_path, case["input/img"])
        shown = capsys.readouterr().out
        assert "format: CRATE\n" in shown and "model: crate_small_patch16_224\n" in shown
        assert "img_size=(24, 40)" in shown and f"{len(case.group('state'))} tensors from" in shown
        assert f"create_model('local-dir:{tmp_path / 'out'}', pretrained=True)" in shown

    def test_facts_of_a_tag_are_kept(self, tmp_path: Path) -> None:
        case = load_case("crate_alpha_square")
        numbered(jax_of(case), tmp_path / "file.npz")
        name = "crate_alpha_base_patch16_224.in21k_ft_in1k_jax"
        assert cli.main(["convert", str(tmp_path / "file.npz"), str(tmp_path / "out"), "--model", name]) == 0
        model = create_model(f"local-dir:{tmp_path / 'out'}")
        facts = get_pretrained_cfg(name)
        assert (model.pretrained_cfg.crop_pct, model.pretrained_cfg.license) == (facts.crop_pct, facts.license)

    def test_a_file_that_would_run_code_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, tuple[Path]]:
                return Path.touch, (tmp_path / "canary",)

        torch.save({"state_dict": load_case("crate_square").group("state"), "hook": Bomb()}, tmp_path / "file")
        assert cli.main(["convert", str(tmp_path / "file"), str(tmp_path / "out")]) == 1
        assert "refused" in capsys.readouterr().err
        assert names(tmp_path) == {"file"}

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "num_heads"),
            (["--set", "num_heads"], "OPTION=VALUE"),
            (["--set", "num_heads=3"], "3"),
            (["--set", "num_heads=4", "depht=2"], "depth"),
            (["--set", "num_heads=4", "depth=3"], "blocks.2"),
            (["--set", "num_heads=4", "img_size=30x30"], "30"),
            (["--set", "num_heads=4", "img_size=big"], "'big'"),
            (["--set", "num_heads=4", "--model", "crate_nan"], "crate_nano"),
            (
                ["--set", "num_heads=4", "--model", "vit_nano"],
                "holds a CRATE: name a model of that kind, or none (leave --model out)",
            ),
            (["--set", "num_heads=4", "--model", "crate_small.in22k"], "in22k"),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_written(
        self, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save(load_case("crate_square").group("state"), tmp_path / "file")
        assert cli.main(["convert", str(tmp_path / "file"), str(tmp_path / "out"), *words]) == 1
        shown = capsys.readouterr()
        assert said in shown.err and "Traceback" not in shown.err
        assert not shown.out and not names(tmp_path / "out")

    def test_a_missing_file_and_a_folder_that_cannot_be_made(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["convert", str(tmp_path / "gone"), str(tmp_path / "out")]) == 1
        assert "no file" in capsys.readouterr().err
        torch.save(load_case("crate_square").group("state"), tmp_path / "file")
        words = ["convert", str(tmp_path / "file"), str(tmp_path / "file" / "out"), "--set", "num_heads=4"]
        assert cli.main(words) == 1
        assert "cannot make the folder" in capsys.readouterr().err
