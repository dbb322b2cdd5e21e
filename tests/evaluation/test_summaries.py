"""The paper's numbers from records: equations 13 and 14, one head for all images, and means over heads."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from whitebox_crate import InputError, UnknownNameError
from whitebox_crate.evaluation import layer_means, score_maps, summarize, summary_tables
from whitebox_crate.segmentation import attention_masks, best_head_iou, mean_iou, upsample


def record(*classes: str, seed: int) -> dict[str, Any]:
    """IoUs of 2 layers of 3 heads."""
    generator = torch.Generator().manual_seed(seed)
    return {name: {"mass": torch.rand(2, 3, generator=generator).tolist()} for name in classes}


class TestSummary:
    def test_equations_13_and_14(self) -> None:
        """The records of random masks, against `best_head_iou` and `mean_iou` of the same masks."""
        generator = torch.Generator().manual_seed(3)
        ious, images, classes, records = [], [], [], []
        for index in range(5):
            maps = torch.rand(2, 3, 4, 4, generator=generator)
            labels = torch.randint(0, 4, (16, 16), generator=generator)
            labels[labels == index % 4] = 0
            scores = score_maps(maps, labels, rules=["mass"])
            records.append((f"{index}", {str(k): {r: v.tolist() for r, v in of.items()} for k, of in scores.items()}))
            masks = upsample(attention_masks(maps), (16, 16))
            for label in scores:
                ious.append(best_head_iou(masks, labels == label)[0])
                images.append(index)
                classes.append(label)
        best = torch.stack(ious, dim=1)  # (layers, pairs)
        assert len(set(images)) < len(images) < 15  # else the grouping would not matter
        found = summarize(records, layer=-1)
        rule = found["rules"]["mass"]
        expected = [mean_iou(of, torch.tensor(images)) for of in best]
        assert rule["miou_by_layer"] == pytest.approx(expected)
        assert rule["miou"] == pytest.approx(expected[1])
        assert (found["layer"], found["images"], found["images_without_objects"]) == (1, 5, 0)
        assert rule["class_mean"] == pytest.approx(mean_iou(best[1], torch.tensor(classes)))
        assert {name: of["images"] for name, of in rule["by_class"].items()} == {
            str(label): classes.count(label) for label in (1, 2, 3)
        }

    def test_one_head_is_scored_where_it_was_not_chosen(self) -> None:
        def one(ious: list[list[float]]) -> dict[str, Any]:
            return {"cat": {"mean": ious}}

        records = [
            ("a", one([[0.1, 0.9], [0.2, 0.3]])),  # even: head 1 of layer 0
            ("b", one([[0.2, 0.4], [0.8, 0.0]])),  # odd: head 0 of layer 1
            ("nothing", {}),
            ("c", one([[0.3, 0.7], [0.6, 0.3]])),  # even, for what has no object does not count
        ]
        found = summarize(records, layer=0)
        assert found["images_without_objects"] == 1
        halves = found["rules"]["mean"]["one_head"]["halves"]
        assert halves[0] == {"chosen_on": "even", "scored_on": "odd", "layer": 0, "head": 1, "miou": 0.4}
        assert halves[1] == {"chosen_on": "odd", "scored_on": "even", "layer": 1, "head": 0, "miou": 0.4}
        assert found["rules"]["mean"]["one_head"]["miou"] == pytest.approx((0.4 + 0.2 + 0.6) / 3)
        assert summarize(records[:1], layer=0)["rules"]["mean"]["one_head"] is None

    def test_classes_of_an_image_weigh_as_one_image(self) -> None:
        two, one = {"cat": {"mass": [[0.2]]}, "dog": {"mass": [[0.4]]}}, {"cat": {"mass": [[0.9]]}}
        rule = summarize([("a", two), ("b", one)], layer=0)["rules"]["mass"]
        assert rule["miou"] == pytest.approx((0.3 + 0.9) / 2)
        assert rule["by_class"] == {
            "cat": {"images": 2, "iou": pytest.approx(0.55)},
            "dog": {"images": 1, "iou": pytest.approx(0.4)},
        }

    def test_numbers_of_objects_are_no_classes(self) -> None:
        found = summarize([("a", record("1", "2", seed=0))], layer=0, by_class=False)
        assert set(found["rules"]["mass"]) == {"miou", "miou_by_layer", "one_head"}
        assert "Class" not in summary_tables(found)

    def test_labels_without_names_are_in_the_order_of_numbers_and_before_names(self) -> None:
        found = summarize([("a", record("10", "cat", "9", "1", seed=0))], layer=0)
        assert list(found["rules"]["mass"]["by_class"]) == ["1", "9", "10", "cat"]

    @pytest.mark.parametrize(
        ("other", "says"),
        [
            ({"cat": {"mean": [[0.1] * 3] * 2}}, "of b has the rules"),
            ({"cat": {"mass": [[0.1] * 3] * 2, "mean": [[0.1] * 3] * 2}}, "of b has the rules"),
            ({"cat": {"mass": [[0.1] * 3] * 2}, "dog": {"mass": [[0.1] * 3] * 2, "mean": [[0.1] * 3] * 2}}, "of b has"),
            ({"cat": {"mass": [[0.1] * 2] * 2}}, r"\(2, 2\)}, but earlier ones have {'mass': \(2, 3\)}"),
            ({"cat": {"mass": [[0.1] * 3] * 2}, "dog": {"mass": [[0.1] * 2]}}, "of b has not one shape"),
            ({"cat": {"mass": [[0.1] * 3] * 2}, "dog": {}}, "of b has not one shape and the same rules"),
            ({"cat": {"mass": [[0.1], [0.1, 0.2]]}}, "of b has not one shape"),
            ({"cat": {"mass": 0.5}}, "no layers and heads"),
            ({"cat": {}}, "of b has no rules"),
        ],
    )
    def test_records_that_do_not_go_together(self, other: Any, says: str) -> None:
        for average in (partial(summarize, layer=0), layer_means):
            with pytest.raises(InputError, match=says):
                average([("a", record("cat", seed=0)), ("none", {}), ("b", other)])

    def test_nothing_to_average(self) -> None:
        with pytest.raises(InputError, match="2 images were scored and none has an object"):
            summarize([("a", {}), ("b", {})], layer=0)
        with pytest.raises(UnknownNameError):
            summarize([("a", record("cat", seed=0))], layer=2)

    def test_the_tables_show_all_of_it(self) -> None:
        records = [(str(seed), record("cat", "dog", seed=seed)) for seed in range(3)]
        found = summarize(records, layer=1)
        text = summary_tables(found)
        rule = found["rules"]["mass"]
        shown = [*rule["miou_by_layer"], rule["one_head"]["miou"], rule["class_mean"]]
        shown += [of["iou"] for of in rule["by_class"].values()] + [of["miou"] for of in rule["one_head"]["halves"]]
        for value in shown:
            assert f" {100 * value:.1f} " in text
        assert "| Class, layer 1 | images | mass |" in text


def test_means_are_over_classes_then_images_as_computed_by_hand() -> None:
    records = [
        ("a", {"1": {"mass": [[0.2, 0.4], [0.6, 0.0]]}, "2": {"mass": [[0.8, 0.6], [0.2, 0.2]]}}),
        ("b", {}),
        ("c", {"1": {"mass": [[0.1, 0.3], [1.0, 0.5]]}}),
    ]
    means = layer_means(iter(records))
    assert means.images == 2
    assert means.best_head["mass"] == pytest.approx([((0.4 + 0.8) / 2 + 0.3) / 2, ((0.6 + 0.2) / 2 + 1.0) / 2])
    assert means.mean_head["mass"] == pytest.approx([((0.3 + 0.7) / 2 + 0.2) / 2, ((0.3 + 0.2) / 2 + 0.75) / 2])
    assert means.best_head["mass"] == summarize(records, layer=0)["rules"]["mass"]["miou_by_layer"]


def test_records_without_any_object_are_refused() -> None:
    with pytest.raises(InputError, match="1 images were scored and none has an object"):
        layer_means([("a", {})])
