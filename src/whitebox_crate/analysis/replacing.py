"""replace_states: a model continues with states of another image (activation patching)."""

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
    """Runs a model with states of another image in place of its own, inside a block.

    This is activation patching (Vig et al., arXiv 2004.12265; Meng et al., arXiv 2202.05262, call it causal tracing).
    The change of the logits shows what the state carries. States are named as in `capture`, and a trace can be given
    directly. These states can be replaced: `tokens`, `output`, `projections` (the keys, if query, key and value are
    separate), and `compressed` if no skip leads around the next step, as in CRATE.

    Blocks may be nested, also with `intervene` and `capture`. At the place of a state, blocks act in the order in which
    they were opened: a `capture` inside sees the new state, a `capture` outside the old one. This holds only for the
    thread or task of the block. A compiled model runs uncompiled inside. With gradient checkpointing, call `backward`
    inside.

    Args:
        model: A model that `capture` reads.
        states: The new states, by (state, layer); negative layers count from the end. They have the shape that
            `capture` gives, with all tokens and heads, for one image or for as many images as the model gets. They may
            have a gradient.
        tokens: The tokens to replace; None for all.
        heads: The heads to replace, in states that have heads; None for all.

    Raises:
        InputError: If nothing is to be replaced; if a state cannot be replaced, or is not a tensor of the layer's
            shape; if `heads` is given for a state without heads; or if one module serves as several layers.
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
        raise InputError(f"states must be a trace or a dict such as {{('output', 3): tensor}}, not {states!r:.200}")
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
        raise InputError(f"give a state as {{('output', 3): tensor}}, not as {{{key!r}: {type(value).__name__}}}")
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
            f"{state!r} of layer {index} cannot be replaced, because the layer does not go on with it alone. 'tokens' "
            "and 'output' can always be replaced"
        )
    if heads is not None and not reading.num_heads:
        raise InputError(f"heads needs projections, and {state!r} has no heads: replace it in a separate block")
    if [i for i, module in enumerate(modules) if reading.module in set(module.modules())] != [index]:
        raise InputError(
            f"{state!r} of layer {index} belongs to a module that other layers share, so it cannot be replaced"
        )
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
            f"{name} is {tuple(own.shape)} here, and {tuple(value.shape)} cannot replace it: give all tokens and "
            "heads, for one image or as many, from images of the same size"
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
