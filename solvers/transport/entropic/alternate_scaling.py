"""Plain Sinkhorn: alternate scaling, stabilised by absorbing the scalings into potentials."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.implicit import UNCONVERGED
from ...core.loop import iterate, when
from ...core.typing import Array, Float, Progress, Scalar
from ..costs.cost import Cost
from ..costs.pointcloud import stored_if_small
from ..problem import Goal, Problem, check, check_potentials, default_tol, prepare
from ..solution import TransportSolution
from ..systems.gibbs_kernel import (
    Kernel,
    absorb,
    empty,
    needs_absorbing,
    reduced_potentials,
    row_error,
    sweep,
)
from .derivatives import finish

SWEEPS = 200
"""Sweeps without a smaller error before the solve counts as stagnated."""


class State(eqx.Module):
    """The plan, its columns normalised, and the error of its rows."""

    kernel: Kernel
    error: Float[Array, ""]


def sinkhorn_step(problem: Problem, state: State, tol) -> State:
    """One sweep by products with the kernel; the kernel is formed anew when scalings leave its range or at the end."""
    kernel = sweep(problem, state.kernel)  # (1)
    error = row_error(problem, kernel)

    def renew(state: State) -> State:
        kernel = absorb(problem, state.kernel, *state.kernel.potentials, problem.epsilon)  # (2)
        return State(kernel, row_error(problem, kernel))

    return when((error <= tol) | needs_absorbing(kernel), renew, State(kernel, error))


def sinkhorn(
    cost: Float[Array, "n m"] | Cost,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: Scalar,
    tol: Scalar | None = None,
    max_steps: Scalar = 10_000,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    unbalanced: None = None,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> TransportSolution:
    """Solve entropic optimal transport by Sinkhorn's alternate scaling.

    ``min <C, P> + epsilon sum P (log P - 1)`` over plans P with row sums `a` and column sums `b`.

    The baseline, and the right choice when `epsilon` is large (a tenth of the mean cost, say): each step is two
    products with an n x m matrix. The error shrinks by a constant factor a step, which tends to one as `epsilon`
    falls; from about a hundredth of the mean cost on, `sns_sinkhorn` is faster by orders of magnitude.

    Parameters
    ----------
    cost : Float[Array, "n m"], PointCloud or Grid
        Cost of moving a unit of mass from i to j; ``inf`` forbids a pair in a matrix. Differentiable.
    a, b : Float[Array, "n"], Float[Array, "m"], optional
        Weights, non-negative, of equal sum; uniform of sum one by default. Differentiable.
    epsilon : scalar
        Regularisation, in the units of `cost`; positive. Traced, differentiable.
    tol : scalar, optional
        Target for `error`; 1e-9 in float64, 1e-5 in float32, more where those round potentials further. Traced.
    max_steps : int
        Largest number of sweeps. Traced.
    init : pair of arrays, optional
        Potentials ``(f, g)`` to start from, for instance of a similar problem. Their derivative is zero.
    unbalanced : None
        Moved: see `unbalanced_sinkhorn`, which prices the marginals instead of prescribing them.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the error of that many steps (``True``: 256). Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``.

    Returns
    -------
    TransportSolution
        ``value = (f, g)`` with shapes ``(n,), (m,)``; ``error = (|P 1 - a|_1 + |P' 1 - b|_1) / sum(a)``; the plan,
        costs and duality gap follow from it. See `TransportSolution`.

    Raises
    ------
    ValueError, TypeError
        While tracing, if shapes do not fit, `cost` is not a real matrix, or `epsilon` is a number that is not positive.

    Notes
    -----
    Stops when ``error <= tol``; `Status.STAGNATED` after 200 sweeps without a smaller error, which is how float32 ends
    when `tol` is below its reach. `error` is that of the potentials returned, rounded as they are; what that makes of
    the tolerance is said in the notes of `sns_sinkhorn`. Bad values (NaN, negative weights, unequal masses, a point
    that may go nowhere) are reported by status, without a step. Memory: two arrays of the cost's shape. The plan is
    kept as
    ``diag(alpha) exp((f + g - C) / epsilon) diag(beta)`` with alpha and beta absorbed into f and g whenever they leave
    the range in which underflow is harmless [2]_, so it is the log-domain iteration at the price of the plain one.

    A sweep, with ``K = exp((f + g - C) / epsilon)``:

    (1) ``alpha <- a / (K beta)``, then ``beta <- b / (K' alpha)`` [1]_
    (2) ``f <- f + epsilon log alpha,  g <- g + epsilon log beta``, alpha and beta back to one: absorption [2]_

    Potentials, plan and costs are differentiable to second order with respect to `cost`, `a`, `b` and `epsilon`, by
    the implicit function theorem at the solution; the derivative's error is the solution's times the condition.

    References
    ----------
    .. [1] M. Cuturi, "Sinkhorn distances", NeurIPS 2013.
    .. [2] B. Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport problems",
       SIAM J. Sci. Comput. 41 (2019), section 3.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import sinkhorn
    >>> x = jnp.linspace(0, 1, 5)
    >>> sol = sinkhorn((x[:, None] - x) ** 2, epsilon=0.1)
    >>> bool(sol.converged), sol.plan().shape
    (True, (5, 5))
    """
    name = "sinkhorn"
    data = check(name, cost, a, b, epsilon)
    dtype = data[0].dtype
    goal = Goal.of(name, tol, default_tol(dtype), max_steps, history, progress)
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    if unbalanced is not None:
        checks.fail(name, "unbalanced", "None: call `unbalanced_sinkhorn(cost, a, b, epsilon=, rho=)`", unbalanced)
    init = check_potentials(name, init, data)
    return _solve(data, init, goal, unconverged).between(data[0])


@partial(jax.jit, static_argnums=3)
def _solve(data, init, goal: Goal, unconverged) -> TransportSolution:
    data = (stored_if_small(data[0]), *data[1:])
    problem = prepare(*lax.stop_gradient(data), tol=goal.tol)
    f, g = reduced_potentials(problem, lax.stop_gradient(init))
    kernel = absorb(problem, empty(problem), f, problem.least if init is None else g, problem.epsilon)
    limits = goal.within(problem.spread, problem.epsilon)
    run = iterate(
        lambda s: sinkhorn_step(problem, s, limits.tol),
        State(kernel, row_error(problem, kernel)),
        limits,
        value=lambda s: s.kernel.potentials,
        error=lambda s: s.error,
        refused=lambda _: problem.status,
        stall=SWEEPS,
    )
    none = jnp.zeros((), jnp.int32)
    return finish(problem, run, data, goal=goal, linear_steps=none, unconverged=unconverged)
