"""Unbalanced transport: marginals are priced instead of prescribed."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.implicit import attach, envelope, linear_solve
from ..core.krylov.cg import cg
from ..core.loop import Limits, Run, history_length, iterate
from ..core.precision import eps as machine_eps
from ..core.solution import Solution, Status, StatusCode
from ..core.typing import Array, Float, Int
from .costs.cost import Cost, as_cost
from .costs.pointcloud import stored_if_small
from .entropic.scaling import check_potentials
from .plan import kernel_of, linear_cost, marginals, row_transform, streamed_cost
from .problem import TransportStatus

PATIENCE = 40
"""Steps without a smaller error before the solve counts as stagnated."""
STAGE_ERROR = 0.05
"""Epsilon is divided by `DECAY` once the error is this small ..."""
STAGE_STEPS = 8
"""... or after this many steps."""
DECAY = 4
START = 20
"""Annealing begins at the largest cost divided by this."""
TRIALS = 12
"""Step lengths tried, halving."""


class UnbalancedSolution(Solution):
    """Potentials of unbalanced transport, and what follows from them.

    ``P = a b' exp((f + g - C) / epsilon)`` with row sums ``a exp(-f / rho_a)`` and column sums ``b exp(-g / rho_b)`` at
    the optimum; ``error`` is how far from that the sums are, in the 1-norm over the mean of the masses of a and b.

    Attributes
    ----------
    cost, a, b, epsilon : arrays
        The problem.
    rho : pair of arrays
        Prices of the marginals; infinite where a marginal is prescribed.
    """

    cost: Any
    a: Float[Array, "*batch n"]
    b: Float[Array, "*batch m"]
    epsilon: Float[Array, "*batch"]
    rho: tuple[Float[Array, "*batch"], Float[Array, "*batch"]]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, TransportStatus)

    @property
    def f(self) -> Float[Array, "*batch n"]:
        """Potential of the rows."""
        return self.value[0]

    @property
    def g(self) -> Float[Array, "*batch m"]:
        """Potential of the columns."""
        return self.value[1]

    def plan(self) -> Float[Array, "*batch n m"]:
        """Return the plan; forms one array of the cost's shape."""
        return self._lanes(lambda plan: plan.dense())

    def apply(self, x, *, transpose: bool = False) -> Float[Array, "..."]:
        """Return the plan's product with one vector or, column by column, a matrix; nothing n x m is formed."""

        def product(plan, x):
            plan = plan.T if transpose else plan
            return plan.times(x) if x.ndim == 1 else jax.vmap(plan.times, 1, 1)(x)

        return self._lanes(product, x)

    @property
    def marginals(self) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch m"]]:
        """Row and column sums of the plan."""
        return self._lanes(marginals)

    @property
    def mass(self) -> Float[Array, "*batch"]:
        """How much is transported."""
        return jnp.sum(self.marginals[0], -1)

    @property
    def transport_cost(self) -> Float[Array, "*batch"]:
        """``<C, P>``."""
        if isinstance(self.cost, Cost):
            return self._lanes(streamed_cost)
        return linear_cost(self.cost, self.plan())

    @property
    def regularized_cost(self) -> Float[Array, "*batch"]:
        """The optimal value, evaluated as the dual; first derivatives by the envelope theorem."""
        return self._vmapped(lambda *x: envelope(_dual, x[0], x[1:]))(self.value, *self._data)

    @property
    def _data(self):
        return self.cost, self.a, self.b, self.epsilon, self.rho

    def _lanes(self, function, *more):
        one = lambda value, cost, a, b, epsilon, *more: function(_plan(value, cost, a, b, epsilon), *more)  # noqa: E731
        return self._vmapped(one)(self.value, *self._data[:4], *more)


def _log(weights):
    return jnp.log(jnp.where(weights > 0, weights, 1))


def _plan(value, cost, a, b, epsilon):
    f, g = value
    zero = jnp.zeros_like(epsilon)
    return kernel_of((f + epsilon * _log(a), g + epsilon * _log(b)), as_cost(cost), a, b, epsilon, zero)


def _priced(weights, f, rho):
    """``rho <a, 1 - exp(-f / rho)>``, which is ``<a, f>`` where rho is infinite."""
    finite = jnp.where(jnp.isfinite(rho), rho, 1)
    price = jnp.where(jnp.isfinite(rho), -finite * jnp.expm1(-f / finite), f)
    return jnp.sum(jnp.where(weights > 0, weights * price, 0))


def _dual(value, data):
    (f, g), (cost, a, b, epsilon, (rho_a, rho_b)) = value, data
    mass = jnp.sum(marginals(_plan(value, cost, a, b, epsilon))[0])
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
        return -epsilon * sums / (1 + epsilon / self.rho_b)

    def rows(self, g, epsilon):
        """Return ``-epsilon logsumexp_j(log b + (g - C) / epsilon)``, undamped."""
        zero = jnp.zeros_like(epsilon)
        return -epsilon * self.cost.logsumexp(g + epsilon * _log(self.b), self.b > 0, epsilon, zero)

    def at(self, f, epsilon, stage_steps) -> State:
        """Return the state at f."""
        g = self.columns(f, epsilon)
        r = self.a * jnp.exp((f - self.rows(g, epsilon)) / epsilon)
        wanted = self.a * jnp.exp(-f / self.rho_a)
        error = 2 * jnp.sum(jnp.abs(wanted - r)) / (jnp.sum(self.a) + jnp.sum(self.b))
        return State(f, g, r, epsilon, error, jnp.asarray(stage_steps, jnp.int32))

    def height(self, f, epsilon):
        """Return phi, up to a constant; the mass of the plan is that of its columns, which fit g."""
        g = self.columns(f, epsilon)
        mass = jnp.sum(self.b * jnp.exp(-g / self.rho_b))
        return _priced(self.a, f, self.rho_a) + _priced(self.b, g, self.rho_b) - epsilon * mass

    def newton(self, state: State, steps: int):
        """Return the Newton direction of phi, by conjugate gradients with the exact diagonal."""
        epsilon, live = state.epsilon, self.a > 0
        shift = jnp.zeros_like(epsilon)
        f, g = state.f + epsilon * _log(self.a), state.g + epsilon * _log(self.b)
        plan = self.cost.kernel(f, g, live, self.b > 0, epsilon, shift)
        wanted = self.a * jnp.exp(-state.f / self.rho_a)
        c = self.b * jnp.exp(-state.g / self.rho_b)
        weight = jnp.where(c > 0, 1 / jnp.where(c > 0, c, 1), 0) / (1 + epsilon / self.rho_b)
        diagonal = jnp.where(live, state.r + wanted * (epsilon / self.rho_a), 1)
        exact = jnp.maximum(diagonal - plan.squares_times(weight), 1e-3 * diagonal)
        rhs = jnp.where(live, wanted - state.r, 0)
        size = jnp.sum(jnp.abs(rhs))
        direction = cg(
            lambda x: diagonal * x - plan.times(weight * plan.transposed_times(x)),
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

            def good(t):
                return self.height(f + t * d, epsilon) >= now + 1e-4 * t * slope - slack

            def halve(carry):
                t, _, trials = carry
                return t / 2, good(t / 2), trials + 1

            t, fine, _ = lax.while_loop(
                lambda c: ~c[1] & (c[2] < TRIALS),
                halve,
                (t, good(t), jnp.zeros((), jnp.int32)),
            )
            f = jnp.where(fine, f + t * d, f)
        f = self.rows(self.columns(f, epsilon), epsilon) / (1 + epsilon / self.rho_a)
        moved = self.at(f, epsilon, state.stage_steps + 1)
        advance = (epsilon > self.epsilon) & ((moved.error < STAGE_ERROR) | (moved.stage_steps >= STAGE_STEPS))
        lower = jnp.maximum(epsilon / DECAY, self.epsilon)
        return lax.cond(advance, lambda: self.at(f, lower, 0), lambda: moved)


def solve_unbalanced(
    name: str, data, rho, init, *, newton_steps: int, anneal: bool, tol, max_steps, history, progress
) -> UnbalancedSolution:
    """Check the prices and solve; `data` are checked cost, weights and epsilon."""
    pair = rho if isinstance(rho, tuple | list) else (rho, rho)
    if len(pair) != 2 or all(r is None for r in pair):
        checks.fail(name, "unbalanced", "a price or a pair of prices, at most one of them None", rho)
    dtype = data[1].dtype
    prices = tuple(
        checks.number(name, "unbalanced", jnp.inf if r is None else r, positive=True, dtype=dtype) for r in pair
    )
    init = check_potentials(name, init, data)
    length = history_length(history)
    return _solve((*data, prices), init, tol, max_steps, newton_steps, anneal, length, progress)


def _solve_unjitted(data, init, tol, max_steps, newton_steps, anneal, history, progress) -> UnbalancedSolution:
    data = (stored_if_small(data[0]), *data[1:])
    cost, a, b, epsilon, (rho_a, rho_b) = lax.stop_gradient(data)
    cost = as_cost(cost)
    lows, highs = cost.least(columns=b > 0), cost.most(b > 0)
    highest = jnp.max(jnp.where(a > 0, highs, -jnp.inf))
    broken = ~jnp.isfinite(jnp.sum(a) + jnp.sum(b) + epsilon) | jnp.any(jnp.isnan(lows) | (lows == -jnp.inf))
    broken |= jnp.isnan(rho_a + rho_b)
    code = jnp.asarray(Status.RUNNING, jnp.int32)
    for condition, status in (
        ((jnp.sum(a) <= 0) | (jnp.sum(b) <= 0), TransportStatus.ZERO_MASS),
        (jnp.any(a < 0) | jnp.any(b < 0), TransportStatus.NEGATIVE_WEIGHTS),
        ((epsilon <= 0) | (rho_a <= 0) | (rho_b <= 0), TransportStatus.NOT_POSITIVE_EPSILON),
        (broken, Status.NONFINITE),
    ):
        code = jnp.where(condition, int(status), code)
    code = code.astype(jnp.int32)
    problem = Unbalanced(cost, a, b, epsilon, rho_a, rho_b)
    top = jnp.maximum(epsilon, jnp.where(jnp.isfinite(highest), highest, 0) / START)
    top = top if anneal and init is None else epsilon
    f = jnp.zeros_like(a) if init is None else lax.stop_gradient(init[0])
    cold = problem.at(f, epsilon, 0)
    top = jnp.where((max_steps > 0) & (cold.error > tol), top, epsilon)
    start = lax.cond(top > epsilon, lambda: problem.at(f, top, 0), lambda: cold)
    run: Run = iterate(
        lambda s: problem.step(s, newton_steps),
        start,
        Limits(tol, max_steps, history, progress),
        value=lambda s: (s.f, s.g),
        error=lambda s: s.error,
        refused=lambda _: code,
        answers=lambda s: s.epsilon <= epsilon,
        stall=PATIENCE,
    )
    return _finish(run, tol, data)


_solve = jax.jit(_solve_unjitted, static_argnums=(4, 5, 6, 7))


def _finish(run: Run, tol, data) -> UnbalancedSolution:
    cost, a, b, epsilon, (rho_a, rho_b) = data
    cost = as_cost(cost)
    f, g = attach(_residual, run.value, (cost, *data[1:]), solve=_derivative_solver(run.value, data))
    f = _extend(f, g, cost, a, b, epsilon, rho_a)
    value = f, _extend(g, f, cost.T, b, a, epsilon, rho_b)
    status, steps, error = lax.stop_gradient((run.status, run.num_steps, run.error))
    return UnbalancedSolution(value, status, steps, error, jnp.asarray(tol, error.dtype), run.history, *data)


def _extend(f, g, cost, a, b, epsilon, rho):
    """Give rows without mass the damped soft c-transform of g."""
    zero = jnp.zeros_like(epsilon)

    def transform():
        return row_transform(g + epsilon * _log(b), cost, b, epsilon, zero) / (1 + epsilon / rho)

    return lax.cond(jnp.any(a <= 0), lambda: jnp.where(a > 0, f, transform()), lambda: f)


def _residual(value, data):
    """How far both marginals are from what the potentials ask for; points without mass keep their potentials."""
    (f, g), (cost, a, b, epsilon, (rho_a, rho_b)) = value, data
    r, c = marginals(_plan(value, cost, a, b, epsilon))
    dead = jnp.where(a > 0, 0, f - lax.stop_gradient(f)), jnp.where(b > 0, 0, g - lax.stop_gradient(g))
    return a * jnp.exp(-f / rho_a) - r - dead[0], b * jnp.exp(-g / rho_b) - c - dead[1]


def _derivative_solver(value, data):
    (f, g), (cost, a, b, epsilon, (rho_a, rho_b)) = lax.stop_gradient((value, data))
    rows, columns = a > 0, b > 0

    def solve(jacobian, rhs):
        plan = _plan((f, g), cost, a, b, epsilon)
        r, c = marginals(plan)
        r = jnp.where(rows, r + epsilon / rho_a * a * jnp.exp(-f / rho_a), 1)
        c = jnp.where(columns, c + epsilon / rho_b * b * jnp.exp(-g / rho_b), 1)
        exact = jnp.maximum(r - plan.squares_times(1 / c), 1e-3 * r)

        def once(rho, sigma):
            top = jnp.where(rows, rho - plan.times(sigma / c), 0)
            x = cg(
                lambda x: r * x - plan.times(plan.transposed_times(x) / c),
                top,
                tol=10 * machine_eps(r.dtype) * jnp.sum(jnp.abs(top)),
                max_steps=5000,
                precondition=lambda x: x / exact,
                norm=lambda x: jnp.sum(jnp.abs(x)),
            ).x
            return x, jnp.where(columns, (sigma - plan.transposed_times(x)) / c, 0)

        def solver(matvec, rhs):
            rhs = jnp.where(rows, rhs[0], 0), jnp.where(columns, rhs[1], 0)
            x = once(*rhs)
            left = jax.tree.map(lambda y, ax: y - ax, rhs, matvec(x))
            return jax.tree.map(jnp.add, x, once(*left))

        scaled = lambda x: jax.tree.map(lambda y: -epsilon * y, jacobian(x))  # noqa: E731
        nothing = 0 * (jnp.sum(rhs[0]) + jnp.sum(rhs[1]))
        return linear_solve(scaled, jax.tree.map(lambda y: nothing - epsilon * y, rhs), solver)

    return solve
