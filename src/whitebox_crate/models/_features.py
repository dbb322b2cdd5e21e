"""FeatureExtractor: a model as a list of feature maps, timm's `features_only`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor, nn

from ..errors import UnknownNameError, is_whole
from ..load_report import LoadReport
from ..pretrained_cfg import PretrainedCfg
from ._base import ImageTransformer

FeatureCls = Literal["getter", "list", "dict"]
Layers: TypeAlias = int | Sequence[int] | None


class FeatureInfo:
    """Facts about each layer's output, in timm's form: `info[i]` for layer i, `len(info)` layers.

    The methods describe the returned feature maps; with `idx`, a layer or a list of layers.

    Args:
        info: For each layer `num_chs` (channels), `reduction` (pixels per cell) and `module` (its name in the model);
            see `ImageTransformer.feature_info`.
        out_indices: The layers whose maps are returned; an int n for the last n.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: int | Sequence[int]) -> None:
        self.info = list(info)
        last = range(len(info) - out_indices, len(info)) if is_whole(out_indices) else out_indices
        self.out_indices = tuple(last)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)

    def get(self, key: str, idx: Layers = None) -> Any:
        """One fact (`num_chs`, `reduction` or `module`): a list, or for one layer the fact itself."""
        if is_whole(idx):
            return self.info[idx][key]
        return [self.info[layer][key] for layer in (self.out_indices if idx is None else idx)]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: Layers = None) -> Any:
        """These facts, or all facts: a list of dicts, or for one layer a dict."""
        if is_whole(idx):
            return {key: self.info[idx][key] for key in (self.info[idx] if keys is None else keys)}
        return [self.get_dicts(keys, layer) for layer in (self.out_indices if idx is None else idx)]

    def channels(self, idx: Layers = None) -> Any:
        """Channels of each map."""
        return self.get("num_chs", idx)

    def reduction(self, idx: Layers = None) -> Any:
        """Pixels per cell of each map, along its longer patch side."""
        return self.get("reduction", idx)

    def module_name(self, idx: Layers = None) -> Any:
        """Name in the model of each map's module."""
        return self.get("module", idx)


class FeatureExtractor(nn.Module):
    """Runs a model up to the last chosen layer. Later layers, the norm and the head are removed.

    Args:
        model: The model; it is changed, not copied.
        out_indices: Layers (see `ImageTransformer.forward_intermediates`); the last three if None.
        feature_cls: timm's name for the kind of output: "list" or "getter" for a list, "dict" for a dict whose keys are
            the layers as text.

    Shape:
        - Input: (batch, in_chans, height, width).
        - Output: a list, or a dict, of (batch, embed_dim, rows, columns), in the order of the layers.

    Raises:
        UnknownNameError: If a layer or `feature_cls` does not exist.
    """

    def __init__(
        self,
        model: ImageTransformer,
        out_indices: int | Sequence[int] | None = None,
        feature_cls: FeatureCls = "list",
    ) -> None:
        super().__init__()
        if feature_cls not in get_args(FeatureCls):
            raise UnknownNameError.of("feature_cls", feature_cls, get_args(FeatureCls))
        depth, info = len(model.blocks), model.feature_info
        asked = min(3, depth) if out_indices is None else out_indices
        self.out_indices = sorted(set(model.prune_intermediate_layers(asked, prune_norm=True)))
        self.feature_info = FeatureInfo(info, self.out_indices)
        self.feature_cls = feature_cls
        self.pretrained_cfg = model.pretrained_cfg
        self.model = model

    @property
    def default_cfg(self) -> PretrainedCfg:
        """timm's other name of `pretrained_cfg`."""
        return self.pretrained_cfg

    @property
    def load_report(self) -> LoadReport | None:
        """The report of what was loaded into the model, if anything."""
        return self.model.load_report

    def forward(self, images: Tensor) -> list[Tensor] | dict[str, Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(images, self.out_indices, intermediates_only=True)
        if self.feature_cls == "dict":
            return {str(layer): of_layer for layer, of_layer in zip(self.out_indices, maps, strict=True)}
        return maps
