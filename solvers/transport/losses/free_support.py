"""Barycenters of point clouds whose own points move."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.implicit import UNCONVERGED, attach, distrust
from ...core.loop import iterate
from ...core.precision import binary_exponent, matmul
from ...core.precision import eps as machine_eps
from ...core.solution import Solution, Status, StatusCode
from ...core.typing import Array, Float, Progress, Scalar
from ..costs.pointcloud import PointCloud
from ..problem import Goal, TransportStatus, first_fault
from .barycenters import solve_linear

MOST_SWEEPS = 2000
"""Largest number of Sinkhorn sweeps after a step; what error they leave is part of the error."""
POINTS_STALL = 100
"""Steps without a smaller error before the solve counts as stagnated."""
LARGEST = 40.0
"""Exponents of masses in an error are cut here: far from the solution it is large, not infinite."""
BACKWARDS = 0.5
"""A step may end where the pull along it points backwards, this much of what it was: then the objective fell."""
INNER = 0.03
"""The potentials' error may be this part of the points'."""
MEMORY = 10
"""Steps remembered."""


class FreeBarycenterSolution(Solution):
    """A barycenter with points of its own; ``value`` holds them, shape (m, d), their weights are those given.

    For plans and distances between it and a measure call `sns_sinkhorn` or `sinkhorn_divergence`.
    """

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, TransportStatus)


class Data(NamedTuple):
    """What the barycenter depends on."""

    x: Array
    a: Array
    b: Array
    share: Array
    epsilon: Array


class Swept(NamedTuple):
    """What a sweep makes of potentials g and `own` at some points, and how far they are from their fixed point."""

    g: Array
    own: Array
    f: Array
    next_g: Array
    next_own: Array
    error: Array


class Point(NamedTuple):
    """Points, their potentials, where the maps pull the points, and the error in two parts."""

    y: Array
    g: Array
    own: Array
    pull: Array
    marginal: Array
    residual: Array

    @property
    def error(self):
        """The stopping measure."""
        return self.residual + self.marginal


class Memory(NamedTuple):
    """The last moves and changes of the negative pull, the newest first, in the metric of the weights; zero: none."""

    moves: Float[Array, "memory m d"]
    changes: Float[Array, "memory m d"]


class State(NamedTuple):
    """The point the method stands at, what it knows of the curvature, and the length of the step it tries next."""

    point: Point
    memory: Memory
    length: Array


def free_support_barycenter(
    x: Float[Array, "k n d"],
    a: Float[Array, "k n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: Scalar,
    init: Float[Array, "m d"] | None = None,
    shares: Float[Array, " k"] | None = None,
    debiased: bool = True,
    tol: Scalar | None = None,
    max_steps: Scalar = 1000,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> FreeBarycenterSolution:
    """Compute points whose measure is a barycenter of several point clouds, for squared Euclidean distance.

    ``min over y of sum_k shares_k D(sum_i a_ki delta(x_ki), sum_j b_j delta(y_j))`` with D the Sinkhorn divergence, or
    the entropic transport value itself if not `debiased`, which shrinks: its points move together as `epsilon` grows.

    Use it where the barycenter's support is not known, in any dimension. The objective is not convex: the answer is a
    stationary point near `init`. Among measures on a given support, such as images, `barycenter` finds the minimum.

    Parameters
    ----------
    x : Float[Array, "k n d"]
        Points of k measures. Clouds of different sizes: see `stack_ragged`. Differentiable.
    a : Float[Array, "k n"], optional
        Their weights, non-negative and of sum one for each measure; uniform by default. Differentiable.
    b : Float[Array, "m"], optional
        Weights of the barycenter's points, of sum one; uniform by default. Differentiable.
    epsilon : scalar
        Regularisation, in the units of squared distance; positive. Traced, differentiable.
    init : Float[Array, "m d"], optional
        Points to start from; by default those of the first measure, and then m = n. Points that coincide, of equal
        weight, stay together. Their derivative is zero.
    shares : Float[Array, "k"], optional
        Weight of each measure, non-negative and of sum one; equal by default. Differentiable.
    debiased : bool
        Static.
    tol : scalar, optional
        Target for `error`; by default 1e-6 in float64 and 1e-4 in float32. Traced.
    max_steps : int
        Largest number of steps of the points. Traced.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the error of that many steps (``True``: 256). Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``.

    Returns
    -------
    FreeBarycenterSolution
        ``value = y``, shape (m, d). ``error = sqrt(sum_j b_j |sum_k shares_k T_k(y_j) - S(y_j)|^2) / spread +
        sum_k shares_k |P_k' 1 - b|_1 + |Q 1 - b|_1`` in the notation below, P_k and Q the plans; the spread is the root
        of the mean squared distance of all points of the measures from their mean. What rounding y to its distance
        from the origin changes is added to it, and may raise a tolerance that is not given, to 1e-3 at most.

    Raises
    ------
    ValueError, TypeError
        While tracing, if shapes do not fit or `epsilon` is a number that is not positive.

    Notes
    -----
    With the entropic maps of the barycenter's points [1]_, here to measure k and to the barycenter itself,

    (1) ``T_k(y_j) = sum_i x_ki w_i,  w_i ~ exp((f_ki - |x_ki - y_j|^2) / epsilon)``
    (2) ``S(y_j) = sum_i y_i w_i,  w_i ~ exp((h_i - |y_i - y_j|^2) / epsilon)``, but ``S(y_j) = y_j`` if not debiased

    the objective's derivative in y_j is ``2 b_j (S(y_j) - sum_k shares_k T_k(y_j))``, and a step is

    (3) ``y_j <- y_j + t (sum_k shares_k T_k(y_j) - S(y_j))``

    With t = 1 and without debiasing that is the fixed-point iteration of [2]_, which never raises the objective. Here
    the pull v in (3) is multiplied by the inverse Hessian that the last 10 steps imply, in the metric of the weights
    [3]_, to a direction e, and t is halved until

    (4) ``sum_j b_j <v_new, e> >= -sum_j b_j <v_old, e> / 2``: by the trapezoidal rule the objective has fallen.

    The potentials come from

    (5) ``f_k = epsilon (log a_k - logsumexp_j((g_kj - C_ij) / epsilon))``, then g_k from f_k likewise with b
    (6) ``h <- (h + epsilon (log b - logsumexp_i((h_i - C_ij) / epsilon))) / 2``

    from where they were, until their error is a small part of the points'. Stops when ``error <= tol``;
    `Status.STAGNATED` after 100 steps without a smaller one, which is also how a small `epsilon` ends whose sweeps are
    cut off at 2,000: below a hundredth of the mean squared distance expect that.
    Clouds are centred for it, and scaled by a power of two, so that places and units do not matter.
    A sweep costs 2 k soft minima over n m entries, a step k + 1 products; memory k + 1 arrays of n m.

    Derivatives of the points in `x`, `a`, `b`, `shares` and `epsilon`, to second order, by the implicit function
    theorem; their linear system has (k + 1) m + m d unknowns and is factored up to 1,500.

    References
    ----------
    .. [1] A.-A. Pooladian, J. Niles-Weed, "Entropic estimation of optimal transport maps", 2021.
    .. [2] M. Cuturi, A. Doucet, "Fast computation of Wasserstein barycenters", ICML 2014, section 4.
    .. [3] J. Nocedal, S. J. Wright, "Numerical optimization", Springer 2006, algorithm 7.4.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import free_support_barycenter
    >>> square = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    >>> sol = free_support_barycenter(jnp.stack([square, square + 4.0]), epsilon=0.1)
    >>> bool(sol.converged), bool(jnp.allclose(sol.value, square + 2.0, atol=1e-3))
    (True, True)
    """
    name = "free_support_barycenter"
    x = checks.float_array(name, "x", x, ndim=3)
    k, n, d = x.shape
    if 0 in x.shape:
        checks.fail(name, "x", "(k, n, d), the points of k measures, none empty", x.shape)
    init = x[0] if init is None else checks.float_array(name, "init", init, ndim=2, dtype=x.dtype).astype(x.dtype)
    m = init.shape[0]
    if m == 0 or init.shape[1] != d:
        checks.fail(name, "init", f"(m, {d}), points like those of `x`", init.shape)
    a, b = _weights(name, "a", a, (k, n), x.dtype), _weights(name, "b", b, (m,), x.dtype)
    share = _weights(name, "shares", shares, (k,), x.dtype)
    epsilon = checks.number(name, "epsilon", epsilon, positive=True, dtype=x.dtype)
    usual = jnp.asarray(1e-6 if x.dtype == jnp.float64 else 1e-4, x.dtype)
    goal = Goal.of(name, tol, usual, max_steps, history, progress)
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    return _solve(Data(x, a, b, share, epsilon), init, goal, bool(debiased), unconverged)


def _weights(name: str, argument: str, weights, shape: tuple[int, ...], dtype) -> Array:
    if weights is None:
        return jnp.full(shape, 1 / shape[-1], dtype)
    weights = checks.float_array(name, argument, weights, dtype=dtype).astype(dtype)
    if weights.shape != shape:
        checks.fail(name, argument, f"{shape}, one weight for each point or measure", weights.shape)
    return weights


@partial(jax.jit, static_argnums=(3, 4))
def _solve(data: Data, init, goal: Goal, debiased: bool, unconverged: str) -> FreeBarycenterSolution:
    given, (data, centre, unit) = data, in_units(data)
    fixed = lax.stop_gradient(data)
    y = (lax.stop_gradient(init) - lax.stop_gradient(centre)[None]) / unit
    spread = _spread(fixed)
    inner = goal.tol

    def at(y, g, own) -> Point:
        return evaluate(y, (g, own), fixed, debiased, spread, inner)

    root = jnp.sqrt(fixed.b)[:, None]

    def step(state: State) -> State:
        old, memory, length = state
        force = root * old.pull
        ahead = direction(memory, force)
        new = at(old.y + length * ahead / jnp.where(root > 0, root, 1), old.g, old.own)  # (3)
        slopes = [jnp.sum(root * p.pull * ahead) for p in (old, new)]
        good = slopes[1] >= -BACKWARDS * slopes[0]  # (4)
        extended = pushed(memory, length * ahead, force - root * new.pull)
        taken = State(new, extended, jnp.ones_like(length))
        refused = State(old, memory, length / 2)
        return jax.tree.map(lambda u, v: jnp.where(good, u, v), taken, refused)

    zeros = jnp.zeros((len(fixed.share), len(fixed.b)), y.dtype)
    none = jnp.zeros((MEMORY, *y.shape), y.dtype)
    start = State(at(y, zeros, zeros[0]), Memory(none, none), jnp.ones((), y.dtype))
    run = iterate(
        step,
        start,
        goal,
        value=lambda s: (s.point.y, s.point.g, s.point.own),
        error=lambda s: s.point.error,
        refused=lambda _: faults(given, init),
        stall=POINTS_STALL,
    )
    y, g, own = run.value
    solved = y, g - matmul(g, fixed.b)[:, None], own
    y, _, _ = attach(partial(residual, debiased=debiased), solved, data, solve=solve_linear)
    placed = centre[None] + unit * y
    moved = lax.stop_gradient((placed - centre[None]) / unit - y)  # by rounding, far from the origin
    off = jnp.sqrt(jnp.sum(fixed.b * jnp.sum(moved**2, 1))) / spread
    error = run.error + off
    status, tol = goal.judge(run.status, error, off)
    placed = distrust(placed, (status == Status.CONVERGED) | (unconverged == "approximate"))
    return FreeBarycenterSolution(placed, status, run.num_steps, error, tol, run.history)


def in_units(data: Data) -> tuple[Data, Array, Array]:
    """Return the data around their mean in units of a power of two near their size, that mean, and the unit."""
    x, a, b, share, epsilon = data
    centre = jnp.sum(share[:, None] * jnp.sum(a[:, :, None] * x, 1), 0)
    x = x - centre[None, None]
    size = jnp.max(jnp.abs(jnp.where((a > 0)[:, :, None], x, 0)))
    unit = lax.stop_gradient(jnp.ldexp(jnp.ones((), x.dtype), binary_exponent(size)))
    return Data(x / unit, a, b, share, epsilon / unit / unit), centre, unit


def faults(data: Data, init):
    """Return what is wrong with the data, `Status.RUNNING` if nothing is."""
    x, a, b, share, epsilon = data
    slack = 1e3 * machine_eps(a.dtype)
    off = [jnp.any(jnp.abs(jnp.sum(w, -1) - 1) > slack) for w in (a, b, share)]
    negative = [jnp.any(w < 0) for w in (a, b, share)]
    finite = [jnp.all(jnp.isfinite(z)) for z in (x, a, b, share, epsilon, init)]
    return first_fault(
        (jnp.any(jnp.stack(off)), TransportStatus.UNEQUAL_MASSES),
        (jnp.any(jnp.stack(negative)), TransportStatus.NEGATIVE_WEIGHTS),
        (epsilon <= 0, TransportStatus.NOT_POSITIVE_EPSILON),
        (~jnp.all(jnp.stack(finite)), Status.NONFINITE),
    )


def costs(y, data: Data):
    """Return the squared distances of each cloud's points from y, of both their means first.

    What that changes is a sum of a function of each, so that maps stay and potentials need not grow with translations.
    """
    y = y - matmul(data.b, y)[None]
    means = jnp.sum(data.a[:, :, None] * data.x, 1, keepdims=True)
    return jax.vmap(lambda x: PointCloud(x, y).dense())(data.x - means)


def _masked(exponent, live, axis: int):
    return jax.nn.logsumexp(jnp.where(live, exponent, -jnp.inf), axis=axis)


def _log(weights):
    return jnp.log(jnp.where(weights > 0, weights, 1))


def to_measures(cost, g, data: Data):
    """Return the measures' potentials from the barycenter's, zero where there is no mass."""
    a, b, epsilon = data.a, data.b, data.epsilon
    sums = _masked((g[:, None, :] - cost) / epsilon, (b > 0)[None, None, :], 2)
    return jnp.where(a > 0, epsilon * (_log(a) - sums), 0)  # (4)


def from_measures(cost, f, data: Data):
    """Return the logarithms of the sums over the measures' points, times epsilon: one for each point of y."""
    return data.epsilon * _masked((f[:, :, None] - cost) / data.epsilon, (data.a > 0)[:, :, None], 1)


def sweep(cost, within, g, own, data: Data) -> Swept:
    """One sweep of all potentials at fixed points; the error is that of the plans of g and `own` themselves."""
    b, epsilon, live = data.b, data.epsilon, data.b > 0
    f = to_measures(cost, g, data)
    back = from_measures(cost, f, data)
    masses = jnp.where(live, jnp.exp(jnp.minimum((g + back) / epsilon, LARGEST)), 0)
    error = jnp.sum(data.share * jnp.sum(jnp.abs(masses - b[None]), 1))
    new = epsilon * _log(b)[None] - back  # (5)
    if within is None:
        return Swept(g, own, f, new, own, error)
    half = epsilon * _masked((own[:, None] - within) / epsilon, live[:, None], 0)
    masses = jnp.where(live, jnp.exp(jnp.minimum((own + half) / epsilon, LARGEST)), 0)
    return Swept(g, own, f, new, (own + epsilon * _log(b) - half) / 2, error + jnp.sum(jnp.abs(masses - b)))  # (6)


def pull(cost, within, y, f, own, data: Data):
    """Return ``sum_k shares_k T_k(y_j) - S(y_j)``."""
    weights = jax.nn.softmax(jnp.where((data.a > 0)[:, :, None], (f[:, :, None] - cost) / data.epsilon, -jnp.inf), 1)
    maps = jnp.einsum("k,kij,kid->jd", data.share, weights, data.x, precision="highest")  # (1)
    if within is None:
        return maps - y
    weights = jax.nn.softmax(jnp.where((data.b > 0)[:, None], (own[:, None] - within) / data.epsilon, -jnp.inf), 0)
    return maps - matmul(weights.T, y)  # (2)


def evaluate(y, potentials, data: Data, debiased: bool, spread, tol) -> Point:
    """Sweep from the given potentials until their error is a tenth of the whole, and judge the points."""
    cost = costs(y, data)
    within = PointCloud(y, y).dense() if debiased else None
    b = data.b

    def judged(swept: Swept):
        towards = pull(cost, within, y, swept.f, swept.own, data)
        return towards, jnp.sqrt(jnp.sum(b * jnp.sum(towards**2, 1))) / spread

    def body(carry: _Inner) -> _Inner:
        swept = sweep(cost, within, carry.swept.next_g, carry.swept.next_own, data)
        towards, size = judged(swept)
        return _Inner(swept, towards, size, carry.sweeps + 1)

    first = sweep(cost, within, potentials[0], potentials[1], data)
    start = _Inner(first, *judged(first), jnp.zeros((), jnp.int32))

    def unfinished(c: _Inner):
        return (c.swept.error > INNER * jnp.maximum(c.size, tol)) & (c.sweeps < MOST_SWEEPS)

    end = lax.while_loop(unfinished, body, start)
    swept = end.swept
    return Point(y, swept.g, swept.own, end.pull, swept.error, end.size)


class _Inner(NamedTuple):
    """The sweeps at one set of points: the last one, the pull and its size, and how many there were."""

    swept: Swept
    pull: Array
    size: Array
    sweeps: Array


def pushed(memory: Memory, move, change) -> Memory:
    """Remember a move, unless the objective is not convex along it."""
    bend = jnp.sum(move * change)
    useful = bend > 1e-6 * jnp.sqrt(jnp.sum(move**2) * jnp.sum(change**2))
    pairs = zip(memory, (move, change), strict=True)
    return Memory(*(jnp.where(useful, jnp.concatenate([new[None], rows[:-1]]), rows) for rows, new in pairs))


def direction(memory: Memory, force):
    """Return the inverse of the Hessian that the memory implies times the force [3]_; the force if that is no good."""
    bends = jnp.sum(memory.moves * memory.changes, (1, 2))
    known = bends > 0
    inverse = jnp.where(known, 1 / jnp.where(known, bends, 1), 0)

    def first(ahead, pair):
        move, change, over = pair
        factor = over * jnp.sum(move * ahead)
        return ahead - factor * change, factor

    def second(ahead, pair):
        move, change, over, factor = pair
        return ahead + (factor - over * jnp.sum(change * ahead)) * move, None

    pairs = (*memory, inverse)
    ahead, factors = lax.scan(first, force, pairs)
    square = jnp.sum(memory.changes[0] ** 2)
    ahead = ahead * jnp.where(known[0], bends[0] / jnp.where(square > 0, square, 1), 1)
    ahead, _ = lax.scan(second, ahead, (*pairs, factors), reverse=True)
    along, size = jnp.sum(ahead * force), jnp.sqrt(jnp.sum(ahead**2))
    ahead = jnp.where(along > 1e-4 * size * jnp.sqrt(jnp.sum(force**2)), ahead, force)
    size = jnp.sqrt(jnp.sum(ahead**2))
    return ahead * jnp.minimum(1, 1 / jnp.where(size > 0, size, 1))


def _spread(data: Data):
    """Return the root of the mean squared distance of the measures' points from their mean, one if that is zero."""
    square = jnp.sum(data.share * jnp.sum(data.a * jnp.sum(data.x**2, 2), 1))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 1)


def residual(point, data: Data, *, debiased: bool) -> Any:
    """Return the equations of points and potentials, with the potentials' means added: constants are free otherwise."""
    y, g, own = point
    cost = costs(y, data)
    within = PointCloud(y, y).dense() if debiased else None
    swept = sweep(cost, within, g, own, data)
    own = own if within is None else own - swept.next_own
    return pull(cost, within, y, swept.f, swept.own, data), g - swept.next_g + matmul(g, data.b)[:, None], own
