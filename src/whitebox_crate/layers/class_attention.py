"""ClassAttention: only [CLS] attends, to all tokens."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .mhsa import MHSA
from .readings import Reading, Rows, qkv_readings


class ClassAttention(MHSA):
    """Attention whose only query is [CLS] (CaiT, arXiv 2103.17239, section 3; XCiT and ToST end with it; timm's names).

    For the arguments see `MHSA`. Time and memory are linear in the number of tokens.

    Shape:
        - Input: (batch, tokens, dim), any float dtype, [CLS] first.
        - Output: (batch, 1, dim), the update of [CLS].
    """

    def readings(self) -> dict[str, Reading]:
        """`projections`, the keys of each head, and `attention`, the one row of [CLS]."""

        found = qkv_readings(self)
        of_all = found["attention"].read

        def row(projected: Tensor) -> Rows:
            rows = of_all(projected)
            assert isinstance(rows, Rows)
            return rows._replace(left=rows.left[:, :, :1])

        return {**found, "attention": found["attention"]._replace(read=row)}

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split_heads(self.qkv(x))
        attended = F.scaled_dot_product_attention(q[:, :, :1], k, v, dropout_p=self.attn_drop if self.training else 0.0)
        out: Tensor = self.proj_drop(self.proj(rearrange(attended, "b h n p -> b n (h p)")))
        return out
