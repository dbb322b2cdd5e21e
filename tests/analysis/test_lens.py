from typing import Any

import pytest
import torch
from small_models import DEPTH, FAMILIES, images_for, small_model
from torch import Tensor, nn

from whitebox_crate import ImageTransformer, InputError, UnknownNameError, capture
from whitebox_crate.analysis import logit_lens
from whitebox_crate.models import ToST

POOLS: list[Any] = ["token", "avg", "mean"]


def make(family: str = "crate", **options: Any) -> ImageTransformer:
    return small_model(FAMILIES[family], num_classes=5, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pool", POOLS)
@torch.no_grad()
def test_after_the_last_layer_it_is_the_logits(family: str, pool: Any) -> None:
    model = make(family, global_pool=pool)
    images = images_for(model)
    lens = logit_lens(model, images)
    read = range(DEPTH, len(model.layers())) if family == "tost" else range(DEPTH)  # [CLS] joins after the backbone
    assert lens.layers == tuple(read) and lens.logits.shape == (2, len(read), 5)
    assert torch.equal(lens.logits[:, -1], model(images))
    assert torch.equal(logit_lens(model, images, [-1]).logits[:, 0], model(images))


@pytest.mark.parametrize("family", ["crate", "vit", "registers"])
@pytest.mark.parametrize("pool", POOLS)
@torch.no_grad()
def test_earlier_layers_are_those_of_a_model_that_ends_there(family: str, pool: Any) -> None:
    model = make(family, global_pool=pool)
    images = images_for(model)
    lens = logit_lens(model, images)
    for layer in reversed(range(DEPTH)):
        model.blocks = model.blocks[: layer + 1]
        torch.testing.assert_close(lens.logits[:, layer], model(images))


@pytest.mark.parametrize("pool", POOLS)
@torch.no_grad()
def test_each_token_is_read_as_if_it_were_all(pool: Any) -> None:
    model = make(global_pool=pool)
    images = images_for(model)
    of_all = logit_lens(model, images, tokens="all")
    assert of_all.logits.shape == (2, DEPTH, 7, 5)
    chosen = logit_lens(model, images, layers=[1], tokens=[4, -7])
    torch.testing.assert_close(chosen.logits[:, 0], of_all.logits[:, 1][:, [4, 0]])
    with capture(model, "output") as trace:
        model(images)
    token = trace["output", 1][:, 4:5]
    alone = model.norm(token.expand(-1, 7, -1).contiguous())  # all tokens are this one, so that a mean is it too
    torch.testing.assert_close(chosen.logits[:, 0, 0], model.forward_head(alone))
    if pool == "token":
        torch.testing.assert_close(of_all.logits[:, :, 0], logit_lens(model, images).logits)


def test_names_of_the_likeliest() -> None:
    names = ("ant", "bee", "cat", "dog", "emu")
    model = make(pretrained_cfg_overlay={"label_names": names, "num_classes": 5})
    lens = logit_lens(model, images_for(model))
    shares = lens.logits.softmax(-1)
    found = lens.top(2)
    for image in range(2):
        for layer in range(DEPTH):
            expected = shares[image, layer].sort(descending=True)
            assert [name for name, _ in found[image][layer]] == [names[i] for i in expected.indices[:2]]
            assert [share for _, share in found[image][layer]] == pytest.approx(expected.values[:2].tolist())
    tokens = logit_lens(model, images_for(model), tokens="all").top()
    assert len(tokens[1]) == DEPTH and len(tokens[1][0]) == 7 and len(tokens[1][0][6]) == 1
    assert logit_lens(make(), images_for(model)).top()[0][0][0][0].startswith("class ")


def test_gradients_flow_and_hooks_are_gone() -> None:
    model = make()
    images = images_for(model).requires_grad_()
    (gradient,) = torch.autograd.grad(logit_lens(model, images).logits[:, 0].sum(), images)
    assert gradient.abs().sum() > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_layers_without_the_token_that_the_head_reads_are_left_out() -> None:
    torch.manual_seed(0)
    model = ToST(img_size=32, patch_size=8, num_classes=5, embed_dim=48, depth=2, num_heads=4, cls_attn_layers=2).eval()
    images = torch.randn(2, 3, 32, 32)
    lens = logit_lens(model, images)
    assert lens.layers == (2, 3) and torch.equal(lens.logits[:, -1], model(images))
    with pytest.raises(InputError, match="layer 1 does not have the 17 tokens"):
        logit_lens(model, images, [3, 1])


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "layer": (lambda m, x: logit_lens(m, x, [3]), UnknownNameError, "no layer 3"),
    "token": (lambda m, x: logit_lens(m, x, tokens=[7]), UnknownNameError, "no token 7"),
    "word": (lambda m, x: logit_lens(m, x, tokens="pool"), UnknownNameError, "did you mean 'pooled'"),
    "no head": (lambda m, x: logit_lens(m.reset_classifier(0) or m, x), InputError, "reset_classifier"),
    "no pooling": (lambda m, x: logit_lens(m.reset_classifier(5, "") or m, x), InputError, "pooling ''"),
    "no model": (lambda m, x: logit_lens(nn.Linear(1, 1), x), InputError, "Linear"),
    "size": (lambda m, x: logit_lens(m, x[..., 1:]), InputError, "not divisible"),
    "nan": (lambda m, x: logit_lens(m, x / 0), InputError, "NaN or infinite"),
    "none": (lambda m, x: logit_lens(m, x).top(0), InputError, "1 to 5, not 0"),
    "too many": (lambda m, x: logit_lens(m, x).top(6), InputError, "1 to 5, not 6"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_refused(case: str) -> None:
    call, error, message = BAD[case]
    model: ImageTransformer = make()
    images: Tensor = images_for(model)
    with pytest.raises(error, match=message):
        call(model, images)
