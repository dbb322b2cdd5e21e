"""PretrainedCfg: where a set of weights comes from and what images it expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

from .errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LEAST_CROP = 0.01  # a smaller crop shows nothing, and resizing for it takes too much memory
# timm's fields that are constants of `PretrainedCfg`.
SAME_FOR_ALL = ("classifier", "fixed_input_size", "crop_mode", "pool_size")


@dataclass(frozen=True)
class PretrainedCfg(Mapping[str, Any]):
    """Facts about one set of weights. Fields that timm has too mean the same.

    It is also a mapping, so that code for timm can read it: `cfg["mean"]`, `cfg.get("min_input_size")`, `dict(cfg)`.
    Besides the fields below it has fields of timm that are the same for all weights here: `classifier`,
    `fixed_input_size` (models have an option `img_size`), `crop_mode` and `pool_size`.

    Weights lie in one of four places: on the Hub (`hf_hub_id` and `file`), in the package (only `file`), on a page
    from which a person must download them (`url` and `file`), or nowhere (none of these).

    Attributes:
        tag: What follows the dot in `name.tag`; "" for weights that do not exist.
        hf_hub_id: Repository on the Hugging Face Hub, "org/name".
        file: Path of the weights in that repository, or their name in the package or on the page.
        revision: Branch, tag or commit of the repository; "" for its main branch.
        sha256: Hash of the file, in hex, if known; a file that differs is refused.
        url: Page where a person can download the file, if no client library can.
        input_size: (channels, height, width) that the weights were trained with; pixels.
        mean: Mean of each channel, of images scaled to [0, 1].
        std: Standard deviation of each channel, of images scaled to [0, 1].
        interpolation: Pillow's filter for resizing images: "bicubic", "bilinear" or another name.
        crop_pct: Side of the centre crop over the shorter side of the resized image.
        num_classes: Number of classes of the head; 0 if the weights have none.
        label_names: Name of each class, empty if unknown.
        first_conv: Name in the model of the module that reads the pixels, a convolution or a Linear.
        model_args: Options of the model that these weights need and that differ from the architecture's defaults.
        attention_layer: The layer whose [CLS] attention shows objects, if measured.
        attention_head: The head of that layer that shows them best, if measured.
        attention_size: Shorter side of the image, pixels, at which it shows them best, if measured.
        license: Licence of the weights; "" if none is stated.
        origin: Who made the weights, and how.
        paper: The paper that describes them.
        checked: What was tested here: "file" for the weights themselves, "shapes" for a file of the same names and
            shapes, "" for nothing.
        notes: Deviations from the paper, remarks of its authors, and accuracies as they report them.

    Raises:
        InputError: If a field has a value of another kind than its default.
    """

    classifier: ClassVar[str] = "head"
    fixed_input_size: ClassVar[bool] = True
    crop_mode: ClassVar[str] = "center"
    pool_size: ClassVar[None] = None

    tag: str = ""
    hf_hub_id: str = ""
    file: str = ""
    revision: str = ""
    sha256: str = ""
    url: str = ""
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    num_classes: int = 1000
    label_names: tuple[str, ...] = ()
    first_conv: str = "patch_embed.proj"
    model_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    attention_layer: int | None = None
    attention_head: int | None = None
    attention_size: int | None = None
    license: str = ""
    origin: str = ""
    paper: str = ""
    checked: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        for fact in fields(self):
            default = {} if fact.default is MISSING else fact.default
            if not _is_of_kind(getattr(self, fact.name), default):
                raise InputError(f"{fact.name!r} is {getattr(self, fact.name)!r}; expected a value like {default!r}")
        if [type(side) for side in self.input_size] != [int] * 3 or min(self.input_size) < 1 or self.num_classes < 0:
            raise InputError(
                f"'input_size' must be (channels, height, width) and 'num_classes' at least 0, not {self.input_size!r} "
                f"and {self.num_classes}"
            )
        if not LEAST_CROP <= self.crop_pct <= 1:
            raise InputError(f"'crop_pct' must be a share from {LEAST_CROP} to 1, not {self.crop_pct!r:.50}")

    def __iter__(self) -> Iterator[str]:
        yield from (fact.name for fact in fields(self))
        yield from SAME_FOR_ALL

    def __len__(self) -> int:
        return len(fields(self)) + len(SAME_FOR_ALL)

    def __getitem__(self, name: str) -> Any:
        if name not in iter(self):
            raise KeyError(name)
        return getattr(self, name)


def _is_of_kind(value: object, default: object) -> bool:
    """Whether a value can stand where this default does."""
    if default is None:
        return value is None or type(value) is int
    if isinstance(default, Mapping):
        return isinstance(value, Mapping)
    if isinstance(default, tuple):
        kinds = (int, float) if default else (str,)
        return isinstance(value, tuple) and all(type(entry) in kinds for entry in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)
