"""The one loop that every iterative solver runs in."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .solution import Status
from .typing import Array, Float, Int, Progress, Scalar


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
    *,
    value: Callable[[Any], Any],
    error: Callable[[Any], Float[Array, ""]],
    tol: Scalar,
    max_steps: Scalar,
    status: Callable[[Any], Int[Array, ""]] | None = None,
    stall: Scalar | None = None,
    divergence: Scalar | None = None,
    history: bool | int = False,
    progress: Progress | None = None,
    report: Callable[[Any], Float[Array, ""]] | None = None,
    after: Run | None = None,
) -> Run:
    """Run ``state = step(state)`` until ``error(state) <= tol`` or there is a reason to stop.

    The tests, in this order: a non-finite error is `Status.NONFINITE`; ``error <= tol`` is `Status.CONVERGED`; a
    status other than `Status.RUNNING` from the solver itself; ``error > divergence * first error`` is
    `Status.DIVERGED`; no new smallest error for `stall` steps is `Status.STAGNATED`; then `Status.MAX_STEPS`.
    They are made before the first step too, so a solved problem takes none.

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
    tol, max_steps : scalar
        Traced.
    status : callable, optional
        The solver's own verdict on a state, `Status.RUNNING` to go on.
    stall, divergence : scalar, optional
        Traced; without them those tests are left out.
    history : bool or int
        How many errors to record; ``True`` means 256. Static.
    progress : callable, optional
        Host callback ``progress(step, error)`` after each step.
    report : callable, optional
        What history and progress show of a state; its error by default.
    after : Run, optional
        An earlier run that this one goes on from: steps and history continue its own, with the same `history`.

    Notes
    -----
    Under ``jax.vmap`` a finished lane keeps its state bit for bit while others run. Freezing costs a copy of the
    state a step, so large arrays that do not change belong in the closure of ``step``.
    """
    length = history_length(history)
    report = report or error
    first = error(state)
    max_steps = jnp.asarray(max_steps, jnp.int32)

    def verdict(state, err, steps, since_best):
        code = jnp.asarray(Status.RUNNING, jnp.int32)
        code = jnp.where(steps >= max_steps, Status.MAX_STEPS, code)
        if stall is not None:
            code = jnp.where(since_best >= stall, Status.STAGNATED, code)
        if divergence is not None:
            code = jnp.where((err > divergence * first) & (first > 0), Status.DIVERGED, code)
        if status is not None:
            own = status(state)
            code = jnp.where(own != Status.RUNNING, own, code)
        code = jnp.where(err <= tol, Status.CONVERGED, code)
        return jnp.where(jnp.isfinite(err), code, Status.NONFINITE).astype(jnp.int32)

    def body(carry):
        state, best, best_error, since_best, steps, _, record = carry
        state = step(state)
        err, steps = error(state), steps + 1
        better = err < best_error
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), value(state), best)
        best_error = jnp.where(better, err, best_error)
        since_best = jnp.where(better, 0, since_best + 1)
        if length:
            record = record.at[steps].set(report(state), mode="drop")
        if progress is not None:
            _tell(progress, steps, report(state))
        return state, best, best_error, since_best, steps, verdict(state, err, steps, since_best), record

    zero = jnp.zeros((), jnp.int32)
    steps = zero if after is None else after.num_steps
    record = None
    if length:
        before = None if after is None else after.history
        record = jnp.full(length, jnp.nan, first.dtype) if before is None else before.astype(first.dtype)
        record = record.at[steps].set(report(state), mode="drop")
    start = (state, value(state), first, zero, steps, verdict(state, first, steps, zero), record)
    state, best, best_error, _, steps, code, record = lax.while_loop(lambda c: c[5] == Status.RUNNING, body, start)
    return Run(state, best, best_error, code, steps, record)


def when(condition, update: Callable[[Any], Any], state: Any) -> Any:
    """Return ``update(state)`` where `condition` holds and `state` where not.

    Like ``lax.cond``, but under ``jax.vmap`` the update is skipped while no lane asks for it: for rare, costly work.
    """
    return lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros_like(c[0]), update(c[1])), (condition, state))[1]


def history_length(history: bool | int) -> int:
    """Return how many errors ``history=`` asks for."""
    return 256 if history is True else int(history)


def _tell(progress: Progress, step, error) -> None:
    jax.debug.callback(lambda k, e: progress(int(k), float(e)), step, error)
