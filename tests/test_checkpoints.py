"""Files of every kind are read as they were written, and hostile or broken ones end in a typed error."""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from whitebox_crate.convert import archives, files, torch_files
from whitebox_crate.convert.files import read_checkpoint
from whitebox_crate.errors import WeightsError, WhiteboxCrateError


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def npz(content: dict[str, Tensor], path: Path, save: Callable[..., None] = np.savez) -> None:
    with path.open("wb") as file:
        save(file, **{name: value.numpy() for name, value in content.items()})


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "safetensors": save_file,
    "torch": torch.save,
    "legacy torch": legacy,
    "npz": npz,
    "compressed npz": lambda content, path: npz(content, path, np.savez_compressed),
}
each_kind = pytest.mark.parametrize("kind", WRITERS)


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "blocks.0.weight": torch.randn(5, 7, generator=generator),
        "double/bias": torch.randn(4, generator=generator, dtype=torch.float64),
        "half": torch.randn(2, 3, 4, generator=generator).half(),
        "count": torch.arange(3),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
    }


def refused(path: Path, said: str, **how: Any) -> str:
    with pytest.raises(WeightsError, match=said) as raised:
        read_checkpoint(path, **how)
    assert str(path) in str(raised.value)
    return str(raised.value)


def equal(have: dict[str, Any], want: dict[str, Tensor]) -> bool:
    return have.keys() == want.keys() and all(
        torch.equal(have[name], value) and have[name].dtype == value.dtype for name, value in want.items()
    )


# What is in a file


@each_kind
@pytest.mark.parametrize("name", ["model", "model.pth", "model.npz"])
def test_the_kind_is_told_by_the_content_whatever_the_name(kind: str, name: str, tmp_path: Path) -> None:
    WRITERS[kind](tensors(), tmp_path / name)
    assert equal(read_checkpoint(tmp_path / name), tensors())
    assert equal(read_checkpoint(str(tmp_path / name)), tensors())


@each_kind
@pytest.mark.parametrize("name", ["model.safetensors", "model.SafeTensors"])
def test_what_is_called_safetensors_is_that_or_refused(kind: str, name: str, tmp_path: Path) -> None:
    WRITERS[kind](tensors(), tmp_path / name)
    if kind == "safetensors":
        assert equal(read_checkpoint(tmp_path / name), tensors())
    else:
        refused(tmp_path / name, "called .safetensors and is none")


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_is_written_over_changes_what_is_mapped_alone(mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_file({"weight": torch.zeros(10_000)}, path)
    weight = read_checkpoint(path, mmap=mmap)["weight"]
    save_file({"weight": torch.ones(10_000)}, tmp_path / "new")
    shutil.copyfile(tmp_path / "new", path)  # into the same file, as cp does
    assert (weight == float(mmap)).all()


@each_kind
def test_a_file_that_is_written_to_while_it_is_read_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[kind](tensors(), tmp_path / "file")
    read = files._read

    def slowly(*how: Any) -> Any:
        with (tmp_path / "file").open("r+b") as file:
            os.utime(file.fileno(), ns=(0, 0))
        return read(*how)

    monkeypatch.setattr(files, "_read", slowly)
    refused(tmp_path / "file", "written to while it was read")


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_in_whose_place_another_comes_is_read_whole_or_refused(
    mmap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes, as `save_pretrained` writes it, where safetensors has read the header and maps the file."""
    one, other, path = {"weight": torch.ones(1000)}, {"weight": torch.full((2000,), 2.0).bfloat16()}, tmp_path / "file"
    save_file(one, path)
    map_file = torch.UntypedStorage.from_file

    def slowly(*args: Any, **how: Any) -> Any:
        save_file(other, tmp_path / "new")
        (tmp_path / "new").replace(path)
        return map_file(*args, **how)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", slowly)
    if mmap:
        refused(path, "written to while it was read", mmap=True)
        monkeypatch.undo()
        assert equal(read_checkpoint(path, mmap=True), other)
    else:
        assert equal(read_checkpoint(path), one)


@pytest.mark.parametrize("kind", ["torch", "legacy torch"])
def test_dicts_stay_nested_and_what_is_no_tensor_is_left_out(kind: str, tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    content = {"model": {"weight": weight, "name": "crate"}, "epoch": 3, "args": None, "log": [torch.ones(1)], 0: {}}
    WRITERS[kind](content, tmp_path / "file")
    read = read_checkpoint(tmp_path / "file")
    assert read.keys() == {"model"} and read["model"].keys() == {"weight"}
    assert type(read["model"]["weight"]) is Tensor and not read["model"]["weight"].requires_grad
    assert torch.equal(read["model"]["weight"], torch.ones(2, 2))


def test_arrays_in_any_order_and_of_any_kind_of_number(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "a.npz", columns=np.asfortranarray(values), big=values.astype(">f4"), yes=values > 2)
    read = read_checkpoint(tmp_path / "a.npz")
    assert read["columns"].tolist() == read["big"].tolist() == values.tolist()
    assert read["yes"].tolist() == (values > 2).tolist()
    assert read["big"].dtype == torch.float32


def test_bfloat16_that_numpy_knows_as_two_bytes(tmp_path: Path) -> None:
    values = torch.randn(3, 4).bfloat16()
    np.savez(tmp_path / "a.npz", weight=values.view(torch.int16).numpy().view("V2"))
    assert equal(read_checkpoint(tmp_path / "a.npz"), {"weight": values})


def test_the_states_of_an_optimizer_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    weights = {"params/head/kernel": np.ones(3), "opt/0/mu": np.full(99, 7.0), "chrono": np.full(99, 7.0)}
    np.savez(path, **weights)
    damaged = path.read_bytes().replace(np.full(99, 7.0).tobytes(), np.full(99, 8.0).tobytes())
    path.write_bytes(damaged)  # their checksums are now wrong, which shows if they are read
    assert equal(read_checkpoint(path), {"params/head/kernel": torch.ones(3, dtype=torch.float64)})
    np.savez(path, **{name.replace("opt/", "params/"): value for name, value in weights.items()})
    path.write_bytes(path.read_bytes().replace(np.full(99, 7.0).tobytes(), np.full(99, 8.0).tobytes()))
    refused(path, "damaged")


# Files that are not there or are something else


def test_files_that_are_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "gone.safetensors", "no file")
    refused(tmp_path, "folder")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    refused(tmp_path / "pipe", "no file")
    for error in (WhiteboxCrateError, RuntimeError):
        with pytest.raises(error):
            read_checkpoint(tmp_path / "gone.safetensors")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*args: object) -> None:
        raise PermissionError("Permission denied")

    save_file(tensors(), tmp_path / "file")
    monkeypatch.setattr(Path, "open", deny)
    refused(tmp_path / "file", "permission")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"weights", "neither"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (gzip.compress(b"weights", mtime=0), "gunzip"),
        (bytes(1000), "neither"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
        (b"\x80", "damaged"),
    ],
)
def test_other_files_are_named(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").write_bytes(content)
    refused(tmp_path / "file.safetensors", said)


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], 3])
def test_one_tensor_without_a_name_is_no_checkpoint(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file")
    refused(tmp_path / "file", "state_dict")


# Pickles that would run


class Bomb:
    """Makes a file if it is ever unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["bomb.pt", "bomb.safetensors", "bomb"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_never_runs(protocol: int, name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickle.dumps({"state_dict": Bomb(canary)}, protocol=protocol))
    refused(tmp_path / name, "neither" if protocol < 2 else "called" if name.endswith("safetensors") else "refused")
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["torch", "legacy torch"])
def test_a_checkpoint_that_would_run_code_is_refused_and_the_call_named(kind: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    WRITERS[kind]({"state_dict": {"weight": torch.ones(1)}, "hook": Bomb(canary)}, tmp_path / "bomb")
    said = refused(tmp_path / "bomb", r"asks for posix\.system")
    assert "safetensors" in said and "weights_only=False" not in said
    assert not canary.exists()


def test_a_model_saved_whole_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model")
    refused(tmp_path / "model", r"asks for torch\.nn\.modules\.linear\.Linear")


def test_arrays_of_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    np.savez(tmp_path / "a.npz", weight=np.array([Bomb(canary)], dtype=object))
    refused(tmp_path / "a.npz", "Python objects")
    assert not canary.exists()


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        for name in ("model/data.pkl", "model/constants.pkl", "model/code/__torch__.py"):
            archive.writestr(name, b"")
    refused(tmp_path / "model.pt", "TorchScript")


# Damage


@each_kind
@given(st.floats(0, 0.999))
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, kind: str, share: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "cut"
    WRITERS[kind]({"a": torch.ones(16, 16), "b": torch.ones(3)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "again")


@each_kind
@given(st.data())
def test_flipped_bits_end_in_tensors_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "flipped"
    WRITERS[kind]({"a": torch.ones(4, 4), "b": torch.ones(3)}, path)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    try:
        read = read_checkpoint(path)
    except WeightsError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(value, Tensor) for value in read.values())


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("deep"), OverflowError("large"), struct.error("short"), KeyError("storage")]
)
def test_whatever_a_decoder_raises_is_a_typed_error(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    torch.save(tensors(), tmp_path / "file")
    monkeypatch.setattr(torch_files, "follow", fail)
    refused(tmp_path / "file", "damaged")


# safetensors that lie


def safetensors_of(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ONE = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of({"a": ONE}, length=1 << 62),
        safetensors_of({"a": ONE}, length=200_000_000),
        safetensors_of({"a": ONE, "b": ONE}),
        safetensors_of({"a": {**ONE, "data_offsets": [0, 1 << 40], "shape": [1 << 38]}}),
        safetensors_of({"a": {**ONE, "shape": [1 << 40]}}),
        safetensors_of({"a": {**ONE, "shape": [-4]}}),
        safetensors_of({"a": {**ONE, "dtype": "F99"}}),
        safetensors_of({"a": ONE}, bytes(64)),
        safetensors_of({"a": 3}),
        safetensors_of({"a": {**ONE, "shape": [[[[]]]]}}),
    ],
)
def test_safetensors_that_lie_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    refused(tmp_path / "file", "again")


# Archives that lie


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, weight=np.zeros(100_000))
    assert read_checkpoint(path)["weight"].shape == (100_000,)  # a small one harms nobody
    monkeypatch.setattr(archives, "SMALL", 1000)
    refused(path, "expand")
    np.savez_compressed(path, weight=np.random.default_rng(0).normal(size=1000))
    assert read_checkpoint(path)["weight"].shape == (1000,)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_array_that_expands_further_than_it_says_is_not_unpacked(method: int, tmp_path: Path) -> None:
    """Python unpacks these without a bound: a kilobyte becomes gigabytes, of which it then keeps what is said."""
    out = io.BytesIO()
    np.save(out, np.zeros(4))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("a.npy", out.getvalue() + bytes(64 << 20))
        archive.filelist[0].file_size = len(out.getvalue())
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    tracemalloc.start()
    refused(tmp_path / "a.npz", "plain nor deflated")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_archives_of_torch_that_are_compressed_are_refused(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "file")
    with (
        zipfile.ZipFile(tmp_path / "file") as archive,
        zipfile.ZipFile(tmp_path / "smaller", "w", zipfile.ZIP_DEFLATED) as smaller,
    ):
        for member in archive.infolist():
            smaller.writestr(member.filename, archive.read(member))
    refused(tmp_path / "smaller", "does not compress")


def test_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("weight.npy", b"")
    refused(tmp_path / "a.npz", "several members")


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("a.npy", "b.npy"):
            archive.writestr(name, bytes(100))
        archive.filelist[1].header_offset = archive.filelist[0].header_offset
    refused(tmp_path / "a.npz", "overlap")


@pytest.mark.parametrize("name", ["../evil.npy", "/etc/evil.npy", "a/../../evil.npy", "..\\evil.npy"])
def test_names_that_leave_the_archive_are_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(name, b"")
    refused(tmp_path / "a.npz", "out of the archive")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_an_archive_of_other_things_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model.safetensors", b"")
    refused(tmp_path / "a.zip", "unpack it")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", "size differs from its header"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", "size differs from its header"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2)}", "damaged"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", "Python objects"),
        ("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,)}", "Python objects"),
        ("{'descr': '<U4', 'fortran_order': False, 'shape': (1,)}", "no number"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}", "no number"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), 'more': __import__('os')}", "damaged"),
        ("(" * 500, "damaged"),
    ],
)
def test_arrays_that_lie_are_refused(header: str, said: str, tmp_path: Path) -> None:
    text = header.encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(16))
    refused(tmp_path / "a.npz", said)


# Pickles that lie


def test_tensors_larger_than_what_is_stored_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1).expand(1 << 40)}, tmp_path / "file")
    refused(tmp_path / "file", "more than the file has")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.ones(3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "meta", "quantized"],
)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_tensors_that_are_not_dense_are_refused(make: Callable[[], Tensor], tmp_path: Path) -> None:
    torch.save({"weight": make()}, tmp_path / "file")
    refused(tmp_path / "file", "dense|damaged")


def test_dicts_in_themselves_and_in_many_places_are_read_once(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"weight": torch.ones(1)}
    loop["model"] = loop
    many: dict[str, Any] = {"weight": torch.ones(1)}
    for _ in range(60):  # 2 ** 60 ways lead to the weight
        many = {"model": many, "ema": many}
    torch.save({"loop": loop, "many": many}, tmp_path / "file")
    begun = time.perf_counter()
    read = read_checkpoint(tmp_path / "file")
    assert time.perf_counter() - begun < 5
    assert read["loop"]["model"] is read["loop"]


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    deep = b"}" + b"X\x01\x00\x00\x00a}" * 20_000 + b"s" * 20_000 + b"."  # {"a": {"a": ...
    saved = io.BytesIO()
    torch.save({}, saved)
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(tmp_path / "file", "w") as changed:
        for member in archive.infolist():
            content = b"\x80\x02" + deep if member.filename.endswith("data.pkl") else archive.read(member)
            changed.writestr(member.filename, content)
    refused(tmp_path / "file", "damaged")


def test_the_settings_of_a_training_script_are_left_out(tmp_path: Path) -> None:
    """MAE's and DINO's scripts save an argparse.Namespace beside the weights."""
    settings = Namespace(lr=1e-3, output_dir="out", nested=Namespace(a=1))
    for legacy in (False, True):
        torch.save(
            {"model": {"w": torch.ones(2)}, "args": settings, "epoch": 3},
            tmp_path / "c.pth",
            _use_new_zipfile_serialization=not legacy,
        )
        [(name, state)] = read_checkpoint(tmp_path / "c.pth").items()
        assert name == "model" and torch.equal(state["w"], torch.ones(2))
