"""The problem on flat, scaled vectors, as the merit function and the KKT solvers see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.precision import dot
from ..core.typing import Array, Float, PyTree


def listed(call: str, x0: PyTree, functions: dict[str, Callable | None], args: PyTree) -> None:
    """Raise where `x0` is a list of numbers, a pytree of scalars, which a function of arrays does not take."""
    if not isinstance(x0, list | tuple) or any(jax.tree.structure(x).num_nodes > 1 or jnp.ndim(x) for x in x0):
        return
    array = jax.ShapeDtypeStruct((len(x0),), jnp.result_type(*x0))
    for name, function in functions.items():
        if function is None:
            continue
        try:
            jax.eval_shape(lambda x, f=function: f(x, args), x0)
        except Exception as cause:
            try:
                jax.eval_shape(lambda x, f=function: f(x, args), array)
            except Exception:
                continue  # the function's own mistake, which comes to light when it is traced
            cure = f"one array where `{name}` takes one: jnp.asarray(x0)"
            got = f"a {type(x0).__name__}, which is a pytree of {len(x0)} numbers"
            raise TypeError(f"{call}: `x0` must be {cure}, got {got}") from cause


class Point(NamedTuple):
    """Values at a primal-dual point: ``f``, ``c`` and the gradient of the Lagrangian ``g = f' + G'lam``."""

    f: Float[Array, ""]
    c: Float[Array, " m"]
    g: Float[Array, " n"]


class Problem(NamedTuple):
    """``min scale_f f(x)`` subject to ``scale_c * c(x) = 0`` on flat vectors.

    Scaling makes the first constraint gradients of order one and the first objective gradient at most 100; residuals
    and multipliers are reported for the problem as posed.
    """

    posed: Callable[[Array], tuple[Array, Array]]
    scale_f: Float[Array, ""]
    scale_c: Float[Array, " m"]
    columns: Float[Array, " n"]
    """Largest entries of the columns of the scaled Jacobian at the start, zeros where they are not at hand."""

    def evaluate(self, x, lam) -> Point:
        """Return ``f, c, g`` from one reverse sweep."""

        def lagrangian(x):
            f, c = self.values(x)
            return f + dot(lam, c), (f, c)

        (_, (f, c)), g = jax.value_and_grad(lagrangian, has_aux=True)(x)
        return Point(f, c, g)

    def values(self, x):
        """Return the scaled ``f(x)`` and ``c(x)`` of ``posed(x)``."""
        f, c = self.posed(x)
        return self.scale_f * f, self.scale_c * c

    def gradient(self, x, sigma, mu):
        """Return ``(sigma f' + G'mu, c)``, the map whose Jacobian is the pair (H, G)."""

        def lagrangian(x):
            f, c = self.values(x)
            return sigma * f + dot(mu, c), c

        return jax.grad(lagrangian, has_aux=True)(x)

    def residual(self, point: Point) -> Float[Array, ""]:
        """Return the KKT residual of the problem as posed, ``sqrt(|f' + G'lam|^2 + |c|^2)``."""
        g, c = point.g / self.scale_f, point.c / self.scale_c
        return jnp.where(jnp.isfinite(point.f), jnp.sqrt(dot(g, g) + dot(c, c)), jnp.nan)

    def violation(self, point: Point) -> Float[Array, ""]:
        """Return ``|c|`` of the problem as posed."""
        c = point.c / self.scale_c
        return jnp.sqrt(dot(c, c))


def scales(gradient, row_norms) -> tuple[Array, Array]:
    """Return ``(scale_f, scale_c)`` from the objective's gradient and the norms of the constraints' gradients.

    The largest constraint gradient becomes one if it was smaller, and none stays above 100 times that; rows are never
    magnified one by one, so that a constraint that merely starts near a critical point keeps its weight.
    """
    dtype = gradient.dtype
    largest = jnp.max(jnp.abs(gradient), initial=0.0)
    scale_f = 100 / jnp.maximum(largest, 100)
    top = jnp.max(row_norms, initial=0.0)
    floor = jnp.finfo(dtype).eps ** 0.5
    base = jnp.where(top > floor, 1 / jnp.where(top > floor, jnp.minimum(top, 1), 1), 1)
    scale_c = base * (10 / jnp.maximum(base * row_norms, 10))
    return jnp.where(jnp.isfinite(scale_f), scale_f, 1), jnp.where(jnp.isfinite(scale_c), scale_c, 1)
