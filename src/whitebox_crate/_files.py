"""Files whole or not there: folders made, files written under another name and renamed or locked, JSON read."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import OutputError, WeightsError

if sys.platform != "win32":
    import fcntl


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; False too for what is too long for a path, or may not be looked at."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether a file is there; False too for what is too long for a path, or may not be looked at."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def make_folder(folder: Path, advice: str = "give another") -> None:
    """Makes a folder and those above it, if they are not there.

    Args:
        folder: Which.
        advice: What to do if it cannot be made, for the message.

    Raises:
        OutputError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a path with a zero in it is none
        raise OutputError(f"cannot make the folder {folder}: {error}; {advice}") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name beside it and renames it, so that it is whole or not there.

    Args:
        path: Where the file shall be.
        write: Writes to the path it is given.

    Raises:
        OutputError: If that fails; nothing is left behind.
    """
    temporary = None
    try:
        new = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(8)}{path.suffix[:20]}")
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less what the umask takes away
        temporary, mode = new, new.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors writes a file of its own in its place
        temporary.replace(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {error}; choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


_locked: set[Any] = set()  # the files that this process has to itself


@contextmanager
def locked(path: Path) -> Iterator[Any]:
    """A file to append bytes to and to read that this process has to itself for the length of a block; made if need be.

    The lock goes when the process ends, however it does. File systems without locks, and Windows, let others in.

    Args:
        path: Of the file.

    Raises:
        OutputError: If another run has it, or it cannot be written.
    """
    try:
        file: Any = open(path, "ab+", buffering=0)  # noqa: SIM115, closed below; its own errors are told from others
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}; give another folder") from error
    with file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(f"another run is writing to {path}; wait for it, or give another folder") from error
            except OSError:
                pass  # a file system without locks: two runs at once are not noticed there
        _locked.add(file)
        try:
            yield file
        finally:
            _locked.discard(file)


def _close_in_child() -> None:
    """A process that was forked, as a worker that reads images, would keep the lock of one that was killed."""
    for file in _locked:
        file.close()
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, which is read in pieces.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


_MAX_JSON = 16 << 20  # bytes; 22,000 class names take less than 1 MiB


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file.

    Raises:
        WeightsError: If the file is missing, holds something else, or is larger than a config can be.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would be read for ever
            raise WeightsError(f"{path} is no file; look at what it is")
        if path.stat().st_size > _MAX_JSON:
            raise WeightsError(f"{path} is {path.stat().st_size} bytes long, which no config is; look at what it holds")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds {type(value).__name__}, not an object")
    return value
