"""Attention is one function, however it is computed: fused, or written out where bf16 is trained on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from whitebox_crate.layers import _attend
from whitebox_crate.layers._attend import WRITTEN_OUT, attend


def heads(tokens: int, dtype: torch.dtype, requires_grad: bool = True) -> list[Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 3, tokens, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    return [tensor.to(dtype).requires_grad_(requires_grad) for tensor in made]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes with which PyTorch's fused attention is called."""
    calls, kernel = [], F.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[0].shape)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return calls


def test_bf16_with_gradients_is_written_out_as_exact_as_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, given = heads(40, torch.float64), torch.randn(2, 3, 40, 8, dtype=torch.float64)

    def errors(way: str) -> list[float]:
        """Of the output and the gradients, relative."""
        monkeypatch.setattr(_attend, "WRITTEN_OUT", {"fused": 0, "written out": WRITTEN_OUT}[way])
        halves, found = heads(40, torch.bfloat16), []
        for inputs in (halves, exact):
            out = attend(*inputs)
            found.append([out, *torch.autograd.grad(out, inputs, given.to(out.dtype))])
        return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(*found, strict=True)]

    for written, by_kernel in zip(errors("written out"), errors("fused"), strict=True):
        assert written < 1.5 * by_kernel
        assert written != by_kernel  # they are two ways


@pytest.mark.parametrize(
    ("tokens", "dtype", "requires_grad", "stays_fused"),
    [
        (WRITTEN_OUT, torch.bfloat16, True, False),
        (WRITTEN_OUT + 1, torch.bfloat16, True, True),
        (WRITTEN_OUT, torch.bfloat16, False, True),
        (WRITTEN_OUT, torch.float32, True, True),
    ],
)
def test_all_else_stays_fused(
    fused: list[torch.Size], tokens: int, dtype: torch.dtype, requires_grad: bool, stays_fused: bool
) -> None:
    attend(*heads(tokens, dtype, requires_grad))
    assert bool(fused) is stays_fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_share_that_is_left_out(dtype: torch.dtype) -> None:
    q, k, _ = heads(64, dtype)
    values = torch.eye(64, dtype=dtype).expand(2, 3, 64, 64)  # the output is attention itself
    torch.manual_seed(0)
    left_out = (attend(q, k, values, drop=0.25) == 0).double().mean()
    assert abs(left_out - 0.25) < 0.02
    assert not (attend(q, k, values) == 0).any()


def test_an_exported_program_takes_fewer_and_more_tokens() -> None:
    class Alone(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v)

    few, many = (tuple(heads(count, torch.bfloat16)) for count in (WRITTEN_OUT // 2, 2 * WRITTEN_OUT))
    tokens = torch.export.Dim("tokens", min=2, max=4 * WRITTEN_OUT)
    program = torch.export.export(Alone(), few, dynamic_shapes=({2: tokens},) * 3).module()
    for given in (few, many):
        torch.testing.assert_close(program(*given), F.scaled_dot_product_attention(*given), rtol=0.02, atol=0.02)
