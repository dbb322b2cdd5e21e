"""Analysis of ToST: what its layers have is measured, by the claim of its own derivation, and the rest is refused."""

import json
from typing import Any

import pytest
import torch
from small_models import images_for, small_model
from torch import Tensor, nn

from whitebox_crate import capture
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
    token_energy,
    variational_coding_rate,
    verify_descent,
)
from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.layers import second_moments
from whitebox_crate.models import ToST

NAME = "tost_tiny_12_patch8_224"  # 3 layers of TSSA once it is small, then 2 of class attention


@pytest.fixture
def model() -> ToST:
    made = small_model(NAME)
    assert isinstance(made, ToST)
    return made


@pytest.fixture
def images(model: ToST) -> Tensor:
    return images_for(model, batch=4)


def quiet(_: str) -> None:
    pass


@torch.no_grad()
def test_compression_is_the_variational_rate_with_the_membership_of_the_input(model: ToST, images: Tensor) -> None:
    found = {v.layer: v for v in verify_descent(model, [images], report=quiet).verdicts if v.claim == "compression"}
    with capture(model, "projections", "membership", "compressed") as trace:
        model(images)
    assert found.keys() == {0, 1, 2}
    for layer, verdict in found.items():
        block, membership = model.blocks[layer], trace["membership", layer]
        after = block.tssa.qkv(block.norm1(trace["compressed", layer])).unflatten(2, (2, 24)).transpose(1, 2)
        rates = [variational_coding_rate(w, membership).mean() for w in (trace["projections", layer], after)]
        assert [verdict.before, verdict.after] == pytest.approx([rate.item() for rate in rates], rel=1e-5)
        m = second_moments(after, membership)
        by_hand = (membership.sum(-1)[..., None] * (1 + m).log()).sum((1, 2)) / 12
        torch.testing.assert_close(by_hand.mean(), rates[1])


@torch.no_grad()
def test_the_step_as_derived_compresses(model: ToST, images: Tensor) -> None:
    for block in model.blocks:
        basis = torch.linalg.qr(block.tssa.qkv.weight).Q
        block.tssa.qkv.weight.copy_(basis)
        block.tssa.proj.weight.copy_(basis.T)  # the bases once more
        for bias in (block.tssa.qkv.bias, block.tssa.proj.bias):
            bias.zero_()
        block.ls1.gamma.fill_(0.5)  # the step size
    verdicts = verify_descent(model, [images], report=quiet).verdicts
    assert {v.outcome for v in verdicts if v.claim == "compression"} == {"holds"}
    for block in model.blocks:
        block.ls1.gamma.fill_(-0.5)
    verdicts = verify_descent(model, [images], report=quiet).verdicts
    assert {v.outcome for v in verdicts if v.claim == "compression"} == {"does not hold"}


def test_nothing_is_claimed_of_class_attention(model: ToST, images: Tensor) -> None:
    found = verify_descent(model, [images], layers=[-1, 1], report=quiet)
    assert [(v.layer, v.claim) for v in found.verdicts] == [(1, "compression"), (1, "sparsity")]


@torch.no_grad()
def test_layers_are_measured_without_the_entropy_that_they_lack(model: ToST, images: Tensor) -> None:
    found = layerwise_analysis(model, [images], report=quiet)
    assert found.layers == (0, 1, 2) and "attention_entropy" not in found.series
    with pytest.raises(InputError, match="TSSA has no rows"):
        layerwise_analysis(model, [images], quantities=["attention_entropy"], report=quiet)
    last = layerwise_analysis(model, [images], layers=2, report=quiet)
    with capture(model, "attention") as trace:
        model(images)
    entropies = [torch.special.entr(trace["attention", layer]).sum(-1).mean().item() for layer in (3, 4)]
    assert last["attention_entropy", "tokens"].mean == pytest.approx(entropies)


@torch.no_grad()
def test_parts_of_heads_add_up_to_what_is_added_to_the_tokens(model: ToST, images: Tensor) -> None:
    with capture(model, "tokens", "compressed") as trace:
        model(images)
    split = head_outputs(model, images, queries="all")
    assert split.layers == (0, 1, 2) and split.parts.shape == (4, 3, 2, 6, 48)
    for layer in split.layers:
        added = trace["compressed", layer] - trace["tokens", layer]
        torch.testing.assert_close(split.total[:, layer], added, rtol=0, atol=1e-5)
    of_cls = head_outputs(model, images)
    assert of_cls.layers == (3, 4) and of_cls.parts.shape == (4, 2, 2, 1, 48)
    for row, layer in enumerate(of_cls.layers):
        added = trace["compressed", layer][:, :1] - trace["tokens", layer][:, :1]
        torch.testing.assert_close(of_cls.total[:, row], added, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"layer 1 has no \[CLS\]"):
        head_outputs(model, images, layers=[4, 1])
    with pytest.raises(InputError, match="layers 2, 3 have different numbers of tokens"):
        head_outputs(model, images, layers=[2, 3], queries="all")


@torch.no_grad()
def test_heads_of_all_layers_speak_for_a_class(model: ToST, images: Tensor) -> None:
    found = head_contributions(model, images, 2)
    assert found.shape == (4, 5, 2)
    for layer in range(5):
        with intervene(model, mask_heads={layer: [1]}):
            without = model(images)
        torch.testing.assert_close(found[:, layer, 1], (model(images) - without)[:, 2], rtol=0, atol=1e-5)
    assert head_contributions(model, images, 2, layers=[-1, 0], method="gradient").shape == (4, 2, 2)


def test_subspaces_are_those_that_project(model: ToST, images: Tensor) -> None:
    found = subspace_report(model)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.bases == "TSSA" and [one.layer for one in found.layers] == [0, 1, 2]
    assert all(one.alignment is not None and one.dictionary is None for one in found.layers)
    for layer in (1, -1):  # of class attention the keys
        x = torch.randn(2, 7, 48)
        attention: Any = model.layers()[layer].attention
        _, keys, _ = attention.split_heads(attention.qkv(x))
        bias = attention.qkv.bias if layer == 1 else attention.qkv.bias.chunk(3)[1]
        expected = keys - bias.unflatten(0, (2, 1, 24))
        projected = torch.einsum("bnd,hdp->bhnp", x, subspace_matrices(model, layer))
        torch.testing.assert_close(projected, expected.detach(), rtol=0, atol=1e-5)
    assert token_energy(model, images).shape == (4, 3, 6, 2)
    with pytest.raises(InputError, match="different numbers of tokens"):
        token_energy(model, images, layers=[0, 4])


@torch.no_grad()
def test_what_it_lacks_is_refused_with_what_it_has(model: ToST, images: Tensor) -> None:
    with pytest.raises(UnknownNameError, match=r"layer 0 has no state 'attention'.*layers 3, 4 have it"):
        attention_rollout(model, images)
    with (
        pytest.raises(InputError, match="layer 0 of ToST has neither eta nor lambda"),
        intervene(model, step_size=0.2),
    ):
        pass
    with capture(model, "membership", layers=[0]) as trace:
        model(images)
    with pytest.raises(InputError, match="'membership' of layer 0 cannot be replaced"), replace_states(model, trace):
        pass


def test_its_page_has_what_it_has() -> None:
    pillow = pytest.importorskip("PIL.Image")
    model = small_model(NAME, dynamic_img_size=True)
    page = report(model, [("grey", pillow.new("RGB", (24, 16), (90, 120, 150)))], short_side=16, progress=quiet)
    assert "5 layers, 2 heads" in page and "What the heads of layer 4 look at" in page
    assert "H = Z + diag(s_1) (b 1^T - sum_k P_k D_k W_k diag(pi_k))" in page
    assert "its key projections stand in" not in page and "Attention entropy, nats" not in page


def test_another_module_in_place_of_tssa_is_refused(model: ToST) -> None:
    model.blocks[1].tssa.qkv = nn.Sequential(model.blocks[1].tssa.qkv)
    with pytest.raises(InputError, match="qkv of TSSA is Sequential"):
        subspace_report(model)
