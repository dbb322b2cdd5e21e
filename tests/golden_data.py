"""Golden cases: inputs, weights and outputs of the official code; golden/manifest.json says how they came about."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
MANIFEST: dict[str, Any] = json.loads((GOLDEN / "manifest.json").read_text())
_COUNTS: dict[str, Any] = json.loads((GOLDEN / "param_counts.json").read_text())
PARAM_COUNTS: dict[str, dict[str, int]] = _COUNTS["totals"]
# Without the two parts of the official CRATE-MAE that its forward pass never uses.
MAE_USED_COUNTS: dict[str, int] = {
    name: counts["total"] - counts["by_top_level_key"]["pos_embed"] - counts["by_top_level_key"]["decoder_embed"]
    for name, counts in _COUNTS["crate_mae"].items()
}

# Arguments of the official CRATE and CRATE-alpha in our names.
_OURS = {
    "image_size": "img_size",
    "patch_size": "patch_size",
    "num_classes": "num_classes",
    "dim": "embed_dim",
    "depth": "depth",
    "heads": "num_heads",
    "dim_head": "head_dim",
    "ista": "step_size",
    "pool": "global_pool",
}
# Those of the official CRATE-MAE that have another name here or none: `None` where a value is fixed here.
_OURS_OF_MAE = {"lambd": "sparsity", "decoder_embed_dim": None, "norm_layer_eps": None}


@dataclass(frozen=True)
class Case:
    """One case: the arguments of the official constructor, and its tensors."""

    name: str
    kwargs: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors called prefix/..., without the prefix."""
        return {
            key.removeprefix(f"{prefix}/"): value for key, value in self.tensors.items() if key.startswith(f"{prefix}/")
        }

    def crate_options(self) -> dict[str, Any]:
        """The arguments of the official CRATE or CRATE-alpha as options of ours."""
        options = {_OURS[key]: tuple(v) if isinstance(v, list) else v for key, v in self.kwargs.items()}
        return {**options, "global_pool": options.get("global_pool", "token")}

    def mae_options(self) -> dict[str, Any]:
        """The arguments of the official CRATE-MAE as options of ours."""
        named = {_OURS_OF_MAE.get(key, key): value for key, value in self.kwargs.items()}
        return {key: value for key, value in named.items() if key is not None}


def load_case(name: str) -> Case:
    """Reads the case of this name."""
    [entry] = [case for case in MANIFEST["cases"] if case["name"] == name]
    return Case(name, entry["kwargs"], load_file(GOLDEN / entry["file"]))
