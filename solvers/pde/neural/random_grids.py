"""Collocation points as random variables, and the bound on the evidence that averages over them.

Vadeboncoeur et al., Random Grid Neural Processes, ICML 2023, for a field with numbers w, points X and n of them:

(1) ``E[log N(0; r(w, X), noise^2 I)] - KL(q || N(0, scale^2 I))``, a lower bound on the log evidence
(2) ``log N = -(n sum weights r^2 / noise^2 + n log(2 pi noise^2)) / 2``
(3) ``KL = (sum((var + (mean - center)^2) / scale^2) - m + m log(scale^2) - log det) / 2`` of a q of m numbers
(4) ``log q(x) = -(|D^-1 (x - mean)|^2 - |root^-1 F' D^-1 (x - mean)|^2 + log det + m log(2 pi)) / 2``, by Woodbury
(5) ``weight = 1 / (n pool share)`` of a point drawn with probability share out of a pool

It departs from the paper, whose q is of the field's values at the points: here it is of the field's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular

from ...core.checks import choice, fail
from ...core.precision import matmul
from ...core.typing import Array, Float, Scalar
from ..problem import Box

KINDS = ("uniform", "stratified", "sobol", "weighted")
DIRECTIONS = {0: (), 1: (1,), 2: (1, 3)}
"""First direction numbers of Sobol's sequence by degree of the primitive polynomials 1, x + 1, x^2 + x + 1."""


class RandomGrid(NamedTuple):
    """Points (n, d) and weights (n,): ``sum weights f(points)`` estimates the mean of f over the box without bias."""

    points: Array
    weights: Array


def random_grid(
    key: Array,
    box: Box,
    count: int,
    *,
    kind: str = "uniform",
    density: Callable[[Array], Array] | None = None,
    candidates: int | None = None,
    floor: Scalar = 0.1,
    dtype=None,
) -> RandomGrid:
    """Draw collocation points with weights that make every sum over them unbiased.

    Parameters
    ----------
    key : PRNG key
    box : Box
    count : int
        n. Static.
    kind : {"uniform", "stratified", "sobol", "weighted"}
        Independent; one in each of n equal cells (n a d-th power); Sobol's sequence with a random digital shift (best
        for n a power of two); drawn from `candidates` uniform ones with probabilities in proportion to `density`, the
        residual say. Static.
    density : callable, optional
        ``density(points)`` (m,), at least zero: for ``"weighted"``. No derivative.
    candidates : int, optional
        16 n by default. Static.
    floor : scalar
        Share of ``"weighted"`` points drawn uniformly, which bounds the weights by ``1 / (floor n)``.
    dtype : dtype, optional

    Returns
    -------
    RandomGrid

    Notes
    -----
    Errors of a mean fall like ``n^-1/2``; for smooth functions stratified ones like ``n^(-1/2 - 1/d)``, Sobol's nearly
    like ``1 / n``. Differentiate through f, not through the points.

    References
    ----------
    A. Vadeboncoeur et al., Random Grid Neural Processes for Parametric PDEs, ICML 2023; A. Owen, Scrambled net variance
    for integrals of smooth functions, Annals of Statistics 25 (1997).

    Examples
    --------
    >>> import jax
    >>> from solvers import Box, random_grid
    >>> grid = random_grid(jax.random.key(3), Box((0.0, 2.0)), 64, kind="sobol")
    >>> bool(abs((grid.weights * grid.points[:, 0]).sum() - 1) < 0.05)
    True
    """
    choice("random_grid", "kind", kind, KINDS)
    ndim = box.ndim
    dtype = jnp.result_type(float) if dtype is None else dtype
    if not isinstance(count, int) or count < 1:
        fail("random_grid", "count", "a positive integer", count)
    if (density is None) == (kind == "weighted"):
        fail("random_grid", "density", "given for 'weighted' points, and only there", density)
    lower, upper = (jnp.stack([jnp.asarray(b[s], dtype) for b in box.bounds]) for s in (0, 1))
    even = jnp.full(count, 1 / count, dtype)
    if kind == "stratified":
        side = round(count ** (1 / ndim))
        if side**ndim != count:
            fail("random_grid", "count", f"a power of exponent {ndim} for stratified points", count)
        cells = np.stack(np.meshgrid(*(np.arange(side),) * ndim, indexing="ij"), -1).reshape(count, ndim)
        unit = (jnp.asarray(cells, dtype) + jax.random.uniform(key, (count, ndim), dtype)) / side
    elif kind == "sobol":
        unit = _sobol(key, count, ndim, dtype)
    else:
        pool = count if kind == "uniform" else (16 * count if candidates is None else candidates)
        first, second = jax.random.split(key)
        unit = jax.random.uniform(first, (pool, ndim), dtype)
        if kind == "weighted":
            height = jax.lax.stop_gradient(density(lower[None] + (upper - lower)[None] * unit)).astype(dtype)  # type: ignore[misc]
            if height.shape != (pool,):
                fail("random_grid", "density", f"a function to one number a point, ({pool},)", height.shape)
            height = jnp.where(jnp.isfinite(height) & (height > 0), height, 0)
            height = height / jnp.where(jnp.max(height) > 0, jnp.max(height), 1)
            total = jnp.sum(height)
            share = jnp.where(total > 0, height / jnp.where(total > 0, total, 1), 1 / pool)
            share = (1 - floor) * share + floor / pool
            ladder = jnp.cumsum(share)
            drawn = jnp.searchsorted(ladder, ladder[-1] * jax.random.uniform(second, (count,), dtype), side="right")
            drawn = jnp.minimum(drawn, pool - 1)
            # (5)
            return RandomGrid(lower[None] + (upper - lower)[None] * unit[drawn], 1 / (count * pool * share[drawn]))
    return RandomGrid(lower[None] + (upper - lower)[None] * unit, even)


def _sobol(key, count: int, ndim: int, dtype):
    """Return Sobol's points in gray-code order, each dimension shifted by random bits."""
    bits = 32
    columns = np.zeros((ndim, bits), np.uint64)
    for d in range(ndim):
        degree, first = d, DIRECTIONS[d]
        m = [1] * bits if degree == 0 else list(first)
        for k in range(len(m), bits):
            new = m[k - degree] ^ (m[k - degree] << degree)
            for i in range(1, degree):  # inner coefficients of the polynomials here are one
                new ^= m[k - i] << i
            m.append(new)
        columns[d] = [m[k] << (bits - 1 - k) for k in range(bits)]
    gray = np.arange(count, dtype=np.uint64)
    gray = gray ^ (gray >> np.uint64(1))
    points = np.zeros((count, ndim), np.uint64)
    for k in range(bits):
        chosen = ((gray >> np.uint64(k)) & np.uint64(1)).astype(bool)
        points[chosen] ^= columns[:, k]
    shift = jax.random.bits(key, (1, ndim), jnp.uint32)
    digits = jnp.asarray(points.astype(np.uint32)) ^ shift
    kept = 24 if dtype == jnp.float32 else 32
    return ((digits >> (32 - kept)).astype(dtype) + jnp.asarray(0.5, dtype)) / jnp.asarray(2.0**kept, dtype)


class LowRankGaussian(eqx.Module):
    """``N(mean, diag(exp(2 log_scale)) + factor factor')``: a posterior of n numbers with k directions.

    Parameters
    ----------
    mean, log_scale : Float[Array, "n"]
    factor : Float[Array, "n k"]

    Notes
    -----
    Densities by Woodbury's identity: ``O(n k^2)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import LowRankGaussian
    >>> print(LowRankGaussian(jnp.zeros(2), jnp.zeros(2), jnp.ones((2, 1))).log_density(jnp.ones(2)).round(4))
    -2.7205
    """

    mean: Float[Array, " n"]
    log_scale: Float[Array, " n"]
    factor: Float[Array, "n k"]

    def __check_init__(self):
        n = jnp.shape(self.mean)
        if len(n) != 1 or jnp.shape(self.log_scale) != n or jnp.ndim(self.factor) != 2 or self.factor.shape[:1] != n:
            fail("LowRankGaussian", "factor", "(n, k) like mean and log_scale (n,)", jnp.shape(self.factor))

    def sample(self, key: Array) -> Float[Array, " n"]:
        """Return a draw, differentiable in the numbers of the distribution."""
        n, k = self.factor.shape
        z = jax.random.normal(key, (n + k,), self.mean.dtype)
        return self.mean + jnp.exp(self.log_scale) * z[:n] + matmul(self.factor, z[n:])

    def log_density(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """Return the logarithm of the density at x."""
        root, log_det, scaled = self._inner()
        gap = (x - self.mean) * jnp.exp(-self.log_scale)
        inner = solve_triangular(root, matmul(scaled.T, gap), lower=True)
        square = jnp.sum(gap**2) - jnp.sum(inner**2)
        return -(square + log_det + x.size * math.log(2 * math.pi)) / 2  # (4)

    def divergence(self, scale: Scalar, center: Any = 0.0) -> Float[Array, ""]:
        """Return the Kullback-Leibler divergence from ``N(center, scale^2 I)``."""
        _, log_det, _ = self._inner()
        scale = jnp.asarray(scale, self.mean.dtype)
        square = jnp.exp(2 * self.log_scale) + jnp.sum(self.factor**2, 1) + (self.mean - center) ** 2
        spread = 2 * jnp.sum(jnp.broadcast_to(jnp.log(scale), self.mean.shape))
        return (jnp.sum(square / scale**2) - self.mean.size + spread - log_det) / 2  # (3)

    def precision_times(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return the inverse covariance times x."""
        root, _, scaled = self._inner()
        unit = x * jnp.exp(-self.log_scale)
        return (unit - matmul(scaled, cho_solve((root, True), matmul(scaled.T, unit)))) * jnp.exp(-self.log_scale)

    def _inner(self):
        scaled = self.factor * jnp.exp(-self.log_scale)[:, None]
        k = scaled.shape[1]
        root = jnp.linalg.cholesky(jnp.eye(k, dtype=scaled.dtype) + matmul(scaled.T, scaled))
        return root, 2 * jnp.sum(self.log_scale) + 2 * jnp.sum(jnp.log(jnp.diagonal(root))), scaled


def random_grid_elbo(
    residual: Callable[[Array, Array], Array],
    posterior: LowRankGaussian,
    key: Array,
    *,
    grid: Callable[[Array], RandomGrid],
    noise: Scalar,
    prior_scale: Scalar = 1.0,
    samples: int = 1,
) -> Float[Array, ""]:
    """Return an unbiased estimate of a lower bound on the evidence of an equation, over random collocation points.

    ``E[log N(0; r(w, X), noise^2 I)] - KL(q(w) || N(0, prior_scale^2 I))`` with w from the posterior q and points X
    from `grid`: no fixed mesh for a field to overfit. Maximise it over the numbers of the posterior.

    Parameters
    ----------
    residual : callable
        ``residual(w, x)`` (n,): of the equation for the field with numbers w, at points x (n, d).
    posterior : LowRankGaussian
        q. Differentiable.
    key : PRNG key
    grid : callable
        ``grid(key)``, a `RandomGrid` of n points: how many virtual observations the equation counts for.
    noise, prior_scale : scalar
        Standard deviations of the residual and of the prior.
    samples : int
        Pairs of w and X that are averaged. Static.

    Returns
    -------
    Float[Array, ""]

    Notes
    -----
    Weights of the grid enter as ``n sum weights r^2``, so that any `random_grid` has the same expectation. Departure
    from the paper: the posterior is of a field's numbers, with a divergence in closed form, and not of its values.

    References
    ----------
    Vadeboncoeur et al. (ICML 2023).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import Box, LowRankGaussian, random_grid, random_grid_elbo
    >>> q = LowRankGaussian(jnp.zeros(1), jnp.zeros(1), jnp.zeros((1, 0)))
    >>> draw = lambda key: random_grid(key, Box((0.0, 1.0)), 8)
    >>> bound = random_grid_elbo(lambda w, x: w - x[:, 0], q, jax.random.key(3), grid=draw, noise=1.0)
    >>> bool(bound < 0)
    True
    """

    def one(key):
        first, second = jax.random.split(key)
        points, weights = grid(first)
        r = residual(posterior.sample(second), points)
        if r.shape != weights.shape:
            fail("random_grid_elbo", "residual", f"one number a point, {weights.shape}", r.shape)
        n, scale = weights.size, jnp.asarray(noise, r.dtype)
        square = n * jnp.sum(weights.astype(r.dtype) * r**2) / scale**2
        return -(square + n * jnp.log(2 * np.pi * scale**2)) / 2  # (2)

    likelihood = jnp.mean(jax.vmap(one)(jax.random.split(key, samples)))
    return likelihood - posterior.divergence(prior_scale)  # (1)
