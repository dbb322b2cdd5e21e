"""CRATE-MAE removes patches, completes them from the others, and is judged on those alone."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import DEPTH, DIM, GRID, images_for, small_model
from torch import Tensor, nn

from whitebox_crate import capture, create_model
from whitebox_crate.errors import InputError
from whitebox_crate.layers import patchify, sincos_pos_embed, unpatchify
from whitebox_crate.models import CrateMae, CrateMaeDecoderBlock, Reconstruction

NAME = "crate_mae_tiny_patch16_224"
PATCHES = GRID[0] * GRID[1]


def make(**options: Any) -> CrateMae:
    model = small_model(NAME, **options)
    assert isinstance(model, CrateMae)
    return model


def noise_of(seed: int = 3, patches: int = PATCHES) -> Tensor:
    return torch.rand(2, patches, generator=torch.Generator().manual_seed(seed))


def literal(model: CrateMae, images: Tensor, mask: Tensor) -> Tensor:
    """The prediction, step by step."""
    patches = model.patch_embed(images)
    for sample, place in mask.nonzero():
        patches[sample, place] = model.mask_token[0, 0]
    tokens = torch.cat([model.cls_token.expand(2, -1, -1), patches], dim=1) + model.pos_embed
    for block in model.blocks:
        tokens = block(tokens)
    tokens = model.norm(tokens)
    for block in model.decoder_blocks:
        expanded = block.norm1(tokens) @ block.linear.weight.T
        tokens = expanded - block.mssa(block.norm2(expanded))
    return model.decoder_pred(model.decoder_norm(tokens))[:, 1:]


@given(st.floats(0, 1, exclude_min=True), st.integers(0, 99))
@torch.no_grad()
def test_the_smallest_noise_stays_and_the_loss_is_of_the_others(mask_ratio: float, seed: int) -> None:
    model, noise = make(), noise_of(seed)
    images = images_for(model)
    result = model.reconstruct(images, mask_ratio, noise)
    assert isinstance(result, Reconstruction)
    kept = min(int(PATCHES * (1 - mask_ratio)), PATCHES - 1)
    assert result.mask.dtype == torch.bool
    assert (result.mask.sum(dim=1) == PATCHES - kept).all()
    for values, mask in zip(noise, result.mask, strict=True):
        assert kept == 0 or values[~mask].max() < values[mask].min()
    assert result.pred.shape == (2, PATCHES, 16 * 16 * 3)
    assert result.loss.isfinite()
    torch.testing.assert_close(result.pred, literal(model, images, result.mask))
    errors = (result.pred - patchify(images, 16))[result.mask].square()
    torch.testing.assert_close(result.loss, errors.mean())


@torch.no_grad()
def test_removed_patches_are_not_seen_and_the_others_are_not_judged() -> None:
    model, noise = make(), noise_of()
    images = images_for(model)
    before = model.reconstruct(images, 0.5, noise)
    gone = before.mask[..., None].expand(-1, -1, 768)
    pixels = patchify(images, 16)
    other = unpatchify(torch.where(gone, pixels.roll(1, 0), pixels), 16, GRID)
    after = model.reconstruct(other, 0.5, noise)
    assert torch.equal(after.pred, before.pred)
    assert after.loss != before.loss

    seen = unpatchify(torch.where(gone, pixels, pixels + 1), 16, GRID)
    changed = model.reconstruct(seen, 0.5, noise)
    assert not torch.allclose(changed.pred, before.pred)
    # Only through what is predicted: the target of the loss is where the mask is.
    torch.testing.assert_close(changed.loss, (changed.pred - pixels)[before.mask].square().mean())


@torch.no_grad()
def test_with_everything_removed_the_image_does_not_matter() -> None:
    model = make()
    images = images_for(model)
    result = model.reconstruct(images, 1)
    assert result.mask.all()
    assert torch.equal(result.pred, model.reconstruct(images.flip(0), 1.0).pred)


@torch.no_grad()
def test_standardised_targets_do_not_see_brightness_and_contrast() -> None:
    plain, model, noise = make(), make(norm_pix_loss=True), noise_of()
    images, pixels = images_for(model), patchify(images_for(model), 16)
    result = model.reconstruct(images, 0.5, noise)
    assert torch.equal(result.pred, plain.reconstruct(images, 0.5, noise).pred)
    target = (pixels - pixels.mean(-1, keepdim=True)) / pixels.std(-1, keepdim=True)
    torch.testing.assert_close(result.loss, (result.pred - target)[result.mask].square().mean())
    gone = result.mask[..., None]
    scaled = unpatchify(torch.where(gone, 3 * pixels - 7, pixels), 16, GRID)
    torch.testing.assert_close(model.reconstruct(scaled, 0.5, noise).loss, result.loss)


@torch.no_grad()
def test_noise_is_drawn_anew_from_torchs_stream() -> None:
    model = make()
    images = images_for(model)
    torch.manual_seed(5)
    first, second = model.reconstruct(images), model.reconstruct(images)
    torch.manual_seed(5)
    assert torch.equal(model.reconstruct(images, noise=torch.rand(2, PATCHES)).mask, first.mask)
    assert not torch.equal(first.mask, second.mask) or not torch.equal(first.mask[0], first.mask[1])


@pytest.mark.parametrize("mask_ratio", [0, 0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_shares_that_are_none_are_refused(mask_ratio: float) -> None:
    model = make()
    with pytest.raises(InputError, match="mask_ratio must be a share of the patches in"):
        model.reconstruct(images_for(model), mask_ratio)


@pytest.mark.parametrize(
    "noise", [torch.rand(2, PATCHES + 1), torch.rand(PATCHES), torch.rand(1, PATCHES), torch.ones(2, PATCHES).long()]
)
def test_noise_of_another_kind_is_refused(noise: Tensor) -> None:
    model = make()
    with pytest.raises(InputError, match=r"one float for each patch, here \(2, 6\)"):
        model.reconstruct(images_for(model), noise=noise)


def test_images_of_another_size_are_refused_or_taken() -> None:
    model = make()
    images = images_for(model, grid=(3, 5))
    with pytest.raises(InputError, match="set_input_size"):
        model.reconstruct(images)
    assert make(dynamic_img_size=True).reconstruct(images).pred.shape == (2, 15, 768)
    model.set_input_size((48, 80))
    assert model.reconstruct(images).mask.shape == (2, 15)


def test_every_trained_parameter_gets_a_gradient_and_positions_get_none() -> None:
    model = make(num_classes=0)
    model.reconstruct(images_for(model), 0.5).loss.backward()
    for name, parameter in model.named_parameters():
        assert (name == "pos_embed") == (not parameter.requires_grad)
        assert name == "pos_embed" or parameter.grad is not None, name
        assert name == "pos_embed" or parameter.grad.any(), name


def test_gradient_checkpointing_covers_the_decoder_and_changes_no_gradient() -> None:
    model = make(num_classes=0)
    runs: list[nn.Module] = []
    for block in [*model.blocks, *model.decoder_blocks]:
        block.register_forward_pre_hook(lambda module, _: runs.append(module))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(model.reconstruct(images_for(model), 0.5, noise_of()).loss, trained)

    plain = gradients()
    assert len(runs) == 2 * DEPTH
    model.set_grad_checkpointing()
    for have, want in zip(gradients(), plain, strict=True):
        assert torch.equal(have, want)
    assert len(runs) == 6 * DEPTH


@torch.no_grad()
def test_a_capture_reads_the_encoder_while_it_reconstructs() -> None:
    model, noise = make(), noise_of()
    images = images_for(model)
    plain = model.reconstruct(images, noise=noise)
    with capture(model, "tokens", "attention") as trace:
        seen = model.reconstruct(images, noise=noise)
    assert torch.equal(seen.loss, plain.loss)
    assert torch.equal(seen.pred, plain.pred)
    masked = model.mask_token + model.pos_embed[:, 1:]
    for sample in range(2):
        torch.testing.assert_close(trace["tokens", 0][sample, 1:][plain.mask[sample]], masked[0, plain.mask[sample]])
    assert trace["attention", -1].shape == (2, 2, 1, 1 + PATCHES)


@pytest.mark.parametrize("pool", ["avg", "mean", ""])
@torch.no_grad()
def test_the_pool_of_a_head_does_not_change_what_is_reconstructed(pool: str) -> None:
    model, other = make(), make(global_pool=pool)
    state = {key.replace("fc_norm.", "norm."): value for key, value in other.state_dict().items()}
    model.load_state_dict(state)
    images, noise = images_for(model), noise_of()
    assert torch.equal(other.reconstruct(images, noise=noise).pred, model.reconstruct(images, noise=noise).pred)


@torch.no_grad()
def test_without_a_decoder_the_rest_is_the_same() -> None:
    model, encoder = make(), make(decoder_depth=0)
    names = model.state_dict().keys() - encoder.state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"mask_token", "decoder_blocks", "decoder_norm", "decoder_pred"}
    encoder.load_state_dict({key: value for key, value in model.state_dict().items() if key not in names})
    assert torch.equal(encoder(images_for(model)), model(images_for(model)))
    features = create_model(NAME, features_only=True, depth=2, embed_dim=DIM, num_heads=2)
    assert not any("decoder" in name or "mask" in name for name in features.state_dict())
    for without in (encoder, features.model):
        with pytest.raises(InputError, match="no decoder"):
            without.reconstruct(torch.zeros(1, 3, *without.img_size))


def test_the_decoder_has_the_depth_and_heads_that_were_asked() -> None:
    model = make(decoder_depth=1, decoder_num_heads=3, head_dim=8)
    [block] = model.decoder_blocks
    assert isinstance(block, CrateMaeDecoderBlock)
    assert (block.mssa.num_heads, block.mssa.head_dim) == (3, 8)
    assert [b.mssa.num_heads for b in make().decoder_blocks] == [2] * DEPTH
    assert all(b.ista.sparsity == 0.5 for b in model.blocks)
    assert all(b.ista.sparsity == 0.2 for b in make(sparsity=0.2).blocks)
    with pytest.raises(InputError, match="decoder_depth must be at least 0"):
        make(decoder_depth=-1)
    with pytest.raises(InputError, match="4 divides, not 6"):
        make(embed_dim=6)


def test_it_begins_as_mae_does() -> None:
    model = CrateMae(embed_dim=48, depth=1, num_heads=2, num_classes=10)
    for token in (model.cls_token, model.mask_token):
        assert 0.01 < token.std() < 0.03
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            outputs, *inputs = module.weight.shape
            bound = (6 / (outputs + torch.Size(inputs).numel())) ** 0.5
            if any(module is block.linear for block in model.decoder_blocks):
                bound = (6 / 48) ** 0.5  # He's, as ISTA's dictionary
            assert module.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
            assert module.bias is None or not module.bias.any()
    assert torch.equal(model.pos_embed.detach(), sincos_pos_embed((14, 14), 48))


def test_it_can_be_made_without_memory() -> None:
    with torch.device("meta"):
        model = create_model("crate_mae_tiny")
        result = model.reconstruct(torch.zeros(2, 3, 224, 224))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert result.pred.shape == (2, 196, 768)


@torch.no_grad()
def test_in_bfloat16_it_is_close() -> None:
    model, noise = make(), noise_of()
    exact = model.reconstruct(images_for(model), noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.reconstruct(images_for(model), noise=noise)
    half = make().bfloat16().reconstruct(images_for(model).bfloat16(), noise=noise)
    for result in (mixed, half):
        assert torch.equal(result.mask, exact.mask)
        assert result.loss.item() == pytest.approx(exact.loss.item(), rel=0.1)
