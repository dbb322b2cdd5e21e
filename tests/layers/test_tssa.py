"""TSSA is the sum that it says, minus the gradient of the variational coding rate, and linear in the tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import shake
from torch import Tensor

from whitebox_crate.errors import InputError
from whitebox_crate.layers import TSSA, DropRates, second_moments


def made(seed: int = 0, dim: int = 12, heads: int = 3, **options: object) -> TSSA:
    torch.manual_seed(seed)
    tssa = TSSA(dim, heads, **options).double()  # type: ignore[arg-type]
    shake(tssa)
    return tssa.eval()


def tokens_of(seed: int = 0, tokens: int = 5, dim: int = 12) -> Tensor:
    return torch.randn(2, tokens, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def literal(tssa: TSSA, x: Tensor) -> Tensor:
    """The definition, head by head, token by token and channel by channel."""
    out = []
    heads, width, tokens = tssa.num_heads, tssa.head_dim, x.shape[1]
    for image in tssa.qkv(x).tolist():
        w = [[[row[k * width + c] for c in range(width)] for row in image] for k in range(heads)]
        norm = [[math.sqrt(sum(w[k][j][c] ** 2 for j in range(tokens))) for c in range(width)] for k in range(heads)]
        tau = tssa.temperature[:, 0].tolist()
        logits = [
            [tau[k] * sum((w[k][j][c] / norm[k][c]) ** 2 for c in range(width)) for j in range(tokens)]
            for k in range(heads)
        ]
        total = [sum(math.exp(logits[k][j]) for k in range(heads)) for j in range(tokens)]
        pi = [[math.exp(logits[k][j]) / total[j] for j in range(tokens)] for k in range(heads)]
        image_out = []
        for j in range(tokens):
            row = []
            for k in range(heads):
                for c in range(width):
                    m = sum(pi[k][i] * w[k][i][c] ** 2 for i in range(tokens)) / (sum(pi[k]) + 1e-8)
                    row.append(-pi[k][j] * w[k][j][c] / (1 + m))
            image_out.append(row)
        out.append(image_out)
    return tssa.proj(torch.tensor(out, dtype=x.dtype))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.booleans(), st.integers(0, 2**31))
@torch.no_grad()
def test_it_is_the_definition(heads: int, width: int, tokens: int, bias: bool, seed: int) -> None:
    tssa = made(seed, 5, heads, head_dim=width, qkv_bias=bias)
    x = tokens_of(seed, tokens, 5)
    torch.testing.assert_close(tssa(x), literal(tssa, x), rtol=0, atol=1e-10)


@given(st.integers(0, 2**31))
def test_before_the_projection_it_is_minus_the_gradient_of_the_variational_rate(seed: int) -> None:
    tssa, x = made(seed), tokens_of(seed)
    seen: list[Tensor] = []
    tssa.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tssa(x)
    w = tssa.split_heads(tssa.qkv(x))[0].detach().requires_grad_()
    membership = tssa.membership(w).detach()
    rate = (membership.sum(-1) / 2 * second_moments(w, membership).log1p().sum(-1)).sum()
    [gradient] = torch.autograd.grad(rate, w)
    torch.testing.assert_close(seen[0], -tssa.with_keys(x, gradient), rtol=0, atol=1e-8)  # of the divisors' 1e-8


@given(st.permutations(range(5)), st.integers(0, 2**31))
@torch.no_grad()
def test_the_order_of_the_tokens_does_not_matter(order: list[int], seed: int) -> None:
    tssa, x = made(), tokens_of(seed)
    torch.testing.assert_close(tssa(x[:, order]), tssa(x)[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_channels_without_energy_and_heads_without_members_give_numbers(dtype: torch.dtype) -> None:
    tssa = made()
    tssa.qkv.weight[:4], tssa.qkv.bias[:4] = 0, 0  # the first head sees nothing
    tssa.temperature.copy_(torch.tensor([[0.0], [-1e4], [1e4]]))
    assert tssa.to(dtype)(tokens_of().to(dtype)).isfinite().all()


@torch.no_grad()
def test_training_leaves_out_statistics_and_outputs() -> None:
    x = tokens_of()
    every = made(drop=DropRates(attn=0.5)).train()
    assert not torch.equal(every(x), every(x))
    assert torch.equal(every.eval()(x), made()(x))
    assert (made(drop=DropRates(proj=0.5)).train()(x) == 0).double().mean() > 0.2


def test_nothing_in_it_is_tokens_by_tokens() -> None:
    tokens, sizes = 64, []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor))
            return out

    with torch.no_grad(), Sizes():
        made()(tokens_of(tokens=tokens))
    assert max(sizes) <= 2 * tokens * 12


def test_its_parameters() -> None:
    shapes = {name: tuple(value.shape) for name, value in TSSA(12, 3, head_dim=5).named_parameters()}
    assert shapes == {
        "temperature": (3, 1),
        "qkv.weight": (15, 12),
        "qkv.bias": (15,),
        "proj.weight": (12, 15),
        "proj.bias": (12,),
    }


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match="head_dim"):
        TSSA(10, 3)
