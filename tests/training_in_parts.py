"""Runs of the training loop for a test: one process imports what takes seconds, and forks the processes of each run."""

from __future__ import annotations

import copy
import itertools
import os
import random
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import lion_pytorch  # noqa: F401 (as torch._dynamo: here once, or in each process)
import torch
import torch._dynamo
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from labelled_images import make_folder
from PIL import Image
from small_models import FAMILIES, patch_of, small_model

from whitebox_crate._random import torch_generator
from whitebox_crate.errors import WhiteboxCrateError
from whitebox_crate.evaluation import read_folder
from whitebox_crate.layers import ConvStem
from whitebox_crate.models import Crate
from whitebox_crate.training import Batch, Recipe, Validation, train
from whitebox_crate.training.datasets import open_images

CLASSES, SIDE = ("blue", "green", "red"), 12
RECIPE = Recipe(
    **{"steps": 12, "batch_size": 8, "optimizer": "lion", "learning_rate": 3e-3, "curriculum": 0.5},
    **{"sizes": (SIDE,), "size_starts": (0.0,), "flip": True, "crop": "random"},
)
TYPED = 3  # the exit code of a run that ended in an error of the package
PACE = 0.03  # seconds that each batch of a slow source takes at least, so that a kill finds a run at work


def make(**options: Any) -> Crate:
    torch.manual_seed(0)
    small = {
        "img_size": SIDE,
        "patch_size": 6,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": len(CLASSES),
    }
    return Crate(**{**small, **options})


def write_pictures(folder: Path, each: int = 10) -> None:
    """Small JPEGs of three classes, `each` of a class, and the same as parquet in four shards."""
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    for index in range(each * len(CLASSES)):
        label = index % len(CLASSES)
        pixels = torch.rand(20, 16, 3, generator=torch.Generator().manual_seed(index)) * 100
        pixels[..., 2 - label] += 120
        path = folder / "files" / CLASSES[label] / f"{index:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.byte().numpy()).save(path)
        rows["image"].append({"bytes": path.read_bytes(), "path": None})
        rows["label"].append(label)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    table = datasets.Dataset.from_dict(rows, features=features)
    (folder / "shards").mkdir()
    for shard in range(4):
        table.shard(4, shard).to_parquet(folder / "shards" / f"train-{shard:05d}.parquet")


class Squares:
    """Coloured squares over noise, by number, that move further from the middle as they grow harder."""

    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        size, random = size or SIDE, torch_generator(seed, step)
        images = torch.rand(batch_size, 3, size, size, generator=random)
        labels = torch.randint(len(CLASSES), (batch_size,), generator=random)
        places = torch.rand(batch_size, 2, generator=random)
        for image, label, place in zip(images, labels, places, strict=True):
            top, left = (size / 4 + difficulty * (place - 0.5) * size / 2).int().tolist()
            square = image[:, top : top + size // 2, left : left + size // 2]
            square[:] = 0.1
            square[label] = 1
        return Batch(images, labels)


class AtOnce:
    """The batches of so many parts of another source as one."""

    def __init__(self, source: Squares, parts: int) -> None:
        self.source, self.parts = source, parts

    def draw(self, batch_size: int, *, step: int, **options: Any) -> Batch:
        numbers = range(step * self.parts, (step + 1) * self.parts)
        drawn = [self.source.draw(batch_size // self.parts, step=number, **options) for number in numbers]
        return Batch(torch.cat([batch.images for batch in drawn]), torch.cat([batch.labels for batch in drawn]))


def pictures(folder: Path) -> Any:
    return open_images(folder / "files", crop="random", flip=True, size=SIDE)


def streamed(folder: Path) -> Any:
    return open_images(folder / "shards", streaming=True, crop="random", flip=True, size=SIDE, buffer=8)


class Slow:
    """Another source, at a pace that leaves time to be killed."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def draw(self, batch_size: int, **options: Any) -> Batch:
        time.sleep(PACE)
        return self.source.draw(batch_size, **options)


class SlowStream:
    """Another stream, at that pace."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def stream(self, recipe: Recipe, **options: Any) -> Any:
        for batch in self.source.stream(recipe, **options):
            time.sleep(PACE)
            yield batch


class Failing:
    """Another source; something happens before the batch of this number is drawn."""

    def __init__(self, source: Any, at: int, what: Callable[[Batch], Batch]) -> None:
        self.source, self.at, self.what = source, at, what

    def draw(self, batch_size: int, *, step: int, **options: Any) -> Batch:
        batch = self.source.draw(batch_size, step=step, **options)
        return self.what(batch) if step >= self.at else batch


def spoil(batch: Batch) -> Batch:
    return replace(batch, images=batch.images * float("nan"))


def fill_disk(room: int, batch: Batch) -> Batch:
    """From now on no file of this process grows beyond `room` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    return batch


def run(folder: Path, source: Any, recipe: Recipe = RECIPE, model: Crate | None = None, **options: Any) -> None:
    """A run in this process; leaves weights-RANK.pt, or the error of the package that ended it in error-RANK.txt."""
    rank = os.environ.get("RANK", "0")
    try:
        model = train(model or make(), source, recipe, folder, **{"checkpoint_every": 2, "log_every": 1, **options})
        torch.save(dict(model.state_dict()), folder / f"weights-{rank}.pt")
    except WhiteboxCrateError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (folder / f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        raise


def fork(processes: int, task: Callable[[], None]) -> list[int]:
    """Starts `task` in so many processes that find each other as torchrun lets them; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        code = 1
        try:
            if processes > 1:
                places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                os.environ |= {k: str(v) for k, v in places.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            task()
            code = 0
        except WhiteboxCrateError:
            code = TYPED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return children


def wait(children: list[int]) -> list[int]:
    """Exit codes; minus the signal of what was killed."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def complete(processes: int, task: Callable[[], None]) -> None:
    codes = wait(fork(processes, task))
    if any(codes):
        raise SystemExit(f"processes ended with {codes}")


def end_in_an_error(processes: int, task: Callable[[], None]) -> None:
    codes = wait(fork(processes, task))
    if set(codes) != {TYPED}:
        raise SystemExit(f"processes ended with {codes}, and not with an error of the package")


def kill_again_and_again(processes: int, task: Callable[[], None], folder: Path, chance: random.Random) -> None:
    """Kills a run at random moments, twice of them after a checkpoint, and lets it go on to the end."""
    longest, hits = 0.5, 0
    while hits < 2:
        children = fork(processes, task)
        time.sleep(chance.uniform(0.1, longest))
        for child in children:
            os.kill(child, signal.SIGKILL)
        killed = all(code == -signal.SIGKILL for code in wait(children))
        hits += killed and any(folder.glob("checkpoint-0*"))
        longest *= 1.3 if killed and not hits else 0.8  # start-up takes longer, or steps take less
    complete(processes, task)


def share_a_batch(folder: Path) -> None:
    """The same batches in one process in four parts, in two processes in two, and in four processes."""
    write_pictures(folder)
    for optimizer, source in {"adamw": pictures(folder), "lion": Squares()}.items():
        for processes, parts in ((1, 4), (2, 2), (4, 1)):
            recipe = replace(RECIPE, optimizer=optimizer, accumulation=parts, steps=6, clip_norm=1e3)
            complete(processes, partial(run, folder / f"{optimizer}-{processes}", source, recipe))


def kill(folder: Path) -> None:
    """Killed runs of all kinds beside those that were left alone."""
    write_pictures(folder)
    kinds = {
        "drawn": (1, Slow(pictures(folder)), 0),
        "streamed": (1, SlowStream(streamed(folder)), 0),
        "by workers": (1, SlowStream(streamed(folder)), 2),
        "streamed in two": (2, SlowStream(streamed(folder)), 0),
    }
    for name, (processes, source, workers) in kinds.items():
        for left_alone in (True, False):
            out = folder / name / ("whole" if left_alone else "killed")
            task = partial(run, out, source, workers=workers)
            if left_alone:
                complete(processes, task)
            else:
                kill_again_and_again(processes, task, out, random.Random(name))


def fail(folder: Path) -> None:
    """Runs that cannot go on: no room, or a loss or a gradient that is no number."""
    alone = Squares()
    complete(1, partial(run, folder / "whole", alone))
    for name, room in {"optimizer": 20_000, "weights": 10_000, "line": 10}.items():
        source = Failing(alone, 5, partial(fill_disk, room))
        end_in_an_error(1, partial(run, folder / name, source))
        complete(1, partial(run, folder / name, alone))
    end_in_an_error(2, partial(run, folder / "loss", Failing(alone, 9, spoil)))
    end_in_an_error(1, partial(run_with_a_bad_gradient, folder / "gradient", alone))


def run_with_a_bad_gradient(folder: Path, source: Any) -> None:
    """The sixth gradient is no number, and all losses are."""
    model, steps = make(), itertools.count(1)
    model.head.weight.register_hook(lambda gradient: gradient * (float("nan") if next(steps) == 6 else 1))
    run(folder, source, model=model)


def shard(folder: Path) -> None:
    """Weights shared out by FSDP, beside those of DDP, also after a stop."""
    os.environ |= {"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "CrateBlock"
    source, recipe = Squares(), replace(RECIPE, steps=5, accumulation=2)
    complete(2, partial(run, folder / "whole", source, recipe))
    complete(2, partial(sharded, run, folder / "sharded", source, recipe))
    complete(2, partial(sharded, run, folder / "in turns", source, recipe, stop_at=3))
    complete(2, partial(sharded, run, folder / "in turns", source, recipe))


def train_every_family(out: Path, pictures: Path, parts: int, go: Callable[..., None]) -> None:
    """A short run of each family by its objectives, all in one process of a run; what looks is shared out too."""
    validation = Validation(None, every=2, masks=read_folder(pictures))
    for family, name in FAMILIES.items():
        side = 2 * patch_of(name)
        model = small_model(name, depth=2, img_size=side, num_classes=len(CLASSES), dynamic_img_size=True)
        recipe = replace(RECIPE, steps=2, accumulation=parts, optimizer="adamw", clip_norm=1e3, sizes=(side,))
        source: Any = Squares()
        if isinstance(model.patch_embed, ConvStem):  # BatchNorm sees at once what several processes do
            source, recipe = AtOnce(source, parts), replace(recipe, accumulation=1)
        os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = type(model.blocks[0]).__name__
        for objective in ("supervised", "mae") if family == "mae" else ("supervised",):
            folder = out / f"{family} {objective}"
            options: dict[str, Any] = {"checkpoint_every": 9, "validation": validation}
            AcceleratorState._reset_state(reset_partial_state=True)
            go(folder, source, replace(recipe, objective=objective), copy.deepcopy(model), **options)


def families(folder: Path) -> None:
    """Every family in one process, in two by copies, and in two by shards; three images with masks go over two."""
    make_folder(folder / "data", count=3)
    os.environ |= {"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    for name, processes in {"alone": 1, "copies": 2}.items():
        complete(processes, partial(train_every_family, folder / name, folder / "data", 2 // processes, run))
    complete(2, partial(train_every_family, folder / "shards", folder / "data", 1, partial(sharded, run)))


def sharded(task: Callable[..., None], *args: Any, **options: Any) -> None:
    """A task by FSDP on the CPU, for which accelerate takes DDP."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    task(*args, **options)


TASKS = {task.__name__: task for task in (share_a_batch, kill, fail, shard, families)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    TASKS[sys.argv[1]](Path(sys.argv[2]))
