"""Checkpoint files, whoever wrote them: told by their content, read without running anything in them."""

from __future__ import annotations

import io
import math
import pickletools
import re
import threading
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import safe_open
from torch import Tensor

from .._files import read_json
from ..errors import WeightsError

# Parts of a JAX training state that are no weights; they are twice as large as the weights and are not read.
NOT_WEIGHTS = ("opt", "chrono")
# What a compressed file may expand to: weights hardly compress, so that more is a bomb; small files do no harm.
MAX_EXPANSION, SMALL = 10, 64 << 20

LOCAL_HEADER = 30  # bytes of a zip member's own header, without its name

_MISTAKEN = {
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to; fetch that with 'git lfs pull'",
    b"<": "a web page; the download went wrong, so fetch the file itself",
    b"\x1f\x8b": "compressed with gzip; unpack it with gunzip first",
}
_AGAIN = "fetch or write it again"
INDEX = ".index.json"

# What a pickle of weights may call. torch.load would also take makers of memory without end from a few bytes.
_CALLS = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)|(__builtin__|builtins)\.(set|complex)|argparse\.Namespace|"
    r"torch\.(Size|[a-z]\w*|[A-Za-z0-9]+Storage)|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout|"
    r"torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
)
_READING = threading.Lock()
_CALLING = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ")

LONGEST_HEADER = 1 << 17  # of an array, bytes; numpy takes none near it
_HEADERS: dict[tuple[int, int], Callable[[BinaryIO], Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a safetensors, `torch.save` or `numpy.savez` file holds, or those that an index (.index.json) names.

    The kind is told by the content, whatever the file is called. Nothing in the file is run: a pickle is read by
    `torch.load(weights_only=True)` and by nothing else. What is no tensor (counters, text, settings) is left out,
    and so are the optimizer's states in a JAX file.

    Args:
        path: The file.

    Returns:
        Name -> tensor on the CPU, or a dict of the same kind, nested as in the file. Tensors may be mapped from the
        file, which must not be changed in place while they are used.

    Raises:
        WeightsError: If the file is missing, of another kind, damaged, or made to do harm; it says what to do.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; give a file, or load it with create_model('local-dir:{path}')")
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; check the path")
    try:
        return _without_the_rest(_decoder(path)(path), {})
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error.__cause__
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}); check its permissions, or {_AGAIN}") from error
    except Exception as error:  # decoders meet hostile bytes with anything: KeyError, MemoryError, struct.error
        said = str(error).split("\n")[0] or type(error).__name__
        raise WeightsError(f"{path} is damaged or not what it seems ({said}); {_AGAIN}") from error


def _decoder(path: Path) -> Callable[[Path], Any]:
    with path.open("rb") as file:
        start = file.read(32)
    if start[:4] == b"PK\x03\x04":
        return _read_zip
    if start[8:9] == b"{":
        return _read_safetensors
    if start[:1] == b"{" and path.name.endswith(INDEX):
        return _read_parts
    if start[:1] == b"\x80":
        return _read_pickle
    for beginning, what in _MISTAKEN.items():
        if start.startswith(beginning):
            raise WeightsError(f"is {what}")
    what = "empty" if not start else "damaged, or neither safetensors nor a file of torch.save or numpy.savez"
    raise WeightsError(f"is {what}; {_AGAIN}")


def _read_parts(index: Path) -> dict[str, Any]:
    """The tensors of all files that an index names, as transformers writes weights that are large."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(part, str) for part in weight_map.values()):
        raise WeightsError(f"has no 'weight_map' from names to files; {_AGAIN}")
    tensors = dict[str, Any]()
    for part in sorted(set(weight_map.values())):
        if Path(part).name != part or part.endswith(INDEX):
            raise WeightsError(f"names {part!r}, which is no file beside it; do not trust it")
        tensors |= read_checkpoint(index.parent / part)
    lacking = sorted(weight_map.keys() - tensors.keys())
    if lacking:
        raise WeightsError(f"names tensors that its files do not hold, as {lacking[0]!r}; {_AGAIN}")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_pickle(path: Path, zipped: bool = False) -> Any:
    # Not mapped: torch.save over a file that is mapped truncates it first, which kills the process.
    try:
        with path.open("rb") as file, _namespaces_allowed():
            if not zipped:
                _check_calls(file, 4)  # a magic number, the version, the sizes of C's types, the content
                file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except WeightsError:
        raise
    except Exception as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None and "weights_only" not in str(error):
            raise
        what = f"it asks for {asked[1]}" if asked else "torch.load(weights_only=True) does not take it"
        raise _more_than_tensors(what) from error


@contextmanager
def _namespaces_allowed() -> Iterator[None]:
    """Lets torch.load take a Namespace, the settings of a training script as MAE's; making one runs nothing."""
    with _READING:  # what torch allows is one list for all threads, to which a user may have added
        if Namespace in torch.serialization.get_safe_globals():
            yield
        else:
            with torch.serialization.safe_globals([Namespace]):
                yield


def _check_calls(file: IO[bytes], pickles: int = 1) -> None:
    """Refuses pickles that call what no weights need."""
    for _ in range(pickles):
        for opcode, argument, _ in pickletools.genops(file):
            called = str(argument).replace(" ", ".")
            if opcode.name in _CALLING and not _CALLS.fullmatch(called):
                raise _more_than_tensors(f"it asks for {called if argument else 'more'}")


def _more_than_tensors(what: str) -> WeightsError:
    return WeightsError(
        f"holds more than tensors, or is damaged: {what}. It is refused, for such a file can run any code. Take "
        "the same weights as safetensors; or, where you trust whoever made it, load it where nothing can be lost, "
        "and save its dict of tensors alone"
    )


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_members(members, archive.start_dir, path.stat().st_size)
        names = [PurePosixPath(member.filename) for member in members]
        if any(name.name == "constants.pkl" for name in names):
            raise WeightsError("is a TorchScript program, which is code; save the state_dict() of the model instead")
        if any(name.name == "data.pkl" and len(name.parts) == 2 for name in names):
            if any(member.compress_type or member.compress_size != member.file_size for member in members):
                raise WeightsError(f"is no file of torch.save, which compresses nothing; {_AGAIN}")
            _check_end(archive, path)
            for member, name in zip(members, names, strict=True):
                if name.name == "data.pkl":
                    with archive.open(member) as pickled:
                        _check_calls(pickled)
            return _whole(_read_pickle(path, zipped=True), members)
        if all(name.suffix == ".npy" for name in names):
            return {
                member.filename.removesuffix(".npy"): _read_array(archive, member)
                for member in members
                if member.filename.removesuffix(".npy").split("/")[0] not in NOT_WEIGHTS
            }
    raise WeightsError("is a zip archive, but not one of torch.save or numpy.savez; unpack it and give the file in it")


def _check_members(members: list[zipfile.ZipInfo], end: int, size: int) -> None:
    """Refuses archives whose members lie outside, upon or over each other, or expand beyond reason."""
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise WeightsError(f"has several members of one name; {_AGAIN}")
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise WeightsError(f"has a member {name!r}, which points out of the archive; do not trust this file")
    by_place = sorted(members, key=lambda member: member.header_offset)
    for member, following in zip(by_place, [*(m.header_offset for m in by_place[1:]), end], strict=True):
        if not 0 <= member.header_offset <= following - member.compress_size - LOCAL_HEADER:
            raise WeightsError(f"has members that overlap or lie outside it, as {member.filename!r}; {_AGAIN}")
    total = sum(member.file_size for member in members)
    if total > max(MAX_EXPANSION * size, SMALL):
        raise WeightsError(f"would expand from {size} to {total} bytes, which no weights do; do not trust this file")


def _whole(content: Any, members: list[zipfile.ZipInfo]) -> dict[str, Any]:
    """The tensors, if each has a member of its size: torch.load takes as many bytes as it is told to."""
    known: dict[int, dict[str, Any]] = {}
    kept = _without_the_rest(content, known)
    tensors = [value for held in known.values() for value in held.values() if isinstance(value, Tensor)]
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    if Counter(size for size in storages.values() if size) - Counter(member.file_size for member in members):
        raise WeightsError(f"has tensors of which it does not hold all bytes; {_AGAIN}")
    return kept


def _check_end(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses archives of which torch would read another directory than zipfile, and members that were not checked."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - 98, 0))
        end = file.read()
    place = int.from_bytes(end[-6:-2], "little")
    if end[-42:-38] == b"PK\x06\x07":  # large archives have a longer end before the usual one, and a pointer to it
        at_its_place = int.from_bytes(end[-34:-26], "little") == size - 98
        place = int.from_bytes(end[48:56], "little") if at_its_place else -1
    if end[-22:-18] != b"PK\x05\x06" or place != archive.start_dir:
        raise WeightsError(f"is a zip archive whose end is not where its directory ends; {_AGAIN}")


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    """One array of an npz; what its header says must agree with the bytes that are there."""
    content = bytearray(archive.read(member))
    header = io.BytesIO(content[:LONGEST_HEADER])
    shape, column_major, dtype = _HEADERS[npy.read_magic(header)](header)
    if dtype.hasobject:
        raise WeightsError(
            f"holds Python objects in {member.filename!r}, which can run code; save plain arrays instead"
        )
    if header.tell() + dtype.itemsize * math.prod(shape) != len(content):
        raise WeightsError(f"holds {member.filename!r}, which is not of the size that it says; {_AGAIN}")
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, content, header.tell(), order="F" if column_major else "C")
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:  # numpy knows bfloat16 as two bytes
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if dtype.kind not in "fiubc":
        raise WeightsError(f"holds {member.filename!r} of type {dtype}, which is no number; save plain arrays instead")
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))


def _without_the_rest(content: Any, known: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The tensors of a file, nested as they were; one dict in several places, or in itself, is read once."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"holds one {type(content).__name__}, not names and tensors; save model.state_dict()")
    kept = known[id(content)] = dict[str, Any]()
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            kept[name] = _checked(name, value)
        elif isinstance(value, Mapping):
            kept[name] = known[id(value)] if id(value) in known else _without_the_rest(value, known)
    return kept


def _checked(name: str, tensor: Tensor) -> Tensor:
    """The tensor, if each of its elements has bytes of its own in the file: no stride of zero makes much of little."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
        raise WeightsError(f"holds {name!r}, which is no plain dense tensor; save it as one, in floating point")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(f"holds {name!r}, whose {tuple(tensor.shape)} is more than the file has; do not trust it")
    tensor = tensor.resolve_neg()
    return tensor.detach() if tensor.requires_grad or type(tensor) is not Tensor else tensor
