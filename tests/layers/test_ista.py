"""ISTA is the formula of the paper, and a step that makes its objective smaller."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from whitebox_crate.errors import UnknownNameError
from whitebox_crate.layers import ISTA

dims = st.integers(1, 9)
leading = st.lists(st.integers(1, 3), max_size=3)
constants = st.floats(0.01, 1)
seeds = st.integers(0, 2**31)


def layer_and_tokens(
    dim: int, shape: list[int], eta: float, lam: float, seed: int, threshold: str = "relu"
) -> tuple[ISTA, Tensor]:
    torch.manual_seed(seed)
    layer = ISTA(dim, eta, lam, threshold).double()  # type: ignore[arg-type]
    with torch.no_grad():
        layer.dictionary.copy_(torch.randn(dim, dim))  # far from symmetric: D is not D^T
    return layer, torch.randn(*shape, dim, dtype=torch.float64)


@given(dims, leading, constants, constants, seeds)
def test_relu_is_the_formula(dim: int, shape: list[int], eta: float, lam: float, seed: int) -> None:
    layer, tokens = layer_and_tokens(dim, shape, eta, lam, seed)
    d = layer.dictionary
    coded = layer(tokens)
    assert coded.shape == tokens.shape
    for x, out in zip(tokens.reshape(-1, dim), coded.reshape(-1, dim), strict=True):
        expected = torch.relu(x + eta * d.T @ (x - d @ x) - eta * lam)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@given(dims, leading, constants, constants, seeds)
def test_soft_is_the_formula(dim: int, shape: list[int], eta: float, lam: float, seed: int) -> None:
    layer, tokens = layer_and_tokens(dim, shape, eta, lam, seed, "soft")
    d = layer.dictionary
    for x, out in zip(tokens.reshape(-1, dim), layer(tokens).reshape(-1, dim), strict=True):
        step = x + eta * d.T @ (x - d @ x)
        expected = step.sign() * (step.abs() - eta * lam).clamp(min=0)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@given(dims, constants, st.sampled_from(["relu", "soft"]), seeds)
def test_a_step_lowers_the_objective(dim: int, lam: float, threshold: str, seed: int) -> None:
    """A proximal gradient step from z = x, no longer than 1 / |D|^2, never raises lambda |z|_1 + |x - D z|^2 / 2."""
    layer, tokens = layer_and_tokens(dim, [4], 0.0, lam, seed, threshold)
    layer.step_size = 1 / torch.linalg.matrix_norm(layer.dictionary.detach(), 2).item() ** 2
    start = tokens.abs() if threshold == "relu" else tokens  # where z >= 0, x must be a place to start from

    def objective(z: Tensor) -> Tensor:
        return lam * z.abs().sum(-1) + (start - z @ layer.dictionary.T).square().sum(-1) / 2

    assert (objective(layer(start)) <= objective(start) + 1e-9).all()


def test_the_two_thresholds_differ_in_sign_only_where_codes_are_negative() -> None:
    relu, tokens = layer_and_tokens(8, [16], 0.1, 0.1, 3)
    soft, _ = layer_and_tokens(8, [16], 0.1, 0.1, 3, "soft")
    assert (relu(tokens) >= 0).all()
    assert (soft(tokens) < 0).any()
    torch.testing.assert_close(relu(tokens), soft(tokens).clamp(min=0))


def test_the_gradient_is_that_of_the_formula() -> None:
    layer, tokens = layer_and_tokens(4, [3], 0.3, 0.2, 5)

    def literal(x: Tensor, d: Tensor) -> Tensor:
        return torch.relu(x + 0.3 * (x - x @ d.T) @ d - 0.3 * 0.2)

    tokens.requires_grad_()
    inputs = (tokens, layer.dictionary)
    ours = torch.autograd.grad(layer(tokens).square().sum(), inputs)
    theirs = torch.autograd.grad(literal(*inputs).square().sum(), inputs)
    for have, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize("threshold", ["relu", "soft"])
def test_many_tokens_in_training_take_one_product_to_the_same_values_and_gradients(threshold: str) -> None:
    layer, tokens = layer_and_tokens(8, [2, 20], 0.3, 0.2, 6, threshold)
    tokens.requires_grad_()
    flops, found = {}, {}
    for training in (True, False):
        with FlopCounterMode(display=False) as counter:
            code = layer.train(training)(tokens)
        flops[training] = counter.get_total_flops()
        found[training] = (code, *torch.autograd.grad(code.square().sum(), (tokens, layer.dictionary)))
    one_product = 2 * 40 * 8**2
    assert flops == {True: one_product + 2 * 8**3, False: 2 * one_product}  # the other is D^T D
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=1e-10)


def test_an_unknown_threshold_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="relu"):
        ISTA(4, threshold="relo")  # type: ignore[arg-type]


def test_its_constants_show() -> None:
    assert "eta=0.2" in repr(ISTA(4, step_size=0.2))
    assert "lambda=0.3" in repr(ISTA(4, sparsity=0.3))
