"""Mixes several sources in one batch, each with its own classes: scenes, and photographs of other things."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from recipes.scenes import Scenes
from whitebox_crate.errors import InputError
from whitebox_crate.training import Batch, ImageDataset


class Mixed:
    """Draws equal parts of each batch from several sources, a `Source` of `whitebox_crate.training.train`.

    The classes are those of the first source, then those of the next. A name in two sources means two classes; the
    later one gets a star, because names in a model's config must differ.

    Args:
        sources: The sources to mix.

    Raises:
        InputError: If there is no source.
    """

    def __init__(self, sources: Sequence[Scenes | ImageDataset]) -> None:
        if not sources:
            raise InputError("no source to mix; expected one or more")
        self.sources = tuple(sources)
        self._first = [0, *accumulate(len(source.class_names) for source in sources)]
        names: list[str] = []
        for source in sources:
            names += [f"{name}*" if name in names else name for name in source.class_names]
        self.class_names = tuple(names)

    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        """One batch, a pure function of the arguments: the parts of the sources one after the other.

        Raises:
            InputError: If the batch cannot be divided equally, or a source cannot draw its part.
        """
        share, rest = divmod(batch_size, len(self.sources))
        if rest:
            raise InputError(f"{len(self.sources)} sources cannot share a batch of {batch_size} equally")
        drawn = [source.draw(share, seed=seed, step=step, difficulty=difficulty, size=size) for source in self.sources]
        labels = [batch.labels + first for batch, first in zip(drawn, self._first[:-1], strict=True)]
        return Batch(torch.cat([batch.images for batch in drawn]), torch.cat(labels))
