"""The command `train`: from data, a preset and what is given in place of its numbers, to a folder that loads."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import TOKEN, Hub
from labelled_images import make_folder
from PIL import Image
from safetensors.torch import load_file

import whitebox_crate.cli as cli
from whitebox_crate import create_model, save_pretrained
from whitebox_crate.cli.training_arguments import _meanings
from whitebox_crate.training.presets import PRESETS
from whitebox_crate.training.recipe import Recipe

COLOURS = {"blue": 2, "green": 1, "red": 0}
TINY = ("train", "--set", "depth=1", "--model", "crate_nano")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes by colour, in a split to train on and one to validate with."""
    root, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in (("train", 6), ("validation", 3)):
        for name, channel in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 90, (14, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def test_help_says_what_each_number_of_a_recipe_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    fields = [field.name for field in dataclasses.fields(Recipe)]
    assert list(_meanings()) == fields
    assert all(f"{meaning} (" in shown for meaning in _meanings().values())


class TestOwnImages:
    def words(self, colours: Path, *more: object) -> tuple[object, ...]:
        return (*TINY, "--data", colours, "--sizes", 12, "--batch-size", 6, *more)

    def test_a_preset_and_what_is_given_in_its_place(
        self, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = self.words(colours, "--epochs", 2, "--learning-rate", 1e-3, "--no-flip", "--validation", "validation")
        assert run(*words, "--out", tmp_path) == 0
        folder = tmp_path / "model"
        assert {path.name for path in folder.iterdir()} == {
            *("model.safetensors", "config.json", "recipe.json", "metrics.json", "README.md"),
        }
        model = create_model(f"local-dir:{folder}", pretrained=True)
        assert model.pretrained_cfg.label_names == tuple(COLOURS)
        assert (model.num_classes, model.img_size) == (3, (12, 12))
        written = read(folder / "recipe.json")
        assert written == read(tmp_path / "recipe.json")
        assert written["preset"] == "imagenet1k" and written["recipe"]["steps"] == 6  # 2 epochs of 18 images
        assert written["changed"] == {
            **{"epochs": 2, "batch_size": 6, "learning_rate": 1e-3, "flip": False},
            **{"sizes": [12]},
        }
        metrics = read(folder / "metrics.json")
        assert metrics["images"] == 9 and "top5" not in metrics and {"top1", "loss", "training_loss"} <= {*metrics}
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "validation_top1" in line] == [3, 6]  # once an epoch
        said = capsys.readouterr()
        assert f"create_model('local-dir:{folder}', pretrained=True)" in said.out
        assert [line["epoch"] for line in lines if "validation_top1" in line] == [1, 2]
        card = (folder / "README.md").read_text()
        assert "18 images of 3 classes" in card and f"On {colours} (validation): 9 images of 3 classes" in card
        assert "blue, green, red" in card and "Top-5" not in card and "mask_ratio" not in card
        assert "6 steps (2 epochs) of 6 images, lion at 0.001" in said.err

    @pytest.mark.parametrize(
        ("more", "preset", "changed"),
        [
            (["--preset", "finetune"], "finetune", {}),
            (["--preset", "imagenet21k", "--crop", "random"], "imagenet21k", {"crop": "random"}),
        ],
    )
    def test_steps_take_the_place_of_epochs(
        self, more: list[str], preset: str, changed: dict[str, Any], colours: Path, tmp_path: Path
    ) -> None:
        assert run(*self.words(colours, *more, "--steps", 1), "--out", tmp_path) == 0
        written = read(tmp_path / "recipe.json")
        assert written["preset"] == preset
        kept = {key: value for key, value in written["changed"].items() if key not in ("batch_size", "sizes")}
        assert kept == {"steps": 1, "epochs": 0, **changed}
        assert written["recipe"]["steps"] == 1 and written["recipe"]["epochs"] == 0

    def test_weights_to_start_from_bring_size_mean_and_licence_and_get_a_new_head(
        self, colours: Path, tmp_path: Path
    ) -> None:
        facts = {"mean": (0.5, 0.4, 0.3), "license": "mit", "attention_layer": 0, "label_names": ("x", "y")}
        made = create_model("crate_nano", img_size=18, depth=1, num_classes=2, pretrained_cfg_overlay=facts)
        start = save_pretrained(made, tmp_path / "start")
        words = ("train", "--pretrained", f"local-dir:{start}", "--data", colours, "--batch-size", 6)
        assert run(*words, "--steps", 1, "--learning-rate", 1e-9, "--out", tmp_path / "out") == 0
        model = create_model(f"local-dir:{tmp_path / 'out' / 'model'}", pretrained=True)
        cfg = model.pretrained_cfg
        assert (model.img_size, model.num_classes, len(model.blocks)) == ((18, 18), 3, 1)
        assert (cfg.mean, cfg.license, cfg.attention_layer) == ((0.5, 0.4, 0.3), "mit", None)
        assert str(start) in cfg.origin and cfg.label_names == tuple(COLOURS)
        trained, before = model.state_dict(), made.state_dict()
        assert all(torch.allclose(trained[n], before[n], atol=1e-6) for n in before if not n.startswith("head"))
        assert read(tmp_path / "out" / "recipe.json")["preset"] == "finetune"

    @pytest.mark.parametrize("share", ["0.2", "20%"])
    def test_a_share_of_each_class_is_held_out(self, share: str, colours: Path, tmp_path: Path) -> None:
        assert run(*self.words(colours, "--steps", 1, "--validation", share, "--out", tmp_path)) == 0
        assert read(tmp_path / "model" / "metrics.json")["images"] == 3  # one of six
        card = (tmp_path / "model" / "README.md").read_text()
        assert (
            "15 images of 3 classes" in card
            and "the held-out 20% of each class (seed 0): 3 images of 3 classes" in card
        )

    @pytest.mark.parametrize("validation", ["./other", "other", "./whole", "train[:2]"])
    def test_other_data_are_a_split_or_all_of_a_folder(
        self, validation: str, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(colours / "validation", tmp_path / "other" / "validation")
        shutil.copytree(colours / "train", tmp_path / "other" / "train")
        shutil.copytree(colours / "validation", tmp_path / "whole")
        monkeypatch.chdir(tmp_path)
        assert run(*self.words(colours, "--steps", 1, "--validation", validation, "--out", tmp_path / "out")) == 0
        found = read(tmp_path / "out" / "model" / "metrics.json")
        assert found["images"] == (6 if "train" in validation else 9)

    def test_a_batch_that_is_not_given_fits_the_data(
        self, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = (*TINY, "--data", colours, "--sizes", 12, "--steps", 1)
        assert run(*words, "--out", tmp_path) == 0
        assert read(tmp_path / "recipe.json")["recipe"]["batch_size"] == 8
        assert "batches of 8 images: there are too few images for 512" in capsys.readouterr().err
        assert run(*words, "--batch-size", 512, "--out", tmp_path / "given") == 1
        assert "there are 18: lower batch_size" in capsys.readouterr().err

    def test_masks_are_measured_in_each_epoch(self, colours: Path, tmp_path: Path) -> None:
        make_folder(tmp_path / "masks")
        assert run(*self.words(colours, "--epochs", 3, "--masks", tmp_path / "masks", "--out", tmp_path / "out")) == 0
        lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines if "validation_mask_iou" in line] == [1, 2, 3]
        assert "images with masks" in (tmp_path / "out" / "model" / "README.md").read_text()

    def test_epochs_of_few_steps_are_not_measured_one_by_one(self, colours: Path, tmp_path: Path) -> None:
        assert run(*self.words(colours, "--steps", 400, "--validation", "0.2", "--out", tmp_path), "--sizes", 6) == 0
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "validation_top1" in line] == list(range(4, 401, 4))

    def test_the_best_weights_are_kept_with_their_numbers(self, colours: Path, tmp_path: Path) -> None:
        words = self.words(colours, "--steps", 6, "--validation", "validation", "--validate-every", 0.4)
        assert run(*words, "--keep", "best", "--out", tmp_path) == 0
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        found = [line for line in lines if "validation_top1" in line]
        best = max(found, key=lambda line: (line["validation_top1"], -line["validation_loss"]))
        written = read(tmp_path / "model" / "metrics.json")
        assert len(found) == 6 and written["best_step"] == best["step"]
        assert set(written) == {"top1", "loss", "images", "best_step"}  # nothing of other weights
        assert written["loss"] == pytest.approx(best["validation_loss"], abs=1e-5)
        kept = load_file(tmp_path / "best.safetensors")
        assert all(torch.equal(kept[name], value) for name, value in weights(tmp_path).items())
        assert f"were the best on these images | {best['step']} |" in (tmp_path / "model" / "README.md").read_text()

    def test_pixels_need_no_labels(self, colours: Path, tmp_path: Path) -> None:
        words = ("train", "--model", "crate_mae_tiny_patch16_224", "--preset", "mae", "--data", colours)
        small = ("--set", "depth=1", "decoder_depth=1", "embed_dim=16", "num_heads=2", "decoder_num_heads=2")
        assert run(*words, *small, "--sizes", 32, "--batch-size", 6, "--steps", 1, "--out", tmp_path) == 0
        model = create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
        assert model.num_classes == 0 and model.mask_token is not None
        assert model.pretrained_cfg.label_names == ()

    def test_streamed_images_train_too(self, colours: Path, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("\n".join(COLOURS))
        words = self.words(colours, "--streaming", "--images", 18, "--label-names", tmp_path / "names.txt")
        assert run(*words, "--epochs", 1, "--validation", "validation", "--out", tmp_path / "out") == 0
        assert read(tmp_path / "out" / "recipe.json")["recipe"]["steps"] == 3
        assert read(tmp_path / "out" / "model" / "metrics.json")["images"] == 9

    def test_the_same_command_goes_on_and_another_recipe_does_not(
        self, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = self.words(colours, "--steps", 3, "--out", tmp_path)
        assert run(*words) == 0
        before, recipe = weights(tmp_path), (tmp_path / "recipe.json").read_text()
        assert run(*words) == 0
        assert "resuming" in capsys.readouterr().err
        after = weights(tmp_path)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert run(*words, "--learning-rate", 1) == 1
        assert "another recipe" in capsys.readouterr().err
        assert (tmp_path / "recipe.json").read_text() == recipe

    @pytest.mark.skipif(sys.platform == "win32", reason="gloo")
    @pytest.mark.slow
    def test_two_processes_come_to_the_weights_and_the_numbers_of_one(self, colours: Path, tmp_path: Path) -> None:
        words = self.words(colours, "--steps", 3, "--optimizer", "adamw", "--validation", "validation")
        assert run(*words, "--out", tmp_path / "one") == 0
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*torchrun, "-m", "whitebox_crate.cli", *map(str, words), "--threads", "1", "--out", str(tmp_path / "two")],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("loads it") == 1
        one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
        assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
        found = [read(tmp_path / name / "model" / "metrics.json") for name in ("one", "two")]
        assert found[0] == pytest.approx(found[1], abs=1e-4)

    def test_the_folder_goes_to_the_hub(
        self, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server = Hub()
        server.start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        words = self.words(colours, "--steps", 1, "--push-to-hub", "org/colours", "--out", tmp_path)
        assert run(*words) == 0
        server.close()
        files = server.repos["org/colours"].files()
        assert {"model.safetensors", "recipe.json", "metrics.json", "README.md"} <= {*files}
        assert "org/colours/commit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "dephts=1"], "depth"),
        (["--set", "depth"], "OPTION=VALUE"),
        (["--set", "num_classes=1"], "3 classes"),
        (["--sizes", "12", "24", "--size-starts", "0"], "size_starts"),
        (["--optimizer", "sgd"], "lion"),
        (["--model", "crate_nan"], "crate_nano"),
        (["--pretrained", "crate_nano", "--model", "vit_nano"], "--model vit_nano"),
        (["--preset", "linear-probe"], "give them with --pretrained"),
        (["--keep", "best"], "--validation or --masks"),
        (["--validation", "1.5"], "for example 0.2"),
        (["--validation", "0"], "for example 0.2"),
        (["--validation", "0.2", "--streaming", "--images", "18"], "cannot be held out"),
        (["--validation", "valdation"], "unknown split 'valdation'; did you mean 'validation'"),
        (["--validation", "./gone"], "gone"),
        (["--validation", "train"], "--validation train has the images of the training data"),
        (["--validation", "{data}/train", "--split", "train"], "has the images of the training data"),
        (["--epochs", "2", "--steps", "3"], "give one of them"),
        (["--data", "no/such_folder", "--label-names", "gone.txt"], "gone.txt"),
        (["--masks", "gone"], "gone"),
        (["--objective", "mae", "--model", "crate_nano"], "crate_mae"),
        (["--objective", "mae", "--validation", "./x"], "--masks"),
        (["--data", "photographs"], "python -m recipes.train --data photographs"),
        (["--data", "garments"], "python -m recipes.train --data garments"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str], said: str, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(data=colours) for word in words]
    more = ["--steps", "3", "--batch-size", "4"] if "--preset" not in words and "--epochs" not in words else []
    assert run("train", "--data", colours, *more, *words, "--out", tmp_path / "out") == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "model").exists()


def test_data_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("train", "--out", tmp_path)
    assert "--data" in capsys.readouterr().err


def test_every_field_of_the_recipe_can_be_given() -> None:
    flags = {action.option_strings[0] for action in _train_parser()._actions if action.option_strings}
    recipe = PRESETS["composites"].recipe
    assert {"--" + name.replace("_", "-") for name in vars(recipe)} <= flags


def _train_parser() -> Any:
    commands = next(action for action in cli.build_parser()._actions if action.choices)
    return commands.choices["train"]


def test_what_a_model_draws_while_it_is_trained_is_of_the_seed(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_dropout(*names: Any, **options: Any) -> Any:
        model = create_model(*names, **options)
        model.head.register_forward_pre_hook(lambda _, given: (torch.nn.functional.dropout(given[0]),))
        return model

    monkeypatch.setattr("whitebox_crate.training.run.create_model", with_dropout)
    words = (*TINY, "--data", colours, "--sizes", 12, "--batch-size", 6, "--steps", 2)
    for out in ("a", "b"):
        assert run(*words, "--out", tmp_path / out) == 0
    first, again = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], again[name]) for name in first)
