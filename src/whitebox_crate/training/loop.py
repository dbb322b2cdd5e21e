"""train: the training loop, on one process or many. A killed run ends with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor, nn

from .._random import torch_generator
from ..errors import InputError, MissingExtraError, UnknownNameError, require
from ..loading import plain_state
from ..models import CrateMae, ImageTransformer
from ..models._wrappers import unwrap
from .batch_norms import frozen_batch_norms, shared_batch_norms
from .batches import Batch, Share, Source, Stream, batches_of, check_labels, check_positive, moved
from .best import Best
from .checkpoints import describe_run, resume, run_folder, save_checkpoint
from .facts import count_of, fingerprint_of, settled, trained_cfg
from .metrics_log import Progress
from .recipe import Recipe
from .stopping import StopRequest

Keep: TypeAlias = Literal["last", "best"]


class Measures(Protocol):
    """A measurement during training: every so many steps, and after the last step."""

    @property
    def every(self) -> int:
        """Steps between measurements."""

    def measure(self, model: ImageTransformer) -> dict[str, float]:
        """Numbers by name. All processes of a run call it. It does not change the model."""


def train(
    model: ImageTransformer,
    source: Source | Stream,
    recipe: Recipe,
    out: str | Path,
    *,
    validation: Measures | None = None,
    workers: int = 0,
    checkpoint_every: int = 250,
    log_every: int = 25,
    stop_at: int | None = None,
    trackers: Sequence[str] = (),
    keep: Keep = "last",
    at_start: Callable[[Path], object] | None = None,
) -> ImageTransformer:
    """Trains a model in place and writes checkpoints. Called again with the same `out`, it resumes.

    A run that was killed and resumed ends with the same weights, bit for bit, as a run that was not. At SIGINT or
    SIGTERM it finishes the step and writes a checkpoint; then it raises KeyboardInterrupt or SystemExit.

    Args:
        model: The model, in float32. If `out` holds a checkpoint, its weights are replaced. Its config gets the class
            names of `source` and the origin of its training (`trained_cfg`). Wrappers of torch.compile or distributed
            training are taken off, and the inner model is trained uncompiled; single compiled layers stay compiled.
        source: The source of batches.
        recipe: The numbers. Its epochs become steps if `source` knows its number of images. Crop and flip come from
            `source`, if it has them.
        out: Folder of one run, for `checkpoint-STEP/` (the last two are kept), `metrics.jsonl` and, with
            `keep="best"`, the best weights.
        validation: Measurements during training.
        workers: Processes that make batches ahead of time, for each process of the run.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of progress.
        stop_at: Ends the call after this step, with a checkpoint, to do a run in parts. A run that is further stays
            where it is.
        trackers: Names of accelerate's trackers, such as "tensorboard"; they write to `out` too.
        keep: The weights of the model at the end: the "last", or the "best" by `validation` (`Best`). The best are also
            in `out`, as `best.safetensors`.
        at_start: Called with `out` in the first process, before the first step of a new run.

    Returns:
        The same model, on the device where it was trained, without wrappers.

    Raises:
        MissingExtraError: If accelerate, the optimiser or a tracker is not installed.
        WeightsError: If `out` holds a checkpoint of another recipe, model or data, or only broken ones.
        OutputError: If `out` cannot be written, or another run is writing to it; the last checkpoint stays.
        InputError: If the model cannot be trained: it is folded, frozen, not in float32 or spread over processes, does
            not take images of the recipe's sizes, or has no head or decoder. Or if an argument is wrong: a number of
            steps is not positive, or `keep` is "best" without a validation. Or if accelerate does not support the
            precision, or FSDP is not version 2. Or if a label is not a class of the model, or the loss or the gradient
            becomes NaN or infinite; the last checkpoint stays.
        UnknownNameError: If `keep` is another word.
    """
    check_positive("checkpoint_every", checkpoint_every)
    check_positive("log_every", log_every)
    if validation:
        check_positive("validation.every", validation.every)
    if workers < 0:
        raise InputError(f"workers must be at least 0, not {workers}")
    if keep not in get_args(Keep):
        raise UnknownNameError.of("keep", keep, get_args(Keep))
    if keep == "best" and validation is None:
        raise InputError("keep='best' needs a validation to choose by: give validation, or keep the last weights")
    recipe = settled(recipe, source)
    model = _trainable(model)
    _check(model, recipe, count_of(source))
    model.pretrained_cfg = trained_cfg(model, source, recipe)
    accelerator = _make_accelerator(recipe, trackers, Path(out))
    recipe.part_size(accelerator.num_processes)
    given = model
    if accelerator.is_fsdp2:  # it takes modules apart permanently
        model = copy.deepcopy(given)
    with ExitStack() as stack:
        stack.enter_context(_prepared(model, recipe))
        stack.enter_context(shared_batch_norms(model, accelerator.device, accelerator.num_processes))
        made = make_optimizer(model, recipe)
        folder = stack.enter_context(run_folder(Path(out), accelerator.process_index))
        if trackers:
            accelerator.init_trackers("whitebox-crate", config=_plain(recipe))
        wrapped, runs, optimizer = _shared_out(accelerator, model, made, recipe)
        # Else the model would autocast forever.
        stack.callback(accelerator.unwrap_model, wrapped, keep_fp32_wrapper=False)
        training = _Training(accelerator, wrapped, runs, model, optimizer, recipe, frozen_batch_norms(model))
        progress = Progress(accelerator, recipe, folder, count_of(source))
        run = describe_run(model, recipe, accelerator.num_processes, fingerprint_of(source))
        if isinstance(source, Stream):
            run["workers"] = workers  # the workers share the data
        step = logged = resume(accelerator, folder, run)
        progress.cut(step)
        if at_start and not step and accelerator.is_main_process:
            at_start(folder)
        best = Best(folder, accelerator.is_main_process, fresh=step == 0) if keep == "best" else None
        last = recipe.steps if stop_at is None else max(step, min(recipe.steps, stop_at))
        share = Share(step, last, accelerator.process_index, accelerator.num_processes)
        batches = batches_of(source, recipe, share, workers)
        wrapped.train()
        stop = stack.enter_context(StopRequest(accelerator))
        while step < last:
            training.step(step, batches, progress)
            step += 1
            if step % log_every == 0 or step == recipe.steps:
                progress.write(step, step - logged)
                logged = step
            if validation and (step % validation.every == 0 or step == recipe.steps):
                found = progress.validate(step, lambda: validation.measure(model))
                if best:
                    best.offer(step, found, lambda: _whole_state(model))
            stopped = stop.noted()
            if step % checkpoint_every == 0 or step == last or stopped:
                if step > logged:
                    progress.check(step)
                save_checkpoint(accelerator, folder, step, run)
            if stopped:
                stop.leave(stopped, folder, step)
        for tracker in accelerator.trackers:  # not end_training, which also ends the process group
            tracker.finish()
    if model is not given:
        given.load_state_dict(_whole_state(model))
    if best and step == recipe.steps:
        accelerator.wait_for_everyone()
        given.load_state_dict(best.weights())
    return given


@dataclass(frozen=True)
class _Training:
    """Everything that a step needs, in one process of a run."""

    accelerator: Any
    wrapped: nn.Module  # the model, perhaps in the wrapper of several processes
    runs: nn.Module  # the module that gives logits, or the loss of pixels
    model: ImageTransformer
    optimizer: Any
    recipe: Recipe
    frozen: Sequence[nn.Module]  # norms with fixed statistics

    def step(self, step: int, batches: Iterator[Batch], progress: Progress) -> None:
        """One step of the optimiser, over the parts of a batch."""
        accelerator, recipe = self.accelerator, self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        for norm in self.frozen:
            norm.eval()  # the whole model is in training mode, and again after each validation
        first = (step * accelerator.num_processes + accelerator.process_index) * recipe.accumulation
        for number in range(first, first + recipe.accumulation):
            batch = next(batches)
            others_follow = number + 1 < first + recipe.accumulation
            with accelerator.no_sync(self.wrapped) if others_follow else nullcontext():
                with accelerator.autocast():
                    loss, accuracy = self.loss(batch, number)
                accelerator.backward(loss / recipe.accumulation)
            progress.add(loss, accuracy, batch.skipped)
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), recipe.clip_norm)
        if recipe.precision != "fp16":  # its scaler skips a step with such a gradient
            progress.add_norm(_whole(norm))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        """The loss of this part, and the share of its images that are named correctly."""
        recipe, model, device = self.recipe, self.model, self.accelerator.device
        images = normalize(moved(batch.images, device), model)
        if recipe.objective == "mae":
            rows, columns = model.grid_of(images)
            noise = torch.rand(len(images), rows * columns, generator=torch_generator(recipe.seed, number)).to(device)
            loss = self.runs(images, recipe.mask_ratio, noise)
            return loss, torch.zeros_like(loss)
        check_labels(batch.labels, model.num_classes, "labels", "make it with num_classes, or check the labels")
        labels, logits = moved(batch.labels, device), self.runs(images)
        loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        return loss, (logits.detach().argmax(-1) == labels).float().mean()


def _whole_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: _whole(value) for name, value in model.state_dict().items()}


def _whole(tensor: Any) -> Tensor:
    """The whole of a tensor whose parts may be spread over processes."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _shared_out(
    accelerator: Any, model: ImageTransformer, optimizer: torch.optim.Optimizer, recipe: Recipe
) -> tuple[Any, nn.Module, Any]:
    """The model in the wrapper of several processes, the module that runs in a step, and their optimiser."""
    pixels = _Pixels(model) if isinstance(model, CrateMae) and recipe.objective == "mae" else None
    if not accelerator.is_fsdp2:
        wrapped, optimizer = accelerator.prepare(pixels or model, optimizer)
        return wrapped, wrapped, optimizer
    wrapped, optimizer = accelerator.prepare(model, optimizer)  # itself, which validation runs too
    if pixels:
        require("torch.distributed.fsdp", "train").register_fsdp_forward_method(model, "reconstruct")
    return wrapped, pixels or wrapped, optimizer


class _Pixels(nn.Module):
    """CRATE-MAE's loss as a forward pass, because wrappers of several processes know only that."""

    def __init__(self, model: CrateMae) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask_ratio: float, noise: Tensor) -> Tensor:
        return self.model.reconstruct(images, mask_ratio, noise).loss


def normalize(images: Tensor, model: ImageTransformer) -> Tensor:
    """Normalises images in [0, 1], (batch, channels, height, width), with mean and deviation of the model's config."""
    cfg = model.pretrained_cfg
    # Filled where the images are: a copy from here would wait for all that a GPU still computes.
    mean, std = (torch.stack([images.new_full((1, 1), value) for value in values]) for values in (cfg.mean, cfg.std))
    return (images - mean) / std


def make_optimizer(model: ImageTransformer, recipe: Recipe) -> torch.optim.Optimizer:
    """Lion or AdamW for all parameters that require a gradient, with weight decay only on matrices.

    Raises:
        MissingExtraError: If the recipe needs Lion and lion-pytorch is not installed.
        InputError: If no parameter requires a gradient.
    """
    exempt = model.no_weight_decay()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise InputError(
            "everything that the objective trains is frozen: call requires_grad_(True) on the part to train"
        )
    groups = [
        {"params": [p for n, p in trained if p.ndim > 1 and n not in exempt], "weight_decay": recipe.weight_decay},
        {"params": [p for n, p in trained if p.ndim <= 1 or n in exempt], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "lion":
        lion: torch.optim.Optimizer = require("lion_pytorch", "train").Lion(groups, lr=recipe.learning_rate)
        return lion
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)  # in one pass over the weights


def _trainable(model: nn.Module) -> ImageTransformer:
    """The model inside its wrappers, if its weights can be trained."""
    inner = unwrap(model)
    if not isinstance(inner, ImageTransformer):
        raise InputError(f"a {type(inner).__name__} cannot be trained here: give a whole model of create_model")
    plain_state(inner, "train a model whose weights are floats, all in this process")
    for name, parameter in inner.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"{name} is {parameter.dtype}, but weights are trained in float32: call model.float(). (The recipe's "
                "precision sets the precision of products.)"
            )
        if parameter.is_inference():
            raise InputError(f"{name} was made in torch.inference_mode and has no gradients: make the model outside")
    return inner


def _check(model: ImageTransformer, recipe: Recipe, images: int | None) -> None:
    """Refuses at the start what would fail later."""
    if images is not None and images < recipe.batch_size:
        raise InputError(
            f"a batch needs {recipe.batch_size} images, but there are {images}: lower batch_size (--batch-size)"
        )
    if model.folded:
        raise InputError("a folded model cannot be trained: train the model that it was folded from")
    for size in recipe.sizes:  # check now, not when their turn comes
        model.grid_of(torch.empty(1, model.in_chans, size, size, device="meta"))
    if recipe.objective == "mae":
        if not isinstance(model, CrateMae) or model.mask_token is None:
            raise InputError(f"a {type(model).__name__} does not predict pixels; make a crate_mae_* with its decoder")
    elif not model.num_classes:
        raise InputError("this model has no head for classes; make it with num_classes")


@contextmanager
def _prepared(model: ImageTransformer, recipe: Recipe) -> Iterator[None]:
    """Inside the block, untrained parameters require no gradient; gradients are checkpointed if the recipe says so."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    checkpointing = model.grad_checkpointing
    try:
        if recipe.objective == "linear_probe":
            model.requires_grad_(False)
            model.get_classifier().requires_grad_(True)
        for parameter in _unused(model, recipe):
            parameter.requires_grad_(False)
        model.set_grad_checkpointing(recipe.checkpointing)
        yield
    finally:
        model.set_grad_checkpointing(checkpointing)
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def _unused(model: ImageTransformer, recipe: Recipe) -> Iterator[nn.Parameter]:
    """The parameters that do not affect the loss; several processes would wait for their gradients."""
    if recipe.objective == "mae":
        yield from model.get_classifier().parameters()
    elif isinstance(model, CrateMae):
        yield from model.decoder_parameters()


def _make_accelerator(recipe: Recipe, trackers: Sequence[str], out: Path) -> Any:
    accelerate = require("accelerate", "train")
    try:
        made = accelerate.Accelerator(
            cpu=not torch.accelerator.is_available(),  # else processes of torchrun would not find each other
            mixed_precision=recipe.precision,
            log_with=list(trackers) or None,
            project_dir=str(out) if trackers else None,
        )
    except ValueError as error:
        # accelerate or the device cannot, or the process has an Accelerator of another precision
        with_trackers = f" with trackers {list(trackers)}" if trackers else ""
        raise InputError(
            f"accelerate does not support precision {recipe.precision!r}{with_trackers} here: {error}"
        ) from error
    if missing := set(trackers) - {"all", *map(str, made.log_with)}:  # accelerate ignores them silently
        raise MissingExtraError(f"trackers not installed: {sorted(missing)}; install them, or leave them out")
    if recipe.precision == "fp16" and made.device.type == "cpu":
        raise InputError("accelerate has fp16 only on GPUs and would train in float32 on a CPU: choose bf16 or no")
    if made.distributed_type.value == "FSDP" and not made.is_fsdp2:
        raise InputError("FSDP must be version 2: give accelerate --fsdp_version 2")
    return made


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe in values that every tracker accepts."""
    numbers = asdict(recipe)
    return {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in numbers.items()}
