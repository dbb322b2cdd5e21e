"""Classes of a model's head: by name or index, one for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from .._indices import resolve_index
from ..errors import InputError, UnknownNameError
from ..pretrained_cfg import PretrainedCfg

Class: TypeAlias = int | str  # index or name


class Classifier(Protocol):
    """A model whose classes can be looked up."""

    @property
    def num_classes(self) -> int:
        """Number of logits for each image; 0 if there are none."""

    @property
    def global_pool(self) -> str:
        """Which tokens the head reads; "" if it has an output for each token."""

    @property
    def pretrained_cfg(self) -> PretrainedCfg:
        """The facts about the weights, with the names of the classes."""


def classifies(core: Classifier) -> bool:
    """Whether the model gives one logit for each image and class."""
    return bool(core.num_classes and core.global_pool)


def check_classifies(core: Classifier) -> None:
    """Raises InputError unless the model `classifies`."""
    if not classifies(core):
        raise InputError(
            f"this needs one logit for each image and class, but the model has {core.num_classes} classes and "
            f"the pooling {core.global_pool!r}; see reset_classifier"
        )


def class_names(core: Classifier) -> tuple[str, ...]:
    """The names of the head's classes, in order. Unknown names are "class 0", "class 1" and so on."""
    names = core.pretrained_cfg.label_names
    return names if len(names) == core.num_classes else tuple(f"class {index}" for index in range(core.num_classes))


def class_index(core: Classifier, class_: Class) -> int:
    """The index of a class, counted from 0, from its name or its index. An index may be text, or negative from the end.

    Raises:
        UnknownNameError: If there is no such class; the message lists close matches.
        InputError: If `class_` is not text or an integer, several classes have the name, or there are no classes.
    """
    check_classifies(core)
    if not isinstance(class_, str):
        return resolve_index("class", class_, core.num_classes)
    found = [index for index, name in enumerate(class_names(core)) if name == class_]
    if len(found) > 1:
        raise InputError(f"{len(found)} classes are named {class_!r}: {found}; give the index of one of them")
    if not found and class_.removeprefix("-").isdecimal():
        return class_index(core, int(class_))
    if not found:
        raise UnknownNameError.of("class", class_, class_names(core), "An index is fine too.")
    return found[0]


def class_indices(core: Classifier, classes: Class | Sequence[Class] | Tensor, batch: int) -> Tensor:
    """One class for each image, int64 (batch,).

    Args:
        core: A model that classifies.
        classes: One class for all images, or one for each image.
        batch: Number of images.

    Raises:
        InputError: If the number of classes does not fit; or see `class_index`.
        UnknownNameError: If there is no such class.
    """
    listed: Any = classes.tolist() if isinstance(classes, Tensor) else classes
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        return torch.full((batch,), class_index(core, listed))
    if len(listed) != batch:
        raise InputError(f"give one class for all {batch} images, or {batch} classes, not {len(listed)}")
    return torch.tensor([class_index(core, one) for one in listed])
