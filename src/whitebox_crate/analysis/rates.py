"""The objectives of CRATE as functions of tensors: coding rates, rate reduction, sparsity (arXiv 2306.01129)."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..errors import InputError, UnknownNameError, check_kind
from ..layers import second_moments

Convention: TypeAlias = Literal["paper", "released"]
SparsityNorm: TypeAlias = Literal["l0", "l1"]

# Above this size of the largest eigenvalue, rounding errors of a Gram matrix hide the 1 that I adds.
_GRAM_LIMIT = 1e8
_SMALLEST_HALF = 64  # columns; smaller halves cost more in copies than they save


def coding_rate(tokens: Tensor, eps: float, convention: Convention = "paper") -> Tensor:
    """The coding rate: nats per token to code the tokens, as Gaussians, up to an error (arXiv 2306.01129).

    With `convention="paper"`, `R(Z) = 1/2 logdet(I + d / (N eps^2) Z^T Z)` for N tokens in d dimensions. With
    `"released"`, as in the published script, each token is first scaled to unit length, and `eps` takes the place of
    the paper's eps^2. The logdet uses the smaller of the two Gram matrices, N x N or d x d.

    A zero token adds nothing in either convention (the script gives NaN for it). Differentiable.

    Args:
        tokens: (..., tokens, dim), any float dtype. Computed in float64 (in float32 on devices without).
        eps: Precision, in units of the tokens; above 0. The released script uses 0.01, which equals 0.1 in the paper.
        convention: "paper" or "released".

    Returns:
        (...), at least float32; not negative, 0 for zero tokens.

    Raises:
        InputError: If the tokens are not as above or not finite, or `eps` is not above 0.
        UnknownNameError: If the convention is another word.

    Example:
        >>> one, many = torch.ones(8, 4), torch.eye(4).repeat(2, 1)  # 8 tokens in one direction, and in four
        >>> coding_rate(one, eps=0.5) < coding_rate(many, eps=0.5)
        tensor(True)
    """
    check_rate(eps, convention)
    _check_shape(tokens)
    count, dim = tokens.shape[-2:]
    scale = dim / (count * (eps if convention == "released" else eps * eps or math.nan))
    if not 0 < scale < math.inf:
        raise InputError(f"the precision eps={eps!r} is beyond floating point; choose another")
    return (_logdet(tokens, scale, convention == "released") / 2).to(_result_dtype(tokens))


def subspace_coding_rate(
    projections: Tensor, eps: float, convention: Convention = "paper", *, per_head: bool = False
) -> Tensor:
    """The coding rate on subspaces: nats per token to code the tokens' projections (arXiv 2306.01129).

    `Rc(Z; U) = sum_k 1/2 logdet(I + p / (N eps^2) (U_k^T Z)^T (U_k^T Z))` for subspaces of p dimensions: the sum
    of the coding rates of `w_k = U_k^T Z`.

    Args:
        projections: w, (..., heads, tokens, head_dim), any float dtype: `capture(model, "projections")`.
        eps: Precision; see `coding_rate`.
        convention: "paper" or "released"; see `coding_rate`.
        per_head: Whether to return the rate of each head.

    Returns:
        (...), or (..., heads) with `per_head`, at least float32.

    Raises:
        InputError: If the projections are not as above or not finite, or `eps` is not above 0.
        UnknownNameError: If the convention is another word.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> with torch.no_grad(), capture(model, "projections", layers=[-2]) as trace:
        ...     logits = model(torch.rand(2, 3, 96, 96))
        >>> subspace_coding_rate(trace["projections", -2], eps=0.1).shape  # of each image
        torch.Size([2])
    """
    if projections.ndim < 3 or projections.shape[-3] == 0:
        raise InputError(f"projections must be (..., heads, tokens, head_dim), not {tuple(projections.shape)}")
    rates = coding_rate(projections, eps, convention)
    return rates if per_head else rates.sum(dim=-1)


def variational_coding_rate(projections: Tensor, membership: Tensor, scale: float = 1.0) -> Tensor:
    """The variational form of Rc, in nats per token, which ToST is derived to lower (arXiv 2412.17810, section 3).

    `Rc_f(Z, Pi; U) = sum_k n_k / (2 n) sum_c f(m_k[c])` for n tokens, with `f(x) = log(1 + scale x)` and the moments of
    `whitebox_crate.layers.TSSA`, `m_k[c] = sum_j Pi_kj w_kj[c]^2 / n_k` with `n_k = sum_j Pi_kj`. It treats
    each channel of a head separately, so it is at least the rate with the logdet of each head's covariance.

    Args:
        projections: w, (..., heads, tokens, head_dim), any float dtype: `capture(model, "projections")`.
        membership: Pi, (..., heads, tokens), from 0 to 1: `capture(model, "membership")`.
        scale: d / eps^2 in the paper; 1 in the released code.

    Returns:
        (...), at least float32; not negative. Computed in float64 (in float32 on devices without).

    Raises:
        InputError: If the tensors are not as above or not finite, or `scale` is not above 0.
    """
    _check_shape(projections)
    if projections.ndim < 3 or projections.shape[:-1] != membership.shape:
        raise InputError(
            f"projections {tuple(projections.shape)} and membership {tuple(membership.shape)} do not belong to the "
            "same tokens; expected (..., heads, tokens, head_dim) and (..., heads, tokens)"
        )
    if not 0 < scale < math.inf:
        raise InputError(f"scale must be a finite number above 0, not {scale!r}")
    for tensor in (projections, membership):
        _check_finite(tensor)
    w, pi = (tensor.to(exact_dtype(projections)) for tensor in (projections, membership))
    per_head = torch.log1p(scale * second_moments(w, pi)).sum(dim=-1)
    return ((pi.sum(dim=-1) * per_head).sum(dim=-1) / (2 * w.shape[-2])).to(_result_dtype(projections))


def rate_reduction(tokens: Tensor, projections: Tensor, eps: float, convention: Convention = "paper") -> Tensor:
    """The rate reduction `R(Z) - Rc(Z; U)`: how much the whole exceeds the subspaces (arXiv 2306.01129).

    Args:
        tokens: Z, (..., tokens, dim), any float dtype.
        projections: U_k^T Z of the same tokens, (..., heads, tokens, head_dim).
        eps: Precision; see `coding_rate`.
        convention: "paper" or "released"; see `coding_rate`.

    Returns:
        (...), at least float32. May be negative, since the subspaces need not cover Z exactly once.

    Raises:
        InputError: If the tensors are not as above, or `eps` is not above 0.
        UnknownNameError: If the convention is another word.
    """
    if (*tokens.shape[:-2], tokens.shape[-2:-1]) != (*projections.shape[:-3], projections.shape[-2:-1]):
        raise InputError(
            f"tokens {tuple(tokens.shape)} and projections {tuple(projections.shape)} do not belong to the same "
            "tokens; expected (..., tokens, dim) and (..., heads, tokens, head_dim)"
        )
    return coding_rate(tokens, eps, convention) - subspace_coding_rate(projections, eps, convention)


def sparse_rate_reduction(
    tokens: Tensor,
    projections: Tensor,
    eps: float,
    sparsity: float = 0.1,
    convention: Convention = "paper",
    *,
    norm: SparsityNorm = "l0",
) -> Tensor:
    """`R(Z) - Rc(Z; U) - lambda |Z|`, the objective that CRATE is derived to maximise (arXiv 2308.16271, Eq. 2).

    `|Z|` is the number of non-zero entries; its gradient is zero. `norm="l1"` uses the sum of magnitudes instead, as in
    the derivation of ISTA.

    Args:
        tokens: Z, (..., tokens, dim), any float dtype.
        projections: U_k^T Z of the same tokens, (..., heads, tokens, head_dim).
        eps: Precision; see `coding_rate`.
        sparsity: lambda.
        convention: "paper" or "released"; see `coding_rate`. `|Z|` uses the tokens as given.
        norm: "l0" or "l1".

    Returns:
        (...), at least float32.

    Raises:
        InputError: If the tensors are not as above, `eps` is not above 0, or `sparsity` is negative.
        UnknownNameError: If the convention or the norm is unknown.

    Example:
        >>> tokens, bases = torch.rand(10, 6), torch.rand(2, 6, 3)  # 10 tokens; 2 subspaces of 3 dimensions
        >>> sparse_rate_reduction(tokens, tokens @ bases, eps=0.5).shape
        torch.Size([])
    """
    if norm not in get_args(SparsityNorm):
        raise UnknownNameError.of("norm", norm, get_args(SparsityNorm))
    if not 0 <= sparsity < math.inf:
        raise InputError(f"sparsity (lambda) must be a number of at least 0, not {sparsity!r}")
    entries = tokens.shape[-1] * tokens.shape[-2] if tokens.ndim > 1 else 0
    size = (l0 if norm == "l0" else l1)(tokens) * entries
    return rate_reduction(tokens, projections, eps, convention) - sparsity * size


def l0(tokens: Tensor) -> Tensor:
    """The share of non-zero entries, `|Z|_0 / (N d)`, as in the layer-wise figures of the papers.

    Args:
        tokens: (..., tokens, dim), any float dtype.

    Returns:
        (...), in [0, 1], at least float32; no gradient flows through it.

    Raises:
        InputError: If the tokens are not as above or not finite.
    """
    z = _checked(tokens)
    return (z != 0).to(_result_dtype(tokens)).mean(dim=(-2, -1))


def l1(tokens: Tensor) -> Tensor:
    """The mean magnitude of entries, `|Z|_1 / (N d)`. It scales with the tokens.

    Args:
        tokens: (..., tokens, dim), any float dtype.

    Returns:
        (...), at least float32.

    Raises:
        InputError: If the tokens are not as above or not finite.
    """
    z = _checked(tokens)
    return z.to(_result_dtype(tokens)).abs().mean(dim=(-2, -1))


def effective_rank(tokens: Tensor) -> Tensor:
    """exp of the entropy of the singular values, scaled to sum 1 (Roy and Vetterli, EUSIPCO 2007).

    It is k for k equal singular values: the number of directions that carry the tokens, even if no value is exactly
    zero. The mean is not subtracted. Singular values within rounding of zero count as zero.

    Args:
        tokens: (..., tokens, dim), any float dtype.

    Returns:
        (...), from 1 to min(tokens, dim), 0 for zero tokens; at least float32.

    Raises:
        InputError: If the tokens are not as above or not finite.
    """
    z = _checked(tokens).to(exact_dtype(tokens))
    largest = z.detach().abs().amax(dim=(-2, -1), keepdim=True)
    z = z / torch.where(largest == 0, 1.0, largest)  # scale-free, so that squares do not overflow
    squares = torch.linalg.eigvalsh(_gram(z))
    floor = squares.detach().amax(dim=-1, keepdim=True) * max(z.shape[-2:]) * torch.finfo(z.dtype).eps
    present = squares > floor
    # A square root has no derivative at zero, so zeros are removed before it.
    values = torch.where(present, torch.where(present, squares, 1.0).sqrt(), 0.0)
    total = values.sum(dim=-1, keepdim=True)
    share = torch.where(present, values / torch.where(total == 0, 1.0, total), 1.0)
    rank = torch.where(present.any(dim=-1), -(share * share.log()).sum(dim=-1), -math.inf).exp()
    return rank.to(_result_dtype(tokens))


def _logdet(tokens: Tensor, scale: float, unit: bool) -> Tensor:
    """logdet(I + scale Z^T Z) of (..., tokens, dim), exact to rounding however large or degenerate Z is.

    With `unit`, tokens are scaled to unit length first. Singular values within rounding of zero count as zero.
    """
    z = tokens.to(exact_dtype(tokens))
    if unit:
        largest = z.detach().abs().amax(dim=-1, keepdim=True)  # so that squares neither overflow nor vanish
        z = z / torch.where(largest == 0, 1.0, largest)
        length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        z = z / torch.where(length == 0, 1.0, length)
    gram = _gram(z) * scale
    trace = gram.detach().diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    if bool((trace < _GRAM_LIMIT).all()):
        factor = torch.linalg.cholesky(gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
        halves: Tensor = factor.diagonal(dim1=-2, dim2=-1).log()
        return 2 * halves.sum(dim=-1)
    _check_finite(tokens)  # the trace shows non-finite values, so entries are seldom checked one by one
    # Squares of singular values are more exact than eigenvalues of a Gram matrix, whose errors are squared too.
    values = torch.linalg.svdvals(z)
    floor = values.detach().amax(dim=-1, keepdim=True) * max(z.shape[-2:]) * torch.finfo(z.dtype).eps
    present = values > floor
    logs = 2 * torch.where(present, values, 1.0).log() + math.log(scale)
    terms: Tensor = torch.where(present, torch.logaddexp(logs, torch.zeros_like(logs)), 0.0)
    return terms.sum(dim=-1)


def _gram(z: Tensor) -> Tensor:
    """The smaller of Z^T Z (dim x dim) and Z Z^T (tokens x tokens)."""
    return _squared(z if z.shape[-1] < z.shape[-2] else z.mT)


def _squared(z: Tensor) -> Tensor:
    """Z^T Z. It is symmetric; for large ones, the part below the diagonal is copied, not computed."""
    half = z.shape[-1] // 2
    if half < _SMALLEST_HALF:
        return z.mT @ z
    upper = z[..., :half].mT @ z
    lower = torch.cat([upper[..., half:].mT, _squared(z[..., half:])], dim=-1)
    return torch.cat([upper, lower], dim=-2)


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """float64, or float32 if the device has no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _checked(tokens: Tensor) -> Tensor:
    _check_shape(tokens)
    _check_finite(tokens)
    return tokens


def _check_shape(tokens: Tensor) -> None:
    check_kind("tokens", tokens, Tensor, "torch.as_tensor makes a tensor of an array")
    if tokens.ndim < 2 or not tokens.is_floating_point() or 0 in tokens.shape[-2:]:
        raise InputError(
            f"expected float (..., tokens, dim) with at least one token and one channel, not {tokens.dtype} "
            f"{tuple(tokens.shape)}"
        )


def _check_finite(tokens: Tensor) -> None:
    if not bool(torch.isfinite(tokens).all()):
        raise InputError("the tokens have NaN or infinite values; check the images and weights behind them")


def _result_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def check_rate(eps: float, convention: Convention) -> None:
    """Raises unless these are a precision and a convention of `coding_rate`."""
    if convention not in get_args(Convention):
        raise UnknownNameError.of("convention", convention, get_args(Convention))
    if not 0 < eps < math.inf:
        raise InputError(f"the precision eps must be a finite number above 0, not {eps!r}")
