"""Derivatives of a trained network in its data: those of a point on the central path, where everything is smooth."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core.implicit import attach, distrust, envelope, linear_solve
from ..core.precision import HIGHEST, eps
from ..core.typing import Array
from .interior import Data, Point, eliminated, longest, newton, products
from .problem import Blocks, ConvexReLU

CENTRINGS = 12


class Near(NamedTuple):
    """What the hinge and its cones are near a point of the central path: multipliers linear in what they belong to.

    From ``s z = mu``, kept, ``dz = -(z / s) ds``; of the hinge's pairs ``dalpha = steep dr`` with ``r = 1 - y f``.
    Taken from the point and not from mu: at an active example a rounding error of r would be one of alpha.
    """

    alpha: Array
    r: Array
    steep: Array
    z: Array
    slack: Array

    @staticmethod
    def of(data: Data, p: Point) -> "Near":
        """Return that of a point."""
        pairs = products(data, p)
        spread = pairs.margin + p.alpha * p.excess / (1 - p.alpha)
        return Near(p.alpha, p.excess - pairs.margin, p.alpha / spread, p.z, pairs.slack)


def stationarity(data: Data, u: Array, mu: Array, near: Near) -> Array:
    """Return the gradient in u of the barrier problem: zero on the central path at `mu`."""
    blocks, half = data.blocks, mu / 2
    t = (half + jnp.sqrt(half**2 + data.beta**2 * jnp.sum(u * u, axis=1))) / data.beta
    g = data.beta * u / t[:, None]
    if data.loss == "squared":
        g = g + blocks.fit_transposed(blocks.fit(u) - data.y)
        return g - blocks.slack_transposed(mu / (blocks.slack(u) + blocks.idle)) if blocks.cone else g
    alpha = near.alpha + near.steep * (1 - data.y * blocks.fit(u) - near.r)
    g = g - blocks.fit_transposed(data.y * alpha)
    if blocks.cone:
        g = g - blocks.slack_transposed(near.z * (2 - (blocks.slack(u) + blocks.idle) / near.slack))
    return g


def barrier(data: Data, u: Array, mu: Array, near: Near) -> Array:
    """Return a function of derivatives in the data as the optimum's: of the hinge the Lagrangian."""
    blocks, half = data.blocks, mu / 2
    f = blocks.fit(u)
    t = (half + jnp.sqrt(half**2 + data.beta**2 * jnp.sum(u * u, axis=1))) / data.beta
    total = jnp.sum(jnp.abs(blocks.sign) * (data.beta * t - half * jnp.log(mu * t / data.beta)))
    weight = jnp.abs(blocks.sign)[:, None]
    if data.loss == "squared":
        if blocks.cone:
            total = total - mu * jnp.sum(weight * jnp.log(blocks.slack(u) + blocks.idle))
        return total + jnp.sum((f - data.y) ** 2) / 2
    if blocks.cone:
        total = total - jnp.sum(weight * near.z * blocks.slack(u))
    return total + jnp.sum(near.alpha * (1 - data.y * f))


def centred(data: Data, p: Point, mu: Array) -> Point:
    """Return the point of the central path at `mu`, by Newton steps from a point nearby."""

    def step(_, p):
        direction, pairs = newton(data, p)
        zero = jnp.zeros_like(mu)
        move = direction(mu, (zero, zero, zero))
        length = longest(data, p, move, pairs)
        return Point(*(x + length * dx for x, dx in zip(p, move, strict=True)))

    return lax.fori_loop(0, CENTRINGS, step, p)


def with_derivatives(
    problem: ConvexReLU, u: Array, objective: Array, p: Point, trusted: Array, sketch: int
) -> tuple[Array, Array]:
    """Return both with the derivatives in the problem's X, y and beta of a point on the central path nearby.

    The path is left at a complementarity of the root of the rounding error: further down its equations lose as many
    digits as the point gains.
    """

    def data_of(problem: ConvexReLU, moving) -> Data:
        X, y, beta = moving
        blocks = Blocks.of(problem)
        return Data(
            Blocks(X, lax.stop_gradient(blocks.active), blocks.sign, blocks.cone), y, beta, problem.loss, sketch
        )

    @jax.custom_jvp
    def identity(answer, p, problem, moving):
        return answer

    @identity.defjvp
    def _(primals, tangents):
        answer, p, problem, moving = primals
        near, path = lax.stop_gradient((data_of(problem, moving), p))
        mu = path_end(near)
        end = centred(near, path, mu)
        point, local = end.u, Near.of(near, end)

        def solve(jacobian, b):
            return linear_solve(jacobian, b, lambda _, b: newton_solve(near, point, mu, local, b))

        def moved(moving):
            u = attach(lambda u, m: stationarity(data_of(problem, m), u, mu, local), point, moving, solve=solve)
            return u, envelope(lambda u, m: barrier(data_of(problem, m), u, mu, local), u, moving)

        return identity(answer, p, problem, moving), jax.jvp(moved, (moving,), (tangents[3],))[1]

    moving = (problem.X, problem.y, problem.beta)
    answer = identity(*lax.stop_gradient(((u, objective), p, problem)), moving)
    return distrust(answer, lax.stop_gradient(trusted))


def mean_product(data: Data, p: Point) -> Array:
    """Return the mean complementarity."""
    pairs = products(data, p)
    return pairs.total / pairs.number


def path_end(data: Data) -> Array:
    """Return the mean complementarity below which a point is no longer good for derivatives.

    The hinge's equations bend more sharply, and lose their digits a thousand times earlier.
    """
    n, blocks = data.y.shape[0], data.blocks.sign.shape[0]
    base = jnp.sum(data.y**2) / 2 if data.loss == "squared" else jnp.asarray(1e3 * n, data.y.dtype)
    return eps(data.y.dtype) ** 0.5 * base / (blocks * n)


def newton_solve(data: Data, u: Array, mu: Array, near: Near, b: Array) -> Array:
    """Divide by the Jacobian of `stationarity` in u."""
    blocks, half, d = data.blocks, mu / 2, u.shape[1]
    omega = jnp.sqrt(half**2 + data.beta**2 * jnp.sum(u * u, axis=1))
    t = (half + omega) / data.beta
    outer = u[:, :, None] * u[:, None, :] * (data.beta / (t * omega))[:, None, None]
    hessian = (data.beta / t)[:, None, None] * (jnp.eye(d, dtype=u.dtype)[None] - outer)
    squared = data.loss == "squared"
    if blocks.cone:
        bend = mu / (blocks.slack(u) + blocks.idle) ** 2 if squared else near.z / near.slack
        hessian = hessian + jnp.einsum("bn,nd,ne->bde", bend, blocks.X, blocks.X, precision=HIGHEST)
    weight = jnp.ones_like(data.y) if squared else data.y**2 * near.steep
    return eliminated(blocks, hessian, 1 / weight, data.sketch, even=squared)(b)[0]
