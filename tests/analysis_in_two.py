"""What each of two processes does in a test: new processes import it, as they cannot import a test."""

from pathlib import Path

import torch
from small_models import small_model
from torch import Tensor

from whitebox_crate.analysis import layerwise_analysis
from whitebox_crate.errors import InputError, ProcessError

NAME = "crate_paper_small_patch8_224"


def quiet(_: str) -> None:
    """No lines on progress."""


def share(rank: int, folder: str, images: Tensor) -> None:
    """Measures a part of the images together with the other process, then fails in one of the two."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = small_model(NAME)
    mine = [images[:2]] if rank == 0 else [images[2:5], images[5:]]
    found = layerwise_analysis(model, mine, gather=True, report=quiet)
    Path(folder, f"{rank}.json").write_text(found.to_json())
    try:
        layerwise_analysis(model, [images if rank == 0 else images[:, 0]], gather=True, report=quiet)
    except (ProcessError, InputError) as error:
        Path(folder, f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    torch.distributed.destroy_process_group()
