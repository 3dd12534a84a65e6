"""The proximal Lagrangian value function of a constrained lower problem, and how far a point is from an answer.

Of Yao, Yu, Zeng, Zhang (LV-HBA, ICLR 2024), numbered as in the comments; F is the upper and f the lower objective, g
the constraint, l its multipliers, w weights:

(1) ``L(x, theta, l) = f(x, theta) + l . g(x, theta)``
(2) ``v(x, y, z) = min_theta max_l L(x, theta, l) + |theta - y|^2 / (2 gamma) - |l - z|^2 / (2 w)``
(3) ``l = P_Z(z + w g(x, theta))``: the maximum in closed form
(4) ``d_x = grad_x F / c + grad_x f(x, y) - grad_x L(x, theta, l)``
(5) ``d_y = grad_y F / c + grad_y f(x, y) - (y - theta) / gamma``

It departs from the paper in (3), where that takes a step of ascent (`published_step` does), and in w, one a constraint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.precision import eps, tiny
from ..core.typing import Array, Float
from ..core.vectors import norm

Objective = Callable[[Array, Array, Any], Array]
PROX = 10.0


class Problem(eqx.Module):
    """The two levels with their data, and what the start says of their units.

    Attributes
    ----------
    gamma, weights : Array
        Proximal parameters of the lower point and of each multiplier.
    rows : Array
        Lengths of the constraints' gradients at the start.
    bend : Array
        Curvature of the upper objective at the start.
    size : Array
        Length of the start.
    radius : Array
        Bound on the multipliers.
    """

    upper: Objective = eqx.field(static=True)
    lower: Objective = eqx.field(static=True)
    constraint: Objective | None = eqx.field(static=True)
    project: Callable | None = eqx.field(static=True)
    project_lower: Callable | None = eqx.field(static=True)
    equality: bool = eqx.field(static=True)
    args: Any
    gamma: Any = None
    weights: Any = None
    rows: Any = None
    bend: Any = None
    size: Any = None
    radius: Any = jnp.inf

    def constraints(self, x, y) -> Float[Array, " p"]:
        """Return g(x, y), empty where there is none."""
        return jnp.zeros(0, y.dtype) if self.constraint is None else self.constraint(x, y, self.args)

    def lagrangian(self, x, y, multipliers):
        """Return ``lower + multipliers . g``."""
        return self.lower(x, y, self.args) + jnp.sum(multipliers * self.constraints(x, y))  # (1)

    def admissible(self, multipliers):
        """Return the nearest multipliers that may be."""
        low = -self.radius if self.equality else 0.0
        return jnp.clip(multipliers, jnp.asarray(low, multipliers.dtype), jnp.asarray(self.radius, multipliers.dtype))

    def best_multipliers(self, x, theta, z):
        """Return the maximiser over multipliers of the proximal Lagrangian, which is in closed form."""
        # (3)
        return self.admissible(z + self.weights * self.constraints(x, theta))

    def projected(self, x, y):
        """Return the nearest feasible pair."""
        return (x, y) if self.project is None else self.project(x, y, self.args)

    def projected_lower(self, theta):
        """Return the nearest point of Y."""
        return theta if self.project_lower is None else self.project_lower(theta, self.args)

    def directions(self, x, y, theta, multipliers, penalty):
        """Return the gradient of ``upper / penalty + lower - v`` in both variables, by the envelope theorem."""
        F = jax.grad(self.upper, argnums=(0, 1))(x, y, self.args)
        f = jax.grad(self.lower, argnums=(0, 1))(x, y, self.args)
        v = jax.grad(self.lagrangian)(x, theta, multipliers)
        # (4), (5)
        return F[0] / penalty + f[0] - v, F[1] / penalty + f[1] - (y - theta) / self.gamma

    def shortfall(self, x, y, theta, multipliers, z):
        """Return by how much (x, y) misses the constraints and y the lower solution, in the units of y."""
        g = self.constraints(x, y)
        short = (jnp.abs(g) if self.equality else jnp.maximum(g, 0)) / self.rows
        return norm(y - theta) + norm(short) + norm((multipliers - z) / (self.weights * self.rows))

    def value(self, x, y, theta, multipliers, z):
        """Return v(x, y, z)."""
        near = jnp.sum((theta - y) ** 2) / (2 * self.gamma)
        # (2)
        return self.lagrangian(x, theta, multipliers) + near - jnp.sum((multipliers - z) ** 2 / (2 * self.weights))


def relative_errors(problem: Problem, state: Any, apart: Array) -> tuple[Array, Array]:
    """Return the lower and the larger relative error; `apart` is how far the inner solution may be off."""
    pair = norm((state.x, state.y))
    small = eps(pair.dtype) ** 0.5 * problem.size
    F = norm(jax.grad(problem.upper, argnums=(0, 1))(state.x, state.y, problem.args))
    lower = problem.shortfall(state.x, state.y, state.theta, state.multipliers, state.z) + apart

    def safe(a, b):
        ratio = jnp.where(a == 0, a, a / jnp.maximum(b, tiny(a.dtype)))
        return jnp.where(jnp.isfinite(b), ratio, jnp.nan)

    lower = safe(lower, jnp.maximum(pair, small))
    upper = safe(state.penalty * state.residual, jnp.maximum(F, problem.bend * jnp.maximum(pair, small)))
    return lower, jnp.maximum(lower, upper)


def pose(problem: Problem, x: Array, y: Array) -> tuple[Problem, Array]:
    """Read the units from the start; return the problem with them, and the ratio of the levels' gradients.

    Curvatures are those along the gradients, by one Hessian product a level.
    """
    lower_bend, lower_slope = bend(lambda p: jax.grad(problem.lower, argnums=1)(x, p, problem.args), y)
    upper_bend, upper_slope = bend(lambda p: jax.grad(problem.upper, argnums=(0, 1))(*p, problem.args), (x, y))
    # A lower objective without curvature along its gradient takes the upper one's units.
    unit = jnp.where(lower_bend > 0, lower_bend, jnp.where(upper_bend > 0, upper_bend, 1))
    J = jax.jacrev(problem.constraints, argnums=1)(x, y)
    rows = jnp.sqrt(jnp.sum(J * J, axis=1))
    rows = jnp.where(rows > 0, rows, 1)
    told = (upper_slope > 0) & (lower_slope > 0)
    scale = jnp.where(
        told, upper_slope / jnp.where(told, lower_slope, 1), jnp.where(upper_bend > 0, upper_bend / unit, 1)
    )
    scale = scale + 0 * (lower_slope + upper_slope)  # NaN where the functions are
    units = (PROX / unit, unit / rows**2, rows, upper_bend, norm((x, y)), jnp.asarray(jnp.inf, y.dtype))
    where = lambda p: (p.gamma, p.weights, p.rows, p.bend, p.size, p.radius)  # noqa: E731
    return eqx.tree_at(where, problem, units, is_leaf=lambda a: a is None), scale


def bend(slope: Callable[[Any], Any], point: Any) -> tuple[Array, Array]:
    """Return the curvature along the gradient, and the gradient's length."""
    length = norm(slope(point))
    along = jax.tree.map(lambda g: jnp.where(length > 0, g / jnp.where(length > 0, length, 1), 1), slope(point))
    return norm(jax.jvp(slope, (point,), (along,))[1]) / norm(along), length
