"""A sequence of linear systems in one compiled program that learns its setting from the step counts.

The protocol of Khodak, Chow, Balcan and Talwalkar, Learning to Relax, ICLR 2024, in round t:

(1) ``arm ~ p_t(context)``, the learner's
(2) solve ``A_t x = b_t`` by that arm, from the last solution or from zero
(3) tell the learner ``cost = steps``, times the products with A that a step takes
(4) ``cost = log(tol / begin) / log(rate),  rate = (error / begin)^(1 / steps)``, where the arm stopped short

It departs from the paper in the last: there no arm stops short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.bandits.learners import Learner, TsallisINF, count_arms
from ...core.implicit import UNCONVERGED
from ...core.loop import Limits, Run
from ...core.precision import unit_of
from ...core.solution import Status
from ...core.typing import Array, Float, Int, Progress, PyTree, Scalar
from ...core.vectors import norm
from ..solution import LinearSolution, attached, check_every, default_tol, prepare, run_method
from ..stopping import Controls
from ..systems.system import System, as_system
from .arms import Arms, safe
from .relaxation_theory import young_prior

CENSORED = 10
"""A failed arm is charged at most this many times the steps it was given."""


class SequenceSolution(LinearSolution):
    """What `solve_sequence` returns: a solution with one lane a system.

    Attributes
    ----------
    value : PyTree
        What `save` kept of each solution, leading axis T.
    status, num_steps : Int[Array, "T"]
        Of each system; steps of the arm and, where it failed, of the fallback.
    error : Float[Array, "T"]
        ``||b - A x|| / ||b||``.
    arms : Int[Array, "T"]
        What was played.
    costs : Float[Array, "T"]
        What the learner was told, in products with A; predicted from the rate where the arm did not get there, NaN
        where the round carried no information and the learner was told nothing.
    propensities : Float[Array, "T"]
        With what probability each arm was played.
    contexts : PyTree
        Leading axis T.
    state : PyTree
        The learner's, to go on from.
    last : Float[Array, "*n"]
        The last solution.
    """

    arms: Int[Array, " T"]
    costs: Float[Array, " T"]
    propensities: Float[Array, " T"]
    contexts: PyTree
    state: PyTree
    last: Array

    statuses: ClassVar = LinearSolution.statuses


def solve_sequence(
    systems: Any,
    rhs: Float[Array, "T *n"] | None = None,
    *,
    arms: Arms,
    key: Array,
    learner: Learner | None = None,
    x0: Float[Array, "*n"] | None = None,
    num_systems: int | None = None,
    args: Any = None,
    context: Any = None,
    state: Any = None,
    warm_start: bool = True,
    save: Callable[[Array], Any] | None = None,
    tol: Scalar | None = None,
    max_steps: int | Array = 10_000,
    patience: int | Array = 1_000,
    every: int = 8,
    unconverged: str = "nan",
    history: bool = False,
    progress: Progress | None = None,
) -> SequenceSolution:
    """Solve a sequence of symmetric positive definite systems, learning from the step counts which setting to use.

    One program scans over select, solve, update. Use it where thousands of related systems are solved in turn and the
    best setting is unknown or changes with the system. For independent systems of known setting, ``jax.vmap`` a solver.

    Parameters
    ----------
    systems : System or Float[Array, "T n n"], or callable
        Stacked systems (a leading axis T on the values), or ``step(t, x, args)`` that returns ``(A, b)`` or
        ``(A, b, context)`` from the number of the step and the last solution, traced once. Traced, differentiable.
    rhs : Float[Array, "T *n"], optional
        Right-hand sides of stacked systems. Traced, differentiable.
    arms : Arms
        What to choose from; numbers are traced.
    key : key
        Of ``jax.random``.
    learner : Learner, optional
        Any of `TsallisINF`, `ContextBins`, `ChebCB`, `ThompsonRegression`, `HagemanYoung`, `ExpertMix`, or your own. By
        default what theory has for the arms: `young_prior` for those of SOR alone, `TsallisINF` for others.
    x0 : Float[Array, "*n"], optional
        The state before the first step; required with a step function, zero otherwise. Differentiable through a step
        function, as a start of a solve it has no derivative.
    num_systems : int
        T; required with a step function. Static.
    args : PyTree
        Data of the step function. Traced, differentiable.
    context : PyTree, optional
        What the learner sees of each stacked system, leading axis T. By default, the largest sum of absolute
        off-diagonal entries over the diagonal, a bound on the Jacobi radius that does not change with the scale of A.
    state : PyTree, optional
        The learner's state from an earlier sequence.
    warm_start : bool
        Start each solve from the last solution. Static.
    save : callable, optional
        What to keep of each solution, ``save(x)``; all of it by default. Static.
    tol, every : optional
        As for `sor`; `every` holds for sweeps only.
    max_steps : int
        Per system, arm and fallback together. Traced.
    patience : int
        Steps after which an arm has failed and the safe one, conjugate gradients with Jacobi scaling, goes on from its
        best iterate. Traced.
    unconverged : {"nan", "approximate"}
        Derivatives of a system that was not solved, and of all that follow from it: NaN, or those of its equations at
        the point reached. Static.
    history : bool
        Ignored but for True, which raises: costs and errors of all systems are returned anyway.
    progress : callable, optional
        ``progress(t, error)`` on the host after each system.

    Returns
    -------
    SequenceSolution
        `value` (T, ...), with status, steps and ``error = ||b - A x|| / ||b||`` of each system, arms, costs,
        propensities, contexts, the learner's final state and the last solution.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit, missing arguments.

    Notes
    -----
    A round in which no step was needed (b = 0, an exact start), or whose data are not finite, teaches nothing.
    An arm that stops short is charged the steps its observed rate predicts, at least those it took and at most
    10 times as many; one that diverges, the most. Costs are steps times the products a step of the method takes.
    Derivatives: of the exact solutions, through the sequence, by solves with the same arms; choices have none.
    *What learning costs.* 16 arms of plain SOR under `TsallisINF` pay 1.5 to 1.9 times the best fixed arm's total over
    the first 300 systems; under `young_prior`, which starts from Young's theory and looks at the context, 0.6 to 0.8
    times on the shifted Laplacians of the paper.
    Under ``jax.vmap`` every method among the arms runs in every step, so keep to one there.
    Memory: T times what `save` keeps, and a few vectors.

    References
    ----------
    M. Khodak, E. Chow, M.-F. Balcan, A. Talwalkar, Learning to Relax, ICLR 2024.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import Arms, Stencil, TsallisINF, solve_sequence
    >>> systems = jax.vmap(lambda c: Stencil.laplacian(2, shift=c))(jnp.linspace(0.1, 1.0, 5))
    >>> sol = solve_sequence(systems, jnp.ones((5, 4, 4)), learner=TsallisINF(), arms=Arms.sor(), key=jax.random.key(3))
    >>> print(sol.value.shape, bool(sol.converged.all()))
    (5, 4, 4) True
    """
    name = "solve_sequence"
    if not isinstance(arms, Arms):
        checks.fail(name, "arms", "Arms", type(arms).__name__, TypeError)
    if history:
        checks.fail(name, "history", "False: the error of every system is in `error`", history)
    stepping = not isinstance(systems, System) and callable(systems)
    if stepping:
        if x0 is None or num_systems is None or rhs is not None:
            checks.fail(name, "systems", "a step function with `x0` and `num_systems`, without `rhs`", "another call")
        x0 = checks.float_array(name, "x0", x0)
        dtype, data = x0.dtype, args
        step: Any = systems
        if num_systems < 1:
            checks.fail(name, "num_systems", "at least 1", num_systems)
    else:
        if rhs is None:
            checks.fail(name, "rhs", "right-hand sides (T, ...) of the stacked systems", rhs)
        rhs = checks.float_array(name, "rhs", rhs)
        num_systems = rhs.shape[0] if rhs.ndim else 0
        if num_systems < 1:
            checks.fail(name, "rhs", "of at least one system", f"shape {rhs.shape}")
        dtype, step = rhs.dtype, None
        if not isinstance(systems, System):
            systems = checks.float_array(name, "systems", systems, ndim=3)
            systems = jax.vmap(lambda A: as_system(name, A, dtype))(systems)
        lengths = {x.shape[0] for x in jax.tree.leaves((systems, context)) if jnp.ndim(x)}
        if rhs.ndim < 2 or lengths != {rhs.shape[0]}:
            checks.fail(name, "systems", f"stacked along a leading axis like `rhs`, {rhs.shape[:1]}", sorted(lengths))
        x0 = jnp.zeros_like(rhs[0]) if x0 is None else checks.float_array(name, "x0", x0).astype(dtype)
        data = (systems, rhs, context)
    tol = checks.number(name, "tol", default_tol(dtype) if tol is None else tol, dtype=dtype)
    limits = checks.count(name, "max_steps", max_steps), checks.count(name, "patience", patience)
    check_every(name, every)
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    count_arms(name, arms)
    if learner is None:
        learner = young_prior() if arms.methods == ("sor",) else TsallisINF()
    state = learner.init(arms) if state is None else state
    rounds = Rounds(
        learner, arms.astype(dtype), tol, *limits, step, num_systems, warm_start, save, every, unconverged, progress
    )
    return _scan(rounds, data, x0, state, key)


class Rounds(eqx.Module):
    """How a sequence is played: the learner, what it chooses from, the limits of a solve, and what is static."""

    learner: Any
    arms: Arms
    tol: Any
    max_steps: Any
    patience: Any
    step: Callable | None = eqx.field(static=True)
    num_systems: int = eqx.field(static=True)
    warm_start: bool = eqx.field(static=True)
    save: Callable | None = eqx.field(static=True)
    every: int = eqx.field(static=True)
    unconverged: str = eqx.field(static=True)
    progress: Progress | None = eqx.field(static=True)

    def problem(self, t, x, data) -> tuple[System, Array, Any]:
        """Return the t-th system, its right-hand side and its context."""
        if self.step is not None:
            system, b, *rest = self.step(t, x, data)
            context = rest[0] if rest else None
        else:
            system, b, context = jax.tree.map(lambda leaf: leaf[t] if jnp.ndim(leaf) else leaf, data)
        system, b, _ = prepare("solve_sequence", system, b.astype(x.dtype), x, sweeps=self.arms.sweeps)
        if b.shape != x.shape:
            checks.fail("solve_sequence", "x0", f"of shape {b.shape}, like the right-hand sides", x.shape)
        bound = jacobi_bound(lax.stop_gradient(system), b.shape) if context is None else context
        return system, b, lax.stop_gradient(bound)

    def play(self, system, b, start, arm) -> tuple[Run, Run]:
        """Return the arm's run and the whole one: the same, or with the safe arm's steps where the arm failed."""

        def branch(build):
            def run(_):
                method = build(self.arms, arm)
                limits = Limits(self.tol, jnp.minimum(self.patience, self.max_steps))
                run = run_method(system, b, start, method, Controls(limits, self.every if method.sweeps else 1))
                return Run(None, run.value, run.error, run.status, run.num_steps, None)

            return run

        first = lax.switch(self.arms.kind[arm], [branch(build) for build in self.arms.builders], 0)
        settled = (first.status == Status.CONVERGED) | (first.status == Status.NONFINITE) & (first.num_steps == 0)

        def rescue(_):
            left = Controls(Limits(self.tol, self.max_steps - first.num_steps), 1)
            run = run_method(system, b, first.value, safe(b.dtype), left)
            keep = run.error <= first.error
            value, error = jnp.where(keep, run.value, first.value), jnp.where(keep, run.error, first.error)
            return Run(None, value, error, run.status, first.num_steps + run.num_steps, None)

        return first, lax.cond(settled, lambda _: first, rescue, 0)


def learned_sor(
    systems: Any, rhs: Float[Array, "T *n"] | None = None, *, key: Array, num_arms: int = 16, **options: Any
) -> SequenceSolution:
    """Solve a sequence of systems by SOR with an omega learned from the sweep counts: `solve_sequence` in short.

    The learner is `young_prior`, Thompson sampling that starts from Young's theory: near the best omega from the first
    systems on where the theory is about right, and corrected by the counts where not. With
    ``learner=safe_learner()`` Tsallis-INF stands beside it under a master, which costs some exploration and keeps a
    guarantee against any sequence.

    Parameters
    ----------
    systems, rhs, key : required
        As for `solve_sequence`.
    num_arms : int
        Values of omega, spaced evenly in ``log(2 - omega)`` from 1 to 1.97. Static.
    **options
        As for `solve_sequence`.

    Returns
    -------
    SequenceSolution

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import Stencil, learned_sor
    >>> systems = jax.vmap(lambda c: Stencil.laplacian(2, shift=c))(jnp.linspace(0.1, 1.0, 5))
    >>> bool(learned_sor(systems, jnp.ones((5, 4, 4)), key=jax.random.key(3)).converged.all())
    True
    """
    options = {"arms": Arms.sor(num_arms), **options}
    return solve_sequence(systems, rhs, key=key, **options)


def jacobi_bound(system: System, shape: tuple[int, ...]) -> Array:
    """Return the largest sum of absolute off-diagonal entries over the diagonal."""
    return system.layout(shape, sweeps=False).row_bound() - 1


class Carry(NamedTuple):
    """What one round hands to the next: the solution and what the learner knows."""

    x: Array
    state: Any


@jax.jit
def _scan(rounds: Rounds, data, x0, state, key) -> SequenceSolution:
    rounds, state = lax.stop_gradient((rounds, state))

    def body(carry: Carry, inputs):
        t, k = inputs
        system, b, context = rounds.problem(t, carry.x, data)
        still, rhs, before = lax.stop_gradient((system, b, carry.x))
        start = before if rounds.warm_start else jnp.zeros_like(before)
        pull = rounds.learner.select(carry.state, context, k)  # (1)
        first, run = rounds.play(still, rhs, start, pull.arm)  # (2)

        unit = unit_of(rhs)
        size = norm(unit * rhs)
        begin = norm(unit * (rhs - still.mv(start))) / jnp.where(size > 0, size, 1)
        cost, rate = charge(first, begin, rounds.tol)
        cost = cost * rounds.arms.work[pull.arm]
        told = (first.num_steps > 0) & jnp.isfinite(cost)
        # (3)
        learned = rounds.learner.update(carry.state, pull, jnp.where(told, cost, 1), rate)
        state = jax.tree.map(lambda new, old: jnp.where(told, new, old), learned, carry.state)

        def again(system, r):
            return rounds.play(system, r, jnp.zeros_like(r), pull.arm)[1]

        trusted = None if rounds.unconverged == "approximate" else run.status == Status.CONVERGED
        x = attached(system, b, run.value, again, symmetric=True, tol=rounds.tol, trusted=trusted)
        if rounds.progress is not None:
            tell = rounds.progress
            jax.debug.callback(lambda t, e: tell(int(t), float(e)), t + 1, run.error)
        cost = jnp.where(told, cost, jnp.nan)
        kept = x if rounds.save is None else rounds.save(x)
        out = (kept, run.status, run.num_steps, run.error, pull.arm, cost, pull.probability, context)
        return Carry(x, state), out

    steps = jnp.arange(rounds.num_systems, dtype=jnp.int32)
    end, out = lax.scan(body, Carry(x0, state), (steps, jax.random.split(key, rounds.num_systems)))
    value, status, taken, error, played, costs, propensities, contexts = out
    return SequenceSolution(
        value, status, taken, error, rounds.tol, None, played, costs, propensities, contexts, end.state, end.x
    )


def charge(run: Run, begin: Scalar, tol: Scalar) -> tuple[Array, Array]:
    """Return what a run cost in steps and its factor a step; a run that stopped short costs what its rate predicts."""
    steps = run.num_steps.astype(run.error.dtype)
    fall = jnp.log(jnp.maximum(run.error, 1e-30) / jnp.maximum(begin, 1e-30)) / jnp.maximum(steps, 1)
    needed = jnp.log(tol / jnp.maximum(begin, 1e-30)) / jnp.where(fall < 0, fall, -1e-30)  # (4)
    most = CENSORED * jnp.maximum(steps, 1)
    censored = jnp.where(run.status == Status.DIVERGED, most, jnp.clip(needed, steps, most))
    cost = jnp.where(run.status == Status.CONVERGED, steps, censored)
    return jnp.where(jnp.isnan(begin), begin, cost), jnp.exp(jnp.minimum(fall, 0))
