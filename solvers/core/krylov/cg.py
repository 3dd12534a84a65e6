"""Conjugate gradients, truncated: says how far it came and why it stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .. import vectors
from ..precision import eps
from ..typing import Array, Float, Scalar
from ..vectors import axpy, inner
from .result import KrylovReason, KrylovResult


class State(NamedTuple):
    """Iterate, recurred residual, direction, ``r' M^-1 r``, smallest residual, steps since it, and their count."""

    x: Any
    r: Any
    p: Any
    rz: Array
    best: Array
    since: Array
    k: Array
    reason: Array
    residual: Array


def cg(
    matvec: Callable[[Any], Any],
    b: Any,
    x0: Any = None,
    *,
    tol: Scalar,
    max_steps: Scalar,
    precondition: Callable[[Any], Any] | None = None,
    norm: Callable[[Any], Float[Array, ""]] | None = None,
    stall: int = 50,
    unroll: int = 1,
) -> KrylovResult:
    """Solve ``A x = b`` with A symmetric positive (semi)definite by preconditioned conjugate gradients.

    Parameters
    ----------
    matvec, precondition : callable
        ``x -> A x`` and ``r -> M^-1 r`` on pytrees like `b`.
    b : PyTree of arrays
        Right-hand side.
    x0 : PyTree of arrays, optional
        Where to start; zero by default.
    tol : scalar
        Stop when ``norm(residual) <= tol``; absolute, traced.
    max_steps : scalar
        Traced.
    norm : callable, optional
        Norm of a residual; Euclidean by default.
    stall : int
        Stop as `KrylovReason.STAGNATED` after this many steps without a new smallest residual.
    unroll : int
        Steps a trip of the loop. On accelerators each trip waits for its test, so several save time; the result and
        the count are the same.

    Returns
    -------
    KrylovResult
        Its `x` is a descent direction for ``x'Ax/2 - b'x`` whenever a step was taken, also when truncated.

    Notes
    -----
    The residual is the recurred one. Rounding keeps the true residual above about ``eps * |A| |x|``, so the solve
    also stops once the recurred residual is below ``eps * |x|_A / |b|_M`` relative: going on would only add noise.
    Singular consistent systems are fine: the test is on the residual.
    """
    norm = norm or vectors.norm
    precondition = precondition or (lambda r: r)
    dtype = jnp.result_type(*jax.tree.leaves(b))

    def one(s: State) -> State:
        q = matvec(s.p)
        curvature = inner(s.p, q)
        positive = curvature > 0
        alpha = jnp.where(positive, s.rz / jnp.where(positive, curvature, 1), 0)
        x, r = axpy(alpha, s.p, s.x), axpy(-alpha, q, s.r)
        z = precondition(r)
        rz = inner(r, z)
        p = axpy(rz / jnp.where(s.rz > 0, s.rz, 1), s.p, z)
        k, residual = s.k + 1, norm(r)
        since = jnp.where(residual < s.best, 0, s.since + 1)
        reason = jnp.asarray(KrylovReason.RUNNING, jnp.int32)
        reason = jnp.where(k >= max_steps, KrylovReason.MAX_STEPS, reason)
        reason = jnp.where((since >= stall) | (rz <= floor), KrylovReason.STAGNATED, reason)
        reason = jnp.where(residual <= tol, KrylovReason.CONVERGED, reason)
        reason = jnp.where(positive, reason, KrylovReason.NOT_POSITIVE).astype(jnp.int32)
        return State(x, r, p, rz, jnp.minimum(residual, s.best), since, k, reason, residual)

    def body(s: State) -> State:
        s = one(s)
        for _ in range(unroll - 1):
            going = s.reason == KrylovReason.RUNNING
            s = jax.tree.map(lambda new, old: jnp.where(going, new, old), one(s), s)  # noqa: B023
        return s

    x, r = (jax.tree.map(jnp.zeros_like, b), b) if x0 is None else (x0, axpy(-1, matvec(x0), b))
    z = precondition(r)
    rz, residual = inner(r, z), norm(r)
    floor = eps(dtype) ** 2 * (rz if x0 is None else inner(b, precondition(b)))
    zero = jnp.zeros((), jnp.int32)
    reason = jnp.where(jnp.asarray(max_steps) <= 0, KrylovReason.MAX_STEPS, KrylovReason.RUNNING)
    reason = jnp.where(residual <= tol, KrylovReason.CONVERGED, reason).astype(jnp.int32)
    start = State(x, r, z, rz, residual, zero, zero, reason, residual)
    end = lax.while_loop(lambda s: s.reason == KrylovReason.RUNNING, body, start)
    return KrylovResult(end.x, end.k, end.residual, end.reason)
