"""The how-to pages quote messages as they are: each quoted one is said by the code, in the case that the page names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_models import small_model as small

from whitebox_crate import WhiteboxCrateError, capture, create_model, segment
from whitebox_crate.preprocess import fit_photo, resize_to_grid
from whitebox_crate.training import Recipe

PAGES = sorted((Path(__file__).parents[1] / "docs" / "howto").glob("*.md"))
OF_OTHERS = ("NOT_IMPLEMENTED : Could not find", "The expanded size of the tensor")  # tests/test_export.py, PyTorch


class Anything:
    """What a pickle may hold beside tensors."""


def photo() -> Image.Image:
    return Image.new("RGB", (40, 30))


def saved(folder: Path, what: object) -> str:
    torch.save(what, folder / "theirs.pth")
    return str(folder / "theirs.pth")


def load(file: str) -> object:
    return create_model("crate_pico", checkpoint_path=file)


def load_bytes(folder: Path, content: bytes) -> object:
    (folder / "page.pth").write_bytes(content)
    return load(str(folder / "page.pth"))


def read_state(**options: object) -> None:
    with capture(small("crate_nano"), options.pop("state", "attention"), **options):
        pass


def read_what_never_ran() -> None:
    with capture(small("crate_nano"), "attention") as trace:
        pass
    trace["attention", -1]


def run_out_of_memory() -> None:
    def greedy(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    segment(photo(), small("crate_nano", dynamic_img_size=True), greedy)


# What leads to the messages of each page, in the order of its table.
CASES: dict[str, list[Callable[[Path], object]]] = {
    "attention": [
        lambda _: capture(torch.nn.Linear(2, 2), "attention").__enter__(),
        lambda _: read_state(state="attenton"),
        lambda _: read_what_never_ran(),
        lambda _: read_state(layers=[12]),
    ],
    "resolution": [
        lambda _: create_model("crate_nano", img_size=100),
        lambda _: create_model("crate_nano", dynamic_img_size=False)(torch.zeros(1, 3, 192, 192)),
        lambda _: fit_photo(create_model("crate_nano", dynamic_img_size=False), photo(), 192),
        lambda _: resize_to_grid(photo(), 6, 100_000),
        lambda _: run_out_of_memory(),
    ],
    "heads": [
        lambda _: read_state(layers=[12]),
        lambda _: read_state(heads=[9]),
        lambda _: segment(photo(), method="multiscale", head=2),
    ],
    "checkpoints": [
        lambda folder: load(saved(folder, {"a": torch.zeros(3)})),
        lambda folder: load(saved(folder, create_model("crate_nano").state_dict())),
        lambda folder: load(saved(folder, {"model": {"a": torch.zeros(3)}, "args": Anything()})),
        lambda folder: load_bytes(folder, b"no weights"),
        lambda folder: load_bytes(folder, b"<!DOCTYPE html><html>"),
        lambda folder: load(str(folder / "gone.pth")),
    ],
    "offline": [
        lambda folder: create_model("vit_small_patch8_224.dino", pretrained=True, cache_dir=folder),
        lambda folder: create_model(f"local-dir:{folder}/gone", pretrained=True),
        lambda _: create_model("crate_base", pretrained=True),
    ],
    "gpus": [
        lambda _: segment(photo(), device="cuda:99"),
        lambda _: Recipe(batch_size=10).part_size(3),
        lambda _: run_out_of_memory(),
    ],
    "browser": [lambda _: read_what_never_ran()],
}


def quoted(page: Path) -> list[str]:
    """The messages in the first column of the table of messages, without those of others."""
    table = page.read_text(encoding="utf-8").partition("| Message |")[2]
    messages = re.findall(r"^\| `(.+?)`[^|]*\|", table, re.MULTILINE)
    return [message for message in messages if not message.startswith(OF_OTHERS)]


@pytest.mark.parametrize("name", CASES)
def test_a_message_that_a_page_quotes_is_what_is_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    messages = quoted(PAGES[0].parent / f"{name}.md")
    assert len(messages) == len(CASES[name])
    for message, case in zip(messages, CASES[name], strict=True):
        with pytest.raises(WhiteboxCrateError) as raised:
            case(tmp_path)
        pattern = ".*".join(map(re.escape, message.split("…")))
        assert re.search(pattern, str(raised.value), re.DOTALL), f"{message}\nis not\n{raised.value}"


def test_every_page_with_messages_has_its_cases() -> None:
    assert {page.stem for page in PAGES if quoted(page)} == {*CASES}
