"""Packs readings as JSON for a page: quantised, and as many as fit into a number of bytes.

A row of attention is softmax(q k^T / sqrt(head_dim)), or q k^T. So queries and keys hold all rows in a fraction of the
space: 16 bits per entry if that fits, else 8. The maps of [CLS] have 16 bits.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .readings import QUANTITIES, Reading

Packed: TypeAlias = dict[str, Any]


def pack_readings(readings: Sequence[Reading], room: int) -> list[Packed]:
    """Readings of one photograph for the page.

    The attention of [CLS] is always included. The attention of patches takes most of the space. If it does not fit with
    8 bits per entry, layers are added from each model's start layer outward while they fit.

    Args:
        readings: One for each model.
        room: Characters of JSON for all readings.
    """
    for bits in (16, 8):
        packed = _fill(readings, room, bits)
        if all(None not in one["rows"] for one in packed):
            break
    return packed


def _fill(readings: Sequence[Reading], room: int, bits: int) -> list[Packed]:
    """As many layers as fit."""
    packed = [_pack(reading) | {"bits": bits} for reading in readings]
    room -= sum(map(_length, packed))
    layers = [(which, layer) for which, reading in enumerate(readings) for layer in range(len(reading.queries))]
    for which, layer in sorted(layers, key=lambda pair: abs(pair[1] - readings[pair[0]].start[0])):
        rows = _pack_rows(readings[which], layer, bits)
        room -= _length(rows)
        if room < 0:
            break
        packed[which]["rows"][layer] = rows
    return packed


def _pack(reading: Reading) -> Packed:
    """Everything except the attention of patches."""
    layers, heads, _, width = reading.queries.shape
    peaks = reading.cls_maps.amax(dim=(-2, -1))
    steps = (reading.cls_maps / peaks[..., None, None].clamp_min(1e-38) * 65535).round()
    layer, head = reading.start
    return {
        "model": reading.model,
        "grid": list(reading.grid),
        "prefix": reading.prefix,
        "layers": layers,
        "heads": heads,
        "width": width,
        "start": {"layer": layer, "head": heads if head is None else head},  # the mean comes after the heads
        "cls": {"steps": _text(steps.to(torch.int32).numpy().astype("<u2").tobytes()), "peaks": _floats(peaks)},
        "colours": _text((reading.colours * 255).round().byte().movedim(1, -1).contiguous().numpy().tobytes()),
        "measures": {
            quantity: {state: list(series.mean) for state, series in reading.measures.series[quantity].items()}
            for quantity in QUANTITIES
        },
        "names": reading.names,
        "rows": [None] * layers,
    }


def _pack_rows(reading: Reading, layer: int, bits: int) -> Packed:
    """Queries and keys of a layer; without keys if they equal the queries."""
    packed: Packed = {"queries": _pack_tokens(reading.queries[layer], bits)}
    if reading.plain[layer]:
        packed["plain"] = True
    if reading.keys is not reading.queries:
        packed["keys"] = _pack_tokens(reading.keys[layer], bits)
    return packed


def _pack_tokens(tokens: Tensor, bits: int) -> Packed:
    """(heads, tokens, head_dim) quantised to so many bits, and the step length for each token of each head."""
    scales = tokens.abs().amax(dim=-1) / (2 ** (bits - 1) - 1)
    steps = (tokens / scales.clamp_min(1e-38)[..., None]).round().numpy().astype(f"<i{bits // 8}")
    return {"steps": _text(steps.tobytes()), "scales": _floats(scales)}


def _floats(values: Tensor) -> str:
    return _text(values.float().contiguous().numpy().astype("<f4").tobytes())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _length(packed: Packed) -> int:
    return len(json.dumps(packed))
