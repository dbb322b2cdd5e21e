"""Weights from a loopback Hub by the real client: once, whole or not at all, and from the cache when it is down."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import huggingface_hub.hf_api
import pytest
import torch
from golden_data import load_case
from hub_server import TOKEN, Hub
from huggingface_hub import constants
from safetensors.torch import save
from small_models import CLASSES, DEPTH, DIM, images_for, small_model, small_options

from whitebox_crate import ImageTransformer, PretrainedCfg, _patience, create_model, register_model, save_pretrained
from whitebox_crate.errors import WeightsError
from whitebox_crate.hub import fetch
from whitebox_crate.models import Crate
from whitebox_crate.ready import named_model

NAME = "crate_tiny_patch16_224"
REPO = "org/small"
STRANGER = "hf_of_a_stranger"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running Hub, and a client that knows no other: its cache and token are empty, its pauses short."""
    server = Hub()
    server.start()
    home = tmp_path / "home"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_XET": True,  # it would write to the user's own cache
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    yield server
    server.close()


@pytest.fixture
def cache(hub: Hub, tmp_path: Path) -> Path:
    """The client's cache."""
    return tmp_path / "cache"


@pytest.fixture
def model() -> ImageTransformer:
    return small_model(NAME)


@pytest.fixture
def files(model: ImageTransformer, tmp_path: Path) -> dict[str, bytes]:
    """What `save_pretrained` writes of the model."""
    folder = save_pretrained(model, tmp_path / "saved")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def pushed(hub: Hub, files: dict[str, bytes]) -> Hub:
    """The Hub, which has the model in REPO."""
    hub.push(REPO, files)
    return hub


def load(name: str = f"hf-hub:{REPO}", pretrained: bool = True, **options: Any) -> ImageTransformer:
    made: ImageTransformer = create_model(name, pretrained=pretrained, **options)
    return made


def same(model: ImageTransformer, other: ImageTransformer) -> bool:
    """Whether two models have the same weights."""
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def blobs(cache: Path) -> list[Path]:
    """The contents in a cache, whole or partial."""
    return list(cache.glob("models--*/blobs/*"))


def flip(data: bytes) -> bytes:
    """Other weights in a file of the same size, which reads as well as the first."""
    return data[:-1] + bytes([data[-1] ^ 1])


# The first time, and every time after


def test_a_model_is_fetched_once(pushed: Hub, model: ImageTransformer) -> None:
    loaded = load()
    assert same(loaded, model)
    assert loaded.load_report is not None
    assert REPO in loaded.load_report.source
    assert torch.equal(loaded.eval()(images_for(model)), model(images_for(model)))
    pushed.requests.clear()
    assert same(load(), model)
    assert not pushed.seen("GET")


def test_weights_in_the_cache_are_mapped(pushed: Hub, model: ImageTransformer, cache: Path) -> None:
    """They lie there under the hash of their content, so that nobody writes over them; here, somebody does."""
    loaded = load()
    [blob] = [path for path in blobs(cache) if path.read_bytes()[8:9] == b"{" and path.stat().st_size > 10_000]
    with blob.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\x80\x3f")
    assert same(loaded, load()) and not same(loaded, model)


def test_the_cache_serves_while_the_hub_is_down(pushed: Hub, model: ImageTransformer) -> None:
    load()
    pushed.stop()
    assert same(load(), model)
    pushed.start()
    assert same(load(f"hf-hub:{REPO}@main"), model)


@pytest.mark.parametrize("status", [500, 503])
def test_the_cache_serves_while_the_hub_is_in_trouble(pushed: Hub, model: ImageTransformer, status: int) -> None:
    load()
    pushed.status = status
    assert same(load(), model)


def test_a_hub_that_is_down_is_said_to_be(pushed: Hub, model: ImageTransformer) -> None:
    pushed.stop()
    with pytest.raises(WeightsError, match=rf"{REPO}.*refused.*connection.*'hf download'[^\n]*$"):
        load()
    pushed.start()
    assert same(load(), model)


def test_without_weights_only_the_config_is_fetched(pushed: Hub) -> None:
    made = load(pretrained=False)
    assert (made.architecture, made.num_classes, made.load_report) == (NAME, CLASSES, None)
    assert {request.path.rpartition("/")[2] for request in pushed.requests} == {"config.json"}


def test_options_go_before_the_config(pushed: Hub, model: ImageTransformer) -> None:
    loaded = load(num_classes=3, in_chans=1)
    assert (loaded.num_classes, loaded.in_chans) == (3, 1)
    assert torch.equal(loaded.blocks[0].mssa.qkv.weight, model.blocks[0].mssa.qkv.weight)
    assert loaded.load_report is not None
    assert set(loaded.load_report.reinitialised) == {"head.weight", "head.bias"}


def test_a_list_of_feature_maps_from_the_hub(pushed: Hub, model: ImageTransformer) -> None:
    extractor = create_model(f"hf-hub:{REPO}", pretrained=True, features_only=True, out_indices=[-1])
    [features] = extractor.eval()(images_for(model))
    assert features.shape == (2, DIM, 2, 3)


def test_the_cache_is_where_it_is_asked_for(pushed: Hub, cache: Path, tmp_path: Path) -> None:
    load(cache_dir=tmp_path / "mine")
    assert len(blobs(tmp_path / "mine")) == 2
    assert not cache.exists()
    pushed.stop()
    load(cache_dir=str(tmp_path / "mine"))


def test_a_new_commit_is_fetched_and_an_old_one_stays(pushed: Hub, model: ImageTransformer, tmp_path: Path) -> None:
    first = pushed.repos[REPO].refs["main"]
    load()
    other = small_model(NAME, num_classes=9)
    pushed.push(REPO, save_pretrained(other, tmp_path / "other"))
    assert same(load(), other)
    pushed.requests.clear()
    assert same(load(f"hf-hub:{REPO}@{first}"), model)
    assert pushed.requests == []  # a commit never changes


@pytest.mark.parametrize("branch", ["v1.0", "refs/pr/1"])
def test_a_revision_is_a_branch_or_a_tag_too(pushed: Hub, model: ImageTransformer, tmp_path: Path, branch: str) -> None:
    other = small_model(NAME, num_classes=9)
    pushed.push(REPO, save_pretrained(other, tmp_path / "other"), branch)
    assert same(load(f"hf-hub:{REPO}@{branch}"), other)
    assert same(load(), model)


def test_config_and_weights_are_of_one_commit(pushed: Hub, model: ImageTransformer, tmp_path: Path) -> None:
    other = save_pretrained(small_model(NAME, depth=1), tmp_path / "other")
    pushed.then["config.json"] = lambda: pushed.push(REPO, other)
    assert same(load(), model)


def test_config_and_weights_are_of_one_commit_for_the_mixin_too(
    pushed: Hub, model: ImageTransformer, tmp_path: Path
) -> None:
    other = save_pretrained(small_model(NAME, depth=1), tmp_path / "other")
    pushed.then["config.json"] = lambda: pushed.push(REPO, other)
    assert same(ImageTransformer.from_pretrained(REPO), model)


# Offline


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_offline_the_cache_is_enough(pushed: Hub, model: ImageTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    load()
    pushed.requests.clear()
    offline(monkeypatch)
    assert same(load(), model)
    assert pushed.requests == []


def test_offline_without_a_cache_the_next_step_is_named(pushed: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    with pytest.raises(WeightsError, match=rf"{REPO}(?s:.*)hf download"):
        load()
    assert pushed.requests == []


def test_offline_with_the_config_alone_the_weights_are_missed(pushed: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    load(pretrained=False)
    offline(monkeypatch)
    load(pretrained=False)
    with pytest.raises(WeightsError, match=r"model\.safetensors(?s:.*)hf download"):
        load()


def test_what_the_hubs_own_command_fetched_ahead_is_found(
    pushed: Hub, model: ImageTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub.snapshot_download(REPO)  # what `hf download` calls
    offline(monkeypatch)
    assert same(load(), model)


SCRIPT = """
import sys
from whitebox_crate import create_model
from whitebox_crate.errors import WeightsError
for name in sys.argv[1:]:
    try:
        model = create_model(name, pretrained=True)
    except WeightsError as error:
        print("WeightsError", error)
    else:
        print(model.architecture, model.num_classes, float(model.head.weight.detach().double().sum()))
"""


def test_the_environment_rules_another_process(pushed: Hub, model: ImageTransformer, cache: Path) -> None:
    def run(*names: str, **environment: str) -> list[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": pushed.url, "HF_HOME": str(cache.parent / "home"), "HF_HUB_CACHE": str(cache)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *names],
            env={**inherited, **ours, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", **environment},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    expected = f"{NAME} {CLASSES} {float(model.head.weight.detach().double().sum())}"
    assert run(f"hf-hub:{REPO}") == [expected]
    assert len(blobs(cache)) == 2
    pushed.requests.clear()
    first, *error = run(f"hf-hub:{REPO}", "hf-hub:org/other", HF_HUB_OFFLINE="1")
    assert first == expected
    assert "WeightsError" in error[0]
    assert "hf download" in "".join(error)
    assert pushed.requests == []


# What is not there, or not for everyone


def test_a_repository_that_does_not_exist(hub: Hub) -> None:
    for token in (None, TOKEN):
        with pytest.raises(WeightsError, match=r"org/gone(?s:.*)private(?s:.*)token"):
            load("hf-hub:org/gone", token=token)


@pytest.mark.parametrize("access", ["private", "gated"])
@pytest.mark.parametrize("token", [None, STRANGER])
def test_a_repository_that_is_not_for_everyone(
    hub: Hub, files: dict[str, bytes], access: str, token: str | None
) -> None:
    hub.push(REPO, files, access=access)
    with pytest.raises(WeightsError, match=rf"{REPO}(?s:.*){access}(?s:.*)hf auth login"):
        load(token=token)


def test_a_token_that_is_none(pushed: Hub) -> None:
    with pytest.raises(WeightsError, match=rf"{REPO}(?s:.*)token"):
        load(token="hf_expired")


@pytest.mark.parametrize("access", ["private", "gated"])
def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, files: dict[str, bytes], model: ImageTransformer, access: str
) -> None:
    hub.push(REPO, files, access=access)
    assert same(load(token=TOKEN), model)
    sent = {request.path.startswith("/cdn/"): request.headers.get("authorization") for request in hub.requests}
    assert sent == {False: f"Bearer {TOKEN}", True: None}


def test_the_token_of_the_environment_is_taken(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(REPO, files, access="private")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load()
    hub.requests.clear()
    with pytest.raises(WeightsError, match="private"):
        load(token=False, cache_dir=Path(constants.HF_HUB_CACHE) / "new")
    assert all("authorization" not in request.headers for request in hub.requests)


@pytest.mark.parametrize("revision", ["nowhere", "0" * 40])
def test_a_revision_that_does_not_exist(pushed: Hub, revision: str) -> None:
    with pytest.raises(WeightsError, match=rf"revision(?s:.*){revision}|{revision}(?s:.*)revision"):
        load(f"hf-hub:{REPO}@{revision}")
    load()
    with pytest.raises(WeightsError, match=revision):
        load(f"hf-hub:{REPO}@{revision}")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_repository_without_a_file(hub: Hub, files: dict[str, bytes], missing: str) -> None:
    del files[missing]
    hub.push(REPO, files)
    with pytest.raises(WeightsError, match=rf"{REPO}(?s:.*){missing}|{missing}(?s:.*){REPO}"):
        load()


@pytest.mark.parametrize("name", ["", "org/", "/x", "a/b/c", "org/re po", "..", "org/../x", "@main"])
def test_a_name_that_no_repository_can_have(hub: Hub, name: str) -> None:
    with pytest.raises(WeightsError, match=r"hf-hub:|org/name|repository"):
        load(f"hf-hub:{name}")
    assert hub.requests == []


@pytest.mark.parametrize("config", [b"", b"[]", b"{", b"\xff\xfe", b'{"architecture": "resnet50"}'])
def test_a_config_of_something_else(hub: Hub, files: dict[str, bytes], config: bytes) -> None:
    hub.push(REPO, {**files, "config.json": config})
    with pytest.raises((WeightsError, LookupError), match=r"config\.json|resnet50"):
        load()


# Broken transfers


@pytest.mark.parametrize(
    ("after", "times", "reset"), [(0, 20, False), (1000, 1, True)], ids=["nothing comes any more", "reset"]
)
def test_a_transfer_that_fails_for_good_leaves_nothing(
    pushed: Hub, model: ImageTransformer, cache: Path, after: int, times: int, reset: bool
) -> None:
    pushed.cut("model.safetensors", after, times, reset)
    with pytest.raises(WeightsError, match=r"model\.safetensors(?s:.*)again"):
        load()
    assert not list(cache.rglob("*.safetensors"))
    pushed.cut("model.safetensors", 0, times=0)
    assert same(load(), model)


def test_a_hub_that_goes_down_meanwhile(pushed: Hub, model: ImageTransformer) -> None:
    load(pretrained=False)
    pushed.status = 503
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load()
    pushed.status = None
    assert same(load(), model)


@pytest.mark.parametrize("change", [flip, lambda data: data[:-8], lambda data: data + b"more"])
def test_other_content_than_announced_is_refused(
    pushed: Hub, model: ImageTransformer, files: dict[str, bytes], cache: Path, change: Any
) -> None:
    pushed.instead["model.safetensors"] = change(files["model.safetensors"])
    for _ in range(2):
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            load()
        assert not list(cache.rglob("*.safetensors"))
        assert len(blobs(cache)) == 1  # the config's
    pushed.instead.clear()
    assert same(load(), model)


def test_content_that_another_program_left_broken_is_not_loaded_where_the_hash_is_known(
    pushed: Hub, model: ImageTransformer, files: dict[str, bytes]
) -> None:
    pushed.instead["model.safetensors"] = flip(files["model.safetensors"])
    huggingface_hub.hf_hub_download(REPO, "model.safetensors")  # the client looks at the size alone
    true = sha256(files["model.safetensors"]).hexdigest()
    with pytest.raises(WeightsError, match="SHA-256"):
        load(pretrained_cfg_overlay={"sha256": true})
    pushed.instead.clear()
    assert same(load(), model)


def test_a_sha256_that_is_asked_for_counts(pushed: Hub, model: ImageTransformer, files: dict[str, bytes]) -> None:
    true = sha256(files["model.safetensors"]).hexdigest()
    assert same(load(pretrained_cfg_overlay={"sha256": true}), model)
    for wrong in ("0" * 64, true[:-1] + ("0" if true[-1] != "0" else "1")):
        with pytest.raises(WeightsError, match=rf"{true}(?s:.*){wrong}|{wrong}(?s:.*){true}"):
            load(pretrained_cfg_overlay={"sha256": wrong})
    assert same(load(pretrained_cfg_overlay={"sha256": true.upper()}), model)


def test_where_links_are_not_possible_a_wrong_file_goes_too(
    pushed: Hub, model: ImageTransformer, files: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    true = sha256(files["model.safetensors"]).hexdigest()
    pushed.instead["model.safetensors"] = flip(files["model.safetensors"])
    with pytest.raises(WeightsError, match=true):
        load(pretrained_cfg_overlay={"sha256": true})
    assert not list(cache.rglob("*.safetensors"))
    pushed.instead.clear()
    assert same(load(pretrained_cfg_overlay={"sha256": true}), model)


# The one function below all this


def test_a_file_is_fetched_anew_when_asked(pushed: Hub, files: dict[str, bytes]) -> None:
    path = fetch(REPO, "model.safetensors")
    assert path.read_bytes() == files["model.safetensors"]
    assert fetch(REPO, "model.safetensors", local_files_only=True) == path
    assert len(pushed.seen("GET", "model.safetensors")) == 1
    assert fetch(REPO, "model.safetensors", force_download=True).read_bytes() == files["model.safetensors"]
    assert len(pushed.seen("GET", "model.safetensors")) == 2


def test_a_file_is_looked_for_in_the_cache_alone_when_asked(pushed: Hub) -> None:
    with pytest.raises(WeightsError, match="hf download"):
        fetch(REPO, "model.safetensors", local_files_only=True)
    assert pushed.requests == []


@pytest.mark.parametrize("name", ["", "../up", "/etc/passwd", "a/../../b"])
def test_a_file_outside_the_repository_is_refused(pushed: Hub, name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        fetch(REPO, name)


def test_a_folder_that_cannot_hold_a_cache(pushed: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WeightsError, match="file"):
        fetch(REPO, "config.json", cache_dir=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# Registered weights


def hub_crate(
    img_size: tuple[int, int] = (32, 48),
    patch_size: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    embed_dim: int = DIM,
    depth: int = DEPTH,
    num_heads: int = 2,
) -> Crate:
    return Crate(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
    )


def register(**facts: Any) -> None:
    """Registers `hub_crate` with weights of the tag "test"."""
    cfg = {"tag": "test", "input_size": (3, 32, 48), "num_classes": CLASSES, **facts}
    register_model(hub_crate, pretrained=[PretrainedCfg(**cfg)])


def test_a_registered_name_fetches_its_file(
    hub: Hub, model: ImageTransformer, tmp_path: Path, cache: Path, own_registry: None
) -> None:
    data = save(model.state_dict())
    hub.push("org/many", {"torch/one.safetensors": data})
    register(hf_hub_id="org/many", file="torch/one.safetensors", sha256=sha256(data).hexdigest())
    for name in ("hub_crate.test", "hub_crate"):
        assert same(load(name, cache_dir=tmp_path / "mine"), model)
    assert {request.path.rpartition("/")[2] for request in hub.requests} == {"one.safetensors"}
    assert not cache.exists()
    hub.stop()
    assert same(load("hub_crate.test", cache_dir=tmp_path / "mine"), model)


def test_a_registered_name_fetches_nothing_without_pretrained(hub: Hub, own_registry: None) -> None:
    register(hf_hub_id="org/many", file="one.safetensors")
    assert load("hub_crate.test", pretrained=False).load_report is None
    assert hub.requests == []


def test_a_registered_sha256_is_checked(hub: Hub, model: ImageTransformer, cache: Path, own_registry: None) -> None:
    hub.push("org/many", {"one.safetensors": save(model.state_dict())})
    register(hf_hub_id="org/many", file="one.safetensors", sha256="0" * 64)
    with pytest.raises(WeightsError, match="0" * 64):
        load("hub_crate.test")
    assert not list(cache.rglob("*.safetensors"))


def test_a_registered_revision_is_kept_to(hub: Hub, model: ImageTransformer, own_registry: None) -> None:
    commit = hub.push("org/many", {"one.safetensors": save(model.state_dict())})
    hub.push("org/many", {"one.safetensors": b"other"})
    register(hf_hub_id="org/many", file="one.safetensors", revision=commit)
    assert same(load("hub_crate.test"), model)


def test_a_registered_token(hub: Hub, model: ImageTransformer, own_registry: None) -> None:
    hub.push("org/many", {"one.safetensors": save(model.state_dict())}, access="private")
    register(hf_hub_id="org/many", file="one.safetensors")
    with pytest.raises(WeightsError, match=r"org/many(?s:.*)token"):
        load("hub_crate.test")
    assert same(load("hub_crate.test", token=TOKEN), model)


def test_a_file_of_the_official_code_is_converted(hub: Hub, own_registry: None) -> None:
    case = load_case("crate_square")
    buffer = io.BytesIO()
    torch.save({"state_dict": {f"module.{name}": value for name, value in case.group("state").items()}}, buffer)
    hub.push("org/many", {"torch/official.pth": buffer.getvalue()})
    options = {**case.crate_options(), "img_size": (32, 32)}
    facts = {"input_size": (3, 32, 32), "num_classes": options["num_classes"], "model_args": options}
    cfg = PretrainedCfg(tag="test", hf_hub_id="org/many", file="torch/official.pth", **facts)
    register_model(Crate, name="official", pretrained=[cfg])
    logits = load("official.test").eval()(case["input/img"])
    torch.testing.assert_close(logits, case["output/logits"], atol=1e-5, rtol=1e-5)


def test_a_file_that_only_a_person_can_fetch(hub: Hub, own_registry: None) -> None:
    page = "https://files.example.org/page"
    register(url=page, file="official.pth")
    with pytest.raises(WeightsError) as caught:
        load("hub_crate.test")
    assert page in str(caught.value)
    assert "whitebox-crate convert official.pth" in str(caught.value)
    assert "--model hub_crate" in str(caught.value)
    assert hub.requests == []


# Both styles: ours and the mixin's


def test_from_pretrained_takes_a_repository(pushed: Hub, model: ImageTransformer, tmp_path: Path) -> None:
    for kind in (ImageTransformer, Crate):
        loaded = kind.from_pretrained(REPO, cache_dir=tmp_path / "mine")
        assert type(loaded) is Crate
        assert same(loaded, model)
    pushed.stop()
    assert same(ImageTransformer.from_pretrained(REPO, cache_dir=tmp_path / "mine", local_files_only=True), model)


def test_from_pretrained_takes_a_revision_and_a_token(
    hub: Hub, files: dict[str, bytes], model: ImageTransformer
) -> None:
    hub.push(REPO, files, "v1", access="private")
    assert same(ImageTransformer.from_pretrained(REPO, revision="v1", token=TOKEN), model)
    with pytest.raises(WeightsError, match="revision"):
        ImageTransformer.from_pretrained(REPO, token=TOKEN)


def test_from_pretrained_takes_options(pushed: Hub, model: ImageTransformer) -> None:
    loaded = ImageTransformer.from_pretrained(REPO, num_classes=3)
    assert loaded.num_classes == 3
    assert torch.equal(loaded.norm.weight, model.norm.weight)


def test_from_pretrained_takes_a_folder(hub: Hub, model: ImageTransformer, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    model.save_pretrained(folder)
    assert {"config.json", "model.safetensors", "README.md"} == {path.name for path in folder.iterdir()}
    for path in (folder, str(folder)):
        assert same(ImageTransformer.from_pretrained(path), model)
    assert same(load(f"local-dir:{folder}"), model)
    assert hub.requests == []


def test_from_pretrained_takes_a_folder_of_the_function(hub: Hub, model: ImageTransformer, tmp_path: Path) -> None:
    assert same(ImageTransformer.from_pretrained(save_pretrained(model, tmp_path / "own")), model)


def test_from_pretrained_says_what_is_wrong(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="org/gone"):
        ImageTransformer.from_pretrained("org/gone")
    with pytest.raises(WeightsError, match=r"config\.json"):
        ImageTransformer.from_pretrained(tmp_path)
    offline(monkeypatch)
    with pytest.raises(WeightsError, match=r"org/gone(?s:.*)hf download"):
        ImageTransformer.from_pretrained("org/gone")


def test_a_pushed_model_comes_back(hub: Hub, model: ImageTransformer) -> None:
    model.push_to_hub(REPO, token=TOKEN)
    assert set(hub.repos[REPO].files()) == {"config.json", "model.safetensors", "README.md"}
    assert json.loads(hub.repos[REPO].files()["config.json"])["architecture"] == NAME
    assert hub.repos[REPO].files()["README.md"].startswith(b"---\n")
    assert same(load(), model)
    assert same(ImageTransformer.from_pretrained(REPO), model)


def test_a_pushed_branch_of_a_private_repository(hub: Hub, model: ImageTransformer) -> None:
    model.push_to_hub(REPO, token=TOKEN, private=True, branch="v2")
    assert hub.repos[REPO].access == "private"
    assert same(load(f"hf-hub:{REPO}@v2", token=TOKEN), model)
    with pytest.raises(WeightsError, match="private"):
        load(f"hf-hub:{REPO}@v2", cache_dir=Path(constants.HF_HUB_CACHE) / "new")


# A config that timm wrote


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224"])
def test_a_config_of_timm_is_enough(hub: Hub, own_registry: None, architecture: str) -> None:
    """It has no model_args: the architecture has all that the weights need, but for the classes."""
    small = small_options(architecture, num_classes=1000)

    def vit_small_enough(num_classes: int = 1000) -> ImageTransformer:
        made: ImageTransformer = create_model(architecture, **{**small, "num_classes": num_classes})
        return made

    register_model(vit_small_enough)
    model = small_model(architecture)
    config = {
        "architecture": "vit_small_enough",
        "num_classes": CLASSES,
        "num_features": DIM,
        "global_pool": "token",
        "pretrained_cfg": {
            "tag": "augreg",
            "custom_load": False,
            "input_size": [3, 32, 48],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "num_classes": CLASSES,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "notes": ["converted"],
            "license": "apache-2.0",
        },
    }
    hub.push(REPO, {"config.json": json.dumps(config).encode(), "model.safetensors": save(model.state_dict())})
    loaded = load()
    assert same(loaded, model)
    cfg = loaded.pretrained_cfg
    assert (cfg.mean, cfg.std, cfg.interpolation, cfg.crop_pct) == ((0.5,) * 3, (0.25,) * 3, "bilinear", 0.9)
    assert load(pretrained=False).num_classes == CLASSES


# What goes wrong on the way, and is noticed later


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"<html>log in to the network</html>", b"", b"\0" * 200])
def test_a_file_that_is_damaged_in_the_cache_is_fetched_afresh(
    pushed: Hub, model: ImageTransformer, cache: Path, name: str, content: bytes
) -> None:
    load()
    [cached] = cache.glob(f"models--*/snapshots/*/{name}")
    cached.resolve().write_bytes(content)
    assert same(load(), model)
    assert len(pushed.seen("GET", name)) == 2
    cached.resolve().write_bytes(content)
    pushed.stop()
    with pytest.raises(WeightsError, match=r"deleted from the cache, and .* cannot be fetched"):
        load()


def test_what_a_portal_sent_does_not_stay(pushed: Hub, model: ImageTransformer, files: dict[str, bytes]) -> None:
    page = b"<html>log in</html>"
    pushed.instead["config.json"] = page + b" " * (len(files["config.json"]) - len(page))
    pushed.then["config.json"] = pushed.instead.clear  # for the next time
    assert same(load(), model)


def test_what_the_hub_has_is_fetched_once_whatever_it_is(hub: Hub, files: dict[str, bytes]) -> None:
    hub.push(REPO, {**files, "config.json": b"<html>a page</html>"})
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        load()
    assert len(hub.seen("GET", "config.json")) == 1


def test_a_hub_that_sends_nothing_is_given_up(
    pushed: Hub, model: ImageTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_patience, "PATIENCE", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 10)
    pushed.then["config.json"] = lambda: Event().wait(2)
    with pytest.raises(WeightsError, match=r"fewer than 4096 bytes came in 0\.5 seconds, and it is not in the cache"):
        load()


def test_what_takes_long_is_said_in_one_line(
    pushed: Hub,
    model: ImageTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    load(cache_dir=tmp_path / "mine")
    assert [record for record in caplog.records if record.name == _patience.__name__] == []
    monkeypatch.setattr(_patience, "SOON", 0.1)
    pushed.then["config.json"] = lambda: Event().wait(1)
    assert same(load(), model)
    [line] = [record.getMessage() for record in caplog.records if record.name == _patience.__name__]
    assert f"config.json of {REPO}" in line
    assert "HF_HUB_OFFLINE=1" in line
    assert "answer" not in line  # nobody knows here whether the Hub answers: a large file takes long too


def test_what_timm_waits_for_is_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def create_model(*_: Any, **__: Any) -> None:
        Event().wait(1)
        raise OSError("the Hub does not answer")

    theirs = SimpleNamespace(is_model=lambda _: True, is_model_pretrained=lambda _: True, create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", theirs)
    monkeypatch.setattr(_patience, "SOON", 0.1)
    with pytest.raises(WeightsError, match=r"vit_small(?s:.*)--checkpoint(?s:.*)does not answer"):
        named_model("timm:vit_small")
    with pytest.raises(WeightsError):
        named_model("timm:vit_small", checkpoint=tmp_path)  # a file of this disk: nothing is waited for
    [line] = [record.getMessage() for record in caplog.records if record.name == _patience.__name__]
    assert "timm's vit_small" in line


def test_a_cache_serves_where_the_hub_sends_nothing(
    pushed: Hub, model: ImageTransformer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    pushed.push(REPO, {**files, "config.json": files["config.json"] + b" "})
    monkeypatch.setattr(_patience, "PATIENCE", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 10)
    pushed.then["config.json"] = lambda: Event().wait(2)
    assert same(load(), model)


def test_a_download_goes_on_as_long_as_bytes_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patience, "PATIENCE", 0.5)
    monkeypatch.setattr(_patience, "_LOOK_EVERY", 0.05)
    (tmp_path / "blobs").mkdir()

    def download(bytes_each: int) -> str:
        for part in range(6):
            (tmp_path / "blobs" / "file").write_bytes(b"x" * bytes_each * (part + 1))
            time.sleep(0.2)
        return "whole"

    assert _patience.patiently(lambda: download(8192), tmp_path) == "whole"
    with pytest.raises(TimeoutError):
        _patience.patiently(lambda: download(1), tmp_path)
    with pytest.raises(KeyError):
        _patience.patiently(lambda: {}["gone"], tmp_path)
