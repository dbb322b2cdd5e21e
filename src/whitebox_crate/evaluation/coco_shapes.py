"""Checks COCO's boxes, polygons and run lengths. The evaluator would ignore invalid ones, or never end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError, is_finite

# Run lengths as text (maskApi.c of pycocotools): 6 bits a character; 5 of them belong to the number.
_FIRST, _BITS, _MORE, _SIGN = ord("0"), 5, 0x20, 0x10
_LONGEST = 13  # characters of a number of 64 bits


def check_box(box: object, whose: str) -> None:
    """Refuses a box that is not [x, y, width, height] in pixels.

    Args:
        box: The value of "bbox".
        whose: Its owner, for the message.

    Raises:
        InputError: If it is not such a box, a number is not finite, or a side is negative.
    """
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box)) and min(box[2:]) >= 0):
        raise InputError(
            f"{whose} has the bbox {brief(box)}; it must be [x, y, width, height], finite, without negative sides: "
            "repair it"
        )


def check_mask(mask: object, size: Sequence[int], whose: str) -> None:
    """Refuses a mask that is neither polygons nor run lengths of a whole image.

    Args:
        mask: The value of "segmentation".
        size: Height and width of the image, pixels.
        whose: Its owner, for the message.

    Raises:
        InputError: If there is no polygon, or a polygon has fewer than three points; or if run lengths have another
            size than the image, cannot be read, or do not cover all of it.
    """
    if isinstance(mask, Mapping):
        _check_runs(mask, size, whose)
    elif isinstance(mask, list) and mask:
        for polygon in mask:
            _check_polygon(polygon, whose)
    else:
        raise InputError(f"{whose} has neither polygons nor run lengths, but the segmentation {brief(mask)}; repair it")


def _check_polygon(polygon: object, whose: str) -> None:
    if not isinstance(polygon, list):
        raise InputError(f"{whose} has {brief(polygon)} in place of a polygon, which must be a list: repair it")
    if len(polygon) < 6 or len(polygon) % 2:
        raise InputError(
            f"{whose} has a polygon of {len(polygon)} numbers, {brief(polygon)}; it needs x, y of three points or "
            "more: repair it"
        )
    if strange := [value for value in polygon if not is_finite(value)]:
        raise InputError(f"{whose} has a polygon with {brief(strange[0])} among its numbers: repair it")


def _check_runs(mask: Mapping[str, Any], size: Sequence[int], whose: str) -> None:
    if mask.get("size") != list(size):
        raise InputError(
            f"{whose} has run lengths of the size {mask.get('size')}, but the image has {list(size)} (height, width); "
            "they belong to another image or a resized one: make them again"
        )
    counts = mask.get("counts")
    runs = counts if isinstance(counts, list) else _read_runs(counts)
    if runs is None or not all(type(length) is int and length >= 0 for length in runs):
        raise InputError(f"{whose} has run lengths that cannot be read, {brief(counts)}: make them again")
    if sum(runs) != math.prod(size):
        raise InputError(
            f"{whose} has run lengths that cover {sum(runs)} of its {math.prod(size)} pixels; they were cut short, "
            "or belong to another image: make them again"
        )


def _read_runs(text: object) -> list[int] | None:
    """The numbers in such a text; None if it is not one."""
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
        runs.append(value + runs[-2] if len(runs) > 2 else value)  # from the fourth on, a number is a difference
        value = read = 0
    return None if read else runs


def brief(value: object) -> str:
    """A value, shortened for a message."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
