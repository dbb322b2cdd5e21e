"""BatchNorm in training: over all processes as over one, resumed to the bit, and left alone where it is frozen."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from small_models import small_model
from small_training import CLASSES, Colours, same, short, weights
from torch import Tensor, nn

from whitebox_crate.models import ImageTransformer
from whitebox_crate.training import train
from whitebox_crate.training.batch_norms import CPUSyncBatchNorm, frozen_batch_norms, shared_batch_norms

SIDE = 16


def make() -> ImageTransformer:
    options = {"img_size": SIDE, "depth": 2, "embed_dim": 16, "num_classes": CLASSES}
    return small_model("cbt_tiny_patch8_224", **options)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def test_a_run_in_parts_is_the_same_run(tmp_path: Path) -> None:
    recipe = short(sizes=(SIDE,), size_starts=(0.0,))
    whole = train(make(), Colours(), recipe, tmp_path / "whole")
    train(make(), Colours(), recipe, tmp_path / "parts", stop_at=5)
    again = make()
    for value in again.buffers():
        value.fill_(7)
    assert same(weights(train(again, Colours(), recipe, tmp_path / "parts")), weights(whole))
    assert not same(statistics(whole), statistics(make()))
    assert type(whole.get_submodule("patch_embed.proj.0.1")) is nn.BatchNorm2d


@pytest.mark.parametrize("objective", ["linear_probe", "supervised"])
def test_a_linear_probe_moves_no_statistics(objective: str, tmp_path: Path) -> None:
    model = make()
    before = weights(model)
    after = weights(train(model, Colours(), short(objective=objective, sizes=(SIDE,), size_starts=(0.0,)), tmp_path))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert (moved == {"head.weight", "head.bias"}) == (objective == "linear_probe")
    assert frozen_batch_norms(model) == []


def test_one_process_keeps_its_norms_and_several_share_them() -> None:
    model = make().train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with shared_batch_norms(model, torch.device("cpu"), 1):
        assert not any(isinstance(module, CPUSyncBatchNorm) for module in model.modules())
    for device, kind in (("cpu", CPUSyncBatchNorm), ("cuda", nn.SyncBatchNorm)):
        with pytest.raises(KeyError), shared_batch_norms(model, torch.device(device), 2):
            shared = [module for module in model.modules() if isinstance(module, kind)]
            assert [one.weight for one in shared] == [one.weight for one in norms]
            assert all(one.running_mean is own.running_mean for one, own in zip(shared, norms, strict=True))
            model.eval()
            raise KeyError
        assert [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == norms
        assert not any(norm.training for norm in norms)
        model.train()


def step(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output of a forward pass, gradients of its squares, and the statistics afterwards."""
    out = model(images)
    out.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"out": out.detach(), **gradients, **statistics(model)}


def in_a_process(rank: int, folder: str, model: nn.Module, images: Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    model = copy.deepcopy(model)  # what is passed lies in memory that processes share
    with shared_batch_norms(model, torch.device("cpu"), 2):
        found = step(model, images.chunk(2)[rank])
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_what_one_computes_of_all_images(tmp_path: Path) -> None:
    model, images = make().double().train(), torch.randn(4, 3, SIDE, SIDE, dtype=torch.float64)
    expected = step(copy.deepcopy(model), images)
    multiprocessing.spawn(in_a_process, (str(tmp_path), model, images), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(torch.cat([one["out"] for one in found]), expected["out"])
    for name, value in expected.items():
        if name in statistics(model):
            torch.testing.assert_close(found[0][name], value, msg=name)
            assert torch.equal(found[0][name], found[1][name])
        elif name != "out":  # of a mean over images, which are as many in each process
            torch.testing.assert_close((found[0][name] + found[1][name]) / 2, value, rtol=1e-9, atol=1e-9, msg=name)
