"""Subspaces and dictionaries as matrices: angles, energy, coherence, and their distance from the derivation.

The derivation (arXiv 2308.16271, section 2.1) has orthonormal bases U_k of incoherent subspaces, an output projection
[U_1, ..., U_K] (Eq. 5), and an orthogonal dictionary D (Eq. 7). Training imposes none of these. Matrices are measured
in float64 on the CPU. Each quantity is documented with its value for random matrices, which in a few hundred dimensions
look like structure too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class HeadBases:
    """Orthonormal bases of subspaces, and the weight of each direction.

    Attributes:
        bases: float64 (..., heads, dim, r), where r is the smaller of dim and head_dim. The columns of a head are
            orthonormal. Columns beyond its rank are zero, so Q Q^T always projects onto the subspace.
        singular_values: float64 (..., heads, r), descending, of U_k. The columns are its left singular vectors.
    """

    bases: Tensor
    singular_values: Tensor

    @property
    def rank(self) -> Tensor:
        """Dimension of each subspace, int64 (..., heads)."""
        return _rank(self.bases)


def orthonormal_bases(matrices: Tensor) -> HeadBases:
    """Orthonormal bases of column spaces, by singular value decomposition.

    A singular value counts as zero below the largest one times max(dim, head_dim) times the float32 rounding unit
    (float64's for float64 matrices): numpy's rule for ranks.

    Args:
        matrices: (..., dim, head_dim), float, finite.

    Raises:
        InputError: If the matrices are not as above.
    """
    _check_float("matrices", matrices, 2)
    u, s, _ = torch.linalg.svd(_double(matrices), full_matrices=False)
    unit = torch.finfo(torch.promote_types(matrices.dtype, torch.float32)).eps
    within = s > s[..., :1] * max(matrices.shape[-2:]) * unit
    return HeadBases(u * within[..., None, :], s)


def effective_dimension(singular_values: Tensor) -> Tensor:
    """Participation ratio of the energies: `(sum s^2)^2 / sum s^4` (as in Gao et al., bioRxiv 214262).

    It is n if n singular values are equal and the rest zero, and smaller the more unequal they are; 0 if all are zero.

    Args:
        singular_values: (..., r), float, finite.

    Returns:
        (...), the same dtype, from 1 to r or 0.

    Raises:
        InputError: If the singular values are not as above.
    """
    _check_float("singular values", singular_values, 1)
    scale = singular_values.detach().abs().amax(-1, keepdim=True)
    # Scaled, so that squares do not overflow or all vanish.
    energies = (singular_values / torch.where(scale > 0, scale, 1)).square()
    total = energies.square().sum(-1)
    return energies.sum(-1).square() / torch.where(total > 0, total, 1)


def principal_angles(one: Tensor, other: Tensor) -> Tensor:
    """Principal angles between the column spaces of two matrices (Bjorck and Golub, 1973), in radians.

    The cosines are the singular values of Q^T Q' for orthonormal bases Q and Q'. An angle of 0 is computed as less than
    1e-7.

    Args:
        one: (..., dim, r), float, finite; the columns need not be orthonormal.
        other: (..., dim, s), with leading dimensions that broadcast.

    Returns:
        float64 (..., min(r, s)), ascending, in [0, pi / 2]. Their number is the lower rank; the rest are NaN.

    Raises:
        InputError: If the matrices are not as above.
    """
    _check_float("matrices", one, 2)
    _check_float("matrices", other, 2)
    if one.shape[-2] != other.shape[-2]:
        raise InputError(
            f"both subspaces must be in one space, not in {one.shape[-2]} and {other.shape[-2]} dimensions"
        )
    return _angles(orthonormal_bases(one).bases, orthonormal_bases(other).bases)


def subspace_overlap(angles: Tensor) -> Tensor:
    """Mean squared cosine of principal angles: 0 for orthogonal subspaces, 1 if one holds the other.

    For random subspaces of r and s dimensions in dim dimensions it is max(r, s) / dim on average. `sqrt(1 - overlap)`
    is the projection distance of two subspaces of one dimension r, `||Q Q^T - Q' Q'^T||_F / sqrt(2 r)` (Edelman, Arias
    and Smith, 1998, section 4.3), from 0 to 1.

    Args:
        angles: (..., r); see `principal_angles`.

    Returns:
        (...); NaN if there is no angle.
    """
    return angles.cos().square().nanmean(-1)


def subspace_energy(tokens: Tensor, bases: Tensor) -> Tensor:
    """The share of each token's squared norm in each subspace: `|Q_k^T z|^2 / |z|^2`.

    Subspaces may overlap, so shares need not add up to 1. For random directions it is r / dim on average.

    Args:
        tokens: (..., dim), float, finite. MSSA sees LN1(z): see `token_energy`.
        bases: (heads, dim, r), with orthonormal or zero columns: `HeadBases.bases`.

    Returns:
        (..., heads), the dtype of `tokens` or float32, whichever is wider; 0 for a token that is zero.

    Raises:
        InputError: If the shapes do not fit, values are not finite, or the columns are not orthonormal.
    """
    _check_float("tokens", tokens, 1)
    _check_float("bases", bases, 3)
    if bases.ndim != 3 or tokens.shape[-1] != bases.shape[-2]:
        raise InputError(
            f"expected tokens (..., dim) and bases (heads, dim, r), got {_shape(tokens)} and {_shape(bases)}"
        )
    gram = _double(bases).mT @ _double(bases)
    if (gram - torch.diag_embed((gram.diagonal(dim1=-2, dim2=-1) > 0.5).to(gram.dtype))).abs().max() > 1e-3:
        raise InputError("the columns of these bases are not orthonormal: use orthonormal_bases(matrices).bases")
    precise = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    largest = precise.detach().abs().amax(-1, keepdim=True)
    scaled = precise / torch.where(largest > 0, largest, 1)
    inside = torch.einsum("...d,hdr->...hr", scaled, bases.to(scaled)).square().sum(-1)
    whole = scaled.square().sum(-1, keepdim=True)
    return inside / torch.where(whole > 0, whole, 1)


@dataclass(frozen=True)
class DictionaryGeometry:
    """How far a dictionary is from the derivation's orthogonal one; see `dictionary_geometry`.

    Attributes:
        dim: Width of a token.
        atoms: Number of columns of D.
        coherence: Largest absolute cosine of two different atoms, in [0, 1]; 0 if all are orthogonal.
        mean_coherence: Mean absolute cosine of two different atoms. For random atoms it is about sqrt(2 / (pi dim)).
        welch_bound: The smallest possible coherence of so many atoms (Welch, 1974); 0 up to dim atoms.
        distance: sqrt(mean (s - 1)^2) over the singular values s: the distance `|D - Q|_F` to the nearest matrix Q with
            orthonormal columns (rows, if there are more atoms than dimensions), over `|Q|_F`.
        shape_distance: The same distance for the best multiple of D, in [0, 1]: D may then be orthogonal up to scale.
        condition: Largest divided by smallest singular value; infinite if the smallest is zero.
        norms: Smallest and largest norm of an atom.
    """

    dim: int
    atoms: int
    coherence: float
    mean_coherence: float
    welch_bound: float
    distance: float
    shape_distance: float
    condition: float
    norms: tuple[float, float]


def dictionary_geometry(dictionary: Tensor) -> DictionaryGeometry:
    """Coherence of a dictionary's atoms, and its distance from orthogonality.

    Args:
        dictionary: (dim, atoms), float, finite: `block.ista.dictionary` or `block.odl.dictionary`.

    Raises:
        InputError: If it is not as above.
    """
    _check_float("dictionary", dictionary, 2)
    if dictionary.ndim != 2:
        raise InputError(f"a dictionary must be (dim, atoms), not {_shape(dictionary)}")
    matrix = _double(dictionary)
    dim, atoms = matrix.shape
    norms = matrix.norm(dim=0)
    cosines = (matrix / torch.where(norms > 0, norms, 1)).T @ (matrix / torch.where(norms > 0, norms, 1))
    cosines = cosines.abs().fill_diagonal_(0)
    values = torch.linalg.svdvals(matrix)
    energy = float(values.square().sum())
    fit = float(values.sum()) ** 2 / (len(values) * energy) if energy else 0.0
    return DictionaryGeometry(
        dim=dim,
        atoms=atoms,
        coherence=min(1.0, float(cosines.max())),
        mean_coherence=float(cosines.sum()) / max(1, atoms * (atoms - 1)),
        welch_bound=math.sqrt((atoms - dim) / (dim * (atoms - 1))) if atoms > dim else 0.0,
        distance=float((values - 1).square().mean().sqrt()),
        shape_distance=math.sqrt(max(0.0, 1 - fit)),
        condition=float(values[0] / values[-1]) if values[-1] else math.inf,
        norms=(float(norms.min()), float(norms.max())),
    )


@dataclass(frozen=True)
class ProjectionAlignment:
    """How close an output projection [P_1, ..., P_K] is to [U_1, ..., U_K], per head; see `projection_alignment`.

    Attributes:
        cosine: float64 (heads,): `<P_k, U_k> / (|P_k| |U_k|)` in the Frobenius inner product. The derivation has 1;
            random matrices have 0 within about 1 / sqrt(dim head_dim). A negative cosine pushes tokens the other way. 0
            if either matrix is zero.
        scale: float64 (heads,): the c of the best c U_k.
        residual: float64 (heads,): `|P_k - c U_k| / |P_k|`, which is sqrt(1 - cosine^2).
        within: float64 (heads,): share of `|P_k|^2` in the span of U_k, whatever P_k does inside it. 1 if the head
            writes to the subspace that it reads from, which does not mean P_k = U_k; about head_dim / dim by chance.
    """

    cosine: Tensor
    scale: Tensor
    residual: Tensor
    within: Tensor


def projection_alignment(projections: Tensor, matrices: Tensor) -> ProjectionAlignment:
    """Compares the matrices by which heads write and read. (arXiv 2308.16271, Eq. 5, has the bases in both places.)

    Args:
        projections: P_1, ..., P_K, (heads, dim, head_dim), float, finite.
        matrices: U_1, ..., U_K, the same shape.

    Raises:
        InputError: If the matrices are not as above.
    """
    _check_float("projections", projections, 3)
    _check_float("matrices", matrices, 3)
    if projections.shape != matrices.shape or projections.ndim != 3:
        raise InputError(f"both must be (heads, dim, head_dim), not {_shape(projections)} and {_shape(matrices)}")
    p, u = _double(projections), _double(matrices)
    inner = (p * u).sum((-2, -1))
    size, base = p.norm(dim=(-2, -1)), u.norm(dim=(-2, -1))
    cosine = (inner / torch.where(size * base > 0, size * base, 1)).clamp(-1, 1)
    scale = inner / torch.where(base > 0, base.square(), 1)
    rest = (p - scale[:, None, None] * u).norm(dim=(-2, -1)) / torch.where(size > 0, size, 1)
    written = (orthonormal_bases(matrices).bases.mT @ p).norm(dim=(-2, -1)) / torch.where(size > 0, size, 1)
    return ProjectionAlignment(cosine, scale, rest, written.square())


def pair_angles(bases: Tensor) -> Tensor:
    """Angles of all pairs of heads (heads, heads, r); each pair is decomposed once."""
    heads, _, r = bases.shape
    i, j = torch.triu_indices(heads, heads, offset=1)
    angles = torch.zeros(heads, heads, r, dtype=bases.dtype)
    angles[i, j] = angles[j, i] = _angles(bases[i], bases[j])
    own = torch.arange(r) < _rank(bases)[:, None]
    angles[range(heads), range(heads)] = torch.where(own, 0.0, math.nan).to(bases.dtype)
    return angles


def _angles(one: Tensor, other: Tensor) -> Tensor:
    """Principal angles of orthonormal bases, whose columns beyond the rank are zero."""
    cosines = torch.linalg.svdvals(one.mT @ other).clamp(max=1)
    count = torch.minimum(_rank(one), _rank(other))[..., None]
    return torch.where(torch.arange(cosines.shape[-1]) < count, cosines.acos(), math.nan)


def projection_distance(one: Tensor, other: Tensor) -> Tensor:
    """Projection distance of orthonormal bases, from inner products, without angles."""
    least = torch.minimum(_rank(one), _rank(other))
    return (1 - (one.mT @ other).square().sum((-2, -1)) / least).clamp(0, 1).sqrt()


def _rank(bases: Tensor) -> Tensor:
    return bases.any(dim=-2).sum(-1)


def _check_float(what: str, tensor: Tensor, least_ndim: int) -> None:
    if not tensor.is_floating_point() or tensor.ndim < least_ndim or tensor.numel() == 0:
        raise InputError(
            f"{what}: expected floats with {least_ndim} dimensions or more, got {tensor.dtype} of {_shape(tensor)}"
        )
    if not tensor.isfinite().all():
        raise InputError(f"{what}: {int((~tensor.isfinite()).sum())} of {tensor.numel()} values are NaN or infinite")


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
