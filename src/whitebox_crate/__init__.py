"""White-box transformers (CRATE): models whose every layer is a derived optimisation step."""

import importlib
from typing import TYPE_CHECKING

from . import _deprecated, _storage
from ._lazy import attach
from ._version import __version__

_NAMES = {
    "attention_files": ["save_attention"],
    "capturing": ["Trace", "capture"],
    "errors": [
        "CaptureError",
        "InputError",
        "MissingExtraError",
        "OutputError",
        "ProcessError",
        "UnknownNameError",
        "UnknownOptionError",
        "WeightsError",
        "WhiteboxCrateError",
    ],
    "dtypes": ["faster_dtype"],
    "export": ["WithAttention"],
    "factory": ["create_model"],
    "fold": ["fold_for_inference"],
    "hub": ["save_pretrained"],
    "load_report": ["LoadReport"],
    "models": ["ImageTransformer"],
    "preprocess": ["create_transform", "resolve_data_config"],
    "pretrained_cfg": ["PretrainedCfg"],
    "registry": [
        "get_pretrained_cfg",
        "get_pretrained_cfg_value",
        "is_model",
        "is_model_pretrained",
        "list_models",
        "list_pretrained",
        "model_entrypoint",
        "register_model",
    ],
    "segmenting": ["Segmentation", "segment"],
    "viewing": ["view"],
}

if TYPE_CHECKING:  # the same, for those who read and do not run; tests/test_architecture.py compares them
    from .attention_files import save_attention
    from .capturing import Trace, capture
    from .dtypes import faster_dtype
    from .errors import (
        CaptureError,
        InputError,
        MissingExtraError,
        OutputError,
        ProcessError,
        UnknownNameError,
        UnknownOptionError,
        WeightsError,
        WhiteboxCrateError,
    )
    from .export import WithAttention
    from .factory import create_model
    from .fold import fold_for_inference
    from .hub import save_pretrained
    from .load_report import LoadReport
    from .models import ImageTransformer
    from .preprocess import create_transform, resolve_data_config
    from .pretrained_cfg import PretrainedCfg
    from .registry import (
        get_pretrained_cfg,
        get_pretrained_cfg_value,
        is_model,
        is_model_pretrained,
        list_models,
        list_pretrained,
        model_entrypoint,
        register_model,
    )
    from .segmenting import Segmentation, segment
    from .viewing import view
else:  # PyTorch is imported with the first name that needs it
    __getattr__, __dir__ = attach(__name__, _NAMES)

_deprecated.install()

__all__ = [
    "CaptureError",
    "ImageTransformer",
    "InputError",
    "LoadReport",
    "MissingExtraError",
    "OutputError",
    "PretrainedCfg",
    "ProcessError",
    "Segmentation",
    "Trace",
    "UnknownNameError",
    "UnknownOptionError",
    "WeightsError",
    "WhiteboxCrateError",
    "WithAttention",
    "__version__",
    "capture",
    "create_model",
    "create_transform",
    "faster_dtype",
    "fold_for_inference",
    "get_pretrained_cfg",
    "get_pretrained_cfg_value",
    "is_model",
    "is_model_pretrained",
    "list_models",
    "list_pretrained",
    "model_entrypoint",
    "register_model",
    "resolve_data_config",
    "save_attention",
    "save_pretrained",
    "segment",
    "view",
]


def _folders() -> _storage.Storage:
    storage: _storage.Storage = importlib.import_module(f"{__name__}.factory").FOLDERS
    return storage


_storage.provider = _folders
