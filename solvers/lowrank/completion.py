"""Matrix completion from some entries: alternating least squares, each half by a few warm conjugate-gradient steps."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import checks
from ..core.implicit import UNCONVERGED
from ..core.loop import iterate
from ..core.precision import eps, matmul, tiny
from ..core.solution import Status
from ..core.typing import Array, Float, Int, Progress, Scalar
from ..core.vectors import inner, norm
from .operators import Entries
from .sensing import limits_of, prepare
from .solution import Factors, LowRankSolution, LowRankStatus, balanced, differentiable, exponent_of
from .start import gain, spectral

NAME = "complete"
METHODS = ("als_cg", "als_exact")
POWERS = 20


class CompletionSolution(LowRankSolution):
    """What `complete` returns; ``error`` is the relative gradient of the least-squares problem.

    Attributes
    ----------
    residual : Float[Array, ""]
        ``|A(X) - values| / |values|``: how well the entries that were given are met.
    """

    residual: Float[Array, "..."]


class Half(NamedTuple):
    """One side of the problem: the entries seen from the rows that are solved for."""

    own: Int[Array, " m"]
    other: Int[Array, " m"]
    values: Float[Array, " m"]


class State(NamedTuple):
    """Factors and the relative gradient there."""

    factors: Factors
    error: Array


def gathered(half: Half, weights: Array, other: Array, rows: int) -> Array:
    """Return ``sum over the entries of each row of weight times the other side's factor``."""
    return jax.ops.segment_sum(weights[:, None] * other[half.other], half.own, rows)


def gradient(half: Half, own: Array, other: Array, ridge: Array) -> Array:
    """Return the gradient of ``|A(X) - values|^2 / 2 + ridge |own|^2 / 2`` in the own factor."""
    r = jnp.sum(own[half.own] * other[half.other], axis=1) - half.values
    return gathered(half, r, other, own.shape[0]) + ridge * own


def by_cg(half: Half, own: Array, other: Array, ridge: Array, steps: int) -> Array:
    """Return `own` after so many steps of conjugate gradients on all its rows at once, each with its own lengths."""
    r = -gradient(half, own, other, ridge)
    direction, square = r, jnp.sum(r * r, axis=1, keepdims=True)
    for _ in range(steps):
        seen = jnp.sum(direction[half.own] * other[half.other], axis=1)
        image = gathered(half, seen, other, own.shape[0]) + ridge * direction
        curvature = jnp.sum(direction * image, axis=1, keepdims=True)
        length = jnp.where(curvature > 0, square / jnp.where(curvature > 0, curvature, 1), 0)
        own, r = own + length * direction, r - length * image
        after = jnp.sum(r * r, axis=1, keepdims=True)
        direction = r + jnp.where(square > 0, after / jnp.where(square > 0, square, 1), 0) * direction
        square = after
    return own


def by_factorisation(half: Half, own: Array, other: Array, ridge: Array) -> Array:
    """Return the minimiser in each row; a row with fewer entries than unknowns moves as little as it can, nearly."""
    k = own.shape[1]
    near = other[half.other]
    gram = jax.ops.segment_sum(near[:, :, None] * near[:, None, :], half.own, own.shape[0])
    floor = 10 * k * eps(own.dtype) * jnp.trace(gram, axis1=1, axis2=2) + tiny(own.dtype)
    gram = gram + (ridge + floor)[:, None, None] * jnp.eye(k, dtype=own.dtype)[None]
    return own - jnp.linalg.solve(gram, gradient(half, own, other, ridge)[:, :, None])[:, :, 0]


class Sides(NamedTuple):
    """The entries from the rows' side and from the columns'."""

    rows: Half
    cols: Half


def relative_gradient(sides: Sides, factors: Factors, ridge: Array) -> Array:
    """Return the stopping measure; each part in units of the data's own part of the gradient."""
    left, right = factors
    parts = []
    for half, own, other in ((sides.rows, left, right), (sides.cols, right, left)):
        size = norm(gathered(half, half.values, other, own.shape[0]))
        parts.append(norm(gradient(half, own, other, ridge)) / jnp.where(size > 0, size, 1))
    return jnp.hypot(*parts)


def sweep(sides: Sides, ridge: Array, method: str, inner_steps: int, free: bool, s: State) -> State:
    """Solve for the right factor, then for the left one; where the basis is free it is made orthogonal in between."""

    def solved(half, own, other):
        if method == "als_exact":
            return by_factorisation(half, own, other, ridge)
        return by_cg(half, own, other, ridge, inner_steps)

    left, right = s.factors
    if free:
        left, upper = jnp.linalg.qr(left)
        right = matmul(right, upper.T)
    right = solved(sides.cols, right, left)
    if free:
        right, upper = jnp.linalg.qr(right)
        left = matmul(left, upper.T)
    factors = Factors(solved(sides.rows, left, right), right)
    return State(factors, relative_gradient(sides, factors, ridge))


def complete(
    rows: Int[Array, " m"],
    cols: Int[Array, " m"],
    values: Float[Array, " m"],
    shape: tuple[int, int],
    rank: int,
    *,
    method: str = "als_cg",
    ridge: Scalar | None = None,
    inner_steps: int = 2,
    x0: tuple[Float[Array, "n k"], Float[Array, "p k"]] | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 500,
    history: bool | int = False,
    progress: Progress | None = None,
) -> CompletionSolution:
    """Fit a matrix of rank k to some of its entries by alternating least squares.

    ``min sum ((F G')[rows, cols] - values)^2 / 2 + ridge (|F|^2 + |G|^2) / 2`` over F (n, k) and G (p, k). Use it for
    ratings, images with holes, tables with gaps, noisy or not. Nothing of size n x p is formed. For other linear
    measurements take `matrix_sensing`, for gross errors among the entries `robust_recovery`.

    Parameters
    ----------
    rows, cols : Int[Array, "m"]
        Where the entries are, in any order; one given twice counts twice. Traced.
    values : Float[Array, "m"]
        The entries. Traced, differentiable. Their mean is not taken off: subtract it, or other biases, first.
    shape : tuple of int
        (n, p), static.
    rank : int
        k, static, at most min(n, p).
    method : str
        ``"als_cg"``: each half step is `inner_steps` conjugate-gradient steps on all rows at once, O(m k).
        ``"als_exact"``: each half step solves its normal equations, O(m k^2 + (n + p) k^3) and m k^2 numbers. Static.
    ridge : scalar, optional
        Penalty, in units of a singular value; at a minimum the singular values of X are about those of the data less
        `ridge`. Traced, differentiable. Without one (None) factors are orthogonalised between the halves.
    inner_steps : int
        Of "als_cg"; static.
    x0 : pair of arrays, optional
        Factors to start from, of full rank; by default the leading part of the given entries. Its derivative is zero.
    unconverged : str
        Derivatives of a solve that did not converge: ``"nan"``, or ``"approximate"``, those of the equations at the
        point returned. Static.
    tol : scalar, optional
        Traced; 1e-9 in float64, 1e-5 in float32.
    max_steps : int
        Sweeps, of two half steps each; traced.
    history : bool or int
        Record the error after each step (the first 256, or as many as given). Static.
    progress : callable, optional
        ``progress(step, error)`` on the host.

    Returns
    -------
    CompletionSolution
        ``value = (left, right)``, balanced, ``matrix = left right'``, ``residual`` of the given entries.
        ``error = sqrt((|dF| / |V G|)^2 + (|dG| / |V' F|)^2)``: dF, dG the two gradients, V the matrix that holds the
        values and zeros. `LowRankStatus.STATIONARY` where the gradient vanishes at a matrix of lower rank that another
        direction would improve: a saddle.

    Raises
    ------
    ValueError, TypeError
        Shapes, indices out of range (where they are known while tracing), a rank below 1 or above min(n, p).

    Notes
    -----
    Convergence is a claim about the fit: no small change of the factors improves it. Whether the entries that were not
    given are right depends on how many were, and where; a row without any is returned as zeros.

    Memory: a few arrays of m k numbers. Derivatives: of ``matrix`` and functions of it, in `values` and `ridge`,
    implicit, forward and reverse, to second order; NaN at a matrix of rank below k, where there are none. Values are
    scaled by a power of four, so their size does not matter.

    Departures from the paper: it splits the entries over the sweeps and sketches each row's problem to precondition
    it, for its proof; all entries are used in every sweep here, and warm starts stand for the sketch.

    References
    ----------
    Gu, Song, Yin, Zhang, "Low rank matrix completion via robust alternating minimization in nearly linear time", ICLR
    2024. Jain, Netrapalli, Sanghavi, "Low-rank matrix completion using alternating minimization", STOC 2013.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import complete
    >>> X = jnp.outer(jnp.arange(1.0, 5.0), jnp.arange(2.0, 6.0))
    >>> rows, cols = jnp.nonzero(jnp.abs(jnp.arange(4)[:, None] - jnp.arange(4)) < 2)
    >>> sol = complete(rows, cols, X[rows, cols], (4, 4), 1)
    >>> bool(sol.converged), bool(jnp.allclose(sol.matrix, X, rtol=1e-2))
    (True, True)
    """
    checks.choice(NAME, "method", method, METHODS)
    checks.choice(NAME, "unconverged", unconverged, UNCONVERGED)
    shape = (int(shape[0]), int(shape[1]))
    indices = []
    for name, index, size in (("rows", rows, shape[0]), ("cols", cols, shape[1])):
        index = jnp.asarray(index)
        if not jnp.issubdtype(index.dtype, jnp.integer) or index.ndim != 1:
            checks.fail(NAME, name, "a vector of integers", f"{index.dtype}{list(index.shape)}")
        if not isinstance(index, jax.core.Tracer) and index.size:
            if np.min(index) < 0 or np.max(index) >= size:
                checks.fail(NAME, name, f"in 0 to {size - 1}", f"{np.min(index)} to {np.max(index)}")
        indices.append(index)
    if indices[0].shape != indices[1].shape:
        checks.fail(NAME, "cols", f"of shape {indices[0].shape}, like `rows`", indices[1].shape)
    operator, values, x0 = prepare(NAME, Entries(*indices, shape), values, rank, x0, False)
    if rank > min(shape):
        checks.fail(NAME, "rank", f"at most min(shape) = {min(shape)}", rank)
    if isinstance(inner_steps, bool) or not isinstance(inner_steps, int) or inner_steps < 1:
        checks.fail(NAME, "inner_steps", "a positive Python integer", inner_steps)
    if ridge is not None:
        ridge = checks.number(NAME, "ridge", ridge, dtype=values.dtype)
    limits = limits_of(NAME, values.dtype, tol, max_steps, history, progress)
    return _solve(operator, values, rank, ridge, x0, (method, inner_steps), limits, unconverged)


@eqx.filter_jit
def _solve(operator, values, rank, ridge, x0, how, limits, unconverged) -> CompletionSolution:
    down, up = exponent_of(lax.stop_gradient(values))
    values = values * down * down
    penalty = jnp.zeros((), values.dtype) if ridge is None else ridge * down * down
    b, fixed, x0 = lax.stop_gradient((values, penalty, x0))
    method, inner_steps = how
    rows, cols = Half(operator.rows, operator.cols, b), Half(operator.cols, operator.rows, b)
    sides = Sides(rows, cols)
    factors = spectral(operator, b, rank, symmetric=False) if x0 is None else Factors(*(x * down for x in x0))
    run = iterate(
        lambda s: sweep(sides, fixed, method, inner_steps, ridge is None, s),
        State(factors, relative_gradient(sides, factors, fixed)),
        limits,
        value=lambda s: s.factors,
        error=lambda s: s.error,
        stall=100,
    )
    factors, singular = balanced(run.value)
    regular = singular[-1] > eps(b.dtype) ** 0.5 * singular[0]
    r = operator.product(*factors) - b
    size = norm(b)
    status = jnp.where(
        (run.status == Status.CONVERGED) & ~regular & improvable(operator, r, b, fixed, limits.tol),
        LowRankStatus.STATIONARY,
        run.status,
    ).astype(jnp.int32)

    def objective(point, data):
        operator, b, penalty = data
        r = operator.product(*point) - b
        return (inner(r, r) + penalty * inner(point, point)) / 2

    trusted = ((status == Status.CONVERGED) | (unconverged == "approximate")) & regular
    weight = gain(operator, factors) ** 2
    # With a ridge the objective keeps only the rotations, and balanced factors are its minimiser.
    data = (operator, values, penalty)
    point = differentiable(objective, factors, data, trusted, weight, rigid=ridge is not None)
    return CompletionSolution(
        (point.left * up, point.right * up), status, run.num_steps, run.error, limits.tol, run.history,
        singular * up * up, norm(r) / jnp.where(size > 0, size, 1),
    )  # fmt: skip


def improvable(operator: Entries, r: Array, b: Array, ridge: Array, tol: Array) -> Array:
    """Whether one more direction would lower the objective: ``|A*(r)|_2 > ridge``, by power iteration from below."""
    start = jax.random.normal(jax.random.key(31), (operator.shape[1], 1), r.dtype)

    def size(r):
        def power(v, _):
            u = operator.adjoint_times(r, v)
            v = operator.transposed_adjoint_times(r, u / jnp.maximum(norm(u), tiny(u.dtype)))
            return v / jnp.maximum(norm(v), tiny(v.dtype)), None

        return norm(operator.adjoint_times(r, lax.scan(power, start, None, length=POWERS)[0]))

    return size(r) > ridge + 10 * tol * size(b)
