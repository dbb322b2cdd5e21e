"""Every layer measured against what it was derived to do: rates, sparsity and shape of its states over many images."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ..models import Block
from .batches import over_images
from .moments import check_confidence
from .rates import Convention, coding_rate, effective_rank, exact_dtype, l0, l1, subspace_coding_rate

if TYPE_CHECKING:
    from typing_extensions import Self

LayerState: TypeAlias = Literal["tokens", "compressed", "output"]
Quantity: TypeAlias = Literal[
    "subspace_coding_rate", "coding_rate", "l0", "l1", "token_norm", "effective_rank", "attention_entropy"
]
STATES: tuple[LayerState, ...] = get_args(LayerState)
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


@dataclass(frozen=True)
class RateSettings:
    """How rates of a layer are measured.

    Attributes:
        eps: Precision, as of `coding_rate`; with None 0.1 for "paper" and 0.01 for "released", which is one factor.
        convention: "paper" or "released", as of `coding_rate`.
        normed: Whether Z is LN(z), the layer's first norm applied to the state, which is what the layer's bases see. If
            not, the bases are applied to the state itself.
    """

    eps: float | None = None
    convention: Convention = "paper"
    normed: bool = True

    def __post_init__(self) -> None:
        if self.convention not in get_args(Convention):
            raise UnknownNameError.of("convention", self.convention, get_args(Convention))
        if self.eps is None:
            object.__setattr__(self, "eps", 0.1 if self.convention == "paper" else 0.01)
        if not 0 < self._eps < math.inf:
            raise InputError(f"the precision eps is a finite number above 0, not {self.eps!r}")

    @property
    def _eps(self) -> float:
        return float(self.eps or 0)

    def seen(self, block: Block, state: Tensor) -> Tensor:
        """Z of a state, (batch, tokens, dim)."""
        z: Tensor = block.norm1(state) if self.normed else state
        return z

    def rate(self, block: Block, state: Tensor) -> Tensor:
        """R(Z), (batch,)."""
        return coding_rate(self.seen(block, state), self._eps, self.convention)

    def subspace_rate(self, block: Block, state: Tensor) -> Tensor:
        """Rc(Z; U) with the bases of this layer, (batch,); of three projections, with the keys in place of U^T Z."""
        _, keys, _ = block.attention.split_heads(block.attention.qkv(self.seen(block, state)))
        return subspace_coding_rate(keys, self._eps, self.convention)


@dataclass(frozen=True)
class Series:
    """One quantity of one state over the layers of a report, each over images.

    Attributes:
        mean: Of each layer.
        std: Standard deviation over images, unbiased in its square; None for one image, of which it is undefined.
        half_width: Half the width of the mean's interval (Student's t); None for one image.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...] | None
    half_width: tuple[float, ...] | None


@dataclass(frozen=True)
class AsJson(ABC):
    """A report that can be written as JSON and read again."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain

    def to_json(self) -> str:
        """Everything as JSON, for `from_json`."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            InputError: If the text is something else.
        """
        try:
            return cls._from_dict(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is no report that to_json wrote: {error}") from error

    @classmethod
    @abstractmethod
    def _from_dict(cls, plain: dict[str, Any]) -> Self:
        """The report of which `to_dict` gave this."""


@dataclass(frozen=True)
class LayerwiseReport(AsJson):
    """What `layerwise_analysis` measured: `report[quantity, state]` is a `Series` over `report.layers`.

    Attributes:
        model: Name of the architecture.
        images: How many were measured.
        layers: Which, counted from 0.
        settings: How rates were measured.
        confidence: Of the intervals.
        series: By quantity and state.
    """

    model: str
    images: int
    layers: tuple[int, ...]
    settings: RateSettings
    confidence: float
    series: Mapping[str, Mapping[str, Series]]

    def __getitem__(self, key: tuple[Quantity, LayerState]) -> Series:
        if not isinstance(key, tuple) or len(key) != 2:
            raise InputError(f"a report is read as report[quantity, state], not {key!r}")
        quantity, state = key
        if quantity not in self.series:
            raise UnknownNameError.of("measured quantity", quantity, self.series)
        if state not in self.series[quantity]:
            raise UnknownNameError.of(f"state of {quantity}", state, self.series[quantity])
        return self.series[quantity][state]

    def table(self, quantities: Sequence[Quantity] | None = None, *, markdown: bool = False) -> str:
        """Means of each layer: before attention, after it, after coding.

        Args:
            quantities: Which, in this order; None for all that were measured.
            markdown: Whether it is a table in Markdown, else aligned text.
        """
        named = tuple(self.series) if quantities is None else quantities
        for quantity in named:
            if quantity not in self.series:
                raise UnknownNameError.of("measured quantity", quantity, self.series)
        rows = [["layer", *named]]
        for row, layer in enumerate(self.layers):
            cells = (" → ".join(f"{s.mean[row]:.4g}" for s in self.series[quantity].values()) for quantity in named)
            rows.append([str(layer), *cells])
        return as_table(rows, markdown)

    @classmethod
    def _from_dict(cls, plain: dict[str, Any]) -> Self:
        series = {
            quantity: {state: Series(**{k: v and tuple(v) for k, v in one.items()}) for state, one in states.items()}
            for quantity, states in plain.pop("series").items()
        }
        settings, layers = RateSettings(**plain.pop("settings")), tuple(plain.pop("layers"))
        return cls(series=series, settings=settings, layers=layers, **plain)


def layerwise_analysis(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    quantities: Sequence[Quantity] = QUANTITIES,
    layers: int | Sequence[int] | None = None,
    eps: float | None = None,
    convention: Convention = "paper",
    normed: bool = True,
    confidence: float = 0.95,
    gather: bool = False,
    report: Callable[[str], object] | None = None,
) -> LayerwiseReport:
    """Measures every layer on every image: before attention, after it, and after coding.

    The states are those of `capture`: `tokens` z, `compressed` h (after MSSA), `output` z' (after ISTA). Of ViT and the
    ablations they are the same places: before attention, after it, after the MLP. Of each:

    - `subspace_coding_rate`, `coding_rate`: Rc(Z; U) and R(Z) with the bases U of this layer, nats a token. Z is
      LN(state) by the first norm of this layer, for all three states: MSSA is a step on Rc at LN(z), not at z, and a
      norm makes states of unlike lengths comparable. Where query, key and value are projected apart (ViT, CRATE-MHSA),
      keys stand for U^T Z.
    - `l0`, `l1`: share of entries that are not zero, and mean magnitude, of the state itself.
    - `token_norm`: mean length of the tokens.
    - `effective_rank`: of the tokens, as a matrix.
    - `attention_entropy`: of a row of attention, in nats, mean over rows and heads; of `tokens`, which attention sees.

    Memory is bounded: one batch of the loader with its states is held at a time. No gradients are kept; the model stays
    in the mode it is in.

    Args:
        model: A model of this package.
        loader: Batches: images (batch, channels, height, width), normalised as the model expects, or a sequence whose
            first entry is images, as (images, labels). Each is moved to the model's device and dtype.
        quantities: What to measure.
        layers: Which layers, as in `capture`; None for all.
        eps: Precision; with None 0.1 for "paper", 0.01 for "released".
        convention: "paper" or "released", as of `coding_rate`. The published layer-wise figure is made with "released".
        normed: Whether Z is LN(state); if not, the state.
        confidence: Of the intervals of means.
        gather: Whether every process of torch.distributed measures other images; all get the report of all images.
        report: Takes lines on progress; to stderr if None.

    Raises:
        InputError: If the loader yields nothing or no images, a state is not finite, an argument is not as above, or
            the model is not one of this package.
        UnknownNameError: If a layer, quantity or convention does not exist.
        ProcessError: With `gather`, if another process failed.
    """
    settings = RateSettings(eps, convention, normed)
    check_confidence(confidence)
    named = tuple(dict.fromkeys(quantities))
    for quantity in named:
        if quantity not in QUANTITIES:
            raise UnknownNameError.of("quantity", quantity, QUANTITIES)
    if not named:
        raise InputError(f"name at least one quantity to measure: {', '.join(QUANTITIES)}")
    measures = _measures(settings)
    places = [(q, state) for q in named for state in (STATES[:1] if q == "attention_entropy" else STATES)]

    def measure(block: Block, states: Mapping[str, Tensor]) -> Tensor:
        return torch.stack(
            [measures[quantity](block, states[state]).cpu().double() for quantity, state in places], dim=1
        )

    seen = over_images(model, loader, measure, len(places), STATES, layers=layers, gather=gather, report=report)
    moments, std, half_width = seen.moments, seen.moments.std, seen.moments.half_width(confidence)
    series: dict[str, dict[str, Series]] = {quantity: {} for quantity in named}
    for column, (quantity, state) in enumerate(places):
        mean, *spread = (None if t is None else tuple(t[:, column].tolist()) for t in (moments.mean, std, half_width))
        series[quantity][state] = Series(mean or (), *spread)
    return LayerwiseReport(seen.model, moments.count, seen.layers, settings, confidence, series)


def as_table(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Rows, the first one of names, as a table of aligned text or Markdown."""
    if markdown:
        return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _measures(settings: RateSettings) -> dict[str, Callable[[Block, Tensor], Tensor]]:
    """By quantity: its value for each image, (batch,), of a layer and one of its states."""
    return {
        "subspace_coding_rate": settings.subspace_rate,
        "coding_rate": settings.rate,
        "l0": lambda _, state: l0(state),
        "l1": lambda _, state: l1(state),
        "token_norm": lambda _, state: torch.linalg.vector_norm(state, dim=-1, dtype=exact_dtype(state)).mean(dim=-1),
        "effective_rank": lambda _, state: effective_rank(state),
        "attention_entropy": lambda block, state: _attention_entropy(block, state),
    }


def _attention_entropy(block: Block, tokens: Tensor) -> Tensor:
    """Entropy of the rows of attention, mean over rows and heads, (batch,)."""
    q, k, _ = block.attention.split_heads(block.attention.qkv(block.norm1(tokens)))
    total = torch.zeros(len(tokens), device=tokens.device)
    for head in range(q.shape[1]):  # one at a time: tokens x tokens entries of every head may not fit
        rows = (q[:, head].float() * q.shape[-1] ** -0.5 @ k[:, head].float().mT).softmax(dim=-1)
        total = total + torch.special.entr(rows).sum(dim=-1).mean(dim=-1)
    return total / q.shape[1]
