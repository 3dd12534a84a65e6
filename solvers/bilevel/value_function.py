"""A lower problem with coupled constraints, replaced by its proximal Lagrangian value function: LV-HBA.

Algorithm 1 of Yao, Yu, Zeng, Zhang (ICLR 2024), the steps of `published_step`, numbered as in the comments, with L,
d_x, d_y and g of `lagrangian`:

(1) ``theta <- P_Y(theta - eta (grad_theta L(x, theta, l) + (theta - y) / gamma1))``
(2) ``l <- P_Z(l + eta (g(x, theta) - (l - z) / gamma2))``, theta that before (1)
(3) ``c = penalty (k + 1)^power``
(4) ``(x, y) <- P_C((x, y) - alpha (d_x, d_y))``
(5) ``z <- P_Z(z + beta (l - z) / gamma2)``

In their places `own_step` has, at points extrapolated as in Nesterov's method, for the departures see `lv_hba`:

(6) ``theta <- P_Y(at - slope / L)``, ``at = theta + (1 - r) / (1 + r) (theta - theta_before)``,
    ``r = sqrt(1 / (gamma L))``, repeated, L the curvature seen
(7) ``(x, y) <- P_C(ahead - (d_x, d_y) / L)``, ``ahead = (x, y) + b ((x, y) - (x, y)_before)``,
    ``b = (t_before - 1) / t``, ``t = (1 + sqrt(1 + 4 t_before^2)) / 2``
(8) ``z <- z + (l - z) / 2``
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.implicit import distrust
from ..core.loop import Limits, iterate
from ..core.precision import dot, eps
from ..core.solution import Solution
from ..core.typing import Array, Float, Int, Progress, Scalar
from ..core.vectors import norm
from .lagrangian import PROX, Objective, Problem, pose, relative_errors

CURVATURE, ACCURACY, DOUBLED = 1.1, 0.1, 2.0


class BilevelSolution(Solution):
    """What `lv_hba` returns.

    Attributes
    ----------
    value : tuple of Float[Array, "n"] and Float[Array, "m"]
        x and y.
    multipliers : Float[Array, "p"]
        Of the lower problem's constraints.
    gap : Float[Array, ""]
        ``lower(x, y) - v(x, y)``, at least zero, zero where y solves the lower problem.
    penalty : Float[Array, ""]
        The weight of the gap against the upper objective in the end; the bias of x is of the order of one over it.
    num_inner : Int[Array, ""]
        Gradients of the lower objective taken in all, besides two of either objective a step.
    """

    multipliers: Float[Array, "..."]
    gap: Float[Array, "..."]
    penalty: Float[Array, "..."]
    num_inner: Int[Array, "..."]


class PublishedSteps(NamedTuple):
    """Settings of LV-HBA as published: one step a variable, the penalty growing by itself.

    Attributes
    ----------
    alpha, beta, eta : scalar
        Steps of (x, y), of the multipliers' centre z, and of the inner point and multipliers.
    gamma1, gamma2 : scalar
        Proximal parameters of the point and of the multipliers.
    penalty, power : scalar
        ``penalty (k + 1)^power`` in step k, the power below one half.
    radius : scalar
        Bound on the multipliers.
    """

    alpha: Any = 0.008
    beta: Any = 0.02
    eta: Any = 0.01
    gamma1: Any = 10.0
    gamma2: Any = 10.0
    penalty: Any = 0.025
    power: Any = 0.3
    radius: Any = 1000.0


class Inner(NamedTuple):
    """Of the inner loop: point, extrapolated point, its gradient and length, curvature seen, residual, steps."""

    theta: Array
    at: Array
    before: Array
    slope: Array
    curvature: Array
    residual: Array
    steps: Array


class State(NamedTuple):
    """Of the outer loop.

    Attributes
    ----------
    x, y, ahead_x, ahead_y : Array
        The iterate and the extrapolated point.
    theta, multipliers, z : Array
        The inner solution, and the multipliers' centre.
    slope_x, slope_y : Array
        The directions at the extrapolated point.
    last_x, last_y : Array
        The extrapolated point before.
    curvature, inner_curvature : Array
        Largest secants seen at either level.
    momentum, penalty, residual : Array
        Nesterov's t, the weight of the gap, the length of the projected direction.
    lower_error, error : Array
    comparable : Array
        Whether the last directions were taken at the same penalty.
    steps, inner_steps : Array
    """

    x: Array
    y: Array
    ahead_x: Array
    ahead_y: Array
    last_x: Array
    last_y: Array
    theta: Array
    multipliers: Array
    z: Array
    slope_x: Array
    slope_y: Array
    curvature: Array
    inner_curvature: Array
    momentum: Array
    penalty: Array
    residual: Array
    lower_error: Array
    error: Array
    comparable: Array
    steps: Array
    inner_steps: Array


def secant(move: Array, change: Array, size: Array) -> Array:
    """Return the curvature between two points, zero where they are too close to tell."""
    far = norm(move)
    told = far > eps(far.dtype) ** 0.75 * size
    return jnp.where(told & jnp.isfinite(change), change / jnp.where(told, far, 1), 0)


def follow(problem: Problem, x: Array, y: Array, s: State, most: Array) -> Inner:
    """Minimise ``max_l lower + l.g + |theta - y|^2 / (2 gamma) - |l - z|^2 / (2 weights)`` over theta in Y.

    Nesterov's method with the curvature that the secants show, until the residual is small against the outer one.
    """
    floor = 1 / problem.gamma
    target = ACCURACY * s.residual

    def slope_at(theta):
        multipliers = problem.best_multipliers(x, theta, s.z)
        return jax.grad(problem.lagrangian, argnums=1)(x, theta, multipliers) + (theta - y) * floor

    def body(c: Inner) -> Inner:
        slope = slope_at(c.at)
        seen = jnp.where(c.steps > 0, secant(c.at - c.before, norm(slope - c.slope), norm(c.at)), 0)
        curvature = jnp.maximum(c.curvature, seen)
        L = CURVATURE * curvature
        theta = problem.projected_lower(c.at - slope / L)  # (6)
        root = jnp.sqrt(jnp.minimum(floor / L, 1))
        at = theta + (1 - root) / (1 + root) * (theta - c.theta)  # (6)
        return Inner(theta, at, c.at, slope, curvature, L * norm(theta - c.at), c.steps + 1)

    zero = jnp.zeros((), jnp.int32)
    start = Inner(s.theta, s.theta, s.theta, jnp.zeros_like(y), s.inner_curvature, jnp.full_like(floor, jnp.inf), zero)
    return lax.while_loop(lambda c: (c.steps < most) & (c.residual > target), body, start)


def own_step(problem: Problem, s: State, most: Array, tol: Array) -> State:
    """Solve the inner problem at the extrapolated point, move along the projected direction, raise the penalty."""
    inner = follow(problem, s.ahead_x, s.ahead_y, s, most)
    multipliers = problem.best_multipliers(s.ahead_x, inner.theta, s.z)
    dx, dy = problem.directions(s.ahead_x, s.ahead_y, inner.theta, multipliers, s.penalty)
    ahead, move = (s.ahead_x, s.ahead_y), (s.ahead_x - s.last_x, s.ahead_y - s.last_y)
    change = norm((dx - s.slope_x, dy - s.slope_y))
    seen = jnp.where(s.comparable, secant(norm(move), change, norm(ahead)), 0)
    curvature = jnp.maximum(s.curvature, seen)
    L = CURVATURE * curvature
    # A step that turns out far too long is taken again from where it began.
    wild = seen > 2 * s.curvature
    back = lambda old, new: jnp.where(wild, old, new)  # noqa: E731
    from_x, from_y = back(s.last_x, s.ahead_x), back(s.last_y, s.ahead_y)
    dx, dy = back(s.slope_x, dx), back(s.slope_y, dy)
    x, y = problem.projected(from_x - dx / L, from_y - dy / L)  # (7)
    step = norm((x - from_x, y - from_y))
    z = s.z + (multipliers - s.z) / 2  # (8)
    new = s._replace(x=x, y=y, theta=inner.theta, multipliers=multipliers, residual=L * step)
    lower, error = relative_errors(problem, new, step + 2 * problem.gamma * inner.residual)
    error = back(jnp.asarray(jnp.finfo(error.dtype).max, error.dtype), error)
    # The smaller stationarity already is, the more the penalty's own bias is what is left.
    settled = (error <= lower) & (lower > tol / 2)
    penalty = jnp.where(settled, DOUBLED * s.penalty, s.penalty)
    uphill = dot(s.ahead_x - x, x - s.x) + dot(s.ahead_y - y, y - s.y) > 0
    again = uphill | settled | wild
    # (7)
    t = jnp.where(again, 1.0, (1 + jnp.sqrt(1 + 4 * s.momentum**2)) / 2).astype(s.momentum.dtype)
    b = jnp.where(again, 0, (s.momentum - 1) / t)
    return State(
        x, y, x + b * (x - s.x), y + b * (y - s.y), from_x, from_y, inner.theta, multipliers, z, dx, dy,
        curvature, inner.curvature, t, penalty, L * step, lower, error, ~settled, s.steps + 1,
        s.inner_steps + inner.steps,
    )  # fmt: skip


def published_step(problem: Problem, s: State, given: PublishedSteps) -> State:
    """Take one step of descent and ascent in the inner variables, then one in (x, y): algorithm 1."""
    inner = jax.grad(problem.lagrangian, argnums=1)(s.x, s.theta, s.multipliers) + (s.theta - s.y) / given.gamma1
    theta = problem.projected_lower(s.theta - given.eta * inner)  # (1)
    rise = problem.constraints(s.x, s.theta) - (s.multipliers - s.z) / given.gamma2
    multipliers = problem.admissible(s.multipliers + given.eta * rise)  # (2)
    penalty = given.penalty * (s.steps + 1).astype(s.penalty.dtype) ** given.power  # (3)
    dx, dy = problem.directions(s.x, s.y, theta, multipliers, penalty)
    x, y = problem.projected(s.x - given.alpha * dx, s.y - given.alpha * dy)  # (4)
    z = problem.admissible(s.z + given.beta * (multipliers - s.z) / given.gamma2)  # (5)
    residual = norm((x - s.x, y - s.y)) / given.alpha
    new = s._replace(
        x=x, y=y, theta=theta, multipliers=multipliers, z=z, penalty=penalty, residual=residual, steps=s.steps + 1,
        inner_steps=s.inner_steps + 1,
    )  # fmt: skip
    lower, error = relative_errors(problem, new, given.gamma1 * norm(inner))
    return new._replace(lower_error=lower, error=error)


def starting(problem: Problem, x: Array, y: Array, scale: Array) -> State:
    """Return the state before the first step, which is the first to know an error."""
    dtype = y.dtype
    zero, one, none = jnp.zeros((), dtype), jnp.ones((), dtype), jnp.zeros((), jnp.int32)
    unit, z, far = 1 / problem.gamma, jnp.zeros_like(problem.rows), jnp.asarray(jnp.finfo(dtype).max, dtype)
    known = problem.size + problem.bend + unit + scale + jnp.sum(problem.constraints(x, y))
    error = jnp.where(jnp.isfinite(known), far, jnp.nan)
    curvature = PROX * unit + problem.bend / scale
    return State(
        x, y, x, y, x, y, y, z, z, jnp.zeros_like(x), jnp.zeros_like(y), curvature, (2 * PROX + 1) * unit, one,
         scale, zero, far, error, jnp.asarray(False), none, none,
    )  # fmt: skip


def lv_hba(
    upper: Objective,
    lower: Objective,
    x0: Float[Array, " n"],
    y0: Float[Array, " m"],
    args: Any = None,
    *,
    constraint: Objective | None = None,
    equality: bool = False,
    project: Callable | None = None,
    project_lower: Callable | None = None,
    inner_steps: int | Array = 100,
    published: PublishedSteps | None = None,
    tol: Scalar | None = None,
    max_steps: int | Array = 5000,
    history: bool | int = False,
    progress: Progress | None = None,
) -> BilevelSolution:
    """Minimise ``upper(x, y)`` where y minimises ``lower(x, .)`` over Y subject to ``constraint(x, .) <= 0``.

    The lower problem may have many solutions, of which the best for the upper level is taken, and constraints that x
    moves. First derivatives only, two products at the start apart. Where the lower problem is free and strongly convex,
    `hypergradient` is exact and cheaper.

    Parameters
    ----------
    upper, lower : callable
        ``upper(x, y, args)`` and ``lower(x, y, args)``, smooth; lower convex in y. Static.
    x0, y0 : Float[Array, "n"], Float[Array, "m"]
        Where to start.
    args : PyTree, optional
        Data of all functions.
    constraint : callable, optional
        ``constraint(x, y, args)``, a vector; convex in y, affine where `equality` is set. Static.
    equality : bool
        Whether the constraint is ``= 0`` instead. Static.
    project : callable, optional
        ``project(x, y, args)``: the nearest pair that satisfies the constraint and the sets of x and y. Needed where
        there is a constraint. Static.
    project_lower : callable, optional
        ``project_lower(y, args)``: the nearest point of Y alone. Static.
    inner_steps : int
        Most gradients of the inner problem a step; traced.
    published : PublishedSteps, optional
        Take the published steps with these settings instead. They need tuning to the problem and decrease slowly.
    tol : scalar, optional
        1e-4 by default in double precision, 5e-4 in single, where rounding times the penalty ends it; traced.
    max_steps : int
        Traced.
    history : bool or int
        Record the error.
    progress : callable, optional
        ``progress(step, error)`` on the host.

    Returns
    -------
    BilevelSolution
        The larger of two numbers is the `error`. The lower one, relative to ``|(x, y)|``: how far y is from the
        solution of the lower problem's proximal step around it, plus how far constraints and multipliers are off. The
        upper one: the projected gradient of ``upper + penalty (lower - v)``, relative to ``|grad upper|`` or its
        curvature times ``|(x, y)|``. Both vanish only at stationary points of the bilevel problem; the distance to one
        is of the order of the error times the upper problem's condition.

    Raises
    ------
    ValueError, TypeError
        Vectors or functions of other shapes, a constraint without a projection.

    Notes
    -----
    ``v(x, y, z) = min_theta max_l lower(x, theta) + l.constraint(x, theta) + |theta - y|^2 / (2 gamma) - |l - z|^2 / (2
    w)`` is the lower problem's optimal value once y solves it and z are its multipliers, and has a gradient without
    inner derivatives. ``lower - v`` is penalised. The penalty is exact only in the limit and doubles whenever the
    stationarity of the penalised problem is better than the lower error. Departures from the paper: multipliers are
    maximised in closed form instead of by a step, the inner problem is solved (by Nesterov's method, to a tenth of the
    outer residual) instead of followed by one step, (x, y) moves with momentum and restarts, all steps follow from
    curvatures seen on the way, proximal parameters from those at the start, and the constraints are normalised by
    their gradients there. A step costs two gradients of each objective and `num_inner` shared out. Derivatives of the
    answer with respect to data are not available and are NaN.

    A lower problem that is not convex may leave y in a local minimum, which the error cannot tell from a global one;
    nor is a stationary point of the upper level a minimum.

    References
    ----------
    W. Yao, C. Yu, S. Zeng, J. Zhang, *Constrained bi-level optimization: proximal Lagrangian value function approach
    and Hessian-free algorithm*, ICLR 2024, algorithm 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import lv_hba
    >>> upper = lambda x, y, _: jnp.sum((x - 1) ** 2) + jnp.sum((y - 1) ** 2)
    >>> lower = lambda x, y, _: jnp.sum((y - 2 * x) ** 2)
    >>> sol = lv_hba(upper, lower, jnp.zeros(1), jnp.zeros(1))
    >>> print(sol.value[0].round(1), sol.value[1].round(1))
    [0.6] [1.2]
    """
    name = "lv_hba"
    x0, y0 = checks.float_array(name, "x0", x0, ndim=1), checks.float_array(name, "y0", y0, ndim=1)
    if x0.dtype != y0.dtype:
        checks.fail(name, "y0", f"of the dtype of x0, {x0.dtype}", y0.dtype, TypeError)
    if constraint is not None:
        shape = jax.eval_shape(constraint, x0, y0, args).shape
        if len(shape) != 1:
            checks.fail(name, "constraint", "a function with a vector as its value", f"shape {shape}")
        if project is None:
            checks.fail(name, "project", "given where there is a constraint", None)
    for label, function in (("upper", upper), ("lower", lower)):
        shape = jax.eval_shape(function, x0, y0, args).shape
        if shape != ():
            checks.fail(name, label, "a function with a scalar as its value", f"shape {shape}")
    for label, like, shape in (
        ("project", (x0, y0), None if project is None else jax.eval_shape(project, x0, y0, args)),
        ("project_lower", y0, None if project_lower is None else jax.eval_shape(project_lower, y0, args)),
    ):
        if shape is not None and jax.tree.map(jnp.shape, shape) != jax.tree.map(jnp.shape, like):
            checks.fail(name, label, f"of shapes {jax.tree.map(jnp.shape, like)}", jax.tree.map(jnp.shape, shape))
    problem = Problem(upper, lower, constraint, project, project_lower, bool(equality), args)
    tol = checks.number(name, "tol", (1e-4 if y0.dtype.itemsize == 8 else 5e-4) if tol is None else tol, dtype=y0.dtype)
    limits = Limits(tol, checks.count(name, "max_steps", max_steps), history, progress)
    most = checks.count(name, "inner_steps", inner_steps)
    return _lv_hba(problem, x0, y0, published, most, limits)


@eqx.filter_jit
def _lv_hba(problem: Problem, x0, y0, published: PublishedSteps | None, most, limits: Limits) -> BilevelSolution:
    data = (problem.args, x0, y0)
    moving, fixed = eqx.partition(data, eqx.is_inexact_array)
    args, x, y = eqx.combine(lax.stop_gradient(moving), fixed)
    problem, scale = pose(eqx.tree_at(lambda p: p.args, problem, args, is_leaf=lambda a: a is None), x, y)
    start = starting(problem, x, y, scale)
    if published is None:
        step = partial(own_step, problem, most=most, tol=limits.tol)
    else:
        given = PublishedSteps(*(jnp.asarray(a, y.dtype) for a in published))
        problem = eqx.tree_at(
            lambda p: (p.gamma, p.weights, p.radius), problem,
            (given.gamma1, jnp.broadcast_to(given.gamma2, problem.weights.shape), given.radius),
        )  # fmt: skip
        step = partial(published_step, problem, given=given)
    run = iterate(
        step,
        start,
        limits,
        value=lambda s: (s.x, s.y, s.theta, s.multipliers, s.z, s.penalty),
        error=lambda s: s.error,
        stall=None if published is not None else 2000,
    )
    x, y, theta, multipliers, z, penalty = run.value
    gap = problem.lower(x, y, problem.args) - problem.value(x, y, theta, multipliers, z)
    touched = sum(jnp.sum(a - lax.stop_gradient(a)).astype(y.dtype) for a in jax.tree.leaves(moving))
    value = distrust((x + touched, y + touched), jnp.asarray(False))
    return BilevelSolution(
        value, run.status, run.num_steps, run.error, limits.tol, run.history, multipliers, gap, penalty,
        run.state.inner_steps,
    )  # fmt: skip
