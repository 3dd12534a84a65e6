"""Gaussian conditioning on a covariance that a model claims to be one.

Of a learned model Tweedie's covariance C, symmetrised, can have negative eigenvalues, and ``K + s^2 I`` with
``K = A C A'`` any at all: close to zero they send a sample anywhere. Numbered as in the comments, r the residual of the
data:

(1) ``V K V' = T``, by Lanczos' method from r, the rows of V orthonormal
(2) ``T = U diag(l) U'``
(3) ``q = |r| V' U g(l) U' e_1``, with ``g(l) = 1 / (l + s^2)``, and 0 for negative l

Where K is positive that is the iterate of conjugate gradients on ``K + s^2 I``. In any case the data move by
``A C A' q``, in the Krylov space r by ``l / (l + s^2)`` along each of T's eigenvectors: never away from the data, nor
past them. A direction of negative variance is not moved along, as one without any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from ...core.precision import dot, eps, matmul
from ...core.typing import Array


class Conditioned(NamedTuple):
    """The multiplier q, flat like the data, how many products it took, and whether a negative variance was met."""

    q: Array
    products: Array
    negative: Array


class State(NamedTuple):
    """Lanczos' vectors and T so far, the next vector, and of conjugate gradients the pivot and the residual."""

    basis: Array
    diagonal: Array
    off: Array
    v: Array
    largest: Array
    k: Array
    going: Array
    ratio: Array
    pivot: Array
    positive: Array


def condition(product: Callable[[Array], Array], r: Array, square: Array, most: int, rtol) -> Conditioned:
    """Return q with ``(K + s^2 I) q = r`` where K is positive, by at most so many products with K.

    They stop where conjugate gradients would, at a residual of ``rtol |r|``; after a negative pivot they do not.
    """
    n, size, dtype = r.shape[0], jnp.sqrt(dot(r, r)), r.dtype
    most = min(most, n)
    small = 10 * eps(dtype) * n**0.5

    def step(s: State) -> State:
        basis = s.basis.at[s.k].set(s.v)
        w = product(s.v)
        alpha, largest = dot(s.v, w), jnp.maximum(s.largest, jnp.sqrt(dot(w, w)))
        for _ in range(2):
            w = w - matmul(matmul(basis, w), basis)
        beta = jnp.sqrt(dot(w, w))
        inside = beta > small * largest
        # Of T + s^2 I: its pivots, and the last entry of what conjugate gradients have by now, for the residual.
        before = jnp.where(s.k > 0, s.off[s.k - 1], 0)
        pivot = alpha + square - jnp.where(s.k > 0, before**2 / s.pivot, 0)
        positive = s.positive & (pivot > 0)
        pivot = jnp.where(pivot == 0, eps(dtype) * largest + square, pivot)
        ratio = jnp.where(s.k > 0, -before / s.pivot * s.ratio, size)
        solved = positive & (beta * jnp.abs(ratio / pivot) <= rtol * size)
        following = jnp.where(inside, w / jnp.where(inside, beta, 1), 0)
        return State(
            basis, s.diagonal.at[s.k].set(alpha), s.off.at[s.k].set(jnp.where(inside, beta, 0)), following, largest,
            s.k + 1, inside & ~solved, ratio, pivot, positive,
        )  # fmt: skip

    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    v = r / jnp.where(size > 0, size, 1)
    nothing = jnp.zeros(most, dtype)
    begin = State(jnp.zeros((most, n), dtype), nothing, nothing, v, zero, jnp.zeros((), jnp.int32), size > 0, size, one,
                  jnp.asarray(True))  # fmt: skip
    s = lax.while_loop(lambda s: s.going & (s.k < most), step, begin)  # (1)
    used = jnp.arange(most, dtype=jnp.int32) < s.k
    # What is behind the end of the space has no part in the answer, and must not look like a negative variance.
    diagonal = jnp.where(used, s.diagonal, 1)
    off = jnp.where(used[1:], s.off[:-1], 0)
    values, U = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))  # (2)
    # Negative for certain; or by rounding perhaps, but so much that the data would be left behind.
    negative = values < -most * small * s.largest
    whole = jnp.maximum(values, -square / 2) + square
    # Of exact data nothing is known along directions that K does not see.
    left_out = negative | (values < -square / 2) | (whole <= 4 * eps(dtype) * s.largest)
    bend = jnp.where(left_out, 0, 1 / jnp.where(left_out, 1, whole))
    q = size * matmul(matmul(U, bend * U[0]), s.basis)  # (3)
    return Conditioned(jnp.where(jnp.isfinite(size), q, size), s.k, jnp.any(negative))
