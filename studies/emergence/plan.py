"""The runs of the emergence study: networks, data and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from recipes.backgrounds import noise_backgrounds, wallpapers
from recipes.composites import Composites
from recipes.objects import garments, photographs
from whitebox_crate import ImageTransformer, create_model

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "crate": ("crate_nano", {}),
    "crate_sth": ("crate_nano", {"threshold": "soft"}),
    "crate_mlp": ("crate_mlp", {}),
    "crate_mhsa": ("crate_mhsa", {}),
    "vit": ("vit_nano", {}),
    "vit_timm": ("vit_nano", {}),
    "crate_tied": ("crate_tied", {}),
    "crate_attention_only": ("crate_attention_only", {}),
    "crate_cbt": ("crate_cbt", {"representatives": 4}),
    "cbt": ("cbt_small_patch8_224", {"representatives": 4}),
    "tost": ("tost_small_12_patch8_224", {}),
    "crate_narrow": ("crate_nano", {"embed_dim": 32, "num_heads": 2}),  # heads as wide as at width 64
    "crate_wide": ("crate_nano", {"embed_dim": 128, "num_heads": 8}),
}
COMPARED = ("crate", "crate_sth", "crate_mlp", "crate_mhsa", "vit")  # all of them start alike: `start_like_crate`
# Trained on garments alone, in one go.
FAMILY = (
    "crate",
    "crate_narrow",
    "crate_wide",
    "crate_tied",
    "crate_attention_only",
    "crate_cbt",
    "cbt",
    "tost",
    "vit",
)


@dataclass(frozen=True)
class Scale:
    """The settings that all runs on one kind of data share: networks, training and measuring.

    Attributes:
        model: Options of every variant.
        recipe: Options of `Recipe`.
        images: How many a measurement takes at the end; a quarter of them at the points.
    """

    model: Mapping[str, Any]
    recipe: Mapping[str, Any]
    images: int = 1024


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        part: Of the study: "tuning", "main", "half", "longer", "start", "crossed", "why", "family" or "halved".
        data: One of `SCALES`.
        variant: One of `VARIANTS`.
        seed: Of weights and data.
        learning_rate: At its peak; None for the one that named most in the tuning of the variant on that data.
        steps: Of training.
        options: Of the model, beside those of its scale.
        points: In how many equal parts training is measured, besides before it.
        maps: Whether maps are measured, and not accuracy alone: what is chosen by a run is chosen without them.
    """

    part: str
    data: str
    variant: str
    seed: int
    learning_rate: float | None
    steps: int
    options: Mapping[str, Any] = field(default_factory=dict)
    points: int = 1
    maps: bool = True

    @property
    def name(self) -> str:
        changed = "".join(f"-{key}={value}" for key, value in self.options.items())
        rate = "" if self.learning_rate is None else f"-{self.learning_rate:g}"
        return f"{self.part}-{self.data}-{self.variant}{changed}{rate}-{self.steps}-{self.seed}"


@dataclass(frozen=True)
class Sources:
    """The source of composites.

    Attributes:
        training: What the networks learn.
        choosing: What a head is chosen on: objects of training.
        naming: What accuracy is measured on: objects of known classes that are new, or over new backgrounds.
        scoring: What maps are measured on: objects never trained on, over new backgrounds.
        group_by_object: Whether images that share a label share an object, so that intervals are over labels.
    """

    training: Composites
    choosing: Composites
    naming: Composites
    scoring: Composites
    group_by_object: bool


SCALES = {
    "garments": Scale(
        model={"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4, "num_classes": 10},
        recipe={"batch_size": 32, "curriculum": 0.7, "sizes": (16, 24, 32), "size_starts": (0.0, 0.4, 0.7)},
    ),
    "photographs": Scale(
        model={"img_size": 48, "patch_size": 6, "embed_dim": 64, "depth": 6, "num_heads": 4, "num_classes": 258},
        recipe={"batch_size": 32, "curriculum": 0.5, "sizes": (36, 48), "size_starts": (0.0, 0.5)},
    ),
    "large": Scale(  # the same photographs, for a GPU
        model={"img_size": 96, "patch_size": 6, "embed_dim": 384, "depth": 12, "num_heads": 6, "num_classes": 258},
        recipe={
            "batch_size": 128,
            "curriculum": 0.5,
            "sizes": (48, 72, 96),
            "size_starts": (0.0, 0.3, 0.6),
            "precision": "bf16",
        },
    ),
}


@lru_cache
def sources(data: str) -> Sources:
    """The composites of "garments", or of photographs at either size; masks are never asked for in training."""
    if data == "garments":
        learnt, new = garments("train"), garments("test")
        grounds, new_grounds = noise_backgrounds(2000, 64, seed=0), noise_backgrounds(500, 64, seed=1)
        training, scoring = Composites(learnt, grounds), Composites(new, new_grounds)
        return Sources(training, training, scoring, scoring, group_by_object=False)
    learnt, new = photographs("train"), photographs("held_out")
    grounds, new_grounds = wallpapers("train"), wallpapers("held_out", count=500)
    training = Composites(learnt, grounds)
    return Sources(
        training, training, Composites(learnt, new_grounds), Composites(new, new_grounds), group_by_object=True
    )


def make_model(run: Run) -> ImageTransformer:
    """The network of a run before training."""
    torch.manual_seed(run.seed)
    name, options = VARIANTS[run.variant]
    model: ImageTransformer = create_model(
        name, **{**SCALES[run.data].model, "dynamic_img_size": True, **options, **run.options}
    )
    if run.variant in ("vit", "tost"):
        start_like_crate(model)
    return model


def start_like_crate(model: ImageTransformer) -> None:
    """Draws weights, [CLS] and learned positions of a ViT or a ToST as CRATE's are drawn, to fit the width.

    timm's are 0.02 and less at any width. At width 64 that is so little that the ViT, as "vit_timm", hardly learns.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    nn.init.normal_(model.cls_token)
    if isinstance(model.pos_embed, nn.Parameter):
        nn.init.normal_(model.pos_embed)


# --- the runs -----------------------------------------------------------------------------------------------

SEEDS = (0, 1, 2)
STEPS = {"garments": 1000, "photographs": 2000, "large": 20_000}
TUNING_SEED, TUNING_STEPS = 100, {"garments": 300, "photographs": 2000, "large": 5000}
SLOW_TUNING = {"crate_tied": 1000}  # steps for variants that are still at chance after `TUNING_STEPS` at any rate
GRID = {
    "garments": (2e-4, 4e-4, 8e-4, 1.6e-3),
    "photographs": (2e-4, 4e-4, 8e-4),
    "large": (5e-5, 1e-4, 2e-4, 4e-4),
}
EQUAL_COMPUTE = 4500  # steps of CRATE that cost about what 2,000 of the ViT do, by `study.flops`


def table() -> list[Run]:
    """Every run, in the order in which they are made: what exists at any moment is balanced."""
    tuning = [
        Run("tuning", data, variant, TUNING_SEED, rate, SLOW_TUNING.get(variant, TUNING_STEPS[data]), maps=False)
        for data, rates in GRID.items()
        for rate in rates
        for variant in (VARIANTS if data == "garments" else COMPARED)
    ]
    main = [
        Run("main", data, variant, seed, None, STEPS[data], points=6)
        for data in STEPS
        for seed in SEEDS
        for variant in COMPARED
    ]
    half = [Run("half", "garments", "vit", seed, None, STEPS["garments"] // 2) for seed in SEEDS]
    longer = [Run("longer", "photographs", "crate", seed, None, EQUAL_COMPUTE, points=3) for seed in SEEDS]
    start = [
        Run("start", data, "vit_timm", seed, rate, STEPS[data])
        for data, rate in (("garments", None), ("photographs", 2e-4))  # there, at the rate that was tuned here
        for seed in SEEDS
    ]
    crossed = [  # each start at the rate of the other, and on photographs the rate that was tuned on garments
        Run("crossed", data, variant, seed, rate, STEPS[data])
        for seed in SEEDS
        for data, variant, rate in (
            ("garments", "vit", 2e-4),
            ("garments", "vit_timm", 8e-4),
            ("photographs", "crate", 8e-4),
            ("photographs", "vit", 8e-4),
        )
    ]
    why = [
        Run("why", "garments", "crate", seed, None, STEPS["garments"], options)
        for seed in SEEDS
        for options in (
            {"step_size": 0.05},
            {"step_size": 0.2},
            {"sparsity": 0.0},
            {"sparsity": 0.3},
            {"depth": 3},
            {"patch_size": 2},
            {"patch_size": 8},
            {"num_heads": 2},
            {"num_heads": 8},
            {"skip": "normalized"},
        )
    ]
    family = [Run("family", "garments", variant, seed, None, STEPS["garments"]) for seed in SEEDS for variant in FAMILY]
    halved = [  # the rates that were tuned for these are the largest of the grid
        Run("halved", "garments", variant, seed, 8e-4, STEPS["garments"])
        for seed in SEEDS
        for variant in ("crate_cbt", "cbt")
    ]
    runs = [*tuning, *main, *half, *longer, *start, *crossed]
    return [*_on("garments", runs), *_on("photographs", runs), *why, *family, *halved, *_on("large", runs)]


def _on(data: str, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.data == data]
