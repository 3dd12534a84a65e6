"""The prior of open face values: smooth functions on the box, seen on its faces; how smooth, the evidence says."""

from __future__ import annotations

from itertools import pairwise
from math import log
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.gaussian.kernels import SpectralMixture
from ...core.precision import eps, matmul
from ...core.typing import Array, Float
from ..spectral.spaces import Line
from .completion import FaceSpace, trace_points

TAIL = ((1.0, 1.0), (1e-2, 0.5), (1e-4, 0.25))
"""Weights and relative lengths of the squared exponentials that make up a dimension: heavier tails than one alone."""
LENGTHS = np.geomspace(1.0, 0.03, 9)
"""Lengths tried, as fractions of the domain."""
LENGTH, LENGTH_SPREAD = 0.5, 0.8
"""What is believed of the length before the data: the median, and the standard deviation of the logarithm."""
SCALES = np.geomspace(0.1, 100.0, 13)
"""Standard deviations tried, in units of the largest value known of the unknown."""
SCALE, SCALE_SPREAD = 3.0, 1.0
LEVEL = 10.0
"""Standard deviation of a constant that is added, in the same units: small slopes say nothing of the level."""


class FacePrior(NamedTuple):
    """``weights = root w`` with ``w ~ N(0, I)``; the kernel, one for all dimensions, is what the trace is of.

    Beside it there is a constant; `share` is how much of the weights' variance is not its.
    """

    root: Float[Array, "p r"]
    kernel: SpectralMixture
    share: Float[Array, ""]


def covariance(spaces: list[FaceSpace], lines: list[list[Line]], kernel: SpectralMixture):
    """Return the covariance of all open weights: of ``a u + outward b du/dn`` on the faces, in their polynomials."""
    each = [trace_points(s, lines) for s in spaces]
    sizes, ndim = [x[0].size for x in each], len(lines[0])
    points = [jnp.concatenate([x[d] for x in each]) for d in range(ndim)]
    gaps = [(p[:, None] - p[None]) / (ln.basis.upper - ln.basis.lower) for p, ln in zip(points, lines[0], strict=True)]
    axes, fields = (np.repeat([getattr(s.opened, n) for s in spaces], sizes) for n in ("axis", "field"))
    factors = [jnp.concatenate([jnp.broadcast_to(c, n) for c, n in zip(cs, sizes, strict=True)]) for cs in (
        [s.opened.a for s in spaces], [s.opened.outward * s.opened.b for s in spaces])]  # fmt: skip
    flux = any(s.opened.flux for s in spaces)
    total = jnp.zeros_like(gaps[0])
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)) if flux else ((0, 0),):
        term = factors[i][:, None] * factors[j][None] * (-1.0) ** j if flux else 1.0
        for d, gap in enumerate(gaps):
            order = i * (axes == d)[:, None] + j * (axes == d)[None]
            width = lines[0][d].basis.upper - lines[0][d].basis.lower
            derived = jnp.zeros_like(gap)
            for p in np.unique(order):
                derived = jnp.where(order == p, kernel.derivative(gap, int(p)) / width**p, derived)
            term = term * derived
        total = total + term
    total = jnp.where(fields[:, None] == fields[None], total, 0)
    projections = [_projection(s, lines) for s in spaces]
    if len({p.shape for p in projections}) == 1:
        each, count = jnp.stack(projections), len(spaces)
        blocks = total.reshape(count, sizes[0], count * sizes[0])
        half = matmul(each, blocks).reshape(-1, count, sizes[0]).swapaxes(0, 1)
        return matmul(half, each.swapaxes(1, 2)).swapaxes(0, 1).reshape(half.shape[1], -1)
    cuts = [slice(m, n) for m, n in pairwise(np.cumsum([0, *sizes]))]
    rows = jnp.concatenate([matmul(p, total[cut]) for p, cut in zip(projections, cuts, strict=True)])
    return jnp.concatenate([matmul(rows[:, cut], p.T) for p, cut in zip(projections, cuts, strict=True)], axis=1)


def _projection(space: FaceSpace, lines):
    """Return the matrix from values at the nodes of a face to weights: quadrature with orthonormal polynomials."""
    whole = jnp.ones((1, 1), lines[0][0].null.dtype)
    for t, ln in zip(space.tables, lines[space.opened.field], strict=True):
        if t is not None:
            own = (t * ln.basis.weights[:, None]).T
            rows, columns = whole.shape[0] * own.shape[0], whole.shape[1] * own.shape[1]
            whole = (whole[:, None, :, None] * own[None, :, None, :]).reshape(rows, columns)
    return whole


def _root(matrix):
    values, vectors = jnp.linalg.eigh(matrix)
    values = jnp.where(values > 10 * eps(values.dtype) * values[-1], values, 0)
    return vectors * jnp.sqrt(values)[None]


def chosen(spaces, lines, magnitude, jacobian, extra, misfit, rank: int) -> FacePrior:
    """Return the prior whose length and scale make the data most probable, what is believed of both included.

    Parameters
    ----------
    jacobian : Float[Array, "m p"]
        Of all data over their noise, in the open weights.
    extra : Float[Array, "m q"]
        The same in whatever else is unknown, with unit Gaussian priors: it acts as noise here.
    misfit : Float[Array, "m"]
        The data's misfit over their noise where all unknowns are zero.

    Notes
    -----
    One QR factorisation eliminates what is unknown beside the weights, whose prior are rows of their own, and
    compresses the data to as many rows as weights (what of the misfit lies outside their range no prior changes); then
    one `eigh` a length gives the evidence at every scale.
    """
    dtype, ndim, count = misfit.dtype, len(lines[0]), sum(s.size for s in spaces)
    level = LEVEL * magnitude * _constant(spaces, lines)
    level_of = matmul(jacobian, level)[:, None]
    others = jnp.concatenate([level_of, extra], axis=1)
    known = others.shape[1]
    whole = jnp.concatenate([others, jacobian, misfit[:, None]], axis=1)
    whole = jnp.concatenate([whole, jnp.eye(known, whole.shape[1], dtype=dtype)])
    small = jnp.linalg.qr(lax.stop_gradient(whole), mode="r")[known : known + count]
    a, r = small[:, known:-1], small[:, -1]
    scales = jnp.asarray(SCALES, dtype) * magnitude
    tails, shares = np.multiply.outer(LENGTHS, [t[1] for t in TAIL]), jnp.asarray([t[0] for t in TAIL], dtype)
    believed = ((np.log(LENGTHS) - log(LENGTH)) / LENGTH_SPREAD) ** 2

    def unscaled(lengths):
        """Return the covariance for a scale of one."""
        return covariance(spaces, lines, SpectralMixture(shares, jnp.zeros_like(lengths), lengths))

    def density_at(length):
        """Return the log density at every scale."""
        lengths, believed = length
        seen = matmul(a, matmul(unscaled(lengths), a.T))
        values, vectors = jnp.linalg.eigh(seen)
        seen = matmul(r, vectors)
        spread = 1 + scales[:, None] ** 2 * jnp.maximum(values, 0)[None]
        density = -jnp.sum(jnp.log(spread), 1) / 2 - jnp.sum(seen[None] ** 2 / spread, 1) / 2
        density = density - (believed + ((jnp.log(scales / magnitude) - log(SCALE)) / SCALE_SPREAD) ** 2) / 2
        return jnp.where(jnp.isfinite(density), density, -jnp.inf)

    tried = jnp.asarray(tails, dtype)
    best = jnp.argmax(lax.map(density_at, (tried, jnp.asarray(believed, dtype))))
    lengths, scale = (jnp.repeat(tried, SCALES.size, 0)[best], jnp.tile(scales, LENGTHS.size)[best])
    varied, fixed = scale**2 * unscaled(lengths), jnp.outer(level, level)
    kernel = SpectralMixture(shares * scale ** (2 / ndim), jnp.zeros_like(lengths), lengths)
    share = jnp.trace(varied) / (jnp.trace(varied) + jnp.trace(fixed))
    return lax.stop_gradient(FacePrior(_root(varied + fixed)[:, -rank:], kernel, share))


def _constant(spaces: list[FaceSpace], lines):
    """Return the weights of the constant one."""
    each = [matmul(_projection(s, lines), jnp.ones(trace_points(s, lines)[0].size, s.opened.a.dtype)) for s in spaces]
    return jnp.concatenate([s.opened.a * v for s, v in zip(spaces, each, strict=True)])


def none(dtype) -> FacePrior:
    """Return the prior of no weights."""
    zero = jnp.zeros((0,), dtype)
    return FacePrior(jnp.zeros((0, 0), dtype), SpectralMixture(zero, zero, zero), jnp.ones((), dtype))


def magnitude_of(arrays: list[Any], dtype):
    """Return the largest absolute value among arrays, one where there is none or all are zero, as a power of two.

    Rounded, so that a prior measured in it does not move with the data, of which it has no derivative.
    """
    found = [jnp.max(jnp.abs(v)).astype(dtype) for v in arrays if v is not None and jnp.size(v)]
    largest = jnp.max(jnp.stack(found)) if found else jnp.zeros((), dtype)
    good = (largest > 0) & jnp.isfinite(largest)
    return lax.stop_gradient(jnp.where(good, jnp.exp2(jnp.round(jnp.log2(jnp.where(good, largest, 1)))), 1))
