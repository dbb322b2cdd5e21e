"""[CLS] attention over a data set: a record for every image, and the paper's numbers from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from torch import nn

from .._plan import layers_with
from .._random import torch_generator
from ..errors import InputError
from ..preprocess import best_short_side
from ..segmentation.attention import MaskRule
from .attention import RULES, Record, row_of, score_image
from .folders import LabelledImage, LabelledImages
from .noise import Noise, noisy
from .records import JSON, Records
from .runs import Outcome, Run, broken_images, left_out, model_settings, names_digest
from .summaries import summarize, summary_tables


def evaluate_attention(
    run: Run,
    model: nn.Module,
    data: LabelledImages,
    *,
    name: str,
    size: int | None = None,
    layer: int | None = None,
    rules: Sequence[MaskRule] = RULES,
    keep: float = 0.6,
    by_class: bool = True,
) -> Outcome | None:
    """mIoU of [CLS] attention over a data set, by layer, head and class (arXiv 2308.16271, appendix B.3).

    Writes results.json and results.md.

    Args:
        run: Where results go.
        model: A model that `capture` reads, on its device.
        data: The images; see `read_voc` and `read_folder`.
        name: Name of the model in the results.
        size: See `score_image`.
        layer: Layer for the table by class; `default_layer` of the model if None.
        rules: See `score_image`.
        keep: See `score_image`.
        by_class: Whether labels mean the same in all images; else they number the objects of an image.

    Returns:
        The outcome, with the numbers of `summarize`; None in processes other than the main one.

    Raises:
        InputError: If files are missing or broken, a label is not a class, or an argument is not as above.
        UnknownNameError: If there is no such layer or rule, or the layer has no attention.
        WeightsError: If the model's attention is not finite.
        OutputError: If a record or result cannot be written.
        ProcessError: If another process failed.

    Example:
        >>> from pathlib import Path
        >>> model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
        >>> found = evaluate_attention(Run(Path("scores")), model, read_folder("data"), name="crate_nano", size=48)
        >>> sorted(path.name for path in Path("scores").glob("results.*"))
        ['results.json', 'results.md']
    """
    run.check_files(data.check_files)
    layers, size = layers_with(model, "attention"), best_short_side(model) if size is None else size
    layer = layers[row_of(model, layer)]
    class_names = data.class_names if by_class else None
    records = measure_attention(run, model, data, name=name, size=size, rules=rules, keep=keep, class_names=class_names)
    if not records.is_main:
        return None
    broken = broken_images(records, len(data.items))
    found = summarize(records.items(), layer=layer, by_class=by_class, layers=layers)
    title = f"{name}, {found['images']} images at {size} pixels"
    if found["images_without_objects"]:
        title += f"; {found['images_without_objects']} more have no object"
    results = {"settings": records.settings, **found, "broken": broken}
    return run.write(results, f"{title}{left_out(broken)}\n\n{summary_tables(found)}")


def measure_attention(
    run: Run,
    model: nn.Module,
    data: LabelledImages,
    *,
    name: str,
    size: int | None = None,
    rules: Sequence[MaskRule] = RULES,
    keep: float = 0.6,
    class_names: Mapping[int, str] | None = None,
    noise: Noise | None = None,
    part: str = "",
) -> Records:
    """Records `score_image` for every image of a data set, under noise if given.

    For the other arguments and the errors see `evaluate_attention`, `score_image` and `Run.measure`.
    """
    if not 0 < keep <= 1:
        raise InputError(f"keep must be a share in (0, 1], not {keep}")
    size = best_short_side(model) if size is None else size
    settings: dict[str, JSON] = {
        "measurement": "attention",
        "void": data.void,
        "classes": class_names,
        "images": names_digest([image for image, _ in data.items]),
        **model_settings(model, name, size),
        "rules": rules,
        "keep": keep,
        **({} if noise is None else {"noise": noise}),  # older records without noise do not name it
    }

    def score(item: tuple[str, LabelledImage]) -> Record:
        image, pair = item
        seen = nullcontext() if noise is None else noisy(model, *noise[:2], torch_generator(noise.seed, image))
        with seen:
            return score_image(model, pair, size=size, rules=rules, keep=keep, void=data.void, class_names=class_names)

    def content(item: tuple[str, LabelledImage]) -> str:
        return item[1].content()

    return run.measure(settings, [(image, (image, pair)) for image, pair in data.items], score, content, part)
