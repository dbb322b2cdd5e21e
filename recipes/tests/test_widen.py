"""A network made twice as wide computes what the narrow one computes, until training tells the two halves apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.widen import widen
from whitebox_crate.errors import InputError
from whitebox_crate.models import Crate, ViT
from whitebox_crate.segmentation import all_cls_attention

SIZES = {"img_size": 8, "patch_size": 4, "depth": 2, "num_classes": 3}


def networks(width: int = 8, heads: int = 2, **changes: object) -> tuple[Crate, Crate]:
    torch.manual_seed(0)
    narrow = Crate(embed_dim=width, num_heads=heads, **SIZES, **changes)
    for parameter in narrow.parameters():  # no ones of a norm, no zeros of a bias
        torch.nn.init.normal_(parameter, std=0.3)
    return narrow.eval(), Crate(embed_dim=2 * width, num_heads=2 * heads, **SIZES, **changes).eval()


@given(
    st.sampled_from([2, 4]), st.sampled_from([1, 2, 4]), st.sampled_from(["relu", "soft"]), st.sampled_from([0, 0.5, 2])
)
@settings(max_examples=20, deadline=None)
def test_the_function_stays(per_head: int, heads: int, threshold: str, apart: float) -> None:
    narrow, wide = networks(2 * per_head * heads, 2 * heads, threshold=threshold)
    widen(narrow, wide, apart=apart)
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(wide(images), narrow(images), rtol=1e-4, atol=1e-4)
        theirs, mine = all_cls_attention(narrow, images), all_cls_attention(wide, images)
    torch.testing.assert_close(mine, torch.cat([theirs, theirs], 2), rtol=1e-4, atol=1e-4)


def test_a_step_of_training_tells_the_halves_apart() -> None:
    narrow, wide = networks()
    widen(narrow, wide)
    wide(torch.randn(4, 3, 8, 8)).square().sum().backward()
    left, right = wide.blocks[0].ista.dictionary.grad.chunk(2)
    assert not torch.allclose(left, right.roll(8, 1), rtol=1e-2)


def test_without_e_the_halves_stay_alike() -> None:
    narrow, wide = networks()
    widen(narrow, wide, apart=0)
    wide(torch.randn(4, 3, 8, 8)).square().sum().backward()
    left, right = wide.blocks[0].ista.dictionary.grad.chunk(2)
    torch.testing.assert_close(left, right.roll(8, 1), rtol=1e-3, atol=1e-5)


def test_the_seed_decides() -> None:
    narrow, one = networks()
    _, same = networks()
    _, other = networks()
    widen(narrow, one, seed=1)
    widen(narrow, same, seed=1)
    widen(narrow, other, seed=2)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize(
    ("wide", "words"),
    [
        (lambda: Crate(embed_dim=24, num_heads=2, **SIZES), "cls_token is \\(1, 1, 24\\) in the wide network"),
        (lambda: Crate(embed_dim=16, num_heads=4, **{**SIZES, "depth": 3}), "no blocks.2.norm1.weight"),
        (lambda: ViT(embed_dim=16, num_heads=4, **SIZES), "not Crate into ViT"),
    ],
)
def test_another_network_is_refused_and_stays_as_it_was(wide: object, words: str) -> None:
    narrow, _ = networks()
    other = wide()  # type: ignore[operator]
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InputError, match=words):
        widen(narrow, other)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
