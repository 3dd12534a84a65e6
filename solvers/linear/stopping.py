"""The loop of the linear solvers: the stopping test is made every few steps, and the count is still exact."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core.loop import Limits, Run, iterate
from ..core.solution import Status
from ..core.typing import Progress, Scalar
from .systems.system import repeat


def drive(
    step: Callable[[Any], Any],
    start: Any,
    *,
    value: Callable[[Any], Any],
    error: Callable[[Any], Any],
    tol: Scalar,
    max_steps: Scalar,
    every: int,
    stall: Scalar,
    status: Callable[[Any], Any] | None = None,
    divergence: float | None = None,
    history: bool | int = False,
    progress: Progress | None = None,
) -> Run:
    """Do what `core.loop.iterate` does, testing only every `every` steps for as long as no test has a consequence.

    Blocks of steps run until one of them would end the loop. That block is thrown away and done again step by step
    by `iterate`, so count, status and value are those of a test after every step, unless an error rises above `tol`
    again within a block. A block costs one test instead of `every`; the block done twice is the price. With `history`
    or `progress` every step is tested.
    """
    first = error(start)
    max_steps = jnp.asarray(max_steps, jnp.int32)
    stall = jnp.asarray(stall, jnp.int32)
    steps = since = zero = jnp.zeros((), jnp.int32)
    best, best_error = value(start), first
    stalled = jnp.zeros((), bool)

    def own(state, err):
        code = jnp.asarray(Status.RUNNING, jnp.int32) if status is None else status(state)
        if divergence is not None:
            code = jnp.where((err > divergence * first) & (first > 0), Status.DIVERGED, code)
        return code.astype(jnp.int32)

    if every > 1 and not history and progress is None:

        def passes(state, err):
            return jnp.isfinite(err) & (err > tol) & (own(state, err) == Status.RUNNING)

        def body(carry):
            _, state, best, best_error, since, steps, _ = carry
            new = repeat(step, state, every)
            err = error(new)
            better = err < best_error
            ok = passes(new, err)
            keep = better & ok
            best = jax.tree.map(lambda x, y: jnp.where(keep, x, y), value(new), best)
            return (
                state,
                new,
                best,
                jnp.where(keep, err, best_error),
                jnp.where(better, 0, since + every),
                jnp.where(ok, steps + every, steps),
                ok,
            )

        def more(carry):
            _, _, _, _, since, steps, ok = carry
            return ok & (steps + every <= max_steps) & (since < stall)

        carry = (start, start, best, best_error, since, steps, passes(start, first))
        before, last, best, best_error, since, steps, ok = lax.while_loop(more, body, carry)

        def closer(carry):
            state, _, k, _ = carry
            new = step(state)
            err = error(new)
            return new, err, k + 1, passes(new, err)

        # Most blocks end because the error has passed tol: then only the first state that does so matters.
        ended = ~ok & (error(last) <= tol) & (first > tol)
        near, err, k, _ = lax.while_loop(lambda c: c[3] & (c[2] < every), closer, (before, first, zero, ended))
        ended &= err <= tol
        start = jax.tree.map(lambda x, y, z: jnp.where(ok, x, jnp.where(ended, z, y)), last, before, near)
        steps = jnp.where(ended, steps + k, steps)
        stalled = ok & (since >= stall)

    def verdict(state):
        code = own(state, error(state) if divergence is not None else first)
        return jnp.where(stalled & (code == Status.RUNNING), Status.STAGNATED, code).astype(jnp.int32)

    run = iterate(
        step,
        start,
        Limits(tol, max_steps - steps, history, progress),
        value=value,
        error=error,
        status=verdict,
        stall=stall - since,
    )
    better = (run.error <= best_error) | ~jnp.isfinite(best_error)
    best = jax.tree.map(lambda x, y: jnp.where(better, x, y), run.value, best)
    return Run(
        run.state, best, jnp.where(better, run.error, best_error), run.status, steps + run.num_steps, run.history
    )
