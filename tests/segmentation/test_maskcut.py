"""MaskCut finds what the published code finds, by either solver, on any grid, and refuses bad features by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import planted, scenes, thresholds
from safetensors.torch import load_file
from small_models import small_options
from torch import Tensor

from whitebox_crate import create_model
from whitebox_crate.errors import InputError
from whitebox_crate.segmentation import (
    CutRound,
    affinity,
    best_head_iou,
    bipartition,
    connected_component,
    mask_boxes,
    mask_iou,
    maskcut,
    maskcut_of,
    maskcut_rounds,
    ncut_eigenvector,
    patch_features,
    upsample,
)
from whitebox_crate.segmentation import ncut as solvers
from whitebox_crate.segmentation.cuts import _refused, _rounds
from whitebox_crate.segmentation.ncut import degrees

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    case["name"]: case
    for case in json.loads((GOLDEN / "manifest.json").read_text())["cases"]
    if case["kind"] == "maskcut"
}
OF_ANY_SIGN = [name for name, case in CASES.items() if case["masks_do_not_depend_on_eigenvector_sign"]]


class Golden:
    """A run of the published code."""

    def __init__(self, name: str) -> None:
        self.case: dict[str, Any] = CASES[name]
        self.tensors = load_file(GOLDEN / self.case["file"])
        call = self.case["call"]
        self.features = self.tensors["input/feats"].mT
        self.grid: tuple[int, int] = tuple(call["dims"])
        self.n, self.tau, self.size = call["N"], call["tau"], tuple(call["init_image_size"])

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[f"output/{name}"]

    def masks(self, prefix: str = "") -> Tensor:
        """All masks at image size."""
        return torch.stack([self[f"{prefix}mask{index}"].bool() for index in range(self.n)])

    def links(self, index: int) -> Tensor:
        """The affinity of one round."""
        tokens = len(self.features)
        bits = np.unpackbits(self[f"round{index}.affinity_bits"].numpy())[: tokens**2]
        return torch.from_numpy(bits).bool().view(tokens, tokens)

    def run(self, prefix: str = "") -> tuple[list[CutRound], list[Tensor]]:
        """Our rounds with each eigenvector of the stored sign, and the affinities that these were asked of."""
        asked: list[Tensor] = []

        def solve(links: Tensor) -> Tensor:
            vector = ncut_eigenvector(links)
            asked.append(links)
            return vector * (vector @ self[f"{prefix}round{len(asked) - 1}.eigvec"]).sign()

        return _rounds(affinity(self.features, self.tau), self.grid, self.n, solve), asked


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_that_of_the_published_code(name: str) -> None:
    golden = Golden(name)
    rounds, asked = golden.run()
    for index, (cut, links) in enumerate(zip(rounds, asked, strict=True)):
        stored = f"round{index}."
        assert torch.equal(links, golden.links(index))
        torch.testing.assert_close(degrees(links), golden[f"{stored}degree"], rtol=1e-10, atol=0)
        torch.testing.assert_close(cut.eigenvector, golden[f"{stored}eigvec"], rtol=0, atol=1e-10)
        assert torch.equal(cut.salient.flatten(), golden[f"{stored}bipartition_raw"].bool())
        assert cut.corners == int(golden[f"{stored}corners"])
        assert torch.equal(cut.foreground, golden[f"{stored}bipartition"].bool())
        if golden.case["distance_of_decisions_from_flipping"][index]["seed_ties"] == 1:
            assert cut.seed == int(golden[f"{stored}seed"])
        for mask in ("component", "accepted", *(("painting",) if index else ())):
            assert torch.equal(cut.painted if mask == "painting" else getattr(cut, mask), golden[stored + mask].bool())
    masks = torch.stack([cut.accepted & ~cut.painted for cut in rounds])
    assert torch.equal(upsample(masks, golden.size), golden.masks())


@pytest.mark.parametrize("solver", ["lanczos", "dense"])
@pytest.mark.parametrize("name", OF_ANY_SIGN)
def test_masks_are_those_of_the_published_code(name: str, solver: Any) -> None:
    golden = Golden(name)
    masks = maskcut(golden.features, golden.grid, golden.n, golden.tau, solver=solver)
    assert torch.equal(upsample(masks, golden.size), golden.masks())


def test_the_published_rule_depends_on_the_sign_and_both_signs_are_matched() -> None:
    golden = Golden("maskcut_corner_sign")
    rounds, _ = golden.run("signflip.")
    for index, cut in enumerate(rounds):
        assert torch.equal(cut.accepted, golden[f"signflip.round{index}.accepted"].bool())
    flipped = upsample(torch.stack([cut.accepted & ~cut.painted for cut in rounds]), golden.size)
    assert torch.equal(flipped, golden.masks("signflip."))
    assert not torch.equal(flipped, golden.masks())


@given(scenes(), thresholds)
def test_both_solvers_find_the_same_masks(scene: tuple[Tensor, tuple[int, int]], tau: float) -> None:
    features, grid = scene
    by_iteration = maskcut_rounds(features, grid, 3, tau)
    for cut, reference in zip(by_iteration, maskcut_rounds(features, grid, 3, tau, solver="dense"), strict=True):
        assert torch.equal(cut.component, reference.component)
        assert cut.seed == reference.seed
        torch.testing.assert_close(cut.eigenvector, reference.eigenvector, rtol=0, atol=1e-5)


def test_the_iteration_converges_by_itself_where_objects_stand_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "_dense", None)
    for seed in range(5):
        maskcut(planted(seed, (20, 30), 0.8), (20, 30))


def test_islands_that_share_nothing_are_cut_apart() -> None:
    features = torch.eye(2).repeat_interleave(torch.tensor([15, 5]), dim=0)
    masks = maskcut(features, (4, 5), n=1)
    assert torch.equal(masks, features[:, 1].bool().view(1, 4, 5))


@given(scenes(), thresholds, st.integers(1, 4))
def test_masks_are_disjoint_and_connected_before_the_earlier_ones_are_taken_out(
    scene: tuple[Tensor, tuple[int, int]], tau: float, n: int
) -> None:
    features, grid = scene
    masks = maskcut(features, grid, n, tau)
    assert masks.shape == (n, *grid)
    assert masks.dtype == torch.bool
    assert int(masks.sum(dim=0).max()) <= 1
    for cut in maskcut_rounds(features, grid, n, tau):
        if cut.seed is not None:
            assert torch.equal(connected_component(cut.component, cut.seed), cut.component)
            assert not (cut.component & ~cut.foreground).any()


@pytest.mark.parametrize("grid", [(9, 16), (16, 9), (8, 24)])
def test_grids_need_not_be_square_for_three_masks(grid: tuple[int, int]) -> None:
    height, width = grid
    label = torch.zeros(grid, dtype=torch.int64)
    for index, (top, left) in enumerate([(0.15, 0.15), (0.2, 0.65), (0.65, 0.4)], start=1):
        row, column = int(top * height), int(left * width)
        label[row : row + max(2, height // 4), column : column + max(2, width // 4)] = index
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4, 16, generator=generator)
    features = directions[label.flatten()] + 0.4 * torch.randn(height * width, 16, generator=generator)
    masks = maskcut(features, grid, n=3)
    _, found = best_head_iou(masks, torch.stack([label == index for index in (1, 2, 3)]))
    assert sorted(found.tolist()) == [0, 1, 2]
    assert mask_iou(masks[found], torch.stack([label == index for index in (1, 2, 3)])).min() > 0.8
    across = maskcut(features.view(*grid, -1).transpose(0, 1).flatten(0, 1), (width, height), n=3)
    assert torch.equal(across, masks.mT)


@given(st.integers(0, 2**31), st.floats(1e-30, 1e30))
def test_the_length_and_the_basis_of_features_do_not_matter(seed: int, factor: float) -> None:
    features = planted(seed, (8, 11), 0.5).double()
    masks = maskcut(features, (8, 11))
    each = torch.logspace(-3, 3, len(features), dtype=torch.float64)[:, None]
    assert torch.equal(maskcut(factor * each * features, (8, 11)), masks)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    assert torch.equal(maskcut(features @ turn, (8, 11)), masks)


@pytest.mark.parametrize("features", [torch.zeros(12, 4), torch.ones(12, 4)], ids=["zero", "constant"])
def test_where_no_patch_differs_there_is_no_object(features: Tensor) -> None:
    assert not maskcut(features, (3, 4)).any()


def test_one_patch_holds_no_object() -> None:
    assert not maskcut(torch.ones(1, 4), (1, 1)).any()
    with pytest.raises(InputError, match=r"at least two tokens, got torch.bool of shape \(1, 1\)"):
        ncut_eigenvector(affinity(torch.ones(1, 4)))


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (2, 2), (1, 3), (3, 3)])
def test_tiny_grids_are_cut(grid: tuple[int, int]) -> None:
    features = torch.eye(grid[0] * grid[1])
    masks = maskcut(features, grid)
    assert masks[0].any()
    assert not masks[0].all()


def test_low_precision_features_are_cut_as_their_values_are() -> None:
    features = planted(5, (8, 8), 0.5).bfloat16()
    assert torch.equal(maskcut(features, (8, 8)), maskcut(features.double(), (8, 8)))


def test_a_side_with_three_corners_is_background() -> None:
    vector = torch.ones(4, 5)
    vector[1:3, 1:3] = -0.5
    vector[0, 0] = -0.25
    foreground, seed = bipartition(vector.flatten(), (4, 5))
    assert torch.equal(foreground, vector < 0)
    assert seed == 6


def test_a_side_with_two_corners_and_the_peak_is_foreground() -> None:
    vector = torch.zeros(4, 5)
    vector[:, 0] = 1
    vector[2, 0] = 2
    foreground, seed = bipartition(vector.flatten(), (4, 5))
    assert torch.equal(foreground, vector > 0)
    assert seed == 10


def test_a_side_without_the_peak_is_background() -> None:
    vector = torch.full((4, 5), 0.1)
    vector[1, 2], vector[2, 2] = -1, -0.5
    foreground, seed = bipartition(vector.flatten(), (4, 5))
    assert torch.equal(foreground, vector < 0)
    assert seed == 7


def test_of_equal_peaks_the_first_counts_whatever_rounding_says() -> None:
    vector = torch.zeros(3, 4, dtype=torch.float64)
    vector[1, 1], vector[1, 2] = 1, 1 + 1e-14
    foreground, seed = bipartition(vector.flatten(), (3, 4))
    assert foreground.sum() == 2
    assert seed == 5


def patches(first: int, beyond: int) -> Tensor:
    """A mask on a grid of 10 x 10, of the patches from the first on."""
    return (torch.arange(100) >= first).logical_and(torch.arange(100) < beyond).view(10, 10)


def test_a_later_component_is_refused_up_to_one_percent_of_the_patches() -> None:
    assert _refused(patches(0, 1), patches(50, 60))
    assert not _refused(patches(0, 2), patches(50, 60))


def test_a_later_component_is_refused_above_an_iou_of_one_half_with_the_last_mask() -> None:
    assert not _refused(patches(0, 20), patches(10, 20))
    assert _refused(patches(0, 20), patches(9, 20))


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.03, 0.5]))
def test_boxes_are_tight(seed: int, height: int, width: int, share: float) -> None:
    masks = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) < share
    boxes = mask_boxes(masks)
    assert boxes.dtype == torch.int64
    for mask, box in zip(masks.flatten(0, 1), boxes.flatten(0, 1).tolist(), strict=True):
        rows, columns = (indices.tolist() for indices in mask.nonzero().unbind(1))
        expected = [0, 0, 0, 0]
        if rows:
            expected = [min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1]
        assert box == expected


@pytest.mark.parametrize("name", ["crate_tiny", "vit_tiny_patch16_224"])
def test_a_model_finds_objects_at_the_size_of_its_images(name: str) -> None:
    model = create_model(name, **small_options(name, img_size=(96, 128))).eval()
    images = torch.randn(2, 3, 96, 128)
    found = maskcut_of(model, images, layer=-1, n=2)
    assert found.masks.shape == (2, 2, 96, 128)
    assert torch.equal(found.boxes, mask_boxes(found.masks))
    features, grid = patch_features(model, images, -1)
    for index in range(2):
        assert torch.equal(found.masks[index], upsample(maskcut(features[index], grid, n=2), (96, 128)))


def test_refine_has_the_last_word_on_masks_that_are_not_empty() -> None:
    model = create_model("crate_tiny", **small_options("crate_tiny", img_size=(96, 128))).eval()
    images = torch.randn(2, 3, 96, 128)
    plain = maskcut_of(model, images)
    seen = []

    def shrink(image: Tensor, mask: Tensor) -> Tensor:
        seen.append(image)
        box = torch.zeros_like(mask)
        box[3:7, 2:5] = True
        return box

    found = maskcut_of(model, images, refine=shrink)
    there = plain.masks.flatten(2).any(dim=-1)
    assert len(seen) == int(there.sum()) > 0
    assert torch.equal(seen[0], images[0])
    assert torch.equal(found.boxes[there], torch.tensor([[2, 3, 3, 4]]).expand(len(seen), 4))
    assert not found.masks[~there].any()
    with pytest.raises(InputError, match=r"refine must return a bool tensor of shape \(96, 128\), not NoneType"):
        maskcut_of(model, images, refine=lambda image, mask: None)  # type: ignore[arg-type, return-value]


def test_no_image_has_no_masks() -> None:
    model = create_model("crate_tiny", **small_options("crate_tiny")).eval()
    found = maskcut_of(model, torch.zeros(0, 3, *model.img_size))
    assert found.masks.shape == (0, 3, *model.img_size)
    assert found.boxes.shape == (0, 3, 4)


@pytest.mark.parametrize("grid", [(2, 4), (7, 1), (0, 6), (-2, -3), (6,), (1, 2, 3)])
def test_a_grid_that_does_not_fit_is_refused_with_both_numbers(grid: Any) -> None:
    with pytest.raises(InputError, match=r"does not make 6; leave \[CLS\]"):
        maskcut(torch.ones(6, 4), grid)


@pytest.mark.parametrize("n", [0, -1])
def test_there_is_at_least_one_mask(n: int) -> None:
    with pytest.raises(InputError, match=f"at least 1, not {n}"):
        maskcut(torch.ones(6, 4), (2, 3), n=n)


def test_steps_refuse_what_is_none_of_theirs() -> None:
    with pytest.raises(InputError, match="no cut"):
        bipartition(torch.ones(6), (2, 3))
    with pytest.raises(InputError, match=r"\(tokens,\), got \(2, 3\)"):
        bipartition(torch.ones(2, 3), (2, 3))
    with pytest.raises(InputError, match=r"torch.float32 of shape \(2, 3\)"):
        mask_boxes(torch.ones(2, 3))


def test_the_page_on_evaluation_says_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    grids = json.loads((root / "benchmarks" / "maskcut.json").read_text())["by_grid"]
    medians = [f"{of['median_ratio']:.3f} for {grid.replace('x', ' x ')}" for grid, of in grids.items()]
    said = " ".join((root / "docs" / "evaluation.md").read_text(encoding="utf-8").split())
    assert f"{medians[0]} patches, {medians[1]} and {medians[2]}" in said
    assert f"at most {grids['60x60']['largest_ratio']:.3f} there" in said
    assert all(of["same_masks"] == of["eigenproblems"] for of in grids.values())
    assert f"in all {sum(of['same_masks'] for of in grids.values())} cases" in said
