"""Half a sweep of alternating least squares, by conjugate gradients or factorisation; and descent on both sides.

With Z_i the rows of the other factor that meet row i, and g the gradient:

(1) ``g_i = Z_i'(Z_i x_i - values_i) + penalty_i x_i``
(2) ``x_i <- x_i - omega (Z_i'Z_i + penalty_i)^-1 g_i``, exactly or by a few steps of conjugate gradients
(3) ``(S Z_i)'(S Z_i) + penalty_i`` as their preconditioner: "sketched", of Gu et al., ICLR 2024
(4) ``(rate + omega - 1)^2 = rate omega^2 mu^2,  omega = 2 / (1 + sqrt(1 - mu^2))``, Young's relaxation: ours
(5) ``F <- F - t g_F (G'G + penalty)^-1,  G <- G - t g_G (F'F + penalty)^-1``: Tong, Ma and Chi, JMLR 2021
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.precision import eps, matmul, tiny
from ..core.typing import Array
from ..core.vectors import inner, norm
from .sensing import minimiser
from .sides import Side
from .solution import Factors, balanced

KINDS = ("als_cg", "als_exact", "sketched", "scaled_gd")


class Setting(eqx.Module):
    """How a sweep is made: `penalty` a row of each side, zero without a ridge; `size` of the values.

    `unit` is None without biases. Scaled by a square, values leave factors scaled by its root; biases are stored so
    too, and count `unit` times: one penalty then fits all.
    """

    method: str = eqx.field(static=True)
    inner_steps: int = eqx.field(static=True)
    free: bool = eqx.field(static=True)
    unit: Array | None
    penalty: Factors
    size: Array
    key: Array


class State(NamedTuple):
    """Factors, the gradient in both, the relative gradient, its last ratio's relaxation, and sweeps made."""

    factors: Factors
    gradients: Factors
    error: Array
    omega: Array
    sweeps: Array


def design(factor: Array, unit: Array | None) -> Array:
    """Return what a side's unknowns are multiplied by: the other factor; with biases a constant, then what is added."""
    if unit is None:
        return factor
    return jnp.concatenate([factor[:, :-1], jnp.full_like(factor[:, :1], unit), unit * factor[:, -1:]], axis=1)


def gradient(side: Side, own: Array, other: Array, penalty: Array, unit: Array | None) -> Array:
    """Return the gradient of ``|A(X) - values|^2 / 2 + penalty |own|^2 / 2`` in the own factor."""
    return side.normal_times(own, design(other, unit), data=True) + penalty * own  # (1)


def by_cg(side: Side, z: Array, g: Array, penalty: Array, precondition, steps: int) -> tuple[Array, Array]:
    """Return the change and the gradient after conjugate-gradient steps on all rows, each with its own lengths."""
    change, r = jnp.zeros_like(g), -g
    direction = precondition(r)
    square = jnp.sum(r * direction, axis=1, keepdims=True)
    for _ in range(steps):
        image = side.normal_times(direction, z) + penalty * direction
        curvature = jnp.sum(direction * image, axis=1, keepdims=True)
        length = jnp.where(curvature > 0, square / jnp.where(curvature > 0, curvature, 1), 0)
        change, r = change + length * direction, r - length * image
        ahead = precondition(r)
        after = jnp.sum(r * ahead, axis=1, keepdims=True)
        direction = ahead + jnp.where(square > 0, after / jnp.where(square > 0, square, 1), 0) * direction
        square = after
    return change, -r


def factors_of(gram: Array, penalty: Array) -> Array:
    """Return Cholesky factors; a row with fewer entries than unknowns moves as little as it can, nearly."""
    k = gram.shape[-1]
    floor = 10 * k * eps(gram.dtype) * jnp.trace(gram, axis1=1, axis2=2) + tiny(gram.dtype)
    return jnp.linalg.cholesky(gram + (penalty[:, 0] + floor)[:, None, None] * jnp.eye(k, dtype=gram.dtype)[None])


def divide(lower: Array, r: Array) -> Array:
    """Return ``(L L')^-1 r`` row by row."""
    half = lax.linalg.triangular_solve(lower, r[:, :, None], left_side=True, lower=True)
    return lax.linalg.triangular_solve(lower, half, left_side=True, lower=True, transpose_a=True)[:, :, 0]


def divider(gram: Array, penalty: Array):
    """Return ``r -> r (gram + mean penalty)^-1``."""
    lower = factors_of(gram[None], jnp.mean(penalty).reshape(1, 1))[0]

    def apply(r):
        half = lax.linalg.triangular_solve(lower, r.T, left_side=True, lower=True)
        return lax.linalg.triangular_solve(lower, half, left_side=True, lower=True, transpose_a=True).T

    return apply


def solved(side: Side, setting: Setting, other: Array, g: Array, penalty: Array) -> tuple[Array, Array]:
    """Return the change of one side towards its minimum, and the gradient there."""
    z = design(other, setting.unit)[:, : g.shape[1]]
    if setting.method == "als_exact":
        change = -divide(factors_of(side.gram(z), penalty), g)  # (2)
        return change, g + side.normal_times(change, z) + penalty * change
    if setting.method == "sketched":
        lower = factors_of(side.sketched_gram(z, setting.key), penalty)  # (3)
        return by_cg(side, z, g, penalty, lambda r: divide(lower, r), setting.inner_steps)
    # The matrix of a row is about the mean one: whitened by it, factors of uneven columns are as good as orthonormal.
    share = jnp.mean(side.degree) / z.shape[0]
    precondition = (lambda r: r) if setting.free else divider(share * matmul(z.T, z), penalty)
    return by_cg(side, z, g, penalty, precondition, setting.inner_steps)


def relative_gradient(gradients: Factors, factors: Factors, setting: Setting) -> Array:
    """Return the stopping measure; without a ridge `gradients` are those where the other factor is orthonormal."""
    parts = []
    for g, other in zip(gradients, factors[::-1], strict=True):
        unit = jnp.ones((), g.dtype)
        if not setting.free:
            unit = norm(other) / other.shape[1] ** 0.5 + 1e-3 * jnp.sqrt(setting.size)
        parts.append(norm(g) / jnp.where(setting.size > 0, unit * setting.size, 1))
    return jnp.hypot(*parts)


def orthonormal(first: Array, second: Array) -> tuple[Array, Array]:
    """Return the same product of factors with the first orthonormal."""
    q, upper = jnp.linalg.qr(first)
    return q, matmul(second, upper.T)


def settled(factors: Factors, setting: Setting) -> Factors:
    """Return the same matrix by the factors and biases of least penalty, which alternation alone finds slowly.

    Factors whose rows are weighted by the roots of their penalties are balanced; a vector t moves part of one side's
    biases into the other side, ``a - [F 1] t, [G c] + 1 t'``, to the minimum of a quadratic function.
    """
    left, right = factors
    top = jnp.maximum(*(jnp.max(p) for p in setting.penalty))
    heights = [jnp.where(top > 0, p / jnp.where(top > 0, top, 1), 1) for p in setting.penalty]
    k = left.shape[1] - (setting.unit is not None)
    if setting.unit is not None:
        left, right = shifted(left, right, heights, setting.unit)
        right, left = shifted(right, left, heights[::-1], setting.unit)
    roots = [jnp.sqrt(jnp.where(h > 0, h, 1)) for h in heights]
    even, _ = balanced(Factors(*(x[:, :k] * h for x, h in zip((left, right), roots, strict=True))))
    pairs = zip(even, (left, right), roots, strict=True)
    return Factors(*(jnp.concatenate([x / h, y[:, k:]], axis=1) for x, y, h in pairs))


def shifted(own: Array, other: Array, heights: list[Array], unit: Array) -> tuple[Array, Array]:
    """Move the part of the own biases that the own factor explains into the other one, as far as penalties gain."""
    f, a = jnp.concatenate([own[:, :-1] / unit, jnp.ones_like(own[:, :1])], axis=1), own[:, -1:]
    weight, total = heights[0], jnp.sum(heights[1])
    gram = matmul(f.T, weight * f) + (total + tiny(f.dtype)) * jnp.eye(f.shape[1], dtype=f.dtype)
    gain = matmul(f.T, weight * a) - jnp.sum(heights[1] * other, axis=0)[:, None]
    t = jax.scipy.linalg.solve(gram, gain, assume_a="pos")
    return jnp.concatenate([own[:, :-1], a - matmul(f, t)], axis=1), other + t.T


def measured(sides: tuple[Side, Side], setting: Setting, factors: Factors) -> State:
    """Return a state with both gradients from the entries."""
    return closed(sides, setting, factors, jnp.ones((), factors.left.dtype), jnp.zeros((), jnp.int32))


def closed(
    sides: tuple[Side, Side], setting: Setting, factors: Factors, omega: Array, sweeps: Array, down: Array | None = None
) -> State:
    """Return the state after a sweep; without a ridge the left gradient may be known, where right is orthonormal."""
    (rows, cols), unit = sides, setting.unit
    if setting.free:
        left, right = factors
        if down is None:
            right, left = orthonormal(right, left)
            down = gradient(rows, left, right, setting.penalty.left, unit)
        left, upper = jnp.linalg.qr(left)
        right, steep = matmul(right, upper.T), matmul(down, upper.T)
    else:
        left, right = settled(factors, setting)
        down = steep = gradient(rows, left, right, setting.penalty.left, unit)
    across = gradient(cols, right, left, setting.penalty.right, unit)
    error = relative_gradient(Factors(down, across), Factors(left, right), setting)
    return State(Factors(left, right), Factors(steep, across), error, omega, sweeps)


def alternate(sides: tuple[Side, Side], setting: Setting, s: State) -> State:
    """Solve for the right factor, then for the left one, both over-relaxed."""
    (rows, cols), (left, right) = sides, s.factors
    change, _ = solved(cols, setting, left, s.gradients.right, setting.penalty.right)
    right = right + s.omega * change  # (2)
    if setting.free:
        right, left = orthonormal(right, left)
    before = gradient(rows, left, right, setting.penalty.left, setting.unit)
    change, after = solved(rows, setting, right, before, setting.penalty.left)
    # (2)
    left, down = left + s.omega * change, before + s.omega * (after - before)
    end = closed(sides, setting, Factors(left, right), s.omega, s.sweeps + 1, down)
    return end._replace(omega=relaxation(end.error, s.error, s.omega, end.sweeps))


def relaxation(error: Array, before: Array, omega: Array, sweeps: Array) -> Array:
    """Return Young's best omega for the rate seen: ``(rate + omega - 1)^2 = rate omega^2 mu^2``; one after a rise."""
    rate = error / jnp.where(before > 0, before, 1)
    usable = (sweeps >= 4) & (rate < 1) & (rate > 0)
    radius = (rate + omega - 1) ** 2 / (jnp.where(usable, rate, 1) * omega**2)
    best = 2 / (1 + jnp.sqrt(1 - jnp.clip(radius, 0, FASTEST)))  # (4)
    return jnp.where(usable, best, 1).astype(error.dtype)


FASTEST = 0.97
"""Largest squared radius believed: omega stays below 1.71."""


def descend(sides: tuple[Side, Side], setting: Setting, s: State) -> State:
    """Move both factors along gradients scaled by the other's Gram matrix, at the exact length."""
    rows, (left, right) = sides[0], s.factors
    point, moves = s.factors, []
    for g, near, penalty in zip(s.gradients, (right, left), setting.penalty, strict=True):
        moves.append(-divider(matmul(near.T, near), penalty)(g))  # (5)
    move = Factors(*moves)
    products = rows.quartic(point, move)
    for x, d, penalty in zip(point, move, setting.penalty, strict=True):
        slope, square = inner(penalty * x, d), inner(penalty * d, d)
        products = products + jnp.stack([slope, square, *jnp.zeros((3,), slope.dtype)])
    t = minimiser(products)
    factors = jax.tree.map(lambda x, d: x + t * d, point, move)
    end = measured(sides, setting, Factors(*factors))
    return end._replace(sweeps=s.sweeps + 1)
