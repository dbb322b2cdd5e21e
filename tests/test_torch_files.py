"""Files of torch.save that are damaged or made to do harm: tensors have the bytes that were saved, or are refused."""

import io
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import legacy_bytes, pickle_span, rezipped, torch_bytes, watchdog
from stored_bytes import torch_read

from whitebox_crate.convert.files import read_checkpoint
from whitebox_crate.convert.pickles import MOST_INSTRUCTIONS
from whitebox_crate.errors import WeightsError

KINDS: dict[str, Callable[[Any], bytes]] = {"zip": torch_bytes, "legacy": legacy_bytes}
each_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def content_of(kind: str) -> bytes:
    generator = torch.Generator().manual_seed(3)
    return KINDS[kind]({"weight": torch.randn(7, 9, generator=generator), "bias": torch.randn(5, generator=generator)})


def read(content: bytes, folder: Path) -> dict[str, Any]:
    (folder / "file").write_bytes(content)
    with watchdog():
        return read_checkpoint(folder / "file")


def refused(content: bytes, folder: Path) -> str:
    with pytest.raises(WeightsError) as raised:
        read(content, folder)
    assert len(str(raised.value)) < 1000
    return str(raised.value)


def with_pickle(kind: str, opcodes: bytes) -> bytes:
    """A file of torch.save whose pickle is another one."""
    content = content_of(kind)
    if kind == "zip":
        return rezipped(content, lambda name, held: opcodes if name.endswith("data.pkl") else held)
    begin, end = pickle_span(content)
    return content[:begin] + opcodes + content[end:]


# What a pickle asks for

DEEP = b")" + b"q\x00h\x00\x86" * 45  # a tuple of 2^45 empty ones, in 225 bytes
TEXT = b"X\x01\x00\x00\x00a"
BOMBS = {
    "a key": b"}" + DEEP + b"Ns.",
    "a key among others": b"}(" + TEXT + b"N" + DEEP + b"Nu.",
    "a part of a key": b"}" + DEEP + b"\x85Ns.",
    "a set": b"c__builtin__\nset\n](" + DEEP + b"e\x85R.",
    "a counter": b"ccollections\nCounter\n](" + DEEP + b"e\x85R.",
    "pairs": b"ccollections\nOrderedDict\n](](" + DEEP + b"Nee\x85R.",
    "attributes": b"ccollections\nOrderedDict\n)R" + DEEP + b"Nu\x86\x85b.",
    "a call": DEEP + b")R.",
    "a call's arguments": b"ctorch\nSize\n" + DEEP + b"\x85R.",
    "a new object": DEEP + b")\x81.",
    "what is filled": DEEP + b"NNs.",
    "a storage": DEEP + b"Q.",
    "the kind of a storage": b"(X\x07\x00\x00\x00storage" + DEEP + TEXT + TEXT + b"K\x01tQ.",
    "the key of a storage": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + DEEP + TEXT + b"K\x01tQ.",
    "the device of a storage": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + TEXT + DEEP + b"K\x01tQ.",
    "all of it": DEEP + b".",
}


@pytest.mark.parametrize("what", BOMBS)
@each_kind
def test_a_tuple_that_would_be_hashed_or_printed_without_end_is_refused(kind: str, what: str, tmp_path: Path) -> None:
    refused(with_pickle(kind, b"\x80\x02" + BOMBS[what]), tmp_path)


@pytest.mark.parametrize("at", range(5))
def test_every_pickle_of_an_older_file_is_looked_at(at: int, tmp_path: Path) -> None:
    content = content_of("legacy")
    bounds = [0, *(content.index(b".\x80\x02", begin) + 1 for begin in (0, 15, 21))]
    bounds += [*pickle_span(content)][1:]
    begin = bounds[at]
    end = bounds[at + 1] if at < 4 else content.index(b".", begin) + 1
    read(content[:begin] + content[begin:end] + content[end:], tmp_path)
    for bomb in (DEEP + b".", b"cos\nsystem\n.", b"}" + DEEP + b"Ns.", b"](" + DEEP + b"e."):
        refused(content[:begin] + b"\x80\x02" + bomb + content[end:], tmp_path)


@each_kind
def test_a_pickle_without_end_is_refused(kind: str, tmp_path: Path) -> None:
    assert "instructions" in refused(with_pickle(kind, b"\x80\x02" + b"N" * MOST_INSTRUCTIONS + b"."), tmp_path)
    assert "bytes" in refused(
        with_pickle(kind, b"\x80\x02}X" + struct.pack("<I", 1 << 24) + bytes(1 << 24) + b"0."), tmp_path
    )


@each_kind
def test_what_training_keeps_beside_weights_is_left_out(kind: str, tmp_path: Path) -> None:
    beside = {
        "best_acc1": np.float64(71.5),
        "scheduler": {"milestones": Counter({30: 1}), "last_epoch": 3, "names": {"a"}},
        "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        "shape": torch.Size([3]),
        "device": torch.device("cpu"),
        (1, 2): "a pair",
        0.5: "a share",
        None: "nothing",
    }
    weights = OrderedDict(weight=torch.nn.Parameter(torch.ones(2)))
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    found = read(KINDS[kind]({"model": weights, **beside}), tmp_path)
    assert found["model"].keys() == {"weight"} and found["model"]["weight"].tolist() == [1, 1]
    assert not found["scheduler"]["milestones"] and found.keys() == {"model", "scheduler", "optimizer"}


# Where the numbers are


@each_kind
def test_tensors_have_the_bytes_of_the_file(kind: str, tmp_path: Path) -> None:
    flat = torch.randn(60, generator=torch.Generator().manual_seed(3))
    saved = {
        "row": flat[3:17],
        "columns": flat[:12].view(3, 4).T,
        "spaced": flat[5:50:7],
        "negative": torch._neg_view(flat[:4]),
        "none": flat[:0].view(0, 3),
        "scalar": flat[7],
        **{str(dtype): flat[:5].to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.int16, torch.bool)},
    }
    content = KINDS[kind](saved)
    found, again = read(content, tmp_path), torch_read(content)
    assert found.keys() == saved.keys()
    for name, value in saved.items():
        assert torch.equal(found[name], value) and torch.equal(again[name], value), name
        assert found[name].dtype == value.dtype
    assert found["row"].untyped_storage().data_ptr() == found["spaced"].untyped_storage().data_ptr()


def test_no_bit_of_a_storage_changes_in_silence(tmp_path: Path) -> None:
    content = content_of("zip")
    begin = content.index(torch_read(content)["weight"].numpy().tobytes())
    for place in Random(5).sample(range(8 * 7 * 9 * 4), 60):
        changed = bytearray(content)
        changed[begin + place // 8] ^= 1 << place % 8
        assert "CRC" in refused(bytes(changed), tmp_path)


def test_a_member_that_is_said_to_be_a_folder_is_refused(tmp_path: Path) -> None:
    content = content_of("zip")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        place, count = archive.start_dir, len(archive.namelist())
    for _ in range(count):
        changed = bytearray(content)
        changed[place + 38] ^= 0x10
        refused(bytes(changed), tmp_path)
        place += 46 + sum(struct.unpack_from("<HHH", content, place + 28))


def _keys(change: Callable[[list[str]], list[str]]) -> Callable[[bytes], bytes]:
    def of(content: bytes) -> bytes:
        _, begin = pickle_span(content)
        end = content.index(b"e.", begin) + 2
        length, keys = struct.Struct("<I"), []
        at = begin
        while (at := content.find(b"X", at, end)) > 0:
            keys.append(content[at + 5 : at + 5 + length.unpack_from(content, at + 1)[0]].decode())
            at += 5 + len(keys[-1])
        told = b"".join(b"X" + length.pack(len(key)) + key.encode() for key in change(keys))
        return content[:begin] + b"\x80\x02](" + told + b"e." + content[end:]

    return of


OLDER: dict[str, Callable[[bytes], bytes]] = {
    "no keys": _keys(lambda keys: []),
    "a key less": _keys(lambda keys: keys[1:]),
    "a key twice": _keys(lambda keys: [keys[0], *keys]),
    "one key for another": _keys(lambda keys: [keys[0]] * len(keys)),
    "an unknown key": _keys(lambda keys: [*keys, "7"]),
    "the other order": _keys(lambda keys: keys[::-1]),
    "no list of keys": lambda content: content[: pickle_span(content)[1]] + b"\x80\x02N." + content[-300:],
    "nothing after the pickle": lambda content: content[: pickle_span(content)[1]],
    "a byte less": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\0",
    "a large storage": lambda content: content.replace(b"K\x3fN", b"J\x00\x00\x00\x40N", 1),
    "a small storage": lambda content: content.replace(b"K\x3fN", b"K\x05N", 1),
    "a storage of less than nothing": lambda content: content.replace(b"K\x3fN", b"J\xff\xff\xff\xffN", 1),
    "a part of a storage": lambda content: content.replace(b"K\x3fN", b"K\x3fK\x01", 1),
    "another count": lambda content: content.replace(struct.pack("<q", 63), struct.pack("<q", 62), 1),
}


@pytest.mark.parametrize("what", OLDER)
def test_the_storages_of_an_older_file_fill_it_to_the_byte(what: str, tmp_path: Path) -> None:
    content = content_of("legacy")
    assert torch.equal(read(content, tmp_path)["weight"], torch_read(content)["weight"])
    changed = OLDER[what](content)
    assert changed != content
    refused(changed, tmp_path)


def test_memory_is_not_asked_for_before_the_sizes_are_known_to_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("builtins.bytearray", lambda *of: asked.append(of))
    for kind in KINDS:
        large = content_of(kind).replace(b"K\x3f", b"J\x00\x00\x00\x40", 1)
        if kind == "zip":
            large = rezipped(content_of(kind), lambda name, held: held.replace(b"K\x3f", b"J\x00\x00\x00\x40", 1))
        refused(large, tmp_path)
    assert not any(isinstance(size, int) and size > 1 << 20 for [size] in asked)


SIZE, STRIDE, OFFSET = (b"K\x07K\x09\x86", b"K\x09K\x01\x86", b"QK\x00")  # of weight, (7, 9)
BEYOND = {
    "more rows": (SIZE, b"K\x08K\x09\x86"),
    "more columns": (SIZE, b"K\x07K\x0a\x86"),
    "another stride": (STRIDE, b"K\x0aK\x01\x86"),
    "an axis more": (SIZE, b"K\x07K\x09K\x01\x87"),
    "less than nothing": (SIZE, b"K\x07J\xff\xff\xff\xff\x86"),
    "no number": (SIZE, b"K\x07\x88\x86"),
    "an offset": (OFFSET, b"QK\x01"),
    "an offset before": (OFFSET, b"QJ\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("what", BEYOND)
@each_kind
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(kind: str, what: str, tmp_path: Path) -> None:
    begin, end = pickle_span(content_of(kind))
    pickled, (old, new) = content_of(kind)[begin:end], BEYOND[what]
    assert old in pickled and torch.equal(
        read(with_pickle(kind, pickled), tmp_path)["weight"], torch_read(content_of(kind))["weight"]
    )
    refused(with_pickle(kind, pickled.replace(old, new, 1)), tmp_path)


@each_kind
def test_one_storage_does_not_become_any_number_of_weights(kind: str, tmp_path: Path) -> None:
    weight = torch.ones(1 << 20)
    tied = {f"blocks.{number}": weight for number in range(3)}
    assert read(KINDS[kind](tied), tmp_path).keys() == tied.keys()
    assert "expand" in refused(KINDS[kind]({f"blocks.{number}": weight for number in range(30)}), tmp_path)
