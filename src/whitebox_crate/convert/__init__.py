"""Checkpoints of other projects: reads files without running them, renames tensors, and finds the model."""

from typing import TYPE_CHECKING

from .._deprecated import moved_names
from .files import read_checkpoint
from .infer import infer_model
from .rename import Converted, convert_checkpoint, convert_state_dict

__all__ = ["Converted", "convert_checkpoint", "convert_state_dict", "infer_model", "read_checkpoint"]

if not TYPE_CHECKING:
    __getattr__ = moved_names(__name__)
