"""Matrix sensing by factored gradient methods: plain, rebalanced, scaled and preconditioned.

Xiong, Ding and Du, ICLR 2024; Tong, Ma and Chi, JMLR 2021 ("scaled"); Zhang, Fattahi and Zhang, NeurIPS 2021
("preconditioned"), with ``r = A(F G') - b``:

(1) ``d = -A*(r) G M_G,  e = -A*(r)' F M_F``; ``X = U U'`` has one factor and the symmetric part of A*(r)
(2) ``M_G = I``, or ``(G'G + damping)^-1`` with a damping of rounding, or of ``|r|`` over the gain of A
(3) ``F <- F + t d,  G <- G + t e``
(4) ``t = argmin |r + t r1 + t^2 r2|^2,  r1 = A(d G' + F e'),  r2 = A(d e')``, unless t is given
(5) ``F <- beta U,  G <- G V S / beta`` for ``F = U S V'``, once near the solution

It departs from the papers, whose t is a constant and whose damping has no floor; the form of the last is from memory.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.implicit import UNCONVERGED
from ..core.loop import Limits, iterate, when
from ..core.precision import eps, matmul, tiny
from ..core.solution import Status
from ..core.typing import Array, Bool, Float, Progress, Scalar
from ..core.vectors import inner, norm
from .operators import Measurement
from .solution import Factors, LowRankSolution, LowRankStatus, balanced, differentiable, exponent_of
from .start import gain, small, spectral

NAME = "matrix_sensing"
METHODS = ("preconditioned", "scaled", "gd", "rebalanced")
NEAR = 0.1
"""Relative error at which the factors are rebalanced, once."""
HALVINGS = 40


class Setting(eqx.Module):
    """How a step is taken: `length` NaN for the exact one, `gain` of the measurements, `beta` of the rebalancing."""

    method: str = eqx.field(static=True)
    symmetric: bool = eqx.field(static=True)
    exact: bool = eqx.field(static=True)
    length: Array
    damping: Array
    gain: Array
    beta: Array


class State(NamedTuple):
    """Factors, residual ``A(X) - b``, cosine between it and what a step changes, whether rebalanced yet."""

    factors: Factors
    residual: Array
    cosine: Array
    rebalanced: Bool[Array, ""]


def direction(operator: Measurement, setting: Setting, s: State) -> Factors:
    """Return minus the gradient, in the metric of the method."""
    left, right = s.factors
    down = operator.adjoint_times(s.residual, right)
    if setting.symmetric:  # of |A(UU') - b|^2 / 4; A*(r) acts by its symmetric part
        down = (down + operator.transposed_adjoint_times(s.residual, left)) / 2
        down = -whiten(down, left, setting, norm(s.residual))  # (1)
        return Factors(down, down)
    across = operator.transposed_adjoint_times(s.residual, left)
    size = norm(s.residual)
    return Factors(-whiten(down, right, setting, size), -whiten(across, left, setting, size))  # (1)


def whiten(g: Array, other: Array, setting: Setting, residual: Array) -> Array:
    """Return ``g (other' other + damping)^-1``: of Tong, Ma, Chi for "scaled", of Zhang and others when damped."""
    if setting.method in ("gd", "rebalanced"):
        return g
    gram = matmul(other.T, other)
    k = gram.shape[0]
    # Without this floor the over-specified problem ends in NaN: the Gram matrix is singular at its solution.
    damping = 10 * k * eps(g.dtype) * jnp.trace(gram) + tiny(g.dtype)
    if setting.method == "preconditioned":
        damping = jnp.maximum(damping, setting.damping * residual / setting.gain)
    # (2)
    return jax.scipy.linalg.solve(gram + damping * jnp.eye(k, dtype=g.dtype), g.T, assume_a="pos").T


def exact_length(r0: Array, r1: Array, r2: Array) -> Array:
    """Return a minimiser t > 0 of ``|r0 + t r1 + t^2 r2|^2``."""
    pairs = ((r0, r1), (r1, r1), (r0, r2), (r1, r2), (r2, r2))
    return minimiser(jnp.stack([inner(x, y) for x, y in pairs]))  # (4)


def minimiser(products: Array) -> Array:
    """Return t > 0 from the products ``r0 r1, r1 r1, r0 r2, r1 r2, r2 r2``, by bisection on t / (1 + t)."""
    slope, square = products[0], products[1]
    cubic = jnp.stack([slope, square + 2 * products[2], 3 * products[3], 2 * products[4]])
    unit = jnp.where(square > 0, -slope / jnp.where(square > 0, square, 1), 0)

    def derivative(t):
        return cubic[0] + t * (cubic[1] + t * (cubic[2] + t * cubic[3]))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        falling = derivative(unit * middle / (1 - middle)) < 0
        return jnp.where(falling, middle, low), jnp.where(falling, high, middle)

    zero = jnp.zeros((), products.dtype)
    low, high = lax.fori_loop(0, HALVINGS, halve, (zero, zero + 1 - 1e-3))
    middle = (low + high) / 2
    return unit * middle / (1 - middle)


def step(operator: Measurement, b: Array, setting: Setting, s: State) -> State:
    """Move both factors along the direction, and measure again."""
    if setting.method == "rebalanced":
        ready = ~s.rebalanced & (norm(s.residual) <= NEAR * norm(b))
        factors = when(ready, lambda f: rebalance(f, setting.beta), s.factors)
        s = s._replace(factors=factors, rebalanced=s.rebalanced | ready)
    (left, right), (d, e) = s.factors, direction(operator, setting, s)
    # (4): X moves by t (d G' + F e') + t^2 d e'.
    r1 = operator.product(d, right) + operator.product(left, e)
    r2 = operator.product(d, e)
    t = exact_length(s.residual, r1, r2) if setting.exact else setting.length
    factors = Factors(left + t * d, right + t * e)  # (3)
    sizes = norm(s.residual) * norm(r1)
    cosine = jnp.where(sizes > 0, -inner(s.residual, r1) / jnp.where(sizes > 0, sizes, 1), 0)
    return State(factors, operator.product(*factors) - b, cosine, s.rebalanced)


def rebalance(factors: Factors, beta: Array) -> Factors:
    """Return ``beta U, G V S / beta`` for ``F = U S V'``: the same product, and a left factor of known size."""
    u, s, vt = jnp.linalg.svd(factors.left, full_matrices=False)
    pad = factors.left.shape[1] - s.shape[0]
    right = matmul(factors.right, vt.T) * (s / beta)[None, :]  # (5)
    return Factors(*(jnp.pad(x, ((0, 0), (0, pad))) for x in (beta * u, right)))


def matrix_sensing(
    operator: Measurement,
    b: Float[Array, "..."],
    rank: int,
    *,
    method: str = "preconditioned",
    symmetric: bool = False,
    step: Scalar | None = None,
    damping: Scalar = 0.1,
    init: str = "spectral",
    init_scale: Scalar = 0.1,
    x0: tuple[Float[Array, "n k"], Float[Array, "p k"]] | None = None,
    key: Array | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 1000,
    history: bool | int = False,
    progress: Progress | None = None,
) -> LowRankSolution:
    """Find a matrix X of rank at most k that was measured as ``A(X) = b``, by descent on its factors.

    ``min |A(F G') - b|^2`` over F (n, k) and G (p, k), or over ``X = U U'`` with `symmetric`. Use it for linear
    measurements of any kind when the rank, or a bound on it, is known. For entries of a matrix with noise or ridge
    take `complete`, for gross outliers `robust_recovery`. With too few measurements many matrices match b: the answer
    is one of them.

    Parameters
    ----------
    operator : Measurement
        A: `DenseMeasurements`, `RankOneMeasurements`, `Entries`, `WholeMatrix`, or your own subclass. Its arrays are
        traced and differentiable.
    b : Float[Array, "..."]
        What was measured, in the shape that ``operator.product`` returns. Traced, differentiable.
    rank : int
        k, static. It may exceed the true rank.
    method : str
        ``"preconditioned"``: the gradient of F times ``(G'G + damping)^-1`` with a damping that falls with the
        residual; linear convergence at a rate free of the condition number, also with over-specified rank.
        ``"scaled"``: without damping beyond rounding, for the exact rank. ``"gd"``: the gradient.
        ``"rebalanced"``: the gradient, and once the relative error is 0.1 the factors become
        ``beta U, G V S / beta`` for ``F = U S V'``, after which the rate is free of
        the initial scale. Static.
    symmetric : bool
        Look for positive semidefinite X = U U'; both returned factors are U up to rounding. Static.
    step : scalar, optional
        Constant length of step on the gradient of ``|A(FG') - b|^2 / 2`` (a quarter where symmetric), as published;
        by default the length that minimises along the direction, from the roots of a cubic. Traced.
    damping : scalar
        Of "preconditioned": times ``|A(X) - b|`` over the gain of the measurements. Traced.
    init : str
        ``"spectral"``: the leading part of ``A*(b)``; ``"small"``: random, which needs `key`. Static.
    init_scale : scalar
        Size of the small start's entries, beside the root of the largest singular value of the spectral start; the
        right factor gets a third of it. Traced.
    x0 : pair of arrays, optional
        Factors to start from instead; symmetric problems use the first. Its derivative is zero.
    key : Array, optional
        Of ``jax.random.key``; for the small start.
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
    LowRankSolution
        ``value = (left, right)``, balanced, with ``matrix = left right'``;
        ``error = |A(left right') - b| / |b|`` (not divided where b = 0), of the factors the loop ended with.
        `LowRankStatus.STATIONARY` where the residual is orthogonal to all that a step can change: noise in b, too
        small a rank, a saddle. `Status.DIVERGED` once the error is 1e4 times the first, which a constant step can do.

    Raises
    ------
    ValueError, TypeError
        Shapes, a rank below 1, unknown options, a symmetric problem on a matrix that is not square, `key` missing.

    Notes
    -----
    Convergence is a claim about b: that the data are matched. That X is the matrix they came from needs enough
    measurements; nothing here can know.

    Cost of a step: four products with A and two adjoints, each O(k |A|); memory that of b a few times. Rank beyond the
    true one costs plain gradient descent its linear rate: its error falls as 1/steps where symmetric, and at a rate
    proportional to the square of the initial scale where not.

    b is scaled by a power of four, so its size does not matter. Derivatives: of ``matrix`` and functions of it, in b
    and the arrays of the operator, forward and reverse, to second order, at a solution of full rank k; factors alone
    are only determined up to a change of basis. With over-specified rank the solution has no derivative, and it is NaN.

    The rebalancing's form is from memory of the paper and tested for what it promises.

    References
    ----------
    Xiong, Ding, Du, "How over-parameterization slows down gradient descent in matrix sensing", ICLR 2024. Tong, Ma,
    Chi, "Accelerating ill-conditioned low-rank matrix estimation via scaled gradient descent", JMLR 22 (2021). Zhang,
    Fattahi, Zhang, "Preconditioned gradient descent for overparameterized nonconvex Burer-Monteiro factorization",
    NeurIPS 2021.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import DenseMeasurements, matrix_sensing
    >>> X = jnp.outer(jnp.arange(1.0, 5.0), jnp.array([1.0, -1.0, 2.0]))
    >>> A = DenseMeasurements(jax.random.normal(jax.random.key(3), (40, 4, 3)))
    >>> sol = matrix_sensing(A, jnp.einsum("mnp,np->m", A.matrices, X), 1)
    >>> bool(sol.converged), bool(jnp.allclose(sol.matrix, X, atol=1e-2))
    (True, True)
    """
    operator, b, x0 = prepare(NAME, operator, b, rank, x0, symmetric)
    checks.choice(NAME, "method", method, METHODS)
    checks.choice(NAME, "init", init, ("spectral", "small"))
    checks.choice(NAME, "unconverged", unconverged, UNCONVERGED)
    if method == "rebalanced" and symmetric:
        checks.fail(NAME, "method", "another than 'rebalanced' where `symmetric`: one factor has no balance", method)
    if init == "small" and x0 is None and key is None:
        checks.fail(NAME, "key", "given for the small start", key, TypeError)
    dtype = b.dtype
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    length = zero if step is None else checks.number(NAME, "step", step, positive=True, dtype=dtype)
    damping = checks.number(NAME, "damping", damping, positive=True, dtype=dtype)
    init_scale = checks.number(NAME, "init_scale", init_scale, positive=True, dtype=dtype)
    limits = limits_of(NAME, dtype, tol, max_steps, history, progress)
    setting = Setting(method, symmetric, step is None, length, damping, one, one)
    return _solve(operator, b, rank, setting, (x0, init, init_scale, key), limits, unconverged)


def limits_of(name: str, dtype, tol, max_steps, history, progress) -> Limits:
    """Return the checked limits of a solve."""
    tol = checks.number(name, "tol", (1e-9 if dtype == jnp.float64 else 1e-5) if tol is None else tol, dtype=dtype)
    return Limits(tol, checks.count(name, "max_steps", max_steps), history, progress)


def prepare(name: str, operator, b, rank, x0, symmetric: bool, *, data: str = "b"):
    """Return operator, data and start in one dtype, or raise."""
    if not isinstance(operator, Measurement):
        checks.fail(name, "operator", "a Measurement, such as DenseMeasurements", type(operator).__name__, TypeError)
    b = checks.float_array(name, data, b)
    n, p = operator.shape
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        checks.fail(name, "rank", "a positive Python integer", rank)
    if symmetric and n != p:
        checks.fail(name, "operator", "of square matrices where `symmetric`", f"{(n, p)}")
    operator = jax.tree.map(lambda x: jnp.asarray(x, b.dtype) if eqx.is_inexact_array(x) else x, operator)
    factor = lambda rows: jax.ShapeDtypeStruct((rows, rank), b.dtype)  # noqa: E731
    seen = jax.eval_shape(operator.product, factor(n), factor(p))
    if seen.shape != b.shape or not b.size:
        checks.fail(name, data, f"of shape {seen.shape}, not empty, as `operator.product` returns", b.shape)
    if x0 is not None:
        x0 = Factors(*(checks.float_array(name, "x0", x, ndim=2).astype(b.dtype) for x in x0))
        if (x0.left.shape, x0.right.shape) != ((n, rank), (p, rank)):
            checks.fail(name, "x0", f"of shapes {(n, rank)} and {(p, rank)}", (x0.left.shape, x0.right.shape))
    return operator, b, x0


def begin(operator, b, rank, symmetric: bool, x0, how) -> tuple[Factors, Factors]:
    """Return the spectral estimate and the start."""
    kind, scale, key = how
    estimate = spectral(operator, b, rank, symmetric=symmetric)
    if x0 is not None:
        return estimate, Factors(x0.left, x0.left if symmetric else x0.right)
    return estimate, estimate if kind == "spectral" else small(key, estimate, scale, symmetric=symmetric)


@eqx.filter_jit
def _solve(operator, b, rank, setting, how, limits, unconverged) -> LowRankSolution:
    down, up = exponent_of(lax.stop_gradient(b))
    b = b * down * down
    x0, *how = how
    frozen, data, x0 = lax.stop_gradient((operator, b, x0))
    x0 = None if x0 is None else Factors(*(x * down for x in x0))
    estimate, factors = begin(frozen, data, rank, setting.symmetric, x0, how)
    beta = jnp.sqrt(jnp.max(jnp.sum(estimate.left**2, axis=0))) / 2
    length = setting.length * up * up if setting.method in ("gd", "rebalanced") else setting.length
    setting = Setting(
        setting.method, setting.symmetric, setting.exact, length, setting.damping, gain(frozen, estimate), beta
    )
    size = norm(data)
    unit = jnp.where(size > 0, size, 1)
    run = iterate(
        partial(step, frozen, data, setting),
        State(factors, frozen.product(*factors) - data, jnp.ones((), b.dtype), jnp.zeros((), bool)),
        limits,
        value=lambda s: s.factors,
        error=lambda s: norm(s.residual) / unit,
        status=lambda s: jnp.where(s.cosine <= 10 * eps(b.dtype) ** 0.5, LowRankStatus.STATIONARY, Status.RUNNING),
        stall=200,
        divergence=1e4,
    )
    return finish(run, operator, b, up, setting.symmetric, limits, unconverged)


def finish(run, operator, b, up, symmetric, limits, unconverged) -> LowRankSolution:
    """Balance the factors, attach the derivatives of the least-squares problem, and wrap up."""
    factors, values = balanced(run.value)
    if symmetric:
        signs = jnp.sign(jnp.sum(factors.left * factors.right, axis=0, keepdims=True))
        factors = Factors(factors.left, factors.left * jnp.where(signs == 0, 1, signs))
    trusted = (run.status == Status.CONVERGED) | (unconverged == "approximate")
    regular = values[-1] > eps(b.dtype) ** 0.5 * values[0]

    def objective(point, data):
        operator, b = data
        point = Factors(point, point) if symmetric else point
        r = operator.product(*point) - b
        return inner(r, r) / 2

    weight = lax.stop_gradient(gain(operator, factors)) ** 2
    start = factors.left if symmetric else factors
    point = differentiable(objective, start, (operator, b), trusted & regular, weight)
    if symmetric:
        point = Factors(point, point)
    scale = lax.stop_gradient(up)
    return LowRankSolution(
        (point.left * scale, point.right * scale), run.status, run.num_steps, run.error, limits.tol, run.history,
        lax.stop_gradient(values) * scale * scale,
    )  # fmt: skip
