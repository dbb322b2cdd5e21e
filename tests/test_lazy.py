"""Imports in a process of their own: what is imported with the package, and what works when little of it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import whitebox_crate


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_alone_is_light(tmp_path: Path) -> None:
    light = "whitebox_crate.errors, whitebox_crate.training.Recipe, whitebox_crate.PretrainedCfg, dir(whitebox_crate)"
    assert run(f"import sys, whitebox_crate; {light}; print('torch' in sys.modules)", tmp_path) == "False\n"


def test_making_a_model_waits_for_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    heavy = {"huggingface_hub.hf_api", "huggingface_hub.file_download", "PIL", "matplotlib"}
    code = f"import sys, torch; from whitebox_crate import create_model; print(sorted({heavy} & sys.modules.keys()))"
    assert run(code, tmp_path) == "[]\n"


def test_modules_are_attributes(tmp_path: Path) -> None:
    assert "cls_attention" in run("import whitebox_crate; print(dir(whitebox_crate.segmentation))", tmp_path)


def test_the_verbs_work_where_only_models_are_imported(tmp_path: Path) -> None:
    code = """
import sys
from whitebox_crate.models import Crate
assert "whitebox_crate.factory" not in sys.modules
model = Crate.from_pretrained({folder!r})
model.save_pretrained("again")
print(model.generate_model_card().data.library_name, type(Crate.from_pretrained("again")).__name__)
"""
    folder = whitebox_crate.save_pretrained(whitebox_crate.create_model("crate_nano", depth=1), tmp_path / "saved")
    assert run(code.format(folder=str(folder)), tmp_path) == "whitebox-crate Crate\n"


@pytest.mark.parametrize("name", ["create_modl", "__wrapped__"])
def test_names_that_do_not_exist(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'whitebox_crate' has no attribute '{name}'"):
        getattr(whitebox_crate, name)
