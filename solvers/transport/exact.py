"""Transport without entropy: proximal steps of Sinkhorn-Newton, each answer certified by linear-programming duality.

The proximal point method of Xie, Wang, Wang and Zha, UAI 2019, its answers bounded from both sides:

(1) ``P <- argmin <C, P> + mu_k KL(P | last P)``
(2) ``P = exp((f + g - C) / epsilon),  1 / epsilon = sum_k 1 / mu_k``: what that amounts to; here epsilon quarters
(3) ``g_j = min_i (C_ij - f_i)``, then ``f_i = min_j (C_ij - g_j)``, feasible for the dual
(4) ``<a, f> + <b, g> <= optimum <= <C, rounded P>``, and error is the gap over the lower bound

It departs from the paper, whose inner steps are Sinkhorn's with a fixed mu: here they are Newton's.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.implicit import UNCONVERGED
from ..core.loop import Limits, iterate
from ..core.precision import eps as machine_eps
from ..core.solution import Status
from ..core.typing import Array, Float, Int, Progress, Scalar
from .costs.cost import as_cost
from .costs.pointcloud import stored_if_small
from .entropic.newton import START, begin
from .entropic.newton_step import DECAY, State, ascend, extrapolate, state_at
from .plan import Rounding, round_to_marginals
from .problem import Problem, check, prepare
from .solution import Potentials
from .systems.gibbs_kernel import absorb, reduced_potentials
from .systems.system_choice import choose_backend

INNER_ERROR = 1e-3
"""Marginal error of the inner solves; rounding repairs what is left."""
INNER_STEPS = 12
"""Newton steps of each."""
PROXIMAL_STEPS = 6
"""Proximal steps without a smaller gap before the solve counts as stagnated."""


class ExactSolution(Potentials):
    """A feasible plan and feasible potentials of linear transport, and the certified gap between them.

    ``value = (f, g)`` satisfies ``f_i + g_j <= C_ij``; `plan` has the given marginals; ``error`` is their relative gap
    ``(transport_cost - dual_bound) / |dual_bound|``, so the optimum is known to that many digits.

    Attributes
    ----------
    cost, a, b, trusted : arrays
        See `Potentials`.
    epsilon : Float[Array, "*batch"]
        Weight of the entropy at which the proximal steps ended.
    reduced : pair of arrays
        Potentials of the plan that was rounded.
    newton_steps : Int[Array, "*batch"]
        Inner steps in all.
    """

    reduced: tuple[Float[Array, "*batch n"], Float[Array, "*batch m"]]
    newton_steps: Int[Array, "*batch"]

    @property
    def _shifted(self):
        return self.reduced, jnp.zeros_like(self.epsilon)

    def plan(self) -> Float[Array, "*batch n m"]:
        """Return the feasible plan; forms one array of the cost's shape."""
        return self._lanes(lambda plan, data: round_to_marginals(plan.dense(), *data[1:3]))

    def apply(self, x, *, transpose: bool = False) -> Float[Array, "..."]:
        """Return the feasible plan's product with one vector or, column by column, a matrix."""

        def product(plan, data, x):
            rounding = Rounding.of(plan, *data[1:3])
            if transpose:
                plan, rounding = plan.T, rounding.T
            one = lambda v: rounding.times(plan, v)  # noqa: E731
            return one(x) if x.ndim == 1 else jax.vmap(one, 1, 1)(x)

        return self._lanes(product, x)

    @property
    def transport_cost(self) -> Float[Array, "*batch"]:
        """``<C, P>`` of the feasible plan: an upper bound of the optimum.

        Its derivatives are the optimum's by the envelope theorem, to the accuracy of the gap: P in the cost, f and g in
        the weights (along changes that keep both masses equal).
        """
        upper = self._lanes(lambda plan, data: Rounding.of(plan, *data[1:3]).cost(plan, data[0]))
        smooth = self._optimum(_entropic_dual, self.reduced, (self.cost, self.a, self.b, self.epsilon))
        return lax.stop_gradient(upper - smooth) + smooth

    @property
    def dual_bound(self) -> Float[Array, "*batch"]:
        """``<a, f> + <b, g>``: a lower bound of the optimum; its derivatives in the weights are f and g."""
        return jnp.sum(self.a * self.f, -1) + jnp.sum(self.b * self.g, -1)

    @property
    def duality_gap(self) -> Float[Array, "*batch"]:
        """Upper minus lower bound, in units of the cost times mass."""
        return self.transport_cost - self.dual_bound


def _entropic_dual(reduced, data):
    (f, g), (cost, a, b, epsilon) = reduced, data
    plan = as_cost(cost).plan((f, g), a, b, epsilon, jnp.zeros_like(epsilon))
    return jnp.sum(a * f) + jnp.sum(b * g) - epsilon * plan.mass()


def transport_exactly(
    cost: Any,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    tol: Scalar | None = None,
    max_steps: Scalar = 30,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> ExactSolution:
    """Solve optimal transport without entropy, to a certified relative gap.

    ``min <C, P>`` over plans P with row sums `a` and column sums `b`.

    Returns a plan with exactly these marginals, potentials feasible for the dual, and the gap between the two. Use it
    on accelerators, for derivatives, for costs that are not stored, or for batches; on a CPU a network simplex
    (``ot.emd`` of POT) solves a single stored problem of a few thousand points faster, and to the last digit.

    Parameters
    ----------
    cost : Float[Array, "n m"], PointCloud or Grid
        Cost of moving a unit of mass from i to j. Differentiable.
    a, b : Float[Array, "n"], Float[Array, "m"], optional
        Weights, non-negative, of equal sum; uniform of sum one by default. Differentiable.
    tol : scalar, optional
        Target for `error`; 1e-6 in float64, 3e-3 in float32. Traced.
    max_steps : int
        Largest number of proximal steps. Traced.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the error of that many steps (``True``: 256). Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``.

    Returns
    -------
    ExactSolution
        ``value = (f, g)`` with ``f_i + g_j <= C_ij``; ``error = (<C, P> - <a, f> - <b, g>) / |<a, f> + <b, g>|`` with P
        the feasible plan, the denominator being at least 1e-6 (1e-3 in float32) of the cost's spread times mass.

    Raises
    ------
    ValueError, TypeError
        While tracing, if shapes do not fit or `cost` is not a real matrix.

    Notes
    -----
    *Method.* Proximal steps ``P <- argmin <C, P> + mu_k KL(P | last P)``, each solved by the Newton method of
    `sns_sinkhorn` from potentials extrapolated in the entropy's weight. The iterates are the entropic solutions of
    weight ``1 / sum_k (1 / mu_k)`` [1]_; mu_k is such that each weight is a quarter of the one before. Inner solves
    stop at a hundredth of the current gap. A plan is rounded to the marginals [2]_ and the potentials are improved to
    feasible ones by two c-transforms, so the error is a proof, whatever happened inside.

    *Stopping.* ``error <= tol``; `Status.STAGNATED` after six proximal steps without a smaller gap: below about 1e-9 of
    the cost's spread exponents lose their digits.

    *Cost.* Five to ten proximal steps of some five Newton steps each; memory as in `sns_sinkhorn`.

    *Derivatives.* Of `transport_cost`, first order, by the envelope theorem. The potentials are piecewise linear in the
    data and carry none.

    References
    ----------
    .. [1] Y. Xie, X. Wang, R. Wang, H. Zha, "A fast proximal point method for computing exact Wasserstein distance",
       UAI 2019. The steps inside are Newton's here, in the manner of D. Wu, L. Liang, H. Yang, arXiv 2502.03749.
    .. [2] J. Altschuler, J. Weed, P. Rigollet, "Near-linear time approximation algorithms for optimal transport via
       Sinkhorn iteration", NeurIPS 2017, algorithm 2.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import transport_exactly
    >>> sol = transport_exactly(jnp.array([[0.0, 3.0], [1.0, 1.0]]))
    >>> bool(sol.converged), float(sol.transport_cost.round(3))
    (True, 0.5)
    """
    name = "transport_exactly"
    data = check(name, cost, a, b, 1.0)
    dtype = data[1].dtype
    tol = checks.number(name, "tol", default_gap(dtype) if tol is None else tol, dtype=dtype)
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    return _solve(
        data[:3],
        unconverged == "approximate",
        Limits(tol, checks.count(name, "max_steps", max_steps), history, progress),
    )


def default_gap(dtype) -> float:
    """Relative gap asked for by default."""
    return 1e-6 if machine_eps(dtype) < 1e-10 else 3e-3


class Step(eqx.Module):
    """Where the proximal steps stand: the inner state, feasible potentials, bounds."""

    inner: State
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    upper: Float[Array, ""]
    lower: Float[Array, ""]
    newton_steps: Int[Array, ""]


@jax.jit
def _solve(data, approximate, limits: Limits) -> ExactSolution:
    tol = limits.tol
    cost, a, b = stored_if_small(data[0]), *data[1:]
    problem = prepare(*lax.stop_gradient((cost, a, b)), jnp.ones_like(tol), tol=tol)
    first = jnp.where(problem.spread > 0, problem.spread, 1) / (16 * START)
    solver = choose_backend("auto", problem)

    def at(epsilon) -> Problem:
        return eqx.tree_at(lambda p: p.epsilon, problem, epsilon)

    def certified(inner: State, newton_steps) -> Step:
        kernel = inner.kernel
        f, g = kernel.potentials
        plan = problem.cost.plan((f, g), problem.a, problem.b, kernel.epsilon, problem.shift)
        upper = Rounding.of(plan, problem.a, problem.b).cost(plan, problem.cost)  # (4)
        g = problem.cost.T.least(f, problem.rows)  # (3)
        f = problem.cost.least(g, problem.columns)  # (3)
        rows, columns = jnp.where(problem.rows, problem.a * f, 0), jnp.where(problem.columns, problem.b * g, 0)
        lower = jnp.sum(rows) + jnp.sum(columns)  # (4)
        return Step(inner, f, g, upper, lower, newton_steps)

    def error(step: Step):
        scale = jnp.maximum(jnp.abs(step.lower), least * problem.spread)
        gap = step.upper - step.lower
        return jnp.where(scale > 0, jnp.maximum(gap, 0) / jnp.where(scale > 0, scale, 1), 0)

    def proximal(step: Step) -> Step:
        epsilon = step.inner.kernel.epsilon * DECAY  # (2)
        here = at(epsilon)
        (f, g), before = extrapolate(step.inner, epsilon)
        inner = state_at(here, absorb(here, step.inner.kernel, f, g, epsilon=epsilon), solver, before)
        goal = jnp.maximum(jnp.minimum(INNER_ERROR, 0.01 * error(step)), 0.03 * tol)
        run = ascend(here, inner, solver, Limits(goal, jnp.asarray(INNER_STEPS)))  # (1)
        return certified(run.state, step.newton_steps + run.num_steps)

    least = 1e-6 if machine_eps(tol.dtype) < 1e-10 else 1e-3
    far = jnp.asarray(50, jnp.int32)
    goal = jnp.asarray(INNER_ERROR, tol.dtype)
    start = at(first)
    easy = Limits(goal, far)
    flat, none = reduced_potentials(start, None)
    state, earlier = begin(start, (flat, none), True, True, solver, easy)
    run = ascend(start, state, solver, easy, after=earlier)
    outer = iterate(
        proximal,
        certified(run.state, run.num_steps),
        limits,
        value=lambda s: (s.f, s.g, s.inner.kernel.potentials, s.inner.kernel.epsilon),
        error=error,
        refused=lambda _: problem.status,
        stall=PROXIMAL_STEPS,
    )
    f, g, reduced, epsilon = outer.value
    if problem.transposed:
        f, g, reduced = g, f, reduced[::-1]
    lifted = epsilon * jnp.log(jnp.where(problem.mass > 0, problem.mass, 1)) + problem.shift
    reduced = (reduced[0] + lifted, reduced[1])
    trusted = (outer.status == Status.CONVERGED) | approximate
    return ExactSolution(
        (f, g), outer.status, outer.num_steps, outer.error, tol, outer.history, cost, a, b, epsilon, trusted, reduced,
        outer.state.newton_steps,
    )  # fmt: skip
