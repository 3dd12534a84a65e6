"""Where the interior-point method stands: its modes and its state.

The number is that of Waechter and Biegler, Math. Program. 106 (2006):

(21) ``filter = {theta >= theta_max}`` at first, with ``theta_max = 1e4 max(1, theta)``, theta the violation at the
    start
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core.precision import dot
from ...core.solution import Status
from ...core.typing import Array, Bool, Float, Int
from .acceptance import Filter, empty_filter, violation
from .standard import Iterate, Model, Residual, Standard, Values

REFRESH, NEWTON, ENTER, RESTORE = 0, 1, 2, 3
MU = 0.1
"""The first barrier parameter of a cold start."""


class State(NamedTuple):
    """A primal-dual point with its values and derivatives, the filter, and where the method stands."""

    w: Iterate
    values: Values
    model: Model
    mu: Float[Array, ""]
    mode: Int[Array, ""]
    shift: Float[Array, ""]
    filter: Filter
    theta_min: Float[Array, ""]
    theta_max: Float[Array, ""]
    entry: Float[Array, ""]
    """The violation at which the restoration began."""
    kept: Float[Array, ""]
    """The barrier parameter to return to."""
    reach: Float[Array, ""]
    """A cap on the next step, below one after a trial without finite derivatives."""
    soft: Int[Array, ""]
    """How many steps in a row the filter refused."""
    suspect: Bool[Array, ""]
    """About to be claimed, but the Hessian needed a shift: perhaps a saddle."""
    probe: Bool[Array, ""]
    """The violation looks minimal to second order: the next step looks far beyond before that is said."""
    residual: Residual
    verdict: Int[Array, ""]
    idle: Int[Array, ""]
    moves: Int[Array, ""]
    evaluations: Int[Array, ""]
    inner: Int[Array, ""]


def start(problem: Standard, w: Iterate, values: Values, model: Model, warm) -> State:
    """Return the state at w; where it is `warm`, its multipliers are kept and the barrier parameter follows them."""
    dtype = w.x.dtype
    theta = violation(values, w.s)
    zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    return State(
        w=w,
        values=values,
        model=model,
        mu=jnp.where(warm, jnp.clip(mean_product(problem, w), 1e-5, MU), MU).astype(dtype),
        mode=none + REFRESH,
        shift=zero,
        filter=empty_filter(dtype),
        theta_min=1e-4 * jnp.maximum(1, theta),
        theta_max=1e4 * jnp.maximum(1, theta),  # (21)
        entry=zero,
        kept=zero,
        reach=zero + 1,
        soft=none,
        suspect=jnp.zeros((), bool),
        probe=jnp.zeros((), bool),
        residual=problem.residual(w, values, model),
        verdict=none + Status.RUNNING,
        idle=none,
        moves=none,
        evaluations=none + 1,
        inner=none,
    )


def mean_product(problem: Standard, w: Iterate):
    """Return the mean of multiplier times distance, over slacks and bounds."""
    low, high = problem.gaps(w.x)
    return (dot(w.s, w.z) + dot(low, w.zl) + dot(high, w.zu)) / count(problem, w)


def count(problem: Standard, w: Iterate):
    """Return how many barrier terms there are, at least one."""
    return jnp.maximum(w.s.size + jnp.sum(problem.below) + jnp.sum(problem.above), 1).astype(w.x.dtype)


def gaps_from(problem: Standard, w: Iterate, mu):
    """Return ``s z - mu`` and the like for the bounds, zero where there is none."""
    low, high = problem.gaps(w.x)
    return (
        w.s * w.z - mu,
        jnp.where(problem.below, low * w.zl - mu, 0),
        jnp.where(problem.above, high * w.zu - mu, 0),
    )


def select(condition, new, old):
    """Return `new` where the condition holds, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
