"""Journal: a line for each photograph that is done, so that a stopped run over a folder can resume."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._files import make_folder
from ..evaluation.lines import append_line, open_lines

Entry = dict[str, Any]


class Journal:
    """A file of JSON lines. If an item has several lines, the last one counts.

    Memory holds only where each line begins and what it depends on.

    Args:
        path: The file. The first line makes its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, tuple[str, int]] = {}  # per item: what it depends on, and where its line begins
        if path.is_file():
            with open_lines(path) as file:  # this cuts off a line that a kill left half written
                file.seek(0)
                offset = 0
                for line in file:
                    with suppress(ValueError, LookupError, TypeError):  # a power cut can leave anything
                        entry = json.loads(line)
                        self._lines[entry["item"]] = entry["depends"], offset
                    offset += len(line)

    def holds(self, item: str, depends: str) -> bool:
        """Whether the item was done, and what it depends on has not changed since."""
        return item in self._lines and self._lines[item][0] == depends

    def add(self, item: str, depends: str, entry: Entry) -> None:
        """Notes that an item is done.

        Raises:
            OutputError: If the line cannot be written.
        """
        make_folder(self.path.parent)
        with open_lines(self.path) as file:
            self._lines[item] = depends, file.seek(0, 2)
            append_line(file, {"item": item, "depends": depends, **entry})

    def read(self, item: str) -> Entry:
        """The entry of an item."""
        with self.path.open("rb") as file:
            file.seek(self._lines[item][1])
            entry: Entry = json.loads(file.readline())
            return entry
