"""The normalised cut of patches by the similarity of their features: one eigenvector, found by iteration.

The affinity has two values, 1 and `EPSILON`, so a matrix of bools describes it. The largest eigenvalue of the
normalised affinity M = D^-1/2 A D^-1/2 is 1, and its eigenvector is known. Lanczos iteration in the orthogonal space
finds the second eigenvector in a few products with M; the dense solver takes tokens^3 steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..errors import InputError, UnknownNameError, check_kind

Solver: TypeAlias = Literal["lanczos", "dense"]

EPSILON = 1e-5  # the affinity of patches that are not linked: keeps the graph connected
TIE = 1e-9  # entries of an eigenvector that differ by less than this share of its largest count as equal
SAME = 1e-10  # eigenvalues this close count as one
TOLERANCE = 1e-12  # largest angle between the result of the iteration and the eigenvector, radians
MAX_STEPS = 320  # with more steps, reading the basis costs as much as the products
BREAKDOWN = 1e-13  # a next basis vector shorter than this is rounding, and the space is complete


def affinity(features: Tensor, tau: float = 0.15) -> Tensor:
    """Links patches whose features have a cosine above tau (arXiv 2202.11539, section 3.2).

    The affinity matrix A of the papers is 1 where this is True and `EPSILON` elsewhere. A feature of zero length is
    not linked, not even to itself. Cosines are computed in float64, so they do not depend on the scale of the features
    or on a GPU's precision setting.

    Args:
        features: (tokens, dim), float, finite: one row per patch, no [CLS].
        tau: The threshold, in [0, 1).

    Returns:
        bool (tokens, tokens), symmetric.

    Raises:
        InputError: If the features or tau are not as above.
    """
    check_kind("features", features, Tensor, "torch.as_tensor makes a tensor of an array")
    if features.ndim != 2 or features.numel() == 0 or not features.is_floating_point():
        raise InputError(
            f"expected float features of shape (tokens, dim), one image at a time, got {features.dtype} of shape "
            f"{tuple(features.shape)}"
        )
    if not 0 <= tau < 1:
        raise InputError(f"tau must be a cosine in [0, 1), not {tau!r}")
    values = features.detach()
    if values.device.type not in ("cpu", "cuda"):
        values = values.cpu()  # some devices lack float64
    values = values.to(torch.float64)
    bad = ~values.isfinite()
    if bad.any():
        token, column = bad.nonzero()[0].tolist()
        raise InputError(
            f"{int(bad.sum())} values of the features are NaN or infinite, the first ({float(values[token, column])}) "
            f"in row {token}, column {column}; check the images and weights that they came from"
        )
    largest = values.abs().amax(dim=1, keepdim=True)
    values = values / torch.where(largest > 0, largest, 1.0)  # so that squares do not overflow or vanish
    lengths = values.norm(dim=1, keepdim=True)
    unit = values / torch.where(lengths > 0, lengths, 1.0)
    linked = unit @ unit.mT > tau
    return linked & linked.mT  # the product is symmetric up to rounding


def ncut_eigenvector(linked: Tensor, solver: Solver = "lanczos") -> Tensor:
    """The eigenvector v of (D - A) v = lambda D v with the second smallest lambda (Shi and Malik 2000, equation 6).

    A is 1 where `linked` and `EPSILON` elsewhere, D the diagonal matrix of its row sums. v^T D v = 1.

    An eigenvector has no sign of its own, but the rules of `bipartition` depend on the sign. Here the entry of largest
    magnitude (the first, if there are several) is positive. So the peak is on the side above the mean, and the corners
    decide whether that side is foreground. With the other sign, the peak's side would be foreground however many
    corners it has.

    If several eigenvectors share lambda, v is the projection of one fixed vector onto their span, with either solver.

    Args:
        linked: bool (tokens, tokens), symmetric, at least two tokens; see `affinity`.
        solver: "lanczos", which falls back to "dense" if it does not converge (eigenvalues that nearly coincide), or
            "dense", the reference.

    Returns:
        float64 (tokens,).

    Raises:
        InputError: If `linked` is not as above.
        UnknownNameError: If the solver does not exist.
    """
    if solver not in get_args(Solver):
        raise UnknownNameError.of("solver", solver, get_args(Solver))
    if linked.dtype != torch.bool or linked.ndim != 2 or linked.shape[0] != linked.shape[1] or len(linked) < 2:
        raise InputError(
            f"expected a bool matrix (tokens, tokens) of at least two tokens, got {linked.dtype} of shape "
            f"{tuple(linked.shape)}"
        )
    if not torch.equal(linked, linked.mT):
        raise InputError("the affinity is not symmetric: if i is linked to j, j must be linked to i")
    scale = degrees(linked).rsqrt()
    found = _lanczos(linked, scale) if solver == "lanczos" else None
    vector = scale * (_dense(linked, scale) if found is None else found)
    return vector * vector[first_peak(vector.abs())].sign()


def degrees(linked: Tensor) -> Tensor:
    """The row sums of the affinity, float64 (tokens,): the diagonal of D."""
    links = linked.sum(dim=1).to(torch.float64)
    return links + EPSILON * (len(linked) - links)


def first_peak(values: Tensor) -> int:
    """The index of the largest of the values (tokens,); the first, if several are equal up to rounding."""
    return int((values >= values.max() - TIE * values.abs().max()).nonzero()[0])


def _dense(linked: Tensor, scale: Tensor) -> Tensor:
    """The unit eigenvector of M's second largest eigenvalue, float64 (tokens,), by a full decomposition."""
    trivial = _unit(1 / scale)
    matrix = torch.full_like(linked, EPSILON, dtype=torch.float64).masked_fill_(linked, 1) * scale * scale[:, None]
    # Moves the largest eigenvalue from 1 to -1. The others sum to at least 0, so one of them is then the largest.
    values, vectors = torch.linalg.eigh(matrix - 2 * torch.outer(trivial, trivial))
    span = vectors[:, values >= values[-1] - SAME]
    return _unit(span @ (span.mT @ _start(len(linked), linked.device)))


def _lanczos(linked: Tensor, scale: Tensor) -> Tensor | None:
    """The result of `_dense`, by Lanczos iteration with full reorthogonalisation; None if it does not converge."""
    tokens = len(linked)
    steps = min(MAX_STEPS, tokens - 1)
    links = linked.to(torch.float64)

    def multiply(vector: Tensor) -> Tensor:
        scaled = scale * vector
        return scale * (EPSILON * scaled.sum() + (1 - EPSILON) * (links @ scaled))

    basis = links.new_empty(steps + 1, tokens)
    basis[0] = _unit(1 / scale)  # the eigenvector of the largest eigenvalue; all others are orthogonal to it
    diagonal: list[float] = []
    beside: list[float] = []  # the diagonal next to it
    # One product, so that patches with the same links start with the same entry.
    following = _orthogonal(multiply(_orthogonal(_start(tokens, linked.device), basis[:1])), basis[:1])
    length, check = float(following.norm()), 10
    if length < BREAKDOWN:
        return None
    for step in range(1, steps + 1):
        basis[step] = following / length
        following = multiply(basis[step])
        diagonal.append(float(basis[step] @ following))
        following = _orthogonal(following, basis[: step + 1])
        length = float(following.norm())
        complete = length < BREAKDOWN or step == tokens - 1
        if complete or step in (check, steps):
            mixture = _converged(diagonal, beside, 0.0 if complete else length)
            if mixture is not None or complete:
                return None if mixture is None else _unit(mixture.to(links) @ basis[1 : step + 1])
            check += max(5, check // 4)
        beside.append(length)
    return None


def _converged(diagonal: Sequence[float], beside: Sequence[float], length: float) -> Tensor | None:
    """The weights of the basis vectors in the eigenvector; None if the result is not yet within TOLERANCE.

    `diagonal` and `beside` hold M within the basis; `length` is how far M leads out of it from the last vector.
    """
    off = torch.tensor(beside, dtype=torch.float64)
    within = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(within)
    top = values >= values[-1] - SAME
    mixture = _unit(vectors[:, top] @ vectors[0, top])  # the projection of the first basis vector
    if length == 0:
        return mixture
    if top.all():
        return None
    gap = float(values[-1] - values[~top][-1])
    residual = length * abs(float(mixture[-1]))
    return mixture if residual <= TOLERANCE * gap else None


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """The vector without its part in the span of the orthonormal rows. Done twice, since one pass leaves rounding."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm()
    return unit


def _start(tokens: int, device: torch.device) -> Tensor:
    """A fixed vector without a pattern, which has a part in every eigenvector; float64 (tokens,)."""
    return torch.sin(math.pi / 3 + torch.arange(1, tokens + 1, dtype=torch.float64, device=device) ** 2)
