"""CBT: parity with the released code, and with its equations in float64; what grids it takes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from golden_data import Case, load_case
from small_models import images_for, small_model
from torch import Tensor, nn

from whitebox_crate import capture, create_model, fold_for_inference
from whitebox_crate.convert import convert_state_dict
from whitebox_crate.errors import InputError
from whitebox_crate.models import CBT, CBTBlock

CASES = ["cbt_p8_grid8", "cbt_p8_grid12", "cbt_p16_grid5", "cbt_small_scale"]
STATES = ("tokens", "projections", "representatives", "attention", "authors_attention", "compressed", "output")


def close(have: Tensor, want: Tensor) -> None:
    """Within 1e-5 in float32, within 1e-10 in float64."""
    torch.testing.assert_close(have, want, rtol=0, atol=1e-10 if want.dtype == torch.float64 else 1e-5)


def cbt_of(case: Case) -> CBT:
    model = CBT(**case.crate_options()).eval()
    model.load_state_dict(convert_state_dict(case.group("state")))
    return model


def heads(tokens: Tensor, block: CBTBlock) -> Tensor:
    return rearrange(tokens, "b n (h p) -> b h n p", h=block.cbsa.num_heads)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_it_is_the_released_code(name: str) -> None:
    case = load_case(name)
    model, images = cbt_of(case), case["input/img"]
    close(model.patch_embed(images), case["output/patch_embed"])
    with capture(model, *STATES, queries="all") as trace:
        logits = model(images)
    close(logits, case["output/logits"])
    for layer, block in enumerate(model.blocks):
        at, cbsa = f"output/layer{layer}", block.cbsa
        w, projected = trace["projections", layer], case[f"{at}.proj"]
        close(w, heads(projected, block))
        initial = heads(cbsa.pool(projected), block)
        close(initial, case[f"{at}.representatives_initial"])
        attention, representatives = cbsa.contract(initial, w)
        close(attention, case[f"{at}.attn"])
        close(representatives, case[f"{at}.representatives"])
        close(trace["representatives", layer], case[f"{at}.representatives"])
        close(cbsa.exchange(representatives), case[f"{at}.attn_representatives"])
        close(trace["compressed", layer] - trace["tokens", layer], case[f"{at}.attn_out"])
        close(trace["output", layer], case[f"{at}.tokens"])
        recorded = case[f"{at}.attn"]
        close(trace["authors_attention", layer], recorded.mT @ recorded)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_rows_of_attention_make_the_very_output_of_attention(name: str) -> None:
    model = cbt_of(load_case(name)).double()
    with capture(model, *STATES, queries="all") as trace:
        model(load_case(name)["input/img"].double())
    for layer, block in enumerate(model.blocks):
        mixed = trace["attention", layer] @ trace["projections", layer]
        added = block.cbsa.proj(block.cbsa.join_heads(mixed))
        close(trace["tokens", layer] + added, trace["compressed", layer])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_folded_it_is_the_released_code(name: str) -> None:
    case = load_case(name)
    logits = fold_for_inference(cbt_of(case))(case["input/img"])
    torch.testing.assert_close(logits, case["output/logits"], rtol=0, atol=1e-5 * float(logits.abs().max()))


def test_a_training_step_is_that_of_the_released_code() -> None:
    case = load_case("cbt_training_step")
    model = cbt_of(case).train()
    logits = model(case["input/img"])
    close(logits, case["output/logits"])
    loss = F.cross_entropy(logits, case["input/target"])
    close(loss, case["output/loss"])
    loss.backward()
    gradients = convert_state_dict(marks(case) | case.group("grad"))
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        close(parameter.grad, gradients[key])
    after = convert_state_dict(marks(case) | case.group("state_after"))
    buffers = dict(model.named_buffers())
    assert buffers.keys() <= after.keys()
    for key, value in buffers.items():
        close(value, after[key])


def marks(case: Case) -> dict[str, Tensor]:
    """What `convert_state_dict` knows the format by, which a part of a state may lack."""
    return {name: value for name, value in case.group("state").items() if "step_rep" in name}


def by_the_equations(model: CBT, images: Tensor) -> Tensor:
    """CBT step by step, a head at a time, with torch's adaptive pooling."""
    features = images
    for part in model.patch_embed.proj:
        features = F.gelu(features) if isinstance(part, nn.GELU) else part(features)
    grid = tuple(features.shape[2:])
    patches = features.flatten(2).mT
    tokens = torch.cat([model.cls_token.expand(len(images), 1, -1), patches], 1) + model.pos_embed
    for block in model.blocks:
        cbsa, p = block.cbsa, block.cbsa.head_dim
        w = block.norm1(tokens) @ cbsa.qkv.weight.T
        cells = w[:, :-1] if cbsa.pool.kind == "released" else w[:, 1:]
        pooled = F.adaptive_avg_pool2d(cells.mT.unflatten(2, grid), cbsa.pool.representatives).flatten(2).mT
        parts = []
        for k in range(cbsa.num_heads):
            own = slice(k * p, (k + 1) * p)
            wk, r0 = w[..., own], pooled[..., own]
            a = torch.softmax(r0 @ wk.mT / math.sqrt(p), dim=-1)
            r = r0 + cbsa.step_rep[k] * (a @ wk)
            b = torch.softmax(r @ r.mT / math.sqrt(p), dim=-1)
            parts.append(cbsa.step_x[k] * (a.mT @ (b @ r)))
        h = block.norm2(tokens + torch.cat(parts, -1) @ cbsa.proj.weight.T + cbsa.proj.bias)
        d = block.ista.dictionary
        tokens = torch.relu(h + 0.1 * (h @ d - h @ d.T @ d) - 0.1 * 0.1)
    return model.head(model.norm(tokens)[:, 0])


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((5, 5), {}),
        ((9, 9), {"representatives": (3, 4), "head_dim": 10}),
        ((2, 3), {"pool": "patches"}),
        ((9, 4), {"pool": "patches", "representatives": 3}),
    ],
)
def test_it_is_its_equations_in_float64(grid: tuple[int, int], options: dict[str, object]) -> None:
    model = small_model("cbt_tiny_patch8_224", img_size=(8 * grid[0], 8 * grid[1]), **options).double()
    assert isinstance(model, CBT)
    images = images_for(model).double()
    ours, theirs = model(images), by_the_equations(model, images)
    close(ours, theirs)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = (torch.autograd.grad(out.square().sum(), parameters) for out in (ours, theirs))
    for name, have, want in zip(names, *gradients, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-9, msg=name)


def test_the_released_pooling_is_for_square_grids_and_says_why() -> None:
    for make in (
        lambda: create_model("cbt_tiny", img_size=(224, 192)),
        lambda: create_model("cbt_tiny", depth=1).set_input_size((224, 192)),
        lambda: create_model("cbt_tiny", depth=1, dynamic_img_size=True)(torch.zeros(1, 3, 224, 192)),
    ):
        with pytest.raises(InputError, match=r'14 x 12 patches is not square.*published.*pool="patches"'):
            make()
    model = create_model("cbt_tiny", depth=1, dynamic_img_size=True, pool="patches").eval()
    assert model(torch.zeros(1, 3, 224, 192)).shape == (1, 1000)


def test_the_two_poolings_are_two_functions() -> None:
    released, patches = (small_model("cbt_tiny", img_size=128, pool=pool) for pool in ("released", "patches"))
    images = images_for(released)
    assert not torch.allclose(released(images), patches(images), atol=1e-3)


def test_patches_are_not_left_out() -> None:
    with pytest.raises(InputError, match="averages over the whole grid"):
        create_model("cbt_tiny", patch_drop_rate=0.1)
    create_model("cbt_tiny", depth=1, patch_drop_rate=0.0)


@torch.no_grad()
def test_a_square_model_takes_other_square_images() -> None:
    model = small_model("cbt_tiny_patch8_224", img_size=64)
    model.set_input_size(96)
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 5)
    dynamic = small_model("cbt_tiny_patch8_224", img_size=64, dynamic_img_size=True)
    images = images_for(dynamic, grid=(12, 12))
    close(dynamic(images), model(images))
