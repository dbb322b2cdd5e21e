"""Weights are read only where they say all that a module computes; else what reads them refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import images_for, small_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from whitebox_crate import InputError, capture
from whitebox_crate.analysis import (
    SubspaceReport,
    head_bases,
    head_outputs,
    intervene,
    subspace_matrices,
    subspace_report,
    verify_descent,
)
from whitebox_crate.layers import ISTA


class Adapted(nn.Linear):
    """A Linear with an adapter that is not merged."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(-1, keepdim=True)


class Quantised(Tensor):
    """A weight whose values are not what it holds."""


class Tanh(ISTA):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


def doubled(_: nn.Module, __: Any, out: Tensor) -> Tensor:
    return 2 * out


def adapted(model: Any) -> None:
    model.blocks[1].mssa.qkv = Adapted(48, 48, bias=False)


def hooked(model: Any) -> None:
    model.blocks[1].mssa.qkv.register_forward_hook(doubled)


def hooked_before(model: Any) -> None:
    model.blocks[1].mssa.qkv.register_forward_pre_hook(lambda _, args: (2 * args[0],))


def replaced(model: Any) -> None:
    model.blocks[1].mssa.qkv.forward = torch.tanh


def quantised(model: Any) -> None:
    weight = model.blocks[1].mssa.qkv.weight.detach().as_subclass(Quantised)
    model.blocks[1].mssa.qkv.weight = nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize("change", [adapted, hooked, hooked_before, replaced, quantised])
def test_bases_are_not_read_from_a_projection_that_computes_something_else(change: Callable[[Any], None]) -> None:
    model = small_model("crate_nano")
    change(model)
    for read in (subspace_report, lambda m: subspace_matrices(m, 1), lambda m: head_bases(m, 1)):
        with pytest.raises(InputError, match=r"qkv of MSSA is .*not a plain Linear"):
            read(model)
    assert subspace_matrices(model, 0).shape == (2, 48, 24)


@pytest.mark.parametrize("change", ["class", "hook", "identity"])
def test_parts_of_heads_are_not_made_by_a_projection_that_is_not_linear(change: str) -> None:
    model = small_model("crate_nano")
    mssa = model.blocks[1].mssa
    if change == "hook":
        mssa.proj.register_forward_hook(doubled)
    else:
        mssa.proj = Adapted(48, 48) if change == "class" else nn.Tanh()
    with pytest.raises(InputError, match="proj of MSSA is"):
        head_outputs(model, images_for(model))
    with pytest.raises(InputError, match="proj of MSSA is"):
        subspace_report(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ista: Tanh(48), "ista of CrateBlock is Tanh"),
        (lambda ista: nn.Sequential(ista, nn.Tanh()), "Sequential"),
        (lambda ista: ista.register_forward_hook(doubled) and ista, "ISTA with hooks"),
    ],
)
def test_coding_is_not_judged_where_something_else_codes(change: Callable[[ISTA], nn.Module], message: str) -> None:
    model: Any = small_model("crate_nano")
    model.blocks[1].ista = change(model.blocks[1].ista)
    with pytest.raises(InputError, match=message):
        subspace_report(model)
    assert layers_with_a_verdict_on_coding(model) == [0, 2]


def test_a_layer_that_does_not_code_sparsely_has_no_verdict_on_it() -> None:
    model: Any = small_model("crate_nano")
    model.blocks[1].ista = nn.Tanh()
    assert layers_with_a_verdict_on_coding(model) == [0, 2]


def layers_with_a_verdict_on_coding(model: Any) -> list[int]:
    found = verify_descent(model, [images_for(model)], report=lambda _: None)
    return [v.layer for v in found.verdicts if v.claim == "coding"]


def test_what_says_it_all_is_read() -> None:
    """A parametrized weight is a weight; `capture` only reads; what is masked before the projection is not of it."""
    model: Any = small_model("crate_nano")
    images = images_for(model)
    parametrizations.orthogonal(model.blocks[1].mssa.qkv)
    with capture(model, "projections", "compressed", "output"), intervene(model, mask_heads={0: [1]}):
        report = subspace_report(model)
        split = head_outputs(model, images)
    assert report.layers[1].effective_dimension.tolist() == pytest.approx([24, 24])
    assert not split.parts[:, 0, 1].any() and split.parts[:, 0, 0].any()
    model.blocks[2].mssa.qkv = torch.compile(model.blocks[2].mssa.qkv, backend="eager")
    assert subspace_report(model).table() == report.table()


@pytest.mark.parametrize("name", ["crate_nano", "vit_nano", "crate_alpha_tiny_patch16_224"])
def test_a_report_of_subspaces_survives_json(name: str) -> None:
    model: Any = small_model(name)
    nn.init.zeros_(model.blocks[0].attention.qkv.weight)
    report = subspace_report(model)
    again = SubspaceReport.from_json(report.to_json())
    assert again.to_dict() == report.to_dict() and again.table() == report.table()
    for one, other in zip(again.layers, report.layers, strict=True):
        assert one.rank.dtype == torch.int64 and one.angles.dtype == torch.float64
        assert torch.equal(one.angles.isnan(), other.angles.isnan())
