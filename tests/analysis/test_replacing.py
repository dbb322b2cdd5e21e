import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from small_models import DEPTH, FAMILIES, images_for, small_model
from test_backbones import Toy, toy_structure
from torch import Tensor, nn

from whitebox_crate import ImageTransformer, InputError, Trace, UnknownNameError, capture, fold_for_inference
from whitebox_crate.analysis import intervene, replace_states
from whitebox_crate.backbones import register_adapter
from whitebox_crate.backbones.adapters import _ADAPTERS

STATES = ("tokens", "projections", "compressed", "output")
# Without a skip around the coding, so that `compressed` is all that a layer goes on with.
WITHOUT_SKIP = ("crate", "sth", "tied", "attention_only", "mae", "mhsa", "cbt", "crate_cbt")


def make(family: str = "crate", **options: Any) -> ImageTransformer:
    return small_model(FAMILIES[family], **options)


def states_of(model: ImageTransformer, images: Tensor, *states: str, **options: Any) -> Trace:
    with torch.no_grad(), capture(model, *(states or STATES), **options) as trace:
        model(images)
    return trace


def pair(model: ImageTransformer) -> tuple[Tensor, Tensor]:
    return images_for(model, seed=1), images_for(model, seed=2)


def replaceable(family: str) -> list[str]:
    return [state for state in STATES if state != "compressed" or family in WITHOUT_SKIP]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_models_own_states_change_nothing(family: str) -> None:
    model = make(family)
    images = images_for(model)
    expected, own = model(images), states_of(model, images, *replaceable(family))
    for options in ({}, {"tokens": [0, 3, -1]}):
        with replace_states(model, own, **options):
            assert torch.equal(model(images), expected)
    with replace_states(model, states_of(model, images, "projections"), heads=[1], tokens=[2]):
        assert torch.equal(model(images), expected)
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", range(DEPTH))
@torch.no_grad()
def test_all_tokens_of_another_image_give_its_logits(family: str, layer: int) -> None:
    model = make(family)
    one, other = pair(model)
    theirs = model(other)
    assert not torch.equal(model(one), theirs)
    for state in {"tokens", "output", *replaceable(family)} - {"projections"}:
        with replace_states(model, {(state, layer - len(model.layers())): states_of(model, other)[state, layer]}):
            assert torch.equal(model(one), theirs)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_layer_computes_with_what_was_put_in_place(family: str) -> None:
    """At chosen tokens and heads, and with what is its own elsewhere."""
    model = make(family)
    one, other = pair(model)
    own, theirs = states_of(model, one), states_of(model, other)
    for state in replaceable(family):
        heads = [1] if state == "projections" else None
        given = {(state, 1): theirs[state, 1]}
        with replace_states(model, given, tokens=[0, -2], heads=heads), capture(model, *STATES) as trace:
            logits = model(one)
        seen, before, put = trace[state, 1], own[state, 1], theirs[state, 1]
        expected = before.clone()
        for token in (0, before.shape[-2] - 2):
            if heads:
                expected[:, 1, token] = put[:, 1, token]
            else:
                expected[:, token] = put[:, token]
        assert torch.equal(seen, expected) and not torch.equal(seen, before)
        assert not torch.equal(logits, model(one))
        for earlier in ("tokens", "output"):
            assert torch.equal(trace[earlier, 0], own[earlier, 0])


@torch.no_grad()
def test_projections_are_all_that_attention_computes_with() -> None:
    model = make()
    one, other = pair(model)
    own, theirs = states_of(model, one), states_of(model, other)
    with replace_states(model, {("projections", 1): theirs["projections", 1]}), capture(model, "compressed") as trace:
        model(one)
    attended = theirs["compressed", 1] - theirs["tokens", 1]
    torch.testing.assert_close(trace["compressed", 1], own["tokens", 1] + attended, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_keys_alone_are_replaced_where_there_are_queries_and_values() -> None:
    model = make("vit")
    one, other = pair(model)
    own, theirs = states_of(model, one), states_of(model, other)
    given = {("projections", 1): theirs["projections", 1]}
    with replace_states(model, given), capture(model, "attention", "compressed", queries="all") as trace:
        model(one)
    attention = model.blocks[1].attn
    q, _, v = attention.split_heads(attention.qkv(model.blocks[1].norm1(own["tokens", 1])))
    rows = (q @ theirs["projections", 1].mT / q.shape[-1] ** 0.5).softmax(-1)
    torch.testing.assert_close(trace["attention", 1], rows)
    attended = attention.proj((rows @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(trace["compressed", 1], own["tokens", 1] + attended)


@torch.no_grad()
def test_one_image_stands_for_all() -> None:
    model = make()
    one, other = pair(model)
    with replace_states(model, states_of(model, other[1:], "output", layers=[1])):
        logits = model(one)
    torch.testing.assert_close(logits, model(other[1:]).expand(2, -1))


def test_gradients_reach_what_was_put_in_place() -> None:
    model = make()
    one, other = pair(model)
    put = states_of(model, other)["output", 1].requires_grad_()
    with replace_states(model, {("output", 1): put}, tokens=[3]):
        (gradient,) = torch.autograd.grad(model(one).sum(), put)
    assert gradient[:, 3].abs().sum() > 0 and not gradient[:, [0, 1, 2, 4, 5, 6]].any()


@torch.no_grad()
def test_blocks_nest_and_leave_nothing() -> None:
    model = make()
    one, other = pair(model)
    own, theirs = states_of(model, one), states_of(model, other)
    before = model(one)
    outer = replace_states(model, {("tokens", 1): theirs["tokens", 1]}, tokens=[1, 2])
    inner = replace_states(model, {("tokens", 1): own["tokens", 1]}, tokens=[2])
    with capture(model, "tokens") as outside, outer, inner, capture(model, "tokens") as inside:
        model(one)
    expected = own["tokens", 1].clone()
    expected[:, 1] = theirs["tokens", 1][:, 1]
    assert torch.equal(inside["tokens", 1], expected) and torch.equal(outside["tokens", 1], own["tokens", 1])
    with replace_states(model, theirs_of(theirs, "projections")), intervene(model, mask_heads={1: [0, 1]}):
        masked = model(one)
    with intervene(model, mask_heads={1: [0, 1]}), replace_states(model, theirs_of(theirs, "projections")):
        assert torch.equal(model(one), masked)
    with pytest.raises(ZeroDivisionError), replace_states(model, theirs):
        1 / 0  # noqa: B018
    assert torch.equal(model(one), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def theirs_of(trace: Trace, state: str) -> dict[tuple[str, int], Tensor]:
    return {key: value for key, value in trace.items() if key[0] == state}


@torch.no_grad()
def test_others_run_the_model_as_it_is() -> None:
    model = make()
    one, other = pair(model)
    before, theirs = model(one), states_of(model, other, "output")
    with replace_states(model, theirs):
        inside = model(one)
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(lambda: model(one)).result(), before)
        child = asyncio.run(asyncio.to_thread(model, one))
    assert torch.equal(inside, model(other)) and torch.equal(child, inside)


def test_with_checkpointing_layers_run_again_with_what_was_put_in_place() -> None:
    model = make()
    one, other = pair(model)
    theirs, found = states_of(model, other, "output", layers=[1]), []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        with replace_states(model, theirs, tokens=[0, 1]):
            found.append(torch.autograd.grad(model(one).square().sum(), model.blocks[0].mssa.qkv.weight)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "change", [fold_for_inference, torch.nn.DataParallel, lambda m: torch.compile(m, backend="eager")]
)
@torch.no_grad()
def test_folded_wrapped_and_compiled_models(change: Callable[[nn.Module], nn.Module]) -> None:
    model = make()
    one, other = pair(model)
    changed = change(model)
    with replace_states(changed, states_of(model, other, "output", layers=[0])):
        torch.testing.assert_close(changed(one), model(other), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_layer_of_ones_own_takes_tokens_and_output() -> None:
    model = make()
    model.blocks[1] = nn.Identity()
    one, other = pair(model)
    for state in ("tokens", "output"):
        with replace_states(model, states_of(model, other, state, layers=[1])):
            assert torch.equal(model(one), model(other))
    theirs = states_of(model, other, "tokens")
    given = {("compressed", 1): theirs["tokens", 1]}
    with pytest.raises(InputError, match="a Identity in place of a layer"), replace_states(model, given):
        pass


@torch.no_grad()
def test_backbones_of_others() -> None:
    torch.manual_seed(0)
    model = Toy().eval()
    one, other = torch.randn(2, 2, 3, 32, 32)
    before = dict(_ADAPTERS)
    register_adapter(Toy)(toy_structure)
    try:
        with capture(model, "output", "projections", layers=[1]) as own:
            mine = model(one)["tokens"]
        with capture(model, "output", "projections", layers=[1]) as trace:
            theirs = model(other)["tokens"]
        with replace_states(model, own):
            assert torch.equal(model(one)["tokens"], mine)
        with replace_states(model, {("output", 1): trace["output", 1]}):
            assert torch.equal(model(one)["tokens"], theirs)
        keys = {("projections", 1): trace["projections", 1]}
        with replace_states(model, keys, heads=[2]), capture(model, "projections", "output", layers=[1]) as inside:
            model(one)
        assert torch.equal(inside["projections", 1][:, 2], trace["projections", 1][:, 2])
        assert torch.equal(inside["projections", 1][:, :2], own["projections", 1][:, :2])
        assert not torch.equal(inside["output", 1], own["output", 1])
    finally:
        _ADAPTERS.clear()
        _ADAPTERS.update(before)


OUTPUT = torch.zeros(2, 7, 48)
BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "nothing": ({}, {}, InputError, "a trace or a dict"),
    "no mapping": (OUTPUT, {}, InputError, "a trace or a dict"),
    "key": ({"output": OUTPUT}, {}, InputError, "'output', 3"),
    "no tensor": ({("output", 0): [1.0]}, {}, InputError, "list"),
    "state": ({("outptu", 0): OUTPUT}, {}, UnknownNameError, "did you mean 'output'"),
    "rows": ({("attention", 0): OUTPUT}, {}, InputError, "'attention' of layer 0 cannot be replaced"),
    "layer": ({("output", 3): OUTPUT}, {}, UnknownNameError, "no layer 3"),
    "no heads": ({("output", 0): OUTPUT}, {"heads": [0]}, InputError, "'output' has no heads"),
    "head": ({("projections", 0): torch.zeros(2, 2, 7, 24)}, {"heads": [2]}, UnknownNameError, "no head 2"),
    "token": ({("output", 0): OUTPUT}, {"tokens": [7]}, UnknownNameError, "no token 7"),
    "no tokens": ({("output", 0): OUTPUT}, {"tokens": []}, InputError, "empty list of tokens"),
    "another grid": ({("output", 0): torch.zeros(2, 9, 48)}, {}, InputError, r"\(2, 7, 48\) here, and \(2, 9, 48\)"),
    "another batch": ({("output", 0): torch.zeros(3, 7, 48)}, {}, InputError, r"\(3, 7, 48\)"),
    "one head of two": ({("projections", 0): torch.zeros(2, 1, 7, 24)}, {}, InputError, "all tokens and heads"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_replaced_is_refused(case: str) -> None:
    states, options, error, message = BAD[case]
    model = make()
    with pytest.raises(error, match=message), replace_states(model, states, **options):
        model(images_for(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WITHOUT_SKIP)))
def test_what_a_skip_leads_around_is_refused(family: str) -> None:
    model = make(family)
    theirs = states_of(model, images_for(model), "compressed")
    with pytest.raises(InputError, match="the layer does not go on with it alone"), replace_states(model, theirs):
        pass


def test_one_module_as_several_layers_is_refused() -> None:
    model = make()
    model.blocks[2] = model.blocks[0]
    model.blocks[1].mssa.qkv = model.blocks[0].mssa.qkv
    theirs = states_of(model, images_for(model))
    for key in (("output", 0), ("projections", 1)):
        with pytest.raises(InputError, match="that other layers share"), replace_states(model, {key: theirs[key]}):
            pass
    with replace_states(model, {("output", 1): theirs["output", 1]}):
        model(images_for(model))
