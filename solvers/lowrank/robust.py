"""Recovery from measurements of which some are grossly wrong: preconditioned subgradient descent on the l1 loss.

Ma and Fattahi, JMLR 2023, ``r = A(F G') - y``; the second rule after Tong, Ma and Chi 2021 and Li et al. 2020:

(1) ``g = A*(sign r) G``, and ``A*(sign r)' F`` for the other factor
(2) ``F <- F - first decay^t g / m``, m measurements of unit gain: as published
(3) ``h = g (G'G + damping)^-1``, of the measurements trusted, whose ``|r|`` is within the bound
(4) ``F <- F - t h,  t = sum |r| / <g, h>``, Polyak's length for a least value of zero
(5) ``bound <- max(4 quantile(|r|), 0.9 bound)``

It departs from the paper in all but the first two.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.implicit import UNCONVERGED
from ..core.loop import Limits, iterate
from ..core.precision import eps, matmul, tiny
from ..core.solution import Status
from ..core.typing import Array, Bool, Float, Progress, Scalar
from ..core.vectors import inner
from .operators import Measurement
from .sensing import limits_of, prepare
from .solution import Factors, LowRankSolution, balanced, differentiable, exponent_of
from .start import gain, spectral

WIDE = 4.0
"""Measurements count while their residual is below this multiple of the share's largest one."""
NARROWING = 0.9
"""The bound falls no faster than this a step, so that rows which converge late are not taken for outliers."""


class RobustSolution(LowRankSolution):
    """What `robust_recovery` returns.

    Attributes
    ----------
    inliers : Bool[Array, "..."]
        Which measurements the matrix meets.
    """

    inliers: Bool[Array, "..."]


class Rule(eqx.Module):
    """How a step is made; `gain` of one measurement."""

    kind: str = eqx.field(static=True)
    symmetric: bool = eqx.field(static=True)
    share: Array
    damping: Array
    first: Array
    decay: Array
    gain: Array


class State(NamedTuple):
    """Factors, residual ``A(X) - y``, the bound below which it is trusted, and steps made."""

    factors: Factors
    residual: Array
    bound: Array
    steps: Array


def quantile(share: Array, r: Array) -> Array:
    """Return the size below which that share of the entries lies."""
    sizes = jnp.sort(jnp.abs(r).ravel())
    index = jnp.ceil(share * sizes.size).astype(jnp.int32) - 1
    return sizes[jnp.clip(index, 0, sizes.size - 1)]


def subgradient(operator: Measurement, weights: Array, factors: Factors, symmetric: bool) -> Factors:
    """Return ``A*(weights) G`` and ``A*(weights)' F``; of a symmetric matrix their sum, twice."""
    down = operator.adjoint_times(weights, factors.right)
    across = operator.transposed_adjoint_times(weights, factors.left)
    return Factors(down + across, down + across) if symmetric else Factors(down, across)  # (1)


def polyak(operator: Measurement, rule: Rule, s: State) -> Factors:
    """Return the step of Polyak's length on the l1 loss of the trusted measurements, whose least value is zero."""
    kept = jnp.abs(s.residual) <= s.bound
    trusted = jnp.where(kept, s.residual, 0)
    g = subgradient(operator, jnp.sign(trusted), s.factors, rule.symmetric)
    level = jnp.sqrt(inner(trusted, trusted) / jnp.maximum(jnp.sum(kept.astype(trusted.dtype)), 1)) / rule.gain
    h = Factors(*(divided(x, other, rule.damping * level) for x, other in zip(g, s.factors[::-1], strict=True)))  # (3)
    slope = inner(g.left, h.left) if rule.symmetric else inner(g, h)
    # (4)
    t = jnp.where(slope > 0, jnp.sum(jnp.abs(trusted)) / jnp.where(slope > 0, slope, 1), 0)
    return Factors(-t * h.left, -t * h.right)


def divided(g: Array, other: Array, damping: Array) -> Array:
    """Return ``g (other' other + damping)^-1``."""
    gram = matmul(other.T, other)
    k = gram.shape[0]
    damping = jnp.maximum(damping, 10 * k * eps(g.dtype) * jnp.trace(gram) + tiny(g.dtype))
    gram = gram + damping * jnp.eye(k, dtype=g.dtype)
    return jnp.linalg.solve(gram, g.T).T


def geometric(operator: Measurement, rule: Rule, s: State) -> Factors:
    """Return the published step, ``-first decay^t`` times the subgradient of the mean l1 loss."""
    # (2)
    length = rule.first * rule.decay ** s.steps.astype(rule.first.dtype) / (rule.gain * s.residual.size)
    g = subgradient(operator, jnp.sign(s.residual), s.factors, rule.symmetric)
    half = 0.5 if rule.symmetric else 1.0
    return Factors(-half * length * g.left, -half * length * g.right)


def step(operator: Measurement, y: Array, rule: Rule, s: State) -> State:
    """Move both factors and measure again."""
    move = (polyak if rule.kind == "polyak" else geometric)(operator, rule, s)
    factors = Factors(s.factors.left + move.left, s.factors.right + move.right)
    residual = operator.product(*factors) - y
    bound = jnp.maximum(WIDE * quantile(rule.share, residual), NARROWING * s.bound)  # (5)
    return State(factors, residual, bound, s.steps + 1)


def robust_recovery(
    operator: Measurement,
    y: Float[Array, "..."],
    rank: int,
    *,
    step_rule: str = "polyak",
    symmetric: bool = False,
    share: Scalar = 0.5,
    damping: Scalar = 0.1,
    step: Scalar = 0.25,
    decay: Scalar = 0.99,
    init_scale: Scalar = 1.0,
    x0: tuple[Float[Array, "n k"], Float[Array, "p k"]] | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 1000,
    history: bool | int = False,
    progress: Progress | None = None,
) -> RobustSolution:
    """Find a matrix X of rank at most k that most of the measurements ``y = A(X)`` agree on.

    ``min sum |A(F G') - y|`` over F (n, k) and G (p, k), by a subgradient method. Use it where fewer than half of the
    measurements are wrong by any amount and the others are right; where all are, or all are a little noisy, take
    `matrix_sensing` or `complete`.

    Parameters
    ----------
    operator : Measurement
        A, as in `matrix_sensing`. Its arrays are traced and differentiable.
    y : Float[Array, "..."]
        What was measured, in the shape that ``operator.product`` returns. Traced, differentiable.
    rank : int
        k, static. It may exceed the true rank if `share` of the measurements, good ones, are more than the unknowns of
        rank k, ``k (n + p - k)``, or ``k (2 n - k + 1) / 2`` where symmetric; else try ranks from below, see Notes.
    step_rule : str
        ``"polyak"``: the subgradient of the measurements trusted so far, those within four times the `share`'s largest
        residual, a bound that falls by a tenth a step at most, scaled by ``(G'G + damping)^-1``, with Polyak's length
        for a least value of zero; converges linearly.
        ``"geometric"``: as published, the plain subgradient of all with lengths ``step decay^t``. Static.
    symmetric : bool
        Look for positive semidefinite X = U U'. Static.
    share : scalar
        Of the measurements that must agree, between 0 and 1: at most the share of good ones. Traced.
    damping : scalar
        Of "polyak": times the root mean square of the trusted residuals, in units of X. Traced.
    step, decay : scalar
        Of "geometric". A decay faster than the problem lets the method converge ends it too early. Traced.
    init_scale : scalar
        Size of the spectral start beside the one that fits the median; small ones, as published, for "geometric" at
        over-specified rank. Traced.
    x0 : pair of arrays, optional
        Factors to start from instead. Its derivative is zero.
    unconverged : str
        Derivatives of a solve that did not converge: ``"nan"``, or ``"approximate"``, those of the equations at the
        point returned. Static.
    tol : scalar, optional
        Traced; 1e-9 in float64, 1e-5 in float32. With noise, set it to the noise's relative size.
    max_steps : int
        Traced.
    history : bool or int
        Record the error after each step (the first 256, or as many as given). Static.
    progress : callable, optional
        ``progress(step, error)`` on the host.

    Returns
    -------
    RobustSolution
        ``value = (left, right)``, balanced; ``matrix``; ``inliers``. ``error`` is the `share` quantile of
        ``|A(left right') - y|`` over that of ``|y|`` (not divided where it is zero): so much of the data is met.
        `Status.STAGNATED` where it no longer falls: noise, too many wrong measurements, too small a rank.

    Raises
    ------
    ValueError, TypeError
        Shapes, a rank below 1, unknown options, a symmetric problem on a matrix that is not square.

    Notes
    -----
    Convergence is a claim about the share: that X is the matrix sought needs so many measurements that no other matrix
    of that rank meets as many. Entries say something of their own row and column only: ask for the share that is good,
    as near as it is known, or some rows may still be wrong when half of the data is met.

    An over-specified rank with more unknowns than the share has measurements can meet them by another matrix: a solve
    converges, as it says, and the matrix is wrong (600 measurements of a 20 x 20 matrix of rank 3, asked for rank 20).
    Take the least rank that converges instead: a smaller one meets no such share. The published small start with
    geometric steps leans to low rank there, to errors of 1e-4 without outliers and of 0.2 with 30 %.

    Cost of a step: two products with A, two adjoints and a sort. y is scaled by a power of four, so its size does not
    matter. Derivatives: of ``matrix`` and functions of it, in y and the arrays of the operator, those of the fit to the
    inliers, forward and reverse, to second order, at full rank k; NaN beyond it. Outliers have derivative zero.

    Departure from the paper: "polyak", its trimming and preconditioning, are ours after the references.

    References
    ----------
    Ma, Fattahi, "Global convergence of sub-gradient method for robust matrix recovery", JMLR 24 (2023). Tong, Ma, Chi,
    "Low-rank matrix recovery with scaled subgradient methods", IEEE Trans. Signal Process. 69 (2021). Li, Chi, Zhang,
    Liang, "Non-convex low-rank matrix recovery with arbitrary outliers via median-truncated gradient descent", Inf.
    Inference 9 (2020).

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import DenseMeasurements, robust_recovery
    >>> X = jnp.outer(jnp.arange(1.0, 5.0), jnp.array([1.0, -1.0, 2.0]))
    >>> A = DenseMeasurements(jax.random.normal(jax.random.key(3), (60, 4, 3)))
    >>> y = jnp.einsum("mnp,np->m", A.matrices, X).at[:15].add(100.0)
    >>> sol = robust_recovery(A, y, 1)
    >>> bool(sol.converged), bool(jnp.allclose(sol.matrix, X, atol=1e-2)), int(sol.inliers.sum())
    (True, True, 45)
    """
    name = "robust_recovery"
    operator, y, x0 = prepare(name, operator, y, rank, x0, symmetric, data="y")
    checks.choice(name, "step_rule", step_rule, ("polyak", "geometric"))
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    numbers = {"share": share, "damping": damping, "step": step, "decay": decay, "init_scale": init_scale}
    numbers = {k: checks.number(name, k, x, positive=True, dtype=y.dtype) for k, x in numbers.items()}
    scale = numbers.pop("init_scale")
    first = numbers.pop("step")
    rule = Rule(step_rule, symmetric, first=first, gain=jnp.ones((), y.dtype), **numbers)
    limits = limits_of(name, y.dtype, tol, max_steps, history, progress)
    return _solve(operator, y, rank, rule, (x0, scale), limits, unconverged)


def begin(operator: Measurement, y: Array, rank: int, rule: Rule) -> tuple[Factors, Array]:
    """Return the leading part of the clipped data, of the size that fits their median, and the gain of A."""
    most = WIDE * quantile(rule.share, y)
    start = spectral(operator, jnp.clip(y, -most, most), rank, symmetric=rule.symmetric)
    seen = quantile(rule.share, operator.product(*start))
    size = jnp.sqrt(quantile(rule.share, y) / jnp.where(seen > 0, seen, 1))
    factors = Factors(*(jnp.where(seen > 0, size, 1) * x for x in start))
    return factors, gain(operator, factors) / y.size**0.5


@eqx.filter_jit
def _solve(operator, y, rank, rule: Rule, start, limits: Limits, unconverged) -> RobustSolution:
    # Outliers may be of any size: the scale is that of the measurements in the middle.
    down, up = exponent_of(quantile(rule.share, lax.stop_gradient(y)))
    y = y * down * down
    (x0, scale), frozen, data = start, lax.stop_gradient(operator), lax.stop_gradient(y)
    factors, unit = begin(frozen, data, rank, rule)
    factors = Factors(*(scale * x for x in factors))
    if x0 is not None:
        factors = Factors(*(lax.stop_gradient(x) * down for x in x0))
        factors = Factors(factors.left, factors.left if rule.symmetric else factors.right)
    rule = eqx.tree_at(lambda r: r.gain, rule, unit)
    level = quantile(rule.share, data)
    level = jnp.where(level > 0, level, 1)
    poisoned = 0 * jnp.sum(jnp.where(jnp.isfinite(data), 0, data))  # a NaN sorts behind every quantile
    residual = frozen.product(*factors) - data
    run = iterate(
        partial(step, frozen, data, rule),
        State(factors, residual, WIDE * quantile(rule.share, residual), jnp.zeros((), jnp.int32)),
        limits,
        value=lambda s: s.factors,
        error=lambda s: quantile(rule.share, s.residual) / level + poisoned,
        stall=200,
    )
    factors, values = balanced(run.value)
    if rule.symmetric:
        factors = run.value
    residual = frozen.product(*factors) - data
    bound = jnp.maximum(WIDE * quantile(rule.share, residual), 10 * limits.tol * level)
    inliers = jnp.abs(residual) <= bound
    regular = values[-1] > eps(y.dtype) ** 0.5 * values[0]
    trusted = ((run.status == Status.CONVERGED) | (unconverged == "approximate")) & regular

    def objective(point, given):
        operator, y, inliers = given
        point = Factors(point, point) if rule.symmetric else point
        r = jnp.where(inliers, operator.product(*point) - y, 0)
        return inner(r, r) / 2

    weight = lax.stop_gradient(unit**2 * y.size)
    point = factors.left if rule.symmetric else factors
    point = differentiable(objective, point, (operator, y, inliers), trusted, weight)
    if rule.symmetric:
        point = Factors(point, point)
    up = lax.stop_gradient(up)
    return RobustSolution(
        (point.left * up, point.right * up), run.status, run.num_steps, run.error, limits.tol, run.history,
        lax.stop_gradient(values) * up * up, inliers,
    )  # fmt: skip
