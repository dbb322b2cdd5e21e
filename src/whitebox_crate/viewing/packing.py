"""Readings as JSON for a page: quantised, and so much of them as a number of bytes holds.

A row of attention is softmax(q k^T / sqrt(head_dim)), so that queries and keys, 8 bits an entry, hold all rows in a
fraction of the room. The maps of [CLS], from which masks are cut, have 16 bits.
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

    What [CLS] attends to is always there. What patches attend to takes most of the room: layers are taken from the one
    that each model starts with outward, as long as they fit.

    Args:
        readings: One for each model.
        room: Characters of JSON, for all of them.
    """
    packed = [_pack(reading) for reading in readings]
    room -= sum(map(_length, packed))
    layers = [(which, layer) for which, reading in enumerate(readings) for layer in range(len(reading.queries))]
    for which, layer in sorted(layers, key=lambda pair: abs(pair[1] - readings[pair[0]].start[0])):
        rows = _pack_rows(readings[which], layer)
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
        "names": list(reading.names.items()),
        "rows": [None] * layers,
    }


def _pack_rows(reading: Reading, layer: int) -> Packed:
    """Queries and keys of a layer; without keys where they are the queries."""
    packed = {"queries": _pack_tokens(reading.queries[layer])}
    if reading.keys is not reading.queries:
        packed["keys"] = _pack_tokens(reading.keys[layer])
    return packed


def _pack_tokens(tokens: Tensor) -> Packed:
    """(heads, tokens, head_dim) as 8-bit steps, and the length of a step for each token of each head."""
    scales = tokens.abs().amax(dim=-1) / 127
    steps = (tokens / scales.clamp_min(1e-38)[..., None]).round().to(torch.int8)
    return {"steps": _text(steps.numpy().tobytes()), "scales": _floats(scales)}


def _floats(values: Tensor) -> str:
    return _text(values.float().contiguous().numpy().astype("<f4").tobytes())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _length(packed: Packed) -> int:
    return len(json.dumps(packed))
