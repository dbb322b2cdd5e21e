"""White-box transformers (CRATE): models whose every layer is a derived optimisation step."""

from .attention_files import save_attention
from .capture import Trace, capture
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
from .hub import save_pretrained
from .inference import fold_for_inference
from .loading import LoadReport
from .models import ImageTransformer, PretrainedCfg
from .preprocess import create_transform, resolve_data_config
from .registry import (
    get_pretrained_cfg,
    is_model,
    is_model_pretrained,
    list_models,
    list_pretrained,
    model_entrypoint,
    register_model,
)

__version__ = "0.1.0"

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
