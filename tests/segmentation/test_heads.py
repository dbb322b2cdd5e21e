"""Ranking of heads: a planted head that follows a part wins, and what does not change the scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import images_for, small_model
from torch import Tensor

from whitebox_crate import InputError
from whitebox_crate.segmentation import cls_attention, patch_features
from whitebox_crate.segmentation.heads import rank_heads

ROWS, COLUMNS, DIM, IMAGES = 6, 7, 10, 5
FOLLOWS, STAYS, UNIFORM, ROAMS = range(4)


def planted(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Maps (images, 4, rows, columns) and features (images, tokens, dim).

    Each image has a part of one kind somewhere. Head FOLLOWS looks at it; STAYS always at one place, where the features
    are alike too; UNIFORM everywhere; ROAMS at random places.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(IMAGES, ROWS * COLUMNS, DIM, generator=generator)
    maps = torch.full((IMAGES, 4, ROWS * COLUMNS), 1e-3)
    maps[:, UNIFORM] = 1
    for image in range(IMAGES):
        part, elsewhere = (1 + torch.randperm(ROWS * COLUMNS - 1, generator=generator)[:2]).tolist()
        features[image, part] = 5 * torch.eye(DIM)[3]
        features[image, 0] = 5 * torch.eye(DIM)[6]
        maps[image, FOLLOWS, part] = maps[image, STAYS, 0] = maps[image, ROAMS, elsewhere] = 1
    return maps.unflatten(-1, (ROWS, COLUMNS)), features


@pytest.mark.parametrize("seed", range(5))
def test_the_head_that_follows_a_part_ranks_first(seed: int) -> None:
    ranking = rank_heads(*planted(seed))
    assert ranking.order[0] == FOLLOWS and ranking.score[FOLLOWS] > 0.5
    assert ranking.recognised[FOLLOWS] > 0.9


def test_a_head_that_always_looks_at_one_place_is_consistent_but_has_no_score() -> None:
    ranking = rank_heads(*planted())
    assert ranking.consistency[STAYS] > 0.7 and ranking.score[STAYS].abs() < 1e-9


def test_a_head_without_preference_picks_nothing() -> None:
    ranking = rank_heads(*planted())
    for value in (ranking.score, ranking.consistency, ranking.in_place, ranking.recognised):
        assert value[UNIFORM] == 0


def test_a_head_that_roams_is_not_consistent() -> None:
    assert rank_heads(*planted()).consistency[ROAMS].abs() < 0.4


def test_scores_are_the_cosines_that_the_docstring_says() -> None:
    maps, features = torch.rand(2, 3, 2, 4).double(), torch.randn(2, 8, 5).double()
    ranking = rank_heads(maps, features)
    for head in range(3):
        picks = [[], []]
        for where in range(2):
            for image in range(2):
                share = maps[where, head].flatten() / maps[where, head].sum()
                picks[where].append((share[:, None] * features[image]).sum(0) - features[image].mean(0))
        cosine = torch.nn.functional.cosine_similarity
        assert ranking.consistency[head] == pytest.approx(float(cosine(picks[0][0], picks[1][1], dim=0)))
        swapped = [cosine(picks[0][0], picks[0][1], dim=0), cosine(picks[1][1], picks[1][0], dim=0)]
        assert ranking.in_place[head] == pytest.approx(float(sum(swapped) / 2))


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_rotation_scale_shift_and_order_change_nothing(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps, features = torch.rand(4, 3, 2, 4, generator=generator), torch.randn(4, 8, 5, generator=generator)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    shift = torch.randn(5, generator=generator)
    images = torch.randperm(4, generator=generator)
    one, other = (
        rank_heads(maps, features),
        rank_heads(maps[images] * scale, ((features @ turn + shift) * scale)[images]),
    )
    torch.testing.assert_close(one.score, other.score, atol=1e-4, rtol=0)
    heads = torch.randperm(3, generator=generator)
    torch.testing.assert_close(rank_heads(maps[:, heads], features).score, one.score[heads])


def test_grids_may_differ() -> None:
    maps, features = planted()
    ranking = rank_heads(
        [maps[0], maps[1].transpose(1, 2), maps[2]],
        [features[0], features[1].view(ROWS, COLUMNS, DIM).transpose(0, 1).flatten(0, 1), features[2]],
    )
    assert ranking.order[0] == FOLLOWS


def test_constant_features_give_no_score() -> None:
    ranking = rank_heads(torch.rand(3, 2, 3, 4), torch.full((3, 12, 5), 0.1))
    assert ranking.score.tolist() == [0, 0] and ranking.order == [0, 1]


@pytest.mark.parametrize(
    ("maps", "features", "message"),
    [
        (torch.rand(1, 2, 3, 4), torch.rand(1, 12, 5), "two images or more"),
        (torch.rand(2, 2, 3, 4), torch.rand(3, 12, 5), "got 2 and 3"),
        (torch.rand(2, 2, 3, 4), torch.rand(2, 13, 5), "image 0: expected maps"),
        (torch.rand(2, 12), torch.rand(2, 12, 5), "expected maps"),
        ([torch.rand(2, 3, 4), torch.rand(3, 3, 4)], torch.rand(2, 12, 5), "image 1 has other heads"),
        (torch.ones(2, 2, 3, 4, dtype=torch.long), torch.rand(2, 12, 5), "float"),
        (torch.full((2, 2, 3, 4), float("nan")), torch.rand(2, 12, 5), "NaN"),
        (torch.rand(2, 2, 3, 4), torch.full((2, 12, 5), float("inf")), "infinite"),
        (-torch.rand(2, 2, 3, 4), torch.rand(2, 12, 5), "negative values"),
        (torch.zeros(2, 2, 3, 4), torch.rand(2, 12, 5), "zero everywhere"),
    ],
)
def test_bad_input_is_refused(maps: Tensor, features: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rank_heads(maps, features)


@pytest.mark.parametrize("name", ["crate_nano", "vit_nano"])
def test_maps_and_features_of_a_model_go_in_as_they_come(name: str) -> None:
    model = small_model(name)
    images = images_for(model, batch=3)
    ranking = rank_heads(cls_attention(model, images, -2), patch_features(model, images, -2)[0])
    assert ranking.score.shape == (model.num_heads,) and ranking.score.isfinite().all()
