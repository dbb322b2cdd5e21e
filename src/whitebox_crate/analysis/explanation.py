"""explain: prints a model as mathematics, with its sizes, its constants, and the names of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from textwrap import indent
from typing import Literal, TypeAlias, get_args

from torch import nn

from .._hooks import changes
from .._tables import markdown_table, text_table
from ..errors import UnknownNameError
from ..models import CrateMae, ImageTransformer, ToST
from ..models._wrappers import transformer_in
from ._embedding import embedding, notation, positions
from ._equations import layer, masking, output, prediction
from ._lines import Line, Parameter, Part, named
from ._tost import joining
from .operators import refuse_folded

Format: TypeAlias = Literal["text", "markdown"]


def explain(model: nn.Module, format: Format = "text") -> str:
    """Writes down what a model computes: its equations, its current sizes and constants, and its parameters.

    Tokens are the columns of Z, as in arXiv 2308.16271, section 2: d x n for n tokens of width d, [CLS] first; softmax
    goes down each column. Consecutive layers that differ only in the values of their weights are written once, with
    their parameters as `blocks.{0..11}`. Each entry of the state dict is named exactly once. Constants are the current
    ones; inside `intervene` they are the changed ones. Equations are written for known modules. For another module (a
    subclass, or one with hooks or its own method), a note names it and says that it is unknown.

    Args:
        model: A model of this package; it may be compiled, distributed or features-only.
        format: "text" (ASCII), or "markdown" with LaTeX between dollar signs.

    Returns:
        The text, with a line break at its end.

    Raises:
        InputError: If the model is not one of this package, or is folded.
        UnknownNameError: If the format is another word.

    Example:
        >>> text = explain(create_model("crate_nano"))
        >>> [line.strip() for line in text.splitlines() if line.strip().startswith("Z' =")]
        ["Z' = ReLU(Y + eta D^T (Y - D Y) - eta lambda)"]
    """
    if format not in get_args(Format):
        raise UnknownNameError.of("format", format, get_args(Format))
    core = transformer_in(model)
    refuse_folded(core)
    parts = [notation(core), *_ways(core), embedding(core), positions(core), *_layers(core, "blocks")]
    if isinstance(core, ToST):
        parts += [joining(core), *_layers(core, "cls_attn_blocks", len(core.blocks))]
    parts.append(output(core))
    if isinstance(core, CrateMae) and core.mask_token is not None:
        parts += [masking(core), *_layers(core, "decoder_blocks"), prediction(core)]
    parts += _rest(core, parts)
    counted = [(p.count * part.repeats, p.role) for part in parts for p in part.parameters if p.role != "buffer"]
    title = f"{core.architecture or type(core).__name__}: {sum(count for count, _ in counted):,} parameters"
    fixed = sum(count for count, role in counted if role == "fixed")
    title += f", {fixed:,} of them fixed" if fixed else ""
    return "\n".join(_markdown(title, parts) if format == "markdown" else _text(title, parts)) + "\n"


def _layers(core: ImageTransformer, blocks: str, before: int = 0) -> Iterator[Part]:
    """The layers of a list of blocks. Equal layers that follow each other become one part.

    Args:
        core: The model.
        blocks: The name of the list.
        before: Number of layers before the list.
    """
    what = "Decoder layer" if blocks == "decoder_blocks" else "Layer"
    described = [layer(block) for block in getattr(core, blocks)]
    first = 0
    for part, same in groupby(described):
        last = first + len(list(same)) - 1
        where = str(first) if first == last else f"{{{first}..{last}}}"
        own = tuple(replace(p, name=f"{blocks}.{where}.{p.name}") for p in part.parameters)
        one, other = before + first, before + last
        heading = f"{what} {one}" if one == other else f"{what}s {one} to {other}"
        yield replace(part, title=f"{heading}: {part.title}", parameters=own, repeats=last - first + 1)
        first = last + 1


# The methods by which images pass through a model.
_WAYS = (
    *("forward", "forward_features", "forward_head", "embed", "_add_cls_and_positions", "resample_positions"),
    *("layers", "joined", "run_layers", "_run_block"),
)


def _ways(core: ImageTransformer) -> list[Part]:
    """A note on methods that the model as a whole replaces, because the equations describe its parts."""

    def written_here(name: str) -> bool:
        return str(getattr(getattr(type(core), name), "__module__", "")).startswith("whitebox_crate.models.")

    own = [name for name in _WAYS if name in vars(core) or not written_here(name)]
    own += ["hooks"] if any(map(changes, [*core._forward_hooks.values(), *core._forward_pre_hooks.values()])) else []
    note = f"this model has its own {', '.join(own)}: the equations describe its parts, and the rest is unknown here"
    return [Part("The model as a whole", (), (Line(note),), ())] if own else []


def _rest(core: ImageTransformer, parts: Sequence[Part]) -> list[Part]:
    """Entries of the state dict outside the known parts; a custom model may have such."""
    listed = {p.name for part in parts for p in part.parameters}
    layers: tuple[str, ...] = ("blocks.",)  # all of theirs are listed
    layers += ("decoder_blocks.",) if isinstance(core, CrateMae) else ()
    layers += ("cls_attn_blocks.",) if isinstance(core, ToST) else ()
    others = tuple(p for p in named(core, "", {}) if p.name not in listed and not p.name.startswith(layers))
    note = Line("it is unknown here where these enter")
    return [Part("Other parameters", (), (note,), others)] if others else []


def _shape(parameter: Parameter) -> str:
    return " x ".join(str(side) for side in parameter.shape) or "scalar"


def _amount(parameter: Parameter, repeats: int) -> str:
    times = f"{repeats} x " if repeats > 1 else ""
    return f"{times}{parameter.count:,}" + {"trained": "", "fixed": " fixed", "buffer": " (buffer)"}[parameter.role]


def _text(title: str, parts: Sequence[Part]) -> Iterator[str]:
    yield title
    for part in parts:
        yield from ("", part.title)
        yield from (f"    {equation.text}" for equation in part.equations)
        yield from (f"  {note.text}" for note in part.notes)
        rows = [(p.symbol.text, p.name, _shape(p), _amount(p, part.repeats)) for p in part.parameters]
        if rows:
            yield indent(text_table(rows), "  ")


def _markdown(title: str, parts: Sequence[Part]) -> Iterator[str]:
    yield f"# {title}"
    for part in parts:
        yield from ("", f"## {part.title}")
        if part.equations:
            lines = " \\\\\n".join(f"& {equation.markdown}" for equation in part.equations)
            yield from ("", "$$", r"\begin{aligned}", lines, r"\end{aligned}", "$$")
        if part.notes:
            yield from ("", *(f"- {note.markdown}" for note in part.notes))
        rows = [(p.symbol.markdown, f"`{p.name}`", _shape(p), _amount(p, part.repeats)) for p in part.parameters]
        if rows:
            yield from ("", markdown_table(("Symbol", "Name", "Shape", "Number"), rows))
