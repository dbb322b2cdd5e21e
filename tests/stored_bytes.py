"""What a file of torch.save holds, by neither the package's code nor torch's: its bytes, cut out of the file itself."""

import io
import pickle
import re
import struct
import zlib
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUMBERS = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?", "BFloat16Storage": "<u2",
    "ComplexFloatStorage": "<c8", "ComplexDoubleStorage": "<c16",
}  # fmt: skip
Pointer = tuple[str, str, int]  # type, key, length


def torch_read(content: bytes) -> Any:
    """What was saved, with tensors; whatever is not as it must be is an error."""
    return _zip(content) if content[:2] == b"PK" else _legacy(content)


def _zip(content: bytes) -> Any:
    members = members_of(content)
    [root] = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    assert members.get(f"{root}/byteorder", b"little") == b"little"
    found, _ = _unpickled(io.BytesIO(members[f"{root}/data.pkl"]), lambda pointer: members[f"{root}/data/{pointer[1]}"])
    return found


def members_of(content: bytes) -> dict[str, bytes]:
    """The members of a zip that compresses nothing, by its directory; what holds tensors must have its checksum."""
    end = content.rindex(b"PK\x05\x06")
    count, length, told = struct.unpack_from("<HII", content, end + 10)
    if content[end - 20 : end - 16] == b"PK\x06\x07":  # a longer end and its pointer come before
        end -= 76
        count, length, told = struct.unpack_from("<QQQ", content, end + 32)
    place, members = end - length, {}
    before = place - told  # another file, which the places in the directory do not count
    for _ in range(count):
        assert content[place : place + 4] == b"PK\x01\x02"
        method, checksum, packed, size = struct.unpack_from("<H4xIII", content, place + 10)
        name_length, extra, comment = struct.unpack_from("<HHH", content, place + 28)
        attributes, begin = struct.unpack_from("<II", content, place + 38)
        name = content[place + 46 : place + 46 + name_length].decode()
        begin += before + 30 + sum(struct.unpack_from("<HH", content, before + begin + 26))
        held = content[begin : begin + size]
        assert method == 0 and packed == size == len(held) and not attributes & 0x10
        assert name not in members and (zlib.crc32(held) == checksum or not re.search(r"/data(/\d+|\.pkl)$", name))
        members[name] = held
        place += 46 + name_length + extra + comment
    return members


def _legacy(content: bytes) -> Any:
    file = io.BytesIO(content)
    for _ in range(3):  # a magic number, the version, the sizes of C's types
        _unpickled(file, None)
    begin = file.tell()
    _, pointers = _unpickled(file, None)
    keys, _ = _unpickled(file, None)
    of_key = {pointer[1]: pointer for pointer in pointers}
    assert sorted(keys) == sorted(of_key) and len(set(pointers)) == len(of_key)
    held = {}
    for key in keys:
        kind, _, length = of_key[key]
        assert struct.unpack("<q", file.read(8)) == (length,)
        held[key] = file.read(length * np.dtype(NUMBERS[kind]).itemsize)
    assert not file.read()
    file.seek(begin)
    return _unpickled(file, lambda pointer: held[pointer[1]])[0]


def _unpickled(file: io.BytesIO, read: Callable[[Pointer], bytes] | None) -> tuple[Any, list[Pointer]]:
    """What a pickle holds, and the storages that it points to; without `read`, tensors are left out."""
    pointers = []
    rows: dict[str, np.ndarray[Any, Any]] = {}

    def rebuilt(pointer: Pointer, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor | None:
        if read is None:
            return None
        kind, key, length = pointer
        if key not in rows:
            rows[key] = np.frombuffer(read(pointer), NUMBERS[kind])
        assert len(rows[key]) == length and min([offset, *size, *stride, 0]) >= 0 and len(size) == len(stride)
        if 0 in size:
            picked = np.zeros(size, NUMBERS[kind])
        else:
            place = np.full(size, offset)
            for axis, step in enumerate(stride):
                place += step * np.arange(size[axis]).reshape([-1 if a == axis else 1 for a in range(len(size))])
            picked = rows[key][place]
        tensor = torch.from_numpy(np.array(picked))
        tensor = tensor.view(torch.bfloat16) if kind == "BFloat16Storage" else tensor
        return -tensor if len(rest) > 2 and rest[2].get("neg") else tensor

    class Unpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]  # of C, it takes memory for a far memo
        def find_class(self, module: str, name: str) -> Any:
            if module == "torch" and name in NUMBERS:
                return name
            return {
                "OrderedDict": OrderedDict,
                "Counter": Counter,
                "Namespace": Namespace,
                "Size": tuple,
                "_rebuild_tensor": rebuilt,
                "_rebuild_tensor_v2": rebuilt,
                "_rebuild_parameter": lambda value, *_: value,
            }[name]

        def persistent_load(self, pointer: Any) -> Pointer:
            assert pointer[0] == "storage" and pointer[1] in NUMBERS
            pointers.append((pointer[1], pointer[2], pointer[4]))
            return pointers[-1]

    return Unpickler(file).load(), pointers
