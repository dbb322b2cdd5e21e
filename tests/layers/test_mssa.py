"""MSSA is the formula of the paper: one basis per head is query, key and value."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.layers import MSSA, DropRates


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_it_is_the_formula(heads: int, p: int, dim: int, tokens: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = MSSA(dim, heads, head_dim=p).double()
    z = torch.randn(2, tokens, dim, dtype=torch.float64)
    out = layer(z)
    for sample in range(2):
        compressed = []
        for head in range(heads):
            basis = layer.qkv.weight[head * p : (head + 1) * p].T  # U_k, (dim, p)
            w = z[sample] @ basis
            compressed.append((w @ w.T / p**0.5).softmax(dim=-1) @ w)
        expected = torch.cat(compressed, dim=-1)
        if isinstance(layer.proj, nn.Linear):
            expected = expected @ layer.proj.weight.T + layer.proj.bias
        torch.testing.assert_close(out[sample], expected, rtol=0, atol=1e-12)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_tied_it_is_the_step_of_the_derivation(heads: int, p: int, dim: int, tokens: int, seed: int) -> None:
    """Tokens as columns, as the paper writes them: sum_k U_k (U_k^T Z) softmax((U_k^T Z)^T U_k^T Z / sqrt(p))."""
    torch.manual_seed(seed)
    layer = MSSA(dim, heads, head_dim=p, proj="tied").double()
    z = torch.randn(1, tokens, dim, dtype=torch.float64)
    expected = torch.zeros(dim, tokens, dtype=torch.float64)
    for basis in layer.qkv.weight.detach().split(p):
        w = basis @ z[0].T
        expected += basis.T @ w @ (w.T @ w / p**0.5).softmax(dim=0)
    torch.testing.assert_close(layer(z)[0].T.detach(), expected, rtol=0, atol=1e-12)
    assert [name for name, _ in layer.named_parameters()] == ["qkv.weight"]


def test_what_training_leaves_out_of_a_tied_projection_comes_after_it() -> None:
    torch.manual_seed(0)
    layer = MSSA(12, 3, proj="tied", drop=DropRates(proj=0.5))
    out = layer(torch.randn(2, 50, 12))
    assert 0.4 < float((out == 0).float().mean()) < 0.6


def test_an_unknown_projection_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tied'"):
        MSSA(12, 3, proj="tide")  # type: ignore[arg-type]


@given(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8))
def test_only_one_head_as_wide_as_the_token_needs_no_projection(heads: int, p: int, dim: int) -> None:
    layer = MSSA(dim, heads, head_dim=p)
    assert isinstance(layer.proj, nn.Identity) == (heads == 1 and p == dim)


def test_its_parameters_are_the_bases_without_bias_and_the_projection_with_bias() -> None:
    shapes = {name: tuple(value.shape) for name, value in MSSA(12, 3, head_dim=5).named_parameters()}
    assert shapes == {"qkv.weight": (15, 12), "proj.weight": (12, 15), "proj.bias": (12,)}
    assert MSSA(12, 3).head_dim == 4


def test_without_a_bias_the_projection_has_the_same_weight() -> None:
    layer, with_bias = MSSA(12, 3, proj_bias=False), MSSA(12, 3)
    assert {name for name, _ in layer.named_parameters()} == {"qkv.weight", "proj.weight"}
    with_bias.load_state_dict({**layer.state_dict(), "proj.bias": torch.arange(12.0)})
    z = torch.randn(2, 5, 12)
    torch.testing.assert_close(layer(z) + torch.arange(12.0), with_bias(z))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match="head_dim"):
        MSSA(10, 3)
    with pytest.raises(InputError, match="num_heads"):
        MSSA(10, 0)
    assert MSSA(10, 3, head_dim=4).qkv.out_features == 12
