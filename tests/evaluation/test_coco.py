"""COCO's AP: by hand on tiny cases, and as the evaluator says when it is asked directly."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import Tensor

from whitebox_crate import create_model
from whitebox_crate.errors import InputError, MissingExtraError, UnknownNameError, WeightsError
from whitebox_crate.evaluation import (
    average_precision,
    check_images,
    maskcut_results,
    read_annotations,
    read_results,
    to_results,
)
from whitebox_crate.images import load_image
from whitebox_crate.preprocess import image_to_tensor, resize_to_grid
from whitebox_crate.segmentation import maskcut, patch_features, upsample

coding = pytest.importorskip("faster_coco_eval").mask

HEIGHT, WIDTH = 20, 30


def rectangle(x: int, y: int, width: int, height: int) -> Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[y : y + height, x : x + width] = True
    return mask


def document(*objects: tuple[int, tuple[int, int, int, int]], images: int = 2, category: int = 1) -> dict[str, Any]:
    """Rectangles as polygons, in images 1, 2, ...; (image, box) each."""
    return {
        "images": [{"id": 1 + i, "file_name": f"{1 + i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": box[2] * box[3],
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                "iscrowd": 0,
            }
            for number, (image, box) in enumerate(objects)
            for x, y, w, h in [box]
        ],
    }


def _as_lists(mask: torch.Tensor) -> dict[str, Any]:
    """A mask as COCO has crowds: run lengths down the columns, the first of what is not the object."""
    runs = [(value, len(list(group))) for value, group in itertools.groupby(mask.T.flatten().tolist())]
    return {"size": list(mask.shape), "counts": [0] * bool(runs[0][0]) + [length for _, length in runs]}


def found(*rectangles: tuple[int, tuple[int, int, int, int]]) -> list[dict[str, Any]]:
    """Results, the first with the highest score."""
    return [
        result
        for rank, (image, box) in enumerate(rectangles)
        for result in to_results(image, rectangle(*box)[None], [1 - rank / 10])
    ]


def triple(at_50: float, at_75: float, average: float) -> Any:
    return pytest.approx({"AP50": at_50, "AP75": at_75, "AP": average}, abs=1e-9)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
class TestByHand:
    def test_perfect_masks(self, kind: Any) -> None:
        truth = document((1, (2, 3, 10, 8)), (1, (15, 1, 5, 6)), (2, (0, 0, 30, 20)))
        results = found((1, (2, 3, 10, 8)), (1, (15, 1, 5, 6)), (2, (0, 0, 30, 20)))
        assert average_precision(truth, results, kind) == triple(1, 1, 1)

    def test_a_shifted_box_counts_up_to_its_iou(self, kind: Any) -> None:
        """Moved by a fifth of its length: IoU 8 / 12, which passes 0.5, 0.55, 0.6 and 0.65 of ten thresholds."""
        assert average_precision(document((1, (2, 3, 10, 8))), found((1, (4, 3, 10, 8))), kind) == triple(1, 0, 0.4)

    def test_a_miss(self, kind: Any) -> None:
        """Recall one half: precision 1 at 51 of the 101 recalls, 0 at the others."""
        truth = document((1, (2, 3, 10, 8)), (2, (2, 3, 10, 8)))
        assert average_precision(truth, found((1, (2, 3, 10, 8))), kind) == triple(*[51 / 101] * 3)

    def test_a_wrong_mask_costs_where_it_ranks_first(self, kind: Any) -> None:
        truth = document((1, (2, 3, 10, 8)))
        right, wrong = (1, (2, 3, 10, 8)), (2, (0, 0, 3, 3))
        assert average_precision(truth, found(right, wrong), kind) == triple(1, 1, 1)
        assert average_precision(truth, found(wrong, right), kind) == triple(0.5, 0.5, 0.5)

    def test_a_second_mask_of_an_object_is_wrong(self, kind: Any) -> None:
        truth = document((1, (2, 3, 10, 8)), (1, (15, 3, 10, 8)))
        results = found((1, (2, 3, 10, 8)), (1, (2, 3, 10, 8)), (1, (15, 3, 10, 8)))
        assert average_precision(truth, results, kind) == triple(*[(51 + 50 * 2 / 3) / 101] * 3)

    def test_nothing_found(self, kind: Any) -> None:
        assert average_precision(document((1, (2, 3, 10, 8))), [], kind) == triple(0, 0, 0)

    def test_the_class_does_not_matter(self, kind: Any) -> None:
        truth = document((1, (2, 3, 10, 8)), category=7)
        truth["annotations"] += document((1, (15, 3, 10, 8)), category=90)["annotations"]
        results = found((1, (2, 3, 10, 8)), (1, (15, 3, 10, 8)))
        results[0]["category_id"] = 3
        assert average_precision(truth, results, kind) == triple(1, 1, 1)

    def test_a_mask_on_a_crowd_is_neither_right_nor_wrong(self, kind: Any) -> None:
        truth = document((1, (2, 3, 10, 8)), (1, (14, 0, 16, 20)))
        crowd = truth["annotations"][1]
        crowd["iscrowd"], crowd["segmentation"] = 1, {"size": [HEIGHT, WIDTH], "counts": [14 * HEIGHT, 16 * HEIGHT]}
        results = found((1, (16, 2, 4, 4)), (1, (2, 3, 10, 8)))
        assert average_precision(truth, results, kind) == triple(1, 1, 1)

    def test_results_of_masks_or_boxes_alone_do(self, kind: Any) -> None:
        other = "segmentation" if kind == "bbox" else "bbox"
        results = [{k: v for k, v in result.items() if k != other} for result in found((1, (2, 3, 10, 8)))]
        assert average_precision(document((1, (2, 3, 10, 8))), results, kind) == triple(1, 1, 1)

    def test_nothing_that_is_given_changes(self, kind: Any) -> None:
        truth, results = document((1, (2, 3, 10, 8)), (2, (1, 1, 5, 5)), category=4), found((1, (2, 3, 10, 8)))
        before = copy.deepcopy((truth, results))
        first = average_precision(truth, results, kind)
        assert (truth, results) == before and average_precision(truth, results, kind) == first


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of three classes and crowds in eight images, and masks that are shifted, wrong or missing."""
    random = np.random.default_rng(seed)

    def box() -> tuple[int, int, int, int]:
        x, y = random.integers(0, WIDTH - 4), random.integers(0, HEIGHT - 4)
        return int(x), int(y), int(random.integers(3, WIDTH - x)), int(random.integers(3, HEIGHT - y))

    objects = [(int(random.integers(1, 9)), box()) for _ in range(20)]
    truth = document(*objects, images=8)
    for annotation in truth["annotations"]:
        annotation["id"] += 1
        annotation["category_id"] = int(random.integers(1, 4))
        annotation["iscrowd"] = int(random.random() < 0.1)
    results = []
    for image, (x, y, width, height) in objects:
        if random.random() < 0.8:
            dx, dy = (int(random.integers(0, 1 + length // 3)) for length in (width, height))
            results += to_results(image, rectangle(x + dx, y + dy, width, height)[None], [random.random()])
    return truth, results + to_results(3, rectangle(*box())[None], [random.random()])


def evaluator_of(library: str) -> tuple[Any, Any]:
    if library == "faster_coco_eval":
        module = importlib.import_module(library)
        return module.COCO, module.COCOeval_faster
    pytest.importorskip(library)
    return importlib.import_module("pycocotools.coco").COCO, importlib.import_module("pycocotools.cocoeval").COCOeval


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("library", ["faster_coco_eval", "pycocotools"])
def test_it_is_what_the_evaluator_says_without_categories(library: str, kind: Any) -> None:
    """COCO's own way to ignore classes is useCats = 0."""
    dataset, evaluator = evaluator_of(library)
    for seed in range(4):
        truth, results = random_case(seed)
        with contextlib.redirect_stdout(io.StringIO()):
            official = dataset()
            official.dataset = {**copy.deepcopy(truth), "info": {}, "categories": [{"id": n} for n in (1, 2, 3)]}
            official.createIndex()
            evaluation = evaluator(official, official.loadRes(copy.deepcopy(results)), kind)
            evaluation.params.useCats = 0
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        average, at_50, at_75 = evaluation.stats[:3]
        assert 0 < average < at_50 < 1
        assert average_precision(truth, results, kind) == triple(at_50, at_75, average)


class TestResults:
    @given(arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))))
    def test_masks_come_back_and_boxes_are_tight(self, masks: np.ndarray) -> None:
        results = to_results(5, torch.from_numpy(masks))
        kept = [mask for mask in masks if mask.any()]
        assert len(results) == len(kept)
        assert json.loads(json.dumps(results)) == results
        for result, mask in zip(results, kept, strict=True):
            assert (coding.decode(result["segmentation"]) == mask).all()
            x, y, width, height = result["bbox"]
            inside = mask[y : y + height, x : x + width]
            assert inside.sum() == mask.sum()
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            assert (result["image_id"], result["category_id"]) == (5, 1)

    def test_without_scores_masks_rank_by_their_round(self) -> None:
        masks = torch.stack(
            [rectangle(0, 0, 3, 3), torch.zeros(HEIGHT, WIDTH, dtype=torch.bool), rectangle(9, 9, 2, 2)]
        )
        assert [result["score"] for result in to_results(1, masks)] == [1, 1 / 3]

    def test_bad_masks_and_scores(self) -> None:
        with pytest.raises(InputError, match=r"float32 \(1, 4, 4\)"):
            to_results(1, torch.ones(1, 4, 4))
        with pytest.raises(InputError, match=r"bool \(4, 4\)"):
            to_results(1, torch.ones(4, 4, dtype=torch.bool))
        with pytest.raises(InputError, match="2 finite scores"):
            to_results(1, torch.ones(2, 4, 4, dtype=torch.bool), [1.0])
        with pytest.raises(InputError, match="finite scores"):
            to_results(1, torch.ones(1, 4, 4, dtype=torch.bool), [float("nan")])

    def test_without_the_evaluator_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
        with pytest.raises(MissingExtraError, match=r"whitebox-crate\[eval\]"):
            to_results(1, torch.ones(1, 4, 4, dtype=torch.bool))
        with pytest.raises(MissingExtraError, match=r"whitebox-crate\[eval\]"):
            average_precision(document((1, (0, 0, 2, 2))), [], "bbox")


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"image_id": 3}, "image 3, which the annotations do not list"),
            (
                {"segmentation": {"size": [WIDTH, HEIGHT], "counts": "0"}},
                r"size \[30, 20\], but the image has \[20, 30\]",
            ),
            ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "o" * 20}}, "result 0 of image 1 .* run lengths"),
            ({"score": float("nan")}, "score must be a finite number"),
            ({"score": "high"}, "score must be a finite number"),
            ({"score": 10**400}, "score must be a finite number"),
            ({"image_id": "1"}, "image_id must be a whole number"),
            ({"image_id": [1]}, "image_id must be a whole number"),
            ({"image_id": True}, "image_id must be a whole number"),
        ],
    )
    def test_results(self, change: dict[str, Any], said: str) -> None:
        results = [{**found((1, (0, 0, 2, 2)))[0], **change}]
        with pytest.raises(InputError, match=said):
            average_precision(document((1, (0, 0, 2, 2))), results, "segm")

    @pytest.mark.parametrize(
        ("shape", "said"),
        [
            ([], "neither polygons"),
            ([[]], "a polygon of 0 numbers"),
            ([[1, 1, 5, 5]], "a polygon of 4 numbers"),
            ([[1, 1, 5, 1, 5, 5, 1]], "a polygon of 7 numbers"),
            ([[0, 0, 4, 0, 4, 4], [1, 1, 5, 5]], "a polygon of 4 numbers"),
            ([[0, 0, 4, 0, 4, float("nan")]], "nan"),
            ([[0, 0, 4, 0, 4, "4"]], "'4'"),
            ([[0, 0, 4, 0, 4, 10**400]], "1000"),
            ([0, 0, 4, 0, 4, 4], "polygon"),
            ("", "''"),
            ({"size": [HEIGHT, WIDTH]}, "run lengths"),
            ({"size": [HEIGHT, WIDTH], "counts": [590]}, "cover 590 of its 600 pixels"),
            ({"size": [HEIGHT, WIDTH], "counts": [610, -10]}, "-10"),
            ({"size": [HEIGHT, WIDTH], "counts": [600.0]}, "600.0"),
            ({"size": [HEIGHT, WIDTH], "counts": ""}, "cover 0 of its 600 pixels"),
            ({"size": [HEIGHT, WIDTH], "counts": "o" * 20}, "run lengths"),
            ({"size": [HEIGHT, WIDTH], "counts": "1" * 20}, "cover 101 of its 600 pixels"),
            ({"size": [HEIGHT, WIDTH], "counts": "\x00\x7f"}, "run lengths"),
            ({"size": [HEIGHT, WIDTH], "counts": "0O"}, "run lengths"),
            ({"size": [HEIGHT, WIDTH], "counts": "\ud800"}, "run lengths"),
        ],
    )
    def test_masks_that_are_none(self, shape: Any, said: str, tmp_path: Path) -> None:
        """The evaluator finds less in them, or never comes back."""
        truth = document((1, (0, 0, 2, 2)), (2, (1, 1, 3, 3)))
        truth["annotations"][1] |= {"segmentation": shape, "id": 77}
        (tmp_path / "a.json").write_text(json.dumps(truth))
        results = [*found((1, (0, 0, 2, 2))), {"image_id": 2, "score": 0.5, "segmentation": shape}]
        for name, broken in (
            ("annotation 77 of image 2", lambda: read_annotations(tmp_path / "a.json")),
            ("annotation 77 of image 2", lambda: average_precision(truth, results[:1], "segm")),
            ("result 1 of image 2", lambda: average_precision(document((1, (0, 0, 2, 2))), results, "segm")),
        ):
            with pytest.raises(InputError, match=f"{name}.*{re.escape(said)}"):
                broken()

    @pytest.mark.parametrize(
        "box", [[1, 1, -2, 3], [1, 1, 2, -3], [1, 1, 2], [1, 1, 2, float("inf")], [1, 1, 2, 10**400], {}, None]
    )
    def test_boxes_that_are_none(self, box: Any, tmp_path: Path) -> None:
        truth = document((1, (0, 0, 2, 2)))
        truth["annotations"][0] |= {"bbox": box, "id": 77}
        (tmp_path / "a.json").write_text(json.dumps(truth))
        for broken in (lambda: read_annotations(tmp_path / "a.json"), lambda: average_precision(truth, [], "bbox")):
            with pytest.raises(InputError, match=r"annotation 77 of image 1.*\[x, y, width, height\]"):
                broken()
        results = [{"image_id": 1, "score": 0.5, "bbox": box}]
        with pytest.raises(InputError, match=r"result 0 of image 1.*\[x, y, width, height\]"):
            average_precision(document((1, (0, 0, 2, 2))), results, "bbox")

    @pytest.mark.parametrize("seed", range(3))
    def test_masks_that_the_coder_wrote_are_none_of_these(self, seed: int) -> None:
        masks = torch.rand(20, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed)) > seed / 3
        truth, results = document((1, (0, 0, 2, 2))), to_results(1, masks)
        assert len(results) == 20
        truth["annotations"][0]["segmentation"] = _as_lists(masks[0])
        assert average_precision(truth, results, "segm")["AP50"] > 0

    def test_results_that_lack_something(self) -> None:
        truth = document((1, (0, 0, 2, 2)))
        with pytest.raises(InputError, match="a segmentation"):
            average_precision(truth, [{"image_id": 1, "score": 1.0, "bbox": [0, 0, 2, 2]}], "segm")
        with pytest.raises(InputError, match=r"\[x, y, width, height\]"):
            average_precision(truth, [{"image_id": 1, "score": 1.0, "bbox": [0, 0, 2]}], "bbox")
        with pytest.raises(InputError, match=r"one is \[1, 2\]"):
            average_precision(truth, [[1, 2]], "segm")  # type: ignore[list-item]
        with pytest.raises(UnknownNameError, match="segm"):
            average_precision(truth, [], "segmentation")  # type: ignore[arg-type]

    def test_nothing_to_find(self) -> None:
        with pytest.raises(InputError, match="no object to find"):
            average_precision(document(), found((1, (0, 0, 2, 2))), "bbox")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"\xff\xd8\xff", "not JSON"),
            (b'{"images": [', "cut short"),
            (b"[]", "no lists 'images' and 'annotations'"),
            (b'{"images": [], "annotations": []}', "lists no images"),
            (b'{"images": [{"id": 1}], "annotations": []}', "file_name"),
        ],
    )
    def test_annotations(self, content: bytes, said: str, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_annotations(tmp_path / "a.json")

    def test_annotations_that_do_not_fit_their_images(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be opened"):
            read_annotations(tmp_path / "gone.json")
        path = tmp_path / "a.json"
        twice, strange, caption, other = (document((1, (0, 0, 2, 2))) for _ in range(4))
        twice["images"][1]["id"] = 1
        strange["annotations"][0]["image_id"] = 9
        del caption["annotations"][0]["bbox"]
        other["annotations"][0]["segmentation"] = {"size": [4, 4], "counts": [16]}
        crowded, unknown, textual, listed = (document((1, (0, 0, 2, 2))) for _ in range(4))
        crowded["annotations"][0]["iscrowd"] = 1
        unknown["annotations"][0]["iscrowd"] = None
        textual["annotations"][0]["image_id"] = "1"
        listed["annotations"][0]["image_id"] = [1]
        more = [
            ("no object to find", crowded),
            ("iscrowd must be 0 or 1, or absent, but one is None", unknown),
            ("image_id \\(a whole number\\)", textual),
            ("image_id \\(a whole number\\)", listed),
            ("no object to find", document()),
        ]
        cases = {"1 twice": twice, "image 9": strange, "captions": caption, r"size \[4, 4\]": other}
        for said, content in [*cases.items(), *more]:
            path.write_text(json.dumps(content))
            with pytest.raises(InputError, match=said):
                read_annotations(path)

    def test_a_results_file_that_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        path.write_text(json.dumps(found((1, (0, 0, 2, 2)))))
        assert read_results(path) == found((1, (0, 0, 2, 2)))
        path.write_text('{"images": []}')
        with pytest.raises(InputError, match="not a list of results"):
            read_results(path)

    def test_missing_images_are_counted_and_named(self, tmp_path: Path) -> None:
        (tmp_path / "2.jpg").touch()
        with pytest.raises(InputError, match=r"2 of 3 images .*: '1\.jpg', '3\.jpg'"):
            check_images(document(images=3), tmp_path)


class TestMaskCut:
    @pytest.fixture
    def photo(self, tmp_path: Path) -> dict[str, Any]:
        """A bright disc on the right of a dark, noisy picture."""
        y, x = np.mgrid[0:50, 0:73]
        pixels = np.random.default_rng(0).integers(0, 60, (50, 73, 3))
        pixels[(x - 52) ** 2 + (y - 25) ** 2 < 15**2] += 180
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
        return {"id": 4, "file_name": "a.png", "height": 50, "width": 73}

    def test_masks_are_those_of_the_projections_at_the_images_own_size(
        self, photo: dict[str, Any], tmp_path: Path
    ) -> None:
        model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
        results = maskcut_results(model, photo, tmp_path, size=60, layer=2, n=2, tau=0.2)
        seen = resize_to_grid(load_image(tmp_path / "a.png"), 6, 60)
        assert seen.size == (90, 60)
        pixels = image_to_tensor(seen, mean=model.pretrained_cfg.mean, std=model.pretrained_cfg.std)
        with torch.inference_mode():
            features, grid = patch_features(model, pixels[None], 2)
        assert results == to_results(4, upsample(maskcut(features[0], grid, 2, 0.2), (50, 73)))
        assert results and all(result["segmentation"]["size"] == [50, 73] for result in results)

    def test_features_of_another_state(self, photo: dict[str, Any], tmp_path: Path) -> None:
        model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
        found = {s: maskcut_results(model, photo, tmp_path, size=60, state=s) for s in ("projections", "tokens")}
        with torch.inference_mode():
            cfg = model.pretrained_cfg
            seen = resize_to_grid(load_image(tmp_path / "a.png"), 6, 60)
            features, grid = patch_features(
                model, image_to_tensor(seen, mean=cfg.mean, std=cfg.std)[None], -2, "tokens"
            )
        assert found["tokens"] == to_results(4, upsample(maskcut(features[0], grid), (50, 73)))
        assert found["tokens"] != found["projections"]
        with pytest.raises(UnknownNameError, match="attention"):
            maskcut_results(model, photo, tmp_path, size=60, state="attention")

    @pytest.mark.parametrize("orientation", [3, 6])
    def test_a_photograph_with_an_exif_tag_is_read_as_it_is_stored(
        self, orientation: int, photo: dict[str, Any], tmp_path: Path
    ) -> None:
        """Or upright, where the annotations list the upright size."""
        model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
        expected = maskcut_results(model, photo, tmp_path, size=48)
        with Image.open(tmp_path / "a.png") as image:
            exif = Image.Exif()
            exif[0x0112] = orientation
            image.save(tmp_path / "turned.png", exif=exif)
        turned = {**photo, "file_name": "turned.png"}
        assert load_image(tmp_path / "turned.png") != load_image(tmp_path / "a.png")
        assert maskcut_results(model, turned, tmp_path, size=48) == expected
        if orientation == 6:
            (first, *_) = maskcut_results(model, {**turned, "height": 73, "width": 50}, tmp_path, size=48)
            assert first["segmentation"]["size"] == [73, 50]

    def test_another_size_than_the_annotations_say(self, photo: dict[str, Any], tmp_path: Path) -> None:
        model = create_model("crate_nano", depth=1, dynamic_img_size=True)
        with pytest.raises(InputError, match=r"a\.png has 50 x 73 .* say 50 x 74"):
            maskcut_results(model, {**photo, "width": 74}, tmp_path, size=24)

    def test_damaged_weights(self, photo: dict[str, Any], tmp_path: Path) -> None:
        model = create_model("crate_nano", depth=1, dynamic_img_size=True).requires_grad_(False)
        model.cls_token.fill_(torch.nan)
        model.pos_embed.fill_(torch.nan)
        with pytest.raises(WeightsError, match="not finite"):
            maskcut_results(model, photo, tmp_path, size=24, layer=0)
