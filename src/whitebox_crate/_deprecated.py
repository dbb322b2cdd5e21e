"""One table of names that have changed. Old names still work, with a DeprecationWarning that gives the new name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

PACKAGE = __name__.rpartition(".")[0]

# Old module -> the new ones that hold its names, inside the package.
MODULES: dict[str, tuple[str, ...]] = {
    "adapt": ("_fitting", "loading"),
    "checkpoints": ("convert.files",),
    "analysis.statistics": ("analysis.moments",),
    "inference": ("fold",),
    "layers.embed": ("layers.patch_embed", "layers.pos_embed"),
    "models.variants": ("variants",),
    "segmentation.attention_eval": ("evaluation.attention", "evaluation.summaries"),
    "segmentation.coco": ("evaluation.coco", "evaluation.maskcut"),
    "segmentation.curves": ("evaluation.noise", "evaluation.summaries"),
    "segmentation.datasets": ("evaluation.folders",),
    "segmentation.records": ("evaluation.records",),
}
# Old name -> new name, inside the package.
NAMES: dict[str, str] = {
    "convert.convert": "convert.convert_checkpoint",
    "loading.read_json": "_files.read_json",
    "loading.weightless": "loading.meta_init",
    "preprocess.load_image": "images.load_image",
    "preprocess.reading": "images.reading",
    "segmentation.attention_eval.tables": "evaluation.summary_tables",
    "segmentation.coco.score": "evaluation.average_precision",
    "segmentation.curves.generator_of": "_random.torch_generator",
    "segmentation.pca.patch_features": "segmentation.patch_features",
    "training.Images": "training.ImageDataset",
    "training.StreamedImages": "training.StreamedImageDataset",
    "training.publish": "training.push_to_hub",
}
# Old architecture -> new architecture, as `create_model` takes them.
ARCHITECTURES: dict[str, str] = {}


def _warn(old: str, new: str, stacklevel: int = 3) -> None:
    warnings.warn(f"{old} is now {new}; the old name will be removed", DeprecationWarning, stacklevel=stacklevel)


def current_architecture(name: str) -> str:
    """The name that an architecture has now."""
    if name in ARCHITECTURES:
        _warn(f"the model {name!r}", repr(ARCHITECTURES[name]))
        return ARCHITECTURES[name]
    return name


def moved_names(module: str, stacklevel: int = 3) -> Callable[[str], Any]:
    """The `__getattr__` of a module from which names have moved.

    Args:
        module: Its `__name__`.
        stacklevel: See `warnings.warn`; 4 if a function of the module's own lies between.
    """

    def find(name: str) -> Any:
        old = f"{module.removeprefix(PACKAGE + '.')}.{name}"
        if old not in NAMES:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = NAMES[old].rpartition(".")
        _warn(f"{PACKAGE}.{old}", f"{PACKAGE}.{NAMES[old]}", stacklevel)
        return getattr(import_module(f"{PACKAGE}.{home}"), new)

    return find


class MovedModules(MetaPathFinder, Loader):
    """Finds modules by their old names, after all other finders have failed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A stand-in for a module that has moved."""
        return spec_from_loader(fullname, self) if fullname.removeprefix(PACKAGE + ".") in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Makes the stand-in look its names up in the new modules."""
        homes = [f"{PACKAGE}.{home}" for home in MODULES[module.__name__.removeprefix(PACKAGE + ".")]]
        _warn(module.__name__, " and ".join(homes))
        moved = moved_names(module.__name__, stacklevel=4)

        def find(name: str) -> Any:
            for home in homes:
                if hasattr(found := import_module(home), name):
                    return getattr(found, name)
            return moved(name)  # or raises AttributeError

        vars(module)["__getattr__"] = find
        public = [name for home in homes for name in vars(import_module(home)) if not name.startswith("_")]
        vars(module)["__all__"] = sorted(set(public))


def install() -> None:
    """Makes old modules importable."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
