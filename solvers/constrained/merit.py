"""The exact augmented Lagrangian: its slope from five inner products, its penalties, and the Armijo search.

The outer method of Hong, Na, Mahoney and Kolar, ICML 2023, with g the gradient of the Lagrangian, H its Hessian and the
merit of Di Pillo and Grippo (1979):

(1) ``M = f + lam'c + eta1/2 |c|^2 + eta2/2 |g|^2``
(2) ``M'(dx, dlam) = <g, dx> + <c, dlam> + eta1 <c, G dx> + eta2 (<H g, dx> + <G g, dlam>)``
(3) ``M'(dx, dlam) <= -eta2/2 (|g|^2 + |c|^2)``, the descent test
(4) ``eta1 <- nu^2 eta1,  eta2 <- eta2 / nu`` until that holds
(5) ``M(alpha) <= M(0) + alpha beta M'``, alpha halved until that holds

It departs from the authors' program, which has the Hessian of f in the place of H in its descent test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core.precision import dot, eps
from ..core.typing import Array, Bool, Float, Int
from .problem import Point

BETA, NU = 0.1, 1.5
ETA1, ETA2 = 1.0, 0.1
RUNGS, TRIALS = 40, 40


class Slope(NamedTuple):
    """``grad M'(dx, dlam) = plain + eta1 * feasibility + eta2 * stationarity``, and the squared KKT residual."""

    plain: Float[Array, ""]
    feasibility: Float[Array, ""]
    stationarity: Float[Array, ""]
    residual: Float[Array, ""]

    def at(self, eta1, eta2):
        """Return the slope for given penalties."""
        return self.plain + eta1 * self.feasibility + eta2 * self.stationarity  # (2)

    def enough(self, eta1, eta2):
        """Whether the direction passes the descent test ``slope <= -eta2/2 |grad L|^2``."""
        return self.at(eta1, eta2) <= -0.5 * eta2 * self.residual  # (3)


def slope(point: Point, model, dx, dlam) -> Slope:
    """Return the merit's slope along ``(dx, dlam)``; H in `model` is that of the Lagrangian."""
    g, c = point.g, point.c
    return Slope(
        # (2)
        dot(g, dx) + dot(c, dlam),
        dot(c, model.jacobian(dx)),
        dot(model.hessian(g), dx) + dot(model.jacobian(g), dlam),
        dot(g, g) + dot(c, c),
    )


def value(point: Point, lam, eta1, eta2):
    """Return ``M = f + lam'c + eta1/2 |c|^2 + eta2/2 |f' + G'lam|^2``."""
    # (1)
    return point.f + dot(lam, point.c) + 0.5 * eta1 * dot(point.c, point.c) + 0.5 * eta2 * dot(point.g, point.g)


def penalties(slope: Slope, eta1, eta2):
    """Return the first of ``(eta1 nu^2k, eta2 / nu^k)``, k = 0, 1, ... that passes the descent test.

    All rungs are tried at once: under ``jax.vmap`` a loop would run for the unluckiest lane.
    """
    k = jnp.arange(RUNGS, dtype=eta1.dtype)
    eta1, eta2 = eta1 * NU ** (2 * k), eta2 * NU**-k  # (4)
    first = jnp.argmax(slope.enough(eta1, eta2))
    return eta1[first], eta2[first]


class Search(NamedTuple):
    """Where a line search ended."""

    alpha: Float[Array, ""]
    point: Point
    accepted: Bool[Array, ""]
    trials: Int[Array, ""]


def armijo(trial: Callable, decrease: Callable, point: Point, *, noise, willing, always, width: int) -> Search:
    """Halve alpha from 1 until ``trial(alpha) <= trial(0) + decrease(alpha) + noise``.

    ``trial(alpha)`` returns the merit's change and the `Point`; anything non-finite counts as no decrease. `noise` is
    what rounding leaves of the merit's value: without it the search refuses good steps near a solution. With `always`
    the first finite trial will do; without `willing` there is none. `width` lengths are tried at once: in a batch
    the unluckiest lane decides how often all wait.
    """
    dtype = point.f.dtype
    ladder = jnp.asarray([0.5**k for k in range(width)], dtype)

    def shorten(so_far: tuple[Array, Search]):
        top, (_, at, _, tried) = so_far
        alphas = top * ladder
        change, points = jax.vmap(trial)(alphas)
        finite = jnp.isfinite(change) & jnp.all(jnp.isfinite(points.g), axis=-1)
        good = finite & (always | (change <= decrease(alphas) + noise))  # (5)
        alpha, trials = top, width
        for i in reversed(range(width)):  # selections fuse where a gather would not
            at = jax.tree.map(lambda many, one: jnp.where(good[i], many[i], one), points, at)  # noqa: B023
            alpha, trials = jnp.where(good[i], alphas[i], alpha), jnp.where(good[i], i + 1, trials)
        return top * 0.5**width, Search(alpha, at, jnp.any(good), tried + trials)

    def searching(so_far: tuple[Array, Search]):
        _, found = so_far
        return willing & ~found.accepted & (found.trials < TRIALS)

    one = jnp.ones((), dtype)
    nothing = Search(one, point, jnp.zeros((), bool), jnp.zeros((), jnp.int32))
    return lax.while_loop(searching, shorten, (one, nothing))[1]


def rounding(point: Point, lam, merit):
    """Return about ten times the error that rounding makes in the merit."""
    size = jnp.abs(point.f) + jnp.sum(jnp.abs(lam * point.c)) + jnp.abs(merit)
    return 10 * eps(merit.dtype) * size
