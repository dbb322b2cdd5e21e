"""Official CRATE checkpoints in our names, for every released size."""

import pytest
import torch
from golden_data import load_case
from torch import Tensor

from whitebox_crate import create_model
from whitebox_crate.convert import convert_state_dict
from whitebox_crate.errors import WeightsError


def official_names(depth: int, projection: bool = True) -> dict[str, str]:
    """Official name -> ours, written out."""
    pairs = {"pos_embedding": "pos_embed", "cls_token": "cls_token"}
    for kind in ("weight", "bias"):
        pairs[f"to_patch_embedding.1.{kind}"] = f"patch_embed.norm1.{kind}"
        pairs[f"to_patch_embedding.2.{kind}"] = f"patch_embed.proj.{kind}"
        pairs[f"to_patch_embedding.3.{kind}"] = f"patch_embed.norm2.{kind}"
        pairs[f"mlp_head.0.{kind}"] = f"norm.{kind}"
        pairs[f"mlp_head.1.{kind}"] = f"head.{kind}"
        for layer in range(depth):
            theirs, ours = f"transformer.layers.{layer}", f"blocks.{layer}"
            pairs[f"{theirs}.0.norm.{kind}"] = f"{ours}.norm1.{kind}"
            pairs[f"{theirs}.1.norm.{kind}"] = f"{ours}.norm2.{kind}"
            if projection:
                pairs[f"{theirs}.0.fn.to_out.0.{kind}"] = f"{ours}.mssa.proj.{kind}"
    for layer in range(depth):
        pairs[f"transformer.layers.{layer}.0.fn.qkv.weight"] = f"blocks.{layer}.mssa.qkv.weight"
        pairs[f"transformer.layers.{layer}.1.fn.weight"] = f"blocks.{layer}.ista.dictionary"
    return pairs


@pytest.mark.parametrize(
    ("name", "depth"),
    [("crate_tiny", 12), ("crate_small", 12), ("crate_base", 12), ("crate_large", 24)],
)
def test_every_name_of_the_released_sizes(name: str, depth: int) -> None:
    names = official_names(depth)
    state = {theirs: torch.full((), float(number)) for number, theirs in enumerate(names)}
    converted = convert_state_dict(state)
    assert converted == {names[theirs]: value for theirs, value in state.items()}
    with torch.device("meta"):
        assert converted.keys() == create_model(name).state_dict().keys()


@pytest.mark.parametrize("name", ["crate_square", "crate_heads1", "crate_heads1_proj"])
def test_the_tensors_themselves_are_not_touched(name: str) -> None:
    state = load_case(name).group("state")
    copies = {key: value.clone() for key, value in state.items()}
    names = official_names(2, projection=name != "crate_heads1")
    assert state.keys() == names.keys()
    for ours, value in convert_state_dict(state).items():
        [theirs] = [key for key, other in names.items() if other == ours]
        assert value is state[theirs]
        assert torch.equal(value, copies[theirs])


@pytest.mark.parametrize(
    "name",
    [
        "pos_embed",
        "module.cls_token",
        "cls_token.weight",
        "to_patch_embedding.0.weight",
        "transformer.layers.0.0.fn.qkv.bias",
        "transformer.layers.x.0.norm.weight",
        "mlp_head.2.weight",
        "conv1.weight",
    ],
)
def test_names_of_other_implementations_are_refused(name: str) -> None:
    state: dict[str, Tensor] = {"cls_token": torch.zeros(1), name: torch.zeros(1)}
    with pytest.raises(WeightsError, match=f"'{name}'"):
        convert_state_dict(state)
