"""From files to masks: the stages one after the other do what the whole does."""

from __future__ import annotations

from pathlib import Path

import torch
from labelled_images import make_folder

from benchmarks.pipeline import evaluating, segmenting
from whitebox_crate.evaluation import read_folder
from whitebox_crate.evaluation.attention import score_image
from whitebox_crate.ready import ready_model
from whitebox_crate.segmenting import segment


def test_the_stages_make_the_whole(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    [(_, pair)] = read_folder(tmp_path).items
    for way, item in ((segmenting(tmp_path), pair.image), (evaluating(tmp_path), pair)):
        seen = {"item": item}
        for stage in way.stages.values():
            seen = stage(seen)
        way.whole(item)
        if "segmentation" in seen:
            assert torch.equal(seen["segmentation"].masks, segment(pair.image, "crate_nano", device="cpu").masks)
        else:
            wanted = score_image(ready_model("crate_nano", "cpu"), pair)
            for label, rules in seen["scores"].items():
                assert {rule: of.tolist() for rule, of in rules.items()} == wanted[str(label)]
