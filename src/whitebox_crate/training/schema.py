"""Finds the columns of pictures and labels in a data set, and the classes of the labels."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, UnknownNameError, listed, require
from .decoding import Example

IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
LABEL_NAMES = ("label", "labels", "class", "cls", "target", "category")


class Columns:
    """The columns of pictures and labels of a data set, and its classes.

    Args:
        image: Name of the column of pictures.
        label: Name of the column of labels; "" if there are none.
        class_names: The names of the classes, in order.
        stored_names: The data set's names of labels that it stores as numbers; None if a number is the class's index.

    Raises:
        InputError: If there are labels, but fewer than two classes, or two classes of one name.
    """

    def __init__(
        self, image: str, label: str, class_names: Sequence[str], stored_names: Sequence[str] | None = None
    ) -> None:
        self.image, self.label = image, label
        self.class_names, self.stored_names = tuple(class_names), stored_names
        self._indices = {name: index for index, name in enumerate(self.class_names)}
        if label and len(self._indices) < 2:
            raise InputError(f"there is only one class, {listed(self.class_names)}; to tell classes apart takes two")
        if len(self._indices) < len(self.class_names):
            twice = [name for name in self._indices if self.class_names.count(name) > 1]
            raise InputError(f"label_names has {listed(twice)} more than once; give each class a name of its own")

    def index_of(self, label: Any, name: str) -> int:
        """The index of a class.

        Args:
            label: A value of the column of labels.
            name: Name of the image in messages.

        Raises:
            InputError: If the label is none of the classes.
        """
        numbered = self.class_names if self.stored_names is None else self.stored_names
        known: Any = label
        if isinstance(label, int) and 0 <= label < len(numbered):
            known = numbered[label]
        if isinstance(known, str) and known in self._indices:
            return self._indices[known]
        raise InputError(
            f"{name} has the label {label!r}{f' ({known!r})' if known != label else ''}, which is none of the "
            f"{len(self.class_names)} classes {listed(self.class_names)} (0 to {len(self.class_names) - 1}); correct "
            "it, or give label_names that have it"
        )

    def examples(self, rows: Mapping[str, Sequence[Any]], numbers: Iterable[int]) -> list[Example]:
        """Undecoded pictures with their labels, from the columns.

        Raises:
            InputError: If a label is none of the classes.
        """
        pictures = rows[self.image]
        names = [f"image {number} of the stream" for number, _ in zip(numbers, pictures, strict=False)]
        labels = map(self.index_of, rows[self.label], names) if self.label else itertools.repeat(0)
        return [Example(*row) for row in zip(pictures, labels, names, strict=False)]


def image_column_of(features: Mapping[str, Any], asked: str | None) -> str:
    """The column of pictures: the requested one, or the one with `datasets`' type for pictures or a usual name.

    Raises:
        UnknownNameError: If it is asked for and not there.
        InputError: If there is none, or several.
    """
    image = require("datasets", "train").Image
    typed = [name for name, feature in features.items() if isinstance(feature, image)]
    return _column("image", features, asked, typed or list(features), IMAGE_NAMES)


def label_column_of(features: Mapping[str, Any], asked: str | None) -> str:
    """The column of labels: the requested one, or the one with `datasets`' type for classes or a usual name.

    Raises:
        UnknownNameError: If it is asked for and not there.
        InputError: If there is none, or several, or it holds neither whole numbers nor strings.
    """
    class_label = require("datasets", "train").ClassLabel
    typed = [name for name, feature in features.items() if isinstance(feature, class_label)]
    name = _column("label", features, asked, typed or list(features), LABEL_NAMES)
    kind = str(getattr(features[name], "dtype", features[name]))
    if not kind.startswith(("int", "uint", "bool", "string", "large_string")):
        raise InputError(f"column {name!r} holds {kind}; labels are whole numbers or strings: give label_column")
    return name


def _column(what: str, features: Mapping[str, Any], asked: str | None, likely: list[str], usual: Sequence[str]) -> str:
    if asked is not None:
        if asked not in features:
            raise UnknownNameError.of(f"{what}_column", asked, features)
        return asked
    named = [name for name in usual if name in likely]
    if named or (len(likely) == 1 and len(features) > 1):
        return (named or likely)[0]
    raise InputError(f"cannot tell the column of {what}s among {listed(list(features))}; give {what}_column")


def undecoded(dataset: Any, columns: Sequence[str], image: str) -> Any:
    """The data set with only these columns, and pictures as bytes or paths."""
    image_type = require("datasets", "train").Image
    is_typed = isinstance(dataset.features[image], image_type)
    dataset = dataset.select_columns(list(columns))
    return dataset.cast_column(image, image_type(decode=False)) if is_typed else dataset


def labels_of(
    dataset: Any, image: str, label: str, stored_names: Sequence[str] | None, label_names: Sequence[str] | None
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """The labels of all images of a data set that is not streamed, as indices, and the names of the classes.

    Raises:
        InputError: If a label is not a class, there is only one class, or a class outside `label_names` has no image.
    """
    column = dataset.select_columns([label]).with_format("arrow")[:].column(label)
    if column.null_count:
        raise InputError(f"image {column.is_null().index(True)} has no label; give it one, or leave it out")
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    values, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    names = label_names or stored_names or _names_in(values)
    columns = Columns(image, label, names, stored_names)
    indices = [columns.index_of(value, f"image {int((codes == at).argmax())}") for at, value in enumerate(values)]
    labels = np.array(indices, np.int64)[codes]
    if empty := [name for index, name in enumerate(columns.class_names) if index not in set(indices)]:
        says = f"no image has the class {listed(empty)}"
        if label_names is None:
            raise InputError(f"{says}; add images, remove the class (a folder), or name all classes by label_names")
        warnings.warn(says, stacklevel=3)
    return labels, columns.class_names


def _names_in(values: Sequence[Any]) -> list[str]:
    """The classes of labels without names: strings in order, or numbers from 0 on."""
    if any(isinstance(value, str) for value in values):
        return sorted(values)
    numbers = {value for value in values if value >= 0}
    missing = next(number for number in itertools.count() if number not in numbers)
    if missing < len(numbers):
        raise InputError(
            f"labels go up to {max(numbers)}, but no image has the label {missing}; number the classes from 0 on, or "
            "name all by label_names"
        )
    return [str(number) for number in range(missing)]
