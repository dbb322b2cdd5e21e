"""Weights as training frameworks write them, and models that these have wrapped, quantised or spread out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import small_model, small_options
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from whitebox_crate import create_model, register_model, save_pretrained
from whitebox_crate.convert import convert_checkpoint, read_checkpoint
from whitebox_crate.errors import InputError, WeightsError
from whitebox_crate.loading import load_state, not_plain
from whitebox_crate.models import Crate

NAME = "crate_tiny_patch16_224"
State = dict[str, Tensor]


def prefixed(prefix: str, state: State, layer: str = "") -> State:
    return {f"{prefix}{name.replace('blocks.1.', f'blocks.1.{layer}')}": value for name, value in state.items()}


# How others store the weights of a model; what is a float is left out.
FRAMEWORKS: dict[str, Callable[[State], dict[str, Any]]] = {
    "Lightning": lambda s: {"state_dict": prefixed("model.", s), "pytorch-lightning_version": "2.5", "callbacks": {}},
    "Lightning with net": lambda s: {"state_dict": prefixed("net.", s)},
    "Lightning with a loss": lambda s: {"state_dict": {**prefixed("model.", s), "loss.weight": torch.ones(5)}},
    "Lightning, compiled": lambda s: {"state_dict": prefixed("model._orig_mod.", s)},
    "DeepSpeed": lambda s: {"module": s, "ds_config": {"zero": {}}, "optimizer": None},
    "FSDP": lambda s: prefixed("_fsdp_wrapped_module.", s, "_fsdp_wrapped_module."),
    "checkpointed layers": lambda s: prefixed("", s, "_checkpoint_wrapped_module."),
    "compiled layers": lambda s: prefixed("", s, "_orig_mod."),
    "AveragedModel": lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.", s)},
    "AveragedModel of DDP": lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.module.", s)},
    "teacher and student": lambda s: {
        **prefixed("teacher.", s),
        **{name: value + 1 for name, value in prefixed("student.", s).items()},
    },
    "numpy's best accuracy": lambda s: {"state_dict": s, "best_acc1": np.float64(71.5), "of": np.float32(2)},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_weights_of_a_framework_are_read(framework: str, legacy: bool, tmp_path: Path) -> None:
    state = small_model(NAME).state_dict()
    stored = FRAMEWORKS[framework](state)
    torch.save(stored, tmp_path / "last.ckpt", _use_new_zipfile_serialization=not legacy)
    model = create_model(NAME, checkpoint_path=tmp_path / "last.ckpt", **small_options(NAME))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_averages_are_stored_as_torch_names_them() -> None:
    model = small_model(NAME)
    converted = convert_checkpoint(AveragedModel(model).state_dict())
    assert converted.state.keys() == model.state_dict().keys()
    assert converted.unused == ("n_averaged",)


def test_what_stands_beside_the_weights_is_said() -> None:
    stored = FRAMEWORKS["Lightning with a loss"](small_model(NAME).state_dict())
    assert convert_checkpoint(stored).unused == ("loss.weight",)


def test_of_several_weights_those_are_taken_that_are_asked_for() -> None:
    state = small_model(NAME).state_dict()
    other = {name: value + 1 for name, value in state.items()}
    timm = {"state_dict": state, "state_dict_ema": prefixed("module.", other)}
    with pytest.raises(WeightsError, match=r"'state_dict', 'state_dict_ema' all hold weights.*--weights"):
        convert_checkpoint(timm)
    for weights, wanted in (("state_dict", state), ("state_dict_ema", other)):
        found = convert_checkpoint(timm, weights=weights).state
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    flat = FRAMEWORKS["teacher and student"](state)
    assert torch.equal(convert_checkpoint({"model": flat}, weights="student").state["cls_token"], other["cls_token"])
    with pytest.raises(WeightsError, match="no weights named 'emma'; there are 'state_dict', 'state_dict_ema'"):
        convert_checkpoint(timm, weights="emma")
    with pytest.raises(WeightsError, match="no weights named 'ema'"):
        convert_checkpoint(state, weights="ema")


def test_a_layer_with_and_without_a_mark_is_refused() -> None:
    state = small_model(NAME).state_dict()
    with pytest.raises(WeightsError, match="also exist without the wrapper's mark"):
        convert_checkpoint({**state, **prefixed("", state, "_orig_mod.")})


# Several files, and folders of others


def in_parts(state: State, folder: Path, save: Callable[[State, Path], object], stem: str, suffix: str) -> Path:
    """Two files and the index that names them."""
    names, weight_map = list(state), dict[str, str]()
    for number, part in enumerate((names[:7], names[7:]), start=1):
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        save({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize(
    ("save", "stem", "suffix"), [(save_file, "model", "safetensors"), (torch.save, "pytorch_model", "bin")]
)
def test_weights_in_several_files_are_read_by_their_index(
    save: Callable[[State, Path], object], stem: str, suffix: str, tmp_path: Path
) -> None:
    model = small_model(NAME)
    save_pretrained(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = in_parts(model.state_dict(), tmp_path, save, stem, suffix)
    assert read_checkpoint(index).keys() == model.state_dict().keys()
    again = create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"cls_token": "../model.safetensors"}, "no file beside it"),
        ({"cls_token": "model.safetensors.index.json"}, "no file beside it"),
        ({"cls_token": "gone.safetensors"}, "there is no file"),
        ({"cls_token": 3}, "weight_map"),
        ([], "weight_map"),
        ({"another": "model-00001-of-00002.safetensors"}, "do not hold, as 'another'"),
    ],
)
def test_an_index_that_names_something_else_is_refused(weight_map: object, said: str, tmp_path: Path) -> None:
    index = in_parts(small_model(NAME).state_dict(), tmp_path, save_file, "model", "safetensors")
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=said):
        read_checkpoint(index)


def test_a_folder_with_a_bin_file_alone_is_read(tmp_path: Path) -> None:
    model = small_model(NAME)
    save_pretrained(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    again = create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(again.head.weight, model.head.weight)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match=r"no weights in .*pytorch_model\.bin.*checkpoint_path"):
        create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_the_hash_of_a_file_is_not_that_of_another(tmp_path: Path) -> None:
    model = create_model("crate_pico", pretrained=True)
    assert model.pretrained_cfg.sha256
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    again = create_model(
        "crate_pico", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "mine.safetensors")}
    )
    assert torch.equal(again.head.weight, model.head.weight)
    same = create_model("crate_pico", pretrained=True, pretrained_cfg_overlay={"crop_pct": 0.9})
    assert same.pretrained_cfg.sha256 == model.pretrained_cfg.sha256


# Other channels


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_pixels_are_predicted_for_other_channels(channels: int, tmp_path: Path) -> None:
    """Predictions for a channel are those for the one that it repeats; for one channel their mean."""
    name = "crate_mae_tiny_patch16_224"
    model = small_model(name)
    save_pretrained(model, tmp_path)
    other = create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=channels)
    tokens = torch.randn(2, 4, model.embed_dim)
    have, got = (m.decoder_pred(tokens).unflatten(-1, (256, m.in_chans)) for m in (model, other))
    wanted = have.mean(-1, keepdim=True) if channels == 1 else have[..., [c % 3 for c in range(channels)]]
    torch.testing.assert_close(got, wanted)
    assert ("decoder_pred.bias" in other.load_report.adapted) == (channels != 3)


# Models of one's own


@pytest.fixture
def own_model(own_registry: None) -> str:
    class Own(Crate):
        def __init__(self, drop: float = 0.2, **options: Any) -> None:
            super().__init__(**options)
            self.rates = [rate.item() for rate in torch.linspace(0, drop, 3)]
            self.count = nn.BatchNorm1d(self.embed_dim)

    register_model(Own, name="own_model")
    return "own_model"


def test_a_model_that_computes_while_it_is_made_and_counts_is_saved_and_loaded(own_model: str, tmp_path: Path) -> None:
    model = create_model(own_model, img_size=32, patch_size=16, embed_dim=8, depth=1, num_heads=2)
    model.count.num_batches_tracked.fill_(7)
    save_pretrained(model, tmp_path)
    again = create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert again.count.num_batches_tracked == 7 and again.rates == model.rates
    state = {**model.state_dict(), "count.num_batches_tracked": torch.tensor(7.0)}
    with pytest.raises(WeightsError, match=r"num_batches_tracked is torch\.float32, not torch\.int64"):
        load_state(model, state, "a file")


class Scattered(Tensor):
    """Stands for DTensor and the tensors of quantisers: a kind of tensor of its own."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", ["quantised", "spread", "meta"])
def test_models_that_are_no_plain_tensors_are_refused(odd: str, tmp_path: Path) -> None:
    model: Any = small_model(NAME)
    state = model.state_dict()
    if odd == "quantised":
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    elif odd == "spread":
        model.cls_token = nn.Parameter(model.cls_token.detach().as_subclass(Scattered))
    else:
        model.to("meta")
    with pytest.raises(InputError, match="not a plain tensor; save a model in floating point"):
        save_pretrained(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    if odd != "meta":  # which takes weights
        with pytest.raises(WeightsError, match="not a plain tensor"):
            load_state(model, state, "a file")


def test_plain_tensors_are_told_from_others() -> None:
    assert not not_plain(torch.ones(2).bfloat16())
    assert not_plain(torch.ones(2).to_sparse()) == "torch.sparse_coo"
    assert not_plain(torch.qint8) == "dtype"
