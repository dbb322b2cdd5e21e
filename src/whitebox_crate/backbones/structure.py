"""Structure: where the parts of a backbone are. Backbone: any model, with the names that readers use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..layers import Reading
from ..pretrained_cfg import PretrainedCfg


def _call(model: nn.Module, images: Tensor) -> Any:
    return model(images)


@dataclass(frozen=True)
class Structure:
    """The parts of a backbone, which an adapter finds in a model.

    Attributes:
        layers: The layers, in running order. Each takes tokens (batch, tokens, dim) as its first argument, and returns
            tokens, or a tuple that starts with them.
        patch_embed: A module that runs once in each pass, before the layers, on the images.
        readings: The states inside one of `layers`, by name (see `attention_readings`); empty if none is known.
        patch_size: (height, width) of a patch, pixels. Patches follow the prefix tokens, row by row.
        img_size: (height, width) of the images that the backbone is made for, pixels.
        num_prefix_tokens: Number of tokens before the patches: [CLS] and registers.
        has_class_token: Whether token 0 is [CLS].
        dynamic_img_size: Whether the backbone takes images of other sizes (multiples of the patch).
        in_chans: Channels of the images.
        pretrained_cfg: The facts about the weights; `mean` and `std` normalise photographs.
        grad_checkpointing: Whether layers run again in the backward pass.
        num_classes: Number of logits of `call` for each image; 0 if it returns something else.
        global_pool: Which tokens the logits read: "token" for [CLS], "avg" for the mean of the patches, "mean" for the
            mean of all tokens; "" for anything else.
        architecture: Name of the architecture.
        call: Runs the model on images (batch, in_chans, height, width), of any size that it takes.

    Raises:
        InputError: If there are no layers, or a size is not a pair of positive numbers.
    """

    layers: Sequence[nn.Module]
    patch_embed: nn.Module
    readings: Callable[[nn.Module], Mapping[str, Reading]]
    patch_size: tuple[int, int]
    img_size: tuple[int, int]
    num_prefix_tokens: int = 1
    has_class_token: bool = True
    dynamic_img_size: bool = False
    in_chans: int = 3
    pretrained_cfg: PretrainedCfg = field(default_factory=PretrainedCfg)
    grad_checkpointing: bool = False
    num_classes: int = 0
    global_pool: str = "token"
    architecture: str = ""
    call: Callable[[nn.Module, Tensor], Any] = _call

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError("the adapter lists no layers; list the backbone's layers in running order")
        for name in ("patch_size", "img_size"):
            size = getattr(self, name)
            if not isinstance(size, tuple) or [type(side) for side in size] != [int, int] or min(size) < 1:
                raise InputError(f"an adapter must give {name} as (height, width) in pixels, not {size!r}")


class Backbone(nn.Module):
    """Any model, with the names by which models of this package are read.

    It holds the model and does not change it: `eval`, `to` and the parameters are the model's own.

    Args:
        model: The model to call.
        structure: The structure of the backbone, which is the model or a part of it.

    Shape:
        - Input: (batch, in_chans, height, width).
        - Output: the model's output.
    """

    num_prefix_tokens: int
    has_class_token: bool
    patch_size: tuple[int, int]
    img_size: tuple[int, int]
    dynamic_img_size: bool
    in_chans: int
    pretrained_cfg: PretrainedCfg
    grad_checkpointing: bool
    num_classes: int
    global_pool: str
    architecture: str

    square_images = False  # see `ImageTransformer`

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self.structure = structure
        for name in Backbone.__annotations__:
            setattr(self, name, getattr(structure, name))

    @property
    def patch_embed(self) -> nn.Module:
        """See `Structure`."""
        return self.structure.patch_embed

    @property
    def num_heads(self) -> int:
        """Heads of the first layer; 0 if it has no attention that can be read."""
        attention = self.readings_of(self.layers()[0]).get("attention")
        return 0 if attention is None else attention.num_heads

    def layers(self) -> list[nn.Module]:
        """All layers in running order."""
        return list(self.structure.layers)

    def readings_of(self, layer: nn.Module) -> dict[str, Reading]:
        """See `ImageTransformer.readings_of`."""
        return dict(self.structure.readings(layer))

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """The patch grid (rows, columns) of a batch (batch, in_chans, height, width).

        Raises:
            InputError: If the images do not fit the backbone.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != self.in_chans:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"expected images of shape (batch, {self.in_chans}, height, width), got {got}")
        (height, width), (patch_height, patch_width) = images.shape[-2:], self.patch_size
        if not self.dynamic_img_size and (height, width) != self.img_size:
            raise InputError(
                f"this {type(self.model).__name__} takes images of {self.img_size[0]} x {self.img_size[1]}, not of "
                f"{height} x {width}; resize them, or make it for any size, as timm's dynamic_img_size=True does"
            )
        if self.dynamic_img_size and (height % patch_height or width % patch_width):
            raise InputError(
                f"{height} x {width} pixels are not a multiple of the patch, {self.patch_size}; resize the images"
            )
        return height // patch_height, width // patch_width

    def forward(self, images: Tensor) -> Any:
        return self.structure.call(self.model, images)
