"""CRATE-alpha is the released layer, and its sparse code can be read."""

import pytest
import torch
import torch.nn.functional as F
from small_models import images_for, small_model
from torch import nn

from whitebox_crate import capture
from whitebox_crate.errors import InputError
from whitebox_crate.models import CrateAlpha, CrateAlphaBlock

NAME = "crate_alpha_tiny_patch16_224"


def test_a_layer_has_two_residuals_and_eps_of_its_own() -> None:
    torch.manual_seed(0)
    block, z = CrateAlphaBlock(12, 3).double(), 1e-3 * torch.randn(2, 7, 12, dtype=torch.float64)  # eps shows
    half = z + block.mssa(F.layer_norm(z, (12,), eps=1e-6))
    torch.testing.assert_close(block(z), half + block.odl(F.layer_norm(half, (12,), eps=1e-6)))


@pytest.mark.parametrize("expansion", [1, 4])
@torch.no_grad()
def test_the_code_of_a_layer_can_be_read_from_a_capture(expansion: int) -> None:
    model = small_model(NAME, expansion=expansion)
    codes: list[torch.Tensor] = []
    with capture(model, "compressed", "output") as trace:
        model(images_for(model))
    for layer, block in enumerate(model.blocks):
        compressed = trace["compressed", layer]
        codes.append(block.odl.encode(block.norm2(compressed)))
        torch.testing.assert_close(trace["output", layer], compressed + block.odl.decode(codes[-1]))
    assert all(code.shape == (2, 7, expansion * 48) for code in codes)


def test_its_options_reach_every_layer_and_the_last_norm() -> None:
    model = CrateAlpha(embed_dim=12, depth=2, num_heads=2, head_dim=5, step_size=0.2, sparsity=0.3, norm_eps=1e-6)
    for block in model.blocks:
        assert (block.odl.step_size, block.odl.sparsity) == (0.2, 0.3)
        assert (block.mssa.head_dim, block.norm1.eps, block.norm2.eps) == (5, 1e-6, 1e-6)
        assert isinstance(block.mssa.proj, nn.Linear)
        assert block.mssa.proj.bias is None
    assert model.norm.eps == 1e-6
    assert CrateAlpha(embed_dim=12, depth=1, num_heads=2, global_pool="avg").fc_norm.eps == 1e-5
    with pytest.raises(InputError, match="expansion"):
        CrateAlpha(embed_dim=12, depth=1, num_heads=2, expansion=0)


def test_it_begins_as_the_jax_original_does() -> None:
    model = CrateAlpha(embed_dim=48, depth=1, num_heads=2, num_classes=100)
    assert model.cls_token.abs().max() < 1e-5
    for weight in (
        model.pos_embed,
        model.head.weight,
        model.blocks[0].mssa.qkv.weight,
        model.blocks[0].mssa.proj.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.patch_embed.proj.weight.abs().max().item() == pytest.approx((6 / (3 * 16 * 16)) ** 0.5, rel=0.01)
    assert not model.head.bias.any()
    assert not model.patch_embed.proj.bias.any()
