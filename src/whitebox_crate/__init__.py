"""White-box transformers (CRATE): models whose every layer is a derived optimisation step."""

from . import _deprecated
from ._version import __version__
from .attention_files import save_attention
from .capturing import Trace, capture
from .errors import (
    CaptureError,
    InputError,
    MissingExtraError,
    OutputError,
    UnknownNameError,
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
    is_model,
    is_model_pretrained,
    list_models,
    list_pretrained,
    model_entrypoint,
    register_model,
)

_deprecated.install()

__all__ = [
    "CaptureError",
    "ImageTransformer",
    "InputError",
    "LoadReport",
    "MissingExtraError",
    "OutputError",
    "PretrainedCfg",
    "Trace",
    "UnknownNameError",
    "WeightsError",
    "WhiteboxCrateError",
    "WithAttention",
    "__version__",
    "capture",
    "create_model",
    "create_transform",
    "fold_for_inference",
    "get_pretrained_cfg",
    "is_model",
    "is_model_pretrained",
    "list_models",
    "list_pretrained",
    "model_entrypoint",
    "register_model",
    "resolve_data_config",
    "save_attention",
    "save_pretrained",
]
