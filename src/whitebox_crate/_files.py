"""Files that are whole or absent: makes folders, writes files and renames them, locks files, reads JSON."""

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
    """Whether there is such a folder. False also if the path is too long or may not be read."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether there is such a file. False also if the path is too long or may not be read."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def make_folder(folder: Path, advice: str = "choose another folder") -> None:
    """Makes a folder and the folders above it, if they do not exist.

    Args:
        folder: The folder.
        advice: The next step if the folder cannot be made, for the message.

    Raises:
        OutputError: If the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a path must not hold a zero byte
        raise OutputError(f"cannot make the folder {folder}: {error}; {advice}") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name beside it, then renames it, so that the file is whole or absent.

    Args:
        path: The file.
        write: Writes to the path that it is given.

    Raises:
        OutputError: If that fails; nothing is left behind.
    """
    temporary = None
    try:
        new = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(8)}{path.suffix[:20]}")
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the umask applies
        temporary, mode = new, new.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors replaces the file by its own
        temporary.replace(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {error}; choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON of several lines, whole or not at all.

    Args:
        path: The file.
        value: What JSON can hold.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_whole(path, lambda whole: whole.write_text(json.dumps(value, indent=1) + "\n"))


_locked: set[Any] = set()  # the files that this process has locked


@contextmanager
def locked(path: Path) -> Iterator[Any]:
    """Opens a file to append bytes and to read, and locks it for this process inside a block. Makes it if needed.

    The lock ends with the process, even if it is killed. File systems without locks, and Windows, let others in.

    Args:
        path: The file.

    Raises:
        OutputError: If another run has locked the file, or it cannot be written.
    """
    try:
        file: Any = open(path, "ab+", buffering=0)  # noqa: SIM115, closed below; errors of open have their own message
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}; choose another folder") from error
    with file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(f"another run is writing to {path}; wait for it, or choose another folder") from error
            except OSError:
                pass  # a file system without locks: it does not notice two runs at once
        _locked.add(file)
        try:
            yield file
        finally:
            _locked.discard(file)


def _close_in_child() -> None:
    """Closes the files in a forked process: a worker that reads images would keep the lock of a killed parent."""
    for file in _locked:
        file.close()
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content. Reads it in pieces.

    Raises:
        OSError: If the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


_MAX_JSON = 16 << 20  # bytes; 22,000 class names take less than 1 MiB


def read_json(path: Path) -> dict[str, object]:
    """Reads a JSON object from a file.

    Raises:
        WeightsError: If the file is missing, holds something else, or is larger than a config can be.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would be read for ever
            raise WeightsError(f"{path} is not a file; check the path")
        if path.stat().st_size > _MAX_JSON:
            raise WeightsError(
                f"{path} is {path.stat().st_size} bytes long, too long for a config; check what it holds"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}; repair it or fetch it again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a {type(value).__name__}, not a JSON object; check that it is the right file")
    return value
