"""Scenes: the same by seed, labels of what is pasted, masks where it lies, decoys without a name, nothing held out."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.cutouts import backgrounds, class_name, cutouts, is_object, merge
from recipes.measure_photographs import Scores, centred_box, halves, summary
from recipes.objects import Objects
from recipes.scenes import Scenes, Style
from whitebox_crate.errors import InputError

ALONE = Style(decoys=0, others=0, twin=0.0, front=0.0, blur=0.0, harmony=0.0, noise=0.0, grey=0.0)


def disc(colour: tuple[int, int, int], side: int = 128) -> torch.Tensor:
    """A coloured disc, uint8 (4, side, side), with a little texture."""
    along = torch.arange(side) + 0.5 - side / 2
    inside = along[:, None] ** 2 + along[None, :] ** 2 < (side / 2) ** 2
    image = torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, side, side)
    return torch.cat([image, 255 * inside[None].byte()])


@pytest.fixture
def objects() -> Objects:
    images = torch.stack([disc((250, 0, 0)), disc((0, 250, 0)), disc((0, 230, 20))])
    return Objects(images, torch.tensor([0, 1, 1]), ("red", "green"))


@pytest.fixture
def blue() -> torch.Tensor:
    pictures = torch.zeros(4, 3, 128, 128, dtype=torch.uint8)
    pictures[:, 2] = torch.randint(120, 255, (4, 128, 128))
    return pictures


@pytest.mark.parametrize("size", [24, 48, 49])
@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_a_batch_is_a_function_of_its_number(
    objects: Objects, blue: torch.Tensor, size: int, difficulty: float
) -> None:
    source = Scenes(objects, blue, size)
    first, again, other = (source.draw(8, seed=3, step=step, difficulty=difficulty) for step in (5, 5, 6))
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert torch.equal(first.masks, again.masks)  # type: ignore[arg-type]
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (8, 3, size, size) and first.images.dtype == torch.float32
    assert float(first.images.min()) >= 0 and float(first.images.max()) <= 1
    assert set(first.labels.tolist()) <= {0, 1}


def test_the_mask_lies_where_the_label_is(objects: Objects, blue: torch.Tensor) -> None:
    batch = Scenes(objects, blue, 48, ALONE).draw(32, seed=0, step=0)
    assert batch.masks is not None and batch.masks.flatten(1).any(1).all()
    means = [(image * mask).sum((1, 2)) / mask.sum() for image, mask in zip(batch.images, batch.masks, strict=True)]
    named = torch.stack(means)[:, :2].argmax(1)
    assert torch.equal(named, batch.labels)
    assert (batch.images[:, 2][~batch.masks] > batch.images[:, :2].amax(1)[~batch.masks]).float().mean() > 0.95


def test_decoys_have_an_outline_and_neither_name_nor_mask(objects: Objects, blue: torch.Tensor) -> None:
    style = Style(decoys=3, others=0, filled=1.0, twin=0.0, front=1.0, blur=0.0, harmony=0.0, noise=0.0, grey=0.0)
    batch = Scenes(objects, blue, 48, style).draw(32, seed=0, step=0)
    assert batch.masks is not None
    red_or_green = batch.images[:, :2].amax(1) > batch.images[:, 2]
    assert (red_or_green & ~batch.masks).float().mean() < 0.02  # what is not named is filled with background
    assert (batch.masks & ~red_or_green).float().mean() < 0.02  # and what hides the object is taken from its mask


def test_others_are_smaller_than_what_is_named(objects: Objects, blue: torch.Tensor) -> None:
    style = Style(decoys=0, others=3, filled=1.0, twin=0.0, front=0.0, blur=0.0, harmony=0.0, noise=0.0, grey=0.0)
    batch = Scenes(objects, blue, 48, style).draw(64, seed=0, step=0)
    assert batch.masks is not None
    coloured = (batch.images[:, :2].amax(1) > batch.images[:, 2]).float().mean((1, 2))
    assert (coloured > batch.masks.float().mean((1, 2)) + 0.01).float().mean() > 0.5
    named = [(image * mask).sum((1, 2))[:2].argmax() for image, mask in zip(batch.images, batch.masks, strict=True)]
    assert torch.equal(torch.stack(named), batch.labels)


def test_bad_input_is_told(objects: Objects, blue: torch.Tensor) -> None:
    with pytest.raises(InputError, match="expected torch\\.uint8"):
        Scenes(objects, blue.float())
    with pytest.raises(InputError, match="difficulty 2"):
        Scenes(objects, blue).draw(1, seed=0, step=0, difficulty=2)
    with pytest.raises(InputError, match="nothing to merge"):
        merge([])


def archive(path: Path, members: dict[str, Image.Image], suffix: str) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, picture in members.items():
            content = io.BytesIO()
            picture.save(content, "PNG")
            info = tarfile.TarInfo(f"{name}.{suffix}")
            info.size = len(content.getvalue())
            tar.addfile(info, io.BytesIO(content.getvalue()))
    return path


def test_what_is_held_out_is_never_drawn(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    discs = {}
    for index in range(9):
        rgba = disc((0, 0, 0)).permute(1, 2, 0).numpy().copy()
        rgba[..., :3] = random.integers(40 + 10 * index, 90 + 10 * index, (128, 128, 3))
        discs[f"coco/{'stop sign' if index < 8 else 'tie'}/{index}"] = Image.fromarray(rgba)
    path = archive(tmp_path / "cutouts.tar", discs, "png")
    learnt, unseen = (cutouts(path, split, side=32) for split in ("train", "validation"))
    assert learnt.class_names == unseen.class_names == ("stop sign", "tie")
    assert len(learnt.labels) == 8 and unseen.labels.tolist() == [0]
    assert not any(torch.equal(image, unseen.images[0]) for image in learnt.images)
    pictures = {f"scenes/sea/{n}": Image.fromarray(random.integers(0, 255, (40, 50, 3), np.uint8)) for n in range(60)}
    path = archive(tmp_path / "backgrounds.tar", pictures, "png")
    trained, held = (backgrounds(path, split, side=16) for split in ("train", "validation"))
    assert len(trained) + len(held) == 60 and 0 < len(held) < 12
    assert not (trained[:, None] == held[None]).flatten(2).all(-1).any()


def test_drawings_and_frames_are_no_objects() -> None:
    paper = disc((250, 250, 250)).numpy()
    assert not is_object(paper)
    card = np.full((4, 64, 64), 255, np.uint8)
    card[:3] = 120
    assert not is_object(card)
    assert is_object(disc((120, 100, 80)).numpy())


def test_classes_of_several_sources_become_one(objects: Objects) -> None:
    assert class_name("caltech/soccer_ball/image_0001.webp") == class_name("coco/sports ball/1.webp") == "sports ball"
    both = merge([objects, Objects(objects.images[:1], torch.tensor([0]), ("green",))])
    assert both.class_names == ("red", "green") and both.labels.tolist() == [0, 1, 1, 1]


def test_halves_share_no_photograph() -> None:
    of = halves(500)
    chosen, reported = (list(range(500))[of[name]] for name in ("choose", "report"))
    assert len(chosen) == len(reported) == 250 and not set(chosen) & set(reported)
    assert centred_box((100, 50)).float().mean() == pytest.approx(0.36)


def test_what_stands_for_all_is_chosen_on_the_first_half() -> None:
    heads = torch.zeros(4, 2, 2)
    heads[::2, 1, 0], heads[1::2, 0, 1] = 0.8, 0.9  # one head is best on the first half, another on the second
    found = summary(Scores(heads, heads.mean(-1), torch.full((4,), 0.5), torch.full((4,), 0.4)))
    assert found["chosen_on_first_half"]["one_map"] == "one_head"
    assert (found["chosen_on_first_half"]["layer"], found["chosen_on_first_half"]["head"]) == (1, 0)
    assert (found["choose"]["one_map"][0], found["report"]["one_map"][0]) == (0.8, 0.0)
    assert found["report"]["best_head_of_each_image"][0] == 0.9
