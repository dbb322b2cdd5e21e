"""The paper's measurement: against IoUs counted by hand, and against its equations written out with `metrics`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelled_images import labels, noise, save_mask
from small_models import images_for, small_model
from torch import Tensor

from whitebox_crate import create_model
from whitebox_crate.errors import InputError, UnknownNameError, WeightsError
from whitebox_crate.evaluation import (
    RULES,
    LabelledImage,
    score_image,
    score_maps,
)
from whitebox_crate.segmentation import (
    all_cls_attention,
    attention_masks,
    cls_attention,
    mask_iou,
    upsample,
)

# Measures one pair of files under many names, and prints by how much the memory that the process had at most grew.
MEMORY = """
import resource, sys
from pathlib import Path
from whitebox_crate import create_model
from whitebox_crate.evaluation import LabelledImage, Records, score_image, summarize

folder = Path(sys.argv[1])
pair = LabelledImage(folder / "image.png", folder / "mask.png")
model = create_model("crate_nano", depth=2, dynamic_img_size=True).eval()

def peak(count):
    records = Records(folder / str(count), {})
    score = lambda pair: score_image(model, pair, size=96)
    items = [(str(index), pair) for index in range(count)]
    records.measure(items, score, content=LabelledImage.content, report=lambda text: None)
    summarize(records.items(), layer=0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

few = peak(30)
print(peak(300) - few)
"""


@st.composite
def maps_and_labels(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Maps (layers, heads, rows, columns) of few values, so that there are ties; labels of a size that need not fit."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    height, width = draw(st.integers(1, 23)), draw(st.integers(1, 23))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    maps = torch.randint(0, 4, (2, 3, rows, columns), generator=generator).float()
    maps[0, 0, 0, 0] = 1.0
    return maps, torch.tensor([0, 3, 7, 255])[torch.randint(0, 4, (height, width), generator=generator)]


class TestScoreMaps:
    def test_counted_by_hand(self) -> None:
        """Of the map's four patches, 4 pixels each, "entries" keeps the two of 3 and 4."""
        maps = torch.tensor([[1.0, 4.0], [3.0, 2.0]])
        labels = torch.tensor([[0, 0, 5, 5], [0, 0, 5, 255], [5, 9, 0, 0], [9, 255, 0, 0]])
        found = score_maps(maps, labels, rules=["entries"], keep=0.5, void=255)
        # Of 16 pixels 2 are void: the mask has 6; 5 has 4, all of them in it; 9 has 2, both of them in it.
        assert {label: float(of["entries"]) for label, of in found.items()} == pytest.approx({5: 4 / 6, 9: 2 / 6})
        # As a class, void fills the rest of the mask: 8 pixels.
        with_void = score_maps(maps, labels, rules=["entries"], keep=0.5)
        expected = {5: 4 / 8, 9: 2 / 8, 255: 2 / 8}
        assert {label: float(of["entries"]) for label, of in with_void.items()} == pytest.approx(expected)

    @given(case=maps_and_labels(), keep=st.sampled_from([0.3, 0.6, 1.0]), void=st.sampled_from([255, None]))
    def test_it_is_mask_iou_of_upsampled_masks_to_the_bit(
        self, case: tuple[Tensor, Tensor], keep: float, void: int | None
    ) -> None:
        maps, labels = case
        found = score_maps(maps, labels, keep=keep, void=void)
        assert list(found) == sorted(set(labels.flatten().tolist()) - {0, void})
        dark = maps.flatten(-2).amax(-1) == 0
        for rule in RULES:
            masks = torch.zeros(*maps.shape[:2], *labels.shape, dtype=torch.bool)
            masks[~dark] = upsample(attention_masks(maps[~dark], keep, rule), tuple(labels.shape))
            for label, ious in found.items():
                expected = mask_iou(masks, labels == label, valid=None if void is None else labels != void)
                assert torch.equal(ious[rule], expected)

    def test_plain_tensors_of_any_backbone(self) -> None:
        maps = torch.rand(7, 4, 4, dtype=torch.float64)
        found = score_maps(maps, torch.ones(16, 16, dtype=torch.uint8))
        assert {rule: ious.shape for rule, ious in found[1].items()} == dict.fromkeys(RULES, torch.Size([7]))

    def test_maps_of_zeros_mark_nothing_and_negative_ones_are_refused(self) -> None:
        maps = torch.stack([torch.zeros(2, 2), torch.eye(2)])
        found = score_maps(maps, torch.ones(4, 4, dtype=torch.int64))
        assert {rule: ious.tolist() for rule, ious in found[1].items()} == {
            "mass": [0, 0.5],
            "entries": [0, 0.5],
            "mean": [0, 0.5],
        }
        with pytest.raises(InputError, match=r"must not be negative, but the smallest value is -1"):
            score_maps(torch.tensor([[-1.0, 0.0], [0.0, 0.0]]), torch.ones(4, 4, dtype=torch.int64))

    def test_no_object_no_score(self) -> None:
        assert score_maps(torch.rand(2, 2), torch.tensor([[0, 255]]), void=255) == {}

    def test_what_it_refuses(self) -> None:
        maps, labels = torch.rand(2, 2), torch.ones(4, 4, dtype=torch.int64)
        for bad in (labels.float(), labels[0], labels[:0]):
            with pytest.raises(InputError, match="integer labels"):
                score_maps(maps, bad)
        with pytest.raises(InputError, match="grid_h, grid_w"):
            score_maps(maps[0], labels)
        with pytest.raises(InputError, match="NaN"):
            score_maps(maps * torch.nan, labels)
        with pytest.raises(InputError, match="keep"):
            score_maps(maps, labels, keep=0)
        with pytest.raises(UnknownNameError, match="'mas'"):
            score_maps(maps, labels, rules=["mas"])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["crate_nano", "vit_nano", "crate_mhsa_paper_small_patch16_224"])
def test_all_layers_in_one_pass_are_those_of_each(name: str) -> None:
    model = small_model(name)
    images = images_for(model)
    together = all_cls_attention(model, images)
    apart = [cls_attention(model, images, layer) for layer in range(len(model.blocks))]
    assert torch.equal(together, torch.stack(apart, dim=1))
    assert torch.equal(together, all_cls_attention(torch.nn.DataParallel(model), images))
    images[1, 0, 0, 0] = torch.inf
    with pytest.raises(InputError, match=r"in images \[1\] of 2"):
        all_cls_attention(model, images)


class TestScoreImage:
    @pytest.fixture
    def pair(self, tmp_path: Path) -> LabelledImage:
        noise(1).save(tmp_path / "image.png")
        save_mask(labels(1), tmp_path / "mask.png")
        return LabelledImage(tmp_path / "image.png", tmp_path / "mask.png")

    def test_a_record_is_json_by_class(self, pair: LabelledImage) -> None:
        model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
        record = score_image(model, pair, size=48, void=255, class_names={2: "bicycle", 15: "person"})
        assert json.loads(json.dumps(record)) == record
        assert list(record) == ["bicycle", "person"]
        ious = torch.tensor(record["person"]["mass"])
        assert ious.shape == (len(model.blocks), model.num_heads)
        assert ((ious >= 0) & (ious < 1)).all()
        assert list(score_image(model, pair, size=48)) == ["2", "15", "255"]

    def test_a_model_of_half_precision_sees_images_of_its_own(self, pair: LabelledImage) -> None:
        model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
        whole = torch.tensor(score_image(model, pair, size=48)["15"]["mean"])
        half = torch.tensor(score_image(model.to(torch.bfloat16), pair, size=48)["15"]["mean"])
        assert 0 < (whole - half).abs().max() < 0.1

    @pytest.mark.skipif(sys.platform == "win32", reason="resource")
    def test_memory_does_not_grow_with_the_number_of_images(self, pair: LabelledImage) -> None:
        """To keep the pixels of 270 images more would take 40 MB (float32, 3 x 96 x 126 and more)."""
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(pair.image.parent)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        grown = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)  # bytes
        assert grown < 16e6

    def test_labels_that_are_no_classes_are_refused(self, pair: LabelledImage) -> None:
        model = create_model("crate_nano", dynamic_img_size=True).eval()
        with pytest.raises(
            InputError, match=r"mask\.png has labels that are not classes: \[2, 255\]; known are \[15\]"
        ):
            score_image(model, pair, size=48, class_names={15: "person"})

    def test_damaged_weights_are_no_fault_of_the_image(self, pair: LabelledImage) -> None:
        model = create_model("crate_nano", dynamic_img_size=True).eval()
        torch.nn.init.constant_(model.blocks[2].norm1.bias, float("nan"))
        with pytest.raises(WeightsError, match="not finite"):
            score_image(model, pair, size=48)
