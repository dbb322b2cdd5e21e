"""Records: a line for each measured item. A killed run resumes, and any number of processes share a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from .._ahead import in_order
from .._files import make_folder, sha256_of, write_json
from ..errors import InputError
from .lines import append_line, open_lines
from .processes import rank_and_count, wait_for_all
from .progress import Progress, to_nobody, to_stderr

JSON: TypeAlias = Any
Item = TypeVar("Item")

SETTINGS = "settings.json"


class Records:
    """A folder of measurements: settings.json, and records-RANK.jsonl with a line for each item.

    Only whole lines count, so a run may be killed at any moment and started again. No item is measured twice, whatever
    the number of processes before and after. Processes come from torchrun (RANK and WORLD_SIZE in the environment) or
    from an initialised torch.distributed; all of them must see the folder.

    Args:
        folder: Made if it does not exist.
        settings: Everything that the measurements depend on, ready for JSON. A folder with records of other settings is
            refused.

    Attributes:
        folder: The folder.
        settings: The settings, as read from JSON.

    Raises:
        InputError: If the folder has other settings, or has records without readable settings.
        OutputError: If the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, JSON]) -> None:
        self.folder = Path(folder)
        self.settings: dict[str, JSON] = json.loads(json.dumps(settings))
        self._order: tuple[str, ...] | None = None
        self._index = _Index()
        path = self.folder / SETTINGS
        make_folder(self.folder)
        begun = any(self.folder.glob("records-*.jsonl"))  # checked first: another process may be starting
        if not path.exists():
            if begun:
                raise InputError(f"{self.folder} holds records but no {SETTINGS}; choose another folder")
            # Processes that start together may all come here; each writes the same whole file.
            write_json(path, self.settings)
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read: {error}; choose another folder") from error
        if found != self.settings:
            raise InputError(
                f"{self.folder} holds records of other settings: {_differences(found, self.settings)}; choose another "
                "folder, or give the same settings to resume it"
            )

    @property
    def is_main(self) -> bool:
        """Whether this process (rank 0) reports and writes results."""
        return rank_and_count()[0] == 0

    @property
    def broken(self) -> list[tuple[str, str]]:
        """The items that `measure` could not read and skipped, with the reason, in order."""
        return [(name, self._index.broken[name]) for name in self._order or () if name in self._index.broken]

    def measure(
        self,
        items: Sequence[tuple[str, Item]],
        score: Callable[[Item], JSON],
        *,
        content: Callable[[Item], str] | None = None,
        skip_broken: bool = False,
        advice: str = "repair this one and run again",
        report: Callable[[str], object] | None = None,
        workers: int = 1,
    ) -> None:
        """Measures the items that have not been measured yet. Returns when all processes are done.

        Items that were broken in an earlier run are tried again.

        Args:
            items: (name, item) pairs with unique names; the same list in all processes.
            score: The measurement. It returns a value for JSON; keys of objects are text.
            content: Gives a hash of an item's content (`content_of`). It is recorded with the measurement, and compared
                if an item was measured before.
            skip_broken: Whether to record an item whose `score` raises InputError as broken, and go on.
            advice: The next step for a broken item, for the message that stops the run.
            report: Gets lines on progress (of the main process) and on broken items; stderr if None.
            workers: How many items are measured at once, each in its own thread; `score` and `content` must allow that.

        Raises:
            InputError: If names repeat, there is no worker, a score is not finite or not JSON, an item has changed
                since it was measured, or an item is broken and `skip_broken` is False; the message names it. Earlier
                measurements are kept.
            OutputError: If a record cannot be written, for example on a full disk, or another run is writing to the
                folder.
            ProcessError: If another process failed.
        """
        names = [name for name, _ in items]
        if len(set(names)) != len(names):
            twice = next(name for index, name in enumerate(names) if name in names[:index])
            raise InputError(f"names of items must be unique, but {twice!r} comes twice")
        self._order = tuple(names)

        def line_of(named: tuple[str, Item]) -> dict[str, JSON]:
            name, item = named
            line = {"item": name, "record": score(item)}
            return line if content is None else {**line, "content": content(item)}

        rank, count = rank_and_count()
        say = report or to_stderr
        with open_lines(self.folder / f"records-{rank}.jsonl") as file:
            index = _Index.of(self.folder)
            wait_for_all()  # nobody writes before all have read the records, so that the shares below are disjoint
            if content is not None:
                self._check_content([item for item in items if item[0] in index.records][rank::count], index, content)
            waiting = [item for item in items if item[0] not in index.records]
            share = waiting[rank::count]
            progress = Progress(len(items) - len(waiting), len(share), count, say if rank == 0 else to_nobody)
            lines = in_order(line_of, share, workers)
            for name, _ in share:
                try:
                    line = next(lines)
                except InputError as error:
                    if not skip_broken:
                        raise InputError(
                            f"{name}: {error}. Finished measurements are kept in {self.folder}; {advice}"
                        ) from error
                    append_line(file, {"item": name, "broken": str(error)})
                    say(f"skipped, broken: {name}: {error}")
                    progress.skip()
                    continue
                append_line(file, line)
                progress.advance()
            progress.finish()
        wait_for_all()  # after closing the files: only then does a network file system show them to others
        self._index = _Index.of(self.folder)

    def _check_content(self, items: Sequence[tuple[str, Item]], index: _Index, content: Callable[[Item], str]) -> None:
        for name, item in items:
            if content(item) != index.records[name].content:
                raise InputError(
                    f"{name} has changed since it was measured into {self.folder}, or belongs to another data set; "
                    "choose another folder, or restore the old file"
                )

    def items(self) -> Iterator[tuple[str, JSON]]:
        """The records of the last `measure`, in the order of its items, without broken ones.

        The order does not depend on the processes, so sums are the same to the bit. One record is in memory at a time.

        Raises:
            InputError: If `measure` was not called, or an item was not measured.
        """
        if self._order is None:
            raise InputError("nothing has been measured yet: call measure first; it also finds earlier records")
        for name in self._order:
            if name in self._index.broken:
                continue
            if name not in self._index.records:
                raise InputError(f"{name} has not been measured; run measure to its end")
            yield name, self._index.records[name].read()


class _Line(NamedTuple):
    """The place of an item's record, and the hash of its content, if recorded."""

    path: Path
    offset: int  # bytes
    content: str | None

    def read(self) -> JSON:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return json.loads(file.readline())["record"]


@dataclass
class _Index:
    """The lines of a folder by item, and the errors of items without a record."""

    records: dict[str, _Line] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> _Index:
        index = cls()
        for path in sorted(folder.glob("records-*.jsonl")):
            offset = 0
            with path.open("rb") as file:
                for line in file:
                    index._add(line, path, offset)
                    offset += len(line)
        for name in index.records:
            index.broken.pop(name, None)
        return index

    def _add(self, line: bytes, path: Path, offset: int) -> None:
        if not line.endswith(b"\n"):
            return  # cut short by a kill or a full disk
        try:
            entry = json.loads(line)
            if "broken" in entry:
                self.broken[entry["item"]] = entry["broken"]
            elif "record" in entry:
                self.records.setdefault(entry["item"], _Line(path, offset, entry.get("content")))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return  # a power cut can leave anything: the item is measured again


def content_of(*paths: str | os.PathLike[str]) -> str:
    """A hash of the contents of these files: 64 bits of SHA-256. They are read in pieces.

    Raises:
        InputError: If a file cannot be read.
    """
    whole = hashlib.sha256()
    for path in paths:
        try:
            whole.update(bytes.fromhex(sha256_of(Path(path))))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}; check the path") from error
    return whole.hexdigest()[:16]


def _differences(found: JSON, wanted: Mapping[str, JSON]) -> str:
    if not isinstance(found, dict):
        return f"{found!r}"
    keys = [key for key in {**found, **wanted} if (key in found, found.get(key)) != (key in wanted, wanted.get(key))]
    return "; ".join(f"{key} is {_shown(found, key)} there, {_shown(wanted, key)} here" for key in keys)


def _shown(settings: Mapping[str, JSON], key: str) -> str:
    return repr(settings[key]) if key in settings else "missing"
