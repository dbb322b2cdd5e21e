"""Other people's checkpoints in our names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .errors import WeightsError

# Official CRATE (github.com/Ma-Lab-Berkeley/CRATE): index 0 of to_patch_embedding is the rearrangement.
_OFFICIAL_CRATE = [
    (r"pos_embedding", "pos_embed"),
    (r"cls_token", "cls_token"),
    (r"to_patch_embedding\.1\.(weight|bias)", r"patch_embed.norm1.\1"),
    (r"to_patch_embedding\.2\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"to_patch_embedding\.3\.(weight|bias)", r"patch_embed.norm2.\1"),
    (r"transformer\.layers\.(\d+)\.0\.norm\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.qkv\.weight", r"blocks.\1.mssa.qkv.weight"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.(weight|bias)", r"blocks.\1.mssa.proj.\2"),
    (r"transformer\.layers\.(\d+)\.1\.norm\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.weight", r"blocks.\1.ista.dictionary"),
    (r"mlp_head\.0\.(weight|bias)", r"norm.\1"),
    (r"mlp_head\.1\.(weight|bias)", r"head.\1"),
]


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a checkpoint of the official CRATE implementation to the names of this package.

    The last LayerNorm is named `norm`, as with `global_pool="token"`. The values are not touched.

    Args:
        state_dict: Parameter name -> tensor, as the official `CRATE.state_dict()` gives it.

    Returns:
        Our name -> the same tensor.

    Raises:
        WeightsError: If a name is not one of that implementation.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        for pattern, ours in _OFFICIAL_CRATE:
            match = re.fullmatch(pattern, name)
            if match:
                converted[match.expand(ours)] = value
                break
        else:
            raise WeightsError(f"{name!r} is no parameter of the official CRATE; other formats are not known yet")
    return converted
