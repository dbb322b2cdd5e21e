"""Fingerprints of a run's data without reading the pictures: their number, names, labels and sizes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import require

_AT_ONCE = 1000  # rows


def fingerprint_of_pictures(pictures: Any, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The fingerprint of pictures by number: their count, and digests of names, labels, and sizes in bytes.

    Args:
        pictures: A `datasets.Dataset` of one column, undecoded.
        labels: int64 (count,).
    """
    digest = hashlib.sha256(labels.tobytes()).hexdigest()[:16]
    return {"images": len(labels), "labels": digest, **_digests(_names_and_sizes(pictures))}


def fingerprint_of_files(files: Sequence[str]) -> dict[str, Any]:
    """The fingerprint of streamed files: their count, and digests of names and of sizes in bytes."""
    return {"files": len(files), **_digests((file, _size_of(file)) for file in files)}


def _digests(names_and_sizes: Iterable[tuple[str, int]]) -> dict[str, str]:
    names, sizes = hashlib.sha256(), hashlib.sha256()
    for name, size in names_and_sizes:
        # With the parent folder, which may be the class; higher folders may be moved.
        names.update(f"{os.sep.join(name.split(os.sep)[-2:])!r}\n".encode())
        sizes.update(b"%d\n" % size)
    return {"names": names.hexdigest()[:16], "sizes": sizes.hexdigest()[:16]}


def _names_and_sizes(pictures: Any) -> Iterator[tuple[str, int]]:
    arrow, compute = require("pyarrow", "train"), require("pyarrow.compute", "train")
    for table in pictures.with_format("arrow").iter(_AT_ONCE):
        column = table.column(0)
        paths = content = None
        if arrow.types.is_struct(column.type):
            paths, content = (compute.struct_field(column, field) for field in ("path", "bytes"))
        elif arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
            paths = column
        else:
            content = column
        names = [None] * len(column) if paths is None else paths.to_pylist()
        sizes = [None] * len(column) if content is None else compute.binary_length(content).to_pylist()
        for name, size in zip(names, sizes, strict=True):
            yield name or "", _size_of(name) if size is None else size


def _size_of(file: str | None) -> int:
    """The size in bytes; -1 for a remote or missing file."""
    try:
        return os.stat(file or "").st_size
    except (OSError, ValueError):
        return -1
