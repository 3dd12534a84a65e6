"""The one loop that every iterative solver runs in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .solution import Status
from .typing import Array, Bool, Float, Int, Progress, Scalar


def history_length(history: bool | int) -> int:
    """Return how many errors ``history=`` asks for."""
    return 256 if history is True else int(history)


class Limits(eqx.Module):
    """How far a loop goes and who watches: one argument through all the functions of a solver.

    Attributes
    ----------
    tol : scalar
        Converged at ``error <= tol``; traced.
    max_steps : scalar
        Traced.
    history : int
        How many errors to record; ``True`` means 256. Static.
    progress : callable, optional
        Host callback ``progress(step, error)`` after each step. Static.
    """

    tol: Any
    max_steps: Any
    history: int = eqx.field(static=True, default=0, converter=history_length)
    progress: Progress | None = eqx.field(static=True, default=None)


class Run(eqx.Module):
    """How a loop ended.

    Attributes
    ----------
    state : PyTree
        The last state.
    value : PyTree
        ``value(state)`` at the smallest error seen.
    error : Float[Array, ""]
        That smallest error.
    status, num_steps : Int[Array, ""]
        Why it stopped and after how many steps.
    history : Float[Array, "length"] or None
        Errors after 0, 1, ... steps, NaN beyond the last; only the first ``length`` are kept.
    """

    state: Any
    value: Any
    error: Float[Array, ""]
    status: Int[Array, ""]
    num_steps: Int[Array, ""]
    history: Float[Array, " length"] | None


def iterate(
    step: Callable[[Any], Any],
    state: Any,
    limits: Limits,
    *,
    value: Callable[[Any], Any],
    error: Callable[[Any], Float[Array, ""]],
    status: Callable[[Any], Int[Array, ""]] | None = None,
    refused: Callable[[Any], Int[Array, ""]] | None = None,
    answers: Callable[[Any], Bool[Array, ""]] | None = None,
    stall: Scalar | None = None,
    divergence: Scalar | None = None,
    report: Callable[[Any], Float[Array, ""]] | None = None,
    after: Run | None = None,
    fresh: bool = False,
) -> Run:
    """Run ``state = step(state)`` until ``error(state) <= tol`` or there is a reason to stop.

    The tests, in this order: a refusal other than `Status.RUNNING`; a non-finite error is `Status.NONFINITE`;
    ``error <= tol`` at a state that may answer is `Status.CONVERGED`; a status other than `Status.RUNNING` from the
    solver itself; ``error > divergence * first error`` is `Status.DIVERGED`; no new smallest error for `stall` steps is
    `Status.STAGNATED`; then `Status.MAX_STEPS`. They are made before the first step too: a solved problem takes none.

    Parameters
    ----------
    step : callable
        One step of the method; traced once.
    state : PyTree of arrays
        Where to start. Shapes and dtypes must not change from step to step.
    value : callable
        The part of a state worth returning; the best one is kept.
    error : callable
        The stopping measure of a state, a scalar.
    limits : Limits
        Tolerance, number of steps, history and progress.
    status : callable, optional
        The solver's own verdict on a state, `Status.RUNNING` to go on; it does not outrank ``error <= tol``.
    refused : callable, optional
        A verdict that outranks everything: data without an answer, whatever the error says.
    answers : callable, optional
        Whether a state may be the answer. One that may not is never converged, and is kept only while there is none
        that may, the latest first: steps on a way to the problem, as in annealing.
    stall, divergence : scalar, optional
        Traced; without them those tests are left out.
    report : callable, optional
        What history and progress show of a state; its error by default.
    after : Run, optional
        An earlier run that this one goes on from: steps and history continue its own, with the same history.
    fresh : bool, optional
        Whether `state` only says where to start and ``step(state)`` makes the first state, after no steps: what a state
        costs to compile is compiled once. Static.

    Notes
    -----
    Under ``jax.vmap`` a finished lane keeps its state bit for bit while others run. Freezing costs a copy of the
    state a step, so large arrays that do not change belong in the closure of ``step``.
    """
    length, tol, progress = limits.history, limits.tol, limits.progress
    max_steps = jnp.asarray(limits.max_steps, jnp.int32)
    report = report or error
    if fresh and (progress is not None or divergence is not None or after is not None):
        state, fresh = step(state), False
    first = error(state)

    def verdict(state, err, may, steps, since_best):
        code = jnp.asarray(Status.RUNNING, jnp.int32)
        code = jnp.where(steps >= max_steps, Status.MAX_STEPS, code)
        if stall is not None:
            code = jnp.where(since_best >= stall, Status.STAGNATED, code)
        if divergence is not None:
            code = jnp.where((err > divergence * first) & (first > 0), Status.DIVERGED, code)
        if status is not None:
            own = status(state)
            code = jnp.where(own != Status.RUNNING, own, code)
        code = jnp.where((err <= tol) & may, Status.CONVERGED, code)
        code = jnp.where(jnp.isfinite(err), code, Status.NONFINITE)
        if refused is not None:
            own = refused(state)
            code = jnp.where(own != Status.RUNNING, own, code)
        return code.astype(jnp.int32)

    def body(c: _Carry) -> _Carry:
        state = step(c.state)
        err, steps = error(state), c.steps + 1
        may = True if answers is None else answers(state)
        better = err < c.best_error
        if answers is not None:
            better = (may & (better | ~c.answered)) | (~may & ~c.answered)
        if fresh:
            better = better | (steps == 0)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), value(state), c.best)
        best_error = jnp.where(better, err, c.best_error)
        since_best = jnp.where(better, 0, c.since_best + 1)
        record = c.record
        if length:
            record = record.at[steps].set(report(state), mode="drop")
        if progress is not None:
            _tell(progress, steps, report(state))
        answered = None if answers is None else c.answered | may
        return _Carry(
            state, best, best_error, answered, since_best, steps, verdict(state, err, may, steps, since_best), record
        )

    zero = jnp.zeros((), jnp.int32)
    steps = zero if after is None else after.num_steps
    if fresh:
        first, steps = jnp.full_like(first, jnp.inf), steps - 1
    record = None
    if length:
        before = None if after is None else after.history
        record = jnp.full(length, jnp.nan, first.dtype) if before is None else before.astype(first.dtype)
        record = record if fresh else record.at[steps].set(report(state), mode="drop")
    answered = None if answers is None else jnp.asarray(answers(state)) & (not fresh)
    may = True if answered is None else answered
    code = jnp.asarray(Status.RUNNING, jnp.int32) if fresh else verdict(state, first, may, steps, zero)
    start = _Carry(state, value(state), first, answered, zero, steps, code, record)
    end = lax.while_loop(lambda c: c.code == Status.RUNNING, body, start)
    return Run(end.state, end.best, end.best_error, end.code, end.steps, end.record)


class _Carry(NamedTuple):
    """What the loop carries: the state, the best value with its error and age, the count, the verdict, the record."""

    state: Any
    best: Any
    best_error: Array
    answered: Any
    since_best: Array
    steps: Array
    code: Array
    record: Any


def when(condition, update: Callable[[Any], Any], state: Any) -> Any:
    """Return ``update(state)`` where `condition` holds and `state` where not.

    Like ``lax.cond``, but under ``jax.vmap`` the update is skipped while no lane asks for it: for rare, costly work.
    """
    return lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros_like(c[0]), update(c[1])), (condition, state))[1]


def _tell(progress: Progress, step, error) -> None:
    jax.debug.callback(lambda k, e: progress(int(k), float(e)), step, error)
