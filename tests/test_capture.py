"""A capture shows what the algorithm says, computes no more than was asked, and leaves the model as it was."""

import asyncio
import copy
import gc
import io
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_models import DEPTH, DIM, GRID, images_for, small_model, trained
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from whitebox_crate import ImageTransformer, Trace, capture
from whitebox_crate.errors import CaptureError, InputError, UnknownNameError
from whitebox_crate.layers import Reading
from whitebox_crate.models import Crate, CrateBlock, FeatureExtractor

KINDS = {
    "crate": ("crate_tiny_patch16_224", {}),
    "crate normalized": ("crate_tiny_patch16_224", {"skip": "normalized"}),
    "crate one head": ("crate_tiny_patch16_224", {"num_heads": 1}),
    "tied": ("crate_tied_paper_small_patch16_224", {}),
    "attention only": ("crate_attention_only_paper_small_patch16_224", {}),
    "attention only, tied": ("crate_attention_only_paper_small_patch16_224", {"proj": "tied"}),
    "sth": ("crate_sth_paper_small_patch16_224", {}),
    "mlp": ("crate_mlp_paper_small_patch16_224", {}),
    "mhsa": ("crate_mhsa_paper_small_patch16_224", {}),
    "alpha": ("crate_alpha_tiny_patch16_224", {}),
    "mae": ("crate_mae_tiny_patch16_224", {}),
    "vit": ("vit_tiny_patch16_224", {}),
    "vit wide heads": ("vit_tiny_patch16_224", {"head_dim": 20}),
}
STATES = ("tokens", "projections", "attention", "compressed", "output")
HEADS, TOKENS = 3, 1 + GRID[0] * GRID[1]


def make(kind: str = "crate", **options: Any) -> ImageTransformer:
    name, own = KINDS[kind]
    return small_model(name, **{"num_heads": HEADS, **own, **options})


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def head_slices(model: ImageTransformer, layer: int, projected: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Query, key and value of each head, cut out of the joint projection by hand."""
    attention = model.blocks[layer].attention
    p, inner = attention.head_dim, attention.num_heads * attention.head_dim
    parts = projected.shape[-1] // inner  # 1 for CRATE, whose query, key and value are one; else 3
    cut = [[projected[..., i * inner + h * p :][..., :p] for i in range(parts)] for h in range(attention.num_heads)]
    return [(head[0], head[1 % parts], head[2 % parts]) for head in cut]


def by_hand(model: ImageTransformer, images: Tensor) -> dict[tuple[str, int], Tensor]:
    """Every state of every layer, head by head, from the equations."""
    states, tokens = {}, model.embed(images)
    for layer, block in enumerate(model.blocks):
        normed = block.norm1(tokens)
        heads = head_slices(model, layer, F.linear(normed, block.attention.qkv.weight, block.attention.qkv.bias))
        maps = [torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) for q, k, _ in heads]
        seen = torch.cat([rows @ v for rows, (_, _, v) in zip(maps, heads, strict=True)], dim=-1)
        skipped = normed if getattr(block, "skip", "input") == "normalized" else tokens
        states["tokens", layer] = tokens
        states["projections", layer] = torch.stack([k for _, k, _ in heads], dim=1)
        states["attention", layer] = torch.stack(maps, dim=1)
        added = (
            seen @ block.attention.qkv.weight if getattr(block.attention, "tied", False) else block.attention.proj(seen)
        )
        states["compressed", layer] = skipped + added
        states["output", layer] = tokens = block(tokens)
    return states


def hooks_of(model: nn.Module) -> list[tuple[str, str, int]]:
    """Every hook anywhere in a model."""
    return [
        (name, kind, len(hooks))
        for name, module in model.named_modules()
        for kind, hooks in vars(module).items()
        if kind.endswith("_hooks") and hooks
    ]


@torch.no_grad()
def test_every_state_is_what_the_algorithm_says(kind: str) -> None:
    model = make(kind).double()
    images = images_for(model).double()
    with capture(model, *STATES, queries="all") as trace:
        logits = model(images)
    with capture(model, "attention") as of_cls:
        model(images)
    expected = by_hand(model, images)
    for layer in range(DEPTH):
        torch.testing.assert_close(
            of_cls["attention", layer], expected["attention", layer][:, :, :1], rtol=0, atol=1e-12
        )
    assert len(trace) == len(expected) == len(STATES) * DEPTH
    for key, value in expected.items():
        torch.testing.assert_close(trace[key], value, rtol=0, atol=1e-12)
    for layer in range(1, DEPTH):
        assert torch.equal(trace["tokens", layer], trace["output", layer - 1])
    # The model computes [CLS] alone in its last layer, the captured state is of all tokens: the rounding differs.
    torch.testing.assert_close(model.forward_head(model.norm(trace["output", -1])), logits, rtol=0, atol=1e-12)


@torch.no_grad()
def test_shapes_and_sums(kind: str) -> None:
    model = make(kind)
    with capture(model, *STATES) as trace:
        model(images_for(model))
    attention = model.blocks[0].attention
    heads, head_dim = attention.num_heads, attention.head_dim
    for layer in range(DEPTH):
        assert trace["projections", layer].shape == (2, heads, TOKENS, head_dim)
        assert trace["attention", layer].shape == (2, heads, 1, TOKENS)
        torch.testing.assert_close(trace["attention", layer].sum(-1), torch.ones(2, heads, 1))
        assert trace["attention", layer].min() >= 0
        for state in ("tokens", "compressed", "output"):
            assert trace[state, layer].shape == (2, TOKENS, DIM)
        for state in STATES:
            assert trace[state, layer].dtype == torch.float32


@pytest.mark.parametrize("kind", ["crate", "vit"])
@given(data=st.data())
@torch.no_grad()
def test_any_choice_is_a_part_of_the_whole(kind: str, data: st.DataObject) -> None:
    model = make(kind)
    images = images_for(model)

    def some(count: int) -> list[int]:
        return data.draw(st.lists(st.integers(-count, count - 1), min_size=1, max_size=5))

    layers, heads, queries = some(DEPTH), some(HEADS), some(TOKENS)
    with capture(model, "attention", "projections", queries="all") as whole:
        model(images)
    with capture(model, "attention", "projections", layers=layers, heads=heads, queries=queries) as part:
        model(images)
    assert set(part.layers) == {layer % DEPTH for layer in layers}
    for layer in layers:
        torch.testing.assert_close(part["attention", layer], whole["attention", layer][:, heads][:, :, queries])
        assert torch.equal(part["projections", layer], whole["projections", layer][:, heads])


@pytest.mark.parametrize("as_given", [list, tuple, np.array, torch.tensor])
@torch.no_grad()
def test_indices_come_in_any_sequence(as_given: Callable[[list[int]], Any]) -> None:
    model, images = make(), images_for(make())
    choice = {"layers": as_given([-1]), "heads": as_given([2, 0]), "queries": as_given([0, -1, 3])}
    with capture(model, "attention", **choice) as trace, capture(model, "attention", queries="all") as whole:
        model(images)
    torch.testing.assert_close(trace["attention", 2], whole["attention", 2][:, [2, 0]][:, :, [0, -1, 3]])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(None, (0, 1, 2)), (1, (2,)), (2, (1, 2)), ([-2], (1,)), ([2, 0], (2, 0)), (range(2), (0, 1))],
)
@torch.no_grad()
def test_layers_count_from_either_end(layers: Any, expected: tuple[int, ...]) -> None:
    model = make()
    with capture(model, "tokens", layers=layers) as trace:
        model(images_for(model))
    assert trace.layers == expected and len(trace) == len(expected)
    for layer in range(DEPTH):
        if layer in expected:
            assert trace["tokens", layer] is trace["tokens", layer - DEPTH]
        else:
            for index in (layer, layer - DEPTH):
                with pytest.raises(UnknownNameError, match=r"not captured; the captured layers are \("):
                    trace["tokens", index]


class Shapes(TorchDispatchMode):
    """Notes every operation and the shapes that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor):
                self.made.append((func._overloadpacket.__name__, tuple(value.shape)))
        return out

    def count(self, *ending: int) -> int:
        return sum(shape[-len(ending) :] == ending for _, shape in self.made)

    def maps(self) -> list[tuple[int, ...]]:
        return [shape for name, shape in self.made if name == "_softmax"]


@pytest.mark.parametrize("kind", ["crate", "mhsa", "vit"])
@torch.no_grad()
def test_only_what_is_asked_for_is_computed(kind: str) -> None:
    model = make(kind)
    images = images_for(model)
    with Shapes() as plain:
        model(images)
    assert plain.count(TOKENS, TOKENS) == 0  # the model's own attention is fused, or this test would see nothing
    with capture(model, "attention"), Shapes() as cls:
        model(images)
    assert cls.count(TOKENS, TOKENS) == 0
    assert cls.maps() == DEPTH * [(2, HEADS, 1, TOKENS)]
    with capture(model, "attention", layers=[1], heads=[0, 2], queries=[4, 5]), Shapes() as few:
        model(images)
    assert few.count(TOKENS, TOKENS) == 0
    assert few.maps() == [(2, 2, 2, TOKENS)]
    with capture(model, "attention", queries="all"), Shapes() as everything:
        model(images)
    assert everything.maps() == DEPTH * [(2, HEADS, TOKENS, TOKENS)]
    others = ("tokens", "projections", "compressed", "output")
    with capture(model, *others, layers=range(DEPTH - 1)), Shapes() as unrelated:
        model(images)
    assert unrelated.maps() == []
    products = [[shape for name, shape in seen.made if name in ("mm", "addmm")] for seen in (plain, cls, unrelated)]
    assert products[0] == products[1] == products[2]


def test_the_attention_of_the_model_stays_fused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, fused = [], F.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[0].shape)
        return fused(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    model = make(kind)
    with capture(model, "tokens", "projections", "attention", queries="all"):
        model(images_for(model))
    assert len(calls) == DEPTH


RUNS: dict[str, tuple[torch.dtype, Callable[[], AbstractContextManager[Any]]]] = {
    "grad": (torch.float32, nullcontext),
    "no_grad": (torch.float32, torch.no_grad),
    "inference_mode": (torch.float32, torch.inference_mode),
    "bf16": (torch.bfloat16, torch.no_grad),
    "autocast": (torch.float32, lambda: torch.autocast("cpu", torch.bfloat16)),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_output_is_the_same_to_the_bit(kind: str, run: str) -> None:
    dtype, context = RUNS[run]
    model = make(kind).to(dtype).train()
    images = images_for(model).to(dtype)
    with context():
        before = model(images)
        with capture(model, *STATES, queries="all") as trace:
            during = model(images)
        after = model(images)
    assert torch.equal(before, during) and torch.equal(before, after)
    captured = trace["attention", 0]
    assert captured.is_inference() == (run == "inference_mode")
    assert captured.requires_grad == (run in ("grad", "autocast"))
    low = run in ("bf16", "autocast")
    assert captured.dtype == (torch.bfloat16 if low else torch.float32)
    ones, rounding = torch.ones(captured.shape[:-1]), 2**-7 if low else 1e-6
    torch.testing.assert_close(captured.float().sum(-1), ones, rtol=0, atol=rounding)


def test_gradients_are_the_same_to_the_bit(kind: str) -> None:
    model = make(kind)
    images = images_for(model)
    parameters = list(trained(model).values())
    expected = torch.autograd.grad(model(images).square().sum(), parameters)
    with capture(model, *STATES):
        out = model(images)
    gradients = torch.autograd.grad(out.square().sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("state", STATES)
def test_gradients_flow_through_what_was_captured(kind: str, state: str) -> None:
    model = make(kind).double()
    images = images_for(model).double().requires_grad_()
    with capture(model, state, layers=[1], queries="all") as trace:
        model(images)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(trace[state, 1].shape, generator=generator, dtype=torch.float64)
    asked = [images, model.blocks[0].attention.qkv.weight]
    expected = torch.autograd.grad((by_hand(model, images)[state, 1] * weights).sum(), asked)
    for gradient, literal in zip(torch.autograd.grad((trace[state, 1] * weights).sum(), asked), expected, strict=True):
        assert literal.abs().max() > 1e-3
        torch.testing.assert_close(gradient, literal, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("kind", ["crate", "vit"])
def test_gradient_checkpointing(kind: str, backward_inside: bool) -> None:
    model = make(kind)
    images = images_for(model)

    def gradients(checkpointing: bool) -> tuple[Tensor, ...]:
        model.set_grad_checkpointing(checkpointing)
        with capture(model, "attention", "projections", "compressed", heads=[0, 2], queries=[0, 3]) as trace:
            out = model(images)
            first = {(state, layer): trace[state, layer] for state in trace.states for layer in trace.layers}
            loss = out.square().sum() + sum(value.square().sum() for value in first.values())
            if backward_inside:
                found = torch.autograd.grad(loss, list(model.parameters()))
        if not backward_inside:
            found = torch.autograd.grad(loss, list(model.parameters()))
        assert all(trace[key] is value for key, value in first.items())  # not what the backward pass ran again
        return found

    for with_it, without in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(with_it, without)


def test_no_hook_is_left(kind: str) -> None:
    model = make(kind)
    images = images_for(model)
    with capture(model, *STATES):
        assert len(hooks_of(model)) > 0  # or this test would see nothing
        model(images)
    assert hooks_of(model) == []
    with pytest.raises(ZeroDivisionError), capture(model, *STATES):
        model(images)
        raise ZeroDivisionError
    assert hooks_of(model) == []
    with pytest.raises(UnknownNameError), capture(model, *STATES, queries=[0, TOKENS]):
        model(images)
    assert hooks_of(model) == []
    with pytest.raises(InputError), capture(model, *STATES):
        model(images[:, :1])
    assert hooks_of(model) == []
    with pytest.raises(UnknownNameError), capture(model, "tokens", "attention", heads=[HEADS]):
        pass
    assert hooks_of(model) == []


def test_hooks_of_others_stay() -> None:
    model, seen = make(), []
    model.blocks[1].register_forward_hook(lambda *_: seen.append("mine"))
    with capture(model, "output"):
        model(images_for(model))
    model(images_for(model))
    assert seen == ["mine", "mine"] and hooks_of(model) == [("blocks.1", "_forward_hooks", 1)]


@torch.no_grad()
def test_captures_nest() -> None:
    model = make()
    images, others = images_for(model), images_for(model).flip(0)
    with capture(model, "attention", queries="all") as alone:
        model(images)
    with capture(model, "attention", queries=[1]) as outer:
        with capture(model, "attention", "output", layers=[-1], heads=[2]) as inner:
            model(others)
        model(images)
    assert hooks_of(model) == []
    for layer in range(DEPTH):
        torch.testing.assert_close(outer["attention", layer], alone["attention", layer][:, :, [1]])
    with capture(model, "attention", "output") as of_others:
        model(others)
    torch.testing.assert_close(inner["attention", -1], of_others["attention", -1][:, [2]])
    assert torch.equal(inner["output", -1], of_others["output", -1])
    assert len(inner) == 2


@torch.no_grad()
def test_a_trace_is_of_the_last_forward_pass() -> None:
    model = make()
    images = images_for(model)
    with capture(model, "output") as trace:
        model(images)
        first = trace["output", -1]
        model(images.flip(0))
        assert not torch.equal(trace["output", -1], first)
        torch.testing.assert_close(trace["output", -1], first.flip(0))
        model.forward_intermediates(images, [0], stop_early=True)
        assert torch.isfinite(trace["output", 0]).all()
        with pytest.raises(CaptureError, match="call the model inside the with block"):
            trace["output", -1]
    assert len(trace) == 1


@pytest.mark.parametrize("grad", [False, True])
def test_a_trace_does_not_pin_the_model(grad: bool) -> None:
    model = make()
    with torch.set_grad_enabled(grad), capture(model, *STATES) as trace:
        model(images_for(model))
    watch = weakref.ref(model)
    del model
    gc.collect()
    assert watch() is None
    assert trace["attention", 0].shape == (2, HEADS, 1, TOKENS)


@torch.no_grad()
def test_features_only_and_wrapped_models() -> None:
    whole = make()
    images = images_for(whole)
    with capture(whole, *STATES) as expected:
        whole(images)
    parallel = nn.DataParallel(make())
    features = FeatureExtractor(make(), [0, 1])
    for model, depth in ((parallel, DEPTH), (features, 2), (nn.DataParallel(features), 2)):
        with capture(model, *STATES) as trace:
            model(images)
        assert trace.layers == tuple(range(depth))
        for state in STATES:
            for layer in range(depth):
                assert torch.equal(trace[state, layer], expected[state, layer])
            assert torch.equal(trace[state, -1], expected[state, depth - 1])


WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "no state": ((), {}, InputError, "tokens, projections, attention, compressed, output"),
    "state": (("atention",), {}, UnknownNameError, "did you mean 'attention'"),
    "layer": (("tokens",), {"layers": [DEPTH]}, UnknownNameError, f"-{DEPTH} to {DEPTH - 1} are valid"),
    "negative layer": (("tokens",), {"layers": [-DEPTH - 1]}, UnknownNameError, f"there are {DEPTH}"),
    "no layers": (("tokens",), {"layers": []}, InputError, "empty list of layers"),
    "too many layers": (("tokens",), {"layers": DEPTH + 1}, InputError, f"1 to {DEPTH}"),
    "int for -2": (("tokens",), {"layers": -2}, InputError, "the last -2 layers"),
    "fraction of a layer": (("tokens",), {"layers": [0.5]}, InputError, "integer, not 0.5"),
    "head": (("attention",), {"heads": [0, HEADS]}, UnknownNameError, f"no head {HEADS}"),
    "head of tokens": (("tokens",), {"heads": [HEADS]}, InputError, "heads needs projections or attention"),
    "int for heads": (("attention",), {"heads": 1}, InputError, "a list of indices, not 1"),
    "no heads": (("projections",), {"heads": []}, InputError, "empty list of heads"),
    "queries": (("attention",), {"queries": "CLS"}, UnknownNameError, "did you mean 'cls'|known: 'all', 'cls'"),
    "query": (("attention",), {"queries": [TOKENS]}, UnknownNameError, f"no query token {TOKENS}: there are {TOKENS}"),
    "int for queries": (("attention",), {"queries": 0}, InputError, "a list of indices, not 0"),
    "fraction of a query": (("attention",), {"queries": [0.5]}, InputError, "integer, not 0.5"),
    "no queries": (("attention",), {"queries": []}, InputError, "empty list of query tokens"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_exist_is_named(wrong: str) -> None:
    states, options, error, message = WRONG[wrong]
    model = make()
    with pytest.raises(error, match=message), capture(model, *states, **options):
        model(images_for(model))
    assert hooks_of(model) == []


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (("projections", 0), UnknownNameError, "unknown captured state 'projections'"),
        (("attention", DEPTH), UnknownNameError, f"no layer {DEPTH}"),
        (("attention", 0), UnknownNameError, r"the captured layers are \(1,\)"),
        (("attention", "1"), InputError, "integer, not '1'"),
        ("attention", InputError, "trace.state, layer."),
    ],
)
def test_a_trace_says_what_it_does_not_hold(key: Any, error: type[Exception], message: str) -> None:
    model = make()
    with capture(model, "attention", layers=[1]) as trace:
        model(images_for(model))
    with pytest.raises(error, match=message):
        trace[key]


def test_a_model_that_was_not_called_is_an_error_and_not_nothing() -> None:
    other = make()
    with capture(make(), "attention") as trace:
        other(images_for(other))
    assert len(trace) == 0
    with pytest.raises(CaptureError, match="call the model inside the with block"):
        trace["attention", -1]


@pytest.mark.parametrize("foreign", [nn.Linear(2, 2), nn.TransformerEncoderLayer(8, 2), make().blocks[0], "crate"])
def test_foreign_models_are_refused(foreign: Any) -> None:
    name = foreign if isinstance(foreign, str) else type(foreign).__name__
    with pytest.raises(InputError, match=f"{name}.* Known are|not '{name}'"), capture(foreign, "attention"):
        pass


def test_a_trace_is_equal_to_itself_alone() -> None:
    """Tensors do not compare to one truth value."""
    model = small_model("crate_tiny_patch16_224")
    with capture(model, "output") as one, capture(model, "output") as other:
        model(images_for(model))
    assert one != other and len({one, other, one}) == 2


def test_a_trace_is_a_mapping() -> None:
    model = small_model("crate_tiny_patch16_224")
    with torch.no_grad(), capture(model, "tokens", "attention", layers=[0, 1]) as trace:
        assert ("tokens", 0) not in trace  # nothing has run yet
        model(images_for(model))
    assert set(trace) == set(trace.keys()) == {(state, layer) for state in ("tokens", "attention") for layer in (0, 1)}
    assert all(value is trace[key] for key, value in trace.items())
    assert ("tokens", -DEPTH) in trace and trace.get(("tokens", -DEPTH)) is trace["tokens", 0]
    assert ("output", 0) not in trace and "tokens" not in trace
    assert trace.get(("tokens", DEPTH), "none") == "none"


def test_a_trace_stacks_layers_and_moves_as_a_whole() -> None:
    model = small_model("crate_tiny_patch16_224")
    with torch.no_grad(), capture(model, "attention", layers=[1, 0]) as trace:
        model(images_for(model))
    stacked = trace.stack("attention")
    assert all(torch.equal(stacked[i], trace["attention", layer]) for i, layer in enumerate(trace.layers))
    moved = trace.to("meta")
    assert moved["attention", 0].is_meta and moved["attention", 0].shape == trace["attention", 0].shape
    assert not trace["attention", 0].is_meta
    with pytest.raises(UnknownNameError, match="unknown captured state"):
        trace.stack("tokens")


def _top(rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(rows.topk(2))


def test_a_trace_stacks_and_moves_what_reduce_made_of_rows() -> None:
    model = small_model("crate_tiny_patch16_224")
    with (
        torch.no_grad(),
        capture(model, "attention", queries="all", chunk=2, reduce=_top) as trace,
    ):
        model(images_for(model))
    values, indices = trace.stack("attention")
    assert values.shape == indices.shape == (DEPTH, *trace["attention", 0][0].shape)
    assert trace.to("meta")["attention", 0][1].is_meta


def test_a_trace_shows_what_it_holds() -> None:
    model = make()
    with capture(model, "attention", layers=[-1]) as trace:
        assert repr(trace) == "Trace()"
        model(images_for(model))
    assert isinstance(trace, Trace)
    assert repr(trace) == f"Trace(attention, 2: (2, {HEADS}, 1, {TOKENS}))"


@pytest.mark.parametrize("skip", ["input", "normalized"])
@torch.no_grad()
def test_compressed_is_what_ista_codes(skip: Any) -> None:
    """The last link of the chain: z' = ISTA(LN(compressed))."""
    model = make("crate", skip=skip)
    assert isinstance(model, Crate)
    with capture(model, "compressed", "output") as trace:
        model(images_for(model))
    for layer, block in enumerate(model.blocks):
        assert torch.equal(block.ista(block.norm2(trace["compressed", layer])), trace["output", layer])


@pytest.mark.parametrize("chunk", [1, 3, TOKENS, 100])
@torch.no_grad()
def test_rows_in_chunks_are_the_rows(kind: str, chunk: int) -> None:
    model = make(kind)
    images = images_for(model)
    rows = capture(model, "attention", queries="all")
    chunks = capture(model, "attention", queries="all", chunk=chunk)
    mean = capture(model, "attention", queries="all", chunk=chunk, reduce=lambda rows: rows.mean(1, keepdim=True))
    top = capture(model, "attention", queries="all", chunk=chunk, reduce=lambda rows: rows.topk(2))
    with rows as expected, chunks as whole, mean as means, top as tops, Shapes() as seen:
        model(images)
    parts = [len(part) for part in torch.arange(TOKENS).split(chunk)]
    assert sorted(shape[2] for shape in seen.maps()) == sorted(DEPTH * [TOKENS, *(3 * parts)])
    for layer in range(DEPTH):
        wanted = expected["attention", layer]
        torch.testing.assert_close(whole["attention", layer], wanted)
        torch.testing.assert_close(means["attention", layer], wanted.mean(1, keepdim=True))
        values, indices = tops["attention", layer]
        torch.testing.assert_close(values, wanted.topk(2).values)
        torch.testing.assert_close(wanted.gather(-1, indices), values)
    assert repr(tops).startswith("Trace(attention, 0: ((2, ")


@torch.no_grad()
def test_rows_are_reduced_once_though_the_last_layer_runs_twice() -> None:
    model, seen = make(), []

    def once(rows: Tensor) -> Tensor:
        seen.append(rows.shape)
        return rows

    with capture(model, "output"), capture(model, "attention", "compressed", queries="all", reduce=once):
        model(images_for(model))
    assert len(seen) == DEPTH


@pytest.mark.parametrize("chunk", [0, -1, 2.5, "2", True])
def test_a_chunk_is_a_number_of_rows(chunk: Any) -> None:
    with pytest.raises(InputError, match="at least 1, not"), capture(make(), "attention", chunk=chunk):
        pass


@pytest.mark.parametrize("made", [1.0, (), torch.zeros(()), torch.zeros(1, 1, 99), None], ids=repr)
@torch.no_grad()
def test_a_reduction_keeps_the_rows_apart(made: Any) -> None:
    model = make()
    with (
        pytest.raises(InputError, match="in dimension 2"),
        capture(model, "attention", queries="all", reduce=lambda _: made),
    ):
        model(images_for(model))


def test_rows_are_of_attention() -> None:
    with pytest.raises(InputError, match="only tokens is captured"), capture(make(), "tokens", chunk=2):
        pass


@torch.no_grad()
def test_every_hook_sees_all_tokens_of_every_layer(kind: str) -> None:
    """Those of others too: on a layer, on its parts, or on all modules there are."""
    model = make(kind)
    images, seen = images_for(model), []
    block = model.blocks[-1]
    on_all = nn.modules.module.register_module_forward_hook(
        lambda module, _, out: seen.append(out.shape[1]) if module is block else None
    )
    model(images)
    on_all.remove()
    parts = (block, block.norm1)
    handles = [part.register_forward_hook(lambda _, __, out: seen.append(out.shape[1])) for part in parts]
    model(images)
    for handle in handles:
        handle.remove()
    assert seen == 3 * [TOKENS]


def test_gradients_of_the_logits_reach_what_is_the_models_own(kind: str) -> None:
    model = make(kind)
    with capture(model, "tokens", "projections", "compressed", "output") as trace:
        logits = model(images_for(model))
    for state in ("tokens", "projections", "compressed", "output"):
        for layer in range(DEPTH):
            (gradient,) = torch.autograd.grad(logits.sum(), trace[state, layer], retain_graph=True)
            assert gradient.abs().sum() > 0


class Doubling(nn.Module):
    """Calls a layer `module`, as wrappers of torch do, and is none of them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.module = layer

    def forward(self, tokens: Tensor) -> Tensor:
        return 2 * self.module(tokens)


class Adapter(nn.Module):
    """Maps tokens to tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return 2 * tokens


@torch.no_grad()
def test_anything_that_maps_tokens_to_tokens_may_be_a_layer() -> None:
    model = make()
    images = images_for(model)
    model.blocks[-1] = nn.Sequential(model.blocks[-1], Adapter())
    with capture(model, "tokens", "output") as trace:
        logits = model(images)
    last = trace["output", -1]
    torch.testing.assert_close(last, model.blocks[-1](trace["tokens", -1]))
    assert torch.equal(logits, model.forward_head(model.norm(last)))
    with (
        pytest.raises(InputError, match="a Sequential in place of a layer has only the states"),
        capture(model, "attention"),
    ):
        pass
    model = make()
    model.blocks[0] = Doubling(model.blocks[0])
    with capture(model, "tokens", "output") as trace:
        model(images)
    assert torch.equal(trace["output", 0], trace["tokens", 1])


class Doubled(Crate):
    """A model with features of its own."""

    def forward_features(self, images: Tensor) -> Tensor:
        return 2 * super().forward_features(images)


class OfAll(Crate):
    """A model with a head of its own, which reads all tokens."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return super().forward_head(x.amax(dim=1, keepdim=True), pre_logits)


@pytest.mark.parametrize("kind_of_model", [Doubled, OfAll])
@torch.no_grad()
def test_what_a_subclass_does_is_done(kind_of_model: type[Crate]) -> None:
    model = kind_of_model(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)
    images = images_for(model)
    assert torch.equal(model(images), model.forward_head(model.forward_features(images)))


@pytest.mark.parametrize("pool", ["avg", "mean", ""])
@torch.no_grad()
def test_a_head_that_reads_all_tokens_gets_them(pool: Any) -> None:
    model = make(global_pool=pool)
    images = images_for(model)
    assert torch.equal(model(images), model.forward_head(model.forward_features(images)))


# Others at the same time


def test_each_thread_sees_its_own_passes() -> None:
    model = make("vit")
    images = torch.stack([images_for(model, seed=seed)[0] for seed in range(24)])
    with torch.no_grad():
        expected = [by_hand(model, image[None])["attention", 0][:, :, :1] for image in images]

    def look(index: int) -> Tensor:
        with torch.no_grad(), capture(model, "attention", layers=[0]) as trace:
            model(images[index][None])
            return trace["attention", 0]

    def only_run(index: int) -> Tensor:
        with torch.no_grad():
            return model(images[index][None])

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(only_run, index % 24) for index in range(96)]
        maps = list(pool.map(look, [index % 24 for index in range(96)]))
        logits = [run.result() for run in runs]
    for index, found in enumerate(maps):
        torch.testing.assert_close(found, expected[index % 24])
    assert len(logits) == 96
    assert hooks_of(model) == []


def test_each_task_sees_its_own_passes_and_those_of_its_children() -> None:
    model = make()
    first, second = images_for(model, seed=1), images_for(model, seed=2)
    opened, run = asyncio.Event(), asyncio.Event()

    async def look() -> Tensor:
        with capture(model, "tokens", layers=[0]) as trace:
            await asyncio.to_thread(model, first)
            opened.set()
            await run.wait()
            return trace["tokens", 0]

    async def disturb() -> None:
        await opened.wait()
        model(second)
        run.set()

    async def both() -> Tensor:
        return (await asyncio.gather(look(), disturb()))[0]

    with torch.no_grad():
        assert torch.equal(asyncio.run(both()), model.embed(first))


def stance() -> str:
    return str(torch._dynamo.eval_frame._stance.stance)


def test_blocks_that_overlap_leave_compilation_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo

    one, other = make(), make()
    assert stance() == "default"
    first, second = capture(one, "tokens"), capture(other, "tokens")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert stance() == "force_eager"
    second.__exit__(None, None, None)
    assert stance() == "default"
    monkeypatch.setattr(torch.compiler, "set_stance", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError), capture(one, "tokens"):
        pass
    monkeypatch.undo()
    with capture(one, "tokens"):
        pass
    assert stance() == "default"
    with torch.compiler.set_stance("fail_on_recompile"):
        with capture(one, "tokens"):
            pass
        assert stance() == "fail_on_recompile"


@torch.no_grad()
def test_copies_made_inside_a_block_carry_no_hooks_of_it() -> None:
    model = make()
    images, others = images_for(model, seed=1), images_for(model, seed=2)
    with capture(model, "output") as trace:
        copied = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        pickled = torch.load(buffer, weights_only=False)
        model(images)
        seen = trace["output", -1]
        copied(others)
        pickled(others)
        assert trace["output", -1] is seen
    assert torch.equal(pickled(images), model(images))
    assert trace["output", -1] is seen
    copied(others)
    assert trace["output", -1] is seen


@torch.no_grad()
def test_one_module_as_several_layers_shows_each_of_them() -> None:
    model = make()
    model.blocks[2] = model.blocks[0]
    model.blocks[1].mssa.qkv = model.blocks[0].mssa.qkv
    images = images_for(model)
    expected = by_hand(model, images)
    with capture(model, *STATES, queries="all") as trace:
        model(images)
    for (state, layer), value in expected.items():
        torch.testing.assert_close(trace[state, layer], value)
        with capture(model, *STATES, layers=[layer], queries="all") as alone:
            model(images)
        torch.testing.assert_close(alone[state, layer], value)
    assert not torch.equal(trace["tokens", 0], trace["tokens", 2])


class Silent(CrateBlock):
    """A layer whose operators tell nothing but what goes into the coding."""

    def readings(self) -> dict[str, Reading]:
        return {"compressed": super().readings()["compressed"]}


def test_a_state_is_read_in_the_layers_that_have_it() -> None:
    model = make()
    images = images_for(model)
    model.blocks[0] = Silent(model.embed_dim, model.num_heads)
    with capture(model, "attention", "compressed") as trace:
        model(images)
    assert trace.layers == tuple(range(1, len(model.blocks)))
    with capture(model, "compressed") as trace:
        model(images)
    assert trace.layers == tuple(range(len(model.blocks)))
    with (
        pytest.raises(UnknownNameError, match="layer 0 has no state 'attention'; it has tokens, compressed, output"),
        capture(model, "attention", layers=[0, 1]),
    ):
        pass
    with (
        pytest.raises(UnknownNameError, match="has tokens, compressed, output; the layers 1, 2 have it"),
        capture(model, "attention", layers=[0]),
    ):
        pass
    with pytest.raises(UnknownNameError, match="known: 'attention', 'compressed'"), capture(model, "membership"):
        pass


@pytest.mark.parametrize("state", [["attention"], ("attention", "output"), None, 3])
def test_a_state_that_is_no_name_is_refused(state: Any) -> None:
    with pytest.raises(InputError, match=r"'output'"), capture(small_model("crate_tiny_patch16_224"), state):
        pass
