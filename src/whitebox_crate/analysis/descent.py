"""Tests whether each half of a layer does what it was derived to do, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from .._hooks import constant_of
from ..errors import InputError
from ..layers import ISTA, ODL, TSSA
from ..models import Block, ClassAttentionBlock
from ..models._wrappers import transformer_in
from ._report import Report
from .batches import Measured, over_images
from .layerwise import RateSettings
from .moments import check_confidence
from .operators import plain_coder
from .rates import Convention, l0, variational_coding_rate

Claim: TypeAlias = Literal["compression", "sparsity", "coding"]
Outcome: TypeAlias = Literal["holds", "does not hold", "undecided"]
CLAIMS: tuple[Claim, ...] = get_args(Claim)


@dataclass(frozen=True)
class Verdict:
    """One claim about one layer: that a quantity falls.

    Attributes:
        layer: Counted from 0.
        claim: Name of the claim; see `verify_descent`.
        before: Mean of the quantity over images, before the step.
        after: Mean of the quantity after the step.
        change: Mean of after - before over images.
        half_width: Half the width of the interval of `change` (Student's t on paired differences); None for one image.
        share: Share of the images in which the quantity fell.
        outcome: "holds" if the whole interval is below 0; "does not hold" if none of it is; "undecided" otherwise, or
            for one image, which has no interval.
    """

    layer: int
    claim: Claim
    before: float
    after: float
    change: float
    half_width: float | None
    share: float
    outcome: Outcome


@dataclass(frozen=True)
class DescentReport(Report):
    """The result of `verify_descent`.

    Attributes:
        model: Name of the architecture.
        images: Number of measured images.
        settings: How rates were measured.
        confidence: Confidence of each single interval: of 100 decisions at 0.95, some 5 may be wrong.
        verdicts: By claim, then by layer.
    """

    model: str
    images: int
    settings: RateSettings
    confidence: float
    verdicts: tuple[Verdict, ...]

    def rows(self) -> list[list[str]]:
        """The names of the columns, then a row for each verdict."""
        rows = [["claim", "layer", "before", "after", "change", "fell in", "verdict"]]
        for v in self.verdicts:
            spread = "" if v.half_width is None else f" ± {v.half_width:.2g}"
            numbers = (f"{v.before:.4g}", f"{v.after:.4g}", f"{v.change:+.4g}{spread}", f"{v.share:.0%}")
            rows.append([v.claim, str(v.layer), *numbers, v.outcome])
        return rows


def verify_descent(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    layers: int | Sequence[int] | None = None,
    eps: float | None = None,
    convention: Convention = "paper",
    normed: bool = True,
    confidence: float = 0.95,
    gather: bool = False,
    report: Callable[[str], object] | None = None,
) -> DescentReport:
    """Tests on images what the derivation of CRATE says about each layer (arXiv 2306.01129, section 2).

    z are the tokens at a layer's input, h after attention, z' at its output. Each claim says that a quantity falls:

    - `compression`: Rc(LN(h); U) < Rc(LN(z); U), with the layer's own bases U and first norm. MSSA is derived to do
      this, with bases tied or not. It is the only claim about a layer of attention alone. CBSA is derived to do it
      through a few representatives. In ViT's attention keys stand for U^T Z, and nothing was derived. TSSA of ToST is
      derived to lower the variational rate (`variational_coding_rate`, with `scale` 1 as released), with the membership
      of z held fixed (arXiv 2412.17810, section 3). For its layers the claim is about that rate, and `eps` and
      `convention` are ignored. ToST's class attention is not derived, so it has no verdict.
    - `sparsity`, if something follows attention: the share of non-zero entries is lower in z' than in h. A threshold at
      zero does this by itself, with any dictionary, and an MLP never does. CRATE-alpha decodes z', so there the share
      is measured on the codes.
    - `coding`, if the layer codes sparsely: `|x - D u|^2 / 2 + lambda |u|_1`, with x = LN2(h), is lower at u = z' than
      at u = ReLU(x), the nearest non-negative codes to the start of the step. (With a soft threshold codes may be
      negative, and u = x. In CRATE-alpha it is lower at its codes than at u = 0, where its steps start.) ISTA is
      derived to do this, and a dictionary can fail. If the coding is another module (a subclass, or one with hooks),
      there is no verdict, because its objective is unknown.

    Each image is its own control: the interval belongs to the mean of the differences.

    Args:
        model: A model of this package.
        loader: See `layerwise_analysis`.
        layers: The layers; see `layerwise_analysis`.
        eps: Precision; None means 0.1 for "paper", 0.01 for "released".
        convention: "paper" or "released"; see `coding_rate`.
        normed: Whether Z is LN(state), or else the state itself.
        confidence: Confidence of each interval.
        gather: See `layerwise_analysis`.
        report: Gets lines on progress; stderr if None.

    Raises:
        InputError: See `layerwise_analysis`; also if the model is not of this package.
        UnknownNameError: If a layer or convention does not exist.
        ProcessError: With `gather`, if another process failed.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> found = verify_descent(model, [torch.rand(4, 3, 96, 96)], layers=[-2], report=lambda line: None)
        >>> [verdict.claim for verdict in found.verdicts]
        ['compression', 'sparsity', 'coding']
    """
    transformer_in(model)  # layers of other networks were not derived to do this
    measurement = LayerClaims(RateSettings(eps, convention, normed))
    check_confidence(confidence)
    (found,) = over_images(model, loader, measurement, layers=layers, gather=gather, report=report)
    return measurement.report(found, confidence)


@dataclass(frozen=True)
class LayerClaims:
    """The measurement of `verify_descent`: the quantities that should fall, before and after a step.

    Attributes:
        settings: How rates are measured.
    """

    settings: RateSettings = field(default_factory=RateSettings)

    @property
    def columns(self) -> int:
        """Four columns per claim: before, after, change, and whether it fell."""
        return 4 * len(CLAIMS)

    def of(self, block: Block, states: Mapping[str, Tensor]) -> Tensor:
        """(batch, columns), float64 on the CPU."""
        z, h, out = states["tokens"], states["compressed"], states["output"]
        coder, codes = _known_coder(block), out
        falls = {"compression": self._compression(block, z, h)}
        if coder is not None:
            x = block.norm2(h)
            codes = coder.encode(x) if isinstance(coder, ODL) else out
            falls["coding"] = _lasso(coder, x, _start(coder, x, codes)), _lasso(coder, x, codes)
        falls["sparsity"] = l0(h), l0(codes)
        nothing = torch.zeros(len(z))
        pairs = [falls.get(claim, (nothing, nothing)) for claim in CLAIMS]
        exact = [(before.cpu().double(), after.cpu().double()) for before, after in pairs]
        return torch.cat([torch.stack([b, a, a - b, (a < b).to(a)], dim=1) for b, a in exact], dim=1)

    def _compression(self, block: Block, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The rate that attention is derived to lower, before and after it."""
        attention: object = block.attention
        if not isinstance(attention, TSSA):
            return self.settings.subspace_rate(block, z), self.settings.subspace_rate(block, h)
        before, after = (attention.split_heads(attention.qkv(self.settings.seen(block, s)))[0] for s in (z, h))
        membership = attention.membership(before)
        return variational_coding_rate(before, membership), variational_coding_rate(after, membership)

    def report(self, found: Measured, confidence: float) -> DescentReport:
        """A verdict for each claim about each layer."""
        moments, half_width = found.moments, found.moments.half_width(confidence)
        verdicts = []
        for number, claim in enumerate(CLAIMS):
            for row, layer in enumerate(found.layers):
                if claim not in _claims(found.blocks[row]):
                    continue
                before, after, change, share = moments.mean[row, 4 * number : 4 * number + 4].tolist()
                half = None if half_width is None else half_width[row, 4 * number + 2].item()
                verdicts.append(Verdict(layer, claim, before, after, change, half, share, _outcome(change, half)))
        return DescentReport(found.model, moments.count, self.settings, confidence, tuple(verdicts))


def _claims(block: Block) -> tuple[Claim, ...]:
    """The claims about a layer."""
    if isinstance(block, ClassAttentionBlock):
        return ()
    if not hasattr(block, "norm2"):  # nothing follows attention
        return ("compression",)
    return CLAIMS if _known_coder(block) else ("compression", "sparsity")


def _known_coder(block: Block) -> ISTA | ODL | None:
    """The coding of a layer, if its objective is known."""
    try:
        return plain_coder(block)
    except InputError:
        return None


def _outcome(change: float, half_width: float | None) -> Outcome:
    if half_width is None:
        return "undecided"
    if change + half_width < 0:
        return "holds"
    return "does not hold" if change - half_width >= 0 else "undecided"


def _start(coder: ISTA | ODL, x: Tensor, codes: Tensor) -> Tensor:
    """The start of the steps: zero, or the nearest codes to x for which the objective is defined."""
    if isinstance(coder, ODL):
        return torch.zeros_like(codes)
    return x.relu() if coder.threshold == "relu" else x


def _lasso(coder: ISTA | ODL, x: Tensor, code: Tensor) -> Tensor:
    """|x - D u|^2 / 2 + lambda |u|_1 for each image, the mean over tokens, (batch,)."""
    x, code, dictionary = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, code, coder.dictionary))
    misfit = (x - code @ dictionary.mT).square().sum(dim=-1) / 2
    return (misfit + constant_of(coder, "sparsity") * code.abs().sum(dim=-1)).mean(dim=-1)
