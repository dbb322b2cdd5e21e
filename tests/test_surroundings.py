"""Wrong types, odd paths, broken installations and text of strangers: typed errors that a terminal can show."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import images_for, small_model
from torch.nn.attention import SDPBackend, sdpa_kernel

from whitebox_crate import capture, create_model, save_pretrained
from whitebox_crate._files import write_whole
from whitebox_crate.analysis import coding_rate
from whitebox_crate.errors import (
    LONGEST,
    InputError,
    MissingExtraError,
    OutputError,
    UnknownNameError,
    WeightsError,
    WhiteboxCrateError,
    printable,
    require,
)
from whitebox_crate.images import image_files, load_image
from whitebox_crate.segmentation import attention_masks, default_layer, maskcut, upsample
from whitebox_crate.training import open_images

LONG = "x" * 5000
MAPS = torch.rand(2, 4, 4)
WRONG: Any = None  # of any type, for calls that no type checker would let through


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: open_images(WRONG), "a data set cannot be a NoneType"),
        (lambda: upsample(MAPS, 8), "size cannot be a int; it is .height, width."),  # type: ignore[arg-type]
        (lambda: upsample(MAPS, (8.0, 8)), "size must be .height, width."),  # type: ignore[arg-type]
        (lambda: upsample(MAPS.numpy(), (8, 8)), "maps cannot be a ndarray; torch.as_tensor"),
        (lambda: attention_masks(MAPS.numpy()), "maps cannot be a ndarray; torch.as_tensor"),
        (lambda: attention_masks(MAPS, "all"), "keep cannot be a str"),  # type: ignore[arg-type]
        (lambda: maskcut(np.ones((16, 3)), (4, 4)), "features cannot be a ndarray"),
        (lambda: maskcut(torch.rand(16, 3), 4), "grid cannot be a int"),  # type: ignore[arg-type]
        (lambda: coding_rate(np.ones((16, 3)), 0.5), "tokens cannot be a ndarray"),
        (lambda: load_image(WRONG), "a photograph cannot be a NoneType"),
        (lambda: create_model("crate_pico", checkpoint_path=3), "checkpoint_path cannot be a int"),
    ],
)
def test_an_argument_of_another_type_is_said_to_be_one(call: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: create_model(LONG), UnknownNameError),
        (lambda: create_model("a/" * 4000), UnknownNameError),
        (lambda: create_model(f"local-dir:{LONG}"), WeightsError),
        (lambda: create_model("crate_pico", checkpoint_path=LONG), WeightsError),
        (lambda: save_pretrained(small_model("crate_tiny"), f"{LONG}"), OutputError),
        (lambda: save_pretrained(small_model("crate_tiny"), "a\0b"), OutputError),
    ],
)
def test_paths_that_cannot_be_are_refused(call: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


# Messages


def test_messages_are_printable_and_of_bounded_length() -> None:
    for hostile in ("\x1b[2J\x1b]0;title\x07", "\x9b31m", "\ud800", "\r\x08"):
        shown = str(InputError(f"label {hostile} é 漢\nnext"))
        assert all(c.isprintable() or c == "\n" for c in shown)
        assert "é 漢\nnext" in shown
        shown.encode()
    with pytest.raises(UnknownNameError) as caught:
        create_model("y" * 10**6)
    assert len(str(caught.value)) < LONGEST + 10 and "whitebox-crate list" in str(caught.value)
    assert issubclass(OutputError, WhiteboxCrateError) and str(OutputError("\x1b")) == "\\x1b"
    assert printable("plain text") == "plain text"


def test_a_dependency_that_is_there_and_broken_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in (("whole_part", "import gone_part"), ("old_part", "from json import gone_name")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name, why in (("whole_part", "gone_part"), ("old_part", "gone_name")):
        with pytest.raises(MissingExtraError, match=rf"but cannot be imported .*{why}.*--upgrade .*\[eval\]"):
            require(name, "eval")
    for name in ("gone_part", "gone_part.below", "json.gone_part"):
        with pytest.raises(MissingExtraError, match=rf"{name} is needed here and is not installed: pip install 'w"):
            require(name, "eval")


def test_facts_of_strangers_are_printable(tmp_path: Path) -> None:
    folder = save_pretrained(small_model("crate_tiny"), tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["license"] = "mit\ud800\x1b[2J"
    config["label_names"] = ["\x1b[2J", "b", "c", "d", "e"]
    (folder / "config.json").write_text(json.dumps(config))
    model = create_model(f"local-dir:{folder}", pretrained=True)
    assert model.pretrained_cfg.label_names[0] == "\\x1b[2J"
    card = save_pretrained(model, tmp_path / "ours") / "README.md"
    assert "license: mit\\ud800\\x1b[2J" in card.read_text(encoding="utf-8")


# Files


@pytest.mark.skipif(sys.platform == "win32", reason="has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_are_for_whom_the_umask_lets(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        save_pretrained(small_model("crate_tiny"), tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o666 & ~mask}


def test_the_longest_name_that_a_folder_takes_is_written(tmp_path: Path) -> None:
    name = "n" * 251 + ".png"
    write_whole(tmp_path / name, lambda path: path.write_text("whole"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_photographs_of_a_folder_are_those_that_can_be_read(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JFIF", "c.gif", "d.tga", "e.eps", "f.psd", "g.txt", ".h.jpg"):
        (tmp_path / name).touch()
    assert [path.name for path in image_files(tmp_path)] == ["a.jpg", "b.JFIF", "c.gif", "d.tga"]


# Models


def test_a_model_that_was_cut_is_read_at_a_layer_that_it_has() -> None:
    model = create_model("crate_nano", pretrained=True)
    measured = model.pretrained_cfg.attention_layer
    assert measured is not None and default_layer(model) == measured
    model.blocks = model.blocks[: measured + 1]
    assert default_layer(model) == measured
    model.blocks = model.blocks[:measured]
    assert default_layer(model) == measured - 2


@pytest.mark.parametrize("name", ["crate_tiny", "vit_nano_patch6_96"])
@pytest.mark.parametrize("heads", [None, [1]])
def test_projections_hold_no_more_memory_than_their_own(name: str, heads: list[int] | None) -> None:
    model = small_model(name)
    with torch.no_grad(), capture(model, "projections", heads=heads) as trace:
        model(images_for(model))
    for projections in trace.values():
        assert projections.untyped_storage().nbytes() == projections.nbytes


@pytest.mark.parametrize("name", ["crate_tiny", "vit_nano_patch6_96"])
def test_derivatives_of_the_second_order_and_forwards_with_plain_attention(name: str) -> None:
    model = small_model(name).double()
    images = images_for(model).double().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        [gradient] = torch.autograd.grad(model(images).sum(), images, create_graph=True)
        assert torch.autograd.grad(gradient.square().sum(), images)[0].isfinite().all()
        logits, change = torch.func.jvp(model, (images.detach(),), (torch.ones_like(images),))
    step = (model(images.detach() + 1e-6) - model(images.detach() - 1e-6)) / 2e-6
    torch.testing.assert_close(change, step, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits, model(images.detach()))
