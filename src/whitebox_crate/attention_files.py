"""save_attention: writes every row of attention to disk while the model runs, for maps too large for memory."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ._files import make_folder
from ._indices import resolve_indices
from ._plan import layers_with
from .backbones import readable
from .capturing import capture
from .errors import OutputError, UnknownNameError, whole_number
from .layers import ClassAttention
from .models._wrappers import unwrap

FileType = Literal["float16", "float32"]


@torch.no_grad()
def save_attention(
    model: nn.Module,
    images: Tensor,
    folder: str | Path,
    *,
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    chunk: int = 256,
    dtype: FileType = "float16",
) -> dict[int, Path]:
    """Runs a model once and writes all rows of its attention, chunk by chunk, so that memory holds one chunk.

    Each layer becomes one file, for example `attention_00.npy` for layer 0, of shape (batch, heads, tokens, tokens).
    `capture` with `queries="all"` gives the same numbers. Class attention, as in ToST, has one row: (batch, heads, 1,
    tokens). `numpy.load(path, mmap_mode="r")` opens a file without reading it. Files are whole or absent. Older files
    are replaced when all new ones are done.

    Args:
        model: A model that `capture` reads.
        images: (batch, in_chans, height, width), normalised.
        folder: Made if it does not exist.
        layers: See `capture`.
        heads: See `capture`.
        chunk: Rows computed at once; memory holds batch * heads * chunk * tokens values.
        dtype: Dtype of the file. An attention of 1 / 16384 is still a normal number in float16.

    Returns:
        The file of each layer; layers count from 0.

    Raises:
        UnknownNameError: If a layer, a head or the dtype does not exist, or a layer has no attention.
        InputError: If the images do not fit the model, or `chunk` is not positive.
        OutputError: If the files do not fit on the disk or cannot be written.

    Example:
        >>> import numpy
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> files = save_attention(model, torch.zeros(1, 3, 96, 96), "attention", layers=[-2])
        >>> numpy.load(files[4], mmap_mode="r").shape
        (1, 4, 257, 257)
    """
    if dtype not in get_args(FileType):
        raise UnknownNameError.of("dtype of the file", dtype, get_args(FileType))
    chunk = whole_number("chunk", chunk)
    core, folder = readable(model), Path(folder)
    rows, columns = core.grid_of(images)
    tokens = core.num_prefix_tokens + rows * columns
    shown = core.num_heads if heads is None else len(resolve_indices("head", heads, core.num_heads))
    every, shapes = core.layers(), dict[int, tuple[int, int, int, int]]()
    for layer in layers_with(core, "attention", layers=layers):
        attention = getattr(unwrap(every[layer]), "attention", None)
        queries = 1 if isinstance(attention, ClassAttention) else tokens
        shapes[layer] = (len(images), shown, queries, tokens)
    files = {layer: folder / f"attention_{layer:02d}.npy" for layer in shapes}
    make_folder(folder)
    _check_room(folder, sum(map(math.prod, shapes.values())) * np.dtype(dtype).itemsize)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".attention-") as temporary, ExitStack() as stack:
            for layer, path in files.items():
                writer = _Writer(stack.enter_context((Path(temporary) / path.name).open("wb")), shapes[layer], dtype)
                stack.enter_context(
                    capture(model, "attention", layers=[layer], heads=heads, queries="all", chunk=chunk, reduce=writer)
                )
            core(images)
            stack.close()  # the files are flushed before they get their names
            for path in files.values():
                (Path(temporary) / path.name).replace(path)
    except OSError as error:
        raise OutputError(f"cannot write attention to {folder}: {error}; choose another place") from error
    return files


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"all rows of attention take {needed / 2**30:.1f} GiB, but {folder} has {free / 2**30:.1f} GiB left; ask "
            "for fewer layers or heads, or keep less of each row with capture(..., reduce=...)"
        )


class _Writer:
    """Writes chunks of rows, (batch, heads, rows, tokens), to their place in an .npy file; keeps none in memory."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: FileType) -> None:
        self.file, self.shape, self.dtype = file, shape, np.dtype(dtype)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        self.begin, self.done = file.tell(), 0

    def __call__(self, rows: Tensor) -> Tensor:
        queries, tokens = self.shape[-2:]
        for index, block in enumerate(rows.flatten(0, 1).float().cpu().numpy().astype(self.dtype)):
            self.file.seek(self.begin + (index * queries + self.done) * tokens * self.dtype.itemsize)
            self.file.write(block.tobytes())
        self.done += rows.shape[2]
        return rows[..., :0]
