"""WebDataset shards that were cut short are named before they are read: tarfile takes most of them for whole ones."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from typing import IO, Any

from ..errors import InputError

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20  # bytes
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


def check_shards(paths: Iterable[str], to_the_end: bool) -> None:
    """Looks whether each shard is whole.

    Args:
        paths: Files on a disk.
        to_the_end: Whether to go from member to member through all of it. Otherwise only the end is looked at, which
            tells what was cut off, and nothing of compressed shards.

    Raises:
        InputError: If one is not; the message names it.
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
    """A whole archive ends with blocks of zeros, and no member does but by its own content."""
    size = file.seek(0, 2)
    if size < _BLOCK or size % _BLOCK:
        return f"its {size} bytes are no whole blocks of {_BLOCK}"
    file.seek(-_BLOCK, 2)
    return "it has no end mark" if any(file.read(_BLOCK)) else None


def _fault_inside(path: str) -> str | None:
    with tarfile.open(path) as archive:
        while archive.next():
            archive.members = []  # type: ignore[attr-defined]  # or all of them would be kept
        rest: Any = archive.fileobj
        rest.seek(archive.offset)  # of what is no member
        block = rest.read(_BLOCK)
        if len(block) < _BLOCK:
            return "it has no end mark"
        if any(block):
            return f"there is no member at byte {archive.offset}, and no end mark"
        while chunk := rest.read(_CHUNK):
            if any(chunk):
                return f"something follows its end mark at byte {archive.offset}, as in archives that were joined"
    return None
