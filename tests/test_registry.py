"""Names, aliases and tags: what exists is found, what does not exist is named with its neighbours."""

from functools import partial

import pytest
from torch import nn

from whitebox_crate import (
    PretrainedCfg,
    create_model,
    get_pretrained_cfg,
    get_pretrained_cfg_value,
    is_model,
    list_models,
    list_pretrained,
    model_entrypoint,
    register_model,
)
from whitebox_crate.errors import InputError, UnknownNameError, WhiteboxCrateError
from whitebox_crate.models import Crate
from whitebox_crate.registry import split_name
from whitebox_crate.variants import ALIASES

pytestmark = pytest.mark.usefixtures("own_registry")


def tiny(num_classes: int = 3, width: int = 8) -> nn.Module:
    return nn.Linear(width, num_classes)


def test_the_models_of_the_design_exist() -> None:
    names = {f"crate_{size}_patch{p}_224" for size in ("tiny", "small", "base", "large") for p in (16, 8)}
    names |= {f"vit_{size}_patch{p}_224" for size in ("tiny", "small", "base") for p in (16, 8)}
    names |= {f"crate_{kind}paper_small_patch8_224" for kind in ("", "mlp_", "mhsa_", "sth_")}
    names |= {"crate_demo_base_patch8_224", "crate_nano_patch6_96", "crate_pico_patch4_32", "vit_nano_patch6_96"}
    assert names <= set(list_models())


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_the_short_names_stand_for_patch_16(size: str) -> None:
    assert split_name(f"crate_{size}") == (f"crate_{size}_patch16_224", "")
    assert model_entrypoint(f"crate_{size}") is model_entrypoint(f"crate_{size}_patch16_224")


def test_aliases_are_models_and_are_not_listed() -> None:
    for alias, name in ALIASES.items():
        assert is_model(alias)
        assert name in list_models()
        assert alias not in list_models()


def test_wildcards() -> None:
    everything = list_models()
    assert everything == list_models("*") == list_models("")
    vits = list_models("vit_*")
    assert vits == [name for name in everything if name.startswith("vit_")]
    assert list_models(["vit_*", "crate_nano*"]) == [
        name for name in everything if name.startswith(("vit_", "crate_nano"))
    ]
    assert list_models("crate_*", exclude_filters=["*_patch16_*", "crate_m*"]) == [
        name
        for name in everything
        if name.startswith("crate_") and "_patch16_" not in name and not name.startswith("crate_m")
    ]
    assert list_models(exclude_filters="*") == []
    assert list_models("resnet*") == []
    assert list_models("crate_base_patch16_224") == ["crate_base_patch16_224"]


def test_the_order_is_natural() -> None:
    names = list_models("crate_tiny_*")
    assert names == ["crate_tiny_patch8_224", "crate_tiny_patch16_224"]


def test_tags() -> None:
    cfgs = [PretrainedCfg(tag="first", num_classes=3), PretrainedCfg(tag="second", num_classes=4)]
    register_model(tiny, pretrained=cfgs)
    assert list_pretrained("tiny") == list_models("tiny", pretrained=True) == ["tiny.first", "tiny.second"]
    assert list_models("tiny") == ["tiny"]
    assert list_models("tiny", include_tags=True) == ["tiny.first", "tiny.second"]
    assert list_models("tiny", pretrained=True, include_tags=False) == ["tiny"]
    assert list_models("*.second") == []
    assert list_pretrained("*.second") == ["tiny.second"]
    assert get_pretrained_cfg("tiny") is cfgs[0]
    assert get_pretrained_cfg("tiny.second") is cfgs[1]
    assert is_model("tiny.second")
    assert split_name("tiny.second") == ("tiny", "second")
    with pytest.raises(UnknownNameError, match=r"tag of tiny 'secnd'; did you mean 'second'\?"):
        get_pretrained_cfg("tiny.secnd")


def test_models_without_weights_are_not_listed_as_pretrained() -> None:
    assert "crate_base_patch16_224" not in list_models(pretrained=True, include_tags=False)
    assert "crate_nano_patch6_96" in list_models(pretrained=True, include_tags=False)
    assert "crate_nano_patch6_96.tuxpaint_composites" in list_pretrained()
    with pytest.raises(UnknownNameError, match=r"--checkpoint.* as crate_\S+_base_\S+.*list_pretrained") as caught:
        get_pretrained_cfg("crate_base")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("look_up", [create_model, model_entrypoint, get_pretrained_cfg, split_name])
def test_an_unknown_model_is_answered_with_its_neighbours(look_up: object) -> None:
    for error in (UnknownNameError, LookupError, RuntimeError, WhiteboxCrateError):
        with pytest.raises(error, match=r"'crate_bse'; did you mean .*'crate_base'"):
            look_up("crate_bse")  # type: ignore[operator]
    assert not is_model("crate_bse")
    assert not is_model("")


def test_a_name_like_no_other_is_answered_with_what_exists() -> None:
    with pytest.raises(
        UnknownNameError, match=r"none of the \d+ known names is close. whitebox-crate list, or list_models"
    ) as raised:
        split_name("0123456789")
    assert "crate_alpha_base" not in str(raised.value)  # thirty names in a row tell nobody what to take


@pytest.mark.parametrize("argument", ["filter", "module", "exclude_filters"])
@pytest.mark.parametrize("value", [3, None, ["crate_*", 3]])
def test_filters_are_text(argument: str, value: object) -> None:
    if value is None:
        assert list_models(**{argument: value}) == list_models()
        return
    with pytest.raises(InputError, match=rf"{argument} .*'crate_\*'"):
        list_models(**{argument: value})


def test_register_as_decorator_with_and_without_arguments() -> None:
    @register_model
    def plain() -> nn.Module:
        return nn.Identity()

    @register_model(name="renamed", aliases=["nick"])
    def function() -> nn.Module:
        return nn.Flatten()

    assert plain is not None and model_entrypoint("plain") is plain
    assert model_entrypoint("nick") is model_entrypoint("renamed") is function
    assert not is_model("function")
    assert isinstance(create_model("nick"), nn.Flatten)


@pytest.mark.parametrize("taken", ["crate_base_patch16_224", "crate_base"])
def test_a_taken_name_is_refused(taken: str) -> None:
    before = model_entrypoint(taken)
    for options in ({"name": taken}, {"name": "fresh", "aliases": [taken]}):
        with pytest.raises(InputError, match=f"'{taken}' is taken.*override=True"):
            register_model(tiny, **options)  # type: ignore[arg-type]
    assert model_entrypoint(taken) is before
    assert not is_model("fresh")


@pytest.mark.parametrize("taken", ["crate_base_patch16_224", "crate_base"])
def test_a_taken_name_is_taken_over_on_request(taken: str) -> None:
    register_model(tiny, name=taken, override=True)
    assert model_entrypoint(taken) is tiny
    assert isinstance(create_model(taken), nn.Linear)


@pytest.mark.parametrize("name", ["with.dot", "hub:like", ""])
def test_names_that_could_not_be_looked_up_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"pass name=\.\.\."):
        register_model(tiny, aliases=[name])
    with pytest.raises(InputError, match=r"pass name=\.\.\."):
        register_model(partial(tiny))  # has no name of its own
    assert not is_model("tiny")


def test_a_registered_class_is_a_model_with_the_whole_contract() -> None:
    register_model(Crate, name="my_crate")
    model = create_model("my_crate", depth=1, embed_dim=8, num_heads=2, img_size=32)
    assert model.architecture == "my_crate"
    assert model.pretrained_cfg.input_size == (3, 224, 224)
    with pytest.raises(UnknownNameError, match="did you mean 'num_classes'"):
        create_model("my_crate", num_clases=3)


def test_models_are_listed_by_module() -> None:
    assert list_models(module="vit") == list_models("vit_*") == list_models("", "vit")
    assert list_models("*_tiny_*", ["crate_mae", "crate_alpha"]) == list_models(
        ["crate_mae_tiny*", "crate_alpha_tiny*"]
    )
    assert list_models(module="resnet") == []
    assert list_models(name_matches_cfg=True) == list_models()
    register_model(tiny)
    assert list_models(module="test_registry") == ["tiny"]


def test_weights_are_left_out_by_wildcards() -> None:
    assert list_pretrained(exclude_filters=["vit_*", "crate_alpha*"]) == [
        name for name in list_pretrained() if not name.startswith(("vit_", "crate_alpha"))
    ]


def test_a_fact_is_looked_up_by_name() -> None:
    assert get_pretrained_cfg_value("crate_nano", "num_classes") == 476
    assert get_pretrained_cfg_value("crate_nano_patch6_96.tuxpaint_composites", "num_classes") == 258
    assert get_pretrained_cfg_value("vit_nano", "input_size") == (3, 96, 96)
    assert get_pretrained_cfg_value("crate_base", "classifier") == "head"
    assert get_pretrained_cfg_value("crate_base", "min_input_size") is None
    with pytest.raises(UnknownNameError, match="'crate_bse'"):
        get_pretrained_cfg_value("crate_bse", "input_size")


def test_facts_are_a_mapping() -> None:
    cfg = PretrainedCfg(mean=(0.5, 0.5, 0.5), num_classes=7)
    assert (cfg["mean"], cfg.get("num_classes"), cfg.get("test_input_size", 3)) == ((0.5, 0.5, 0.5), 7, 3)
    assert dict(cfg) == {key: cfg[key] for key in cfg} and len(dict(cfg)) == len(cfg) == len(list(cfg.items()))
    assert {"classifier", "first_conv", "fixed_input_size", "crop_mode", "pool_size"} < set(cfg.keys())
    assert "classifier" in cfg and "SAME_FOR_ALL" not in cfg and "get" not in cfg
    assert cfg == PretrainedCfg(mean=(0.5, 0.5, 0.5), num_classes=7) != dict(cfg)
    with pytest.raises(KeyError, match="min_input_size"):
        cfg["min_input_size"]
    with pytest.raises(TypeError, match="crop_mode"):
        PretrainedCfg(crop_mode="squash")  # type: ignore[call-arg]
