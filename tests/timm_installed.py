"""timm, for tests that need it: they are skipped where it is not installed, as in most environments."""

import importlib.util
from typing import Any

import pytest
import torch

_names: list[torch.library.Library] = []  # those that stand for operators go when this does


def timm_or_skip() -> Any:
    """timm, or a skipped test.

    timm imports torchvision, of which it needs no compiled operator. Where they are of another build of torch than the
    installed one, `import torchvision` fails for two of their names, which are declared here without a body.
    """
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed", allow_module_level=True)
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _names.append(library)
    return importlib.import_module("timm")


def version_of(timm: Any) -> tuple[int, ...]:
    """For comparison with others."""
    return tuple(int(part) for part in timm.__version__.split(".")[:3])
