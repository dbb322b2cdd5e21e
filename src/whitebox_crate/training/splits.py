"""Splits of a data set: their usual names in any spelling, and parts of a split such as train[:80%]."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from .._folders import folders_in
from ..errors import InputError, UnknownNameError, listed

T = TypeVar("T")

# Usual names, in lower case, and their meaning.
USUAL = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SPELT = re.compile(rf"(?P<prefix>[a-z0-9]+[-_ ])?(?P<name>{'|'.join(USUAL)})(?:[-_ ]?(?:set|data|images|\d+))*")
_PART = re.compile(r"(?P<split>[^\[\]]*)\[(?P<first>-?\d+%?)?:(?P<last>-?\d+%?)?\]")


class Part(NamedTuple):
    """A range like a slice: each bound is "" (the end), a number, or a share such as "80%"; negative from the end."""

    first: str
    last: str

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """This part of the items."""
        bounds = [self._place(text, len(items)) for text in self]
        return items[slice(*bounds)]

    @staticmethod
    def _place(text: str, count: int) -> int | None:
        if not text:
            return None
        place = round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)
        return max(0, count + place) if text.startswith("-") else place


def parse(split: str) -> tuple[str, Part | None]:
    """The name of a split, and the requested part of it.

    Raises:
        InputError: If the brackets are not a part.
    """
    if found := _PART.fullmatch(split):
        return found["split"], Part(found["first"] or "", found["last"] or "")
    if "[" in split and "+" not in split:
        raise InputError(f"{split!r} is no part of a split; that is written as train[:80%], train[80%:] or train[:100]")
    return split, None


def meaning(name: str) -> str:
    """The usual name of a split: "train", "validation", "test", or the name in lower case."""
    return USUAL.get(name.lower(), name.lower())


def folder_of(root: Path, split: str, labelled: bool) -> Path:
    """The folder of a split: the one with its name below the root, or the root if it has no folders for splits.

    Args:
        root: Folder of the data.
        split: The split (see `open_images`), without a part.
        labelled: Whether each folder of a split has a folder for each class.

    Raises:
        UnknownNameError: If there is no such split.
        InputError: If several folders fit.
    """
    names = [folder.name for folder in folders_in(root) if not labelled or any(folders_in(folder))]
    usual = _usual_among(names)
    exact = [name for name in names if name == split] or [name for name in names if name.lower() == split.lower()]
    found = exact or [name for name, means in usual.items() if means == meaning(split)]
    if len(found) > 1:
        raise InputError(f"{str(root)!r} has {listed(found)} for the split {split!r}: name one of them")
    if found:
        return _innermost(root / found[0])
    if split in ("train", "all") and not usual:
        return root
    raise UnknownNameError.of(
        "split", split, names if usual else ["train"], f"{str(root / split)!r} would have to hold a folder per class."
    )


def check_classes(classes: Sequence[Path]) -> None:
    """Refuses folders that look like splits in place of classes.

    Raises:
        InputError: If the only folder has folders inside, or all folders have the same ones inside.
    """
    if len(classes) == 1 and (inner := [folder.name for folder in folders_in(classes[0])]):
        raise InputError(
            f"{str(classes[0].parent)!r} has one folder, and {str(classes[0])!r} has {listed(inner)}: if these are the "
            "classes, or splits, give that one"
        )
    shared = _shared(classes) if len(classes) > 1 else []
    if len(shared) > 1:
        raise InputError(
            f"{listed([folder.name for folder in classes])} all hold folders {listed(shared)}: they are splits rather "
            f"than classes. Give one of them, as {str(classes[0])!r}, or call them train, validation and test; if they "
            "are classes, put their pictures into them without these folders"
        )


def _usual_among(names: Iterable[str]) -> dict[str, str]:
    """The folders named like splits, and their meaning. Prefixed names (seg_train) count only with several splits."""
    spelt = {name: match for name in names if (match := _SPELT.fullmatch(name.lower()))}
    several = len({USUAL[match["name"]] for match in spelt.values()}) > 1
    return {name: USUAL[match["name"]] for name, match in spelt.items() if several or not match["prefix"]}


def _innermost(folder: Path) -> Path:
    """The inner folder if a folder holds only one of its name (seg_train/seg_train, as in archives); else itself."""
    inner = folders_in(folder)
    same = len(inner) == 1 and inner[0].name.lower() == folder.name.lower() and any(folders_in(inner[0]))
    return _innermost(inner[0]) if same else folder


def _shared(folders: Sequence[Path]) -> list[str]:
    """The names of the folders inside each of these folders."""
    common = {inner.name for inner in folders_in(folders[0])}
    for folder in folders[1:]:
        if not common:
            break
        common &= {inner.name for inner in folders_in(folder)}
    return sorted(common)
