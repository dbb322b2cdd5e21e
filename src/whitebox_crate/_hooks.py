"""Hooks that belong to whoever put them on: other threads and tasks, and copies of the model, do not run them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

# The hooks whose blocks the present thread or task is in; each block is one object.
_open: ContextVar[frozenset[object]] = ContextVar("open blocks", default=frozenset())
_registering = threading.Lock()  # torch counts hooks without one, and two of one number are one


class Hook(NamedTuple):
    """A function to run before or after a module.

    Attributes:
        module: The module.
        when: "before" for a function of the arguments, a tuple; "after" for one of the arguments and the output.
        function: As hooks of torch, but without the module; what it returns other than None is put in place.
        changes: Whether what it returns is something else than what it was given.
    """

    module: nn.Module
    when: Literal["before", "after"]
    function: Callable[..., Any]
    changes: bool = False


@contextmanager
def hooks_here(hooks: list[Hook]) -> Iterator[None]:
    """Puts hooks on modules for the length of a block, and takes them off whatever happens inside.

    They run in the context of the block alone (`contextvars`): in its thread, or in tasks that it starts. Copies that
    are made of a module inside the block, and pickles, carry none of them.
    """
    block = object()
    with ExitStack() as stack:
        for hook in hooks:
            register = (
                hook.module.register_forward_pre_hook if hook.when == "before" else hook.module.register_forward_hook
            )
            with _registering:
                handle = register(_OwnHook(block, hook))
            stack.callback(_remove, handle)
        _open.set(_open.get() | {block})
        stack.callback(_leave, block)
        yield


def _remove(handle: Any) -> None:
    with _registering:
        handle.remove()


def _leave(block: object) -> None:
    _open.set(_open.get() - {block})


class _OwnHook:
    def __init__(self, block: object, hook: Hook) -> None:
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

    def __init__(self, blocks: frozenset[object]) -> None:
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
