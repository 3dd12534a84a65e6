"""Networks that are trained for the worst perturbation of each example: the convex problem, and its certificate.

Each feature of an example may be off by a radius e_j (Bai, Gautam and Sojoudi, SIMODS 2023). D_i, o_i are the pattern
and the sides ``2 D_i - I`` of block i, f and g the outputs and, of each example, their gradient:

(1) ``o_i X u_i >= e'|u_i|``: no neuron changes sides within any example's box, where the network is linear
(2) ``g_k = sum_i sign_i D_i[k] u_i``
(3) ``min sum_k loss_k(f_k, g_k) + beta sum_i |u_i|``, ``loss = (|f - y| + e'|g|)^2 / 2``, or ``(1 - y f + e'|g|)_+``

That is the worst loss within the boxes, for these networks exactly. The dual, with a, c the derivatives of the loss in
f and g, has the conjugates

(4) ``a y + max(|a|, max_j |c_j| / e_j)^2 / 2``, or ``-r`` for ``a = -y r, 0 <= r <= 1, |c_j| <= r e_j``

and is feasible if some ``z >= 0`` leaves of each block no more than beta once cut by the entries of ``e sum(z)``:

(5) ``|soft(sign_i (X' D_i a + sum_k D_i[k] c_k) - X' o_i z_i, e sum(z_i))| <= beta``

The dual, and radii that differ by feature, are derived here.
"""

from __future__ import annotations

import jax.numpy as jnp

from ..core.precision import matmul, tiny
from ..core.typing import Array, Float
from .problem import Blocks, lengths


def radii(blocks: Blocks, radius: Array) -> Float[Array, "b d"]:
    """Return the radius of each feature, zero for blocks that do not count."""
    return jnp.abs(blocks.sign)[:, None] * radius[None, :]


def margins(blocks: Blocks, radius: Array, u: Array) -> Float[Array, "b n"]:
    """Return ``o_i X u_i - e'|u_i|``."""
    return blocks.slack(u) - jnp.sum(radii(blocks, radius) * jnp.abs(u), axis=1)[:, None]  # (1)


def gradients(blocks: Blocks, u: Array) -> Float[Array, "n d"]:
    """Return the gradient of the network's output at each example."""
    return matmul(blocks.active.T, blocks.sign[:, None] * u)  # (2)


def robust_loss(loss: str, f: Array, y: Array, spread: Array) -> Array:
    """Return the worst loss where outputs may be off by `spread`."""
    if loss == "squared":
        return jnp.sum((jnp.abs(f - y) + spread) ** 2) / 2
    return jnp.sum(jnp.maximum(1 - y * f + spread, 0))


def robust_objective(blocks: Blocks, loss: str, y: Array, beta: Array, radius: Array, u: Array) -> Array:
    """Return the worst objective within the boxes, infinite where a neuron changes sides within one."""
    spread = matmul(jnp.abs(gradients(blocks, u)), radius)
    value = robust_loss(loss, blocks.fit(u), y, spread) + beta * jnp.sum(jnp.abs(blocks.sign) * lengths(u))  # (3)
    inside = jnp.all((margins(blocks, radius, u) >= 0) | (blocks.sign == 0)[:, None])
    return jnp.where(inside, value, jnp.where(jnp.isnan(value), value, jnp.inf))


def robust_bound(
    blocks: Blocks, loss: str, y: Array, beta: Array, radius: Array, slopes: Float[Array, "n k"], z: Array
) -> Array:
    """Return a lower bound of the optimum from derivatives of the loss in f and g, and multipliers, whatever they are.

    They are made feasible, and the largest multiple up to one is taken.
    """
    a, c = slopes[:, 0], jnp.where(radius > 0, slopes[:, 1:], 0)
    if loss == "hinge":
        inside = jnp.clip(-a * y, 0, 1)
        a, c = -y * inside, jnp.clip(c, -inside[:, None] * radius[None, :], inside[:, None] * radius[None, :])
    z = jnp.maximum(z, 0)
    pulled = matmul(blocks.active, c)
    steep = blocks.fit_transposed(a) + blocks.sign[:, None] * pulled - blocks.slack_transposed(z)
    cut = radii(blocks, radius) * jnp.sum(z, axis=1)[:, None]
    rest = jnp.maximum(jnp.abs(steep) - cut, 0)
    most = beta / jnp.maximum(jnp.max(jnp.abs(blocks.sign) * lengths(rest)), tiny(beta.dtype))  # (5)
    # (4)
    if loss == "hinge":
        return jnp.minimum(1, most) * jnp.sum(-a * y)
    ratio = jnp.abs(c) / jnp.where(radius > 0, radius, 1)[None, :]
    square = jnp.sum(jnp.maximum(jnp.abs(a), jnp.max(ratio, axis=1)) ** 2)
    along = jnp.sum(a * y)
    k = jnp.clip(-along / jnp.where(square > 0, square, 1), 0, most)
    return -(k**2) * square / 2 - k * along


def robust_lagrangian(
    blocks: Blocks, loss: str, y: Array, beta: Array, radius: Array, u: Array, fixed: tuple[Array, Array, Array]
) -> Array:
    """Return a function of the data with the optimum's derivatives: ``fixed`` are slopes a, the spread's, and z."""
    a, rise, z = fixed
    f, spread = blocks.fit(u), matmul(jnp.abs(gradients(blocks, u)), radius)
    value = jnp.sum(a * (f - y)) if loss == "squared" else jnp.sum(rise * (1 - y * f))
    value = value + jnp.sum(rise * spread) - jnp.sum(jnp.abs(blocks.sign)[:, None] * z * margins(blocks, radius, u))
    return value + beta * jnp.sum(jnp.abs(blocks.sign) * lengths(u))
