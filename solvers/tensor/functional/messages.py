"""What the entries of a functional tensor say of a factor, of the core and of the noise, given the others.

Of Fang and others (ICLR 2024) and of Wang, Zhe (*Conditional expectation propagation*, UAI 2019), numbered as in the
comments; u_k are the factors in an entry, W the core, tau the noise's expected inverse variance, and all expectations
are over the other beliefs:

(1) ``a_k = W x_(j != k) u_j``, so that ``y = a_k' u_k + noise``; for CP the product of the other factors, entry by
    entry
(2) ``E a_k = E[W] x_(j != k) E[u_j]``, ``E a_k a_k' = E[W (x) W] x_(j != k) E[u_j u_j']``
(3) ``sum E[phi phi']``, ``sum y E[phi]`` with ``phi = u_1 (x) ... (x) u_K``, so that ``y = w' phi + noise``
(4) ``(I / v + tau sum E[phi phi']) w = tau sum y E[phi]``
(5) ``E f = E[a_1]' E[u_1]``, ``E f^2 = Tr(E[a_1 a_1'] E[u_1 u_1'])``
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core.implicit import linear_solve
from ...core.krylov.cg import cg
from ...core.precision import eps, matmul
from ...core.typing import Array, Float
from ...core.vectors import norm
from .chains import Factors

LEAST_ROOM = 1 << 18


class Core(NamedTuple):
    """A Gaussian belief of the core, R numbers a mode: its mean as a tensor, its covariance as a matrix or None."""

    mean: Array
    cov: Array | None


class Entries(NamedTuple):
    """Means and second moments of each mode's factors where the entries are, and of the core's; see `at_entries`."""

    mean: Float[Array, "K N R"]
    second: Float[Array, "K N R R"]


def at_entries(factors: Factors, index: Array) -> Entries:
    """Return what the factors are at the entries."""
    mean, cov = (jax.vmap(lambda x, i: x[i])(x, index) for x in factors)
    return Entries(mean, cov + outer(mean))


def outer(x):
    """Return ``x x'`` along the last axis."""
    return x[..., :, None] * x[..., None, :]


def pairs(matrix: Array, K: int, R: int) -> Array:
    """Return a matrix over core entries as a tensor of ``R^2`` pairs a mode."""
    order = [axis for k in range(K) for axis in (k, K + k)]
    return matrix.reshape((R,) * (2 * K)).transpose(order).reshape((R * R,) * K)


def unpaired(tensor: Array, K: int, R: int) -> Array:
    """Return a tensor of pairs as a matrix over core entries."""
    order = [2 * k for k in range(K)] + [2 * k + 1 for k in range(K)]
    return tensor.reshape((R,) * (2 * K)).transpose(order).reshape(R**K, R**K)


def room(N: int, K: int, R: int, each: int) -> int:
    """Return how many entries go together, so that so many numbers for each stay within ``N R^K`` in all."""
    return max(1, min(N, max(N * R**K, LEAST_ROOM) // each))


def contract(core: Array, others: Float[Array, "J N P"], together: int) -> Float[Array, "N P"]:
    """Contract all axes of a tensor but its first with the rows of each entry."""

    def one(rows):
        x = core
        for row in rows[::-1]:
            x = matmul(x, row)
        return x

    moved = jnp.swapaxes(others, 0, 1)
    if not others.shape[0]:
        return jnp.broadcast_to(core, (moved.shape[0], *core.shape))
    if together >= moved.shape[0]:
        return jax.vmap(one)(moved)
    return lax.map(one, moved, batch_size=together)


def accumulate(rows: Float[Array, "K N P"], weight: Float[Array, " N"], together: int) -> Array:
    """Return the sum over entries of the products of their rows, a tensor of P numbers a mode."""
    K, N, P = rows.shape
    pieces = -(-N // together)
    extra = pieces * together - N
    rows = jnp.pad(rows.at[0].multiply(weight[:, None]), ((0, 0), (0, extra), (0, 0)))

    def add(total, piece):
        x = piece[0]
        for row in piece[1:-1]:
            x = (x[:, :, None] * row[:, None, :]).reshape(together, -1)
        return total + (jnp.sum(x, 0)[None] if K == 1 else matmul(x.T, piece[-1])), None

    start = jnp.zeros((1 if K == 1 else P ** (K - 1), P), rows.dtype)
    cut = jnp.swapaxes(rows.reshape(K, pieces, together, P), 0, 1)
    return lax.scan(add, start, cut)[0].reshape((P,) * K)


def to_mode(k, entries: Entries, core: Core | None, full: Array | None) -> tuple[Array, Array]:
    """Return ``E a`` and ``E a a'`` of what multiplies mode k's factor in each entry; the core's axes begin at k."""
    K, N, R = entries.mean.shape
    if core is None:
        own = (jnp.arange(K, dtype=k.dtype) == k)[:, None, None]
        # (1), (2)
        a = jnp.prod(jnp.where(own, 1, entries.mean), axis=0)
        return a, jnp.prod(jnp.where(own[..., None], 1, entries.second), axis=0)
    turn = (k + 1 + jnp.arange(K - 1, dtype=k.dtype)) % K
    a = contract(core.mean, entries.mean[turn], room(N, K, R, R ** (K - 1)))  # (2)
    second = entries.second[turn]
    if full is not None:
        rows = second.reshape(K - 1, N, R * R)
        # (2)
        return a, contract(full, rows, room(N, K, R, R ** (2 * K - 2))).reshape(N, R, R)
    moved = along_modes(core.mean, second, first=1).reshape(N, R, -1)
    # (2): without the covariance of the core
    return a, matmul(moved, jnp.broadcast_to(core.mean.reshape(R, -1).T, (N, moved.shape[2], R)))


def along_modes(core: Array, second: Float[Array, "J N R R"], first: int) -> Array:
    """Return the core multiplied by each entry's matrices along its axes from `first` on: (N, R, ..., R)."""
    J, N, R, _ = second.shape
    x = jnp.broadcast_to(core, (N, *core.shape))
    for j in range(J):
        # the axis at hand comes last, is multiplied, and goes back
        moved = jnp.moveaxis(x, 1 + first + j, -1)
        flat = matmul(moved.reshape(N, -1, R), second[j])
        x = jnp.moveaxis(flat.reshape(moved.shape), -1, 1 + first + j)
    return x


def fitted(entries: Entries, core: Core | None, full: Array | None) -> tuple[Array, Array]:
    """Return mean and second moment of the tensor's values in the entries."""
    if core is None:
        # (5)
        return jnp.sum(jnp.prod(entries.mean, 0), -1), jnp.sum(jnp.prod(entries.second, 0), (-2, -1))
    a, aa = to_mode(jnp.zeros((), jnp.int32), entries, core, full)
    # (5)
    return jnp.sum(a * entries.mean[0], -1), jnp.sum(aa * entries.second[0], (-2, -1))


def core_terms(entries: Entries, y: Array, weight: Array) -> tuple[Array, Array]:
    """Return ``sum E[phi phi']`` as a matrix and ``sum y E[phi]``, phi being what multiplies the core in an entry."""
    K, N, R = entries.mean.shape
    rows = entries.second.reshape(K, N, R * R)
    # (3)
    precision = unpaired(accumulate(rows, weight, room(N, K, R, R ** max(2 * K - 2, 1))), K, R)
    shift = accumulate(entries.mean, weight * y, room(N, K, R, R ** max(K - 1, 1)))  # (3)
    return precision, shift.reshape(-1)


def core_by_cg(entries: Entries, y: Array, weight: Array, scale: tuple[Array, Array]) -> Array:
    """Return the core's mean, ``(I / v + tau sum E[phi phi']) w = tau sum y E[phi]``, by conjugate gradients.

    Products ``E[phi phi'] w`` go mode by mode: N R^K numbers, no matrix over core entries.
    """
    K, N, R = entries.mean.shape
    tau, variance = scale

    def matvec(w):
        moved = along_modes(w, entries.second, first=0)
        # (4)
        return w / variance + tau * jnp.tensordot(weight, moved, axes=1, precision=lax.Precision.HIGHEST)

    right = tau * accumulate(entries.mean, weight * y, room(N, K, R, R ** max(K - 1, 1)))

    def solver(matvec, b):
        return cg(matvec, b, tol=10 * eps(y.dtype) * norm(b), max_steps=2 * R**K).x

    return linear_solve(matvec, right, solver)


def variance_of(entries: Entries, cov: Float[Array, "K N R R"], core: Core | None) -> Float[Array, " N"]:
    """Return the variance of the tensor's values, as a sum of positive terms: nothing is subtracted."""
    K, N, R = entries.mean.shape
    flat = outer(entries.mean)
    if core is None:
        spread, point = jnp.zeros_like(flat[0]), jnp.ones_like(flat[0])
        for second, own, mean in zip(entries.second, cov, flat, strict=True):
            spread, point = spread * second + point * own, point * mean
        return jnp.sum(spread, (-2, -1))

    def value(tensor, rows):
        rows = rows.reshape(K, N, R * R)
        return jnp.sum(contract(tensor, rows[1:], room(N, K, R, R ** (2 * K - 2))) * rows[0], -1)

    own = pairs(outer(core.mean.reshape(-1)), K, R)
    total = jnp.zeros(N, flat.dtype) if core.cov is None else value(pairs(core.cov, K, R), entries.second)
    for k in range(K):
        total = total + value(own, jnp.concatenate([entries.second[:k], cov[k : k + 1], flat[k + 1 :]]))
    return total
