"""A refined mask follows the edges of the image."""

from typing import Any

import pytest
import torch
from torch import Tensor

from whitebox_crate.errors import InputError, MissingExtraError
from whitebox_crate.segmentation import dense_crf, mask_iou


def scene() -> tuple[Tensor, Tensor, Tensor]:
    """A bright disc on a dark ground, uint8 (3, 48, 64); its mask; a mask of coarse blocks around it."""
    row, column = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    disc = (row - 22) ** 2 + (column - 30) ** 2 < 14**2
    noise = torch.randint(0, 20, (3, 48, 64), generator=torch.Generator().manual_seed(0))
    image = (40 + 150 * disc + noise).to(torch.uint8)
    blocks = disc.view(6, 8, 8, 8).float().mean(dim=(1, 3)) > 0.4
    return image, disc, blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)


def test_a_mask_of_blocks_becomes_the_disc() -> None:
    pytest.importorskip("pydensecrf")
    image, disc, blocks = scene()
    assert mask_iou(blocks, disc) < 0.9
    for pixels in (image, image.float() / 100 - 1):
        refined = dense_crf(pixels, blocks)
        assert refined.dtype == torch.bool
        assert mask_iou(refined, disc) > 0.97


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf.densecrf", None)
    image, _, blocks = scene()
    with pytest.raises(MissingExtraError, match=r"whitebox-crate\[crf\]"):
        dense_crf(image, blocks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(48, 64)}, r"got \(3, 48, 64\) and torch.float32 of \(48, 64\)"),
        ({"image": torch.zeros(1, 48, 64)}, r"got \(1, 48, 64\)"),
        ({"image": torch.zeros(3, 64, 48)}, r"got \(3, 64, 48\)"),
        ({"confidence": 0.5}, "not 0.5"),
        ({"steps": 0}, "not 0"),
        ({"near": (3.0, 0.0)}, r"\(3.0, 0.0\)"),
    ],
)
def test_what_makes_no_field_is_refused(change: dict[str, Any], message: str) -> None:
    image, _, blocks = scene()
    with pytest.raises(InputError, match=message):
        dense_crf(**{"image": image, "mask": blocks, **change})
