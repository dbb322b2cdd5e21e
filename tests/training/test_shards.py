"""A shard that was cut short, or is damaged within, is named; a whole one is not."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from pictures_on_disk import make_parquet, make_tar, picture

from whitebox_crate.errors import InputError
from whitebox_crate.training import open_images
from whitebox_crate.training.shards import check_shards

BLOCK = 512


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return archive.getmembers()


def cut(path: Path, where: str) -> bytes:
    """A shard that ends too early, or holds what is no member."""
    content, found = path.read_bytes(), members(path)
    third, last = found[4], found[-1]  # a picture and its label make two
    return {
        "between members": content[: third.offset],
        "in a header": content[: third.offset + 100],
        "in a picture": content[: found[4].offset_data + 20],
        "before the end mark": content[: last.offset_data + BLOCK],
        "at the start": content[:100],
        "empty": b"",
        "a header spoilt": content[: third.offset] + bytes([255]) * BLOCK + content[third.offset + BLOCK :],
        "joined": content + content,
        "no archive": b"<html>" * 1000,
    }[where]


ENDS = ("between members", "in a header", "in a picture", "before the end mark", "at the start", "empty")


@pytest.mark.parametrize("where", [*ENDS, "a header spoilt", "joined", "no archive"])
def test_a_shard_that_is_not_whole_is_named(tmp_path: Path, where: str) -> None:
    root = make_tar(tmp_path / "tar")
    shard = root / "1.tar"
    shard.write_bytes(cut(shard, where))
    for found in (root, root / "*.tar"):
        with pytest.raises(InputError, match=r"the shard .*1\.tar is cut short or damaged"):
            open_images(found)


@pytest.mark.parametrize("where", ENDS)
def test_the_end_of_a_streamed_shard_is_looked_at(tmp_path: Path, where: str) -> None:
    root = make_tar(tmp_path / "tar")
    shard = root / "1.tar"
    shard.write_bytes(cut(shard, where))
    with pytest.raises(InputError, match=r"the shard .*1\.tar is cut short or damaged"):
        open_images(root, streaming=True, label_names=["0", "1", "2"])


def test_compressed_shards_are_looked_at_too(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "tar") / "1.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    for to_the_end in (True, False):
        check_shards([str(shard)], to_the_end)
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"1\.tar is cut short"):
        check_shards([str(shard)], to_the_end=True)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("padding", [0, 1024, 20 * BLOCK])
def test_whole_shards_of_every_kind_are_whole(tmp_path: Path, kind: int, padding: int) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=kind) as archive:
        for name in ("a" * 90, "b" * (200 if kind != tarfile.USTAR_FORMAT else 50), "folder"):
            info = tarfile.TarInfo(f"{name}.png")
            info.size = 0 if name == "folder" else len(picture(0))
            archive.addfile(info, io.BytesIO(picture(0)))
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content + bytes(-len(content) % BLOCK + 2 * BLOCK + padding))
    for to_the_end in (True, False):
        check_shards([str(path)], to_the_end)


def test_what_cannot_be_read_while_streaming_is_an_input_error(tmp_path: Path) -> None:
    path = make_parquet(tmp_path / "data", shards=(12,)) / "0.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(200) + content[300:])
    images: Any = open_images(path, streaming=True, label_names=["ant", "bee", "cow"])
    with pytest.raises(InputError, match=r"0\.parquet.*(cannot be read to its end|cannot be decoded)"):
        list(images.in_order(4))
