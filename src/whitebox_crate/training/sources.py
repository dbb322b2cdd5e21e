"""Opens a folder, files or a name on the Hub as a data set of undecoded pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._folders import files_below, folders_in
from .._random import numpy_generator
from ..errors import InputError, UnknownNameError, require
from ..images import image_suffixes
from . import splits
from .shards import check_shards

KINDS = {".parquet": "parquet", ".tar": "webdataset"}
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def find(
    where: str | os.PathLike[str], split: str, streaming: bool, labelled: bool, subset: str | None, revision: str | None
) -> tuple[Any, int | None, list[str]]:
    """Opens the data; for the arguments see `open_images`.

    Returns:
        A `datasets.Dataset` or, if streamed, `IterableDataset`; the number of images, if known; and the files that are
        read, except those of the Hub.

    Raises:
        MissingExtraError: If `datasets` is not installed.
        UnknownNameError: If there is no such split.
        InputError: If nothing can be read.
    """
    require("datasets", "train")
    name, path, (base, part) = os.fspath(where), Path(where), splits.parse(split)
    if part and streaming:
        raise InputError(f"{split!r} is a part of a split, which streamed data do not have: give the whole one")
    kind = _kind_of(path, base) if path.is_dir() else KINDS.get(path.suffix.lower())
    if kind is None and not path.exists() and isinstance(where, str) and HUB_NAME.fullmatch(name):
        return _load(name, split, streaming, name, name=subset, revision=revision), None, []
    if subset or revision:
        raise InputError(f"{name!r} is no name on the Hub, and has no subset {subset!r} or revision {revision!r}")
    if kind == "folder":
        return _folder(splits.folder_of(path, base, labelled), part, streaming, labelled)
    if kind == "imagefolder":
        usual = split.replace(base, splits.meaning(base), 1)
        files = list(map(str, files_below(path)))
        return _load(name, usual, streaming, kind, data_dir=str(path.absolute())), None, files
    if kind is None:
        raise InputError(
            f"{name!r} is not a folder, a .parquet or .tar file, or a name on the Hub ('owner/name'); check the path"
        )
    files = _shards(path, base, kind) if path.is_dir() else _matching(name)
    if kind == "webdataset":
        check_shards([file for file in files if "://" not in file], to_the_end=not streaming)
    # `datasets` has its own meaning of "all".
    given = split.replace("all", "train", 1) if base == "all" else split
    return _load(name, given, streaming, kind, data_files={splits.parse(given)[0]: files}), None, files


def _kind_of(root: Path, split: str) -> str:
    """The kind of the first file of a known kind."""
    homes = [root, *(folder for folder in folders_in(root) if splits.meaning(folder.name) == splits.meaning(split))]
    if any((home / name).is_file() for home in homes for name in METADATA):
        return "imagefolder"
    suffixes = image_suffixes()
    for file in files_below(root):
        if (suffix := file.suffix.lower()) in KINDS:
            return KINDS[suffix]
        if suffix in suffixes:
            return "folder"
    raise InputError(f"{str(root)!r} has no picture, .parquet or .tar file in it; check the path")


def _matching(name: str) -> list[str]:
    """The files of a pattern; a web address stays as it is."""
    if "://" in name:
        return [name]
    files = require("fsspec", "train").filesystem("file").glob(os.path.abspath(name))  # follows no links in circles
    if not files:
        raise InputError(f"{name!r} matches no file; check the path")
    return sorted(files)


def _load(where: str, split: str, streaming: bool, path: str, **source: Any) -> Any:
    datasets = require("datasets", "train")
    try:
        return datasets.load_dataset(path, split=split, streaming=streaming, **source)
    except Exception as error:  # errors of datasets and of the libraries that it reads with
        if isinstance(error, ValueError) and "split" in str(error):
            names = datasets.get_dataset_split_names(path, source.pop("name", None), **source)
            raise UnknownNameError.of("split", split, names, f"They are those of {where!r}.") from error
        reason = error.__cause__ or error
        on_hub = "; it is no folder here, and was looked for on the Hub: look at the name" if path == where else ""
        raise InputError(f"{where!r} cannot be opened: {type(reason).__name__}: {reason}{on_hub}") from error


def _shards(root: Path, split: str, kind: str) -> list[str]:
    """The files whose path has the split's name as a word; all files if no path names a split."""
    root = root.absolute()
    files = [file for file in files_below(root) if KINDS.get(file.suffix.lower()) == kind]
    words = {file: set(re.split("[^a-z]+", str(file.relative_to(root)).lower())) for file in files}
    named = splits.USUAL.keys() & set().union(*words.values())
    if split in ("train", "all") and not named:
        return [str(file) for file in files]
    wanted = splits.meaning(split)
    chosen = [str(file) for file in files if wanted in map(splits.meaning, words[file])]
    if not chosen:
        raise UnknownNameError.of("split", split, named or {"train"}, f"They are those of {str(root)!r}.")
    return chosen


def _folder(home: Path, part: splits.Part | None, streaming: bool, labelled: bool) -> tuple[Any, int, list[str]]:
    """A class per sub-folder, with pictures at any depth. Only their paths are kept.

    A part of a split takes a part of each class, because a folder lists one class after the other. (`datasets` has its
    own reader of folders. It takes a class named "train" or "test" for a split, and ignores empty classes and folders
    of different depth silently.)
    """
    datasets = require("datasets", "train")
    classes = folders_in(home) if labelled else []
    splits.check_classes(classes)
    pictures = _pictures_in(classes or [home])
    found = [(str(file), label) for label, files in enumerate(pictures) for file in (part.of(files) if part else files)]
    if not found or (labelled and not classes):
        raise InputError(
            f"{str(home)!r} has no pictures in sub-folders; put those of each class into a folder that has its name"
        )
    if streaming:  # mix the classes
        found = [found[index] for index in numpy_generator(0).permutation(len(found))]
    paths, labels = zip(*found, strict=True)
    label_type = datasets.ClassLabel(names=[folder.name for folder in classes]) if labelled else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Value("string"), "label": label_type})
    dataset = datasets.Dataset.from_dict({"image": list(paths), "label": list(labels)}, features=features)
    return (dataset.to_iterable_dataset() if streaming else dataset), len(found), list(paths)


def _pictures_in(folders: Sequence[Path]) -> list[list[Path]]:
    """The pictures in each folder and below it.

    Raises:
        InputError: If links lead two classes to the same folder, so that its pictures would belong to both.
    """
    suffixes = image_suffixes()
    pictures = [[file for file in files_below(folder) if file.suffix.lower() in suffixes] for folder in folders]
    owners: dict[str, Path] = {}
    for folder, files in zip(folders, pictures, strict=True):
        for parent in {file.parent for file in files}:
            owner = owners.setdefault(os.path.realpath(parent), folder)
            if owner != folder:
                raise InputError(
                    f"a link makes {str(parent)!r} a folder of {owner.name!r} too: remove it, or leave one class out"
                )
    return pictures
