"""A line for each item, written once it is measured: a killed run goes on, and any number of processes share a run."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar

from .._ahead import in_order
from .._files import locked, make_folder, sha256_of, write_whole
from ..errors import InputError, OutputError
from .processes import rank_and_count, wait_for_all

JSON: TypeAlias = Any
Item = TypeVar("Item")

SETTINGS = "settings.json"
REPORT_EVERY = 10.0  # seconds


class Records:
    """A folder of measurements: settings.json, and records-RANK.jsonl with a line for each item.

    A line is there whole or it does not count, so that a run may be killed at any moment and started again: what was
    measured is not measured again, by however many processes then or now. Processes are those of torchrun (RANK and
    WORLD_SIZE in the environment) or of an initialised torch.distributed; all of them need to see the folder.

    Args:
        folder: Made if it does not exist.
        settings: What the measurements depend on, as JSON holds it. A folder with records of other settings is refused.

    Attributes:
        folder: The folder.
        settings: The settings, as they are read from JSON.

    Raises:
        InputError: If the folder's settings are others, or no settings are readable where records are.
        OutputError: If the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, JSON]) -> None:
        self.folder = Path(folder)
        self.settings: dict[str, JSON] = json.loads(json.dumps(settings))
        self._order: tuple[str, ...] | None = None
        self._index = _Index()
        path = self.folder / SETTINGS
        make_folder(self.folder)
        begun = any(self.folder.glob("records-*.jsonl"))  # looked at first: another process may be just beginning
        if not path.exists():
            if begun:
                raise InputError(f"{self.folder} holds records but no {SETTINGS}; give another folder")
            # Processes that start together may all come here: each writes the same, whole.
            write_whole(path, lambda temporary: temporary.write_text(json.dumps(self.settings, indent=1) + "\n"))
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read: {error}; give another folder") from error
        if found != self.settings:
            raise InputError(
                f"{self.folder} holds records of other settings: {_differences(found, self.settings)}; give another "
                "folder, or the same settings to go on with it"
            )

    @property
    def is_main(self) -> bool:
        """Whether this process is the one (of rank 0) that reports and writes results."""
        return rank_and_count()[0] == 0

    @property
    def broken(self) -> list[tuple[str, str]]:
        """(item, what was wrong) of those that `measure` could not read and skipped, in their order."""
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
        """Measures what has not been measured yet; returns when all processes have done their share.

        Items that were broken in an earlier run are tried again.

        Args:
            items: (name, what to score), names unique; the same list in all processes.
            score: The measurement: what JSON can hold, keys of objects being text.
            content: What tells the content of an item from another of its name (`content_of`). It is recorded with the
                measurement, and compared where an item was measured before.
            skip_broken: Whether an item whose `score` raises InputError is recorded as broken, and the run goes on.
            advice: What to do about a broken item, for the message that stops the run.
            report: Takes lines on progress (of the main process) and on broken items; to stderr if None.
            workers: How many items are measured at once, each by a thread, which `score` and `content` then run in.

        Raises:
            InputError: If names repeat, there is no worker, a score is not finite or not JSON, an item has other
                content than when it was measured, or an item is broken and `skip_broken` is False; the message names
                it. What was measured before is kept.
            OutputError: If a record cannot be written, as on a full disk, or another run is writing to the folder.
            ProcessError: If another process failed.
        """
        names = [name for name, _ in items]
        if len(set(names)) != len(names):
            twice = next(name for index, name in enumerate(names) if name in names[:index])
            raise InputError(f"names of items are unique, but {twice!r} is there twice")
        self._order = tuple(names)

        def line_of(named: tuple[str, Item]) -> dict[str, JSON]:
            name, item = named
            line = {"item": name, "record": score(item)}
            return line if content is None else {**line, "content": content(item)}

        rank, count = rank_and_count()
        say = report or to_stderr
        with open_lines(self.folder / f"records-{rank}.jsonl") as file:
            index = _Index.of(self.folder)
            wait_for_all()  # nobody writes before all have seen what there is, so that the shares below are disjoint
            if content is not None:
                self._check_content([item for item in items if item[0] in index.records][rank::count], index, content)
            waiting = [item for item in items if item[0] not in index.records]
            share = waiting[rank::count]
            progress = Progress(len(items) - len(waiting), len(share), count, say if rank == 0 else _nowhere)
            lines = in_order(line_of, share, workers)
            for name, _ in share:
                try:
                    line = next(lines)
                except InputError as error:
                    if not skip_broken:
                        raise InputError(
                            f"{name}: {error}. What was measured is kept in {self.folder}; {advice}"
                        ) from error
                    line = {"item": name, "broken": str(error)}
                    say(f"skipped, broken: {name}: {error}")
                append_line(file, line)
                progress.advance()
            progress.finish()
        wait_for_all()  # after the files are closed, which is when a network file system shows them to others
        self._index = _Index.of(self.folder)

    def _check_content(self, items: Sequence[tuple[str, Item]], index: _Index, content: Callable[[Item], str]) -> None:
        for name, item in items:
            if content(item) != index.records[name].content:
                raise InputError(
                    f"{name} has other content than when it was measured into {self.folder}: it was changed, or is of "
                    "another data set; give another folder, or put the old one back"
                )

    def items(self) -> Iterator[tuple[str, JSON]]:
        """The records of the last `measure`, in the order of its items, without the broken ones.

        The order does not depend on which process measured what, so that sums come out the same to the bit. One record
        is in memory at a time.

        Raises:
            InputError: If `measure` was not called, or an item was not measured.
        """
        if self._order is None:
            raise InputError("nothing has been measured yet: call measure first, which also finds what is there")
        for name in self._order:
            if name in self._index.broken:
                continue
            if name not in self._index.records:
                raise InputError(f"{name} has not been measured; run the measurement to its end")
            yield name, self._index.records[name].read()


class _Line(NamedTuple):
    """Where the record of an item is, and what its content was, if that was asked for."""

    path: Path
    offset: int  # bytes
    content: str | None

    def read(self) -> JSON:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return json.loads(file.readline())["record"]


@dataclass
class _Index:
    """The lines of a folder by their items, and what was wrong with items that have no record."""

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


class Progress:
    """Says how far a share is, how fast it goes and how long it will take."""

    def __init__(self, before: int, share: int, processes: int, report: Callable[[str], object]) -> None:
        self._share, self._report, self._done = share, report, 0
        self._started = self._said = time.monotonic()
        self._of = f" of the share of one of {processes} processes" if processes > 1 else ""
        if before:
            self.say(f"{before:,} measured before")

    def say(self, text: str) -> None:
        self._report(text)

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said >= REPORT_EVERY:
            self._said = now
            rate = self._done / (now - self._started)
            left = timedelta(seconds=round((self._share - self._done) / rate))
            self.say(
                f"{self._done:,} of {self._share:,}{self._of} ({self._done / self._share:.0%}), {rate:.3g} a second, "
                f"{left} left"
            )

    def skip(self) -> None:
        """One of the share was measured before, as it turns out."""
        self._share -= 1

    def finish(self) -> None:
        seconds = timedelta(seconds=round(time.monotonic() - self._started))
        self.say(f"{self._done:,}{self._of} measured in {seconds}")


def content_of(*paths: str | os.PathLike[str]) -> str:
    """What tells the contents of these files from any others: SHA-256, 64 bits of it. They are read in pieces.

    Raises:
        InputError: If one cannot be read.
    """
    whole = hashlib.sha256()
    for path in paths:
        try:
            whole.update(bytes.fromhex(sha256_of(Path(path))))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}; check the path") from error
    return whole.hexdigest()[:16]


@contextmanager
def open_lines(path: Path) -> Iterator[BinaryIO]:
    """A file to append lines to, for this process alone, without the half line that a kill left at its end.

    Raises:
        OutputError: If it cannot be written, or another process has it open.
    """
    with locked(path) as file:
        end = whole = file.seek(0, os.SEEK_END)
        while whole:
            start = max(0, whole - (1 << 16))
            file.seek(start)
            piece = file.read(whole - start)
            if b"\n" in piece:
                whole = start + piece.rindex(b"\n") + 1
                break
            whole = start
        if whole < end:
            file.truncate(whole)
        yield file


def append_line(file: BinaryIO, entry: Mapping[str, JSON]) -> None:
    """Writes an entry, with the `item` it is of, as a line of JSON.

    Raises:
        InputError: If it is not finite or no JSON.
        OutputError: If it cannot be written.
    """
    try:
        line = memoryview(json.dumps(entry, allow_nan=False).encode() + b"\n")
    except (TypeError, ValueError) as error:
        raise InputError(f"the measurement of {entry['item']} is not finite or no JSON: {error}") from error
    try:
        while line:  # a disk that fills up takes a part first
            line = line[file.write(line) :]
    except OSError as error:
        raise OutputError(
            f"cannot write {file.name}: {error}; what was measured is kept. Make room and run the same command again"
        ) from error


def _differences(found: JSON, wanted: Mapping[str, JSON]) -> str:
    if not isinstance(found, dict):
        return f"{found!r}"
    keys = [key for key in {**found, **wanted} if (key in found, found.get(key)) != (key in wanted, wanted.get(key))]
    return "; ".join(f"{key} is {_shown(found, key)} there, {_shown(wanted, key)} here" for key in keys)


def _shown(settings: Mapping[str, JSON], key: str) -> str:
    return repr(settings[key]) if key in settings else "missing"


def to_stderr(text: str) -> None:
    """Prints a line on progress, at once."""
    print(text, file=sys.stderr, flush=True)


def _nowhere(text: str) -> None:
    pass
