"""bf16 is chosen where it is measured to be faster, and only there; the model stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import FAMILIES, images_for, small_model
from torch import nn

from whitebox_crate import create_model, dtypes, faster_dtype, fold_for_inference
from whitebox_crate.dtypes import ROUNDS, WORTH
from whitebox_crate.errors import InputError


def say_that_bf16_takes(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[torch.dtype]:
    """In place of the clock, when float32 takes a second; the types that are run."""
    run = list[torch.dtype]()

    def told(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> float:
        run.append(given[0].dtype)
        assert layer(*given).dtype == given[0].dtype
        return seconds if given[0].dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(dtypes, "_seconds", torch.no_grad()(told))
    return run


@pytest.mark.parametrize(("seconds", "want"), [(0.5, torch.bfloat16), (0.9, torch.float32), (5.0, torch.float32)])
def test_bf16_is_chosen_where_it_is_worth_it(
    monkeypatch: pytest.MonkeyPatch, seconds: float, want: torch.dtype
) -> None:
    run = say_that_bf16_takes(monkeypatch, seconds)
    assert faster_dtype(small_model(FAMILIES["crate"])) == want
    assert run.count(torch.float32) == run.count(torch.bfloat16) == 1 + ROUNDS
    assert run[2:] == ROUNDS * [torch.float32, torch.bfloat16]  # in turn


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("folded", [False, True])
def test_every_family_is_measured_and_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, family: str, folded: bool
) -> None:
    model = small_model(FAMILIES[family])
    model = fold_for_inference(model) if folded else model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    say_that_bf16_takes(monkeypatch, 0.5 / WORTH)
    assert faster_dtype(model, batch=2) == torch.bfloat16
    assert model.training is not folded
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("seconds", [0.1, 10.0])
@torch.no_grad()
def test_what_is_cast_to_it_computes_the_same_within_its_precision(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    say_that_bf16_takes(monkeypatch, seconds)
    model = create_model("crate_nano", pretrained=True).eval()
    dtype = faster_dtype(model)
    images = images_for(model)
    want, have = model(images), fold_for_inference(model).to(dtype)(images.to(dtype))
    assert have.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]  # of the deviation of the logits
    torch.testing.assert_close(have.float(), want, rtol=0, atol=tolerance * float(want.std()) + tolerance)


def test_the_clock_ends_it_on_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    run = say_that_bf16_takes(monkeypatch, 5.0)
    monkeypatch.setattr(dtypes, "SECONDS", 0.0)
    faster_dtype(small_model(FAMILIES["crate"]))
    assert len(run) == 4  # each once to be warm, and once to be measured


def test_hooks_see_nothing_of_it() -> None:
    model, seen = small_model(FAMILIES["crate"]), list[object]()
    for module in model.modules():
        module.register_forward_hook(lambda *given: seen.append(given))
        module.register_forward_pre_hook(lambda *given: seen.append(given))
    faster_dtype(model)
    assert not seen
    model(images_for(model))
    assert seen  # they are still there


def test_what_it_does_not_take() -> None:
    with pytest.raises(InputError, match="what is inside"):
        faster_dtype(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1, not 0"):
        faster_dtype(small_model(FAMILIES["crate"]), batch=0)


@pytest.mark.parametrize("batch", [0, -1, 1.5, "2", None])
def test_what_is_no_number_of_images_is_refused(batch: Any) -> None:
    with pytest.raises(InputError, match=f"batch must be a whole number, at least 1, not {batch!r}"):
        faster_dtype(small_model(FAMILIES["crate"]), batch)


def test_a_model_without_values_or_quantised_is_refused() -> None:
    model = small_model(FAMILIES["crate"])
    with pytest.raises(InputError, match=r"on the meta device.*measure the model that it was made from"):
        faster_dtype(copy.deepcopy(model).to("meta"))
    model.blocks[-1].mssa.proj.weight = nn.Parameter(
        torch.quantize_per_tensor(torch.zeros(2, 2), 1, 0, torch.qint8), False
    )
    with pytest.raises(InputError, match=r"mssa.proj.weight .* is quantised"):
        faster_dtype(model)
