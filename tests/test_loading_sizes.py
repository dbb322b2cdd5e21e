"""Weights for images of other sizes or channels: what the fitted model must do with images that say the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import small_model
from torch import Tensor

from whitebox_crate import create_model, save_pretrained
from whitebox_crate._fitting import fit_channels, fit_positions
from whitebox_crate.errors import WeightsError
from whitebox_crate.loading import load_state

# A LayerNorm before the projection, a convolution, and a convolution of the family's.
NAMES = ["crate_tiny_patch16_224", "vit_tiny_patch16_224", "crate_alpha_tiny_patch16_224"]
PROJECTION = "patch_embed.proj.weight"


def images(channels: int, of: Tensor) -> Tensor:
    """The channels of an image repeated in turn."""
    return of[:, [channel % of.shape[1] for channel in range(channels)]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 6), (3, 9), (1, 3), (1, 4), (2, 4), (4, 1)])
@torch.no_grad()
def test_an_image_that_says_the_same_in_other_channels_gives_the_same_tokens(
    name: str, before: int, after: int
) -> None:
    old, new = small_model(name, in_chans=before), small_model(name, in_chans=after)
    report = load_state(new, old.state_dict(), "a file")
    assert report.adapted[PROJECTION] == f"from {before} to {after} channels"
    assert report.reinitialised == report.unused == ()
    grey = torch.randn(2, 1, *old.img_size)
    few = grey if 1 in (before, after) else torch.randn(2, min(before, after), *old.img_size)
    torch.testing.assert_close(new(images(after, few)), old(images(before, few)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@given(before=st.integers(1, 4), times=st.integers(1, 4))
@torch.no_grad()
def test_channels_repeated_in_turn_give_the_same_tokens(name: str, before: int, times: int) -> None:
    old, new = small_model(name, depth=1, in_chans=before), small_model(name, depth=1, in_chans=before * times)
    load_state(new, old.state_dict(), "a file")
    few = torch.randn(1, before, *old.img_size)
    torch.testing.assert_close(new.embed(images(before * times, few)), old.embed(few), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_channels_are_left_alone(name: str) -> None:
    model = small_model(name)
    state = model.state_dict()
    fitted, how = fit_channels(state, model.patch_embed)
    assert how == {} and all(fitted[key] is state[key] for key in state)


@pytest.mark.parametrize("name", NAMES)
def test_the_report_names_all_that_changed_and_nothing_else(name: str) -> None:
    old, new = small_model(name), small_model(name, in_chans=1)
    report = load_state(new, old.state_dict(), "a file")
    before, after = old.state_dict(), new.state_dict()
    same = {key for key in after if after[key].shape == before[key].shape and torch.equal(after[key], before[key])}
    assert set(report.loaded) == same
    assert set(report.adapted) == after.keys() - same
    assert all(key.startswith("patch_embed.") for key in report.adapted)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_no_embedding_of_these_patches_are_refused_as_they_are(name: str) -> None:
    model = small_model(name, in_chans=1)
    state = small_model(name).state_dict()
    for wrong in (state[PROJECTION][:, :2], state[PROJECTION][:5], state[PROJECTION].flatten()):
        with pytest.raises(WeightsError, match=r"patch_embed\.proj\.weight is"):
            load_state(model, {**state, PROJECTION: wrong[..., :-1] if wrong.ndim > 2 else wrong}, "a file")


def test_channels_of_a_folder(tmp_path: object) -> None:
    folder = save_pretrained(small_model(NAMES[0]), str(tmp_path))
    model = create_model(f"local-dir:{folder}", pretrained=True, in_chans=1)
    assert model.in_chans == 1
    assert set(model.load_report.adapted) == {
        "patch_embed.norm1.weight",
        "patch_embed.norm1.bias",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_size_and_channels_at_once() -> None:
    old, new = small_model(NAMES[0]), small_model(NAMES[0], in_chans=1, img_size=(64, 32))
    report = load_state(new, old.state_dict(), "a file", img_size=old.img_size)
    assert {"pos_embed", PROJECTION} <= report.adapted.keys()
    expected = small_model(NAMES[0])
    expected.set_input_size((64, 32))
    torch.testing.assert_close(new.pos_embed, expected.pos_embed)


@pytest.mark.parametrize("name", [*NAMES, "crate_mae_tiny_patch16_224"])
def test_positions_are_resampled_as_the_model_does_it(name: str) -> None:
    model, other = small_model(name), small_model(name)
    other.set_input_size((80, 64))
    fitted, how = fit_positions(model.state_dict(), other, model.img_size)
    torch.testing.assert_close(fitted["pos_embed"], other.pos_embed.detach())
    assert how == {"pos_embed": "resampled from 2 x 3 to 5 x 4"}
