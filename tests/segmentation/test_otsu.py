"""Otsu's cut, against all cuts."""

from __future__ import annotations

import pytest
import torch

from whitebox_crate.segmentation import otsu_cut


@pytest.mark.parametrize("seed", range(3))
def test_no_cut_has_more_variance_between_its_sides(seed: int) -> None:
    values = torch.rand(6, 7, generator=torch.Generator().manual_seed(seed)) ** 3

    def between(cut: float) -> float:
        above = values > cut
        share = above.double().mean()
        return float(share * (1 - share) * (values[above].mean() - values[~above].mean()) ** 2)

    best = max(between(float(value)) for value in values.flatten().sort().values[:-1])
    assert between(otsu_cut(values)) == pytest.approx(best)


def test_scale_and_shift_change_nothing() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(values > otsu_cut(values), (3 * values - 7) > otsu_cut(3 * values - 7))


@pytest.mark.parametrize("values", [torch.ones(1, 1), torch.full((4, 5), 0.3)])
def test_nothing_is_above_the_cut_of_equal_values(values: torch.Tensor) -> None:
    assert not (values > otsu_cut(values)).any()
