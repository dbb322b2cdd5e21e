"""The table of the trainings on photographs alone takes its points where it says."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.natural import at_its_naming, at_its_steps, at_the_end, kept, table
from whitebox_crate.errors import InputError

RECIPES = Path(__file__).parents[1]
CRATE = [{"step": step, "validation_top1": step / 100, "validation_mask_iou": step / 50} for step in (10, 20, 30, 40)]
VIT = [{"step": step, "validation_top1": step / 200, "validation_mask_iou": 0.1} for step in (10, 20, 25)]


def test_the_points() -> None:
    assert at_the_end(CRATE, VIT)["step"] == 40
    assert at_its_steps(CRATE, VIT)["step"] == 30
    assert at_its_naming(CRATE, VIT)["step"] == 10  # 10% is nearest to 12.5%


def test_a_run_is_kept_and_tabulated(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "results"
    with pytest.raises(InputError, match="run holds no run"):
        kept(run)
    run.mkdir()
    folder.mkdir()
    (run / "recipe.json").write_text(json.dumps({"recipe": {"seed": 3}, "data": "elsewhere"}))
    lines: list[dict[str, Any]] = [{"step": 5, "loss": 1.0}, *CRATE]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert kept(run) == {"recipe": {"seed": 3}, "curve": CRATE}

    with pytest.raises(InputError, match=r"crate_nano_0_curve\.json does not exist"):
        table(folder)
    for seed in range(3):
        (folder / f"crate_nano_{seed}_curve.json").write_text(json.dumps(kept(run)))
        (folder / f"vit_nano_{seed}_curve.json").write_text(json.dumps({"curve": VIT}))
        for name, iou in (("crate_nano", 0.3 + seed / 10), ("vit_nano", 0.2)):
            report = {"one_map": [iou, 0.01], "best_head_of_each_image": [iou, 0.01]}
            (folder / f"{name}_{seed}.json").write_text(json.dumps({"report": report}))
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table(folder).splitlines()[2:]]
    assert rows[0] == ["equal processor time", "40.0%", "12.5%", "0.800", "0.100", "+0.700 ± 0.000"]
    assert rows[1][3] == "0.600" and rows[2][3] == "0.200"
    assert rows[3][3:] == ["0.400", "0.200", "+0.200 ± 0.248"]  # 4.303 * 0.1 / sqrt(3)


def test_the_page_has_the_table() -> None:
    assert table(RECIPES / "results" / "natural") in (RECIPES / "README.md").read_text()
