"""The emergence study measures what it says, and a killed run of it ends with the record of one that was not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pages import markers
from recipes.composites import Composites
from recipes.objects import Objects
from studies.emergence import measures, plan, study, tables
from whitebox_crate.segmentation import upsample

GRID = (4, 5)


def pixel_average_precision(scores: list[float], object_: list[bool]) -> float:
    """By the definition: the mean over object pixels of the precision among all that score at least as much."""
    precisions = []
    for score, inside in zip(scores, object_, strict=True):
        if inside:
            taken = [o for s, o in zip(scores, object_, strict=True) if s >= score]
            precisions.append(sum(taken) / len(taken))
    return sum(precisions) / len(precisions)


def some_mask(seed: int, *shape: int) -> torch.Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask[..., 0, 0] = True
    return mask


@given(seed=st.integers(0, 1000), levels=st.integers(1, 8), patch=st.integers(1, 3))
def test_average_precision_is_that_of_the_painted_pixels(seed: int, levels: int, patch: int) -> None:
    maps = torch.randint(levels, GRID, generator=torch.Generator().manual_seed(seed)).float()
    masks = some_mask(seed, GRID[0] * patch, GRID[1] * patch)
    painted = upsample(maps, (masks.shape[0], masks.shape[1]))
    found = measures.average_precision(maps, measures.shares_of(masks, GRID))
    assert float(found) == pytest.approx(pixel_average_precision(painted.flatten().tolist(), masks.flatten().tolist()))


@given(seed=st.integers(0, 1000))
def test_average_precision_looks_at_the_order_alone(seed: int) -> None:
    maps, shares = torch.rand(3, *GRID, generator=torch.Generator().manual_seed(seed)), some_mask(seed, 3, *GRID)
    expected = measures.average_precision(maps, shares)
    torch.testing.assert_close(measures.average_precision((5 * maps).exp() - 7, shares), expected)


def test_a_perfect_map_scores_one_by_every_measure() -> None:
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[2:6, 4:8] = True
    perfect = measures.shares_of(mask, GRID)
    found = measures.all_measures(perfect, mask)
    assert found["iou_mean"] == found["average_precision"] == found["pointing"] == 1
    assert found["iou_mass"] == 0.75  # three of the four patches hold more than `KEEP` of the mass


def test_random_and_constant_maps_have_the_share_of_the_object() -> None:
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[:10] = True
    shares = measures.shares_of(mask, (20, 20))
    assert measures.average_precision(torch.ones(20, 20), shares) == pytest.approx(0.25)
    assert measures.peak_inside(torch.ones(20, 20), shares) == pytest.approx(0.25)
    noise = torch.rand(2000, 20, 20)
    assert float(measures.average_precision(noise, shares).mean()) == pytest.approx(0.25, abs=0.02)
    assert float(measures.peak_inside(noise, shares).mean()) == pytest.approx(0.25, abs=0.03)


@given(seed=st.integers(0, 1000), levels=st.integers(1, 8))
def test_the_best_cut_is_the_best_of_all_thresholds(seed: int, levels: int) -> None:
    maps = torch.randint(levels, GRID, generator=torch.Generator().manual_seed(seed)).float()
    masks = some_mask(seed, GRID[0] * 2, GRID[1] * 2)
    painted = upsample(maps, (masks.shape[0], masks.shape[1]))
    every = [((painted >= t) & masks).sum() / ((painted >= t) | masks).sum() for t in painted.unique()]
    assert float(measures.ious(maps, masks, "best")) == pytest.approx(float(max(every)))


def test_a_peak_hides_a_mask_from_the_mean_and_not_from_the_mean_of_logarithms() -> None:
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[1:3, 1:4] = True
    maps = torch.where(mask, 0.1, 0.01)
    maps[1, 1] = 10
    found = measures.all_measures(maps, mask)
    assert found["iou_mean"] == pytest.approx(1 / 6)
    assert found["iou_log"] == found["iou_best"] == found["average_precision"] == 1
    assert found["marked"] == pytest.approx(1 / 20)


def test_shares_are_the_parts_of_patches() -> None:
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[1, :2, :3] = True
    assert measures.shares_of(mask, (2, 2))[1].tolist() == [[1, 0], [0, 0]]
    assert measures.shares_of(mask, (1, 3))[1].tolist() == [[pytest.approx(0.5), pytest.approx(0.25), 0]]


def test_trivial_maps_see_what_they_are_named_after() -> None:
    images = torch.full((2, 3, 16, 16), 0.2)
    images[0, 0, :4, :4] = 1  # another colour, evenly
    images[1, :, ::2, 12:] = 1  # stripes
    maps = measures.trivial_maps(images, (4, 4))
    assert int(maps["colour distance"][0].argmax()) == 0
    assert (maps["local contrast"][1].flatten().topk(4).indices % 4 == 3).all()
    assert float(maps["local contrast"][0].max()) == pytest.approx(0, abs=1e-6)
    assert maps["centred box"][0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert (maps["all ones"] == 1).all()


def test_intervals_are_those_of_student() -> None:
    mean, half = measures.interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2, pytest.approx(4.3027 / math.sqrt(3), rel=1e-4))
    assert math.isnan(measures.interval([1.0])[1])


def toy_sources() -> object:
    shapes = torch.zeros(4, 4, 16, 16, dtype=torch.uint8)
    shapes[:, 3, 2:14, 4:12] = 255
    shapes[torch.arange(4), torch.arange(4) % 3, 2:14, 4:12] = 255
    grounds = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = Composites(Objects(shapes, torch.arange(4) % 2, ("a", "b")), grounds, size=12)
    return plan.Sources(drawn, drawn, drawn, drawn, group_by_object=False)


def tiny_scale() -> object:
    model = {"img_size": 12, "patch_size": 3, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 2}
    return plan.Scale(model, {"batch_size": 4, "sizes": (12,), "size_starts": (0.0,)}, images=64)


def without_seconds(record: object) -> object:
    if isinstance(record, dict):
        return {key: without_seconds(value) for key, value in record.items() if key != "cpu_seconds"}
    return [without_seconds(value) for value in record] if isinstance(record, list) else record


@pytest.mark.parametrize("variant", ["crate", "vit"])
def test_a_killed_run_ends_with_the_record_of_one_that_was_not(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(study.SCALES, "toy", tiny_scale())
    run = plan.Run("test", "toy", variant, 0, 1e-3, steps=4, points=2)
    whole = study.execute(run, toy_sources(), tmp_path / "whole")

    measure, calls = study.measure, iter(range(100))

    def killed(*words: object) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return measure(*words)

    monkeypatch.setattr(study, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        study.execute(run, toy_sources(), tmp_path / "parts")
    parts = study.execute(run, toy_sources(), tmp_path / "parts")
    assert without_seconds(parts) == without_seconds(whole)
    assert json.loads((tmp_path / "parts" / "record.json").read_text()) == parts
    assert study.execute(run, toy_sources(), tmp_path / "parts") == parts  # with no call of `measure`
    assert [point["step"] for point in whole["by_epoch"]] == [0, 2, 4]
    layers = whole["map_average_precision_by_layer"]
    assert len(layers["best_head"]) == 2
    assert all(best[0] >= chosen[0] for best, chosen in zip(layers["best_head"], layers["chosen_head"], strict=True))


def test_runs_are_named_apart_and_balanced() -> None:
    runs = plan.table()
    assert len({run.name for run in runs}) == len(runs)
    main = [run for run in runs if run.part == "main" and run.data == "garments"]
    for first in range(0, len(main), len(plan.COMPARED)):
        assert {run.variant for run in main[first : first + len(plan.COMPARED)]} == set(plan.COMPARED)
    assert all(run.seed in plan.SEEDS for run in main)
    assert all(run.seed not in plan.SEEDS for run in runs if run.part == "tuning")


@pytest.mark.parametrize("data", plan.SCALES)
def test_every_scale_has_networks_and_runs_of_its_own(data: str) -> None:
    model = plan.make_model(plan.Run("main", data, "crate", 0, None, 1))
    assert model.num_classes == plan.SCALES[data].model["num_classes"]
    study.Recipe(steps=plan.STEPS[data], **plan.SCALES[data].recipe)
    runs = [run for run in plan.table() if run.data == data]
    tuned = {run.variant for run in runs if run.part == "tuning"}
    assert tuned == {run.variant for run in runs if run.learning_rate is None}


@torch.no_grad()
def test_what_is_compared_starts_alike() -> None:
    """Products by the same uniform law of their width, and tokens to learn by the normal one."""
    for variant in ("crate_mlp", "crate_mhsa", "vit", *plan.FAMILY):
        model = plan.make_model(plan.Run("main", "garments", variant, 0, None, 1))
        for module in model.blocks.modules():
            if isinstance(module, torch.nn.Linear):
                assert float(module.weight.std() * module.in_features**0.5) == pytest.approx(3**-0.5, rel=0.05)
        if variant != "tost":  # whose positions are not drawn, but for one product
            assert float(model.pos_embed.std()) == pytest.approx(1, rel=0.05)
        assert float(model.cls_token.std()) == pytest.approx(1, rel=0.3)


def _apart(tokens: torch.Tensor) -> torch.Tensor:
    """Every patch opposite to [CLS]."""
    return torch.cat([tokens[:, :1], -tokens[:, :1].expand_as(tokens[:, 1:])], dim=1)


def test_a_cls_that_looks_at_itself_alone_ranks_no_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.SCALES, "toy", tiny_scale())
    model = plan.make_model(plan.Run("main", "toy", "crate", 0, None, 1)).eval()
    with torch.no_grad():
        model.blocks[1].attention.qkv.weight *= 1e3
        model.blocks[1].norm1.register_forward_hook(lambda _, __, tokens: _apart(tokens))
    drawn = study.draw(toy_sources().scoring, 8, 12, seed=0)
    _, maps = study.look(model, drawn)
    assert maps.shape == (8, 2, 3, 4, 4) and maps[:, 0].std() > 0
    assert torch.equal(maps[:, 1], torch.full_like(maps[:, 1], 1 / 16))
    scored = measures.all_measures(maps, drawn[0].masks[:, None, None])
    assert torch.equal(scored["iou_mean"][:, 1], torch.zeros(8, 3))  # nothing is marked
    shares = measures.shares_of(drawn[0].masks, (4, 4)).mean((-2, -1))
    torch.testing.assert_close(scored["average_precision"][:, 1], shares[:, None].expand(8, 3))


LOOKS = {"tost": [6, 7]}  # where [CLS] looks, if not in layers 0 to 5
HEADS = {"crate_narrow": 2, "crate_wide": 8}  # if not 4


@pytest.mark.parametrize("variant", plan.FAMILY)
def test_every_network_of_the_family_is_measured_where_its_cls_looks(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = plan.Scale(plan.SCALES["garments"].model | {"num_classes": 2}, {"batch_size": 4})
    monkeypatch.setitem(plan.SCALES, "toy", toy)
    model = plan.make_model(plan.Run("family", "toy", variant, 0, None, 1)).eval()
    source = toy_sources()
    layers = LOOKS.get(variant, list(range(6)))
    _, maps = study.look(model, study.draw(source.scoring, 8, 32, seed=0))
    heads = HEADS.get(variant, 4)
    assert maps.shape == (8, len(layers), heads + 1, 8, 8) and (maps >= 0).all() and (maps.std((-2, -1)) > 0).all()
    found = study.measure(model, source, 32, 64)
    assert found["layers"] == layers and len(found["pointing_by_layer"]["best_head"]) == len(layers)


def test_flops_are_those_of_every_product() -> None:
    scale = study.SCALES["garments"].model
    width, depth, tokens = scale["embed_dim"], scale["depth"], (scale["img_size"] // scale["patch_size"]) ** 2 + 1
    block = 2 * tokens * (12 * width**2) + 4 * tokens**2 * width  # qkv, projection, MLP; scores and what they weigh
    assert study.flops("garments", "vit") == pytest.approx(depth * block, rel=0.2)  # the last is done for [CLS] alone


def test_crate_is_trained_longer_by_what_it_costs_less() -> None:
    crate, vit = (study.flops("photographs", variant) for variant in ("crate", "vit"))
    assert plan.EQUAL_COMPUTE * crate == pytest.approx(plan.STEPS["photographs"] * vit, rel=0.02)


def toy_results() -> dict[str, object]:
    def run(variant: str, seed: int, score: float) -> dict[str, object]:
        by_layer = [[score, 0.0], [score + 0.2, 0.0]]
        # The first layer is chosen, though the other scores more.
        found = {"best_head": by_layer, "chosen_head": by_layer, "chosen": [1, 0], "chosen_by": [0.2, 0.1]}
        return {
            "part": "main",
            "data": "garments",
            "variant": variant,
            "seed": seed,
            "accuracy": score,
            "iou_by_layer": dict.fromkeys(measures.RULES, found),
            "map_average_precision_by_layer": found,
            "pointing_by_layer": found,
            "marked_by_layer": by_layer,
        }

    runs = [run("crate", 1, 0.42), run("crate", 0, 0.4), run("vit", 0, 0.1), run("vit", 1, 0.11), run("vit", 2, 0.9)]
    return {"runs": [{**r, "by_epoch": [r]} for r in runs]}


def test_readings_take_the_layer_they_say() -> None:
    crate = tables.select(toy_results(), "main", "garments", "crate")[0]
    assert crate["seed"] == 0
    assert tables.READINGS["best head"]["AP"](crate) == pytest.approx(0.6)
    assert tables.READINGS["one map"]["AP"](crate) == 0.4  # of the layer that was chosen on objects of training
    assert tables.chosen(crate, "average_precision") == (0, 1)
    assert tables.READINGS["one map"]["MaskCut, IoU"](crate) is None


def test_seeds_are_paired_and_what_excludes_nothing_is_bold() -> None:
    table = tables.TABLES["heads_differences"](toy_results(), "garments").splitlines()
    cells = next(line for line in table if line.startswith("| CRATE; ViT |")).split(" | ")
    mean, half = measures.interval([0.3, 0.31])  # seed 2 has no partner
    assert cells[1:3] == ["2", f"**{mean:.3f} ± {half:.3f}**"]
    assert tables.cell([0.1, -0.1], null=0) == f"0.000 ± {measures.interval([0.1, -0.1])[1]:.3f}"
    assert (tables.cell([0.5]), tables.cell([None])) == ("0.500", "–")


def test_a_network_that_looks_in_other_layers_stands_in_their_columns() -> None:
    results = toy_results()
    runs = [run for run in results["runs"] if run["seed"] == 0]
    family = [{**run, "part": "family", "layers": at} for run, at in zip(runs, ([0, 1], [2, 3]), strict=True)]
    table = tables.TABLES["family_layers"]({"runs": family}, "garments").splitlines()
    assert table[0].endswith("| layer 2 | layer 3 |")
    assert "| IoU, mean | CRATE | 0.400 | 0.600 | – | – |" in table
    assert "| IoU, mean | ViT | – | – | 0.100 | 0.300 |" in table
    assert "| ViT; CRATE | 1 | -0.300 |" in tables.TABLES["family_differences"]({"runs": family}, "garments")


def test_the_page_has_every_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "emergence.md").read_text(encoding="utf-8")
    assert {name.partition(" ")[0] for name in markers(page)} == set(tables.TABLES)
