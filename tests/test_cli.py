"""The command line: what it writes, what it says, and what is left when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import whitebox_crate.cli as cli
from whitebox_crate import create_model, list_models, list_pretrained, save_pretrained
from whitebox_crate.training import Objects

SAMPLES = {"cat.png", "coffee.png", "rocket.png"}


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


class TestSegment:
    def test_samples_of_the_package(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["segment", "--out", str(tmp_path / "out")]) == 0
        assert names(tmp_path / "out") == SAMPLES
        lines = capsys.readouterr().out.splitlines()
        assert all("layer" in line and "head" in line and str(tmp_path / "out") in line for line in lines)

    def test_a_picture_has_three_panels_of_its_proportions(self, photo: Path, tmp_path: Path) -> None:
        assert cli.main(["segment", str(photo), "--out", str(tmp_path)]) == 0
        sheet = Image.open(tmp_path / "photo.png")
        panel_width = (sheet.width - 8) / 3 - 8
        assert panel_width / cli.SHOWN_SIDE == pytest.approx(70 / 50, abs=0.07)  # up to rounding to patches

    def test_layer_head_rule_and_size_are_obeyed(self, photo: Path, tmp_path: Path) -> None:
        for index, words in enumerate(([], ["--layer", "0"], ["--head", "0", "--layer", "1"], ["--size", "48"])):
            assert cli.main(["segment", str(photo), "--out", str(tmp_path / str(index)), *words]) == 0
        sheets = [(tmp_path / str(index) / "photo.png").read_bytes() for index in range(4)]
        assert len(set(sheets)) == 4

    def test_keep_widens_the_mask(self, photo: Path, tmp_path: Path) -> None:
        kept = []
        for keep in ("0.2", "0.9"):
            words = ["segment", str(photo), "--rule", "entries", "--keep", keep, "--out", str(tmp_path / keep)]
            assert cli.main(words) == 0
            sheet = Image.open(tmp_path / keep / "photo.png").convert("L")
            kept.append(sum(sheet.crop((2 * sheet.width // 3, 0, sheet.width, sheet.height)).histogram()[150:]))
        assert kept[0] < kept[1]

    def test_pictures_of_one_name_do_not_overwrite_each_other(self, photo: Path, tmp_path: Path) -> None:
        other = tmp_path / "other" / "photo.jpg"
        other.parent.mkdir()
        other.write_bytes(photo.read_bytes())
        assert cli.main(["segment", str(photo), str(other), "--out", str(tmp_path / "out")]) == 0
        assert names(tmp_path / "out") == {"photo.png", "photo-2.png"}

    def test_a_damaged_picture_does_not_stop_the_others(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        damaged = tmp_path / "damaged.png"
        Image.new("RGB", (64, 64)).save(damaged)
        damaged.write_bytes(damaged.read_bytes()[:60])
        assert cli.main(["segment", str(damaged), str(photo), "--out", str(tmp_path / "out")]) == 1
        assert names(tmp_path / "out") == {"photo.png"}
        assert "damaged.png" in capsys.readouterr().err

    def test_another_model_from_a_folder(self, photo: Path, tmp_path: Path) -> None:
        folder = save_pretrained(create_model("vit_nano", depth=2), tmp_path / "vit")
        assert cli.main(["segment", str(photo), "--model", f"local-dir:{folder}", "--out", str(tmp_path / "out")]) == 0
        words = ["segment", str(photo), "--model", "crate_nano", "--checkpoint", str(folder / "model.safetensors")]
        assert cli.main([*words, "--out", str(tmp_path / "not")]) == 1
        assert not (tmp_path / "not").exists()

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["missing.jpg"], "missing.jpg"),
            (["--model", "crate_nan"], "crate_nano"),
            (["--model", "crate_base"], "pretrained"),
            (["--layer", "6"], "layer 6"),
            (["--head", "4"], "head 4"),
            (["--keep", "0", "--rule", "mass"], "keep"),
            (["--keep", "0.5", "--rule", "mean"], "--keep"),
            (["--size", "0"], "0"),
            (["--model", "local-dir:nowhere"], "config.json"),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_written(
        self, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["segment", *words, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr()
        assert said in shown.err and "Traceback" not in shown.err
        assert not shown.out and not names(tmp_path / "out")

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").touch()
        assert cli.main(["segment", "--out", str(tmp_path / "file" / "out")]) == 1
        assert "--out" in capsys.readouterr().err
        assert (tmp_path / "file").read_bytes() == b""


def test_attention_shows_every_head(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attention", str(photo), "--layer", "-1", "--out", str(tmp_path)]) == 0
    assert "layer 5, 4 heads" in capsys.readouterr().out
    sheet = Image.open(tmp_path / "photo.png")
    assert sheet.width > 5 * cli.SHOWN_SIDE


class TestTrain:
    WORDS = ("train", "--steps", "3", "--batch-size", "4", "--sizes", "12", "--size-starts", "0", "--set", "depth=1")

    @pytest.fixture(autouse=True)
    def tiny_data(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images = torch.zeros(3, 4, 16, 16, dtype=torch.uint8)
        images[:, 3, 4:12, 2:14] = 255
        objects = Objects(images, torch.arange(3), ("a", "b", "c"))
        noise = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
        for source in ("photographs", "garments"):
            monkeypatch.setattr(cli, source, lambda split: objects)
        monkeypatch.setattr(cli, "wallpapers", lambda split: noise)

    @pytest.mark.parametrize("data", ["photographs", "garments"])
    def test_ends_with_a_folder_that_loads(self, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main([*self.WORDS, "--data", data, "--out", str(tmp_path)]) == 0
        assert str(tmp_path / "model") in capsys.readouterr().out
        model = create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
        assert (model.num_classes, model.img_size, len(model.blocks)) == (3, (12, 12), 1)
        assert model.pretrained_cfg.label_names == ("a", "b", "c")

    def test_the_same_command_gives_the_same_weights(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            assert cli.main([*self.WORDS, "--out", str(tmp_path / name)]) == 0
        one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two"))
        assert one == two

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--set", "dephts=1"], "depth"),
            (["--set", "depth"], "OPTION=VALUE"),
            (["--set", "num_classes=1"], "3 classes"),
            (["--sizes", "12", "24"], "size_starts"),
            (["--optimizer", "sgd"], "lion"),
            (["--model", "crate_nan"], "crate_nano"),
        ],
    )
    def test_what_is_wrong_is_said(
        self, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main([*self.WORDS, *words, "--out", str(tmp_path / "out")]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out" / "model").exists()
