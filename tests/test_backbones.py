"""A backbone that nobody knows becomes readable by an adapter, and what cannot be read says so."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled_images import make_folder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from whitebox_crate import capture, create_model, save_attention, segment
from whitebox_crate.analysis import (
    attention_rollout,
    cls_rollout,
    layerwise_analysis,
    replace_states,
    subspace_report,
    verify_descent,
)
from whitebox_crate.backbones import Backbone, Structure, attention_readings, readable, register_adapter
from whitebox_crate.backbones.adapters import _ADAPTERS
from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.evaluation import Curves, Run, evaluate_attention, evaluate_masks, read_folder, score_image
from whitebox_crate.evaluation.figures import heads_sheet, pca_sheet, read_photograph
from whitebox_crate.layers import Reading
from whitebox_crate.pretrained_cfg import PretrainedCfg
from whitebox_crate.segmentation import cls_attention, default_layer, maskcut_of, patch_features

DIM, HEADS, DEPTH, PATCH, SIDE = 24, 3, 3, 8, 32
STATES = ("tokens", "projections", "attention", "compressed", "output")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM) for _ in range(4))
        self.rows: Tensor | None = None  # a test asks for them

    def forward(self, x: Tensor, scale: Tensor | None = None, *, attn_mask: Tensor | None = None) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q = q if scale is None else q * scale
        self.rows = (q @ k.mT * k.shape[-1] ** -0.5).softmax(-1).detach()
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2).flatten(2))


class Fused(nn.Module):
    """As the attention that it is made of, with one projection."""

    def __init__(self, apart: Attention) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), apart.out
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([apart.q.weight, apart.k.weight, apart.v.weight]))
            self.qkv.bias.copy_(torch.cat([apart.q.bias, apart.k.bias, apart.v.bias]))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2, self.mix = nn.LayerNorm(DIM), nn.LayerNorm(DIM), Attention()
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor, **options: Any) -> tuple[Tensor, str]:
        x = x + self.mix(self.ln1(x), **options)
        return x + self.mlp(self.ln2(x)), "something else"


class Toy(nn.Module):
    """Takes squares of any number of patches; two tokens before them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.first = nn.Parameter(torch.randn(1, 2, DIM))
        self.encoder = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.checkpointing = False

    def forward(self, images: Tensor, **options: Any) -> dict[str, Tensor]:
        x = self.stem(images).flatten(2).mT
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1)
        for layer in self.encoder:
            x = checkpoint(layer, x, use_reentrant=False)[0] if self.checkpointing else layer(x, **options)[0]
        return {"tokens": x}


def toy_structure(model: Toy) -> Structure:
    def readings(layer: Layer) -> dict[str, Reading]:
        def scaled(given: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
            return (q if given.get("scale") is None else q * given["scale"]), k

        mix = layer.mix
        projections = mix.qkv if isinstance(mix, Fused) else (mix.q, mix.k, mix.v)
        found = attention_readings(mix, projections, HEADS, change=scaled, mixed=mix.out)
        return {**found, "compressed": Reading(layer.ln2, "before", lambda tokens: tokens)}

    return Structure(
        layers=list(model.encoder),
        patch_embed=model.stem,
        readings=readings,
        patch_size=(PATCH, PATCH),
        img_size=(SIDE, SIDE),
        num_prefix_tokens=2,
        dynamic_img_size=True,
        pretrained_cfg=PretrainedCfg(mean=(0.5, 0.5, 0.5)),
        grad_checkpointing=model.checkpointing,
        architecture="toy",
    )


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    before = dict(_ADAPTERS)
    register_adapter(Toy)(toy_structure)
    yield
    _ADAPTERS.clear()
    _ADAPTERS.update(before)


@pytest.fixture
def model() -> Toy:
    torch.manual_seed(0)
    return Toy().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_every_state_is_what_the_layer_computes(model: Toy, images: Tensor) -> None:
    plain = model(images)["tokens"]
    with capture(model, *STATES, queries="all") as trace:
        seen = model(images)["tokens"]
    assert torch.equal(seen, plain)
    assert torch.equal(trace["output", -1], plain)
    for index, layer in enumerate(model.encoder):
        z, h = trace["tokens", index], trace["compressed", index]
        torch.testing.assert_close(trace["attention", index], layer.mix.rows, atol=1e-6, rtol=0)
        keys = layer.mix.k(layer.ln1(z)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        assert torch.equal(trace["projections", index], keys)
        torch.testing.assert_close(h, z + layer.mix(layer.ln1(z)))
        assert torch.equal(layer(z)[0], trace["output", index])


@torch.no_grad()
def test_arguments_of_the_attention_are_heeded_however_they_are_given(model: Toy, images: Tensor) -> None:
    scale = torch.rand(1, HEADS, 1, 1) + 2
    with capture(model, "attention", queries="all") as trace:
        model(images, scale=scale)
    torch.testing.assert_close(trace["attention", 1], model.encoder[1].mix.rows, atol=1e-6, rtol=0)
    mask = torch.ones(18, 18).tril().bool()
    with capture(model, "attention"), pytest.raises(InputError, match="attn_mask cannot be read"):
        model(images, attn_mask=mask)
    with capture(model, "projections"):
        model(images, attn_mask=mask)  # keys are what they are


@torch.no_grad()
def test_nothing_is_held_but_what_was_asked_for(model: Toy, images: Tensor) -> None:
    projected: list[weakref.ref[Tensor]] = []
    model.encoder[0].mix.q.register_forward_hook(lambda module, args, out: projected.append(weakref.ref(out)))
    with capture(model, "attention", layers=[0]):
        model(images)
        assert projected[0]() is None


def test_gradients_of_the_output_reach_the_keys(model: Toy, images: Tensor) -> None:
    with capture(model, "projections", "compressed") as trace:
        out = model(images)["tokens"]
    for state in trace.states:
        gradients = torch.autograd.grad(out[:, 0].sum(), list(trace[state, i] for i in range(DEPTH)), retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
    with torch.no_grad():
        assert torch.equal(out, model(images)["tokens"])


def test_one_projection_of_all_three_is_read_as_three(model: Toy, images: Tensor) -> None:
    def states(model: Toy) -> tuple[Any, tuple[Tensor, ...]]:
        with capture(model, *STATES, queries="all", eager=True) as trace:
            out = model(images)["tokens"]
        with torch.no_grad():
            assert torch.equal(out, model(images)["tokens"])
        inner = [trace[state, layer] for state in ("projections", "attention") for layer in range(DEPTH)]
        return trace, torch.autograd.grad(out.square().sum(), inner)

    apart, gradients_apart = states(model)
    for layer in model.encoder:
        layer.mix = Fused(layer.mix)
    fused, gradients_fused = states(model)
    for key, value in apart.items():
        torch.testing.assert_close(fused[key], value)
    for one, other in zip(gradients_fused, gradients_apart, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_eager_is_refused_where_it_would_not_be_true(model: Toy, images: Tensor) -> None:
    def known(values: bool, dropout: float) -> None:
        def readings(layer: Layer) -> dict[str, Reading]:
            mix = layer.mix
            parts = (mix.q, mix.k, mix.v) if values else (mix.q, mix.k)
            return attention_readings(mix, parts, HEADS, mixed=mix.out, dropout=dropout)

        register_adapter(Toy)(lambda model: replace(toy_structure(model), readings=readings))

    known(values=False, dropout=0)
    with pytest.raises(InputError, match="without eager"), capture(model, "attention", eager=True):
        pass
    known(values=True, dropout=0.1)
    with capture(model, "attention", eager=True):
        model(images)
    with capture(model.train(), "attention", eager=True), pytest.raises(InputError, match="dropout"):
        model(images)


def test_with_checkpointing_gradients_are_the_same(model: Toy, images: Tensor) -> None:
    def gradients(reads: bool) -> list[Tensor]:
        model.zero_grad()
        if reads:
            with capture(model, *STATES) as trace:
                model(images)["tokens"].square().sum().backward()
            assert len(trace) == len(STATES) * DEPTH
        else:
            model(images)["tokens"].square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients(reads=False)
    model.checkpointing = True
    for own, read in zip(plain, gradients(reads=True), strict=True):
        torch.testing.assert_close(read, own)


@torch.no_grad()
def test_what_stands_in_place_of_a_projection_is_read(model: Toy, images: Tensor) -> None:
    class LowRank(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base, self.a, self.b = base, nn.Linear(DIM, 2), nn.Linear(2, DIM)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 5 * self.b(self.a(x))

    before = cls_attention(model, images)
    for layer in model.encoder:
        layer.mix.q, layer.mix.k = LowRank(layer.mix.q), LowRank(layer.mix.k)
    with capture(model, "attention", queries="all") as trace:
        model(images)
    torch.testing.assert_close(trace["attention", -1], model.encoder[-1].mix.rows, atol=1e-6, rtol=0)
    assert not torch.allclose(cls_attention(model, images), before, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_precision_is_the_models(model: Toy, images: Tensor, dtype: torch.dtype) -> None:
    model, images = model.to(dtype), images.to(dtype)
    with capture(model, "attention", queries="all") as trace:
        model(images)
    assert trace["attention", 0].dtype == dtype
    torch.testing.assert_close(trace["attention", 0], model.encoder[0].mix.rows)


@torch.no_grad()
def test_threads_have_traces_of_their_own(model: Toy, images: Tensor) -> None:
    def maps(image: Tensor) -> Tensor:
        return cls_attention(model, image[None])[0]

    batch = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(maps, batch))
    assert all(torch.equal(one, maps(image)) for one, image in zip(together, batch, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_wrapped_and_inside_others(model: Toy, images: Tensor) -> None:
    expected = cls_attention(model, images)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = model, nn.Linear(DIM, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.backbone(images)["tokens"][:, 0])

    for wrapped in (
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
        Classifier(),
        torch.compile(Classifier(), backend="eager"),
        readable(model),
    ):
        assert torch.equal(cls_attention(wrapped, images), expected)
        with capture(wrapped, "attention", layers=[-2]) as trace:
            wrapped(images)
        assert torch.equal(trace["attention", -2][:, :, 0, 2:].reshape(expected.shape), expected)
    with pytest.raises(InputError, match=r"2 backbones inside: give one of student, teacher"):
        readable(nn.ModuleDict({"student": model, "teacher": copy.deepcopy(model)}))
    assert isinstance(readable(nn.ModuleDict({"student": model, "teacher": model})), Backbone)
    model.inner = Toy()  # the outermost counts
    assert torch.equal(cls_attention(model, images), expected)


def test_the_view_is_the_model_and_leaves_it_as_it_is(model: Toy) -> None:
    names, known = list(model.state_dict()), readable(model)
    assert isinstance(known, Backbone)
    assert [name.removeprefix("model.") for name in known.state_dict()] == names == list(model.state_dict())
    assert known.num_heads == HEADS
    assert known.architecture == "toy"
    assert default_layer(model) == DEPTH - 1
    known.to(torch.float64).train()
    assert model.stem.weight.dtype == torch.float64
    assert model.training
    twin = copy.deepcopy(known)
    assert isinstance(twin, Backbone)
    assert twin.patch_embed is twin.model.stem is not model.stem
    assert twin.layers()[0] is twin.model.encoder[0]


def test_all_that_reads_attention_takes_it(model: Toy, tmp_path: Any) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    for options in ({}, {"method": "maskcut"}, {"method": "attention", "head": 1}, {"layer": 0}):
        assert segment(photo, model, size=SIDE, **options).photo.size == (60, 40)
    with torch.no_grad():
        images = torch.randn(1, 3, SIDE, 2 * SIDE)
        features, grid = patch_features(model, images)
        assert (features.shape, grid) == ((1, 32, DIM), (4, 8))
        assert maskcut_of(model, images).masks.shape == (1, 3, SIDE, 2 * SIDE)
        rollout = attention_rollout(model, images)
        by_hand = torch.eye(34)
        for layer in model.encoder:
            by_hand = 0.5 * layer.mix.rows[0].mean(0) @ by_hand + 0.5 * by_hand
        torch.testing.assert_close(rollout[0], by_hand)
        assert torch.equal(cls_rollout(model, images)[0], rollout[0, 0, 2:].reshape(4, 8))
        files = save_attention(model, images, tmp_path, layers=[1], dtype="float32")
        np.testing.assert_allclose(np.load(files[1]), model.encoder[1].mix.rows, atol=1e-6)


@torch.no_grad()
def test_states_of_another_image_can_be_put_in_place(model: Toy, images: Tensor) -> None:
    one, other = images[:1], images[1:]
    with capture(model, "projections", "output") as trace:
        theirs = model(other)["tokens"]
    with replace_states(model, {("output", -1): trace["output", -1]}):
        assert torch.equal(model(one)["tokens"], theirs)
    with replace_states(model, {("projections", 0): trace["projections", 0]}), capture(model, "projections") as seen:
        changed = model(one)["tokens"]
    assert torch.equal(seen["projections", 0], trace["projections", 0])
    assert not torch.allclose(changed, model(one)["tokens"], atol=1e-3)


def test_evaluations_take_it(model: Toy, tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 3)
    data = read_folder(tmp_path / "data")
    found = evaluate_attention(Run(tmp_path / "attention"), model, data, name="toy", size=SIDE)
    assert found is not None
    assert found.results["settings"]["architecture"] == "toy"
    score = score_image(model, data.items[0][1], size=SIDE)
    assert {len(by_rule["mean"]) for by_rule in score.values()} == {DEPTH}
    assert evaluate_masks(Run(tmp_path / "masks"), model, data, name="toy", method="maskcut", size=SIDE) is not None
    curves = Curves(Run(tmp_path / "curves"), data, size=SIDE)
    (by_layer,) = curves.by_layer([("toy", model)])
    assert len(by_layer["points"]) == DEPTH
    (noisy,) = curves.by_noise([("toy", model)], [0, 75], [0.5])
    plain, disturbed = noisy["points"]
    assert plain["best_head"] == by_layer["points"][-1]["best_head"] != disturbed["best_head"]


def test_pictures_of_heads_and_parts_take_it(model: Toy, tmp_path: Path) -> None:
    make_folder(tmp_path, 3)
    photos = [read_photograph(path, model, SIDE) for path in sorted((tmp_path / "images").iterdir())]
    sheet, found = heads_sheet(model, photos, layer=-1)
    assert sorted(head["head"] for head in found["heads"]) == list(range(HEADS))
    assert sheet.size > pca_sheet(model, photos, layer=-1).size > (0, 0)


def test_layers_are_measured_by_what_needs_no_bases(model: Toy, images: Tensor) -> None:
    found = layerwise_analysis(model, [images], report=lambda line: None)
    assert set(found.series) == {"l0", "l1", "token_norm", "effective_rank"}
    with capture(model, "compressed") as trace, torch.no_grad():
        model(images)
    norms = [float(trace["compressed", layer].norm(dim=-1).mean()) for layer in range(DEPTH)]
    assert found["token_norm", "compressed"].mean == pytest.approx(norms)
    for quantity in ("coding_rate", "attention_entropy"):
        with pytest.raises(InputError, match="norm and bases, and a Layer"):
            layerwise_analysis(model, [images], quantities=[quantity], report=lambda line: None)
    with pytest.raises(InputError, match="a model of this package"):
        verify_descent(model, [images], report=lambda line: None)


def test_what_cannot_be_read_says_so(model: Toy, images: Tensor) -> None:
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.container\.Sequential.*register_adapter"):
        readable(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(InputError, match="not a multiple of the patch"):
        cls_attention(model, images[..., :-1])
    with pytest.raises(InputError, match="3, height, width"):
        cls_attention(model, images[:, :2])
    with pytest.raises(UnknownNameError, match=r"'atention'.*attention"), capture(model, "atention"):
        pass
    with pytest.raises(UnknownNameError, match="no layer 3"), capture(model, "attention", layers=[3]):
        pass
    with pytest.raises(InputError, match="a model of this package"):
        subspace_report(model)


def test_registering_is_checked() -> None:
    for wrong in ("Toy", 3, Toy()):
        with pytest.raises(InputError, match="full name"):
            register_adapter(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="function"):
        register_adapter(Toy)(3)  # type: ignore[arg-type]
    for wrong_sizes in ({"patch_size": 8}, {"img_size": (0, 8)}, {"layers": []}):
        known = {"layers": [nn.Identity()], "patch_size": (8, 8), "img_size": (8, 8), **wrong_sizes}
        with pytest.raises(InputError, match="adapter"):
            Structure(patch_embed=nn.Identity(), readings=lambda layer: {}, **known)


def test_a_class_is_known_by_name_and_with_what_derives_from_it(images: Tensor) -> None:
    _ADAPTERS.clear()

    class Derived(Toy):
        pass

    register_adapter(f"{__name__}.Toy")(toy_structure)
    assert isinstance(readable(Derived()), Backbone)
    ours = create_model("crate_tiny_patch16_224", depth=1)
    assert readable(ours) is ours
