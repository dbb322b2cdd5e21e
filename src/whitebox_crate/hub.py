"""Models as folders, local and on the Hugging Face Hub: config.json, with timm's fields, and model.safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import huggingface_hub  # it imports its HTTP client, which takes long, only when a name is first used
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from ._files import make_folder, read_json, sha256_of, write_whole
from ._patience import patiently, told
from .errors import InputError, OutputError, WeightsError, printable
from .fold import fold_for_inference
from .loading import MAX_DEPTH, made_empty, own_copies, plain_state
from .models import ImageTransformer
from .models._base import GlobalPool
from .models._wrappers import unwrap
from .pretrained import PRETRAINED
from .pretrained_cfg import PretrainedCfg
from .registry import find_entry

if TYPE_CHECKING:
    import huggingface_hub.errors  # the code that raises them imports them

T = TypeVar("T")
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# Names that other libraries give weights in a folder: an index of several files, or a file of torch.save.
_OTHER_WEIGHTS = (f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Facts about where weights lie and what was measured on them; they may be wrong for a copy that has changed.
_NOT_OF_A_COPY: dict[str, Any] = {
    **dict.fromkeys(("hf_hub_id", "file", "revision", "sha256", "url", "checked", "notes"), ""),
    "model_args": {},
}
# Fields that timm does not know go under this name, since timm accepts only its own in "pretrained_cfg".
_OURS = "whitebox_crate"
_ONLY_OURS = ("attention_layer", "attention_head", "attention_size", "origin", "paper")


def fetch(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    sha256: str = "",
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """A file of a Hub repository, from huggingface_hub's cache or by download.

    Its SHA-256 is compared with `sha256` if given; else, after a download, with the hash that the Hub announces for
    large files. This reads the file once. A file that differs is deleted from the cache. After five seconds, a line of
    the log says what is waited for. A download that brings nothing for two minutes is given up; then the file in the
    cache is used, if there is one.

    Args:
        repo_id: "org/name".
        filename: Path in the repository.
        revision: Branch, tag or commit; the main branch if None.
        sha256: Expected hash of the file, in hex; "" takes the Hub's.
        cache_dir: Cache folder; None takes huggingface_hub's (`HF_HUB_CACHE`).
        token: Access token. None takes the token of `hf auth login` or `HF_TOKEN`; False sends none.
        local_files_only: Whether to look only in the cache, as `HF_HUB_OFFLINE=1` does for all files.
        force_download: Whether to download a file again that is in the cache.

    Returns:
        The path of the file in the cache.

    Raises:
        WeightsError: If the file cannot be fetched, or has another hash; the message says what to do.
    """
    what = f"{filename} of {repo_id}" + (f" at revision {revision}" if revision else "") + " on the Hub"
    try:
        cached = huggingface_hub.try_to_load_from_cache(repo_id, filename, cache_dir, revision)
        download = partial(
            huggingface_hub.hf_hub_download,
            repo_id,
            filename,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
            library_name="whitebox-crate",
        )
        folder = Path(cache_dir or constants.HF_HUB_CACHE, f"models--{repo_id.replace('/', '--')}")
        try:
            with told(what):
                path = Path(patiently(download, folder))
        except TimeoutError:
            if not isinstance(cached, str) or force_download:
                raise
            path = Path(cached)
    except Exception as error:  # the client raises its own errors, and errors of HTTP, sockets, files and locks
        raise WeightsError(f"{what} cannot be fetched: {_why(error, local_files_only)}") from error
    if not sha256 and (force_download or str(path) != cached):
        sha256 = _announced_sha256(path)
    verify(path, sha256, what, discard=True)
    return path


def _why(error: Exception, local_files_only: bool) -> str:
    """The cause and the next step, in one sentence."""
    if isinstance(error, huggingface_hub.errors.GatedRepoError):
        return "the repository is gated; ask for access on its page, then log in by 'hf auth login'"
    if isinstance(error, huggingface_hub.errors.RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private; check the name, or log in by 'hf auth login' "
            "(HF_TOKEN, or token=...)"
        )
    if isinstance(error, huggingface_hub.errors.RevisionNotFoundError):
        return "there is no such revision; give a branch, tag or commit of the repository after '@'"
    if isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
        if local_files_only or constants.HF_HUB_OFFLINE:
            return (
                "it is not in the cache, and the Hub may not be asked (offline); fetch it beforehand by 'hf download'"
            )
        return (
            f"the Hub does not answer ({error.__cause__ or error}) and it is not in the cache; check the connection "
            "and try again, or fetch it elsewhere by 'hf download' and copy the cache"
        )
    if isinstance(error, huggingface_hub.errors.EntryNotFoundError):
        return (
            "the repository has no such file; if it holds weights of another kind, download them by 'hf download' "
            "and run 'whitebox-crate convert' on the file"
        )
    if isinstance(error, huggingface_hub.errors.HFValidationError):
        return f"that is not a name of a repository ({error}); write hf-hub:org/name or hf-hub:org/name@revision"
    if isinstance(error, huggingface_hub.errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"the Hub refuses the token; renew it by 'hf auth login', HF_TOKEN or token=... ({error})"
    if isinstance(error, TimeoutError):
        return f"{error}, and it is not in the cache; check the connection and try again"
    return f"{type(error).__name__}: {error}; try again"


def read_fresh(path: Path, fetch: Callable[[], Path], read: Callable[[Path], T]) -> T:
    """Reads a fetched file. If the file is damaged in the cache, deletes it there and fetches it once more.

    A file is damaged if it cannot be read and its hash differs from its name in the cache: the disk may have failed, or
    a login portal may have sent a page in its place. A file that equals the Hub's is fetched only once.

    Raises:
        WeightsError: If the file cannot be read, or cannot be fetched again.
    """
    try:
        return read(path)
    except WeightsError as error:
        if _is_announced(path):
            raise
        _discard(path)
        try:
            path = fetch()
        except WeightsError as again:
            raise WeightsError(f"{error}. It was deleted from the cache, and {again}") from error
    return read(path)


def _discard(path: Path) -> None:
    """Deletes a file of the cache: the snapshot's link and its blob, or the file itself if there are no links."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _is_announced(path: Path) -> bool:
    """Whether a file of the cache hashes to its name there: SHA-256 of large files, git's hash of small ones."""
    place = path.resolve()
    if not place.is_file():
        return False
    if sha256 := _announced_sha256(path):
        return sha256_of(place) == sha256
    if len(place.name) != len(hashlib.sha1().hexdigest()):  # without links the name is not a hash
        return False
    content = place.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == place.name


def _announced_sha256(path: Path) -> str:
    """The SHA-256 that the Hub announced. The cache names large files by it; small files are named by git's hash."""
    name = path.resolve().name
    return name if len(name) == 64 and set(name) <= set("0123456789abcdef") else ""


def verify(path: Path, sha256: str, what: str, *, discard: bool = False) -> None:
    """Compares a file with its hash.

    Args:
        path: The file, or a link to it in huggingface_hub's cache.
        sha256: Expected hash, in hex; "" for no comparison.
        what: Name of the file in the message.
        discard: Whether to delete a file that differs, with the file that it links to.

    Raises:
        WeightsError: If the hash differs or the file cannot be read.
    """
    if not sha256:
        return
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise WeightsError(f"{what} cannot be read: {error}") from error
    if digest != sha256.lower():
        if discard:
            _discard(path)
        raise WeightsError(
            f"{what} is damaged or was exchanged: its SHA-256 is {digest}, expected {sha256}; "
            + ("it was deleted. Try again" if discard else "install the package again")
            + "; if the hash still differs, do not use the file"
        )


def weights_in(folder: Path) -> Path:
    """The file of a folder that holds its weights, or an index of such files.

    Raises:
        WeightsError: If there is no such file.
    """
    for name in (WEIGHTS, *_OTHER_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"there are no weights in {folder}: none of {[WEIGHTS, *_OTHER_WEIGHTS]}. If the file has another name, give "
        "it as checkpoint_path=..."
    )


def save_pretrained(model: ImageTransformer, folder: str | Path, *, repo_id: str = "") -> Path:
    """Writes a model that `create_model` made to a folder that `create_model("local-dir:...")` loads.

    The folder gets model.safetensors, config.json, and README.md if it has none yet. A config.json that stays the same
    is left alone. One that changes is taken away for the moment in which the new weights are put in place. A process
    that ends in that moment, or finds the disk full after it, leaves the folder without config.json. Such a folder does
    not load, so save again.

    Args:
        model: The model. Wrappers of torch.compile or distributed training, of the model or of single layers, are
            taken off.
        folder: Made if it does not exist.
        repo_id: Hub repository "org/name" that README.md names to load from, if there is one.

    Returns:
        The folder.

    Raises:
        InputError: If `create_model` did not make the model, so that its options are unknown; if JSON cannot hold its
            options; if parts of it were removed or replaced; if it is quantised, or spread over processes (FSDP).
        OutputError: If the folder cannot be written. If its weights cannot, the older files stay.

    Example:
        >>> folder = save_pretrained(create_model("crate_nano", pretrained=True), "saved")
        >>> model = create_model("local-dir:saved", pretrained=True)
    """
    whole = unwrap(model)
    if not isinstance(whole, ImageTransformer):
        raise InputError(f"a {type(whole).__name__} cannot be saved; save the whole model instead")
    model = whole
    if not model.architecture:
        raise InputError(
            f"this {type(model).__name__} was not made by create_model, so its name and options are unknown: register "
            "its class with register_model, then make it with create_model"
        )
    state = plain_state(model, "save a model in floating point, with all its weights in this process")
    options = _options_of(model)
    _check_description(model, state, options)
    folder = Path(folder)
    cfg = _facts_of(model)
    labels = cfg.label_names if len(cfg.label_names) == model.num_classes else ()
    size = (model.in_chans, *model.img_size)
    facts = replace(cfg, num_classes=model.num_classes, input_size=size)
    elsewhere = ("label_names", *_NOT_OF_A_COPY, *_ONLY_OURS)
    config = {
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
        "label_names": labels,
        "folded": model.folded,
        "model_args": options,
        "pretrained_cfg": {key: value for key, value in facts.items() if key not in elsewhere},
        _OURS: {key: facts[key] for key in _ONLY_OURS},
    }
    try:
        text = (json.dumps(config, indent=1) + "\n").encode()
    except TypeError as error:
        raise InputError(f"the options {model.model_args} cannot be written as JSON ({error})") from error
    tensors = own_copies(state)
    make_folder(folder)
    _write_model(folder, tensors, text)
    if not (folder / CARD).exists():
        write_whole(folder / CARD, lambda path: path.write_text(model_card(model, repo_id), encoding="utf-8"))
    return folder


def _write_model(folder: Path, tensors: dict[str, Tensor], config: bytes) -> None:
    """Writes weights and config.json. The weights never lie beside a config.json that describes others.

    No file system renames two files at once. So another config.json is taken away before the weights are renamed, and
    put back if that fails.
    """
    place = folder / CONFIG
    old: bytes | None = None

    def write_weights(path: Path) -> None:
        nonlocal old
        save_file(tensors, path, metadata={"format": "pt"})
        old = place.read_bytes() if place.exists() else None
        if old != config:
            place.unlink(missing_ok=True)

    try:
        write_whole(folder / WEIGHTS, write_weights)
    except OutputError:
        if old is not None and not place.exists():
            write_whole(place, partial(Path.write_bytes, data=old))
        raise
    if old != config:
        write_whole(place, lambda path: path.write_bytes(config))


def _facts_of(model: ImageTransformer) -> PretrainedCfg:
    """The model's facts, without the origin of known weights if these were never loaded."""
    cfg = model.pretrained_cfg
    if model.load_report is None and cfg in PRETRAINED.get(model.architecture, ()):
        return replace(cfg, tag="", license="", origin="", paper="")
    return cfg


def _options_of(model: ImageTransformer) -> dict[str, Any]:
    """The options that make a model of these sizes. The pooling is the original one, which places the last norm."""
    entry, _ = find_entry(model.architecture)
    now = {"num_classes": model.num_classes, "img_size": model.img_size, "depth": len(model.blocks)}
    options = {**model.model_args, **{key: value for key, value in now.items() if entry.names(key)}}
    if "global_pool" in entry.defaults:
        options.setdefault("global_pool", entry.defaults["global_pool"])
    return options


def _check_description(model: ImageTransformer, state: Mapping[str, Tensor], options: dict[str, Any]) -> None:
    """Checks that these options make a model of the same names and shapes, so that the saved file can be loaded."""
    entrypoint = find_entry(model.architecture)[0].entrypoint

    def make() -> Any:
        made: Any = entrypoint(**options)
        return fold_for_inference(made.eval(), inplace=True) if model.folded else made

    again = made_empty(make) or make()
    have, made = ({k: tuple(v.shape) for k, v in s.items()} for s in (state, again.state_dict()))
    differ = sorted(name for name in have.keys() | made.keys() if have.get(name) != made.get(name))
    if differ:
        raise InputError(
            f"this {type(model).__name__} differs from a new {model.architecture} of the same options: {differ[:5]} "
            "differ. Save the whole model before you remove parts, or save its state_dict() by safetensors"
        )


def model_card(model: ImageTransformer, repo_id: str = "") -> str:
    """The text of a README.md for a repository of this model: its facts and how to load it."""
    cfg = _facts_of(model)
    facts = {
        "Architecture": f"`{model.architecture}`",
        "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M",
        "Images": f"{model.in_chans} x {model.img_size[0]} x {model.img_size[1]}, mean {cfg.mean}, std {cfg.std}",
        "Classes": str(model.num_classes),
        "Folded": "for inference; it is not trained further" if model.folded else "",
        "Made from": cfg.origin,
        "Paper": cfg.paper,
    }
    head = ["---", "library_name: whitebox-crate", *([f"license: {cfg.license}"] if cfg.license else [])]
    task = "image-classification" if model.num_classes else "image-feature-extraction"
    head += [f"pipeline_tag: {task}", "tags: [white-box-transformer, model_hub_mixin]", "---"]
    lines = [f"- {name}: {value}" for name, value in facts.items() if value]
    load = ["```python", "from whitebox_crate import create_model", ""]
    name = f"hf-hub:{repo_id}" if repo_id else "local-dir:PATH"
    load += [f'model = create_model("{name}", pretrained=True)', "```"]
    return "\n".join([*head, "", f"# {model.architecture}", "", *lines, "", *load, ""])


class Config(NamedTuple):
    """The content of config.json: how to make the model, facts about its weights, its pooling, whether it is folded."""

    architecture: str
    options: dict[str, Any]
    cfg: PretrainedCfg
    pool: GlobalPool | None
    folded: bool


def read_config(folder: str | Path) -> Config:
    """Reads a folder's config.json, as this package or timm writes it.

    Unknown fields are ignored; they come from other libraries.

    Raises:
        WeightsError: If the file is missing, lacks a needed field, or a field has a value of another kind.
    """
    path = Path(folder) / CONFIG
    config = read_json(path)
    architecture, labels = config.get("architecture"), config.get("label_names", [])
    # Older folders of this package have all fields in "pretrained_cfg".
    objects: tuple[Any, ...] = tuple(config.get(name, {}) for name in ("model_args", "pretrained_cfg", _OURS))
    if not isinstance(architecture, str) or not all(isinstance(part, dict) for part in objects):
        raise WeightsError(
            f"{path} needs 'architecture' (text), 'model_args', 'pretrained_cfg' and '{_OURS}' (objects): add them"
        )
    options, facts, ours = objects
    known = {field.name: field for field in fields(PretrainedCfg) if field.name not in _NOT_OF_A_COPY}
    values: dict[str, Any] = {k: _tupled(v) for k, v in {**facts, **ours}.items() if k in known and v is not None}
    values["label_names"] = tuple(printable(str(label)) for label in labels) if isinstance(labels, list) else ()
    if "num_classes" in config:  # timm puts it here
        values["num_classes"] = config["num_classes"]
    try:
        cfg = PretrainedCfg(**values)
    except InputError as error:
        raise WeightsError(f"{path}: {error}") from error
    options = {k: _tupled(v) for k, v in options.items()}
    for depth in (options.get("depth"), options.get("decoder_depth")):
        if isinstance(depth, int) and depth > MAX_DEPTH:
            raise WeightsError(f"{path} asks for {depth} layers; a file may ask for at most {MAX_DEPTH}")
    classes = options.get("num_classes", cfg.num_classes)
    if type(classes) is not int or classes != cfg.num_classes:  # else loading would leave the head fresh
        raise WeightsError(f"{path} has {cfg.num_classes} classes as 'num_classes' and {classes!r} in 'model_args'")
    folded = config.get("folded", False)
    if not isinstance(folded, bool):
        raise WeightsError(f"{path}: 'folded' must be true or false, not {folded!r}")
    pool: Any = config.get("global_pool")
    return Config(architecture, options, cfg, pool, folded)


def _tupled(value: object) -> object:
    """JSON has no tuples, and options and facts have no lists."""
    value = printable(value) if isinstance(value, str) else value  # no control characters, for example in a licence
    return tuple(value) if isinstance(value, list) else value
