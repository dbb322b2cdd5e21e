"""CBSA alone: tokens in, tokens out, on square grids without being told; what is no grid is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.layers import CBSA, RepresentativePool


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
def test_patches_are_pooled_as_torch_pools_them(rows: int, columns: int, down: int, across: int) -> None:
    tokens = torch.randn(2, 1 + rows * columns, 3, dtype=torch.float64)
    pool = RepresentativePool("patches", (down, across))
    grid = tokens[:, 1:].mT.unflatten(2, (rows, columns))
    expected = F.adaptive_avg_pool2d(grid, (down, across)).flatten(2).mT
    torch.testing.assert_close(pool(tokens, (rows, columns)), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(pool.matrix(tokens, (rows, columns)) @ tokens, expected, rtol=0, atol=1e-13)


@given(st.integers(1, 20))
def test_the_released_pooling_drops_the_last_token_and_keeps_cls(side: int) -> None:
    tokens = torch.randn(2, 1 + side * side, 3, dtype=torch.float64)
    grid = tokens[:, :-1].mT.unflatten(2, (side, side))
    expected = F.adaptive_avg_pool2d(grid, 8).flatten(2).mT
    pool = RepresentativePool()
    torch.testing.assert_close(pool(tokens), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(pool.matrix(tokens) @ tokens, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("pool", ["released", "patches"])
def test_it_is_a_layer_of_its_own(pool: str) -> None:
    torch.manual_seed(0)
    layer = CBSA(12, 3, pool=pool)  # type: ignore[arg-type]
    x = torch.randn(2, 50, 12, requires_grad=True)
    out = layer(x)
    assert out.shape == x.shape
    assert torch.equal(out, layer(x, (7, 7)))
    out.sum().backward()
    assert x.grad is not None and all(parameter.grad is not None for parameter in layer.parameters())
    assert layer.step_rep.shape == layer.step_x.shape == (3, 1, 1)


def test_rows_and_columns_are_not_mixed_up() -> None:
    """Transposing the grid before it is transposing the grid after."""
    layer = CBSA(12, 3, pool="patches", representatives=(4, 4)).double()
    x = torch.randn(1, 1 + 3 * 5, 12, dtype=torch.float64)

    def transposed(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        patches = tokens[:, 1:].unflatten(1, grid).transpose(1, 2).flatten(1, 2)
        return torch.cat([tokens[:, :1], patches], dim=1)

    one = transposed(layer(x, (3, 5)), (3, 5))
    torch.testing.assert_close(one, layer(transposed(x, (3, 5)), (5, 3)), rtol=0, atol=1e-12)
    assert not torch.allclose(layer(x, (3, 5)), layer(x, (5, 3)))


@pytest.mark.parametrize(
    ("pool", "tokens", "grid", "said"),
    [
        ("released", 16, None, "fill no square grid"),
        ("patches", 16, None, "fill no square grid"),
        ("patches", 1, None, "fill no square grid"),
        ("patches", 16, (4, 4), "the grid is 4 x 4"),
        ("patches", 1, (0, 4), "the grid is 0 x 4"),
        ("released", 16, (3, 5), "not square"),
    ],
)
def test_what_is_no_grid_is_refused(pool: str, tokens: int, grid: tuple[int, int] | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        CBSA(12, 3, pool=pool)(torch.zeros(1, tokens, 12), grid)  # type: ignore[arg-type]


def test_what_is_no_option_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="released"):
        CBSA(12, 3, pool="release")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="positive int or a pair"):
        CBSA(12, 3, representatives=0)
    with pytest.raises(InputError, match="cannot divide"):
        CBSA(12, 5)


@torch.no_grad()
def test_a_row_of_the_mixing_matrix_costs_no_matrix() -> None:
    layer = CBSA(8, 2)
    projected = layer.qkv(torch.randn(1, 1 + 100 * 100, 8))
    rows = layer.mixing(projected)
    assert rows.left.shape == (1, 2, 10_001, 64) and rows.right.shape == (1, 2, 64, 10_001)
    assert rows.make(rows.left[:, :, :1], rows.right).shape == (1, 2, 1, 10_001)
