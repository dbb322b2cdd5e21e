"""The paper's numbers from the records of all images: by layer, by class, and with one head for all (B.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._indices import resolve_index
from .._tables import markdown_table
from ..errors import InputError, UnknownNameError
from .attention import Record


@dataclass(frozen=True)
class LayerMeans:
    """mIoU of each layer over a set of images; see `layer_means`.

    Attributes:
        images: Number of images with an object.
        best_head: By rule and layer: the best head of each class of an image (arXiv 2308.16271, equations 13 and 14).
        mean_head: By rule and layer: the mean over heads instead of the best head.
    """

    images: int
    best_head: dict[str, list[float]]
    mean_head: dict[str, list[float]]


def layer_means(records: Iterable[tuple[str, Record]]) -> LayerMeans:
    """Averages the records of `score_image`: over the classes of an image, then over images.

    Args:
        records: (name of the image, its record), read one at a time. Images without an object are left out.

    Raises:
        InputError: If no image has an object, or a record is not like the others.
    """
    sums = _Sums.of(records)
    best, mean = (
        {rule: (total / sums.images).tolist() for rule, total in totals.items()}
        for totals in (sums.best_head, sums.mean_head)
    )
    return LayerMeans(sums.images, best, mean)


def summarize(
    records: Iterable[tuple[str, Record]], *, layer: int, by_class: bool = True, layers: Sequence[int] | None = None
) -> dict[str, Any]:
    """The paper's numbers from the records of all images, read one at a time.

    Args:
        records: (name of the image, its record). Images without classes are counted separately.
        layer: The layer of the table by class: one of `layers`, or negative from their end.
        layers: The numbers of the records' layers, if these are not all layers of the model.
        by_class: Whether labels mean the same in all images, so that averages by class make sense.

    Returns:
        `images`, `images_without_objects`; `layer`; `layers`; and by rule:

        - `miou_by_layer`: equations 13 and 14 for each of `layers`, averaged over images. `miou` is the value for
          `layer`.
        - `by_class`: for each class the number of `images` that have it, and its `iou`: the mean over these images of
          the best head of `layer`. `class_mean` is the mean over classes.
        - `one_head`: the same mean with one head for all images. Images count from 0. The head that is best on the
          `even` images is scored on the `odd` ones, and the other way round. `halves` has both; `miou` is the mean over
          all images. None if there are fewer than two images.

    Raises:
        InputError: If no image has an object, a record is not like the others, or `layers` are not as many as theirs.
        UnknownNameError: If there is no such layer.
    """
    sums = _Sums.of(records)
    images, depth = sums.images, len(next(iter(sums.best_head.values())))
    called = list(range(depth)) if layers is None else list(layers)
    if len(called) != depth:
        raise InputError(f"the records have {depth} layers, but {len(called)} are named: {called}; name each layer")
    row = _row_of(layer, called)
    rules: dict[str, Any] = {}
    for rule, total in sums.best_head.items():
        rules[rule] = {
            "miou": float(total[row] / images),
            "miou_by_layer": (total / images).tolist(),
            "one_head": _one_head(sums.halves[rule], images, called),
        }
        if by_class:
            means = {name: float(sums.classes[name][rule][row] / count) for name, count in sums.counts.items()}
            rules[rule]["class_mean"] = sum(means.values()) / len(means)
            rules[rule]["by_class"] = {
                name: {"images": sums.counts[name], "iou": means[name]} for name in sorted(means, key=_numbers_first)
            }
    counts = {"images": images, "images_without_objects": sums.without}
    return {**counts, "layer": called[row], "layers": called, "rules": rules}


def summary_tables(summary: Mapping[str, Any]) -> str:
    """The numbers of `summarize` in Markdown, IoU in percent."""
    rules = summary["rules"]
    first = next(iter(rules.values()))
    layers = [f"layer {index}" for index in summary["layers"]]
    tables = [
        markdown_table(
            ["mIoU, best head of each class and image", *layers],
            [[rule, *map(_percent, of["miou_by_layer"])] for rule, of in rules.items()],
        ),
        markdown_table(
            ["mIoU, one head for all images", "both halves", "layer, head of each"],
            [
                [rule, _percent(of["one_head"]["miou"]), "; ".join(map(_half, of["one_head"]["halves"]))]
                for rule, of in rules.items()
                if of["one_head"]
            ],
        ),
    ]
    if "by_class" in first:
        rows = [
            [name, of["images"], *(_percent(rules[rule]["by_class"][name]["iou"]) for rule in rules)]
            for name, of in first["by_class"].items()
        ]
        rows.append(["mean of classes", summary["images"], *(_percent(of["class_mean"]) for of in rules.values())])
        tables.append(markdown_table([f"Class, layer {summary['layer']}", "images", *rules], rows))
    return "\n\n".join(tables) + "\n"


@dataclass
class _Sums:
    """Sums for the means, by rule, over the images that have an object.

    Attributes:
        best_head: (layers,): the best head of each class, averaged over the classes of an image.
        mean_head: (layers,): likewise, the mean of heads.
        halves: (2, layers, heads): each head, averaged over the classes of an image, for even and for odd images.
        classes: By class and rule, (layers,): the best head.
        counts: By class: number of images that have it.
    """

    images: int = 0
    without: int = 0
    best_head: dict[str, Any] = field(default_factory=dict)
    mean_head: dict[str, Any] = field(default_factory=dict)
    halves: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[tuple[str, Record]]) -> _Sums:
        sums = cls()
        for names, ious in _ious_of(records):
            if names:
                sums._add(names, ious)
            else:
                sums.without += 1
        if not sums.images:
            raise InputError(
                f"{sums.without} images were scored and none has an object; check the masks, and the label of void "
                "pixels"
            )
        return sums

    def _add(self, names: list[str], ious: Mapping[str, Any]) -> None:
        for rule, of in ious.items():
            best = of.max(axis=2)
            self.best_head[rule] = self.best_head.get(rule, 0.0) + best.mean(axis=0)
            self.mean_head[rule] = self.mean_head.get(rule, 0.0) + of.mean(axis=2).mean(axis=0)
            self.halves.setdefault(rule, np.zeros((2, *of.shape[1:])))[self.images % 2] += of.mean(axis=0)
            for name, of_class in zip(names, best, strict=True):
                by_rule = self.classes.setdefault(name, {})
                by_rule[rule] = by_rule.get(rule, 0.0) + of_class
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + 1
        self.images += 1


def _ious_of(records: Iterable[tuple[str, Record]]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The classes of each record, and by rule the IoUs (classes, layers, heads). Reads one record at a time.

    Raises:
        InputError: If a record has no rules, or differs from earlier records in rules, layers or heads.
    """
    known: dict[str, tuple[int, ...]] = {}
    for image, record in records:
        rules = next(iter(record.values()), {})
        try:
            ious = {rule: np.array([by_rule[rule] for by_rule in record.values()], dtype=float) for rule in rules}
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"the record of {image} has not one shape and the same rules for all classes") from error
        if record:
            found = {rule: of.shape[1:] for rule, of in ious.items()}
            if not found or any(len(shape) != 2 or 0 in shape for shape in found.values()):
                raise InputError(f"the record of {image} has no rules, or no layers and heads: it has {found}")
            known = known or found
            if found != known or any(set(by_rule) != set(known) for by_rule in record.values()):
                raise InputError(
                    f"the record of {image} has the rules and (layers, heads) {found}, but earlier ones have {known}; "
                    "combine only records of one model with the same rules"
                )
        yield list(record), ious


def _row_of(layer: int, called: Sequence[int]) -> int:
    if layer >= 0 and layer not in called:
        raise UnknownNameError(f"no layer {layer}: the records have the layers {', '.join(map(str, called))}")
    return called.index(layer) if layer >= 0 else resolve_index("layer", layer, len(called))


def _one_head(halves: Any, images: int, called: Sequence[int]) -> dict[str, Any] | None:
    """The head that is best on one half of the images, scored on the other, both ways."""
    if images < 2:
        return None
    numbers = ((images + 1) // 2, images // 2)
    found, total = [], 0.0
    for choosing, names in enumerate((("even", "odd"), ("odd", "even"))):
        layer, head = divmod(int(halves[choosing].argmax()), halves.shape[2])
        score, number = halves[1 - choosing][layer, head], numbers[1 - choosing]
        total += score
        where = {"chosen_on": names[0], "scored_on": names[1], "layer": called[layer], "head": head}
        found.append({**where, "miou": float(score / number)})
    return {"miou": float(total / images), "halves": found}


def _half(half: Mapping[str, Any]) -> str:
    return (
        f"{half['layer']}, {half['head']} (chosen on {half['chosen_on']} images, {_percent(half['miou'])} on "
        f"{half['scored_on']})"
    )


def _numbers_first(name: str) -> tuple[bool, int, str]:
    """Sorts labels as numbers, before names."""
    return (False, int(name), "") if name.isdecimal() else (True, 0, name)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
