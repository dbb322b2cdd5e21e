"""The interface of all models of this package, in timm's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._hooks import hooks_again
from .._indices import resolve_layers
from ..errors import InputError, UnknownNameError, whole_number
from ..layers import PatchDropout, PatchEmbed, Reading, resample_pos_embed
from ..layers.drop import check_rate
from ..layers.patch_embed import Size, to_pair
from ..load_report import LoadReport
from ..pretrained_cfg import PretrainedCfg
from ._block import Block
from ._hub_verbs import HubVerbs

GlobalPool = Literal["token", "avg", "mean", ""]
Intermediate: TypeAlias = Tensor | tuple[Tensor, Tensor]


class ImageTransformer(nn.Module, HubVerbs):
    """Patches, [CLS], registers and positions; blocks; norm; head.

    With `global_pool` "token" or "", `norm` is applied to all tokens, and the head reads [CLS] or all tokens. With
    "avg" (mean of the patch tokens) or "mean" (mean of all tokens with [CLS], as in released CRATE), the norm comes
    after pooling and is named `fc_norm`, as in timm.

    Args:
        patch_embed: Turns images into tokens.
        blocks: The layers.
        embed_dim: Width of a token.
        num_classes: Number of classes; 0 for no head.
        global_pool: "token", "avg", "mean" or "".
        norm_eps: eps of the last LayerNorm.
        pos_embed: Makes the positions of a grid (rows, columns). None for a learned table, resampled for other grids.
        drop_rate: Dropout rate of the head's input.
        patch_drop_rate: Share of the patches that training drops, in `forward` and `forward_features`.
        reg_tokens: Number of registers: learned tokens between [CLS] and the patches (arXiv 2309.16588).
        no_embed_class: Whether only patches have positions, not [CLS] and registers.

    Shape:
        - Input: (batch, in_chans, height, width), float.
        - Output: (batch, num_classes); (batch, embed_dim) without a head; (batch, tokens, ...) with no pooling.

    Raises:
        UnknownNameError: If `global_pool` is another word.
        InputError: If there is no layer, `num_classes` or `reg_tokens` is negative, or a rate is not in [0, 1).
    """

    first_conv = PretrainedCfg.first_conv  # timm's name of the module that reads the pixels

    def __init__(
        self,
        patch_embed: PatchEmbed,
        blocks: Sequence[Block],
        *,
        embed_dim: int,
        num_classes: int,
        global_pool: GlobalPool,
        norm_eps: float,
        pos_embed: nn.Module | None = None,
        drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
    ) -> None:
        super().__init__()
        if not blocks or num_classes < 0:
            raise InputError(
                f"depth must be at least 1 and num_classes at least 0, not {len(blocks)} and {num_classes}"
            )
        if reg_tokens < 0:
            raise InputError(f"reg_tokens must be a number of registers, at least 0, not {reg_tokens}")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_heads = blocks[0].attention.num_heads
        self.num_prefix_tokens = 1 + reg_tokens
        self.has_class_token = True
        self.no_embed_class = no_embed_class
        self.global_pool = known_pool(global_pool)
        self.grad_checkpointing = False
        self.pretrained_cfg = PretrainedCfg(num_classes=num_classes, first_conv=self.first_conv)
        # create_model sets these: the registered name, its options, and the report of what was loaded.
        self.architecture = ""
        self.model_args: dict[str, Any] = {}
        self.load_report: LoadReport | None = None
        self.folded = False  # set by fold_for_inference

        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.reg_token = nn.Parameter(torch.empty(1, reg_tokens, embed_dim)) if reg_tokens else None
        nn.init.normal_(self.cls_token)
        if pos_embed is None:
            positions = self.num_prefix_positions + patch_embed.num_patches
            self.pos_embed: Any = nn.Parameter(torch.empty(1, positions, embed_dim))
            nn.init.normal_(self.pos_embed)
        else:
            self.pos_embed = pos_embed
        self.patch_drop = PatchDropout(patch_drop_rate, self.num_prefix_tokens)
        self.blocks = nn.ModuleList(blocks)
        pool_first = global_pool in ("avg", "mean")
        self.norm = nn.Identity() if pool_first else nn.LayerNorm(embed_dim, eps=norm_eps)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if pool_first else nn.Identity()
        self.head_drop = nn.Dropout(check_rate("drop_rate", drop_rate))
        self.head = self.new_head(num_classes)

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) of the images of the position embedding, pixels."""
        return self.patch_embed.img_size

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch, pixels."""
        return self.patch_embed.patch_size

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.patch_embed.in_chans

    @property
    def dynamic_img_size(self) -> bool:
        """Whether the model takes images of other sizes; each call then resamples the position embedding."""
        return self.patch_embed.dynamic_img_size

    @property
    def num_prefix_positions(self) -> int:
        """Number of leading entries of the position embedding without a patch."""
        return 0 if self.no_embed_class else self.num_prefix_tokens

    @property
    def square_images(self) -> bool:
        """Whether patches must fill a square grid; photographs are then resized to a square."""
        return False

    @property
    def default_cfg(self) -> PretrainedCfg:
        """timm's other name of `pretrained_cfg`."""
        return self.pretrained_cfg

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Facts about each layer's output, in timm's form: a dict with `num_chs`, `reduction` and `module`."""
        facts = {"num_chs": self.embed_dim, "reduction": max(self.patch_embed.patch_size)}
        return [{**facts, "module": f"blocks.{layer}", "index": layer} for layer in range(len(self.blocks))]

    def ignores_key(self, name: str) -> bool:
        """Whether loading may ignore weights of this name, for which the model has no place."""
        return False

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """The patch grid (rows, columns) of a batch (batch, in_chans, height, width).

        Raises:
            InputError: If this model does not take images of this shape.
        """
        return self.patch_embed.check(images)

    def embed(self, images: Tensor) -> Tensor:
        """The tokens that enter the first block: [CLS], then registers, then the patches, row by row.

        Args:
            images: (batch, in_chans, height, width).

        Returns:
            (batch, num_prefix_tokens + rows * columns, embed_dim).

        Raises:
            InputError: If the channels or the size do not fit the model.
        """
        # A trace keeps the positions of this grid, so images of another size must fail.
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            images = images.expand(-1, -1, *map(int, images.shape[-2:]))
        return self._add_cls_and_positions(self.patch_embed(images), self.grid_of(images))

    def _add_cls_and_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Puts [CLS] and the registers before the patch tokens of this grid and adds the positions."""
        learned = [token for token in (self.cls_token, self.reg_token) if token is not None]
        prefix = [token.expand(patches.shape[0], -1, -1).to(patches.dtype) for token in learned]
        positions = self.resample_positions(self.pos_embed, self.patch_embed.grid_size, grid)
        if self.no_embed_class:
            return torch.cat([*prefix, patches + positions], dim=1)
        return torch.cat([*prefix, patches], dim=1) + positions

    def resample_positions(self, pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
        """A position embedding of this model on another patch grid.

        Args:
            pos_embed: (1, num_prefix_positions + rows * columns, embed_dim).
            old_grid: (rows, columns) of `pos_embed`.
            new_grid: The new (rows, columns).

        Returns:
            (1, num_prefix_positions + new rows * new columns, embed_dim), same dtype; `pos_embed` itself if the grid
            is the same.

        Raises:
            InputError: If the length of `pos_embed` does not fit `old_grid`.
        """
        return resample_pos_embed(pos_embed, old_grid, new_grid, self.num_prefix_positions)

    def layers(self) -> list[nn.Module]:
        """All layers in running order; `capture` and all readings count them in this order."""
        return list(self.blocks)

    def readings_of(self, layer: nn.Module) -> dict[str, Reading]:
        """The states inside one of `layers` that can be read, by name.

        Args:
            layer: The layer, without wrappers of compilation or distributed training.

        Raises:
            InputError: If it is not a `Block`, so that its states are unknown.
        """
        if not isinstance(layer, Block):  # any module from tokens to tokens may be a layer
            raise InputError(
                f"a {type(layer).__name__} in place of a layer has only the states 'tokens' and 'output'; ask for "
                "these, or leave that layer out"
            )
        return layer.readings()

    def _run_block(self, block: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        given = (tokens, grid) if getattr(block, "takes_grid", False) else (tokens,)
        if self.grad_checkpointing and torch.is_grad_enabled():
            # Compiled code runs no hooks, and its compiler takes no `context_fn`.
            again: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": hooks_again}
            out: Tensor = checkpoint(block, *given, use_reentrant=False, **again)
            return out
        out = block(*given)
        return out

    def joined(self, layer: int, tokens: Tensor) -> Tensor:
        """The tokens that enter one of `layers`: the output of the layer before, and tokens that join here, if any."""
        return tokens

    def run_layers(self, tokens: Tensor, grid: tuple[int, int], first: int = 0) -> Tensor:
        """Runs the layers from `first` on.

        Args:
            tokens: Input of the layer `first`, (batch, tokens, embed_dim).
            grid: The patch grid, (rows, columns).
            first: The first layer to run, counted from 0.

        Returns:
            The tokens after the last layer; `tokens` itself if there is no layer from `first` on.
        """
        for index, layer in enumerate(self.layers()[first:], first):
            tokens = self._run_block(layer, self.joined(index, tokens) if index > first else tokens, grid)
        return tokens

    def forward_features(self, images: Tensor) -> Tensor:
        """Normed tokens after the last block, (batch, num_prefix_tokens + rows * columns, embed_dim), [CLS] first."""
        tokens = self.patch_drop(self.embed(images))
        normed: Tensor = self.norm(self.run_layers(tokens, self.grid_of(images)))
        return normed

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools the tokens of `forward_features` and classifies.

        Args:
            x: (batch, tokens, embed_dim).
            pre_logits: Whether to stop before the last Linear.

        Returns:
            (batch, num_classes), or (batch, embed_dim) with `pre_logits`.
        """
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)
        elif self.global_pool == "mean":
            x = x.mean(dim=1)
        pooled: Tensor = self.head_drop(self.fc_norm(x))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Outputs of chosen layers, with timm's arguments.

        They come once each, in the order of the layers, whatever the order of `indices`, as in timm and DINO.

        Args:
            images: (batch, in_chans, height, width).
            indices: Layers: None for all, an int n for the last n, or indices (negative from the end).
            return_prefix_tokens: Whether each intermediate is a pair (patches, prefix tokens).
            norm: Whether the last norm is applied to the intermediates.
            stop_early: Whether to skip the layers after the last chosen one.
            output_fmt: "NCHW" for (batch, embed_dim, rows, columns), "NLC" for (batch, rows * columns, embed_dim).
            intermediates_only: Whether to leave out the final tokens.
            output_dict: Whether to return a dict (`image_features`, `image_intermediates`,
                `image_intermediates_prefix`).

        Returns:
            (final tokens, intermediates), or the intermediates alone, or the dict.

        Raises:
            UnknownNameError: If a layer or `output_fmt` does not exist.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UnknownNameError.of("output_fmt", output_fmt, ("NCHW", "NLC"))
        take = sorted(set(resolve_layers(indices, len(self.blocks))))
        rows, columns = grid = self.grid_of(images)
        tokens, taken = self.embed(images), {}
        for index, block in enumerate(self.blocks[: max(take) + 1] if stop_early else self.blocks):
            tokens = self._run_block(block, tokens, grid)
            if index in take:
                taken[index] = self.norm(tokens) if norm else tokens
        states = [taken[index] for index in take]
        prefix = [state[:, : state.shape[1] - rows * columns] for state in states]
        patches = [state[:, state.shape[1] - rows * columns :] for state in states]
        if output_fmt == "NCHW":
            patches = [rearrange(p, "b (h w) d -> b d h w", h=rows, w=columns).contiguous() for p in patches]
        out: dict[str, Any] = {}
        if not intermediates_only:
            depth = len(self.blocks)
            out["image_features"] = self.norm(self.run_layers(self.joined(depth, tokens), grid, first=depth))
        if output_dict:
            out["image_intermediates"] = patches
            if return_prefix_tokens:
                out["image_intermediates_prefix"] = prefix
            return out
        intermediates: list[Any] = list(zip(patches, prefix, strict=True)) if return_prefix_tokens else patches
        return intermediates if intermediates_only else (out["image_features"], intermediates)

    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> tuple[Intermediate, ...]:
        """DINO's name for `forward_intermediates`: the last `n` layers, or the listed ones, as a tuple, in layer order.

        Args:
            images: (batch, in_chans, height, width).
            n: Number of layers from the end, or a list of layers.
            reshape: Whether patches have shape (batch, embed_dim, rows, columns).
            return_prefix_tokens: Whether each entry is a pair (patches, prefix tokens).
            norm: Whether the last norm is applied.
        """
        fmt: Literal["NCHW", "NLC"] = "NCHW" if reshape else "NLC"
        return tuple(
            self.forward_intermediates(images, n, return_prefix_tokens, norm, False, fmt, intermediates_only=True)
        )

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the layers after the last chosen one for good (timm's name).

        Args:
            indices: Layers; see `forward_intermediates`.
            prune_norm: Whether to remove the last norm too, if it comes before pooling.
            prune_head: Whether to remove the head too, with pooling and the norm after it; all tokens are returned.

        Returns:
            The chosen layers, counted from 0.

        Raises:
            UnknownNameError: If a layer does not exist.
        """
        take = resolve_layers(indices, len(self.blocks))
        self.blocks = self.blocks[: max(take) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return take

    def new_head(self, num_classes: int) -> nn.Module:
        """A new last Linear with this model's initial values; an identity for 0 classes. The model does not change."""
        return nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last Linear, or an identity if there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: GlobalPool | None = None) -> None:
        """Replaces the head by a fresh one of the same device, dtype and mode.

        Args:
            num_classes: Number of classes; 0 for no head.
            global_pool: Another pooling, if given; the norms stay where they are.

        Raises:
            UnknownNameError: If `global_pool` is not known.
            InputError: If `num_classes` is not a number of classes.
        """
        num_classes = whole_number("num_classes", num_classes, least=0)
        if global_pool is not None:
            self.global_pool = known_pool(global_pool)
        self.num_classes = num_classes
        self.head = self.new_head(num_classes).to(self.cls_token.device, self.cls_token.dtype).train(self.training)

    def set_input_size(self, img_size: Size | None = None, patch_size: Size | None = None) -> None:
        """Makes the model expect another image size. The position embedding is resampled once, in place.

        Args:
            img_size: (height, width) or one number, pixels; the size stays if None.
            patch_size: timm's argument; the model's own patch, or None.

        Raises:
            InputError: If the patch does not divide the size, or another patch is given.
        """
        if patch_size is not None and to_pair(patch_size) != self.patch_embed.patch_size:
            raise InputError(
                f"the model and its weights are for patches of {self.patch_embed.patch_size}, not "
                f"{patch_size!r}; create a model with patch_size={patch_size!r} and train it"
            )
        if img_size is None:
            return
        old_grid = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size)
        if not isinstance(self.pos_embed, nn.Module):
            resampled = self.resample_positions(self.pos_embed.detach(), old_grid, self.patch_embed.grid_size)
            self.pos_embed = nn.Parameter(resampled.clone(), requires_grad=self.pos_embed.requires_grad)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks recompute their activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone."""
        return {"pos_embed", "cls_token"} | ({"reg_token"} if self.reg_token is not None else set())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, for layer-wise learning rates (timm's form)."""
        return {
            "stem": r"^cls_token|reg_token|pos_embed|patch_embed",
            "blocks": r"^blocks\.(\d+)" if coarse else [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def known_pool(global_pool: GlobalPool) -> GlobalPool:
    if global_pool not in get_args(GlobalPool):
        raise UnknownNameError.of("global_pool", global_pool, get_args(GlobalPool))
    return global_pool
