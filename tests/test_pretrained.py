"""Every set of weights of the registry: its facts agree with what is published, and a file like it loads whole."""

import argparse
import re
import shlex
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import synthetic_checkpoints as files
import torch
from golden_data import PARAM_COUNTS, load_case
from huggingface_hub.file_download import repo_folder_name
from small_models import mostly_slow
from synthetic_checkpoints import Shapes, count, hollow, on_disk
from torch import nn

from whitebox_crate import (
    ImageTransformer,
    PretrainedCfg,
    create_model,
    get_pretrained_cfg,
    list_models,
    list_pretrained,
)
from whitebox_crate.cli import main
from whitebox_crate.errors import WeightsError
from whitebox_crate.pretrained import PRETRAINED


class Published(NamedTuple):
    """A published checkpoint in numbers; each is for three channels and square images, of 224 pixels if not of 518."""

    kind: str
    width: int
    depth: int
    heads: int
    patch: int
    classes: int


IN1K, IN21K, DEMO_IN21K, AUGREG_IN21K = 1000, 19167, 21842, 21843
PUBLISHED = {
    "crate_small_patch16_224.in1k": Published("crate", 576, 12, 12, 16, IN1K),
    "crate_demo_base_patch8_224.in21k": Published("demo", 768, 12, 6, 8, DEMO_IN21K),
    "crate_mae_base_patch16_224.in1k": Published("mae", 768, 12, 12, 16, 0),
    "cbt_tiny_patch16_224.in1k": Published("cbt", 192, 12, 3, 16, IN1K),
    "cbt_small_patch16_224.in1k": Published("cbt", 384, 12, 6, 16, IN1K),
    "cbt_base_patch16_224.in1k": Published("cbt", 768, 12, 12, 16, IN1K),
    "cbt_large_patch16_224.in1k": Published("cbt", 1024, 24, 16, 16, IN1K),
    "crate_alpha_base_patch32_224.in21k": Published("alpha", 768, 12, 12, 32, IN21K),
    "crate_alpha_base_patch16_224.in21k": Published("alpha", 768, 12, 12, 16, IN21K),
    "crate_alpha_base_patch16_224.in21k_ft_in1k": Published("alpha", 768, 12, 12, 16, IN1K),
    "crate_alpha_base_patch16_224.in21k_ft_in1k_jax": Published("jax", 768, 12, 12, 16, IN1K),
    "crate_alpha_base_patch8_224.in21k": Published("alpha", 768, 12, 12, 8, IN21K),
    "crate_alpha_base_patch8_224.in21k_ft_in1k_jax": Published("jax", 768, 12, 12, 8, IN1K),
    "crate_alpha_large_patch32_224.in21k": Published("alpha", 1024, 24, 16, 32, IN21K),
    "crate_alpha_large_patch14_224.in21k": Published("alpha", 1024, 24, 16, 14, IN21K),
    "crate_alpha_large_patch14_224.in21k_ft_in1k": Published("alpha", 1024, 24, 16, 14, IN1K),
    "crate_alpha_large_patch14_224.in21k_ft_in1k_jax": Published("jax", 1024, 24, 16, 14, IN1K),
    "crate_alpha_large_patch8_224.in21k": Published("alpha", 1024, 24, 16, 8, IN21K),
    "crate_alpha_large_patch8_224.in21k_ft_in1k_jax": Published("jax", 1024, 24, 16, 8, IN1K),
    "vit_small_patch16_224.dino": Published("timm", 384, 12, 6, 16, 0),
    "vit_small_patch16_224.augreg_in21k": Published("timm", 384, 12, 6, 16, AUGREG_IN21K),
    "vit_small_patch8_224.dino": Published("timm", 384, 12, 6, 8, 0),
    "vit_base_patch16_224.dino": Published("timm", 768, 12, 12, 16, 0),
    "vit_base_patch16_224.augreg_in21k": Published("timm", 768, 12, 12, 16, AUGREG_IN21K),
    "vit_base_patch8_224.dino": Published("timm", 768, 12, 12, 8, 0),
    "vit_base_patch8_224.augreg_in21k": Published("timm", 768, 12, 12, 8, AUGREG_IN21K),
    "vit_small_patch14_dinov2.lvd142m": Published("dinov2", 384, 12, 6, 14, 0),
    "vit_base_patch14_dinov2.lvd142m": Published("dinov2", 768, 12, 12, 14, 0),
    "vit_large_patch14_dinov2.lvd142m": Published("dinov2", 1024, 24, 16, 14, 0),
    "vit_small_patch14_reg4_dinov2.lvd142m": Published("registers", 384, 12, 6, 14, 0),
    "vit_base_patch14_reg4_dinov2.lvd142m": Published("registers", 768, 12, 12, 14, 0),
    "vit_large_patch14_reg4_dinov2.lvd142m": Published("registers", 1024, 24, 16, 14, 0),
    "vit_base_patch16_224.simdino": Published("simdino", 768, 12, 12, 16, 0),
    "vit_large_patch16_224.simdino": Published("simdino", 1024, 24, 16, 16, 0),
    "vit_base_patch16_reg4_simdinov2.in1k": Published("simdinov2", 768, 12, 12, 16, 0),
    "vit_large_patch16_reg4_simdinov2.in1k": Published("simdinov2", 1024, 24, 16, 16, 0),
}
# eps of the last LayerNorm in the code that the weights were made or released with.
NORM_EPS = {"crate": 1e-5, "demo": 1e-5, "cbt": 1e-5, "alpha": 1e-5}  # of all others 1e-6
UNUSED_OF_MAE = {"pos_embed", "decoder_embed.weight", "decoder_embed.bias"}
PAGES = ("crate", "demo", "cbt", "mae", "simdino", "simdinov2")
OF_TIMM = ("timm", "dinov2", "registers")
ON_PAGES = [name for name, published in PUBLISHED.items() if published.kind in PAGES]
ON_THE_HUB = [name for name in PUBLISHED if name not in ON_PAGES]

# What the pages of the files say of their size.
ALPHA = "UCSC-VLAA/CRATE-alpha"
BYTES = {"torch/crate_alpha_B16.pth": 289_348_353, "torch/crate_alpha_L14.pth": 1_014_667_009}
ROUNDED = {
    "torch/crate_alpha_B16.pth": "289 MB",
    "torch/crate_alpha_L14.pth": "1.01 GB",
    "torch/in21k_Pretrain/crate_alpha_B16_IN21K": "345 MB",
    "torch/in21k_Pretrain/crate_alpha_B32_in21k.pth": "352 MB",
    "torch/in21k_Pretrain/crate_alpha_B8_IN21K": "345 MB",
    "torch/in21k_Pretrain/crate_alpha_L14_IN21K": "1.09 GB",
    "torch/in21k_Pretrain/crate_alpha_L32_in21k.pth": "1.1 GB",
    "torch/in21k_Pretrain/crate_alpha_L8_IN21K": "1.09 GB",
    "jax/crate_alpha_B16_in1k.npz": "723 MB",
    "jax/crate_alpha_B8_in1k.npz": "723 MB",
    "jax/crate_alpha_L14_in1k.npz": "2.54 GB",
    "jax/crate_alpha_L8_in1k.npz": "2.54 GB",
}
FLOAT, JAX_STATE = 4, 4 + 2 + 4  # bytes: a parameter; with it, moments in bfloat16 and float32
OVERHEAD = 100_000  # bytes of names and headers, at most


def shapes_of(published: Published) -> Shapes:
    """The names and shapes in the file."""
    kind, width, depth, heads, patch, classes = published
    if kind == "jax":
        return files.crate_alpha_jax(width, depth, heads, patch, classes)
    if kind in ("mae", "simdinov2"):
        return {"mae": files.crate_mae, "simdinov2": files.simdinov2}[kind](width, depth, patch)
    if kind in ("dinov2", "registers"):
        return files.timm_dinov2(width, depth, patch, registers=4 if kind == "registers" else 0)
    if kind == "cbt":
        return files.cbt(width, depth, heads, patch, classes)
    of = {"crate": files.crate, "demo": files.crate_demo, "alpha": files.crate_alpha}
    of |= {"timm": files.timm_vit, "simdino": files.timm_vit}
    return of[kind](width, depth, patch, classes)


def write(path: Path, published: Published, wrapped: str = "") -> None:
    """Writes the file; `wrapped` is the name under which a training script keeps the weights."""
    shapes = shapes_of(published)
    path.parent.mkdir(parents=True, exist_ok=True)
    if published.kind == "jax":
        files.write_npz(path, shapes)
    elif published.kind in OF_TIMM:
        files.write_safetensors(path, shapes)
    elif wrapped == "teacher":
        files.write_torch(path, dino_state(shapes))
    elif wrapped:
        best = np.float64(63.2) if published.kind == "cbt" else torch.tensor(69.2)
        files.write_torch(path, training_state(shapes, wrapped, best))
    else:
        files.write_torch(path, hollow(shapes))
    assert on_disk(path) < 2 << 20, "holes were filled"


def training_state(shapes: Shapes, wrapped: str, best: object) -> dict[str, Any]:
    """What a training script saves: the weights of a DataParallel, the optimizer's state and more."""
    moments = {n: {"step": torch.zeros(()), "exp_avg": torch.zeros(s)} for n, s in enumerate(shapes.values())}
    return {
        "epoch": 90,
        "arch": "CRATE_small",
        wrapped: hollow(shapes, "module."),
        "best_acc1": best,
        "optimizer": {"state": moments, "param_groups": [{"lr": 4e-4, "params": list(moments)}]},
        "scheduler": {"last_epoch": 90, "lr_lambdas": [None]},
    }


HEADS_OF_DINO = {"head.mlp.0.weight", "dino_head.mlp.0.weight"}


def dino_state(shapes: Shapes) -> dict[str, Any]:
    """What the training of DINO, DINOv2 and SimDINO saves: a teacher with its heads, compiled or not, and more."""
    heads = {name: torch.zeros(2, 2) for name in HEADS_OF_DINO}
    teacher = {**hollow(shapes, "backbone."), **heads}
    student = {f"_orig_mod.module.{name}": value for name, value in teacher.items()}
    arguments = argparse.Namespace(arch="vit_base", patch_size=16)
    return {"teacher": teacher, "student": student, "epoch": 100, "args": arguments, "optimizer": {"state": {}}}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test: what commands write there is as large as it says."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def in_the_cache(cache: Path, cfg: PretrainedCfg) -> Path:
    """Where huggingface_hub looks for the file once it is downloaded."""
    repo = cache / repo_folder_name(repo_id=cfg.hf_hub_id, repo_type="model")
    commit = cfg.revision or "0" * 40
    if not cfg.revision:
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
    return repo / "snapshots" / commit / cfg.file


def side_of(published: Published) -> int:
    """Of its images, pixels."""
    return 518 if published.patch == 14 and published.kind in OF_TIMM else 224


def check_whole(model: ImageTransformer, published: Published) -> None:
    """Every parameter is that of the file, and the model is the one that was published."""
    report, parameters = model.load_report, dict(model.named_parameters())
    assert report is not None
    assert set(report.loaded) == model.state_dict().keys()
    assert model.state_dict().keys() - parameters.keys() == dict(model.named_buffers()).keys()
    assert report.adapted == {}
    assert report.reinitialised == ()
    assert all(not value.is_meta and value.dtype == torch.float32 for value in parameters.values())
    assert (model.in_chans, *model.img_size) == (3, side_of(published), side_of(published))
    assert model.num_classes == published.classes
    assert (model.embed_dim, len(model.blocks), model.num_heads) == published[1:4]
    assert model.patch_embed.patch_size == (published.patch, published.patch)
    assert isinstance(model.norm, nn.LayerNorm)
    assert model.norm.eps == NORM_EPS.get(published.kind, 1e-6)
    numbers = count(shapes_of(published))
    if published.kind == "mae":
        numbers -= count({name: shape for name, shape in shapes_of(published).items() if name in UNUSED_OF_MAE})
    if published.kind == "demo":  # the first Linear of its head went into the second
        numbers -= count({"weight": (published.width, published.width), "bias": (published.width,)})
    if published.kind == "simdinov2":  # the position of [CLS] went into its token, and the mask token nowhere
        numbers -= 2 * published.width
    assert sum(value.numel() for value in model.state_dict().values()) == numbers


# The files are like the published ones


@pytest.mark.parametrize(
    ("case", "shapes"),
    [
        ("crate_square", files.crate(32, 2, 8, 7, side=32)),
        ("crate_alpha_square", files.crate_alpha(24, 2, 4, 7, side=16)),
        ("crate_mae_basic", files.crate_mae(24, 2, 4, side=16)),
        ("timm_vit", files.timm_vit(32, 2, 8, 7, side=32)),
        ("cbt_p16_grid5", files.cbt(32, 2, 2, 16, 7, side=80)),
        ("cbt_p8_grid12", files.cbt(16, 1, 2, 8, 7, side=96)),
    ],
)
def test_the_names_and_shapes_are_those_of_the_official_code(case: str, shapes: Shapes) -> None:
    assert {name: tuple(value.shape) for name, value in load_case(case).group("state").items()} == shapes


@pytest.mark.parametrize(
    ("family", "official", "name"),
    [
        ("crate", "CRATE_small", "crate_small_patch16_224.in1k"),
        ("crate_alpha", "CRATE_base", "crate_alpha_base_patch16_224.in21k_ft_in1k"),
        ("crate_alpha", "CRATE_base", "crate_alpha_base_patch16_224.in21k_ft_in1k_jax"),
        ("crate_alpha", "CRATE_large", "crate_alpha_large_patch14_224.in21k_ft_in1k"),
        ("crate_mae", "mae_crate_base", "crate_mae_base_patch16_224.in1k"),
    ],
)
def test_there_are_as_many_numbers_as_in_the_official_models(family: str, official: str, name: str) -> None:
    assert count(shapes_of(PUBLISHED[name])) == PARAM_COUNTS[family][official]


def size_of(published: Published) -> int:
    """Bytes of the numbers in the file."""
    return count(shapes_of(published)) * (JAX_STATE if published.kind == "jax" else FLOAT)


def rounded(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


ALPHA_FILES = {get_pretrained_cfg(name).file: name for name in PUBLISHED if name.startswith("crate_alpha_")}


@pytest.mark.parametrize("file", ROUNDED)
def test_the_published_size_is_that_of_the_shapes(file: str) -> None:
    size = size_of(PUBLISHED[ALPHA_FILES[file]])
    assert rounded(size) == ROUNDED[file]
    if file in BYTES:
        assert size < BYTES[file] < size + OVERHEAD


def test_no_other_number_of_classes_that_imagenet_21k_has_fits_the_published_sizes() -> None:
    for file in ROUNDED:
        if "IN21K" in file.upper():
            for classes in (DEMO_IN21K, AUGREG_IN21K):
                other = PUBLISHED[ALPHA_FILES[file]]._replace(classes=classes)
                assert rounded(size_of(other)) != ROUNDED[file]


# They load


@pytest.mark.parametrize("name", mostly_slow(ON_THE_HUB, *(n for n in ON_THE_HUB if "_large" not in n or "jax" in n)))
def test_a_file_like_the_one_on_the_hub_loads_whole(name: str, folder: Path) -> None:
    """From the client's cache, by the entry's own repository, file and revision; only the hash is of other numbers."""
    published, cfg = PUBLISHED[name], get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if published.kind == "jax" and published.width == 1024:
        # Arrays of an npz are copied, which would be a gigabyte of zeros: two layers stand for all 24, which are alike.
        published = published._replace(depth=2)
        options = {"depth": 2}
    path = in_the_cache(folder, cfg)
    write(path, published)
    if cfg.file in BYTES:
        assert abs(path.stat().st_size - BYTES[cfg.file]) < OVERHEAD
    model = create_model(name, pretrained=True, cache_dir=folder, pretrained_cfg_overlay={"sha256": ""}, **options)
    check_whole(model, published)
    assert model.load_report.unused == ()
    assert model.load_report.source == name
    assert (model.num_classes, model.img_size) == (cfg.num_classes, cfg.input_size[1:])


def test_the_hash_of_an_entry_is_asked_for(folder: Path) -> None:
    name = "vit_small_patch8_224.dino"
    path = in_the_cache(folder, get_pretrained_cfg(name))
    write(path, PUBLISHED[name])
    with pytest.raises(WeightsError, match="is damaged or was exchanged"):
        create_model(name, pretrained=True, cache_dir=folder)
    assert not path.exists()


def damage(path: Path, start: str) -> None:
    """Makes the members of a zip archive whose names start so unreadable."""
    with zipfile.ZipFile(path) as archive:
        places = [member.header_offset for member in archive.infolist() if member.filename.startswith(start)]
    assert places
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(b"\xff" * 30)


def test_the_optimizer_in_a_jax_file_is_not_read(folder: Path) -> None:
    name = "crate_alpha_base_patch16_224.in21k_ft_in1k_jax"
    published = PUBLISHED[name]._replace(depth=1)
    path = in_the_cache(folder, get_pretrained_cfg(name))
    write(path, published)
    for state in ("opt/", "chrono/"):
        damage(path, state)
    check_whole(create_model(name, pretrained=True, cache_dir=folder, depth=1), published)
    damage(path, "params/cls")
    with pytest.raises(WeightsError, match="damaged"):
        create_model(name, pretrained=True, cache_dir=folder, depth=1)


@pytest.mark.parametrize(
    ("name", "wrapped"),
    [
        ("crate_small_patch16_224.in1k", "state_dict"),
        ("crate_small_patch16_224.in1k", "model"),
        ("crate_demo_base_patch8_224.in21k", "model"),
        ("crate_mae_base_patch16_224.in1k", "model"),
        ("crate_mae_base_patch16_224.in1k", ""),
        *((f"cbt_{size}_patch16_224.in1k", "state_dict") for size in ("tiny", "small", "base", "large")),
        ("vit_base_patch16_224.simdino", "teacher"),
        ("vit_base_patch16_reg4_simdinov2.in1k", "teacher"),
    ],
)
def test_a_file_from_a_page_loads_after_the_command_that_the_error_gives(
    name: str, wrapped: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published, cfg = PUBLISHED[name], get_pretrained_cfg(name)
    monkeypatch.chdir(folder)
    with pytest.raises(WeightsError) as caught:
        create_model(name, pretrained=True)
    said = str(caught.value)
    assert cfg.url in said
    architecture = name.partition(".")[0]
    [command] = [line.strip() for line in said.splitlines() if line.strip().startswith("whitebox-crate ")]
    assert command == f"whitebox-crate convert {cfg.file or 'FILE'} {architecture} --model {name}"

    downloaded = folder / (cfg.file or "as it was called.pth")
    write(downloaded, published, wrapped)
    words = shlex.split(command)[1:]
    assert main([str(downloaded) if word == "FILE" else word for word in words]) == 0
    report = capsys.readouterr().out
    then = re.search(r"create_model\('(local-dir:[^']+)', pretrained=True\)", said)
    assert then
    assert then[0] in report
    of_kind = {"mae": UNUSED_OF_MAE, "simdinov2": {"mask_token"}}.get(published.kind, set())
    beside = HEADS_OF_DINO if wrapped == "teacher" else {"best_acc1"} if wrapped and published.kind != "cbt" else set()
    assert set(re.findall(r"unused ([\w.]+)", report)) == of_kind | beside
    check_whole(create_model(then[1], pretrained=True), published)


# The table


def test_every_entry_is_published_or_in_the_package() -> None:
    in_the_package = [name for name in list_pretrained() if not is_elsewhere(get_pretrained_cfg(name))]
    assert in_the_package == [
        "crate_nano_patch6_96.scene_composites",
        "crate_nano_patch6_96.scenes_and_photographs",
        "crate_nano_patch6_96.tuxpaint_composites",
        "crate_pico_patch4_32.fashion_mnist_composites",
        "vit_nano_patch6_96.scene_composites",
    ]
    assert sorted(list_pretrained()) == sorted([*PUBLISHED, *in_the_package])
    assert len(list_pretrained()) == sum(len(entries) for entries in PRETRAINED.values())


def is_elsewhere(cfg: PretrainedCfg) -> bool:
    return bool(cfg.hf_hub_id or cfg.url)


@pytest.mark.parametrize("name", list_pretrained())
def test_an_entry_says_what_and_where_its_weights_are(name: str) -> None:
    cfg = get_pretrained_cfg(name)
    assert name == f"{name.partition('.')[0]}.{cfg.tag}"
    assert not (cfg.hf_hub_id and cfg.url)
    assert cfg.file or cfg.url
    assert re.fullmatch(r"([\w.-]+/[\w.-]+)?", cfg.hf_hub_id)
    assert re.fullmatch(r"(https://\S+)?", cfg.url)
    assert cfg.license in ("mit", "apache-2.0") or (not cfg.license and "Licence: see there" in cfg.notes)
    assert cfg.origin
    assert re.fullmatch(r"arXiv \d{4}\.\d{5}", cfg.paper)
    assert cfg.checked == ("shapes" if is_elsewhere(cfg) else "file")
    assert re.fullmatch(r"([0-9a-f]{64})?", cfg.sha256)
    assert re.fullmatch(r"([0-9a-f]{40})?", cfg.revision)
    assert cfg.hf_hub_id or not cfg.revision
    assert is_elsewhere(cfg) or cfg.sha256
    assert cfg.notes or not cfg.url, "says what is wrong with the page, or odd in its file"
    assert len(cfg.mean) == len(cfg.std) == cfg.input_size[0]
    assert cfg.interpolation in ("bicubic", "bilinear", "box")
    assert 0 < cfg.crop_pct <= 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_has_the_numbers_of_what_is_published(name: str) -> None:
    published, cfg = PUBLISHED[name], get_pretrained_cfg(name)
    assert cfg.num_classes == published.classes
    assert cfg.input_size == (3, side_of(published), side_of(published))
    assert cfg.model_args == ({"norm_eps": 1e-6} if published.kind == "jax" else {})
    assert bool(cfg.url) == (name in ON_PAGES)
    if published.kind in OF_TIMM:
        assert (cfg.hf_hub_id, cfg.file) == (f"timm/{name}", "model.safetensors")


def test_all_files_of_crate_alpha_are_there() -> None:
    assert ALPHA_FILES.keys() == ROUNDED.keys()
    assert {get_pretrained_cfg(name).hf_hub_id for name in ALPHA_FILES.values()} == {ALPHA}


def test_wildcards_over_tags() -> None:
    alphas = [
        f"crate_alpha_{size}_patch{patch}_224"
        for size, patches in {"base": (8, 16, 32), "large": (8, 14, 32)}.items()
        for patch in patches
    ]
    assert list_pretrained("*.in21k") == [*(f"{name}.in21k" for name in alphas), "crate_demo_base_patch8_224.in21k"]
    assert list_pretrained("crate_alpha_*.*_jax") == sorted(
        (name for name, published in PUBLISHED.items() if published.kind == "jax"),
        key=[f"{name}.in21k_ft_in1k_jax" for name in alphas].index,
    )
    found = list_models("crate_alpha_*", pretrained=True)
    assert sorted(found) == sorted(ALPHA_FILES.values())
    assert list_models("crate_alpha_*", pretrained=True, include_tags=False) == alphas
    assert list_models("crate_alpha_*", pretrained=True, exclude_filters="*.in21k*") == []
    of_vit = ["*.dino", "vit_*.augreg*", "vit_nano*", "*dinov2*", "*.simdino"]
    assert list_pretrained(of_vit) == list_models("vit_*", pretrained=True)
    assert list_pretrained("*.nothing") == []


def test_the_first_tag_stands_for_the_architecture() -> None:
    for architecture, entries in PRETRAINED.items():
        assert get_pretrained_cfg(architecture) == entries[0]
        assert [get_pretrained_cfg(f"{architecture}.{cfg.tag}") for cfg in entries] == entries
