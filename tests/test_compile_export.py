"""Compiled and exported models give what the model gives, and a compiled one can be read by capture."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_models import images_for, mostly_slow, small_model, trained
from torch import Tensor, nn
from torch.export import Dim

from whitebox_crate import ImageTransformer, capture
from whitebox_crate.errors import InputError

KINDS = {
    "crate": "crate_nano_patch6_96",
    "alpha": "crate_alpha_tiny_patch16_224",
    "mae": "crate_mae_tiny_patch16_224",
    "vit": "vit_nano_patch6_96",
}


def make(kind: str = "crate", **options: Any) -> ImageTransformer:
    return small_model(KINDS[kind], **{"depth": 2, "embed_dim": 32, **options})


@pytest.fixture(autouse=True)
def no_compiled_code_of_other_tests() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Features(nn.Module):
    """What goes into the head, as a forward pass."""

    def __init__(self, model: ImageTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_features(images)


@pytest.mark.filterwarnings("ignore")  # of the tracer, about all that it cannot follow
@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_model_takes_the_size_of_its_example_alone(kind: str) -> None:
    """Of a grid of as many patches it would add the positions of another; a trace records no check of ours."""
    model = make(kind, img_size=64, patch_size=16, dynamic_img_size=True).eval()
    with torch.no_grad():
        traced = torch.jit.trace(Features(model), torch.rand(2, 3, 64, 64))
        images = torch.rand(3, 3, 64, 64)
        torch.testing.assert_close(traced(images), model.forward_features(images))
        with pytest.raises(RuntimeError, match="expanded size"):
            traced(torch.rand(3, 3, 32, 128))


class Counting:
    """A backend that runs the graph as it is, and counts how often."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph(*args)

        return run


@pytest.mark.parametrize("kind", mostly_slow(KINDS, "crate"))
def test_compiled_whole_with_gradients(kind: str) -> None:
    model = make(kind, dynamic_img_size=False)
    images = images_for(model)
    expected, logits = model(images), torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    parameters = list(trained(model).values())
    literal = torch.autograd.grad(expected.square().sum(), parameters)
    for gradient, wanted in zip(torch.autograd.grad(logits.square().sum(), parameters), literal, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_compiled_to_machine_code() -> None:
    model = make(depth=1)
    images = images_for(model)
    compiled = torch.compile(model, fullgraph=True, backend="inductor")
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)
    with capture(compiled, "attention") as trace, capture(model, "attention") as expected:
        compiled(images)
    assert torch.equal(trace["attention", 0], expected["attention", 0])


@pytest.mark.parametrize("kind", mostly_slow(["crate", "mae", "vit"], "crate"))
@torch.no_grad()
def test_compiled_with_images_of_any_size(kind: str) -> None:
    model = make(kind, depth=1, dynamic_img_size=True)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for batch, grid in ((2, (2, 3)), (3, (4, 2))):  # the first grid is the model's own: nothing is resampled
        images = images_for(model, batch, grid)
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", mostly_slow(KINDS, "crate"))
@torch.no_grad()
def test_bf16_compiled_and_exported(kind: str) -> None:
    model = make(kind, depth=1).bfloat16()
    images = images_for(model).bfloat16()
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(images)
    exported = torch.export.export(model, (images,)).module()(images)
    for logits in (compiled, exported):
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits, expected, rtol=2e-2, atol=2e-2)


def wrapped(model: ImageTransformer, backend: Counting) -> nn.Module:
    compiled: nn.Module = torch.compile(model, backend=backend, fullgraph=True)
    return compiled


def in_place(model: ImageTransformer, backend: Counting) -> nn.Module:
    model.compile(backend=backend, fullgraph=True)
    return model


def by_layer(model: ImageTransformer, backend: Counting) -> nn.Module:
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend=backend, fullgraph=True)
    return model


def parallel(model: ImageTransformer, backend: Counting) -> nn.Module:
    return nn.DataParallel(wrapped(model, backend))


@pytest.mark.parametrize("compiled_how", [wrapped, in_place, by_layer, parallel])
@pytest.mark.parametrize("called_before", [pytest.param(False, marks=pytest.mark.slow), True])
@torch.no_grad()
def test_a_compiled_model_can_be_read(
    compiled_how: Callable[[ImageTransformer, Counting], nn.Module], called_before: bool
) -> None:
    reference, backend = make(), Counting()
    images = images_for(reference)
    states = ("tokens", "projections", "attention", "compressed", "output")
    with capture(reference, *states) as expected:
        logits = reference(images)

    model = compiled_how(make(), backend)
    if called_before:
        torch.testing.assert_close(model(images), logits)
    compiled, ran = backend.compiled, backend.ran
    assert (ran > 0) == called_before
    with capture(model, *states) as trace:
        during = model(images)
    assert (backend.compiled, backend.ran) == (compiled, ran)  # it ran uncompiled, which is why the hooks ran
    assert torch.equal(during, logits)
    assert len(trace) == len(expected) == 2 * len(states)
    for state in states:
        for layer in (0, 1):
            assert torch.equal(trace[state, layer], expected[state, layer])

    held = trace["output", -1]
    torch.testing.assert_close(model(images.flip(0)), logits.flip(0))
    assert backend.ran > ran  # compiled again ...
    assert not called_before or backend.compiled == compiled  # ... and the old code is still good
    assert trace["output", -1] is held


@torch.no_grad()
def test_compiled_inside_the_block() -> None:
    model, backend = make(), Counting()
    images = images_for(model)
    with capture(model, "attention") as trace:
        compiled = wrapped(model, backend)
        compiled(images)
        first = trace["attention", -1]
    assert backend.ran == 0
    compiled(images.flip(0))
    assert backend.ran == 1
    assert trace["attention", -1] is first


@torch.no_grad()
def test_an_error_inside_leaves_compilation_on() -> None:
    model, backend = make(), Counting()
    compiled = wrapped(model, backend)
    with pytest.raises(ZeroDivisionError), capture(compiled, "attention"):
        raise ZeroDivisionError
    compiled(images_for(model))
    assert backend.ran == 1


@pytest.mark.parametrize("kind", mostly_slow(KINDS, "crate"))
@torch.no_grad()
def test_exported_with_any_batch(kind: str) -> None:
    model = make(kind, dynamic_img_size=False)
    program = torch.export.export(model, (images_for(model),), dynamic_shapes={"images": {0: Dim("batch")}})
    exported = program.module()
    for batch in (1, 2, 5):
        images = images_for(model, batch)
        torch.testing.assert_close(exported(images), model(images), rtol=1e-5, atol=1e-5)
    for foreign in (exported, program):
        with (
            pytest.raises(InputError, match=r"exported model has no layers|a model must be a module of torch"),
            capture(foreign, "tokens"),
        ):
            pass


@pytest.mark.parametrize("kind", mostly_slow(KINDS, "crate"))
@torch.no_grad()
def test_exported_with_images_of_any_size(kind: str) -> None:
    model = make(kind, dynamic_img_size=True)
    rows, columns = Dim("rows", max=64), Dim("columns", max=64)
    patch = model.patch_embed.patch_size[0]
    sizes = {"images": {0: Dim("batch"), 2: patch * rows, 3: patch * columns}}
    exported = torch.export.export(model, (images_for(model, grid=(4, 5)),), dynamic_shapes=sizes).module()
    for grid in ((2, 3), (4, 5), (7, 2)):  # the first is the model's own: nothing is resampled
        images = images_for(model, 3, grid)
        torch.testing.assert_close(exported(images), model(images), rtol=1e-5, atol=1e-5)
