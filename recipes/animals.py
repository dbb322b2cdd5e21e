"""Writes composites of one kind of photographed object over photographs, with exact masks: images/ and masks/.

Each picture has one large object, in a different place every time, for figures that compare images of one class:

    apt-get install tuxpaint-stamps-default plasma-workspace-wallpapers gnome-backgrounds
    python -m recipes.animals --out quadrupeds
    whitebox-crate heads quadrupeds/images/*.png
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from recipes.backgrounds import wallpapers
from recipes.composites import Composites, masks_of
from recipes.objects import Objects, photographs
from whitebox_crate._files import write_whole

QUADRUPEDS = ("mammals/bovines", "mammals/equines", "mammals/deer", "mammals/dogs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=QUADRUPEDS, help="parts of the stamps' names (%(default)s)")
    parser.add_argument("--split", choices=("all", "train", "held_out"), default="all", help="of the objects")
    parser.add_argument("--images", type=int, default=12, help="how many (%(default)s)")
    parser.add_argument("--size", type=int, default=288, help="side of an image, pixels (%(default)s)")
    parser.add_argument(
        "--difficulty", type=float, default=0.8, help="difficulty of the composites, 0 to 1 (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()

    every = photographs(options.split, side=256)
    kept = [index for index, name in enumerate(every.class_names) if any(kind in name for kind in options.kinds)]
    if not kept:
        raise SystemExit(f"no stamp has {' or '.join(options.kinds)} in its name; choose other --kinds")
    names = tuple(every.class_names[index] for index in kept)
    chosen = Objects(every.images[kept], torch.arange(len(kept)), names)
    source = Composites(chosen, wallpapers("held_out", side=options.size), options.size)
    batch = source.draw(options.images, seed=options.seed, step=0, difficulty=options.difficulty)

    for folder in ("images", "masks"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    for index, (pixels, label, mask) in enumerate(zip(batch.images, batch.labels, masks_of(batch), strict=True)):
        file = f"{index:02d}-{names[label].rpartition('/')[2]}.png"
        photo = Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())
        write_whole(options.out / "images" / file, partial(photo.save, format="PNG"))
        write_whole(options.out / "masks" / file, partial(Image.fromarray(mask.byte().numpy()).save, format="PNG"))
    print(f"{options.out}: {options.images} images of {len(names)} objects")


if __name__ == "__main__":
    main()
