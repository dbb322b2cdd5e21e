"""Small checkpoints of every format, what may happen to them, and the check of what loading makes of it.

An independent reading says what a changed file holds: a file that loads must give exactly that, to a model as a whole.
"""

import faulthandler
import io
import json
import math
import pickletools
import re
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.torch
import torch
from einops import rearrange
from small_models import shake
from stored_bytes import torch_read
from torch import Tensor

from whitebox_crate import ImageTransformer, create_model
from whitebox_crate.convert.files import read_checkpoint
from whitebox_crate.convert.rename import convert_checkpoint
from whitebox_crate.errors import WhiteboxCrateError
from whitebox_crate.loading import load_state

SECONDS = 20  # for one case, which takes some hundredths of one
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OPTIONS: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 3,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "num_classes": 3,
}


# Formats


@dataclass(frozen=True)
class Base:
    """A small checkpoint that loads.

    Attributes:
        name: Of the format.
        architecture: The model it is for, with `OPTIONS`.
        tensors: Name in the file -> tensor.
        ours: Name in the file -> our name, "" for what a model has no place for.
        write: Tensors under the names of the file -> the bytes of the file.
        axes: Name in the file -> the axes there and here (einops).
    """

    name: str
    architecture: str
    tensors: Mapping[str, Tensor]
    ours: Mapping[str, str]
    write: Callable[[Mapping[str, Any]], bytes]
    axes: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_torch(self) -> bool:
        return self.write not in (safetensors_bytes, npz_bytes)

    @property
    def floats(self) -> dict[str, Tensor]:
        """All tensors but counters, which are scalars."""
        return {name: value for name, value in self.tensors.items() if value.dtype in FLOATS}

    def content(self) -> bytes:
        return self.write(self.tensors)

    def expected(self, tensors: Mapping[str, Any]) -> "dict[str, Tensor | None] | None":
        """Our name -> value that must be loaded from these tensors, None for one that is resampled; None to refuse."""
        found = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        if found.keys() - self.tensors.keys():
            return None
        values: dict[str, Tensor | None] = {}
        for name, ours in self.ours.items():
            if not ours:
                continue
            value, like = found.get(name), self.tensors[name]
            if like.dtype not in FLOATS:  # a counter of BatchNorm
                if value is None or value.dtype != like.dtype or value.shape != like.shape:
                    return None
                values[ours] = value
                continue
            if value is None or value.dtype not in FLOATS or value.layout != torch.strided or value.is_meta:
                return None
            if value.shape == like.shape:
                values[ours] = rearrange(value.detach(), self.axes.get(name, "... -> ...")).float()
            elif _can_be_fitted(ours, rearrange(value, self.axes[name]) if self._rank_fits(name, value) else value):
                values[ours] = None
            else:
                return None
        return values

    def _rank_fits(self, name: str, value: Tensor) -> bool:
        return name in self.axes and value.ndim == self.tensors[name].ndim

    def read_again(self, content: bytes) -> dict[str, Any]:
        """What the file holds, by other code than the package's."""
        if self.write is safetensors_bytes:
            return safetensors_read(content)
        if self.write is npz_bytes:
            with np.load(io.BytesIO(content)) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays if not name.startswith("opt/")}
        held = torch_read(content)
        held = next((held[name] for name in ("state_dict", "model") if name in held), held)
        return {name.removeprefix("module."): value for name, value in held.items() if isinstance(name, str)}


def _can_be_fitted(ours: str, value: Tensor) -> bool:
    """Whether these are positions on another square grid, or a convolution of other channels."""
    if ours == "pos_embed":
        patches = value.shape[1] - 1 if value.ndim == 3 and value.shape[::2] == (1, 16) else 0
        return patches > 0 and math.isqrt(patches) ** 2 == patches
    return ours == "patch_embed.proj.weight" and value.ndim == 4 and value.shape[::2] == (16, 4) == (16, value.shape[3])


def safetensors_bytes(tensors: Mapping[str, Any]) -> bytes:
    return safetensors.torch.save({name: value.clone().contiguous() for name, value in tensors.items()})


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "U64": torch.uint64,
    "C64": torch.complex64,
}


def safetensors_read(content: bytes) -> dict[str, Tensor]:
    [length] = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    read = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            raw = torch.frombuffer(data[begin:end], dtype=torch.uint8)
            read[name] = raw.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return read


def npz_bytes(tensors: Mapping[str, Any]) -> bytes:
    def array(value: Tensor) -> Any:
        return value.view(torch.int16).numpy().view("V2") if value.dtype == torch.bfloat16 else value.numpy()

    out = io.BytesIO()
    np.savez(out, **{name: array(value) for name, value in tensors.items()}, **{"opt/0": np.ones(3)})
    return out.getvalue()


def torch_bytes(content: Any, **how: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **how)
    return out.getvalue()


def legacy_bytes(tensors: Mapping[str, Any]) -> bytes:
    return torch_bytes(dict(tensors), _use_new_zipfile_serialization=False)


def wrapped_bytes(tensors: Mapping[str, Any]) -> bytes:
    state = {f"module.{name}" if isinstance(name, str) else name: value for name, value in tensors.items()}
    return torch_bytes({"epoch": 7, "state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(2)}}}})


def model_bytes(tensors: Mapping[str, Any]) -> bytes:
    return torch_bytes({"model": dict(tensors)})


CRATE = (
    (r"pos_embed", "pos_embedding"),
    (r"patch_embed\.norm1\.", "to_patch_embedding.1."),
    (r"patch_embed\.proj\.", "to_patch_embedding.2."),
    (r"patch_embed\.norm2\.", "to_patch_embedding.3."),
    (r"blocks\.(\d+)\.norm1", r"transformer.layers.\1.0.norm"),
    (r"blocks\.(\d+)\.mssa\.qkv", r"transformer.layers.\1.0.fn.qkv"),
    (r"blocks\.(\d+)\.mssa\.proj", r"transformer.layers.\1.0.fn.to_out.0"),
    (r"blocks\.(\d+)\.norm2", r"transformer.layers.\1.1.norm"),
    (r"blocks\.(\d+)\.ista\.dictionary", r"transformer.layers.\1.1.fn.weight"),
    (r"^norm\.", "mlp_head.0."),
    (r"^head\.", "mlp_head.1."),
)
ALPHA = (
    (r"patch_embed\.proj", "conv1"),
    (r"blocks\.(\d+)\.odl\.dictionary", r"transformer.layers.\1.1.fn.D"),
    (r"blocks\.(\d+)\.odl\.decoder", r"transformer.layers.\1.1.fn.D1"),
    *CRATE,
)
CBT = (
    (r"patch_embed\.proj", "to_patch_embedding.proj"),
    (r"blocks\.(\d+)\.cbsa\.qkv", r"transformer.layers.\1.0.fn.proj"),
    (r"blocks\.(\d+)\.cbsa\.proj", r"transformer.layers.\1.0.fn.to_out"),
    (r"blocks\.(\d+)\.cbsa\.", r"transformer.layers.\1.0.fn."),
    *CRATE,
)
_LAYER = r"Transformer/encoderblock_\1/"
JAX = (
    (r"cls_token", "cls"),
    (r"pos_embed", "pos_embedding"),
    (r"patch_embed\.proj\.weight", "embedding/kernel"),
    (r"patch_embed\.proj\.bias", "embedding/bias"),
    (r"blocks\.(\d+)\.norm1\.weight", _LAYER + "LayerNorm_0/scale"),
    (r"blocks\.(\d+)\.norm1\.bias", _LAYER + "LayerNorm_0/bias"),
    (r"blocks\.(\d+)\.norm2\.weight", _LAYER + "LayerNorm_1/scale"),
    (r"blocks\.(\d+)\.norm2\.bias", _LAYER + "LayerNorm_1/bias"),
    (r"blocks\.(\d+)\.mssa\.qkv\.weight", _LAYER + "MultiHeadDotProductSubspaceAttention_0/proj/kernel"),
    (r"blocks\.(\d+)\.mssa\.proj\.weight", _LAYER + "MultiHeadDotProductSubspaceAttention_0/out/kernel"),
    (r"blocks\.(\d+)\.odl\.dictionary", _LAYER + "OvercompleteISTABlock_0/D"),
    (r"blocks\.(\d+)\.odl\.decoder", _LAYER + "OvercompleteISTABlock_0/D1"),
    (r"^norm\.weight", "encoder_norm/scale"),
    (r"^norm\.bias", "encoder_norm/bias"),
    (r"^head\.weight", "head/kernel"),
    (r"^head\.bias", "head/bias"),
    (r"^", "params/"),
)
JAX_AXES = {  # there -> here
    "patch_embed.proj.weight": "h w c d -> d c h w",
    "blocks.0.mssa.qkv.weight": "d h p -> (h p) d",
    "blocks.0.mssa.proj.weight": "h p d -> d (h p)",
    "head.weight": "d c -> c d",
}
MAE = (
    (r"^pos_embed", "decoder_pos_embed"),
    (r"^blocks\.(\d+)\.norm1", r"blocks.\1.layers.0.0.norm"),
    (r"^blocks\.(\d+)\.mssa\.qkv", r"blocks.\1.layers.0.0.fn.qkv"),
    (r"^blocks\.(\d+)\.mssa\.proj", r"blocks.\1.layers.0.0.fn.to_out.0"),
    (r"^blocks\.(\d+)\.norm2", r"blocks.\1.layers.0.1.norm"),
    (r"^blocks\.(\d+)\.ista\.dictionary", r"blocks.\1.layers.0.1.fn.weight"),
    (r"decoder_blocks\.(\d+)\.norm1", r"decoder_blocks.\1.layers.0.0.norm"),
    (r"decoder_blocks\.(\d+)\.linear", r"decoder_blocks.\1.layers.0.0.fn"),
    (r"decoder_blocks\.(\d+)\.norm2", r"decoder_blocks.\1.layers.0.1.norm"),
    (r"decoder_blocks\.(\d+)\.mssa\.qkv", r"decoder_blocks.\1.layers.0.1.fn.qkv"),
    (r"decoder_blocks\.(\d+)\.mssa\.proj", r"decoder_blocks.\1.layers.0.1.fn.to_out.0"),
)
TOST = (
    (r"pos_embed", "pos_embeder"),
    (r"^blocks\.(\d+)\.tssa\.qkv", r"blocks.\1.attn.qkv"),
    (r"^blocks\.(\d+)\.tssa\.temperature", r"blocks.\1.attn.temp"),
    (r"^blocks\.(\d+)\.tssa\.proj", r"blocks.\1.attn.to_out.0"),
    (r"\.ls(\d)\.gamma", r".gamma\1"),
)
FORMATS: dict[str, tuple[str, tuple[tuple[str, str], ...], Callable[[Mapping[str, Any]], bytes]]] = {
    "ours": ("crate_tiny_patch16_224", (), safetensors_bytes),
    "timm": ("vit_tiny_patch16_224", (), safetensors_bytes),
    "official": ("crate_tiny_patch16_224", CRATE, torch_bytes),
    "legacy": ("crate_tiny_patch16_224", CRATE, legacy_bytes),
    "wrapped": ("crate_tiny_patch16_224", CRATE, wrapped_bytes),
    "alpha": ("crate_alpha_tiny_patch16_224", ALPHA, torch_bytes),
    "jax": ("crate_alpha_tiny_patch16_224", JAX, npz_bytes),
    "mae": ("crate_mae_tiny_patch16_224", MAE, model_bytes),
    "cbt": ("cbt_tiny_patch16_224", CBT, model_bytes),
    "tost": ("tost_tiny_12_patch16_224", TOST, model_bytes),
}
TORCH = tuple(name for name, (_, _, write) in FORMATS.items() if write not in (safetensors_bytes, npz_bytes))
RESAMPLED = tuple(name for name in FORMATS if name != "tost")  # ToST computes its positions
BY_CONVOLUTION = ("timm", "alpha", "jax", "mae")


def options_of(architecture: str) -> dict[str, Any]:
    return {**OPTIONS, "num_classes": 0} if "mae" in architecture else OPTIONS


def made(architecture: str) -> ImageTransformer:
    torch.manual_seed(5)
    model: ImageTransformer = create_model(architecture, **options_of(architecture))
    shake(model)
    return model.eval()


@cache
def base_of(name: str) -> Base:
    architecture, names, write = FORMATS[name]
    tensors, ours, axes = dict[str, Tensor](), dict[str, str](), dict[str, str]()
    for our_name, value in made(architecture).state_dict().items():
        theirs = our_name
        for ours_there, theirs_there in names:
            theirs = re.sub(ours_there, theirs_there, theirs, count=1)
        ours[theirs] = our_name
        if name == "jax" and our_name in JAX_AXES:
            axes[theirs] = JAX_AXES[our_name]
            here, there = reversed(JAX_AXES[our_name].split(" -> "))
            value = rearrange(value, f"{here} -> {there}", **({"h": 2} if "(" in here else {}))
        tensors[theirs] = value.contiguous().clone()
    if name == "mae":  # in the released file and used by nothing
        for unused, shape in (
            ("pos_embed", (1, 5, 16)),
            ("decoder_embed.weight", (16, 16)),
            ("decoder_embed.bias", (16,)),
        ):
            tensors[unused], ours[unused] = torch.ones(shape), ""
    return Base(name, architecture, tensors, ours, write, axes)


# The check


class Hang(BaseException):
    """Not an Exception: no handler on the way may take it for an error of the file."""


@contextmanager
def watchdog(seconds: int = SECONDS) -> Iterator[None]:
    """Raises `Hang` after a while; where even that is not heeded, ends the process with a traceback."""

    def rise(*_: object) -> None:
        raise Hang(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, rise)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Mutant:
    """A changed file.

    Attributes:
        what: What was done.
        content: The file.
        must: "load", "refuse" or "either".
        values: With "load", our name -> value; None where only its shape is known.
    """

    what: str
    content: bytes
    must: str = "either"
    values: Mapping[str, Tensor | None] = field(default_factory=dict)


def of_tensors(base: Base, what: str, tensors: Mapping[str, Any]) -> Mutant:
    values = base.expected(tensors)
    return Mutant(what, base.write(tensors), "refuse" if values is None else "load", values or {})


def same(one: Tensor, other: Tensor) -> bool:
    """Equal, with NaN equal to itself."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def bits(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@cache
def standing(architecture: str) -> tuple[ImageTransformer, dict[str, bytes], dict[str, Tensor]]:
    """A model that others load into, and what it held before."""
    model = made(architecture)
    return model, bits(model), {name: value.clone() for name, value in model.state_dict().items()}


def attempt(do: Callable[[], Any]) -> tuple[Any, WhiteboxCrateError | None]:
    """Result or error; any error but ours is a failure of the test."""
    try:
        with watchdog():
            return do(), None
    except WhiteboxCrateError as error:
        assert str(error)
        return None, error


def whole(model: ImageTransformer, like: ImageTransformer, values: Mapping[str, Tensor | None], case: str) -> None:
    """Fails if the model does not have every weight, of the right kind and with these values, or does not run."""
    state, target, report = model.state_dict(), like.state_dict(), model.load_report
    assert state.keys() == target.keys(), case
    for name, value in state.items():
        assert not value.is_meta and (value.dtype, value.shape) == (target[name].dtype, target[name].shape), (
            case,
            name,
        )
    assert report is not None and report.reinitialised == (), case
    assert sorted([*report.loaded, *report.adapted]) == sorted(target), case
    for name, wanted in values.items():
        if wanted is None:
            assert name in report.adapted, (case, name)
        elif name in state and name not in report.adapted:  # a config may ask for no decoder
            assert same(state[name], wanted), (case, name)
    with torch.inference_mode():
        out = model.eval()(torch.zeros(1, model.in_chans, *model.img_size))
    assert out.shape[:: out.ndim - 1] == (1, model.num_classes or 16), case


def check(base: Base, mutant: Mutant, folder: Path, case: str) -> str:
    """Loads a changed file in both ways and fails if anything is as it must not be.

    Returns:
        "load" or "refuse", what became of it.
    """
    case = f"{case}: {mutant.what}"
    path = folder / "deep" / "file"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mutant.content)
    existing, before, initial = standing(base.architecture)
    existing.load_state_dict(initial)
    existing.load_report = None

    def load_into() -> Any:
        converted = convert_checkpoint(read_checkpoint(path))
        return load_state(existing, converted.state, str(path), unused=converted.unused)

    options = options_of(base.architecture)
    model, error = attempt(lambda: create_model(base.architecture, checkpoint_path=path, **options))
    _, error_into = attempt(load_into)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) == ["deep", "deep/file"], case
    if error is not None or error_into is not None:
        assert error is not None and error_into is not None, (case, error, error_into)
        assert mutant.must != "load", (case, error)
        assert bits(existing) == before and existing.load_report is None, case
        return "refuse"
    assert mutant.must != "refuse", case
    values = mutant.values
    if mutant.must == "either":
        read = base.expected(base.read_again(mutant.content))
        assert read is not None, f"{case}: loaded, though by another reading it does not fit"
        values = read
    whole(model, existing, values, case)
    assert bits(existing) == bits(model), case
    return "load"


# Pieces of files


def spliced(content: bytes, extra: bytes) -> bytes:
    """A torch file, zip or legacy, whose dict has one more entry: the name "extra" and what these opcodes make."""
    entry = b"X\x05\x00\x00\x00extra" + extra

    def with_entry(pickled: bytes) -> bytes:
        assert pickled.endswith(b"u.")
        return pickled[:-2] + entry + b"u."

    if content[:2] == b"PK":
        return rezipped(content, lambda name, held: with_entry(held) if name.endswith("data.pkl") else held)
    begin, end = pickle_span(content)
    return content[:begin] + with_entry(content[begin:end]) + content[end:]


def pickle_span(content: bytes) -> tuple[int, int]:
    """Where in a legacy torch file, or in a zip with stored members, the pickle of the content is."""
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            [pickled] = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
        begin = content.index(pickled)
        return begin, begin + len(pickled)
    file = io.BytesIO(content)
    for _ in range(3):  # a magic number, the version, the sizes of C's types
        for _ in pickletools.genops(file):
            pass
    begin = file.tell()
    for _ in pickletools.genops(file):
        pass
    return begin, file.tell()


def rezipped(content: bytes, change: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip whose members are changed, and left out where that gives None."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w", method) as changed:
        for name in archive.namelist():
            held = change(name, archive.read(name))
            if held is not None:
                changed.writestr(name, held)
    return out.getvalue()


def central(content: bytes) -> int:
    """Where the central directory of a zip begins."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.start_dir


def two_directories(shown: bytes, hidden: bytes) -> bytes:
    """A zip in which Python's reader finds the members of one archive and torch's reader those of another.

    Python looks for the directory just before the end record, others at the place that the record says.
    """
    own_place = central(shown)
    members, place = hidden[: central(hidden)], max(central(hidden), own_place)
    body = members.ljust(place, b"\0") + hidden[central(hidden) : -22]
    directory, at = bytearray(shown[own_place:-22]), 0
    while directory[at : at + 4] == b"PK\x01\x02":
        [member] = struct.unpack_from("<I", directory, at + 42)
        # Python adds how far the directory is from where the record says: len(body) + own_place - place.
        struct.pack_into("<I", directory, at + 42, member + place - own_place)
        at += 46 + sum(struct.unpack_from("<HHH", directory, at + 28))
    end = bytearray(shown[-22:])
    struct.pack_into("<II", end, 12, at, place)
    return body + shown[:own_place] + bytes(directory[:at]) + bytes(end)


def chosen(random: Random, mapping: Mapping[str, Any]) -> str:
    return random.choice(sorted(mapping))


def members_of(content: bytes, but: str) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(but)}


# Bombs: small files that ask for much


def _zeros(name: str, size: int, before: bytes = b"", **beside: bytes) -> bytes:
    """A zip with one deflated member of mostly zeros, and others."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w") as member,
    ):
        member.write(before)
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))
        member.close()
        for other, held in beside.items():
            archive.writestr(other, held, zipfile.ZIP_STORED)
    return out.getvalue()


def bombs() -> Iterator[tuple[str, str, bytes, dict[str, Any] | None]]:
    """What it is, the model it is for, the file, and options in its config.json if it is for a folder.

    Each would take some 500 MB to 2 GB, so that it shows, and does no harm where it is not stopped.
    """
    million = 1 << 20
    crate, alpha = FORMATS["official"][0], FORMATS["alpha"][0]
    yield "a deflated array", alpha, _zeros("params/cls.npy", 256 * million), None
    yield "a deflated pickle", crate, _zeros("archive/data.pkl", 256 * million, b"\x80\x02}."), None
    shown = rezipped(torch_bytes({}), lambda _, held: held)
    hidden = _zeros("archive/data.pkl", 256 * million, b"\x80\x02}.", **members_of(shown, but="data.pkl"))
    yield "a hidden deflated pickle", crate, two_directories(shown, hidden), None
    codepoints = "".join(map(chr, range(200, 9000)))  # one of each takes punycode the longest
    calls = {
        "bytes": b"cbuiltins\nbytearray\nJ\x00\x00\x00\x30\x85R",
        "bytes of Python 2": b"c__builtin__\nbytearray\nJ\x00\x00\x00\x30\x85R",
        "a slow codec": b"c_codecs\nencode\nX" + struct.pack("<I", len(codepoints.encode())) + codepoints.encode()
        + b"X\x08\x00\x00\x00punycode\x86R",
        "a tensor": b"ctorch\nFloatTensor\nJ\x00\x00\x00\x10\x85R",
        "copies": b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n(ctorch\nFloatTensor\nJ\x00\x00\x00\x10\x85R"
        b"ctorch\nfloat64\nX\x03\x00\x00\x00cpu\x89tR",
    }  # fmt: skip
    for what, opcodes in calls.items():
        for form in ("official", "legacy"):
            yield f"{what} in {form}", crate, spliced(base_of(form).content(), opcodes), None
    legacy = base_of("legacy").content()
    yield "a large storage", crate, legacy.replace(b"K\x10N", b"J\x00\x00\x00\x10N", 1), None
    header = struct.pack("<Q", 99_000_000) + b'{"a":' + b"[" * 99_000_000
    yield "a long header", crate, header, None
    weights = safetensors_bytes(made(crate).state_dict())
    yield "a large image", crate, weights, {"img_size": 16_000}
    yield "many classes", crate, weights, {"num_classes": 16 * million}
    yield "many layers", crate, weights, {"depth": 10**9}
    weights = safetensors_bytes(made(alpha).state_dict())
    yield "many channels", alpha, weights, {"in_chans": million}
    yield "a large image of a convolution", alpha, weights, {"img_size": [16_000, 16_000]}
    weights = safetensors_bytes(made(FORMATS["mae"][0]).state_dict())
    yield "many layers of a decoder", FORMATS["mae"][0], weights, {"decoder_depth": 10**9}


def measure(folder: Path) -> dict[str, tuple[str, int, float]]:
    """How each bomb ends, by how many MB the memory grew at most, and in how many seconds."""
    import time

    from whitebox_crate import save_pretrained

    def memory(what: str) -> int:
        [now] = re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(now) >> 10

    results = {}
    for what, architecture, content, options in list(bombs()):
        if options is None:
            (folder / "file").write_bytes(content)
            how: tuple[str, dict[str, Any]] = (architecture, {"checkpoint_path": folder / "file"})
            how[1].update(options_of(architecture))
        else:
            save_pretrained(made(architecture), folder / "model")
            path = folder / "model" / "config.json"
            config = json.loads(path.read_text())
            config["model_args"].update(options)
            config["num_classes"] = config["model_args"]["num_classes"]
            config["global_pool"] = "avg"
            path.write_text(json.dumps(config))
            how = (f"local-dir:{folder / 'model'}", {"pretrained": True})
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, begun = memory("VmRSS"), time.perf_counter()
        try:
            with watchdog():
                create_model(how[0], **how[1])
            end = "load"
        except WhiteboxCrateError:
            end = "refuse"
        except (Exception, Hang) as error:
            end = repr(error)[:200]
        results[what] = (end, memory("VmHWM") - before, round(time.perf_counter() - begun, 2))
    return results


if __name__ == "__main__":
    import sys

    print(json.dumps(measure(Path(sys.argv[1]))))
