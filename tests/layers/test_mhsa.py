"""MHSA is PyTorch's own multi-head attention with the same weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from whitebox_crate.errors import InputError
from whitebox_crate.layers import MHSA


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.booleans(), st.integers(0, 2**31))
def test_it_is_the_attention_of_pytorch(heads: int, p: int, tokens: int, qkv_bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    dim = heads * p
    ours = MHSA(dim, heads, qkv_bias=qkv_bias).double()
    theirs = nn.MultiheadAttention(dim, heads, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.zero_()
        if qkv_bias:
            theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(2, tokens, dim, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=0, atol=1e-12)


def test_its_parameters() -> None:
    shapes = {name: tuple(value.shape) for name, value in MHSA(12, 3, head_dim=5).named_parameters()}
    assert shapes == {"qkv.weight": (45, 12), "qkv.bias": (45,), "proj.weight": (12, 15), "proj.bias": (12,)}


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match="head_dim"):
        MHSA(10, 3)
