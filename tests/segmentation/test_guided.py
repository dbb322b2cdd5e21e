"""Guided filter and colours: against the definition, and what edges and colours of a photograph do to levels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from whitebox_crate import InputError
from whitebox_crate.segmentation.guided import add_colours, guided_filter


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def by_definition(guide: Tensor, values: Tensor, radius: int, eps: float) -> Tensor:
    """Equations 14 to 16 of the paper, window by window."""
    _, height, width = guide.shape
    slopes, offsets = torch.zeros(height, width, 3), torch.zeros(height, width)
    windows = {}
    for row in range(height):
        for column in range(width):
            rows = slice(max(0, row - radius), row + radius + 1)
            columns = slice(max(0, column - radius), column + radius + 1)
            windows[row, column] = (rows, columns)
            inside, of = guide[:, rows, columns].flatten(1).T, values[rows, columns].flatten()
            difference = inside - inside.mean(0)
            variance = difference.T @ difference / len(of) + eps * torch.eye(3)
            slopes[row, column] = torch.linalg.solve(variance, difference.T @ (of - of.mean()) / len(of))
            offsets[row, column] = of.mean() - slopes[row, column] @ inside.mean(0)
    out = torch.zeros(height, width)
    for (row, column), (rows, columns) in windows.items():
        slope, offset = slopes[rows, columns].flatten(0, 1).mean(0), offsets[rows, columns].mean()
        out[row, column] = slope @ guide[:, row, column] + offset
    return out


class TestGuidedFilter:
    @pytest.mark.parametrize("radius", [1, 3, 20])
    def test_it_is_what_the_paper_defines(self, radius: int) -> None:
        guide, values = random(3, 7, 9), random(7, 9, seed=1)
        found = guided_filter(guide, values, radius, 1e-2)
        torch.testing.assert_close(found, by_definition(guide, values, radius, 1e-2), rtol=1e-4, atol=1e-4)

    def test_an_edge_of_the_values_moves_to_that_of_the_guide(self) -> None:
        guide, values = torch.zeros(3, 20, 30), torch.full((20, 30), -1.0)
        guide[:, :, 15:], values[:, 13:] = 1.0, 1.0
        inside = guided_filter(guide, values, 6) > 0
        assert torch.equal(inside, guide[0] > 0.5)

    def test_a_linear_function_of_the_guide_is_kept(self) -> None:
        guide = random(3, 12, 15)
        values = 2 * guide[0] - guide[2] + 0.3
        torch.testing.assert_close(guided_filter(guide, values, 4, 1e-9), values, rtol=1e-3, atol=1e-3)

    def test_on_the_same_guide_the_fast_one_is_the_same(self) -> None:
        guide, values = random(3, 12, 15), random(12, 15, seed=1)
        torch.testing.assert_close(guided_filter(guide, values, 3, at=guide), guided_filter(guide, values, 3))
        assert guided_filter(guide, values, 3, at=random(3, 25, 31)).shape == (25, 31)

    def test_what_is_refused(self) -> None:
        guide, values = random(3, 4, 5), random(4, 5)
        for arguments in ((guide, values.T, 1), (guide[:1], values, 1), (guide, values, 0), (guide, values, 1, 0.0)):
            with pytest.raises(InputError):
                guided_filter(*arguments)


class TestColours:
    def test_a_part_of_the_objects_colour_joins_it(self) -> None:
        photo, logits = torch.zeros(3, 20, 20), torch.full((20, 20), -1.0)
        photo[0, 5:15, 5:15] = 1.0  # a red square, of which the levels leave out a row and have one above it
        logits[4:14, 5:15] = 1.0
        assert torch.equal(add_colours(photo, logits) > 0, photo[0] > 0.5)

    def test_one_colour_tells_nothing(self) -> None:
        logits = 4 * random(10, 10) - 3
        torch.testing.assert_close(add_colours(torch.full((3, 10, 10), 0.4), logits), logits)

    def test_no_round_changes_nothing(self) -> None:
        logits = random(10, 10)
        assert torch.equal(add_colours(random(3, 10, 10, seed=1), logits, rounds=0), logits)
