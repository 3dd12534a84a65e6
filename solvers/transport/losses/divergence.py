"""The Sinkhorn divergence: entropic transport with its bias removed."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core.loop import Run, iterate
from ...core.solution import Solution, Status, StatusCode
from ...core.typing import Array, Float, Progress, Scalar
from ..costs.cost import Cost
from ..costs.pointcloud import stored_if_small
from ..entropic.derivatives import finish
from ..entropic.newton import sns_sinkhorn
from ..problem import Goal, TransportStatus, check, default_tol, prepare
from ..solution import TransportSolution

SYMMETRIC_STEPS = 50
"""Steps of the symmetric iteration without a smaller error before it counts as stagnated."""


class DivergenceSolution(Solution):
    """A Sinkhorn divergence and the three problems behind it.

    ``value`` is the divergence; ``error`` the largest marginal error of the three, ``num_steps`` those of the
    problem between the two measures, ``status`` that of the first of the three that did not converge.

    Attributes
    ----------
    between, first, second : TransportSolution
        From a to b, from a to itself and from b to itself.
    """

    between: TransportSolution
    first: TransportSolution
    second: TransportSolution

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, TransportStatus)

    @property
    def f(self) -> Float[Array, "*batch n"]:
        """Derivative of the divergence with respect to a, up to a constant."""
        return self.between.f - self.first.f

    @property
    def g(self) -> Float[Array, "*batch m"]:
        """Derivative of the divergence with respect to b, up to a constant."""
        return self.between.g - self.second.f


class Swept(NamedTuple):
    """A potential of a measure with itself, and Sinkhorn's half step of it."""

    f: Float[Array, " n"]
    moved: Float[Array, " n"]


def sinkhorn_divergence(
    cost: Any,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: Scalar,
    tol: Scalar | None = None,
    max_steps: Scalar = 200,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> DivergenceSolution:
    """Compute the Sinkhorn divergence ``OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2``.

    ``OT`` is the optimal value of ``<C, P> + epsilon sum P (log P - 1)`` over plans with the given marginals. The
    divergence is zero when the two measures are equal and, for ``C = |x - y|^p`` with p in (0, 2], positive otherwise:
    a loss between point clouds or images, with gradients that vanish where they should. For the plan itself, or when
    the bias does not matter, use `sns_sinkhorn`, which costs a third to a half less.

    Parameters
    ----------
    cost : PointCloud, Grid, or three arrays
        Knows the costs within each measure too; a tuple of arrays ``(C_ab, C_aa, C_bb)`` of shapes ``(n, m), (n, n),
        (m, m)`` says them. ``C_aa`` and ``C_bb`` must be symmetric. Differentiable.
    a, b : Float[Array, "n"], Float[Array, "m"], optional
        Weights, non-negative, of equal sum; uniform of sum one by default. Differentiable.
    epsilon : scalar
        Regularisation, in the units of the cost; positive. Traced, differentiable.
    tol : scalar, optional
        Target for `error`; 1e-9 in float64, 1e-5 in float32, more where those round potentials further. Traced.
    max_steps : int
        Largest number of steps of each of the three. Traced.
    init : pair of arrays, optional
        Potentials ``(f, g)`` of the problem between a and b to start from; their derivative is zero.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the marginal error of that many steps of the problem between a and b (``True``: 256). Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)`` for the problem between a and b.

    Returns
    -------
    DivergenceSolution
        ``value``, a scalar; ``error``, the largest of the three relative marginal errors
        ``(|P 1 - a|_1 + |P' 1 - b|_1) / sum(a)``.

    Raises
    ------
    ValueError, TypeError
        While tracing: if `cost` is a single matrix, shapes do not fit, or `epsilon` is a number that is not positive.

    Notes
    -----
    (1) ``S(a, b) = OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2``
    (2) ``f <- (f + T f) / 2`` for the one potential of a measure with itself
    (3) ``T f = epsilon (log a - logsumexp_j((f_j - C_ij) / epsilon))``, Sinkhorn's half step
    (4) ``P 1 = a exp((f - T f) / epsilon)``, so that the error comes with the step

    The problem between the measures is solved by `sns_sinkhorn`. For a positive semidefinite kernel (2) at least halves
    the error in each step near the solution, whatever epsilon, so some thirty passes do. Stops when ``error <= tol``.
    The paper's entropy is relative to ``a b'``; what that adds to the three terms cancels in (1).

    First derivatives come from the envelope theorem without a linear solve, in points, weights, costs and `epsilon`;
    second ones by the implicit function theorem. The value's error is of the order of the square of `error`.

    References
    ----------
    .. [1] J. Feydy, T. Séjourné, F.-X. Vialard, S. Amari, A. Trouvé, G. Peyré, "Interpolating between optimal transport
       and MMD using Sinkhorn divergences", AISTATS 2019: theorem 1, and section 3 for the symmetric iteration.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import PointCloud, sinkhorn_divergence
    >>> x = jnp.linspace(0, 1, 5)[:, None]
    >>> far, same = (sinkhorn_divergence(PointCloud(x, x + s), epsilon=0.1).value for s in (0.5, 0.0))
    >>> bool(abs(far - 0.25) < 1e-3), bool(abs(same) < 1e-5)
    (True, True)
    """
    name = "sinkhorn_divergence"
    costs = _three(name, cost)
    _, a, b, _ = check(name, costs[0], a, b, epsilon)
    data = [check(name, c, *w, epsilon) for c, w in zip(costs, ((a, b), (a, a), (b, b)), strict=True)]
    goal = Goal.of(name, tol, default_tol(a.dtype), max_steps)
    between: Any = sns_sinkhorn(
        *data[0][:3], epsilon=data[0][3], tol=tol, max_steps=max_steps, init=init, unconverged=unconverged,
        history=history, progress=progress,
    )  # fmt: skip
    first, second = (solve_symmetric(d, goal, unconverged) for d in data[1:])
    value = between.regularized_cost - (first.regularized_cost + second.regularized_cost) / 2  # (1)
    status = jnp.where(first.converged, second.status, first.status)
    status = jnp.where(between.converged, status, between.status)
    status = jnp.where((status == Status.CONVERGED) & ~jnp.isfinite(value), Status.NONFINITE, status)
    error, tol = (
        jnp.maximum(x, jnp.maximum(y, z))
        for x, y, z in zip(*((s.error, s.tol) for s in (between, first, second)), strict=True)
    )
    return DivergenceSolution(value, status, between.num_steps, error, tol, between.history, between, first, second)


def _three(name: str, cost) -> tuple[Any, Any, Any]:
    if isinstance(cost, tuple | list) and len(cost) == 3:
        return tuple(cost)
    known = cost if isinstance(cost, Cost) else Cost()
    return cost, *known.within(name)


@partial(jax.jit, static_argnums=2)
def solve_symmetric(data, goal: Goal, unconverged: str) -> TransportSolution:
    """Solve the problem of a measure with itself: one potential, averaged with its transform.

    Equations 2 to 4 of `sinkhorn_divergence`.
    """
    data = (stored_if_small(data[0]), *data[1:])
    problem = prepare(*lax.stop_gradient(data), tol=goal.tol)
    epsilon, a = problem.epsilon, problem.a

    def transform(f):
        # (3)
        sums = problem.cost.logsumexp(f, problem.rows, epsilon, problem.shift)
        return jnp.where(problem.rows, epsilon * (jnp.log(jnp.where(problem.rows, a, 1)) - sums), 0)

    def error(state: Swept):
        f, moved = state
        return 2 * jnp.sum(a * jnp.abs(jnp.expm1((f - moved) / epsilon)))  # (4)

    def step(state: Swept) -> Swept:
        f = (state.f + state.moved) / 2  # (2)
        return Swept(f, transform(f))

    start = jnp.zeros_like(a)
    run: Run = iterate(
        step,
        Swept(start, transform(start)),
        goal.within(problem.spread, epsilon),
        value=lambda state: (state.f, state.f),
        error=error,
        refused=lambda _: problem.status,
        stall=SYMMETRIC_STEPS,
    )
    none = jnp.zeros((), jnp.int32)
    return finish(problem, run, data, goal=goal, linear_steps=none, unconverged=unconverged)
