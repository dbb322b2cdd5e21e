"""Hooks and constants that hold in one block of code: not in other threads and tasks, nor in copies of the model."""

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
    """The hooks and constants that one block of code puts on modules."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants


# The blocks around the current thread or task, the innermost last.
_open: ContextVar[tuple[_Block, ...]] = ContextVar("open blocks", default=())
_changing = 0  # blocks of the process that have constants; compiled code runs in no block and reads this number only
_registering = threading.Lock()  # torch numbers hooks without a lock, and a number that comes twice loses a hook


class Hook(NamedTuple):
    """A function to run before or after a module.

    Attributes:
        module: The module.
        when: "before" for a function of the arguments, a tuple; "after" for a function of the arguments and the output.
        function: Like a hook of torch, but it does not get the module. A result other than None replaces the value.
        changes: Whether the function changes the value.
        with_kwargs: Whether the function gets keyword arguments, a dict, after the arguments.
        first: Whether it runs before the hooks that the module already has.
    """

    module: nn.Module
    when: Literal["before", "after"]
    function: Callable[..., Any]
    changes: bool = False
    with_kwargs: bool = False
    first: bool = False


@contextmanager
def hooks_here(hooks: list[Hook], constants: Constants | None = None) -> Iterator[None]:
    """Puts hooks and constants on modules inside a block, and takes them off whatever happens there.

    They hold only in the context of the block (`contextvars`): in its thread, and in tasks that it starts. Copies and
    pickles of a module that are made inside the block carry none of them.

    Args:
        hooks: The functions to run.
        constants: Numbers that replace the modules' own where these ask `constant_of`.
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
    block.constants = {}  # a task that outlives the block is still in it


def _count(number: int) -> None:
    global _changing
    with _registering:
        _changing += number


def constant_of(module: nn.Module, name: str) -> float:
    """A number that a module computes with: its own, or the value from the innermost block that changes it."""
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

    def __reduce__(self) -> tuple[Any, ...]:  # copies and pickles get this in its place
        return _make_no_hook, ()


def _make_no_hook() -> Callable[..., None]:
    return _no_hook


def _no_hook(module: nn.Module, *seen: Any) -> None:
    pass


def hooks_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For gradient checkpointing: a layer that runs again, even in a thread of autograd, has the current hooks."""
    return nullcontext(), _Again(_open.get())


class _Again:
    """The blocks that were open before. Each backward pass may enter them again."""

    def __init__(self, blocks: tuple[_Block, ...]) -> None:
        self.blocks = blocks
        self.own = threading.local()  # several threads of autograd may be inside at once

    def __enter__(self) -> None:
        self.own.token = _open.set(self.blocks)

    def __exit__(self, *_: object) -> None:
        _open.reset(self.own.token)


def changes(hook: object) -> bool:
    """Whether a hook may change the output of its module: all may, except hooks of `hooks_here` that only read."""
    return hook is not _no_hook and not (isinstance(hook, _OwnHook) and not hook.hook.changes)


class _Uncompiled:
    """Makes compiled code run uncompiled, so that hooks run, while at least one block is open.

    PyTorch has one such setting for the whole process: the first block makes it, the last block takes it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks = 0
        self.stance: Any = None

    def __enter__(self) -> None:
        with self.lock:
            # Without torch._dynamo nothing is compiled yet, and importing it takes seconds.
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
