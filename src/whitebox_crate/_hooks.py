"""Hooks and constants of whoever put them on: other threads and tasks, and copies of the model, do not have them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn

Constants: TypeAlias = Mapping[tuple[nn.Module, str], float]  # by module and name


class _Block:
    """What one block of code puts on modules."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants


# The blocks that the present thread or task is in, the innermost last.
_open: ContextVar[tuple[_Block, ...]] = ContextVar("open blocks", default=())
_changing = 0  # how many blocks of the process have constants; compiled code, which runs in none, looks at this alone
_registering = threading.Lock()  # torch counts hooks without one, and two of one number are one


class Hook(NamedTuple):
    """A function to run before or after a module.

    Attributes:
        module: The module.
        when: "before" for a function of the arguments, a tuple; "after" for one of the arguments and the output.
        function: As hooks of torch, but without the module; what it returns other than None is put in place.
        changes: Whether what it returns is something else than what it was given.
        with_kwargs: Whether the function gets keyword arguments, a dict, after the arguments.
        first: Whether it runs before the hooks that are there already.
    """

    module: nn.Module
    when: Literal["before", "after"]
    function: Callable[..., Any]
    changes: bool = False
    with_kwargs: bool = False
    first: bool = False


@contextmanager
def hooks_here(hooks: list[Hook], constants: Constants | None = None) -> Iterator[None]:
    """Puts hooks and constants on modules for the length of a block, and takes them off whatever happens inside.

    They hold in the context of the block alone (`contextvars`): in its thread, or in tasks that it starts. Copies that
    are made of a module inside the block, and pickles, carry none of them.

    Args:
        hooks: What to run.
        constants: What modules find in place of their own numbers, where they ask `constant_of`.
    """
    block = _Block(constants or {})
    with ExitStack() as stack:
        stack.callback(_count, -bool(constants))
        _count(bool(constants))
        for hook in hooks:
            register = (
                hook.module.register_forward_pre_hook if hook.when == "before" else hook.module.register_forward_hook
            )
            with _registering:
                handle = register(_OwnHook(block, hook), with_kwargs=hook.with_kwargs, prepend=hook.first)
            stack.callback(_remove, handle)
        _open.set((*_open.get(), block))
        stack.callback(_leave, block)
        yield


def _remove(handle: Any) -> None:
    with _registering:
        handle.remove()


def _leave(block: _Block) -> None:
    _open.set(tuple(other for other in _open.get() if other is not block))
    block.constants = {}  # tasks that outlive the block are still in it


def _count(number: int) -> None:
    global _changing
    with _registering:
        _changing += number


def constant_of(module: nn.Module, name: str) -> float:
    """A number that a module computes with: its own, or what the innermost block that changes it makes of it."""
    own: float = getattr(module, name)
    if not _changing:
        return own
    return next((b.constants[module, name] for b in reversed(_open.get()) if (module, name) in b.constants), own)


class _OwnHook:
    def __init__(self, block: _Block, hook: Hook) -> None:
        self.block, self.hook = block, hook

    def __call__(self, module: nn.Module, *seen: Any) -> Any:
        if module is self.hook.module and self.block in _open.get():
            return self.hook.function(*seen)
        return None

    def __reduce__(self) -> tuple[Any, ...]:  # what copies and pickles have in its place
        return _make_no_hook, ()


def _make_no_hook() -> Callable[..., None]:
    return _no_hook


def _no_hook(module: nn.Module, *seen: Any) -> None:
    pass


def hooks_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For gradient checkpointing: a layer that runs again, be it in a thread of autograd, has the hooks of now."""
    return nullcontext(), _Again(_open.get())


class _Again:
    """The blocks that were open once; may be entered several times, for as many backward passes."""

    def __init__(self, blocks: tuple[_Block, ...]) -> None:
        self.blocks = blocks
        self.own = threading.local()  # threads of autograd may be in it at once

    def __enter__(self) -> None:
        self.own.token = _open.set(self.blocks)

    def __exit__(self, *_: object) -> None:
        _open.reset(self.own.token)


def changes(hook: object) -> bool:
    """Whether a hook may change what its module gives: any but those of `hooks_here` that only read."""
    return hook is not _no_hook and not (isinstance(hook, _OwnHook) and not hook.hook.changes)


class _Uncompiled:
    """Compiled code runs as it was written, so that hooks run, as long as one block at least is open.

    What is compiled knows one such setting for the whole process: the first block makes it, the last one takes it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks = 0
        self.stance: Any = None

    def __enter__(self) -> None:
        with self.lock:
            # Where torch._dynamo is not there, nothing can be compiled yet, and importing it takes seconds.
            if self.stance is None and "torch._dynamo" in sys.modules:
                self.stance = torch.compiler.set_stance("force_eager")
                self.stance.__enter__()
            self.blocks += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.blocks -= 1
            if not self.blocks and self.stance is not None:
                self.stance.__exit__(None, None, None)
                self.stance = None


uncompiled = _Uncompiled()
