"""Truncated Krylov methods that say how far they came and why they stopped."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .precision import dot, eps
from .typing import Array, Float, Int, Scalar


class KrylovReason(IntEnum):
    """Why a Krylov method stopped."""

    RUNNING = -1
    CONVERGED = 0
    MAX_STEPS = 1
    NOT_POSITIVE = 2
    """A direction of zero or negative curvature: the matrix is not positive definite on the Krylov space."""
    STAGNATED = 3
    """The residual is below what rounding lets it be, or no longer falls."""


class KrylovResult(eqx.Module):
    """Solution of a truncated linear solve.

    Attributes
    ----------
    x : PyTree
        The best iterate.
    num_steps : Int[Array, ""]
        Products with the matrix.
    residual : Float[Array, ""]
        Norm of the (recurred) residual at `x`.
    reason : Int[Array, ""]
        A `KrylovReason`.
    """

    x: Any
    num_steps: Int[Array, ""]
    residual: Float[Array, ""]
    reason: Int[Array, ""]


def cg(
    matvec: Callable[[Any], Any],
    b: Any,
    *,
    tol: Scalar,
    max_steps: Scalar,
    precondition: Callable[[Any], Any] | None = None,
    norm: Callable[[Any], Float[Array, ""]] | None = None,
    stall: int = 50,
    unroll: int = 1,
) -> KrylovResult:
    """Solve ``A x = b`` with A symmetric positive (semi)definite by preconditioned conjugate gradients from zero.

    Parameters
    ----------
    matvec, precondition : callable
        ``x -> A x`` and ``r -> M^-1 r`` on pytrees like `b`.
    b : PyTree of arrays
        Right-hand side.
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
    norm = norm or (lambda r: jnp.sqrt(inner(r, r)))
    precondition = precondition or (lambda r: r)
    dtype = jnp.result_type(*jax.tree.leaves(b))

    def one(carry):
        x, r, p, rz, best, since, k, _, res = carry
        q = matvec(p)
        curvature = inner(p, q)
        positive = curvature > 0
        alpha = jnp.where(positive, rz / jnp.where(positive, curvature, 1), 0)
        x, r = axpy(alpha, p, x), axpy(-alpha, q, r)
        z = precondition(r)
        rz_new = inner(r, z)
        p = axpy(rz_new / jnp.where(rz > 0, rz, 1), p, z)
        k, res = k + 1, norm(r)
        since = jnp.where(res < best, 0, since + 1)
        reason = jnp.asarray(KrylovReason.RUNNING, jnp.int32)
        reason = jnp.where(k >= max_steps, KrylovReason.MAX_STEPS, reason)
        reason = jnp.where((since >= stall) | (rz_new <= floor), KrylovReason.STAGNATED, reason)
        reason = jnp.where(res <= tol, KrylovReason.CONVERGED, reason)
        reason = jnp.where(positive, reason, KrylovReason.NOT_POSITIVE).astype(jnp.int32)
        return x, r, p, rz_new, jnp.minimum(res, best), since, k, reason, res

    def body(carry):
        carry = one(carry)
        for _ in range(unroll - 1):
            going = carry[7] == KrylovReason.RUNNING
            carry = jax.tree.map(lambda new, old: jnp.where(going, new, old), one(carry), carry)  # noqa: B023
        return carry

    z = precondition(b)
    rz, res = inner(b, z), norm(b)
    floor = eps(dtype) ** 2 * rz
    zero = jnp.zeros((), jnp.int32)
    reason = jnp.where(jnp.asarray(max_steps) <= 0, KrylovReason.MAX_STEPS, KrylovReason.RUNNING)
    reason = jnp.where(res <= tol, KrylovReason.CONVERGED, reason).astype(jnp.int32)
    start = (jax.tree.map(jnp.zeros_like, b), b, z, rz, res, zero, zero, reason, res)
    x, _, _, _, _, _, k, reason, res = lax.while_loop(lambda c: c[7] == KrylovReason.RUNNING, body, start)
    return KrylovResult(x, k, res, reason)


def inner(x: Any, y: Any) -> Array:
    """Return the inner product of two pytrees of arrays."""
    parts = [dot(u, v) for u, v in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)]
    return sum(parts[1:], parts[0])


def axpy(alpha: Any, x: Any, y: Any) -> Any:
    """Return ``y + alpha x`` of two pytrees of arrays."""
    return jax.tree.map(lambda u, v: v + alpha * u, x, y)
