"""Reads checkpoint files of any origin: tells the kind by the content, reads all of it, and runs nothing in it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from .._files import is_file, is_folder, read_json
from ..errors import WeightsError
from .archives import AGAIN, open_archive
from .arrays import SUFFIX, read_arrays
from .torch_files import PICKLE, PROGRAM, read_legacy, read_zip

SAFETENSORS, INDEX = ".safetensors", ".index.json"
_MISTAKEN = {
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to; fetch that with 'git lfs pull'",
    b"<": "a web page; the download went wrong, so fetch the file itself",
    b"\x1f\x8b": "compressed with gzip; unpack it with gunzip first",
}


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Reads a safetensors, `torch.save` or `numpy.savez` file, or the files of an index (.index.json).

    The content shows the kind of file, not the name; but a file named .safetensors must be safetensors. Nothing in the
    file is run: `convert.pickles` reads the pickle of a torch file and calls nothing. Values that are not tensors
    (counters, text, settings) are left out, and so are the optimizer's states in a JAX file.

    Args:
        path: The file.
        mmap: Whether to map a safetensors file instead of copying it to memory: it is read from disk on use and shared
            by processes. It must not be written to while its tensors are used.

    Returns:
        Name -> tensor on the CPU, or a dict of the same kind, nested as in the file.

    Raises:
        WeightsError: If the file is missing, of another kind, damaged, harmful, or written to while it is read; the
            message says what to do.

    Example:
        >>> torch.save({"state_dict": create_model("crate_nano").state_dict(), "epoch": 3}, "checkpoint.pth")
        >>> list(read_checkpoint("checkpoint.pth"))  # tensors alone
        ['state_dict']
    """
    path = Path(path)
    if is_folder(path):
        raise WeightsError(f"{path} is a folder; give a file, or load it with create_model('local-dir:{path}')")
    if not is_file(path):
        raise WeightsError(f"there is no file {path}; check the path and its permissions")
    try:
        with path.open("rb") as file, _unchanged(file, path if mmap else None):
            return _read(file, path, mmap)
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error.__cause__
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}); check its permissions, or {AGAIN}") from error
    except Exception as error:  # decoders raise any error on hostile bytes: KeyError, MemoryError, struct.error
        said = str(error).split("\n")[0][:500] or type(error).__name__
        raise WeightsError(f"{path} is damaged or not what it seems ({said}); {AGAIN}") from error


@contextmanager
def _unchanged(file: IO[bytes], path: Path | None) -> Iterator[None]:
    """Fails if the file was written to inside the block, or (with a path) was replaced by another."""

    def state(of: int | Path) -> tuple[int, ...]:
        found = os.stat(of)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    before = state(file.fileno())
    try:
        yield
    finally:
        if before != state(path or file.fileno()):
            raise WeightsError("was written to while it was read; load it again when that is done")


def _read(file: io.BufferedReader, path: Path, mmap: bool) -> dict[str, Any]:
    start, size = file.read(32), os.fstat(file.fileno()).st_size
    file.seek(0)
    if start[8:9] == b"{":
        return _mapped(path) if mmap else load(file.read(size))  # a size, or what is read is copied once more
    if start[:1] == b"{" and path.name.endswith(INDEX):
        return _read_parts(path, mmap)
    for beginning, what in _MISTAKEN.items():
        if start.startswith(beginning):
            raise WeightsError(f"is {what}")
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        what = "empty" if not start else "damaged, or neither safetensors nor a file of torch.save or numpy.savez"
        raise WeightsError(f"is {what}; {AGAIN}")
    if path.suffix.lower() == SAFETENSORS:
        raise WeightsError(
            f"is called {SAFETENSORS} and is none, or is damaged; {AGAIN}, or call it what it is if you know its maker"
        )
    return read_legacy(file, size) if start[:1] == b"\x80" else _read_archive(file, size)


def _read_parts(index: Path, mmap: bool) -> dict[str, Any]:
    """The tensors of all files of an index, as transformers writes large weights."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(part, str) for part in weight_map.values()):
        raise WeightsError(f"has no 'weight_map' from names to files; {AGAIN}")
    tensors = dict[str, Any]()
    for part in sorted(set(weight_map.values())):
        if Path(part).name != part or part.endswith(INDEX):
            raise WeightsError(f"names {part!r}, which is no file beside it; do not trust it")
        tensors |= read_checkpoint(index.parent / part, mmap=mmap)
    lacking = sorted(weight_map.keys() - tensors.keys())
    if lacking:
        raise WeightsError(f"names tensors that its files do not hold, as {lacking[0]!r}; {AGAIN}")
    return tensors


def _mapped(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_archive(file: IO[bytes], size: int) -> dict[str, Any]:
    with open_archive(file, size) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
        if any(name.name == PROGRAM for name in names):
            raise WeightsError("is a TorchScript program, which is code; save the state_dict() of the model instead")
        pickles = [name for name in names if name.name == PICKLE and len(name.parts) == 2]
        if len(pickles) == 1:
            return read_zip(archive, pickles[0].parts[0], size)
        if all(name.suffix == SUFFIX for name in names):
            return read_arrays(archive)
    raise WeightsError("is a zip archive, but not one of torch.save or numpy.savez; unpack it and give the file in it")
