"""What reads attention takes a CBT: with its exact mixing matrix, with what its authors plot, or says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import images_for, small_model
from torch import Tensor

from whitebox_crate import ImageTransformer, capture, save_attention, save_pretrained, segment
from whitebox_crate.analysis import (
    attention_rollout,
    head_contributions,
    head_outputs,
    intervene,
    layerwise_analysis,
    replace_states,
    report,
    subspace_matrices,
    subspace_report,
    verify_descent,
)
from whitebox_crate.analysis.layerwise import measurable
from whitebox_crate.cli import main
from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.images import load_image
from whitebox_crate.models import CBT
from whitebox_crate.preprocess import fit_photo
from whitebox_crate.segmentation import all_cls_attention, class_maps, cls_attention, patch_features
from whitebox_crate.segmentation.pca import pca_maps

COFFEE = Path(__file__).parents[1] / "src" / "whitebox_crate" / "samples" / "coffee.jpg"


@pytest.fixture(params=["released", "patches"])
def model(request: pytest.FixtureRequest) -> CBT:
    made = small_model("cbt_tiny_patch8_224", img_size=64, pool=request.param)
    assert isinstance(made, CBT)
    return made


@pytest.fixture
def images(model: ImageTransformer) -> Tensor:
    return images_for(model)


@torch.no_grad()
def test_maps_are_those_of_its_authors_for_its_own_rows_are_signed(model: CBT, images: Tensor) -> None:
    with capture(model, "attention", "authors_attention", layers=[1]) as trace:
        model(images)
    assert trace["attention", 1].amin() < 0
    rows = trace["authors_attention", 1]
    assert rows.amin() >= 0
    assert torch.equal(cls_attention(model, images, 1), rows[:, :, 0, 1:].unflatten(-1, (8, 8)))
    assert torch.equal(all_cls_attention(model, images)[:, 1], cls_attention(model, images, 1))


@torch.no_grad()
def test_rows_heads_and_chunks_are_asked_for_as_of_any_attention(model: CBT, images: Tensor) -> None:
    with capture(model, "attention", "representatives", queries="all") as whole:
        model(images)
    with capture(model, "attention", layers=[2], heads=[1], queries=[0, 5, -1], chunk=2) as some:
        model(images)
    torch.testing.assert_close(some["attention", 2], whole["attention", 2][:, [1]][:, :, [0, 5, -1]])
    assert whole["representatives", 0].shape == (2, 2, 64, 24)
    with pytest.raises(UnknownNameError, match="representatives"), capture(model, "membership"):
        pass


def test_gradients_of_the_logits_reach_the_mixing_matrix(model: CBT, images: Tensor) -> None:
    exact = model(images)
    with capture(model, "attention", queries="all", eager=True) as trace:
        logits = model(images)
    assert torch.equal(logits, exact)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), trace["attention", 0])
    assert gradient.shape == trace["attention", 0].shape and gradient.abs().amax() > 0
    with pytest.raises(InputError, match="no product"), capture(model, "authors_attention", eager=True):
        pass


def test_class_maps(model: CBT, images: Tensor) -> None:
    for method in ("relevance", "gradient_attention"):
        maps = class_maps(model, images, 1, method)  # type: ignore[arg-type]
        assert maps.shape == (2, 8, 8) and maps.amin() >= 0 and maps.amax() > 0


@torch.no_grad()
def test_a_state_of_another_image_takes_its_place(model: CBT, images: Tensor) -> None:
    one, other = images.split(1)
    for state in ("tokens", "projections", "compressed", "output"):
        with capture(model, state, layers=[0]) as trace:
            theirs = model(other)
        with replace_states(model, trace):
            replaced = model(one)
        # With `projections`, what goes around them by the skip is still the first image's.
        assert torch.allclose(replaced, theirs, atol=1e-5) == (state != "projections")
        assert not torch.allclose(replaced, model(one), atol=1e-4)
    with capture(model, "attention", layers=[0], queries="all") as trace:
        model(other)
    with pytest.raises(InputError, match="cannot be replaced"), replace_states(model, trace):
        pass


def test_a_rollout_of_signed_rows_is_refused(model: CBT, images: Tensor) -> None:
    with pytest.raises(InputError, match="whose rows are not shares"):
        attention_rollout(model, images)


def test_entropy_is_of_shares_alone(model: CBT, images: Tensor) -> None:
    assert "attention_entropy" not in measurable(model) and "coding_rate" in measurable(model)
    found = layerwise_analysis(model, [images], report=lambda _: None)
    assert tuple(found.series) == measurable(model)
    with pytest.raises(InputError, match=r"signed.*attention_entropy"):
        layerwise_analysis(model, [images], quantities=["attention_entropy"], report=lambda _: None)
    assert "attention_entropy" in measurable(small_model("crate_tiny_patch16_224"))


def test_its_claims_are_those_of_a_compressing_layer_that_codes(model: CBT, images: Tensor) -> None:
    found = verify_descent(model, [images], report=lambda _: None)
    assert {verdict.claim for verdict in found.verdicts} == {"compression", "sparsity", "coding"}
    assert len(found.verdicts) == 9


@torch.no_grad()
def test_its_bases_are_those_of_its_heads(model: CBT, images: Tensor) -> None:
    with capture(model, "tokens", "projections", layers=[1]) as trace:
        model(images)
    normed = model.blocks[1].norm1(trace["tokens", 1])
    by_bases = torch.einsum("bnd,hdp->bhnp", normed, subspace_matrices(model, 1))
    torch.testing.assert_close(by_bases, trace["projections", 1])
    found = subspace_report(model)
    assert found.bases == "CBSA" and all(layer.alignment is not None for layer in found.layers)


@torch.no_grad()
def test_heads_add_up_and_are_switched_off(model: CBT, images: Tensor) -> None:
    with capture(model, "tokens", "compressed") as trace:
        logits = model(images)
    parts = head_outputs(model, images, queries="all")
    for layer in range(3):
        added = trace["compressed", layer] - trace["tokens", layer]
        torch.testing.assert_close(parts.total[:, layer], added, rtol=1e-4, atol=1e-5)
    with intervene(model, mask_heads={1: [0]}):
        without = model(images)
    told = head_contributions(model, images, 2, layers=[1])
    torch.testing.assert_close(told[:, 0, 0], (logits - without)[:, 2], rtol=1e-4, atol=1e-5)
    assert head_contributions(model, images, 2, method="gradient").shape == (2, 3, 2)


@torch.no_grad()
def test_all_rows_go_to_disk(model: CBT, images: Tensor, tmp_path: Path) -> None:
    with capture(model, "attention", layers=[1], queries="all") as trace:
        model(images)
    files = save_attention(model, images, tmp_path, layers=[1], chunk=7, dtype="float32")
    np.testing.assert_allclose(np.load(files[1]), trace["attention", 1].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["attention", "multiscale", "maskcut", "class"])
def test_a_photograph_is_segmented_by_every_method(method: str) -> None:
    sizes = {"img_size": 64, "dynamic_img_size": True, "num_classes": 4}
    found = segment(COFFEE, small_model("cbt_tiny_patch8_224", **sizes), method=method, size=64)
    photo = load_image(COFFEE)
    assert found.mask.shape == (photo.height, photo.width)


@pytest.mark.parametrize("pool", ["released", "patches"])
def test_the_released_pooling_sees_a_photograph_as_a_square(pool: str) -> None:
    model = small_model("cbt_tiny_patch8_224", img_size=64, pool=pool, dynamic_img_size=True)
    assert model.square_images == (pool == "released")
    photo = load_image(COFFEE)
    seen = fit_photo(model, photo, 80).pixels
    assert seen.shape == ((3, 80, 80) if pool == "released" else (3, 80, 120))
    found = segment(COFFEE, model, size=80)
    assert found.mask.shape == (photo.height, photo.width)


def test_colours_of_its_projections_and_a_report(model: CBT, images: Tensor) -> None:
    features, grid = patch_features(model, images)
    assert [maps.shape for maps in pca_maps(features.detach(), grid, 3)] == [(3, 8, 8)] * 2
    sized = small_model("cbt_tiny_patch8_224", dynamic_img_size=True)
    page = report(sized, [("coffee", load_image(COFFEE))], short_side=64)
    assert "R_k = R^0_k + rho_k W_k A_k" in page and "Attention entropy" not in page


def test_one_command_draws_its_maps(model: CBT, tmp_path: Path) -> None:
    folder = save_pretrained(model, tmp_path / "model")
    drawn = tmp_path / "maps.png"
    assert main(["attention", str(COFFEE), "--model", f"local-dir:{folder}", "--out", str(drawn)]) == 0
    assert drawn.exists()
