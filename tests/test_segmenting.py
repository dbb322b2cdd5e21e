"""segment: photographs of any kind in, masks of their own size out, one at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import FAMILIES, small_model
from torch import Tensor

from whitebox_crate import ImageTransformer, InputError, UnknownNameError, WeightsError, create_model, segment
from whitebox_crate.segmentation import EDGES, METHODS, attention_masks, cls_attention, default_layer, upsample

SAMPLES = Path(__file__).parents[1] / "src" / "whitebox_crate" / "samples"


@pytest.fixture(scope="module")
def model() -> ImageTransformer:
    return small_model(FAMILIES["crate"], dynamic_img_size=True)


def noise(width: int = 70, height: int = 50) -> Image.Image:
    return Image.effect_noise((width, height), 60).convert("RGB")


def test_one_call(tmp_path: Path) -> None:
    found = segment(SAMPLES / "coffee.jpg")
    height, width = 280, 420
    assert found.photo.size == (width, height) and found.source == SAMPLES / "coffee.jpg"
    assert found.mask.shape == (height, width) and found.mask.dtype == torch.bool
    assert found.masks.shape == (1, height, width) and found.boxes.shape == (1, 4)
    assert found.maps.shape[1:] == found.map.shape == (24, 36)
    x, y, wide, high = found.boxes[0].tolist()
    assert found.mask[y : y + high, x : x + wide].sum() == found.mask.sum() > 0
    assert 0 < found.score == float(found.scores[0]) <= 1
    assert found.overlay().size == found.photo.size
    assert found._repr_html_().startswith("<img alt=")
    assert repr(found) == f"Segmentation(coffee.jpg, 420 x 280 pixels, 1 object, score {found.score:.2f})"
    assert repr(replace(found, source=None)) == f"Segmentation(420 x 280 pixels, 1 object, score {found.score:.2f})"
    nothing = replace(found, masks=found.masks[:0], scores=found.scores[:0])
    assert repr(nothing) == "Segmentation(coffee.jpg, 420 x 280 pixels, 0 objects)"


def test_whole_patches_are_those_of_attention_masks(model: ImageTransformer) -> None:
    """What segment composes, written out: attention of the measured layer, its rule, patches painted whole."""
    photo = noise(60, 48)
    found = segment(photo, model, "attention", edges="patches", size=48, head=1)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(of)[:, None, None] for of in (model.pretrained_cfg.mean, model.pretrained_cfg.std))
    maps = cls_attention(model, (pixels - mean)[None] / std, default_layer(model))
    assert torch.equal(found.mask, upsample(attention_masks(maps, rule="mean"), (48, 60))[0, 1])


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("method", METHODS)
def test_objects_are_disjoint_and_of_the_size_of_the_photograph(
    model: ImageTransformer, method: str, edges: str
) -> None:
    found = segment(noise(), model, method, edges=edges)
    assert found.masks.shape == (len(found.scores), 50, 70)
    assert (found.masks.sum(0) <= 1).all() and found.masks.flatten(1).any(1).all()


def kinds() -> Iterator[tuple[str, Any]]:
    photo = noise()
    array = np.array(photo)
    yield "pillow", photo
    yield "numpy", array
    yield "torch", torch.from_numpy(array).permute(2, 0, 1)


def test_a_photograph_of_any_kind_is_the_same_photograph(model: ImageTransformer, tmp_path: Path) -> None:
    noise().save(tmp_path / "photo.png")
    array = np.array(Image.open(tmp_path / "photo.png"))
    as_tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = segment(tmp_path / "photo.png", model)
    for image in (str(tmp_path / "photo.png"), Image.open(tmp_path / "photo.png"), array, as_tensor):
        found = segment(image, model)
        assert torch.equal(found.mask, expected.mask) and torch.equal(found.map, expected.map)
    for images in ([array, array], (array for _ in range(2)), np.stack([array] * 2), torch.stack([as_tensor] * 2)):
        several = list(segment(images, model))
        assert len(several) == 2 and all(torch.equal(found.mask, expected.mask) for found in several)


def test_a_folder_is_looked_at_photograph_by_photograph(model: ImageTransformer, tmp_path: Path) -> None:
    names = ["a.png", "c.PNG", "d.png"]
    for name in names:
        noise().save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("no photograph")
    (tmp_path / ".hidden.png").write_bytes(b"no photograph")
    found = segment(tmp_path, model)
    assert next(found).source == tmp_path / "a.png"
    (tmp_path / "c.PNG").unlink()  # would be noticed had it been read already
    with pytest.raises(InputError, match=r"c\.PNG"):
        next(found)


def test_a_model_that_was_made_stays_where_it_is_and_as_it_is(model: ImageTransformer) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = segment(noise(), model.double(), device="cpu")
    assert found.map.dtype == torch.float32 and not found.map.requires_grad
    assert model.cls_token.dtype == torch.float64
    model.float()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_function_of_ones_own(model: ImageTransformer) -> None:
    def top(features: Tensor, grid: tuple[int, int]) -> Tensor:
        return (torch.arange(grid[0]) < grid[0] // 2)[:, None].expand(grid)

    found = segment(noise(48, 48), model, top, edges="patches")
    assert found.mask[:24].all() and not found.mask[24:].any()
    nothing = segment(noise(), model, lambda features, grid: torch.zeros(grid, dtype=torch.bool))
    assert nothing.masks.shape == (0, 50, 70) and not nothing.mask.any() and nothing.score == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.panel().width > 0 and nothing.overlay().size == (70, 50)


def test_an_object_that_edges_leave_no_pixel_is_none(model: ImageTransformer) -> None:
    """As a small one may be that lies in a larger one, whose outline is drawn over it."""

    def halves(features: Tensor, grid: tuple[int, int]) -> Tensor:
        top = (torch.arange(grid[0]) < grid[0] // 2)[:, None].expand(grid)
        return torch.stack([top, ~top])

    def only_the_second(levels: Tensor, photo: Tensor) -> Tensor:
        masks = upsample(levels > 0, (photo.shape[1], photo.shape[2]))
        return masks & (torch.arange(len(levels)) == 1)[:, None, None]

    found = segment(noise(48, 48), model, halves, edges=only_the_second)
    assert found.masks.shape == (1, 48, 48) and found.boxes.tolist() == [[0, 24, 48, 24]] and len(found.scores) == 1


def text_file(folder: Path) -> Path:
    path = folder / "text.jpg"
    path.write_text("no photograph")
    return path


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (text_file, "text.jpg"),
        (lambda folder: folder, "holds no image"),
        (lambda folder: folder / "missing.jpg", "missing.jpg"),
        (lambda folder: noise(1, 1), "1 x 1"),
        (lambda folder: noise(900, 1), "900 x 1"),
        (lambda folder: np.zeros((5, 5)), "uint8"),
        (lambda folder: 7, "int"),
        (lambda folder: None, "NoneType"),
    ],
)
def test_what_is_no_photograph(model: ImageTransformer, tmp_path: Path, image: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        segment(image(tmp_path), model)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"model": "crate_nan"}, UnknownNameError, "crate_nano"),
        ({"model": "crate_base"}, WeightsError, "pretrained"),
        ({"model": torch.nn.Linear(2, 2)}, InputError, "Linear"),
        ({"model": 3}, InputError, "not 3"),
        ({"method": "atention"}, UnknownNameError, "attention"),
        ({"method": "attention", "n": 2}, UnknownNameError, "'n'"),
        ({"edges": "smoth"}, UnknownNameError, "smooth"),
        ({"size": 0}, InputError, "not 0"),
        ({"layer": 6}, UnknownNameError, "layer 6"),
        ({"method": "attention", "head": 4}, UnknownNameError, "head 4"),
        ({"device": "abacus"}, InputError, "abacus"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        segment(noise(), **options)


def test_without_a_method_the_settings_tell(model: ImageTransformer) -> None:
    photo = noise()
    for settings, method in (({"head": 1, "rule": "mass"}, "attention"), ({"n": 2}, "maskcut")):
        assert torch.equal(segment(photo, model, **settings).map, segment(photo, model, method, **settings).map)


def test_a_setting_of_none_is_not_given(model: ImageTransformer) -> None:
    photo = noise()
    assert torch.equal(segment(photo, model, n=2, head=None).map, segment(photo, model, n=2).map)


def test_arguments_are_checked_before_the_first_of_several(tmp_path: Path) -> None:
    for wrong in ({"method": "atention"}, {"edges": "smoth"}, {"model": "crate_nan"}):
        with pytest.raises(UnknownNameError):
            segment([noise()], **wrong)


def test_a_large_photograph_has_a_large_mask(model: ImageTransformer) -> None:
    found = segment(Image.new("RGB", (7000, 6000), "grey"), model, size=24)
    assert found.mask.shape == (6000, 7000)


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory: you tried"), MemoryError()])
def test_too_little_memory_says_what_to_do(model: ImageTransformer, error: Exception) -> None:
    def greedy(features: Tensor, grid: tuple[int, int]) -> Tensor:
        raise error

    with pytest.raises(InputError, match="smaller size"):
        segment(noise(), model, greedy)


def test_errors_of_a_function_of_ones_own_come_through(model: ImageTransformer) -> None:
    def wrong(features: Tensor, grid: tuple[int, int]) -> Tensor:
        return features @ features

    with pytest.raises(RuntimeError, match="shapes"):
        segment(noise(), model, wrong)


def test_a_photograph_that_is_turned_has_its_mask_upright(model: ImageTransformer, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    noise(70, 50).save(tmp_path / "turned.jpg", exif=turned)
    found = segment(tmp_path / "turned.jpg", model)
    assert found.mask.shape == (70, 50) and found.photo.size == (50, 70)


def test_a_model_of_one_size_sees_the_photograph_resized_to_it() -> None:
    model = create_model("vit_tiny_patch16_224", img_size=(32, 64), depth=1).eval()
    found = segment(noise(), model)
    assert found.map.shape == (2, 4)
    assert found.maps.shape == (3, 2, 4)  # its heads, of one size
    assert found.mask.shape == (found.photo.height, found.photo.width)
    with pytest.raises(InputError, match="only images of 32 x 64, not size 48"):
        segment(noise(), model, size=48)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_model_segments_by_every_method(method: str, dtype: torch.dtype) -> None:
    cast = small_model(FAMILIES["crate"], dynamic_img_size=True).to(dtype)
    found = segment(noise(), cast, method)
    assert found.map.isfinite().all() and found.mask.shape == (50, 70)


def test_bytes_and_open_files_are_one_photograph_and_no_list_of_lines(model: ImageTransformer, tmp_path: Path) -> None:
    noise().save(tmp_path / "photo.png")
    content = (tmp_path / "photo.png").read_bytes()
    with open(tmp_path / "photo.png", "rb") as file:
        for photo in (file, io.BytesIO(content), content):
            with pytest.raises(InputError, match=r"got (BufferedReader|BytesIO|bytes).*PIL\.Image\.open"):
                segment(photo, model)
