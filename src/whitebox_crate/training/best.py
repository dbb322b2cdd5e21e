"""Best: the best weights of a run so far, by validation, in a file beside the checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .._files import write_whole
from ..errors import InputError, WeightsError
from ..loading import own_copies

BEST = "best.safetensors"


class Best:
    """The weights with the best validation: by `top1`, then by `loss`; or by `mask_iou` if there are no labels.

    Among equals the first counts. A resumed run continues with its best so far.

    Args:
        folder: Folder of the run.
        writes: Whether this process writes.
        fresh: Whether the run is new, so that an existing file belongs to another run.
    """

    def __init__(self, folder: Path, writes: bool, fresh: bool) -> None:
        self.path, self.writes = folder / BEST, writes
        if fresh and writes:
            self.path.unlink(missing_ok=True)
        self._worth = () if fresh else _worth(best_of(folder))

    def offer(self, step: int, found: Mapping[str, float], state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keeps the weights if they are the best so far. All processes call it with the same numbers.

        Args:
            step: The step after which they were measured.
            found: The measured numbers.
            state: Gives the whole weights.

        Raises:
            InputError: If none of the numbers can rank weights.
            OutputError: If there is no space.
        """
        if not (worth := _worth(found)):
            raise InputError(
                f"validation found {sorted(found)}, but the best weights are chosen by top1 or mask_iou; measure one "
                "of them, or keep the last weights"
            )
        if self._worth and worth <= self._worth:
            return
        self._worth, weights = worth, state()
        if self.writes:
            tensors = own_copies(weights)
            about = {"found": json.dumps({**found, "best_step": step})}
            write_whole(self.path, lambda path: save_file(tensors, path, about))

    def weights(self) -> dict[str, Tensor]:
        """The best weights so far.

        Raises:
            WeightsError: If there are none, or the file cannot be read.
        """
        if not self.path.exists():
            raise WeightsError(
                f"{self.path} does not exist: the run kept no best weights; keep the last, or use another folder"
            )
        with _opened(self.path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping


def best_of(folder: Path) -> dict[str, Any]:
    """The validation of a run's best weights, with their step as `best_step`; empty if none are kept.

    Raises:
        WeightsError: If the file cannot be read.
    """
    if not (folder / BEST).exists():
        return {}
    with _opened(folder / BEST) as file:
        about = file.metadata() or {}
    try:
        found: dict[str, Any] = {name: +number for name, number in json.loads(about["found"]).items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(folder / BEST, "it has no validation numbers") from error
    return found


def _worth(found: Mapping[str, float]) -> tuple[float, ...]:
    if "top1" in found:
        return found["top1"], -found.get("loss", 0.0)
    return (found["mask_iou"],) if "mask_iou" in found else ()


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, why: object) -> WeightsError:
    return WeightsError(f"{path} is broken: {why}; delete it to keep the best from now on")
