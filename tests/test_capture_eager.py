"""With `eager`, gradients of the logits reach captured attention; the output stays that of the fused kernel."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import images_for, small_model, trained
from torch import Tensor

from whitebox_crate import ImageTransformer, InputError, capture, fold_for_inference
from whitebox_crate.analysis import intervene
from whitebox_crate.errors import CaptureError

KINDS = {
    "crate": ("crate_tiny_patch16_224", {}),
    "crate one head": ("crate_tiny_patch16_224", {"num_heads": 1}),
    "mlp": ("crate_mlp_paper_small_patch16_224", {}),
    "mhsa": ("crate_mhsa_paper_small_patch16_224", {}),
    "alpha": ("crate_alpha_tiny_patch16_224", {}),
    "mae": ("crate_mae_tiny_patch16_224", {}),
    "vit": ("vit_tiny_patch16_224", {}),
}
QUERIES: list[Any] = ["all", "cls", [3, 0]]


def make(kind: str = "crate", **options: Any) -> ImageTransformer:
    name, own = KINDS[kind]
    return small_model(name, **{"num_heads": 3, **own, **options})


@contextmanager
def attention_plus(layer: int, change: Tensor, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All attention is softmax(q k^T / sqrt(head_dim)) v by hand, and that of one layer has something added to it."""
    calls = []

    def by_hand(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        rows = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        calls.append(rows)
        return (rows + change if len(calls) == layer + 1 else rows) @ v

    with monkeypatch.context() as patched:
        patched.setattr(F, "scaled_dot_product_attention", by_hand)
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_gradients_are_the_slopes_of_the_logits(kind: str, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(kind, num_classes=5).double()
    images, step = images_for(model).double(), 1e-7  # kinks of ReLU are farther away
    with capture(model, "attention", layers=[layer], queries="all", eager=True) as trace:
        logits = model(images)
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), trace["attention", layer])
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with attention_plus(layer, sign * step * direction, monkeypatch), torch.no_grad():
                ends.append(model(images)[:, 2])
        slope = (ends[0] - ends[1]) / (2 * step)
        expected = (gradient * direction).sum((1, 2, 3))
        assert expected.abs().min() > 1e-6
        torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", QUERIES, ids=str)
@pytest.mark.parametrize("heads", [None, [2, 0]], ids=str)
def test_the_output_stays_and_gradients_differ_by_rounding(kind: str, queries: Any, heads: Any) -> None:
    if kind == "crate one head" and heads:
        heads = [0]
    model = make(kind)
    images, parameters = images_for(model), list(trained(model).values())
    expected = model(images)
    usual = torch.autograd.grad(expected.square().sum(), parameters)
    with capture(model, "attention", queries="all", eager=True) as whole:
        of_all = model(images)
    with capture(model, "attention", queries=queries, heads=heads, chunk=2, eager=True) as trace:
        logits = model(images)
    assert torch.equal(logits, expected) and torch.equal(of_all, expected)
    for gradient, own in zip(
        torch.autograd.grad(logits.square().sum(), parameters, retain_graph=True), usual, strict=True
    ):
        torch.testing.assert_close(gradient, own, rtol=1e-4, atol=1e-4 * float(own.abs().max()))
    rows = {"all": range(7), "cls": [0]}.get(str(queries), queries)
    for layer in range(3):  # and each row has the gradient that it has among all others
        (found,) = torch.autograd.grad(logits.sum(), trace["attention", layer], retain_graph=True)
        (all_rows,) = torch.autograd.grad(of_all.sum(), whole["attention", layer], retain_graph=True)
        asked = all_rows[:, heads or slice(None)][:, :, list(rows)]
        torch.testing.assert_close(found, asked, rtol=1e-4, atol=1e-5 * float(all_rows.abs().max()))


@pytest.mark.parametrize("name", ["cbt_tiny_patch8_224", "crate_cbt_paper_small_patch8_224"])
def test_the_matrix_that_is_never_formed_has_its_gradient(name: str) -> None:
    """CBSA's mixing matrix M of tokens W: dy/dM = dy/d(M W) W^T, and parameters have the gradients that they have."""
    model = small_model(name).double()
    images, parameters = images_for(model).double(), list(trained(model).values())
    block, mixed = model.blocks[-1], []
    handle = block.attention.proj.register_forward_pre_hook(lambda _, args: mixed.append(args[0]))
    with capture(model, "projections", layers=[-1]) as trace:
        usual = model(images)
    handle.remove()
    (of_mixed,) = torch.autograd.grad(usual.sum(), mixed[0], retain_graph=True)
    expected = of_mixed.unflatten(-1, (2, -1)).transpose(1, 2) @ trace["projections", -1].mT
    with capture(model, "attention", queries="all", eager=True) as trace:
        logits = model(images)
    assert torch.equal(logits, usual)
    (found,) = torch.autograd.grad(logits.sum(), trace["attention", -1], retain_graph=True)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)
    for eager, own in zip(*(torch.autograd.grad(of.square().sum(), parameters) for of in (logits, usual)), strict=True):
        torch.testing.assert_close(eager, own, rtol=1e-8, atol=1e-10 * float(own.abs().max() + 1))


def test_without_it_no_gradient_reaches_attention() -> None:
    model = make()
    with capture(model, "attention") as trace:
        logits = model(images_for(model))
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(logits.sum(), trace["attention", 0])


def test_nothing_happens_where_nothing_has_a_gradient() -> None:
    model = make()
    images = images_for(model)
    with torch.no_grad(), capture(model, "attention", queries="all", eager=True) as trace:
        logits = model(images)
    with torch.no_grad(), capture(model, "attention", queries="all") as usual:
        assert torch.equal(model(images), logits)
    assert torch.equal(trace["attention", 1], usual["attention", 1])


@pytest.mark.parametrize("inside", [True, False])
def test_a_head_that_is_switched_off_has_no_gradient(inside: bool) -> None:
    model = make()
    images = images_for(model)
    first = intervene(model, mask_heads={1: [2]})
    second = capture(model, "attention", layers=[1], queries="all", eager=True)
    if inside:
        with first, second as trace:
            logits = model(images)
    else:
        with second as trace, first:
            logits = model(images)
    (gradient,) = torch.autograd.grad(logits.sum(), trace["attention", 1])
    assert not gradient[:, 2].any() and gradient[:, :2].abs().sum() > 0


def test_of_nested_blocks_the_outermost_has_the_gradients() -> None:
    model = make()
    images = images_for(model)
    with capture(model, "attention", queries="all", eager=True) as alone:
        expected = torch.autograd.grad(model(images).sum(), alone["attention", 1])
    inner = capture(model, "attention", layers=[1], queries="all", eager=True)
    with capture(model, "attention", queries="all", eager=True) as outer, inner as inside:
        logits = model(images)
    found = torch.autograd.grad(logits.sum(), [outer["attention", 1], inside["attention", 1]])
    torch.testing.assert_close(found[0], expected[0])
    assert not found[1].any()


def test_one_module_as_several_layers() -> None:
    model = make().double()
    model.blocks[2] = model.blocks[0]
    images = images_for(model).double()
    with capture(model, "attention", queries="all", eager=True) as trace:
        logits = model(images)
    together = torch.autograd.grad(logits.sum(), [trace["attention", layer] for layer in range(3)])
    for layer, gradient in enumerate(together):
        with capture(model, "attention", layers=[layer], queries="all", eager=True) as alone:
            logits = model(images)
        torch.testing.assert_close(torch.autograd.grad(logits.sum(), alone["attention", layer])[0], gradient)


def test_folded_and_autocast_models_have_gradients_too() -> None:
    model = make()
    images = images_for(model)
    folded = fold_for_inference(model)
    found = []
    for one in (model, folded):
        with capture(one, "attention", queries="all", eager=True) as trace:
            logits = one(images.clone().requires_grad_())
        found.append(torch.autograd.grad(logits.sum(), trace["attention", 1])[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4 * float(found[0].abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        usual = model(images)
        with capture(model, "attention", queries="all", eager=True) as trace:
            assert torch.equal(model(images), usual)
    assert trace["attention", 1].requires_grad


def test_what_cannot_be_is_refused() -> None:
    model = make(attn_drop_rate=0.1)
    images = images_for(model)
    with capture(model, "attention", eager=True):
        model(images)
    with pytest.raises(InputError, match=r"layer 0 .*model\.eval"), capture(model.train(), "attention", eager=True):
        model(images)
    for states, options, message in (
        (("output",), {}, "only output is captured"),
        (("attention",), {"reduce": lambda rows: rows}, "reduce does not keep the rows"),
    ):
        with pytest.raises(InputError, match=message), capture(model, *states, eager=True, **options):
            pass
    model.set_grad_checkpointing()
    with pytest.raises(InputError, match="set_grad_checkpointing"), capture(model, "attention", eager=True):
        pass


def test_a_layer_whose_rows_are_not_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    attention = model.blocks[1].mssa
    monkeypatch.setattr(attention, "forward", lambda x: attention.proj(attention.qkv.forward(x)))  # runs no hook
    with pytest.raises(CaptureError, match="layer 1 computed no 'attention'"), capture(model, "attention", eager=True):
        model(images_for(model))
