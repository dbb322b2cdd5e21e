"""Photographs that lie on a device: crops are a function of seed and step, and a run takes the given minutes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from pictures_on_disk import make_parquet

from recipes import natural_gpu
from recipes.natural_gpu import Resident
from whitebox_crate import create_model


def resident(smallest: float = 0.5) -> Resident:
    pictures = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Resident(pictures, torch.arange(6) % 3, ("a", "b", "c"), smallest)


def test_crops_are_a_function_of_seed_and_step() -> None:
    source = resident()
    first, again, other = (source.draw(4, seed=1, step=step, size=8) for step in (3, 3, 4))
    assert first.images.shape == (4, 3, 8, 8) and 0 <= first.images.min() <= first.images.max() <= 1
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_a_crop_of_all_is_the_picture_or_its_mirror_image() -> None:
    source = resident(smallest=1.0)
    batch = source.draw(16, seed=0, step=0)
    mirrored = 0
    for image, label in zip(batch.images, batch.labels, strict=True):
        pictures = source.pixels[source.labels == label].float() / 255
        distances = [(image - seen).abs().amax((1, 2, 3)).min() for seen in (pictures, pictures.flip(-1))]
        assert min(distances) < 1e-5
        mirrored += int(distances[1] < distances[0])
    assert 0 < mirrored < 16


def test_a_run_is_planned_trained_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for split in ("train", "validation"):
        make_parquet(tmp_path / "data" / split)
    AcceleratorState._reset_state(True)  # another test may have trained in float32
    request.addfinalizer(lambda: AcceleratorState._reset_state(True))
    monkeypatch.setattr(natural_gpu, "WARM", 1)
    monkeypatch.setattr(natural_gpu, "TIMED", 1)
    words = f"natural_gpu --data {tmp_path / 'data'} --model crate_pico --side 16 --batch-size 4 --minutes 0"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--out", str(tmp_path / "out")])
    natural_gpu.main()
    seconds, steps = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert seconds > 0 and steps == 1
    model = create_model(f"local-dir:{tmp_path / 'out' / 'model'}", pretrained=True)
    assert model.img_size == (16, 16) and model.pretrained_cfg.label_names
    natural_gpu.main()  # done already: nothing is timed or trained again
    assert json.loads((tmp_path / "out" / "steps.json").read_text()) == [seconds, steps]
