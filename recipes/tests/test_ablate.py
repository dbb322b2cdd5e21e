"""Ablations of scenes: one change at a time, measured on photographs; and batches that several sources share."""

import json
from pathlib import Path

import pytest
import torch
from labelled_images import make_folder
from pictures_on_disk import make_parquet

from recipes.ablate import Arm, check_settings, run, table, thinned
from recipes.mixed import Mixed
from recipes.objects import Objects
from recipes.scenes import Scenes
from whitebox_crate.errors import InputError
from whitebox_crate.training import ImageDataset, Recipe, open_images

NAMES = ("a", "b", "c")


@pytest.fixture
def objects() -> Objects:
    images = torch.zeros(5, 4, 128, 128, dtype=torch.uint8)
    images[:, 3, 30:90, 20:110] = 255
    return Objects(images, torch.tensor([0, 1, 1, 1, 2]), NAMES)


@pytest.fixture
def backgrounds() -> torch.Tensor:
    return torch.randint(256, (4, 3, 128, 128), dtype=torch.uint8)


def test_what_is_kept_of_objects_has_labels_of_its_own(objects: Objects) -> None:
    kept = thinned(objects, 2)
    assert kept.labels.tolist() == [0, 1, 2] and kept.class_names == NAMES
    kept = thinned(objects, 4)
    assert kept.labels.tolist() == [0, 1] and kept.class_names == ("a", "c")


def test_an_arm_is_trained_measured_and_not_done_twice(
    objects: Objects, backgrounds: torch.Tensor, tmp_path: Path
) -> None:
    make_folder(tmp_path / "photographs", 2)
    recipe = Recipe(steps=25, batch_size=2, sizes=(48,), size_starts=(0.0,))
    arm = Arm(objects=4, backgrounds=2, style={"decoys": 0})
    run(arm, recipe, objects, backgrounds, tmp_path / "photographs", tmp_path / "out")
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["objects"], found["classes"], found["backgrounds"]) == (2, 2, 2)
    assert 0 <= found["mean_of_layers"][0] <= 1 and 0 <= found["named_in_training"] <= 1
    (tmp_path / "out.json").write_text("{}")
    run(arm, recipe, objects, backgrounds, tmp_path / "photographs", tmp_path / "out")
    assert (tmp_path / "out.json").read_text() == "{}"


def test_a_folder_holds_runs_of_one_kind(tmp_path: Path) -> None:
    path = tmp_path / "out" / "settings.json"
    check_settings(path, {"steps": 10})
    check_settings(path, {"steps": 10})
    with pytest.raises(InputError, match="holds other settings than this call; choose another --out"):
        check_settings(path, {"steps": 2000})


def test_the_table_has_the_differences_from_the_first_arm() -> None:
    def found(iou: float) -> dict[str, object]:
        facts = {"objects": 5, "backgrounds": 4, "named_in_training": 0.5}
        return facts | {"mean_of_layers": [iou, 0.1], "best_head_of_each_image": [iou + 0.1, 0.1]}

    text = table({"as it is": [found(x) for x in (0.3, 0.4, 0.5)], "other": [found(x) for x in (0.4, 0.5, 0.6)]})
    first, second = text.splitlines()[2:]
    assert first.endswith("| 0.400 |  | 0.500 |  |")
    assert second.endswith("| 0.500 | +0.100 ± 0.000 | 0.600 | +0.100 ± 0.000 |")


def test_sources_share_a_batch_and_have_classes_of_their_own(
    objects: Objects, backgrounds: torch.Tensor, tmp_path: Path
) -> None:
    scenes = Scenes(objects, backgrounds, 24)
    make_parquet(tmp_path / "parquet")
    photographs = open_images(tmp_path / "parquet", size=24)
    assert isinstance(photographs, ImageDataset)
    mixed = Mixed([scenes, photographs, scenes])
    count = len(photographs.class_names)
    assert mixed.class_names == (*NAMES, *photographs.class_names, *(f"{name}*" for name in NAMES))
    batch = mixed.draw(6, seed=1, step=2, size=12)
    assert torch.equal(batch.images[:2], scenes.draw(2, seed=1, step=2, size=12).images)
    own = photographs.draw(2, seed=1, step=2, size=12)
    assert torch.equal(batch.images[2:4], own.images) and torch.equal(batch.labels[2:4], own.labels + 3)
    assert torch.equal(batch.labels[4:], batch.labels[:2] + 3 + count)
    with pytest.raises(InputError, match="3 sources cannot share a batch of 7"):
        mixed.draw(7, seed=1, step=2)
    with pytest.raises(InputError, match="no source"):
        Mixed([])
