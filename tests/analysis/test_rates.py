"""Rates: the published script's values, cases known by hand, invariances, and gradients."""

import math
from typing import Any

import pytest
import torch
from golden_data import GOLDEN, MANIFEST
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from whitebox_crate.analysis import (
    coding_rate,
    effective_rank,
    l0,
    l1,
    rate_reduction,
    sparse_rate_reduction,
    subspace_coding_rate,
    variational_coding_rate,
)
from whitebox_crate.errors import InputError, UnknownNameError

[CASE] = [case for case in MANIFEST["cases"] if case["name"] == "coding_rate"]
STORED = load_file(GOLDEN / CASE["file"])
CONVENTIONS = ["paper", "released"]

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**20)
conventions: Any = st.sampled_from(CONVENTIONS)


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def primal(z: Tensor, scale: float) -> Tensor:
    """The equation with the Gram matrix of tokens, whichever is smaller."""
    return torch.logdet(torch.eye(z.shape[-2], dtype=z.dtype) + scale * z @ z.mT) / 2


def rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(draw((dim, dim), seed)).Q


def close(have: Tensor, want: Tensor | float, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(have, torch.as_tensor(want, dtype=have.dtype).expand_as(have), rtol=rtol, atol=1e-10)


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_released_rates_are_those_of_the_published_script(name: str, dtype: torch.dtype) -> None:
    w = STORED[f"input/{name}.x"].to(dtype)
    rates = subspace_coding_rate(w, CASE["parameters"][name]["eps"], "released")
    suffix, rtol = ("_f64", 1e-10) if dtype == torch.float64 else ("", 1e-5)
    torch.testing.assert_close(rates.mean(), STORED[f"output/{name}.mean{suffix}"].to(dtype), rtol=rtol, atol=0)
    torch.testing.assert_close(rates.std(), STORED[f"output/{name}.std{suffix}"].to(dtype), rtol=10 * rtol, atol=1e-5)


@pytest.mark.parametrize("name", ["s1", "s2"])
def test_l0_is_what_the_published_script_leaves_of_one(name: str) -> None:
    zeros = 1 - l0(STORED[f"input/{name}.x"].double())
    close(zeros.mean(), STORED[f"output/{name}.zero_fraction_mean"])
    close(zeros.std(correction=0), STORED[f"output/{name}.zero_fraction_std"])


def test_a_single_number_by_hand() -> None:
    close(coding_rate(torch.tensor([[2.0]]).double(), 0.5), math.log(17) / 2)  # 1 + 1 / (1 * 0.25) * 4
    close(coding_rate(torch.tensor([[2.0]]).double(), 0.5, "released"), math.log(3) / 2)  # 1 + 1 / (1 * 0.5) * 1


def test_identical_tokens_cost_what_one_direction_costs() -> None:
    tokens = torch.tensor([[3.0, 4.0]]).double().expand(5, 2)
    close(coding_rate(tokens, 0.1), math.log(1 + 2 / (5 * 0.01) * 5 * 25) / 2)
    close(coding_rate(tokens, 0.1, "released"), math.log(1 + 2 / (5 * 0.1) * 5) / 2)
    close(effective_rank(tokens), 1.0)


@given(sizes, seeds)
def test_the_rate_is_that_of_the_known_singular_values(size: tuple[int, int], seed: int) -> None:
    count, dim = size
    rank = min(size)
    values = draw((rank,), seed).abs() + 0.1
    tokens = rotation(count, seed)[:, :rank] * values @ rotation(dim, seed + 1)[:rank]
    close(coding_rate(tokens, 0.3), (1 + dim / (count * 0.09) * values**2).log().sum().item() / 2)
    share = values / values.sum()
    close(effective_rank(tokens), math.exp(-(share * share.log()).sum().item()), rtol=1e-6)


def test_on_orthogonal_subspaces_that_hold_the_tokens_both_rates_differ_by_their_precision_alone() -> None:
    """With tokens of head k in subspace k, Z^T Z is of blocks: R at eps is the sum of head rates at eps sqrt(K)."""
    heads, each, dim = 3, 4, 2
    basis = rotation(heads * dim, 0).view(heads * dim, heads, dim).movedim(1, 0)  # (heads, ambient, dim)
    codes = draw((heads, each, dim))
    tokens = torch.cat([codes[k] @ basis[k].mT for k in range(heads)])
    w = tokens @ basis
    rate, summands = coding_rate(tokens, 0.2), subspace_coding_rate(w, 0.2 / math.sqrt(heads), per_head=True)
    close(summands, [coding_rate(w[k], 0.2 / math.sqrt(heads)).item() for k in range(heads)])
    close(rate, subspace_coding_rate(w, 0.2 / math.sqrt(heads)).item())


@given(sizes, seeds, conventions)
def test_both_gram_matrices_give_one_rate(size: tuple[int, int], seed: int, convention: Any) -> None:
    z = draw((2, *size), seed)
    unit = z / z.norm(dim=-1, keepdim=True) if convention == "released" else z
    squared = 0.2 if convention == "released" else 0.04
    close(coding_rate(z, 0.2, convention), primal(unit, size[1] / (size[0] * squared)))


def test_both_gram_matrices_give_one_rate_where_large_ones_are_made_of_parts() -> None:
    for shape in ((300, 200), (200, 300), (131, 131)):
        z = draw(shape)
        close(coding_rate(z, 0.5), primal(z, shape[1] / (shape[0] * 0.25)))


@given(sizes, seeds, conventions)
def test_rotations_and_the_order_of_tokens_change_nothing(size: tuple[int, int], seed: int, convention: Any) -> None:
    z = draw(size, seed)
    moved = (z @ rotation(size[1], seed))[torch.randperm(size[0], generator=torch.Generator().manual_seed(seed))]
    close(coding_rate(moved, 0.2, convention), coding_rate(z, 0.2, convention).item())
    close(effective_rank(moved), effective_rank(z).item(), rtol=1e-6)


@given(sizes, seeds, conventions, st.integers(2, 4))
def test_tokens_said_several_times_cost_the_same(size: tuple[int, int], seed: int, convention: Any, times: int) -> None:
    """The rate is one of a distribution: N in its denominator takes out what repetition adds."""
    z = draw(size, seed)
    close(coding_rate(z.repeat(times, 1), 0.2, convention), coding_rate(z, 0.2, convention).item())


@given(sizes, seeds, st.floats(0.1, 10))
def test_the_unit_of_tokens_is_the_unit_of_the_precision(size: tuple[int, int], seed: int, unit: float) -> None:
    z = draw(size, seed)
    close(coding_rate(z * unit, 0.2 * unit), coding_rate(z, 0.2).item(), rtol=1e-8)
    close(coding_rate(z * unit, 0.2, "released"), coding_rate(z, 0.2, "released").item(), rtol=1e-8)


@given(sizes, seeds)
def test_the_rate_falls_with_the_precision_and_is_not_negative(size: tuple[int, int], seed: int) -> None:
    z = draw(size, seed)
    coarse, fine = coding_rate(z, 0.5), coding_rate(z, 0.25)
    assert 0 < coarse < fine


def test_batches_are_measured_one_by_one() -> None:
    w = draw((2, 3, 4, 7, 5))
    together = subspace_coding_rate(w, 0.2)
    assert together.shape == (2, 3)
    close(together[1, 2], sum(coding_rate(w[1, 2, k], 0.2).item() for k in range(4)))


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (2, 4, 4)])
def test_gradients_are_right(shape: tuple[int, ...]) -> None:
    z = draw(shape).requires_grad_()
    for convention in CONVENTIONS:
        assert torch.autograd.gradcheck(lambda x, c=convention: coding_rate(x, 0.3, c), (z,))
    assert torch.autograd.gradcheck(effective_rank, (z,))
    assert torch.autograd.gradcheck(l1, (z,))


def test_gradients_are_right_beyond_what_a_gram_matrix_can_tell() -> None:
    z = draw((4, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: coding_rate(x, 1e-6), (z,))


def test_the_gradient_of_the_objective_is_right() -> None:
    tokens, bases = draw((5, 6)), draw((3, 6, 2), 1)

    def objective(z: Tensor) -> Tensor:
        return sparse_rate_reduction(z, z @ bases, 0.3, 0.2, norm="l1")

    assert torch.autograd.gradcheck(objective, (tokens.requires_grad_(),))


@pytest.mark.parametrize(
    "measure", [lambda z: coding_rate(z, 0.1), lambda z: coding_rate(z, 0.1, "released"), effective_rank]
)
def test_gradients_of_zero_and_of_identical_tokens_are_finite(measure: Any) -> None:
    for z in (torch.zeros(4, 3), torch.ones(4, 3), torch.eye(4, 3)):
        z.requires_grad_()
        measure(z).sum().backward()
        assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_narrow_types_are_measured_exactly_as_what_they_hold(dtype: torch.dtype, convention: Any) -> None:
    z = draw((2, 50, 8)).to(dtype)
    for measure in (lambda x: coding_rate(x, 1e-3, convention), effective_rank, l1):
        assert measure(z).dtype == torch.float32
        torch.testing.assert_close(measure(z), measure(z.double()).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_tokens_of_one_direction_are_exact_at_any_size(size: float) -> None:
    """In float32 the published formulation gives infinity, NaN or noise here."""
    tokens = torch.full((50, 16), size)
    for eps in (1e-8, 1.0):
        want = math.log1p(16 / (50 * eps**2) * 50 * 16 * torch.tensor(size).double().item() ** 2) / 2
        torch.testing.assert_close(coding_rate(tokens, eps), torch.tensor(want), rtol=1e-5, atol=1e-30)
    close(effective_rank(tokens), 1.0)
    close(coding_rate(tokens, 0.01, "released"), math.log(1 + 16 / 0.01) / 2, rtol=1e-5)


def test_zero_tokens_cost_nothing() -> None:
    zeros = torch.zeros(3, 5, 4)
    for measure in (
        coding_rate(zeros, 0.1),
        coding_rate(zeros, 0.1, "released"),
        effective_rank(zeros),
        l0(zeros),
        l1(zeros),
    ):
        close(measure, 0.0)


def test_the_objective_is_made_of_its_parts() -> None:
    z, w = draw((2, 5, 6)).relu(), draw((2, 3, 5, 2), 1)
    reduction = coding_rate(z, 0.3) - subspace_coding_rate(w, 0.3)
    close(rate_reduction(z, w, 0.3), reduction)
    close(sparse_rate_reduction(z, w, 0.3, 0.2), reduction - 0.2 * (z > 0).double().sum(dim=(1, 2)))
    close(sparse_rate_reduction(z, w, 0.3, 0.2, norm="l1"), reduction - 0.2 * z.sum(dim=(1, 2)))


@pytest.mark.parametrize("bad", [torch.tensor(math.nan), torch.tensor(math.inf), torch.tensor(-math.inf)])
def test_what_is_not_finite_is_an_error(bad: Tensor) -> None:
    z = torch.ones(2, 4, 3)
    z[1, 2, 1] = bad
    for measure in (lambda x: coding_rate(x, 0.1), lambda x: coding_rate(x, 0.1, "released"), effective_rank, l0, l1):
        with pytest.raises(InputError, match="NaN or infinite"):
            measure(z)
        with pytest.raises(InputError, match="NaN or infinite"):
            measure(z.mT)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf, 1e-200, 1e-320])
def test_a_precision_that_is_none_is_an_error(eps: float) -> None:
    with pytest.raises(InputError, match="eps"):
        coding_rate(torch.ones(3, 2), eps)


@pytest.mark.parametrize(
    "tokens", [torch.ones(3), torch.ones(0, 3), torch.ones(3, 0), torch.ones(3, 2, dtype=torch.long)]
)
def test_what_is_no_set_of_tokens_is_an_error(tokens: Tensor) -> None:
    for measure in (lambda x: coding_rate(x, 0.1), effective_rank, l0, l1):
        with pytest.raises(InputError, match="tokens, dim"):
            measure(tokens)


def test_other_arguments_are_checked() -> None:
    z, w = torch.ones(5, 4), torch.ones(2, 5, 3)
    with pytest.raises(UnknownNameError, match="released"):
        coding_rate(z, 0.1, "release")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="heads"):
        subspace_coding_rate(z, 0.1)
    with pytest.raises(InputError, match="heads"):
        subspace_coding_rate(torch.ones(0, 5, 3), 0.1)
    with pytest.raises(InputError, match="same tokens"):
        rate_reduction(z, torch.ones(2, 6, 3), 0.1)
    with pytest.raises(InputError, match="lambda"):
        sparse_rate_reduction(z, w, 0.1, -1)
    with pytest.raises(UnknownNameError, match="l1"):
        sparse_rate_reduction(z, w, 0.1, norm="l2")  # type: ignore[arg-type]


def test_no_tokens_at_all_in_a_batch_is_fine() -> None:
    assert coding_rate(torch.ones(0, 3, 2), 0.1).shape == (0,)
    assert effective_rank(torch.ones(0, 3, 2)).shape == (0,)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_unit_vectors_have_no_scale_however_large_or_small(scale: float) -> None:
    tokens = torch.randn(3, 10, 4, dtype=torch.float64)
    want = coding_rate(tokens, 0.01, convention="released")
    torch.testing.assert_close(coding_rate(tokens * scale, 0.01, convention="released"), want)


@given(st.integers(1, 4), sizes, seeds)
def test_the_variational_rate_bounds_the_rate_of_weighted_heads(heads: int, size: tuple[int, int], seed: int) -> None:
    w, pi = draw((2, heads, *size), seed), draw((2, heads, size[0]), seed + 1).softmax(1)
    rate = variational_coding_rate(w, pi, scale=3.0)
    weighted = pi[..., None].sqrt() * w
    counts = pi.sum(-1)[..., None, None]
    exact = torch.logdet(torch.eye(size[1], dtype=w.dtype) + 3.0 / counts * weighted.mT @ weighted)
    bound = (pi.sum(-1) * exact).sum(-1) / (2 * size[0])
    assert (rate >= bound - 1e-7).all()
    if size[1] == 1:  # of one channel there is nothing to leave out
        torch.testing.assert_close(rate, bound, rtol=0, atol=1e-7)


def test_what_is_no_membership_is_refused() -> None:
    w = draw((2, 3, 5, 4))
    with pytest.raises(InputError, match="same tokens"):
        variational_coding_rate(w, draw((2, 3, 4)))
    with pytest.raises(InputError, match="scale"):
        variational_coding_rate(w, draw((2, 3, 5)), scale=0)
    with pytest.raises(InputError, match="NaN"):
        variational_coding_rate(w, torch.full((2, 3, 5), math.nan))
