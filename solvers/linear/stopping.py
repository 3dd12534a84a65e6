"""The loop of the linear solvers: the stopping test is made every few steps, and the count is still exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.loop import Limits, Run, iterate
from ..core.solution import Status
from ..core.typing import Scalar
from .systems.system import repeat

MANY = 2**22
"""Numbers that a state may have for several of them to be kept at once."""


class Controls(eqx.Module):
    """How far a solve goes, and every how many steps it looks; the second is static."""

    limits: Limits
    every: int = eqx.field(static=True)

    def within(self, max_steps: Scalar) -> "Controls":
        """Return the controls with another limit of steps."""
        limits = self.limits
        return Controls(Limits(limits.tol, max_steps, limits.history, limits.progress), self.every)


class Rules(NamedTuple):
    """When a method gives up: steps without a smaller error, its own verdict on a state, growth of the error."""

    stall: Scalar
    status: Callable[[Any], Any] | None = None
    divergence: float | None = None


class Block(NamedTuple):
    """The states before and after a block, the best value with its error and age, the count, whether all is well."""

    before: Any
    state: Any
    best: Any
    best_error: Any
    since: Any
    steps: Any
    ok: Any


class Near(NamedTuple):
    """A state within the last block, its error, how many steps into the block, and whether to go on."""

    state: Any
    error: Any
    k: Any
    on: Any


def walk(step: Callable, judge: Callable, start: Near, count: int) -> Near:
    """Take up to `count` steps while they are on, by ``judge(state) -> (error, on)``; accelerators take all of them.

    There the host waits in every turn of a loop whose end is not known, longer than many steps take; the states of one
    block are judged together instead, unless they are too large to keep.
    """

    def closer(c: Near) -> Near:
        new = step(c.state)
        err, on = judge(new)
        return Near(new, err, c.k + 1, on)

    def one_by_one(c: Near) -> Near:
        return lax.while_loop(lambda c: c.on & (c.k < count), closer, c)

    def together(c: Near) -> Near:
        _, states = lax.scan(lambda s, _: (step(s),) * 2, c.state, length=count, unroll=min(count, 16))
        errors, on = jax.vmap(judge)(states)
        last = jnp.where(jnp.all(on), count - 1, jnp.argmin(on)).astype(jnp.int32)
        return Near(jax.tree.map(lambda x: x[last], states), errors[last], last + 1, on[last])

    large = sum(x.size for x in jax.tree.leaves(start.state)) > MANY
    return lax.platform_dependent(start, cpu=one_by_one, default=one_by_one if large else together)


def drive(
    step: Callable[[Any], Any],
    start: Any,
    controls: Controls,
    rules: Rules,
    *,
    value: Callable[[Any], Any],
    error: Callable[[Any], Any],
) -> Run:
    """Do what `core.loop.iterate` does, testing only every `every` steps for as long as no test has a consequence.

    Blocks of steps run until one of them would end the loop. That block is thrown away and done again step by step
    by `iterate`, so count, status and value are those of a test after every step, unless an error rises above `tol`
    again within a block. A block costs one test instead of `every`; the block done twice is the price. With `history`
    or `progress` every step is tested.
    """
    tol, history, progress = controls.limits.tol, controls.limits.history, controls.limits.progress
    every, status, divergence = controls.every, rules.status, rules.divergence
    first = error(start)
    max_steps = jnp.asarray(controls.limits.max_steps, jnp.int32)
    stall = jnp.asarray(rules.stall, jnp.int32)
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

        def body(c: Block) -> Block:
            new = repeat(step, c.state, every)
            err = error(new)
            better = err < c.best_error
            ok = passes(new, err)
            keep = better & ok
            best = jax.tree.map(lambda x, y: jnp.where(keep, x, y), value(new), c.best)
            return Block(
                c.state,
                new,
                best,
                jnp.where(keep, err, c.best_error),
                jnp.where(better, 0, c.since + every),
                jnp.where(ok, c.steps + every, c.steps),
                ok,
            )

        def more(c: Block):
            return c.ok & (c.steps + every <= max_steps) & (c.since < stall)

        blocks = Block(start, start, best, best_error, since, steps, passes(start, first))
        before, last, best, best_error, since, steps, ok = lax.while_loop(more, body, blocks)

        def judge(state):
            err = error(state)
            return err, passes(state, err)

        # Most blocks end because the error has passed tol: then only the first state that does so matters.
        ended = ~ok & (error(last) <= tol) & (first > tol)
        near, err, k, _ = walk(step, judge, Near(before, first, zero, ended), every)
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
