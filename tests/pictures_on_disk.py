"""Pictures that tell their numbers, in folders, parquet files and shards, for tests of reading and drawing them."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet

from whitebox_crate.training import Batch

datasets.disable_progress_bars()

CLASSES = ("ant", "bee", "cow")


def picture(number: int) -> bytes:
    """A plain picture that tells its number (below 256) by its colour, and its class by its number."""
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (number, number, number)).save(file, "PNG")
    return file.getvalue()


def numbers(batch: Batch) -> list[int]:
    assert torch.equal(batch.images.amin((1, 2, 3)), batch.images.amax((1, 2, 3)))
    return [round(255 * float(image.mean())) for image in batch.images]


def make_folder(root: Path, count: int = 12) -> Path:
    for number in range(count):
        path = root / CLASSES[number % 3] / "deeper" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return root


def noise(number: int) -> bytes:
    """A picture of which every part, and the mirror image, looks different."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_parquet(
    root: Path,
    shards: Iterable[int] = (5, 4, 3),
    labels: Any = CLASSES,
    drawn: Callable[[int], bytes] = picture,
) -> Path:
    root.mkdir(parents=True)
    number = itertools.count()
    for shard, count in enumerate(shards):
        rows = [next(number) for _ in range(count)]
        columns = {
            "id": rows,
            "image": [{"bytes": drawn(row), "path": None} for row in rows],
            "label": [labels[row % len(labels)] for row in rows],
        }
        parquet.write_table(pa.table(columns), root / f"{shard}.parquet")
    return root


def make_tar(root: Path, shards: Iterable[int] = (5, 4, 3)) -> Path:
    root.mkdir(parents=True)
    number = itertools.count()
    for shard, count in enumerate(shards):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for row in itertools.islice(number, count):
                for name, content in ((f"{row:03}.png", picture(row)), (f"{row:03}.cls", b"%d" % (row % 3))):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


MAKERS = {"folder": make_folder, "parquet": make_parquet, "tar": make_tar}
