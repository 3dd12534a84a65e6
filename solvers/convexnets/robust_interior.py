"""The interior-point method of `interior` for networks trained against perturbations: one system in the neurons a step.

Mehrotra's method for the problem of `robust`, its absolute values as linear inequalities, with bounds a of the neurons'
entries, h of the gradients' and r of the losses; e are the radii, o the sides of a block:

(1) ``o X u >= e'a``, ``a >= |u|``, ``h >= |g|``
(2) ``r >= |f - y| + e'h`` and ``r^2 / 2``, or ``r >= 1 - y f + e'h``, ``r >= 0`` and r

With weights ``w = z / s`` of the inequalities, a, h and r are eliminated in closed form. By Sherman and Morrison, what
a block's Hessian gains of its cones is, with ``below, above`` the weights of ``a - u, a + u``,

(3) ``diag(4 below above / (below + above)) + sum_k w_k (x_k - m)(x_k - m)' + k (m + t)(m + t)'``

with x_k the rows of o X, ``m = sum w_k x_k / sum w``, ``t = e (above - below) / (below + above)`` and
``1 / k = 1 / sum w + sum_j e_j^2 / (below_j + above_j)``,

without cancellation, and that of an example in (f, g) is of the same form, with one row for the loss:

(4) ``diag(p, 4 low high / (low + high)) + k (q, t)(q, t)'``

    hinge: ``w = w1 w2 / (w1 + w2), q = y, p = 0``; squared: ``w = (w1 + w2) / (1 + w1 + w2), q = (w2 - w1) / (w1 + w2),
    p = 4 w1 w2 / (w1 + w2)``

(5) ``sum_i (H_i + K) du = rhs``, K of all blocks together, ``sign_i sign_j sum_k D_i[k] D_j[k] E_k' V_k E_k``
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.precision import HIGHEST, eps, matmul, tiny
from ..core.typing import Array
from .interior import FRACTION, scaling, until_cone, until_zero
from .problem import Blocks, lengths
from .robust import gradients, radii


class RobustData(eqx.Module):
    """What a step needs of the problem: `wide` are the radii of each block, `moves` of the features, whether any."""

    blocks: Blocks
    y: Array
    beta: Array
    radius: Array
    wide: Array
    loss: str = eqx.field(static=True)

    @staticmethod
    def of(blocks: Blocks, loss: str, y: Array, beta: Array, radius: Array) -> RobustData:
        """Return that of a problem."""
        return RobustData(blocks, y, beta, radius, radii(blocks, radius), loss)

    @property
    def squared(self) -> bool:
        """Whether the loss is."""
        return self.loss == "squared"


class Rows(NamedTuple):
    """One number for each inequality: its slack, its multiplier, or a change of one."""

    cone: Array
    below: Array
    above: Array
    low: Array
    high: Array
    first: Array
    second: Array


class Point(NamedTuple):
    """Neurons u with bounds a, t, q as in `interior`, bounds h, r, and the multipliers z of all inequalities."""

    u: Array
    a: Array
    t: Array
    q: Array
    h: Array
    r: Array
    z: Rows


def mapped(data: RobustData, u: Array, a: Array, h: Array, r: Array) -> Rows:
    """Return what the inequalities are without their constants; zero where a feature is not moved."""
    blocks, (f, g) = data.blocks, (data.blocks.fit(u), gradients(data.blocks, u))
    off = matmul(h, data.radius)
    pair = (r - f - off, r + f - off) if data.squared else (r, r + data.y * f - off)  # (2)
    cone = blocks.slack(u) - jnp.sum(data.wide * a, axis=1)[:, None]  # (1)
    of_block, of_example = data.wide > 0, (data.radius > 0)[None, :]
    two = lambda moves, bound, x: (jnp.where(moves, bound - x, 0), jnp.where(moves, bound + x, 0))  # noqa: E731
    return Rows(cone, *two(of_block, a, u), *two(of_example, h, g), *pair)


def pulled(data: RobustData, z: Rows) -> tuple[Array, Array, Array, Array]:
    """Return the transpose of `mapped` for multipliers: what they pull u, a, h and r with."""
    blocks = data.blocks
    of_block, of_example = data.wide > 0, (data.radius > 0)[None, :]
    kept = lambda moves, x: jnp.where(moves, x, 0)  # noqa: E731
    off = z.first + z.second if data.squared else z.second
    f = z.second - z.first if data.squared else data.y * z.second
    u = blocks.slack_transposed(z.cone) + kept(of_block, z.above - z.below)
    u = u + back(blocks, f, kept(of_example, z.high - z.low))
    a = kept(of_block, z.below + z.above) - data.wide * jnp.sum(z.cone, axis=1)[:, None]
    h = kept(of_example, z.low + z.high) - off[:, None] * data.radius[None, :]
    return u, a, h, z.first + z.second


def back(blocks: Blocks, f: Array, g: Array) -> Array:
    """Return the transpose of outputs and gradients."""
    return blocks.fit_transposed(f) + blocks.sign[:, None] * matmul(blocks.active, g)


def slacks(data: RobustData, p: Point) -> Rows:
    """Return the slacks, one where there is no inequality."""
    s = mapped(data, p.u, p.a, p.h, p.r)
    idle = jnp.where((data.blocks.sign == 0)[:, None], data.blocks.idle, 0)
    of_block, of_example = data.wide > 0, (data.radius > 0)[None, :]
    one = lambda moves, x: jnp.where(moves, x, 1)  # noqa: E731
    pair = (s.first + data.y, s.second - data.y) if data.squared else (s.first, s.second - 1)
    return Rows(s.cone + idle, one(of_block, s.below), one(of_block, s.above), one(of_example, s.low),
                one(of_example, s.high), *pair)  # fmt: skip


def start(data: RobustData, gates: Array) -> Point:
    """Return a point inside all inequalities: each neuron a multiple of its own gate, both signs alike."""
    blocks, y, beta, radius = data.blocks, data.y, data.beta, data.radius
    count, n = blocks.sign.shape[0], y.shape[0]
    base = jnp.sum(y**2) / 2 if data.squared else jnp.asarray(n, y.dtype)
    mu = base / (count * (n + 1))
    u = gates / jnp.maximum(lengths(gates), tiny(y.dtype))[:, None] * (base / (count * beta + base))
    total = jnp.sum(data.wide, axis=1)
    margin = jnp.min(blocks.slack(u), axis=1) - jnp.sum(data.wide * jnp.abs(u), axis=1)
    room = jnp.where(total > 0, margin / jnp.where(total > 0, 2 * total, 1), 0)
    half = mu / 2
    t = (half + jnp.sqrt(half**2 + beta**2 * jnp.sum(u * u, axis=1))) / beta
    unit = jnp.sqrt(jnp.mean(y**2)) if data.squared else jnp.ones((), y.dtype)
    h = jnp.where(radius > 0, unit / (radius.shape[0] * jnp.where(radius > 0, radius, 1)), 0)
    h = jnp.broadcast_to(h[None, :], (n, radius.shape[0]))
    r = 2 * unit + (jnp.abs(y) if data.squared else 1)
    r = jnp.broadcast_to(r, (n,)) + matmul(h, radius)
    a = jnp.abs(u) + room[:, None]
    none = Rows(*([jnp.zeros((), y.dtype)] * 7))
    s = slacks(data, Point(u, a, t, u, h, r, none))
    cone = mu / jnp.maximum(s.cone, tiny(y.dtype))
    side = data.wide * jnp.sum(cone, axis=1)[:, None] / 2
    first = r / 2 if data.squared else jnp.full(n, 0.5, y.dtype)
    away = (2 * first if data.squared else first)[:, None] * radius[None, :] / 2
    return Point(u, a, t, beta * u / t[:, None], h, r, Rows(cone, side, side, away, away, first, first))


def total_products(data: RobustData, p: Point, s: Rows) -> tuple[Array, Array]:
    """Return the sum of all complementary products and their number."""
    count, moves = jnp.abs(data.blocks.sign), (data.radius > 0).astype(p.u.dtype)
    n, features = data.y.shape[0], jnp.sum(moves)
    blockwise = data.beta * p.t - jnp.sum(p.q * p.u, axis=1) + jnp.sum(p.z.cone * s.cone, axis=1)
    blockwise = blockwise + jnp.sum((p.z.below * s.below + p.z.above * s.above) * moves[None, :], axis=1)
    examples = jnp.sum((p.z.low * s.low + p.z.high * s.high) * moves[None, :])
    examples = examples + jnp.sum(p.z.first * s.first + p.z.second * s.second)
    return jnp.sum(count * blockwise) + examples, jnp.sum(count) * (1 + n + 2 * features) + n * (2 + 2 * features)


class Bound(NamedTuple):
    """Bounds of absolute values eliminated: ``(D + w e e') da = rhs``, their coupling, and what it adds (3), (4)."""

    diagonal: Array
    share: Array
    edge: Array
    stiff: Array
    curved: Array
    radius: Array

    @staticmethod
    def of(below: Array, above: Array, weight: Array, radius: Array) -> Bound:
        """Return that of ``bound - x, bound + x >= 0`` of given weights, and rows ``.. - e'bound`` of that total."""
        diagonal = jnp.where(radius > 0, below + above, 1)
        share = jnp.where(radius > 0, (above - below) / diagonal, 0)
        stiff = weight / (1 + weight * jnp.sum(radius**2 / diagonal, axis=1))
        curved = jnp.where(radius > 0, 4 * below * above / diagonal, 0)
        return Bound(diagonal, share, radius * share, stiff, curved, radius)

    def divide(self, x: Array) -> Array:
        """Return ``(D + w e e')^-1 x``."""
        x = x / self.diagonal
        return x - self.radius / self.diagonal * (self.stiff * jnp.sum(self.radius * x, axis=1))[:, None]

    def along(self, x: Array) -> Array:
        """Return ``w e'(D + w e e')^-1 x``."""
        return self.stiff * jnp.sum(self.radius * x / self.diagonal, axis=1)


def newton(data: RobustData, p: Point):
    """Return ``(mu, bent) -> direction`` and the slacks, as in `interior`."""
    blocks, beta = data.blocks, data.beta
    s, scale = slacks(data, p), scaling(beta, p.t, p.u, p.q)
    w = Rows(*(z / jnp.maximum(slack, tiny(slack.dtype)) for z, slack in zip(p.z, s, strict=True)))
    bend = 2 * scale.w0**2 - 1

    # Blocks: the weighted mean m of the rows of o X, and the bounds a.
    weight = jnp.sum(w.cone, axis=1)
    share = w.cone / jnp.maximum(weight, tiny(weight.dtype))[:, None]
    mean = blocks.slack_transposed(share)
    bound = Bound.of(w.below, w.above, weight, data.wide)
    apart = blocks.orientation[:, :, None] * blocks.X[None] - mean[:, None, :]
    hessian = jnp.einsum("bn,bnd,bne->bde", w.cone, apart, apart, precision=HIGHEST)
    tip = mean + bound.edge
    hessian = hessian + bound.stiff[:, None, None] * tip[:, :, None] * tip[:, None, :]  # (3)
    eye = jnp.eye(p.u.shape[1], dtype=p.u.dtype)
    hessian = hessian + bound.curved[:, :, None] * eye[None]
    outer = scale.w1[:, :, None] * scale.w1[:, None, :] * (2 / bend)[:, None, None]
    hessian = hessian + (eye[None] - outer) / scale.square[:, None, None]

    # Examples: the loss's bound r, then h.
    both = w.first + w.second
    safe = jnp.maximum(both, tiny(both.dtype))
    if data.squared:
        heavy, q, plain = both / (1 + both), (w.second - w.first) / safe, 4 * w.first * w.second / safe
    else:
        heavy, q, plain = w.first * w.second / safe, data.y, jnp.zeros_like(both)
    away = Bound.of(w.low, w.high, heavy, jnp.broadcast_to(data.radius[None, :], p.h.shape))
    row = q[:, None] * blocks.X + away.edge
    K = plain[:, None, None] * blocks.X[:, :, None] * blocks.X[:, None, :] + away.curved[:, :, None] * eye[None]
    K = K + away.stiff[:, None, None] * row[:, :, None] * row[:, None, :]  # (4)

    # (5)
    b, d = p.u.shape
    on = blocks.sign[:, None] * blocks.active
    joint = jnp.einsum("bn,cn,nde->bdce", on, on, K, precision=HIGHEST)
    joint = joint + jnp.eye(b, dtype=on.dtype)[:, None, :, None] * hessian[:, :, None, :]
    system = joint.reshape(b * d, b * d)
    unit = 1 / jnp.sqrt(jnp.maximum(jnp.diag(system), tiny(system.dtype)))
    system = system * unit[:, None] * unit[None, :] + 10 * eps(system.dtype) * jnp.eye(b * d, dtype=system.dtype)
    factor = jnp.linalg.cholesky(system)

    def direction(mu, bent: Rows) -> Point:
        aim = Rows(*((mu - x) / jnp.maximum(slack, tiny(slack.dtype)) for x, slack in zip(bent, s, strict=True)))
        a0 = -beta + mu * p.t / scale.bulge
        fixed = -2 * (scale.w0 / bend * a0)[:, None] * scale.w1 - p.q + mu * p.u / scale.bulge[:, None]
        ru, ra, rh, rr = pulled(data, aim)
        ru = ru - p.q - fixed
        rr = rr - (p.r if data.squared else 1)
        # Without r, then h, then a.
        rf = -(w.second - w.first) * rr / (1 + both) if data.squared else -data.y * w.second * rr / safe
        lift = heavy * rr if data.squared else w.second * rr / safe
        rh = rh + lift[:, None] * data.radius[None, :]
        rf = rf + q * away.along(rh)
        ru = ru + back(blocks, rf, -away.share * away.diagonal * away.divide(rh))
        ru = ru - bound.share * bound.diagonal * bound.divide(ra) + mean * bound.along(ra)[:, None]
        du = unit * jax.scipy.linalg.cho_solve((factor, True), unit * ru.reshape(-1))
        du = du.reshape(b, d)
        df, dg = blocks.fit(du), gradients(blocks, du)
        pull = (weight * jnp.sum(mean * du, axis=1))[:, None] * data.wide
        da = bound.divide(ra - bound.share * bound.diagonal * du + pull)
        dh = away.divide(rh - away.share * away.diagonal * dg + (heavy * q * df)[:, None] * data.radius[None, :])
        off = matmul(dh, data.radius)
        if data.squared:
            dr = (rr + both * off - (w.second - w.first) * df) / (1 + both)
        else:
            dr = (rr - w.second * (data.y * df - off)) / safe
        ds = mapped(data, du, da, dh, dr)
        dz = Rows(*(v - z - x * y for v, z, x, y in zip(aim, p.z, w, ds, strict=True)))
        dz = masked(data, dz)
        along = jnp.sum(scale.w1 * du, axis=1)
        dt = scale.square * a0 / bend + 2 * scale.w0 * along / bend
        dq = (du - 2 * (along / bend)[:, None] * scale.w1) / scale.square[:, None] + fixed
        return Point(du, da, dt, dq, dh, dr, dz)

    return direction, s


def masked(data: RobustData, z: Rows) -> Rows:
    """Return multipliers that are zero where there is no inequality."""
    of_block, of_example = data.wide > 0, (data.radius > 0)[None, :]
    two = lambda moves, x, y: (jnp.where(moves, x, 0), jnp.where(moves, y, 0))  # noqa: E731
    return Rows(z.cone, *two(of_block, z.below, z.above), *two(of_example, z.low, z.high), z.first, z.second)


def longest(data: RobustData, p: Point, d: Point, s: Rows) -> Array:
    """Return the longest step, at most one, that keeps a little distance from the boundary."""
    change = mapped(data, d.u, d.a, d.h, d.r)
    ends = [until_cone(p.t, d.t, p.u, d.u), until_cone(data.beta, jnp.zeros_like(data.beta), p.q, d.q)]
    ends += [until_zero(x, dx) for x, dx in zip(s, change, strict=True)]
    ends += [until_zero(x, dx) for x, dx in zip(p.z, d.z, strict=True)]
    return jnp.minimum(1, FRACTION * jnp.min(jnp.stack(ends)))


def advance(data: RobustData, p: Point) -> Point:
    """Take one step of Mehrotra's."""
    direction, s = newton(data, p)
    zero = jnp.zeros_like(data.beta)
    straight = direction(zero, Rows(*(jnp.zeros_like(x) for x in s)))
    free = longest(data, p, straight, s)
    total, number = total_products(data, p, s)
    change = mapped(data, straight.u, straight.a, straight.h, straight.r)
    bent = Rows(*(free**2 * ds * dz for ds, dz in zip(change, straight.z, strict=True)))
    move = direction((1 - free) ** 3 * total / number, bent)
    length = longest(data, p, move, s)
    return jax.tree.map(lambda x, dx: x + length * dx, p, move)


def slopes(data: RobustData, p: Point) -> Array:
    """Return the derivatives of the loss in outputs and gradients, side by side."""
    f = p.z.first - p.z.second if data.squared else -data.y * p.z.second
    return jnp.concatenate([f[:, None], p.z.low - p.z.high], axis=1)
