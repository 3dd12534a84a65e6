"""Optimisation with inequalities and bounds: the public call, its answer and the derivatives of that answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from ...core import checks
from ...core.implicit import UNCONVERGED
from ...core.loop import Limits, iterate
from ...core.precision import eps
from ...core.solution import Solution, Status
from ...core.static import Static
from ...core.typing import Array, Float, Int, Progress, PyTree, Scalar
from ..problem import listed
from .active_set import differentiable
from .barrier_step import WARM_PUSH, step
from .standard import PUSH, Iterate, Model, Standard, Values, bounded, columns, scales
from .state import NEWTON
from .state import start as begin

CALL = "interior_point"


class Multipliers(NamedTuple):
    """Multipliers of `interior_point`: ``f' + equality'c' + inequality'g' - lower + upper = 0``.

    Attributes
    ----------
    equality, inequality : PyTree
        Like the outputs of `equality` and `inequality`; those of inequalities are not negative.
    lower, upper : PyTree
        Like `x0`, not negative, zero where there is no bound. A variable with ``lower = upper`` has the multiplier of
        its sign in one of them.
    """

    equality: Any
    inequality: Any
    lower: Any
    upper: Any


class InteriorSolution(Solution):
    """Solution of `interior_point`; see there.

    Attributes
    ----------
    multipliers : Multipliers
        Of equations, inequalities and bounds.
    objective : Float[Array, ""]
        ``f(value)``.
    stationarity, constraint_violation, complementarity : Float[Array, ""]
        The parts of `error`, each in the largest entry.
    num_evaluations : Int[Array, ""]
        Evaluations of objective and constraints.
    num_inner : Int[Array, ""]
        Factorisations.
    """

    multipliers: Multipliers
    objective: Float[Array, "..."]
    stationarity: Float[Array, "..."]
    constraint_violation: Float[Array, "..."]
    complementarity: Float[Array, "..."]
    num_evaluations: Int[Array, "..."]
    num_inner: Int[Array, "..."]

    @property
    def message(self) -> str:
        """Why the solve stopped, what to try, and which parts of the error missed the tolerance. Host only."""
        lane = self._worst_lane()
        status, tol, *parts = (
            np.broadcast_to(x, np.shape(self.status)).ravel()[lane]
            for x in (self.status, self.tol, self.stationarity, self.constraint_violation, self.complementarity)
        )
        names = ("stationarity", "feasibility", "complementarity")
        missed = [f"{name} by {p / tol:.1e}" for name, p in zip(names, parts, strict=True) if p > tol]
        text = self._decode(int(status)).message
        if status in (Status.CONVERGED, Status.NONFINITE) or not missed:
            return text
        return f"{text}; missed `tol` in " + " and in ".join(f"{m} times" for m in missed)


def interior_point(
    objective: Callable[[PyTree, Any], Scalar],
    x0: PyTree,
    *,
    equality: Callable[[PyTree, Any], PyTree] | None = None,
    inequality: Callable[[PyTree, Any], PyTree] | None = None,
    bounds: tuple[PyTree, PyTree] | None = None,
    args: PyTree = None,
    multipliers: Multipliers | None = None,
    tol: Scalar | None = None,
    max_steps: Scalar = 500,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> InteriorSolution:
    """Minimise ``f(x, args)`` subject to ``c(x, args) = 0``, ``g(x, args) <= 0`` and ``lower <= x <= upper``.

    For smooth problems with up to some hundred variables, convex or not, alone or many at once under ``jax.vmap``. It
    finds local minima. Without inequalities and bounds `sketched_newton` is the lighter choice; for plain least squares
    and root finding use a library for these, such as optimistix.

    Parameters
    ----------
    objective : callable
        ``f(x, args)``, a real scalar, twice continuously differentiable inside the bounds. It is never evaluated
        outside of them.
    x0 : PyTree of real arrays
        Where to start, n numbers in all; moved inside the bounds first. The derivative of the solution with respect to
        it is zero.
    equality, inequality : callable, optional
        ``c(x, args)`` and ``g(x, args)``, pytrees of real arrays with p and q numbers in all.
    bounds : (lower, upper), optional
        Pytrees like `x0`, or broadcast to its leaves; ``-inf`` and ``inf`` where there is no bound. Equal bounds fix a
        variable. Traced; differentiable.
    args : PyTree, optional
        Passed on to all functions; differentiable, and traced: new numbers do not recompile.
    multipliers : Multipliers, optional
        Warm start, together with `x0`: those of a solution of a problem near this one.
    tol : float, optional
        Stop when ``error <= tol``; default 1e-8 in float64, 1e-3 in float32. Traced.
    max_steps : int
        Traced.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the error after each step (the first 256, or as many as given). Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``; see `print_progress`.

    Returns
    -------
    InteriorSolution
        ``value`` like `x0`; `Multipliers`, with the Lagrangian ``f + y'c + z'g - zl'(x - lower) - zu'(upper - x)``.
        ``error`` is the largest entry of ``|f' + C'y + G'z - zl + zu| / s_d``, of the violations ``|c|, max(g, 0)``,
        and of ``|z g|, |zl (x - lower)|, |zu (upper - x)|`` over ``s_c``, for the problem as posed, with
        ``s_d = max(100, mean |multiplier|) / 100``, and s_c the same without y.
        ``status`` `Status.INFEASIBLE` claims that the violation has a local minimum within the bounds, or a limit at
        infinity, that is not zero (feasible points may exist elsewhere), or that bounds contradict each other; the
        evidence is a gradient of the violation below `tol`, a Hessian of its square that is positive definite to
        rounding in any units, whose best step promises no fall, and no lower point up to 4096 times as far along it,
        where each constraint is scaled as the notes say;
        `Status.UNBOUNDED` that f fell below -1e20 (-1e12 in float32) at a feasible point;
        `Status.DIVERGED` that x left that range; `Status.STAGNATED` that steps no longer change x;
        `Status.NONFINITE` that a function or derivative is not finite at the start.

    Raises
    ------
    ValueError, TypeError
        While tracing, if an argument is of the wrong kind or shape, or concrete bounds contradict each other.

    Notes
    -----
    Inequalities get slacks s, and ``-mu sum log`` of slacks and distances to the bounds is added to f, and 1e-4 mu
    times the distance where a variable has one bound, lest the logarithm leads it to infinity. A step solves
    the Newton system of the conditions ``s z = mu`` and so on, condensed to the n variables and p equations; its
    Hessian is shifted until the inertia is that of a minimum. Trial points go at most 0.99 of the way to the boundary
    and are accepted by a filter of violation and barrier function, after second-order corrections where a full step
    adds violation. Slacks are raised to ``-g`` wherever that is larger. mu falls superlinearly once the barrier problem
    is solved to ten times itself. Where nothing is accepted, the method turns to the violation alone, within the
    bounds, until the filter lets it return; multipliers start anew then.

    Equality constraints may be dependent; opposite inequalities that leave no interior are solved too, at a slower
    rate. Scaling: f and each constraint by their gradients at the start, to at most 100; x by nothing.

    Cost of a step: n products with the Hessian, ``n^3/3 + n^2 (p + q) + p^3/3`` operations for each trial of a shift;
    memory ``n^2 + (p + q) n`` numbers.

    Derivatives: of ``value``, ``multipliers`` and ``objective`` with respect to `args`, `bounds` and arrays inside
    the functions, by the implicit function theorem on the active set; forward, reverse, second order. The active set is
    found, where derivatives are taken, by Newton's method on its conditions from the point returned; derivatives are
    those at the solution itself, however large `tol`. Where multiplier and distance of a constraint both vanish to
    rounding (no strict complementarity), or more constraints are active than independent, there are one-sided
    derivatives only, and those of one side are returned. Where equations are dependent, derivatives hold for changes
    that keep them consistent, and those of their multipliers are one choice of many. NaN where ``status`` is not 0,
    where x is not determined (a face of solutions), and where no active set is confirmed.

    References
    ----------
    Waechter, Biegler, "On the implementation of an interior-point filter line-search algorithm for large-scale
    nonlinear programming", Math. Program. 106 (2006); equation numbers in comments are theirs. The restoration is not
    theirs: it minimises the squared violation by the same Newton system.

    Examples
    --------
    The point of a disc nearest to a given one, with its first coordinate at most 1:

    >>> import jax, jax.numpy as jnp
    >>> from solvers import interior_point
    >>> def nearest(radius):
    ...     return interior_point(
    ...         lambda x, r: jnp.sum((x - jnp.array([3.0, 4.0])) ** 2),
    ...         jnp.array([0.5, 0.0]),
    ...         inequality=lambda x, r: jnp.sum(x**2) - r**2,
    ...         bounds=(-jnp.inf, jnp.array([1.0, jnp.inf])),
    ...         args=radius,
    ...     )
    >>> print(nearest(2.0).value.round(2), jax.jacobian(lambda r: nearest(r).value)(2.0)[1:].round(2))
    [1.   1.73] [1.15]
    """
    leaves, tree = jax.tree.flatten(x0)
    if not leaves:
        checks.fail(CALL, "x0", "a pytree with at least one array", "none")
    x0 = jax.tree.unflatten(tree, [checks.float_array(CALL, "x0", leaf) for leaf in leaves])
    dtype = jnp.result_type(*jax.tree.leaves(x0))
    for name, function in (("objective", objective), ("equality", equality), ("inequality", inequality)):
        if function is not None or name == "objective":
            checks.takes(CALL, name, function, "x", "args")
    lower, upper = _bounds(bounds, x0, dtype)
    tol = checks.number(CALL, "tol", (1e-8 if dtype == jnp.float64 else 1e-3) if tol is None else tol, dtype=dtype)
    limits = Limits(tol, checks.count(CALL, "max_steps", max_steps), history, progress)
    checks.choice(CALL, "unconverged", unconverged, UNCONVERGED)
    arrays, static = eqx.partition((objective, equality, inequality, args), eqx.is_array_like)
    return _solve((arrays, lower, upper), x0, multipliers, limits, Static(static), unconverged)


def _bounds(bounds, x0, dtype):
    """Return flat lower and upper bounds; contradictions among concrete ones raise."""
    if bounds is None:
        bounds = (-jnp.inf, jnp.inf)
    if _is_pairs(bounds, x0):
        cure = "a pair (lower, upper); of one pair a variable, with inf for None, tuple(jnp.asarray(bounds, float).T)"
        checks.fail(CALL, "bounds", cure, f"{len(bounds)} pairs", TypeError)
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        checks.fail(CALL, "bounds", "a pair (lower, upper)", type(bounds).__name__, TypeError)

    def flat(side):
        if jax.tree.structure(side) != jax.tree.structure(x0):
            if jax.tree.structure(side).num_leaves != 1:
                checks.fail(CALL, "bounds", "like `x0` in structure, or single arrays", f"{side}")
            side = jax.tree.map(lambda _: jax.tree.leaves(side)[0], x0)

        def like(bound, x):
            bound = checks.float_array(CALL, "bounds", bound, dtype=dtype).astype(dtype)
            if jnp.broadcast_shapes(bound.shape, x.shape) != x.shape:
                checks.fail(CALL, "bounds", f"broadcast to {x.shape}", f"shape {bound.shape}")
            return jnp.broadcast_to(bound, x.shape)

        return ravel_pytree(jax.tree.map(like, side, x0))[0]

    lower, upper = map(flat, bounds)
    if not any(not _is_concrete(side) for side in (lower, upper)):
        crossed = np.flatnonzero(np.asarray(lower) > np.asarray(upper))
        if crossed.size:
            i = crossed[0]
            checks.fail(CALL, "bounds", "lower <= upper", f"lower {lower[i]} > upper {upper[i]} in entry {i}")
    return lower, upper


def _is_pairs(bounds, x0) -> bool:
    """Whether `bounds` are one pair for each number of `x0`; two pairs can also be bounds of a pytree."""
    if not isinstance(bounds, tuple | list) or (len(bounds) == 2 and jax.tree.structure(x0).num_nodes > 1):
        return False
    return len(bounds) > 0 and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in bounds)


def _is_concrete(x) -> bool:
    try:
        np.asarray(x)
    except Exception:
        return False
    return True


@partial(jax.jit, static_argnums=(4, 5))
def _solve(arrays, x0, multipliers, limits: Limits, static: Static, unconverged: str):
    start, unravel = ravel_pytree(x0)
    dtype = start.dtype
    users, lower, upper = arrays
    objective, equality, inequality, args = eqx.combine(users, static.tree())
    listed(CALL, x0, {"objective": objective, "equality": equality, "inequality": inequality}, args)

    @jax.jit  # traced once, however often it is differentiated
    def user(users, x):
        objective, equality, inequality, args = eqx.combine(users, static.tree())
        none = lambda x, args: ()  # noqa: E731
        return tuple(h(unravel(x), args) for h in (objective, equality or none, inequality or none))

    # All that it depends on is data, what it closes over too.
    closed = eqx.filter_closure_convert(lambda x: user(users, x), start)
    numbers, rest = eqx.partition(closed, eqx.is_inexact_array)
    rest, program = eqx.partition(rest, eqx.is_array)
    data = numbers, lower, upper
    (p, like_c), (q, like_g) = _check_outputs(*jax.eval_shape(closed, start))

    def functions(data, rest):
        def posed(x):
            f, c, g = eqx.combine(data[0], rest, program)(x)
            return f.astype(dtype), *(ravel_pytree(v)[0].astype(dtype) for v in (c, g))

        return posed, data[1], data[2]

    fixed, start = lax.stop_gradient((data, start))
    posed, lower, upper = functions(fixed, rest)
    problem, state = _begin(bounded(posed, lower, upper, p, q), start, _flat(multipliers, p, q, start))
    contradiction = jnp.any(lower > upper)
    run = iterate(
        lambda s: step(s, problem, limits.tol),
        state,
        limits,
        value=lambda s: (s.w, s.residual),
        error=lambda s: s.residual.error(),
        answers=lambda s: (s.mode <= NEWTON) & ~s.suspect,
        status=lambda s: s.verdict,
        refused=lambda s: jnp.where(contradiction, Status.INFEASIBLE, Status.RUNNING),
    )
    # The least infeasible point is the last one: the restoration descends on the violation alone.
    last = run.status == Status.INFEASIBLE
    w, residual = jax.tree.map(
        lambda end, best: jnp.where(last, end, best), (run.state.w, run.state.residual), run.value
    )
    sf, sc, sg = problem.scale
    held = jnp.where(problem.free, 0, run.state.model.held)
    zl, zu = w.zl + jnp.maximum(held, 0), w.zu + jnp.maximum(-held, 0)
    posed_w = Iterate(w.x, w.s / sg, w.y * sc / sf, w.z * sg / sf, zl / sf, zu / sf)
    trusted = (run.status == Status.CONVERGED, jnp.asarray(unconverged == "approximate"))
    x, y, z, zl, zu, f = differentiable(functions, posed_w, data, rest, trusted)
    return InteriorSolution(
        value=unravel(x),
        status=run.status,
        num_steps=run.num_steps,
        error=residual.error(),
        tol=limits.tol,
        history=run.history,
        multipliers=Multipliers(like_c(y), like_g(z), unravel(zl), unravel(zu)),
        objective=f,
        stationarity=residual.stationarity,
        constraint_violation=residual.violation,
        complementarity=residual.complementarity,
        num_evaluations=run.state.evaluations,
        num_inner=run.state.inner,
    )


def _begin(problem: Standard, x, given):
    """Move x inside, scale the problem by its gradients there, and return both problem and first state."""
    dtype, warm = x.dtype, given is not None
    x = problem.inside(x, eps(dtype) ** 0.75 if warm else PUSH)
    p, q = problem.scale.c.size, problem.scale.g.size
    bounds = [side.astype(dtype) for side in (problem.below, problem.above)]
    y, z, zl, zu = (jnp.zeros(p, dtype), jnp.ones(q, dtype), *bounds) if given is None else given
    values, model = problem.model(x, y, z, jnp.ones((), dtype))
    scale = scales(model)
    problem = problem._replace(scale=scale)
    values = Values(*(factor * value for factor, value in zip(scale, values, strict=True)))
    model = Model(
        scale.f * model.df,
        scale.c[:, None] * model.C,
        scale.g[:, None] * model.G,
        scale.f * model.H,
        scale.f * model.held,
    )
    problem = problem._replace(columns=columns(model))
    s = jnp.maximum(-values.g, WARM_PUSH if warm else PUSH)
    w = Iterate(x, s, y, z, zl, zu)
    if warm:
        w = w._replace(y=y * scale.f / scale.c, z=z * scale.f / scale.g, zl=zl * scale.f, zu=zu * scale.f)
        w = w._replace(zl=jnp.where(problem.below, w.zl, 0), zu=jnp.where(problem.above, w.zu, 0))
    return problem, begin(problem, w, values, model, warm)


def _flat(multipliers, p: int, q: int, start):
    """Return warm-start multipliers as flat vectors, none of those for inequalities negative."""
    if multipliers is None:
        return None
    if not isinstance(multipliers, tuple) or len(multipliers) != 4:
        checks.fail(CALL, "multipliers", "a `Multipliers`", type(multipliers).__name__, TypeError)
    parts = [lax.stop_gradient(ravel_pytree(part)[0]).astype(start.dtype) for part in multipliers]
    for name, part, size in zip(Multipliers._fields, parts, (p, q, start.size, start.size), strict=True):
        if part.size != size:
            checks.fail(CALL, f"multipliers.{name}", f"{size} numbers in all", f"{part.size}")
    y, *others = parts
    return y, *(jnp.maximum(part, 0) for part in others)


def _check_outputs(f, *constraints):
    """Return for each constraint how many numbers it has and what makes a pytree of them."""
    if not hasattr(f, "shape") or f.shape != () or not jnp.issubdtype(f.dtype, jnp.floating):
        checks.fail(CALL, "objective", "a function that returns a real scalar", f"{f}")
    found = []
    for name, outputs in zip(("equality", "inequality"), constraints, strict=True):
        for leaf in jax.tree.leaves(outputs):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                checks.fail(CALL, name, "a function that returns real arrays", f"dtype {leaf.dtype}", TypeError)
        flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outputs))
        found.append((flat.size, unravel))
    return found
