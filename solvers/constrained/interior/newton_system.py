"""The Newton system of the barrier problem, condensed to x and the equations, with its inertia corrected.

Numbers 13 and 36 are those of Waechter and Biegler, Math. Program. 106 (2006); slacks are eliminated as well:

(1) ``(B + shift I) dx + C'dy = -(sigma f' + C'y + G'(z + q) + slope of the barrier),  C dx - d dy = -rc``
(2) ``q = W (rg + (s / z) (mu / s - z)),  W = (s / z + d)^-1``
(3) ``dz = W G dx + q,  ds = -rg - G dx + d dz,  dzl = mu / (x - lower) - zl - zl / (x - lower) dx``, and so for zu
(13) ``[[B + shift I, C'], [C, -d I]]``, the matrix with the right inertia: algorithm IC, section 3.1
(36) ``y = argmin |f' + C'y + G'z - zl + zu|``, zero where that is larger than 1000

It departs from the paper in d, which is always there, and in the inertia, which is read off the pivots of
``B + shift I + rho C'C`` in place of an indefinite factorisation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from ...core.precision import dot, eps, matmul
from ...core.typing import Array, Bool, Float, Int
from ..dense import Factor, back_substitute, factorise, until_convex
from ..kkt import start_vector
from .standard import Iterate, Model, Standard

FIRST, GROW, LEAP, RELAX = 1e-4, 8.0, 100.0, 1 / 3
"""Shifts of the Hessian: the first ever, factors from trial to trial (later ones, and the first), from step to step."""
ATTEMPTS = 40
PENALTY = 0.4
"""rho is ``eps^-PENALTY |H| / |C|^2``, with the largest entry of H, diagonal or not: too small a rho takes for
indefinite what is convex along the equations, the more so the worse C is conditioned."""
ROUNDING = 10
"""Pivots of a matrix of size n with a unit diagonal count as positive above ``ROUNDING n eps``, at most 500 eps."""


class Direction(NamedTuple):
    """A step in each part of an `Iterate`."""

    x: Float[Array, " n"]
    s: Float[Array, " q"]
    y: Float[Array, " p"]
    z: Float[Array, " q"]
    zl: Float[Array, " n"]
    zu: Float[Array, " n"]


class System(NamedTuple):
    """The condensed matrix ``[[B + shift I, C'], [C, -d I]]``, factorised.

    ``B = H + diag(zl / (x - lower) + zu / (upper - x)) + G' diag(W) G`` with ``W = (s / z + d)^-1``. The factors are of
    ``B + shift I + rho C'C``, scaled to a unit diagonal: a positive definite matrix exactly where the whole has the
    inertia of a minimum, once rho is large.
    """

    B: Float[Array, "n n"]
    weight: Float[Array, " q"]
    factor: Factor
    unit: Float[Array, " n"]
    rho: Float[Array, ""]
    d: Float[Array, ""]
    shift: Float[Array, ""]
    valid: Bool[Array, ""]
    tries: Int[Array, ""]


class Scaled(NamedTuple):
    """Factors of the matrix scaled to a unit diagonal, the scales, and whether the inertia is right."""

    factor: Factor
    unit: Float[Array, " n"]
    convex: Bool[Array, ""]


def assemble(problem: Standard, w: Iterate, model: Model, hint, d, restoring) -> System:
    """Condense, then raise the shift until the inertia is right; `hint` is the last shift that was needed."""
    dtype, n = w.x.dtype, w.x.size
    low, high = problem.gaps(w.x)
    W = 1 / (w.s / w.z + d)
    B = model.H + jnp.diag(w.zl / low + w.zu / high) + matmul(model.G.T * W[None], model.G)
    size_c = dot(model.C, model.C) / max(w.y.size, 1)
    size_h = jnp.max(jnp.abs(model.H), initial=0)
    penalty = eps(dtype) ** -PENALTY * jnp.maximum(size_h, 1e-8) / jnp.maximum(size_c, 1e-8)
    rho = jnp.where(restoring, 0.99 / d, jnp.minimum(penalty, 0.5 / d))
    half = jnp.sqrt(1 - rho * d)
    penalised = B + rho * matmul(model.C.T, model.C)

    # On a plateau of the violation everything is small, and so must be the shift.
    curvature = jnp.minimum(size_h + dot(model.C, model.C) + dot(model.G, model.G), 1)
    unit_of_shifts = jnp.where(restoring & (curvature > 0), curvature, 1)

    def factorised(shift) -> Scaled:
        K = penalised + shift * jnp.eye(n, dtype=dtype)  # (13)
        diagonal = jnp.diagonal(K)
        unit = lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1))
        factor, pivot, _ = factorise(K * unit[None] * unit[:, None], half * model.C * unit[None], d)
        return Scaled(factor, unit, jnp.all(diagonal > 0) & (pivot > min(ROUNDING * n, 500) * eps(dtype)))

    def raised(shift, tries):
        first = jnp.where(hint > 0, jnp.maximum(RELAX * hint, eps(dtype) ** 1.25), FIRST * unit_of_shifts)
        shift = jnp.where(tries == 1, first, shift * jnp.where(hint > 0, GROW, LEAP))
        return jnp.where(tries == 0, 0, shift).astype(dtype)

    shift, (factor, unit, valid), tries = until_convex(factorised, raised, jnp.zeros((), dtype), ATTEMPTS)
    return System(B, W, factor, unit, rho, d, shift, valid, tries)


def condensed(system: System, C, rx, rc):
    """Solve ``(B + shift I) dx + C'dy = rx``, ``C dx - d dy = rc`` with two steps of refinement."""
    n, d, half = rx.size, system.d, jnp.sqrt(1 - system.rho * system.d)

    def improve(_, carry):
        dx, dy = carry
        ex = rx - matmul(system.B, dx) - system.shift * dx - matmul(dy, C)
        ec = rc - matmul(C, dx) + d * dy
        r = jnp.concatenate([system.unit * (ex + system.rho * matmul(ec, C)), half * ec])
        v = back_substitute(system.factor, r, n)
        return dx + system.unit * v[:n], dy + v[n:] / half

    return lax.fori_loop(0, 3, improve, (jnp.zeros_like(rx), jnp.zeros_like(rc)))


def newton(problem: Standard, w: Iterate, model: Model, system: System, target: "Target") -> Direction:
    """Return the Newton direction of the perturbed KKT conditions, all parts recovered from the condensed one.

    With ``s z -> mu``, the eliminated rows read ``dz = W (G dx + rg) + (1 - d W) (mu / s - z)`` and
    ``ds = -rg - G dx + d dz``.
    """
    low, high = problem.gaps(w.x)
    mu, W = target.mu, system.weight
    q = W * (target.rg + w.s / w.z * (mu / w.s - w.z))  # (2)
    rx = target.sigma * model.df + matmul(w.y, model.C) + matmul(w.z + q, model.G)
    rx = rx + problem.barrier_slope(w.x, mu)
    dx, dy = condensed(system, model.C, jnp.where(problem.free, -rx, 0), -target.rc)  # (1)
    move = matmul(model.G, dx)
    dz = W * move + q  # (3)
    return Direction(
        dx,
        -target.rg - move + system.d * dz,
        dy,
        dz,
        # (3)
        jnp.where(problem.below, mu / low - w.zl - w.zl / low * dx, 0),
        jnp.where(problem.above, mu / high - w.zu + w.zu / high * dx, 0),
    )


def bend(problem: Standard, system: System, C) -> tuple[Array, Array]:
    """Return a unit direction along the equations and its curvature ``v'Bv``, by inverse iteration.

    With a shift just above the most negative eigenvalue the iteration finds its eigenvector; a curvature that is not
    negative means that there is hardly any.
    """
    n, dtype = C.shape[1], C.dtype
    none = jnp.zeros(C.shape[0], dtype)

    def unit(v):
        return v / jnp.maximum(jnp.sqrt(dot(v, v)), jnp.finfo(dtype).tiny)

    first = jnp.where(problem.free, start_vector(n, dtype), 0)
    v = lax.fori_loop(0, 6, lambda _, v: unit(condensed(system, C, v, none)[0]), unit(first))
    return v, dot(v, matmul(system.B, v))


class Target(NamedTuple):
    """What a direction aims at: the barrier parameter, the residuals of both constraints, the objective's weight."""

    mu: Float[Array, ""]
    rc: Float[Array, " p"]
    rg: Float[Array, " q"]
    sigma: Float[Array, ""]


def multipliers(w: Iterate, model: Model):
    """Return ``argmin_y |f' + C'y + G'z - zl + zu|``, or zero where that is larger than 1000."""
    dtype, p = w.y.dtype, w.y.size
    if p == 0:
        return w.y
    r = -matmul(model.C, model.df + matmul(w.z, model.G) - w.zl + w.zu)
    gram = matmul(model.C, model.C.T)
    d = eps(dtype) ** 0.75 * jnp.maximum(jnp.trace(gram), eps(dtype))
    factor, _, _ = factorise(gram + d * jnp.eye(p, dtype=dtype), jnp.zeros((0, p), dtype), d)
    # (36)
    y = lax.fori_loop(0, 2, lambda _, y: y + back_substitute(factor, r - matmul(gram, y) - d * y, p), jnp.zeros_like(r))
    return jnp.where(jnp.all(jnp.abs(y) <= 1e3), y, 0)
