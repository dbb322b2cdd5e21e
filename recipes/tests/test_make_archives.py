"""Archives: what is white around a thing goes, what is white in it stays; polygons become alpha."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.make_archives import of_masks, of_pictures, of_white, with_alpha, without_white
from whitebox_crate.errors import InputError


def ring() -> Image.Image:
    pixels = np.full((40, 60, 3), 255, np.uint8)
    pixels[5:35, 15:45] = 90
    pixels[15:25, 25:35] = 255
    return Image.fromarray(pixels)


def test_white_goes_where_the_border_reaches_it() -> None:
    mask = without_white(ring())
    assert mask.sum() == 30 * 30 and mask[20, 30] and not mask[0, 0]
    cut = with_alpha(ring(), mask)
    assert cut.size == (30, 30) and np.asarray(cut)[..., 3].min() == 255


def test_a_mask_fits_its_picture() -> None:
    with pytest.raises(InputError, match="for a picture"):
        with_alpha(ring(), np.ones((3, 3), bool))


def test_folders_of_folders_become_members(tmp_path: Path) -> None:
    (tmp_path / "cup").mkdir()
    ring().save(tmp_path / "cup" / "a.png")
    Image.new("RGB", (60, 40), (90, 90, 90)).save(tmp_path / "cup" / "b.png")
    assert [name for name, _ in of_white(tmp_path)] == ["cup/a.webp"]
    assert [(name, picture.size) for name, picture in of_pictures(tmp_path, 20)] == [
        ("cup/a.jpg", (30, 20)),
        ("cup/b.jpg", (30, 20)),
    ]


def test_polygons_become_alpha(tmp_path: Path) -> None:
    ring().save(tmp_path / "1.png")
    box = {"bbox": [15, 5, 30, 30], "segmentation": [[15, 5, 44, 5, 44, 34, 15, 34]], "area": 900}
    entry = {"image_id": 1, "category_id": 7, "iscrowd": 0, **box}
    document = {
        "images": [{"id": 1, "file_name": "1.png", "width": 60, "height": 40}],
        "categories": [{"id": 7, "name": "cup"}],
        "annotations": [entry, {**entry, "iscrowd": 1}, {**entry, "bbox": [0, 5, 30, 30]}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    ((name, picture),) = of_masks(tmp_path, path)
    assert name == "cup/00_000000000001.webp" and picture.size == (30, 30)
