"""Trains a network of the size of crate_nano on scenes, by the names of the objects alone.

    python -m recipes.train_nano --model crate_nano --warm-start --data DATA --out runs/crate_nano
    python -m recipes.train_nano --model vit_nano --curriculum 0.3 --data DATA --out runs/vit_nano

DATA holds cutouts.tar and backgrounds.tar. The stamps and wallpapers are those of four Debian packages. A run that was
interrupted and is called again goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.backgrounds import WALLPAPERS, wallpapers
from recipes.cutouts import backgrounds, cutouts, merge
from recipes.mixed import Mixed
from recipes.objects import Objects, photographs
from recipes.scenes import Scenes, Style
from whitebox_crate import ImageTransformer, create_model
from whitebox_crate._files import write_whole
from whitebox_crate.errors import InputError
from whitebox_crate.pretrained_cfg import PretrainedCfg
from whitebox_crate.training import ImageDataset, Recipe, finish, last_metrics, normalize, open_images, train
from whitebox_crate.training.checkpoints import checkpoints_of

MATE = Path("/usr/share/backgrounds/mate")
DATA = (
    "scenes: composites of the stamps of tuxpaint-stamps-default and of cut-outs of COCO, Caltech-101 and the Grocery "
    "Store Dataset over Intel Image Classification, DTD and wallpapers"
)


class Naming:
    """What is measured on the way: naming of validation scenes, which share no background and few objects.

    Args:
        source: Scenes of instances and backgrounds that were held out.
        every: In steps.
        images: How many, a multiple of 64.
    """

    def __init__(self, source: Scenes, every: int, images: int = 512) -> None:
        self.every = every
        self._batches = [source.draw(64, seed=77, step=step, size=96) for step in range(images // 64)]

    @torch.inference_mode()
    def measure(self, model: ImageTransformer) -> dict[str, float]:
        """Top-1 on them."""
        training = model.training
        model.eval()
        hits = [model(normalize(batch.images, model)).argmax(-1) == batch.labels for batch in self._batches]
        model.train(training)
        return {"top1": round(float(torch.cat(hits).float().mean()), 4)}


def objects_of(archive: Path) -> tuple[Objects, Objects]:
    """Training and validation objects, with the same classes: the stamps of training, and the archive's cut-outs."""
    stamps = photographs("train")
    known = Objects(stamps.images[:0], stamps.labels[:0], stamps.class_names)
    return merge([stamps, cutouts(archive, "train")]), merge([known, cutouts(archive, "validation")])


def backgrounds_of(archive: Path) -> Tensor:
    """All training backgrounds: scenes, textures and wallpapers; uint8 (count, 3, 128, 128)."""
    walls = [wallpapers("train", roots=WALLPAPERS, count=1500), wallpapers("train", roots=[MATE], count=500)]
    return torch.cat([backgrounds(archive, "train"), *walls])


def data_of(folder: Path, cache: Path) -> tuple[Objects, Objects, Tensor, Tensor]:
    """Objects and backgrounds, each to train on and to validate with, decoded once and kept in a file."""
    if not cache.exists():
        learnt, unseen = objects_of(folder / "cutouts.tar")
        tensors = [learnt.images, learnt.labels, unseen.images, unseen.labels]
        tensors += [backgrounds_of(folder / "backgrounds.tar"), backgrounds(folder / "backgrounds.tar", "validation")]
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, lambda path: torch.save((tensors, learnt.class_names), path))
    (a, b, c, d, behind, behind_unseen), names = torch.load(cache, weights_only=True)
    return Objects(a, b, tuple(names)), Objects(c, d, tuple(names)), behind, behind_unseen


def make_model(name: str, warm_start: str, class_names: tuple[str, ...], recipe: Recipe) -> ImageTransformer:
    """The model for these classes, from weights of this name if one is given; their rows of known classes stay."""
    torch.manual_seed(recipe.seed)
    made = create_model(
        warm_start or name,
        pretrained=bool(warm_start),
        num_classes=len(class_names),
        img_size=max(recipe.sizes),
        dynamic_img_size=True,
    )
    if not isinstance(made, ImageTransformer):
        raise InputError(f"{warm_start or name} makes a {type(made).__name__}, which is not trained here")
    if warm_start:
        _keep_rows(made, create_model(warm_start, pretrained=True), class_names)
    cfg, origin = made.pretrained_cfg, f", from {warm_start}" if warm_start else ""
    made.pretrained_cfg = PretrainedCfg(
        input_size=(made.in_chans, *made.img_size),
        mean=cfg.mean,
        std=cfg.std,
        interpolation=cfg.interpolation,
        num_classes=made.num_classes,
        label_names=class_names,
        license="apache-2.0",
        origin=f"recipes.train_nano, seed {recipe.seed}{origin}",
    )
    return made


@torch.no_grad()
def _keep_rows(made: ImageTransformer, old: ImageTransformer, class_names: tuple[str, ...]) -> None:
    """Copies what the old head knows of classes of the same name; the other rows stay fresh."""
    known = {name: row for row, name in enumerate(old.pretrained_cfg.label_names)}
    new, rows = made.get_classifier(), [index for index, name in enumerate(class_names) if name in known]
    source = [known[class_names[index]] for index in rows]
    for mine, theirs in zip(new.parameters(), old.get_classifier().parameters(), strict=True):
        mine[rows] = theirs[source]


def style_of(changes: dict[str, Any]) -> Style:
    """The scenes' style with some of it changed; JSON has lists for tuples."""
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in changes.items()}
    return replace(Style(), **given)


def with_photographs(scenes: Scenes, where: str | None) -> Scenes | Mixed:
    """The scenes, or these and the photographs of what `open_images` takes, half of each batch."""
    if where is None:
        return scenes
    photographs = open_images(where, crop="random", flip=True, size=scenes.size)
    if not isinstance(photographs, ImageDataset):
        raise InputError(f"{where} cannot be drawn from by number")
    return Mixed([scenes, photographs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="crate_nano", help="architecture")
    add("--warm-start", default="", metavar="NAME", help="weights to start from, with a fresh head")
    add("--data", type=Path, required=True, help="folder of cutouts.tar and backgrounds.tar")
    add("--cache", type=Path, help="file for what was decoded (OUT/../data.pt)")
    add("--photographs", metavar="WHERE", help="half of each batch is of these, as `whitebox-crate train --data` takes")
    add("--out", type=Path, required=True)
    add("--steps", type=int, default=10000)
    add("--batch-size", type=int, default=32)
    add("--learning-rate", type=float, default=2e-4)
    add("--curriculum", type=float, default=0.0, help="share of the steps in which scenes grow to full difficulty")
    add("--sizes", type=int, nargs="+", default=[48, 72, 96])
    add("--size-starts", type=float, nargs="+", default=[0.0, 0.6, 0.85])
    add("--style", type=json.loads, default={}, help="what of the scenes' style shall differ, as JSON")
    add("--precision", default="no", help="bf16 where the processor multiplies in it (avx512_bf16, amx_bf16)")
    add("--seed", type=int, default=0)
    add("--stop-at", type=int, help="step after which to stop, for trials")
    options = parser.parse_args()
    torch.set_num_threads(1)
    learnt, unseen, behind, behind_unseen = data_of(options.data, options.cache or options.out.parent / "data.pt")
    style = style_of(options.style)
    recipe = Recipe(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        curriculum=options.curriculum,
        sizes=tuple(options.sizes),
        size_starts=tuple(options.size_starts),
        precision=options.precision,
        seed=options.seed,
    )
    source = with_photographs(Scenes(learnt, behind, max(recipe.sizes), style), options.photographs)
    model = make_model(options.model, options.warm_start, source.class_names, recipe)
    validation = Naming(Scenes(unseen, behind_unseen, 96, style), every=1000)
    started = int(bool(checkpoints_of(options.out)))
    clock = time.process_time()
    train(model, source, recipe, options.out, validation=validation, stop_at=options.stop_at, checkpoint_every=500)
    seconds = round(time.process_time() - clock)
    metrics = {**last_metrics(options.out), "cpu_seconds_of_the_last_call": seconds, "calls_before": started}
    words = f"{DATA}; {len(learnt.labels):,} objects of {len(learnt.class_names)} classes, {len(behind):,} backgrounds"
    finish(model, options.out / "model", recipe, data=words, metrics={**metrics, "style": asdict(style)})


if __name__ == "__main__":
    main()
