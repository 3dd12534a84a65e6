"""Restarted GMRES, right-preconditioned, on pytrees; says how far it came and why it stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from ..precision import dot, eps, matmul
from ..typing import Scalar
from .result import KrylovReason, KrylovResult


def gmres(
    matvec: Callable[[Any], Any],
    b: Any,
    *,
    tol: Scalar,
    max_steps: Scalar,
    precondition: Callable[[Any], Any] | None = None,
    memory: int = 30,
) -> KrylovResult:
    """Solve ``A x = b`` by GMRES with `memory` vectors between restarts, from zero.

    Parameters
    ----------
    matvec, precondition : callable
        ``x -> A x`` and an approximate inverse ``r -> M^-1 r`` on pytrees like `b`; applied on the right, so the
        residual is that of the system itself.
    b : PyTree of arrays
        Right-hand side.
    tol : scalar
        Stop when ``norm(b - A x) <= tol``; absolute, traced.
    max_steps : scalar
        Products with A, restarts aside; traced.
    memory : int
        Krylov vectors kept; static.

    Returns
    -------
    KrylovResult
        `residual` is the true residual's norm, recomputed at each restart.

    Notes
    -----
    Classical Gram-Schmidt, twice: two matrix-vector products a step and orthogonal to rounding. Stops as
    `KrylovReason.STAGNATED` when a cycle does not halve the residual; a singular system then keeps its best iterate.
    Memory: ``memory`` copies of `b`.
    """
    precondition = precondition or (lambda r: r)
    flat, unravel = ravel_pytree(b)
    size, dtype = flat.size, flat.dtype

    def apply(v):
        return ravel_pytree(matvec(precondition(unravel(v))))[0]

    def cycle(carry):
        x, r, res, k, _ = carry
        basis = jnp.zeros((memory + 1, size), dtype).at[0].set(r / jnp.where(res > 0, res, 1))
        hessenberg = jnp.zeros((memory + 1, memory), dtype)
        start = (basis, hessenberg, jnp.zeros(memory + 1, dtype).at[0].set(res), jnp.zeros(memory, dtype),
                 jnp.zeros(memory, dtype), jnp.zeros((), jnp.int32))  # fmt: skip

        def more(c):
            _, _, g, _, _, j = c
            return (j < memory) & (k + j < max_steps) & (jnp.abs(g[j]) > tol)

        def extend(c):
            basis, hessenberg, g, cosines, sines, j = c
            w = apply(basis[j])
            before = jnp.sqrt(dot(w, w))
            h = matmul(basis, w)
            w = w - matmul(h, basis)
            again = matmul(basis, w)
            w, h = w - matmul(again, basis), h + again
            norm = jnp.sqrt(dot(w, w))
            norm = jnp.where(norm <= 10 * eps(dtype) * before, 0, norm)
            basis = basis.at[j + 1].set(jnp.where(norm > 0, w / jnp.where(norm > 0, norm, 1), 0))
            h = h.at[j + 1].set(norm)

            def rotate(i, h):
                top = cosines[i] * h[i] + sines[i] * h[i + 1]
                return h.at[i + 1].set(cosines[i] * h[i + 1] - sines[i] * h[i]).at[i].set(top)

            h = lax.fori_loop(jnp.zeros((), jnp.int32), j, rotate, h)
            size = jnp.hypot(h[j], h[j + 1])
            safe = jnp.where(size > 0, size, 1)
            cos, sin = jnp.where(size > 0, h[j] / safe, 1), h[j + 1] / safe
            h = h.at[j].set(size).at[j + 1].set(0)
            g = g.at[j + 1].set(-sin * g[j]).at[j].set(cos * g[j])
            return basis, hessenberg.at[:, j].set(h), g, cosines.at[j].set(cos), sines.at[j].set(sin), j + 1

        basis, hessenberg, g, _, _, j = lax.while_loop(more, extend, start)
        used = jnp.arange(memory, dtype=jnp.int32) < j
        upper = jnp.where(used[:, None] & used[None], hessenberg[:memory], 0)
        diagonal = jnp.diagonal(upper)
        diagonal = jnp.where(jnp.abs(diagonal) <= 10 * eps(dtype) * jnp.max(jnp.abs(diagonal)), 0, diagonal)
        upper = upper - jnp.diag(jnp.diagonal(upper) - diagonal)  # a singular matrix leaves only rounding there
        upper = upper + jnp.diag(jnp.where(diagonal == 0, 1, 0).astype(dtype))
        y = jax.scipy.linalg.solve_triangular(upper, jnp.where(used & (diagonal != 0), g[:memory], 0))
        moved = x + ravel_pytree(precondition(unravel(matmul(y, basis[:memory]))))[0]
        left = flat - ravel_pytree(matvec(unravel(moved)))[0]
        new, k = jnp.sqrt(dot(left, left)), k + j
        worse = new > res
        x, r = jnp.where(worse, x, moved), jnp.where(worse, r, left)
        reason = jnp.asarray(KrylovReason.RUNNING, jnp.int32)
        reason = jnp.where(k >= max_steps, int(KrylovReason.MAX_STEPS), reason)
        reason = jnp.where(~(new <= res / 2), int(KrylovReason.STAGNATED), reason)
        reason = jnp.where(new <= tol, int(KrylovReason.CONVERGED), reason).astype(jnp.int32)
        return x, r, jnp.where(worse, res, new), k, reason

    res = jnp.sqrt(dot(flat, flat))
    reason = jnp.where(jnp.asarray(max_steps) <= 0, int(KrylovReason.MAX_STEPS), int(KrylovReason.RUNNING))
    reason = jnp.where(res <= tol, int(KrylovReason.CONVERGED), reason).astype(jnp.int32)
    start = (jnp.zeros_like(flat), flat, res, jnp.zeros((), jnp.int32), reason)

    def running(carry):
        *_, reason = carry
        return reason == KrylovReason.RUNNING

    x, _, res, k, reason = lax.while_loop(running, cycle, start)
    return KrylovResult(unravel(x), k, res, reason)
