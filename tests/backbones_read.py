"""What must hold of every backbone that can be read, whoever wrote it; the tests of each library call these."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whitebox_crate import capture

ROWS = [0, 1, 2, 5]  # [CLS], registers where there are some, patches


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors of what a model gives: a tensor, a list, or one of transformers' outputs."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [tensor for value in values if value is not None for tensor in tensors_of(value)]


def check_attention(
    model: nn.Module, images: Tensor, theirs: Callable[[], Sequence[Tensor]], *, atol: float = 1e-5, **options: Any
) -> None:
    """Rows of all layers are those of the library's own attention, and the output is the same to the bit.

    Args:
        model: As a user has it, with fused attention.
        images: (batch, channels, height, width).
        theirs: Gives the library's own attention of every layer, (batch, heads, tokens, tokens).
        atol: How close rows must be.
        **options: Of the call of the model.
    """
    with torch.no_grad():
        plain = model(images, **options)
        with capture(model, "attention", queries="all") as every:
            seen = model(images, **options)
        with capture(model, "attention", queries=ROWS, heads=[1]) as some:
            model(images, **options)
        expected = theirs()
    assert len(every.layers) == len(expected) > 0
    for layer, attention in enumerate(expected):
        assert attention.std(dim=-1).min() > 1e-4  # nothing that any softmax would be close to
        torch.testing.assert_close(every["attention", layer].to(attention.dtype), attention, atol=atol, rtol=0)
        torch.testing.assert_close(
            some["attention", layer].to(attention.dtype), attention[:, [1]][:, :, ROWS], atol=atol, rtol=0
        )
    for one, other in zip(tensors_of(plain), tensors_of(seen), strict=True):
        assert torch.equal(one, other)


def check_gradients_at_attention(model: nn.Module, images: Tensor, theirs: Callable[[], Sequence[Tensor]]) -> None:
    """Gradients of what a model gives reach attention: they are those of the library's own, and the output is the same.

    Args:
        model: As a user has it, with fused attention.
        images: (batch, channels, height, width).
        theirs: Gives the gradients of the sum of squares of the first output at the library's own attention.
    """
    plain = tensors_of(model(images))[0]
    with capture(model, "attention", queries="all", eager=True) as trace:
        out = tensors_of(model(images))[0]
    assert torch.equal(out, plain)
    attention = [trace["attention", layer] for layer in trace.layers]
    gradients = torch.autograd.grad(out.square().sum(), attention)
    for own, expected in zip(gradients, theirs(), strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(own, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def documented(library: str) -> list[str]:
    """The blocks of Python in docs/backbones.md that are marked as not run for the want of this library."""
    page = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text(encoding="utf-8")
    return re.findall(rf"<!-- not run: needs {library} -->\n```python\n(.*?)```", page, re.DOTALL)


def make_lively(model: nn.Module) -> nn.Module:
    """Weights so large that attention prefers some tokens, and nothing that starts at zero stays there."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += noise / max(1, parameter.shape[-1]) ** 0.5 if parameter.ndim > 1 else 0.3 * noise
    return model.eval()
