"""logit_lens: the logits that the head would give after each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from .._indices import resolve_indices, resolve_layers
from ..capturing import capture
from ..errors import InputError, UnknownNameError, is_whole
from ..models._classes import check_classifies, class_names
from ..models._wrappers import transformer_in
from .batches import check_images

Tokens: TypeAlias = Literal["pooled", "all"] | Sequence[int]


@dataclass(frozen=True)
class LogitLens:
    """The logits of the head after each layer; see `logit_lens`.

    Attributes:
        logits: (batch, layers, classes), or for single tokens (batch, layers, tokens, classes).
        layers: The layers, from 0.
        class_names: The name of each class.
    """

    logits: Tensor
    layers: tuple[int, ...]
    class_names: tuple[str, ...]

    def top(self, count: int = 1) -> Any:
        """The most likely classes, the first one first.

        Returns:
            Nested lists, as deep as `logits` has dimensions before the classes. Each row of logits becomes a list of
            pairs, a name and its probability. `top(3)[0][-1]` belongs to the first image after the last layer.

        Raises:
            InputError: If `count` is not a number of classes.
        """
        if not is_whole(count) or not 1 <= count <= len(self.class_names):
            raise InputError(f"count must be a number of classes, 1 to {len(self.class_names)}, not {count!r}")
        found = self.logits.detach().float().softmax(-1).topk(int(count))
        return self._named(found.indices.tolist(), found.values.tolist())

    def _named(self, indices: list[Any], shares: list[Any]) -> list[Any]:
        if isinstance(indices[0], list):
            return [self._named(*both) for both in zip(indices, shares, strict=True)]
        return [(self.class_names[index], share) for index, share in zip(indices, shares, strict=True)]


def logit_lens(
    model: nn.Module, images: Tensor, layers: int | Sequence[int] | None = None, tokens: Tokens = "pooled"
) -> LogitLens:
    """The logits of a model that ends after each layer: its last norm and head, on the output of that layer.

    The logit lens comes from language models (nostalgebraist 2020). It assumes that the head can read earlier layers.
    In ViT a residual stream leads to the head, which supports the assumption. In CRATE each output is a sparse code in
    the dictionary of its own layer. After the last layer these are the model's logits, to the bit.

    Args:
        model: A model of this package with a head, compiled or not; it runs in its current mode.
        images: (batch, in_chans, height, width), float, finite.
        layers: See `capture`; None for all layers whose output has the tokens that the head reads.
        tokens: "pooled" for the head's own input, [CLS] or a mean; "all", or token indices, to apply the head to each
            of these tokens alone.

    Returns:
        Logits by layer, and by token if `tokens` asks for them.

    Raises:
        InputError: If the model gives no logits, does not take the images, or a layer has other tokens than the last
            one (in ToST, before [CLS] joins).
        UnknownNameError: If a layer or token does not exist.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> with torch.inference_mode():
        ...     lens = logit_lens(model, torch.zeros(1, 3, 96, 96))
        >>> lens.logits.shape  # (batch, layers, classes)
        torch.Size([1, 6, 476])
        >>> len(lens.top(3)[0][-1])  # of the first image, after the last layer
        3
    """
    core = transformer_in(model)
    check_classifies(core)
    if isinstance(tokens, str) and tokens not in ("pooled", "all"):
        raise UnknownNameError.of("tokens", tokens, ("pooled", "all"), "Token indices are fine too.")
    check_images(core, images)
    asked = resolve_layers(layers, len(core.layers()))
    with capture(core, "output") as trace:
        core(images)
    count = trace["output", -1].shape[1]
    having = [layer for layer in asked if trace["output", layer].shape[1] == count]
    if not having or (layers is not None and len(having) < len(asked)):
        lacking = next(layer for layer in asked if layer not in having)
        raise InputError(f"layer {lacking} does not have the {count} tokens that the head reads: leave it out")
    normed = [core.norm(trace["output", layer]) for layer in having]
    if isinstance(tokens, str) and tokens == "pooled":
        logits = [core.forward_head(of_layer) for of_layer in normed]
    else:
        at = list(range(count)) if isinstance(tokens, str) else resolve_indices("token", tokens, count)
        logits = [core.head(core.fc_norm(of_layer[:, at])) for of_layer in normed]
    return LogitLens(torch.stack(logits, dim=1), tuple(having), class_names(core))
