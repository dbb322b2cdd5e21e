"""Files whole or not there: folders made, files written under another name and renamed, JSON read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from .errors import OutputError, WeightsError


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
    except OSError as error:
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
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(descriptor)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}; choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


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
