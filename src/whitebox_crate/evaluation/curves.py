"""Curves: how segmentation by attention changes by layer, by checkpoint, and under noise on the pixels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from .._files import write_json, write_whole
from .._plan import layers_with
from .._tables import markdown_table
from ..errors import require
from ..segmentation.attention import MaskRule
from ..segmentation.states import resolve_layer
from .attention import row_of
from .attention_runs import measure_attention
from .folders import LabelledImages
from .noise import Noise, check_noise
from .processes import rank_and_count
from .runs import Run
from .summaries import LayerMeans, layer_means

# A label, and for each x the numbers of each rule: {"x", "images", "best_head", "mean_head"}.
Curve = dict[str, Any]
NamedModel = tuple[str, nn.Module]

KINDS = {"best_head": "best head", "mean_head": "mean of heads"}


@dataclass
class Curves:
    """Measures one model after the other on one data set. Each has its own records, so that a run can resume.

    Args:
        run: Where records and results go.
        data: The images; see `read_voc` and `read_folder`.
        size: See `score_image`.
        keep: See `score_image`.

    Attributes:
        broken: The skipped images, and why.
    """

    run: Run
    data: LabelledImages
    size: int | None = None
    keep: float = 0.6
    broken: dict[str, str] = field(default_factory=dict)

    def by_layer(self, models: Iterable[NamedModel]) -> list[Curve]:
        """A curve for each (name, model), by layer. For errors see `evaluate_attention`."""
        curves = []
        for number, (name, model) in enumerate(models):
            means = self._measure(model, name, f"{number}-{_as_file_name(name)}")
            points = [_point(layer, means, row) for row, layer in enumerate(layers_with(model, "attention"))]
            curves.append({"label": name, "points": points})
        return curves

    def by_checkpoint(
        self, checkpoints: Iterable[tuple[float, Path, nn.Module]], label: str, layer: int | None = None
    ) -> list[Curve]:
        """One curve over checkpoints, given as (number, path, model).

        Args:
            checkpoints: The models; they may come one at a time.
            label: Name of the curve.
            layer: The layer; `default_layer` of each model if None.
        """
        points, shown = [], 0
        for number, path, model in checkpoints:
            shown, row = resolve_layer(model, layer), row_of(model, layer)
            points.append(_point(number, self._measure(model, str(path), _as_file_name(path.name)), row))
        return [{"label": label, "layer": shown, "points": points}]

    def by_noise(
        self,
        models: Iterable[NamedModel],
        strengths: Sequence[float],
        shares: Sequence[float],
        seed: int = 0,
        layer: int | None = None,
    ) -> list[Curve]:
        """A curve for each (name, model) and share of the pixels, by the strength of the noise.

        Args:
            models: The models; they may come one at a time.
            strengths: See `add_noise`.
            shares: See `add_noise`.
            seed: Seed of the noise.
            layer: The layer; `default_layer` of each model if None.
        """
        for strength, share in product(strengths, shares):
            check_noise(strength, share)
        curves = []
        for number, (name, model) in enumerate(models):
            shown, row = resolve_layer(model, layer), row_of(model, layer)
            for share in shares:
                points = []
                for strength in strengths:
                    part = f"{number}-{_as_file_name(name)}-{share:g}-{strength:g}"
                    means = self._measure(model, name, part, Noise(strength, share, seed))
                    points.append(_point(strength, means, row))
                curves.append({"label": f"{name}, {share:.0%} of pixels", "layer": shown, "points": points})
        return curves

    def write(self, curves: Sequence[Curve], x_label: str, rule: MaskRule = "mean") -> tuple[Path, str] | None:
        """Writes curves.json with all rules, and curves.png with one rule.

        Args:
            curves: The result of one of the methods above.
            x_label: Label of x.
            rule: The rule to draw.

        Returns:
            The JSON file, and a table of the rule's curves in Markdown; None in processes other than the main one.

        Raises:
            OutputError: If a file cannot be written.
            MissingExtraError: If matplotlib is not installed.
        """
        if rank_and_count()[0] != 0:
            return None
        about = {"x": x_label, **self.run.about, "keep": self.keep, "curves": curves, "broken": self.broken}
        target = self.run.folder / "curves.json"
        write_json(target, about)
        write_whole(target.with_suffix(".png"), partial(_plot(curves, x_label, rule).savefig, dpi=120))
        return target, "\n".join(_table(curve, x_label, rule) for curve in curves)

    def _measure(self, model: nn.Module, name: str, part: str, noise: Noise | None = None) -> LayerMeans:
        records = measure_attention(
            self.run, model, self.data, name=name, size=self.size, keep=self.keep, noise=noise, part=part
        )
        self.broken.update(records.broken)
        return layer_means(records.items())


def _point(x: float, means: LayerMeans, row: int) -> dict[str, Any]:
    values = {kind: {rule: of[row] for rule, of in getattr(means, kind).items()} for kind in KINDS}
    return {"x": x, "images": means.images, **values}


def _as_file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "model"


def _plot(curves: Sequence[Curve], x_label: str, rule: str) -> Any:
    figure = require("matplotlib.figure", extra="plots").Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for number, curve in enumerate(curves):
        xs = [point["x"] for point in curve["points"]]
        for (kind, what), line in zip(KINDS.items(), ("-o", "--"), strict=True):
            ys = [100 * point[kind][rule] for point in curve["points"]]
            axes.plot(xs, ys, line, color=f"C{number}", markersize=4, label=f"{curve['label']}, {what}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(f"mIoU in % ({rule})")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _table(curve: Curve, x_label: str, rule: str) -> str:
    points = curve["points"]
    title = f"{curve['label']}, {points[0]['images']} images, mIoU in % ({rule})"
    rows = [[what, *(f"{100 * point[kind][rule]:.1f}" for point in points)] for kind, what in KINDS.items()]
    return f"{title}\n\n{markdown_table([x_label, *(format(point['x'], 'g') for point in points)], rows)}\n"
