"""What training leaves out: at the rates that were asked for, with the same mean, and nothing of it in evaluation."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from small_models import FAMILIES, GRID, images_for, small_model

from whitebox_crate import capture, create_model, fold_for_inference, save_pretrained
from whitebox_crate.analysis import explain
from whitebox_crate.errors import InputError
from whitebox_crate.layers import MHSA, MLP, MSSA, DropPath, DropRates, PatchDropout, layer_drop_rates

RATES = {
    "drop_rate": 0.3,
    "patch_drop_rate": 0.5,
    "proj_drop_rate": 0.2,
    "attn_drop_rate": 0.4,
    "drop_path_rate": 0.6,
}
PATCHES = GRID[0] * GRID[1]


def rates_of(name: str) -> dict[str, float]:
    """The rates that a model of this name has; CBT needs all patches, and has no attention whose entries could go."""
    lacking = ("patch_drop_rate", "attn_drop_rate") if "cbt" in name else ()
    lacking = ("patch_drop_rate",) if "tost" in name else lacking
    return {rate: value for rate, value in RATES.items() if rate not in lacking}


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES.keys())
@torch.no_grad()
def test_evaluation_leaves_out_nothing(name: str) -> None:
    plain, dropping = small_model(name), small_model(name, **rates_of(name))
    images = images_for(plain)
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(dropping(images), plain(images))
    folded = fold_for_inference(dropping)
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-4, atol=1e-5)
    with capture(dropping, "attention", "output") as trace, capture(plain, "attention", "output") as expected:
        dropping(images), plain(images)
    assert len(trace) == len(expected) > 0
    assert all(torch.equal(value, expected[key]) for key, value in trace.items())


@pytest.mark.parametrize(("name", "rate"), [(name, rate) for name in FAMILIES.values() for rate in rates_of(name)])
@torch.no_grad()
def test_each_rate_changes_training(name: str, rate: str) -> None:
    model = small_model(name, **{rate: RATES[rate]})
    images = images_for(model)
    model.train()
    draws = [model(images) for _ in range(8)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) > 1
    assert all(draw.isfinite().all() for draw in draws)


def test_paths_are_left_out_more_often_the_deeper() -> None:
    rates = layer_drop_rates(4, 0.1, 0.2, 0.3)
    assert [rate.path for rate in rates] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert {(rate.attn, rate.proj) for rate in rates} == {(0.1, 0.2)}
    assert layer_drop_rates(1, 0.0, 0.0, 0.3) == [DropRates()]
    model = small_model("vit_nano_patch6_96", drop_path_rate=0.3)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.15, 0.3])


def test_a_path_is_left_out_of_whole_samples_and_the_mean_stays() -> None:
    drop = DropPath(0.25)
    out = drop(torch.ones(4000, 2, 3)).flatten(1)
    assert torch.equal(out, out[:, :1].expand(-1, 6))
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert abs(out.mean() - 1) < 0.05
    assert torch.equal(drop.eval()(out), out)


def test_patches_are_left_out_and_keep_their_order() -> None:
    tokens = torch.arange(11.0).expand(500, 11)[..., None].repeat(1, 1, 2)
    out = PatchDropout(0.3)(tokens)
    assert out.shape == (500, 1 + 7, 2)
    assert (out[:, 0] == 0).all()  # [CLS]
    assert (out[:, 1:] > out[:, :-1]).all()
    counts = torch.bincount(out[:, 1:, 0].flatten().int(), minlength=11)[1:]
    assert (counts - 350).abs().max() < 60  # each as often
    assert PatchDropout(0.99)(tokens).shape[1] == 2


@torch.no_grad()
def test_patches_are_left_out_of_features_and_not_of_feature_maps() -> None:
    model = small_model("crate_nano_patch6_96", patch_drop_rate=0.5).train()
    images = images_for(model)
    assert model.forward_features(images).shape[1] == 1 + PATCHES // 2
    assert model.forward_intermediates(images, intermediates_only=True)[0].shape[-2:] == GRID


@pytest.mark.parametrize("operator", [MSSA, MHSA])
@pytest.mark.parametrize("rates", [DropRates(attn=0.5), DropRates(proj=0.5)])
@torch.no_grad()
def test_attention_keeps_its_mean(operator: type[MSSA | MHSA], rates: DropRates) -> None:
    attention = operator(8, 2, drop=rates)
    x = torch.randn(1, 4, 8)
    expected = copy.deepcopy(attention).eval()(x)
    draws = attention(x.expand(4000, -1, -1))
    assert draws.var(0).min() > 1e-5
    torch.testing.assert_close(draws.mean(0, keepdim=True), expected, rtol=0, atol=0.05)


@torch.no_grad()
def test_the_mlp_leaves_out_hidden_entries_and_outputs() -> None:
    mlp = MLP(64, 256, drop=0.5)
    out = mlp(torch.randn(500, 64))
    assert abs((out == 0).float().mean() - 0.5) < 0.05
    for layer in (mlp.fc1, mlp.fc2):
        torch.nn.init.ones_(layer.weight), torch.nn.init.zeros_(layer.bias)
    out = mlp(torch.ones(500, 64))
    kept = out[out > 0] / (64 * 2 * 2)  # how many hidden entries each output has seen, out of 256
    assert 100 < kept.min() < kept.max() < 156


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
def test_what_is_no_rate_is_refused(rate: str, value: float) -> None:
    with pytest.raises(InputError, match=rate):
        create_model("vit_nano", depth=1, **{rate: value})


def test_rates_are_saved_with_the_model(tmp_path: Path) -> None:
    model = create_model(f"local-dir:{save_pretrained(small_model('crate_nano_patch6_96', **RATES), tmp_path)}")
    assert (model.head_drop.p, model.patch_drop.rate, model.blocks[0].mssa.proj_drop.p) == (0.3, 0.5, 0.2)
    assert (model.blocks[0].mssa.attn_drop, model.blocks[2].drop_path.rate) == (0.4, 0.6)


def test_explain_says_what_training_leaves_out() -> None:
    text = explain(small_model("vit_nano_patch6_96", **RATES))
    for share in (
        "0.5 of the columns of patches",
        "0.4 of the entries of attention, 0.2 of what attention adds",
        "0.2 of the hidden entries, and of what the MLP adds",
        "0.3 of the samples in each residual branch",
        "0.3 of what the head reads",
    ):
        assert f"left out at random, in training alone: {share}" in text
    assert "left out" not in explain(small_model("vit_nano_patch6_96"))
