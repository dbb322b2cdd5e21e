"""Loading is all or nothing, and says what became of each tensor."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_models import GRID, images_for, small_model, small_options
from torch import Tensor

from whitebox_crate import ImageTransformer, create_model, list_models, save_pretrained
from whitebox_crate._files import read_json
from whitebox_crate.errors import WeightsError
from whitebox_crate.layers import resample_pos_embed
from whitebox_crate.load_report import LoadReport
from whitebox_crate.loading import load_state, meta_init
from whitebox_crate.models import Crate

NAMES = ["crate_tiny_patch16_224", "vit_tiny_patch16_224"]
HEAD = {"head.weight", "head.bias"}


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> ImageTransformer:
    return small_model(request.param)


def other_weights(model: ImageTransformer) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {key: torch.randn(t.shape, generator=generator) for key, t in model.state_dict().items()}


def copied(model: ImageTransformer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def refused(model: ImageTransformer, state: dict[str, Tensor], said: str, *, new_head: bool = False) -> None:
    before = copied(model)
    with pytest.raises(WeightsError, match=said) as raised:
        load_state(model, state, "a file", new_head=new_head)
    assert "a file" in str(raised.value)
    assert equal(copied(model), before)
    assert model.load_report is None


def test_everything_is_loaded(model: ImageTransformer) -> None:
    state = other_weights(model)
    report = load_state(model, state, "a file")
    assert equal(copied(model), state)
    assert model.load_report is report
    assert set(report.loaded) == state.keys()
    assert (report.source, report.adapted, report.reinitialised, report.unused) == ("a file", {}, (), ())


def test_any_missing_tensor_is_refused(model: ImageTransformer) -> None:
    state = other_weights(model)
    for name in state:
        rest = {key: value for key, value in state.items() if key != name}
        refused(model, rest, f"{name} is missing")
        if name not in HEAD:
            refused(model, rest, f"{name} is missing", new_head=True)


def test_a_missing_layer_is_refused(model: ImageTransformer) -> None:
    state = {key: value for key, value in other_weights(model).items() if not key.startswith("blocks.1.")}
    for new_head in (False, True):
        refused(model, state, r"blocks\.1\.\S* is missing", new_head=new_head)


def test_any_tensor_of_another_shape_is_refused(model: ImageTransformer) -> None:
    state = other_weights(model)
    for name, value in state.items():
        if name != "pos_embed":
            refused(model, {**state, name: torch.cat([value, value])}, f"{name} is .* the model has")


def test_unknown_names_and_other_dtypes_are_refused(model: ImageTransformer) -> None:
    state = other_weights(model)
    refused(model, {**state, "blocks.9.norm1.weight": torch.zeros(48)}, "has no place in the model")
    refused(model, {**state, "cls_token": torch.zeros(1, 1, 48, dtype=torch.int64)}, "torch.int64")
    refused(model, {f"module.{key}": value for key, value in state.items()}, "is missing; .* more")
    refused(model, {}, "is missing")


def test_a_new_head_is_left_as_it_is_and_only_the_head(model: ImageTransformer) -> None:
    before, state = copied(model), other_weights(model)
    state |= {"head.weight": torch.zeros(9, 48), "head.bias": torch.zeros(9)}
    refused(model, state, "head.weight is")
    report = load_state(model, state, "a file", new_head=True)
    after = copied(model)
    assert all(torch.equal(after[name], before[name]) for name in HEAD)
    assert all(torch.equal(after[name], state[name]) for name in after.keys() - HEAD)
    assert set(report.reinitialised) == set(report.unused) == HEAD
    assert set(report.loaded) == after.keys() - HEAD


def test_a_head_that_fits_is_loaded_even_where_a_new_one_is_allowed(model: ImageTransformer) -> None:
    state = other_weights(model)
    assert load_state(model, state, "a file", new_head=True).reinitialised == ()
    assert equal(copied(model), state)


def test_other_float_types_are_taken_in_the_dtype_of_the_model(model: ImageTransformer) -> None:
    state = {key: value.to(torch.bfloat16) for key, value in other_weights(model).items()}
    load_state(model, state, "a file")
    assert equal(copied(model), {key: value.float() for key, value in state.items()})


# Positions


@given(st.integers(1, 6))
def test_positions_of_another_square_are_resampled(side: int) -> None:
    model = small_model(NAMES[0])
    state = other_weights(model)
    state["pos_embed"] = torch.randn(1, 1 + side * side, 48)
    report = load_state(model, state, "a file")
    torch.testing.assert_close(model.pos_embed.detach(), resample_pos_embed(state["pos_embed"], (side, side), GRID))
    assert report.adapted == {"pos_embed": f"resampled from {side} x {side} to 2 x 3"}
    assert set(report.loaded) == state.keys() - {"pos_embed"}
    assert f"adapted pos_embed: resampled from {side} x {side}" in str(report)


@pytest.mark.parametrize(
    "pos_embed",
    [
        torch.zeros(1, 1 + 5, 48),  # no square
        torch.zeros(1, 1, 48),  # no patch
        torch.zeros(1, 1 + 4, 24),
        torch.zeros(2, 1 + 4, 48),
        torch.zeros(1 + 4, 48),
        torch.zeros(1, 1 + 4, 48, dtype=torch.int64),
    ],
    ids=lambda t: f"{tuple(t.shape)} {t.dtype}",
)
def test_positions_that_are_no_square_grid_are_refused(model: ImageTransformer, pos_embed: Tensor) -> None:
    refused(model, {**other_weights(model), "pos_embed": pos_embed}, "pos_embed is")


def test_resampled_positions_do_not_hide_what_is_missing(model: ImageTransformer) -> None:
    state = {**other_weights(model), "pos_embed": torch.zeros(1, 1 + 16, 48)}
    del state["blocks.1.norm1.weight"]
    refused(model, state, r"blocks\.1\.norm1\.weight is missing")


def test_the_report_reads_well() -> None:
    report = LoadReport("file", ("a", "b"), {"pos_embed": "resampled"}, ("head.bias",), ("head.weight",))
    assert str(report) == (
        "2 tensors from file; adapted pos_embed: resampled; re-initialised head.bias; unused head.weight"
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "\udcff"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_json(path)


def test_a_model_not_made_by_name_loads_too() -> None:
    model = Crate(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    state = other_weights(model)
    load_state(model, state, "a file")
    assert equal(copied(model), state)


# Models without values


@pytest.mark.parametrize("name", list_models())
def test_a_weightless_model_is_the_same_model_on_meta(name: str) -> None:
    with meta_init():
        empty = create_model(name, **small_options(name))
    full = small_model(name)
    described = [(key, value.shape, value.dtype) for key, value in full.state_dict().items()]
    assert [(key, value.shape, value.dtype) for key, value in empty.state_dict().items()] == described
    assert all(value.is_meta for value in empty.state_dict().values())
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in full.parameters()]
    load_state(empty, full.state_dict(), "a file")
    images = images_for(full)
    with torch.no_grad():
        assert torch.equal(empty.eval()(images), full(images))


def test_a_weightless_model_computes_no_initial_value() -> None:
    """A random number drawn inside would move the generator."""
    before = torch.get_rng_state()
    with meta_init():
        small = Crate(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)
        small.cls_token.requires_grad_(False)
    assert torch.equal(torch.get_rng_state(), before)
    assert not small.cls_token.requires_grad
    assert torch.zeros(2).fill_(3).sum() == 6  # outside, all is as before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_dtype_are_cast_to_that_of_the_model(dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in small_model(NAMES[0]).state_dict().items()}
    with meta_init():
        model = create_model(NAMES[0], **small_options(NAMES[0]))
    load_state(model, state, "a file")
    assert all(
        value.dtype == torch.float32 and torch.equal(value, state[key].float())
        for key, value in model.state_dict().items()
    )


def test_a_fresh_head_of_a_weightless_model_has_values() -> None:
    with meta_init():
        model = create_model(NAMES[0], **small_options(NAMES[0], num_classes=9))
    report = load_state(model, small_model(NAMES[0]).state_dict(), "a file", new_head=True)
    assert set(report.reinitialised) == HEAD
    assert not any(value.is_meta for value in model.state_dict().values())
    assert 0 < model.head.weight.std() < 1


def test_a_weightless_model_is_left_alone_by_weights_that_do_not_fit() -> None:
    with meta_init():
        model = create_model(NAMES[0], **small_options(NAMES[0]))
    state = small_model(NAMES[0]).state_dict()
    del state["cls_token"]
    with pytest.raises(WeightsError, match="cls_token is missing"):
        load_state(model, state, "a file")
    assert all(value.is_meta for value in model.state_dict().values())


def test_tensors_of_one_memory_get_memory_of_their_own() -> None:
    with meta_init():
        model = create_model(NAMES[0], **small_options(NAMES[0]))
    state = small_model(NAMES[0]).state_dict()
    state["blocks.1.norm1.weight"] = state["blocks.0.norm1.weight"]
    state["head.weight"] = state["head.weight"].T.contiguous().T
    before = state["blocks.0.norm1.weight"].clone()
    load_state(model, state, "a file")
    with torch.no_grad():
        model.blocks[0].norm1.weight.add_(1)
    assert torch.equal(model.blocks[1].norm1.weight, before)
    assert model.head.weight.is_contiguous()


def test_outside_meta_weights_are_real_whatever_the_default_device(tmp_path: Path) -> None:
    folder = save_pretrained(small_model(NAMES[0]), tmp_path)
    with torch.device("meta"):
        model = create_model(f"local-dir:{folder}", pretrained=True)
    assert not any(value.is_meta for value in model.state_dict().values())


def test_saving_over_the_file_that_a_model_was_loaded_from(tmp_path: Path) -> None:
    for name, save in (("w.safetensors", save_file), ("w.pth", torch.save)):
        path, state = tmp_path / name, small_model(NAMES[0]).state_dict()
        save(state, path)
        model = create_model(NAMES[0], checkpoint_path=path, **small_options(NAMES[0]))
        with torch.no_grad():
            model.cls_token.add_(1)
        save(model.state_dict(), path)
        again = create_model(NAMES[0], checkpoint_path=path, **small_options(NAMES[0]))
        assert torch.equal(again.cls_token, state["cls_token"] + 1)
        assert torch.equal(again.pos_embed, state["pos_embed"])
