"""Hundreds of hostile and broken checkpoints: each is refused by a typed error, or loaded whole and right.

A part of each kind runs with the other tests, all of it by `pytest -m slow`.

Every case can be made again: the mutator, the format and the number in a message are its seed.
"""

import inspect
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import (
    BY_CONVOLUTION,
    FLOATS,
    FORMATS,
    RESAMPLED,
    TORCH,
    Base,
    Mutant,
    attempt,
    base_of,
    central,
    check,
    chosen,
    made,
    of_tensors,
    pickle_span,
    rezipped,
    spliced,
    standing,
    two_directories,
    whole,
)
from small_models import mostly_slow
from torch import Tensor, nn

from whitebox_crate import create_model, model_entrypoint, save_pretrained

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of dtypes and layouts that are on their way out
Mutator = Callable[[Random, Base], Mutant]
BOTH = {"load", "refuse"}


# Tensors: files that are sound, with other tensors than a model needs


def renamed(random: Random, base: Base) -> Mutant:
    tensors = dict(base.tensors)
    name = chosen(random, base.ours)
    new = random.choice(
        [f"{name}.x", name[:-1], name.upper(), name.replace(".", "_"), "", "a" * 10_000, f"ü{name}", f"module.{name}"]
    )
    new = f"{name}.x" if new in tensors else new
    tensors[new] = tensors.pop(name)
    return of_tensors(base, f"{name} became {new[:99]!r}", tensors)


def copied(random: Random, base: Base) -> Mutant:
    name = chosen(random, base.ours)
    new = random.choice([f"copy.of.{name}", name.replace("0", "1"), f"{name}.0", "head.weight.bias"])
    new = f"copy.of.{name}" if new == name else new
    return of_tensors(base, f"{name} is there again as {new}", {**base.tensors, new: base.tensors[name]})


def dropped(random: Random, base: Base) -> Mutant:
    names = sorted(base.tensors)
    gone = random.choice([[random.choice(names)], [n for n in names if not base.ours[n]], random.sample(names, 5)])
    tensors = {name: value for name, value in base.tensors.items() if name not in gone}
    return of_tensors(base, f"without {gone}", tensors)


def swapped(random: Random, base: Base) -> Mutant:
    one = chosen(random, base.floats)
    alike = [name for name, value in base.tensors.items() if value.shape == base.tensors[one].shape]
    other = random.choice(alike if random.random() < 0.5 else sorted(base.floats))
    tensors = {**base.tensors, one: base.tensors[other], other: base.tensors[one]}
    return of_tensors(base, f"{one} and {other} changed places", tensors)


RESHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "flattened": lambda t: t.flatten(),
    "one axis more": lambda t: t[None],
    "one axis more at the end": lambda t: t[..., None],
    "doubled": lambda t: torch.cat([t, t]),
    "doubled at the end": lambda t: torch.cat([t, t], dim=-1),
    "one row less": lambda t: t[1:],
    "one column more": lambda t: torch.cat([t, t[..., :1]], dim=-1),
    "transposed": lambda t: t.mT.contiguous() if t.ndim > 1 else t.flip(0),
    "empty": lambda t: t[:0],
    "a scalar": lambda t: t.flatten()[0],
    "of many axes": lambda t: t.reshape(*[1] * 20, -1),
}


def reshaped(random: Random, base: Base) -> Mutant:
    name, how = chosen(random, base.floats), chosen(random, RESHAPED)
    return of_tensors(base, f"{name} {how}", {**base.tensors, name: RESHAPED[how](base.tensors[name])})


def permuted(random: Random, base: Base) -> Mutant:
    name = chosen(random, base.floats)
    value = base.tensors[name]
    axis = random.randrange(value.ndim)
    order = torch.tensor(random.sample(range(value.shape[axis]), value.shape[axis]))
    return of_tensors(base, f"{name} permuted", {**base.tensors, name: value.index_select(axis, order)})


RETYPED = ("float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool", "complex64")
EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "uint16", "uint64")  # numpy knows none of the floats


def retyped(random: Random, base: Base) -> Mutant:
    name = random.choice([chosen(random, base.ours), next(n for n in base.ours if "pos" in n)])
    to = random.choice(RETYPED if base.name == "jax" else RETYPED + EIGHT_BITS)
    return of_tensors(base, f"{name} is {to}", {**base.tensors, name: base.tensors[name].to(getattr(torch, to))})


def retyped_positions(random: Random, base: Base) -> Mutant:
    """Other types where positions must be resampled, or channels fitted."""
    names = [n for n, ours in base.ours.items() if ours in ("pos_embed", "patch_embed.proj.weight")]
    name, to = random.choice(names), random.choice(RETYPED if base.name == "jax" else RETYPED + EIGHT_BITS)
    axis = 1 if base.ours[name] == "pos_embed" or base.name != "jax" else 2
    if base.tensors[name].ndim == 4 or base.ours[name] == "pos_embed":
        shape = list(base.tensors[name].shape)
        shape[axis] = random.choice([2, 5, 10])
    else:
        shape = list(base.tensors[name].shape)
    value = torch.ones(shape).to(getattr(torch, to))
    return of_tensors(base, f"{name} is {to} {shape}", {**base.tensors, name: value})


def all_retyped(random: Random, base: Base) -> Mutant:
    to = random.choice(RETYPED)
    tensors = {name: value.to(getattr(torch, to)) for name, value in base.tensors.items()}
    return of_tensors(base, f"all are {to}", tensors)


def revalued(random: Random, base: Base) -> Mutant:
    name, value = chosen(random, base.floats), random.choice([float("nan"), float("inf"), 0.0, 3e38, -1e-45])
    tensor = base.tensors[name].clone()
    tensor.flatten()[random.randrange(tensor.numel()) :] = value
    return of_tensors(base, f"{name} has {value}", {**base.tensors, name: tensor})


def prefixed(random: Random, base: Base) -> Mutant:
    prefix = "".join(random.choices(["module.", "_orig_mod.", "backbone."], k=random.randint(1, 3)))
    content = base.write({prefix + name: value for name, value in base.tensors.items()})
    values = base.expected(base.tensors)
    assert values is not None
    return Mutant(f"all names have {prefix}", content, "load", values)


def of_other_positions(random: Random, base: Base) -> Mutant:
    name = next(name for name, ours in base.ours.items() if ours == "pos_embed")
    length = random.choice([0, 1, 2, 3, 4, 6, 10, 17, 26, 1025])
    return of_tensors(base, f"{length} positions", {**base.tensors, name: torch.ones(1, length, 16)})


def of_other_channels(random: Random, base: Base) -> Mutant:
    name = next(name for name, ours in base.ours.items() if ours == "patch_embed.proj.weight")
    channels = random.choice([0, 1, 2, 4, 5, 64])
    shape = (4, 4, channels, 16) if base.name == "jax" else (16, channels, 4, 4)
    if channels == 0:
        return Mutant("no channels", base.write({**base.tensors, name: torch.ones(shape)}), "refuse")
    return of_tensors(base, f"{channels} channels", {**base.tensors, name: torch.ones(shape)})


def of_another_format(random: Random, base: Base) -> Mutant:
    """Names of another format, beside those of the file's own or in their place."""
    other = base_of(random.choice([name for name in FORMATS if FORMATS[name][1] != FORMATS[base.name][1]]))
    if random.random() < 0.5:
        tensors = {**{n: v for n, v in base.tensors.items() if random.random() < 0.5}, **other.tensors}
        return Mutant(f"half of it is {other.name}", base.write(tensors), "refuse")
    values = other.expected(other.tensors) if other.architecture == base.architecture else None
    return Mutant(f"it is {other.name}", base.write(other.tensors), "load" if values else "refuse", values or {})


TENSORS: dict[str, tuple[Mutator, set[str], tuple[str, ...], int]] = {  # what, how it ends, of which formats, how often
    "renamed": (renamed, {"refuse"}, tuple(FORMATS), 4),
    "copied": (copied, {"refuse"}, tuple(FORMATS), 2),
    "dropped": (dropped, BOTH, tuple(FORMATS), 3),
    "swapped": (swapped, BOTH, tuple(FORMATS), 3),
    "reshaped": (reshaped, BOTH, tuple(FORMATS), 6),
    "permuted": (permuted, {"load"}, tuple(FORMATS), 1),
    "retyped": (retyped, BOTH, tuple(FORMATS), 6),
    "retyped positions": (retyped_positions, BOTH, RESAMPLED, 5),
    "all retyped": (all_retyped, BOTH, tuple(FORMATS), 2),
    "revalued": (revalued, {"load"}, tuple(FORMATS), 1),
    "prefixed": (prefixed, {"load"}, tuple(name for name in FORMATS if name != "jax"), 2),
    "other positions": (of_other_positions, BOTH, RESAMPLED, 3),
    "other channels": (of_other_channels, BOTH, BY_CONVOLUTION, 4),
    "another format": (of_another_format, BOTH, tuple(FORMATS), 2),
}


# Objects: what torch.save can hold besides plain tensors


class Odd(Tensor):
    """A subclass, which a reader of weights does not know."""


def _loop(tensors: dict[str, Any]) -> dict[str, Any]:
    tensors["loop"] = tensors
    return tensors


def _in_one_storage(tensors: dict[str, Any]) -> dict[str, Any]:
    floats = {name: value for name, value in tensors.items() if value.dtype in FLOATS}
    flat = torch.cat([value.flatten() for value in floats.values()])
    parts = flat.split([value.numel() for value in floats.values()])
    return {**tensors, **{name: part.view(tensors[name].shape) for name, part in zip(floats, parts, strict=True)}}


def _spaced(value: Tensor) -> Tensor:
    room = torch.zeros(*value.shape[:-1], 2 * value.shape[-1])
    room[..., ::2] = value
    return room[..., ::2]


def _each(change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: change(value) if value.dtype in FLOATS else value for name, value in tensors.items()}


def _one(change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def of(tensors: dict[str, Any]) -> dict[str, Any]:
        name = max(tensors, key=lambda name: ("weight" in name, tensors[name].numel()))
        return {**tensors, name: change(tensors[name])}

    return of


OBJECTS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "parameters": (_each(nn.Parameter), "load"),
    "transposed strides": (_each(lambda t: t.mT.contiguous().mT if t.ndim > 1 else t), "load"),
    "spaced elements": (_each(_spaced), "load"),
    "one storage": (_in_one_storage, "load"),
    "names that are numbers": (lambda tensors: {**tensors, 3: torch.ones(1), None: 1, (1, 2): []}, "load"),
    "text and numbers beside": (lambda tensors: {**tensors, "epoch": 3, "note": "x" * 999, "lr": [0.1]}, "load"),
    "a dict in itself": (_loop, "load"),
    "a negated view": (_each(lambda t: torch._neg_view(t)), "load"),
    "a view of one number": (_one(lambda t: torch.ones(1).expand(t.shape)), "refuse"),
    "a view of many": (_one(lambda t: torch.ones(1).expand(1 << 20, 1 << 20)), "refuse"),
    "sparse": (_one(lambda t: t.to_sparse()), "refuse"),
    "compressed sparse": (_one(lambda t: t.flatten(1).to_sparse_csr()), "refuse"),
    "without values": (_one(lambda t: t.to("meta")), "refuse"),
    "quantised": (_one(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), "refuse"),
    "nested": (_one(lambda t: torch.nested.nested_tensor([t, t])), "refuse"),
    "a subclass": (_one(lambda t: t.as_subclass(Odd)), "refuse"),
    "complex conjugate": (_one(lambda t: t.to(torch.complex64).conj()), "refuse"),
    "an imaginary part": (_one(lambda t: torch.complex(t, t).imag), "load"),
    "a dict in a tensor's place": (_one(lambda t: {"weight": t}), "refuse"),
    "a list in a tensor's place": (_one(lambda t: t.tolist()), "refuse"),
    "nothing in a tensor's place": (_one(lambda t: None), "refuse"),
    "an array in a tensor's place": (_one(lambda t: t.numpy()), "refuse"),
}


def object_mutant(what: str, base: Base) -> Mutant:
    change, must = OBJECTS[what]
    tensors = change(dict(base.tensors))
    values = base.expected(base.tensors) if must == "load" else {}
    if what == "a negated view":
        values = base.expected({**base.tensors, **{name: -value for name, value in base.floats.items()}})
    assert values is not None
    return Mutant(what, base.write(tensors), must, values)


# Bytes


def _spans(base: Base, content: bytes) -> dict[str, tuple[int, int]]:
    """Parts of a file to damage, from one byte to another."""
    spans = {"file": (0, len(content)), "head": (0, 120), "tail": (len(content) - 120, len(content))}
    if content[:2] == b"PK":
        spans["directory"] = (central(content), len(content))
    if base.is_torch:
        spans["pickle"] = pickle_span(content)
    if content[8:9] == b"{":
        spans["header"] = (0, 8 + struct.unpack_from("<Q", content)[0])
    return spans


def _place(random: Random, base: Base, content: bytes) -> tuple[str, int, int]:
    spans = _spans(base, content)
    name = chosen(random, spans)
    return name, *spans[name]


def truncated(random: Random, base: Base) -> Mutant:
    content = base.content()
    length = random.choice(
        [random.randrange(len(content)), random.randrange(200), len(content) - 1 - random.randrange(99)]
    )
    return Mutant(f"cut to {length} of {len(content)}", content[:length], "refuse")


def flipped(random: Random, base: Base) -> Mutant:
    content = bytearray(base.content())
    name, begin, end = _place(random, base, bytes(content))
    count = random.choice([1, 1, 2, 4, 16, 64])
    for _ in range(count):
        content[random.randrange(begin, end)] ^= 1 << random.randrange(8)
    return Mutant(f"{count} bits of the {name} flipped", bytes(content))


def overwritten(random: Random, base: Base) -> Mutant:
    content = bytearray(base.content())
    name, begin, end = _place(random, base, bytes(content))
    length = min(random.choice([1, 4, 8, 64, 512]), end - begin)
    begin = random.randrange(begin, end - length + 1)
    content[begin : begin + length] = random.choice([bytes(length), b"\xff" * length, random.randbytes(length)])
    return Mutant(f"{length} bytes of the {name} written over", bytes(content))


def inserted(random: Random, base: Base) -> Mutant:
    content = base.content()
    name, begin, end = _place(random, base, content)
    at, length = random.randrange(begin, end), random.choice([1, 2, 8, 64, 5000])
    return Mutant(f"{length} bytes put into the {name}", content[:at] + random.randbytes(length) + content[at:])


def removed(random: Random, base: Base) -> Mutant:
    content = base.content()
    name, begin, end = _place(random, base, content)
    at, length = random.randrange(begin, end), random.choice([1, 2, 8, 64, 512])
    return Mutant(f"{length} bytes taken out of the {name}", content[:at] + content[at + length :])


def shuffled(random: Random, base: Base) -> Mutant:
    content = base.content()
    one, other = sorted(random.sample(range(1, len(content)), 2))
    parts = [content[:one], content[one:other], content[other:]]
    random.shuffle(parts)
    return Mutant("parts in another order", b"".join(parts))


def joined(random: Random, base: Base) -> Mutant:
    one, other = base.content(), base_of(chosen(random, FORMATS)).content()
    at = random.randrange(1, len(one))
    return Mutant("the end of another file", one[:at] + other[min(at, len(other) - 1) :])


BYTES: dict[str, tuple[Mutator, set[str], tuple[str, ...], int]] = {
    "truncated": (truncated, {"refuse"}, tuple(FORMATS), 6),
    "flipped": (flipped, BOTH, tuple(FORMATS), 12),
    "overwritten": (overwritten, BOTH, tuple(FORMATS), 8),
    "inserted": (inserted, {"refuse"}, tuple(FORMATS), 6),
    "removed": (removed, {"refuse"}, tuple(FORMATS), 6),
    "shuffled": (shuffled, {"refuse"}, tuple(FORMATS), 2),
    "joined": (joined, {"refuse"}, tuple(FORMATS), 2),
}


# Headers of safetensors


def _header(change: Callable[[dict[str, Any]], Any]) -> bytes:
    content = base_of("ours").content()
    [length] = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header = change(header) or header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _entry(**fields: Any) -> bytes:
    return _header(lambda header: header["head.weight"].update(fields))


def _length(value: int) -> bytes:
    return struct.pack("<Q", value) + base_of("ours").content()[8:]


def _text(change: Callable[[bytes], bytes]) -> bytes:
    return _header(lambda header: change(json.dumps(header).encode()))


def _offsets(shift_begin: int, shift_end: int) -> bytes:
    def change(header: dict[str, Any]) -> None:
        begin, end = header["head.weight"]["data_offsets"]
        header["head.weight"]["data_offsets"] = [begin + shift_begin, end + shift_end]

    return _header(change)


def safetensors_headers() -> dict[str, bytes]:
    size = len(base_of("ours").content())
    lengths = (0, 1, 7, size - 9, size - 8, size, size + 1, 2**31, 2**32 + 8, 2**63, 2**64 - 1, 100_000_001)
    cases = {f"length {value}": _length(value) for value in lengths}
    shapes: tuple[Any, ...] = (
        [2**62], [2**63 - 1, 2**63 - 1], [-3, -16], [3, -16], [0], [], [3], [16, 3], [48], [1] * 999 + [48], "3", None,
        [3.0, 16.0], [[3, 16]], ["3", "16"], [True, 48], [1e30], {"0": 3},
    )  # fmt: skip
    cases.update({f"shape {str(shape)[:40]}": _entry(shape=shape) for shape in shapes})
    offsets: tuple[Any, ...] = (
        [0, 2**63], [-192, 0], [192, 0], [0, 0], [2**64 - 192, 2**64 - 1], [0], [], None, "0", [0.5, 192.5], [0, size],
        [[0], [192]], [0, 96, 192],
    )  # fmt: skip
    cases.update({f"offsets {offset}": _entry(data_offsets=offset) for offset in offsets})
    cases.update(
        {f"offsets moved by {by}": _offsets(*by) for by in ((4, 4), (-4, -4), (0, 4), (-4, 0), (8, 0), (0, -8))}
    )
    dtypes = ("F99", "", None, 32, "f32", "I32", "U32", "F64", "BF16", "F8_E4M3", "F8_E8M0", "F4", "BOOL", "C64", "I64")
    cases.update({f"dtype {dtype}": _entry(dtype=dtype) for dtype in dtypes})
    half = _header(lambda h: h["head.weight"].update(dtype="F4", shape=[3, 128]))
    cases["four bits of the same size"] = half
    cases["eight bits of the same size"] = _entry(dtype="F8_E4M3", shape=[3, 64])
    cases["more fields"] = _entry(more=[1, 2])
    cases["no dtype"] = _header(lambda h: h["head.weight"].pop("dtype") and None)
    cases["no JSON"] = _text(lambda text: text.replace(b"{", b"<"))
    cases["two objects"] = _text(lambda text: text + text)
    cases["a list"] = _text(lambda text: b"[" + text + b"]")
    cases["not UTF-8"] = _text(lambda text: text.replace(b"head.bias", b"head.bi\xff\xfe"))
    cases["a null byte"] = _text(lambda text: text.replace(b"head.bias", b"head\x00bias"))
    cases["half a surrogate"] = _text(lambda text: text.replace(b"head.bias", rb"head\ud800as"))
    cases["deep"] = _text(lambda text: b'{"a":' * 20_000 + text + b"}" * 20_000)
    cases["deep list"] = _text(lambda text: b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}")
    cases["two entries of one name"] = _text(
        lambda text: text[:-1] + b', "head.bias": ' + json.dumps(json.loads(text)["head.bias"]).encode() + b"}"
    )
    cases["two entries of one name that differ"] = _text(
        lambda text: text[:-1] + b', "head.bias": ' + json.dumps(json.loads(text)["norm.bias"]).encode() + b"}"
    )
    cases["space before"] = _text(lambda text: b"  " + text)
    cases["space after"] = _text(lambda text: text + b" " * 7)
    cases["nulls after"] = _text(lambda text: text + bytes(7))
    cases["no alignment"] = _text(lambda text: text + b" " * ((-len(text)) % 8 + 3))
    for metadata in ({"format": "tf"}, {"format": 3}, [], "pt", {"a": "b" * 10_000}, {"format": None}):
        cases[f"metadata {str(metadata)[:30]}"] = _header(lambda h, m=metadata: h.update(__metadata__=m))
    cases["data after the end"] = base_of("ours").content() + bytes(8)
    cases["ten thousand empty tensors"] = _header(
        lambda h: h.update({f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10_000)})
    )
    return cases


# Pickles that would run something


def _text_of(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def programs(canary: str) -> dict[str, bytes]:
    """Opcodes that make one value, most of them by running what makes a file."""
    touch, code = _text_of(f"touch {canary}"), _text_of(f"open({canary!r}, 'w')")
    short = b"\x8c" + bytes([len(f"touch {canary}")]) + f"touch {canary}".encode() if len(canary) < 240 else touch
    calls = {
        "os system": _call("os", "system", touch),
        "posix system": _call("posix", "system", touch),
        "nt system": _call("nt", "system", touch),
        "eval": _call("builtins", "eval", code),
        "exec": _call("builtins", "exec", code),
        "python 2 eval": _call("__builtin__", "eval", code),
        "python 2 execfile": _call("__builtin__", "execfile", _text_of(canary)),
        "compile": _call("builtins", "compile", code, _text_of("x"), _text_of("exec")),
        "import": _call("builtins", "__import__", _text_of("os")),
        "open": _call("builtins", "open", _text_of(canary), _text_of("w")),
        "io open": _call("io", "open", _text_of(canary), _text_of("w")),
        "getattr": _call("builtins", "getattr", b"cos\nsystem\n", _text_of("__call__")),
        "a method of a class": _call("torch", "Tensor.tofile", touch),
        "attributes in a name": _call("torch._utils", "_rebuild_tensor.__globals__", touch),
        "popen": _call("subprocess", "Popen", touch),
        "pty": _call("pty", "spawn", touch),
        "runpy": _call("runpy", "run_path", _text_of(canary)),
        "timeit": _call("timeit", "timeit", code),
        "partial": _call("functools", "partial", b"cos\nsystem\n", touch),
        "attrgetter": _call("operator", "attrgetter", _text_of("system")),
        "pickle loads": _call("pickle", "loads", _text_of("cos\nsystem\n(S'x'\ntR.")),
        "torch load": _call("torch", "load", _text_of(canary)),
        "torch serialization load": _call("torch.serialization", "load", _text_of(canary)),
        "torch storage from bytes": _call("torch.storage", "_load_from_bytes", _text_of("x")),
        "torch hub": _call("torch.hub", "load", _text_of("a/b"), _text_of("c")),
        "torch save": _call("torch", "save", _text_of("x"), _text_of(canary)),
        "torch jit": _call("torch.jit", "load", _text_of(canary)),
        "a module": _call("torch.nn.modules.linear", "Linear", b"K\x02", b"K\x02"),
        "numpy load": _call("numpy", "load", _text_of(canary)),
        "numpy save": _call("numpy", "save", _text_of(canary), b"K\x01"),
        "numpy testing": _call("numpy.testing._private.utils", "runstring", code, b"}"),
        "numpy reconstruct": _call(
            "numpy._core.multiarray", "_reconstruct", b"cnumpy\nndarray\n", b"K\x00\x85", _text_of("b")
        ),
        "this package": _call("whitebox_crate", "create_model", _text_of("crate_large")),
        "a rebuild of another type": _call(
            "torch._tensor", "_rebuild_from_type_v2", b"cos\nsystem\n", b"ctorch\nTensor\n", touch + b"\x85", b"}"
        ),
        "a wrapper of another type": _call("torch._utils", "_rebuild_wrapper_subclass", b"cos\nsystem\n", touch),
        "bytes of any number": _call("builtins", "bytearray", b"J\x00\x00\x00\x10"),
        "python 2 bytes of any number": _call("__builtin__", "bytearray", b"J\x00\x00\x00\x10"),
        "a slow codec": _call("_codecs", "encode", _text_of("é" * 3000), _text_of("punycode")),
        "a codec": _call("_codecs", "encode", _text_of("x"), _text_of("rot13")),
        "a tensor of any size": _call("torch", "FloatTensor", b"J\x00\x00\x00\x40"),
        "a tensor without values": _call("torch", "Tensor", b"J\x00\x00\x00\x40"),
        "a storage of any size": _call("torch.storage", "UntypedStorage", b"J\x00\x00\x00\x40"),
        "inst": b"(" + touch + b"ios\nsystem\n",
        "obj": b"(cos\nsystem\n" + touch + b"o",
        "stack global": _text_of("os") + _text_of("system") + b"\x93" + touch + b"\x85R",
        "short stack global": b"\x8c\x02os\x8c\x06system\x93" + short + b"\x85R",
        "newobj": b"cos\nsystem\n" + touch + b"\x85\x81",
        "newobj ex": b"cos\nsystem\n" + touch + b"\x85}\x92",
        "build": b"ccollections\nOrderedDict\n)R}" + _text_of("items") + b"cos\nsystem\nsb",
        "build of a tensor": b"ctorch\nTensor\n)R" + touch + b"\x85b",
        "extension": b"\x82\x01",
        "extension of four": b"\x84\x01\x00\x00\x00",
        "a persistent id": touch + b"Q",
        "a textual persistent id": b"Pos.system\n",
        "a storage that is not there": b"("
        + _text_of("storage")
        + b"ctorch\nFloatStorage\n"
        + _text_of("../../etc/passwd")
        + _text_of("cpu")
        + b"K\x04tQ",
        "a nested pickle": _call("_pickle", "loads", _text_of("x")),
        "opcodes that do not exist": b"\xfe\xff",
        "a stop too early": b".",
        "a mark too much": b"(",
        "a pop of nothing": b"0000",
        "a name that is not there": b"h\xff",
        "a string without an end": b"X\xff\xff\xff\x7f",
        "bytes without an end": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        "a long number": b"\x8b\xff\xff\xff\x7f",
        "a memo far away": b"Nr\xff\xff\xff\x7f",
        "another protocol": b"\x80\x05N",
        "an unknown protocol": b"\x80\xffN",
    }
    return calls


HARMLESS = {  # what no weights need, and what harms nobody
    "a memo far away",
    "another protocol",
    "an unknown protocol",
    "a name that is not there",
}


def program_mutant(what: str, where: str, folder: Path) -> Mutant:
    body = programs(str(folder / "canary"))[what]
    must = "either" if what in HARMLESS else "refuse"
    if where == "bare":
        return Mutant(what, b"\x80\x02" + body + b".", "refuse")
    return Mutant(what, spliced(base_of(where).content(), body), must)


WHERE = ("bare", "official", "legacy")  # a pickle of nothing else, or an entry of a checkpoint


# Archives


def _added(name: str, held: bytes = b"", **info: Any) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        out = io.BytesIO(content)
        with zipfile.ZipFile(out, "a") as archive:
            member = zipfile.ZipInfo(name)
            for key, value in info.items():
                setattr(member, key, value)
            archive.writestr(member, held)
        return out.getvalue()

    return change


def _in_directory(at: int, kind: str, value: int, member: int = 0) -> Callable[[bytes], bytes]:
    """Writes a number into the entry of a member in the central directory."""

    def change(content: bytes) -> bytes:
        out, place = bytearray(content), central(content)
        for _ in range(member):
            place += 46 + sum(struct.unpack_from("<HHH", out, place + 28))
        struct.pack_into(f"<{kind}", out, place + at, value)
        return bytes(out)

    return change


def _in_member(at: int, kind: str, value: int) -> Callable[[bytes], bytes]:
    """Writes a number into the header of the first member."""

    def change(content: bytes) -> bytes:
        out = bytearray(content)
        struct.pack_into(f"<{kind}", out, at, value)
        return bytes(out)

    return change


def _held(ending: str, change: Callable[[bytes], bytes | None]) -> Callable[[bytes], bytes]:
    return lambda content: rezipped(content, lambda name, held: change(held) if name.endswith(ending) else held)


def _other(content: bytes) -> bytes:
    """The same archive with other weights."""
    return rezipped(content, lambda name, held: held[::-1] if "/data/" in name else held)


def _many(content: bytes) -> bytes:
    out = io.BytesIO(content)
    with zipfile.ZipFile(out, "a") as archive:
        for number in range(2000):
            archive.writestr(f"archive/extra/{number}", b"")
    return out.getvalue()


ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "out of the archive": _added("../evil.npy", b"x"),
    "out of it deeper": _added("archive/../../evil", b"x"),
    "an absolute path": _added("/tmp/evil", b"x"),
    "a path of Windows": _added("..\\evil", b"x"),
    "a drive": _added("C:\\evil", b"x"),
    "a name without an end": _added("a" * 60_000, b"x"),
    "a name with a null": _added("archive/data.pkl", b"x"),
    "a link": _added("archive/link", b"/etc/passwd", external_attr=0o120777 << 16),
    "a folder": _added("archive/folder/"),
    "a program": _added("archive/code/__torch__.py", b"import os"),
    "constants": _added("archive/constants.pkl", b"x"),
    "a second pickle": _added("other/data.pkl", b"\x80\x02}."),
    "many members": _many,
    "deflated": lambda content: rezipped(content, lambda _, held: held, zipfile.ZIP_DEFLATED),
    "bzip2": lambda content: rezipped(content, lambda _, held: held, zipfile.ZIP_BZIP2),
    "lzma": lambda content: rezipped(content, lambda _, held: held, zipfile.ZIP_LZMA),
    "a comment": lambda content: content[:-2] + b"\x05\x00hello",
    "a comment without an end": lambda content: content[:-2] + b"\xff\xff",
    "something before": lambda content: b"#!/bin/sh\n" + content,
    "a member before": lambda content: content[:200] + content,
    "something after": lambda content: content + b"PK\x05\x06" + bytes(18),
    "two archives": lambda content: content + content,
    "encrypted": _in_directory(8, "H", 1),
    "an unknown method": _in_directory(10, "H", 77),
    "said to be deflated": _in_directory(10, "H", 8),
    "a wrong sum": _in_directory(16, "I", 12345),
    "smaller than it is": _in_directory(20, "I", 1),
    "larger than it is": _in_directory(24, "I", 1 << 31),
    "as large as can be": _in_directory(24, "I", (1 << 32) - 1),
    "both too large": lambda content: _in_directory(20, "I", 1 << 30)(_in_directory(24, "I", 1 << 30)(content)),
    "at another place": _in_directory(42, "I", 1 << 30),
    "at the place of another": _in_directory(42, "I", 0, member=1),
    "a name too long": _in_directory(28, "H", 60_000),
    "extra fields without an end": _in_directory(30, "H", 60_000),
    "no signature": _in_directory(0, "I", 0),
    "a member's wrong size": _in_member(22, "I", 1 << 31),
    "a member's wrong name": _in_member(30, "I", 0x2F2E2E2F),
    "a member's extra": _in_member(28, "H", 60_000),
    "a member's name too long": _in_member(26, "H", 60_000),
    "no member": lambda content: b"PK\x05\x06" + bytes(18),
    "no member but a start": lambda content: b"PK\x03\x04" + bytes(30) + b"PK\x05\x06" + bytes(18),
    "a hidden directory": lambda content: two_directories(rezipped(content, lambda _, held: held), _other(content)),
}
NOT_WHOLE = {"no data", "less data", "more data", "a folder of a storage"}  # torch's own reader takes some of them
OF_TORCH: dict[str, Callable[[bytes], bytes]] = {
    "no pickle": _held("data.pkl", lambda held: None),
    "an empty pickle": _held("data.pkl", lambda held: b""),
    "no data": _held("data/0", lambda held: None),
    "less data": _held("data/0", lambda held: held[:-4]),
    "more data": _held("data/0", lambda held: held + bytes(64)),
    "no version": _held("version", lambda held: None),
    "a version to come": _held("version", lambda held: b"99999\n"),
    "a version of words": _held("version", lambda held: b"three\n"),
    "no order of bytes": _held("byteorder", lambda held: None),
    "bytes the other way": _held("byteorder", lambda held: b"big"),
    "bytes in any order": _held("byteorder", lambda held: b"middle"),
    "a small storage": _held("data.pkl", lambda held: held.replace(b"K\x10tq", b"K\x01tq", 1)),
    "a large storage": _held("data.pkl", lambda held: held.replace(b"K\x10tq", b"J\x00\x00\x00\x40tq", 1)),
    "a negative storage": _held("data.pkl", lambda held: held.replace(b"K\x10tq", b"J\xf0\xff\xff\xfftq", 1)),
    "another device": _held("data.pkl", lambda held: held.replace(b"X\x03\x00\x00\x00cpu", b"X\x04\x00\x00\x00cuda")),
    "a device that is none": _held(
        "data.pkl", lambda held: held.replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00xyz")
    ),
    "no values": _held("data.pkl", lambda held: held.replace(b"X\x03\x00\x00\x00cpu", b"X\x04\x00\x00\x00meta")),
    "a storage of others": _held("data.pkl", lambda held: held.replace(b"FloatStorage", b"LongStorage", 1)),
    "a storage of four bits": _held("data.pkl", lambda held: held.replace(b"FloatStorage", b"QUInt4x2Storage", 1)),
    "a storage of complex numbers": _held(
        "data.pkl", lambda held: held.replace(b"FloatStorage", b"ComplexFloatStorage")
    ),
    "another rebuild": _held("data.pkl", lambda held: held.replace(b"_rebuild_tensor_v2", b"_rebuild_sparse_tensor")),
    "a rebuild without values": _held(
        "data.pkl", lambda held: held.replace(b"_rebuild_tensor_v2", b"_rebuild_meta_tensor_no_storage")
    ),
    "a rebuild of parameters": _held(
        "data.pkl", lambda held: held.replace(b"_rebuild_tensor_v2", b"_rebuild_parameter")
    ),
}


# Arrays


def _array(header: str, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version[:1] == b"\x01" else "<I", len(text)) + text + data


def _saved(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


BIAS = np.arange(3, dtype=np.float32)


def _said(
    descr: str, shape: str = "(3,)", order: str = "False", data: bytes = BIAS.tobytes(), **version: bytes
) -> bytes:
    return _array(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}", data, **version)


class Run:
    """Makes a file if it is ever unpickled."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


ARRAYS: dict[str, tuple[bytes, str]] = {  # in the place of head/bias, float32 of shape (3,)
    "as it was": (_said("'<f4'"), "load"),
    "big-endian": (_saved(BIAS.astype(">f4")), "load"),
    "double": (_saved(BIAS.astype("f8")), "load"),
    "half, big-endian": (_saved(BIAS.astype(">f2")), "load"),
    "by columns": (_said("'<f4'", order="True"), "load"),
    "version 2": (_said("'<f4'", version=b"\x02\x00"), "load"),
    "version 3": (_said("'<f4'", version=b"\x03\x00"), "refuse"),
    "version 9": (_said("'<f4'", version=b"\x09\x00"), "refuse"),
    "bfloat16 as two bytes": (_said("'|V2'", data=bytes([0, 0, 0x80, 0x3F, 0, 0x40])), "load"),
    "four bytes of anything": (_said("'|V4'"), "refuse"),
    "no bytes of anything": (_said("'|V0'", data=b""), "refuse"),
    "extended": (_saved(BIAS.astype(np.longdouble)), "refuse"),
    "complex": (_saved(BIAS.astype("c8")), "refuse"),
    "numbers": (_saved(BIAS.astype("i8")), "refuse"),
    "yes and no": (_saved(BIAS > 1), "refuse"),
    "objects": (_saved(np.array([Run("fuzz-canary")] * 3, dtype=object)), "refuse"),
    "text": (_saved(np.array(["a", "b", "c"])), "refuse"),
    "bytes": (_saved(np.array([b"abcd"] * 3)), "refuse"),
    "dates": (_saved(np.array([1, 2, 3], "M8[s]")), "refuse"),
    "structures": (_saved(np.zeros(3, [("a", "f4")])), "refuse"),
    "structures of objects": (_saved(np.zeros(3, [("a", "O")])), "refuse"),
    "empty structures": (_said("[]"), "refuse"),
    "a part of many": (_said("('<f4', (1000000000,))", shape="(0,)", data=b""), "refuse"),
    "a shape in the type": (_said("('<f4', (3,))", shape="()"), "refuse"),
    "a shape in two bytes": (_said("('|i1', (2,))", data=bytes(6)), "refuse"),
    "too many": (_said("'<f4'", shape="(1000000000000,)"), "refuse"),
    "too few": (_said("'<f4'", shape="(2,)"), "refuse"),
    "fewer than none": (_said("'<f4'", shape="(-3,)"), "refuse"),
    "fewer than none twice": (_said("'<f4'", shape="(-3, -1)"), "refuse"),
    "none of too many": (_said("'<f4'", shape="(0, 9223372036854775807, 9)", data=b""), "refuse"),
    "more than a number holds": (_said("'<f4'", shape="(10000000000000000000000, 0)", data=b""), "refuse"),
    "a shape of fractions": (_said("'<f4'", shape="(3.0,)"), "refuse"),
    "a shape of words": (_said("'<f4'", shape="'3'"), "refuse"),
    "many axes": (_said("'<f4'", shape=f"({'1, ' * 70}3)"), "refuse"),
    "another shape": (_said("'<f4'", shape="(3, 1)"), "refuse"),
    "a call": (_said("__import__('os').system('touch fuzz-canary')"), "refuse"),
    "no header": (_array("", BIAS.tobytes()), "refuse"),
    "no JSON": (_array("{", BIAS.tobytes()), "refuse"),
    "more in the header": (_array("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'x': 1}", b""), "refuse"),
    "a deep header": (_array("(" * 9000, b""), "refuse"),
    "a header of signs": (_array("-" * 9000 + "1", b""), "refuse"),
    "a long header": (_array("{" + " " * 60_000 + "}", b""), "refuse"),
    "a header without an end": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "refuse"),
    "no magic": (b"NUMPY" + bytes(99), "refuse"),
    "nothing": (b"", "refuse"),
}  # fmt: skip


def array_mutant(what: str) -> Mutant:
    base, (held, must) = base_of("jax"), ARRAYS[what]
    name = next(theirs for theirs, ours in base.ours.items() if ours == "head.bias")
    content = rezipped(base.content(), lambda member, old: held if member == f"{name}.npy" else old)
    values = base.expected({**base.tensors, name: torch.arange(3.0)})
    assert values is not None
    return Mutant(what, content, must, values if must == "load" else {})


# Folders: config.json beside weights that are sound


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 10**9, -(2**63), 10**30, 10**400, 0.5, 1e300, float("nan"), float("inf"), "", "text", "3",
    "\ud800", [], [1], [3, 8, 8], [None] * 3, [[[]]], {}, {"a": {"b": [1]}}, {"__class__": "x"},
)  # fmt: skip
UNSEEN = (  # what no other library than its writer has, or two in one file
    ("architecture", "crate_tiny"), ("architecture", "crate_alpha_tiny"), ("architecture", "vit_tiny"),
    ("architecture", "crate_tiny.tag"), ("architecture", "../crate_tiny"), ("architecture", "local-dir:."),
    ("architecture", "hf-hub:a/b"), ("architecture", "a" * 100_000), ("model_args", {"pretrained": True}),
    ("model_args", {"checkpoint_path": "/etc/passwd"}), ("model_args", {"name": "crate_tiny"}), ("model_args", {"": 1}),
    ("label_names", ["a"] * 100_000), ("label_names", [[[["a"]]]] * 3), ("extra", "x" * 100_000),
    ("pretrained_cfg", {"file": "../../x", "hf_hub_id": "a/b", "url": "file:///etc/passwd"}),
)  # fmt: skip


def _folder(architecture: str, folder: Path) -> dict[str, Any]:
    save_pretrained(made(architecture), folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _places(config: Mapping[str, Any], architecture: str) -> list[tuple[str, ...]]:
    parameters = inspect.signature(model_entrypoint(architecture)).parameters
    return [
        *((key,) for key in (*config, "unknown")),
        *(("pretrained_cfg", key) for key in (*config["pretrained_cfg"], "label_names", "notes", "attention_head")),
        *(("model_args", key) for key in parameters),
    ]


def _with(config: Mapping[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = place
    return {**config, first: {**config[first], rest[0]: value} if rest else value}


def check_folder(folder: Path, architecture: str, case: str) -> str:
    """Loads a folder whose config.json was changed; its weights were not, so they must all be there if it loads."""
    before = set(folder.iterdir())
    model, error = attempt(lambda: create_model(f"local-dir:{folder}", pretrained=True))
    assert set(folder.iterdir()) == before, case
    if error is not None:
        return "refuse"
    like = create_model(model.architecture, **model.model_args)
    whole(model, like, standing(architecture)[2], case)
    return "load"


# One of how many cases is tried.
CONFIGS = {
    "crate_tiny_patch16_224": 6,
    "vit_tiny_patch16_224": 12,
    "crate_alpha_tiny_patch16_224": 12,
    "crate_mae_tiny_patch16_224": 12,
}


def config_cases(architecture: str, config: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    cases = [(place, value) for place in _places(config, architecture) for value in VALUES]
    cases += [((place,), value) for place, value in UNSEEN]
    return Random(architecture).sample(cases, len(cases) // CONFIGS[architecture])


def texts(text: str) -> dict[str, bytes]:
    whole, random = text.encode(), Random("config.json")
    cases = {f"cut to {n}": whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 3)}
    for number in range(24):
        changed = bytearray(whole)
        for _ in range(random.choice([1, 2, 8])):
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        cases[f"flipped {number}"] = bytes(changed)
    cases |= {
        f"depth {n}": b'{"a":' + b"[" * n + b"]" * n + b"," + whole[1:] for n in (10, 500, 900, 990, 5000, 100_000)
    }
    cases |= {f"labels of depth {n}": b'{"label_names":[' + b"[" * n + b"]" * n + b"]," + whole[1:] for n in (900, 985)}
    cases |= {
        "null": b"null", "a list": b"[" + whole + b"]", "text": b'"x"', "a number": b"1" * 5000, "NaN": b"NaN",
        "not UTF-8": whole.replace(b"crate", b"cr\xff\xfe"), "UTF-16": text.encode("utf-16"),
        "a mark": b"\xef\xbb\xbf" + whole,
        "two": whole + whole, "null bytes": bytes(1000), "a comment": b"// x\n" + whole,
        "a field twice": b'{"num_classes": 9,' + whole[1:],
        "a field twice, the last wrong": whole[:-2] + b',"num_classes":9}',
        "a million labels": b'{"label_names":["a"' + b',"a"' * 1_000_000 + b"]}",
    }  # fmt: skip
    return cases


# The tests


def run_all(mutators: Mapping[str, tuple[Mutator, set[str], tuple[str, ...], int]], name: str, folder: Path) -> None:
    mutator, ends, formats, times = mutators[name]
    seen = set[str]()
    for form in formats:
        for number in range(times):
            case = f"{name}/{form}/{number}"
            seen.add(check(base_of(form), mutator(Random(case), base_of(form)), folder, case))
    assert seen >= ends, f"{name} is vacuous: it only ever ends in {seen}"


@pytest.mark.parametrize("form", FORMATS)
def test_unchanged_files_load(form: str, tmp_path: Path) -> None:
    base = base_of(form)
    assert check(base, of_tensors(base, "unchanged", base.tensors), tmp_path, form) == "load"
    assert check(base, Mutant("unchanged", base.content()), tmp_path, form) == "load"


@pytest.mark.parametrize("name", mostly_slow(TENSORS, "renamed", "reshaped"))
def test_other_tensors_than_a_model_needs(name: str, tmp_path: Path) -> None:
    run_all(TENSORS, name, tmp_path)


@pytest.mark.parametrize("name", mostly_slow(BYTES, "truncated", "flipped"))
def test_damaged_bytes(name: str, tmp_path: Path) -> None:
    run_all(BYTES, name, tmp_path)


@pytest.mark.parametrize("form", mostly_slow(TORCH, "official"))
def test_objects_that_are_no_plain_tensors(form: str, tmp_path: Path) -> None:
    for what in OBJECTS:
        check(base_of(form), object_mutant(what, base_of(form)), tmp_path, f"{form}/{what}")


def test_headers_of_safetensors(tmp_path: Path) -> None:
    seen = [check(base_of("ours"), Mutant(what, c), tmp_path, what) for what, c in safetensors_headers().items()]
    assert seen.count("load") >= 5 and seen.count("refuse") >= 50


@pytest.mark.parametrize("where", WHERE)
def test_pickles_run_nothing(where: str, tmp_path: Path) -> None:
    base = base_of("official" if where == "bare" else where)
    canaries = tmp_path / "canaries"
    canaries.mkdir()
    for what in programs(""):
        check(base, program_mutant(what, where, canaries), tmp_path / "files", f"{where}/{what}")
        assert not list(canaries.iterdir()), f"{where}/{what} was run"


@pytest.mark.parametrize("form", ["official", "jax"])
def test_archives_that_are_not_what_they_say(form: str, tmp_path: Path) -> None:
    base = base_of(form)
    changes = ARCHIVES if form == "jax" else {**ARCHIVES, **OF_TORCH}
    for what, change in changes.items():
        must = "refuse" if what in NOT_WHOLE else "either"
        check(base, Mutant(what, change(base.content()), must), tmp_path, f"{form}/{what}")


def test_arrays_that_are_not_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for what in ARRAYS:
        check(base_of("jax"), array_mutant(what), tmp_path / "files", what)
        assert not list((tmp_path / "here").iterdir()), f"{what} was run"


@pytest.mark.parametrize("architecture", mostly_slow(CONFIGS, "vit_tiny_patch16_224"))
def test_configs_with_values_of_any_kind(architecture: str, tmp_path: Path) -> None:
    config, seen = _folder(architecture, tmp_path), list[str]()
    for place, value in config_cases(architecture, config):
        (tmp_path / "config.json").write_text(json.dumps(_with(config, place, value)))
        seen.append(check_folder(tmp_path, architecture, f"{architecture}: {place} is {str(value)[:50]}"))
    assert min(seen.count(end) for end in BOTH) > len(seen) / 10


def test_configs_that_are_no_json(tmp_path: Path) -> None:
    name = "crate_tiny_patch16_224"
    _folder(name, tmp_path)
    cases = texts((tmp_path / "config.json").read_text())
    seen = set[str]()
    for what, content in cases.items():
        (tmp_path / "config.json").write_bytes(content)
        seen.add(check_folder(tmp_path, name, what))
    assert seen == BOTH


def test_configs_that_are_no_files(tmp_path: Path) -> None:
    name, path = "crate_tiny_patch16_224", tmp_path / "config.json"
    _folder(name, tmp_path)
    for make in (
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path),
    ):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        make()
        assert check_folder(tmp_path, name, str(make)) == "refuse"


@pytest.mark.parametrize("form", ["ours", "timm"])
def test_folders_whose_weights_are_damaged(form: str, tmp_path: Path) -> None:
    base = base_of(form)
    _folder(base.architecture, tmp_path)
    for name in ("truncated", "flipped", "overwritten", "removed"):
        for number in range(5):
            mutant = BYTES[name][0](Random(f"folder/{name}/{number}"), base)
            (tmp_path / "model.safetensors").write_bytes(mutant.content)
            model, error = attempt(lambda: create_model(f"local-dir:{tmp_path}", pretrained=True))
            if error is None:
                assert mutant.must != "refuse"
                read = base.expected(base.read_again(mutant.content))
                whole(model, standing(base.architecture)[0], read or {}, f"{form}/{name}/{number}")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of memory anew")
def test_what_is_small_stays_small(tmp_path: Path) -> None:
    """In a process of its own, whose memory shows what each file takes."""
    out = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzzing.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    results = json.loads(out.stdout.splitlines()[-1])
    assert len(results) >= 15
    for what, (end, megabytes, seconds) in results.items():
        assert end == "refuse", (what, end)
        assert megabytes < 300 and seconds < 10, (what, megabytes, seconds)
