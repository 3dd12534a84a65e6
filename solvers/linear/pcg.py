"""The conjugate gradient iteration on vectors in any layout.

With z the preconditioned residual; the second is Kaneda et al., ICML 2023, algorithm 2, for any preconditioner:

(1) ``p = z + (r'z / previous r'z) p``
(2) ``p = z - sum_i (z'A p_i / p_i'A p_i) p_i``, over the last directions, two in the paper
(3) ``x <- x + alpha p,  r <- r - alpha A p,  alpha = p'r / p'A p``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.loop import Run
from ..core.precision import eps
from ..core.solution import Status
from ..core.typing import Array
from ..core.vectors import axpy, inner
from .solution import LinearStatus, measure
from .stopping import Controls, Rules, drive
from .systems.system import Layout

STALL = 500
"""Steps without a new smallest residual after which conjugate gradients stop: they may plateau for long."""


class State(eqx.Module):
    """Iterate, residual, the last directions, those of (2) with products and curvatures, the error, and a verdict."""

    x: Any
    r: Any
    p: tuple[Any, ...]
    Ap: tuple[Any, ...]
    curvatures: tuple[Array, ...]
    rz: Array
    error: Array
    code: Array


class Attempt(NamedTuple):
    """The best point with its true residual, that of the last run and why it stopped, the count, whether to restart."""

    x: Any
    error: Any
    last: Any
    status: Any
    steps: Any
    again: Any
    record: Any


def conjugate(
    system: Layout,
    b: Any,
    start: Any,
    precondition: Callable[[Any], Any],
    controls: Controls,
    *,
    directions: int = 0,
) -> Run:
    """Run preconditioned conjugate gradients until the true residual is small.

    With `directions` = 0 by the usual two-term recurrence, for a fixed symmetric positive definite preconditioner;
    otherwise each new direction is made conjugate to that many old ones, whatever the preconditioner.
    """
    residual, size = measure(system, b)

    def begin(x):
        r = residual(x)
        zero, nothing = jax.tree.map(jnp.zeros_like, b), jnp.zeros_like(size(r))
        code = jnp.asarray(Status.RUNNING, jnp.int32)
        p, (Ap, curvatures) = (zero,) * max(directions, 1), ((v,) * directions for v in (zero, nothing))
        return State(x, r, p, Ap, curvatures, nothing, size(r), code)

    def step(s):
        z = precondition(s.r)
        if directions:
            p, rz = z, s.rz
            for old, Aold, curvature in zip(s.p, s.Ap, s.curvatures, strict=True):
                p = axpy(-_ratio(inner(z, Aold), curvature), old, p)  # (2)
            gain = inner(p, s.r)
        else:
            rz = gain = inner(s.r, z)
            p = axpy(_ratio(rz, s.rz), s.p[0], z)  # (1)
        Ap = system.mv(p)
        curvature = inner(p, Ap)
        sound = (curvature > 0) & (gain > 0) if not directions else curvature > 0
        # (3)
        alpha = jnp.where(sound, _ratio(gain, curvature), jnp.where(jnp.isnan(curvature), curvature, 0))
        r = axpy(-alpha, Ap, s.r)  # (3)
        error = size(r)
        code = jnp.where(sound | jnp.isnan(curvature), Status.RUNNING, LinearStatus.INDEFINITE)
        # A recurred residual this small is noise; going on would end in underflow, which looks like no curvature.
        code = jnp.where(error <= 0.01 * eps(error.dtype), Status.STAGNATED, code).astype(jnp.int32)
        kept = (Ap, *s.Ap)[:directions], (curvature, *s.curvatures)[:directions]
        return State(axpy(alpha, p, s.x), r, (p, *s.p[:-1]), *kept, rz, error, code)

    return verified(system, b, start, begin, step, controls)


def verified(
    system: Layout,
    b: Any,
    start: Any,
    begin: Callable[[Any], Any],
    step: Callable[[Any], Any],
    controls: Controls,
) -> Run:
    """Run a method whose states have ``x``, the ``error`` of a recurred residual and a ``code``; check the true one.

    ``begin(x)`` is the state to start from at x.
    """
    residual, size = measure(system, b)
    tol, max_steps, length = controls.limits.tol, controls.limits.max_steps, controls.limits.history

    def attempt(c: Attempt) -> Attempt:
        """Run from the best point so far and measure what comes: the recurred residual drifts by rounding."""
        x, steps, past = c.x, c.steps, c.record
        run = drive(
            step,
            begin(x),
            controls.within(max_steps - steps),
            Rules(STALL, lambda s: s.code),
            value=lambda s: s.x,
            error=lambda s: s.error,
        )
        true, total = size(residual(run.value)), steps + run.num_steps
        missed = (run.status == Status.CONVERGED) & ~(true <= tol)
        falling = missed & (true < c.last / 2)
        status = jnp.where(missed, jnp.where(falling, Status.MAX_STEPS, Status.STAGNATED), run.status)
        better = (true < c.error) | ~jnp.isfinite(c.error)
        x = jax.tree.map(lambda new, old: jnp.where(better, new, old), run.value, x)
        again = falling & (total < max_steps)
        record = None if past is None else _join(past, run.history, steps)
        error = jnp.where(better, true, c.error)
        return Attempt(x, error, true, status.astype(jnp.int32), total, again, record)

    dtype = jnp.result_type(*jax.tree.leaves(b))
    first = Attempt(
        start,
        size(residual(start)),
        jnp.full((), jnp.inf, dtype),
        jnp.asarray(Status.RUNNING, jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.ones((), bool),
        jnp.full(length, jnp.nan, dtype) if length else None,
    )
    end = lax.while_loop(lambda c: c.again, attempt, first)
    return Run(None, end.x, end.error, end.status, end.steps, end.record)


def _ratio(a, b):
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1), 0)


def _join(past, new, steps):
    index = jnp.arange(past.shape[0], dtype=jnp.int32) - steps
    return jnp.where((index > 0) | (steps == 0), new[jnp.maximum(index, 0)], past)
