"""Reads files of torch.save, archives and older ones. A storage must have the place and length in the pickle."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from .archives import AGAIN, check_expansion, read_member
from .pickles import LONGEST, Pickled, Storage, StoredTensor, follow

PICKLE, PROGRAM = "data.pkl", "constants.pkl"
MAGIC = (0x1950A86A20F9469CFC6C, 1001)  # an older file starts with torch's number and the version
MOST_AXES = 64
COUNT = 8  # bytes before each storage of an older file: its number of elements


def read_zip(archive: zipfile.ZipFile, root: str, size: int) -> dict[str, Any]:
    """The tensors of an archive whose members lie in the folder `root`, nested as in the file.

    Raises:
        WeightsError: If a storage is missing, damaged or has another length, or the file holds more than tensors.
    """
    if any(member.compress_type or member.compress_size != member.file_size for member in archive.infolist()):
        raise WeightsError(f"is not a file of torch.save, which does not compress; {AGAIN}")
    order = f"{root}/byteorder"
    if order in archive.namelist() and read_member(archive, order, most=16) != b"little":
        raise WeightsError("holds numbers in another byte order; save it on a machine like this one")
    pickled = follow(io.BytesIO(read_member(archive, f"{root}/{PICKLE}", most=LONGEST)))
    names = {storage: f"{root}/data/{storage.key}" for storage in pickled.storages.values()}
    sizes = {member.filename: member.file_size for member in archive.infolist()}
    for storage, name in names.items():
        if sizes.get(name) != storage.nbytes:
            raise _not_all_bytes(name)
    return _Tensors(lambda storage: read_member(archive, names[storage]), size).within(pickled.content)


def read_legacy(file: io.BufferedReader, size: int) -> dict[str, Any]:
    """The tensors of a file of torch before 1.6: five pickles, then the storages one after the other.

    Raises:
        WeightsError: If the storages do not fill the rest of the file exactly, or the file holds more than tensors.
    """
    start = io.BytesIO(file.read(LONGEST))
    magic, version, machine, pickled, keys = [follow(start) for _ in range(5)]
    little = isinstance(machine.content, dict) and machine.content.get("little_endian") is True
    if (magic.content, version.content) != MAGIC or not little:
        raise WeightsError(f"is not a file of torch.save, or comes from another kind of machine; {AGAIN}")
    places = _places(pickled, keys.content, start.tell())
    if places.pop("") != size:
        raise _not_all_bytes("the last storage")

    def read(storage: Storage) -> bytearray:
        content = bytearray(storage.nbytes)
        file.seek(places[storage.key])
        count = int.from_bytes(file.read(COUNT), "little")
        if count != storage.numel or file.readinto(content) != storage.nbytes:
            raise _not_all_bytes(f"the storage {storage.key!r}")
        return content

    return _Tensors(read, size).within(pickled.content)


def _places(pickled: Pickled, keys: Any, begin: int) -> dict[str, int]:
    """The start of each storage, in an older file's order; "" gives the end of the last one."""
    listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not listed or len(keys) != len(pickled.storages) or set(keys) != pickled.storages.keys() or "" in keys:
        raise _not_all_bytes("those of its tensors")
    places = {}
    for key in keys:
        places[key] = begin
        begin += COUNT + pickled.storages[key].nbytes
    return {**places, "": begin}


def _not_all_bytes(what: str) -> WeightsError:
    return WeightsError(f"does not hold exactly the bytes of its tensors: see {what[:200]}; {AGAIN}")


class _Tensors:
    """Makes tensors from the bytes of their storages. Each storage is read once.

    Args:
        read: Gives the bytes of a storage.
        size: Size of the file, which limits the size of the tensors.
    """

    def __init__(self, read: Callable[[Storage], bytearray], size: int) -> None:
        self._read, self._size = read, size
        self._rows: dict[str, Tensor] = {}
        self._total = 0
        self._known: dict[int, dict[str, Any]] = {}

    def within(self, content: Any) -> dict[str, Any]:
        """The tensors in a dict, nested as in the file. A dict in several places, or inside itself, is read once."""
        if not isinstance(content, dict):
            what = "tensor" if isinstance(content, StoredTensor) else type(content).__name__
            raise WeightsError(f"holds one {what}, not names and tensors; save model.state_dict()")
        kept = self._known[id(content)] = dict[str, Any]()
        for name, value in content.items():
            if isinstance(value, StoredTensor):
                kept[name] = self._tensor(name, value)
            elif isinstance(value, dict):
                kept[name] = self._known[id(value)] if id(value) in self._known else self.within(value)
        return kept

    def _tensor(self, name: str, stored: StoredTensor) -> Tensor:
        storage, size, stride = stored.storage, stored.size, stored.stride
        numbers = (stored.offset, *size, *stride)
        if not len(size) == len(stride) <= MOST_AXES or any(type(n) is not int or n < 0 for n in numbers):
            raise WeightsError(f"holds {name[:200]!r}, whose shape or strides are invalid; {AGAIN}")
        numel = math.prod(size)
        last = stored.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if numel > storage.numel or (numel and last >= storage.numel):
            raise WeightsError(f"holds {name[:200]!r}, whose {size} is more than the file has; do not trust it")
        self._total += numel * storage.dtype.itemsize  # one storage may hold many tensors, and each becomes weights
        check_expansion(self._total, self._size)
        if numel == 0:
            return torch.zeros(size, dtype=storage.dtype, device="cpu")
        if storage.key not in self._rows:
            self._rows[storage.key] = torch.frombuffer(self._read(storage), dtype=storage.dtype)
        view = self._rows[storage.key].as_strided(size, stride, stored.offset)
        return -view if stored.negative else view
