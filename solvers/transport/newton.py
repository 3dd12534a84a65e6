"""Sinkhorn-Newton-Sparse made safe: annealed, error-controlled, never worse than Sinkhorn."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.loop import iterate, when
from ..core.precision import default_tol
from ..core.precision import eps as machine_eps
from ..core.solution import Status
from ..core.typing import Array, Float, Int, Progress, Scalar
from .finish import finish
from .hessian import Backend, System, choose_backend
from .kernel import (
    Kernel,
    absorb,
    check_potentials,
    column_update,
    empty,
    needs_absorbing,
    row_error,
    scale_columns,
    sweep,
)
from .problem import Problem, check, prepare
from .solution import TransportSolution

START = 80
"""Annealing begins at the cost's spread divided by this."""
DECAY = 0.25
"""Each stage divides epsilon by four ..."""
STAGE_ERROR = 1e-2
"""... once the marginal error is this small."""
STAGE_STEPS = 6
"""... or after this many steps."""
LONGEST = 20
"""Largest change of a log scaling that a Newton step may make."""
DAMPING = 1e-3
"""The Hessian's relative shift is this times the error."""
EASY = 0.3
"""No annealing where three plain sweeps at the target epsilon come below this error."""
PATIENCE = 8
"""Steps without a smaller error before the solve counts as stagnated."""


class State(eqx.Module):
    """Where the method stands.

    Attributes
    ----------
    kernel : Kernel
        The plan, its columns normalised.
    error : Float[Array, ""]
        Marginal error of the plan at the current epsilon.
    steps, stage_steps : Int[Array, ""]
        Steps in all, and at this epsilon.
    before : tuple
        Row potential, column potential and epsilon at the end of the previous stage.
    prepared : PyTree
        What the Hessian backend keeps for this kernel.
    hard : Bool[Array, ""]
        Whether conjugate gradients have had trouble at this epsilon.
    cg_steps : Int[Array, ""]
        Conjugate-gradient steps so far.
    """

    kernel: Kernel
    error: Float[Array, ""]
    steps: Int[Array, ""]
    stage_steps: Int[Array, ""]
    before: tuple[Float[Array, " n"], Float[Array, " m"], Float[Array, ""]]
    prepared: Any
    hard: Array
    cg_steps: Int[Array, ""]


class Trial(eqx.Module):
    """A point tried along a direction: its scalings, what it gains in the dual, and its marginal error."""

    alpha: Float[Array, " n"]
    beta: Float[Array, " m"]
    r: Float[Array, " n"]
    gain: Float[Array, ""]
    error: Float[Array, ""]

    @classmethod
    def at(cls, problem: Problem, kernel: Kernel, alpha) -> "Trial":
        """Normalise the columns for `alpha` and measure: three products with the kernel's shape."""
        beta = scale_columns(problem, kernel, alpha)
        r = alpha * kernel.rows(beta)
        gain = jnp.sum(problem.a * jnp.log(alpha / kernel.alpha)) + jnp.sum(problem.b * jnp.log(beta / kernel.beta))
        return cls(alpha, beta, r, gain, jnp.sum(jnp.abs(r - problem.a)))


def search(problem: Problem, kernel: Kernel, r, error, d) -> Kernel:
    """Move along d until the dual rises by Armijo's condition; where that drowns in rounding, until the error falls.

    The kernel comes back unchanged when no step does.
    """
    slope = jnp.sum((problem.a - r) * d)
    rounding = machine_eps(r.dtype)

    def passes(trial: Trial, t):
        good = jnp.where(error**2 > rounding, trial.gain >= 1e-4 * t * slope, trial.error < error)
        return good & jnp.isfinite(trial.error)

    def at(t):
        trial = Trial.at(problem, kernel, kernel.alpha * jnp.exp(t * d))
        return trial, t, passes(trial, t)

    longest = jnp.max(jnp.abs(d))
    t = jnp.minimum(1, LONGEST / jnp.where(longest > 0, longest, 1)).astype(r.dtype)
    trial, _, good = lax.while_loop(lambda c: ~c[2] & (c[1] > 2e-3), lambda c: at(c[1] / 2), at(t))
    moved = jax.tree.map(lambda new, old: jnp.where(good, new, old), (trial.alpha, trial.beta), kernel.scalings)
    return kernel.scaled(*moved)


def newton_step(problem: Problem, state: State, tol, max_steps, hessian: Backend) -> State:
    """One outer step: a Newton direction searched, a Sinkhorn sweep, and the next stage of annealing if due."""
    kernel, error = state.kernel, state.error
    r = kernel.row_sums
    system = System.at(problem, kernel, r, error, DAMPING)
    direction = hessian.direction(state.prepared, problem, kernel, system, state.hard)
    kernel = sweep(problem, search(problem, kernel, r, error, direction.d))
    moved = State(
        kernel, row_error(problem, kernel), state.steps + 1, state.stage_steps + 1,
        state.before, state.prepared, direction.hard, state.cg_steps + direction.cg_steps,
    )  # fmt: skip
    return settle(problem, moved, tol, max_steps, hessian)


def settle(problem: Problem, state: State, tol, max_steps, hessian: Backend) -> State:
    """Lower epsilon where the stage is done; absorb the scalings where that, convergence or their range demands it."""
    epsilon = state.kernel.epsilon
    last = state.steps >= max_steps
    done = (state.error < STAGE_ERROR) | (state.stage_steps >= STAGE_STEPS) | last
    advance = (epsilon > problem.epsilon) & done

    def renew(state: State) -> State:
        potentials = state.kernel.potentials
        now = (*potentials, epsilon)
        lower = jnp.where(advance, jnp.maximum(jnp.where(last, 0, epsilon * DECAY), problem.epsilon), epsilon)
        known = state.before[2] > epsilon
        ratio = jnp.where(known & advance, (lower - epsilon) / jnp.where(known, epsilon - state.before[2], 1), 0)
        ahead = [p + ratio * (p - q) for p, q in zip(potentials, state.before[:2], strict=True)]
        before = jax.tree.map(lambda new, old: jnp.where(advance, new, old), now, state.before)
        kernel = absorb(problem, state.kernel, *ahead, lower)
        return State(
            kernel, row_error(problem, kernel), state.steps, jnp.where(advance, 0, state.stage_steps),
            before, hessian.prepare(problem, kernel), state.hard & ~advance, state.cg_steps,
        )  # fmt: skip

    return when(advance | (state.error <= tol) | needs_absorbing(state.kernel), renew, state)


def first_state(problem: Problem, f, g, warm: bool, anneal, tol, hessian: Backend) -> State:
    """Begin at the target epsilon if that is easy from here, else at the top of the annealing."""
    top = jnp.maximum(problem.epsilon, problem.spread / START)
    zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)

    def body(carry):
        kernel, _, trips, _ = carry
        epsilon = jnp.where(trips > 0, top, problem.epsilon)
        cold = jnp.asarray(not warm) | (trips > 0)
        g_start = lax.cond(cold, lambda: column_update(problem, f, epsilon), lambda: g)
        kernel = absorb(problem, kernel, f, g_start, epsilon)
        error = row_error(problem, kernel)
        swept = lax.fori_loop(
            0, 3, lambda _, scalings: sweep(problem, kernel.scaled(*scalings)).scalings, kernel.scalings
        )
        easy = jnp.sum(jnp.abs(kernel.scaled(*swept).row_sums - problem.a)) < EASY
        again = anneal & (trips == 0) & (error > tol) & ~easy & (top > epsilon) & (problem.status == Status.RUNNING)
        return kernel, error, trips + 1, again

    start = (empty(problem), jnp.zeros_like(problem.epsilon), zero, ~no)
    kernel, error, _, _ = lax.while_loop(lambda c: c[3], body, start)
    never = (kernel.f, kernel.g, jnp.zeros_like(kernel.epsilon))
    return State(kernel, error, zero, zero, never, hessian.prepare(problem, kernel), no, zero)


def sns_sinkhorn(
    cost: Float[Array, "n m"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: Scalar,
    tol: Scalar | None = None,
    max_steps: Scalar = 200,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    hessian: str = "auto",
    anneal: bool = True,
    history: bool | int = False,
    progress: Progress | None = None,
) -> TransportSolution:
    """Solve entropic optimal transport by a safeguarded Sinkhorn-Newton-Sparse method."""
    name = "sns_sinkhorn"
    cost, a, b, epsilon = data = check(name, cost, a, b, epsilon)
    tol = default_tol(cost.dtype) if tol is None else tol
    tol = checks.number(name, "tol", tol, dtype=cost.dtype)
    max_steps = checks.count(name, "max_steps", max_steps)
    problem = prepare(*lax.stop_gradient(data), tol)
    f, g = check_potentials(name, init, problem)
    solver = choose_backend(name, hessian, problem)
    state = first_state(problem, f, g, init is not None, anneal & (max_steps > 0), tol, solver)
    valid = problem.status == Status.RUNNING

    def error(state: State):
        annealing = state.kernel.epsilon > problem.epsilon
        beyond = 2 + state.kernel.epsilon / problem.epsilon
        return jnp.where(valid, jnp.where(annealing, beyond, state.error), 2).astype(cost.dtype)

    run = iterate(
        lambda s: newton_step(problem, s, tol, max_steps, solver),
        state,
        value=lambda s: s.kernel.potentials,
        error=error,
        status=lambda _: problem.status,
        tol=tol,
        max_steps=max_steps,
        stall=PATIENCE,
        history=history,
        progress=progress,
        report=lambda s: s.error,
    )
    return finish(problem, run, run.value, tol, run.state.cg_steps, data)
