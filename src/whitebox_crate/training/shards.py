"""Finds WebDataset shards that were cut short before they are read; tarfile accepts most of them as whole."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from typing import IO, Any

from ..errors import InputError

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20  # bytes
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


def check_shards(paths: Iterable[str], to_the_end: bool) -> None:
    """Checks that each shard is whole.

    Args:
        paths: Files on a disk.
        to_the_end: Whether to go through all members. Otherwise only the end is checked, which finds shards that were
            cut off, but not compressed ones.

    Raises:
        InputError: If a shard is not whole; the message names it.
    """
    for path in paths:
        try:
            with open(path, "rb") as file:
                packed = file.read(6).startswith(_PACKED)
                reason = _fault_inside(path) if to_the_end else None if packed else _fault_at_the_end(file)
        except (OSError, EOFError, tarfile.TarError) as error:
            reason = str(error)
        if reason:
            raise InputError(f"the shard {path} is cut short or damaged: {reason}; get or write it again")


def _fault_at_the_end(file: IO[bytes]) -> str | None:
    """The fault of an archive's end, or None: a whole archive ends with blocks of zeros."""
    size = file.seek(0, 2)
    if size < _BLOCK or size % _BLOCK:
        return f"its {size} bytes are no whole blocks of {_BLOCK}"
    file.seek(-_BLOCK, 2)
    return "it has no end mark" if any(file.read(_BLOCK)) else None


def _fault_inside(path: str) -> str | None:
    with tarfile.open(path) as archive:
        while archive.next():
            archive.members = []  # type: ignore[attr-defined]  # else all of them would stay in memory
        rest: Any = archive.fileobj
        rest.seek(archive.offset)  # the first byte that is not a member
        block = rest.read(_BLOCK)
        if len(block) < _BLOCK:
            return "it has no end mark"
        if any(block):
            return f"there is no member at byte {archive.offset}, and no end mark"
        while chunk := rest.read(_CHUNK):
            if any(chunk):
                return f"something follows its end mark at byte {archive.offset}, as in archives that were joined"
    return None
