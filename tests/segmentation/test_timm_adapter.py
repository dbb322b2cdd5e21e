"""The adapter of docs/figures.md: a ViT of timm goes through the same functions as one of this package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from whitebox_crate import create_model
from whitebox_crate.convert.rename import convert_state_dict
from whitebox_crate.segmentation import cls_attention, patch_features

timm: Any = pytest.importorskip("timm")
PAGE = Path(__file__).parents[2] / "docs" / "figures.md"


def test_the_documented_adapter_gives_what_this_package_gives_for_the_same_weights() -> None:
    block = re.search(r"<!-- not run: needs timm -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    code = block[1].partition("# A model")[0]
    assert len(code[code.index("def ") :].strip().splitlines()) == 10
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(block[1].replace("pretrained=True", "pretrained=False"), names)  # the whole block runs
    options = {"img_size": (64, 96), "depth": 3, "num_classes": 5}
    theirs = timm.create_model("vit_tiny_patch16_224", **options).eval()
    ours = create_model("vit_tiny_patch16_224", **options).eval()
    ours.load_state_dict(convert_state_dict(theirs.state_dict()))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps, keys, grid = names["timm_states"](theirs, images, layer=-2)
        features, our_grid = patch_features(ours, images, layer=-2)
        torch.testing.assert_close(maps, cls_attention(ours, images, layer=-2), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(keys, features, atol=1e-4, rtol=1e-4)
    assert grid == our_grid == (4, 6)
