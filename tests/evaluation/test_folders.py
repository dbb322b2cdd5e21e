"""Readers: masks are labels and not colours, and whatever is missing or damaged is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled_images import labels, make_folder, make_voc, noise, save_mask
from PIL import Image

from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.evaluation.folders import VOC_CLASSES, VOID, LabelledImage, read_folder, read_labels, read_voc


class TestVoc:
    @pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
    def test_the_published_layout(self, inside: str, tmp_path: Path) -> None:
        names = make_voc(tmp_path)
        data = read_voc(tmp_path / inside, "val")
        assert [name for name, _ in data.items] == names
        assert data.void == VOID
        for index, (_, pair) in enumerate(data.items):
            image, found = pair.read()
            assert image.mode == "RGB"
            assert found.numpy().tolist() == labels(index).tolist()

    def test_class_names(self, tmp_path: Path) -> None:
        make_voc(tmp_path, 1)
        names = read_voc(tmp_path).class_names
        assert names is not None
        assert (len(names), names[1], names[15], names[20]) == (20, "aeroplane", "person", "tvmonitor")
        assert list(VOC_CLASSES) == sorted(VOC_CLASSES)  # VOC's own order
        (tmp_path / "VOCdevkit" / "VOC2012" / "classes.txt").write_text("1 stuffed toy\n\n15 boot\n")
        assert read_voc(tmp_path).class_names == {1: "stuffed toy", 15: "boot"}

    @pytest.mark.parametrize("text", ["1\n", "one cat\n", "1 cat\n1 dog\n", "1 cat\n2 cat\n", "0 background\n"])
    def test_class_names_that_are_none(self, text: str, tmp_path: Path) -> None:
        make_voc(tmp_path, 1)
        (tmp_path / "VOCdevkit" / "VOC2012" / "classes.txt").write_text(text)
        with pytest.raises(InputError, match=r"classes\.txt"):
            read_voc(tmp_path)

    def test_no_such_layout(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="VOCtrainval_11-May-2012"):
            read_voc(tmp_path)
        (tmp_path / "JPEGImages").mkdir()
        with pytest.raises(InputError, match=r"there is no folder .*SegmentationClass"):
            read_voc(tmp_path)

    def test_no_such_list(self, tmp_path: Path) -> None:
        make_voc(tmp_path, 1)
        with pytest.raises(UnknownNameError, match=r"'vall'.*did you mean 'val'"):
            read_voc(tmp_path, "vall")

    @pytest.mark.parametrize("text", [b"", b"\n \n", b"\xff\xfe\x00"])
    def test_a_list_of_nothing(self, text: bytes, tmp_path: Path) -> None:
        make_voc(tmp_path, 1)
        path = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt"
        path.write_bytes(text)
        with pytest.raises(InputError, match=r"val\.txt (is empty|cannot be read)"):
            read_voc(tmp_path)

    def test_missing_files_are_named_beforehand(self, tmp_path: Path) -> None:
        names = make_voc(tmp_path)
        home = tmp_path / "VOCdevkit" / "VOC2012"
        (home / "SegmentationClass" / f"{names[2]}.png").unlink()
        (home / "JPEGImages" / f"{names[4]}.jpg").unlink()
        with pytest.raises(InputError, match=rf"2 files of 6 .*{names[2]}\.png', .*{names[4]}\.jpg'; add them"):
            read_voc(tmp_path).check_files()


class TestFolder:
    def test_images_and_masks_of_the_same_name(self, tmp_path: Path) -> None:
        names = make_folder(tmp_path)
        (tmp_path / "images" / "more").mkdir()
        (tmp_path / "masks" / "more").mkdir()
        noise(1).save(tmp_path / "images" / "more" / "a.b.WEBP", lossless=True)
        save_mask(labels(1), tmp_path / "masks" / "more" / "a.b.png")
        (tmp_path / "images" / "notes.txt").touch()
        (tmp_path / "images" / "._photo.jpg").touch()
        data = read_folder(tmp_path, void=254)
        assert [name for name, _ in data.items] == ["more/a.b", *names]
        assert (data.void, data.class_names) == (254, None)
        data.check_files()
        image, found = data.items[0][1].read()
        assert np.array_equal(np.array(image), np.array(noise(1)))
        assert found.tolist() == labels(1).tolist()

    def test_one_without_the_other_is_noticed(self, tmp_path: Path) -> None:
        names = make_folder(tmp_path)
        (tmp_path / "images" / f"{names[1]}.jpg").unlink()
        (tmp_path / "masks" / f"{names[3]}.png").unlink()
        data = read_folder(tmp_path)
        assert [name for name, _ in data.items] == names
        with pytest.raises(InputError, match="2 files of 6"):
            data.check_files()
        with pytest.raises(InputError, match=rf"{names[1]}\.jpg' cannot be opened"):
            data.items[1][1].read()
        with pytest.raises(InputError, match=rf"there is no mask .*{names[3]}\.png"):
            data.items[3][1].read()

    def test_nothing_to_read(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"there is no folder .*images"):
            read_folder(tmp_path)
        (tmp_path / "images").mkdir()
        with pytest.raises(InputError, match=r"there is no folder .*masks"):
            read_folder(tmp_path)
        (tmp_path / "masks").mkdir()
        with pytest.raises(InputError, match="holds no image"):
            read_folder(tmp_path)

    def test_two_images_for_one_mask(self, tmp_path: Path) -> None:
        make_folder(tmp_path)
        noise(0).save(tmp_path / "images" / "photo 00.bmp")
        with pytest.raises(InputError, match=r"photo 00\.bmp and .*photo 00\.jpg differ only in their suffix"):
            read_folder(tmp_path)

    def test_masks_are_found_whatever_the_case_of_their_suffix(self, tmp_path: Path) -> None:
        make_folder(tmp_path, 2)
        mask = tmp_path / "masks" / "photo 00.png"
        mask.rename(mask.with_suffix(".PNG"))
        data = read_folder(tmp_path)
        data.check_files()
        assert [pair.mask.name for _, pair in data.items] == ["photo 00.PNG", "photo 01.png"]
        save_mask(labels(0), mask)
        with pytest.raises(InputError, match="differ only in their suffix"):
            read_folder(tmp_path)

    def test_the_content_of_a_pair_is_that_of_both_files(self, tmp_path: Path) -> None:
        make_folder(tmp_path, 1)
        ((_, pair),) = read_folder(tmp_path).items
        seen = {pair.content()}
        for path in (pair.image, pair.mask):
            path.write_bytes(path.read_bytes() + b"0")
            seen.add(pair.content())
        assert len(seen) == 3
        pair.mask.unlink()
        with pytest.raises(InputError, match="cannot be read"):
            pair.content()


class TestMasks:
    def test_every_kind_of_labels(self, tmp_path: Path) -> None:
        small = np.array([[0, 1, 1], [0, 0, 1]], dtype=np.uint8)
        kinds = {
            "binary": (Image.fromarray(small * 255).convert("1"), small),
            "grey": (Image.fromarray(small * 255), small * 255),
            "16 bits": (Image.fromarray(small.astype(np.uint16) * 300), small.astype(int) * 300),
        }
        for name, (image, expected) in kinds.items():
            path = tmp_path / f"{name}.png"
            image.save(path)
            assert read_labels(path).tolist() == expected.tolist(), name
        save_mask(small * 7, tmp_path / "palette.png")
        assert read_labels(tmp_path / "palette.png").tolist() == (small * 7).tolist()

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
    def test_colours_are_refused(self, mode: str, tmp_path: Path) -> None:
        Image.new(mode, (4, 4)).save(tmp_path / "mask.png")
        with pytest.raises(InputError, match=f"mask.png has mode {mode}: colours, not labels; save it as"):
            read_labels(tmp_path / "mask.png")

    @pytest.mark.parametrize("cut", [0, 20, 100])
    def test_damage_is_named(self, cut: int, tmp_path: Path) -> None:
        path = tmp_path / "mask.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(InputError, match=r"the mask .*mask\.png is damaged or not an image"):
            read_labels(path)

    def test_a_format_that_another_program_would_read_is_refused(self, tmp_path: Path) -> None:
        Image.new("L", (4, 4)).save(tmp_path / "mask.png", format="EPS")
        with pytest.raises(InputError, match=r"mask\.png is damaged or not an image .*UnidentifiedImageError"):
            read_labels(tmp_path / "mask.png")

    def test_a_lossy_format_is_refused(self, tmp_path: Path) -> None:
        Image.new("L", (4, 4)).save(tmp_path / "mask.png", format="JPEG")
        with pytest.raises(
            InputError, match=r"mask\.png .*lossless format \(PNG, TIFF.*; save it as a palette or grey"
        ):
            read_labels(tmp_path / "mask.png")

    def test_a_mask_of_another_size(self, tmp_path: Path) -> None:
        noise(0).save(tmp_path / "image.jpg")
        save_mask(labels(1), tmp_path / "mask.png")
        with pytest.raises(InputError, match=r"mask\.png is 52 x 40 .*image\.jpg 40 x 52"):
            LabelledImage(tmp_path / "image.jpg", tmp_path / "mask.png").read()

    def test_a_jpeg_that_is_cut_short(self, tmp_path: Path) -> None:
        path = tmp_path / "image.jpg"
        noise(0).save(path)
        save_mask(labels(0), tmp_path / "mask.png")
        path.write_bytes(path.read_bytes()[:900])
        with pytest.raises(InputError, match=r"image\.jpg is damaged or cut short"):
            LabelledImage(path, tmp_path / "mask.png").read()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_masks_are_of_the_pixels_as_they_are_stored(orientation: int, tmp_path: Path) -> None:
    """A mask that was drawn upright has another size where the picture is turned by a quarter, and counts too."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    stored.save(tmp_path / "a.png", exif=exif)
    Image.new("L", stored.size, 1).save(tmp_path / "stored.png")
    image, labels = LabelledImage(tmp_path / "a.png", tmp_path / "stored.png").read()
    assert np.array_equal(np.asarray(image), np.asarray(stored))
    assert labels.shape == (4, 6)
    if orientation in (6, 8):
        Image.new("L", stored.size[::-1], 1).save(tmp_path / "upright.png")
        image, labels = LabelledImage(tmp_path / "a.png", tmp_path / "upright.png").read()
        assert image.size == (4, 6)
        assert labels.shape == (6, 4)
