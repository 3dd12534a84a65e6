"""The Cholesky factor of a matrix whose first row leaves and whose last row comes, in O(m^2) and without a loop."""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from ..typing import Array, Float


def rank_one_update(factor: Float[Array, "m m"], x: Float[Array, " m"]) -> Float[Array, "m m"]:
    """Return the lower Cholesky factor of ``L L^T + x x^T``.

    With ``p = L^-1 x`` and ``t_j = 1 + p_1^2 + ... + p_j^2`` the factor of ``I + p p^T`` is known:
    ``M_jj = sqrt(t_j / t_(j-1)), M_ij = p_i p_j / sqrt(t_j t_(j-1))`` (1) below. ``L M`` is then L, its columns
    scaled, plus sums along its rows from the right: one triangular solve and one cumulative sum, with no recurrence
    over the columns (P. E. Gill, G. H. Golub, W. Murray, M. A. Saunders, *Methods for modifying matrix factorizations*,
    1974, method C1).
    """
    p = solve_triangular(factor, x, lower=True)
    t = 1 + jnp.cumsum(p**2)
    before = jnp.concatenate([jnp.ones_like(t[:1]), t[:-1]])
    products = factor * p[None, :]
    right = jnp.flip(jnp.cumsum(jnp.flip(products, 1), axis=1), 1) - products
    below = jnp.tril(right, -1) * (p / jnp.sqrt(t * before))[None, :]
    return factor * jnp.sqrt(t / before)[None, :] + below  # (1)


def slide(factor: Float[Array, "m m"], row: Float[Array, " m"], least: Float[Array, ""]) -> Float[Array, "m m"]:
    """Return the factor of ``A`` without its first row and column and with `row` as its new last.

    Dropping the first is an update of the rest, not a downdate: ``A_22 = L_22 L_22^T + l_21 l_21^T`` (2). So nothing
    cancels, and what rounding leaves in an entry goes when its row goes. `least` is a lower bound of the last Schur
    complement (for ``K + shift I`` with K positive semidefinite, the shift), which rounding may undercut.
    """
    rest = rank_one_update(factor[1:, 1:], factor[1:, 0])  # (2)
    last = solve_triangular(rest, row[:-1], lower=True)
    pivot = jnp.sqrt(jnp.maximum(row[-1] - jnp.sum(last**2), least))
    top = jnp.pad(rest, ((0, 0), (0, 1)))
    return jnp.concatenate([top, jnp.concatenate([last, pivot[None]])[None]], axis=0)
