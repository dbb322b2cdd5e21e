"""What reads a model on a device finds what it finds on the processor: masks, maps, components, measurements."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled_images import make_folder
from PIL import Image
from small_models import FAMILIES, images_for, small_model
from torch import Tensor

from whitebox_crate import ImageTransformer, create_model, segment
from whitebox_crate._ahead import in_order
from whitebox_crate.analysis import (
    attention_rollout,
    explain,
    head_contributions,
    intervene,
    layerwise_analysis,
    logit_lens,
    replace_states,
    subspace_report,
    verify_descent,
)
from whitebox_crate.attention_files import save_attention
from whitebox_crate.evaluation import Run, evaluate_attention, evaluate_masks, read_folder
from whitebox_crate.segmentation import (
    EDGES,
    METHODS,
    all_cls_attention,
    attention_masks,
    best_head_iou,
    class_maps,
    guided_filter,
    mask_boxes,
    maskcut,
    maskcut_of,
    maskcut_rounds,
    membership_maps,
    patch_features,
)
from whitebox_crate.segmentation.pca import patch_pca, pca_maps

pytestmark = pytest.mark.cuda


@pytest.fixture(params=["crate", "cbt", "tost", "vit"])
def here(request: pytest.FixtureRequest) -> ImageTransformer:
    return small_model(FAMILIES[str(request.param)], dynamic_img_size=True)


@pytest.fixture
def crate() -> ImageTransformer:
    return small_model(FAMILIES["crate"], dynamic_img_size=True)


def photograph() -> Image.Image:
    """A disc on noise."""
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    disc = ((rows - 30) ** 2 + (columns - 35) ** 2 < 300).numpy()
    photo = Image.effect_noise((80, 60), 60).convert("RGB")
    photo.paste((200, 40, 30), mask=Image.fromarray(disc.astype("uint8") * 255))
    return photo


def close(have: Any, want: Any, within: float = 1e-3) -> None:
    torch.testing.assert_close(have.detach().cpu(), want.detach().cpu(), rtol=within, atol=within)


def mostly_equal(have: Tensor, want: Tensor) -> None:
    """Masks whose levels differ by rounding differ in few pixels."""
    assert have.shape == want.shape
    assert (have.cpu() == want.cpu()).float().mean() > 0.97


@pytest.mark.parametrize("method", METHODS)
def test_segment(here: ImageTransformer, method: str, device: torch.device) -> None:
    if method == "class" and type(here).__name__ in ("CBT", "ToST"):
        pytest.skip("class maps are of attention that mixes patches in each layer")
    photo = photograph()
    found, wanted = (segment(photo, model, method) for model in (copy.deepcopy(here).to(device), here))
    assert found.masks.device.type == found.map.device.type == "cpu"
    mostly_equal(found.mask, wanted.mask)
    close(found.map, wanted.map)


@pytest.mark.parametrize("edges", EDGES)
def test_edges(edges: str, device: torch.device) -> None:
    levels = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3))
    photo = torch.randint(256, (3, 60, 80), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    found = EDGES[edges](levels.to(device), photo.to(device))
    assert found.device.type == device.type
    mostly_equal(found, EDGES[edges](levels, photo))


@pytest.mark.real
def test_several_photographs_at_once(crate: ImageTransformer, device: torch.device) -> None:
    photos = [photograph() for _ in range(5)]
    there = crate.to(device)
    alone, together = (list(in_order(lambda photo: segment(photo, there), photos, workers)) for workers in (1, 3))
    assert all(torch.equal(one.masks, other.masks) for one, other in zip(alone, together, strict=True))


def test_maskcut(crate: ImageTransformer, device: torch.device) -> None:
    features = torch.randn(48, 20, generator=torch.Generator().manual_seed(5)) + 2 * torch.eye(48)[:, :20]
    found = maskcut(features.to(device), (6, 8))
    assert found.device.type == device.type
    mostly_equal(found, maskcut(features, (6, 8)))
    assert len(maskcut_rounds(features.to(device), (6, 8))) == 3
    images = images_for(crate, grid=(6, 8))
    objects = maskcut_of(copy.deepcopy(crate).to(device), images.to(device))
    assert objects.masks.device.type == objects.boxes.device.type == device.type
    mostly_equal(objects.masks, maskcut_of(crate, images).masks)


def test_maps_and_features(here: ImageTransformer, device: torch.device) -> None:
    images, there = images_for(here), copy.deepcopy(here).to(device)
    with torch.no_grad():
        maps, wanted = all_cls_attention(there, images.to(device)), all_cls_attention(here, images)
        features, grid = patch_features(there, images.to(device))
        close(features, patch_features(here, images)[0])
    close(maps, wanted)
    for rule in ("mass", "entries", "mean"):
        masks = attention_masks(maps, rule=rule)
        assert masks.device.type == device.type
        assert mask_boxes(masks).device.type == device.type
    target = torch.zeros(grid, dtype=torch.bool, device=device)
    target[0] = True
    best_head_iou(attention_masks(maps[:, 0], rule="mean"), target.expand(len(images), *grid))
    for components in (pca_maps(features, grid, 3), patch_pca(features, grid).rgb):
        assert {one.device.type for one in components} == {device.type}
    if hasattr(here.layers()[0].attention, "membership"):
        membership_maps(there, images.to(device))


def test_guided_filter(device: torch.device) -> None:
    guide, values = torch.rand(3, 20, 30), torch.rand(20, 30)
    close(guided_filter(guide.to(device), values.to(device), 4), guided_filter(guide, values, 4))


def readers(model: ImageTransformer, images: Tensor) -> dict[str, Callable[[], Any]]:
    """Analyses by name; each gives a tensor, or what its page says."""
    return {
        "class_maps": lambda: class_maps(model, images, 1),
        "rollout": lambda: attention_rollout(model, images),
        "logit_lens": lambda: logit_lens(model, images).logits,
        "contributions": lambda: head_contributions(model, images, 1),
        "layerwise": lambda: layerwise_analysis(model, [images, images]).table(),
        "descent": lambda: verify_descent(model, [images, images]).table(),
        "subspaces": lambda: subspace_report(model).table(),
        "explain": lambda: explain(model),
    }


# These read weights by their type, which is another one on a pretended device.
BY_TYPE = ("descent", "subspaces", "explain")


@pytest.mark.parametrize(
    "reader",
    [pytest.param(name, marks=[pytest.mark.real] * (name in BY_TYPE)) for name in readers(None, None)],  # type: ignore[arg-type]
)
def test_analysis(crate: ImageTransformer, reader: str, device: torch.device) -> None:
    images = images_for(crate)
    found = readers(copy.deepcopy(crate).to(device), images.to(device))[reader]()
    wanted = readers(crate, images)[reader]()
    if isinstance(wanted, Tensor):
        close(found, wanted)
    elif isinstance(wanted, str):
        assert len(found) == len(wanted)


@torch.no_grad()
def test_interventions(crate: ImageTransformer, device: torch.device) -> None:
    images, there = images_for(crate), copy.deepcopy(crate).to(device)
    other = torch.zeros(len(images), 7, 48)
    outputs = []
    for model, at in ((there, device), (crate, torch.device("cpu"))):
        with (
            intervene(model, sparsity=0.3, mask_heads={1: [0]}),
            replace_states(model, {("output", 0): other.to(at)}, tokens=[2]),
        ):
            outputs.append(model(images.to(at)))
    close(*outputs)


def test_attention_files(crate: ImageTransformer, device: torch.device, tmp_path: Path) -> None:
    images = images_for(crate)
    for name, model, seen in (("there", copy.deepcopy(crate).to(device), images.to(device)), ("here", crate, images)):
        save_attention(model, seen, tmp_path / name)
    sizes = [
        sorted((path.name, path.stat().st_size) for path in (tmp_path / name).rglob("*") if path.suffix == ".npy")
        for name in ("there", "here")
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("evaluate", [evaluate_attention, evaluate_masks])
def test_evaluation(evaluate: Any, device: torch.device, tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 3)
    model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
    scores = []
    for name, at in (("there", device), ("here", torch.device("cpu"))):
        run, data = Run(tmp_path / name), read_folder(tmp_path / "data")
        found = evaluate(run, copy.deepcopy(model).to(at), data, name="crate_nano", size=48)
        assert found is not None
        scores.append(len(found.table.splitlines()))
    assert scores[0] == scores[1]
