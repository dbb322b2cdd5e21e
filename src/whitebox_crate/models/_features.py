"""FeatureExtractor: a model as a list of feature maps, timm's `features_only`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..load_report import LoadReport
from ._base import ImageTransformer


class FeatureInfo:
    """What each feature map is: channels, reduction (pixels per cell) and layer."""

    def __init__(self, layers: Sequence[int], channels: int, reduction: int) -> None:
        self.out_indices = tuple(layers)
        self._channels, self._reduction = channels, reduction

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [self._channels] * len(self.out_indices)

    def reduction(self) -> list[int]:
        """Pixels per cell of each map, along its longer patch side."""
        return [self._reduction] * len(self.out_indices)

    def module_name(self) -> list[str]:
        """Where in the model each map comes from."""
        return [f"blocks.{layer}" for layer in self.out_indices]


class FeatureExtractor(nn.Module):
    """Runs a model up to the last asked layer; the layers after it, the norm and the head are dropped.

    Args:
        model: The model; it is taken over, not copied.
        out_indices: Layers, as in `ImageTransformer.forward_intermediates`; the last three if None.

    Shape:
        - Input: (batch, in_chans, height, width).
        - Output: a list of (batch, embed_dim, rows, columns).

    Raises:
        UnknownNameError: If a layer does not exist.
    """

    def __init__(self, model: ImageTransformer, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        depth = len(model.blocks)
        asked = min(3, depth) if out_indices is None else out_indices
        self.out_indices = model.prune_intermediate_layers(asked, prune_norm=True)
        self.feature_info = FeatureInfo(self.out_indices, model.embed_dim, max(model.patch_embed.patch_size))
        self.pretrained_cfg = model.pretrained_cfg
        self.model = model

    @property
    def load_report(self) -> LoadReport | None:
        """What was loaded into the model, if anything."""
        return self.model.load_report

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(images, self.out_indices, intermediates_only=True)
        return maps
