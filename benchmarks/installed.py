"""What libraries that read vision transformers bring with them, beside PyTorch and what PyTorch needs.

    python -m benchmarks.installed --out benchmarks/installed.json

pip resolves each library for a new environment, with a network. Everything that is not in PyTorch's own set is then
installed, without its dependencies, into a folder of its own that is weighed and thrown away.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table

ROOT = Path(__file__).parents[1]
LIBRARIES = {
    "whitebox-crate": str(ROOT),
    "whitebox-crate[images]": f"{ROOT}[images]",
    "timm": "timm",
    "transformers": "transformers",
    "TransformerLens": "transformer-lens",
    "ViT-Prisma": "vit-prisma",
}


def resolved(requirement: str) -> dict[str, str]:
    """Name -> what to install, of all that pip would install into a new environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, requirement], check=True, capture_output=True)
        found = json.loads(report.read_text())["install"]
    return {normal(one["metadata"]["name"]): exact(one) for one in found}


def exact(one: dict[str, Any]) -> str:
    """The very release that was resolved; a folder as it is."""
    return str(ROOT) if "dir_info" in one["download_info"] else "{name}=={version}".format_map(one["metadata"])


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def weight(requirement: str) -> int:
    """Bytes of the files of one distribution, without its dependencies."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--quiet", "--no-compile", "--target", folder]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, requirement], check=True, capture_output=True)
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def measure() -> dict[str, Any]:
    of_torch, weights, rows = resolved("torch"), dict[str, int](), []
    for library, requirement in LIBRARIES.items():
        beside = {name: what for name, what in resolved(requirement).items() if name not in of_torch}
        for what in beside.values():
            weights[what] = weights.get(what) or weight(what)
        own = normal(library.partition("[")[0].replace("TransformerLens", "transformer-lens"))
        rows.append(
            {
                "library": library,
                "version": beside[own].rpartition("==")[2] if "==" in beside[own] else "here",
                "packages": len(beside) - 1,
                "own_bytes": weights[beside[own]],
                "bytes": sum(weights[what] for what in beside.values()),
            }
        )
    return {"libraries": rows, "python": platform.python_version(), "machine": platform.machine()}


def table(results: dict[str, Any]) -> str:
    """A row for each library, in Markdown."""
    rows = [
        (of["library"], of["version"], f"{of['own_bytes'] / 1e6:.1f} MB", of["packages"], f"{of['bytes'] / 1e6:.0f} MB")
        for of in results["libraries"]
    ]
    return markdown_table(("Library", "Version", "Itself", "Other packages", "In all"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    results = measure()
    write_json(options.out, results)
    print(table(results))
