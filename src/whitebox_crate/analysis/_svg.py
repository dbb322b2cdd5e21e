"""Draws a line chart as inline SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ._html import safe
from .layerwise import Series


def line_chart(
    title: str, unit: str, layers: Sequence[int], lines: Mapping[str, Series], caption: str
) -> Iterator[str]:
    """Means over layers as lines, standard deviations as bands: a figure with an inline SVG.

    Args:
        title: Text above the chart.
        unit: Unit of the vertical axis.
        layers: Values of the horizontal axis.
        lines: Two lines by name; the first is dashed.
        caption: Text below the chart.
    """
    width, height, left, right, top, bottom = 440, 280, 48, 12, 46, 40
    bands = {name: s.std or (0.0,) * len(s.mean) for name, s in lines.items()}
    largest = max(m + d for name, s in lines.items() for m, d in zip(s.mean, bands[name], strict=True))
    step = tick(largest)
    highest = step * max(1, math.ceil(largest / step - 1e-9))

    def x(row: int) -> float:
        return left + (width - left - right) * (row + 0.5) / len(layers)

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * max(0.0, value) / highest

    told = "; ".join(f"{name} {', '.join(f'{m:.3g}' for m in s.mean)}" for name, s in lines.items())
    label = f"{title}, {unit}, of layers {layers[0]} to {layers[-1]}: {told}"
    yield f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{safe(label)}" font-size="14">'
    yield f'<text x="0" y="14" font-weight="600">{safe(title)}, {safe(unit)}</text>'
    for number in range(round(highest / step) + 1):
        at = y(number * step)
        yield f'<line x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#d5dade"/>'
        yield f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{number * step:.10g}</text>'
    for row in range(0, len(layers), math.ceil(len(layers) / 12)):
        yield f'<text x="{x(row):.1f}" y="{height - 22}" text-anchor="middle">{layers[row]}</text>'
    yield f'<text x="{(left + width - right) / 2}" y="{height - 4}" text-anchor="middle">layer</text>'
    for place, (name, series) in enumerate(lines.items()):
        colour, dash = (("#5b6670", ' stroke-dasharray="6 4"'), ("#b3321b", ""))[place % 2]
        low = [f"{x(row):.1f},{y(m - bands[name][row]):.1f}" for row, m in enumerate(series.mean)]
        high = [f"{x(row):.1f},{y(m + bands[name][row]):.1f}" for row, m in enumerate(series.mean)]
        yield f'<polygon points="{" ".join(low + high[::-1])}" fill="{colour}" opacity="0.15"/>'
        points = [f"{x(row):.1f},{y(m):.1f}" for row, m in enumerate(series.mean)]
        yield f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        for point in points:
            across, down = point.split(",")
            yield f'<circle cx="{across}" cy="{down}" r="3" fill="{colour}"/>'
        start = left + place * 170
        yield f'<line x1="{start}" x2="{start + 28}" y1="30" y2="30" stroke="{colour}" stroke-width="2"{dash}/>'
        yield f'<text x="{start + 34}" y="34">{safe(name)}</text>'
    yield f"</svg><figcaption>{safe(caption)}</figcaption></figure>"


def tick(largest: float) -> float:
    """The smallest of 1, 2, 5, 10, 20 ... (or 0.5, 0.2 ...) such that at most five steps reach the largest value."""
    if largest <= 0:
        return 1.0
    decade: float = 10.0 ** math.floor(math.log10(largest / 5))
    return next(decade * times for times in (1, 2, 5, 10, 20) if decade * times * 5 >= largest)
