"""The command line where things are odd: terminals, disks, names of files, numbers, and what others wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from labelled_images import make_voc
from PIL import Image

import whitebox_crate.cli as cli
from whitebox_crate import create_model, save_pretrained
from whitebox_crate.evaluation.figures import LONGEST, read_photograph
from whitebox_crate.training.model_folder import _counted
from whitebox_crate.training.recipe import Recipe


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def command(*words: object, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Runs it in a process of its own."""
    environment = {name: value for name, value in {**os.environ, **variables}.items() if value != "unset"}
    line = [sys.executable, "-m", "whitebox_crate", *(os.fsencode(str(word)) for word in words)]
    return subprocess.run(line, capture_output=True, env=environment, timeout=300)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (48, 32), (200, 30, 40)).save(path)
    return path


def test_labels_that_a_terminal_cannot_show_are_shown_otherwise(photo: Path, tmp_path: Path) -> None:
    model = create_model("crate_pico", pretrained=True)
    folder = save_pretrained(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = ["café", "\x1b[2J\ud800", *["-"] * 8]
    (folder / "config.json").write_text(json.dumps(config))
    done = command("classify", photo, "--model", f"local-dir:{folder}", "--top", 10, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"caf\\xe9" in done.stdout and b"\\x1b[2J\\ud800" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of files that are bytes, and /dev/full")
def test_odd_names_a_full_disk_and_no_home(photo: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff.png"))
    photo.rename(odd)
    done = command("classify", odd, HOME="unset", HF_HOME="unset")
    assert done.returncode == 0, done.stderr
    assert b"\\udcff.png" in done.stdout
    assert run("analyze", odd, "--out", tmp_path / "page.html") == 0
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-m", "whitebox_crate", "list"]
        filled = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, timeout=300)
    assert filled.returncode == 1
    assert filled.stderr.startswith(b"whitebox-crate: error:") and filled.stderr.count(b"\n") == 1


def test_a_process_without_streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a service is started, or with `>&-`: Python then has no stdout."""
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)
    assert run("list") == 0
    assert run("segment", tmp_path / "gone.png") == 1


def test_without_a_stderr_errors_go_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `2>&-`: beside what `--json` prints, an error would break what reads it."""
    monkeypatch.setattr(sys, "stderr", None)
    assert run("segment", tmp_path / "gone.png", "--json") == 1
    with pytest.raises(SystemExit):
        run("segment", "--no-such-option")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["segment", "compare", "attention", "pca", "heads", "noise", "analyze", "view"])
def test_an_address_is_not_fetched(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "https://example.com/cat.jpg"]) == 1
    assert "cat.jpg' is a web address, and nothing is downloaded here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "2147483648"], "at most 1024"),
        (["--threads", "²"], "a positive number"),
        (["--size", "0"], "a positive number, not '0'"),
        (["--size", "9" * 5000], "a positive number"),
        (["--ou", "there"], "did you mean '--out'?"),
    ],
)
@pytest.mark.parametrize("name", ["segment", "compare", "attention", "pca", "heads", "noise", "analyze", "view"])
def test_numbers_and_options_are_refused_alike(
    name: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(name, *words)
    message = capsys.readouterr().err
    assert said in message and len(message) < 6000


def test_a_large_size_says_beforehand_what_it_comes_to(photo: Path, tmp_path: Path) -> None:
    words = ["noise", tmp_path / "absent.png", "--model", "crate_pico", "--out", tmp_path / "out", "--size"]
    assert b"--size 3000 makes 562,500 patches" in command(*words, 3000).stderr
    assert b"patches" not in command(*words, 64).stderr


def test_names_are_listed_by_their_short_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "crate_nano") == 0
    assert capsys.readouterr().out == "crate_nano_patch6_96\n"
    assert run("list", "crate_nano", "vit_*dino", "--pretrained") == 0
    assert {line.split(".")[0] for line in capsys.readouterr().out.split()} >= {"crate_nano_patch6_96"}
    assert run("list", "crate_nono") == 1
    assert "did you mean 'crate_nano'" in capsys.readouterr().err
    assert run("list", "crate_base", "--pretrained") == 1
    assert "no pretrained weights are known for 'crate_base_patch16_224'" in capsys.readouterr().err


def test_models_to_compare_with_are_looked_for_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_voc(tmp_path)
    for other in ("crate_pica", "local-dir:nowhere"):
        out = tmp_path / "out"
        assert run("curves", "layers", "--root", tmp_path, "--out", out, "--against", other, "--device", "cpu") == 1
        assert not list(out.glob("**/*.jsonl"))
    assert "no folder nowhere" in capsys.readouterr().err


def test_a_panorama_is_drawn_small(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 12)).save(tmp_path / "wide.png")
    model = create_model("crate_pico", dynamic_img_size=True)
    picture = read_photograph(tmp_path / "wide.png", model, 8, alone=True).picture
    assert max(picture.size) <= LONGEST


def test_a_card_lists_what_played_a_part() -> None:
    assert {"epochs", "mask_ratio"}.isdisjoint(_counted(Recipe(steps=10)))
    assert _counted(Recipe(epochs=2.0))["epochs"] == 2.0
    masked = _counted(Recipe(objective="mae"))
    assert "mask_ratio" in masked and "label_smoothing" not in masked


def test_a_device_that_is_none_is_named_with_those_that_are(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment", photo, "--device", "foo") == 1
    said = capsys.readouterr().err
    assert "no device 'foo' here; choose " in said and said.endswith("cpu\n")
    assert ("cuda" in said) == torch.cuda.is_available()  # none is offered that is not there
