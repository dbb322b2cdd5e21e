"""A folded model computes what the model computes, is saved, read and run like any other; what cannot be is refused."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import FAMILIES, images_for, small_model
from small_training import Colours
from torch import Tensor, nn

from whitebox_crate import ImageTransformer, capture, create_model, fold_for_inference, list_models, save_pretrained
from whitebox_crate._plan import known_states
from whitebox_crate.analysis import explain, intervene, layerwise_analysis, subspace_report, verify_descent
from whitebox_crate.errors import InputError, WeightsError
from whitebox_crate.layers import ISTA, MSSA, FoldedISTA, NormedProduct, PatchEmbed
from whitebox_crate.models import Crate, FeatureExtractor
from whitebox_crate.models.crate import CrateBlock
from whitebox_crate.training import Recipe, train


def close(have: Tensor, want: Tensor) -> None:
    """Within 1e-5 of the largest value."""
    torch.testing.assert_close(have, want, rtol=0, atol=1e-5 * max(1.0, float(want.abs().max())))


def make(family: str = "crate", **options: object) -> ImageTransformer:
    return small_model(FAMILIES[family], **options)


@pytest.mark.parametrize("name", list_models())
@torch.no_grad()
def test_every_registered_model_folds_to_the_same_function(name: str) -> None:
    model = small_model(name, depth=2)
    images = images_for(model)
    before = copy.deepcopy(model.state_dict())
    folded = fold_for_inference(model)
    close(folded(images), model(images))
    close(folded.forward_features(images), model.forward_features(images))
    for kept, value in before.items():
        assert torch.equal(model.state_dict()[kept], value)
    assert folded.folded
    assert not model.folded
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_state_of_a_folded_model_can_be_read(family: str) -> None:
    model = make(family)
    images = images_for(model)
    folded = fold_for_inference(model)
    for state in known_states(model):
        with capture(model, state, queries="all") as expected, capture(folded, state, queries="all") as trace:
            model(images)
            logits = folded(images)
        assert torch.equal(logits, folded(images))
        assert trace.keys() == expected.keys()
        for key, value in trace.items():
            close(value, expected[key])


@torch.no_grad()
def test_bases_that_are_read_twice_keep_their_norm() -> None:
    model = make("attention_only", proj="tied")
    folded = fold_for_inference(model)
    close(folded(images_for(model)), model(images_for(model)))
    assert torch.equal(folded.blocks[0].norm1.weight, model.blocks[0].norm1.weight)


@given(
    dim=st.sampled_from([4, 8, 12]),
    heads=st.sampled_from([1, 2, 4]),
    step_size=st.floats(0, 2),
    sparsity=st.floats(0, 2),
    threshold=st.sampled_from(["relu", "soft"]),
    skip=st.sampled_from(["input", "normalized"]),
    proj=st.sampled_from(["learned", "tied"]),
    pool=st.sampled_from(["token", "avg", "mean", ""]),
    chans=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_folding_is_exact_for_all_options(
    dim: int, heads: int, step_size: float, sparsity: float, threshold: str, skip: str, proj: str, pool: str, chans: int
) -> None:
    torch.manual_seed(0)
    options = {"img_size": (8, 4), "patch_size": 2, "in_chans": chans, "num_classes": 3, "depth": 2}
    model = create_model(
        "crate_tiny", embed_dim=dim, num_heads=heads, step_size=step_size, sparsity=sparsity, threshold=threshold,
        skip=skip, proj=proj, global_pool=pool, **options,
    )  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model = model.double().eval()
    images = torch.randn(2, chans, 8, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fold_for_inference(model)(images), model(images), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_affine_map_of_ista_is_that_of_the_equation() -> None:
    torch.manual_seed(0)
    ista = ISTA(6, step_size=0.3, sparsity=0.2).double()
    x, d = torch.randn(5, 6, dtype=torch.float64), ista.dictionary
    by_equation = x + 0.3 * (x - x @ d.T) @ d
    torch.testing.assert_close(x @ ista.affine().T, by_equation)
    assert ista.affine().dtype == torch.float64


@torch.no_grad()
def test_what_is_folded_and_what_stays() -> None:
    def norms(model: ImageTransformer) -> list[bool]:
        block = model.blocks[0]
        return [norm.weight is None for norm in (block.norm1, block.norm2, model.norm)]

    assert norms(fold_for_inference(make("crate"))) == [True, True, False]
    assert norms(fold_for_inference(make("crate", skip="normalized"))) == [False, True, False]
    assert norms(fold_for_inference(make("alpha"))) == [True, False, False]
    assert norms(fold_for_inference(make("vit"))) == [True, True, False]
    assert isinstance(fold_for_inference(make("sth")).blocks[0].ista, FoldedISTA)
    mae = fold_for_inference(make("mae"))
    assert mae.decoder_blocks[0].norm1.weight is None
    assert mae.decoder_blocks[0].norm2.weight is None


@torch.no_grad()
def test_crate_mae_reconstructs_when_folded() -> None:
    model = make("mae")
    images = images_for(model)
    noise = torch.rand(len(images), model.patch_embed.num_patches, generator=torch.Generator().manual_seed(0))
    close(fold_for_inference(model).reconstruct(images, noise=noise).pred, model.reconstruct(images, noise=noise).pred)


@torch.no_grad()
def test_in_place_and_again() -> None:
    model = make()
    images = images_for(model)
    expected = model(images)
    assert fold_for_inference(model, inplace=True) is model
    close(model(images), expected)
    state = copy.deepcopy(model.state_dict())
    assert fold_for_inference(model.train()) is model
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_features_only() -> None:
    extractor = create_model("crate_nano", features_only=True, depth=3).eval()
    images = images_for(extractor.model)
    folded = fold_for_inference(extractor)
    assert isinstance(folded, FeatureExtractor)
    assert folded is not extractor
    for have, want in zip(folded(images), extractor(images), strict=True):
        close(have, want)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_saved_and_loaded_like_any_model(family: str, tmp_path: Path) -> None:
    model = make(family)
    images = images_for(model)
    folded = fold_for_inference(model)
    save_pretrained(folded, tmp_path)
    again = create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert again.folded
    assert not again.training
    assert torch.equal(again(images), folded(images))
    assert set(again.load_report.loaded) == set(folded.state_dict())
    assert "Folded: for inference" in (tmp_path / "README.md").read_text()
    save_pretrained(again, tmp_path / "copy")
    assert torch.equal(create_model(f"local-dir:{tmp_path / 'copy'}", pretrained=True)(images), folded(images))


@torch.no_grad()
def test_a_folded_model_is_fitted_to_other_sizes_and_classes_when_loaded(tmp_path: Path) -> None:
    folded = fold_for_inference(make(dynamic_img_size=True))
    save_pretrained(folded, tmp_path)
    rows, columns = (2 * side for side in folded.img_size)
    again = create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=(rows, columns), num_classes=7)
    assert again.load_report.reinitialised == ("head.weight", "head.bias")
    assert again(torch.zeros(1, 3, rows, columns)).shape == (1, 7)
    images = images_for(folded)
    doubled = create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=6)
    close(doubled(torch.cat([images, images], dim=1)), folded(images))


def test_a_folded_model_without_its_weights_is_folded_too(tmp_path: Path) -> None:
    save_pretrained(fold_for_inference(make()), tmp_path)
    fresh = create_model(f"local-dir:{tmp_path}")
    assert fresh.folded
    assert isinstance(fresh.blocks[0].ista, FoldedISTA)


def test_weights_of_a_folded_model_do_not_enter_another(tmp_path: Path) -> None:
    save_pretrained(fold_for_inference(create_model("crate_nano").eval()), tmp_path)
    with pytest.raises(WeightsError, match="if the weights are folded, load the folder"):
        create_model("crate_nano", checkpoint_path=tmp_path / "model.safetensors")
    save_pretrained(create_model("crate_nano").eval(), tmp_path / "plain")
    with pytest.raises(WeightsError, match="then fold_for_inference"):
        create_model(f"local-dir:{tmp_path}", checkpoint_path=tmp_path / "plain" / "model.safetensors")
    state = create_model("crate_nano").state_dict()
    del state["norm.weight"]
    torch.save(state, tmp_path / "incomplete.pt")
    with pytest.raises(WeightsError, match=r"norm.weight is missing(?!.*folded)"):
        create_model("crate_nano", checkpoint_path=tmp_path / "incomplete.pt")


@torch.no_grad()
def test_cast_copied_pickled_and_compiled_like_any_model(tmp_path: Path) -> None:
    folded = fold_for_inference(make())
    images = images_for(folded)
    assert torch.equal(copy.deepcopy(folded)(images), folded(images))
    torch.save(folded.state_dict(), tmp_path / "state.pt")
    other = fold_for_inference(make())
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(images), folded(images))
    torch.testing.assert_close(folded.double()(images.double()).float(), other(images), rtol=1e-4, atol=1e-4)
    compiled = torch.compile(other, fullgraph=True, backend="eager")
    close(compiled(images), other(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    folded = fold_for_inference(make().to(dtype))
    assert {parameter.dtype for parameter in folded.parameters()} == {dtype}


def test_refused_with_a_reason() -> None:
    with pytest.raises(InputError, match=r"training mode.*model\.eval\(\)"):
        fold_for_inference(make().train())
    with pytest.raises(InputError, match="not Linear"):
        fold_for_inference(nn.Linear(2, 2))  # type: ignore[type-var]
    with pytest.raises(InputError, match="not OptimizedModule"):
        fold_for_inference(torch.compile(make()))  # type: ignore[type-var]


class Adapted(nn.Linear):
    """As adapters for fine-tuning do it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize("where", ["qkv", "ista", "norm1", "norm2", "patch embedding", "hook"])
def test_what_was_exchanged_inside_a_layer_is_refused_and_nothing_is_changed(where: str) -> None:
    model = make()
    block = model.blocks[1]
    if where == "qkv":
        block.mssa.qkv = Adapted(48, 48, bias=False)
    elif where == "ista":
        block.ista = type("Mine", (ISTA,), {})(48)
    elif where == "norm1":
        block.norm1 = nn.Identity()
    elif where == "norm2":
        block.norm2 = nn.LayerNorm(48, bias=False)
    elif where == "patch embedding":
        model.patch_embed.proj = Adapted(108, 48)
    else:
        block.norm2.register_forward_hook(lambda _, __, out: out + 1)
    names = list(model.state_dict())
    with pytest.raises(InputError, match="remove them" if where == "hook" else "only a plain"):
        fold_for_inference(model, inplace=True)
    assert list(model.state_dict()) == names
    assert not model.folded


@torch.no_grad()
def test_layers_and_modules_that_are_shared() -> None:
    model = make()
    images = images_for(model)
    model.blocks[1] = model.blocks[0]
    model.blocks[2].mssa.qkv = model.blocks[0].mssa.qkv
    close(fold_for_inference(model)(images), model(images))
    model.blocks[2].mssa = model.blocks[0].mssa
    with pytest.raises(InputError, match="share one attention"):
        fold_for_inference(model)


def test_folded_inside_inference_mode() -> None:
    model = make()
    with torch.inference_mode():
        folded = fold_for_inference(model)
    images = images_for(folded).requires_grad_()
    folded(images).sum().backward()
    assert images.grad is not None
    folded.load_state_dict(folded.state_dict())


class Shifted(CrateBlock):
    """Computes something else with the modules of CRATE."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + self.norm1(tokens)


class Other(nn.Module):
    """A layer that nobody knows."""


@pytest.mark.parametrize("kind", [Shifted, Other])
def test_layers_of_other_kinds_are_refused_and_nothing_is_changed(kind: type[nn.Module]) -> None:
    model = Crate(img_size=16, embed_dim=8, depth=2, num_heads=2).eval()
    model.blocks[1] = Shifted(8, 2) if kind is Shifted else Other()
    names = list(model.state_dict())
    with pytest.raises(InputError, match=kind.__name__):
        fold_for_inference(model, inplace=True)
    assert list(model.state_dict()) == names
    assert not model.folded


class Known(CrateBlock):
    """Says of its own forward what folds."""

    def normed_products(self) -> list[NormedProduct]:
        return [NormedProduct(self, "norm2", self, "ista")]

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.ista(self.norm2(tokens))
        return out


@torch.no_grad()
def test_a_layer_of_ones_own_says_what_folds() -> None:
    model = Crate(img_size=16, embed_dim=8, depth=2, num_heads=2).eval()
    model.blocks[1] = Known(8, 2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    images = images_for(model)
    folded = fold_for_inference(model)
    close(folded(images), model(images))
    assert isinstance(folded.blocks[1].ista, FoldedISTA)


class OtherHeads(MSSA):
    """Computes something else with the products of MSSA."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.proj(self.qkv(x))


@pytest.mark.parametrize("how", ["subclass", "hook"])
def test_what_calls_the_product_is_looked_at(how: str) -> None:
    model = make()
    if how == "hook":
        model.blocks[1].mssa.register_forward_hook(lambda _, __, out: 2 * out)
    else:
        model.blocks[1].mssa = OtherHeads(48, 3)
    with pytest.raises(InputError, match=r"in a layer CrateBlock is .*fold does not know what that computes"):
        fold_for_inference(model)


class Stem(PatchEmbed):
    """Patches without a norm."""

    def __init__(self) -> None:
        super().__init__(16, 8)
        self.proj = nn.Conv2d(3, 8, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).mT


@torch.no_grad()
def test_a_patch_embedding_of_ones_own_stays_as_it_is() -> None:
    model = Crate(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2).eval()
    model.patch_embed = Stem()
    images = images_for(model)
    close(fold_for_inference(model)(images), model(images))


def test_a_forward_put_in_place_of_a_layers_own_is_refused() -> None:
    model = make()
    model.blocks[0].forward = lambda tokens: tokens
    with pytest.raises(InputError, match="CrateBlock"):
        fold_for_inference(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_reads_the_weights_of_the_paper_refuses_a_folded_model(family: str) -> None:
    folded = fold_for_inference(make(family))
    images = images_for(folded)
    for read in (
        lambda: explain(folded),
        lambda: subspace_report(folded),
        lambda: layerwise_analysis(folded, [images]),
        lambda: verify_descent(folded, [images]),
        lambda: intervene(folded, step_size=0.2).__enter__(),
    ):
        with pytest.raises(InputError, match="before folding"):
            read()


def test_a_folded_model_is_not_trained(tmp_path: Path) -> None:
    folded = fold_for_inference(make(img_size=12))
    with pytest.raises(InputError, match="cannot be trained: train the model that it was folded from"):
        train(folded, Colours(), Recipe(steps=1, batch_size=2, sizes=(12,), size_starts=(0.0,)), tmp_path)
