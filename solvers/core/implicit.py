"""Exact derivatives of solved points, without differentiating the iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .typing import Array, Bool


def attach(
    residual: Callable[[Any, Any], Any],
    point: Any,
    data: Any,
    *,
    solve: Callable[[Callable, Any], Any],
    trusted: Bool[Array, ""] | None = None,
) -> Any:
    """Return ``point`` with the derivative of the root of ``residual(point, data) = 0`` with respect to `data`.

    ``d point = -(d residual / d point)^-1 (d residual / d data) d data``, forward and reverse, to any order.

    Parameters
    ----------
    residual : callable
        ``residual(point, data)``, a pytree like `point`; differentiable. It may close over nothing that is
        differentiated: all such data goes through `data`.
    point : PyTree of arrays
        The solved point; its own derivative is ignored.
    data : PyTree of arrays
        What the solution depends on.
    solve : callable
        ``solve(jacobian, b)`` returns x with ``jacobian(x) = b`` for a linear function on pytrees like `point`. To be
        differentiable again it must be dense linear algebra or ``lax.custom_linear_solve``; see `linear_solve`.
    trusted : Bool[Array, ""], optional
        Where it is false every derivative is NaN: that of a point which is no root would be a plausible, wrong number.

    Notes
    -----
    The point is taken as exact: with a residual of size e left in it, derivatives carry an error of order e times
    the condition of the Jacobian.
    """
    point = lax.stop_gradient(point)
    point = lax.custom_root(lambda x: with_all_tangents(residual(x, data)), point, lambda _, x0: x0, solve)
    point = with_all_tangents(point)
    return point if trusted is None else distrust(point, trusted)


UNCONVERGED = ("nan", "approximate")
"""What a solver's ``unconverged=`` may ask for: derivatives where it did not converge are NaN, or those of the
equations at the point returned."""


def distrust(value: Any, trusted: Bool[Array, ""]) -> Any:
    """Return `value` with derivatives that are NaN where `trusted` is false, in both modes and every order.

    Masking such a lane afterwards leaves NaN in reverse mode, since 0 times NaN is NaN; ask for approximate
    derivatives where lanes are to be masked.
    """

    @jax.custom_jvp
    def identity(value, trusted):
        return value

    @identity.defjvp
    def _(primals, tangents):
        value, trusted = primals
        doubt = lambda t: t * jnp.where(trusted, 1, jnp.nan).astype(t.dtype)  # noqa: E731
        return identity(value, trusted), jax.tree.map(doubt, tangents[0])

    return identity(value, lax.stop_gradient(trusted))


def linear_solve(
    matvec: Callable[[Any], Any], b: Any, solver: Callable[[Callable, Any], Any], *, symmetric: bool = True
) -> Any:
    """Solve ``matvec(x) = b`` by ``solver(matvec, b)`` with exact derivatives of every order.

    ``solver`` may iterate: it is never differentiated. An unsymmetric ``matvec`` is transposed automatically and the
    same ``solver`` serves the transposed system.
    """
    x = lax.custom_linear_solve(
        lambda x: with_all_tangents(matvec(x)),
        with_all_tangents(b),
        solver,
        transpose_solve=None if symmetric else solver,
        symmetric=symmetric,
    )
    return with_all_tangents(x)


def with_all_tangents(x: Any) -> Any:
    """Return x with derivatives of all its arrays, zeros where one does not depend on what others depend on.

    JAX keeps such zeros symbolic, and then neither transposes nor differentiates a solve that has other parts too. As
    parts of one vector they depend on whatever any of them depends on; nothing is copied once it is compiled.
    """
    leaves, structure = jax.tree.flatten(x)
    real = [k for k, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    if len(real) < 2:
        return x
    own = [leaves[k] for k in real]
    vector = jnp.concatenate([leaf.ravel().astype(jnp.result_type(*own)) for leaf in own])
    parts = jnp.split(vector, np.cumsum([leaf.size for leaf in own])[:-1])
    for k, part in zip(real, parts, strict=True):
        leaves[k] = part.reshape(leaves[k].shape).astype(leaves[k].dtype)
    return jax.tree.unflatten(structure, leaves)


def envelope(objective: Callable[[Any, Any], Any], optimum: Any, data: Any) -> Any:
    """Return ``objective(optimum, data)`` differentiated as at an optimum: its partial derivative in `data` alone.

    By the envelope theorem that is the total derivative when the objective is stationary at `optimum` (on the
    feasible set), so first derivatives need no linear solve. Second derivatives pass through `optimum`; attach it.
    """

    @jax.custom_jvp
    def at_optimum(optimum, data):
        return objective(optimum, data)

    @at_optimum.defjvp
    def _(primals, tangents):
        optimum, data = primals
        _, tangent = jax.jvp(lambda d: objective(optimum, d), (data,), (tangents[1],))
        return at_optimum(optimum, data), tangent

    return at_optimum(optimum, data)
