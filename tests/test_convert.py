"""Checkpoints of every known format in our names, and the models that they are for."""

from typing import Any

import pytest
import torch
from foreign import dino_training_of, jax_of, two_part_of
from fuzzing import watchdog
from golden_data import load_case
from torch import Tensor

from whitebox_crate import create_model, list_models
from whitebox_crate.convert import formats as _formats
from whitebox_crate.convert.infer import infer_model
from whitebox_crate.convert.rename import convert_checkpoint, convert_state_dict
from whitebox_crate.errors import InputError, UnknownNameError, WeightsError
from whitebox_crate.loading import meta_init


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


def state_of(name: str) -> dict[str, Tensor]:
    return load_case(name).group("state")


@pytest.mark.parametrize(
    ("name", "depth"),
    [("crate_tiny", 12), ("crate_small", 12), ("crate_base", 12), ("crate_large", 24)],
)
def test_every_name_of_the_released_sizes(name: str, depth: int) -> None:
    names = official_names(depth)
    state = {theirs: torch.full((), float(number)) for number, theirs in enumerate(names)}
    converted = convert_state_dict(state)
    assert converted == {names[theirs]: value for theirs, value in state.items()}
    with meta_init():
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


# Bounds


def test_prefixes_without_end_are_refused_before_long() -> None:
    for names in (2, 5000):
        prefix = "module." * (700_000 // names)
        with watchdog(), pytest.raises(WeightsError):
            convert_checkpoint({f"{prefix}blocks.{number}.norm": torch.ones(1) for number in range(names)})


def test_layers_without_end_are_refused_before_long() -> None:
    state = {**create_model("crate_tiny", embed_dim=8, depth=1, num_heads=1).state_dict()}
    for name in [name for name in state if name.startswith("blocks.0.")]:
        state.update(dict.fromkeys((name.replace(".0.", f".{layer}.", 1) for layer in range(20_000)), state[name]))
    with watchdog(), pytest.raises(WeightsError, match="at most 1000"):
        infer_model(state)


# Formats


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("crate_square", "CRATE"),
        ("crate_alpha_rect", "CRATE-alpha"),
        ("crate_alpha_heads1", "CRATE-alpha"),
        ("crate_mae_basic", "CRATE-MAE"),
        ("timm_vit", "whitebox-crate, timm or DINO"),
    ],
)
def test_a_format_is_recognised_and_its_tensors_are_taken_as_they_are(name: str, format: str) -> None:
    state = state_of(name)
    converted = convert_checkpoint(state)
    assert converted.format == format
    theirs = {id(value): key for key, value in state.items()}
    assert {theirs[id(value)] for value in converted.state.values()} | set(converted.unused) == state.keys()
    assert converted.state is not state


def test_our_own_names_stay() -> None:
    state = create_model("crate_mae_tiny", embed_dim=8, depth=1, num_heads=1).state_dict()
    assert {name: id(value) for name, value in convert_state_dict(state).items()} == {
        name: id(value) for name, value in state.items()
    }


def test_a_format_with_names_of_a_model_registered_elsewhere_stays() -> None:
    state = {**state_of("timm_vit"), "blocks.0.gate": torch.ones(1)}
    assert "blocks.0.gate" in convert_state_dict(state)  # whether it has a place is for loading to say


def test_what_crate_mae_never_uses_is_said() -> None:
    state = state_of("crate_mae_basic")
    converted = convert_checkpoint(state)
    assert set(converted.unused) == {"pos_embed", "decoder_embed.weight", "decoder_embed.bias"}
    assert converted.state["pos_embed"] is state["decoder_pos_embed"]


@pytest.mark.parametrize("pool", ["avg", "mean"])
@pytest.mark.parametrize("name", ["crate_square", "crate_alpha_square", "crate_mae_basic"])
def test_the_last_norm_has_the_name_that_pooling_gives_it(name: str, pool: str) -> None:
    token, pooled = convert_state_dict(state_of(name)), convert_state_dict(state_of(name), global_pool=pool)
    renamed = {f"fc_{key}" if key.startswith("norm.") else key for key in token}
    assert pooled.keys() == renamed != token.keys()


def test_a_two_part_head_becomes_one() -> None:
    case = load_case("crate_square")
    converted, plain = convert_checkpoint(two_part_of(case)), convert_checkpoint(case.group("state"))
    assert converted.format == "CRATE with a two-part head"
    assert converted.state.keys() == plain.state.keys()
    for name, value in plain.state.items():
        torch.testing.assert_close(converted.state[name], value, rtol=0, atol=1e-6)
    assert converted.state["head.weight"].dtype == torch.float32


@pytest.mark.parametrize("lacking", ["mlp_head.1.bias", "mlp_head.1.weight", "head.bias", "head.weight"])
def test_half_of_a_two_part_head_is_refused(lacking: str) -> None:
    state = two_part_of(load_case("crate_square"))
    with pytest.raises(WeightsError, match="two Linears"):
        convert_checkpoint({**state, lacking: torch.ones(3, 3, 3)})
    del state[lacking]
    with pytest.raises(WeightsError, match="two Linears"):
        convert_checkpoint(state)


@pytest.mark.parametrize("name", ["crate_alpha_square", "crate_alpha_rect"])
@pytest.mark.parametrize("prefix", ["params/", ""])
def test_the_jax_original_becomes_what_its_authors_ported(name: str, prefix: str) -> None:
    case = load_case(name)
    theirs = {prefix + key.removeprefix("params/"): value for key, value in jax_of(case).items()}
    converted, ported = convert_checkpoint(theirs), convert_state_dict(case.group("state"))
    assert converted.format == "CRATE-alpha (JAX)"
    assert converted.options == {"norm_eps": 1e-6, "num_heads": case.kwargs["heads"]}
    assert converted.state.keys() == ported.keys()
    for key, value in ported.items():
        assert torch.equal(converted.state[key], value) and converted.state[key].is_contiguous()


@pytest.mark.parametrize("name", ["embedding/kernel", "head/kernel", "Transformer/encoderblock_1/*/proj/kernel"])
def test_a_jax_kernel_with_other_axes_is_refused(name: str) -> None:
    state = jax_of(load_case("crate_alpha_square"))
    [found] = [key for key in state if key.endswith(name.partition("*")[2] or name) and name.partition("*")[0] in key]
    with pytest.raises(WeightsError, match=r"is \(3,\)"):
        convert_checkpoint({**state, found: torch.ones(3)})


def test_of_dino_in_training_the_teacher_is_taken_without_its_head() -> None:
    case = load_case("timm_vit")
    converted = convert_checkpoint(dino_training_of(case))
    state = case.group("state")
    assert {key: id(value) for key, value in converted.state.items()} == {
        key: id(value) for key, value in state.items()
    }
    assert set(converted.unused) == {"head.mlp.0.weight", "head.last_layer.weight_g"}


@pytest.mark.parametrize(
    "name",
    [
        "module.cls_token",
        "cls_token.weight",
        "to_patch_embedding.0.weight",
        "transformer.layers.0.0.fn.qkv.bias",
        "transformer.layers.x.0.norm.weight",
        "transformer.layers.0.1.fn.D2",
        "blocks.0.layers.0.2.norm.weight",
        "mlp_head.2.weight",
        "conv1.gamma",
        "params/Transformer/encoderblock_0/LayerNorm_2/scale",
        "features.0.weight",
    ],
)
def test_names_that_no_format_has_are_refused(name: str) -> None:
    state: dict[str, Tensor] = {"cls_token": torch.zeros(1), name: torch.zeros(1)}
    with pytest.raises(WeightsError, match=f"'{name}'"):
        convert_state_dict(state)


@pytest.mark.parametrize("name", ["crate_square", "crate_alpha_square", "crate_mae_basic"])
def test_a_name_too_many_is_refused(name: str) -> None:
    with pytest.raises(WeightsError, match=r"'ema\.decay' do not belong"):
        convert_checkpoint({**state_of(name), "ema.decay": torch.ones(1)})


def test_a_checkpoint_without_a_tensor_says_which_formats_are_known() -> None:
    with pytest.raises(WeightsError, match=r"CRATE-alpha.*CRATE-MAE.*timm"):
        convert_checkpoint({"epoch": 3})


def test_two_tensors_for_one_place_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_formats._CRATE_NAMES, "cls", "cls_token")
    form = _formats.Format("doubled", ("cls",), _formats._CRATE_NAMES)
    monkeypatch.setattr("whitebox_crate.convert.rename.FORMATS", (form,))
    with pytest.raises(WeightsError, match="both become cls_token"):
        convert_checkpoint({"cls": torch.ones(1), "cls_token": torch.ones(1)})


# Wrappers and prefixes


@pytest.mark.parametrize("wrapper", _formats.WRAPPERS)
def test_weights_in_a_wrapper_are_found(wrapper: str) -> None:
    state = state_of("crate_square")
    wrapped = {wrapper: state, "epoch": 3, "optimizer": {"state": {}}, "center": torch.ones(1)}
    assert convert_state_dict(wrapped).keys() == convert_state_dict(state).keys()
    assert convert_state_dict({"model": {**wrapped, "args": {}}}).keys() == convert_state_dict(state).keys()


@pytest.mark.parametrize("name", ["crate_square", "crate_mae_basic", "crate_alpha_square", "timm_vit"])
@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "backbone.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.", "net."],
)
def test_prefixes_that_all_names_have_are_dropped(name: str, prefix: str) -> None:
    state = state_of(name)
    assert convert_state_dict({prefix + key: value for key, value in state.items()}) == convert_state_dict(state)


def test_several_sets_of_weights_are_an_error_that_names_them() -> None:
    state = state_of("crate_square")
    with pytest.raises(WeightsError, match="'model', 'model_ema' all hold weights"):
        convert_checkpoint({"model": state, "model_ema": state})
    with pytest.raises(WeightsError, match="'state_dict', 'the top level'"):
        convert_checkpoint({**state, "state_dict": state})


def test_weights_under_an_unknown_name_are_not_guessed() -> None:
    with pytest.raises(WeightsError, match="'generator', 'discriminator'"):
        convert_checkpoint({"generator": state_of("crate_square"), "discriminator": {}})


def test_a_dict_in_itself_has_an_end() -> None:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    with pytest.raises(WeightsError, match="dicts deep"):
        convert_checkpoint(loop)


# Which model


# Shapes do not tell these from a plainer model.
PLAINER = {
    "crate_paper_small_patch16_224": "crate_tiny_patch16_224",
    "crate_paper_small_patch8_224": "crate_tiny_patch8_224",
    "crate_sth_paper_small_patch16_224": "crate_tiny_patch16_224",
    "crate_sth_paper_small_patch8_224": "crate_tiny_patch8_224",
}


def empty(name: str, **options: Any) -> dict[str, Tensor]:
    with meta_init():
        state: dict[str, Tensor] = create_model(name, **options).state_dict()
    return state


@pytest.mark.parametrize("name", sorted(set(list_models()) - {"crate_base_patch8_224"}))
def test_every_registered_model_is_known_by_its_weights(name: str) -> None:
    assert infer_model(empty(name)) == (PLAINER.get(name, name), {})


def test_b8_may_have_6_or_12_heads_so_that_one_must_say() -> None:
    state = empty("crate_base_patch8_224")
    with pytest.raises(InputError, match=r"crate_base_patch8_224 has 12, crate_demo_base_patch8_224 has 6.*num_heads="):
        infer_model(state)
    assert infer_model(state, options={"num_heads": 12}) == ("crate_base_patch8_224", {})
    assert infer_model(state, model="crate_base_patch8_224") == ("crate_base_patch8_224", {})
    assert infer_model(state, options={"num_heads": 6}) == ("crate_base_patch8_224", {"num_heads": 6})


def test_b8_with_a_two_part_head_is_the_demo() -> None:
    ours = empty("crate_base_patch8_224", num_classes=10)
    names = {value: key for key, value in official_names(12).items()}
    official = {names[key]: torch.empty(value.shape) for key, value in ours.items() if not key.startswith("head")}
    first = {"mlp_head.1.weight": torch.ones(768, 768), "mlp_head.1.bias": torch.ones(768)}
    head = {"head.weight": torch.ones(10, 768), "head.bias": torch.ones(10)}
    assert infer_model({**official, **first, **head}) == ("crate_demo_base_patch8_224", {"num_classes": 10})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crate_small", {"num_classes": 10}),
        ("crate_small", {"num_classes": 0, "img_size": 384}),
        ("crate_small", {"proj": "tied"}),
        ("crate_attention_only", {"proj": "tied"}),
        ("crate_cbt", {"cbt_depth": 3}),
        ("crate_mlp", {"mlp_ratio": 2.0}),
        ("vit_small_patch8_224", {"qkv_bias": False, "in_chans": 1}),
        ("vit_small_patch8_224", {"no_embed_class": True, "init_values": 1e-5}),
        ("vit_small_patch8_224", {"reg_tokens": 1, "img_size": 64}),
        ("crate_alpha_base", {"expansion": 2, "img_size": 64}),
        ("tost_small", {"qkv_bias": False, "cls_attn_layers": 1}),
        ("tost_tiny", {"mlp_ratio": 2.0, "head_dim": 8, "in_chans": 1}),
        ("crate_mae_base", {"decoder_depth": 8}),
        ("crate_mae_base", {"decoder_depth": 0, "num_classes": 10}),
    ],
)
def test_options_that_shapes_show(name: str, options: dict[str, Any]) -> None:
    found, differing = infer_model(empty(name, **options))
    assert found.startswith(name) and differing == options


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crate_tiny", {"depth": 2, "num_heads": 4}),
        ("crate_tiny", {"embed_dim": 24, "num_heads": 2, "head_dim": 5}),
        ("vit_tiny_patch16_224", {"embed_dim": 24, "num_heads": 2, "head_dim": 5}),
        ("crate_tiny", {"in_chans": 4, "num_heads": 6}),
        ("crate_tiny", {"patch_size": (16, 8), "num_heads": 6, "img_size": (32, 48)}),
        ("vit_tiny_patch16_224", {"img_size": (32, 48)}),
        ("vit_tiny_patch16_224", {"img_size": (32, 48), "reg_tokens": 2, "no_embed_class": True}),
        ("vit_tiny_patch16_224", {"img_size": (32, 48), "reg_tokens": 2}),
        ("crate_tiny", {"global_pool": "mean"}),
        ("crate_mae_tiny", {"embed_dim": 24, "num_heads": 2, "decoder_num_heads": 3}),
    ],
)
def test_options_that_shapes_do_not_show_are_given(name: str, options: dict[str, Any]) -> None:
    hidden = {"num_heads", "in_chans", "patch_size", "img_size", "global_pool", "decoder_num_heads"}
    state = empty(name, **options)
    found, differing = infer_model(state, options={key: value for key, value in options.items() if key in hidden})
    again = empty(found, **differing)
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}
    with meta_init():
        model = create_model(found, **differing)
    for key, value in options.items():
        assert getattr(model, key, value) in (value, (value, value))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("crate_tiny", {"embed_dim": 48}, r"embed_dim 48.*num_heads="),
        ("crate_tiny", {"embed_dim": 24, "num_heads": 2, "head_dim": 5}, r"are 10 wide.*num_heads="),
        ("crate_tiny", {"img_size": (32, 48)}, r"6 patches.*img_size="),
        ("crate_tiny", {"in_chans": 1}, r"256 values.*in_chans="),
        ("crate_tiny", {"in_chans": 2}, r"512 values.*in_chans="),
        ("crate_tiny", {"global_pool": "avg"}, r"global_pool="),
    ],
)
def test_what_shapes_do_not_tell_is_asked_for(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        infer_model(empty(name, **options))


@pytest.mark.parametrize("heads", [0, -2, "two", 3, 2.0])
def test_heads_that_do_not_divide_are_refused(heads: object) -> None:
    with pytest.raises(InputError, match="num_heads"):
        infer_model(empty("crate_tiny", embed_dim=24, num_heads=2, head_dim=5), options={"num_heads": heads})


def test_a_name_that_is_given_is_taken_with_its_tag() -> None:
    state = empty("crate_paper_small_patch8_224")
    assert infer_model(state, model="crate_sth") == ("crate_sth_paper_small_patch8_224", {})
    alpha = empty("crate_alpha_base")
    name = "crate_alpha_base_patch16_224.in21k_ft_in1k"
    assert infer_model(alpha, model=name) == (name, {})
    assert infer_model(state, model="crate_tiny_patch16_224") == ("crate_tiny_patch16_224", {"patch_size": 8})


def test_a_name_that_is_given_must_be_possible() -> None:
    state = empty("crate_tiny")
    with pytest.raises(InputError, match="does not fit the file"):
        infer_model(state, model="vit_small_patch16_224")
    with pytest.raises(InputError, match="num_heads"):
        infer_model(state, model="crate_base")
    with pytest.raises(UnknownNameError, match="crate_tiny"):
        infer_model(state, model="crate_tny")


def test_the_jax_original_tells_heads_and_eps() -> None:
    name, options = infer_model(jax_of(load_case("crate_alpha_square")))
    assert name.startswith("crate_alpha")
    assert (options["num_heads"], options["norm_eps"]) == (4, 1e-6)
    assert infer_model(jax_of(load_case("crate_alpha_square")), options={"norm_eps": 1e-5})[1].get("norm_eps") is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cls_token": None}, r"cls_token is \(\)"),
        ({"cls_token": torch.zeros(1, 1, 0)}, r"cls_token is \(1, 1, 0\)"),
        ({"pos_embed": torch.zeros(1, 5, 7)}, r"pos_embed \(1, 5, 7\)"),
        ({"pos_embed": torch.zeros(0, 1 << 40, 32)}, r"pos_embed \(0, "),
        ({"patch_embed.proj.weight": torch.zeros(32, 3, 0, 8)}, r"patch_embed.proj.weight \(32, 3, 0, 8\)"),
        ({"blocks.900000000000.norm1.weight": torch.zeros(3)}, "'2' is missing"),
        ({"blocks." + "9" * 900 + ".norm1.weight": torch.zeros(3)}, "'2' is missing"),
        ({"blocks." + "9" * 5000 + ".norm1.weight": torch.zeros(3)}, "a name has 5020 characters"),
    ],
)
def test_an_incomplete_checkpoint_is_an_error(changed: dict[str, Tensor | None], said: str) -> None:
    state = {key: value for key, value in {**state_of("timm_vit"), **changed}.items() if value is not None}
    with pytest.raises(WeightsError, match=said):
        infer_model(state, options={"num_heads": 2})


def test_layers_of_another_network_are_named() -> None:
    state = {**state_of("timm_vit"), "blocks.0.gate.weight": torch.ones(32)}
    with pytest.raises(InputError, match="'gate'"):
        infer_model(state)
