"""Each layer is the algorithm it is named after, and does not care in which order the patches come."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_models import shake
from torch import Tensor, nn

from whitebox_crate.errors import UnknownNameError
from whitebox_crate.models import (
    Block,
    CrateAlphaBlock,
    CrateAttentionOnlyBlock,
    CrateBlock,
    CrateMhsaBlock,
    CrateMlpBlock,
    ViTBlock,
)

DIM, HEADS = 12, 3
MAKERS: dict[str, Callable[[], Block]] = {
    "crate": lambda: CrateBlock(DIM, HEADS),
    "crate, skip normalized": lambda: CrateBlock(DIM, HEADS, skip="normalized"),
    "crate-sth": lambda: CrateBlock(DIM, HEADS, threshold="soft"),
    "crate, tied": lambda: CrateBlock(DIM, HEADS, proj="tied"),
    "attention only": lambda: CrateAttentionOnlyBlock(DIM, HEADS),
    "crate-alpha": lambda: CrateAlphaBlock(DIM, HEADS),
    "crate-mlp": lambda: CrateMlpBlock(DIM, HEADS),
    "crate-mhsa": lambda: CrateMhsaBlock(DIM, HEADS),
    "vit": lambda: ViTBlock(DIM, HEADS),
}


def made(name: str) -> Block:
    torch.manual_seed(0)
    block = MAKERS[name]().double()
    shake(block)
    return block


def tokens_of(seed: int = 0, tokens: int = 7) -> Tensor:
    return torch.randn(2, tokens, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normed(x: Tensor, norm: nn.LayerNorm, eps: float) -> Tensor:
    return F.layer_norm(x, (DIM,), norm.weight, norm.bias, eps)


@pytest.mark.parametrize("name", MAKERS)
@given(st.permutations(range(1, 7)), st.integers(0, 2**31))
def test_the_order_of_the_patches_does_not_matter(name: str, patches: list[int], seed: int) -> None:
    block, tokens, order = made(name), tokens_of(seed), [0, *patches]
    torch.testing.assert_close(block(tokens[:, order]), block(tokens)[:, order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MAKERS)
def test_the_samples_of_a_batch_do_not_see_each_other(name: str) -> None:
    block, tokens = made(name), tokens_of()
    torch.testing.assert_close(block(tokens)[1:], block(tokens[1:]), rtol=0, atol=1e-12)


def ista(y: Tensor, d: Tensor, eta: float, lam: float) -> Tensor:
    return torch.relu(y + eta * (y - y @ d.T) @ d - eta * lam)


@given(st.integers(0, 2**31), st.floats(0.05, 0.5), st.floats(0.05, 0.5))
def test_crate_is_the_released_layer(seed: int, eta: float, lam: float) -> None:
    torch.manual_seed(seed)
    block, z = CrateBlock(DIM, HEADS, step_size=eta, sparsity=lam).double(), tokens_of(seed)
    shake(block)
    half = z + block.mssa(normed(z, block.norm1, 1e-5))
    expected = ista(normed(half, block.norm2, 1e-5), block.ista.dictionary, eta, lam)
    torch.testing.assert_close(block(z), expected, rtol=0, atol=1e-10)


@given(st.integers(0, 2**31))
def test_skip_normalized_is_algorithm_1(seed: int) -> None:
    torch.manual_seed(seed)
    block, z = CrateBlock(DIM, HEADS, skip="normalized").double(), tokens_of(seed)
    shake(block)
    z_n = normed(z, block.norm1, 1e-5)
    half = z_n + block.mssa(z_n)
    expected = ista(normed(half, block.norm2, 1e-5), block.ista.dictionary, 0.1, 0.1)
    torch.testing.assert_close(block(z), expected, rtol=0, atol=1e-10)
    assert not torch.allclose(block(z), CrateBlock.forward(_with_skip(block, "input"), z))


def _with_skip(block: CrateBlock, skip: str) -> CrateBlock:
    block.skip = skip  # type: ignore[assignment]
    return block


def test_attention_only_is_mssa_with_its_residual() -> None:
    block, z = made("attention only"), tokens_of()
    torch.testing.assert_close(block(z), z + block.mssa(normed(z, block.norm1, 1e-5)))
    assert {name.split(".")[0] for name in block.state_dict()} == {"norm1", "mssa"}


def test_crate_mlp_exchanges_ista_for_a_residual_mlp() -> None:
    block, z = made("crate-mlp"), tokens_of()
    half = z + block.mssa(normed(z, block.norm1, 1e-5))
    torch.testing.assert_close(block(z), half + block.mlp(normed(half, block.norm2, 1e-5)))


def test_crate_mhsa_exchanges_mssa_for_attention() -> None:
    block, z = made("crate-mhsa"), tokens_of()
    half = z + block.attn(normed(z, block.norm1, 1e-5))
    expected = ista(normed(half, block.norm2, 1e-5), block.ista.dictionary, 0.1, 0.1)
    torch.testing.assert_close(block(z), expected)


def test_vit_has_two_residuals_and_its_own_eps() -> None:
    block, z = made("vit"), 1e-3 * tokens_of()  # so small that eps shows
    half = z + block.attn(normed(z, block.norm1, 1e-6))
    torch.testing.assert_close(block(z), half + block.mlp(normed(half, block.norm2, 1e-6)))


@pytest.mark.parametrize("name", ["crate", "crate, skip normalized", "crate-mhsa"])
def test_codes_are_not_negative(name: str) -> None:
    out = made(name)(tokens_of())
    assert (out >= 0).all()
    assert (out == 0).any()


def test_an_unknown_skip_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'normalized'"):
        CrateBlock(DIM, HEADS, skip="normalised")  # type: ignore[arg-type]
