"""A primal-dual interior-point method for the convex problem: one n x n system a step, however many the blocks.

Mehrotra's method, SIAM J. Optim. 2 (1992), for the problem of Pilanci and Ergen, ICML 2020, with F the map from neurons
to outputs and s the slacks of their cones:

(1) ``z s = mu``, and ``(t, u)`` with ``(beta, -q)`` likewise; of the hinge
    ``alpha margin = mu, (1 - alpha) excess = mu``
(2) ``W^-2 = (2 J w w' J - J) / square``, Nesterov and Todd's scaling of ``(t, u)`` and ``(beta, -q)``
(3) ``H_i = (I - 2 w1 w1' / (2 w0^2 - 1)) / square + X' diag(z / s) X``
(4) ``(H + F'V F) du = rhs``, V the loss's curvature, by ``(V^-1 + F H^-1 F') x = F H^-1 rhs``
(5) ``mu = (1 - a)^3 mean``, a the step to the boundary towards products of zero, mean that of the products now

It departs from Bai, Gautam and Sojoudi, SIMODS 2023, who solve it by ADMM.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.krylov.cg import cg
from ..core.linalg.nystrom import nystrom
from ..core.precision import HIGHEST, eps, matmul, tiny
from ..core.typing import Array
from .problem import Blocks, lengths

FRACTION = 0.99
"""Of the way to the boundary."""
CG_STEPS = 300


class Data(eqx.Module):
    """What a step needs of the problem."""

    blocks: Blocks
    y: Array
    beta: Array
    loss: str = eqx.field(static=True)
    sketch: int = eqx.field(static=True, default=0)


class Point(NamedTuple):
    """Neurons u with bounds t on their lengths, multipliers z of their cones and q of the lengths, |q| < beta.

    Of the hinge, its dual alpha and ``excess > max(0, 1 - y f)``; ``(t, u)`` and ``(beta, -q)`` are a pair of vectors
    in the second-order cone.
    """

    u: Array
    t: Array
    z: Array
    q: Array
    alpha: Array
    excess: Array


class Products(NamedTuple):
    """Complementary pairs: slacks of the cones, margins of the hinge; and the sum of all products with their number."""

    slack: Array
    margin: Array
    total: Array
    number: Array


def start(data: Data, gates: Array) -> Point:
    """Return a point inside all cones: each neuron a multiple of its own gate, both signs alike, so that f = 0."""
    blocks, n = data.blocks, data.y.shape[0]
    u = gates / jnp.maximum(lengths(gates), tiny(gates.dtype))[:, None]
    count = u.shape[0]
    base = jnp.sum(data.y**2) / 2 if data.loss == "squared" else jnp.asarray(n, u.dtype)
    mu = base / (count * (n + 1))
    u = u * (base / (count * data.beta + base))
    z = (
        mu / jnp.maximum(blocks.slack(u) + blocks.idle, tiny(u.dtype))
        if blocks.cone
        else jnp.zeros((count, n), u.dtype)
    )
    # On the central path: t minimises beta t - mu log(t^2 - |u|^2) / 2.
    half = mu / 2
    t = (half + jnp.sqrt(half**2 + data.beta**2 * jnp.sum(u * u, axis=1))) / data.beta
    excess = jnp.maximum(1 - data.y * blocks.fit(u), 0) + 1
    return Point(u, t, z, data.beta * u / t[:, None], jnp.full(n, 0.5, u.dtype), excess)


def slope(data: Data, p: Point) -> Array:
    """Return the gradient of the loss in f; of the hinge from its dual."""
    return data.blocks.fit(p.u) - data.y if data.loss == "squared" else -data.y * p.alpha


def products(data: Data, p: Point) -> Products:
    """Return the complementary pairs of a point."""
    blocks, count = data.blocks, jnp.abs(data.blocks.sign)
    total, number = jnp.sum(count * (data.beta * p.t - jnp.sum(p.q * p.u, axis=1))), jnp.sum(count)
    slack, margin = p.z, p.alpha
    if blocks.cone:
        slack = blocks.slack(p.u) + blocks.idle
        total, number = total + jnp.sum(count[:, None] * p.z * slack), number * (1 + p.z.shape[1])
    if data.loss == "hinge":
        margin = p.excess - 1 + data.y * blocks.fit(p.u)
        total = total + jnp.sum(p.alpha * margin + (1 - p.alpha) * p.excess)
        number = number + 2 * p.alpha.shape[0]
    # (1)
    return Products(slack, margin, total, number)


class Scaling(NamedTuple):
    """Nesterov and Todd's scaling of ``(t, u)`` and ``(beta, -q)``: ``W^-2 = (2 J w w' J - J) / square``."""

    w0: Array
    w1: Array
    square: Array
    bulge: Array


def scaling(beta: Array, t: Array, u: Array, q: Array) -> Scaling:
    """Return the scaling of each block; `bulge` is ``t^2 - |u|^2``."""
    size, other = lengths(u), lengths(q)
    bulge = jnp.maximum((t - size) * (t + size), tiny(size.dtype))
    other = jnp.maximum((beta - other) * (beta + other), tiny(size.dtype))
    x0, x1 = t / jnp.sqrt(bulge), u / jnp.sqrt(bulge)[:, None]
    y0, y1 = beta / jnp.sqrt(other), -q / jnp.sqrt(other)[:, None]
    gamma = jnp.sqrt(jnp.maximum((1 + x0 * y0 + jnp.sum(x1 * y1, axis=1)) / 2, 1))
    # (2)
    return Scaling((x0 + y0) / (2 * gamma), (x1 - y1) / (2 * gamma)[:, None], jnp.sqrt(bulge / other), bulge)


def block_hessians(data: Data, p: Point, scale: Scaling, slack: Array) -> Array:
    """Return ``(I - 2 w1 w1' / (2 w0^2 - 1)) / square + X' diag(z / s) X`` of each block."""
    d = p.u.shape[1]
    outer = scale.w1[:, :, None] * scale.w1[:, None, :] * (2 / (2 * scale.w0**2 - 1))[:, None, None]
    hessian = (jnp.eye(d, dtype=p.u.dtype)[None] - outer) / scale.square[:, None, None]  # (3)
    if data.blocks.cone:
        ratio = p.z / jnp.maximum(slack, tiny(slack.dtype))
        hessian = hessian + jnp.einsum("bn,nd,ne->bde", ratio, data.blocks.X, data.blocks.X, precision=HIGHEST)
    return hessian


def eliminated(blocks: Blocks, hessian: Array, flat: Array, sketch: int = 0, *, even: bool = False):
    """Return ``g -> (v, W F v)`` with ``(H + F' W F) v = g`` for block-diagonal H and diagonal ``W = 1 / flat``.

    With a `sketch` the n x n matrix is not formed: conjugate gradients, preconditioned by a Nystrom approximation.
    `even`: W is of one size; then the system in the neurons is as good as that in the examples, and taken if smaller.
    """
    d = hessian.shape[1]
    floor = 10 * eps(hessian.dtype) * jnp.trace(hessian, axis1=1, axis2=2) / d + tiny(hessian.dtype)
    lower = jnp.linalg.cholesky(hessian + floor[:, None, None] * jnp.eye(d, dtype=hessian.dtype)[None])
    rows = jnp.broadcast_to(blocks.X.T[None], (hessian.shape[0], *blocks.X.T.shape))
    whitened = lax.linalg.triangular_solve(lower, rows, left_side=True, lower=True)
    whitened = (whitened * (blocks.sign[:, None] * blocks.active)[:, None, :]).reshape(-1, blocks.X.shape[0])
    if even and not sketch and whitened.shape[0] < flat.shape[0]:
        inner = jnp.eye(whitened.shape[0], dtype=flat.dtype) + matmul(whitened / flat[None, :], whitened.T)
        system = jnp.linalg.cholesky(inner), True

        def narrow(g):
            half = lax.linalg.triangular_solve(lower, g[:, :, None], left_side=True, lower=True)
            half = jax.scipy.linalg.cho_solve(system, half.reshape(-1))
            v = lax.linalg.triangular_solve(
                lower, half.reshape(*g.shape, 1), left_side=True, lower=True, transpose_a=True
            )
            return v[:, :, 0], matmul(whitened.T, half) / flat

        return narrow
    # (4)
    if sketch:
        invert = by_sketch(whitened, flat, min(sketch, flat.shape[0]))
    else:
        factor = jnp.linalg.cholesky(matmul(whitened.T, whitened) + jnp.diag(flat))
        invert = lambda b: jax.scipy.linalg.cho_solve((factor, True), b)  # noqa: E731

    def solve(g):
        half = lax.linalg.triangular_solve(lower, g[:, :, None], left_side=True, lower=True)
        x = invert(matmul(whitened.T, half.reshape(-1)))
        half = half - matmul(whitened, x).reshape(half.shape)
        return lax.linalg.triangular_solve(lower, half, left_side=True, lower=True, transpose_a=True)[:, :, 0], x

    return solve


def by_sketch(whitened: Array, flat: Array, rank: int):
    """Return ``b -> (whitened' whitened + diag(flat))^-1 b`` by conjugate gradients in O(rank) products with it.

    Scaled by ``flat^-1/2`` the matrix is the identity and what the active neurons add: few large eigenvalues.
    """
    root = 1 / jnp.sqrt(flat)
    scaled = whitened * root[None, :]
    gram = lambda v: matmul(scaled.T, matmul(scaled, v))  # noqa: E731
    near = nystrom(gram, flat.shape[0], rank, jax.random.key(43), shift=1.0, dtype=flat.dtype)

    def solve(b):
        b = root * b
        # to the last digit: near the end rows differ by many orders, and those of small `root` would keep none
        tol = eps(b.dtype) * jnp.sqrt(jnp.sum(b * b))
        return (
            root * cg(lambda v: v + gram(v), b, tol=tol, max_steps=CG_STEPS, precondition=lambda r: near.power(r, -1)).x
        )

    return solve


def newton(data: Data, p: Point):
    """Return ``(mu, bent) -> direction`` towards products mu, less second-order terms of the pairs in `bent`.

    Everything but u is eliminated, block by block, and then the blocks: ``(W^-1 + F H^-1 F') x = F H^-1 g``.
    """
    blocks, y, beta = data.blocks, data.y, data.beta
    pairs, scale = products(data, p), scaling(beta, p.t, p.u, p.q)
    safe = jnp.maximum(pairs.slack, tiny(y.dtype))
    bend = 2 * scale.w0**2 - 1
    flat, spread = jnp.ones_like(y), jnp.ones_like(y)
    if data.loss == "hinge":
        spread = pairs.margin + p.alpha * p.excess / (1 - p.alpha)
        flat = spread / p.alpha
    hessian = block_hessians(data, p, scale, pairs.slack)
    solve = eliminated(blocks, hessian, flat, data.sketch, even=data.loss == "squared")

    def direction(mu, bent: tuple[Array, Array, Array]) -> Point:
        a0 = -beta + mu * p.t / scale.bulge
        fixed = -2 * (scale.w0 / bend * a0)[:, None] * scale.w1 - p.q + mu * p.u / scale.bulge[:, None]
        rhs = -p.q - fixed - blocks.fit_transposed(slope(data, p))
        if blocks.cone:
            rhs = rhs + blocks.slack_transposed((mu - bent[0]) / safe)
        if data.loss == "hinge":
            lift = (mu - bent[2]) / (1 - p.alpha) - p.excess
            rise = mu - bent[1] - p.alpha * pairs.margin - p.alpha * lift
            rhs = rhs + blocks.fit_transposed(y * rise / spread)
        du, heavy = solve(rhs)
        along = jnp.sum(scale.w1 * du, axis=1)
        dt = scale.square * a0 / bend + 2 * scale.w0 * along / bend
        dq = (du - 2 * (along / bend)[:, None] * scale.w1) / scale.square[:, None] + fixed
        dz = (mu - bent[0] - p.z * blocks.slack(du)) / safe - p.z if blocks.cone else jnp.zeros_like(p.z)
        dalpha = dexcess = jnp.zeros_like(y)
        if data.loss == "hinge":
            dalpha = rise / spread - y * heavy  # not from F du: where W is large that would lose all digits
            dexcess = lift + p.excess * dalpha / (1 - p.alpha)
        return Point(du, dt, dz, dq, dalpha, dexcess)

    return direction, pairs


def until_zero(x: Array, dx: Array) -> Array:
    """Return the step at which the first entry of ``x + a dx`` is zero."""
    return jnp.min(jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf))


def until_cone(t, dt, u: Array, du: Array) -> Array:
    """Return the step at which the first ``|u + a du|`` is ``t + a dt``."""
    size = lengths(u)
    c = (t - size) * (t + size)
    b = t * dt - jnp.sum(u * du, axis=1)
    a = dt * dt - jnp.sum(du * du, axis=1)
    root = jnp.sqrt(jnp.maximum(b * b - a * c, 0))
    # The smaller positive root of a x^2 + 2 b x + c, with c > 0, without cancellation.
    rising = jnp.where(a < 0, (b + root) / jnp.where(a < 0, -a, 1), jnp.inf)
    end = jnp.where(b <= 0, c / jnp.maximum(root - b, tiny(c.dtype)), rising)
    return jnp.min(jnp.where((b <= 0) & (b * b < a * c), jnp.inf, end))


def longest(data: Data, p: Point, d: Point, pairs: Products) -> Array:
    """Return the longest step, at most one, that keeps a little distance from the boundary."""
    ends = [until_cone(p.t, d.t, p.u, d.u), until_cone(data.beta, jnp.zeros_like(data.beta), p.q, d.q)]
    if data.blocks.cone:
        ends += [until_zero(pairs.slack, data.blocks.slack(d.u)), until_zero(p.z, d.z)]
    if data.loss == "hinge":
        ends += [until_zero(pairs.margin, d.excess + data.y * data.blocks.fit(d.u)), until_zero(p.excess, d.excess),
                 until_zero(p.alpha, d.alpha), until_zero(1 - p.alpha, -d.alpha)]  # fmt: skip
    return jnp.minimum(1, FRACTION * jnp.min(jnp.stack(ends)))


def advance(data: Data, p: Point) -> Point:
    """Take one step of Mehrotra's: how far the way to zero goes says how much complementarity to aim at."""
    direction, pairs = newton(data, p)
    zero = jnp.zeros_like(data.beta)
    straight = direction(zero, (zero, zero, zero))
    free = longest(data, p, straight, pairs)
    mu = (1 - free) ** 3 * pairs.total / pairs.number  # (5)
    bent = (zero, zero, zero)
    if data.blocks.cone or data.loss == "hinge":
        df = data.y * data.blocks.fit(straight.u)
        cones = data.blocks.slack(straight.u) * straight.z if data.blocks.cone else zero
        bent = (cones, straight.alpha * (straight.excess + df), -straight.alpha * straight.excess)
        bent = (free**2 * bent[0], free**2 * bent[1], free**2 * bent[2])
    move = direction(mu, bent)
    length = longest(data, p, move, pairs)
    return Point(*(x + length * dx for x, dx in zip(p, move, strict=True)))
