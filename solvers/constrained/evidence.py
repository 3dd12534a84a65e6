"""Evidence that a violation which is not zero has a local minimum, to second order and in any units.

With c the residuals, J their Jacobian, ``p = J'c`` the slope of ``|c|^2 / 2`` and ``B = J'J + sum_i c_i c_i''`` its
Hessian, the violation is at a minimum as far as numbers tell if

(1) ``S B S + tau I`` is positive definite, ``S_j^-1 = max(|J_j|, |B_jj|^0.5)``, ``tau = eps^0.5``
(2) ``(S p)' (S B S + tau I)^-1 (S p) <= eps^0.75 |c|^2``, twice the fall that the best step promises

A small p alone proves nothing, for p fades wherever J does. Towards a singular root both sides of (2) fade alike; on a
plateau B is indefinite, however small it is; and where J fades because the violation has its minimum there, as that of
``x^2 + 1``, B does not. Where the violation falls for ever towards a limit at infinity, (2) holds in the end. A
variable whose ``S_j^-1`` is `FADED` times the ``|J_j|`` of the start has left the range of numbers: no evidence. Norms
are largest entries, for squares leave it sooner.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from ..core.krylov.cg import cg
from ..core.krylov.result import KrylovReason
from ..core.precision import dot, eps
from .kkt import start_vector

FALL = 0.75
"""A promised fall of ``|c|^2`` by less than ``eps^FALL``, 2e-12 in float64, counts as none."""
FADED = 1.5
"""Powers of eps."""
PATIENCE = 1000
"""Conjugate-gradient steps; where they do not suffice there is no evidence."""


def at_minimum(B, columns, first, p, squares):
    """Whether (1) and (2) hold for matrices.

    `columns` are the ``|J_j|``, `first` those of the start, and `squares` is ``|c|^2``.
    """
    dtype, n = p.dtype, p.size
    # A variable that bends nothing but together with others counts at least so much.
    bend = jnp.maximum(jnp.abs(jnp.diagonal(B)), eps(dtype) ** 2 * jnp.max(jnp.abs(B), axis=1))
    size = jnp.maximum(columns, jnp.sqrt(bend))
    alive = jnp.all(size >= eps(dtype) ** FADED * first)
    unit = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 1)
    scaled = B * unit[None] * unit[:, None] + eps(dtype) ** 0.5 * jnp.eye(n, dtype=dtype)
    L = lax.linalg.cholesky(scaled, symmetrize_input=False)  # (1): NaN otherwise, which is no evidence
    half = solve_triangular(L, unit * p, lower=True)
    return alive & (dot(half, half) <= eps(dtype) ** FALL * squares)  # (2)


def seems_at_minimum(product, columns, first, p, squares):
    """Whether (2) holds for a B given as a product, and conjugate gradients meet no curvature but positive.

    They look from p and from the image of a fixed vector, for p vanishes at a maximum too.
    """
    dtype = p.dtype

    def solve(b):
        size = jnp.max(jnp.abs(b), initial=0)
        b = b / jnp.where(size > 0, size, 1)
        return size, cg(product, b, tol=eps(dtype) ** 0.5 * jnp.sqrt(dot(b, b)), max_steps=PATIENCE)

    image = product(start_vector(p.size, dtype))
    alive = jnp.all(jnp.maximum(columns, jnp.sqrt(jnp.abs(image))) >= eps(dtype) ** FADED * first)
    (size, toward), (_, elsewhere) = solve(p), solve(image)
    found = [solved.reason == KrylovReason.CONVERGED for solved in (toward, elsewhere)]
    return alive & found[0] & found[1] & (size * dot(p, toward.x) <= eps(dtype) ** FALL * squares)
