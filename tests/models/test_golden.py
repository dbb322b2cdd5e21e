"""Parity with the official code: outputs, inner states and gradients of the golden cases, and parameter counts."""

import hashlib
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from golden_data import GOLDEN, MAE_USED_COUNTS, MANIFEST, PARAM_COUNTS, Case, load_case
from torch import Tensor

from whitebox_crate import ImageTransformer, capture, create_model, fold_for_inference
from whitebox_crate.convert.rename import convert_state_dict
from whitebox_crate.errors import InputError
from whitebox_crate.layers import MSSA, patchify
from whitebox_crate.models import Crate, CrateAlpha, CrateAlphaBlock, CrateMae, ViT

CRATE_CASES = [
    "crate_square",
    "crate_rect",
    "crate_rectpatch",
    "crate_heads1",
    "crate_heads1_proj",
    "crate_meanpool",
    "crate_innerdim_ista",
    "crate_small_scale",
]
ALPHA_CASES = ["crate_alpha_square", "crate_alpha_rect", "crate_alpha_heads1", "crate_alpha_small_scale"]
MAE_CASES = ["crate_mae_basic", "crate_mae_normpix", "crate_mae_small_scale"]
TRAINING_CASES = ["crate_training_step", "crate_alpha_training_step"]
VIT_CASES = ["timm_vit", "timm_vit_small_scale"]


def close(have: Tensor, want: Tensor) -> None:
    """Within 1e-5 in float32, within 1e-10 in float64."""
    torch.testing.assert_close(have, want, rtol=0, atol=1e-10 if want.dtype == torch.float64 else 1e-5)


def our_names(state: dict[str, Tensor], model: ImageTransformer) -> dict[str, Tensor]:
    """Official tensors in the names of this model, which calls the last norm `fc_norm` where it pools first."""
    converted = convert_state_dict(state)
    if model.global_pool == "token":
        return converted
    return {f"fc_{name}" if name.startswith("norm.") else name: t for name, t in converted.items()}


def crate_of(case: Case) -> Crate | CrateAlpha:
    kind = CrateAlpha if case.name.startswith("crate_alpha") else Crate
    model = kind(**case.crate_options()).eval()
    model.load_state_dict(our_names(case.group("state"), model))
    return model


def entering_the_last_norm(model: ImageTransformer) -> list[Tensor]:
    """A list that each call of the model adds to."""
    norm = model.norm if model.global_pool == "token" else model.fc_norm
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    return seen


@pytest.mark.parametrize("entry", MANIFEST["cases"], ids=lambda entry: entry["name"])
def test_the_files_are_those_that_were_recorded(entry: dict[str, str]) -> None:
    assert hashlib.sha256((GOLDEN / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("name", CRATE_CASES + ALPHA_CASES)
@torch.no_grad()
def test_crate_and_crate_alpha_are_the_released_code(name: str) -> None:
    case = load_case(name)
    model, images = crate_of(case), case["input/img"]
    pooled = entering_the_last_norm(model)
    states = ("tokens", "projections", "attention", "compressed", "output")
    with capture(model, *states, queries="all") as trace:
        logits = model(images)
    close(logits, case["output/logits"])
    close(trace["tokens", 0], case["output/tokens_in"])
    for layer, block in enumerate(model.blocks):
        recorded = {
            "output": case[f"output/layer{layer}.tokens"],
            "compressed": case[f"output/layer{layer}.tokens_mid"],
            "attention": case[f"output/layer{layer}.attn"],
            "projections": rearrange(case[f"output/layer{layer}.qkv"], "b n (h p) -> b h n p", h=block.mssa.num_heads),
        }
        for state, value in recorded.items():
            close(trace[state, layer], value)
        if isinstance(block, CrateAlphaBlock):
            code = block.odl.encode(block.norm2(trace["compressed", layer]))
            close(code, case[f"output/layer{layer}.code2"])
    entered = pooled[0][:, 0] if model.global_pool == "token" else pooled[0]
    close(entered, case["output/pooled"])


@pytest.mark.parametrize("name", CRATE_CASES + ALPHA_CASES)
@torch.no_grad()
def test_crate_and_crate_alpha_are_the_released_code_in_float64(name: str) -> None:
    case = load_case(name)
    close(crate_of(case).double()(case["input/img"].double()), case["output/logits_f64"])


def test_the_slice_of_positions_for_smaller_images_is_an_error_here() -> None:
    """The official code adds the first rows of the table to a smaller image, whatever places they stand for."""
    case = load_case("crate_quirk_pos_slice")
    model = crate_of(case)
    with pytest.raises(InputError, match="set_input_size"):
        model(case["input/img"])


@pytest.mark.parametrize("name", TRAINING_CASES)
def test_losses_and_every_gradient_are_those_of_the_released_code(name: str) -> None:
    case = load_case(name)
    model = crate_of(case).train()
    logits = model(case["input/img"])
    close(logits, case["output/logits"])
    loss = F.cross_entropy(logits, case["input/target"])
    close(loss, case["output/loss"])
    smoothed = F.cross_entropy(logits, case["input/target"], label_smoothing=0.1)
    close(smoothed, case["output/loss_label_smoothing_0.1"])
    loss.backward()
    gradients = our_names(case.group("grad"), model)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        close(parameter.grad, gradients[key])


@pytest.mark.parametrize("name", TRAINING_CASES)
def test_the_loss_is_that_of_the_released_code_in_float64(name: str) -> None:
    case = load_case(name)
    logits = crate_of(case).double()(case["input/img"].double())
    close(F.cross_entropy(logits, case["input/target"]), case["output/loss_f64"])


def mae_of(case: Case, **options: Any) -> CrateMae:
    model = CrateMae(**case.mae_options(), **options).eval()
    model.load_state_dict(our_names(case.group("state"), model))
    return model


@pytest.mark.parametrize("name", MAE_CASES)
@torch.no_grad()
def test_crate_mae_reconstructs_as_the_released_code(name: str) -> None:
    case = load_case(name)
    model = mae_of(case)
    seen: dict[str, Tensor] = {}
    for layer, block in enumerate(model.decoder_blocks):
        block.norm2.register_forward_pre_hook(lambda _, args, key=f"dec{layer}.linear": seen.update({key: args[0]}))
        block.register_forward_hook(lambda _, __, out, key=f"dec{layer}.tokens": seen.update({key: out}))
        block.mssa.qkv.register_forward_hook(
            lambda _, __, out, key=f"dec{layer}.attn", mssa=block.mssa: seen.update({key: attention(mssa, out)})
        )
    model.norm.register_forward_hook(lambda _, __, out: seen.update({"latent": out}))
    with capture(model, "tokens", "output") as trace:
        result = model.reconstruct(case["input/img"], noise=case["input/noise"])
    seen["enc.tokens_in"] = trace["tokens", 0]
    seen |= {f"enc{layer}.tokens": trace["output", layer] for layer in range(len(model.blocks))}
    recorded = {key: value for key, value in case.group("output").items() if key.startswith(("enc", "dec", "latent"))}
    assert seen.keys() == recorded.keys()
    for key, value in recorded.items():
        close(seen[key], value)
    close(result.loss, case["output/loss"])
    close(result.pred, case["output/pred"])
    assert torch.equal(result.mask, case["output/mask"].bool())
    assert torch.equal(patchify(case["input/img"], 4), case["output/target_patches"])


def attention(mssa: MSSA, projected: Tensor) -> Tensor:
    q, k, _ = mssa.split_heads(projected)
    return (q @ k.mT / mssa.head_dim**0.5).softmax(dim=-1)


@pytest.mark.parametrize("name", MAE_CASES)
@torch.no_grad()
def test_crate_mae_reconstructs_as_the_released_code_in_float64(name: str) -> None:
    case = load_case(name)
    result = mae_of(case).double().reconstruct(case["input/img"].double(), noise=case["input/noise"].double())
    close(result.loss, case["output/loss_f64"])


@pytest.mark.parametrize("name", MAE_CASES)
@torch.no_grad()
def test_crate_mae_without_a_mask_is_the_released_encoder(name: str) -> None:
    case = load_case(name)
    model = mae_of(case)
    with capture(model, "attention", "projections", queries="all") as trace:
        model(case["input/img"])
    for layer in range(len(model.blocks)):
        close(trace["attention", layer], case[f"output/selfattention_enc.layer{layer}"])
        close(rearrange(trace["projections", layer], "b h n p -> b n (h p)"), case[f"output/last_key_enc.layer{layer}"])


@pytest.mark.parametrize("size", [(12, 12), (16, 24), (24, 24), (8, 32)], ids=str)
@torch.no_grad()
def test_positions_of_crate_mae_on_another_grid_are_those_of_the_released_code(size: tuple[int, int]) -> None:
    case, named = load_case("crate_mae_resize"), f"img{size[0]}x{size[1]}"
    dynamic, resized = mae_of(case, dynamic_img_size=True), mae_of(case)
    close(
        dynamic.resample_positions(dynamic.pos_embed, (4, 4), (size[0] // 4, size[1] // 4)), case[f"output/{named}.pos"]
    )
    resized.set_input_size(size)
    close(resized.pos_embed, case[f"output/{named}.pos"])
    for model in (dynamic, resized):
        with capture(model, "tokens", "attention", "projections", queries="all") as trace:
            model(case[f"input/{named}"])
        close(trace["tokens", 0], case[f"output/{named}.tokens_in"])
        close(trace["attention", 1], case[f"output/{named}.selfattention_enc.layer1"])
        keys = rearrange(trace["projections", 1], "b h n p -> b n (h p)")
        close(keys, case[f"output/{named}.last_key_enc.layer1"])


def test_the_fixed_positions_of_crate_mae_are_the_released_ones() -> None:
    """To the last bit of float32, in which the released code computes them on one machine or another."""
    case = load_case("crate_mae_basic")
    made = CrateMae(**case.mae_options()).pos_embed
    torch.testing.assert_close(made.detach(), case["state/decoder_pos_embed"], rtol=0, atol=2**-24)
    assert not made.requires_grad


def vit_of(case: Case) -> ViT:
    options = {key: value for key, value in case.kwargs.items() if key != "class_token"}
    model = ViT(**options).eval()
    model.load_state_dict(case.group("state"))  # strict: the names are timm's
    return model


@pytest.mark.parametrize("name", VIT_CASES)
@torch.no_grad()
def test_vit_is_timms(name: str) -> None:
    case = load_case(name)
    model = vit_of(case)
    with capture(model, "tokens", "projections", "attention", "output", queries="all") as trace:
        normed = model.forward_features(case["input/img"])
    close(trace["tokens", 0], case["output/tokens_in"])
    for layer, block in enumerate(model.blocks):
        close(trace["output", layer], case[f"output/block{layer}.tokens"])
        close(trace["attention", layer], case[f"output/block{layer}.attn"])
        keys = case[f"output/block{layer}.qkv"].chunk(3, dim=-1)[1]
        close(trace["projections", layer], rearrange(keys, "b n (h p) -> b h n p", h=block.attn.num_heads))
    close(normed, case["output/final_norm"])
    close(model.forward_head(normed), case["output/logits"])
    close(model(case["input/img"]), case["output/logits_fused"])


@pytest.mark.parametrize("name", VIT_CASES)
@torch.no_grad()
def test_vit_is_timms_in_float64(name: str) -> None:
    case = load_case(name)
    close(vit_of(case).double()(case["input/img"].double()), case["output/logits_f64"])


def relatively_close(have: Tensor, want: Tensor) -> None:
    """Within 1e-5 of the largest value."""
    torch.testing.assert_close(have, want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", CRATE_CASES + ALPHA_CASES)
@torch.no_grad()
def test_folded_crate_and_crate_alpha_are_the_released_code(name: str) -> None:
    case = load_case(name)
    model = fold_for_inference(crate_of(case))
    with capture(model, "projections", "attention", "compressed", "output", queries="all") as trace:
        logits = model(case["input/img"])
    relatively_close(logits, case["output/logits"])
    for layer, block in enumerate(model.blocks):
        heads = block.mssa.num_heads
        projections = rearrange(case[f"output/layer{layer}.qkv"], "b n (h p) -> b h n p", h=heads)
        relatively_close(trace["projections", layer], projections)
        relatively_close(trace["attention", layer], case[f"output/layer{layer}.attn"])
        relatively_close(trace["compressed", layer], case[f"output/layer{layer}.tokens_mid"])
        relatively_close(trace["output", layer], case[f"output/layer{layer}.tokens"])


@pytest.mark.parametrize("name", MAE_CASES)
@torch.no_grad()
def test_folded_crate_mae_reconstructs_as_the_released_code(name: str) -> None:
    case = load_case(name)
    result = fold_for_inference(mae_of(case)).reconstruct(case["input/img"], noise=case["input/noise"])
    relatively_close(result.pred, case["output/pred"])
    relatively_close(result.loss, case["output/loss"])


@pytest.mark.parametrize("name", VIT_CASES)
@torch.no_grad()
def test_folded_vit_is_timms(name: str) -> None:
    case = load_case(name)
    relatively_close(fold_for_inference(vit_of(case))(case["input/img"]), case["output/logits"])


def on_meta(name: str) -> ImageTransformer:
    with torch.device("meta"):
        model: ImageTransformer = create_model(name)
    return model


OFFICIAL_COUNTS = {
    "crate_tiny_patch16_224": PARAM_COUNTS["crate"]["CRATE_tiny"],
    "crate_small_patch16_224": PARAM_COUNTS["crate"]["CRATE_small"],
    "crate_base_patch16_224": PARAM_COUNTS["crate"]["CRATE_base"],
    "crate_large_patch16_224": PARAM_COUNTS["crate"]["CRATE_large"],
    "crate_alpha_base_patch16_224": PARAM_COUNTS["crate_alpha"]["CRATE_base"],
    "crate_alpha_large_patch14_224": PARAM_COUNTS["crate_alpha"]["CRATE_large"],
    "crate_mae_tiny_patch16_224": MAE_USED_COUNTS["mae_crate_tiny"],
    "crate_mae_small_patch16_224": MAE_USED_COUNTS["mae_crate_small"],
    "crate_mae_base_patch16_224": MAE_USED_COUNTS["mae_crate_base"],
    "crate_mae_large_patch16_224": MAE_USED_COUNTS["mae_crate_large"],
    "crate_tiny_patch8_224": PARAM_COUNTS["crate_patch8"]["dim384_heads6"],
    "crate_small_patch8_224": PARAM_COUNTS["crate_patch8"]["dim576_heads12"],
    "crate_base_patch8_224": PARAM_COUNTS["crate_patch8"]["dim768_heads12"],
    "crate_paper_small_patch8_224": PARAM_COUNTS["crate_patch8"]["dim384_heads6"],
    "crate_tied_paper_small_patch8_224": PARAM_COUNTS["crate_patch8"]["dim384_heads6"] - 12 * 384 * (384 + 1),
    "crate_attention_only_paper_small_patch8_224": PARAM_COUNTS["crate_patch8"]["dim384_heads6"]
    - 12 * 384 * (384 + 2),  # D, and the norm before it
    # CBSA has two step sizes a head more than MSSA.
    "crate_cbt_paper_small_patch8_224": PARAM_COUNTS["crate_patch8"]["dim384_heads6"] + 6 * 2 * 6,
    "crate_sth_paper_small_patch8_224": PARAM_COUNTS["crate_patch8"]["dim384_heads6"],
    "crate_paper_small_patch16_224": PARAM_COUNTS["crate"]["CRATE_tiny"],
    # Heads share the width, so their number does not show: B/8 with 21,842 classes instead of 1,000.
    "crate_demo_base_patch8_224": PARAM_COUNTS["crate_patch8"]["dim768_heads12"] + (21842 - 1000) * (768 + 1),
    "tost_tiny_12_patch16_224": 5_769_328,
    "tost_small_12_patch16_224": 22_589_944,
    "tost_tiny_24_patch16_224": 10_223_008,
    "tost_small_24_patch16_224": 40_344_664,
    "tost_medium_24_patch16_224": 71_481_064,
    "tost_large_24_patch16_224": 160_286_920,
    # timm's vit_{tiny,small,base}_patch{16,8}_224.
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_small_patch8_224": 22_055_272,
    "vit_base_patch8_224": 86_576_872,
}


@pytest.mark.parametrize(("name", "count"), OFFICIAL_COUNTS.items())
def test_parameter_counts_are_exact(name: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == count


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.74), ("small", 14.12)])
def test_the_sizes_of_the_papers_table_3_are_those_with_the_classes_of_imagenet_21k(size: str, millions: float) -> None:
    with torch.device("meta"):
        model = create_model(f"crate_paper_{size}_patch8_224", num_classes=21841)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "heads", "head_dim"),
    [
        ("crate_tiny", 6, 64),
        ("crate_small", 12, 48),
        ("crate_base", 12, 64),
        ("crate_large", 16, 64),
        ("crate_paper_small_patch8_224", 6, 64),
        ("crate_paper_tiny_patch8_224", 3, 64),
        ("crate_demo_base_patch8_224", 6, 128),
        ("crate_alpha_tiny", 3, 64),
        ("crate_alpha_small", 12, 48),
        ("crate_alpha_base", 12, 64),
        ("crate_alpha_large", 16, 64),
        ("crate_mae_tiny", 6, 64),
        ("crate_mae_large", 16, 64),
        ("vit_small_patch16_224", 6, 64),
    ],
)
def test_heads_of_the_released_sizes(name: str, heads: int, head_dim: int) -> None:
    for block in on_meta(name).blocks:
        assert (block.attention.num_heads, block.attention.head_dim) == (heads, head_dim)


def test_the_constants_of_crate_are_the_released_ones() -> None:
    defaults = {name: p.default for name, p in inspect.signature(Crate).parameters.items()}
    assert (defaults["step_size"], defaults["sparsity"]) == (0.1, 0.1)
    alpha = {name: p.default for name, p in inspect.signature(CrateAlpha).parameters.items()}
    assert (alpha["step_size"], alpha["sparsity"], alpha["expansion"], alpha["norm_eps"]) == (0.1, 0.1, 4, 1e-5)
    mae = {name: p.default for name, p in inspect.signature(CrateMae).parameters.items()}
    assert (mae["step_size"], mae["sparsity"], mae["num_classes"], mae["norm_pix_loss"]) == (0.1, 0.5, 0, False)
    assert (defaults["skip"], defaults["threshold"], defaults["global_pool"]) == ("input", "relu", "token")
