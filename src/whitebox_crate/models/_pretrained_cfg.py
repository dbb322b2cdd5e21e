"""PretrainedCfg: where a set of weights comes from and what images it expects."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PretrainedCfg:
    """Facts about one set of weights; all fields have the meaning that they have in timm.

    Attributes:
        tag: What follows the dot in `name.tag`; "" for weights that do not exist.
        file: File name of the weights among those that come with the package; "" if there are none.
        input_size: (channels, height, width) the weights were trained with.
        mean: Per channel, of images scaled to [0, 1].
        std: Per channel, of images scaled to [0, 1].
        interpolation: Resampling used on images.
        num_classes: Number of classes of the head.
        label_names: Name of each class, empty if unknown.
        attention_layer: The layer whose [CLS] attention shows objects; the paper's penultimate one if not measured.
        attention_head: The head of it that does so best, if measured.
        attention_size: Shorter side of an image, pixels, at which it does so best, if measured.
        license: Licence of the weights.
        origin: How the weights came about.
    """

    tag: str = ""
    file: str = ""
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    num_classes: int = 1000
    label_names: tuple[str, ...] = ()
    attention_layer: int = -2
    attention_head: int | None = None
    attention_size: int | None = None
    license: str = ""
    origin: str = ""
