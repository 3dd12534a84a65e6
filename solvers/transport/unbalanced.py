"""Unbalanced transport: marginals are priced instead of prescribed.

The scaling algorithm of Chizat, Peyre, Schmitzer and Vialard (Math. Comp. 87, 2018, algorithm 1 with the proximal maps
of KL) in the log domain, and Newton's method on the semi-dual phi; r, c are the sums of P:

(1) ``P = diag(a) exp((f + g - C) / epsilon) diag(b)``
(2) ``g = -epsilon logsumexp_i(log a_i + (f_i - C_ij) / epsilon) / (1 + epsilon / rho_b)``
(3) ``f`` likewise with rho_a
(4) ``phi(f) = rho_a <a, 1 - exp(-f / rho_a)> + rho_b <b, 1 - exp(-g / rho_b)> - epsilon sum P``, g from (2)
(5) ``phi' = a exp(-f / rho_a) - r``
(6) ``(D_r + (epsilon / rho_a) diag(a exp(-f / rho_a)) - P D_c^-1 P' / (1 + epsilon / rho_b)) d / epsilon = phi'``
"""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.implicit import UNCONVERGED, attach, distrust
from ..core.krylov.cg import cg
from ..core.loop import Run, iterate
from ..core.precision import eps as machine_eps
from ..core.precision import tiny
from ..core.search import backtrack
from ..core.solution import Status
from ..core.typing import Array, Float, Int, Progress, Scalar
from .costs.cost import Cost, as_cost
from .costs.pointcloud import stored_if_small
from .entropic.derivatives import NEAR, schur_solver, solve_marginals
from .entropic.newton_step import DECAY
from .problem import Goal, TransportStatus, check, check_potentials, default_tol, first_fault, rounding_floor
from .solution import Potentials

PRICED_STEPS = 40
"""Steps without a smaller error before the solve counts as stagnated."""
PRICED_STAGE_ERROR = 0.05
"""Epsilon is multiplied by `DECAY` once the error is this small ..."""
PRICED_STAGE_STEPS = 8
"""... or after this many steps."""
HOTTEST = 20
"""Annealing begins at the largest cost divided by this."""
TRIALS = 12
"""How often a step is halved at most."""
CG_STEPS = 200
"""Conjugate-gradient steps of a Newton direction at most."""


class UnbalancedSolution(Potentials):
    """Potentials of unbalanced transport, and what follows from them.

    ``P = a b' exp((f + g - C) / epsilon)`` with row sums ``a exp(-f / rho_a)`` and column sums ``b exp(-g / rho_b)`` at
    the optimum; ``error`` is how far from that the sums are, in the 1-norm over the mean of the masses of a and b.

    Attributes
    ----------
    cost, a, b, epsilon, trusted : arrays
        See `Potentials`.
    rho : pair of arrays
        Prices of the marginals; infinite where a marginal is prescribed.
    """

    rho: tuple[Float[Array, "*batch"], Float[Array, "*batch"]]

    def apply(self, x, *, transpose: bool = False) -> Float[Array, "..."]:
        """Return the plan's product with one vector or, column by column, a matrix; nothing n x m is formed."""

        def product(plan, _, x):
            plan = plan.T if transpose else plan
            return plan.times(x) if x.ndim == 1 else jax.vmap(plan.times, 1, 1)(x)

        return self._lanes(product, x)

    @property
    def marginals(self) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch m"]]:
        """Row and column sums of the plan."""
        return self._lanes(lambda plan, _: plan.sums())

    @property
    def mass(self) -> Float[Array, "*batch"]:
        """How much is transported."""
        return jnp.sum(self.marginals[0], -1)

    @property
    def transport_cost(self) -> Float[Array, "*batch"]:
        """``<C, P>``."""
        return self._lanes(lambda plan, data: plan.costs(data[0]))

    @property
    def regularized_cost(self) -> Float[Array, "*batch"]:
        """The optimal value, evaluated as the dual; first derivatives by the envelope theorem."""
        return self._optimum(_dual, self.value, (self.cost, self.a, self.b, self.epsilon, self.rho))

    @property
    def _shifted(self):
        epsilon = self.epsilon[..., None]
        potentials = self.f + epsilon * _log(self.a), self.g + epsilon * _log(self.b)
        return potentials, jnp.zeros_like(self.epsilon)


def _log(weights):
    return jnp.log(jnp.where(weights > 0, weights, 1))


def _plan(value, cost, a, b, epsilon):
    f, g = value
    potentials = f + epsilon * _log(a), g + epsilon * _log(b)
    return as_cost(cost).plan(potentials, a, b, epsilon, jnp.zeros_like(epsilon))


def _priced(weights, f, rho):
    """``rho <a, 1 - exp(-f / rho)>``, which is ``<a, f>`` where rho is infinite."""
    finite = jnp.where(jnp.isfinite(rho), rho, 1)
    price = jnp.where(jnp.isfinite(rho), -finite * jnp.expm1(-f / finite), f)
    return jnp.sum(jnp.where(weights > 0, weights * price, 0))


def _dual(value, data):
    (f, g), (cost, a, b, epsilon, (rho_a, rho_b)) = value, data
    mass = _plan(value, cost, a, b, epsilon).mass()
    return _priced(a, f, rho_a) + _priced(b, g, rho_b) - epsilon * (mass - jnp.sum(a) * jnp.sum(b))


class State(eqx.Module):
    """Row potential, the column potential that is best for it, the row sums of their plan, and where annealing is."""

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    r: Float[Array, " n"]
    epsilon: Float[Array, ""]
    error: Float[Array, ""]
    stage_steps: Int[Array, ""]


class Unbalanced(eqx.Module):
    """The semi-dual of the rows: ``phi(f) = max over g of the dual``, concave; its gradient and curvature."""

    cost: Cost
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: Float[Array, ""]
    rho_a: Float[Array, ""]
    rho_b: Float[Array, ""]

    def columns(self, f, epsilon):
        """Return the best g for f: a damped soft c-transform."""
        sums = self.cost.column_logsumexp(f + epsilon * _log(self.a), self.a > 0, epsilon, jnp.zeros_like(epsilon))
        return -epsilon * sums / (1 + epsilon / self.rho_b)  # (2)

    def rows(self, g, epsilon):
        """Return ``-epsilon logsumexp_j(log b + (g - C) / epsilon)``, undamped."""
        zero = jnp.zeros_like(epsilon)
        return -epsilon * self.cost.logsumexp(g + epsilon * _log(self.b), self.b > 0, epsilon, zero)

    def at(self, f, epsilon, stage_steps) -> State:
        """Return the state at f."""
        g = self.columns(f, epsilon)
        r = self.a * jnp.exp((f - self.rows(g, epsilon)) / epsilon)  # (1): its row sums
        wanted = self.a * jnp.exp(-f / self.rho_a)
        error = 2 * jnp.sum(jnp.abs(wanted - r)) / (jnp.sum(self.a) + jnp.sum(self.b))
        return State(f, g, r, epsilon, error, jnp.asarray(stage_steps, jnp.int32))

    def height(self, f, epsilon):
        """Return phi, up to a constant; the mass of the plan is that of its columns, which fit g."""
        g = self.columns(f, epsilon)
        mass = jnp.sum(self.b * jnp.exp(-g / self.rho_b))
        return _priced(self.a, f, self.rho_a) + _priced(self.b, g, self.rho_b) - epsilon * mass  # (4)

    def newton(self, state: State, steps: int):
        """Return the Newton direction of phi, by conjugate gradients with the exact diagonal."""
        epsilon, live = state.epsilon, self.a > 0
        shift = jnp.zeros_like(epsilon)
        f, g = state.f + epsilon * _log(self.a), state.g + epsilon * _log(self.b)
        plan = self.cost.kernel(f, g, live, self.b > 0, epsilon, shift)
        wanted = self.a * jnp.exp(-state.f / self.rho_a)
        c = self.b * jnp.exp(-state.g / self.rho_b)
        # (6): c, here b exp(-g / rho_b) by (2), and the two diagonals
        weight = jnp.where(c > 0, 1 / jnp.where(c > 0, c, 1), 0) / (1 + epsilon / self.rho_b)
        diagonal = jnp.where(live, state.r + wanted * (epsilon / self.rho_a), 1)
        exact = jnp.maximum(diagonal - plan.squares_times(weight), 1e-3 * diagonal)
        rhs = jnp.where(live, wanted - state.r, 0)  # (5)
        size = jnp.sum(jnp.abs(rhs))
        direction = cg(
            lambda x: diagonal * x - plan.times(weight * plan.transposed_times(x)),  # (6)
            rhs,
            tol=size * jnp.maximum(0.1 * jnp.minimum(0.5, jnp.sqrt(state.error)), 10 * machine_eps(rhs.dtype)),
            max_steps=steps,
            precondition=lambda x: x / exact,
            norm=lambda x: jnp.sum(jnp.abs(x)),
        ).x
        return epsilon * direction, jnp.sum(rhs * direction) * epsilon

    def step(self, state: State, newton_steps: int) -> State:
        """Newton with a line search if asked for, then the rows' own damped transform; lower epsilon if due."""
        f, epsilon = state.f, state.epsilon
        if newton_steps:
            d, slope = self.newton(state, newton_steps)
            longest = jnp.max(jnp.abs(d))
            t = jnp.minimum(1, 20 * epsilon / jnp.where(longest > 0, longest, 1))
            now = self.height(f, epsilon)
            slack = 10 * machine_eps(f.dtype) * jnp.abs(now)

            found = backtrack(
                lambda t: self.height(f + t * d, epsilon),
                lambda t, height: height >= now + 1e-4 * t * slope - slack,
                start=t,
                most=TRIALS,
            )
            f = jnp.where(found.accepted, f + found.length * d, f)
        # (3), (2): the two half steps of the scaling algorithm
        f = self.rows(self.columns(f, epsilon), epsilon) / (1 + epsilon / self.rho_a)
        moved = self.at(f, epsilon, state.stage_steps + 1)
        advance = (epsilon > self.epsilon) & (
            (moved.error < PRICED_STAGE_ERROR) | (moved.stage_steps >= PRICED_STAGE_STEPS)
        )
        lower = jnp.maximum(epsilon * DECAY, self.epsilon)
        return lax.cond(advance, lambda: self.at(f, lower, 0), lambda: moved)


def unbalanced_sinkhorn(
    cost: Float[Array, "n m"] | Cost,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: Scalar,
    rho: Scalar | tuple[Scalar | None, Scalar | None],
    method: str = "newton",
    tol: Scalar | None = None,
    max_steps: Scalar = 200,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    anneal: bool = True,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> UnbalancedSolution:
    """Solve unbalanced entropic transport: marginals are priced instead of prescribed.

    ``min <C, P> + epsilon KL(P | a b') + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b)`` over P >= 0, with
    ``KL(p | q) = sum p log(p / q) - p + q``.

    For measures of different mass, or where some mass is noise that should rather vanish than travel further than
    about rho. With prescribed marginals use `sns_sinkhorn`.

    Parameters
    ----------
    cost : Float[Array, "n m"], PointCloud or Grid
        Cost of moving a unit of mass from i to j. Differentiable.
    a, b : Float[Array, "n"], Float[Array, "m"], optional
        Weights, non-negative; uniform of sum one by default. Masses may differ; zeros are allowed. Differentiable.
    epsilon : scalar
        Regularisation, in the units of `cost`; positive. Traced, differentiable.
    rho : scalar or pair of scalars
        Prices ``(rho_a, rho_b)`` of changing the marginals, in the units of `cost`, positive; ``None`` for one of them
        prescribes that marginal. Traced, differentiable.
    method : {"newton", "scaling"}
        Newton's method on the semi-dual, each step followed by the damped transform; or the transforms alone, the
        baseline, best for `epsilon` above a tenth of the mean cost. Static.
    tol : scalar, optional
        Target for `error`; 1e-9 in float64, 1e-5 in float32, more where those round potentials further. Traced.
    max_steps : int
        Largest number of steps, those of the annealing included; scaling wants thousands. Traced.
    init : pair of arrays, optional
        Potentials ``(f, g)`` to start from, for instance of a similar problem; their derivative is zero.
    anneal : bool
        Approach `epsilon` from above; no effect with `init`, which is where annealing would lead, and an error with
        "scaling" if set to anything but its default. Static.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the error of that many steps (``True``: 256), at each step's own epsilon. Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``.

    Returns
    -------
    UnbalancedSolution
        ``value = (f, g)`` with shapes ``(n,), (m,)``; ``error = (|P 1 - a exp(-f / rho_a)|_1 + |P' 1 - b exp(-g /
        rho_b)|_1) 2 / (sum(a) + sum(b))`` of the potentials as they are returned; plan, mass and costs follow.

    Raises
    ------
    ValueError, TypeError
        While tracing: if shapes do not fit, both prices are None, or a number that must be positive is not.

    Notes
    -----
    *Method.* The semi-dual ``phi(f) = max over g of the dual`` is concave; its gradient is ``a exp(-f / rho_a) - P 1``
    and its Hessian ``-(D_r + (epsilon / rho_a) D - P D_c^-1 P' / (1 + epsilon / rho_b)) / epsilon`` with D the row sums
    asked for. Newton steps by conjugate gradients preconditioned by the exact diagonal, backtracked on phi, then the
    transform ``f <- T g / (1 + epsilon / rho_a)`` [1]_, which alone never decreases phi; epsilon divided by four once
    the error is below 0.05.

    *Stopping.* ``error <= tol``; `Status.STAGNATED` after 40 steps without a smaller error, which is how float32 ends
    when `tol` is below what potentials of this size can say, about ``eps max|f| / epsilon``. Bad values are reported by
    status, without a step.

    *Derivatives.* To second order, forward and reverse, with respect to `cost`, `a`, `b`, `epsilon` and `rho`, by the
    implicit function theorem; `regularized_cost` needs no linear solve for the first order.

    References
    ----------
    .. [1] L. Chizat, G. Peyré, B. Schmitzer, F.-X. Vialard, "Scaling algorithms for unbalanced optimal transport
       problems", Math. Comp. 87 (2018), algorithm 1 with the proximal operators of section 5.
    .. [2] T. Séjourné, J. Feydy, F.-X. Vialard, A. Trouvé, G. Peyré, "Sinkhorn divergences for unbalanced optimal
       transport", arXiv 1910.12958, for the dual.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import unbalanced_sinkhorn
    >>> x = jnp.linspace(0, 1, 5)
    >>> sol = unbalanced_sinkhorn((x[:, None] - x) ** 2, 2 * jnp.ones(5), jnp.ones(5), epsilon=0.1, rho=1.0)
    >>> bool(sol.converged), bool(5 < sol.mass < 10)
    (True, True)
    """
    name = "unbalanced_sinkhorn"
    data = check(name, cost, a, b, epsilon)
    dtype = data[1].dtype
    checks.choice(name, "method", method, ("newton", "scaling"))
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    if method == "scaling" and not anneal:
        checks.fail(name, "anneal", 'left out where `method` is "scaling", which never anneals', anneal)
    pair = rho if isinstance(rho, tuple | list) else (rho, rho)
    if len(pair) != 2 or all(r is None for r in pair):
        checks.fail(name, "rho", "a price or a pair of prices, at most one of them None", rho)
    prices = tuple(checks.number(name, "rho", jnp.inf if r is None else r, positive=True, dtype=dtype) for r in pair)
    goal = Goal.of(name, tol, default_tol(dtype), max_steps, history, progress)
    init = check_potentials(name, init, data)
    return _solve((*data, prices), init, goal, method, bool(anneal), unconverged)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _solve(data, init, goal: Goal, method: str, anneal: bool, unconverged: str) -> UnbalancedSolution:
    data = (stored_if_small(data[0]), *data[1:])
    problem, code = _prepare(*lax.stop_gradient(data))
    epsilon = problem.epsilon
    newton_steps = CG_STEPS if method == "newton" else 0
    highest = jnp.max(jnp.where(problem.a > 0, problem.cost.most(problem.b > 0), -jnp.inf))
    highest = jnp.where(jnp.isfinite(highest), highest, 0)
    limits = goal.within(jnp.abs(highest), epsilon)
    top = jnp.maximum(epsilon, highest / HOTTEST)
    top = top if anneal and newton_steps and init is None else epsilon
    f = jnp.zeros_like(problem.a) if init is None else lax.stop_gradient(init[0])
    cold = problem.at(f, epsilon, 0)
    top = jnp.where((limits.max_steps > 0) & (cold.error > goal.tol), top, epsilon)
    start = lax.cond(top > epsilon, lambda: problem.at(f, top, 0), lambda: cold)
    run: Run = iterate(
        lambda s: problem.step(s, newton_steps),
        start,
        limits,
        value=lambda s: (s.f, s.g),
        error=lambda s: s.error,
        refused=lambda _: code,
        answers=lambda s: s.epsilon <= epsilon,
        stall=PRICED_STEPS,
    )
    return _finish(run, goal, data, unconverged)


def _prepare(cost, a, b, epsilon, rho) -> tuple[Unbalanced, Int[Array, ""]]:
    """Return the problem, and what is wrong with its data."""
    cost, (rho_a, rho_b) = as_cost(cost), rho
    lows = cost.least(columns=b > 0)
    broken = ~jnp.isfinite(jnp.sum(a) + jnp.sum(b) + epsilon) | jnp.any(jnp.isnan(lows) | (lows == -jnp.inf))
    broken |= jnp.isnan(rho_a + rho_b)
    code = first_fault(
        ((jnp.sum(a) <= 0) | (jnp.sum(b) <= 0), TransportStatus.ZERO_MASS),
        (jnp.any(a < 0) | jnp.any(b < 0), TransportStatus.NEGATIVE_WEIGHTS),
        ((epsilon <= 0) | (rho_a <= 0) | (rho_b <= 0), TransportStatus.NOT_POSITIVE_EPSILON),
        (broken, Status.NONFINITE),
    )
    return Unbalanced(cost, a, b, epsilon, rho_a, rho_b), code


def _finish(run: Run, goal: Goal, data, unconverged: str) -> UnbalancedSolution:
    given, a, b, epsilon, (rho_a, rho_b) = data
    cost = as_cost(given)
    solve = _derivative_solver(run.value, data)
    f, g = attach(_residual, run.value, (cost, *data[1:]), solve=solve)
    f = _extend(f, g, cost, a, b, epsilon, rho_a)
    g = _extend(g, f, cost.T, b, a, epsilon, rho_b)
    value, status, error, tol = _judged((f, g), (cost, *data[1:]), run, goal)
    trusted = (status == Status.CONVERGED) | (unconverged == "approximate")
    value, rho = distrust(value, trusted), (rho_a, rho_b)
    return UnbalancedSolution(value, status, run.num_steps, error, tol, run.history, given, a, b, epsilon, trusted, rho)


def _judged(potentials, data, run: Run, goal: Goal):
    """Return the potentials, their columns' last rounding mended, the status, the error, and its tolerance.

    As `judged` of balanced transport: what the loop's error leaves out is the rounding of what is returned.
    """
    f, g = potentials
    (f_now, g_now), (cost, a, b, epsilon, (rho_a, rho_b)) = lax.stop_gradient((potentials, data))
    kernel = cost.plan((f_now, g_now), a, b, epsilon, jnp.zeros_like(epsilon))  # that of (1), without its weights
    c = b * kernel.transposed_times(a)
    ratio = jnp.where(b > 0, b / jnp.maximum(c, tiny(c.dtype)), 1)
    change = (jnp.log(ratio) - g_now / rho_b) / (1 + epsilon / rho_b)  # (2), from here
    step = epsilon * jnp.where(jnp.abs(change) < NEAR, change, 0)
    moved = g_now + step
    factor = jnp.exp((moved - g_now) / epsilon)
    lacking = jnp.sum(jnp.abs(a * (kernel.times(b * factor) - jnp.exp(-f_now / rho_a))))
    lacking += jnp.sum(jnp.abs(factor * c - b * jnp.exp(-moved / rho_b)))
    mass = (jnp.sum(a) + jnp.sum(b)) / 2
    error = lacking / mass
    status, tol = goal.judge(run.status, error, rounding_floor((a, b), (f_now, g_now), epsilon) / mass)
    return (f, g + step), status, error, tol


def _extend(f, g, cost, a, b, epsilon, rho):
    """Give rows without mass the damped soft c-transform of g."""
    zero = jnp.zeros_like(epsilon)

    def transform():
        return cost.transform(g + epsilon * _log(b), b, epsilon, zero) / (1 + epsilon / rho)

    return lax.cond(jnp.any(a <= 0), lambda: jnp.where(a > 0, f, transform()), lambda: f)


def _residual(value, data):
    """How far both marginals are from what the potentials ask for; points without mass keep their potentials."""
    (f, g), (cost, a, b, epsilon, (rho_a, rho_b)) = value, data
    r, c = _plan(value, cost, a, b, epsilon).sums()
    dead = jnp.where(a > 0, 0, f - lax.stop_gradient(f)), jnp.where(b > 0, 0, g - lax.stop_gradient(g))
    return a * jnp.exp(-f / rho_a) - r - dead[0], b * jnp.exp(-g / rho_b) - c - dead[1]


def _derivative_solver(value, data):
    (f, g), (cost, a, b, epsilon, (rho_a, rho_b)) = lax.stop_gradient((value, data))
    rows, columns = a > 0, b > 0

    def solve(jacobian, rhs):
        plan = _plan((f, g), cost, a, b, epsilon)
        r, c = plan.sums()
        r = jnp.where(rows, r + epsilon / rho_a * a * jnp.exp(-f / rho_a), 1)
        c = jnp.where(columns, c + epsilon / rho_b * b * jnp.exp(-g / rho_b), 1)
        return solve_marginals(jacobian, rhs, epsilon, schur_solver(plan, (r, c), rows, columns, singular=False))

    return solve
