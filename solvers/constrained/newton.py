"""Equality-constrained optimisation: the public call, its answer and the derivatives of that answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from ..core import checks
from ..core.implicit import UNCONVERGED, attach, linear_solve
from ..core.loop import Limits, iterate
from ..core.precision import dot
from ..core.solution import Solution, Status
from ..core.static import Static
from ..core.typing import Array, Bool, Float, Int, Progress, PyTree, Scalar
from . import iteration
from .dense import DenseKKT
from .kkt import KKT
from .matrix_free import KrylovKKT
from .problem import Point, Problem, listed, scales

NAME = "sketched_newton"
DENSE_LIMIT = 2000
"""Above this many variables and constraints together, ``kkt="auto"`` is matrix-free."""
LARGE_MULTIPLIER = 1e4
"""Least-squares multipliers above this, in the scaled problem, are a sign of a poor start: zero is better."""


class NewtonSolution(Solution):
    """Solution of `sketched_newton`; see there.

    Attributes
    ----------
    multipliers : PyTree
        Like the output of `equality`: ``f' + sum_j multipliers_j c_j' = 0``.
    objective : Float[Array, ""]
        ``f(value)``.
    constraint_violation, kkt_residual : Float[Array, ""]
        ``|c|`` and ``sqrt(|f' + G'multipliers|^2 + |c|^2)`` at `value`, of the problem as posed.
    licq_suspect : Bool[Array, ""]
        The constraints' gradients looked linearly dependent at the last step: multipliers may not be unique.
    num_evaluations : Int[Array, ""]
        Evaluations of objective, constraints and their gradients.
    num_inner : Int[Array, ""]
        Factorisations, Krylov steps or sketches, as the KKT solver counts.
    """

    multipliers: Any
    objective: Float[Array, "..."]
    constraint_violation: Float[Array, "..."]
    kkt_residual: Float[Array, "..."]
    licq_suspect: Bool[Array, "..."]
    num_evaluations: Int[Array, "..."]
    num_inner: Int[Array, "..."]

    @property
    def message(self) -> str:
        """Why the solve stopped, what to try, and which part of the error missed the tolerance. Host only."""
        lane = self._worst_lane()
        status, error, violation, tol = (
            np.broadcast_to(x, np.shape(self.status)).ravel()[lane]
            for x in (self.status, self.error, self.constraint_violation, self.tol)
        )
        if status not in (Status.MAX_STEPS, Status.STAGNATED):
            return super().message
        stationarity = np.sqrt(max(float(error) ** 2 - float(violation) ** 2, 0.0))
        parts = {"stationarity": stationarity, "feasibility": float(violation)}
        missed = [f"{name} {x:.1e}" for name, x in parts.items() if x > tol] or [f"their sum {float(error):.1e}"]
        return f"{super().message}; above tol {float(tol):.1e}: {' and '.join(missed)}"


def sketched_newton(
    objective: Callable[[Any, Any], Float[Array, ""]],
    x0: PyTree,
    *,
    equality: Callable[[Any, Any], PyTree] | None = None,
    args: PyTree = None,
    multipliers: PyTree | None = None,
    kkt: KKT | str = "auto",
    tol: Scalar | None = None,
    max_steps: Scalar = 500,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> NewtonSolution:
    """Minimise a smooth function subject to equations: ``min f(x, args)`` subject to ``c(x, args) = 0``.

    Newton's method on the Karush-Kuhn-Tucker (KKT) equations, kept on course by an exact augmented Lagrangian
    ``M(x, lam) = f + lam'c + eta1/2 |c|^2 + eta2/2 |f' + G'lam|^2``, G the Jacobian of c. Use it for smooth problems,
    also nonconvex, with m <= n equations, n from 1 to a few thousand, and above all for batches of them: the whole
    solve is one jitted program without callbacks. It finds one stationary point near `x0`, which is no maximiser and
    no saddle, not the global minimum. It takes no inequalities. Without constraints and in many variables prefer
    L-BFGS (optax); for a linear system of normal equations prefer a linear solver.

    Parameters
    ----------
    objective : callable
        ``f(x, args)``, a real scalar, twice continuously differentiable.
    x0 : PyTree of Float[Array, "..."]
        Start, n numbers in all. Need not be feasible; the solution's derivative with respect to it is zero.
    equality : callable
        ``c(x, args)``, a pytree of real arrays, m numbers in all; ``()`` for none. Twice continuously differentiable.
    args : PyTree, optional
        Passed on to both; differentiable, and traced: new numbers do not recompile.
    multipliers : PyTree, optional
        Warm start for the multipliers, like the output of `equality`; by default least squares at `x0`.
    kkt : KKT or "auto", "dense", "krylov"
        How KKT systems are solved: `DenseKKT`, `KrylovKKT` or `SketchProject`. "auto" is dense up to n + m = 2000 and
        Krylov beyond, which then wants a preconditioner: `NystromPreconditioner`, `DiagonalPreconditioner` or your own.
        Static, apart from arrays in it.
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
    NewtonSolution
        ``value`` like `x0` and ``multipliers`` like c, with ``f' + G'multipliers = 0``: the optimal value of
        ``c(x) = r`` has the derivative ``-multipliers`` in r. ``error`` is ``sqrt(|f' + G'multipliers|^2 + |c|^2)`` of
        the problem as posed, at the best point seen.
        Its ``status`` is `Status.INFEASIBLE` where the violation has a local minimum, or a limit at infinity, that is
        not zero (feasible points may exist elsewhere). The evidence: the Hessian of ``|c|^2 / 2``, scaled to a unit
        diagonal, has no eigenvalue below ``-eps^0.5``; the best step of that quadratic model lowers ``|c|^2`` by less
        than a fraction ``eps^0.75``; and no point on it lowers it, up to 4096 times as far. Each equation is scaled
        down by its gradient at the start if that exceeds 10; ``value`` then is that least infeasible point.
        `Status.UNBOUNDED` means that x or f left every bound, `Status.STAGNATED` that rounding hides all further
        progress, `Status.NONFINITE` that f, c or a derivative is not finite at `x0`. The message of a missed tolerance
        says which part of the error missed it.

    Raises
    ------
    ValueError, TypeError
        While tracing, if an argument is of the wrong kind or shape.

    Notes
    -----
    Stopping: ``error <= tol``. A stationary point reached with a shifted Hessian is examined first: where six steps of
    inverse iteration find negative curvature along the constraints, the method leaves along it. Where the reduced
    Hessian vanishes at the solution, as for ``x^3`` at zero, derivatives to second order cannot tell a minimum from an
    inflection, and the point is returned. Towards a root with a singular Jacobian steps gain a constant factor.

    A step: one linearisation, one KKT system, and a line search that usually accepts its first point. The Hessian is
    shifted until it is positive definite on the null space of G; the multipliers then come from the shifted system
    without the constraints' residual, for those of the whole system mean nothing. Dependent gradients of c are
    met by damping, ``[[B, G'], [G, -d I]]``, and flagged as `licq_suspect`. Where the search fails away from the
    constraints, or their linearisation has no solution, the method turns to ``min |c|^2 / 2``, with exact second
    derivatives, until the violation has fallen tenfold. Points where anything is not finite count as infinitely bad.

    Cost of a dense step: n products with the Hessian and ``n^3/3 + n^2 m + m^3/3`` operations for each trial of a
    shift; memory ``2 n^2 + 3 n m + m^2`` numbers.

    Scaling: constraints by their first gradients, the objective to a first gradient of at most 100; x by nothing.
    Results are reported for the problem as posed.

    Derivatives: of ``value``, ``multipliers`` and ``objective`` with respect to `args` and to arrays inside
    `objective` and `equality` if these are pytrees, by the implicit function theorem on the KKT equations; forward,
    reverse, second order. Exact at a converged regular solution, NaN where ``status`` is not 0 unless asked otherwise.

    Precision: that of `x0`. In float32 expect KKT residuals of about ``1e-6`` times the size of the gradients.

    Departures from the paper: the official code tests descent with the Hessian of f where that of the Lagrangian
    belongs, and starts its inner residual with the wrong sign; both are corrected. Its accuracy rule (a constant of
    at least 200, a floor of 1e-6) in effect asks for exact directions, and they are computed exactly here unless
    `SketchProject` is chosen. Multipliers start at least squares, not at ones.

    References
    ----------
    Hong, Na, Mahoney, Kolar, "Constrained optimization via exact augmented Lagrangian and randomized iterative
    sketching", ICML 2023, arXiv:2305.18379. Merit: Di Pillo and Grippo, SIAM J. Control Optim. 17 (1979); Lucidi, J.
    Optim. Theory Appl. 58 (1988). Shifts and restoration after Waechter and Biegler, Math. Program. 106 (2006).

    Examples
    --------
    The point of the circle of radius 2 nearest to a given one, and how it moves with the radius:

    >>> import jax, jax.numpy as jnp
    >>> from solvers import sketched_newton
    >>> def nearest(radius):
    ...     return sketched_newton(
    ...         lambda x, r: jnp.sum((x - jnp.array([3.0, 4.0])) ** 2),
    ...         jnp.array([1.0, 0.0]),
    ...         equality=lambda x, r: jnp.sum(x**2) - r**2,
    ...         args=radius,
    ...     )
    >>> print(nearest(2.0).value.round(3), jax.jacobian(lambda r: nearest(r).value)(2.0).round(3))
    [1.2 1.6] [0.6 0.8]
    """
    leaves, tree = jax.tree.flatten(x0)
    if not leaves:
        checks.fail(NAME, "x0", "a pytree with at least one array", "none")
    x0 = jax.tree.unflatten(tree, [checks.float_array(NAME, "x0", leaf) for leaf in leaves])
    dtype = jnp.result_type(*jax.tree.leaves(x0))
    if equality is None:
        cure = "a function c(x, args), for c = 0; for inequalities and bounds, or none at all, call `interior_point`"
        checks.fail(NAME, "equality", cure, "none", TypeError)
    for name, function in (("objective", objective), ("equality", equality)):
        checks.takes(NAME, name, function, "x", "args")
    if isinstance(kkt, str):
        checks.choice(NAME, "kkt", kkt, ("auto", "dense", "krylov"))
    elif not isinstance(kkt, KKT):
        checks.fail(NAME, "kkt", "'auto', 'dense', 'krylov' or a KKT solver such as DenseKKT()", repr(kkt), TypeError)
    tol = checks.number(NAME, "tol", _default_tol(dtype) if tol is None else tol, dtype=dtype)
    max_steps = checks.count(NAME, "max_steps", max_steps)
    arrays, static = eqx.partition((objective, equality, args, kkt), eqx.is_array_like)
    checks.choice(NAME, "unconverged", unconverged, UNCONVERGED)
    limits = Limits(tol, max_steps, history, progress)
    return _solve(arrays, x0, multipliers, limits, Static(static), unconverged)


def _default_tol(dtype) -> float:
    return 1e-8 if dtype == jnp.float64 else 1e-3


@partial(jax.jit, static_argnums=(4, 5))
def _solve(arrays, x0, multipliers, limits: Limits, static: Static, unconverged: str):
    start, unravel = ravel_pytree(x0)
    data, rest = eqx.partition(arrays, eqx.is_inexact_array)
    objective, equality, args, _ = eqx.combine(arrays, static.tree())
    listed(NAME, x0, {"objective": objective, "equality": equality}, args)

    @jax.jit  # traced once, however often it is differentiated
    def user(data, x):
        objective, equality, args, _ = eqx.combine(data, rest, static.tree())
        return objective(unravel(x), args), equality(unravel(x), args)

    m, unravel_c = _check_outputs(*jax.eval_shape(user, data, start))

    def values(data, x):
        f, c = user(data, x)
        return f.astype(x.dtype), ravel_pytree(c)[0].astype(x.dtype)

    kkt = eqx.combine(arrays, static.tree())[3]
    if not isinstance(kkt, KKT):
        large = kkt == "auto" and start.size + m > DENSE_LIMIT
        kkt = KrylovKKT() if large or kkt == "krylov" else DenseKKT()
    fixed, start = lax.stop_gradient((data, start))
    unscaled = jnp.ones((), start.dtype), jnp.ones(m, start.dtype), jnp.zeros_like(start)
    problem = Problem(partial(values, fixed), *unscaled)
    problem, state = _begin(problem, kkt, start, _flat_multipliers(multipliers, m, start.dtype), limits)
    run = iterate(
        lambda s: iteration.step(s, problem, kkt, limits.tol),
        state,
        limits,
        value=lambda s: (s.x, s.lam, s.error, s.point),
        error=lambda s: s.error,
        answers=lambda s: ~s.suspect | (s.error > limits.tol),
        status=lambda s: s.verdict,
    )
    last = run.state
    # The least infeasible point is the last one: the restoration descends on the violation alone.
    infeasible = run.status == Status.INFEASIBLE
    x, lam, error, point = jax.tree.map(
        lambda final, best: jnp.where(infeasible, final, best), (last.x, last.lam, last.error, last.point), run.value
    )
    lam = lam * problem.scale_c / problem.scale_f
    trusted = (run.status == Status.CONVERGED) | (unconverged == "approximate")
    x, lam = _differentiable(values, kkt, (x, lam), data, trusted)
    return NewtonSolution(
        value=unravel(x),
        status=run.status,
        num_steps=last.moves,
        error=error,
        tol=limits.tol,
        history=run.history,
        multipliers=unravel_c(lam),
        objective=values(data, x)[0],
        constraint_violation=problem.violation(point),
        kkt_residual=error,
        licq_suspect=last.deficient,
        num_evaluations=last.evaluations,
        num_inner=last.inner,
    )


def _begin(problem: Problem, kkt: KKT, x, lam, limits: Limits):
    """Scale the problem, estimate the multipliers unless given, and return both problem and first state."""
    none = jnp.zeros_like(problem.scale_c)
    f, c, gradient = problem.evaluate(x, none)
    model = kkt.model(problem, x, 1.0, none)
    scale_f, scale_c = scales(gradient, kkt.row_norms(model, none.size, x.dtype))
    if lam is None:
        lam = kkt.multipliers(model, gradient)
        size = jnp.max(jnp.abs(lam * scale_f / scale_c), initial=0)
        lam = jnp.where(size <= LARGE_MULTIPLIER, lam, 0)
    g = scale_f * (gradient + model.adjoint(lam))
    columns = kkt.column_sizes(model, x, scale_c)
    problem = Problem(problem.posed, scale_f, scale_c, columns)
    point = Point(scale_f * f, scale_c * c, g)
    lam = lam * scale_f / scale_c
    return problem, iteration.start(problem, x, lam, point, tol=limits.tol, max_steps=limits.max_steps)


def _differentiable(values, kkt: KKT, point, data, trusted):
    """Return ``(x, lam)`` with the derivatives that the KKT equations give them with respect to `data`."""
    x, lam = point
    n = x.shape[0]

    def residual(z, data):
        def lagrangian(x):
            f, c = values(data, x)
            return f + dot(z[n:], c), c

        return jnp.concatenate(jax.grad(lagrangian, has_aux=True)(z[:n]))

    def solve(jacobian, b):
        return linear_solve(jacobian, b, lambda matvec, b: kkt.implicit(matvec, b, n))

    z = attach(residual, jnp.concatenate([x, lam]), data, solve=solve, trusted=trusted)
    return z[:n], z[n:]


def _check_outputs(f, c):
    if not hasattr(f, "shape") or f.shape != () or not jnp.issubdtype(f.dtype, jnp.floating):
        checks.fail(NAME, "objective", "a function that returns a real scalar", f"{f}")
    for leaf in jax.tree.leaves(c):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            checks.fail(NAME, "equality", "a function that returns real arrays", f"dtype {leaf.dtype}", TypeError)
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), c))
    return flat.size, unravel


def _flat_multipliers(multipliers, m, dtype):
    if multipliers is None:
        return None
    lam = lax.stop_gradient(ravel_pytree(multipliers)[0]).astype(dtype)
    if lam.size != m:
        checks.fail(NAME, "multipliers", f"like the output of `equality`, {m} numbers", f"{lam.size}")
    return lam
