"""Structure: where the parts of a backbone are; Backbone: a model of anyone's, with the names that readers use."""

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
    """Where the parts of a backbone are: what an adapter says of a model.

    Attributes:
        layers: In the order in which they run. Each is called with tokens (batch, tokens, dim) first, and gives tokens,
            or a tuple that begins with them.
        patch_embed: A module that runs once in each pass, before the layers, and is called with the images.
        readings: The states that can be read inside one of `layers`, by name, as `attention_readings` makes them; empty
            if none is known.
        patch_size: (height, width) of a patch, pixels. Patches follow the prefix tokens, row by row.
        img_size: (height, width) of the images that it is made for, pixels.
        num_prefix_tokens: How many tokens come before the patches: [CLS] and registers.
        has_class_token: Whether token 0 is [CLS].
        dynamic_img_size: Whether images of other sizes are taken, whose sides are multiples of the patch.
        in_chans: Channels of the images.
        pretrained_cfg: The facts about the weights; of them `mean` and `std` make tensors of photographs.
        grad_checkpointing: Whether layers run again in the backward pass.
        num_classes: How many logits `call` gives for each image; 0 if it gives something else.
        global_pool: Which tokens the logits are read from: "token" for [CLS], "avg" for the mean of the patches, "mean"
            for that of all tokens; "" for anything else.
        architecture: What it is called.
        call: Runs the model on images (batch, in_chans, height, width), of any size that it takes.

    Raises:
        InputError: If there are no layers, or a size is no pair of positive numbers.
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
            raise InputError("an adapter lists the layers of a backbone, in the order in which they run; it lists none")
        for name in ("patch_size", "img_size"):
            size = getattr(self, name)
            if not isinstance(size, tuple) or [type(side) for side in size] != [int, int] or min(size) < 1:
                raise InputError(f"an adapter gives {name} as (height, width) in pixels, not {size!r}")


class Backbone(nn.Module):
    """A model of anyone's, with the names by which models of this package are read.

    It holds the model and leaves it as it is: `eval`, `to` and the parameters are the model's own.

    Args:
        model: What is called.
        structure: Of the backbone, which is the model or a part of it.

    Shape:
        - Input: (batch, in_chans, height, width).
        - Output: whatever the model gives.
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

    square_images = False  # as of `ImageTransformer`

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
        """All layers in the order in which they run."""
        return list(self.structure.layers)

    def readings_of(self, layer: nn.Module) -> dict[str, Reading]:
        """See `ImageTransformer.readings_of`."""
        return dict(self.structure.readings(layer))

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """The patch grid (rows, columns) of a batch (batch, in_chans, height, width).

        Raises:
            InputError: If the backbone does not take images of this shape.
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
            raise InputError(f"{height} x {width} pixels are no multiple of the patch, {self.patch_size}; resize them")
        return height // patch_height, width // patch_width

    def forward(self, images: Tensor) -> Any:
        return self.structure.call(self.model, images)
