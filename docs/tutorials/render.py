"""Runs the notebooks and writes each as a page beside this file, with what its cells printed and drew.

    python docs/tutorials/render.py          # all of them; or some, by name: claim masks

needs `pip install -e ".[images,plots,train]"`. The pages are kept in the repository, so building the site runs nothing.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import PIL.Image
from matplotlib import pyplot
from matplotlib.figure import Figure

from whitebox_crate import Segmentation
from whitebox_crate.analysis._report import Report

matplotlib.use("agg")

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parents[1] / "notebooks"
PICTURES = HERE.parent / "images" / "tutorials"
REPOSITORY = "https://github.com/whitebox-crate/whitebox-crate/blob/main"
DPI, QUALITY = 90, 88  # of figures, and of WebP


@dataclass
class Output:
    """What a cell gave: its text, tables in Markdown, and pictures (Pillow)."""

    text: str = ""
    tables: list[str] = field(default_factory=list)
    pictures: list[PIL.Image.Image] = field(default_factory=list)


def cells(notebook: Path) -> list[tuple[str, str]]:
    """Kind ("markdown" or "code") and source of each cell."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in found]


def headings(notebook: Path) -> Iterator[str]:
    """The heading above each code cell."""
    heading = ""
    for kind, source in cells(notebook):
        if kind == "code":
            yield heading
        else:
            heading = [heading, *re.findall(r"^#+ (.+)$", source, re.MULTILINE)][-1]


def run(notebook: Path, folder: Path) -> list[Output]:
    """Runs the code cells in order, in this process, as a notebook would.

    Lines that begin with "%" are for Jupyter alone and are left out; those that begin with "!" run in a shell.

    Args:
        notebook: The file.
        folder: Where it runs.

    Returns:
        What each code cell gave.
    """
    names: dict[str, Any] = {"__name__": "__main__", "_shell": _shell}
    with _in(folder):
        code = (source for kind, source in cells(notebook) if kind == "code")
        return [_run_cell(source, names, f"{notebook.name}, cell {number}") for number, source in enumerate(code)]


def _run_cell(source: str, names: dict[str, Any], where: str) -> Output:
    """What the last line comes to is shown, as a notebook shows it."""
    lines = [_plain_python(line) for line in source.splitlines()]
    tree = ast.parse("\n".join(lines), where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    output, printed = Output(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        if isinstance(last, ast.Expr):
            _show(eval(compile(ast.Expression(last.value), where, "eval"), names), output)
    output.text = printed.getvalue()
    output.pictures += _open_figures()
    return output


def _plain_python(line: str) -> str:
    if line.startswith("!"):
        return f"_shell({line[1:]!r})"
    return "" if line.startswith("%") else line


def _shell(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "whitebox-crate":  # this one, whatever else is installed
        words = [sys.executable, "-m", "whitebox_crate.cli", *words[1:]]
    print(subprocess.run(words, check=True, capture_output=True, text=True).stdout, end="")


def _show(value: Any, output: Output) -> None:
    if isinstance(value, Segmentation):
        output.pictures.append(value.panel())
    elif isinstance(value, PIL.Image.Image):
        output.pictures.append(value)
    elif isinstance(value, Figure):
        output.pictures.append(_drawn(value))
    elif isinstance(value, Report):
        output.tables.append(value.table(markdown=True))
    elif value is not None:
        print(repr(value))


def _open_figures() -> list[PIL.Image.Image]:
    """The figures that pyplot still has open, which are then closed."""
    drawn = [_drawn(pyplot.figure(number)) for number in pyplot.get_fignums()]
    pyplot.close("all")
    return drawn


def _drawn(figure: Figure) -> PIL.Image.Image:
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI)
    return PIL.Image.open(file)


def page(notebook: Path, outputs: list[list[str]]) -> str:
    """The page of a notebook.

    Args:
        notebook: The file.
        outputs: What is shown below each code cell, in Markdown.
    """
    below, parts = iter(outputs), list[str]()
    for kind, source in cells(notebook):
        parts += [source] if kind == "markdown" else [_code(source), *next(below)]
    title, _, rest = parts[0].partition("\n")
    origin = f"*This page is the notebook [{notebook.name}]({REPOSITORY}/notebooks/{notebook.name}), run.*"
    body = "\n\n".join([rest.strip(), *parts[1:]])
    body = body.replace(f"]({REPOSITORY}/docs/", "](../")  # a reader of the page stays among the pages
    body = re.sub(rf"\]\({REPOSITORY}/notebooks/(\w+)\.ipynb\)", r"](\1.md)", body)
    return f"{title}\n\n{origin}\n\n{body}\n"


def _code(source: str) -> str:
    lines = source.splitlines()
    if all(line[:1] in ("!", "%") for line in lines):
        return "\n".join(["```bash", *(line[1:] for line in lines), "```"])
    return f"```python\n{source}\n```"


def write(notebook: Path) -> None:
    """Runs a notebook and writes its page and pictures."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = run(notebook, Path(folder))
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob(f"{notebook.stem}_*.webp"):
        old.unlink()
    shown = []
    for number, (output, heading) in enumerate(zip(outputs, headings(notebook), strict=True)):
        parts = [f"```text\n{output.text.rstrip()}\n```"] if output.text.strip() else []
        parts += output.tables
        for letter, picture in zip("abcdefgh", output.pictures, strict=False):
            file = PICTURES / f"{notebook.stem}_{number}{letter}.webp"
            picture.convert("RGB").save(file, quality=QUALITY, method=6)
            parts.append(f"![{heading}: what the cell shows](../images/tutorials/{file.name})")
        shown.append(parts)
    target = HERE / f"{notebook.stem}.md"
    target.write_text(page(notebook, shown), encoding="utf-8")
    print(target)


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        write(NOTEBOOKS / f"{name}.ipynb")
