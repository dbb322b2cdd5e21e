"""All rows of attention on disk are those that capture gives, whole or not there, and never in memory at once."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import images_for, small_model

from whitebox_crate import capture, save_attention
from whitebox_crate.errors import InputError, OutputError, UnknownNameError

NAMES = ["crate_nano_patch6_96", "vit_nano_patch6_96", "crate_alpha_tiny_patch16_224"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 3, 1000])
@torch.no_grad()
def test_the_files_hold_what_capture_gives(name: str, chunk: int, tmp_path: Path) -> None:
    model = small_model(name)
    images = images_for(model)
    files = save_attention(model, images, tmp_path, layers=[0, -1], heads=[1], chunk=chunk, dtype="float32")
    assert [path.name for path in files.values()] == ["attention_00.npy", "attention_02.npy"]
    with capture(model, "attention", heads=[1], queries="all") as trace:
        model(images)
    for layer, path in files.items():
        saved = np.load(path, mmap_mode="r")
        np.testing.assert_allclose(saved, trace["attention", layer].numpy(), rtol=1e-5, atol=1e-7)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files.values())


@torch.no_grad()
def test_class_attention_has_one_row(tmp_path: Path) -> None:
    model = small_model("tost_tiny_12_patch8_224")
    images = images_for(model)
    files = save_attention(model, images, tmp_path, chunk=2, dtype="float32")
    with capture(model, "attention") as trace:
        model(images)
    assert [path.name for path in files.values()] == ["attention_03.npy", "attention_04.npy"]
    for layer, path in files.items():
        saved = np.load(path)
        assert saved.shape == (2, 2, 1, 7)
        np.testing.assert_allclose(saved, trace["attention", layer].numpy(), rtol=1e-5, atol=1e-7)
    with pytest.raises(UnknownNameError, match="layer 0 has no state 'attention'"):
        save_attention(model, images, tmp_path / "none", layers=[0])
    assert not (tmp_path / "none").exists()


def test_half_the_size_by_default_and_in_any_dtype_of_the_model(tmp_path: Path) -> None:
    model = small_model(NAMES[0]).bfloat16()
    [path] = save_attention(model, images_for(model).bfloat16(), tmp_path / "new" / "folder", layers=1).values()
    saved = np.load(path)
    assert saved.dtype == np.float16
    np.testing.assert_allclose(saved.astype(np.float32).sum(-1), 1, atol=2**-6)


def test_no_file_is_left_half_written(tmp_path: Path) -> None:
    model = small_model(NAMES[0])
    (tmp_path / "attention_00.npy").write_bytes(b"before")
    handle = model.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_attention(model, images_for(model), tmp_path)
    handle.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["attention_00.npy"]
    assert (tmp_path / "attention_00.npy").read_bytes() == b"before"
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_files_are_whole_before_they_get_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(NAMES[0])
    sizes, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: sizes.append(path.stat().st_size) or replace(path, to))
    with capture(model, "output"):  # for which the last layer runs twice
        files = save_attention(model, images_for(model), tmp_path, layers=[0, 0, -1])
    assert sizes == [path.stat().st_size for path in files.values()]
    assert sizes == 2 * [sizes[0]]


def test_what_does_not_fit_is_refused_before_it_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    model = small_model(NAMES[0])
    with pytest.raises(OutputError, match=r"fewer layers or heads"):
        save_attention(model, images_for(model), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"layers": [7]}, UnknownNameError, "no layer 7"),
        ({"heads": [9]}, UnknownNameError, "no head 9"),
        ({"chunk": 0}, InputError, "at least 1, not 0"),
        ({"dtype": "int8"}, UnknownNameError, "int8"),
    ],
)
def test_bad_input(wrong: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    model = small_model(NAMES[0])
    with pytest.raises(error, match=message):
        save_attention(model, images_for(model), tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = small_model(NAMES[0])
    with pytest.raises(OutputError, match="file"):
        save_attention(model, images_for(model), tmp_path / "file")
