import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import images_for, small_model
from torch import Tensor, nn

from whitebox_crate import InputError, UnknownNameError, create_model
from whitebox_crate.analysis import (
    dictionary_geometry,
    effective_dimension,
    head_bases,
    orthonormal_bases,
    principal_angles,
    projection_alignment,
    subspace_energy,
    subspace_matrices,
    subspace_overlap,
    subspace_report,
    token_energy,
)
from whitebox_crate.analysis.subspaces import pair_angles, projection_distance
from whitebox_crate.models import Crate

MODELS = [
    "crate_tiny_patch16_224",
    "crate_alpha_tiny_patch16_224",
    "crate_mae_tiny_patch16_224",
    "vit_tiny_patch16_224",
]


def rotation(dim: int, seed: int = 0) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    return q


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_planted_orthogonal_subspaces_meet_at_right_angles_and_equal_ones_at_none() -> None:
    q = rotation(8)
    u, v = q[:, :3], q[:, 3:6] @ normal(3, 3)
    assert torch.allclose(principal_angles(u, v), torch.full((3,), math.pi / 2).double())
    assert principal_angles(u, u @ normal(3, 3)).max() < 1e-7
    assert subspace_overlap(principal_angles(u, v)) < 1e-12
    assert subspace_overlap(principal_angles(u, u)) == pytest.approx(1)


def test_angles_of_lines_and_planes_are_those_of_school() -> None:
    x, diagonal = torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0], [3.0]])
    assert principal_angles(x, diagonal).item() == pytest.approx(math.pi / 4)
    floor = torch.eye(3)[:, :2]
    tilted = torch.tensor([[1.0, 0.0], [0.0, math.cos(0.3)], [0.0, math.sin(0.3)]])
    assert principal_angles(floor, tilted).tolist() == pytest.approx([0, 0.3], abs=1e-7)
    # As many as the lower rank.
    assert principal_angles(floor, torch.eye(3)).tolist() == pytest.approx([0, 0], abs=1e-7)


@given(dim=st.integers(2, 9), r=st.integers(1, 4), s=st.integers(1, 4), seed=st.integers(0, 99))
def test_angles_do_not_change_when_space_is_rotated_or_bases_are_mixed(dim: int, r: int, s: int, seed: int) -> None:
    r, s = min(r, dim), min(s, dim)
    u, v, q = normal(dim, r, seed=seed), normal(dim, s, seed=seed + 100), rotation(dim, seed)
    angles = principal_angles(u, v)
    mixed = principal_angles(q @ u @ (normal(r, r, seed=seed) + 3 * torch.eye(r)), q @ v)
    assert torch.allclose(angles, mixed, atol=1e-6)
    assert torch.allclose(angles, principal_angles(v, u), atol=1e-6)
    assert (angles.diff() >= -1e-12).all()


@given(dim=st.integers(2, 8), r=st.integers(1, 4), seed=st.integers(0, 99))
def test_projection_distance_is_that_of_projectors(dim: int, r: int, seed: int) -> None:
    r = min(r, dim)
    u, v = (orthonormal_bases(normal(dim, r, seed=seed + k)).bases for k in (0, 100))
    expected = (u @ u.mT - v @ v.mT).norm() / math.sqrt(2 * r)
    assert projection_distance(u, v) == pytest.approx(float(expected), abs=1e-7)
    assert (1 - subspace_overlap(principal_angles(u, v))).clamp(min=0).sqrt() == pytest.approx(
        float(expected), abs=1e-6
    )


def test_random_subspaces_overlap_as_much_as_is_said() -> None:
    u = torch.linalg.qr(normal(400, 20, 5))[0]
    v = torch.linalg.qr(normal(400, 20, 8, seed=1))[0]
    assert subspace_overlap(principal_angles(u, v)).mean() == pytest.approx(8 / 20, rel=0.03)


def test_bases_have_the_planted_singular_values_and_zero_columns_beyond_the_rank() -> None:
    planted = torch.tensor([5.0, 2.0, 0.0], dtype=torch.float64)
    found = orthonormal_bases(rotation(7)[:, :3] @ planted.diag() @ rotation(3, seed=1))
    assert torch.allclose(found.singular_values, planted, atol=1e-12)
    assert found.rank == 2
    assert torch.allclose(found.bases.mT @ found.bases, torch.tensor([1.0, 1.0, 0.0]).double().diag())
    angles = principal_angles(found.bases, rotation(7)[:, :3])
    assert angles[:2].max() < 1e-7 and angles[2].isnan()


def test_a_head_wider_than_a_token_spans_everything() -> None:
    found = orthonormal_bases(normal(3, 5))
    assert found.bases.shape == (3, 3) and found.rank == 3


def test_effective_dimension_counts_equal_directions() -> None:
    values = torch.tensor([[2.0, 2, 2, 0], [1, 0, 0, 0], [0, 0, 0, 0], [2, 1, 0, 0]])
    assert effective_dimension(values).tolist() == pytest.approx([3, 1, 0, 25 / 17])
    assert effective_dimension(1e-30 * values).tolist() == pytest.approx([3, 1, 0, 25 / 17])
    assert effective_dimension(values.double()).dtype == torch.float64


def test_planted_energy_is_found() -> None:
    bases = torch.eye(6)[None, :, :2].repeat(2, 1, 1)
    bases[1] = torch.eye(6)[:, 2:4]
    tokens = torch.tensor([[3.0, 0, 4, 0, 0, 0], [0, 0, 0, 1, 0, 1], [0] * 6])
    assert torch.allclose(subspace_energy(tokens, bases), torch.tensor([[9 / 25, 16 / 25], [0, 0.5], [0, 0]]))
    assert torch.allclose(subspace_energy(1e30 * tokens, bases), subspace_energy(tokens, bases))
    assert subspace_energy(tokens.bfloat16(), bases).dtype == torch.float32


@given(seed=st.integers(0, 99))
def test_energy_does_not_change_when_all_is_rotated(seed: int) -> None:
    bases, tokens, q = orthonormal_bases(normal(2, 6, 3, seed=seed)).bases, normal(4, 6, seed=seed), rotation(6, seed)
    assert torch.allclose(subspace_energy(tokens, bases), subspace_energy(tokens @ q.T, q @ bases))


def test_energy_of_complete_orthogonal_subspaces_adds_up_to_one_and_has_a_gradient() -> None:
    bases = rotation(6).reshape(6, 3, 2).transpose(0, 1)
    tokens = normal(4, 6).requires_grad_()
    assert torch.allclose(subspace_energy(tokens, bases).sum(-1), torch.ones(4).double())
    assert torch.autograd.gradcheck(lambda t: subspace_energy(t, bases), (tokens,))


def test_an_orthogonal_dictionary_is_at_no_distance() -> None:
    found = dictionary_geometry(rotation(6))
    assert found.coherence < 1e-12 and found.distance < 1e-12 and found.shape_distance < 1e-6
    assert found.condition == pytest.approx(1) and found.norms == pytest.approx((1, 1)) and found.welch_bound == 0
    doubled = dictionary_geometry(2 * rotation(6))
    assert doubled.distance == pytest.approx(1) and doubled.shape_distance < 1e-6  # |2 Q - Q| / |Q|


def test_coherence_and_distance_by_hand() -> None:
    found = dictionary_geometry(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert found.coherence == found.mean_coherence == pytest.approx(math.sqrt(0.5))
    stretched = dictionary_geometry(torch.tensor([3.0, 1.0]).diag())
    assert stretched.coherence == 0 and stretched.condition == pytest.approx(3)
    assert stretched.distance == pytest.approx(math.sqrt(2))  # singular values 3 and 1
    assert stretched.shape_distance == pytest.approx(math.sqrt(1 - 16 / 20))
    three = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    frame = dictionary_geometry(torch.stack([three.cos(), three.sin()]))  # the three spokes of a wheel reach the bound
    assert frame.coherence == pytest.approx(frame.welch_bound, abs=1e-6) == pytest.approx(0.5, abs=1e-6)
    assert frame.shape_distance == pytest.approx(0, abs=1e-3)
    assert dictionary_geometry(torch.zeros(2, 3)).condition == math.inf


def test_a_projection_that_is_a_multiple_of_the_bases_is_recognised() -> None:
    u = normal(2, 8, 3)
    found = projection_alignment(torch.stack([2 * u[0], -0.5 * u[1]]), u)
    assert found.cosine.tolist() == pytest.approx([1, -1]) and found.scale.tolist() == pytest.approx([2, -0.5])
    assert found.residual.max() < 1e-12 and found.within.tolist() == pytest.approx([1, 1])


def test_a_projection_that_leaves_the_subspace_is_recognised() -> None:
    q = rotation(8)
    u = torch.stack([q[:, :3], q[:, :3]])
    p = torch.stack([q[:, :3].flip(1), q[:, 3:6]])  # the same subspace by other vectors; another subspace
    found = projection_alignment(p, u)
    assert found.within.tolist() == pytest.approx([1, 0], abs=1e-12)
    assert found.cosine.tolist() == pytest.approx([1 / 3, 0], abs=1e-12)
    assert found.residual.tolist() == pytest.approx((1 - found.cosine**2).sqrt().tolist())


@pytest.mark.parametrize("name", MODELS)
def test_matrices_are_what_projects_the_tokens(name: str) -> None:
    model = small_model(name)
    tokens = torch.randn(2, 7, model.embed_dim)
    attention = model.blocks[1].attention
    _, keys, _ = attention.split_heads(attention.qkv(tokens))
    if name.startswith("vit"):
        keys = keys - attention.qkv.bias.chunk(3)[1].reshape(attention.num_heads, 1, -1)
    assert torch.allclose(torch.einsum("bnd,hdp->bhnp", tokens, subspace_matrices(model, 1)), keys, atol=1e-5)
    assert head_bases(model, -2).rank.tolist() == [attention.head_dim] * attention.num_heads


@pytest.mark.parametrize("name", MODELS)
def test_a_report_is_complete_and_json(name: str) -> None:
    model = small_model(name)
    report = subspace_report(model)
    json.dumps(report.to_dict(), allow_nan=False)
    table = report.table(markdown=True).splitlines()
    assert len(table) == len(model.blocks) + 3 and len({line.count("|") for line in table}) == 1
    assert report.layers[0].drift.shape == (2, 2) and report.layers[-1].drift is None
    assert report.bases == ("keys" if name.startswith("vit") else "MSSA")
    for layer in report.layers:
        assert (layer.alignment is None) == (layer.dictionary is None) == name.startswith("vit")
        assert torch.allclose(layer.coherence.diagonal(), torch.ones(2).double())
        assert torch.allclose(layer.overlap, layer.overlap.mT)
    if name.startswith("crate_alpha"):
        assert (report.layers[0].dictionary.dim, report.layers[0].dictionary.atoms) == (48, 192)


def test_a_report_of_a_model_made_as_derived_says_so() -> None:
    model = small_model("crate_tiny_patch16_224")
    q = rotation(48).float()
    with torch.no_grad():
        for block in model.blocks:
            block.mssa.qkv.weight.copy_(q.T)
            block.mssa.proj.weight.copy_(0.5 * q)
            block.ista.dictionary.copy_(q)
    report = subspace_report(model, layers=[0, -1])
    assert [layer.layer for layer in report.layers] == [0, 2]
    for layer in report.layers:
        assert layer.effective_dimension.tolist() == pytest.approx([24, 24])
        assert torch.allclose(layer.angles[0, 1], torch.full((24,), math.pi / 2).double(), atol=1e-5)
        assert layer.alignment.cosine.min() > 1 - 1e-6 and layer.alignment.scale.tolist() == pytest.approx([0.5, 0.5])
        assert layer.dictionary.distance < 1e-5
    assert torch.allclose(report.layers[0].drift, 1 - torch.eye(2).double(), atol=1e-3)


def test_drift_is_from_a_layer_to_the_next_one_asked_for() -> None:
    model = small_model("crate_tiny_patch16_224")
    expected = projection_distance(head_bases(model, 2).bases[:, None], head_bases(model, 0).bases)
    report = subspace_report(model, layers=[2, 0])
    assert torch.equal(report.layers[0].drift, expected) and report.layers[1].drift is None
    assert f"{expected.diagonal().mean():.2f}, {expected.amin(1).mean():.2f}" in report.table().splitlines()[1]


def test_one_head_as_wide_as_a_token_and_a_dead_head_have_a_report() -> None:
    report = subspace_report(small_model("crate_tiny_patch16_224", num_heads=1))
    assert report.table(markdown=True).count("\n") == 5 and report.layers[0].alignment is not None
    model = small_model("crate_tiny_patch16_224")
    nn.init.zeros_(model.blocks[0].mssa.qkv.weight)
    report = subspace_report(model)
    assert report.layers[0].rank.tolist() == [0, 0] and report.layers[0].effective_dimension.tolist() == [0, 0]
    json.dumps(report.to_dict(), allow_nan=False)
    assert "random" in report.table()


@pytest.mark.parametrize("name", MODELS)
def test_energy_of_a_models_tokens_is_that_of_their_projections(name: str) -> None:
    model = small_model(name)
    images = images_for(model)
    energy = token_energy(model, images, layers=[0])
    assert energy.shape == (2, 1, 7, 2)
    normed = model.blocks[0].norm1(model.embed(images))
    bases = head_bases(model, 0).bases.float()
    expected = torch.einsum("bnd,hdr->bnhr", normed, bases).square().sum(-1) / normed.square().sum(-1)[..., None]
    assert torch.allclose(energy[:, 0], expected, atol=1e-5)


def test_the_pairs_of_heads_are_all_there() -> None:
    bases = orthonormal_bases(normal(3, 6, 2)).bases
    angles = pair_angles(bases)
    assert torch.allclose(angles[2, 1], principal_angles(bases[1], bases[2]), atol=1e-7)
    assert torch.equal(angles, angles.transpose(0, 1)) and not angles.diagonal().any()


class Elsewhere(nn.Module):
    num_heads = head_dim = 1


def test_bad_input_is_told() -> None:
    model = small_model("crate_tiny_patch16_224")
    with pytest.raises(InputError, match="package"):
        subspace_report(nn.Linear(2, 2))
    with pytest.raises(UnknownNameError, match="-3 to 2"):
        head_bases(model, 3)
    with pytest.raises(InputError, match="orthonormal"):
        subspace_energy(torch.randn(2, 4), torch.ones(1, 4, 2))
    with pytest.raises(InputError, match="NaN"):
        subspace_energy(torch.full((2, 4), math.nan), torch.eye(4)[None])
    with pytest.raises(InputError, match="one space"):
        principal_angles(torch.eye(3), torch.eye(4))
    with pytest.raises(InputError, match="floats"):
        dictionary_geometry(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="head_dim"):
        projection_alignment(torch.ones(1, 4, 2), torch.ones(1, 4, 3))
    nn.init.constant_(model.blocks[1].mssa.qkv.weight, math.inf)
    with pytest.raises(InputError, match="infinite"):
        subspace_report(model)


def test_a_model_without_subspaces_is_told() -> None:
    model: Crate = small_model("crate_tiny_patch16_224")
    model.blocks[2].mssa = Elsewhere()
    with pytest.raises(InputError, match="layer 2 has no subspaces"):
        subspace_report(model)
    model.blocks[2] = nn.Identity()
    with pytest.raises(InputError, match="layer 2 is a Identity"):
        subspace_report(model)


def test_features_only_and_bfloat16_models_are_measured() -> None:
    features = create_model(
        "crate_tiny_patch16_224", depth=2, embed_dim=48, num_heads=2, features_only=True, out_indices=[0]
    )
    assert len(subspace_report(features).layers) == 1
    model = small_model("crate_tiny_patch16_224")
    exact = subspace_report(model)
    rounded = subspace_report(model.bfloat16())
    assert rounded.layers[0].rank.tolist() == [24, 24]
    assert torch.allclose(exact.layers[0].angles, rounded.layers[0].angles, atol=0.1)
