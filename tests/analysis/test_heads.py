import asyncio
import copy
import pickle
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import images_for, small_model
from torch import Tensor, nn

from whitebox_crate import ImageTransformer, InputError, UnknownNameError, capture
from whitebox_crate._hooks import constant_of
from whitebox_crate.analysis import attention_rollout, cls_rollout, head_contributions, head_outputs, intervene

MODELS = [
    "crate_tiny_patch16_224",
    "crate_alpha_tiny_patch16_224",
    "crate_mae_tiny_patch16_224",
    "crate_mhsa_paper_small_patch16_224",
    "vit_tiny_patch16_224",
    "crate_tied_paper_small_patch16_224",
    "crate_attention_only_paper_small_patch16_224",
]
CODING = [*MODELS[:4], MODELS[5]]  # sparsely


def model_of(name: str, **options: Any) -> ImageTransformer:
    return small_model(name, num_classes=5, **options)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def attention_output(model: ImageTransformer, images: Tensor, layer: int) -> Tensor:
    seen: list[Tensor] = []
    handle = model.blocks[layer].attention.register_forward_hook(lambda _, __, out: seen.append(out))
    model(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", MODELS)
def test_parts_of_heads_add_up_to_the_output(name: str) -> None:
    model = model_of(name)
    images = images_for(model)
    split = head_outputs(model, images, queries="all")
    assert split.parts.shape == (2, 3, 2, 7, 48) and split.layers == (0, 1, 2)
    for layer in split.layers:
        assert torch.allclose(split.total[:, layer], attention_output(model, images, layer), atol=1e-5)
    chosen = head_outputs(model, images, layers=[-1], queries=[3, 0])
    assert torch.allclose(chosen.parts, split.parts[:, 2:, :, [3, 0]], atol=1e-6)
    assert torch.allclose(head_outputs(model, images).parts, split.parts[..., :1, :], atol=1e-6)
    assert hooks(model) == 0


@given(heads=st.integers(1, 4), head_dim=st.integers(1, 9), dim=st.sampled_from([4, 12]), batch=st.integers(1, 3))
def test_parts_add_up_for_any_heads(heads: int, head_dim: int, dim: int, batch: int) -> None:
    model = model_of("crate_tiny_patch16_224", num_heads=heads, head_dim=head_dim, embed_dim=dim, depth=1)
    images = images_for(model, batch=batch)
    split = head_outputs(model, images, queries="all")
    assert torch.allclose(split.total[:, 0], attention_output(model, images, 0), atol=1e-5)


def test_one_head_without_output_projection_is_the_output() -> None:
    model = model_of("crate_tiny_patch16_224", num_heads=1)
    assert isinstance(model.blocks[0].mssa.proj, nn.Identity)
    images = images_for(model)
    split = head_outputs(model, images, queries="all")
    assert torch.equal(split.parts[:, 1, 0], attention_output(model, images, 1)) and not split.bias.any()
    with intervene(model, mask_heads={1: [0]}):
        assert not attention_output(model, images, 1).any()


@pytest.mark.parametrize("name", MODELS)
def test_without_all_heads_attention_is_its_bias(name: str) -> None:
    model = model_of(name)
    images = images_for(model)
    whole = model(images)
    with intervene(model, mask_heads={1: [0, 1]}):
        without = model(images)
        attention = model.blocks[1].attention
        bias = getattr(attention.proj, "bias", None)
        bias = torch.zeros(48) if bias is None else bias
        assert torch.equal(attention_output(model, images, 1), bias.expand(2, 7, 48))
    nn.init.zeros_(attention.qkv.weight if getattr(attention, "tied", False) else attention.proj.weight)
    assert torch.equal(model(images), without) and not torch.equal(whole, without)


def test_without_a_head_the_tokens_lack_its_part() -> None:
    model = model_of("crate_tiny_patch16_224")
    images = images_for(model)
    part = head_outputs(model, images, queries="all").parts[:, 1, 0]
    with capture(model, "compressed") as whole:
        model(images)
    with intervene(model, mask_heads={-2: [-2]}), capture(model, "compressed") as without:
        model(images)
    assert torch.equal(whole["compressed", 0], without["compressed", 0])
    assert torch.allclose(whole["compressed", 1] - part, without["compressed", 1], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_ablation_is_the_logit_less_the_logit_without(name: str) -> None:
    model = model_of(name)
    images = images_for(model)
    found = head_contributions(model, images, [4, 1])
    assert found.shape == (2, 3, 2) and not found.requires_grad
    for layer in range(3):
        for head in range(2):
            with torch.no_grad():
                difference = model(images)
                with intervene(model, mask_heads={layer: [head]}):
                    difference = difference - model(images)
            expected = torch.stack([difference[0, 4], difference[1, 1]])
            assert torch.allclose(found[:, layer, head], expected, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pool", ["token", "mean"])
def test_gradient_is_the_slope_of_the_ablation(name: str, pool: str) -> None:
    """With the input of the output projection scaled by 1 - t for a head, the logit falls by t times the term."""
    model = model_of(name, global_pool=pool).double()
    images = images_for(model).double()
    found = head_contributions(model, images, 2, method="gradient", layers=[1])
    t = 1e-6
    for head in range(2):
        kept = torch.ones(48).double()
        kept[24 * head : 24 * (head + 1)] = 1 - t
        with torch.no_grad():
            whole, proj = model(images), model.blocks[1].attention.proj
            handle = proj.register_forward_pre_hook(lambda _, args, kept=kept: (kept * args[0],))
            slope = (whole - model(images))[:, 2] / t
            handle.remove()
        assert torch.allclose(found[:, 0, head], slope, rtol=1e-3, atol=1e-6)


def test_gradient_is_exact_where_the_rest_is_linear() -> None:
    model = model_of("vit_tiny_patch16_224", depth=1).double()
    model.norm = nn.Identity()
    nn.init.zeros_(model.blocks[0].mlp.fc2.weight)
    images = images_for(model).double()
    exact = head_contributions(model, images, 3)
    assert torch.allclose(exact, head_contributions(model, images, 3, method="gradient"), atol=1e-12)
    parts = head_outputs(model, images).parts[:, :, :, 0]  # here, and here alone, a part has a logit of its own
    assert torch.allclose(exact, parts @ model.head.weight[3], atol=1e-12)


@pytest.mark.parametrize("method", ["ablation", "gradient"])
def test_contributions_work_in_any_mode_and_leave_nothing(method: Any) -> None:
    model = model_of("crate_tiny_patch16_224")
    images = images_for(model)
    expected = head_contributions(model, images, 0, method=method)
    model.requires_grad_(False)
    model.set_grad_checkpointing()
    with torch.inference_mode():
        assert torch.allclose(head_contributions(model, images, torch.tensor([0, -5]), method=method), expected)
    assert hooks(model) == 0 and all(p.grad is None for p in model.parameters())
    wrapped = torch.compile(model, backend="eager")
    assert torch.allclose(head_contributions(wrapped, images, 0, method=method), expected)


@pytest.mark.parametrize("name", CODING)
def test_step_size_zero_leaves_relu_or_nothing(name: str) -> None:
    model = model_of(name)
    images = images_for(model)
    with intervene(model, step_size=0, layers=[0]), capture(model, "compressed", "output", layers=[0]) as trace:
        model(images)
    block, h = model.blocks[0], trace["compressed", 0]
    expected = h if name.startswith("crate_alpha") else torch.relu(block.norm2(h))  # no step from zero: no code
    assert torch.equal(trace["output", 0], expected)


@pytest.mark.parametrize("name", CODING)
def test_a_larger_lambda_makes_a_sparser_code(name: str) -> None:
    model = model_of(name)
    images = images_for(model)
    shares = []
    for sparsity in (0, 0.3, 3, 1e6):
        with intervene(model, sparsity=sparsity, layers=1), capture(model, "compressed", "output", layers=1) as trace:
            model(images)
        block = model.blocks[-1]
        coded = trace["output", -1]
        if name.startswith("crate_alpha"):
            with intervene(model, sparsity=sparsity):
                coded = block.odl.encode(block.norm2(trace["compressed", -1]))
        shares.append(float((coded != 0).double().mean()))
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[2] > shares[3] == 0


class Stop(BaseException):
    pass


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, Stop])
def test_everything_is_undone_whatever_happens_inside(name: str, error: type[BaseException] | None) -> None:
    model = model_of(name)
    images = images_for(model)
    before, weights = model(images), {k: v.clone() for k, v in model.state_dict().items()}
    options: dict[str, Any] = {"step_size": 0.7, "sparsity": 0.2} if name in CODING else {}
    try:
        with intervene(model, mask_heads={0: [1], -1: [0]}, **options):
            assert not torch.equal(model(images), before)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt, Stop) as raised:
        assert type(raised) is error
    assert torch.equal(model(images), before) and hooks(model) == 0
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    for module in model.modules():
        assert getattr(module, "step_size", 0.1) == 0.1 and getattr(module, "sparsity", 0.1) in (0.1, 0.5)


def test_an_error_inside_the_model_leaves_nothing() -> None:
    model = model_of("crate_tiny_patch16_224")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.blocks[1].register_forward_hook(fail)
    for call in (head_outputs, lambda *a: head_contributions(*a, 0, method="gradient"), attention_rollout):
        with pytest.raises(KeyboardInterrupt):
            call(model, images_for(model))
    with pytest.raises(KeyboardInterrupt), intervene(model, mask_heads={0: [0]}):
        model(images_for(model))
    handle.remove()
    assert hooks(model) == 0


def test_a_refused_intervention_changes_nothing() -> None:
    model = model_of("crate_tiny_patch16_224")
    for options in ({"mask_heads": {0: [0], 1: [2]}}, {"step_size": 1.0, "mask_heads": {3: [0]}}):
        with pytest.raises(UnknownNameError, match="are valid"), intervene(model, **options):
            pass
    assert hooks(model) == 0 and model.blocks[0].ista.step_size == 0.1


def test_interventions_nest() -> None:
    model = model_of("crate_tiny_patch16_224")
    images = images_for(model)
    with intervene(model, mask_heads={1: [0, 1]}, step_size=0.3, layers=[1, 2]):
        expected = model(images)
    with intervene(model, mask_heads={1: [0]}, step_size=0.2, layers=[1]):
        outer = model(images)
        with intervene(model, mask_heads={1: [1]}), intervene(model, step_size=0.3, layers=2):
            assert [constant_of(block.ista, "step_size") for block in model.blocks] == [0.1, 0.3, 0.3]
            assert torch.equal(model(images), expected)
        assert torch.equal(model(images), outer)
    assert [constant_of(block.ista, "step_size") for block in model.blocks] == [0.1, 0.1, 0.1]


def test_a_compiled_model_is_changed_too() -> None:
    model = model_of("crate_tiny_patch16_224")
    images = images_for(model)
    wrapped = torch.compile(model, backend="eager")
    before = wrapped(images)
    with intervene(model, mask_heads={0: [0]}, sparsity=3):
        expected = model(images)
    with intervene(wrapped, mask_heads={0: [0]}, sparsity=3):
        assert torch.equal(wrapped(images), expected)
    assert torch.equal(wrapped(images), before)


def test_gradients_pass_through_an_intervention() -> None:
    model = model_of("crate_tiny_patch16_224", depth=1)
    with intervene(model, mask_heads={0: [0]}):
        model(images_for(model)).sum().backward()
    gradient = model.blocks[0].mssa.qkv.weight.grad
    assert gradient is not None and not gradient[:24].any() and gradient[24:].any()


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_a_rollout_sum_to_one(name: str) -> None:
    model = model_of(name)
    images = images_for(model)
    rollout = attention_rollout(model, images)
    assert rollout.shape == (2, 7, 7) and (rollout >= 0).all()
    assert torch.allclose(rollout.sum(-1), torch.ones(2, 7), atol=1e-5)
    maps = cls_rollout(model, images)
    assert maps.shape == (2, 2, 3) and torch.equal(maps.flatten(1), rollout[:, 0, 1:])
    assert hooks(model) == 0


def test_a_rollout_is_the_product_of_layers() -> None:
    model = model_of("vit_tiny_patch16_224")
    images = images_for(model)
    with capture(model, "attention", queries="all") as trace:
        model(images)
    a, b = (0.7 * trace["attention", layer].mean(1) + 0.3 * torch.eye(7) for layer in (0, 1))
    assert torch.allclose(attention_rollout(model, images, layer=1, skip=0.3), b @ a, atol=1e-5)
    assert torch.equal(attention_rollout(model, images, skip=1), torch.eye(7).expand(2, 7, 7))
    bare = attention_rollout(model, images, layer=0, skip=0)
    assert torch.allclose(bare, trace["attention", 0].mean(1), atol=1e-6)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, InputError, "nothing to change"),
    ({"layers": [0], "mask_heads": {0: [0]}}, InputError, "layers needs step_size or sparsity"),
    ({"step_size": -1.0}, InputError, "step_size must be a finite number"),
    ({"sparsity": float("nan")}, InputError, "sparsity must be a finite number"),
    ({"sparsity": "much"}, InputError, "'much'"),
    ({"mask_heads": {0: [5]}}, UnknownNameError, "no head 5: there are 2, so -2 to 1 are valid"),
    ({"mask_heads": {7: [0]}}, UnknownNameError, "no layer 7: there are 3, so -3 to 2 are valid"),
    ({"mask_heads": [0]}, InputError, "dict"),
    ({"mask_heads": {0: 1}}, InputError, "list of indices"),
    ({"step_size": 1, "layers": [9]}, UnknownNameError, "no layer 9"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_interventions_are_told(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = model_of("crate_tiny_patch16_224")
    with pytest.raises(error, match=message), intervene(model, **options):
        pass


def test_constants_that_a_model_does_not_have_are_told() -> None:
    for name in ("vit_tiny_patch16_224", "crate_mlp_paper_small_patch16_224"):
        with pytest.raises(InputError, match="neither eta nor lambda"), intervene(model_of(name), step_size=0.2):
            pass


BAD_CALLS: list[tuple[int | Sequence[int], dict[str, Any], type[Exception], str]] = [
    (5, {}, UnknownNameError, "no class 5"),
    ([0], {}, InputError, "2 images"),
    (0, {"method": "grad"}, UnknownNameError, "gradient"),
    (0, {"layers": [4]}, UnknownNameError, "no layer 4"),
    (1.5, {}, InputError, "integer"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("classes", "options", "error", "message"), BAD_CALLS)
def test_bad_questions_are_told(classes: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = model_of("crate_tiny_patch16_224")
    with pytest.raises(error, match=message):
        head_contributions(model, images_for(model), classes, **options)


def test_models_and_images_that_do_not_do_are_told() -> None:
    model = model_of("crate_tiny_patch16_224")
    images = images_for(model)
    with pytest.raises(InputError, match="NaN"):
        head_contributions(model, images * float("nan"), 0)
    with pytest.raises(InputError, match="expected images"):
        head_contributions(model, images[:, :1], 0)
    with pytest.raises(InputError, match="skip must be a share"):
        attention_rollout(model, images, skip=2)
    with pytest.raises(UnknownNameError, match="no query token 7"):
        head_outputs(model, images, queries=[7])
    with pytest.raises(UnknownNameError, match="queries"):
        head_outputs(model, images, queries="patches")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="package"):
        head_outputs(nn.Linear(2, 2), images)
    model.reset_classifier(0)
    with pytest.raises(InputError, match="0 classes"):
        head_contributions(model, images, 0)
    with pytest.raises(InputError, match="pooling ''"):
        head_contributions(model_of("crate_tiny_patch16_224", global_pool=""), images, 0)


def test_what_is_no_image_is_refused_by_all() -> None:
    model = small_model("crate_tiny_patch16_224")
    images = images_for(model)
    broken = images.clone()
    broken[0, 0, 0, 0] = float("nan")
    for wrong in (broken, images.byte(), [1]):
        for ask in (head_outputs, cls_rollout, attention_rollout, lambda m, i: head_contributions(m, i, 0)):
            with pytest.raises(InputError):
                ask(model, wrong)


def test_outputs_are_read_from_a_model_that_recomputes_its_layers() -> None:
    model = small_model("crate_tiny_patch16_224").train()
    model.set_grad_checkpointing()
    images = images_for(model)
    split = head_outputs(model, images)
    model(images).sum().backward()
    model.set_grad_checkpointing(False)
    torch.testing.assert_close(split.parts, head_outputs(model, images).parts)


def test_a_head_stays_off_where_autograd_runs_its_layer_again_in_a_thread_of_its_own() -> None:
    """As on a GPU, whose backward pass has threads that know no context of ours."""
    model: Any = small_model("crate_nano")
    images = images_for(model)
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        with intervene(model, mask_heads={1: [0]}):
            logits = model(images).sum()
            thread = threading.Thread(target=lambda: logits.backward(retain_graph=True))  # noqa: B023
            thread.start()
            thread.join()
            logits.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_model_that_runs_its_layers_again_compiles() -> None:
    model = small_model("crate_nano")
    model.set_grad_checkpointing()
    gradients = []
    for runs in (model, torch.compile(model, backend="eager", fullgraph=True)):
        model.zero_grad()
        runs(images_for(model)).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert gradients[0] and all(map(torch.allclose, *gradients))


def test_constants_are_changed_for_the_thread_of_the_block_alone() -> None:
    model = model_of("crate_tiny_patch16_224")
    images = images_for(model)
    own, found = model(images), {}
    with intervene(model, step_size=0.7):
        expected = model(images)
    together = threading.Barrier(3, timeout=60)

    def run(name: str, block: AbstractContextManager[None]) -> None:
        together.wait()
        with block:
            together.wait()
            found[name] = (model(images), constant_of(model.blocks[0].ista, "step_size"))
            together.wait()  # all have run within each other's blocks

    blocks = {"changed": intervene(model, step_size=0.7), "own": nullcontext(), "too": intervene(model, step_size=0.2)}
    threads = [threading.Thread(target=run, args=item) for item in blocks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found["own"][0], own) and torch.equal(found["changed"][0], expected)
    assert [found[name][1] for name in blocks] == [0.7, 0.1, 0.2]
    assert not torch.equal(found["too"][0], own) and torch.equal(model(images), own)


def test_a_task_that_outlives_the_block_finds_the_models_own_constants() -> None:
    model = model_of("crate_tiny_patch16_224")

    async def begin() -> list[float]:
        async def read() -> list[float]:
            inside = constant_of(model.blocks[0].ista, "step_size")
            await left.wait()
            return [inside, constant_of(model.blocks[0].ista, "step_size")]

        left = asyncio.Event()
        with intervene(model, step_size=0.7):
            task = asyncio.create_task(read())
            await asyncio.sleep(0)
        left.set()
        return await task

    assert asyncio.run(begin()) == [0.7, 0.1]


def test_copies_and_pickles_made_inside_have_the_models_own_constants() -> None:
    model = model_of("crate_alpha_tiny_patch16_224")
    images = images_for(model)
    expected = model(images)
    with intervene(model, step_size=0.7, sparsity=0.0):
        copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert torch.equal(copied(images), expected)
    assert torch.equal(pickled(images), expected)


def test_layers_that_checkpointing_runs_again_have_the_constants_of_the_block() -> None:
    model = model_of("crate_tiny_patch16_224")
    images, found = images_for(model), []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        with intervene(model, step_size=0.7):
            loss = model(images).sum()
            # As a device does, whose backward pass runs in a thread of its own.
            thread = threading.Thread(target=loss.backward)
            thread.start()
            thread.join()
        found.append(model.blocks[0].ista.dictionary.grad.clone())
    assert torch.equal(*found)
