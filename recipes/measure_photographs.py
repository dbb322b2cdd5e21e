"""Measures how well [CLS] attention finds objects in photographs with masks. No training has seen these.

    python -m recipes.measure_photographs --data ECSSD --model crate_nano --out results.json
    python -m recipes.measure_photographs --data ECSSD --model local-dir:runs/vit_nano/model --out results.json

DATA holds images/ and masks/, as for `whitebox-crate evaluate folder`. Photographs are sorted by name and counted from
0. Layers and heads are chosen on the even photographs (the first half), and reported on the odd ones (the second half).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.provenance import provenance
from whitebox_crate import ImageTransformer, create_model
from whitebox_crate._files import write_json
from whitebox_crate.errors import InputError
from whitebox_crate.evaluation.folders import LabelledImage, read_folder
from whitebox_crate.preprocess import fit_photo
from whitebox_crate.segmentation import all_cls_attention, attention_masks, mask_iou, upsample

BOX = 0.6  # side of the centred box / side of the photograph
FROM_LAYER = 2  # the average over layers starts here


@dataclass(frozen=True)
class Scores:
    """IoU of each photograph, in pixels.

    Attributes:
        heads: (photographs, layers, heads), masks from single heads.
        layers: (photographs, layers), masks from the average of a layer's heads, each map scaled to sum 1.
        average: (photographs,), masks from the average of all heads of layers from `FROM_LAYER` on.
        box: (photographs,), a box in the middle.
    """

    heads: Tensor
    layers: Tensor
    average: Tensor
    box: Tensor

    def part(self, which: slice) -> Scores:
        """The scores of some photographs."""
        return Scores(self.heads[which], self.layers[which], self.average[which], self.box[which])


def halves(count: int) -> dict[str, slice]:
    """The photographs, sorted by name, to choose on and to report on."""
    return {"choose": slice(0, count, 2), "report": slice(1, count, 2)}


def score(model: ImageTransformer, pairs: Sequence[LabelledImage], short_side: int) -> Scores:
    """Scores a model that takes images of any size. Everything in a mask except background is the object.

    Args:
        model: The model, in evaluation mode.
        pairs: Photographs with masks.
        short_side: Shorter side of the photographs that the model sees, pixels.

    Raises:
        InputError: If there is no photograph, or a file cannot be read.
    """
    if not pairs:
        raise InputError("no photograph to measure on; expected one or more")
    heads, layers, average, box = [], [], [], []
    for pair in pairs:
        image, labels = pair.read()
        target, size = labels > 0, (labels.shape[0], labels.shape[1])
        maps = maps_of(model, image, short_side)
        by_layer = maps.mean(1)
        heads.append(_ious(maps, target, size))
        layers.append(_ious(by_layer, target, size))
        average.append(_ious(by_layer[FROM_LAYER:].mean(0), target, size))
        box.append(mask_iou(centred_box(size), target))
    return Scores(torch.stack(heads), torch.stack(layers), torch.stack(average), torch.stack(box))


@torch.inference_mode()
def maps_of(model: ImageTransformer, image: Any, short_side: int) -> Tensor:
    """[CLS] attention for a Pillow image, each map scaled to sum 1; (layers, heads, grid_h, grid_w)."""
    maps = all_cls_attention(model, fit_photo(model, image, short_side).pixels[None])[0]
    return maps / maps.sum((-2, -1), keepdim=True)


def centred_box(size: tuple[int, int]) -> Tensor:
    """A box of `BOX` of each side in the middle; bool (height, width)."""
    box = torch.zeros(size, dtype=torch.bool)
    top, left = (round(length * (1 - BOX) / 2) for length in size)
    box[top : size[0] - top, left : size[1] - left] = True
    return box


@dataclass(frozen=True)
class Choice:
    """The choices made on the first half of the photographs.

    Attributes:
        layer: The layer of `head`.
        head: The one head for all photographs.
        layer_of_means: The layer with the best average of heads.
        layer_of_best: The layer whose best head of each image is best.
        one_map: The best of the maps of `for_all`.
    """

    layer: int
    head: int
    layer_of_means: int
    layer_of_best: int
    one_map: str = ""

    @classmethod
    def on(cls, scores: Scores) -> Choice:
        """The best choices on these photographs."""
        by_head = scores.heads.mean(0)
        layer, head = divmod(int(by_head.argmax()), by_head.shape[1])
        best = scores.heads.amax(-1).mean(0)
        choice = cls(layer, head, int(scores.layers.mean(0).argmax()), int(best.argmax()))
        means = {kind: float(values.mean()) for kind, values in choice.for_all(scores).items()}
        return replace(choice, one_map=max(means, key=lambda kind: means[kind]))

    def for_all(self, scores: Scores) -> dict[str, Tensor]:
        """IoU, (photographs,), of each map that uses the same heads for all photographs."""
        return {
            "one_head": scores.heads[:, self.layer, self.head],
            "mean_of_one_layer": scores.layers[:, self.layer_of_means],
            "mean_of_layers": scores.average,
        }


def summary(scores: Scores) -> dict[str, Any]:
    """All numbers, by half of the photographs. Choices for all photographs were made on the first half."""
    parts = {name: scores.part(which) for name, which in halves(len(scores.box)).items()}
    choice = Choice.on(parts["choose"])
    return {"chosen_on_first_half": asdict(choice)} | {name: _numbers(part, choice) for name, part in parts.items()}


def _numbers(scores: Scores, choice: Choice) -> dict[str, Any]:
    of_all = choice.for_all(scores)
    return {
        "photographs": len(scores.box),
        "one_map": interval(of_all[choice.one_map]),
        **{kind: interval(values) for kind, values in of_all.items()},
        "best_head_of_each_image": interval(scores.heads.flatten(1).amax(-1)),
        "best_head_of_each_image_in_one_layer": interval(scores.heads[:, choice.layer_of_best].amax(-1)),
        "centred_box": interval(scores.box),
        "by_layer_and_head": [[round(x, 4) for x in row] for row in scores.heads.mean(0).tolist()],
        "best_head_by_layer": [round(x, 4) for x in scores.heads.amax(-1).mean(0).tolist()],
        "mean_by_layer": [round(x, 4) for x in scores.layers.mean(0).tolist()],
    }


def interval(values: Tensor) -> list[float]:
    """Mean over photographs, and half the width of its 95% interval."""
    return [round(float(values.mean()), 4), round(1.96 * float(values.std() / len(values) ** 0.5), 4)]


def _ious(maps: Tensor, target: Tensor, size: tuple[int, int]) -> Tensor:
    return mask_iou(upsample(attention_masks(maps, rule="mean"), size), target)


def parser_of(about: str) -> argparse.ArgumentParser:
    """The options of everything that measures a model on photographs."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with images/ and masks/")
    add("--model", default="crate_nano", help="name, name.tag or local-dir:PATH")
    add("--size", type=int, default=144, help="shorter side for the model, pixels (%(default)s)")
    add("--every", type=int, default=1, help="use only every N-th pair of photographs, for a quick look")
    add("--out", type=Path, required=True)
    return parser


def photographs(options: argparse.Namespace) -> list[LabelledImage]:
    """The photographs of --data, sorted by name. A pair has one for each half, so --every thins both alike."""
    pairs = enumerate(pair for _, pair in read_folder(options.data).items)
    return [pair for index, pair in pairs if index // 2 % options.every == 0]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--untrained", action="store_true", help="use fresh weights, from the seed")
    parser.add_argument("--seed", type=int, default=0, help="seed of fresh weights; nothing else is random")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = create_model(options.model, pretrained=not options.untrained, dynamic_img_size=True).eval()
    results = {
        "model": options.model,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "size": options.size,
        "seed": options.seed,
        **provenance("recipes.measure_photographs"),
        **summary(score(model, photographs(options), options.size)),
    }
    write_json(options.out, results)
    for half in halves(0):
        print(half, {k: v for k, v in results[half].items() if k != "by_layer_and_head"})
    print(results["chosen_on_first_half"], options.out)


if __name__ == "__main__":
    main()
