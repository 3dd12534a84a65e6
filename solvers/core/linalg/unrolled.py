"""Small KKT systems on accelerators: elimination written out in scalars, without a loop over pivots.

Under ``jax.vmap`` a scalar is a vector over the lanes, so an elimination of a hundred such operations is one kernel and
reads each matrix once. A loop over pivots is a few kernels a pivot, which read and write the matrices each time.
Factors are not kept: reading them would take longer than making them anew. The systems:

(1) ``[[B + shift I, C'], [C, -d I]] (x, y) = (rx, rc)``
(2) ``[[K, half C'], [half C, -d I]] (x, half y) = (rx + rho C'rc, half rc)`` with ``K = B + shift I + rho C'C``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..precision import dot
from ..typing import Array, Float

LARGEST = 12
"""Systems up to this size are written out: the time of compilation grows with the cube of it."""


class Condensed(NamedTuple):
    """The matrix of (2) and what it is made of."""

    B: Float[Array, "n n"]
    C: Float[Array, "m n"]
    unshifted: Float[Array, "n n"]
    """``B + rho C'C``."""
    shift: Float[Array, ""]
    rho: Float[Array, ""]
    half: Float[Array, ""]
    d: Float[Array, ""]


class Triangle(NamedTuple):
    """``L D L'``: the rows of L, the pivots and their reciprocals."""

    rows: list
    pivots: list
    inverses: list


def pivots(A: Condensed) -> tuple[Array, Array]:
    """Return the smallest pivots of K and of its negated complement: the first is not positive if K is indefinite."""
    n, found = A.B.shape[0], eliminated(A).pivots
    return least(found[:n], A.d.dtype), least([-pivot for pivot in found[n:]], A.d.dtype)


def first_convex(A: Condensed, shifts: Float[Array, " rungs"], relative: float) -> tuple[Array, Array, Array]:
    """Return the index of the first shift that makes K positive definite, whether there is one, and the dual pivot.

    Pivots count as positive beyond a tenth of the shift and beyond `relative` times the largest entry. All shifts are
    tried at once: in a batch a loop would wait for the unluckiest lane. Without a good one the last is returned.
    """
    eye = jnp.eye(A.B.shape[0], dtype=A.B.dtype)
    diagonal, beside = jnp.sum(A.unshifted * eye, axis=1), jnp.max(jnp.abs(A.unshifted * (1 - eye)))

    def judged(shift):
        primal, dual = pivots(A._replace(shift=shift))
        largest = jnp.maximum(beside, jnp.max(jnp.abs(diagonal + shift)))
        return primal > jnp.maximum(0.1 * shift, relative * largest), dual

    convex, dual = jax.vmap(judged)(shifts)
    done = jnp.any(convex)
    first = jnp.where(done, jnp.argmax(convex), shifts.size - 1).astype(jnp.int32)
    return first, done, jnp.sum(jnp.where(jnp.arange(shifts.size, dtype=jnp.int32) == first, dual, 0))


def inverse_iteration(A: Condensed, v: Float[Array, " n"], steps: int) -> Float[Array, " n"]:
    """Return the unit direction that so many steps with the inverse of (2) make of v, multipliers left out."""

    def step(_, v):
        w = substituted(eliminated(A), unstacked(v) + [jnp.zeros_like(A.d)] * A.C.shape[0])
        w = jnp.stack(w[: v.size])
        size = jnp.sqrt(dot(w, w))
        return w / jnp.where(size > 0, size, 1)

    return lax.fori_loop(0, steps, step, v)


def solutions(A: Condensed, rights: Sequence[tuple], passes: int) -> list[Float[Array, " n+m"]]:
    """Solve (1) for several right-hand sides ``(rx, rc)`` by so many passes over (2), all but one of refinement."""
    (m, n), dtype = A.C.shape, A.B.dtype

    def improved(_, z):
        factor, B, C = eliminated(A), entries(A.B), entries(A.C)
        sides = [(unstacked(rx), unstacked(rc)) for rx, rc in rights]
        half = jnp.where(A.half > 0, A.half, 1)
        old, new = unstacked(z), []
        for rx, rc in sides:
            x, y = old[len(new) :][:n], old[len(new) :][n : n + m]
            bx, cy, cx = times(B, x), times(transposed(C, n), y), times(C, x)
            ex = [rx[i] - bx[i] - A.shift * x[i] - cy[i] for i in range(n)]
            ec = [rc[i] - cx[i] + A.d * y[i] for i in range(m)]  # (1)
            ce = times(transposed(C, n), ec)
            # (2)
            w = substituted(factor, [ex[i] + A.rho * ce[i] for i in range(n)] + [A.half * e for e in ec])
            new += [x[i] + w[i] for i in range(n)] + [y[i] + w[n + i] / half for i in range(m)]
        return jnp.stack(new)

    z = lax.fori_loop(0, passes, improved, jnp.zeros(len(rights) * (n + m), dtype))
    return [z[k * (n + m) : (k + 1) * (n + m)] for k in range(len(rights))]


def eliminated(A: Condensed) -> Triangle:
    """Factorise the matrix of (2) without pivoting."""
    (m, n), K, C = A.C.shape, entries(A.unshifted), entries(A.C)
    zero = jnp.zeros_like(A.d)
    # (2)
    rows = [[K[i][j] + A.shift if i == j else K[i][j] for j in range(i + 1)] for i in range(n)]
    rows += [[A.half * C[i][j] for j in range(n)] + [zero] * i + [-A.d] for i in range(m)]
    found, inverses = [], []
    for k in range(n + m):
        column = [rows[i][k] for i in range(k + 1, n + m)]
        found.append(rows[k][k])
        inverses.append(1 / rows[k][k])
        scaled = [entry * inverses[k] for entry in column]
        for i in range(k + 1, n + m):
            for j in range(k + 1, i + 1):
                rows[i][j] = rows[i][j] - scaled[i - k - 1] * column[j - k - 1]
            rows[i][k] = scaled[i - k - 1]
    return Triangle(rows, found, inverses)


def substituted(factor: Triangle, r: Sequence) -> list:
    """Solve ``L D L' x = r``."""
    y, size = list(r), len(r)
    for i in range(size):
        for k in range(i):
            y[i] = y[i] - factor.rows[i][k] * y[k]
    y = [a * b for a, b in zip(y, factor.inverses, strict=True)]
    for i in reversed(range(size)):
        for k in range(i + 1, size):
            y[i] = y[i] - factor.rows[k][i] * y[k]
    return y


def unstacked(v: Array) -> list[Array]:
    """Return the numbers of a vector as scalars."""
    return [v[i] for i in range(v.shape[0])]


def entries(A: Array) -> list[list[Array]]:
    """Return the numbers of a matrix as scalars."""
    return [[A[i, j] for j in range(A.shape[1])] for i in range(A.shape[0])]


def transposed(A: list[list], columns: int) -> list[list]:
    """Return the transpose of a matrix with so many columns."""
    return [[row[j] for row in A] for j in range(columns)]


def times(A: list[list], x: Sequence) -> list:
    """Return ``A x``."""
    return [sum((a * b for a, b in zip(row[1:], x[1:], strict=True)), row[0] * x[0]) if row else 0 for row in A]


def least(numbers: Sequence, dtype):
    """Return the smallest number, NaN if there is one, infinity of nothing."""
    smallest = jnp.asarray(jnp.inf, dtype)
    for value in numbers:
        smallest = jnp.minimum(smallest, value)
    return smallest
