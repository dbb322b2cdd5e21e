"""Draws the picture of the card of crate_nano.tuxpaint_composites: photographs, maps and masks, and a control's map.

    python -m recipes.pictures --out docs/images/first_light.png
    python -m recipes.pictures --garments --out docs/images/garments.png
    python -m recipes.pictures --out docs/images/photographs.png --control RUN/model PHOTOGRAPH ...

Photographs: those of the package, or names of scikit-image's (`astronaut`) or paths.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL.Image import Image, Resampling, fromarray

import whitebox_crate
from recipes.backgrounds import noise_backgrounds
from recipes.composites import Composites, masks_of
from recipes.objects import garments
from whitebox_crate import ImageTransformer, create_model
from whitebox_crate._files import write_whole
from whitebox_crate.images import load_image
from whitebox_crate.preprocess import best_short_side, fit_photo
from whitebox_crate.segmentation import attention_masks, cls_attention
from whitebox_crate.segmentation.draw import draw_map, draw_mask, draw_panels
from whitebox_crate.training import normalize

PANEL = (200, 300)  # (height, width), pixels
GARMENT = 128


def find(name: str) -> Path:
    """A path, or a file of scikit-image's photographs by name."""
    if Path(name).exists():
        return Path(name)
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise SystemExit(f"{name} is not a file, and scikit-image is not installed: pip install scikit-image")
    found = sorted((Path(package.origin).parent / "data").glob(f"{name}.*"))
    if not found:
        raise SystemExit(f"{name} is neither a file nor one of scikit-image's photographs")
    return found[0]


@torch.inference_mode()
def map_of(model: ImageTransformer, photo: Image, short_side: int, layer: int, head: int | None) -> torch.Tensor:
    """One head's map of a photograph, or the mean of the heads, (rows, columns)."""
    maps = cls_attention(model, fit_photo(model, photo, short_side).pixels[None], layer)[0]
    return maps.mean(0) if head is None else maps[head]


def draw_garments(count: int = 6) -> Image:
    """Draws composites of unused test garments, with crate_pico's map and mask, and the exact mask."""
    model = create_model("crate_pico", pretrained=True).eval()
    facts, side = model.pretrained_cfg, model.img_size[0]
    source = Composites(garments("test"), noise_backgrounds(500, 64, seed=1))
    batch = source.draw(count, seed=20_000, step=0, size=side)
    maps = cls_attention(model, normalize(batch.images, model), facts.attention_layer)[:, facts.attention_head]
    named = [facts.label_names[index] for index in model(normalize(batch.images, model)).argmax(-1)]
    panels, captions = [], []
    for image, attention, mask, name in zip(batch.images, maps, masks_of(batch), named, strict=True):
        pixels = fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())
        shown = pixels.resize((GARMENT, GARMENT), Resampling.NEAREST)
        masks = (draw_mask(shown, found) for found in (attention_masks(attention, rule="mean"), mask))
        panels += [shown, draw_map(attention, (GARMENT, GARMENT)), *masks]
        captions += [f"named: {name}", f"L{facts.attention_layer} H{facts.attention_head}", "above the mean", "exact"]
    return draw_panels(panels, captions, columns=8)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", nargs="*")
    parser.add_argument("--control", help="folder of a ViT trained by the same recipe")
    parser.add_argument("--control-layer", type=int, default=-1)
    parser.add_argument("--control-head", type=int)
    parser.add_argument("--garments", action="store_true", help="composites of garments in place of photographs")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.garments:
        write_whole(options.out, partial(draw_garments().save, format="PNG", optimize=True))
        print(options.out)
        return
    samples = Path(whitebox_crate.__file__).parent / "samples"
    paths = [find(name) for name in options.photographs] or sorted(samples.glob("*.jpg"))

    crate = create_model("crate_nano.tuxpaint_composites", pretrained=True, dynamic_img_size=True).eval()
    control = options.control and create_model(f"local-dir:{options.control}", pretrained=True).eval()
    facts = crate.pretrained_cfg
    layer, head, side = facts.attention_layer, facts.attention_head, best_short_side(crate)
    panels, captions = [], []
    for path in paths:
        photo = load_image(path)
        shown = photo.resize((PANEL[1], PANEL[0]))
        attention = map_of(crate, photo, side, layer, head)
        panels += [shown, draw_map(attention, PANEL), draw_mask(shown, attention_masks(attention, rule="mean"))]
        captions += [path.stem, f"CRATE, layer {layer}, head {head}", "mask: above the mean"]
        if control:
            panels.append(draw_map(map_of(control, photo, side, options.control_layer, options.control_head), PANEL))
            captions.append(f"ViT, layer {options.control_layer}, head {options.control_head}")
    sheet = draw_panels(panels, captions, columns=len(panels) // len(paths))
    write_whole(options.out, partial(sheet.save, format="PNG"))
    print(options.out)


if __name__ == "__main__":
    main()
