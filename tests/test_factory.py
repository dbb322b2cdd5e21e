"""create_model: options arrive, unknown ones are named, and absent weights never become a random model."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import CLASSES, images_for, small_model, small_options
from torch import nn

from whitebox_crate import (
    ImageTransformer,
    PretrainedCfg,
    create_model,
    get_pretrained_cfg,
    list_pretrained,
    register_model,
    save_pretrained,
)
from whitebox_crate.errors import InputError, UnknownNameError, WeightsError
from whitebox_crate.models import Crate, CrateMhsa, CrateMlp, ViT
from whitebox_crate.variants import ALIASES

NAME = "crate_tiny_patch16_224"


def small_cfg(path: Path, **facts: Any) -> PretrainedCfg:
    """Facts about weights of `small_model` in a file outside the package."""
    return PretrainedCfg(tag="test", file=str(path), num_classes=CLASSES, **facts)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights of `small_model(NAME)`."""
    path = tmp_path / "weights.safetensors"
    save_file(small_model(NAME).state_dict(), path)
    return path


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_makes_what_it_stands_for(alias: str) -> None:
    with torch.device("meta"):
        ours, full = create_model(alias, depth=2), create_model(ALIASES[alias], depth=2)
    assert ours.architecture == full.architecture == ALIASES[alias]
    assert type(ours) is type(full)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (ours, full)]
    assert shapes[0] == shapes[1]


def test_a_fresh_model_trains_and_has_no_report() -> None:
    model = create_model("crate_tiny", depth=1)
    assert model.training
    assert model.load_report is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("crate_sth", Crate), ("crate_mlp", CrateMlp), ("crate_mhsa", CrateMhsa), ("vit_tiny_patch8_224", ViT)],
)
def test_the_families(name: str, kind: type[ImageTransformer]) -> None:
    model = small_model(name)
    assert type(model) is kind
    if name == "crate_sth":
        assert all(block.ista.threshold == "soft" for block in model.blocks)


def test_options_arrive() -> None:
    model = create_model(
        "crate_tiny",
        img_size=(16, 40),
        patch_size=(4, 8),
        in_chans=2,
        num_classes=11,
        global_pool="mean",
        embed_dim=24,
        depth=2,
        num_heads=3,
        head_dim=10,
        step_size=0.2,
        sparsity=0.3,
        skip="normalized",
        threshold="soft",
        dynamic_img_size=True,
    )
    assert (model.img_size, model.patch_embed.patch_size) == ((16, 40), (4, 8))
    assert model.patch_embed.grid_size == (4, 5)
    assert (model.in_chans, model.num_classes, model.global_pool) == (2, 11, "mean")
    assert (model.embed_dim, len(model.blocks), model.dynamic_img_size) == (24, 2, True)
    for block in model.blocks:
        assert (block.mssa.num_heads, block.mssa.head_dim, block.skip) == (3, 10, "normalized")
        assert (block.ista.step_size, block.ista.sparsity, block.ista.threshold) == (0.2, 0.3, "soft")
    vit = create_model("vit_tiny_patch16_224", depth=1, mlp_ratio=2.0, qkv_bias=False, img_size=32)
    assert vit.blocks[0].mlp.fc1.out_features == 2 * 192
    assert vit.blocks[0].attn.qkv.bias is None


@pytest.mark.parametrize("name", ["crate_mlp", "crate_mhsa"])
def test_options_of_the_ablations_arrive(name: str) -> None:
    options = {"mlp_ratio": 3.0} if name == "crate_mlp" else {"step_size": 0.2, "sparsity": 0.3}
    block = create_model(name, depth=1, embed_dim=8, num_heads=2, head_dim=3, **options).blocks[0]
    assert block.attention.head_dim == 3
    if name == "crate_mlp":
        assert block.mlp.fc1.out_features == 24
    else:
        assert (block.ista.step_size, block.ista.sparsity) == (0.2, 0.3)


def test_none_stands_for_the_default() -> None:
    model = create_model(NAME, depth=1, num_classes=None, img_size=None, global_pool=None)
    assert (model.num_classes, model.img_size, model.global_pool) == (1000, (224, 224), "token")


@pytest.mark.parametrize(
    ("option", "meant"), [("num_class", "num_classes"), ("dept", "depth"), ("image_size", "img_size")]
)
def test_an_unknown_option_is_answered_with_its_neighbours(option: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"'{option}'; did you mean.*'{meant}'"):
        create_model("crate_tiny", **{option: 3})
    with pytest.raises(UnknownNameError, match="'mlp_ratio'"):
        create_model("crate_tiny", mlp_ratio=4.0)  # ViT's, not CRATE's
    with pytest.raises(TypeError, match="'mlp_ratio'"):  # as Python and timm call it
        create_model("crate_tiny", mlp_ratio=4.0)


@pytest.mark.parametrize(
    "options",
    [
        {"img_size": 225},
        {"img_size": (224, 223)},
        {"patch_size": 0},
        {"num_heads": 7},
        {"num_heads": 0},
        {"global_pool": "cls"},
        {"skip": "none"},
        {"threshold": "hard"},
    ],
)
def test_bad_option_values_are_typed_errors(options: dict[str, Any]) -> None:
    with pytest.raises((InputError, UnknownNameError)):
        create_model("crate_tiny", depth=1, **options)


def test_what_a_registered_function_makes_is_handed_on(own_registry: None, tmp_path: Path) -> None:
    register_model(lambda width=3: nn.Linear(width, width), name="plain")
    assert create_model("plain", width=5).in_features == 5
    weights = tmp_path / "x.safetensors"
    save_file(small_model(NAME).state_dict(), weights)
    for options in ({"pretrained": True}, {"features_only": True}, {"checkpoint_path": weights}):
        with pytest.raises(WeightsError, match=r"plain"):
            create_model("plain", **options)  # type: ignore[arg-type]


# Weights


@pytest.mark.parametrize("name", ["crate_base", "crate_large", "vit_tiny_patch16_224"])
def test_weights_that_do_not_exist_never_become_a_random_model(name: str) -> None:
    with pytest.raises(WeightsError, match=r"checkpoint_path, or --checkpoint.*list --pretrained"):
        create_model(name, pretrained=True)


def test_facts_without_a_file_never_become_a_random_model() -> None:
    with pytest.raises(WeightsError, match=r"no weights come with .*checkpoint_path="):
        create_model(NAME, pretrained=True, pretrained_cfg=PretrainedCfg(), **small_options(NAME))


def test_unknown_tags() -> None:
    for pretrained in (True, False):
        with pytest.raises(UnknownNameError, match="'tuxpaint_composites'"):
            create_model("crate_nano.tuxpaint_composite", pretrained=pretrained)
        with pytest.raises(UnknownNameError, match="'tuxpaint_composites'"):
            create_model("crate_nano", pretrained=pretrained, pretrained_cfg="tuxpaint_composite")
        with pytest.raises(UnknownNameError, match=r"no pretrained .* as crate_nano_patch6_96\.tuxpaint_composites"):
            create_model("crate_tiny.tuxpaint_composites", pretrained=pretrained)


def test_a_weight_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no file"):
        create_model(NAME, True, pretrained_cfg=small_cfg(tmp_path / "gone.safetensors"), **small_options(NAME))


def test_pretrained_weights_are_loaded(weights: Path) -> None:
    options = small_options(NAME, num_classes=None)
    model = create_model(NAME, pretrained=True, pretrained_cfg=small_cfg(weights), **options)
    assert model.num_classes == CLASSES  # as the weights have it, for want of another number
    want = small_model(NAME).state_dict()
    assert all(torch.equal(value, want[key]) for key, value in model.state_dict().items())
    assert set(model.load_report.loaded) == want.keys()
    assert model.pretrained_cfg.tag == "test"


def test_other_classes_leave_a_fresh_head_and_nothing_else(weights: Path) -> None:
    options = small_options(NAME, num_classes=9)
    model = create_model(NAME, pretrained=True, pretrained_cfg=small_cfg(weights), **options)
    want = small_model(NAME).state_dict()
    assert model.head.weight.shape == (9, 48)
    assert set(model.load_report.reinitialised) == {"head.weight", "head.bias"}
    assert set(model.load_report.unused) == {"head.weight", "head.bias"}
    body = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    assert set(model.load_report.loaded) == body.keys()
    assert all(torch.equal(value, want[key]) for key, value in body.items())


def test_no_classes_drop_the_head(weights: Path) -> None:
    options = small_options(NAME, num_classes=0)
    model = create_model(NAME, pretrained=True, pretrained_cfg=small_cfg(weights), **options)
    assert model.load_report.reinitialised == ()
    assert set(model.load_report.unused) == {"head.weight", "head.bias"}


def test_other_classes_excuse_nothing_but_the_head(weights: Path, tmp_path: Path) -> None:
    state = {key: value for key, value in small_model(NAME).state_dict().items() if ".1." not in key}
    save_file(state, tmp_path / "holes.safetensors")
    cfg = small_cfg(tmp_path / "holes.safetensors")
    for classes in (CLASSES, 9, 0):
        with pytest.raises(WeightsError, match=r"blocks\.1\..* is missing"):
            create_model(NAME, pretrained=True, pretrained_cfg=cfg, **small_options(NAME, num_classes=classes))


def test_a_head_that_is_not_what_the_facts_say_is_no_reason_for_a_fresh_one(weights: Path) -> None:
    cfg = replace(small_cfg(weights), num_classes=9)  # the file has CLASSES
    with pytest.raises(WeightsError, match=r"head\.weight is"):
        create_model(NAME, pretrained=True, pretrained_cfg=cfg, **small_options(NAME, num_classes=9))


def test_an_overlay_changes_single_fields(weights: Path) -> None:
    overlay = {"file": str(weights), "num_classes": CLASSES, "mean": (0.5, 0.5, 0.5)}
    options = small_options(NAME, num_classes=None)
    cfg = small_cfg(Path("gone.safetensors"))
    model = create_model(NAME, True, pretrained_cfg=cfg, pretrained_cfg_overlay=overlay, **options)
    assert model.pretrained_cfg.mean == (0.5, 0.5, 0.5)
    assert model.pretrained_cfg.tag == "test"
    assert torch.equal(model.cls_token, small_model(NAME).cls_token)
    with pytest.raises(UnknownNameError, match="did you mean 'num_classes'"):
        create_model(NAME, pretrained_cfg_overlay={"num_clases": 3})


def test_checkpoint_path(weights: Path) -> None:
    model = create_model(NAME, checkpoint_path=weights, **small_options(NAME)).eval()
    images = images_for(model)
    assert torch.equal(model(images), small_model(NAME)(images))
    assert model.load_report.source == str(weights)
    assert set(model.load_report.loaded) == model.state_dict().keys()
    for options in ({"num_classes": 9}, {"depth": 2}, {"depth": 4}, {"embed_dim": 24}, {"num_heads": 1}):
        with pytest.raises(WeightsError, match="do not fit"):
            create_model(NAME, checkpoint_path=weights, **small_options(NAME, **options))


def test_weights_and_features_only(weights: Path) -> None:
    model = small_model(NAME)
    images = images_for(model)
    options = small_options(NAME)
    features = create_model(NAME, checkpoint_path=weights, features_only=True, out_indices=[0], **options).eval()
    [expected] = model.forward_intermediates(images, [0], intermediates_only=True)
    torch.testing.assert_close(features(images)[0], expected)


def test_out_indices_without_features_only_is_an_error() -> None:
    with pytest.raises(InputError, match="features_only"):
        create_model(NAME, out_indices=[0], **small_options(NAME))


# A model's folder


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder with `small_model(NAME)`."""
    return f"local-dir:{save_pretrained(small_model(NAME), tmp_path / 'model')}"


def test_a_folder_without_pretrained_gives_the_architecture(folder: str) -> None:
    model = create_model(folder)
    assert model.load_report is None
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in small_model(NAME).state_dict().items()
    }


def test_options_go_before_those_of_the_folder(folder: str) -> None:
    model = create_model(folder, pretrained=True, num_classes=1000, skip="normalized")
    assert model.num_classes == 1000
    assert model.blocks[0].skip == "normalized"
    assert set(model.load_report.reinitialised) == {"head.weight", "head.bias"}
    assert torch.equal(model.cls_token, small_model(NAME).cls_token)
    with pytest.raises(UnknownNameError, match="did you mean 'skip'"):
        create_model(folder, skp="normalized")


def test_the_pooling_of_the_folder_unless_another_is_given(folder: str, tmp_path: Path) -> None:
    assert create_model(folder, pretrained=True, global_pool="").global_pool == ""
    model = small_model(NAME)
    model.reset_classifier(CLASSES, "")
    saved = f"local-dir:{save_pretrained(model, tmp_path / 'unpooled')}"
    for options in ({}, {"global_pool": None, "num_classes": None}):
        loaded = create_model(saved, pretrained=True, **options)  # type: ignore[arg-type]
        assert (loaded.global_pool, loaded.num_classes) == ("", CLASSES)
    assert create_model(saved, pretrained=True, global_pool="token").global_pool == "token"


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 16), (48, 32), (64, 64), (16, 96)])
def test_another_size_resamples_the_positions_of_the_folder(folder: str, size: tuple[int, int]) -> None:
    """The grid of the weights is known (2 x 3), so positions keep their places, whatever the number of patches."""
    expected = small_model(NAME)
    expected.set_input_size(size)
    model = create_model(folder, pretrained=True, img_size=size)
    torch.testing.assert_close(model.pos_embed, expected.pos_embed)
    assert "pos_embed" in model.load_report.adapted
    assert "2 x 3" in model.load_report.adapted["pos_embed"]


# The weights of the package


def is_in_the_package(name: str) -> bool:
    cfg = get_pretrained_cfg(name)
    return not (cfg.hf_hub_id or cfg.url)


@pytest.mark.parametrize("name", [name for name in list_pretrained() if is_in_the_package(name)])
def test_the_weights_of_the_package_load(name: str) -> None:
    cfg = get_pretrained_cfg(name)
    model = create_model(name, pretrained=True).eval()
    assert set(model.load_report.loaded) == model.state_dict().keys()
    assert model.num_classes == cfg.num_classes
    assert (model.in_chans, *model.img_size) == cfg.input_size
    assert model(torch.zeros(1, *cfg.input_size)).isfinite().all()
    assert len(cfg.label_names) in (0, cfg.num_classes)


def test_every_option_of_the_signature_is_documented() -> None:
    text = inspect.getdoc(create_model) or ""
    assert all(f"{name}:" in text for name in inspect.signature(create_model).parameters)


def test_a_tag_means_the_same_network_with_and_without_weights() -> None:
    assert create_model("vit_small_patch16_224.dino", depth=1).num_classes == 0
    assert create_model("vit_small_patch16_224.dino", depth=1, num_classes=3).num_classes == 3
    assert create_model("vit_small_patch16_224", depth=1).num_classes == 1000


@pytest.mark.parametrize("name", [Path("crate_tiny"), None, 3])
def test_a_name_that_is_no_text(name: object) -> None:
    with pytest.raises(InputError, match="name must be text"):
        create_model(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("overlay", [{"input_size": 96}, {"mean": 0.5}, {"num_classes": "3"}, {"tag": None}])
def test_an_overlay_of_another_kind(overlay: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(overlay))):
        create_model("crate_nano", pretrained_cfg_overlay=overlay)


def test_a_model_with_a_buffer_that_no_file_holds_keeps_its_values(own_registry: None, weights: Path) -> None:
    class WithBuffer(Crate):
        def __init__(self, drop: float = 0.1, **options: Any) -> None:
            super().__init__(**options)
            self.register_buffer("table", torch.arange(3.0), persistent=False)
            self.rates = [rate.item() for rate in torch.linspace(0, drop, len(self.blocks))]

    register_model(WithBuffer, name="with_buffer")
    model = create_model("with_buffer", checkpoint_path=weights, **small_options(NAME), patch_size=16)
    assert torch.equal(model.table, torch.arange(3.0))
    assert model.rates[-1] == pytest.approx(0.1)
    assert torch.equal(model.cls_token, small_model(NAME).cls_token)


class OfTen(Crate):
    """Has no option for its classes."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__(img_size=8, patch_size=4, embed_dim=8, depth=depth, num_heads=2, num_classes=10)


@pytest.mark.parametrize("pool", ["token", "mean"])
@torch.no_grad()
def test_a_function_that_takes_any_option_saves_and_loads(own_registry: None, pool: Any, tmp_path: Path) -> None:
    def any_options(**options: Any) -> Crate:
        return Crate(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, global_pool=pool, **options)

    register_model(any_options, name="any_options")
    model = create_model("any_options", num_classes=3).eval()
    again = create_model(f"local-dir:{save_pretrained(model, tmp_path)}", pretrained=True).eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(again(images), model(images))


@torch.no_grad()
def test_a_model_without_the_option_num_classes_saves_and_loads(own_registry: None, tmp_path: Path) -> None:
    register_model(OfTen, name="of_ten", pretrained=[PretrainedCfg(tag="mine", num_classes=10)])
    model = create_model("of_ten").eval()
    folder = save_pretrained(model, tmp_path / "model")
    again = create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(again(images), model(images))
    overlay = {"file": str(folder / "model.safetensors")}
    tagged = create_model("of_ten.mine", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(tagged(images), model(images))
    assert tagged.load_report.reinitialised == ()


@pytest.mark.parametrize("given", [{}, {"pretrained": True}, {"checkpoint_path": True}], ids=["fresh", "own", "file"])
@pytest.mark.parametrize("saved", ["", "token"])
@pytest.mark.parametrize("asked", ["", "token", None])
def test_the_pooling_that_is_asked_for_or_saved(given: dict[str, Any], asked: Any, saved: Any, tmp_path: Path) -> None:
    model = small_model(NAME)
    model.reset_classifier(CLASSES, saved)
    folder = save_pretrained(model, tmp_path / "model")
    if "checkpoint_path" in given:
        given = {"checkpoint_path": folder / "model.safetensors"}
    made = create_model(f"local-dir:{folder}", global_pool=asked, **given)
    assert made.global_pool == (saved if asked is None else asked)


@pytest.mark.parametrize("name", ["crate_alpha_tiny", "vit_tiny_patch16_224", "crate_mae_tiny"])
def test_a_fresh_head_has_the_initial_values_of_its_kind(name: str) -> None:
    model = create_model(name, depth=1)
    model.reset_classifier(7)
    assert not model.head.bias.any() and model.head.weight.std() > 0
    for wrong in (-3, "7", 2.0, True):
        with pytest.raises(InputError, match="num_classes"):
            model.reset_classifier(wrong)


def test_an_encoder_loads_without_its_decoder(tmp_path: Path) -> None:
    whole = small_model("crate_mae_tiny_patch16_224")
    folder = save_pretrained(whole, tmp_path)
    encoder = create_model(f"local-dir:{folder}", pretrained=True, decoder_depth=0).eval()
    assert all(name.startswith(("mask_token", "decoder_")) for name in encoder.load_report.unused)
    assert encoder.load_report.unused
    images = images_for(whole)
    with torch.no_grad():
        assert torch.equal(encoder(images), whole(images))


@pytest.mark.parametrize("name", ["timm/vit_base_patch16_224.dino", "org/name"])
def test_what_looks_like_a_repository_gets_the_hint_how_to_say_it(name: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"'hf-hub:{name}' for the Hub"):
        create_model(name)


def test_a_folder_gets_the_hint_how_to_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UnknownNameError, match="'local-dir:runs' for a folder"):
        create_model("runs")
    (tmp_path / "crate_nano").mkdir()
    assert create_model("crate_nano").architecture == "crate_nano_patch6_96"
    with pytest.raises(WeightsError, match="there is no folder missing"):
        create_model("local-dir:missing")


def test_a_folder_of_a_model_of_ones_own_says_to_import_it(own_registry: None, tmp_path: Path) -> None:
    register_model(OfTen, name="mine_of_ten")
    folder = save_pretrained(create_model("mine_of_ten"), tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("mine_of_ten", "yours_of_ten"))
    with pytest.raises(UnknownNameError, match=r"'yours_of_ten'.*import the module that registers it"):
        create_model(f"local-dir:{folder}", pretrained=True)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    model = create_model(NAME, **small_options(NAME, num_classes=np.int64(3), step_size=np.float32(0.5)))
    assert (model.num_classes, model.blocks[0].ista.step_size) == (3, 0.5)
    again = create_model(f"local-dir:{save_pretrained(model, tmp_path)}", pretrained=True)
    assert again.num_classes == 3


WRONG_IMAGES: dict[str, tuple[Any, str]] = {
    "pixels": (torch.zeros(1, 3, 32, 48, dtype=torch.uint8), "got torch.uint8"),
    "doubles": (torch.zeros(1, 3, 32, 48, dtype=torch.float64), r"images are torch.float64: call images.to"),
    "halves": (torch.zeros(1, 3, 32, 48, dtype=torch.bfloat16), r"call images.to\(torch.float32\)"),
    "numpy": (np.zeros((1, 3, 32, 48), np.float32), "got ndarray"),
    "a list": ([torch.zeros(3, 32, 48)], "got list"),
    "no batch": (torch.zeros(3, 32, 48), "batch, 3, height, width"),
}


@pytest.mark.parametrize("name", [NAME, "vit_tiny_patch16_224", "crate_mae_tiny_patch16_224"])
@pytest.mark.parametrize("what", WRONG_IMAGES)
def test_what_is_no_batch_of_images_is_refused(name: str, what: str) -> None:
    images, message = WRONG_IMAGES[what]
    model = small_model(name)
    for run in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(InputError, match=message):
            run(images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(images_for(model).to(torch.bfloat16))


# timm's call forms


def test_options_of_timm_that_ask_for_nothing_are_none() -> None:
    nothing = {"drop_block_rate": None, "init_values": 0.0, "reg_tokens": 0, "qk_norm": False, "scriptable": False}
    model = create_model(NAME, checkpoint_path="", exportable=True, no_jit=True, **nothing, **small_options(NAME))
    assert model.model_args.keys() == small_options(NAME).keys()
    for option in ("drop_block_rate", "init_values", "reg_tokens", "qk_norm", "scriptable", "fc_norm"):
        with pytest.raises(UnknownNameError, match=f"unknown option of {NAME} '{option}'; (known|did you mean)"):
            create_model(NAME, **{option: 1}, **small_options(NAME))


def test_a_model_is_made_where_and_of_what_is_asked() -> None:
    half = create_model(NAME, dtype=torch.bfloat16, **small_options(NAME))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    for options in ({}, {"features_only": True}):
        nowhere = create_model(NAME, device="meta", **options, **small_options(NAME))
        assert all(parameter.is_meta for parameter in nowhere.parameters())


def test_a_name_is_given_once() -> None:
    assert create_model(model_name=NAME, **small_options(NAME)).architecture == NAME
    with pytest.raises(InputError, match="give one"):
        create_model(NAME, model_name=NAME)
    with pytest.raises(InputError, match="text, not None"):
        create_model()


def test_features_come_as_a_list_or_as_a_dict() -> None:
    options = {"features_only": True, "out_indices": (2, 0), **small_options(NAME)}
    images, maps = images_for(small_model(NAME)), {}
    for kind in (None, "list", "getter", "dict"):
        torch.manual_seed(0)
        maps[kind] = create_model(NAME, feature_cls=kind, **options).eval()(images)
    assert list(maps["dict"]) == ["0", "2"]
    for kind in ("list", "getter", None):
        assert isinstance(maps[kind], list)
        assert all(torch.equal(a, b) for a, b in zip(maps[kind], maps["dict"].values(), strict=True))
    with pytest.raises(UnknownNameError, match=r"'fx'.*'getter'"):
        create_model(NAME, feature_cls="fx", **options)
    with pytest.raises(InputError, match="features_only=True"):
        create_model(NAME, feature_cls="dict")
