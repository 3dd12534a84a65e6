"""Derivatives of a solution through its active set."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ...core.implicit import attach, linear_solve
from ...core.precision import dot
from ..dense import DenseKKT
from .standard import Iterate, Standard


def differentiable(functions, problem: Standard, w: Iterate, data, trusted) -> tuple:
    """Return ``x, y, z, zl, zu`` with the derivatives that the conditions of the active set give them in `data`.

    ``functions(data)`` returns ``posed, lower, upper``. A bound or an inequality is active where its multiplier exceeds
    its distance; the multipliers are those of the problem as posed. Active variables sit on their bounds, multipliers
    of inactive constraints are zero, and what is left is a system of equations with a symmetric Jacobian.
    """
    low, high = problem.gaps(w.x)
    pressed = w.z > w.s
    at_low = (problem.below & (w.zl > low)) | ~problem.free
    at_high = problem.above & (w.zu > high) & ~at_low
    held, n, p = at_low | at_high, w.x.size, w.y.size

    def lagrangian_gradient(x, y, z, data):
        posed, lower, upper = functions(data)
        x = jnp.where(at_low, lower, jnp.where(at_high, upper, x))

        def lagrangian(x):
            f, c, g = posed(x)
            return f + dot(y, c) + dot(jnp.where(pressed, z, 0), g), (c, g)

        gradient, (c, g) = jax.grad(lagrangian, has_aux=True)(x)
        return gradient, c, g, x

    def residual(v, data):
        x, y, z = v[:n], v[n : n + p], v[n + p :]
        gradient, c, g, onto = lagrangian_gradient(x, y, z, data)
        return jnp.concatenate([jnp.where(held, x - onto, gradient), c, jnp.where(pressed, g, z)])

    def solve(jacobian, b):
        return linear_solve(jacobian, b, lambda matvec, b: DenseKKT().implicit(matvec, b, n))

    v = attach(residual, jnp.concatenate([w.x, w.y, w.z]), data, solve=solve, trusted=trusted)
    x, y, z = v[:n], v[n : n + p], v[n + p :]

    # The multipliers of bounds are what the gradient leaves where a variable is held.
    def from_gradient(pair, everything):
        x, y, z, data = everything
        gradient = lagrangian_gradient(x, y, z, data)[0]
        return tuple(
            multiplier - jnp.where(where, push, 0)
            for multiplier, where, push in zip(pair, (at_low, at_high), (gradient, -gradient), strict=True)
        )

    pair = attach(
        from_gradient, lax.stop_gradient((w.zl, w.zu)), (x, y, z, data), solve=lambda _, b: b, trusted=trusted
    )
    return x, y, z, *pair
