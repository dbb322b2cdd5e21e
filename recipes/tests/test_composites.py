"""What composites promise: the same bits again, exact masks, the label's object, an untouched background."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.backgrounds import noise_backgrounds
from recipes.composites import Composites
from recipes.objects import Objects
from whitebox_crate.errors import InputError

SIDE = 32


def ellipses(count: int = 6, alpha: int = 255) -> Objects:
    """Ellipses in a colour of their own: upright and lying ones, by turns."""
    at = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    images = torch.zeros(count, 4, SIDE, SIDE, dtype=torch.uint8)
    for index, image in enumerate(images):
        x, y = (at / 0.5, at) if index % 2 else (at, at / 0.5)
        inside = x[None] ** 2 + y[:, None] ** 2 <= 1
        colour = torch.tensor([40 * index + 20, 200 - 30 * index, 120])
        image[:3] = inside * colour[:, None, None]
        image[3] = inside * alpha
    labels = torch.arange(count).flip(0)  # not the position, or mixing both up would pass
    return Objects(images, labels, tuple(f"ellipse {n}" for n in range(count)))


def composites(alpha: int = 255, size: int = 48) -> Composites:
    return Composites(ellipses(alpha=alpha), noise_backgrounds(9, 64, seed=0), size)


def same(first: object, second: object) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("images", "labels", "masks"))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.sampled_from([0.0, 0.3, 1.0]), st.integers(4, 90), st.integers(0, 2**40))
def test_shapes_and_ranges(batch: int, difficulty: float, size: int, step: int) -> None:
    drawn = composites().draw(batch, seed=1, step=step, difficulty=difficulty, size=size)
    assert drawn.images.shape == (batch, 3, size, size) and drawn.images.dtype == torch.float32
    assert drawn.labels.shape == (batch,) and drawn.labels.dtype == torch.int64
    assert drawn.masks.shape == (batch, size, size) and drawn.masks.dtype == torch.bool
    assert drawn.images.min() >= 0 and drawn.images.max() <= 1 + 1e-6


@pytest.mark.parametrize("difficulty", [0.0, 0.4, 1.0])
def test_a_batch_depends_on_its_arguments_alone(difficulty: float) -> None:
    source = composites()
    first = source.draw(8, seed=3, step=5, difficulty=difficulty)
    torch.manual_seed(0)
    source.draw(8, seed=3, step=6)
    assert same(first, composites().draw(8, seed=3, step=5, difficulty=difficulty))
    assert not same(first, source.draw(8, seed=3, step=6, difficulty=difficulty))
    assert not same(first, source.draw(8, seed=4, step=5, difficulty=difficulty))
    assert not same(first, source.draw(8, seed=5, step=3, difficulty=difficulty))


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    composites().draw(4, seed=0, step=0)
    assert torch.equal(before, torch.get_rng_state())


def test_only_the_object_covers_the_background() -> None:
    """With transparent objects the same draw shows the backgrounds alone: it differs where an object lies."""
    shown, hidden = (composites(alpha).draw(32, seed=0, step=0) for alpha in (255, 0))
    assert not hidden.masks.any()
    different = (shown.images != hidden.images).any(1)
    assert (different >= shown.masks).float().mean() > 0.999
    # Interpolation spreads an edge by a pixel of the object, here up to one and a half pixels of the image.
    grown = torch.nn.functional.max_pool2d(shown.masks[:, None].float(), 7, 1, 3)[:, 0] > 0
    assert not (different & ~grown).any()


def test_the_mask_is_the_alpha_over_one_half() -> None:
    """White opaque objects over black: what is bright is the object, and its brightness is its alpha."""
    objects = ellipses()
    white = Objects(objects.images.clone(), objects.labels, objects.class_names)
    white.images[:, :3] = white.images[:, 3:]
    black = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    drawn = Composites(white, black, 48).draw(32, seed=0, step=0)
    # Light multiplies the colour by at most 1.3 * 1.15 and at least 0.7 * 0.85, and never above the alpha.
    assert (drawn.images.amax(1)[drawn.masks] > 0.5 * 0.7 * 0.85).all()
    assert (drawn.images.amax(1)[~drawn.masks] <= 0.5 + 1e-6).all()


def test_half_alpha_is_seen_through() -> None:
    """An object of alpha 2/5 shows three fifths of the background behind it."""
    objects = ellipses(alpha=102)
    black = Objects(objects.images.clone(), objects.labels, objects.class_names)
    black.images[:, :3] = 0
    source = noise_backgrounds(9, 64, seed=0)
    shown = Composites(black, source, 48).draw(16, seed=0, step=0).images
    hidden = composites(alpha=0).draw(16, seed=0, step=0).images
    ratio = (shown / hidden.clamp_min(1e-3))[hidden > 0.2]
    assert ratio.min() > 0.6 - 0.01 and ratio.max() < 1 + 0.01
    assert ((ratio - 0.6).abs() < 0.01).float().mean() > 0.1


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_the_colour_under_alpha_zero_is_never_seen(difficulty: float) -> None:
    objects = ellipses()
    hidden = objects.images.clone()
    hidden[:, 0][hidden[:, 3] == 0] = 255
    backgrounds = noise_backgrounds(9, 64, seed=0)
    first, second = (
        Composites(Objects(images, objects.labels, objects.class_names), backgrounds)
        for images in (objects.images, hidden)
    )
    assert same(*(c.draw(16, seed=0, step=0, difficulty=difficulty, size=16) for c in (first, second)))


def test_at_difficulty_zero_the_object_is_centred_upright_and_itself_on_a_plain_colour() -> None:
    objects = ellipses()
    drawn = Composites(objects, noise_backgrounds(9, 64, seed=0), 60).draw(32, seed=0, step=0, difficulty=0)
    position = (torch.arange(60) - 29.5).float()
    mass = drawn.masks.sum((1, 2))
    for axis in (1, 2):
        assert ((drawn.masks.sum(axis) * position).sum(1) / mass).abs().max() < 0.1
    assert (drawn.masks != drawn.masks.flip(-1)).float().mean() < 1e-3  # upright: symmetric as the object is
    longer = torch.stack([drawn.masks.any(1).sum(1), drawn.masks.any(2).sum(1)]).amax(0)
    assert (longer - 0.9 * 60).abs().max() <= 2
    for image, label in zip(drawn.images, drawn.labels, strict=True):
        index = int((objects.labels == label).nonzero())
        centre = objects.images[index, :3, SIDE // 2, SIDE // 2] / 255
        assert torch.allclose(image[:, 30, 30], centre, atol=0.01)  # the label's object, in its own colours
        corner = image[:, :3, :3].reshape(3, -1)
        assert torch.equal(corner, corner[:, :1].expand_as(corner))


def test_at_difficulty_one_objects_are_anywhere_and_nearly_inside() -> None:
    drawn = composites(size=64).draw(400, seed=0, step=0)
    position = (torch.arange(64) - 31.5) / 32
    mass = drawn.masks.sum((1, 2))
    x = (drawn.masks.sum(1) * position).sum(1) / mass
    y = (drawn.masks.sum(2) * position).sum(1) / mass
    assert x.std() > 0.15 and y.std() > 0.15 and x.mean().abs() < 0.06 and y.mean().abs() < 0.06
    # An ellipse of axes s and s / 2 has the area pi / 8 * s * s; almost all of it is in the image.
    area = drawn.masks.float().mean((1, 2))
    assert area.min() > 0.9 * torch.pi / 8 * 0.5**2 and area.max() < 1.1 * torch.pi / 8 * 0.95**2
    assert area.std() > 0.04
    assert drawn.labels.bincount(minlength=6).min() > 40


def test_difficulty_grows_steadily() -> None:
    source = composites()
    spread = [source.draw(200, seed=0, step=0, difficulty=d).masks.float().mean(0).std().item() for d in (0, 0.5, 1)]
    assert spread[0] > spread[1] > spread[2]  # the average mask dissolves
    plain, mixed, full = (
        composites(alpha=0).draw(50, seed=0, step=0, difficulty=d).images.std((2, 3)).mean() for d in (0, 0.5, 1)
    )
    assert plain < 1e-6 and 0.4 * full < mixed < 0.6 * full


def test_shrinking_does_not_alias() -> None:
    """Stripes finer than the image's pixels become an even grey."""
    stripes = torch.full((1, 4, 256, 256), 255, dtype=torch.uint8)
    stripes[:, :3, :, ::2] = 0
    objects = Objects(stripes, torch.zeros(1, dtype=torch.int64), ("stripes",))
    drawn = Composites(objects, noise_backgrounds(1, 64, 0)).draw(8, seed=0, step=0, size=40, difficulty=0)
    inside = drawn.images[:, :, 6:-6, 6:-6]
    assert (inside - 127.5 / 255).abs().max() < 0.02


def test_bad_input_is_refused() -> None:
    objects, backgrounds = ellipses(), noise_backgrounds(2, 16, seed=0)
    with pytest.raises(InputError, match=r"backgrounds is torch\.float32"):
        Composites(objects, backgrounds / 255)
    with pytest.raises(InputError, match=r"objects\.images .*\(6, 3, 32, 32\)"):
        Composites(Objects(objects.images[:, :3], objects.labels, objects.class_names), backgrounds)
    with pytest.raises(InputError, match=r"objects\.labels .*\(5,\)"):
        Composites(Objects(objects.images, objects.labels[:5], objects.class_names), backgrounds)
    with pytest.raises(InputError, match=r"backgrounds .*one image or more"):
        Composites(objects, backgrounds[:0])
    with pytest.raises(InputError, match="size is 0"):
        Composites(objects, backgrounds, size=0)
    source = Composites(objects, backgrounds)
    for difficulty in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="difficulty is"):
            source.draw(1, seed=0, step=0, difficulty=difficulty)
    with pytest.raises(InputError, match="batch_size is 0"):
        source.draw(0, seed=0, step=0)
