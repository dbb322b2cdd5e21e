"""From files to masks: images a second by stage, and of the whole, one at a time, by threads and by processes.

    python -m benchmarks.pipeline --photos ecssd --large wallpapers --out benchmarks/pipeline.json
    python -m benchmarks.pages

The first command measures, the second fills docs/segment.md. `--photos` is a folder of images/ and masks/, such as
ECSSD; `--large` is one of large photographs alone, such as those of Debian's mate-backgrounds. crate_nano, method
multiscale, on the processor. The cost of a stage is the processor's time in a photograph, on one thread. The rates of
the whole, and of the slowest stage alone, are by the clock, in turn, each on the same photographs: new ones in each
round. What is written is a mask and its entry in the journal. While other work runs, by a load above 1, nothing is
measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.speed import Setting, environment, say
from whitebox_crate._ahead import in_order
from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table
from whitebox_crate.cli._saving import entry_of, files_of, save
from whitebox_crate.evaluation.attention import score_image, score_maps
from whitebox_crate.evaluation.folders import LabelledImage, read_folder
from whitebox_crate.images import image_files, load_image
from whitebox_crate.preprocess import fit_photo
from whitebox_crate.ready import ready_model
from whitebox_crate.segmentation.edges import choose_edges
from whitebox_crate.segmentation.methods import choose_method
from whitebox_crate.segmentation.states import all_cls_attention
from whitebox_crate.segmenting import Segmentation, segment

Seen = dict[str, Any]  # what is known of a photograph: each stage adds to it
Stage = Callable[[Seen], Seen]
# By name: PyTorch's threads, workers.
WAYS = {"one core": (1, 1), "two cores, one at a time": (2, 1), "two cores, two workers": (2, 2)}
PROCESSES = "two cores, two processes"


class Way(NamedTuple):
    """From a file to its result: as a whole, and its stages."""

    whole: Callable[[Any], object]
    stages: Mapping[str, Stage]


def segmenting(out: Path) -> Way:
    """What `whitebox-crate segment --save mask` does with a photograph."""
    model, find, edges = ready_model("crate_nano", "cpu"), choose_method("multiscale"), choose_edges("colours")

    def write(found: Segmentation) -> None:
        save(found, files_of(out, str(random.getrandbits(60)), ["mask"]), numbered=False)
        entry_of(found)

    def network(seen: Seen) -> Seen:
        with torch.inference_mode():
            return {**seen, "found": find(model, seen["pixels"])}

    def masks(seen: Seen) -> Seen:
        levels, scores, map_, maps = seen["found"]
        pixels = torch.from_numpy(np.array(seen["photo"])).permute(2, 0, 1)
        return {**seen, "segmentation": Segmentation(seen["photo"], edges(levels, pixels), scores, map_, maps)}

    def writing(seen: Seen) -> Seen:
        write(seen["segmentation"])
        return seen

    stages: dict[str, Stage] = {
        "decode": lambda seen: {**seen, "photo": load_image(seen["item"])},
        "resize": lambda seen: {**seen, "pixels": fit_photo(model, seen["photo"]).pixels},
        "network": network,
        "masks": masks,
        "writing": writing,
    }
    return Way(lambda item: write(segment(item, model)), stages)


def evaluating(out: Path) -> Way:
    """What `whitebox-crate evaluate folder` does with a photograph and its mask."""
    model = ready_model("crate_nano", "cpu")

    def whole(pair: LabelledImage) -> None:
        json.dumps([score_image(model, pair), pair.content()])

    def decode(seen: Seen) -> Seen:
        photo, labels = seen["item"].read()
        return {**seen, "photo": photo, "labels": labels}

    def network(seen: Seen) -> Seen:
        with torch.inference_mode():
            return {**seen, "maps": all_cls_attention(model, seen["pixels"][None])[0].float()}

    def writing(seen: Seen) -> Seen:
        found = {label: {rule: of.tolist() for rule, of in by.items()} for label, by in seen["scores"].items()}
        json.dumps([found, seen["item"].content()])
        return seen

    stages: dict[str, Stage] = {
        "decode": decode,
        "resize": lambda seen: {**seen, "pixels": fit_photo(model, seen["photo"]).pixels},
        "network": network,
        "masks": lambda seen: {**seen, "scores": score_maps(seen["maps"], seen["labels"])},
        "writing": writing,
    }
    return Way(whole, stages)


WORK = {"segment": segmenting, "evaluate": evaluating}
_own: list[Way] = []  # of a process of its own


def _begin(work: str, out: Path) -> None:
    torch.set_num_threads(1)
    _own.append(WORK[work](out))


def _run(item: Any) -> None:
    _own[0].whole(item)


def clocked(run: Callable[[], object], count: int) -> float:
    """Photographs a second."""
    began = time.perf_counter()
    run()
    return round(count / (time.perf_counter() - began), 3)


def measure(work: str, items: Sequence[Any], rounds: int, count: int, out: Path) -> dict[str, Any]:
    """Seconds of the processor by stage, and photographs a second of the whole and of the slowest stage, by round."""
    way = WORK[work](out)
    costs: dict[str, list[float]] = {stage: [] for stage in way.stages}
    whole: dict[str, list[float]] = {name: [] for name in (*WAYS, PROCESSES)}
    alone: dict[str, list[float]] = {name: [] for name in WAYS}
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2, _begin, (work, out)) as pool:
        for number in range(-1, rounds):  # the first one warms up
            begin = max(0, number) * count
            shown = [items[index % len(items)] for index in range(begin, begin + count)]
            torch.set_num_threads(1)
            before: dict[str, list[Seen]] = {}
            seen, found = [{"item": item} for item in shown], dict[str, float]()
            for stage, step in way.stages.items():
                before[stage] = seen
                began = time.process_time()
                seen = [step(one) for one in seen]
                found[stage] = round((time.process_time() - began) / count, 6)
            slowest = max(found, key=lambda stage: found[stage])
            rates: dict[str, tuple[float, float]] = {}
            for name, (threads, workers) in WAYS.items():
                torch.set_num_threads(threads)
                ran = clocked(lambda: list(in_order(way.whole, shown, workers)), count)  # noqa: B023
                step = way.stages[slowest]
                rates[name] = ran, clocked(lambda: list(in_order(step, before[slowest], workers)), count)  # noqa: B023
            of_processes = clocked(partial(pool.map, _run, shown, 1), count)
            if number >= 0:
                for stage, seconds in found.items():
                    costs[stage].append(seconds)
                for name, (ran, slow) in rates.items():
                    whole[name].append(ran)
                    alone[name].append(slow)
                whole[PROCESSES].append(of_processes)
                say(f"{work}, round {number}: {found} {rates} {of_processes}")
    return {"photographs": rounds * count, "seconds": costs, "whole": whole, "slowest_alone": alone}


def share(found: dict[str, Any], way: str) -> float:
    """The rate of the whole over that of its slowest stage alone, on the same cores: the median of rounds."""
    rounds = zip(found["whole"][way], found["slowest_alone"][way], strict=True)
    return float(statistics.median(ran / slow for ran, slow in rounds))


def rate(found: dict[str, Any], way: str) -> str:
    """Photographs a second, with the share in brackets. Of processes no stage is measured alone, so they have none."""
    whole = f"{statistics.median(found['whole'][way]):.1f} a second"
    return f"{whole} ({share(found, way):.2f})" if way in found["slowest_alone"] else whole


def table(results: dict[str, Any]) -> str:
    """A column for each case: milliseconds by stage, then photographs a second."""
    cases: dict[str, dict[str, Any]] = results["cases"]
    stages = next(iter(cases.values()))["seconds"]
    lines = [
        [f"{stage}, ms", *(f"{1000 * statistics.median(found['seconds'][stage]):.1f}" for found in cases.values())]
        for stage in stages
    ]
    lines += [[way, *(rate(found, way) for found in cases.values())] for way in (*WAYS, PROCESSES)]
    return markdown_table(["", *cases], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder with images/ and masks/")
    parser.add_argument("--large", type=Path, required=True, help="a folder of large photographs")
    parser.add_argument("--out", type=Path, default=Path("pipeline.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=6, help="photographs of a round (%(default)s)")
    options = parser.parse_args()
    about = environment(Setting("cpu", options.rounds, 2))
    if about["load_before"] > 1:
        parser.error(f"the load is {about['load_before']}: wait until it is at most 1, else other work counts too")
    pairs = [pair for _, pair in read_folder(options.photos).items]
    command = ["python", "-m", "benchmarks.pipeline", "--photos", options.photos.name, "--large", options.large.name]
    about["command"] = shlex.join([*command, "--out", "benchmarks/pipeline.json"])
    results: dict[str, Any] = {"environment": about, "cases": {}}
    plan: dict[str, tuple[str, list[Any], int]] = {
        "segment": ("segment", [pair.image for pair in pairs], options.count),
        "segment, large photographs": ("segment", image_files(options.large), max(2, options.count // 3)),
        "evaluate folder": ("evaluate", pairs, options.count),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (work, items, count) in plan.items():
            results["cases"][name] = measure(work, items, options.rounds, count, Path(folder))
            write_json(options.out, results)
    print(table(results))


if __name__ == "__main__":
    main()
