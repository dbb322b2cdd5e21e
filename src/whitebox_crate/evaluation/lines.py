"""Files of lines of JSON: one process writes to a file, and a line counts when it is whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .._files import locked
from ..errors import InputError, OutputError


@contextmanager
def open_lines(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to append lines, for this process only. Removes a half line that a kill left at its end.

    Raises:
        OutputError: If the file cannot be written, or another process has it open.
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


def append_line(file: BinaryIO, entry: Mapping[str, Any]) -> None:
    """Writes an entry, which names its `item`, as a line of JSON.

    Raises:
        InputError: If the entry is not finite or not JSON.
        OutputError: If it cannot be written.
    """
    try:
        line = memoryview(json.dumps(entry, allow_nan=False).encode() + b"\n")
    except (TypeError, ValueError) as error:
        raise InputError(f"the measurement of {entry['item']} is not finite or not JSON: {error}") from error
    try:
        while line:  # a disk that fills up takes only a part
            line = line[file.write(line) :]
    except OSError as error:
        raise OutputError(
            f"cannot write {file.name}: {error}; finished measurements are kept. Make room, then run the command again"
        ) from error
