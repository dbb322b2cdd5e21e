"""ODL is two proximal gradient steps from zero on the lasso, decoded by a dictionary of its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from whitebox_crate.errors import InputError
from whitebox_crate.layers import ODL

dims = st.integers(1, 9)
leading = st.lists(st.integers(1, 3), max_size=3)
constants = st.floats(0.01, 1)
seeds = st.integers(0, 2**31)


def layer_and_tokens(
    dim: int, shape: list[int], seed: int, expansion: int = 4, eta: float = 0.1, lam: float = 0.1
) -> tuple[ODL, Tensor]:
    torch.manual_seed(seed)
    return ODL(dim, expansion, eta, lam).double(), torch.randn(*shape, dim, dtype=torch.float64)


@given(dims, leading, st.integers(1, 4), constants, constants, seeds)
def test_the_code_is_two_proximal_gradient_steps_from_zero(
    dim: int, shape: list[int], expansion: int, eta: float, lam: float, seed: int
) -> None:
    layer, tokens = layer_and_tokens(dim, shape, seed, expansion, eta, lam)
    code = torch.zeros(*shape, expansion * dim, dtype=torch.float64)
    for _ in range(2):
        code.requires_grad_()
        fit = (tokens - code @ layer.dictionary.T).square().sum() / 2
        [gradient] = torch.autograd.grad(fit, [code])
        # The proximal operator of eta * lambda * |a|_1 over a >= 0.
        code = (code - eta * gradient - eta * lam).clamp(min=0).detach()
    have = layer.encode(tokens)
    assert have.shape == code.shape
    torch.testing.assert_close(have, code, rtol=0, atol=1e-12)


@given(dims, leading, seeds)
def test_the_output_is_the_code_in_the_other_dictionary(dim: int, shape: list[int], seed: int) -> None:
    layer, tokens = layer_and_tokens(dim, shape, seed)
    out = layer(tokens)
    assert out.shape == tokens.shape
    code = layer.encode(tokens)
    for x, a in zip(out.reshape(-1, dim), code.reshape(-1, 4 * dim), strict=True):
        torch.testing.assert_close(x, layer.decoder @ a, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.decode(code), out)


@given(dims, constants, seeds)
def test_steps_that_are_short_enough_lower_the_lasso(dim: int, lam: float, seed: int) -> None:
    layer, tokens = layer_and_tokens(dim, [4], seed, lam=lam)
    layer.step_size = 1 / torch.linalg.matrix_norm(layer.dictionary.detach(), 2).item() ** 2
    code = layer.encode(tokens)
    lasso = lam * code.sum(-1) + (tokens - code @ layer.dictionary.T).square().sum(-1) / 2
    assert (lasso <= tokens.square().sum(-1) / 2 + 1e-9).all()  # which it is at zero


def test_codes_are_sparse_and_not_negative() -> None:
    layer, tokens = layer_and_tokens(48, [64], 0)
    code = layer.encode(tokens)
    assert (code >= 0).all()
    assert 0.1 < (code > 0).double().mean() < 0.9
    layer.sparsity = 1.0
    assert (layer.encode(tokens) > 0).sum() < (code > 0).sum()


def test_every_use_of_the_dictionary_gives_gradient() -> None:
    layer, tokens = layer_and_tokens(3, [2], 1)
    tokens.requires_grad_()

    def literal(x: Tensor, d: Tensor, d1: Tensor) -> Tensor:
        first = torch.relu(0.1 * x @ d - 0.01)
        return torch.relu(first - 0.1 * (first @ d.T - x) @ d - 0.01) @ d1.T

    inputs = (tokens, layer.dictionary, layer.decoder)
    ours = torch.autograd.grad(layer(tokens).square().sum(), inputs)
    theirs = torch.autograd.grad(literal(*inputs).square().sum(), inputs)
    for have, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(have, want)


def test_its_parameters_are_two_dictionaries_within_the_released_bound() -> None:
    layer = ODL(24)
    assert {name: tuple(value.shape) for name, value in layer.named_parameters()} == {
        "dictionary": (24, 96),
        "decoder": (24, 96),
    }
    for matrix in layer.parameters():
        assert 0.95 * 0.5 < matrix.abs().max() <= 0.5  # sqrt(6 / 24)
        assert not torch.equal(matrix, layer.dictionary) or matrix is layer.dictionary


def test_an_empty_dictionary_is_refused() -> None:
    with pytest.raises(InputError, match="expansion must be at least 1, not 0"):
        ODL(4, expansion=0)


def test_its_constants_show() -> None:
    shown = repr(ODL(4, 3, step_size=0.2, sparsity=0.3))
    assert all(part in shown for part in ("4, atoms=12", "eta=0.2", "lambda=0.3"))
