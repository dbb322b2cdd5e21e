"""Readings as JSON for a page: quantised, and so much of them as a number of bytes holds.

A row of attention is softmax(q k^T / sqrt(head_dim)), or q k^T, so that queries and keys hold all rows in a fraction of
the room: 16 bits an entry if that fits, else 8. The maps of [CLS] have 16.
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

    What [CLS] attends to is always there. What patches attend to takes most of the room: if 8 bits an entry do not fit
    either, layers are taken from the one that each model starts with outward, as long as they do.

    Args:
        readings: One for each model.
        room: Characters of JSON, for all of them.
    """
    for bits in (16, 8):
        packed = _fill(readings, room, bits)
        if all(None not in one["rows"] for one in packed):
            break
    return packed


def _fill(readings: Sequence[Reading], room: int, bits: int) -> list[Packed]:
    """As many layers as there is room for."""
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
    """Everything but what patches attend to."""
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
        "start": {"layer": layer, "head": heads if head is None else head},  # after the heads comes their mean
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
    """Queries and keys of a layer; without keys where they are the queries."""
    packed: Packed = {"queries": _pack_tokens(reading.queries[layer], bits)}
    if reading.plain[layer]:
        packed["plain"] = True
    if reading.keys is not reading.queries:
        packed["keys"] = _pack_tokens(reading.keys[layer], bits)
    return packed


def _pack_tokens(tokens: Tensor, bits: int) -> Packed:
    """(heads, tokens, head_dim) as steps of so many bits, and the length of a step for each token of each head."""
    scales = tokens.abs().amax(dim=-1) / (2 ** (bits - 1) - 1)
    steps = (tokens / scales.clamp_min(1e-38)[..., None]).round().numpy().astype(f"<i{bits // 8}")
    return {"steps": _text(steps.tobytes()), "scales": _floats(scales)}


def _floats(values: Tensor) -> str:
    return _text(values.float().contiguous().numpy().astype("<f4").tobytes())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _length(packed: Packed) -> int:
    return len(json.dumps(packed))
