"""A ViT's folder is timm's too: timm loads what `save_pretrained` writes, and its outputs are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import images_for
from timm_installed import timm_or_skip, version_of

from whitebox_crate import ImageTransformer, PretrainedCfg, create_model, save_pretrained

timm: Any = timm_or_skip()
NAME = "vit_tiny_patch16_224"
SOURCES = ["hf-hub:org/model"] + ["local-dir:{folder}"] * (version_of(timm) >= (1, 0, 16))


@pytest.fixture
def model() -> ImageTransformer:
    labels = ("ant", "bee", "cat", "dog", "eel")
    cfg = PretrainedCfg(
        tag="mine", mean=(0.5, 0.25, 0.5), crop_pct=0.9, num_classes=5, label_names=labels, origin="here"
    )
    options = {"depth": 2, "img_size": (32, 48), "global_pool": "avg"}
    return create_model(NAME, pretrained_cfg=cfg, num_classes=5, **options).eval()


@pytest.fixture(params=SOURCES)
def name(
    request: pytest.FixtureRequest, model: ImageTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """What timm finds the saved model by: its folder, or a repository of the Hub that holds the same files."""
    folder = save_pretrained(model, tmp_path / "saved")

    def download(repo_id: str, filename: str, **_: object) -> str:
        assert repo_id == "org/model"
        return str(folder / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download, raising=False)
    monkeypatch.setattr("timm.models._hub._has_hf_hub", True)  # an old timm does not know a new huggingface_hub
    return str(request.param).format(folder=folder)


@torch.no_grad()
def test_timm_loads_it(name: str, model: ImageTransformer) -> None:
    theirs = timm.create_model(name, pretrained=True).eval()
    assert type(theirs).__name__ == "VisionTransformer"
    torch.testing.assert_close(theirs(images_for(model)), model(images_for(model)), rtol=1e-4, atol=1e-5)
    cfg = theirs.pretrained_cfg
    assert (cfg["tag"], tuple(cfg["mean"]), cfg["crop_pct"], cfg["num_classes"]) == ("mine", (0.5, 0.25, 0.5), 0.9, 5)
    assert tuple(cfg["label_names"]) == ("ant", "bee", "cat", "dog", "eel")


@torch.no_grad()
def test_timm_adapts_it(name: str, model: ImageTransformer) -> None:
    theirs = timm.create_model(name, pretrained=True, num_classes=7, in_chans=1).eval()
    assert theirs(torch.zeros(1, 1, 32, 48)).shape == (1, 7)
    assert torch.equal(theirs.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)


def test_older_folders_of_ours_still_load(name: str, model: ImageTransformer, tmp_path: Path) -> None:
    """They had all facts in one place."""
    path = tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"].update(config.pop("whitebox_crate"))
    path.write_text(json.dumps(config))
    again = create_model(f"local-dir:{path.parent}", pretrained=True)
    assert again.pretrained_cfg.origin == "here"
    assert torch.equal(again.head.weight, model.head.weight)
    with pytest.raises(TypeError, match="unexpected keyword"):
        timm.create_model(name)
