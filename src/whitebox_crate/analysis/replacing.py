"""replace_states: a model that goes on with states of another image (activation patching)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._hooks import Hook, hooks_here, uncompiled
from .._indices import resolve_index, resolve_indices
from ..backbones import Readable, readable
from ..errors import InputError, UnknownNameError
from ..layers import layer_readings
from ..models._wrappers import unwrap


@contextmanager
def replace_states(
    model: nn.Module,
    states: Mapping[tuple[str, int], Tensor],
    *,
    tokens: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Iterator[None]:
    """Runs a model with states of another image in place of its own, for the length of a block.

    This is activation patching (Vig et al., arXiv 2004.12265; Meng et al., arXiv 2202.05262, call it causal tracing):
    what changes in the logits is what the state carries. States are named as in `capture`, and a trace is such a
    mapping. Replaced can be `tokens`, `output`, and what a layer goes on with alone: `projections` (of attention with
    separate query, key and value, the keys) and `compressed` where no skip leads around what follows, as in CRATE.

    Blocks may be nested, in one another and with `intervene` and `capture`. At the place of a state, those opened first
    act first: a `capture` opened inside sees what was put in place, one opened outside what was there before. All this
    holds for the thread or the task of the block alone. A compiled model runs uncompiled inside; with gradient
    checkpointing, call `backward` inside.

    Args:
        model: A model that `capture` reads.
        states: By state and layer, negative ones from the end, what takes its place: as `capture` gives it, of all
            tokens and heads, of one image for all or of as many as the model is called with. It may have a gradient.
        tokens: Which tokens are replaced; None for all.
        heads: Which heads are replaced, of states that have heads; None for all.

    Raises:
        InputError: If nothing is to be replaced, a state cannot be, or is no tensor of the layer's shape; `heads` is
            given for a state without heads; or one module is several layers.
        UnknownNameError: If a state, layer, token or head does not exist.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> one, other = torch.zeros(1, 3, 96, 96), torch.ones(1, 3, 96, 96)
        >>> with torch.inference_mode():
        ...     with capture(model, "output", layers=[3]) as trace:
        ...         theirs = model(other)
        ...     with replace_states(model, trace):
        ...         logits = model(one)
        >>> torch.equal(logits, theirs)
        True
    """
    core = readable(model)
    if not isinstance(states, Mapping) or not states:
        raise InputError(f"states must be a trace or a dict as {{('output', 3): tensor}}, not {states!r:.200}")
    hooks = [_hook(core, key, value, tokens, heads) for key, value in states.items()]
    with hooks_here(hooks), uncompiled:
        yield


def _hook(
    core: Readable,
    key: tuple[str, int],
    value: Tensor,
    tokens: Sequence[int] | None,
    heads: Sequence[int] | None,
) -> Hook:
    if not isinstance(key, tuple) or len(key) != 2 or not isinstance(value, Tensor):
        raise InputError(f"a state is given as {{('output', 3): tensor}}, not as {{{key!r}: {type(value).__name__}}}")
    state, layer = key
    modules = [unwrap(module) for module in core.layers()]
    index = resolve_index("layer", layer, len(modules))
    known = layer_readings(modules[index])
    if state not in known:
        known |= core.readings_of(modules[index])
    if state not in known:
        raise UnknownNameError.of("state", state, known, f"These are the states of layer {index}.")
    reading = known[state]
    if reading.write is None:
        raise InputError(
            f"{state!r} of layer {index} cannot be replaced: it is not all that the layer goes on with. 'tokens' and "
            "'output' of a layer always can"
        )
    if heads is not None and not reading.num_heads:
        raise InputError(f"heads are of projections, and {state!r} has none: replace it in a block of its own")
    if [i for i, module in enumerate(modules) if reading.module in set(module.modules())] != [index]:
        raise InputError(f"{state!r} of layer {index} passes through a module that belongs to other layers too")
    chosen = None if heads is None else resolve_indices("head", heads, reading.num_heads)
    put: Callable[[Any], Tensor] = partial(_put, value, f"{state!r} of layer {index}", tokens, chosen)
    write, read = reading.write, reading.read
    if reading.when == "before":
        return Hook(reading.module, "before", lambda args: (write(args[0], put(read(*args))), *args[1:]), changes=True)
    return Hook(reading.module, "after", lambda _, out: write(out, put(read(out))), changes=True)


def _put(value: Tensor, name: str, tokens: Sequence[int] | None, heads: Sequence[int] | None, own: Tensor) -> Tensor:
    """The value in place of a layer's own, (batch, ..., tokens, width), at these tokens and heads."""
    if value.shape[1:] != own.shape[1:] or len(value) not in (1, len(own)):
        raise InputError(
            f"{name} is {tuple(own.shape)} here, and {tuple(value.shape)} cannot take its place: give all tokens and "
            "heads, of one image or as many, of images of the same size"
        )
    given = value.to(own).expand_as(own)
    if tokens is None and heads is None:
        return given
    replaced = torch.ones(own.shape[1:-1], dtype=torch.bool, device=own.device)  # (tokens,) or (heads, tokens)
    if tokens is not None:
        at = torch.zeros(own.shape[-2], dtype=torch.bool, device=own.device)
        at[resolve_indices("token", tokens, own.shape[-2])] = True
        replaced &= at
    if heads is not None:
        of = torch.zeros(own.shape[1], dtype=torch.bool, device=own.device)
        of[heads] = True
        replaced &= of[:, None]
    return torch.where(replaced[..., None], given, own)
