"""Decodes pictures into batches. A picture that cannot be decoded is counted and does not end a run."""

from __future__ import annotations

import functools
import io
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeAlias, get_args

import torch
from torch import Tensor

from .._random import numpy_generator
from ..errors import InputError, UnknownNameError, require
from ..images import reading, to_rgb
from ..preprocess import create_transform
from .batches import Batch
from .recipe import Crop
from .transforms import centre_box, random_box, read_part

_Pair: TypeAlias = tuple[Tensor, int]  # image, label
Key: TypeAlias = tuple[int, int, int]  # seed, epoch, image

CROPS: tuple[str, ...] = get_args(Crop)
NAMED = 5  # the first undecodable pictures are named, later ones only counted


@dataclass(frozen=True)
class Example:
    """A picture that is not decoded yet.

    Attributes:
        picture: Bytes; a path or URL; a dict with "bytes" or "path", as in `datasets`; or None.
        label: Index of the class.
        name: Name in messages, after its path if it has one.
    """

    picture: Any
    label: int
    name: str


class Decoder:
    """Turns examples into batches.

    Args:
        crop: "centre", or "random" (place, area and aspect).
        flip: Whether half of the pictures are mirrored.

    Raises:
        UnknownNameError: If the crop is another word.
        MissingExtraError: If Pillow is not installed.
    """

    def __init__(self, crop: str = "centre", flip: bool = False) -> None:
        if crop not in CROPS:
            raise UnknownNameError.of("crop", crop, CROPS)
        require("PIL.Image", extra="train")
        self.crop, self.flip = crop, flip
        self._named = 0

    def batch(self, examples: Sequence[Example], size: int, keys: Sequence[Key]) -> Batch:
        """Decodes examples to train on. Others of the batch replace those that cannot be decoded, in turn.

        Args:
            examples: The examples of the batch.
            size: Side of the images, pixels.
            keys: The key of each, which decides crop and flip.

        Raises:
            InputError: If none can be decoded; the message gives the first reason.
        """
        pairs, reasons = self._decode(examples, size, keys)
        if len(reasons) == len(pairs):
            raise _none_of(len(pairs), reasons)
        instead = itertools.cycle([pair for pair in pairs if pair])
        return _batch([pair or next(instead) for pair in pairs], len(reasons))

    def in_order(self, groups: Iterable[Sequence[Example]], size: int, may_be_empty: bool = False) -> Iterator[Batch]:
        """Decodes examples to measure on. Those that cannot be decoded are left out, and counted in a nearby batch.

        Args:
            groups: The examples of each batch.
            size: Side of the images, pixels. Images equal `create_transform(size)` before normalisation.
            may_be_empty: Whether there may be no example.

        Raises:
            InputError: If no example can be decoded; the message gives the first reason.
        """
        ready: list[_Pair] = []  # held back, to carry the count of later losses
        lost: list[str] = []
        for examples in groups:
            pairs, reasons = self._decode(examples, size, None)
            good = [pair for pair in pairs if pair]
            if good and ready:
                yield _batch(ready, len(lost))
                lost = []
            ready, lost = good or ready, lost + reasons
        if ready:
            yield _batch(ready, len(lost))
        elif lost or not may_be_empty:
            raise _none_of(len(lost), lost)

    def _decode(
        self, examples: Sequence[Example], size: int, keys: Sequence[Key] | None
    ) -> tuple[list[_Pair | None], list[str]]:
        """Image and label of each decodable example, and the errors of the others."""
        pairs: list[_Pair | None] = []
        reasons = []
        for at, example in enumerate(examples):
            try:
                pairs.append((self._read(example, size, keys[at] if keys else None), example.label))
            except InputError as error:
                pairs.append(None)
                reasons.append(str(error))
                self._tell(str(error))
        return pairs, reasons

    def _read(self, example: Example, size: int, key: Key | None) -> Tensor:
        name, file = _opened(example)
        with file:
            if key is None:
                with reading(file, name) as image:
                    return create_transform(size, mean=(0.0,) * 3, std=(1.0,) * 3)(to_rgb(image, upright=True))
            seed, epoch, number = key
            generator = numpy_generator(seed, epoch, number + 1)  # 0 is the epoch's order
            box_of = functools.partial(random_box, generator=generator) if self.crop == "random" else centre_box
            mirrored = self.flip and generator.random() < 0.5
            return read_part(file, name, size, box_of, mirrored)

    def _tell(self, reason: str) -> None:
        self._named += 1
        if self._named <= NAMED:
            more = "; further ones are only counted" if self._named == NAMED else ""
            warnings.warn(f"left out: {reason}{more}", stacklevel=2)


def _batch(pairs: Sequence[_Pair], skipped: int) -> Batch:
    images, labels = zip(*pairs, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), skipped=skipped)


def _none_of(count: int, reasons: Sequence[str]) -> InputError:
    if not count:
        return InputError("there is no image; check the data")
    return InputError(f"none of {count} pictures can be decoded; the first: {reasons[0]}")


def _opened(example: Example) -> tuple[str, IO[bytes]]:
    """The picture's name in messages, and its bytes as a file."""
    picture = example.picture
    if isinstance(picture, dict):
        path, content = picture.get("path"), picture.get("bytes")
    else:
        path, content = (picture, None) if isinstance(picture, str) else (None, picture)
    name = f"{path} ({example.name})" if path else example.name
    if content is not None:
        return name, io.BytesIO(content)
    if not path:
        raise InputError(f"{name} is empty: it has neither bytes nor a path")
    try:
        if "://" in path:
            remote: IO[bytes] = require("fsspec", "train").open(path, "rb").open()
            return name, remote
        return name, open(path, "rb")
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be opened: {error}; check the path") from error
