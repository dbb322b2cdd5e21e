"""What is where: a folder, files or a name on the Hub become a data set of undecoded pictures."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._random import numpy_generator
from ..errors import InputError, UnknownNameError, require

KINDS = {".parquet": "parquet", ".tar": "webdataset"}
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
USUAL_SPLITS = {"train", "val", "valid", "validation", "test"}
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def find(
    where: str | os.PathLike[str], split: str, streaming: bool, labelled: bool, subset: str | None, revision: str | None
) -> tuple[Any, int | None, list[str]]:
    """Opens what is there; the arguments are those of `open_images`.

    Returns:
        A `datasets.Dataset` or, if streamed, `IterableDataset`; the number of images, if it is known; the files that
        are read, those of the Hub aside.

    Raises:
        MissingExtraError: If `datasets` is not installed.
        UnknownNameError: If there is no such split.
        InputError: If there is nothing that can be read.
    """
    require("datasets", "train")
    name, path = os.fspath(where), Path(where)
    kind = _kind_of(path, split) if path.is_dir() else KINDS.get(path.suffix)
    if kind is None and not path.exists() and isinstance(where, str) and HUB_NAME.fullmatch(name):
        return _load(name, split, streaming, name, name=subset, revision=revision), None, []
    if subset or revision:
        raise InputError(f"{name!r} is no name on the Hub, and has no subset {subset!r} or revision {revision!r}")
    if kind == "folder":
        return _folder(path, split, streaming, labelled)
    if kind == "imagefolder":
        files = list(map(str, _files(path)))
        return _load(name, split, streaming, kind, data_dir=str(path.absolute())), None, files
    if kind is None:
        raise InputError(
            f"{name!r} is no folder, no .parquet or .tar file and no name on the Hub ('owner/name'); look at the path"
        )
    files = _shards(path, split, kind) if path.is_dir() else [name if "://" in name else os.path.abspath(name)]
    found = files if path.is_dir() or "://" in name else sorted(glob.glob(name, recursive=True))
    if not found:
        raise InputError(f"{name!r} matches no file; look at the path")
    return _load(name, split, streaming, kind, data_files={split: files}), None, found


def _kind_of(root: Path, split: str) -> str:
    """The kind of the first file by which the kind can be told."""
    if any((folder / name).is_file() for folder in (root, root / split) for name in METADATA):
        return "imagefolder"
    suffixes = _picture_suffixes()
    for file in _files(root):
        if (suffix := file.suffix.lower()) in KINDS:
            return KINDS[suffix]
        if suffix in suffixes:
            return "folder"
    raise InputError(f"{str(root)!r} has no picture and no .parquet or .tar file in it; look at the path")


def _load(where: str, split: str, streaming: bool, path: str, **source: Any) -> Any:
    datasets = require("datasets", "train")
    try:
        return datasets.load_dataset(path, split=split, streaming=streaming, **source)
    except Exception as error:  # of datasets, and of each of the libraries that it reads with
        if isinstance(error, ValueError) and "split" in str(error):
            names = datasets.get_dataset_split_names(path, source.pop("name", None), **source)
            raise UnknownNameError.of("split", split, names, f"They are those of {where!r}.") from error
        reason = error.__cause__ or error
        on_hub = "; it is no folder here, and was looked for on the Hub: look at the name" if path == where else ""
        raise InputError(f"{where!r} cannot be opened: {type(reason).__name__}: {reason}{on_hub}") from error


def _shards(root: Path, split: str, kind: str) -> list[str]:
    """The files whose path has the split's name as a word; all files if none has the name of any split."""
    files = [file for file in _files(root.absolute()) if KINDS.get(file.suffix.lower()) == kind]
    words = {file: set(re.split("[^a-z]+", str(file.relative_to(root.absolute())).lower())) for file in files}
    named = USUAL_SPLITS.intersection(set().union(*words.values()))
    if split == "train" and not named:
        return [str(file) for file in files]
    chosen = [str(file) for file in files if split.lower() in words[file]]
    if not chosen:
        raise UnknownNameError.of("split", split, named or {"train"}, f"They are those of {str(root)!r}.")
    return chosen


def _folder(root: Path, split: str, streaming: bool, labelled: bool) -> tuple[Any, int, list[str]]:
    """A class per sub-folder, whatever lies between it and its pictures; their paths alone are kept.

    `datasets` has a reader of folders too. It takes a class that is called "train" or "test" for a split, and is silent
    about empty classes and folders that are not equally deep.
    """
    datasets = require("datasets", "train")
    home = _home(root, split, labelled)
    classes = [folder for folder in _folders(home) if labelled]
    suffixes = _picture_suffixes()
    found = [
        (str(file), label)
        for label, folder in enumerate(classes or [home])
        for file in _files(folder)
        if file.suffix.lower() in suffixes
    ]
    if not found or (labelled and not classes):
        raise InputError(
            f"{str(home)!r} has no pictures in sub-folders; put those of each class into a folder that has its name"
        )
    if streaming:  # no class after the other
        found = [found[index] for index in numpy_generator(0).permutation(len(found))]
    paths, labels = zip(*found, strict=True)
    label_type = datasets.ClassLabel(names=[folder.name for folder in classes]) if labelled else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Value("string"), "label": label_type})
    dataset = datasets.Dataset.from_dict({"image": list(paths), "label": list(labels)}, features=features)
    return (dataset.to_iterable_dataset() if streaming else dataset), len(found), list(paths)


def _home(root: Path, split: str, labelled: bool) -> Path:
    """The folder of a split, which is the root itself if that has no folders for splits."""
    splits = [folder.name for folder in _folders(root) if not labelled or any(_folders(folder))]
    if split in splits:
        return root / split
    if split == "train" and not USUAL_SPLITS.intersection(splits):
        return root
    known = splits if USUAL_SPLITS.intersection(splits) else ["train"]
    raise UnknownNameError.of("split", split, known, f"{str(root / split)!r} would have to hold a folder per class.")


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path) -> Iterator[Path]:
    """All files below, but for hidden ones, in the order of their names."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _picture_suffixes() -> set[str]:
    pillow: Any = require("PIL.Image", extra="train")
    return {suffix for suffix, kind in pillow.registered_extensions().items() if kind in pillow.OPEN}
