"""MINRES for symmetric, possibly indefinite systems.

Of Paige, Saunders (SIAM J. Numer. Anal. 12, 1975), in the form of Elman, Silvester, Wathen (2014), numbered as in the
comments; a bar marks the step before, two the one before that:

(1) ``z <- z / gamma``, ``delta = z'A z``: Lanczos' process with M
(2) ``v_new = A z - delta / gamma v - gamma / bar gamma bar v``, ``z_new = M^-1 v_new``,
    ``gamma_new = sqrt(z_new'v_new)``
(3) ``a0 = c delta - bar c s gamma``, ``a1 = sqrt(a0^2 + gamma_new^2)``, ``a2 = s delta + bar c c gamma``,
    ``a3 = bar s gamma``: the new column of R
(4) ``c_new = a0 / a1``, ``s_new = gamma_new / a1``: the rotation that ends it
(5) ``w = (z - a3 bar bar w - a2 bar w) / a1``, ``x <- x + c_new eta w``, ``eta <- -s_new eta``, ``|eta|`` the
    residual's norm
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..precision import tiny
from ..typing import Scalar
from ..vectors import combine, inner, scale
from .result import KrylovReason, KrylovResult


def minres(
    matvec: Callable[[Any], Any],
    b: Any,
    *,
    tol: Scalar,
    max_steps: Scalar,
    precondition: Callable[[Any], Any] | None = None,
) -> KrylovResult:
    """Solve ``A x = b`` with A symmetric by preconditioned minimal residuals from zero.

    Parameters
    ----------
    matvec, precondition : callable
        ``x -> A x`` and ``r -> M^-1 r`` on pytrees like `b`; M symmetric positive definite.
    b : PyTree of arrays
        Right-hand side.
    tol : scalar
        Stop when the residual's norm, ``sqrt(r' M^-1 r)``, is at most this; absolute, traced.
    max_steps : scalar
        Traced.

    Returns
    -------
    KrylovResult
        Its `residual` is in the norm above, and recurred.

    References
    ----------
    Paige, Saunders, SIAM J. Numer. Anal. 12 (1975); Elman, Silvester, Wathen, "Finite Elements and Fast Iterative
    Solvers" (2014), algorithm 4.1.
    """
    precondition = precondition or (lambda r: r)
    floor = tiny(jnp.result_type(*jax.tree.leaves(b)))

    def length(z, v):
        return jnp.sqrt(jnp.maximum(inner(z, v), 0))

    def body(s):
        z = scale(1 / jnp.maximum(s["gamma"], floor), s["z"])
        q = matvec(z)
        delta = inner(q, z)  # (1)
        v = combine((1, q), (-delta / s["gamma"], s["v"]), (-s["gamma"] / s["gamma_old"], s["v_old"]))  # (2)
        z_new = precondition(v)
        gamma = length(z_new, v)
        a0 = s["c"] * delta - s["c_old"] * s["s"] * s["gamma"]
        a1 = jnp.maximum(jnp.hypot(a0, gamma), floor)
        a2 = s["s"] * delta + s["c_old"] * s["c"] * s["gamma"]
        a3 = s["s_old"] * s["gamma"]  # (3)
        c, sine = a0 / a1, gamma / a1  # (4)
        w = combine((1 / a1, z), (-a3 / a1, s["w_old"]), (-a2 / a1, s["w"]))  # (5)
        x = combine((1, s["x"]), (c * s["eta"], w))  # (5)
        eta, k = -sine * s["eta"], s["k"] + 1
        reason = jnp.where(k >= max_steps, KrylovReason.MAX_STEPS, KrylovReason.RUNNING)
        reason = jnp.where((gamma <= floor) | ~jnp.isfinite(eta), KrylovReason.STAGNATED, reason)
        reason = jnp.where(jnp.abs(eta) <= tol, KrylovReason.CONVERGED, reason).astype(jnp.int32)
        return {
            "x": x, "v": v, "v_old": s["v"], "z": z_new, "w": w, "w_old": s["w"], "gamma": gamma,
            "gamma_old": s["gamma"], "c": c, "c_old": s["c"], "s": sine, "s_old": s["s"], "eta": eta, "k": k,
            "reason": reason,
        }  # fmt: skip

    zero = jax.tree.map(jnp.zeros_like, b)
    z = precondition(b)
    gamma = length(z, b)
    one, none = jnp.ones_like(gamma), jnp.zeros_like(gamma)
    reason = jnp.where(jnp.asarray(max_steps) <= 0, KrylovReason.MAX_STEPS, KrylovReason.RUNNING)
    reason = jnp.where(gamma <= tol, KrylovReason.CONVERGED, reason).astype(jnp.int32)
    start = {
        "x": zero, "v": b, "v_old": zero, "z": z, "w": zero, "w_old": zero, "gamma": gamma, "gamma_old": one,
        "c": one, "c_old": one, "s": none, "s_old": none, "eta": gamma, "k": jnp.zeros((), jnp.int32), "reason": reason,
    }  # fmt: skip
    end = lax.while_loop(lambda s: s["reason"] == KrylovReason.RUNNING, body, start)
    return KrylovResult(end["x"], end["k"], jnp.abs(end["eta"]), end["reason"])
