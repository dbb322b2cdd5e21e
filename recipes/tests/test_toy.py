"""What recipes/toy.py writes: two layouts of one data set, whose masks are exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_data import write_sources, write_toy

from recipes import toy as make
from recipes.objects import Objects
from whitebox_crate.errors import InputError, OutputError
from whitebox_crate.evaluation.coco import read_annotations

coding = pytest.importorskip("faster_coco_eval").mask

IMAGES = 6


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"), IMAGES)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects_of(document: dict[str, Any], image_id: int) -> list[tuple[int, np.ndarray]]:
    """(category, mask) of each object of an image, from its run lengths."""
    found = []
    for annotation in document["annotations"]:
        if annotation["image_id"] == image_id:
            height, width = annotation["segmentation"]["size"]
            counts = annotation["segmentation"]["counts"]
            flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
            found.append((annotation["category_id"], flat.reshape(width, height).T))
    return found


class TestToy:
    def test_both_layouts_tell_the_same(self, toy: Path) -> None:
        names = (toy / "VOC2012/ImageSets/Segmentation/val.txt").read_text().split()
        document = read_annotations(toy / "COCO/annotations/instances_val2017.json")
        assert len(names) == len(document["images"]) == IMAGES
        shapes = set()
        for name, image in zip(names, document["images"], strict=True):
            photo = toy / "COCO/val2017" / image["file_name"]
            assert photo.read_bytes() == (toy / f"VOC2012/JPEGImages/{name}.jpg").read_bytes()
            assert Image.open(photo).size == (image["width"], image["height"])
            shapes.add((image["width"], image["height"]))
            labels = np.array(Image.open(toy / f"VOC2012/SegmentationClass/{name}.png"))
            assert labels.shape == (image["height"], image["width"])
            expected = np.zeros_like(labels)
            objects = objects_of(document, image["id"])
            assert 1 <= len(objects) <= 2
            for category, mask in objects:
                expected[mask] = category
            assert (labels[labels != 255] == expected[labels != 255]).all()
            inside = expected > 0
            padded = np.pad(inside, 1)
            height, width = inside.shape
            near = np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
            assert ((labels == 255) == (near & ~inside)).all()  # a border of one pixel, outside
        assert len(shapes) > 1 and {min(shape) for shape in shapes} == {48}

    def test_areas_boxes_and_run_lengths_are_cocos(self, toy: Path) -> None:
        document = read_annotations(toy / "COCO/annotations/instances_val2017.json")
        for annotation in document["annotations"]:
            height, width = annotation["segmentation"]["size"]
            run_lengths = coding.frPyObjects(annotation["segmentation"], height, width)
            assert coding.area(run_lengths) == annotation["area"] > 100
            assert coding.toBbox(run_lengths).tolist() == annotation["bbox"]

    def test_an_object_is_where_its_mask_says(self, toy: Path) -> None:
        """Stamps are noise and wallpapers smooth: neighbours differ inside of the masks alone."""
        document = read_annotations(toy / "COCO/annotations/instances_val2017.json")
        for image in document["images"]:
            pixels = np.asarray(Image.open(toy / "COCO/val2017" / image["file_name"]).convert("L"), np.float32)
            rough = np.abs(np.diff(pixels, axis=1, append=pixels[:, -1:]))
            inside = np.any([mask for _, mask in objects_of(document, image["id"])], axis=0)
            assert rough[inside].mean() > 3 * rough[~inside].mean()

    def test_masks_are_palette_images_in_vocs_colours(self, toy: Path) -> None:
        mask = Image.open(sorted((toy / "VOC2012/SegmentationClass").iterdir())[0])
        assert mask.mode == "P"
        colours = np.array(mask.getpalette()).reshape(-1, 3)
        assert colours[[0, 1, 2, 15, 20, 255]].tolist() == [
            [0, 0, 0],
            [128, 0, 0],
            [0, 128, 0],
            [192, 128, 128],
            [0, 64, 128],
            [224, 224, 192],
        ]
        assert (toy / "VOC2012/classes.txt").read_text() == "1 birds\n2 tools\n"

    def test_the_same_seed_gives_the_same_bytes(self, toy: Path, tmp_path: Path) -> None:
        for name in ("again", "other"):
            (tmp_path / name).mkdir()
        assert files_of(write_toy(tmp_path / "again", IMAGES)) == files_of(toy)
        assert files_of(write_toy(tmp_path / "other", IMAGES, seed=1)) != files_of(toy)

    def test_objects_without_a_pixel_are_drawn_again(self) -> None:
        """Scaled to a few pixels, a diagonal covers none of them by more than a half; what is faint never does."""
        images = torch.full((3, 4, 16, 16), 200, dtype=torch.uint8)
        images[0, 3] = 255 * torch.eye(16, dtype=torch.uint8)
        images[2, 3] = 100
        backgrounds = np.zeros((20, 3, 24, 24), np.uint8)

        def composed(*which: int) -> list[Any]:
            objects = Objects(images[list(which)], torch.arange(len(which)), tuple(f"a/{index}" for index in which))
            return list(make.compose(objects, backgrounds, ["a"], seed=0))

        pictures = composed(0, 1)
        assert len(pictures) == 20 and {len(picture.masks) for picture in pictures} == {1, 2}
        assert all(mask.any() for picture in pictures for mask in picture.masks)
        with pytest.raises(InputError, match="larger --size"):
            composed(2, 2)

    def test_nothing_is_overwritten_or_half_written(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ["--images", "2", "--size", "32", *write_sources(tmp_path)]
        before = files_of(toy)
        with pytest.raises(InputError, match="exists already"):
            make.main(["--out", str(toy), *words])
        assert files_of(toy) == before

        def full(*_: object) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(make, "write_coco", full)
        there = set(tmp_path.iterdir())
        with pytest.raises(OutputError, match="no space left"):
            make.main(["--out", str(tmp_path / "toy"), *words])
        assert set(tmp_path.iterdir()) == there

    def test_what_it_is_made_of_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="apt-get install tuxpaint-stamps-default"):
            make.main(["--out", str(tmp_path / "toy"), "--stamps", str(tmp_path / "gone")])
        with pytest.raises(InputError, match="at least 1 image"):
            make.main(["--out", str(tmp_path / "toy"), "--images", "0"])
        assert not list(tmp_path.iterdir())
