"""Reads arrays of numpy.savez: each header must agree with the bytes."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ..errors import WeightsError
from .archives import AGAIN, read_member

SUFFIX = ".npy"
# Parts of a JAX training state that are not weights. They are twice as large as the weights and are not read.
NOT_WEIGHTS = ("opt", "chrono")
LONGEST_HEADER = 1 << 17  # bytes of an array's header; numpy takes far fewer
_HEADERS: dict[tuple[int, int], Callable[[BinaryIO], Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def read_arrays(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """The arrays by name, without those of a JAX optimizer."""
    names = [member.removesuffix(SUFFIX) for member in archive.namelist()]
    return {name: _read_array(archive, name + SUFFIX) for name in names if name.split("/")[0] not in NOT_WEIGHTS}


def _read_array(archive: zipfile.ZipFile, name: str) -> Tensor:
    content = read_member(archive, name)
    header = io.BytesIO(content[:LONGEST_HEADER])
    shape, column_major, dtype = _HEADERS[npy.read_magic(header)](header)
    if dtype.hasobject:
        raise WeightsError(f"holds Python objects in {name!r}, which can run code; save plain arrays instead")
    if header.tell() + dtype.itemsize * math.prod(shape) != len(content):
        raise WeightsError(f"holds {name!r}, whose size differs from its header; {AGAIN}")
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, content, header.tell(), order="F" if column_major else "C")
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:  # numpy knows bfloat16 as two bytes
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if dtype.kind not in "fiubc":
        raise WeightsError(f"holds {name!r} of type {dtype}, which is no number; save plain arrays instead")
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))
