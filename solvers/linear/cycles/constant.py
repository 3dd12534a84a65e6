"""Stencils of constant coefficients: their coarse operators in closed form, and exact solves on small grids.

With S_o the shift by o along an axis (zero outside, or round it), P the interpolation along it, and (x) Kronecker's
product:

(1) ``A = sum_o c_o S_o1 (x) S_o2 (x) ...``, and after any number of halvings ``A = sum_o c_o T_o1 (x) T_o2 (x) ...``
(2) ``T_o <- P' T_o P`` along each axis halved, ``T_o = S_o`` on the finest grid
(3) ``K = T_-1 + T_1,  M = T_0,  K V = M V diag(l),  V' M V = 1``
(4) ``A^-1 = (V (x) V ...) diag(1 / (c_0 + c_1 l_i + c_2 l_j ...)) (V (x) V ...)'`` where no offset is diagonal

The T depend on the size of an axis alone and are found on the host. Of their rows only the last may differ from the
others: an axis of even length ends half a coarse cell early. (4) is R. E. Lynch, J. R. Rice and D. H. Thomas, Direct
solution of partial difference equations by tensor product methods, Numer. Math. 6 (1964) 185-199.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.precision import HIGHEST, eps, matmul
from ...core.typing import Array
from ..systems.stencil import Offset, Stencil
from ..systems.system import settle

ROUNDING = 2
"""An eigenvalue is zero if it is below this many units of rounding of the largest: those of null vectors have one."""

Rows = np.ndarray
"""The rows of the three T of an axis, (offset of T, offset of the column, point)."""


def shifts(size: int) -> Rows:
    """Return the rows of the shifts along an axis."""
    return np.broadcast_to(np.eye(3)[:, :, None], (3, 3, size))


def halved(rows: Rows, weights: np.ndarray, periodic: bool) -> Rows:
    """Return the rows after a halving (2), where `weights` are those of even points, one more than coarse points.

    What points outside keeps pointing outside.
    """
    m = rows.shape[2] // 2
    even, odd = rows[..., 0::2], rows[..., 1::2]
    if rows.shape[2] % 2 == 0:
        even = np.concatenate([even, even[..., :1] if periodic else np.zeros((3, 3, 1))], 2)
    here, there = weights[:m], weights[1:]
    below, centre, above = odd[:, 0] * here, odd[:, 1] + odd[:, 0] * here + odd[:, 2] * there, odd[:, 2] * there
    first, second = even[:, 0] + weights * even[:, 1], even[:, 2] + weights * even[:, 1]
    below = below + here * first[:, :m]
    centre = centre + here * second[:, :m] + there * first[:, 1:]
    return np.stack([below, centre, above + there * second[:, 1:]], 1)  # (2)


def operator(stencil: Stencil, axes: Sequence[Rows]) -> Stencil:
    """Return (1), over all offsets: constant coefficients where all points are alike, else an array of them."""
    dims = len(axes)
    ends = [np.stack([rows[..., 0], rows[..., -1]]) for rows in axes]
    alike = all(np.array_equal(first, last) for first, last in ends)
    if alike:
        ends = [end[:1] for end in ends]
    parts = []
    for offset in stencil.offsets:
        part = np.ones(())
        for end, o in zip(ends, offset, strict=True):
            part = np.multiply.outer(part, end[:, o + 1])
        parts.append(part.transpose([*range(0, 2 * dims, 2), *range(1, 2 * dims, 2)]).ravel())
    # (1)
    table = matmul(stencil.coefficients, jnp.asarray(np.stack(parts), stencil.coefficients.dtype))
    table = table.reshape([len(end) for end in ends] + [3**dims])
    offsets = list(itertools.product((-1, 0, 1), repeat=dims))
    if alike:
        return Stencil(table.reshape(3**dims), offsets, periodic=stencil.periodic)
    shape = tuple(rows.shape[2] for rows in axes)
    last = [lax.broadcasted_iota(jnp.int32, (1, *shape), 1 + a) == n - 1 for a, n in enumerate(shape)]

    def choose(table, axis):
        if axis == dims:
            return table.reshape((-1,) + (1,) * dims)
        return jnp.where(last[axis], choose(table[1], axis + 1), choose(table[0], axis + 1))

    return Stencil(settle(choose(table, 0)), offsets, periodic=stencil.periodic)


class TensorInverse(eqx.Module):
    """The exact inverse (4): the vectors V of each axis, and the reciprocal eigenvalues on the grid of their pairs."""

    vectors: tuple[Array, ...]
    gains: Array

    def __call__(self, r: Array) -> Array:
        """Return ``A^-1 r``; for a singular matrix, the solution without its null vectors."""
        for axis, v in enumerate(self.vectors):
            r = along(v.T, r, axis)
        r = r * self.gains
        for axis, v in enumerate(self.vectors):
            r = along(v, r, axis)
        return r


def separable(offsets: Sequence[Offset]) -> bool:
    """Return whether no offset is diagonal, so that (4) holds."""
    return all(sum(map(abs, o)) <= 1 for o in offsets)


def tensor_inverse(stencil: Stencil, axes: Sequence[Rows], periodic: Sequence[bool]) -> TensorInverse:
    """Return (4) for the symmetric part of the stencil, whose coarse rows are given."""
    dtype, given = stencil.coefficients.dtype, dict(zip(stencil.offsets, stencil.coefficients, strict=True))
    centre, dims = (0,) * len(axes), len(axes)
    values, vectors = given[centre], []
    for axis, (rows, wraps) in enumerate(zip(axes, periodic, strict=True)):
        found, v = eigenpairs(rows, wraps)
        vectors.append(jnp.asarray(v, dtype))
        sides = [given[o] for o in given if o[axis]]
        if sides:
            weight = sum(sides[1:], sides[0]) / 2
            values = values + weight * jnp.asarray(np.expand_dims(found, [a for a in range(dims) if a != axis]), dtype)
    size = jnp.abs(values)
    sound = size > ROUNDING * eps(dtype) * jnp.max(size)
    gains = jnp.where(sound, 1 / jnp.where(sound, values, 1), 0)  # (4)
    return TensorInverse(tuple(vectors), jnp.broadcast_to(gains, tuple(rows.shape[2] for rows in axes)))


def eigenpairs(rows: Rows, periodic: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return l and V of (3)."""
    n = rows.shape[2]
    full = np.zeros((3, n, n))
    for o in (-1, 0, 1):
        for i in range(n):
            if periodic or 0 <= i + o < n:
                full[:, i, (i + o) % n] += rows[:, o + 1, i]
    half, sides = np.linalg.inv(np.linalg.cholesky(full[1])), full[0] + full[2]
    values, vectors = np.linalg.eigh(half @ sides @ half.T)  # (3)
    signs = (-1.0) ** np.arange(n)
    for value, vector in ((2.0, np.ones(n)), (-2.0, signs)):  # what null vectors are made of, without its rounding
        if np.array_equal(sides @ vector, value * full[1] @ vector):
            values[np.argmin(np.abs(values - value))] = value
    return values, half.T @ vectors


def along(matrix: Array, x: Array, axis: int) -> Array:
    """Return the product with a matrix along an axis."""
    if axis == x.ndim - 1:
        return matmul(x, matrix.T)
    return jnp.moveaxis(jnp.tensordot(matrix, x, (1, axis), precision=HIGHEST), 0, axis)
