"""Derivatives of a trained network in its data: those of a point on the central path, where everything is smooth."""

import jax
import jax.numpy as jnp
from jax import lax

from ..core.implicit import attach, distrust, envelope, linear_solve
from ..core.precision import HIGHEST, eps
from ..core.typing import Array
from .interior import Data, Point, eliminated, longest, newton, products
from .problem import Blocks, ConvexReLU

CENTRINGS = 12


def smooth_slope(data: Data, f: Array, mu: Array) -> Array:
    """Return the loss's derivative in f on the central path; of the hinge, ``-y alpha`` in closed form."""
    if data.loss == "squared":
        return f - data.y
    # alpha (e - r) = mu and (1 - alpha) e = mu with r = 1 - y f: e is the larger root of e^2 - (r + 2 mu) e + mu r = 0.
    r = 1 - data.y * f
    excess = (r + 2 * mu + jnp.sqrt(r * r + 4 * mu * mu)) / 2
    return -data.y * (1 - mu / excess)


def stationarity(data: Data, u: Array, mu: Array) -> Array:
    """Return the gradient in u of the barrier problem: zero on the central path at `mu`."""
    blocks, half = data.blocks, mu / 2
    t = (half + jnp.sqrt(half**2 + data.beta**2 * jnp.sum(u * u, axis=1))) / data.beta
    g = data.beta * u / t[:, None] + blocks.fit_transposed(smooth_slope(data, blocks.fit(u), mu))
    if blocks.cone:
        g = g - blocks.slack_transposed(mu / (blocks.slack(u) + blocks.idle))
    return g


def barrier(data: Data, u: Array, mu: Array) -> Array:
    """Return the function whose gradient `stationarity` is, up to a constant: near the optimum, its value."""
    blocks, half = data.blocks, mu / 2
    f = blocks.fit(u)
    t = (half + jnp.sqrt(half**2 + data.beta**2 * jnp.sum(u * u, axis=1))) / data.beta
    total = jnp.sum(jnp.abs(blocks.sign) * (data.beta * t - half * jnp.log(mu * t / data.beta)))
    if blocks.cone:
        weight = jnp.abs(blocks.sign)[:, None]
        total = total - mu * jnp.sum(weight * jnp.log(blocks.slack(u) + blocks.idle))
    if data.loss == "squared":
        return total + jnp.sum((f - data.y) ** 2) / 2
    r = 1 - data.y * f
    excess = (r + 2 * mu + jnp.sqrt(r * r + 4 * mu * mu)) / 2
    return total + jnp.sum(excess - mu * jnp.log(excess) - mu * jnp.log(excess - r))


def centred(data: Data, p: Point, mu: Array) -> Point:
    """Return the point of the central path at `mu`, by Newton steps from a point nearby."""

    def step(_, p):
        direction, pairs = newton(data, p)
        zero = jnp.zeros_like(mu)
        move = direction(mu, (zero, zero, zero))
        length = longest(data, p, move, pairs)
        return Point(*(x + length * dx for x, dx in zip(p, move, strict=True)))

    return lax.fori_loop(0, CENTRINGS, step, p)


def with_derivatives(problem: ConvexReLU, u: Array, objective: Array, p: Point, trusted: Array) -> tuple[Array, Array]:
    """Return both with the derivatives in the problem's X, y and beta of a point on the central path nearby.

    The hinge's are NaN.

    The path is left at a complementarity of the root of the rounding error: further down its equations lose as many
    digits as the point gains.
    """

    def data_of(problem: ConvexReLU, moving) -> Data:
        X, y, beta = moving
        blocks = Blocks.of(problem)
        return Data(Blocks(X, lax.stop_gradient(blocks.active), blocks.sign, blocks.cone), y, beta, problem.loss)

    @jax.custom_jvp
    def identity(answer, p, problem, moving):
        return answer

    @identity.defjvp
    def _(primals, tangents):
        answer, p, problem, moving = primals
        near, path = lax.stop_gradient((data_of(problem, moving), p))
        mu = path_end(near)
        point = centred(near, path, mu).u

        def solve(jacobian, b):
            return linear_solve(jacobian, b, lambda _, b: newton_solve(near, point, mu, b))

        def moved(moving):
            u = attach(lambda u, m: stationarity(data_of(problem, m), u, mu), point, moving, solve=solve)
            return u, envelope(lambda u, m: barrier(data_of(problem, m), u, mu), u, moving)

        return identity(answer, p, problem, moving), jax.jvp(moved, (moving,), (tangents[3],))[1]

    moving = (problem.X, problem.y, problem.beta)
    trusted = trusted & (problem.loss == "squared")
    answer = identity(*lax.stop_gradient(((u, objective), p, problem)), moving)
    return distrust(answer, lax.stop_gradient(trusted))


def mean_product(data: Data, p: Point) -> Array:
    """Return the mean complementarity."""
    pairs = products(data, p)
    return pairs.total / pairs.number


def path_end(data: Data) -> Array:
    """Return the mean complementarity below which a point is no longer good for derivatives."""
    n, blocks = data.y.shape[0], data.blocks.sign.shape[0]
    base = jnp.sum(data.y**2) / 2 if data.loss == "squared" else jnp.asarray(n, data.y.dtype)
    return eps(data.y.dtype) ** 0.5 * base / (blocks * n)


def newton_solve(data: Data, u: Array, mu: Array, b: Array) -> Array:
    """Divide by the Jacobian of `stationarity` in u."""
    blocks, half, d = data.blocks, mu / 2, u.shape[1]
    omega = jnp.sqrt(half**2 + data.beta**2 * jnp.sum(u * u, axis=1))
    t = (half + omega) / data.beta
    outer = u[:, :, None] * u[:, None, :] * (data.beta / (t * omega))[:, None, None]
    hessian = (data.beta / t)[:, None, None] * (jnp.eye(d, dtype=u.dtype)[None] - outer)
    if blocks.cone:
        slack = blocks.slack(u) + blocks.idle
        hessian = hessian + jnp.einsum("bn,nd,ne->bde", mu / slack**2, blocks.X, blocks.X, precision=HIGHEST)
    f = blocks.fit(u)
    weight = jax.jvp(lambda f: smooth_slope(data, f, mu), (f,), (jnp.ones_like(f),))[1]
    return eliminated(blocks, hessian, 1 / weight)(b)[0]
