"""Attention as an output: what WithAttention gives is what capture reads, eager, compiled, exported and in ONNX."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import FAMILIES, images_for, mostly_slow, patch_of, small_model
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from whitebox_crate import ImageTransformer, capture, create_model, fold_for_inference
from whitebox_crate._plan import layers_with
from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.export import WithAttention
from whitebox_crate.models import Crate


def make(family: str = "crate", **options: Any) -> ImageTransformer:
    return small_model(FAMILIES[family], **{"depth": 2, "embed_dim": 32, **options})


def reference(model: ImageTransformer, images: Tensor, layers: list[int]) -> tuple[Tensor, Tensor]:
    """Logits, and the rows of [CLS] that capture reads."""
    with torch.no_grad(), capture(model, "attention", layers=layers) as trace:
        logits = model(images)
    return logits, torch.stack([trace["attention", layer].squeeze(2) for layer in layers], dim=1)


def of_any_size(model: ImageTransformer) -> dict[str, Any]:
    """What torch.export is told: batch, rows and columns are open."""
    height, width = model.patch_embed.patch_size
    rows, columns = Dim("rows", min=2, max=64), Dim("columns", min=2, max=64)
    return {"images": {0: Dim("batch"), 2: height * rows, 3: width * columns}}


def make_of_any_size(family: str) -> ImageTransformer:
    patch = patch_of(FAMILIES[family])
    return make(family, img_size=(4 * patch, 3 * patch), dynamic_img_size=True)


@functools.cache
def exported_of_any_size(family: str) -> torch.export.ExportedProgram:
    model = make_of_any_size(family)
    example = images_for(model, grid=(4, 5))
    return torch.export.export(WithAttention(model), (example,), dynamic_shapes=of_any_size(model))


def assert_same(found: tuple[Any, Any], expected: tuple[Tensor, Tensor], rtol: float = 1e-5) -> None:
    """Equal within rtol, of the largest logit and of the largest weight of attention."""
    for tensor, wanted in zip(found, expected, strict=True):
        tensor = torch.as_tensor(tensor)
        torch.testing.assert_close(tensor, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


@pytest.fixture(autouse=True)
def no_compiled_code_of_other_tests() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_output_is_the_models_and_the_maps_are_those_of_capture(family: str) -> None:
    model = make(family, depth=3)
    first, *_, last = layers_with(model, "attention")
    images, layers = images_for(model, 3), [last, first]
    module = WithAttention(model, [-1, first])
    assert module.layers == (last, first)
    assert WithAttention(model).layers == layers_with(model, "attention")
    logits, maps = module(images)
    assert maps.shape == (3, 2, 2, model.num_prefix_tokens + 6)
    assert_same((logits, maps), reference(model, images, layers), rtol=2e-6)


@pytest.mark.parametrize(
    "options", [{"skip": "normalized"}, {"num_heads": 1, "embed_dim": 24}, {"head_dim": 5}], ids=str
)
@torch.no_grad()
def test_other_shapes_of_attention(options: dict[str, Any]) -> None:
    model = make(**options)
    assert_same(WithAttention(model)(images_for(model)), reference(model, images_for(model), [0, 1]), rtol=2e-6)


@pytest.mark.parametrize("global_pool", ["token", "avg", "mean", ""])
@torch.no_grad()
def test_the_head_reads_what_it_reads_in_the_model(global_pool: str) -> None:
    model = make("mae", global_pool=global_pool, dynamic_img_size=True)
    images = images_for(model, grid=(3, 4))
    assert_same(WithAttention(model, layers=1)(images), reference(model, images, [1]), rtol=2e-6)


@torch.no_grad()
def test_the_model_inside_can_be_captured_meanwhile() -> None:
    model = make()
    images = images_for(model)
    with capture(model, "attention", "output") as expected:
        model(images)
    with capture(model, "attention", "output") as trace:
        WithAttention(model)(images)
    for layer in (0, 1):
        for state in ("attention", "output"):
            assert torch.equal(trace[state, layer], expected[state, layer])


def test_gradients_reach_the_model_through_both() -> None:
    model = make("vit", global_pool="avg")
    logits, maps = WithAttention(model, [0])(images_for(model))
    (logits.square().sum() + maps.square().sum()).backward()
    with capture(model, "attention", layers=[0]) as trace:
        expected = model(images_for(model)).square().sum()
        expected = expected + trace["attention", 0].square().sum()
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad(expected, list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def test_a_map_costs_a_small_part_of_its_layer() -> None:
    model = make(embed_dim=64, img_size=60)
    images = images_for(model)

    def operations(module: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter:
            module(images)
        return int(counter.get_total_flops())

    projections = 2 * images.shape[0] * 101 * 64 * 64  # U^T z of 101 tokens: what a second product would cost
    assert 0 < operations(WithAttention(model, [0])) - operations(model) < projections / 8


@pytest.mark.parametrize(
    "foreign",
    [lambda: nn.Linear(2, 2), lambda: torch.compile(make()), lambda: create_model("crate_nano", features_only=True)],
    ids=["foreign", "compiled", "features-only"],
)
def test_what_is_no_model_of_this_package_is_refused(foreign: Any) -> None:
    with pytest.raises(InputError, match="wrap the model itself"):
        WithAttention(foreign())


def test_a_forward_pass_of_its_own_is_refused() -> None:
    class Doubled(Crate):
        def forward_features(self, images: Tensor) -> Tensor:
            return 2 * super().forward_features(images)

    with pytest.raises(InputError, match="Doubled has its own forward pass"):
        WithAttention(Doubled(img_size=12, patch_size=6, embed_dim=8, depth=1, num_heads=2))


def test_layers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no layer 2"):
        WithAttention(make(), [0, 2])
    with pytest.raises(InputError, match="last 3 layers of 2"):
        WithAttention(make(), 3)
    with pytest.raises(InputError, match="empty list"):
        WithAttention(make(), [])


@pytest.mark.parametrize("family", mostly_slow(["crate", "mae"], "mae"))  # the two rules of resampling positions
@torch.no_grad()
def test_compiled_whole_with_images_of_any_size(family: str) -> None:
    model = make(family, depth=1, dynamic_img_size=True)
    compiled = torch.compile(WithAttention(model), fullgraph=True, dynamic=True, backend="eager")
    for batch, grid in ((2, (2, 3)), (3, (4, 2))):  # the first grid is the model's own: nothing is resampled
        images = images_for(model, batch, grid)
        assert_same(compiled(images), reference(model, images, [0]))
    images = images_for(model, 5, (3, 6))
    expected = reference(model, images, [0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same(compiled(images), expected)


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, "crate", "alpha"))
@torch.no_grad()
def test_a_folded_model_compiled_whole(family: str) -> None:
    model = make(family, depth=1)
    folded, images = fold_for_inference(model), images_for(model)
    compiled = torch.compile(WithAttention(folded), fullgraph=True, backend="eager")
    assert_same(compiled(images), reference(model, images, list(layers_with(model, "attention"))))


@pytest.mark.parametrize("family", mostly_slow(["crate", "mae", "vit", "tost"], "crate", "tost"))
@torch.no_grad()
def test_exported_with_any_batch_and_size(family: str) -> None:
    model = make_of_any_size(family)
    exported = exported_of_any_size(family).module()
    for batch, grid in ((1, (4, 3)), (4, (2, 2)), (2, (7, 4))):  # the model's own grid, a smaller and a larger one
        images = images_for(model, batch, grid)
        assert_same(exported(images), reference(model, images, list(layers_with(model, "attention"))))


class Onnx:
    """A program in ONNX's runtime."""

    def __init__(self, program: Any, path: Path) -> None:
        program.save(path)
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(array) for array in self.session.run(None, {"images": images.numpy()}))


@pytest.mark.parametrize("family", mostly_slow(["crate", "mae", "tost"], "crate"))
@torch.no_grad()
def test_onnx_with_any_batch_and_size(family: str, tmp_path: Path) -> None:
    model = make_of_any_size(family)
    names = {"input_names": ["images"], "output_names": ["logits", "attention"]}
    program = Onnx(torch.onnx.export(exported_of_any_size(family), verbose=False, **names), tmp_path / "model.onnx")
    assert [output.name for output in program.session.get_outputs()] == ["logits", "attention"]
    for batch, grid in ((1, (4, 3)), (4, (2, 2)), (2, (7, 4))):
        images = images_for(model, batch, grid)
        assert_same(program(images), reference(model, images, list(layers_with(model, "attention"))))


class Both(nn.Module):
    """A model without attention, and folded with attention, in one program."""

    def __init__(self, model: ImageTransformer) -> None:
        super().__init__()
        self.model, self.folded = model, WithAttention(fold_for_inference(model), [-1])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.model(images), *self.folded(images)


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, "crate"))
@torch.no_grad()
def test_onnx_as_it_is_and_folded(family: str, tmp_path: Path) -> None:
    model = make(family, depth=1)
    both, shapes = Both(model).eval(), {"images": {0: Dim("batch")}}
    program = Onnx(
        torch.onnx.export(both, (images_for(model),), dynamo=True, dynamic_shapes=shapes, verbose=False),
        tmp_path / "model.onnx",
    )
    for batch in (1, 3):
        images = images_for(model, batch)
        logits, attention = reference(model, images, [-1])
        assert_same(program(images), (logits, logits, attention))


def test_a_layer_that_is_no_block_is_refused() -> None:
    model = small_model(FAMILIES["crate"])
    model.blocks[1] = nn.Identity()
    with pytest.raises(InputError, match="a Identity in place of a layer"):
        WithAttention(model)
    assert WithAttention(model, [0]).layers == (0,)


class Adapted(nn.Linear):
    """As adapters for fine-tuning do it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.flip(-1)[..., : self.out_features]


@pytest.mark.parametrize("how", ["subclass", "hook", "forward"])
@torch.no_grad()
def test_a_projection_that_is_more_than_its_weights_is_called(how: str) -> None:
    model = small_model(FAMILIES["crate"])
    mssa, images = model.blocks[1].mssa, images_for(model)
    if how == "subclass":
        adapted = Adapted(mssa.qkv.in_features, mssa.qkv.out_features, bias=False)
        adapted.load_state_dict(mssa.qkv.state_dict())
        mssa.qkv = adapted
    elif how == "hook":
        mssa.qkv.register_forward_hook(lambda _, __, out: 2 * out)
    else:
        mssa.qkv.forward = lambda x: F.linear(x, 2 * mssa.qkv.weight)
    with capture(model, "attention") as trace:
        logits = model(images)
    have, maps = WithAttention(model)(images)
    torch.testing.assert_close(have, logits)
    for layer in range(len(model.blocks)):
        torch.testing.assert_close(maps[:, layer], trace["attention", layer][:, :, 0])
