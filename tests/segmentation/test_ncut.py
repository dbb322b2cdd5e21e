"""The affinity of patches and its eigenvector: the equation holds, by either solver, and bad features are refused."""

from typing import Any

import pytest
import torch
from hypothesis import given
from planted import planted, scenes, thresholds
from torch import Tensor

from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.segmentation import affinity, maskcut, ncut_eigenvector
from whitebox_crate.segmentation import ncut as solvers
from whitebox_crate.segmentation.ncut import EPSILON, SAME, degrees


@given(scenes(), thresholds)
def test_the_eigenvector_solves_its_equation(scene: tuple[Tensor, tuple[int, int]], tau: float) -> None:
    linked = affinity(scene[0], tau)
    matrix = torch.full_like(linked, EPSILON, dtype=torch.float64).masked_fill(linked, 1)
    degree = matrix.sum(dim=1)
    scale = degree.rsqrt()
    second = 1 - torch.linalg.eigvalsh(matrix * scale * scale[:, None])[-2]
    vector = ncut_eigenvector(linked)
    assert float(vector @ (degree * vector)) == pytest.approx(1, abs=1e-12)
    residual = (degree * vector - matrix @ vector - second * degree * vector) * scale
    assert float(residual.norm()) < 10 * SAME
    largest = vector.abs().max()
    assert (vector > 0)[vector.abs() > (1 - solvers.TIE) * largest].any()  # of equals, either


def test_where_the_iteration_does_not_converge_the_dense_solver_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    linked = affinity(planted(0, (20, 20), 0.8))
    monkeypatch.setattr(solvers, "MAX_STEPS", 3)
    torch.testing.assert_close(ncut_eigenvector(linked), ncut_eigenvector(linked, "dense"), rtol=0, atol=0)


@pytest.mark.parametrize("solver", ["lanczos", "dense"])
def test_a_multiple_eigenvalue_gives_one_vector_whichever_solver_runs(solver: Any) -> None:
    linked = torch.block_diag(*[torch.ones(5, 5)] * 6).bool()  # six equal islands: five vectors of one eigenvalue
    vector, other = ncut_eigenvector(linked, solver), ncut_eigenvector(linked, "lanczos")
    torch.testing.assert_close(vector, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(vector.view(6, 5), vector[::5, None].expand(6, 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_rounding_that_finds_a_multiple_eigenvalue_again_changes_nothing(seed: int) -> None:
    features = torch.randn(300, 64, generator=torch.Generator().manual_seed(seed))
    linked = affinity(features, tau=0.45)  # a few equal pairs and many patches alone
    torch.testing.assert_close(ncut_eigenvector(linked), ncut_eigenvector(linked, "dense"), rtol=0, atol=1e-9)


def test_patches_with_the_same_links_have_the_same_entry() -> None:
    linked = affinity(planted(1, (12, 12), 0.8))
    linked[::3] = linked[:, ::3] = False
    entries = ncut_eigenvector(linked)[::3]
    assert float((entries - entries[0]).abs().max()) < 1e-12 * float(entries.abs().max())


def test_features_of_lengths_that_square_to_nothing_or_infinity_are_fine() -> None:
    features = planted(2, (8, 8), 0.5).double()
    for factor in (1e-300, 1e300):
        assert torch.equal(affinity(features * factor), affinity(features))


def test_zero_features_are_linked_to_nothing() -> None:
    features = torch.ones(4, 3)
    features[2] = 0
    linked = affinity(features)
    assert not linked[2].any()
    assert linked[[0, 1, 3]][:, [0, 1, 3]].all()
    torch.testing.assert_close(
        degrees(linked), torch.tensor([3 + 1e-5, 3 + 1e-5, 4e-5, 3 + 1e-5], dtype=torch.float64), rtol=1e-14, atol=0
    )


def test_the_threshold_is_exclusive() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(affinity(features, tau=0.0), torch.eye(2).bool())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused_with_their_place(value: float) -> None:
    features = torch.ones(6, 4)
    features[2, 3] = value
    with pytest.raises(InputError, match=rf"1 values .*\({value}\) in row 2, column 3"):
        maskcut(features, (2, 3))


@pytest.mark.parametrize("shape", [(2, 6, 4), (6,), (0, 4), (6, 0)])
def test_features_of_another_shape_are_refused_with_it(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\(tokens, dim\).*" + str(shape).replace("(", r"\(").replace(")", r"\)")):
        maskcut(torch.ones(shape), (2, 3))


def test_integer_features_are_refused() -> None:
    with pytest.raises(InputError, match=r"float features .* got torch.int64"):
        maskcut(torch.ones(6, 4, dtype=torch.int64), (2, 3))


@pytest.mark.parametrize("tau", [-0.1, 1.0, 2.0, float("nan")])
def test_tau_is_a_cosine(tau: float) -> None:
    with pytest.raises(InputError, match=rf"tau must be a cosine in \[0, 1\), not {tau}"):
        maskcut(torch.ones(6, 4), (2, 3), tau=tau)


def test_an_unknown_solver_lists_those_that_exist() -> None:
    with pytest.raises(UnknownNameError, match="lanczos"):
        maskcut(torch.randn(6, 4), (2, 3), solver="lanzcos")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("linked", "message"),
    [
        (torch.ones(3, 4).bool(), r"got torch.bool of shape \(3, 4\)"),
        (torch.ones(3, 3), r"got torch.float32 of shape \(3, 3\)"),
        (torch.ones(3, 3).triu().bool(), "not symmetric"),
    ],
)
def test_an_affinity_is_a_symmetric_matrix_of_bools(linked: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ncut_eigenvector(linked)
