"""Folders as they are walked: links followed, none of them in a circle, hidden ones passed over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder by name, links to folders too, but hidden ones and links that lead back or above it.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise InputError(
            f"the folder {str(folder)!r} cannot be read: {error.strerror}; look at its permissions, or take it away"
        ) from error
    above = _with_those_above(folder) if names else set()
    return [folder / name for name in sorted(names) if _identity(folder / name) not in above]


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and those below, but hidden ones, by name.

    Links are followed. Each folder comes once, by whatever names links give it, and none that is above.
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
    """What tells a folder from all others, whatever it is called; None if nobody may look."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
