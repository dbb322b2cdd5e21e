"""A run over a data set: its settings, its records, and the results that it leaves beside them."""

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

from .._files import write_whole
from .._tables import html_of_markdown
from .._version import __version__
from ..backbones import readable
from ..errors import InputError
from ..preprocess import check_takes_photos
from .records import JSON, Item, Records, to_stderr


class Outcome(NamedTuple):
    """What a run came to.

    Attributes:
        results: What is in the file.
        table: The same in Markdown, which is in a file of that name too.
        path: The JSON file.
    """

    results: dict[str, Any]
    table: str
    path: Path

    def _repr_html_(self) -> str:
        """The table, as notebooks show it."""
        return html_of_markdown(self.table)


@dataclass(frozen=True)
class Run:
    """Where a run keeps its records and results, and what it does about files that cannot be read.

    Attributes:
        folder: Made if it is not there; a run that was begun in it is gone on with.
        skip_broken: Whether what cannot be read is reported and skipped, rather than ending the run.
        how_to_skip: How whoever reads the messages sets `skip_broken`.
        about: What else the settings say, for example which split it is.
        workers: How many items are measured at once, each by a thread; the results are the same.
    """

    folder: Path
    skip_broken: bool = False
    how_to_skip: str = "skip_broken=True"
    about: Mapping[str, JSON] = field(default_factory=dict)
    workers: int = 1

    def check_files(self, check: Callable[[], None]) -> None:
        """Looks whether all files are there, unless broken ones are skipped anyhow.

        Raises:
            InputError: What `check` raises, with the advice to skip.
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
        """Measures what has not been measured yet; arguments and errors are those of `Records` and `Records.measure`.

        Args:
            settings: Beside those in `about`.
            items: (name, what to score).
            score: The measurement.
            content: What tells the content of an item from another of its name.
            part: The name of this measurement, if the run has several: each has a folder of its own in records/.
        """
        folder = self.folder / "records" / part if part else self.folder
        records = Records(folder, {**self.about, **settings})
        records.measure(
            items,
            score,
            content=content,
            skip_broken=self.skip_broken,
            advice=f"repair this one and run again, or leave out what is broken with {self.how_to_skip}",
            report=partial(_report, part) if part else None,
            workers=self.workers,
        )
        return records

    def write(self, results: Mapping[str, Any], table: str, name: str = "results") -> Outcome:
        """Writes NAME.json, with the versions of what computed it, and NAME.md.

        Raises:
            OutputError: If that fails.
        """
        written = {**results, "versions": {"whitebox_crate": __version__, "torch": torch.__version__}}
        path = self.folder / f"{name}.json"
        write_whole(path, lambda temporary: temporary.write_text(json.dumps(written, indent=1) + "\n"))
        write_whole(path.with_suffix(".md"), lambda temporary: temporary.write_text(table))
        return Outcome(written, table, path)


def model_settings(model: nn.Module, name: str, size: int) -> dict[str, JSON]:
    """What of a model belongs to the settings of a run: the weights, and all that makes of them what they compute.

    Args:
        model: A model that `capture` reads.
        name: What the user calls it.
        size: Shorter side of photographs for the model, pixels.

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
    """What tells one list of items from another in a run's settings."""
    return f"{len(names)} ({hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]})"


def broken_images(records: Records, count: int) -> list[dict[str, str]]:
    """What was skipped, for the results.

    Args:
        records: Of a run.
        count: How many images there are.

    Raises:
        InputError: If all of them are broken.
    """
    broken = [{"image": name, "why": why} for name, why in records.broken]
    if len(broken) == count:
        raise InputError(f"all {count} images are broken; the first, {broken[0]['image']}: {broken[0]['why']}")
    return broken


def _report(part: str, text: str) -> None:
    to_stderr(f"{part}: {text}")
