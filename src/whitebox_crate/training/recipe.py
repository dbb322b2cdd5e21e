"""The minimal supervised recipe: cross-entropy, Lion or AdamW, cosine with warm-up, exact resume.

After arXiv 2308.16271, Appendix B. Added for small transformers: label smoothing, clipping, and a curriculum in which
the task grows from easy to full difficulty and the images grow too. Accelerate does devices, processes and precision.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from ..errors import InputError, OutputError, UnknownNameError, WeightsError, require
from ..hub import write_whole
from ..models import ImageTransformer
from .composites import Batch

PRECISIONS = ("no", "bf16", "fp16")


class Source(Protocol):
    """Where batches come from: a pure function of its arguments, so that a resumed run sees the same images."""

    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        """One batch of `batch_size` images, `size` pixels wide."""


@dataclass(frozen=True)
class Recipe:
    """Every number that a run depends on; the defaults are those that `crate_nano` was trained with.

    Attributes:
        steps: Optimiser steps.
        batch_size: Images per step and process.
        optimizer: "lion" (as in the paper) or "adamw".
        learning_rate: At its peak.
        weight_decay: On matrices; biases, norms, [CLS] and positions have none.
        warmup: Share of the steps in which the learning rate rises.
        label_smoothing: Of the cross-entropy.
        clip_norm: Largest norm of the gradient.
        curriculum: Share of the steps in which difficulty rises from 0 to 1.
        sizes: Side of the images in pixels, one after the other.
        size_starts: Share of the steps after which each of `sizes` begins.
        precision: "no" for float32, or "bf16" or "fp16" autocast.
        seed: Of the weights, when the command line makes them, and of the data.
    """

    steps: int = 6000
    batch_size: int = 32
    optimizer: Literal["lion", "adamw"] = "lion"
    learning_rate: float = 2.8e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    curriculum: float = 0.45
    sizes: tuple[int, ...] = (48, 72, 96)
    size_starts: tuple[float, ...] = (0.0, 0.55, 0.8)
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise InputError(f"steps and batch_size are at least 1, not {self.steps} and {self.batch_size}")
        starts = self.size_starts
        if len(self.sizes) != len(starts) or not starts or starts[0] != 0 or list(starts) != sorted(starts):
            raise InputError(f"sizes {self.sizes} need one start each, from 0 upwards; size_starts is {starts}")
        if self.precision not in PRECISIONS:
            raise UnknownNameError.of("precision", self.precision, PRECISIONS)

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero; a function of the step alone, so that nothing is to be resumed."""
        done, warmup = (step + 1) / self.steps, max(self.warmup, 1 / self.steps)
        if done <= warmup:
            return self.learning_rate * done / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1 - warmup, 1e-9)))

    def difficulty_at(self, step: int) -> float:
        """Rises from 0 to 1 over the first `curriculum` of the steps."""
        return min(1.0, step / max(1.0, self.curriculum * self.steps))

    def size_at(self, step: int) -> int:
        """Side of the images at this step, in pixels."""
        begun = sum(step >= start * self.steps for start in self.size_starts)
        return self.sizes[begun - 1]


def make_optimizer(model: ImageTransformer, recipe: Recipe) -> torch.optim.Optimizer:
    """Lion or AdamW with weight decay on matrices only.

    Raises:
        MissingExtraError: If Lion is asked for and lion-pytorch is not installed.
        UnknownNameError: If the optimiser is neither of the two.
    """
    exempt = model.no_weight_decay()
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and n not in exempt]
    plain = [p for n, p in model.named_parameters() if p.ndim <= 1 or n in exempt]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "lion":
        lion: torch.optim.Optimizer = require("lion_pytorch", "train").Lion(groups, lr=recipe.learning_rate)
        return lion
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    raise UnknownNameError.of("optimizer", recipe.optimizer, ("lion", "adamw"))


def train(
    model: ImageTransformer,
    source: Source,
    recipe: Recipe,
    out: str | Path,
    *,
    checkpoint_every: int = 250,
    log_every: int = 25,
    stop_at: int | None = None,
) -> ImageTransformer:
    """Trains a model, in place, and writes checkpoints; called again with the same `out`, it goes on where it was.

    A run that was killed and called again ends with the same weights, bit for bit, as one that was not.

    Args:
        model: The model. Its weights are replaced if `out` holds a checkpoint.
        source: Where batches come from.
        recipe: The numbers.
        out: Folder for `checkpoint-STEP/` (the last one is kept) and `log.jsonl`.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of progress.
        stop_at: Ends the call after this step, as if killed, for doing a run in parts.

    Returns:
        The same model, on the device where it was trained.

    Raises:
        MissingExtraError: If accelerate or the optimiser is not installed.
        WeightsError: If `out` holds a checkpoint of another recipe or model, or a broken one.
        OutputError: If `out` cannot be written.
        InputError: If the model is folded or does not take images of the recipe's sizes, accelerate does not take its
            precision, a number of steps is not positive, or the loss stops being a number.
    """
    if min(checkpoint_every, log_every) < 1:
        raise InputError(f"checkpoint_every and log_every are at least 1, not {checkpoint_every} and {log_every}")
    if model.folded:
        raise InputError("a folded model is not trained: train the model that it was folded from")
    for size in recipe.sizes:  # now, not when their turn comes
        model.grid_of(torch.empty(1, model.in_chans, size, size, device="meta"))
    accelerator = _make_accelerator(recipe)
    made = make_optimizer(model, recipe)
    folder = _make_folder(Path(out))
    wrapped, optimizer = accelerator.prepare(model, made)
    log = _Log(folder / "log.jsonl", recipe.steps, accelerator.is_main_process)
    last = recipe.steps if stop_at is None else min(recipe.steps, stop_at)
    try:
        run = _describe(model, recipe, accelerator)
        step = _resume(accelerator, folder, run)
        log.cut(step)
        wrapped.train()
        while step < last:
            batch = source.draw(
                recipe.batch_size,
                seed=recipe.seed,
                step=step * accelerator.num_processes + accelerator.process_index,
                difficulty=recipe.difficulty_at(step),
                size=recipe.size_at(step),
            )
            labels = batch.labels.to(accelerator.device)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            with accelerator.autocast():
                logits = wrapped(normalize(batch.images.to(accelerator.device), model))
                loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(wrapped.parameters(), recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            log.add(loss.detach(), (logits.detach().argmax(-1) == labels).float().mean())
            if step % log_every == 0 or step == recipe.steps:
                log.write(step, recipe)
            if step % checkpoint_every == 0 or step == recipe.steps:
                log.check(step, recipe)
                _save(accelerator, folder, step, run)
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # or the model would autocast for ever
    return model


def normalize(images: torch.Tensor, model: ImageTransformer) -> torch.Tensor:
    """Images in [0, 1], (batch, channels, height, width), with the mean and deviation of the model's config."""
    mean = images.new_tensor(model.pretrained_cfg.mean)[:, None, None]
    std = images.new_tensor(model.pretrained_cfg.std)[:, None, None]
    return (images - mean) / std


class _Log:
    """Running means of loss and accuracy, as a line on stderr and a record in a file."""

    def __init__(self, path: Path, steps: int, active: bool) -> None:
        self.path, self.steps, self.active = path, steps, active
        self.losses: list[torch.Tensor] = []
        self.hits: list[torch.Tensor] = []
        self.since = time.monotonic()

    def cut(self, step: int) -> None:
        """Drops what a killed run wrote after its last checkpoint: those steps are done again."""
        if self.active and self.path.exists():
            lines = self.path.read_text().splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            write_whole(self.path, lambda path: path.write_text("".join(f"{line}\n" for line in kept)))

    def add(self, loss: torch.Tensor, hit: torch.Tensor) -> None:
        self.losses.append(loss)
        self.hits.append(hit)

    def check(self, step: int, recipe: Recipe) -> None:
        """Raises InputError if a loss since the last line was no number."""
        if self.losses and not math.isfinite(loss := float(torch.stack(self.losses).mean())):
            raise InputError(
                f"the loss became {loss} by step {step}; lower the learning rate ({recipe.learning_rate}) or use "
                "precision='no', and start again in another folder"
            )

    def write(self, step: int, recipe: Recipe) -> None:
        self.check(step, recipe)
        seconds = (time.monotonic() - self.since) / len(self.losses)
        record = {
            "step": step,
            "loss": round(float(torch.stack(self.losses).mean()), 5),
            "accuracy": round(float(torch.stack(self.hits).mean()), 5),
            "difficulty": round(recipe.difficulty_at(step - 1), 4),
            "size": recipe.size_at(step - 1),
            "learning_rate": recipe.learning_rate_at(step - 1),
            "seconds_per_step": round(seconds, 4),
        }
        self.losses, self.hits, self.since = [], [], time.monotonic()
        if self.active:
            left = (self.steps - step) * seconds / 60
            print(
                f"step {step}/{self.steps}  loss {record['loss']:.3f}  accuracy {record['accuracy']:.3f}  "
                f"difficulty {record['difficulty']:.2f}  {record['size']} px  {seconds:.2f} s/step  "
                f"{left:.0f} min left at this pace",
                file=sys.stderr,
                flush=True,
            )
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def _make_accelerator(recipe: Recipe) -> Any:
    accelerate = require("accelerate", "train")
    try:
        return accelerate.Accelerator(mixed_precision=recipe.precision)
    except ValueError as error:  # the device cannot, or the process has an Accelerator of another precision
        raise InputError(f"accelerate does not take precision {recipe.precision!r} here: {error}") from error


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error}; give another folder") from error
    return folder


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _describe(model: ImageTransformer, recipe: Recipe, accelerator: Any) -> dict[str, Any]:
    """All that a run must share with the one it goes on from, as JSON gives it back."""
    facts = {
        **asdict(recipe),
        "architecture": model.architecture or type(model).__name__,
        "model_args": model.model_args,
        "processes": accelerator.num_processes,
    }
    described: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return described


def _save(accelerator: Any, folder: Path, step: int, run: dict[str, Any]) -> None:
    try:
        _write_checkpoint(accelerator, folder, step, run)
    except OSError as error:
        raise OutputError(f"cannot write a checkpoint to {folder}: {error}; make room and call again") from error


def _write_checkpoint(accelerator: Any, folder: Path, step: int, run: dict[str, Any]) -> None:
    """Writes the checkpoint whole under another name, renames it, and only then drops the older ones."""
    older, partial = _checkpoints(folder), folder / "checkpoint.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "run.json").write_text(json.dumps({"step": step, "run": run}, indent=1))
        partial.rename(folder / f"checkpoint-{step:07d}")
        for path in older:
            shutil.rmtree(path)


def _resume(accelerator: Any, folder: Path, run: dict[str, Any]) -> int:
    """Loads the last checkpoint, if there is one; returns the step it was made after."""
    found = _checkpoints(folder)
    if not found:
        return 0
    try:
        written = json.loads((found[-1] / "run.json").read_text())
        step: int = written["step"]
        saved: dict[str, Any] = written["run"]
    except (OSError, ValueError, LookupError) as error:
        raise _unusable(found[-1], error) from error
    if saved != run:
        changed = {k: v for k, v in run.items() if saved.get(k) != v}
        raise WeightsError(
            f"{found[-1]} belongs to another recipe or model (now {changed}); use the same one to go on, or another "
            "folder"
        )
    try:
        accelerator.load_state(str(found[-1]))
    except Exception as error:  # each file's library has errors of its own
        raise _unusable(found[-1], error) from error
    if accelerator.is_main_process:
        print(f"going on from {found[-1]}", file=sys.stderr)
    return step


def _unusable(checkpoint: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{checkpoint} is broken or belongs to another model; make the model as it was, or use another folder "
        f"({textwrap.shorten(str(error), 300)})"
    )
