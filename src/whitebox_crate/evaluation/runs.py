"""A run over a data set: its settings, its records, and its results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .._files import write_json, write_whole
from .._tables import html_of_markdown
from .._version import __version__
from ..backbones import readable
from ..errors import InputError
from ..preprocess.photographs import check_takes_photos
from .progress import to_stderr
from .records import JSON, Item, Records


class Outcome(NamedTuple):
    """The outcome of a run.

    Attributes:
        results: The content of the JSON file.
        table: The same in Markdown, also written to a file of the same name.
        path: The JSON file.
    """

    results: dict[str, Any]
    table: str
    path: Path

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        return html_of_markdown(self.table)


@dataclass(frozen=True)
class Run:
    """The folder of a run's records and results, and what to do with files that cannot be read.

    Attributes:
        folder: The folder; made if it does not exist. A run that was started in it resumes.
        skip_broken: Whether to report and skip files that cannot be read; else they end the run.
        how_to_skip: How a reader of the messages sets `skip_broken`.
        about: Other settings of the run, for example the split.
        workers: How many items are measured at once, each by a thread. Workers share PyTorch's threads. The results
            are the same to the bit as those of one worker with as many threads as each of them has; another number of
            threads may change last digits.
    """

    folder: Path
    skip_broken: bool = False
    how_to_skip: str = "skip_broken=True"
    about: Mapping[str, JSON] = field(default_factory=dict)
    workers: int = 1

    def check_files(self, check: Callable[[], None]) -> None:
        """Checks that all files exist, unless broken ones are skipped.

        Raises:
            InputError: The error of `check`, with the advice to skip.
        """
        if not self.skip_broken:
            try:
                check()
            except InputError as error:
                raise InputError(f"{error}, or leave them out with {self.how_to_skip}") from error

    def measure(
        self,
        settings: Mapping[str, JSON],
        items: Sequence[tuple[str, Item]],
        score: Callable[[Item], JSON],
        content: Callable[[Item], str],
        part: str = "",
    ) -> Records:
        """Measures the items that have not been measured yet. For arguments and errors see `Records.measure`.

        Args:
            settings: Settings of the records, besides `about`.
            items: (name, item) pairs.
            score: The measurement.
            content: Gives a hash of an item's content.
            part: The name of this measurement, if the run has several. Each has its own folder in records/.
        """
        folder = self.folder / "records" / part if part else self.folder
        records = Records(folder, {**self.about, **settings})
        records.measure(
            items,
            score,
            content=content,
            skip_broken=self.skip_broken,
            advice=f"repair this one and run again, or leave out broken files with {self.how_to_skip}",
            report=partial(_report, part) if part else None,
            workers=self.workers,
        )
        return records

    def write(self, results: Mapping[str, Any], table: str, name: str = "results") -> Outcome:
        """Writes NAME.json, with the versions of the libraries, and NAME.md.

        Raises:
            OutputError: If a file cannot be written.
        """
        written = {**results, "versions": {"whitebox_crate": __version__, "torch": torch.__version__}}
        path = self.folder / f"{name}.json"
        write_json(path, written)
        write_whole(path.with_suffix(".md"), lambda temporary: temporary.write_text(table))
        return Outcome(written, table, path)


def model_settings(model: nn.Module, name: str, size: int) -> dict[str, JSON]:
    """The facts about a model for the settings of a run: its weights, and everything that changes its output.

    Args:
        model: A model that `capture` reads.
        name: The user's name for it.
        size: Shorter side of the image that the model sees, pixels.

    Raises:
        InputError: If the model does not take photographs.
    """
    check_takes_photos(model, name)
    core = readable(model)
    digest = hashlib.sha256()
    for key, value in core.state_dict().items():
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {
        "whitebox_crate": __version__,
        "model": name,
        "architecture": core.architecture,
        "model_args": json.loads(json.dumps(getattr(core, "model_args", {}), default=repr)),
        "mean": core.pretrained_cfg.mean,
        "std": core.pretrained_cfg.std,
        "weights": digest.hexdigest()[:16],
        "size": size,
    }


def names_digest(names: Sequence[str]) -> str:
    """A digest of a list of items, for a run's settings."""
    return f"{len(names)} ({hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]})"


def broken_images(records: Records, count: int) -> list[dict[str, str]]:
    """The skipped images, for the results.

    Args:
        records: Records of a run.
        count: Number of images.

    Raises:
        InputError: If all of them are broken.
    """
    broken = [{"image": name, "why": why} for name, why in records.broken]
    if len(broken) == count:
        raise InputError(f"all {count} images are broken; the first, {broken[0]['image']}: {broken[0]['why']}")
    return broken


def left_out(broken: Sequence[object]) -> str:
    """The end of a table's title: how many broken images its numbers are without. Empty if none."""
    return f"; {len(broken)} broken images left out, named in results.json" if broken else ""


def _report(part: str, text: str) -> None:
    to_stderr(f"{part}: {text}")
