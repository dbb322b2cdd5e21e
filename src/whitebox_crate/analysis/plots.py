"""Draws the two curves of the papers' layer-wise figures: compression and sparsity by layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._files import write_whole
from ..errors import InputError, require
from .batches import LayerState
from .layerwise import LayerwiseReport, Quantity

_PANELS: tuple[tuple[Quantity, LayerState, str], ...] = (
    ("subspace_coding_rate", "compressed", "Rc after attention, nats a token"),
    ("l0", "output", "share not zero after coding"),
)


def plot_layerwise(
    reports: LayerwiseReport | Mapping[str, LayerwiseReport], path: str | os.PathLike[str] | None = None
) -> Any:
    """Draws Rc after attention and l0 of the output by layer, as in the layer-wise figures of arXiv 2306.01129.

    Lines are means over images; bands are one standard deviation.

    Args:
        reports: One report, or several by their name in the legend.
        path: File to write; the suffix gives the format. None writes no file.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        InputError: If there is no report.
        UnknownNameError: If a report lacks one of the two quantities.
        MissingExtraError: If matplotlib is not installed.
        OutputError: If the file cannot be written.
    """
    named = {"": reports} if isinstance(reports, LayerwiseReport) else dict(reports)
    if not named:
        raise InputError("there is no report to draw; make one by layerwise_analysis")
    figure = require("matplotlib.figure", extra="plots").Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (quantity, state, label) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        for name, report in named.items():
            series = report[quantity, state]
            axes.plot(report.layers, series.mean, marker="o", label=name or report.model)
            if series.std is not None:
                low, high = zip(*((m - s, m + s) for m, s in zip(series.mean, series.std, strict=True)), strict=True)
                axes.fill_between(report.layers, low, high, alpha=0.2)
        axes.set(xlabel="layer", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].legend()
    if path is not None:
        write_whole(Path(path), figure.savefig)
    return figure
