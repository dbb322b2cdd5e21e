"""Our ViT is timm's: names, shapes, outputs and facts of weights, of every ViT that both have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dinov2 import HEADS, dinov2_state
from small_models import images_for, one_of_each_kind, shake, small_model, small_options
from timm_installed import timm_or_skip, version_of
from torch import Tensor

from whitebox_crate import (
    ImageTransformer,
    create_model,
    get_pretrained_cfg,
    list_models,
    list_pretrained,
    save_pretrained,
)
from whitebox_crate.convert.rename import convert_state_dict
from whitebox_crate.segmentation import cls_attention

timm: Any = timm_or_skip()
if version_of(timm) < (1, 0, 16):
    pytest.skip("an earlier timm has no forward_intermediates, or reads no folders", allow_module_level=True)
THEIRS = timm.list_models("vit_*", module="vision_transformer")  # and not what the bridge registers of ours
NAMES = [name for name in list_models("vit_*") if name in THEIRS]
FACTS = ("hf_hub_id", "input_size", "mean", "std", "interpolation", "crop_pct", "num_classes")


def theirs_of(ours: ImageTransformer, **options: Any) -> Any:
    """timm's model of the same name and weights."""
    options = {**small_options(ours.architecture), "img_size": ours.img_size, **options}
    theirs = timm.create_model(ours.architecture, **options).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs


def close(have: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


def test_timm_has_all_but_our_own() -> None:
    ours = {"vit_nano_patch6_96", "vit_tiny_patch8_224", "vit_large_patch8_224"}
    assert set(list_models("vit_*")) - set(NAMES) == ours | set(list_models("vit_*_simdinov2"))


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_at_full_size(name: str) -> None:
    with torch.device("meta"):
        ours = create_model(name, num_classes=5)
        theirs = timm.create_model(name, num_classes=5, img_size=ours.img_size)
    shapes = [[(key, value.shape) for key, value in model.state_dict().items()] for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", one_of_each_kind(NAMES))
@pytest.mark.parametrize("pool", ["token", "avg"])
@torch.no_grad()
def test_outputs(name: str, pool: str) -> None:
    ours = small_model(name, global_pool=pool)
    theirs, images = theirs_of(ours, global_pool=pool), images_for(ours)
    assert theirs.num_prefix_tokens == ours.num_prefix_tokens
    close(ours(images), theirs(images))
    close(ours.forward_features(images), theirs.forward_features(images))
    pairs = [model.forward_intermediates(images, return_prefix_tokens=True, norm=True)[1] for model in (ours, theirs)]
    for (patches, prefix), (their_patches, their_prefix) in zip(*pairs, strict=True):
        close(patches, their_patches)
        close(prefix, their_prefix)
    assert ours.no_weight_decay() == theirs.no_weight_decay() & dict(ours.named_parameters()).keys()


@pytest.mark.parametrize("name", one_of_each_kind(NAMES))
@torch.no_grad()
def test_images_of_other_sizes(name: str) -> None:
    ours = small_model(name, dynamic_img_size=True)
    theirs = theirs_of(ours, dynamic_img_size=True)
    for grid in ((4, 5), (1, 2)):
        images = images_for(ours, grid=grid)
        close(ours(images), theirs(images))


@torch.no_grad()
def test_registers_with_positions_of_their_own() -> None:
    options = {"reg_tokens": 3, "no_embed_class": False, "init_values": 0.1}
    ours = small_model("vit_tiny_patch16_224", **options)
    close(ours(images_for(ours)), theirs_of(ours, **options)(images_for(ours)))


@pytest.mark.parametrize("name", [name for name in list_pretrained("vit_*") if get_pretrained_cfg(name).hf_hub_id])
def test_facts_of_weights_are_timms(name: str) -> None:
    ours, theirs = get_pretrained_cfg(name), timm.models.get_pretrained_cfg(name)
    assert {fact: ours[fact] for fact in FACTS} == {fact: getattr(theirs, fact) for fact in FACTS}


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_224"])
@torch.no_grad()
def test_a_folder_of_timm_loads_here(name: str, tmp_path: Path) -> None:
    options = {key: value for key, value in small_options(name).items() if key != "num_classes"}
    theirs = timm.create_model(name, **options).eval()
    shake(theirs)
    timm.models.save_for_hf(theirs, str(tmp_path), model_args=options, safe_serialization=True)
    ours = create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert ours.num_classes == theirs.num_classes
    close(ours(images_for(ours)), theirs(images_for(ours)))
    close(cls_attention(ours, images_for(ours), -1).sum(), cls_attention(theirs, images_for(ours), -1).sum())


@torch.no_grad()
def test_a_folder_of_ours_loads_in_timm(tmp_path: Path) -> None:
    ours = small_model("vit_small_patch14_reg4_dinov2")
    theirs = timm.create_model(f"local-dir:{save_pretrained(ours, tmp_path)}", pretrained=True).eval()
    close(theirs(images_for(ours)), ours(images_for(ours)))


@pytest.mark.parametrize("registers", [0, 4])
def test_a_file_of_dinov2_becomes_what_timm_makes_of_it(registers: int) -> None:
    name = f"vit_small_patch14_{'reg4_' * bool(registers)}dinov2"
    sizes = {"embed_dim": 16, "depth": 4, "num_heads": HEADS, "patch_size": 4, "img_size": 12}
    theirs = timm.create_model(name, **sizes)
    converted = timm.models.vision_transformer.checkpoint_filter_fn(dinov2_state(registers), theirs)
    ours = {key: value for key, value in convert_state_dict(dinov2_state(registers)).items() if key != "mask_token"}
    assert ours.keys() == converted.keys()
    assert all(torch.equal(value, converted[key]) for key, value in ours.items())
