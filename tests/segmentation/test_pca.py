"""PCA of patches: what it finds, and what does not change it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import GRID, images_for, small_model
from torch import Tensor

from whitebox_crate import InputError, UnknownNameError, capture, create_model
from whitebox_crate.segmentation import patch_features
from whitebox_crate.segmentation.pca import patch_pca, pca_maps, unit_range

ROWS, COLUMNS, DIM = 8, 10, 12


def planted(images: int = 3, noise: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of objects on a background, (images, tokens, dim), and which part each patch is of.

    Part 0 is the background; 1, 2 and 3 are the stripes of a box that is somewhere else in each image.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = torch.zeros(images, ROWS, COLUMNS, dtype=torch.long)
    for index, part in enumerate(parts):
        top, left = 1 + index % 3, 1 + index % 4
        for stripe in range(3):
            part[top : top + 4, left + stripe] = stripe + 1
    means = torch.eye(4, DIM)
    means[1:] = 0.4 * means[1:] + torch.eye(DIM)[4] * 3
    features = means[parts] + noise * torch.randn(images, ROWS, COLUMNS, DIM, generator=generator)
    return features.flatten(1, 2), parts


def rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)).double())[0].float()


def test_a_planted_object_and_its_parts_are_found() -> None:
    features, parts = planted()
    found = patch_pca(features, (ROWS, COLUMNS))
    assert torch.equal(torch.stack(found.foreground), parts > 0)
    colours = torch.stack(found.rgb).permute(0, 2, 3, 1)
    means = torch.stack([colours[parts == part].mean(0) for part in (1, 2, 3)])
    spread = max(float((colours[parts == part] - means[part - 1]).norm(dim=-1).max()) for part in (1, 2, 3))
    assert torch.pdist(means).min() > 0.3 and spread < 2 * torch.pdist(means).min()
    assert (colours[parts == 0] == 0).all()
    assert colours[parts > 0].amin(0).eq(0).all() and colours[parts > 0].amax(0).eq(1).all()


def test_an_object_that_covers_most_of_the_image_is_foreground_all_the_same() -> None:
    inside = torch.zeros(1, ROWS, COLUMNS, dtype=torch.bool)
    inside[:, 1:-1, 1:-1] = True
    features = torch.where(inside[..., None], torch.ones(DIM), -torch.ones(DIM)).flatten(1, 2)
    for sign in (1, -1):
        assert torch.equal(torch.stack(patch_pca(sign * features, (ROWS, COLUMNS)).foreground), inside)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e4]), shift=st.floats(-3, 3))
def test_rotation_scale_and_shift_of_the_features_change_nothing(seed: int, scale: float, shift: float) -> None:
    features, _ = planted(noise=0.3, seed=seed)
    moved = scale * (features + shift) @ rotation(DIM, seed)
    one, other = patch_pca(features, (ROWS, COLUMNS)), patch_pca(moved, (ROWS, COLUMNS))
    assert all(torch.equal(a, b) for a, b in zip(one.foreground, other.foreground, strict=True))
    torch.testing.assert_close(one.first, other.first, atol=2e-3, rtol=0)
    maps, again = (unit_range(pca_maps(f, (ROWS, COLUMNS), 2)) for f in (features, moved))
    torch.testing.assert_close(maps, again, atol=2e-3, rtol=0)


@given(seed=st.integers(0, 1000))
def test_the_order_of_the_images_changes_nothing(seed: int) -> None:
    features, _ = planted(4, noise=0.3, seed=seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    one, other = patch_pca(features, (ROWS, COLUMNS)), patch_pca(features[order], (ROWS, COLUMNS))
    for name in ("first", "foreground", "rgb"):
        maps, again = torch.stack(getattr(one, name)), torch.stack(getattr(other, name))
        torch.testing.assert_close(maps[order], again, atol=1e-5, rtol=0)


def test_signs_are_the_same_at_every_call_and_whatever_the_sign_of_the_features() -> None:
    features, _ = planted(noise=0.3)
    first = torch.stack(pca_maps(features, (ROWS, COLUMNS), 3))
    torch.testing.assert_close(torch.stack(pca_maps(-features, (ROWS, COLUMNS), 3)), first, atol=1e-5, rtol=0)
    border = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert first[:, 0, border].mean() < first[:, 0, ~border].mean()
    assert ((first[:, 1:] ** 3).sum((0, 2, 3)) >= 0).all()


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    features = torch.randn(2, 20, 7)
    maps = torch.stack([one.flatten(1) for one in pca_maps(features, (4, 5), 4)])
    flat = features.flatten(0, 1) - features.flatten(0, 1).mean(0)
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    scores = maps.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(scores.abs(), (u * s)[:, :4].abs(), atol=1e-4, rtol=1e-4)


def test_images_of_different_grids_share_a_basis() -> None:
    features, parts = planted(2, noise=0)
    wide = torch.cat([features[1].view(ROWS, COLUMNS, DIM)] * 2, dim=1)
    found = patch_pca([features[0], wide.flatten(0, 1)], [(ROWS, COLUMNS), (ROWS, 2 * COLUMNS)])
    assert torch.equal(found.foreground[0], parts[0] > 0)
    assert torch.equal(found.foreground[1], torch.cat([parts[1] > 0] * 2, dim=1))
    colours = [found.rgb[0][:, parts[0] == 2], found.rgb[1][:, :, :COLUMNS][:, parts[1] == 2]]
    torch.testing.assert_close(colours[0][:, 0], colours[1][:, 0])


def test_one_image_is_a_set_too() -> None:
    features, parts = planted(1)
    assert torch.equal(patch_pca(features, (ROWS, COLUMNS)).foreground[0], parts[0] > 0)


def test_the_threshold_counts_standard_deviations() -> None:
    features, _ = planted(noise=0.5)
    first = torch.stack(pca_maps(features, (ROWS, COLUMNS), 1))[:, 0]
    for threshold in (-0.5, 0.0, 1.0):
        found = patch_pca(features, (ROWS, COLUMNS), threshold)
        assert torch.equal(torch.stack(found.foreground), first > threshold * first.square().mean().sqrt())
    nothing = patch_pca(features, (ROWS, COLUMNS), 100.0)
    assert not torch.stack(nothing.foreground).any() and (torch.stack(nothing.rgb) == 0).all()


def test_components_that_are_not_there_are_zero() -> None:
    features = torch.outer(torch.arange(12.0), torch.ones(5))[None]
    maps = pca_maps(features, (3, 4), 8)[0]
    assert maps.shape == (8, 3, 4) and maps[0].any() and not maps[1:].any()
    assert torch.stack(patch_pca(features, (3, 4)).rgb).isfinite().all()


def test_two_patches_are_enough() -> None:
    found = patch_pca(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), (1, 2))
    assert int(found.foreground[0].sum()) == 1 and found.rgb[0].isfinite().all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5])
def test_constant_features_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="same features"):
        pca_maps(torch.full((2, 12, 5), value), (3, 4))


@pytest.mark.parametrize(
    ("features", "grids", "message"),
    [
        (torch.rand(2, 12, 5), (3, 5), "12 tokens, but its grid is 3 x 5"),
        (torch.rand(2, 13, 5), (3, 4), r"leave out \[CLS\]"),
        (torch.rand(2, 12, 5), [(3, 4)], "each of 2 images"),
        (torch.rand(2, 12, 5), [(3, 4), (4, 4)], "image 1"),
        (torch.rand(2, 12, 5), (3, 4.0), "rows, columns"),
        (torch.rand(2, 12, 5), (-3, -4), "rows, columns"),
        (torch.rand(12, 5), (3, 4), "for each image"),
        ([torch.rand(12, 5), torch.rand(12, 6)], (3, 4), "of one dim"),
        ([], (3, 4), "for each image"),
        (torch.ones(1, 12, 5, dtype=torch.long), (3, 4), "float"),
        (torch.full((1, 12, 5), float("nan")), (3, 4), "60 values .* NaN"),
        (torch.full((1, 12, 5), float("inf")), (3, 4), "infinite"),
    ],
)
def test_bad_input_is_refused(features: Tensor, grids: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pca_maps(features, grids)
    with pytest.raises(InputError, match=message):
        patch_pca(features, grids)


def test_bad_numbers_are_refused() -> None:
    features, _ = planted()
    with pytest.raises(InputError, match="components"):
        pca_maps(features, (ROWS, COLUMNS), 0)
    with pytest.raises(InputError, match="threshold"):
        patch_pca(features, (ROWS, COLUMNS), float("nan"))
    with pytest.raises(InputError, match="expected maps"):
        unit_range([])


@pytest.mark.parametrize("name", ["crate_nano", "vit_nano", "crate_alpha_tiny"])
def test_patch_features_are_the_projections_of_all_heads_without_cls(name: str) -> None:
    model = small_model(name)
    images = images_for(model)
    features, grid = patch_features(model, images, layer=-1)
    with capture(model, "projections", "output", layers=[-1]) as trace:
        model(images)
    heads = trace["projections", -1]
    assert grid == GRID and features.shape[:2] == (2, GRID[0] * GRID[1])
    torch.testing.assert_close(features, torch.cat(list(heads.unbind(1)), dim=-1)[:, 1:], rtol=0, atol=0)
    tokens, _ = patch_features(model, images, layer=-1, state="output")
    assert torch.equal(tokens, trace["output", -1][:, 1:])
    assert len(patch_pca(features, grid).rgb) == 2
    with pytest.raises(UnknownNameError, match="state of patches"):
        patch_features(model, images, state="attention")


def test_a_wrapped_model_is_read_like_the_model_itself() -> None:
    model, images = create_model("crate_nano", features_only=True, depth=1), torch.randn(1, 3, 96, 96)
    (wrapped, grid), (features, _) = (patch_features(each, images, layer=0) for each in (model, model.model))
    assert grid == (16, 16)
    assert torch.equal(wrapped, features)
