"""The documentation is true: its Python runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from draw_architecture import PICTURE, picture
from hub_server import TOKEN, Hub

import whitebox_crate
from benchmarks.pages import PAGES as PAGES_WITH_TABLES
from benchmarks.pages import fill, markers
from whitebox_crate import list_models
from whitebox_crate.cli import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<language>\S*).*")
REPOSITORY = re.search(r'^Repository = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
OWN_ADDRESS = re.compile(
    r"https://(?:raw\.githubusercontent|github)\.com/([\w-]+/whitebox-crate)(?:(?:/blob)?/main/([\w./-]+))?"
)
OWN_PAGE = re.compile(r"https://whitebox-crate\.github\.io/whitebox-crate/([\w/]+)\.html")
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)|src=\"(?!\w+:)([^\"]+)\"")


@dataclass(frozen=True)
class Block:
    """A fenced block: where its code begins (lines count from 1), and the line above its fence."""

    page: Path
    language: str
    code: list[str]
    first_line: int
    above: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.first_line}"


def blocks(page: Path, language: str) -> Iterator[Block]:
    above, opened, code, first_line = "", None, [], 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if opened is None:
            opened = FENCE.fullmatch(line)
            if opened is None:
                above = line.strip()
            else:
                code, first_line = [], number + 1
        elif line.strip() == opened["ticks"]:
            if opened["language"] == language:
                yield Block(page, language, code, first_line, above)
            above, opened = "", None
        else:
            code.append(line.removeprefix(opened["indent"]))
    assert opened is None, f"{page}: the block that begins on line {first_line} is not closed"


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each call of `whitebox-crate`, without what the shell takes for itself."""
    lexer = shlex.shlex("\n".join(block.code).replace("\\\n", " "), posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if not set(word) <= set(";&|()\n"):
            words.append(word)
            continue
        while words and re.match(r"\w+=", words[0]):  # variables set for this one command
            words.pop(0)
        if words[:1] == ["whitebox-crate"]:
            redirected = next((i for i, w in enumerate(words) if set(w) <= set("<>")), len(words))
            yield words[1:redirected]
        words = []


def is_marked_not_run(block: Block) -> bool:
    return NOT_RUN.fullmatch(block.above) is not None


PYTHON = [block for page in PAGES for block in blocks(page, "python")]
COMMANDS = [(b, words) for page in PAGES for b in blocks(page, "bash") for words in commands(b)]


QUICK_PAGES = ("README.md", "guide.md", "weights.md")
TUTORIALS = ROOT / "docs" / "tutorials"  # which tests/test_notebooks.py runs
PYTHON_PAGES = [
    pytest.param(page, id=page.name, marks=() if page.name in QUICK_PAGES else pytest.mark.slow)
    for page in sorted({b.page for b in PYTHON if not is_marked_not_run(b)})
    if page.parent != TUTORIALS
]


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    """All blocks of a page run in order as one script, whose line numbers are those of the page.

    A Hub that they push to and load from is on this machine.
    """
    lines = [""] * len(page.read_text(encoding="utf-8").splitlines())
    for block in blocks(page, "python"):
        if not is_marked_not_run(block):
            lines[block.first_line - 1 : block.first_line - 1 + len(block.code)] = block.code
    script = tmp_path / page.name
    script.write_text("\n".join(lines), encoding="utf-8")
    hub = Hub()
    hub.start()
    here = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
        "NO_PROXY": "127.0.0.1,localhost",
    }
    settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | here | settings
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    hub.close()
    assert done.returncode == 0, done.stdout + done.stderr


def test_blocks_that_are_not_run_are_at_least_python() -> None:
    for block in filter(is_marked_not_run, PYTHON):
        ast.parse("\n".join(block.code), filename=str(block))


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=[f"{b}-{' '.join(w)}" for b, w in COMMANDS])
def test_commands_parse(block: Block, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        build_parser().parse_args(words)
    except SystemExit as stop:  # --help and --version stop too, with 0
        assert not stop.code, f"{block}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    prose = re.sub("```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = ["".join(found) for found in LINK.findall(prose)]
    dead = [target for target in targets if not (page.parent / target).exists()]
    assert not dead


def test_each_equation_leads_to_the_one_line_of_code_that_computes_it() -> None:
    page = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    on_the_way = {"gradient", "series", "cover", "mssa", "dictionary"}  # steps of the derivation that no layer computes
    for label, after in re.findall(r"^\$\$ \((.+)\)\n\n(.+)", page, re.MULTILINE):
        assert ("{line}`" in after) == (label not in on_the_way), label
    asked = re.findall(r"\{line\}`([\w/]+\.py): ([^`]+)`", page)
    for file, code in asked:
        lines = (ROOT / "src" / "whitebox_crate" / file).read_text(encoding="utf-8").splitlines()
        assert sum(code in line for line in lines) == 1, f"{file}: {code}"
    assert len(asked) > 20


def test_files_that_the_pages_on_the_code_name_are_there() -> None:
    pages = [
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        ROOT / "docs" / "architecture.md",
        ROOT / "docs" / "releasing.md",
    ]
    named = {file for page in pages for file in re.findall(r"`([\w./]+\.(?:py|yml|toml))`", page.read_text("utf-8"))}
    homes = (ROOT, ROOT / "src" / "whitebox_crate", ROOT / ".github" / "workflows")
    assert len(named) > 40
    assert not [file for file in named if "NAME" not in file and not any((home / file).is_file() for home in homes)]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "pyproject.toml", ROOT / "CITATION.cff"], ids=lambda p: p.name)
def test_addresses_are_of_this_repository_and_lead_somewhere(page: Path) -> None:
    for found in OWN_ADDRESS.finditer(page.read_text(encoding="utf-8")):
        assert f"https://github.com/{found[1]}" == REPOSITORY
        assert (ROOT / (found[2] or ".")).exists(), found[0]
    for found in OWN_PAGE.finditer(page.read_text(encoding="utf-8")):
        assert (ROOT / "docs" / f"{found[1]}.md").exists(), found[0]


def test_the_readme_has_no_relative_links_for_the_package_index_shows_it() -> None:
    prose = re.sub("```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not LINK.findall(prose)


def test_the_readme_names_every_family_of_models() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = text.partition("| Names begin with |")[2].partition("\n\n")[0].splitlines()[2:]
    names = [name for row in rows for name in re.findall("`(.+?)`", row.split("|")[1])]
    assert all(list_models(f"{name}_*") for name in names)
    assert all(any(model.startswith(f"{name}_") for name in names) for model in list_models())


def test_the_pages_show_every_part_of_the_readme_that_is_marked_for_them() -> None:
    marked = re.findall(r"^<!-- part: (.+) -->$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    shown = [name for text in texts for name in re.findall(r"^<!-- README: (.+) -->$", text, re.MULTILINE)]
    assert sorted(shown) == sorted(marked)


def test_the_picture_of_the_architecture_is_drawn_from_the_imports() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run `python tests/draw_architecture.py`"


def test_the_version_is_the_same_everywhere() -> None:
    version = whitebox_crate.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version = {{{version}}}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("marker", ["setup", "tests"])
def test_readme_marks_the_commands_that_continuous_integration_runs(marker: str) -> None:
    marked = [b for b in blocks(ROOT / "README.md", "bash") if b.above == f"<!-- {marker} -->"]
    assert len(marked) == 1


@pytest.mark.parametrize("page", PAGES_WITH_TABLES)
def test_the_page_has_the_tables_that_code_and_measurements_make(page: str) -> None:
    text, tables = (ROOT / page).read_text(encoding="utf-8"), PAGES_WITH_TABLES[page]()
    assert markers(text), "no table has its place"
    assert fill(text, tables) == text, "run `python -m benchmarks.pages`"


def test_a_place_with_nothing_in_it_is_filled() -> None:
    assert fill("<!-- a -->\n<!-- /a -->\n", {"a": lambda: "x"}) == "<!-- a -->\nx\n<!-- /a -->\n"
    assert fill("<!-- a -->\nold\n<!-- /a -->\n", {"a": lambda: "x"}) == "<!-- a -->\nx\n<!-- /a -->\n"


def test_the_menu_of_versions_has_main_and_the_releases_the_newest_first(tmp_path: Path) -> None:
    for folder in ("v0.9.0", "v0.10.0", "demo", "_static"):
        (tmp_path / folder).mkdir()
    subprocess.run([sys.executable, ROOT / "docs" / "versions.py", tmp_path], check=True)
    listed = json.loads((tmp_path / "versions.json").read_text(encoding="utf-8"))
    assert [each["version"] for each in listed] == ["main", "v0.10.0", "v0.9.0"]
    assert listed[1]["url"] == listed[0]["url"] + "v0.10.0/"
