"""Reads pickles of weights instruction by instruction: keeps plain data, notes tensors, and calls nothing."""

from __future__ import annotations

import pickle
import pickletools
import re
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from ..errors import WeightsError

# Honest files are far below these limits: a tensor takes some 40 instructions, and its names and settings 200 bytes.
MOST_INSTRUCTIONS, LONGEST = 1 << 20, 16 << 20

_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
# Objects of these classes are not weights.
_SETTINGS = re.compile(
    r"argparse\.Namespace|torch\.device|numpy\.dtype|numpy\.(_core|core)\.multiarray\.scalar|"
    r"(__builtin__|builtins)\.(set|complex)"
)
# Names that a pickle may ask for; `_called` decides what happens with them.
_KNOWN = re.compile(
    rf"{_SETTINGS.pattern}|_codecs\.encode|collections\.(OrderedDict|Counter|defaultdict)|"
    r"torch\.(Size|[a-z]\w*|[A-Za-z0-9]+Storage)|torch\._utils\._rebuild_(tensor(_v2)?|parameter(_with_state)?)"
)
_PLAIN = (str, int, float, type(None))


@dataclass(frozen=True)
class Storage:
    """A row of numbers elsewhere in the file: its key, its dtype, and its length."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A view of a storage, in elements. It has not been compared with the storage yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    negative: bool = False


class _Name(str):
    """A name that a pickle asks for but does not get."""


class _Other:
    """A value that is not a weight: a set, settings, a number of numpy."""


_OTHER = _Other()


@dataclass
class Pickled:
    """The content of a pickle.

    Attributes:
        content: Text, numbers, lists, tuples and dicts with names as keys; `StoredTensor` in place of tensors.
        storages: The storages of these tensors, by key.
    """

    content: Any = None
    storages: dict[str, Storage] = field(default_factory=dict)


def follow(file: IO[bytes]) -> Pickled:
    """Reads one pickle of `torch.save` to its end; the file's position is then after it.

    Only text and numbers are hashed, printed or compared: a pickle of 300 bytes can describe a tuple of 2^40 parts.

    Raises:
        WeightsError: If the pickle asks for anything but tensors, plain containers and settings, or is too long.
    """
    pickled, memo = Pickled(), dict[Any, Any]()
    stack, outer = list[Any](), list[list[Any]]()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_INSTRUCTIONS:
            raise more_than_tensors(f"it has more than {MOST_INSTRUCTIONS} instructions")
        match opcode.name:
            case "PROTO" if int(argument or 0) <= pickle.HIGHEST_PROTOCOL:
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                last = [stack.pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(last)))
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "APPEND":
                item = stack.pop()
                _known_as(list, stack[-1]).append(item)
            case "APPENDS":
                items, stack = stack, outer.pop()
                _known_as(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _put(_known_as(dict, stack[-1]), key, value)
            case "SETITEMS":
                items, stack = stack, outer.pop()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _put(_known_as(dict, stack[-1]), key, value)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(str(argument)))
            case "REDUCE" | "NEWOBJ":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_called(name, arguments))
            case "BUILD":  # attributes of dicts and settings are not weights
                stack.pop()
                _known_as((dict, _Other), stack[-1])
            case "BINPERSID":
                stack.append(_stored(stack.pop(), pickled.storages))
            case "STOP":
                pickled.content = stack.pop()
            case other:
                raise more_than_tensors(f"it has the instruction {other}")
    return pickled


def more_than_tensors(what: str) -> WeightsError:
    return WeightsError(
        f"holds more than tensors, or is damaged: {what}. It is refused, because other readers would run it. Take "
        "the same weights as safetensors. Or, if you trust the author, load it where nothing can be lost, and save "
        "only its dict of tensors"
    )


def _known_as(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise more_than_tensors(f"it fills a {type(value).__name__}")
    return value


def _put(items: dict[str, Any], key: Any, value: Any) -> None:
    """Keeps entries with names. An optimizer has numbers as keys; other keys are refused, except a few."""
    if isinstance(key, str):
        items[key] = value
    elif not all(isinstance(part, _PLAIN) for part in (key if isinstance(key, tuple) else [key])):
        raise more_than_tensors("a key is neither text nor a number")


def _named(argument: str) -> _Name:
    name = argument.replace(" ", ".")
    if not _KNOWN.fullmatch(name):
        raise more_than_tensors(f"it asks for {name[:200]}")
    return _Name(name)


def _called(name: Any, arguments: Any) -> Any:
    """The result of this call, if weights need it."""
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise more_than_tensors("it calls something without a name")
    match str(name), arguments:
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (
            Storage() as storage,
            int(offset),
            tuple(size),
            tuple(stride),
            *rest,
        ):
            marks = [mark for given in rest[2:] if isinstance(given, dict) for mark, is_so in given.items() if is_so]
            if marks not in ([], ["neg"]):
                raise more_than_tensors(f"it has a tensor marked {str(marks)[:200]}")
            return StoredTensor(storage, offset, size, stride, negative=bool(marks))
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (
            StoredTensor() as tensor,
            *_,
        ):
            return tensor
        case "torch.Size", (tuple(size) | list(size),):
            return tuple(size)
        case "collections.OrderedDict" | "collections.Counter" | "collections.defaultdict", ():
            return {}
        case "collections.Counter", (dict(counts),):
            return counts
        case "collections.OrderedDict", (list(pairs),):  # the form of Python 2
            items = dict[str, Any]()
            for key, value in pairs:
                _put(items, key, value)
            return items
        case "_codecs.encode", (str(), "latin1"):
            return _OTHER
        case settings, _ if _SETTINGS.fullmatch(settings):
            return _OTHER
    raise more_than_tensors(f"it asks for {name}")


def _stored(pointer: Any, storages: dict[str, Storage]) -> Storage:
    """The storage that a pickle points to, from its type, key, device and length. Parts of storages are refused."""
    match pointer:
        case ("storage", _Name() as kind, str(key), str(), int(numel), *rest) if rest in ([], [None]):
            if kind not in _DTYPES or numel < 0:
                raise more_than_tensors(f"it has {numel} numbers as {kind}")
            storage = Storage(key, _DTYPES[kind], numel)
            if storages.setdefault(key, storage) != storage:
                raise more_than_tensors(f"its storage {key[:200]!r} has two kinds")
            return storage
    raise more_than_tensors("it points to something that is not a storage")
