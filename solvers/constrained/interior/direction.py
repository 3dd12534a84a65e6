"""Barrier parameter, Newton direction and boundary: what a step is to be, before it is searched.

The numbers are those of Waechter and Biegler, Math. Program. 106 (2006):

(7) ``mu <- max(least, min(kappa_mu mu, mu^theta_mu))`` while the barrier problem's error is at most ``kappa_eps mu``
(8) ``tau = max(0.99, 1 - mu)``

It departs from the paper in ``least``, a tenth of `tol` there and ``tol / 11`` times the smallest scale here.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core.loop import when
from ...core.precision import dot, eps, matmul
from ...core.typing import Array, Bool, Float
from .acceptance import boundary
from .newton_system import Direction, System, Target, assemble, bend, newton
from .standard import Standard, gradient, largest, mean_size
from .state import NEWTON, RESTORE, State, count, gaps_from, select

KAPPA_EPS, KAPPA_MU, THETA_MU = 10.0, 0.1, 1.7
"""The barrier parameter falls to ``min(KAPPA_MU mu, mu^THETA_MU)`` once the barrier problem's error is below
``KAPPA_EPS mu``."""
TAU = 0.99
"""Steps go at most this fraction of the way to the boundary, or ``1 - mu`` of it."""

FAR = 4096.0
"""Times the step, with which a restoration looks for what second derivatives cannot tell, as an inflection."""


def lowered(problem: Standard, s: State, restoring, least):
    """Return the barrier parameter, lowered until the barrier problem's scaled error exceeds ``KAPPA_EPS mu``."""
    w, dtype = s.w, s.w.x.dtype
    r = largest(gradient(w, s.model, jnp.where(restoring, 0, 1).astype(dtype)))
    primal = jnp.maximum(
        largest(s.values.c - jnp.where(restoring, w.y, 0)),
        largest(s.values.g + w.s - jnp.where(restoring, w.z, 0)),
    )
    bounds = jnp.sum(w.z) + jnp.sum(w.zl) + jnp.sum(w.zu)
    terms = count(problem, w)
    dual = mean_size(bounds + jnp.sum(jnp.abs(w.y)), w.y.size + w.z.size + 2 * w.x.size)
    weight = jnp.maximum(bounds / terms, 100) / 100

    def solved(mu):
        gap = jax.tree.reduce(jnp.maximum, [largest(part) for part in gaps_from(problem, w, mu)])
        return jnp.maximum(r / dual, jnp.maximum(primal, gap / weight)) <= KAPPA_EPS * mu

    def lower(mu):
        # (7)
        return jnp.maximum(least, jnp.minimum(KAPPA_MU * mu, mu**THETA_MU))

    mu = lax.while_loop(lambda mu: solved(mu) & (mu > least), lower, s.mu)
    missed = dot(s.values.c, s.values.c) + dot(s.values.g + w.s, s.values.g + w.s)
    return jnp.where(restoring, jnp.minimum(mu, jnp.maximum(0.1 * missed / terms, least)), mu)


class Plan(NamedTuple):
    """A direction, what it aims at, and how far primal and dual parts may go."""

    target: Target
    system: System
    direction: Direction
    tau: Float[Array, ""]
    dual: Float[Array, ""]
    leave: Bool[Array, ""]
    """The direction is one of negative curvature, away from a saddle."""


def plan(s: State, problem: Standard, tol) -> Plan:
    """Lower the barrier parameter, solve the Newton system, find the boundary."""
    w, dtype = s.w, s.w.x.dtype
    restoring = s.mode == RESTORE
    smallest = jnp.minimum(problem.scale.f, jnp.min(problem.scale.g, initial=1))
    least = jnp.where(restoring, jnp.finfo(dtype).tiny ** 0.5, tol * smallest / 11).astype(dtype)
    mu = jnp.where(restoring | (s.mode == NEWTON), lowered(problem, s, restoring, least), s.mu)
    keep = restoring.astype(dtype)
    target = Target(mu, s.values.c - keep * w.y, s.values.g + w.s - keep * w.z, 1 - keep)
    d = jnp.where(restoring, 1, eps(dtype) ** 0.625 * mu**0.25).astype(dtype)
    system = assemble(problem, w, s.model, s.shift, d, restoring)
    direction = newton(problem, w, s.model, system, target)
    v, curvature = when(
        s.suspect, lambda _: bend(problem, system, s.model.C), (jnp.zeros_like(w.x), jnp.zeros((), dtype))
    )
    flat = eps(dtype) ** 0.5 * jnp.max(jnp.abs(s.model.H), initial=0)
    leave = s.suspect & (system.shift > 0) & (curvature < -flat)
    far = jnp.where(s.probe & restoring, FAR, 1).astype(dtype)
    direction = direction._replace(x=far * direction.x, s=far * direction.s)
    direction = select(leave, along(problem, s, v, direction), direction)
    tau = jnp.maximum(TAU, 1 - mu)  # (8)
    dual = boundary([(w.z, direction.z), (w.zl, direction.zl), (w.zu, direction.zu)], tau)
    return Plan(target, system, direction, tau, dual, leave)


def along(problem: Standard, s: State, v, direction: Direction) -> Direction:
    """Return a direction of negative curvature as a step: downhill, of the size of x, the multipliers left alone."""
    w = s.w
    size = jnp.maximum(1, jnp.sqrt(dot(w.x, w.x)))
    dx = jnp.where(dot(direction.x, v) < 0, -size, size) * v
    none = jnp.zeros_like(w.x)
    return Direction(dx, -matmul(s.model.G, dx), jnp.zeros_like(w.y), jnp.zeros_like(w.z), none, none)
