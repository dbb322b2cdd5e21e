"""The convolutional stem: what it computes, what it refuses, and that it folds and is explained as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whitebox_crate import fold_for_inference
from whitebox_crate.analysis import explain
from whitebox_crate.errors import InputError
from whitebox_crate.layers import ConvStem
from whitebox_crate.loading import load_state
from whitebox_crate.models import Crate


@torch.no_grad()
def shaken(stem: ConvStem) -> ConvStem:
    """Nothing is left at zero or one: neither scales and shifts nor the statistics."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in stem.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(0.5 + noise if name.endswith("running_var") else noise - 0.5)
    return stem


def model_of(**options: object) -> Crate:
    torch.manual_seed(0)
    model = Crate(img_size=(32, 16), patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=3)
    model.patch_embed = shaken(ConvStem(32, (32, 16), 8, **options))  # type: ignore[arg-type]
    return model.eval()


def normed(features: Tensor, norm: nn.Module) -> Tensor:
    """BatchNorm by its equation, with the statistics that it has."""
    scale, shift, mean, var = (
        getattr(norm, name)[:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
    )
    out: Tensor = scale * (features - mean) / (var + 1e-5).sqrt() + shift
    return out


@pytest.mark.parametrize(("patch", "widths"), [(2, [16]), (8, [4, 8, 16]), (16, [2, 4, 8, 16])])
@torch.no_grad()
def test_each_step_halves_the_image_and_doubles_the_channels(patch: int, widths: list[int]) -> None:
    stem = shaken(ConvStem(16, (2 * patch, 3 * patch), patch).double()).eval()
    parts = [part for part in stem.proj if isinstance(part, nn.Sequential)]
    assert [tuple(part[0].weight.shape[:1]) for part in parts] == [(width,) for width in widths]
    assert all(part[0].bias is None for part in parts)
    images = torch.randn(2, 3, 2 * patch, 3 * patch, dtype=torch.float64)
    features = images
    for number, part in enumerate(parts):
        inner = features if number == 0 else F.gelu(features)
        features = normed(F.conv2d(inner, part[0].weight, stride=2, padding=1), part[1])
    tokens = stem(images)
    assert tokens.shape == (2, 6, 16)
    torch.testing.assert_close(tokens.unflatten(1, (2, 3)).permute(0, 3, 1, 2), features, rtol=0, atol=1e-12)


def test_training_normalises_with_the_batch_and_moves_the_statistics() -> None:
    stem = ConvStem(8, 8, 4).train()
    before = copy.deepcopy(stem.state_dict())
    tokens = stem(torch.randn(4, 3, 8, 8))
    assert tokens.mean((0, 1)).abs().max() < 1e-5
    after = stem.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in after if "running" in name or "tracked" in name}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patch_size": 14}, "2, 4, 8, 16"),
        ({"patch_size": 1}, "2, 4, 8, 16"),
        ({"patch_size": (16, 8)}, "not 16 x 8"),
        ({"embed_dim": 20}, "a multiple of 8, not 20"),
        ({"img_size": 200}, "not divisible"),
    ],
)
def test_what_cannot_be_halved_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ConvStem(**{"embed_dim": 32, "img_size": 224, "patch_size": 16, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("sync", [False, True])
@torch.no_grad()
def test_it_folds_into_convolutions_alone(sync: bool) -> None:
    model = model_of()
    if sync:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.double()
    images = torch.randn(2, 3, 32, 16, dtype=torch.float64)
    folded = fold_for_inference(model)
    torch.testing.assert_close(folded(images), model(images), rtol=0, atol=1e-10)
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in folded.modules())
    assert any(isinstance(module, nn.modules.batchnorm._NormBase) for module in model.modules())


def hooked(stem: ConvStem) -> None:
    stem.proj[2][0].register_forward_hook(lambda _, __, out: 2 * out)


def training(stem: ConvStem) -> None:
    stem.proj[2][1].train()


def bare(stem: ConvStem) -> None:
    stem.proj[2][1] = nn.BatchNorm2d(16, affine=False).eval()


def other(stem: ConvStem) -> None:
    stem.proj[2][1] = nn.GroupNorm(1, 16)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(hooked, "with hooks"), (training, "training mode"), (bare, "without a scale"), (other, "GroupNorm")],
)
def test_what_is_no_plain_convolution_with_its_norm_does_not_fold(spoil: Callable[[ConvStem], None], said: str) -> None:
    model = model_of()
    assert isinstance(model.patch_embed, ConvStem)
    spoil(model.patch_embed)
    with pytest.raises(InputError, match=said):
        fold_for_inference(model)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 6), (1, 4)])
@torch.no_grad()
def test_an_image_that_says_the_same_in_other_channels_gives_the_same_tokens(before: int, after: int) -> None:
    old, new = model_of(in_chans=before), model_of(in_chans=after)
    report = load_state(new, old.state_dict(), "a file")
    assert report.adapted == {"patch_embed.proj.0.0.weight": f"from {before} to {after} channels"}
    grey = torch.randn(2, 1, 32, 16)
    few = grey if after == 1 else torch.randn(2, before, 32, 16)
    one, another = (few[:, [c % few.shape[1] for c in range(chans)]] for chans in (before, after))
    torch.testing.assert_close(new(another), old(one), rtol=1e-4, atol=1e-4)


def test_explain_writes_its_equations_and_names_its_statistics() -> None:
    model = model_of()
    text = explain(model)
    assert "F_1 = BN_1(K_1 * X)" in text and "F_i = BN_i(K_i * GELU(F_{i-1}))" in text and "T = F_3" in text
    assert f"Crate: {sum(p.numel() for p in model.parameters()):,} parameters\n" in text
    rows = {line.split()[1]: line.split()[0] for line in text.splitlines() if line.startswith("  K_")}
    assert rows == {f"patch_embed.proj.{2 * i}.0.weight": f"K_{i + 1}" for i in range(3)}
    assert "mu_2" in text and "16 (buffer)" in text


@pytest.mark.parametrize("spoil", [hooked, other])
def test_explain_knows_no_equations_of_another_stem(spoil: Callable[[ConvStem], None]) -> None:
    model = model_of()
    assert isinstance(model.patch_embed, ConvStem)
    spoil(model.patch_embed)
    text = explain(model)
    assert "not known here: patch_embed.proj.2" in text and "F_1" not in text
