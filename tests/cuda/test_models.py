"""Every kind of model gives on a device what it gives on the processor: outputs, states, gradients, and folded too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from golden_data import load_case
from small_models import FAMILIES, images_for, one_of_each_kind, small_model, trained
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whitebox_crate import ImageTransformer, capture, create_model, fold_for_inference, list_models
from whitebox_crate._plan import layers_with
from whitebox_crate.convert.rename import convert_state_dict
from whitebox_crate.models import Crate, CrateAlpha, CrateMae
from whitebox_crate.training import Recipe, normalize
from whitebox_crate.training.loop import make_optimizer

pytestmark = pytest.mark.cuda

CASES = {"crate_square": Crate, "crate_rect": Crate, "crate_alpha_square": CrateAlpha}


@pytest.fixture(params=one_of_each_kind(list_models()))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def here(name: str) -> ImageTransformer:
    return small_model(name)


@pytest.fixture
def there(here: ImageTransformer, device: torch.device) -> ImageTransformer:
    return copy.deepcopy(here).to(device)


def close(have: Tensor, want: Tensor, device: torch.device, within: float = 1e-4) -> None:
    assert have.device.type == device.type
    torch.testing.assert_close(have.detach().cpu().to(want.dtype), want.detach(), rtol=within, atol=within)


@torch.no_grad()
def test_outputs(here: ImageTransformer, there: ImageTransformer, device: torch.device) -> None:
    images = images_for(here)
    close(there(images.to(device)), here(images), device)
    for have, want in zip(
        there.forward_intermediates(images.to(device), intermediates_only=True, norm=True),
        here.forward_intermediates(images, intermediates_only=True, norm=True),
        strict=True,
    ):
        close(have, want, device)


INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by a mask, or from the processor
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim"}


class Waits(TorchDispatchMode):
    """Refuses what waits for all that a device still computes: its values here, and sizes that depend on them."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        found = function(*arguments, **(named or {}))
        name = function.overloadpacket.__name__
        tensors = [one for one in tree_leaves((arguments, found)) if isinstance(one, Tensor)]
        crosses = "copy" in name and len({one.device.type for one in tensors}) > 1
        looks_up = name in INDEXING and any(
            one.dtype in (torch.bool, torch.uint8) or one.device.type != arguments[0].device.type
            for one in tree_leaves(arguments[1])
            if isinstance(one, Tensor)
        )
        if crosses or looks_up or name in WAITING:
            raise RuntimeError(f"{function} waits for the device")
        return found


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Within it, what waits for the device is a RuntimeError."""
    if device.type != "cuda":
        with Waits():
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_step_waits_for_nothing(there: ImageTransformer, device: torch.device) -> None:
    """Else a GPU would idle while the processor prepares what comes next."""
    if device.type == "cpu":
        pytest.skip("there is one device")
    images, labels = torch.rand(2, 3, *there.img_size).to(device), torch.tensor([0, 1]).to(device)
    optimizer = make_optimizer(there.train(), Recipe(steps=1, batch_size=2, optimizer="adamw"))
    with no_waits(device):
        torch.nn.functional.cross_entropy(there(normalize(images, there)).float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(there.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad(), capture(there, "attention", layers=layers_with(there, "attention")[-1:]):
            there.eval()(images)


@pytest.mark.parametrize(
    "wait",
    [
        lambda values: values[0].item(),
        lambda values: values.cpu(),
        lambda values: values.nonzero(),
        lambda values: values[values > 0],
        lambda values: values[torch.tensor([0, 1])],
        lambda values: values.masked_select(values > 0),
        lambda values: values.unique(),
    ],
    ids=["item", "copy", "nonzero", "mask", "index from the processor", "masked_select", "unique"],
)
def test_a_wait_is_refused(wait: Callable[[Tensor], object], device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("there is one device")
    values = torch.arange(3.0).to(device)
    with pytest.raises(RuntimeError), no_waits(device):
        wait(values)


@torch.no_grad()
def test_other_sizes(name: str, device: torch.device) -> None:
    here = small_model(name, dynamic_img_size=True)
    images = images_for(here, grid=(4, 3))
    close(copy.deepcopy(here).to(device)(images.to(device)), here(images), device)


@torch.no_grad()
def test_lower_precision(here: ImageTransformer, device: torch.device) -> None:
    images = images_for(here)
    cast = copy.deepcopy(here).to(torch.bfloat16).to(device)(images.to(device, torch.bfloat16))
    assert cast.dtype == torch.bfloat16
    close(cast, here(images), device, within=0.3)


def test_every_state(here: ImageTransformer, there: ImageTransformer, device: torch.device) -> None:
    images = images_for(here)
    for state in ("tokens", "projections", "attention", "compressed", "output"):
        layers = layers_with(here, state)
        traces = []
        for model, seen in ((there, images.to(device)), (here, images)):
            with torch.no_grad(), capture(model, state, layers=layers, queries="all") as trace:
                model(seen)
            traces.append(trace)
        for layer in layers:
            close(traces[0][state, layer], traces[1][state, layer], device)


def test_gradients(here: ImageTransformer, there: ImageTransformer, device: torch.device) -> None:
    """One training step: a loss, its gradients, and what the optimiser makes of the weights."""
    images, labels = images_for(here, batch=4), torch.arange(4) % here.num_classes
    models = {device: there.train(), torch.device("cpu"): here.train()}
    for at, model in models.items():
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
        torch.nn.functional.cross_entropy(model(images.to(at)), labels.to(at)).backward()
        optimizer.step()
    for key, parameter in trained(there).items():
        other = dict(here.named_parameters())[key]
        if parameter.grad is not None:
            close(parameter.grad, other.grad, device, within=1e-3)


def test_gradients_of_captured_attention(device: torch.device) -> None:
    maps = []
    for model in (small_model("crate_nano_patch6_96").to(device), small_model("crate_nano_patch6_96")):
        images = images_for(model).to(next(model.parameters()).device)
        with capture(model, "attention", layers=[1], queries="all", eager=True) as trace:
            logits = model(images)
        maps.append(torch.autograd.grad(logits[:, 0].sum(), trace["attention", 1])[0])
    close(maps[0], maps[1], device)


@pytest.mark.real
@torch.no_grad()
def test_folded_there(here: ImageTransformer, there: ImageTransformer, device: torch.device) -> None:
    images = images_for(here)
    close(fold_for_inference(there)(images.to(device)), here(images), device, within=1e-3)


@torch.no_grad()
def test_folded_here_and_moved(here: ImageTransformer, device: torch.device) -> None:
    images = images_for(here)
    close(fold_for_inference(here).to(device)(images.to(device)), here(images), device, within=1e-3)


@pytest.mark.real
def test_checkpointed_gradients(here: ImageTransformer, there: ImageTransformer, device: torch.device) -> None:
    images = images_for(here).to(device)
    there.set_grad_checkpointing(True)
    there.train()(images).float().sum().backward()
    assert all(value.grad is None or value.grad.device.type == device.type for value in there.parameters())


@pytest.mark.parametrize("case_name", CASES)
@torch.no_grad()
def test_golden_cases(case_name: str, device: torch.device) -> None:
    case = load_case(case_name)
    model = CASES[case_name](**case.crate_options()).eval()
    model.load_state_dict(convert_state_dict(case.group("state")))
    close(model.to(device)(case["input/img"].to(device)), case["output/logits"], device)


def test_masked_autoencoding(device: torch.device) -> None:
    model = small_model("crate_mae_tiny_patch16_224").to(device)
    assert isinstance(model, CrateMae)
    found = model.reconstruct(images_for(model).to(device))
    found.loss.backward()
    assert {of.device.type for of in vars(found).values() if isinstance(of, Tensor)} == {device.type}


def test_made_on_the_device(device: torch.device) -> None:
    with device:
        model = create_model("crate_nano", img_size=24)
    assert {value.device.type for value in model.state_dict().values()} == {device.type}


@pytest.mark.real
@pytest.mark.parametrize("family", ["crate", "cbt", "vit"])
@torch.no_grad()
def test_compiled(family: str, device: torch.device) -> None:
    here = small_model(FAMILIES[family])
    images = images_for(here)
    there = torch.compile(copy.deepcopy(here).to(device))
    close(there(images.to(device)), here(images), device, within=1e-3)
