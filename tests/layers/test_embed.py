"""Patches come in the released order, any size that the patch divides works, and positions survive resampling."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.layers import (
    ConvPatchEmbed,
    FourierPosEmbed,
    NormedPatchEmbed,
    PatchEmbed,
    patchify,
    resample_pos_embed,
    sincos_pos_embed,
    unpatchify,
)

sides = st.integers(1, 5)
grids = st.tuples(sides, sides)


def flat_patches(image: Tensor, patch: tuple[int, int]) -> Tensor:
    """Patches of (channels, height, width), each flattened (row, column, channel), one at a time."""
    p, q = patch
    channels, height, width = image.shape
    return torch.stack(
        [
            torch.stack([image[c, top + r, left + s] for r in range(p) for s in range(q) for c in range(channels)])
            for top in range(0, height, p)
            for left in range(0, width, q)
        ]
    )


@given(grids, st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(1, 4))
def test_crate_flattens_row_column_channel(grid: tuple[int, int], patch: tuple[int, int], channels: int) -> None:
    torch.manual_seed(0)
    size = (grid[0] * patch[0], grid[1] * patch[1])
    layer = NormedPatchEmbed(6, size, patch, channels).double()
    with torch.no_grad():
        for norm in (layer.norm1, layer.norm2):
            norm.weight.copy_(torch.randn_like(norm.weight))
            norm.bias.copy_(torch.randn_like(norm.bias))
    image = torch.randn(2, channels, *size, dtype=torch.float64)
    tokens = layer(image)
    assert tokens.shape == (2, grid[0] * grid[1], 6)
    for sample in range(2):
        patches = flat_patches(image[sample], patch)
        normed = F.layer_norm(patches, patches.shape[1:], layer.norm1.weight, layer.norm1.bias, eps=1e-5)
        projected = normed @ layer.proj.weight.T + layer.proj.bias
        expected = F.layer_norm(projected, (6,), layer.norm2.weight, layer.norm2.bias, eps=1e-5)
        torch.testing.assert_close(tokens[sample], expected, rtol=0, atol=1e-10)


@given(grids, st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(1, 4))
def test_images_come_back_from_their_patches(grid: tuple[int, int], patch: tuple[int, int], channels: int) -> None:
    images = torch.randn(2, channels, grid[0] * patch[0], grid[1] * patch[1])
    patches = patchify(images, patch)
    for image, rows in zip(images, patches, strict=True):
        assert torch.equal(rows, flat_patches(image, patch))
    assert torch.equal(unpatchify(patches, patch, grid), images)


def test_what_makes_no_patches_or_images_is_refused() -> None:
    for shape in ((3, 8, 8), (1, 3, 9, 8), (1, 3, 8, 9)):
        with pytest.raises(InputError, match="patches of 4 x 4"):
            patchify(torch.zeros(shape), 4)
    for shape in ((6, 48), (1, 5, 48), (1, 6, 49)):
        with pytest.raises(InputError, match="a grid of 2 x 3"):
            unpatchify(torch.zeros(shape), 4, (2, 3))


@given(grids, st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(1, 4))
def test_vit_projects_each_patch(grid: tuple[int, int], patch: tuple[int, int], channels: int) -> None:
    torch.manual_seed(0)
    size = (grid[0] * patch[0], grid[1] * patch[1])
    layer = ConvPatchEmbed(6, size, patch, channels).double()
    image = torch.randn(2, channels, *size, dtype=torch.float64)
    kernel = layer.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (row, column, channel), as `flat_patches`
    for sample, tokens in enumerate(layer(image)):
        expected = flat_patches(image[sample], patch) @ kernel.T + layer.proj.bias
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-12)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.integers(1, 9))
def test_sizes_that_the_patch_divides_and_no_others(
    height: int, width: int, patch_height: int, patch_width: int
) -> None:
    if height % patch_height or width % patch_width:
        with pytest.raises(InputError, match=f"{height} x {width}.*for example to"):
            PatchEmbed((height, width), (patch_height, patch_width))
        return
    layer = PatchEmbed((height, width), (patch_height, patch_width))
    assert layer.grid_size == (height // patch_height, width // patch_width)
    assert layer.num_patches * patch_height * patch_width == height * width


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 9), st.integers(2, 9))
def test_the_size_that_an_error_proposes_is_a_good_one(
    height: int, width: int, patch_height: int, patch_width: int
) -> None:
    try:
        PatchEmbed((height, width), (patch_height, patch_width))
    except InputError as error:
        proposed = [int(word) for word in str(error).rsplit("to ", 1)[1].split(" x ")]
        PatchEmbed((proposed[0], proposed[1]), (patch_height, patch_width))


@pytest.mark.parametrize("size", [0, -4, (8,), (8, 8, 8), (8, 0), 8.0, (8, 8.0), "88", None])
def test_what_is_no_size_is_refused(size: object) -> None:
    with pytest.raises(InputError, match="positive int or a pair"):
        PatchEmbed(size, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("embed", [NormedPatchEmbed, ConvPatchEmbed])
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 4, 8, 8), "3 channels"),
        ((1, 1, 8, 8), "3 channels"),
        ((3, 8, 8), "batch, 3, height, width"),
        ((1, 3, 8, 12), "set_input_size"),
        ((1, 3, 12, 8), "dynamic_img_size"),
    ],
)
def test_images_of_other_shapes_are_refused(
    embed: type[NormedPatchEmbed] | type[ConvPatchEmbed], shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        embed(6, 8, 4)(torch.zeros(shape))


@pytest.mark.parametrize("embed", [NormedPatchEmbed, ConvPatchEmbed])
def test_dynamic_takes_any_size_that_the_patch_divides(
    embed: type[NormedPatchEmbed] | type[ConvPatchEmbed],
) -> None:
    layer = embed(6, 8, 4, dynamic_img_size=True)
    assert layer(torch.zeros(2, 3, 12, 4)).shape == (2, 3, 6)
    with pytest.raises(InputError, match="divisible"):
        layer(torch.zeros(2, 3, 13, 4))


def positions(grid: tuple[int, int], prefix: int = 1, dim: int = 3) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(1, prefix + grid[0] * grid[1], dim)


@given(grids, st.integers(0, 2))
def test_the_same_grid_changes_nothing(grid: tuple[int, int], prefix: int) -> None:
    pos_embed = positions(grid, prefix)
    assert resample_pos_embed(pos_embed, grid, grid, prefix) is pos_embed


@given(grids, grids, st.integers(0, 2), st.floats(-3, 3))
def test_constants_stay_and_prefix_tokens_are_left_alone(
    old: tuple[int, int], new: tuple[int, int], prefix: int, value: float
) -> None:
    pos_embed = positions(old, prefix)
    pos_embed[:, prefix:] = value
    resampled = resample_pos_embed(pos_embed, old, new, prefix)
    assert resampled.shape == (1, prefix + new[0] * new[1], 3)
    assert torch.equal(resampled[:, :prefix], pos_embed[:, :prefix])
    torch.testing.assert_close(resampled[:, prefix:], torch.full_like(resampled[:, prefix:], value))


@given(grids, grids)
def test_rows_and_columns_are_not_mixed_up(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Transposing the grid before resampling is transposing it after."""

    def transposed(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
        return pos_embed.view(1, *grid, -1).transpose(1, 2).flatten(1, 2)

    pos_embed = positions(old, 0)
    one = transposed(resample_pos_embed(pos_embed, old, new, 0), new)
    other = resample_pos_embed(transposed(pos_embed, old), old[::-1], new[::-1], 0)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_resampling_is_bicubic_with_antialias_by_target_size() -> None:
    pos_embed = positions((6, 4))
    grid = pos_embed[:, 1:].view(1, 6, 4, 3).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(3, 5), mode="bicubic", antialias=True, align_corners=False)
    resampled = resample_pos_embed(pos_embed, (6, 4), (3, 5))
    torch.testing.assert_close(resampled[:, 1:], expected.flatten(2).mT)


def antialiased(old: int, new: int) -> Tensor:
    """(new, old): how much each old cell gives to each new one, by Keys' kernel with a = -0.5."""
    scale = old / new
    wide = max(scale, 1.0)
    centres = scale * (torch.arange(new, dtype=torch.float64)[:, None] + 0.5)
    cells = torch.arange(old, dtype=torch.float64) + 0.5
    far = ((cells - centres) / wide).abs()
    inner = 1.5 * far**3 - 2.5 * far**2 + 1
    outer = -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2
    weights = torch.where(far <= 1, inner, torch.where(far < 2, outer, 0.0))
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("dim", [1, 3])
def test_resampling_between_all_small_grids_is_that_of_the_formula(dim: int) -> None:
    for old in product(range(1, 7), repeat=2):
        channels_first = positions(old, 0, dim).double().mT.contiguous()  # (1, dim, rows * columns)
        for new in product(range(1, 7), repeat=2):
            grid = channels_first.unflatten(2, old)
            expected = antialiased(old[0], new[0]) @ grid @ antialiased(old[1], new[1]).T
            resampled = resample_pos_embed(channels_first.mT, old, new, 0)
            torch.testing.assert_close(resampled, expected.flatten(2).mT, rtol=0, atol=1e-9, msg=f"{old} to {new}")


@given(grids, grids)
def test_resampling_by_scale_is_bicubic_at_factors_that_are_a_little_larger(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    pos_embed = positions(old).double()
    resampled = resample_pos_embed(pos_embed, old, new, rule="scale")
    if old == new:
        assert resampled is pos_embed
        return
    grid = pos_embed[:, 1:].mT.unflatten(2, old)
    factors = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
    expected = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    torch.testing.assert_close(resampled[:, 1:], expected.flatten(2).mT, rtol=0, atol=1e-9)
    assert torch.equal(resampled[:, :1], pos_embed[:, :1])


def test_an_unknown_rule_of_resampling_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'scale'"):
        resample_pos_embed(positions((2, 2)), (2, 2), (2, 2), rule="scales")  # type: ignore[arg-type]


@given(grids, st.integers(1, 4))
def test_sines_and_cosines_tell_the_column_then_the_row(grid: tuple[int, int], quarter: int) -> None:
    table = sincos_pos_embed(grid, 4 * quarter)
    assert table.shape == (1, 1 + grid[0] * grid[1], 4 * quarter)
    assert not table[0, 0].any()
    for row in range(grid[0]):
        for column in range(grid[1]):
            waves = [
                wave(place / 10000 ** (k / quarter))
                for place in (column, row)
                for wave in (math.sin, math.cos)
                for k in range(quarter)
            ]
            torch.testing.assert_close(table[0, 1 + row * grid[1] + column], torch.tensor(waves))


def test_sines_and_cosines_need_four_channels_each() -> None:
    with pytest.raises(InputError, match="4 divides, not 6"):
        sincos_pos_embed((2, 2), 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_resampling_keeps_the_dtype(dtype: torch.dtype) -> None:
    assert resample_pos_embed(positions((2, 2)).to(dtype), (2, 2), (3, 3)).dtype == dtype


def test_resampling_in_float64_is_not_rounded_to_float32() -> None:
    pos_embed = torch.full((1, 1 + 4, 3), 1 + 2**-40, dtype=torch.float64)
    resampled = resample_pos_embed(pos_embed, (2, 2), (3, 3))
    torch.testing.assert_close(resampled, torch.full_like(resampled, 1 + 2**-40), rtol=0, atol=2**-45)


def test_a_grid_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match="2 x 3"):
        resample_pos_embed(positions((2, 2)), (2, 3), (4, 4))


@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 2**31))
@torch.no_grad()
def test_fourier_positions_are_projected_waves_of_row_and_column(grid: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    embed = FourierPosEmbed(5).double()
    weight, bias = embed.token_projection.weight[:, :, 0, 0], embed.token_projection.bias

    def waves(place: int, side: int) -> list[float]:
        at = 2 * math.pi * place / (side + 1e-6)
        periods = [10000 ** (2 * (j // 2) / 32) for j in range(32)]
        return [math.cos(at / t) if j % 2 else math.sin(at / t) for j, t in enumerate(periods)]

    every = product(range(1, grid[0] + 1), range(1, grid[1] + 1))
    expected = [
        weight @ torch.tensor(waves(y, grid[0]) + waves(x, grid[1]), dtype=torch.float64) + bias for y, x in every
    ]
    torch.testing.assert_close(embed(grid), torch.stack(expected)[None], rtol=0, atol=1e-12)
