"""Walks folders: follows links but never in a circle, and skips what is hidden."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name. Links to folders count; hidden folders and links that lead upwards do not.

    Raises:
        InputError: If the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise InputError(
            f"the folder {str(folder)!r} cannot be read: {error.strerror}; check its permissions, or move it away"
        ) from error
    above = _with_those_above(folder) if names else set()
    return [folder / name for name in sorted(names) if _identity(folder / name) not in above]


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and below it, by name, without hidden files.

    Links are followed. Each folder comes once, even if several links lead to it. Folders above are left out.
    """
    seen = _with_those_above(folder)
    for here, folders, names in os.walk(folder, followlinks=True):
        inner = []
        for name in sorted(name for name in folders if not name.startswith(".")):
            if (identity := _identity(Path(here, name))) not in seen:
                seen.add(identity)
                inner.append(name)
        folders[:] = inner
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def _with_those_above(folder: Path) -> set[tuple[int, int] | None]:
    real = folder.resolve()
    return {None, *map(_identity, (real, *real.parents))}


def _identity(folder: Path) -> tuple[int, int] | None:
    """The identity of a folder, whatever its name; None if it cannot be read."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
