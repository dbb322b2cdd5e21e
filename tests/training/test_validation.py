"""Validation counts what it says, whoever shares the images, and leaves the model as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from labelled_images import make_folder
from validation_in_two import COUNT, SIDE, Numbered, model_of, share

from whitebox_crate.errors import InputError
from whitebox_crate.evaluation import read_folder, score_image, summarize
from whitebox_crate.training import Batch, normalize
from whitebox_crate.training.validation import Validation


class Fixed(torch.nn.Module):
    """Logits that a test chose, whatever the images are."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.cls_token, self.img_size, self.in_chans = logits, torch.zeros(1), (SIDE, SIDE), 3
        self.num_classes, self.pretrained_cfg, self.modes = logits.shape[1], model_of().pretrained_cfg, set[bool]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.modes.add(self.training)
        assert torch.is_inference_mode_enabled()
        first, self.logits = self.logits[: len(images)], self.logits[len(images) :]
        return first


def test_top_1_top_5_and_loss_are_counted_over_batches_of_any_size() -> None:
    places = [0, 0, 0, 1, 4, 5, 7]  # of the right class among all eight
    logits = torch.empty(7, 8)
    for label, place in enumerate(places):
        others = [-float(other) for other in range(8) if other != place]
        logits[label] = torch.tensor([*others[:label], -float(place), *others[label:]])
    model = Fixed(logits)
    found = Validation(Numbered(7, 8), every=1, batch_size=3).measure(model)  # type: ignore[arg-type]
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(7)).item()
    assert found == pytest.approx({"top1": 3 / 7, "top5": 5 / 7, "loss": expected, "images": 7})
    assert model.modes == {False}


@pytest.mark.parametrize("classes", [3, 5, 6])
def test_among_five_classes_the_likeliest_five_say_nothing(classes: int) -> None:
    found = Validation(Numbered(9, 3), every=1).measure(model_of(classes))
    assert ("top5" in found) == (classes > 5) and found["top1"] < 1


def test_it_is_what_the_model_says_of_normalised_images() -> None:
    data, model = Numbered(), model_of()
    found = Validation(data, every=1, batch_size=4).measure(model)
    with torch.no_grad():
        logits = model(normalize(data.images, model))
    assert found["top1"] == pytest.approx((logits.argmax(1) == data.labels).float().mean().item())
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, data.labels).item(), abs=1e-5)


def test_pictures_that_could_not_be_decoded_are_counted() -> None:
    class Damaged(Numbered):
        def in_order(self, batch_size: int, size: int, **share: int) -> Iterator[Batch]:
            for batch, lost in zip(super().in_order(batch_size, size, **share), (0, 2, 1), strict=True):
                yield replace(batch, skipped=lost)

    found = Validation(Damaged(), every=1, batch_size=4).measure(model_of())
    assert (found["images"], found["skipped"]) == (COUNT, 3)
    assert "skipped" not in Validation(Numbered(), every=1).measure(model_of())


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_its_mode_even_after_an_error(training: bool) -> None:
    model = model_of().train(training)
    Validation(Numbered(), every=1).measure(model)
    assert model.training is training
    with pytest.raises(InputError, match="labels"):
        Validation(Numbered(9, 6), every=1).measure(model)
    assert model.training is training
    assert all(parameter.grad is None and not parameter.is_inference() for parameter in model.parameters())


def test_a_model_is_trained_on_after_it_was_measured() -> None:
    model = model_of().train()
    Validation(Numbered(), every=1).measure(model)
    model(Numbered().images).sum().backward()
    assert model.cls_token.grad is not None


def test_no_images_are_no_measurement() -> None:
    with pytest.raises(InputError, match="no images"):
        Validation(Numbered(0), every=1).measure(model_of())


def test_masks_are_scored_as_evaluate_scores_them(tmp_path: Path) -> None:
    make_folder(tmp_path)
    data, model = read_folder(tmp_path), model_of().train()
    found = Validation(None, every=1, masks=data, rule="entries").measure(model)
    records = [(name, score_image(model, pair, size=SIDE)) for name, pair in data.items]
    expected = summarize(records, layer=-2)["rules"]["entries"]["miou"]
    assert found == {"mask_iou": pytest.approx(expected)}
    assert model.training


@pytest.mark.slow
def test_two_processes_measure_what_one_does_and_run_the_model_equally_often(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", count=5)
    mp.spawn(share, args=(str(tmp_path),), nprocs=2)
    one = Validation(Numbered(), 1, batch_size=4, masks=read_folder(tmp_path / "data")).measure(model_of())
    assert one["images"] == COUNT
    zero, first = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    # Three batches and five masks: in the last round of each, one process runs the model for the other.
    assert zero.pop("calls") == first.pop("calls") == 2 + 3
    assert zero == first == pytest.approx(one)
