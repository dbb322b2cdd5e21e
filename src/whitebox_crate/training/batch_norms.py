"""BatchNorm in training: over the images of all processes, and fixed if its weights are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def shared_batch_norms(model: nn.Module, device: torch.device, processes: int) -> Iterator[None]:
    """Inside the block, BatchNorms take mean and variance over the images of all processes.

    They are torch's SyncBatchNorm; on a CPU, which lacks it, a module that computes the same. Parameters and statistics
    stay the model's own, and the model's own modules come back afterwards.
    """
    kind = CPUSyncBatchNorm if device.type == "cpu" else nn.SyncBatchNorm
    replaced: list[tuple[nn.Module, str, nn.BatchNorm2d]] = []
    try:
        for parent in list(model.modules()) if processes > 1 else ():
            for name, norm in list(parent.named_children()):
                if type(norm) is nn.BatchNorm2d:
                    shared = kind(norm.num_features, norm.eps, norm.momentum)
                    shared._parameters, shared._buffers = norm._parameters, norm._buffers
                    setattr(parent, name, shared.train(norm.training))
                    replaced.append((parent, name, norm))
        yield
    finally:
        for parent, name, norm in replaced:
            setattr(parent, name, norm.train(getattr(parent, name).training))


def frozen_batch_norms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorms without a trained parameter. Their mean and variance must not move either."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if not any(parameter.requires_grad for parameter in norm.parameters())]


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the images of all processes of torch.distributed. Each process has the same number of images."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        mean = _over_processes(input.mean((0, 2, 3)))
        centred = input - mean[:, None, None]
        variance = _over_processes(centred.square().mean((0, 2, 3)))
        with torch.no_grad():
            count = input.numel() / self.num_features * dist.get_world_size()
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def _over_processes(value: Tensor) -> Tensor:
    """The mean over processes, with gradients."""
    summed: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return summed / dist.get_world_size()


class _Sum(torch.autograd.Function):
    """The sum over processes; gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(value: Tensor) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
