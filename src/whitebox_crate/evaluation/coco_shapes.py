"""COCO's boxes, polygons and run lengths: what is none is named; the evaluator finds less in it, or never ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError, is_finite

# How run lengths are written as text (maskApi.c of pycocotools): 6 bits a character, of which 5 are of the number.
_FIRST, _BITS, _MORE, _SIGN = ord("0"), 5, 0x20, 0x10
_LONGEST = 13  # characters of a number of 64 bits


def check_box(box: object, whose: str) -> None:
    """Refuses what is no [x, y, width, height], in pixels.

    Args:
        box: What stands as "bbox".
        whose: What the message calls that which has it.

    Raises:
        InputError: If it is none, a number is not finite, or a side negative.
    """
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box)) and min(box[2:]) >= 0):
        raise InputError(
            f"{whose} has the bbox {brief(box)}; it is [x, y, width, height], finite, and no side is negative: repair "
            "it"
        )


def check_mask(mask: object, size: Sequence[int], whose: str) -> None:
    """Refuses what is neither polygons nor run lengths of a whole image.

    Args:
        mask: What stands as "segmentation".
        size: Height and width of the image, pixels.
        whose: What the message calls that which has it.

    Raises:
        InputError: If there is no polygon, or one of fewer than three points; or run lengths are of another size than
            the image, cannot be read, or cover not all of it.
    """
    if isinstance(mask, Mapping):
        _check_runs(mask, size, whose)
    elif isinstance(mask, list) and mask:
        for polygon in mask:
            _check_polygon(polygon, whose)
    else:
        raise InputError(f"{whose} has no polygon and no run lengths, but the segmentation {brief(mask)}; repair it")


def _check_polygon(polygon: object, whose: str) -> None:
    if not isinstance(polygon, list):
        raise InputError(f"{whose} has {brief(polygon)} where a polygon is a list of its own: repair it")
    if len(polygon) < 6 or len(polygon) % 2:
        raise InputError(
            f"{whose} has a polygon of {len(polygon)} numbers, {brief(polygon)}; it is x, y of three points or more: "
            "repair it"
        )
    if strange := [value for value in polygon if not is_finite(value)]:
        raise InputError(f"{whose} has a polygon with {brief(strange[0])} among its numbers: repair it")


def _check_runs(mask: Mapping[str, Any], size: Sequence[int], whose: str) -> None:
    if mask.get("size") != list(size):
        raise InputError(
            f"{whose} has run lengths of the size {mask.get('size')}, but the image has {list(size)} (height, width); "
            "they are of another image or of a resized one"
        )
    counts = mask.get("counts")
    runs = counts if isinstance(counts, list) else _read_runs(counts)
    if runs is None or not all(type(length) is int and length >= 0 for length in runs):
        raise InputError(f"{whose} has run lengths that cannot be read, {brief(counts)}: make them again")
    if sum(runs) != math.prod(size):
        raise InputError(
            f"{whose} has run lengths that cover {sum(runs)} of its {math.prod(size)} pixels; they were cut short or "
            "are of another image: make them again"
        )


def _read_runs(text: object) -> list[int] | None:
    """The numbers that are written so; None if that is no such text."""
    runs: list[int] = []
    value = read = 0
    if not isinstance(text, str | bytes):
        return None
    for code in text.encode(errors="surrogatepass") if isinstance(text, str) else text:
        bits = code - _FIRST
        if not 0 <= bits < 2 * _MORE or read == _LONGEST:
            return None
        value |= (bits & (_MORE - 1)) << (_BITS * read)
        read += 1
        if bits & _MORE:
            continue
        if bits & _SIGN:
            value -= 1 << (_BITS * read)
        runs.append(value + runs[-2] if len(runs) > 2 else value)  # from the fourth on, what it differs by
        value = read = 0
    return None if read else runs


def brief(value: object) -> str:
    """What a message shows of a value that may be long."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
