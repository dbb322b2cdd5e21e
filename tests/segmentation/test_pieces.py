"""Pieces of a mask are what a flood from each pixel reaches; small pieces are left out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from whitebox_crate import create_model
from whitebox_crate.errors import InputError
from whitebox_crate.segmentation import connected_component, large_pieces, mask_pieces
from whitebox_crate.segmentation.edges import EDGES, PINHOLE
from whitebox_crate.segmentation.methods import choose_method


def drawn(seed: int, height: int, width: int) -> Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.6


def test_components_are_connected_by_edges_not_corners() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]).bool()
    assert torch.equal(connected_component(mask, 1), torch.tensor([[1, 1, 0, 0], [0] * 4, [0] * 4]).bool())
    assert torch.equal(connected_component(mask, 6), torch.tensor([[0] * 4, [0, 0, 1, 0], [0, 0, 1, 1]]).bool())
    assert not connected_component(mask, 2).any()


@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(1, 7))
def test_a_component_is_all_that_the_seed_reaches(seed: int, height: int, width: int) -> None:
    mask = drawn(seed, height, width)
    start = seed % mask.numel()
    grown = torch.zeros_like(mask).flatten().index_fill(0, torch.tensor([start]), True).view_as(mask) & mask
    for _ in range(mask.numel()):
        padded = torch.nn.functional.pad(grown, (1, 1, 1, 1))
        beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        grown = grown | (beside & mask)
    assert torch.equal(connected_component(mask, start), grown)


@given(st.integers(0, 2**31), st.integers(0, 9), st.integers(0, 9))
def test_pieces_are_numbered_in_the_order_of_their_first_pixels(seed: int, height: int, width: int) -> None:
    mask = drawn(seed, height, width)
    pieces = mask_pieces(mask)
    assert pieces.shape == mask.shape and torch.equal(pieces > 0, mask)
    order = [number for number in dict.fromkeys(pieces.flatten().tolist()) if number]
    assert order == list(range(1, len(order) + 1))
    for number in order:
        piece = pieces == number
        assert torch.equal(connected_component(mask, int(piece.flatten().nonzero()[0])), piece)


def test_a_piece_may_wind_and_branch() -> None:
    snake = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 1, 0, 1], [1, 0, 1, 1, 1]]).bool()
    assert torch.equal(mask_pieces(snake), snake.long())
    comb = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]).bool()
    assert torch.equal(mask_pieces(comb), comb.long())


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0, 0.25, 0.5, 1]))
def test_pieces_of_a_share_of_the_largest_stay(seed: int, height: int, width: int, share: float) -> None:
    mask = drawn(seed, height, width)
    sizes = {
        number: int((mask_pieces(mask) == number).sum()) for number in mask_pieces(mask).unique().tolist() if number
    }
    stay = [number for number, size in sizes.items() if size >= share * max(sizes.values())]
    assert torch.equal(large_pieces(mask, share), torch.isin(mask_pieces(mask), torch.tensor(stay, dtype=torch.long)))


def test_the_largest_of_equal_pieces_stay_all() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1]]).bool()
    assert torch.equal(large_pieces(mask, 1), mask)


def test_a_crumb_of_colour_beside_the_object_is_no_part_of_its_mask() -> None:
    photo = torch.full((3, 60, 60), 200, dtype=torch.uint8)
    photo[:, 20:40, 10:40] = 20  # the object
    photo[:, 25:33, 50:58] = 20  # a thing of its colour
    levels = torch.full((1, 6, 6), -1.0)
    levels[0, 2:4, 1:4] = 1
    mask = EDGES["colours"](levels, photo)[0]
    assert mask[22:38, 12:38].all() and not mask[:, 45:].any()


@pytest.mark.parametrize("edges", ["guided", "colours"])
def test_masks_along_edges_have_neither_crumbs_nor_pinholes(edges: str) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.full((1, 6, 6), -0.3)
    levels[0, 1:4, 1:5] = 0.3
    for _ in range(4):
        photo = torch.randint(256, (3, 60, 60), generator=generator, dtype=torch.uint8)
        mask = EDGES[edges](levels, photo)[0]
        assert mask.any() and not mask.all()
        assert torch.equal(large_pieces(mask), mask)
        assert torch.equal(large_pieces(~mask, PINHOLE), ~mask)


def test_multiscale_leaves_small_pieces_out() -> None:
    model = create_model("crate_nano", pretrained=True).eval()
    for seed in range(4):
        pixels = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(seed))
        mask = choose_method("multiscale")(model, pixels).masks[0]
        assert torch.equal(large_pieces(mask), mask)


def test_what_is_no_mask_is_refused() -> None:
    for function in (mask_pieces, large_pieces, lambda mask: connected_component(mask, 0)):
        with pytest.raises(InputError, match=r"torch.float32 of shape \(2, 3\)"):
            function(torch.ones(2, 3))
        with pytest.raises(InputError, match=r"torch.bool of shape \(1, 2, 3\)"):
            function(torch.ones(1, 2, 3).bool())
        with pytest.raises(InputError, match="a mask cannot be a ndarray; give a bool tensor"):
            function(torch.ones(2, 3).bool().numpy())
    for share in (-0.1, 1.1, float("nan"), "a", None):
        with pytest.raises(InputError, match="share must be in"):
            large_pieces(torch.ones(2, 3).bool(), share)
    with pytest.raises(InputError, match=r"in \[0, 6\), not 6"):
        connected_component(torch.ones(2, 3).bool(), 6)
