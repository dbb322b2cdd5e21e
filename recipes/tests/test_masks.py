"""Ways to masks: each gives a mask of the right size, and what is reported was chosen on the other half."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from recipes.masks import Photo, ways
from recipes.measure_masks import scores, summary, table
from whitebox_crate import create_model
from whitebox_crate.evaluation import LabelledImage
from whitebox_crate.models import ImageTransformer

RECIPES = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model() -> ImageTransformer:
    made = create_model("crate_pico", pretrained=True, dynamic_img_size=True).eval()
    assert isinstance(made, ImageTransformer)
    return made


@pytest.mark.parametrize("best", [3, 5], ids=["best layer 3", "the last layer is best"])
def test_every_way_gives_a_mask(model: ImageTransformer, best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "pretrained_cfg", replace(model.pretrained_cfg, attention_layer=best))
    generator = torch.Generator().manual_seed(0)
    photo = Photo(
        model,
        torch.randn(3, 24, 32, generator=generator),
        torch.randint(0, 256, (3, 40, 60), generator=generator, dtype=torch.uint8),
    )
    with torch.inference_mode():
        for family, variants in ways(model).items():
            if "CRF" not in family:  # needs an extra
                for way in variants.values():
                    mask = way(photo)
                    assert mask.dtype == torch.bool and mask.shape in (photo.grid, (40, 60)), family


def test_scores_are_of_pixels(model: ImageTransformer, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    mask = Image.new("L", (60, 40))
    mask.paste(1, (0, 0, 60, 20))
    mask.save(tmp_path / "mask.png")
    families = {"all": {"": lambda photo: torch.ones(photo.grid, dtype=torch.bool)}}
    found = scores(model, [LabelledImage(tmp_path / "a.png", tmp_path / "mask.png")], families, 24)
    assert found["all"][""].tolist() == [0.5]


def test_what_is_reported_was_chosen_on_the_other_half() -> None:
    found = {
        "family": {"good on even": torch.tensor([0.9, 0.1, 0.7, 0.3]), "on odd": torch.tensor([0.2, 0.8, 0.2, 0.8])}
    }
    chosen = summary(found)["family"]
    assert chosen["variant"] == "good on even"
    assert (chosen["choose"][0], chosen["report"][0]) == (pytest.approx(0.8), pytest.approx(0.2))


@pytest.mark.parametrize("path", sorted((RECIPES / "results" / "masks").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_has_the_tables(path: Path) -> None:
    assert table(json.loads(path.read_text())) in (RECIPES.parent / "docs" / "masks.md").read_text()
