"""A stack of two kinds of layers is CRATE below and CBT above, each with its own states."""

import pytest
import torch
from small_models import GRID, images_for, small_model

from whitebox_crate import InputError, UnknownNameError, UnknownOptionError, capture
from whitebox_crate.analysis import explain, verify_descent
from whitebox_crate.models import CBTBlock, CrateBlock, CrateCBT

NAME = "crate_cbt_paper_small_patch8_224"


@pytest.mark.parametrize(
    ("depth", "cbt_depth", "kinds"),
    [(4, None, "mmcc"), (3, None, "mmc"), (1, None, "m"), (3, 0, "mmm"), (3, 2, "mcc"), (3, 3, "ccc")],
)
def test_the_last_layers_are_those_of_cbt(depth: int, cbt_depth: int | None, kinds: str) -> None:
    model = small_model(NAME, depth=depth, cbt_depth=cbt_depth)
    assert [type(block) for block in model.blocks] == [{"m": CrateBlock, "c": CBTBlock}[kind] for kind in kinds]


@pytest.mark.parametrize("cbt_depth", [-1, 4, 1.0, True, "half"])
def test_what_is_no_number_of_layers_is_refused(cbt_depth: object) -> None:
    with pytest.raises(InputError, match="from 0 to 3, the number of layers"):
        small_model(NAME, cbt_depth=cbt_depth)


def test_it_is_both_networks_layer_by_layer() -> None:
    """Below a CRATE of the same weights, and above the blocks of a CBT, which are given the grid."""
    model = small_model(NAME, depth=4)
    crate = small_model("crate_tiny_patch8_224", depth=2)
    crate.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(("blocks.2", "blocks.3"))})
    images = images_for(model)
    tokens = crate.forward_intermediates(
        images, 1, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True
    )
    patches, cls_token = tokens[0]
    after = torch.cat([cls_token, patches], dim=1)
    for block in model.blocks[2:]:
        after = block(after, GRID)
    torch.testing.assert_close(model.norm(after), model.forward_features(images))


def test_states_are_those_of_each_layer() -> None:
    model = small_model(NAME, depth=4)
    images = images_for(model)
    with capture(model, "attention", "compressed") as every, capture(model, "representatives") as upper:
        model(images)
    assert list(every.layers) == [0, 1, 2, 3] and list(upper.layers) == [2, 3]
    assert (every["attention", 1] >= 0).all() and (every["attention", 2] < 0).any()
    lacking = pytest.raises(UnknownNameError, match="layer 0 has no state 'representatives'")
    with lacking, capture(model, "representatives", layers=[0, 2]):
        pass


def test_equations_and_claims_are_those_of_each_layer() -> None:
    model = small_model(NAME, depth=4)
    text = explain(model)
    assert "Layers 0 to 1: MSSA, then ISTA\n" in text and "Layers 2 to 3: CBSA, then ISTA\n" in text
    found = verify_descent(model, [images_for(model, 4)], report=lambda _: None)
    assert [v.layer for v in found.verdicts if v.claim == "compression"] == [0, 1, 2, 3]


def test_all_patches_must_be_there() -> None:
    with pytest.raises(UnknownOptionError, match="patch_drop_rate"):
        small_model(NAME, patch_drop_rate=0.5)


def test_representatives_are_of_the_patches_where_they_are() -> None:
    block = small_model(NAME, representatives=(1, 2)).blocks[-1]
    tokens = torch.randn(1, 7, 48)
    pooled = block.cbsa.pool(tokens, GRID)
    by_hand = tokens[:, 1:].unflatten(1, GRID).mean(1)  # the rows together; 3 columns in 2 windows
    torch.testing.assert_close(pooled, torch.stack([by_hand[:, :2].mean(1), by_hand[:, 1:].mean(1)], dim=1))
    assert isinstance(small_model(NAME), CrateCBT)
