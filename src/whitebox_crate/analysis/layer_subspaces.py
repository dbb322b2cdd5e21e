"""Reports on the subspaces, output projections and dictionaries of a model's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._indices import resolve_index
from ..capturing import capture
from ..layers import MHSA
from ..models._wrappers import transformer_in
from ._report import Report
from .operators import (
    attention_of,
    block_of,
    key_weights,
    measured_layers,
    output_weights,
    plain_coder,
    refuse_folded,
    stacked,
)
from .subspaces import (
    DictionaryGeometry,
    HeadBases,
    ProjectionAlignment,
    dictionary_geometry,
    effective_dimension,
    orthonormal_bases,
    pair_angles,
    projection_alignment,
    projection_distance,
    subspace_energy,
    subspace_overlap,
)


def subspace_matrices(model: nn.Module, layer: int) -> Tensor:
    """The current matrices U_1, ..., U_K of a layer, (heads, dim, head_dim).

    In attention with separate query, key and value (ViT, CRATE-MHSA), the key projections take their place, as the keys
    are the `projections` of `capture`. Nothing makes them bases of subspaces.

    Args:
        model: A model of this package; it may be compiled, distributed or features-only.
        layer: The layer, from 0; negative from the end.

    Returns:
        Detached, in the dtype and on the device of the weights.

    Raises:
        InputError: If the model is not of this package, its attention has no such matrices, or its projection is not a
            plain Linear. (With an adapter, a hook or quantised weights it would compute something else.)
        UnknownNameError: If there is no such layer.
    """
    core = transformer_in(model)
    refuse_folded(core)
    return key_weights(attention_of(core, resolve_index("layer", layer, len(core.layers()))))


def head_bases(model: nn.Module, layer: int) -> HeadBases:
    """Orthonormal bases (heads, dim, r) of a layer's subspaces; see `subspace_matrices` and `orthonormal_bases`."""
    return orthonormal_bases(subspace_matrices(model, layer))


def token_energy(model: nn.Module, images: Tensor, layers: int | Sequence[int] | None = None) -> Tensor:
    """The share of each token (after the norm that MSSA reads) in each head's subspace; see `subspace_energy`.

    Args:
        model: A model of this package; it runs in its current mode.
        images: (batch, in_chans, height, width), float.
        layers: See `capture`.

    Returns:
        (batch, layers, tokens, heads), [CLS] first.

    Raises:
        InputError: See `subspace_matrices` and the model; also if the tokens are not finite.
        UnknownNameError: If there is no such layer.
    """
    core = transformer_in(model)
    with capture(model, "tokens", layers=measured_layers(core, layers)) as trace:
        model(images)
    shares = []
    for layer in trace.layers:
        tokens = block_of(core, layer).norm1(trace["tokens", layer])
        shares.append(subspace_energy(tokens, head_bases(model, layer).bases))
    return stacked(shares, trace.layers)


@dataclass(frozen=True)
class LayerSubspaces:
    """The geometry of one layer.

    Attributes:
        layer: The layer, from 0; None for the random layer.
        singular_values: float64 (heads, r), of U_k.
        rank: int64 (heads,).
        effective_dimension: float64 (heads,).
        angles: float64 (heads, heads, r), radians, ascending; see `principal_angles`.
        coherence: float64 (heads, heads): cosine of the smallest angle; 1 on the diagonal.
        overlap: float64 (heads, heads), see `subspace_overlap`; 1 on the diagonal.
        drift: float64 (heads, heads): projection distance from each head (row) to each head of the next layer; None for
            the last layer. Heads have no order: the nearest head matters as much as the head of the same number.
        alignment: Alignment of output projection and bases; None for MHSA, which has keys in place of bases.
        dictionary: D of ISTA or ODL; None for a layer without one.
    """

    layer: int | None
    singular_values: Tensor
    rank: Tensor
    effective_dimension: Tensor
    angles: Tensor
    coherence: Tensor
    overlap: Tensor
    drift: Tensor | None
    alignment: ProjectionAlignment | None
    dictionary: DictionaryGeometry | None


@dataclass(frozen=True)
class SubspaceReport(Report):
    """The geometry of a model's layers; see `subspace_report`.

    Attributes:
        model: Its name, or its class.
        bases: The operators of the bases: "MSSA", "CBSA", "TSSA" or several, or "keys" if key projections take their
            place in any layer.
        layers: The geometry of each requested layer.
        random: The geometry of a layer of these sizes with independent normal entries (a fixed draw): the values
            without training.
    """

    model: str
    bases: str
    layers: tuple[LayerSubspaces, ...]
    random: LayerSubspaces

    def rows(self) -> list[list[str]]:
        """Names of the columns, a row for each layer, and the random one last.

        The columns are:

        - of the heads: effective dimension of each; smallest and mean angle between two, in degrees; mean overlap of
          two;
        - from layer to layer: mean drift to the head of the same number in the next layer, and to the nearest head;
        - of the output projection: for each head, the cosine of P_k and U_k, and the share of P_k in the span of U_k;
        - of the dictionary D: coherence, and distance from the nearest orthogonal matrix up to scale.

        Cells that a model does not have are blank.
        """
        return [list(_HEADER), *(_row(layer) for layer in (*self.layers, self.random))]


_HEADER = (
    "layer",
    "effective dimension",
    "angles: least, mean",
    "overlap",
    "drift: same, nearest",
    "cos(P, U)",
    "P in span U",
    "D: coherence",
    "D: distance",
)


def subspace_report(model: nn.Module, layers: int | Sequence[int] | None = None) -> SubspaceReport:
    """Measures the subspaces, output projections and dictionaries of a model's layers, without data.

    Args:
        model: A model of this package, which may be compiled, distributed or features-only; CRATE-MAE's decoder is left
            out.
        layers: See `capture`. Drift goes from each layer to the next one in this list.

    Raises:
        InputError: If the model is not of this package, its attention has no such matrices, weights are not finite, or
            a module is not the plain module of the equations.
        UnknownNameError: If there is no such layer.

    Example:
        >>> found = subspace_report(create_model("crate_nano", pretrained=True))
        >>> found.layers[0].overlap.shape  # of each head with each head
        torch.Size([4, 4])
    """
    core = transformer_in(model)
    indices = measured_layers(core, layers)
    operators = [attention_of(core, index) for index in indices]
    matrices = [subspace_matrices(core, index) for index in indices]
    kinds = dict.fromkeys("keys" if isinstance(one, MHSA) else type(one).__name__ for one in operators)
    # The derivation says nothing about ViT's output projection.
    written = [None if isinstance(one, MHSA) else output_weights(one).detach().transpose(0, 1) for one in operators]
    coders = [plain_coder(block_of(core, index)) for index in indices]
    dictionaries = [None if coder is None else coder.dictionary.detach() for coder in coders]
    bases = [orthonormal_bases(each) for each in matrices]
    following = [*bases[1:], None]
    draw = torch.Generator().manual_seed(0)
    u, v = (torch.randn(matrices[0].shape, generator=draw, dtype=torch.float64) for _ in range(2))
    p, d = (
        None if like is None else torch.randn(like.shape, generator=draw, dtype=torch.float64)
        for like in (written[0], dictionaries[0])
    )
    return SubspaceReport(
        model=core.architecture or type(core).__name__,
        bases="keys" if "keys" in kinds else ", ".join(kinds),
        layers=tuple(map(_measure, indices, matrices, bases, following, written, dictionaries)),
        random=_measure(None, u, orthonormal_bases(u), orthonormal_bases(v), p, d),
    )


def _measure(
    layer: int | None,
    matrices: Tensor,
    basis: HeadBases,
    following: HeadBases | None,
    written: Tensor | None,
    dictionary: Tensor | None,
) -> LayerSubspaces:
    angles = pair_angles(basis.bases)
    return LayerSubspaces(
        layer=layer,
        singular_values=basis.singular_values,
        rank=basis.rank,
        effective_dimension=effective_dimension(basis.singular_values),
        angles=angles,
        coherence=angles[..., 0].cos(),
        overlap=subspace_overlap(angles),
        drift=None if following is None else projection_distance(basis.bases[:, None], following.bases),
        alignment=None if written is None else projection_alignment(written, matrices),
        dictionary=None if dictionary is None else dictionary_geometry(dictionary),
    )


def _row(layer: LayerSubspaces) -> list[str]:
    cells = ["random" if layer.layer is None else str(layer.layer), _numbers(layer.effective_dimension, 1), "", "", ""]
    different = ~torch.eye(len(layer.rank), dtype=torch.bool)
    if different.any():
        degrees = layer.angles[different].rad2deg()
        cells[2] = f"{float(degrees.nan_to_num(nan=math.inf).min()):.1f}, {float(degrees.nanmean()):.1f}"
        cells[3] = f"{float(layer.overlap[different].nanmean()):.2f}"
    if layer.drift is not None:
        cells[4] = f"{float(layer.drift.diagonal().mean()):.2f}, {float(layer.drift.amin(1).mean()):.2f}"
    written, coded = layer.alignment, layer.dictionary
    cells += ["", ""] if written is None else [_numbers(written.cosine, 2), _numbers(written.within, 2)]
    cells += ["", ""] if coded is None else [f"{coded.coherence:.2f}", f"{coded.shape_distance:.2f}"]
    return cells


def _numbers(values: Tensor, digits: int) -> str:
    rounded = (round(value, digits) + 0.0 for value in values.tolist())  # no -0.00
    return " ".join(f"{value:.{digits}f}" for value in rounded)
