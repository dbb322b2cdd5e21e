"""Models as folders, here and on the Hugging Face Hub: config.json beside model.safetensors, in timm's fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import huggingface_hub  # its client of HTTP takes long to import: it does so itself when the first name is asked for
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from ._files import make_folder, read_json, sha256_of, write_whole
from ._patience import patiently
from .errors import InputError, WeightsError, printable
from .fold import fold_for_inference
from .loading import MAX_DEPTH, made_empty, own_copies, plain_state
from .models import ImageTransformer
from .models._base import GlobalPool
from .models._wrappers import unwrap
from .pretrained import PRETRAINED
from .pretrained_cfg import PretrainedCfg
from .registry import find_entry

if TYPE_CHECKING:
    import huggingface_hub.errors  # imported by what raises them

T = TypeVar("T")
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# Where other libraries put weights in a folder: in several files that an index names, or as torch.save writes them.
_OTHER_WEIGHTS = (f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Facts of where weights lie and what was seen of them, which are not true of a copy that may have changed.
_NOT_OF_A_COPY: dict[str, Any] = {
    **dict.fromkeys(("hf_hub_id", "file", "revision", "sha256", "url", "checked", "notes"), ""),
    "model_args": {},
}
# What timm does not know is kept apart under this name, for it takes no other fields in "pretrained_cfg" than its own.
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
    """A file of a Hub repository, from huggingface_hub's cache or else by download.

    Its SHA-256 is compared with `sha256` if given, else, after a download, with the one that the Hub announces for
    large files; a file that differs is deleted from the cache. That reads the file once. A download of which nothing
    comes for two minutes is given up; the file in the cache then serves, if there is one.

    Args:
        repo_id: "org/name".
        filename: Path in the repository.
        revision: Branch, tag or commit; the main branch if None.
        sha256: What the file must hash to, in hex; "" for what the Hub says.
        cache_dir: Cache folder; that of huggingface_hub (`HF_HUB_CACHE`) if None.
        token: Access token, False for none; that of `hf auth login` or `HF_TOKEN` if None.
        local_files_only: Whether to look in the cache only, as `HF_HUB_OFFLINE=1` does for all.
        force_download: Whether to download a file that is in the cache again.

    Returns:
        The path of the file in the cache.

    Raises:
        WeightsError: If the file cannot be had, or is not what it should be; the message says what to do.
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
            path = Path(patiently(download, folder))
        except TimeoutError:
            if not isinstance(cached, str) or force_download:
                raise
            path = Path(cached)
    except Exception as error:  # the client raises its own errors and those of HTTP, sockets, files and locks
        raise WeightsError(f"{what} cannot be had: {_why(error, local_files_only)}") from error
    if not sha256 and (force_download or str(path) != cached):
        sha256 = _announced_sha256(path)
    verify(path, sha256, what, discard=True)
    return path


def _why(error: Exception, local_files_only: bool) -> str:
    """What went wrong and what to do, in a sentence."""
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
            return "it is not in the cache and the Hub is not to be asked; fetch it beforehand by 'hf download'"
        return f"the Hub does not answer and it is not in the cache; check the connection and try again ({error})"
    if isinstance(error, huggingface_hub.errors.EntryNotFoundError):
        return (
            "the repository has no such file; if it holds weights of another kind, download them by 'hf download' "
            "and run 'whitebox-crate convert' on the file"
        )
    if isinstance(error, huggingface_hub.errors.HFValidationError):
        return f"that is no name of a repository ({error}); write hf-hub:org/name or hf-hub:org/name@revision"
    if isinstance(error, huggingface_hub.errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"the Hub refuses the token; renew it by 'hf auth login', HF_TOKEN or token=... ({error})"
    if isinstance(error, TimeoutError):
        return f"{error}, and it is not in the cache; check the connection and try again"
    return f"{type(error).__name__}: {error}; try again"


def read_fresh(path: Path, fetch: Callable[[], Path], read: Callable[[Path], T]) -> T:
    """Reads a fetched file; one that is damaged in the cache is deleted there and fetched once more.

    It is damaged if it cannot be read and its hash is not the one by which the cache names it, as that of a file which
    broke on the disk, or of a page that a portal sent in its place. What is as the Hub has it is fetched once.

    Raises:
        WeightsError: If it cannot be read, or not be fetched again.
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
    """Deletes a file of the cache: a snapshot's link and its blob, or the file itself where there are no links."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _is_announced(path: Path) -> bool:
    """Whether a file of the cache hashes to its name there: SHA-256 of large files, git's hash of small ones."""
    place = path.resolve()
    if not place.is_file():
        return False
    if sha256 := _announced_sha256(path):
        return sha256_of(place) == sha256
    if len(place.name) != len(hashlib.sha1().hexdigest()):  # the cache has no links, and so no hash
        return False
    content = place.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == place.name


def _announced_sha256(path: Path) -> str:
    """The hash that the Hub announced: the cache names large files by it, and small ones by git's shorter one."""
    name = path.resolve().name
    return name if len(name) == 64 and set(name) <= set("0123456789abcdef") else ""


def verify(path: Path, sha256: str, what: str, *, discard: bool = False) -> None:
    """Compares a file with its hash.

    Args:
        path: The file, or a link to it in huggingface_hub's cache.
        sha256: What it must hash to, in hex; "" for no comparison.
        what: What to call it in the message.
        discard: Whether a file that differs is deleted, and what it links to.

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
            f"{what} is not what it should be: its SHA-256 is {digest}, expected {sha256}; "
            + ("it was not kept. Try again" if discard else "install the package again")
            + ", and if it stays so, do not use it"
        )


def weights_in(folder: Path) -> Path:
    """The file of a folder that holds its weights, or names those that do.

    Raises:
        WeightsError: If there is none.
    """
    for name in (WEIGHTS, *_OTHER_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"there are no weights in {folder}: none of {[WEIGHTS, *_OTHER_WEIGHTS]}. If they have another name, give the "
        "file as checkpoint_path=..."
    )


def save_pretrained(model: ImageTransformer, folder: str | Path, *, repo_id: str = "") -> Path:
    """Writes a model that `create_model` made to a folder that `create_model("local-dir:...")` loads.

    The folder gets config.json, model.safetensors, and README.md if it has none yet.

    Args:
        model: The model; of one that torch.compile or distributed training wraps, and of layers that are compiled one
            by one, what is inside.
        folder: Made if it does not exist.
        repo_id: "org/name" of the Hub repository that README.md shall say to load from, if there is one.

    Returns:
        The folder.

    Raises:
        InputError: If `create_model` did not make the model, so that its options are not known, or JSON does not
            know their types, or parts of it were taken out or exchanged since, or it is quantised, or spread over
            processes (FSDP).
        OutputError: If the folder cannot be written; a file that was there stays whole.

    Example:
        >>> folder = save_pretrained(create_model("crate_nano", pretrained=True), "saved")
        >>> model = create_model("local-dir:saved", pretrained=True)
    """
    whole = unwrap(model)
    if not isinstance(whole, ImageTransformer):
        raise InputError(f"a {type(whole).__name__} is not saved; save the whole model before its features are taken")
    model = whole
    if not model.architecture:
        raise InputError(
            f"this {type(model).__name__} was not made by create_model, so that its name is not known: register_model "
            "makes a class known, and create_model makes one that can be saved"
        )
    state = plain_state(model, "save a model in floating point, with all of its weights in this process")
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
        text = json.dumps(config, indent=1) + "\n"
    except TypeError as error:
        raise InputError(f"the options {model.model_args} cannot be written as JSON ({error})") from error
    tensors = own_copies(state)
    make_folder(folder)
    write_whole(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    write_whole(folder / CONFIG, lambda path: path.write_text(text))
    if not (folder / CARD).exists():
        write_whole(folder / CARD, lambda path: path.write_text(model_card(model, repo_id), encoding="utf-8"))
    return folder


def _facts_of(model: ImageTransformer) -> PretrainedCfg:
    """The model's facts, without the origin of known weights if these were never loaded."""
    cfg = model.pretrained_cfg
    if model.load_report is None and cfg in PRETRAINED.get(model.architecture, ()):
        return replace(cfg, tag="", license="", origin="", paper="")
    return cfg


def _options_of(model: ImageTransformer) -> dict[str, Any]:
    """The options that make a model of these sizes; its pooling is that of construction, which places the last norm."""
    entry, _ = find_entry(model.architecture)
    now = {"num_classes": model.num_classes, "img_size": model.img_size, "depth": len(model.blocks)}
    options = {**model.model_args, **{key: value for key, value in now.items() if entry.names(key)}}
    if "global_pool" in entry.defaults:
        options.setdefault("global_pool", entry.defaults["global_pool"])
    return options


def _check_description(model: ImageTransformer, state: Mapping[str, Tensor], options: dict[str, Any]) -> None:
    """Whether these options make a model of the same names and shapes, so that what is saved can be loaded."""
    entrypoint = find_entry(model.architecture)[0].entrypoint

    def make() -> Any:
        made: Any = entrypoint(**options)
        return fold_for_inference(made.eval(), inplace=True) if model.folded else made

    again = made_empty(make) or make()
    have, made = ({k: tuple(v.shape) for k, v in s.items()} for s in (state, again.state_dict()))
    differ = sorted(name for name in have.keys() | made.keys() if have.get(name) != made.get(name))
    if differ:
        raise InputError(
            f"this {type(model).__name__} is not what {model.architecture} makes with its options: {differ[:5]} "
            "differ. Save the whole model, before parts are taken out, or its state_dict() by safetensors"
        )


def model_card(model: ImageTransformer, repo_id: str = "") -> str:
    """The text of a README.md for a repository that holds this model: what it is and how to load it."""
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
    """What config.json says: how to make the model, the facts about its weights, its pooling, whether it is folded."""

    architecture: str
    options: dict[str, Any]
    cfg: PretrainedCfg
    pool: GlobalPool | None
    folded: bool


def read_config(folder: str | Path) -> Config:
    """Reads a folder's config.json, as this package or timm writes it.

    Fields that are not known here are left out; they come from other libraries.

    Raises:
        WeightsError: If it is missing, lacks what is needed, or a field has a value of another kind.
    """
    path = Path(folder) / CONFIG
    config = read_json(path)
    architecture, labels = config.get("architecture"), config.get("label_names", [])
    # Older folders of ours have everything in "pretrained_cfg".
    objects: tuple[Any, ...] = tuple(config.get(name, {}) for name in ("model_args", "pretrained_cfg", _OURS))
    if not isinstance(architecture, str) or not all(isinstance(part, dict) for part in objects):
        raise WeightsError(
            f"{path} needs 'architecture' (text), 'model_args', 'pretrained_cfg' and '{_OURS}' (objects)"
        )
    options, facts, ours = objects
    known = {field.name: field for field in fields(PretrainedCfg) if field.name not in _NOT_OF_A_COPY}
    values: dict[str, Any] = {k: _tupled(v) for k, v in {**facts, **ours}.items() if k in known and v is not None}
    values["label_names"] = tuple(printable(str(label)) for label in labels) if isinstance(labels, list) else ()
    if "num_classes" in config:  # timm's own place for it
        values["num_classes"] = config["num_classes"]
    try:
        cfg = PretrainedCfg(**values)
    except InputError as error:
        raise WeightsError(f"{path}: {error}") from error
    options = {k: _tupled(v) for k, v in options.items()}
    for depth in (options.get("depth"), options.get("decoder_depth")):
        if isinstance(depth, int) and depth > MAX_DEPTH:
            raise WeightsError(f"{path} asks for {depth} layers; at most {MAX_DEPTH} are made from a file")
    classes = options.get("num_classes", cfg.num_classes)
    if type(classes) is not int or classes != cfg.num_classes:  # the head would be taken for one to be left fresh
        raise WeightsError(f"{path} has {cfg.num_classes} classes as 'num_classes' and {classes!r} in 'model_args'")
    folded = config.get("folded", False)
    if not isinstance(folded, bool):
        raise WeightsError(f"{path}: 'folded' is true or false, not {folded!r}")
    pool: Any = config.get("global_pool")
    return Config(architecture, options, cfg, pool, folded)


def _tupled(value: object) -> object:
    """JSON has no tuples, and options and facts have no lists."""
    value = printable(value) if isinstance(value, str) else value  # or a licence could move the cursor of a terminal
    return tuple(value) if isinstance(value, list) else value
