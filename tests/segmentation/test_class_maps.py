from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import DEPTH, FAMILIES, GRID, images_for, small_model
from torch import Tensor, nn

from whitebox_crate import ImageTransformer, InputError, UnknownNameError, capture
from whitebox_crate.models import ToST
from whitebox_crate.segmentation import class_maps, default_layer

METHODS: list[Any] = ["relevance", "gradient_attention"]
NAMES = ("cat", "dog", "crane", "crane", "7")


def make(family: str = "crate", **options: Any) -> ImageTransformer:
    overlay = {"label_names": NAMES, "num_classes": 5}
    return small_model(FAMILIES[family], num_classes=5, pretrained_cfg_overlay=overlay, **options)


def by_hand(model: ImageTransformer, images: Tensor, class_: int, method: str) -> Tensor:
    """Image by image, with matrices of all tokens: R = 1, then R += G R for each layer (arXiv 2103.15679, Eq. 6)."""
    maps = []
    for image in images:
        with capture(model, "attention", queries="all", eager=True) as trace:
            logit = model(image[None])[0, class_]
        weighted = []
        for layer in range(DEPTH):
            rows = trace["attention", layer]
            (gradient,) = torch.autograd.grad(logit, rows, retain_graph=True)
            weighted.append(sum(torch.relu(gradient[0, h] * rows[0, h]) for h in range(2)) / 2)
        if method == "relevance":
            matrix = torch.eye(len(weighted[0]), dtype=images.dtype)
            for of_layer in weighted:
                matrix = matrix + of_layer @ matrix
            matrix = matrix - torch.eye(len(matrix), dtype=images.dtype)
        else:
            matrix = weighted[default_layer(model)]
        first = model.num_prefix_tokens
        pooled = {"token": matrix[0], "avg": matrix[first:].mean(0), "mean": matrix.mean(0)}[model.global_pool]
        maps.append(pooled[first:].reshape(GRID).detach())
    return torch.stack(maps)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "tost"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pool", ["token", "avg", "mean"])
def test_maps_are_those_of_the_equations(family: str, method: Any, pool: Any) -> None:
    model = make(family, global_pool=pool).double()
    images = images_for(model, batch=3).double()
    found = class_maps(model, images, 2, method)
    expected = by_hand(model, images, 2, method)
    assert expected.flatten(1).amax(1).min() > 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found.shape == (3, *GRID) and not found.requires_grad and (found >= 0).all()


@pytest.mark.parametrize("pool", ["token", "avg", "mean"])
def test_of_tost_the_row_of_class_attention_is_weighted_and_no_way_leads_further(
    pool: Any,
) -> None:
    model = make("tost", global_pool=pool).double()
    images = images_for(model).double()
    for layer in (3, 4):
        with capture(model, "attention", eager=True) as trace:
            logits = model(images)
        row = trace["attention", layer]
        (gradient,) = torch.autograd.grad(logits[:, 2].sum(), row)
        expected = torch.relu(gradient * row).mean(1)[:, 0, 1:].unflatten(1, GRID)
        torch.testing.assert_close(class_maps(model, images, 2, "gradient_attention", layer), expected.detach())
        assert expected.any() != (pool == "avg")  # patches do not see what [CLS] looks at
    with pytest.raises(InputError, match="some layers have none: choose gradient_attention"):
        class_maps(model, images, 2)


@pytest.mark.parametrize("method", METHODS)
def test_each_image_has_its_own_class(method: Any) -> None:
    model = make()
    images = images_for(model, batch=3)
    found = class_maps(model, images, torch.tensor([1, -5, 4]), method)
    for index, class_ in enumerate((1, 0, 4)):
        alone = class_maps(model, images[index][None], class_, method)[0]
        torch.testing.assert_close(found[index], alone, rtol=1e-4, atol=1e-7)
    assert torch.equal(class_maps(model, images, ["dog", "cat", "7"], method), found)
    likeliest = model(images).argmax(1)
    assert torch.equal(class_maps(model, images, method=method), class_maps(model, images, likeliest, method))


def test_one_layer_has_no_other_ways_than_its_own() -> None:
    model = make(depth=1)
    images = images_for(model)
    torch.testing.assert_close(*(class_maps(model, images, 0, method) for method in METHODS))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_speaks_for_a_class_that_the_head_does_not_look_for(method: Any) -> None:
    model = make()
    nn.init.zeros_(model.head.weight[3])
    assert not class_maps(model, images_for(model), 3, method).any()


@pytest.mark.parametrize("layer", [0, 2])
def test_the_layer_may_be_chosen(layer: int) -> None:
    model = make()
    images = images_for(model)
    found = class_maps(model, images, 1, "gradient_attention", layer - DEPTH)
    with capture(model, "attention", layers=[layer], eager=True) as trace:
        logits = model(images)
    rows = trace["attention", layer]
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), rows)
    expected = torch.relu(rows * gradient).mean(1)[:, 0, 1:].reshape(2, *GRID)
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("method", METHODS)
def test_any_mode_and_nothing_left(method: Any) -> None:
    model = make()
    images = images_for(model)
    expected = class_maps(model, images, 1, method)
    model.requires_grad_(False)
    with torch.inference_mode():
        assert torch.equal(class_maps(model, images, 1, method), expected)
        assert torch.equal(class_maps(model, images.clone(), torch.tensor(2) - 1, method), expected)
    assert all(p.grad is None for p in model.parameters()) and not images.requires_grad
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(class_maps(compiled, images, 1, method), expected)


def test_of_a_network_with_class_attention_alone_one_layer_has_maps() -> None:
    torch.manual_seed(0)
    model = ToST(img_size=32, patch_size=8, num_classes=5, embed_dim=48, depth=2, num_heads=4).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = class_maps(model, images, 1, "gradient_attention", -1)
    with torch.no_grad(), capture(model, "attention", "tokens", layers=[-1]) as trace:
        model(images)
    rows, block = trace["attention", -1], model.cls_attn_blocks[-1]
    values = block.attn.split_heads(block.attn.qkv(block.norm1(trace["tokens", -1])))[2]
    attended: list[Tensor] = []
    handle = block.attn.proj.register_forward_pre_hook(lambda _, args: attended.append(args[0]))
    logits = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), attended[0])
    of_rows = gradient.unflatten(-1, (4, -1)).transpose(1, 2) @ values.mT  # dy/dA = dy/d(A V) V^T
    expected = torch.relu(of_rows * rows).mean(1)[:, 0, 1:].reshape(2, 4, 4)
    assert expected.max() > 1e-6
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="choose gradient_attention"):
        class_maps(model, images, 1)


BAD: dict[str, tuple[Callable[[ImageTransformer, Tensor], Any], type[Exception], str]] = {
    "method": (lambda m, x: class_maps(m, x, 0, "relevanc"), UnknownNameError, "did you mean 'relevance'"),  # type: ignore[arg-type]
    "layer of all": (lambda m, x: class_maps(m, x, 0, layer=1), InputError, "leave layer out"),
    "layer": (lambda m, x: class_maps(m, x, 0, "gradient_attention", 9), UnknownNameError, "no layer 9"),
    "class": (lambda m, x: class_maps(m, x, 5), UnknownNameError, "no class 5: there are 5"),
    "name": (lambda m, x: class_maps(m, x, "cats"), UnknownNameError, "did you mean 'cat'"),
    "two of a name": (lambda m, x: class_maps(m, x, "crane"), InputError, r"2 classes .*\[2, 3\]"),
    "class of no kind": (lambda m, x: class_maps(m, x, 1.5), InputError, "a class must be an integer"),  # type: ignore[arg-type]
    "too many classes": (lambda m, x: class_maps(m, x, [0, 1, 2]), InputError, "2 images"),
    "nan": (lambda m, x: class_maps(m, x * float("nan"), 0), InputError, "NaN"),
    "size": (lambda m, x: class_maps(m, x[..., :-1], 0), InputError, "not divisible"),
    "no head": (lambda m, x: class_maps(m.reset_classifier(0) or m, x, 0), InputError, "reset_classifier"),  # type: ignore[func-returns-value]
    "no pooling": (lambda m, x: class_maps(m.reset_classifier(5, "") or m, x, 0), InputError, "pooling ''"),  # type: ignore[func-returns-value]
    "no model": (
        lambda m, x: class_maps(nn.Linear(2, 2), x, 0),
        InputError,
        "layers of a torch.nn.modules.linear.Linear",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_mapped_is_refused(case: str) -> None:
    call, error, message = BAD[case]
    model = make()
    with pytest.raises(error, match=message):
        call(model, images_for(model))
