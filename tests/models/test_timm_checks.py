"""What timm's tests/test_models.py checks of a ViT, written here from what it checks, over every architecture.

tests/models/test_contract.py has what is not here, or has it more strictly: the forward pass; recomputed layers, which
change no gradient; every combination of the arguments of `forward_intermediates`; feature maps of chosen layers. The
checks by torchscript and fx are left out: models are exported by torch.export.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import DEPTH, DIM, patch_of, small_options

from whitebox_crate import ImageTransformer, create_model, get_pretrained_cfg_value, list_models, list_pretrained
from whitebox_crate.models import FeatureInfo

NAMES = list_models()


def made(name: str, **options: Any) -> Any:
    """The small model, with as many classes as it has by default."""
    return create_model(name, **{**small_options(name), "num_classes": None, "img_size": size_of(name), **options})


def size_of(name: str) -> tuple[int, int]:
    """A few patches: checks of shapes need no more."""
    return 4 * patch_of(name), 4 * patch_of(name)


def images_of(name: str, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, *size_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_facts_are_those_that_timms_tests_ask_for(name: str) -> None:
    assert get_pretrained_cfg_value(name, "input_size") is not None
    for key in ("fixed_input_size", "min_input_size", "pool_size"):
        get_pretrained_cfg_value(name, key)
    model = made(name)
    cfg = model.default_cfg
    assert len(cfg["input_size"]) == 3
    assert cfg.get("min_input_size", None) is None
    names = model.state_dict().keys()
    if cfg.get("num_classes", None):
        assert f"{cfg['classifier']}.weight" in names
    assert f"{cfg['first_conv']}.weight" in names
    assert model.num_classes >= 0 and model.num_features > 0 and model.head_hidden_size > 0


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_without_a_classifier_come_pooled_features(name: str) -> None:
    model, images = made(name).eval(), images_of(name)
    features = model.forward_features(images)
    assert features.shape[-1] == model.num_features
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape[1] == model.head_hidden_size
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(images), pooled)
    fresh = made(name, num_classes=0).eval()(images)
    assert fresh.shape == (1, model.num_features)
    model.set_grad_checkpointing()
    with torch.enable_grad():
        torch.testing.assert_close(model(images), pooled)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str) -> None:
    """timm asks it of all; CRATE-MAE's positions are fixed, and no image goes through its decoder to a label."""
    model = made(name, num_classes=42).train()
    out = model(images_of(name, batch=2))
    assert out.shape[-1] == 42 and out.isfinite().all()
    out.mean().backward()
    without = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    allowed = "crate_mae" in name and all(key.startswith(("pos_embed", "mask_token", "decoder_")) for key in without)
    assert not without or allowed, without


@pytest.mark.parametrize("kind", [None, "getter"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_feature_maps_are_what_their_info_says(name: str, kind: str | None) -> None:
    features = made(name, features_only=True, feature_cls=kind).eval()
    assert len(features.feature_info.channels()) == 3
    assert len(features.default_cfg["input_size"]) == 3
    check_maps(features.feature_info, features(images_of(name)), name)


@pytest.mark.parametrize("name", NAMES)
def test_intermediates_are_what_the_models_info_says(name: str) -> None:
    model, images = made(name).eval(), images_of(name)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    for _ in range(2):
        final, maps = model.forward_intermediates(images, output_fmt="NCHW")
        check_maps(info, maps, name)
        torch.testing.assert_close(final, model.forward_features(images))
        model.set_grad_checkpointing()


def check_maps(info: FeatureInfo, maps: list[torch.Tensor], name: str) -> None:
    height, width = size_of(name)
    assert len(info.channels()) == len(info.reduction()) == len(maps)
    for channels, reduction, of_layer in zip(info.channels(), info.reduction(), maps, strict=True):
        assert of_layer.shape[:2] == (1, channels)
        assert of_layer.shape[2] <= math.ceil(height / reduction) + 1
        assert of_layer.shape[3] <= math.ceil(width / reduction) + 1
        assert of_layer.isfinite().all()


OF_THE_PACKAGE = [name for name in list_pretrained() if not get_pretrained_cfg_value(name, "hf_hub_id")]
OF_THE_PACKAGE = [name for name in OF_THE_PACKAGE if not get_pretrained_cfg_value(name, "url")]


@pytest.mark.parametrize("name", OF_THE_PACKAGE)
def test_weights_load_with_other_channels_and_classes_and_as_features(name: str) -> None:
    """Those that come with the package; tests/test_pretrained.py does it with a file like that of any other."""
    for classes in (5, 0):
        model = create_model(name, pretrained=True, in_chans=1, num_classes=classes)
        assert (model.in_chans, model.num_classes) == (1, classes)
    assert create_model(name, pretrained=True, features_only=True).load_report.loaded


def test_info_of_layers_is_read_as_timms() -> None:
    model: ImageTransformer = made(NAMES[0])
    info = FeatureInfo(model.feature_info, [0, 2])
    patch = model.patch_embed.patch_size[0]
    assert len(info) == len(model.feature_info) == DEPTH
    assert info[1] == {"num_chs": DIM, "reduction": patch, "module": "blocks.1", "index": 1}
    assert info.out_indices == (0, 2)
    assert info.get("module") == info.module_name() == ["blocks.0", "blocks.2"]
    assert (info.get("module", 1), info.module_name([1, -1])) == ("blocks.1", ["blocks.1", "blocks.2"])
    assert (info.channels(0), info.reduction([0])) == (DIM, [patch])
    assert info.get_dicts() == [info[0], info[2]]
    assert info.get_dicts(["index"]) == [{"index": 0}, {"index": 2}]
    assert info.get_dicts(["num_chs", "index"], 1) == {"num_chs": DIM, "index": 1}
    assert info.get_dicts(idx=[1]) == [info[1]]
    assert FeatureInfo(model.feature_info, 2).out_indices == (1, 2)
