"""A model that something wraps is trained and written as it is inside; what cannot be trained is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import Colours, content, same, short, weights
from torch import nn
from torch.optim.swa_utils import AveragedModel

from whitebox_crate import create_model
from whitebox_crate.errors import InputError
from whitebox_crate.models import ImageTransformer
from whitebox_crate.training import finish, train


def model_of(**options: Any) -> ImageTransformer:
    torch.manual_seed(0)
    small = {"img_size": 12, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 3}
    return create_model("crate_nano", **{**small, **options})


def layers_compiled(model: ImageTransformer) -> ImageTransformer:
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend="eager")
    return model


def averaged(model: ImageTransformer) -> nn.Module:
    return AveragedModel(model, use_buffers=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights(train(model_of(), Colours(), short(steps=3), tmp_path_factory.mktemp("plain")))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, averaged, layers_compiled])
def test_what_is_inside_is_trained_and_written(
    wrap: Callable[[ImageTransformer], nn.Module], tmp_path: Path, expected: dict[str, torch.Tensor]
) -> None:
    wrapped: Any = wrap(model_of())
    for stop_at in (2, None):  # it goes on too
        model = train(wrapped, Colours(), short(steps=3), tmp_path / "run", stop_at=stop_at)
    assert isinstance(model, ImageTransformer)
    for number, written in enumerate((model, wrapped)):
        folder = finish(written, tmp_path / str(number), short(steps=3), data="colours", metrics={})
        assert same(weights(create_model(f"local-dir:{folder}", pretrained=True)), expected)


def frozen(model: ImageTransformer) -> nn.Module:
    return model.requires_grad_(False)


def features(model: ImageTransformer) -> nn.Module:
    return create_model("crate_nano", features_only=True)


def made_in_inference_mode(model: ImageTransformer) -> nn.Module:
    with torch.inference_mode():
        return model_of()


def in_pieces(model: ImageTransformer) -> nn.Module:
    model.blocks[0].attention.qkv = torch.ao.nn.quantized.dynamic.Linear(16, 16)
    return model


REFUSED: list[tuple[Callable[[Any], nn.Module], str]] = [
    (lambda model: model.half(), r"float16.*call model.float\(\)"),
    (lambda model: torch.compile(model.bfloat16()), r"bfloat16.*call model.float\(\)"),
    (lambda model: model.double(), r"float64.*call model.float\(\)"),
    (lambda model: model.to("meta"), "meta device, without values"),
    (frozen, r"frozen: call requires_grad_\(True\)"),
    (features, "a FeatureExtractor cannot be trained here"),
    (lambda model: nn.Linear(2, 2), "a Linear cannot be trained here"),
    (made_in_inference_mode, "make the model outside"),
    (in_pieces, "not a plain tensor; train a model"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_what_cannot_be_trained_is_refused_before_anything_is_drawn(
    spoil: Callable[[Any], nn.Module], message: str, tmp_path: Path
) -> None:
    source, model = Colours(), spoil(model_of())
    with pytest.raises(InputError, match=message):
        train(model, source, short(), tmp_path / "out")  # type: ignore[arg-type]
    assert source.drawn == [] and content(tmp_path) == []
