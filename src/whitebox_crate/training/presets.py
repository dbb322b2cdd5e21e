"""PRESETS: the recipes of the papers and of their released scripts, each with where its numbers come from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """A recipe under a name.

    Attributes:
        recipe: The numbers.
        source: The source of each number, and the numbers that this package chose because the source is silent.
    """

    recipe: Recipe
    source: str


# Photographs have one size and one difficulty throughout. Clipping at 1 is this package's choice in all presets.
_PHOTOGRAPHS = Recipe(curriculum=0.0, sizes=(224,), size_starts=(0.0,), crop="random", flip=True)

PRESETS: dict[str, Preset] = {
    "composites": Preset(
        Recipe(),
        "this package's, for crate_nano: Lion and the weight decay are those of arXiv 2308.16271, appendix C.1; all "
        "else was chosen so that a small model learns from composites of objects within hours",
    ),
    "imagenet21k": Preset(
        replace(_PHOTOGRAPHS, epochs=90, batch_size=4096, learning_rate=9.6e-5, warmup=5 / 90, crop="centre"),
        "arXiv 2308.16271, appendix C.1: 90 epochs, Lion, batch 4096, learning rate 9.6e-5, weight decay 0.05, 224 "
        "px, centre crop, flip; not stated there: schedule and warm-up (a cosine after 5 epochs, as in arXiv "
        "2306.01129), label smoothing (0.1, the released main.py), Lion's betas (0.9, 0.99: lion-pytorch's); ours: "
        "clipping at 1, no weight decay on biases and norms",
    ),
    "imagenet1k": Preset(
        replace(_PHOTOGRAPHS, epochs=200, batch_size=512, learning_rate=2e-4, warmup=20 / 200),
        "main.py and the README's command for CRATE-tiny, as released (github.com/Ma-Lab-Berkeley/CRATE): 200 epochs, "
        "Lion, batch 512, learning rate 2e-4, weight decay 0.05, label smoothing 0.1, 20 epochs of warm-up under a "
        "cosine, random crop, flip; its schedule moves once an epoch and its cosine begins with the warm-up, ours "
        "moves each step and begins after it; ours: clipping at 1 (main.py names that norm but does not clip), no "
        "weight decay on biases and norms",
    ),
    "cbt": Preset(
        replace(_PHOTOGRAPHS, epochs=150, batch_size=256, learning_rate=2e-4, warmup=20 / 150),
        "main.py and the README's command for CBT, as released (github.com/QishuaiWen/CBSA): 150 epochs, Lion, batch "
        "256, learning rate 2e-4, weight decay 0.05, label smoothing 0.1, 20 epochs of warm-up and a cosine, random "
        "crop, flip; its schedule moves once an epoch, ours each step; ours: clipping at 1 (its clipping is commented "
        "out), no weight decay on biases and norms",
    ),
    "finetune": Preset(
        replace(
            _PHOTOGRAPHS,
            epochs=200,
            batch_size=256,
            optimizer="adamw",
            learning_rate=5e-5,
            weight_decay=0.01,
            warmup=0.0,
            label_smoothing=0.0,
        ),
        "arXiv 2308.16271, appendix C.2 (Table 3): AdamW, learning rate 5e-5, weight decay 0.01, batch 256 (128 for "
        "base); the released finetune.py and README: 200 epochs on CIFAR (400 at 1e-4 on pets and flowers), cosine "
        "without warm-up, no label smoothing, betas (0.9, 0.999), random crop, flip; its RandAugment is not here; "
        "ours: clipping at 1, no weight decay on biases and norms",
    ),
    "linear-probe": Preset(
        replace(
            _PHOTOGRAPHS,
            epochs=90,
            batch_size=1024,
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=0.0,
            warmup=10 / 90,
            label_smoothing=0.0,
            objective="linear_probe",
        ),
        "not stated in arXiv 2308.16271 or in released scripts of CRATE; after MAE's (arXiv 2111.06377, appendix A.1, "
        "and its FINETUNE.md): 90 epochs, 10 of warm-up, no weight decay, random crop; ours: AdamW at 1e-3 in batches "
        "of 1024 for its LARS in 16384, flip, clipping at 1; no norm of batches before the head",
    ),
    "mae": Preset(
        replace(
            _PHOTOGRAPHS,
            epochs=800,
            batch_size=4096,
            optimizer="adamw",
            learning_rate=2.4e-3,
            warmup=40 / 800,
            label_smoothing=0.0,
            objective="mae",
        ),
        "the released README sends CRATE-MAE (arXiv 2404.02446) to MAE's training code, whose PRETRAIN.md states: 800 "
        "epochs, 40 of warm-up, AdamW, batch 4096, learning rate 1.5e-4 x 4096 / 256, weight decay 0.05, mask ratio "
        "0.75, random crop, flip; how long CRATE-MAE itself was trained is not stated there; MAE's betas are (0.9, "
        "0.95) and its crops a fifth of the image or more, ours are (0.9, 0.999) and 0.08 or more; ours: clipping at "
        "1",
    ),
}
