"""Half precision, by cast and by autocast: every family computes what it computes in float32, within stated bounds."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import FAMILIES, images_for, small_model
from torch import Tensor

from whitebox_crate import ImageTransformer, capture, create_model, fold_for_inference, save_pretrained
from whitebox_crate.export import WithAttention
from whitebox_crate.segmentation import attention_masks, cls_attention, mask_iou, maskcut_of

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
FORMS = pytest.mark.parametrize("form", [lambda model: model, fold_for_inference], ids=["default", "folded"])


def assert_close(logits: Tensor, exact: Tensor, rows: Tensor, exact_rows: Tensor, shares: bool = True) -> None:
    """Logits within 16 epsilon of their standard deviation, attention within 6 epsilon of its largest weight.

    What is no softmax, but a product of several matrices, is within 12.
    """
    epsilon = torch.finfo(logits.dtype).eps
    assert (logits - exact).abs().max() < 16 * epsilon * exact.std()
    assert (rows - exact_rows).abs().max() < (6 if shares else 12) * epsilon * exact_rows.max()
    if shares:
        assert (rows.sum(-1, dtype=torch.float64) - 1).abs().max() < epsilon


@pytest.fixture(params=["cast", "autocast"])
def way(request: pytest.FixtureRequest) -> Any:
    """Prepares model and images for half precision: both, and the context to run them in."""

    def prepare(
        model: ImageTransformer, images: Tensor, dtype: torch.dtype
    ) -> tuple[ImageTransformer, Tensor, AbstractContextManager[Any]]:
        if request.param == "autocast":
            return model, images, torch.autocast("cpu", dtype)
        return model.to(dtype), images.to(dtype), nullcontext()

    return prepare


@FORMS
@DTYPES
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_and_attention_are_those_of_float32(family: str, dtype: torch.dtype, form: Any, way: Any) -> None:
    model = small_model(FAMILIES[family], dynamic_img_size=True)
    images = images_for(model, 8, (4, 3))  # another grid than the model's own: positions are resampled
    with capture(model, "attention", queries="all") as expected:
        exact = model(images)
    model, images, context = way(form(model), images, dtype)
    with context, capture(model, "attention", queries="all") as trace:
        logits = model(images)
    assert logits.dtype == dtype
    for layer in trace.layers:
        rows, exact_rows = trace["attention", layer], expected["attention", layer]
        assert_close(logits, exact, rows, exact_rows, shares="cbt" not in family)


@DTYPES
@pytest.mark.parametrize("family", ["crate", "mhsa", "vit"])
@torch.no_grad()
def test_attention_as_an_output(family: str, dtype: torch.dtype, way: Any) -> None:
    model = small_model(FAMILIES[family])
    images = images_for(model)
    exact, exact_rows = WithAttention(model)(images)
    model, images, context = way(model, images, dtype)
    with context:
        logits, rows = WithAttention(model)(images)
    assert logits.dtype == rows.dtype == dtype
    assert_close(logits, exact, rows, exact_rows)


@DTYPES
@torch.no_grad()
def test_positions_are_resampled_in_float32(dtype: torch.dtype) -> None:
    """A cast model resamples what it holds without further rounding, at each call and by set_input_size."""
    model = small_model(FAMILIES["crate"]).to(dtype)
    exact = small_model(FAMILIES["crate"]).to(dtype).float()
    model.set_input_size((36, 24))
    exact.set_input_size((36, 24))
    assert torch.equal(model.pos_embed, exact.pos_embed.to(dtype))


@DTYPES
@torch.no_grad()
def test_masks_of_a_cast_model(dtype: torch.dtype) -> None:
    model = create_model("crate_nano", pretrained=True).eval()
    facts = model.pretrained_cfg
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(images, size=96, mode="bilinear")

    def seen(model: ImageTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = cls_attention(model, images, facts.attention_layer)[:, facts.attention_head]
        return attention_masks(maps, rule="mean"), maskcut_of(model, images, n=1).masks

    wanted = seen(model, images)
    for mask, exact in zip(seen(model.to(dtype), images.to(dtype)), wanted, strict=True):
        assert mask.dtype == torch.bool
        assert mask_iou(mask, exact).min() > 0.9


@pytest.mark.parametrize("form", [lambda model: model, fold_for_inference], ids=["default", "folded"])
@torch.no_grad()
def test_half_double_and_back(form: Any) -> None:
    model = form(small_model(FAMILIES["crate"]))
    images = images_for(model)
    exact = model(images)
    for dtype, within in ((torch.float64, 1e-5), (torch.float16, 0.02), (torch.float32, 0.02), (torch.bfloat16, 0.2)):
        logits = model.to(dtype)(images.to(dtype))
        assert logits.dtype == dtype
        assert (logits - exact).abs().max() < within * exact.std()


def test_gradients_of_a_cast_model_are_finite() -> None:
    model = small_model(FAMILIES["crate"]).bfloat16()
    model(images_for(model).bfloat16()).float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@DTYPES
@torch.no_grad()
def test_a_cast_model_is_saved_and_read(dtype: torch.dtype, tmp_path: Path) -> None:
    model = create_model("crate_nano", pretrained=True).eval().to(dtype)
    images = torch.randn(1, 3, 96, 96).to(dtype)
    again = create_model(f"local-dir:{save_pretrained(model, tmp_path)}", pretrained=True).eval()
    assert torch.equal(again.to(dtype)(images), model(images))
