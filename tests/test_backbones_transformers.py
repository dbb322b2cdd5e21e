"""transformers' backbones: what is read of them is what they compute, with their fused attention left on."""

from __future__ import annotations

import copy
import importlib.util
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones_read import check_attention, check_gradients_at_attention, documented, make_lively, tensors_of
from torch import Tensor, nn

from whitebox_crate import InputError, capture, segment
from whitebox_crate.backbones import Backbone, readable
from whitebox_crate.preprocess import fit_photo, to_pillow
from whitebox_crate.pretrained_cfg import PretrainedCfg
from whitebox_crate.segmentation import METHODS, class_maps, cls_attention, maskcut_of, patch_features

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)
transformers: Any = importlib.import_module("transformers")

NEW = int(transformers.__version__.partition(".")[0]) >= 5  # releases before name some modules otherwise
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
DINOV2 = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTModel": ("ViTConfig", SMALL),
    "ViTForImageClassification": ("ViTConfig", {**SMALL, "num_labels": 5}),
    "Dinov2Model": ("Dinov2Config", {**DINOV2, "layerscale_value": 0.5}),
    "Dinov2ForImageClassification": ("Dinov2Config", {**DINOV2, "num_labels": 5}),
    "Dinov2Backbone": ("Dinov2Config", {**DINOV2, "out_features": ["stage1", "stage3"]}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {**DINOV2, "num_register_tokens": 2}),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {**SMALL, "num_register_tokens": 2, "use_gated_mlp": True}),
    "DINOv3ViTBackbone": ("DINOv3ViTConfig", {**SMALL, "num_register_tokens": 2}),
}


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config, own = MODELS[name]
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    return make_lively(getattr(transformers, name)(getattr(transformers, config)(**{**own, **options})))


def images_of(size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def projections_of(layer: Any) -> tuple[nn.Module, str, str]:
    """What holds the projections of a layer, and the names of those of queries and keys."""
    if hasattr(layer.attention, "q_proj"):
        return layer.attention, "q_proj", "k_proj"
    return layer.attention.attention, "query", "key"


def eager(model: Any, images: Tensor, **options: Any) -> list[Tensor]:
    """The attention of each layer as transformers computes it without a fused kernel."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return list(model(images, output_attentions=True, **options).attentions)


@pytest.mark.parametrize("name", MODELS)
def test_attention_is_transformers_own(name: str) -> None:
    model, images = make(name), images_of()
    assert model.config._attn_implementation == "sdpa"
    check_attention(model, images, lambda: eager(model, images))


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel"])
def test_attention_of_images_of_other_sizes(name: str) -> None:
    model, images = make(name), images_of((40, 24))
    options = {"interpolate_pos_encoding": True} if name == "ViTModel" else {}
    check_attention(model, images, lambda: eager(model, images, **options), **options)
    with torch.no_grad():
        maps = cls_attention(model, images)
        with capture(model, "attention", layers=[-2]) as trace:
            model(images, **options)
    assert maps.shape == (2, 4, 5, 3)
    assert torch.equal(maps.flatten(2), trace["attention", -2][:, :, 0, -15:])


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2WithRegistersModel", "DINOv3ViTModel"])
def test_gradients_reach_the_rows_that_make_the_output(name: str) -> None:
    model, images = make(name), images_of()

    def theirs() -> list[Tensor]:
        eager = copy.deepcopy(model)
        eager.set_attn_implementation("eager")
        out = eager(images, output_attentions=True)
        return list(torch.autograd.grad(tensors_of(out)[0].square().sum(), out.attentions))

    check_gradients_at_attention(model, images, theirs)


def test_class_maps_and_names_of_classes() -> None:
    names = {0: "cup", 1: "cat", 2: "rocket"}
    model, images = make("ViTForImageClassification", id2label=names, num_labels=3), images_of()
    by_name, by_index = class_maps(model, images, "cat"), class_maps(model, images, 1)
    assert torch.equal(by_name, by_index)
    assert by_name.shape == (2, 4, 4)
    assert not torch.allclose(by_name, class_maps(model, images, 2))
    assert torch.equal(readable(model)(images), model(images).logits)
    assert segment((255 * torch.rand(3, 40, 60)).byte(), model, size=40, label="rocket").map.shape == (5, 8)
    with pytest.raises(InputError, match="one logit"):
        class_maps(make("ViTModel"), images)


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2WithRegistersModel", "DINOv3ViTModel"])
@torch.no_grad()
def test_states_are_where_the_layer_computes_them(name: str) -> None:
    model, images = make(name), images_of()
    with capture(model, "tokens", "projections", "compressed", "output") as trace:
        hidden = model(images, output_hidden_states=True).hidden_states
    layers = readable(model).layers()
    positions = {"position_embeddings": model.rope_embeddings(images)} if name == "DINOv3ViTModel" else {}
    for index, layer in enumerate(layers):
        z, h = trace["tokens", index], trace["compressed", index]
        assert torch.equal(z, hidden[index])
        before = layer.layernorm_before(z) if name == "ViTModel" else layer.norm1(z)
        owner, _, key = projections_of(layer)
        keys = getattr(owner, key)(before).unflatten(-1, (4, 8)).transpose(1, 2)
        assert torch.equal(trace["projections", index], keys)
        attended = tensors_of(layer.attention(before, **positions))[0]
        torch.testing.assert_close(h, z + (attended if name == "ViTModel" else layer.layer_scale1(attended)))
        assert trace["output", index].shape == z.shape


@pytest.mark.parametrize("name", ["ViTForImageClassification", "Dinov2ForImageClassification"])
@torch.no_grad()
def test_wrapped_compiled_and_with_adapters_of_low_rank(name: str) -> None:
    class LowRank(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base, self.a, self.b = base, nn.Linear(32, 2), nn.Linear(2, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.b(self.a(x))

    model, images = make(name), images_of()
    before = cls_attention(model, images)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager"), readable(model)):
        assert torch.equal(cls_attention(wrapped, images), before)
    for layer in readable(model).layers():
        owner, *names = projections_of(layer)
        for projection in names:
            setattr(owner, projection, LowRank(getattr(owner, projection)))
    check_attention(model, images, lambda: eager(model, images))
    assert not torch.allclose(cls_attention(model, images), before, atol=1e-3)


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model", "DINOv3ViTModel"])
def test_gradients(name: str) -> None:
    model, images = make(name).train(), images_of()

    def gradients(reads: bool) -> list[Tensor]:
        model.zero_grad()
        with capture(model, "projections", "attention", "compressed") if reads else nullcontext() as trace:
            torch.manual_seed(0)  # DINOv3 draws scales of its positions
            out = model(images).last_hidden_state.square().sum()
            out.backward(retain_graph=reads)
            if reads and not model.is_gradient_checkpointing:
                to_keys = torch.autograd.grad(out, [trace["projections", layer] for layer in trace.layers])
                assert all(gradient.abs().sum() > 0 for gradient in to_keys)
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients(reads=False)
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for own, read in zip(plain, gradients(reads=True), strict=True):
            torch.testing.assert_close(read, own)


@pytest.mark.parametrize("name", ["ViTModel", "DINOv3ViTModel"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision(name: str, dtype: torch.dtype) -> None:
    model, images = make(name).to(dtype), images_of().to(dtype)
    check_attention(model, images, lambda: eager(model, images), atol=2e-2 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.skipif(not NEW, reason="this transformers has no masks of patches")
@torch.no_grad()
def test_masks_are_refused() -> None:
    model = make("ViTModel")
    with capture(model, "attention"), pytest.raises(InputError, match="attention_mask cannot be read"):
        model(images_of(), attention_mask=torch.tensor([[1] * 10 + [0] * 7] * 2))


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification", "Dinov2Model", "DINOv3ViTModel"])
def test_segment_by_every_method(name: str) -> None:
    model, photo = make(name), (255 * torch.rand(3, 40, 60)).byte()
    for method in METHODS if name == "ViTForImageClassification" else set(METHODS) - {"class"}:
        found = segment(photo, model, method, size=40)
        assert found.map.shape == (5, 8)
        assert found.mask.shape == (40, 60)
    with torch.no_grad():
        features, grid = patch_features(model, images_of())
        assert (features.shape, grid) == ((2, 16, 32), (4, 4))
        assert maskcut_of(model, images_of()).masks.shape == (2, 3, 32, 32)


def test_a_vit_whose_positions_are_of_no_square_takes_one_size() -> None:
    model = make("ViTModel", image_size=[32, 48])
    with pytest.raises(InputError, match="32 x 48, not of 32 x 32"):
        cls_attention(model, images_of())
    assert segment((255 * torch.rand(3, 40, 60)).byte(), model).map.shape == (4, 6)


def test_photographs_are_normalised_as_the_image_processor_of_the_family_does() -> None:
    white = to_pillow(torch.full((3, 32, 32), 255, dtype=torch.uint8))
    vit = readable(make("ViTModel"))
    torch.testing.assert_close(fit_photo(vit, white).pixels[:, 0, 0], torch.ones(3))
    dino = readable(make("Dinov2Model"))
    torch.testing.assert_close(fit_photo(dino, white).pixels[0, 0, 0], torch.tensor((1 - 0.485) / 0.229))
    vit.pretrained_cfg = PretrainedCfg(mean=(0.0, 0.0, 0.0))
    torch.testing.assert_close(fit_photo(vit, white).pixels[0, 0, 0], torch.tensor(1 / 0.229))


def test_the_documented_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    to_pillow((255 * torch.rand(3, 40, 60)).byte()).save("photo.jpg")
    with_registers = {"hidden_size": 384, "num_attention_heads": 6, "num_register_tokens": 4, "patch_size": 14}
    configs = [transformers.Dinov2WithRegistersConfig(**with_registers), transformers.ViTConfig(**SMALL)]
    names: dict[str, Any] = {}
    for block, config in zip(documented("transformers"), configs, strict=True):
        code = re.sub(r"from_pretrained\(.*?\)", "from_config(config)", block).replace("size=448", "size=112")
        names["config"] = config
        exec(code, names)
    assert names["trace"]["attention", -1].shape == (1, 6, 1, 1029)
    assert names["trace"]["projections", -2].shape == (1, 6, 1029, 64)
    assert names["found"].map.shape == (4, 6)


def test_other_classes_say_what_an_adapter_needs() -> None:
    config = transformers.DeiTConfig(**SMALL)
    with pytest.raises(InputError, match=r"modeling_deit\.DeiTModel.*register_adapter"):
        readable(transformers.DeiTModel(config))
    assert isinstance(readable(make("ViTModel")), Backbone)
