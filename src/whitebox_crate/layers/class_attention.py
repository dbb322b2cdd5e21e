"""ClassAttention: [CLS] looks at all tokens, and nobody else looks at any."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .mhsa import MHSA
from .readings import Reading, Rows, attention_rows, qkv_readings


class ClassAttention(MHSA):
    """Attention whose only query is [CLS] (CaiT, arXiv 2103.17239, section 3; XCiT and ToST end with it; timm's names).

    Arguments are those of `MHSA`. Time and memory are linear in the number of tokens.

    Shape:
        - Input: (batch, tokens, dim), any float dtype, [CLS] first.
        - Output: (batch, 1, dim), what is added to [CLS].
    """

    def readings(self) -> dict[str, Reading]:
        """`projections`, the keys of each head, and `attention`, its one row, that of [CLS]."""

        def row(projected: Tensor) -> Rows:
            q, k, v = self.split_heads(projected)
            dropped = self.training and self.attn_drop
            return Rows(q[:, :, :1], k, attention_rows, None if dropped else v)

        found = qkv_readings(self)
        return {**found, "attention": found["attention"]._replace(read=row)}

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split_heads(self.qkv(x))
        attended = F.scaled_dot_product_attention(q[:, :, :1], k, v, dropout_p=self.attn_drop if self.training else 0.0)
        out: Tensor = self.proj_drop(self.proj(rearrange(attended, "b h n p -> b n (h p)")))
        return out
