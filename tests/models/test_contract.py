"""The contract of timm, kept by every registered model."""

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import (
    CLASSES,
    DEPTH,
    DIM,
    GRID,
    images_for,
    mostly_slow,
    one_of_each_kind,
    patch_of,
    small_model,
    small_options,
    trained,
)
from torch import Tensor, nn

from whitebox_crate import ImageTransformer, create_model, list_models, save_pretrained
from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.models import CrateMae, FeatureExtractor, ToST

PATCHES = GRID[0] * GRID[1]


@pytest.fixture(params=mostly_slow(list_models(), *one_of_each_kind(list_models())))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> ImageTransformer:
    return small_model(name)


@pytest.fixture
def images(model: ImageTransformer) -> Tensor:
    return images_for(model)


@torch.no_grad()
def layer_outputs(model: ImageTransformer, images: Tensor) -> list[Tensor]:
    """The tokens after each layer of `blocks`, by running the layers one by one."""
    tokens, outputs = model.embed(images), []
    for block in model.blocks:
        tokens = model._run_block(block, tokens, GRID)
        outputs.append(tokens)
    return outputs


@torch.no_grad()
def finished(model: ImageTransformer, tokens: Tensor) -> Tensor:
    """What follows `blocks`: the last norm, and in ToST before it [CLS] and class attention."""
    if isinstance(model, ToST) and model.cls_attn_blocks:
        tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in model.cls_attn_blocks:
            tokens = block(tokens)
    normed: Tensor = model.norm(tokens)
    return normed


def as_map(tokens: Tensor, grid: tuple[int, int] = GRID) -> Tensor:
    """Patch tokens (batch, rows * columns, dim) as (batch, dim, rows, columns)."""
    return tokens.mT.reshape(tokens.shape[0], tokens.shape[2], *grid)


def of_patches(tokens: Tensor) -> Tensor:
    """All but [CLS] and registers, which come first where there are any."""
    return tokens[:, -PATCHES:]


@pytest.mark.parametrize("name", list_models())
def test_at_its_own_size_it_is_what_its_cfg_says(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, depth=2)  # which says nothing of sizes, and takes a while on 24 layers
        logits = model(torch.zeros(2, *model.pretrained_cfg.input_size))
    assert model.pretrained_cfg.input_size == (model.in_chans, *model.img_size)
    assert model.pretrained_cfg.num_classes == model.num_classes
    assert model.default_cfg is model.pretrained_cfg
    assert logits.shape == (2, model.num_classes or model.embed_dim)
    patch, size = re.findall(r"patch(\d+)(?:_(\d+))?", name)[0]
    side = int(size or {"dinov2": 518, "simdinov2": 224}[name.rpartition("_")[2]])
    assert model.patch_embed.patch_size == (int(patch), int(patch))
    assert model.img_size == (side, side)


@torch.no_grad()
def test_forward_is_head_of_features(model: ImageTransformer, images: Tensor) -> None:
    features = model.forward_features(images)
    assert features.shape == (2, model.num_prefix_tokens + PATCHES, DIM)
    torch.testing.assert_close(features, finished(model, layer_outputs(model, images)[-1]))
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (2, DIM)
    logits = model(images)
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, model.forward_head(features))
    torch.testing.assert_close(logits, model.get_classifier()(pre_logits))
    torch.testing.assert_close(logits[1:], model(images[1:]))
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@given(st.sampled_from(list_models()), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 2))
@torch.no_grad()
def test_any_size_that_the_patch_divides_and_no_other(name: str, grid: tuple[int, int], rest: int) -> None:
    patch = patch_of(name)
    size = (grid[0] * patch + rest, grid[1] * patch)
    for img_size in (size, size[::-1]):
        if rest:
            with pytest.raises(InputError, match="divisible"):
                small_model(name, depth=1, img_size=img_size)
            continue
        model = small_model(name, depth=1, img_size=img_size)
        assert model(torch.zeros(1, 3, *img_size)).shape == (1, CLASSES)
        with pytest.raises(InputError):
            model(torch.zeros(1, 3, img_size[0] + 1, img_size[1]))


def test_attributes(name: str, model: ImageTransformer) -> None:
    patch = patch_of(name)
    assert model.num_classes == CLASSES
    assert model.num_features == model.head_hidden_size == model.embed_dim == DIM
    assert model.num_prefix_tokens == (5 if "reg4" in name else 1)
    assert model.global_pool == "token"
    assert model.img_size == (GRID[0] * patch, GRID[1] * patch)
    assert model.in_chans == 3
    assert model.architecture == name


@torch.no_grad()
def test_the_class_token_comes_first_then_registers_and_positions_are_added(
    model: ImageTransformer, images: Tensor
) -> None:
    prefix, with_position = model.num_prefix_tokens, model.num_prefix_positions
    assert with_position == (0 if model.no_embed_class else prefix)
    tokens = model.embed(images)
    patches = model.patch_embed(images)
    if isinstance(model, ToST):  # [CLS] joins after the blocks
        torch.testing.assert_close(tokens, patches + model.pos_embed(GRID))
        return
    torch.testing.assert_close(tokens[:, prefix:], patches + model.pos_embed[:, with_position:])
    learned = model.cls_token if prefix == 1 else torch.cat([model.cls_token, model.reg_token], dim=1)
    positions = model.pos_embed[:, :with_position] if with_position else 0
    torch.testing.assert_close(tokens[:, :prefix], (learned + positions).expand(2, -1, -1))


@torch.no_grad()
def test_pools(name: str) -> None:
    for pool in ("token", "avg", "mean", ""):
        model = small_model(name, global_pool=pool)
        images = images_for(model)
        last = finished(model, layer_outputs(model, images)[-1])
        expected = {
            "token": lambda m, t: t[:, 0],
            "avg": lambda m, t: m.fc_norm(t[:, m.num_prefix_tokens :].sum(dim=1) / PATCHES),
            "mean": lambda m, t: m.fc_norm(t.sum(dim=1) / (m.num_prefix_tokens + PATCHES)),
            "": lambda m, t: t,
        }[pool](model, last)
        pre_logits = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(pre_logits, expected, msg=lambda text, pool=pool: f"{pool!r}: {text}")
        torch.testing.assert_close(model(images), model.head(expected))
        norms = (model.norm, model.fc_norm)
        kinds = (nn.LayerNorm, nn.Identity) if pool in ("token", "") else (nn.Identity, nn.LayerNorm)
        assert tuple(type(norm) for norm in norms) == kinds
    with pytest.raises(UnknownNameError, match="'token'"):
        small_model(name, global_pool="tokens")


@torch.no_grad()
def test_reset_classifier(name: str) -> None:
    model = small_model(name).double()
    images = images_for(model).double()
    body = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("head.")}
    pre_logits = model.forward_head(model.forward_features(images), pre_logits=True)

    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model.get_classifier().weight.dtype == torch.float64
    assert not model.get_classifier().training
    assert model(images).shape == (2, 7)
    model.reset_classifier(0)
    assert not any(key.startswith("head.") for key in model.state_dict())
    torch.testing.assert_close(model(images), pre_logits)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(images), finished(model, layer_outputs(model, images)[-1]))
    model.reset_classifier(7, "")
    assert model(images).shape == (2, model.num_prefix_tokens + PATCHES, 7)
    with pytest.raises(UnknownNameError, match="'avg'"):
        model.reset_classifier(7, "average")  # type: ignore[arg-type]
    assert model.global_pool == ""

    after = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    assert body.keys() == after.keys()
    assert all(torch.equal(body[key], after[key]) for key in body)
    model.to("meta").reset_classifier(3)
    assert model.get_classifier().weight.device.type == "meta"


@torch.no_grad()
def test_no_classes_means_no_head(name: str) -> None:
    model = small_model(name, num_classes=0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(images_for(model)).shape == (2, DIM)


INDICES: list[tuple[Any, list[int]]] = [
    (None, [0, 1, 2]),
    (2, [1, 2]),
    ([0], [0]),
    ([2, 0, -1], [0, 2]),  # in the order of the layers, each once, as in timm and DINO
    ([-3, -2], [0, 1]),
]


@torch.no_grad()
def test_forward_intermediates_in_every_combination(model: ImageTransformer, images: Tensor) -> None:
    outputs = layer_outputs(model, images)
    final = finished(model, outputs[-1])
    flags = list(itertools.product([False, True], repeat=5))
    for number, (with_prefix, norm, stop_early, only, as_dict) in enumerate(flags):
        for offset, fmt in enumerate(("NCHW", "NLC")):
            indices, layers = INDICES[(number + offset) % len(INDICES)]
            options = {
                "indices": indices,
                "return_prefix_tokens": with_prefix,
                "norm": norm,
                "stop_early": stop_early,
                "output_fmt": fmt,
                "intermediates_only": only,
                "output_dict": as_dict,
            }
            taken = [model.norm(outputs[layer]) if norm else outputs[layer] for layer in layers]
            patches = [of_patches(t) if fmt == "NLC" else as_map(of_patches(t)) for t in taken]
            prefix = [t[:, :-PATCHES] for t in taken]
            end = finished(model, outputs[max(layers)]) if stop_early else final

            result = model.forward_intermediates(images, **options)
            if as_dict:
                keys = {"image_intermediates"}
                keys |= {"image_intermediates_prefix"} if with_prefix else set()
                keys |= set() if only else {"image_features"}
                assert result.keys() == keys, options
                same(result["image_intermediates"], patches, options)
                same(result.get("image_intermediates_prefix", []), prefix if with_prefix else [], options)
                same([] if only else [result["image_features"]], [] if only else [end], options)
                continue
            if not only:
                features, result = result
                same([features], [end], options)
            assert isinstance(result, list), options
            if with_prefix:
                assert all(isinstance(pair, tuple) for pair in result), options
                same([pair[1] for pair in result], prefix, options)
                result = [pair[0] for pair in result]
            same(result, patches, options)


def same(have: list[Tensor], want: list[Tensor], options: dict[str, Any]) -> None:
    assert len(have) == len(want), options
    for ours, expected in zip(have, want, strict=True):
        torch.testing.assert_close(ours, expected, msg=lambda text: f"{options}: {text}")


@torch.no_grad()
def test_intermediates_are_the_hooked_ones_and_stopping_early_runs_no_more(
    model: ImageTransformer, images: Tensor
) -> None:
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    _, [first] = model.forward_intermediates(images, [0], output_fmt="NLC")
    assert len(seen) == DEPTH
    assert torch.equal(first, of_patches(seen[0]))
    seen.clear()
    model.forward_intermediates(images, [1], stop_early=True)
    assert len(seen) == 2


def test_layers_and_formats_that_do_not_exist(model: ImageTransformer, images: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="layer 3"):
        model.forward_intermediates(images, [3])
    with pytest.raises(UnknownNameError, match="layer -4"):
        model.forward_intermediates(images, [0, -4])
    with pytest.raises(UnknownNameError, match="NCHW"):
        model.forward_intermediates(images, output_fmt="NHWC")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 to 3"):
        model.get_intermediate_layers(images, 4)
    with pytest.raises(InputError, match="empty"):
        model.forward_intermediates(images, [])


@torch.no_grad()
def test_get_intermediate_layers(model: ImageTransformer, images: Tensor) -> None:
    outputs = layer_outputs(model, images)
    for n, layers in [(1, [2]), (2, [1, 2]), ([0, 2], [0, 2])]:
        got = model.get_intermediate_layers(images, n)  # type: ignore[arg-type]
        assert isinstance(got, tuple)
        same(list(got), [of_patches(outputs[layer]) for layer in layers], {"n": n})
    [only] = model.get_intermediate_layers(images)
    assert torch.equal(only, of_patches(outputs[-1]))
    [(patches, prefix)] = model.get_intermediate_layers(images, reshape=True, return_prefix_tokens=True, norm=True)
    torch.testing.assert_close(patches, as_map(of_patches(model.norm(outputs[-1]))))
    torch.testing.assert_close(prefix, model.norm(outputs[-1])[:, :-PATCHES])


@torch.no_grad()
def test_features_only(name: str, model: ImageTransformer, images: Tensor) -> None:
    torch.manual_seed(0)
    features = create_model(name, features_only=True, out_indices=[0, -2], **small_options(name)).eval()
    assert isinstance(features, FeatureExtractor)
    kept = {key.removeprefix("model."): value for key, value in features.state_dict().items()}
    assert not any(key.startswith(("head.", "norm.", "fc_norm.", "blocks.2.")) for key in kept)
    features.model.load_state_dict({key: model.state_dict()[key] for key in kept})
    info = features.feature_info
    assert info.out_indices == (0, 1)
    assert info.channels() == [DIM, DIM]
    assert info.reduction() == [patch_of(name)] * 2
    assert info.module_name() == ["blocks.0", "blocks.1"]
    assert features.default_cfg is features.pretrained_cfg
    outputs = layer_outputs(model, images)
    same(features(images), [as_map(of_patches(output)) for output in outputs[:2]], {})
    for module in info.module_name():
        features.model.get_submodule(module)


def test_features_only_gives_the_last_three_layers_unless_told(name: str) -> None:
    features = create_model(name, features_only=True, **small_options(name, depth=4))
    assert features.feature_info.out_indices == (1, 2, 3)
    assert len(features.model.blocks) == 4
    with pytest.raises(UnknownNameError, match="layer 9"):
        create_model(name, features_only=True, out_indices=[9], **small_options(name))


@torch.no_grad()
def test_pruned_layers_are_gone_and_the_others_as_they_were(model: ImageTransformer, images: Tensor) -> None:
    outputs, head = layer_outputs(model, images), model.head
    normed = finished(model, outputs[1])
    assert model.prune_intermediate_layers([1, 0], prune_head=False) == [1, 0]
    assert len(model.blocks) == 2
    assert model.get_classifier() is head
    torch.testing.assert_close(model.forward_features(images), normed)
    assert model.prune_intermediate_layers(1, prune_norm=True) == [1]
    torch.testing.assert_close(model.forward_features(images), outputs[1])
    assert model.num_classes == 0
    left = {"cls_token", "pos_embed", "patch_embed", "blocks"} | (
        {"reg_token"} if model.num_prefix_tokens > 1 else set()
    )
    assert {key.split(".")[0] for key in model.state_dict()} == left
    torch.testing.assert_close(model(images), outputs[1])  # all tokens: pooling went with the head
    with pytest.raises(UnknownNameError, match="layer 2"):
        model.prune_intermediate_layers([2])


@torch.no_grad()
def test_set_input_size(name: str, model: ImageTransformer, images: Tensor) -> None:
    patch, before = patch_of(name), copy.deepcopy(model.pos_embed)
    model.pos_embed.requires_grad_(False)
    model.set_input_size((3 * patch, 2 * patch))
    assert model.img_size == (3 * patch, 2 * patch)
    if isinstance(model, ToST):
        assert all(torch.equal(*pair) for pair in zip(before.parameters(), model.pos_embed.parameters(), strict=True))
    else:
        check_resampled(model, before.detach())
    tall = images_for(model)
    assert tall.shape[-2:] == (3 * patch, 2 * patch)
    assert model(tall).shape == (2, CLASSES)
    if not model.dynamic_img_size:
        with pytest.raises(InputError, match="set_input_size"):
            model(images)
    with pytest.raises(InputError, match="divisible"):
        model.set_input_size((3 * patch, 2 * patch + 1))
    model.set_input_size(patch_size=patch)
    with pytest.raises(InputError, match="patch_size=5"):
        model.set_input_size(32, patch_size=5)
    assert model.img_size == (3 * patch, 2 * patch)
    assert model(tall).shape == (2, CLASSES)


def check_resampled(model: ImageTransformer, before: Tensor) -> None:
    """Fails if positions on a grid of 3 x 2 are not those of `GRID`, resampled."""
    prefix = model.num_prefix_positions
    assert model.pos_embed.shape == (1, prefix + 6, DIM)
    assert not model.pos_embed.requires_grad
    if isinstance(model, CrateMae):  # the rule that came with it
        grid = nn.functional.interpolate(as_map(before[:, prefix:]), scale_factor=(3.1 / 2, 2.1 / 3), mode="bicubic")
    else:
        grid = nn.functional.interpolate(
            as_map(before[:, prefix:]), size=(3, 2), mode="bicubic", antialias=True, align_corners=False
        )
    torch.testing.assert_close(model.pos_embed[:, prefix:], grid.flatten(2).mT)
    assert torch.equal(model.pos_embed[:, :prefix], before[:, :prefix])


@torch.no_grad()
def test_dynamic_img_size_is_set_input_size_for_one_call(name: str) -> None:
    dynamic = small_model(name, dynamic_img_size=True)
    assert dynamic.dynamic_img_size
    for grid in [(3, 1), (4, 5), GRID]:
        images = images_for(dynamic, grid=grid)
        fixed = small_model(name, dynamic_img_size=False)
        fixed.set_input_size(tuple(images.shape[-2:]))
        torch.testing.assert_close(dynamic(images), fixed(images), rtol=0, atol=1e-6)
        maps = dynamic.forward_intermediates(images, [0], intermediates_only=True)
        assert maps[0].shape[-2:] == grid
    if not isinstance(dynamic, ToST):
        assert dynamic.pos_embed.shape[1] == dynamic.num_prefix_positions + PATCHES
    with pytest.raises(InputError, match="divisible"):
        dynamic(torch.zeros(1, 3, patch_of(name) + 1, patch_of(name)))


@torch.no_grad()
def test_channels(name: str) -> None:
    for channels in (1, 4):
        model = small_model(name, in_chans=channels)
        assert model.in_chans == channels
        images = images_for(model)
        logits = model(images)
        assert logits.shape == (2, CLASSES)
        images[:, -1] += 1  # a channel that is not read would not show
        images[:, -1, 0, 0] -= 3
        assert not torch.allclose(model(images), logits)
        with pytest.raises(InputError, match=f"{channels} channels"):
            model(torch.zeros(1, 3, *model.img_size))


@torch.no_grad()
def test_bfloat16_is_close_to_float32(model: ImageTransformer, images: Tensor) -> None:
    exact = model(images)
    half = copy.deepcopy(model).bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images)
    for logits in (half, mixed):
        assert (logits.float() - exact).norm() < 0.1 * exact.norm()


def test_every_parameter_gets_a_gradient(model: ImageTransformer, images: Tensor) -> None:
    model(images).square().sum().backward()
    for name, parameter in trained(model).items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_gradient_checkpointing_changes_memory_and_not_gradients(model: ImageTransformer, images: Tensor) -> None:
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    for block in model.layers():
        block.register_forward_pre_hook(count)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(images).square().sum(), list(trained(model).values())))

    plain = gradients()
    assert runs == len(model.layers())
    model.set_grad_checkpointing()
    runs = 0
    for have, want in zip(gradients(), plain, strict=True):
        assert torch.equal(have, want)
    assert runs == 2 * len(model.layers())  # each block once more in the backward pass
    model.set_grad_checkpointing(False)
    runs = 0
    gradients()
    assert runs == len(model.layers())


def test_no_weight_decay_names_parameters(model: ImageTransformer) -> None:
    names = model.no_weight_decay()
    learned = {"cls_token"} if isinstance(model, ToST) else {"pos_embed", "cls_token"}
    assert names == learned | ({"reg_token"} if model.num_prefix_tokens > 1 else set())
    assert names <= dict(model.named_parameters()).keys()


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_group_matcher_covers_all_but_what_follows_the_blocks(name: str, pool: str) -> None:
    model = small_model(name, global_pool=pool)
    for coarse in (False, True):
        groups = model.group_matcher(coarse)
        stem_pattern, *rest = groups.values()
        specs = [pair for spec in rest for pair in ([(spec, None)] if isinstance(spec, str) else spec)]
        for key, _ in model.named_parameters():
            stem = re.match(stem_pattern, key) is not None
            numbers = [match.groups() for pattern, _ in specs if (match := re.match(pattern, key))]
            parts = key.split(".")
            assert stem == (parts[0] in ("cls_token", "reg_token", "pos_embed", "patch_embed")), key
            if parts[0] in ("blocks", "cls_attn_blocks"):
                assert numbers == [(parts[1],)], key
            elif parts[0] == "norm" and not coarse:
                assert numbers == [()], key  # its own group, after the last block
            elif parts[0] == "mask_token" or parts[0].startswith("decoder_"):
                assert (stem, numbers) == (False, []), key  # left to the head's group, as timm does
            else:
                assert numbers == [], key
                assert stem or parts[0] in ("norm", "fc_norm", "head"), key


@pytest.mark.parametrize("pool", ["token", "mean"])
@torch.no_grad()
def test_a_saved_model_comes_back_bit_equal(name: str, pool: str, tmp_path: Path) -> None:
    model = small_model(name, global_pool=pool)
    save_pretrained(model, tmp_path / "model")
    loaded = create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert type(loaded) is type(model)
    assert loaded.architecture == name
    assert (loaded.img_size, loaded.global_pool) == (model.img_size, model.global_pool)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(loaded(images_for(model)), model(images_for(model)))
    assert set(loaded.load_report.loaded) == model.state_dict().keys()
    assert not loaded.load_report.adapted
    assert not loaded.load_report.reinitialised


@torch.no_grad()
def test_a_saved_model_keeps_what_was_changed_after_it_was_made(name: str, tmp_path: Path) -> None:
    model = small_model(name)
    model.reset_classifier(9, "avg")
    patch = patch_of(name)
    model.set_input_size((patch, 2 * patch))
    save_pretrained(model, tmp_path)
    loaded = create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (loaded.num_classes, loaded.global_pool, loaded.img_size) == (9, "avg", (patch, 2 * patch))
    assert torch.equal(loaded(images_for(model)), model(images_for(model)))
