"""ClassAttention is the first row of attention."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from whitebox_crate.layers import MHSA, ClassAttention


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.booleans(), st.integers(0, 2**31))
@torch.no_grad()
def test_it_is_attention_of_the_first_token(heads: int, p: int, tokens: int, qkv_bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    one, every = (kind(heads * p, heads, qkv_bias=qkv_bias).double() for kind in (ClassAttention, MHSA))
    one.load_state_dict(every.state_dict())
    x = torch.randn(2, tokens, heads * p, dtype=torch.float64)
    torch.testing.assert_close(one(x), every(x)[:, :1], rtol=0, atol=1e-12)
