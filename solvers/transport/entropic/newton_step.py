"""One outer step of the safeguarded Newton method on the semi-dual, and the annealing it takes part in.

With d the direction of `newton_systems` and h what `epsilon` was at the end of the stage before, a step is

(1) ``(S + lam D_r) d = a - r``
(2) ``alpha <- alpha exp(t d),  beta <- b / (K' alpha)``
(3) ``<a, log(alpha_t / alpha)> + <b, log(beta_t / beta)> >= 1e-4 t <a - r, d>``, the gain of the dual over epsilon
(4) ``alpha <- alpha a / r,  beta <- b / (K' alpha)``, a sweep of Sinkhorn
(5) ``epsilon <- max(epsilon / 4, target)``, ``f <- f + (f - f_h) (new epsilon - epsilon) / (epsilon - h)``, g likewise
(6) ``d_i <- sign(d_i) 2 (1 + log |d_i / 2|)`` where ``|d_i| > 2``, d less its mean, if some entries are very long
(7) ``f <- f + epsilon d``, ``g = epsilon (log b - log sum_i exp((f_i - C_ij) / epsilon))``

Equations 1 and 2 are stage 2 of algorithm 1 of Tang et al. (ICLR 2024), which leaves the search for t open. The sweep
after each step, the annealing and (6), (7) are not in the paper. Points far from all others exchange next to no mass w
with them, and a lack of mass s then makes d as long as s / w, where ``log(1 + s / w)`` is what is missing, since w
grows as exp(d); scaling d as a whole would hold up everyone else's potentials. Where lam bounds d instead, w is smaller
still: rows that were moved so and want to go on move twice as far as before by (7), a leap in the place of (2) to (4).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core.loop import Limits, Run, iterate, when
from ...core.precision import eps as machine_eps
from ...core.solution import Status
from ...core.typing import Array, Bool, Float, Int, Scalar
from ..problem import Problem
from ..systems.gibbs_kernel import (
    Kernel,
    absorb,
    column_update,
    least_error,
    needs_absorbing,
    rescale,
    row_error,
    sweep,
)
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
PLAIN = 2.0
"""Where there are such changes, those up to this size are made as they are."""
FEW = 0.1
"""Long moves are shrunk one by one while their rows hold less than this part of the mass."""
SHORTEST = 2e-3
"""The search ends once a step of at most this length is refused."""
DAMPING = 1e-3
"""The Hessian's relative shift is this times the error."""
STEPS_WITHOUT_GAIN = 8
"""Steps without a smaller error, and without a row that wants to move further, before the solve has stagnated."""


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
    used : Float[Array, "n"]
        By how much the last step moved each row that wanted to go further; zero for the others.
    least : Float[Array, ""]
        Smallest error at the problem's epsilon.
    resting : Int[Array, ""]
        Steps since, but none where a row wants to move further: then errors of others may rise on the way.
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
    used: Float[Array, " n"]
    least: Float[Array, ""]
    resting: Int[Array, ""]
    modes: Any = None

    def judged(self, problem: Problem) -> "State":
        """Return the state with `least` and `resting` brought up to date at the end of a step.

        Where the error is below what rounding makes anyway, it has rested long enough.
        """
        there = self.kernel.epsilon <= problem.epsilon
        active = ~there | (self.error < self.least) | jnp.any(self.used != 0)
        least = jnp.where(there, jnp.minimum(self.error, self.least), self.least)
        resting = jnp.where(active, 0, self.resting + 1)
        enough = there & (self.error <= least_error(problem, self.kernel))
        resting = jnp.where(enough, STEPS_WITHOUT_GAIN, resting)
        return eqx.tree_at(lambda s: (s.least, s.resting), self, (least, resting))

    @property
    def verdict(self) -> Int[Array, ""]:
        """Whether the method goes on."""
        return jnp.where(self.resting >= STEPS_WITHOUT_GAIN, Status.STAGNATED, Status.RUNNING).astype(jnp.int32)


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
    fields = lambda k: (k.alpha, k.beta, k.r)  # noqa: E731
    start = Trial(fields(kernel), jnp.full((), 2, d.dtype), jnp.zeros((), bool))
    end = lax.while_loop(lambda c: ~c.good & (c.length > SHORTEST), lambda c: tried(c.length / 2), start)
    kept = jax.tree.map(lambda new, old: jnp.where(end.good, new, old), end.scalings, fields(kernel))
    return eqx.tree_at(fields, kernel, kept)


class Leap(NamedTuple):
    """Potentials after a leap, whether to take them, and of each row that may want to go on half its next move."""

    f: Array
    g: Array
    good: Array
    used: Array

    def instead_of(self, kernel: Kernel) -> Kernel:
        """Return the kernel of the leap, yet to be formed, if it is taken, and the given one if not."""
        ones = jnp.ones_like(self.f), jnp.ones_like(self.g)
        fields = lambda k: (k.f, k.g, k.alpha, k.beta)  # noqa: E731
        new = jax.tree.map(lambda x, y: jnp.where(self.good, x, y), (self.f, self.g, *ones), fields(kernel))
        return eqx.tree_at(fields, kernel, new)


def leap(problem: Problem, kernel: Kernel, off, cut, used) -> Leap:
    """Move the rows that want to go on twice as far as before and the others by (6), in the log domain.

    Taken if the dual rises by Armijo's condition.
    """
    a, b, epsilon = problem.a, problem.b, kernel.epsilon
    f, g = kernel.potentials
    again = (used * off > 0) & (jnp.abs(off) > LONGEST)

    def moved(_) -> Leap:
        move = jnp.where(again, 2 * used, cut)
        slope = jnp.sum((a - kernel.r) * move)
        ahead = f + epsilon * move
        other = column_update(problem, ahead, epsilon)  # (7)
        gain = jnp.sum(a * move) + jnp.sum(b * (other - g)) / epsilon
        good = (slope > 0) & (gain >= 1e-4 * slope)
        onwards = jnp.where(jnp.abs(off) > LONGEST, move, 0)
        return Leap(ahead, other, good, jnp.where(good, onwards, jnp.where(again, used / 4, 0)))

    return when(jnp.any(again), moved, Leap(f, g, jnp.zeros((), bool), jnp.zeros_like(f)))


def shortened(problem: Problem, kernel: Kernel, d, off, cut):
    """Return d, if it is longer than `LONGEST` by (6) where few entries are and that ascends, else scaled.

    Where the rows of long moves hold much of the mass they move together, as arcs of a ring do, and scaling is better.
    """
    longest = jnp.max(jnp.abs(d))
    few = jnp.sum(jnp.where(jnp.abs(off) > LONGEST, problem.a, 0)) < FEW
    scaled = jnp.minimum(1, LONGEST / jnp.where(longest > 0, longest, 1)).astype(d.dtype) * d
    return jnp.where(few & (longest > LONGEST) & (jnp.sum((problem.a - kernel.r) * cut) > 0), cut, scaled)


def shrunk(off):
    """Return the entries, those larger than `PLAIN` shrunk to a logarithm that goes on smoothly from there."""
    size = jnp.abs(off)
    short = PLAIN * (1 + jnp.log(jnp.maximum(size, PLAIN) / PLAIN))
    return jnp.where(size > PLAIN, jnp.sign(off) * short, off)  # (6)


def centred(problem: Problem, d):
    """Return d less a mean that is not led by its largest entries: constants are in the null space."""
    mean = jnp.sum(problem.a * jnp.sign(d) * jnp.log1p(jnp.abs(d)))
    return jnp.where(problem.rows, d - jnp.sign(mean) * jnp.expm1(jnp.abs(mean)), 0)


def newton_step(problem: Problem, state: State, tol, max_steps, hessian: Backend) -> State:
    """One outer step: a Newton direction searched, a Sinkhorn sweep, and the next stage of annealing if due.

    Stage 2 of algorithm 1 of Tang et al. (2024), on the semi-dual of the rows, followed by a sweep of its stage 1.
    """
    system = System.at(problem, state.kernel, state.error, tol, DAMPING)
    # (1)
    kept = () if state.modes is None else (state.modes,)
    direction = hessian.direction(state.prepared, problem, state.kernel, system, state.hard, *kept)
    off = centred(problem, direction.d)
    cut = shrunk(off)
    d = shortened(problem, state.kernel, direction.d, off, cut)
    searched = search(problem, state.kernel, d)
    long = jnp.abs(off) > LONGEST
    whole = long & (jnp.abs(jnp.log(searched.alpha / state.kernel.alpha)) >= 0.99 * jnp.abs(d))
    far = leap(problem, state.kernel, off, cut, state.used)
    kernel = far.instead_of(sweep(problem, searched))  # (2), (3), (4)
    here = jnp.where(whole, d, 0)
    used = jnp.where(far.good | (jnp.abs(far.used) > jnp.abs(here)), far.used, here)
    error = jnp.where(far.good, jnp.inf, row_error(problem, kernel))
    moved = State(
        kernel, error, state.steps + 1, state.stage_steps + 1, state.before, state.prepared,
        direction.hard, state.cg_steps + direction.cg_steps, used,
        state.least, state.resting, direction.modes,
    )  # fmt: skip
    return settle(problem, moved, tol, max_steps, hessian).judged(problem)


def settle(problem: Problem, state: State, tol, max_steps, hessian: Backend) -> State:
    """Lower epsilon where the stage is done; absorb the scalings where that, convergence or their range demands it.

    An error that is not known, that of a leap, demands it too.
    """
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
        new = state_at(problem, kernel, hessian, before, counts, state.modes, again(state, kernel))
        kept = lambda s: (s.used, s.hard, s.least, s.resting)  # noqa: E731
        return eqx.tree_at(kept, new, (state.used, hard, state.least, state.resting))

    def again(state: State, kernel: Kernel):
        """Return what the backend keeps: the same, but for scalings, of a kernel formed anew to be sure of it."""
        rescaled: Any = getattr(hessian, "rescaled", None)
        if state.prepared is None or rescaled is None:
            return hessian.prepare(problem, kernel)
        return lax.cond(moved, lambda: hessian.prepare(problem, kernel), lambda: rescaled(state.prepared, state.kernel))

    moved = advance | (state.error == jnp.inf) | needs_absorbing(state.kernel)
    return when(moved | (state.error <= tol), renew, state)


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


def state_at(problem, kernel, hessian, before=None, counts: Counts | None = None, modes=None, prepared=None) -> State:
    """Return the state at a kernel that has just been formed."""
    if modes is None and hasattr(hessian, "modes"):
        modes = hessian.modes(problem)
    if before is None:
        before = (kernel.f, kernel.g, jnp.zeros_like(kernel.epsilon))
    steps, stage_steps, cg_steps = (jnp.asarray(x, jnp.int32) for x in counts or Counts())
    prepared = hessian.prepare(problem, kernel) if prepared is None else prepared
    error, used = row_error(problem, kernel), jnp.zeros_like(kernel.f)
    none, first = jnp.zeros((), jnp.int32), jnp.where(kernel.epsilon <= problem.epsilon, error, jnp.inf)
    return State(
        kernel, error, steps, stage_steps, before, prepared, jnp.zeros((), bool), cg_steps, used, first, none, modes
    )


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
        status=lambda s: s.verdict,
        after=after,
    )
