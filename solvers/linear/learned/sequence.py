"""A sequence of linear systems in one compiled program that learns its setting from the step counts."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.bandits.learners import Learner, count_arms
from ...core.loop import Run
from ...core.solution import Status
from ...core.typing import Array, Float, Int, Progress, PyTree, Scalar
from ..solution import LinearSolution, attached, default_tol, norm, prepare, run_method
from ..systems.system import System, as_system
from .arms import Arms, safe
from .young import young_prior

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
    learner: Learner,
    arms: Arms,
    key: Array,
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
    learner : Learner
        Any of `TsallisINF`, `ContextBins`, `ChebCB`, `ThompsonRegression`, `HagemanYoung`, `ExpertMix`, or your own.
    arms : Arms
        What it chooses from; numbers are traced.
    key : key
        Of ``jax.random``.
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
        dtype, step, data = x0.dtype, systems, args
    else:
        if rhs is None:
            checks.fail(name, "rhs", "right-hand sides (T, ...) of the stacked systems", rhs)
        rhs = checks.float_array(name, "rhs", rhs)
        dtype, step = rhs.dtype, None
        if not isinstance(systems, System):
            systems = checks.float_array(name, "systems", systems, ndim=3)
            systems = jax.vmap(lambda A: as_system(name, A, dtype))(systems)
        lengths = {x.shape[0] for x in jax.tree.leaves((systems, context)) if jnp.ndim(x)}
        if rhs.ndim < 2 or lengths != {rhs.shape[0]}:
            checks.fail(name, "systems", f"stacked along a leading axis like `rhs`, {rhs.shape[:1]}", sorted(lengths))
        x0 = jnp.zeros_like(rhs[0]) if x0 is None else checks.float_array(name, "x0", x0).astype(dtype)
        num_systems, data = rhs.shape[0], (systems, rhs, context)
    tol = checks.number(name, "tol", default_tol(dtype) if tol is None else tol, dtype=dtype)
    limits = checks.count(name, "max_steps", max_steps), checks.count(name, "patience", patience)
    count_arms(name, arms)
    state = learner.init(arms) if state is None else state
    return _scan(
        data,
        x0,
        learner,
        state,
        arms.astype(dtype),
        key,
        tol,
        limits,
        step,
        num_systems,
        warm_start,
        save,
        every,
        progress,
    )


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
    options = {"learner": young_prior(), "arms": Arms.sor(num_arms), **options}
    return solve_sequence(systems, rhs, key=key, **options)


def jacobi_bound(system: System, shape: tuple[int, ...]) -> Array:
    """Return the largest sum of absolute off-diagonal entries over the diagonal."""
    return system.layout(shape, sweeps=False).row_bound() - 1


def _solve_one(system, b, start, arms: Arms, arm, *, tol, max_steps, patience, every) -> tuple[Run, Run]:
    """Return the arm's run and the whole one: the same, or with the safe arm's steps where the arm failed."""
    controls: dict[str, Any] = {"tol": tol, "history": False, "progress": None}

    def branch(build):
        def run(_):
            method = build(arms, arm)
            limit = jnp.minimum(patience, max_steps)
            often = every if method.sweeps else 1
            run = run_method(system, b, start, method, max_steps=limit, every=often, **controls)
            return Run(None, run.value, run.error, run.status, run.num_steps, None)

        return run

    first = lax.switch(arms.kind[arm], [branch(build) for build in arms.builders], 0)
    settled = (first.status == Status.CONVERGED) | (first.status == Status.NONFINITE) & (first.num_steps == 0)

    def rescue(_):
        left = max_steps - first.num_steps
        run = run_method(system, b, first.value, safe(b.dtype), max_steps=left, every=1, **controls)
        keep = run.error <= first.error
        value = jnp.where(keep, run.value, first.value)
        return Run(
            None, value, jnp.where(keep, run.error, first.error), run.status, first.num_steps + run.num_steps, None
        )

    return first, lax.cond(settled, lambda _: first, rescue, 0)


@partial(jax.jit, static_argnames=("step", "num_systems", "warm_start", "save", "every", "progress"))
def _scan(data, x0, learner, state, arms, key, tol, limits, step, num_systems, warm_start, save, every, progress):
    max_steps, patience = limits
    arms, learner, state, tol = lax.stop_gradient((arms, learner, state, tol))
    dtype = x0.dtype

    def problem(t, x):
        if step is not None:
            system, b, *rest = step(t, x, data)
            context = rest[0] if rest else None
        else:
            systems, rhs, context = data
            system, b, context = jax.tree.map(lambda leaf: leaf[t] if jnp.ndim(leaf) else leaf, (systems, rhs, context))
        system, b, _ = prepare("solve_sequence", system, b.astype(dtype), x, sweeps=arms.sweeps)
        if b.shape != x.shape:
            checks.fail("solve_sequence", "x0", f"of shape {b.shape}, like the right-hand sides", x.shape)
        bound = jacobi_bound(lax.stop_gradient(system), b.shape) if context is None else context
        return system, b, lax.stop_gradient(bound)

    def body(carry, inputs):
        x, state = carry
        t, k = inputs
        system, b, context = problem(t, x)
        still, rhs, before = lax.stop_gradient((system, b, x))
        start = before if warm_start else jnp.zeros_like(before)
        pull = learner.select(state, context, k)
        controls = {"tol": tol, "max_steps": max_steps, "patience": patience, "every": every}
        first, run = _solve_one(still, rhs, start, arms, pull.arm, **controls)

        size = norm(rhs)
        begin = norm(rhs - still.mv(start)) / jnp.where(size > 0, size, 1)
        cost, rate = charge(first, begin, tol)
        cost = cost * arms.work[pull.arm]
        told = (first.num_steps > 0) & jnp.isfinite(cost)
        learned = learner.update(state, pull, jnp.where(told, cost, 1), rate)
        state = jax.tree.map(lambda new, old: jnp.where(told, new, old), learned, state)

        def again(system, r):
            return _solve_one(system, r, jnp.zeros_like(r), arms, pull.arm, **controls)[1].value

        x = attached(system, b, run.value, again, symmetric=True)
        if progress is not None:
            jax.debug.callback(lambda t, e: progress(int(t), float(e)), t + 1, run.error)
        cost = jnp.where(told, cost, jnp.nan)
        kept = x if save is None else save(x)
        return (x, state), (kept, run.status, run.num_steps, run.error, pull.arm, cost, pull.probability, context)

    steps = jnp.arange(num_systems, dtype=jnp.int32)
    (last, state), out = lax.scan(body, (x0, state), (steps, jax.random.split(key, num_systems)))
    value, status, taken, error, played, costs, propensities, contexts = out
    return SequenceSolution(value, status, taken, error, tol, None, played, costs, propensities, contexts, state, last)


def charge(run: Run, begin: Scalar, tol: Scalar) -> tuple[Array, Array]:
    """Return what a run cost in steps and its factor a step; a run that stopped short costs what its rate predicts."""
    steps = run.num_steps.astype(run.error.dtype)
    fall = jnp.log(jnp.maximum(run.error, 1e-30) / jnp.maximum(begin, 1e-30)) / jnp.maximum(steps, 1)
    needed = jnp.log(tol / jnp.maximum(begin, 1e-30)) / jnp.where(fall < 0, fall, -1e-30)
    most = CENSORED * jnp.maximum(steps, 1)
    censored = jnp.where(run.status == Status.DIVERGED, most, jnp.clip(needed, steps, most))
    cost = jnp.where(run.status == Status.CONVERGED, steps, censored)
    return jnp.where(jnp.isnan(begin), begin, cost), jnp.exp(jnp.minimum(fall, 0))
