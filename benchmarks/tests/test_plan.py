"""The plan for ImageNet-21k: what it counts and measures is what formulas give, and the page says what was found."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.run import get_args_parser

from benchmarks import plan
from benchmarks import plan_tables as tables
from whitebox_crate import create_model
from whitebox_crate.cli import build_parser
from whitebox_crate.models import Crate
from whitebox_crate.training.loop import make_optimizer
from whitebox_crate.training.recipe import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "imagenet21k.md"
RESULTS = tables.read()

T, D, HEADS, WIDE, LAYERS, CLASSES, PATCH = 1 + 4, 12, 2, 10, 3, 7, 3 * 6 * 6  # WIDE: of all heads together


def crate(**options: Any) -> Crate:
    small = {
        "img_size": 12,
        "patch_size": 6,
        "embed_dim": D,
        "num_heads": HEADS,
        "depth": LAYERS,
        "num_classes": CLASSES,
    }
    return Crate(**{**small, **options}).train()


def toy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, CLASSES))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operations_of_a_toy_by_hand(device: str) -> None:
    forward, training = plan.operations(toy().to(device), torch.zeros(2, 3, 2, 2, device=device))
    first, second = 2 * 2 * 12 * 5, 2 * 2 * 5 * CLASSES  # a multiplication and an addition, a batch of two
    assert forward == first + second
    assert training == 2 * first + 3 * second  # nobody asks for the gradient of the images


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operations_of_a_crate_by_hand(device: str) -> None:
    layer = T * D * WIDE + 2 * T * T * WIDE + T * WIDE * D + 2 * T * D * D
    products = (T - 1) * PATCH * D + LAYERS * layer + D * CLASSES
    model = crate(head_dim=WIDE // HEADS).to(device)
    assert plan.operations(model, torch.zeros(1, 3, 12, 12, device=device)) == (2 * products, 3 * 2 * products)


def test_what_is_kept_of_a_toy_by_hand() -> None:
    model = toy()
    kept, constant = plan.per_image(lambda batch: plan.loss_of(model, torch.zeros(batch, 3, 2, 2)), model)
    assert kept == 4 * (12 + 5 + CLASSES) + 8  # images, ReLU, log-softmax, and the label
    assert constant == 4  # the number of labels, as a float


def test_what_is_kept_of_a_layer_by_hand() -> None:
    def kept(depth: int, **options: Any) -> int:
        model = crate(depth=depth)
        model.set_grad_checkpointing(options.get("checkpointing", False))
        return int(plan.per_image(lambda batch: plan.loss_of(model, torch.zeros(batch, 3, 12, 12)), model)[0])

    # Input, both normed, w, attended, compressed, residual; mean and deviation twice; a sum for each head's rows.
    assert kept(3) - kept(2) == 4 * (7 * T * D + 4 * T + HEADS * T)
    assert kept(3, checkpointing=True) - kept(2, checkpointing=True) == 4 * T * D


def test_what_a_gpu_holds_is_what_training_makes() -> None:
    model = crate()
    optimizer = make_optimizer(model, Recipe(optimizer="lion"))
    plan.loss_of(model, torch.rand(2, 3, 12, 12)).backward()
    optimizer.step()
    weights = list(model.parameters())
    state = [value for of_weight in optimizer.state.values() for value in of_weight.values()]
    made = sum(t.nbytes for t in [*weights, *(w.grad for w in weights), *state])
    described = {"parameters": sum(w.numel() for w in weights), "bfloat16": {"weights_cast": 100}}
    assert plan.standing_bytes(described, processes=1) == made + 100
    assert plan.standing_bytes(described) == made + 100 + sum(w.nbytes for w in weights)


@given(st.integers(0, 10**10), st.integers(1, 10**8))
def test_the_largest_batch_fits_and_one_more_does_not(standing: int, kept: int) -> None:
    memory = 24 * 2**30
    most = plan.largest_batch(standing, kept, memory)
    free = memory - plan.RESERVED - standing
    assert most * kept <= free < (most + 1) * kept
    assert plan.largest_batch(memory, kept, memory) == 0


def test_the_share_of_a_gpu_is_taken_in_the_fewest_equal_parts() -> None:
    assert [plan.accumulation(4096, 8, most) for most in (512, 511, 100, 1, 0)] == [1, 2, 8, 512, None]
    assert plan.accumulation(4096, 64, 64) == 1
    assert plan.accumulation(4096, 3, 4096) is None
    assert Recipe(batch_size=4096, accumulation=8).part_size(8) <= 100


def test_hours_by_hand() -> None:
    assert plan.images_per_second(2e9, 100e12, 0.3) == pytest.approx(15_000)
    assert plan.hours(2e9, 1_000_000, 54, 100e12, 0.3) == pytest.approx(1.0)


def test_the_plan_is_for_the_models_as_they_are_now() -> None:
    for name in ("crate_paper_small_patch8_224", "vit_base_patch16_224"):
        said = RESULTS["models"][name]
        assert plan.counted(name, num_classes=plan.CLASSES) == (said["forward"], said["training"])
    assert (plan.RECIPE.epochs, plan.RECIPE.batch_size) == (90, 4096)


def test_what_the_page_says_of_crate_and_vit() -> None:
    for patch in (8, 16):
        crate, vit = (RESULTS["models"][f"{family}_base_patch{patch}_224"] for family in ("crate", "vit"))
        assert crate["training"] / vit["training"] < 0.5
        assert crate["bfloat16"]["whole"] / vit["bfloat16"]["whole"] == pytest.approx(0.5, abs=0.05)
    assert all(m["forward"] / m["training"] == pytest.approx(1 / 3, rel=0.01) for m in RESULTS["models"].values())


def test_tensors_without_values_are_kept_as_real_ones_are() -> None:
    name = "crate_nano_patch6_96"
    model: Any = create_model(name, num_classes=plan.CLASSES)
    images = [torch.zeros(batch, 3, 96, 96) for batch in (1, 2)]
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found = plan.per_image(lambda batch: plan.loss_of(model, images[batch - 1]), model)
        said = plan.activations(name, dtype)
        assert found == pytest.approx((said["whole"], said["weights_cast"]), rel=1e-3)
        if dtype == torch.float32:
            model.set_grad_checkpointing()
            inputs, _ = plan.per_image(lambda batch: plan.loss_of(model, images[batch - 1]), model)
            # Of one layer: as above, with what leaves it for what enters it; no residual, since ISTA is one product.
            tokens, width = 257, model.embed_dim
            layer = 4 * (6 * tokens * width + 4 * tokens + model.num_heads * tokens)
            assert said["checkpointed"] == pytest.approx(inputs + layer, rel=1e-3)
            model.set_grad_checkpointing(False)


def launches() -> list[list[str]]:
    fences = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [
        shlex.split(code.replace("$RANK", "3").replace("\\\n", " ")) for code in fences if "whitebox_crate.cli" in code
    ]


@pytest.mark.parametrize("words", launches(), ids=lambda words: words[0])
def test_the_launchers_and_the_command_take_what_the_page_says(words: list[str]) -> None:
    parser = launch_command_parser() if words[:2] == ["accelerate", "launch"] else get_args_parser()
    launched = parser.parse_args(words[2 if words[0] == "accelerate" else 1 :])
    assert launched.module and launched.training_script == "whitebox_crate.cli"
    options = build_parser().parse_args(launched.training_script_args)
    assert options.preset == "imagenet21k" and options.streaming
