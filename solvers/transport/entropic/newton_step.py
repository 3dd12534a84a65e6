"""One outer step of the safeguarded Newton method on the semi-dual, and the annealing it takes part in.

With d the direction of `newton_systems` and h what `epsilon` was at the end of the stage before, a step is

(1) ``(S + lam D_r) d = a - r``
(2) ``alpha <- alpha exp(t d),  beta <- b / (K' alpha)``
(3) ``<a, log(alpha_t / alpha)> + <b, log(beta_t / beta)> >= 1e-4 t <a - r, d>``, the gain of the dual over epsilon
(4) ``alpha <- alpha a / r,  beta <- b / (K' alpha)``, a sweep of Sinkhorn
(5) ``epsilon <- max(epsilon / 4, target)``, ``f <- f + (f - f_h) (new epsilon - epsilon) / (epsilon - h)``, g likewise

Equations 1 and 2 are stage 2 of algorithm 1 of Tang et al. (ICLR 2024), which leaves the search for t open. The sweep
after each step and the annealing are not in the paper.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core.loop import Limits, Run, iterate, when
from ...core.precision import eps as machine_eps
from ...core.typing import Array, Bool, Float, Int, Scalar
from ..problem import Problem
from ..systems.gibbs_kernel import Kernel, absorb, needs_absorbing, rescale, row_error, sweep
from ..systems.newton_systems import System
from ..systems.system_choice import Backend

DECAY = 0.25
"""Each stage divides epsilon by four ..."""
STAGE_ERROR = 1e-2
"""... once the marginal error is this small."""
STAGE_STEPS = 6
"""... or after this many steps."""
LONGEST = 20
"""Largest change of a log scaling that a Newton step may make."""
SHORTEST = 2e-3
"""The search ends once a step of at most this length is refused."""
DAMPING = 1e-3
"""The Hessian's relative shift is this times the error."""
STEPS_WITHOUT_GAIN = 8
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
    modes : SlowModes or None
        What the backend keeps from step to step.
    """

    kernel: Kernel
    error: Float[Array, ""]
    steps: Int[Array, ""]
    stage_steps: Int[Array, ""]
    before: tuple[Float[Array, " n"], Float[Array, " m"], Float[Array, ""]]
    prepared: Any
    hard: Bool[Array, ""]
    cg_steps: Int[Array, ""]
    modes: Any = None


class Trial(NamedTuple):
    """A point of the search: scalings and row sums, the length of the step there, and whether to take it."""

    scalings: tuple[Array, Array, Array]
    length: Array
    good: Array


def search(problem: Problem, kernel: Kernel, d) -> Kernel:
    """Move along d until the dual rises by Armijo's condition; where that drowns in rounding, until the error falls.

    The kernel comes back unchanged when no step does.
    """
    a, b = problem.a, problem.b
    slope = jnp.sum((a - kernel.r) * d)
    error = row_error(problem, kernel)

    def tried(t):
        # (2)
        trial = rescale(problem, kernel, kernel.alpha * jnp.exp(t * d))
        # (3)
        gain = jnp.sum(a * jnp.log(trial.alpha / kernel.alpha)) + jnp.sum(b * jnp.log(trial.beta / kernel.beta))
        after = row_error(problem, trial)
        good = jnp.where(error**2 > machine_eps(d.dtype), gain >= 1e-4 * t * slope, after < error)
        return Trial((trial.alpha, trial.beta, trial.r), t, good & jnp.isfinite(after))

    # A loop of its own: with the slope among what `core.search.backtrack` carries, float32 rounds otherwise in a batch.
    longest = jnp.max(jnp.abs(d))
    t = jnp.minimum(1, LONGEST / jnp.where(longest > 0, longest, 1)).astype(d.dtype)
    end = lax.while_loop(lambda c: ~c.good & (c.length > SHORTEST), lambda c: tried(c.length / 2), tried(t))
    fields = lambda k: (k.alpha, k.beta, k.r)  # noqa: E731
    kept = jax.tree.map(lambda new, old: jnp.where(end.good, new, old), end.scalings, fields(kernel))
    return eqx.tree_at(fields, kernel, kept)


def newton_step(problem: Problem, state: State, tol, max_steps, hessian: Backend) -> State:
    """One outer step: a Newton direction searched, a Sinkhorn sweep, and the next stage of annealing if due.

    Stage 2 of algorithm 1 of Tang et al. (2024), on the semi-dual of the rows, followed by a sweep of its stage 1.
    """
    system = System.at(problem, state.kernel, state.error, tol, DAMPING)
    # (1)
    kept = () if state.modes is None else (state.modes,)
    direction = hessian.direction(state.prepared, problem, state.kernel, system, state.hard, *kept)
    kernel = sweep(problem, search(problem, state.kernel, direction.d))  # (2), (3), (4)
    moved = State(
        kernel, row_error(problem, kernel), state.steps + 1, state.stage_steps + 1,
        state.before, state.prepared, direction.hard, state.cg_steps + direction.cg_steps, direction.modes,
    )  # fmt: skip
    return settle(problem, moved, tol, max_steps, hessian)


def settle(problem: Problem, state: State, tol, max_steps, hessian: Backend) -> State:
    """Lower epsilon where the stage is done; absorb the scalings where that, convergence or their range demands it."""
    epsilon = state.kernel.epsilon
    last = state.steps >= max_steps
    done = (state.error < STAGE_ERROR) | (state.stage_steps >= STAGE_STEPS) | last
    advance = (epsilon > problem.epsilon) & done

    def renew(state: State) -> State:
        lower = jnp.where(advance, jnp.maximum(jnp.where(last, 0, epsilon * DECAY), problem.epsilon), epsilon)  # (5)
        (f, g), passed = extrapolate(state, lower)
        before = jax.tree.map(lambda new, old: jnp.where(advance, new, old), passed, state.before)
        stage_steps = jnp.where(advance, 0, state.stage_steps)
        kernel = absorb(problem, state.kernel, f, g, lower)
        hard = state.hard & ~advance
        counts = Counts(state.steps, stage_steps, state.cg_steps)
        return state_at(problem, kernel, hessian, before, counts, hard, state.modes)

    return when(advance | (state.error <= tol) | needs_absorbing(state.kernel), renew, state)


def extrapolate(state: State, lower):
    """Return potentials for epsilon `lower`, linear in epsilon through this stage's end and the last one's.

    The second result is what to remember of this stage. At an unchanged epsilon the potentials are those of the state.
    """
    potentials, epsilon = state.kernel.potentials, state.kernel.epsilon
    known = state.before[2] > 1.01 * epsilon
    ratio = jnp.where(known, (lower - epsilon) / jnp.where(known, epsilon - state.before[2], 1), 0)
    ahead = tuple(p + ratio * (p - q) for p, q in zip(potentials, state.before[:2], strict=True))  # (5)
    return ahead, (*potentials, epsilon)


class Counts(NamedTuple):
    """Steps in all, steps at this epsilon, conjugate-gradient steps in all."""

    steps: Scalar = 0
    stage_steps: Scalar = 0
    cg_steps: Scalar = 0


def state_at(problem, kernel, hessian, before=None, counts: Counts | None = None, hard=False, modes=None) -> State:
    """Return the state at a kernel that has just been formed."""
    if modes is None and hasattr(hessian, "modes"):
        modes = hessian.modes(problem)
    if before is None:
        before = (kernel.f, kernel.g, jnp.zeros_like(kernel.epsilon))
    steps, stage_steps, cg_steps = (jnp.asarray(x, jnp.int32) for x in counts or Counts())
    prepared = hessian.prepare(problem, kernel)
    error = row_error(problem, kernel)
    return State(kernel, error, steps, stage_steps, before, prepared, jnp.asarray(hard), cg_steps, modes)


def ascend(problem: Problem, state: State, hessian: Backend, limits: Limits, *, after: Run | None = None) -> Run:
    """Step until the marginal error at the problem's epsilon is at most the tolerance."""
    return iterate(
        lambda s: newton_step(problem, s, limits.tol, limits.max_steps, hessian),
        state,
        limits,
        value=lambda s: s.kernel.potentials,
        error=lambda s: s.error,
        refused=lambda _: problem.status,
        answers=lambda s: s.kernel.epsilon <= problem.epsilon,
        stall=STEPS_WITHOUT_GAIN,
        after=after,
    )
