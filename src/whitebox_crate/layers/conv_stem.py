"""ConvStem: the embedding of CBT and ToST. Its 3 x 3 convolutions halve the image until a patch is one pixel."""

from __future__ import annotations

from itertools import pairwise

from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError
from .normed_product import NormedConvolution
from .patch_embed import PatchEmbed, Size


class ConvStem(PatchEmbed):
    """XCiT's embedding (arXiv 2106.09681, section 3.4; timm's names), as in CBT and ToST.

    `f_1 = BN(K_1 * x)`, `f_i = BN(K_i * GELU(f_{i-1}))`. Each convolution K is 3 x 3 with stride 2, padding 1 and no
    bias, and has twice the channels of the one before. So a patch of 16 takes four convolutions, with embed_dim / 8,
    embed_dim / 4, embed_dim / 2 and embed_dim channels. GELU is exact; none comes after the last convolution. A token
    also sees pixels around its patch.

    In training, BatchNorm takes mean and variance from the batch; `whitebox_crate.training.train` takes them over the
    images of all processes of a run (SyncBatchNorm).

    Args:
        embed_dim: Width of a token.
        img_size: (height, width) or one number, pixels.
        patch_size: A power of two from 2 on, pixels; or a pair of two such equal numbers.
        in_chans: Channels of the image.
        dynamic_img_size: Whether to take images of any size that the patch divides.

    Shape:
        - Input: (batch, in_chans, height, width), any float dtype.
        - Output: (batch, rows * columns, embed_dim), row by row.

    Raises:
        InputError: If the patch is not a square whose side is a power of two, or does not divide the image; or if
            `embed_dim` cannot be halved often enough.
    """

    def __init__(
        self,
        embed_dim: int,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        dynamic_img_size: bool = False,
    ) -> None:
        super().__init__(img_size, patch_size, in_chans, dynamic_img_size)
        height, width = self.patch_size
        if height != width or height < 2 or height & (height - 1):
            raise InputError(
                f"a convolutional stem halves the image step by step, so a patch must be 2, 4, 8, 16, ... pixels "
                f"square, not {height} x {width}"
            )
        halvings = height.bit_length() - 1
        first = 2 ** (halvings - 1)
        if embed_dim % first:
            raise InputError(
                f"a stem for patches of {height} starts with embed_dim / {first} channels; make embed_dim a multiple "
                f"of {first}, not {embed_dim}"
            )
        channels = [in_chans, *(embed_dim // 2**left for left in reversed(range(halvings)))]
        parts: list[nn.Module] = []
        for before, after in pairwise(channels):
            convolution = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False)
            parts += [nn.Sequential(convolution, nn.BatchNorm2d(after)), nn.GELU()]
        self.proj = nn.Sequential(*parts[:-1])

    def normed_products(self) -> list[NormedConvolution]:
        """Each convolution and the BatchNorm after it."""
        return [NormedConvolution(part) for part in self.proj if isinstance(part, nn.Sequential)]

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        features: Tensor = self.proj(images)
        return rearrange(features, "b d h w -> b (h w) d")
