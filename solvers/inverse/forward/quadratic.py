"""The quadratic subproblem that every method here shares: data against a point or a split variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ...core.krylov.cg import cg
from ...core.krylov.result import KrylovResult
from ...core.operators import LinearOperator
from ...core.typing import Array, Scalar
from ...core.vectors import axpy, norm, scale


def prox_quadratic(
    A: LinearOperator,
    y: Any,
    gamma: Scalar | None,
    x0: Array,
    *,
    steps: Scalar = 100,
    rtol: Scalar = 0.0,
    start: Array | None = None,
    precondition: Callable[[Any], Any] | None = None,
) -> KrylovResult:
    """Return ``argmin_x gamma |A x - y|^2 / 2 + |x - x0|^2 / 2`` by conjugate gradients.

    Parameters
    ----------
    A : LinearOperator
    y : PyTree of arrays
        The data.
    gamma : scalar or None
        Their weight; None takes the limit of exact data, ``min |A x - y|`` from `x0`, which keeps what A does not see.
    x0 : Float[Array, "..."]
        The point to stay near.
    steps : scalar
        At most so many; exactly so many for ``rtol=0`` unless the answer is exact before. Traced.
    rtol : scalar
        Stop at this residual relative to ``|x0 + gamma A'y|``; traced.
    start : Float[Array, "..."], optional
        Where to start; `x0` by default, so that `steps` of them stay in ``x0 + Krylov_steps(A'A, A'(y - A x0))``.
    precondition : callable, optional
        ``r -> M^-1 r`` for ``I + gamma A'A``.

    Returns
    -------
    KrylovResult
        ``x, num_steps, residual, reason``; the residual is that of ``(I + gamma A'A) x = x0 + gamma A'y``.

    Notes
    -----
    One product with A and one with its transpose a step. Not differentiable in reverse mode: differentiate the
    solvers that use it.
    """
    back = A.transpose_mv(y)
    if gamma is None:
        return normal_equations(A.normal_mv, back, x0, (steps, rtol), precondition)
    matvec = lambda x: axpy(gamma, A.normal_mv(x), x)  # noqa: E731
    return normal_equations(matvec, axpy(gamma, back, x0), x0 if start is None else start, (steps, rtol), precondition)


def normal_equations(matvec, b, start, limits, precondition=None) -> KrylovResult:
    """Solve ``matvec(x) = b`` from `start`, to ``limits = (steps, rtol)``."""
    steps, rtol = limits
    return cg(matvec, b, start, tol=rtol * norm(b), max_steps=steps, precondition=precondition)


def split_system(A: LinearOperator, analysis: LinearOperator | None, penalty: Scalar) -> Callable[[Any], Any]:
    """Return ``x -> (A'A + penalty D'D) x``, D the identity where `analysis` is None."""

    def matvec(x):
        coupled = x if analysis is None else analysis.normal_mv(x)
        return jax.tree.map(lambda u, v: u + v, A.normal_mv(x), scale(penalty, coupled))

    return matvec
