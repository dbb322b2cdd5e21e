"""A finished folder loads, says how it came about, is whole or not there, and goes to the Hub as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub
from huggingface_hub import constants
from small_models import small_model

from whitebox_crate import create_model, hub
from whitebox_crate.errors import InputError, OutputError
from whitebox_crate.models import Crate, ImageTransformer
from whitebox_crate.training import Recipe
from whitebox_crate.training.model_folder import finish, last_metrics, push_to_hub
from whitebox_crate.training.presets import PRESETS

LABELS = ("a", "b", "c", "d", "e")
METRICS = {"top1": 0.9312, "loss": 0.25, "images": 40}
FILES = {"config.json", "model.safetensors", "README.md", "recipe.json", "metrics.json"}


@pytest.fixture
def model() -> ImageTransformer:
    made = small_model("crate_nano_patch6_96")
    made.pretrained_cfg = replace(made.pretrained_cfg, label_names=LABELS, num_classes=5, origin="a test")
    return made


def fine_tuned() -> Recipe:
    return replace(PRESETS["finetune"].recipe, learning_rate=1e-3).resolved(512)


def test_the_folder_loads_and_says_how_it_came_about(model: ImageTransformer, tmp_path: Path) -> None:
    recipe = fine_tuned()
    folder = finish(model, tmp_path / "model", recipe, data="digits, train", metrics=METRICS, preset="finetune")
    assert {path.name for path in folder.iterdir()} == FILES
    again = create_model(f"local-dir:{folder}", pretrained=True)
    assert again.pretrained_cfg.label_names == LABELS
    written = json.loads((folder / "recipe.json").read_text())
    numbers = {key: tuple(value) if isinstance(value, list) else value for key, value in written["recipe"].items()}
    assert Recipe(**numbers) == recipe
    assert (written["preset"], written["source"]) == ("finetune", PRESETS["finetune"].source)
    assert (written["data"], written["changed"]) == ("digits, train", {"learning_rate": 1e-3})
    assert json.loads((folder / "metrics.json").read_text()) == METRICS


def test_the_card_fills_itself(model: ImageTransformer, tmp_path: Path) -> None:
    finish(model, tmp_path, fine_tuned(), data="digits, train", metrics=METRICS, preset="finetune")
    card = (tmp_path / "README.md").read_text()
    for said in (
        *("| Top-1 | 93.1% |", "| Cross-entropy | 0.25 |", "| Images | 40 |", "digits, train", "5 classes"),
        *("| learning_rate | 0.001 |", "| steps | 400 |", PRESETS["finetune"].source, "Changed: learning_rate 0.001."),
        'create_model("local-dir:PATH", pretrained=True)',
    ):
        assert said in card


def test_a_recipe_of_ones_own_has_no_source(model: ImageTransformer, tmp_path: Path) -> None:
    finish(model, tmp_path, Recipe(), data="mine", metrics={})
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert (written["preset"], written["source"], written["changed"]) == (None, None, {})
    assert "no validation data" in (tmp_path / "README.md").read_text()


def test_a_card_that_was_edited_stays_and_the_rest_is_replaced(model: ImageTransformer, tmp_path: Path) -> None:
    finish(model, tmp_path, Recipe(), data="mine", metrics={})
    (tmp_path / "README.md").write_text("mine")
    finish(model, tmp_path, Recipe(), data="mine", metrics=METRICS)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert json.loads((tmp_path / "metrics.json").read_text()) == METRICS


def test_the_last_of_each_number_counts_and_of_pictures_left_out_the_sum(tmp_path: Path) -> None:
    records = [{"step": 1, "loss": 2.0, "skipped": 3}, {"step": 1, "validation_top1": 0.5, "validation_skipped": 1}]
    records += [{"step": 2, "loss": 1.0}, {"step": 3, "loss": 1.5, "skipped": 2}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    expected = {"top1": 0.5, "skipped": 1, "training_loss": 1.5, "training_skipped": 5}
    assert last_metrics(tmp_path) == expected
    assert last_metrics(str(tmp_path)) == expected


def test_a_model_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="create_model"):
        finish(Crate(img_size=8, patch_size=4, depth=1), tmp_path / "out", Recipe(), data="mine", metrics={})
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_old_files_whole(
    model: ImageTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(model, tmp_path, Recipe(), data="mine", metrics=METRICS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(state: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        finish(model, tmp_path, fine_tuned(), data="others", metrics={})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class TestPushToHub:
    @pytest.fixture
    def server(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
        server = Hub()
        server.start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield server
        server.close()

    def test_everything_goes_along_and_loads_from_there(
        self, model: ImageTransformer, tmp_path: Path, server: Hub
    ) -> None:
        folder = finish(model, tmp_path / "model", fine_tuned(), data="mine", metrics=METRICS, preset="finetune")
        assert "org/mine" in push_to_hub(folder, "org/mine", token=TOKEN)
        files = server.repos["org/mine"].files()
        assert {*files} >= FILES
        assert {name: files[name] for name in FILES} == {name: (folder / name).read_bytes() for name in FILES}
        assert b'create_model("hf-hub:org/mine", pretrained=True)' in files["README.md"]
        assert create_model("hf-hub:org/mine", pretrained=True).pretrained_cfg.label_names == LABELS

    def test_a_refusal_says_what_to_do(self, model: ImageTransformer, tmp_path: Path, server: Hub) -> None:
        folder = finish(model, tmp_path / "model", Recipe(), data="mine", metrics={})
        with pytest.raises(OutputError, match="hf auth login"):
            push_to_hub(folder, "org/mine", token="hf_of_a_stranger")
        assert {path.name for path in folder.iterdir()} == FILES

    def test_a_folder_that_is_not_there(self, tmp_path: Path, server: Hub) -> None:
        with pytest.raises(OutputError, match="gone"):
            push_to_hub(tmp_path / "gone", "org/mine", token=TOKEN)
        assert not server.requests
