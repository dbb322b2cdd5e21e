"""Measures every layer against what it was derived to do: rates, sparsity and shape of its states over many images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ..backbones import Backbone, readable
from ..errors import InputError, UnknownNameError
from ..layers import CBSA, TSSA, ClassAttention
from ..models import Block
from ._report import Report, as_table
from .batches import STATES, LayerState, Measured, over_images
from .moments import check_confidence
from .operators import attention_of, measured_layers, projected, subspaces_of
from .rates import Convention, check_rate, coding_rate, effective_rank, exact_dtype, l0, l1, subspace_coding_rate

Quantity: TypeAlias = Literal[
    "subspace_coding_rate", "coding_rate", "l0", "l1", "token_norm", "effective_rank", "attention_entropy"
]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
OF_ANY_TOKENS: tuple[Quantity, ...] = ("l0", "l1", "token_norm", "effective_rank")  # for any kind of layer


@dataclass(frozen=True)
class RateSettings:
    """How rates of a layer are measured.

    Attributes:
        eps: Precision; see `coding_rate`. None means 0.1 for "paper" and 0.01 for "released", which give the same
            factor.
        convention: "paper" or "released"; see `coding_rate`.
        normed: Whether Z is LN(z): the layer's first norm applied to the state, as the layer's bases see it. Else the
            bases are applied to the state itself.
    """

    eps: float | None = None
    convention: Convention = "paper"
    normed: bool = True

    def __post_init__(self) -> None:
        if self.eps is None:
            object.__setattr__(self, "eps", 0.1 if self.convention == "paper" else 0.01)
        check_rate(self._eps, self.convention)

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
        """Rc(Z; U) with the bases of this layer, (batch,); with separate projections, keys take the place of U^T Z."""
        attention = subspaces_of(block)
        return subspace_coding_rate(projected(attention, self.seen(block, state)), self._eps, self.convention)


@dataclass(frozen=True)
class Series:
    """One quantity of one state over the layers of a report, each over images.

    Attributes:
        mean: Mean of each layer.
        std: Standard deviation over images (unbiased in its square); None for one image.
        half_width: Half the width of the mean's interval (Student's t); None for one image.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...] | None
    half_width: tuple[float, ...] | None


@dataclass(frozen=True)
class LayerwiseReport(Report):
    """The result of `layerwise_analysis`: `report[quantity, state]` is a `Series` over `report.layers`.

    Attributes:
        model: Name of the architecture.
        images: Number of measured images.
        layers: The layers, counted from 0.
        settings: How rates were measured.
        confidence: Confidence of the intervals.
        series: The series, by quantity and state.
    """

    model: str
    images: int
    layers: tuple[int, ...]
    settings: RateSettings
    confidence: float
    series: Mapping[str, Mapping[str, Series]]

    def __getitem__(self, key: tuple[Quantity, LayerState]) -> Series:
        if not isinstance(key, tuple) or len(key) != 2:
            raise InputError(f"read a report as report[quantity, state], not with {key!r}")
        quantity, state = key
        if quantity not in self.series:
            raise UnknownNameError.of("measured quantity", quantity, self.series)
        if state not in self.series[quantity]:
            raise UnknownNameError.of(f"state of {quantity}", state, self.series[quantity])
        return self.series[quantity][state]

    def table(self, quantities: Sequence[Quantity] | None = None, *, markdown: bool = False) -> str:
        """Means of each layer: before attention, after it, after coding.

        Args:
            quantities: The quantities, in this order; None for all that were measured.
            markdown: Whether to write Markdown, or else aligned text.

        Raises:
            UnknownNameError: If a quantity was not measured.
        """
        return as_table(self.rows(quantities), markdown)

    def rows(self, quantities: Sequence[Quantity] | None = None) -> list[list[str]]:
        """Cells of `table`; the first row has the names of the columns."""
        named = tuple(self.series) if quantities is None else quantities
        for quantity in named:
            if quantity not in self.series:
                raise UnknownNameError.of("measured quantity", quantity, self.series)
        rows = [["layer", *named]]
        for row, layer in enumerate(self.layers):
            cells = (" → ".join(f"{s.mean[row]:.4g}" for s in self.series[quantity].values()) for quantity in named)
            rows.append([str(layer), *cells])
        return rows


def layerwise_analysis(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    quantities: Sequence[Quantity] | None = None,
    layers: int | Sequence[int] | None = None,
    eps: float | None = None,
    convention: Convention = "paper",
    normed: bool = True,
    confidence: float = 0.95,
    gather: bool = False,
    report: Callable[[str], object] | None = None,
) -> LayerwiseReport:
    """Measures every layer on every image: before attention, after it, and after coding.

    The states are those of `capture`: `tokens` z, `compressed` h (after MSSA), `output` z' (after ISTA). In ViT and the
    ablations the places are the same: before attention, after it, after the MLP. For each state it measures:

    - `subspace_coding_rate`, `coding_rate`: Rc(Z; U) and R(Z) with the bases U of this layer, nats a token. Z is
      LN(state) by the first norm of this layer, for all three states: MSSA is a step on Rc at LN(z), not at z, and a
      norm makes states of different lengths comparable. With separate query, key and value (ViT, CRATE-MHSA), keys
      take the place of U^T Z.
    - `l0`, `l1`: share of non-zero entries, and mean magnitude, of the state itself.
    - `token_norm`: mean length of the tokens.
    - `effective_rank`: effective rank of the tokens, as a matrix.
    - `attention_entropy`: entropy of a row of attention, in nats, the mean over rows and heads; only for `tokens`,
      which attention reads. Rows of CBSA's mixing matrix are not shares, and ToST has no rows before class attention,
      so these layers have no entropy.

    Memory holds one batch of the loader with its states at a time. No gradients are kept. The model's mode does not
    change.

    Args:
        model: A model that `capture` reads. Backbones of other libraries have only quantities that need no norm and no
            bases: `l0`, `l1`, `token_norm`, `effective_rank`.
        loader: Batches: images (batch, channels, height, width), normalised as the model expects, or a sequence whose
            first entry is images, such as (images, labels). Each batch is moved to the model's device and dtype.
        quantities: The quantities; None for all that the layers have (`measurable`).
        layers: The layers; see `capture`. None for all, except ToST's class attention, which sees other tokens.
        eps: Precision; None means 0.1 for "paper", 0.01 for "released".
        convention: "paper" or "released"; see `coding_rate`. The published layer-wise figure is made with "released".
        normed: Whether Z is LN(state), or else the state itself.
        confidence: Confidence of the intervals of means.
        gather: Whether each process of torch.distributed measures its own images; all get the report of all images.
        report: Gets lines on progress; stderr if None.

    Raises:
        InputError: If the loader yields nothing or no images, a state is not finite, an argument is not as above, or no
            adapter knows the model.
        UnknownNameError: If a layer, quantity or convention does not exist, or a layer has no attention for an entropy.
        ProcessError: With `gather`, if another process failed.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> found = layerwise_analysis(model, [torch.rand(4, 3, 96, 96)], quantities=["l0"], report=lambda line: None)
        >>> len(found["l0", "output"].mean)  # one for each layer
        6
    """
    wanted = measurable(model, layers) if quantities is None else tuple(dict.fromkeys(quantities))
    measurement = LayerQuantities(RateSettings(eps, convention, normed), wanted)
    check_confidence(confidence)
    (found,) = over_images(model, loader, measurement, layers=layers, gather=gather, report=report)
    return measurement.report(found, confidence)


def measurable(model: nn.Module, layers: int | Sequence[int] | None = None) -> tuple[Quantity, ...]:
    """The quantities of `layerwise_analysis` that all of these layers have.

    Raises:
        InputError: If the model or a layer is unknown.
        UnknownNameError: If a layer does not exist.
    """
    core = readable(model)
    if isinstance(core, Backbone):
        return OF_ANY_TOKENS
    kinds = [attention_of(core, index) for index in measured_layers(core, layers)]
    without = any(isinstance(attention, CBSA | TSSA) for attention in kinds)
    return tuple(quantity for quantity in QUANTITIES if quantity != "attention_entropy" or not without)


@dataclass(frozen=True)
class LayerQuantities:
    """The measurement of `layerwise_analysis`: quantities of the states of a layer.

    Attributes:
        settings: How rates are measured.
        quantities: The quantities, each once.
    """

    settings: RateSettings = field(default_factory=RateSettings)
    quantities: tuple[Quantity, ...] = QUANTITIES

    def __post_init__(self) -> None:
        for quantity in self.quantities:
            if quantity not in QUANTITIES:
                raise UnknownNameError.of("quantity", quantity, QUANTITIES)
        if not self.quantities:
            raise InputError(f"name at least one quantity to measure: {', '.join(QUANTITIES)}")

    @property
    def _names(self) -> list[tuple[Quantity, LayerState]]:
        """Of each column; attention sees the tokens alone."""
        return [(q, s) for q in self.quantities for s in (STATES[:1] if q == "attention_entropy" else STATES)]

    @property
    def columns(self) -> int:
        """One column for each quantity of each state."""
        return len(self._names)

    def of(self, block: Block, states: Mapping[str, Tensor]) -> Tensor:
        """(batch, columns), float64 on the CPU."""
        values = [self._value(quantity, block, states[state]) for quantity, state in self._names]
        return torch.stack([value.cpu().double() for value in values], dim=1)

    def _value(self, quantity: Quantity, block: Block, state: Tensor) -> Tensor:
        """A quantity of each image, (batch,)."""
        if quantity not in OF_ANY_TOKENS and not isinstance(block, Block):
            raise InputError(
                f"{quantity} needs a known norm and bases, and a {type(block).__name__} has none; measure "
                f"{', '.join(OF_ANY_TOKENS)}, or give tokens of `capture` to whitebox_crate.analysis.coding_rate"
            )
        measures: dict[Quantity, Callable[[Block, Tensor], Tensor]] = {
            "subspace_coding_rate": self.settings.subspace_rate,
            "coding_rate": self.settings.rate,
            "l0": lambda _, z: l0(z),
            "l1": lambda _, z: l1(z),
            "token_norm": lambda _, z: torch.linalg.vector_norm(z, dim=-1, dtype=exact_dtype(z)).mean(dim=-1),
            "effective_rank": lambda _, z: effective_rank(z),
            "attention_entropy": _attention_entropy,
        }
        return measures[quantity](block, state)

    def report(self, found: Measured, confidence: float) -> LayerwiseReport:
        """The series, by quantity and state."""
        moments = found.moments
        kinds = (moments.mean, moments.std, moments.half_width(confidence))
        series: dict[str, dict[str, Series]] = {quantity: {} for quantity in self.quantities}
        for column, (quantity, state) in enumerate(self._names):
            mean, *spread = (None if kind is None else tuple(kind[:, column].tolist()) for kind in kinds)
            series[quantity][state] = Series(mean or (), *spread)
        return LayerwiseReport(found.model, moments.count, found.layers, self.settings, confidence, series)


def _attention_entropy(block: Block, tokens: Tensor) -> Tensor:
    """Entropy of the rows of attention, the mean over rows and heads, (batch,)."""
    attention = subspaces_of(block)
    if isinstance(attention, CBSA | TSSA):
        why = (
            "rows of CBSA's mixing matrix are signed, not shares" if isinstance(attention, CBSA) else "TSSA has no rows"
        )
        raise InputError(f"{why}, so there is no attention_entropy; leave it out of the quantities")
    q, k, _ = attention.split_heads(attention.qkv(block.norm1(tokens)))
    if isinstance(attention, ClassAttention):
        q = q[:, :, :1]
    total = torch.zeros(len(tokens), device=tokens.device)
    for head in range(q.shape[1]):  # one at a time: tokens x tokens entries of every head may not fit
        rows = (q[:, head].float() * q.shape[-1] ** -0.5 @ k[:, head].float().mT).softmax(dim=-1)
        total = total + torch.special.entr(rows).sum(dim=-1).mean(dim=-1)
    return total / q.shape[1]
