"""The problem in standard form: flat scaled vectors, a slack for each inequality, masks for bounds that exist.

The number is that of Waechter and Biegler, Math. Program. 106 (2006), the sign of s and the names are ours:

(5) ``error = max(|f' + C'y + G'z - zl + zu| / s_d, |c|, max(g, 0), max(|z g|, |zl (x - lower)|, ...) / s_c)``

with ``s_d = max(100, mean of |y|, z, zl, zu) / 100`` and s_c the same without y, at mu = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core.precision import matmul
from ...core.typing import Array, Bool, Float, Scalar

PUSH = 1e-2
"""Starts are moved inside their bounds by this fraction of the bound's size or of the interval."""
GRADIENT = 100.0
"""Gradients larger than this at the start are scaled down to it."""

DAMPING = 1e-4
"""Times mu: how strongly variables with one bound are drawn to it, lest the barrier's logarithm sends them to infinity,
sec. 3.7."""


class Values(NamedTuple):
    """Objective, equations and inequalities at a point."""

    f: Float[Array, ""]
    c: Float[Array, " p"]
    g: Float[Array, " q"]


class Model(NamedTuple):
    """First derivatives of the three, and the Hessian H of ``sigma f + y'c + z'g``."""

    df: Float[Array, " n"]
    C: Float[Array, "p n"]
    G: Float[Array, "q n"]
    H: Float[Array, "n n"]
    held: Float[Array, " n"]
    """The Lagrangian's gradient in the variables that are not free, zero elsewhere: the multipliers that hold them."""


class Iterate(NamedTuple):
    """A primal-dual point of ``min f, c = 0, g + s = 0, s >= 0, lower <= x <= upper``.

    z serves both the inequalities and their slacks, whose multipliers must agree; `zl`, `zu` are those of the bounds.
    """

    x: Float[Array, " n"]
    s: Float[Array, " q"]
    y: Float[Array, " p"]
    z: Float[Array, " q"]
    zl: Float[Array, " n"]
    zu: Float[Array, " n"]


class Residual(NamedTuple):
    """How far a point is from the conditions of Karush, Kuhn and Tucker, each part in the largest entry."""

    stationarity: Float[Array, ""]
    violation: Float[Array, ""]
    complementarity: Float[Array, ""]

    def error(self):
        """Return the largest part."""
        return jnp.maximum(self.stationarity, jnp.maximum(self.violation, self.complementarity))


class Standard(NamedTuple):
    """The problem: functions of flat x, bounds with their masks, and the scales of f, c and g.

    Bounds that do not exist hold zeros. A variable with ``lower >= upper`` is not free: its derivatives count as zero.
    """

    posed: Callable[[Array], tuple[Array, Array, Array]]
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    below: Bool[Array, " n"]
    above: Bool[Array, " n"]
    free: Bool[Array, " n"]
    scale: Values
    columns: Float[Array, " n"]
    """Largest entries of the columns of both constraints' scaled Jacobians at the start."""

    def values(self, x) -> Values:
        """Return the scaled values."""
        return Values(*(scale * value for scale, value in zip(self.scale, self.posed(x), strict=True)))

    def model(self, x, y, z, sigma) -> tuple[Values, Model]:
        """Return values, Jacobians and the Hessian of ``sigma f + y'c + z'g`` from n forward-over-reverse products."""

        def gradient(x):
            values, pull = jax.vjp(self.values, x)
            return pull(Values(sigma, y, z))[0], values

        # The identity is broadcast from a mask, so that fixed variables have zero columns.
        (slope, values), push = jax.linearize(gradient, x)
        H, rows = jax.vmap(push)(jnp.diag(self.free.astype(x.dtype)))
        fixed = jnp.diag(jnp.where(self.free, 0, 1).astype(x.dtype))
        H = jnp.where(self.free[None], H, 0) + fixed
        return values, Model(rows.f, rows.c.T, rows.g.T, H, jnp.where(self.free, 0, slope))

    def gaps(self, x):
        """Return the distances to both bounds, one where there is none."""
        return jnp.where(self.below, x - self.lower, 1), jnp.where(self.above, self.upper - x, 1)

    def single(self):
        """Return +1 where there is a lower bound alone, -1 where there is an upper one alone, else 0."""
        return (self.below & ~self.above).astype(self.lower.dtype) - (self.above & ~self.below).astype(self.lower.dtype)

    def barrier_slope(self, x, mu):
        """Return the gradient of the bounds' barrier terms, with the damping of `DAMPING`."""
        low, high = self.gaps(x)
        slope = jnp.where(self.above, mu / high, 0) - jnp.where(self.below, mu / low, 0)
        return slope + DAMPING * mu * self.single()

    def inside(self, x, push: Scalar):
        """Move x inside its bounds by the fraction `push` of their size or width; onto them where they coincide."""
        both, width = self.below & self.above, push * (self.upper - self.lower)
        low, high = (push * jnp.maximum(1, jnp.abs(bound)) for bound in (self.lower, self.upper))
        low, high = (jnp.where(both, jnp.minimum(far, width), far) for far in (low, high))
        x = jnp.where(self.below, jnp.maximum(x, self.lower + low), x)
        x = jnp.where(self.above, jnp.minimum(x, self.upper - high), x)
        return jnp.where(self.free, x, self.lower)

    def residual(self, w: Iterate, values: Values, model: Model) -> Residual:
        """Return the residual of the problem as posed, relative to the mean multiplier where that exceeds 100."""
        sf, sc, sg = self.scale
        r = jnp.where(jnp.isfinite(values.f), gradient(w, model) / sf, jnp.nan)
        y, z, zl, zu = (v / sf for v in (w.y * sc, w.z * sg, w.zl, w.zu))
        bounds = jnp.sum(z) + jnp.sum(zl) + jnp.sum(zu)
        dual = mean_size(bounds + jnp.sum(jnp.abs(y)), y.size + z.size + 2 * zl.size)
        low, high = self.gaps(w.x)
        c, g = values.c / sc, values.g / sg
        # (5)
        return Residual(
            largest(r) / dual,
            jnp.maximum(largest(c), jnp.max(g, initial=0)),
            jnp.maximum(largest(z * g), jnp.maximum(largest(zl * low), largest(zu * high)))
            / mean_size(bounds, z.size + 2 * zl.size),
        )


def gradient(w: Iterate, model: Model, sigma: Scalar = 1.0):
    """Return the gradient of the Lagrangian, ``sigma f' + C'y + G'z - zl + zu``."""
    return sigma * model.df + matmul(w.y, model.C) + matmul(w.z, model.G) - w.zl + w.zu


def columns(model: Model):
    """Return the largest entries of the columns of both Jacobians."""
    return jnp.max(jnp.abs(jnp.concatenate([model.C, model.G])), axis=0, initial=0)


def mean_size(total, count):
    """Return the mean of `count` multipliers over 100, at least one: the divisors of equation 5."""
    return jnp.maximum(total / max(count, 1), GRADIENT) / GRADIENT


def largest(v):
    """Return the largest absolute entry, zero of none."""
    return jnp.max(jnp.abs(v), initial=0)


def bounded(posed, lower, upper, p: int, q: int) -> Standard:
    """Return the unscaled problem with p equations and q inequalities between the bounds."""
    free = lower < upper
    below, above = jnp.isfinite(lower) & free, jnp.isfinite(upper) & free
    one = jnp.ones((), lower.dtype)
    return Standard(
        posed,
        jnp.where(below | ~free, lower, 0),
        jnp.where(above, upper, 0),
        below,
        above,
        free,
        Values(one, jnp.ones(p, lower.dtype), jnp.ones(q, lower.dtype)),
        jnp.zeros_like(lower),
    )


def scales(model: Model) -> Values:
    """Return scales that bring the gradients of f, and of each constraint, down to at most 100."""

    def shrink(size):
        factor = jnp.maximum(GRADIENT / jnp.maximum(size, GRADIENT), 1e-8)
        return jnp.where(jnp.isfinite(factor), factor, 1)

    rows = [jnp.max(jnp.abs(J), axis=1, initial=0) for J in (model.C, model.G)]
    return Values(shrink(largest(model.df)), *(shrink(size) for size in rows))
