"""Gradients through a lower-level minimiser, by four ways of solving one linear system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..core import checks
from ..core.implicit import linear_solve
from ..core.krylov.cg import cg
from ..core.linalg.nystrom import nystrom
from ..core.precision import eps
from ..core.typing import Array, Float
from ..core.vectors import axpy, norm


class Hypergradient(eqx.Module):
    """What `hypergradient` returns.

    Attributes
    ----------
    value : PyTree
        Like x: the gradient of ``upper(x, y*(x))``, as exact as the two residuals are small.
    linear : Float[Array, ""]
        ``|H v - grad_y upper| / |grad_y upper|``, H the lower Hessian: what the linear solver left.
    stationarity : Float[Array, ""]
        ``|grad_y lower|`` at the y given: the formula is for a minimiser.
    """

    value: Any
    linear: Float[Array, "..."]
    stationarity: Float[Array, "..."]


class LinearSolver(eqx.Module):
    """A way to solve ``H v = b`` for a symmetric positive definite product."""

    def solve(self, product: Callable[[Array], Array], b: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return v."""
        raise NotImplementedError


class DirectSolve(LinearSolver):
    """Form the Hessian by n products and factorise it: exact, for up to some hundred unknowns."""

    def solve(self, product, b):
        """Return v."""
        H = jax.vmap(product)(jnp.eye(b.shape[0], dtype=b.dtype))
        return jax.scipy.linalg.solve((H + H.T) / 2, b, assume_a="pos")


class CGSolve(LinearSolver):
    """Conjugate gradients to a relative residual; the best first choice.

    Attributes
    ----------
    tol, max_steps : scalar
        Traced.
    """

    tol: Any = None
    max_steps: Any = 1000

    def solve(self, product, b):
        """Return v."""
        tol = 100 * eps(b.dtype) if self.tol is None else self.tol
        return linear_solve(
            product, b, lambda A, b: cg(A, b, tol=jnp.asarray(tol, b.dtype) * norm(b), max_steps=self.max_steps).x
        )


class NeumannSeries(LinearSolver):
    """What differentiating that many gradient steps at y* gives: a truncated series.

    (3) ``v = step sum_(k < terms) (I - step H)^k b``, by ``v <- v + step (b - H v)``

    Attributes
    ----------
    step : scalar
        At most ``1 / |H|``; traced.
    terms : int
        Static.
    """

    step: Any
    terms: int = eqx.field(static=True, default=100)

    def solve(self, product, b):
        """Return v."""
        step = jnp.asarray(self.step, b.dtype)

        def more(v, _):
            return v + step * (b - product(v)), None  # (3)

        return jax.lax.scan(more, jnp.zeros_like(b), None, length=self.terms)[0]


class NystromInverse(LinearSolver):
    """``(shift I + Nystrom approximation of H)^-1 b``: all products at once, accurate where H is low-rank plus a shift.

    Attributes
    ----------
    rank : int
        Static.
    key : PRNG key
    shift : scalar
        Added to H; traced.
    """

    key: Array
    rank: int = eqx.field(static=True, default=10)
    shift: Any = 1e-3

    def solve(self, product, b):
        """Return v."""
        n = b.shape[0]
        shift = jnp.asarray(self.shift, b.dtype)
        return nystrom(product, n, min(self.rank, n), self.key, shift=shift, dtype=b.dtype).power(b, -1.0)


Objective = Callable[[Any, Any, Any], Array]


def hypergradient(
    upper: Objective, lower: Objective, x: Any, y: Any, args: Any = None, *, solver: LinearSolver | None = None
) -> Hypergradient:
    """Return ``grad_x upper(x, y*(x))`` for ``y*(x) = argmin_y lower(x, y)``, given y = y*(x).

    (1) ``grad_x upper - (d2 lower / dx dy) v``
    (2) ``H v = grad_y upper``, ``H = d2 lower / dy2``

    One linear system, two gradients, one mixed product, whatever the size of x.

    Parameters
    ----------
    upper, lower : callable
        ``upper(x, y, args)`` and ``lower(x, y, args)``, scalars; lower twice differentiable, strongly convex in y near
        the minimiser.
    x, y : PyTree of arrays
        y is taken as the minimiser; how far it is from stationary is in the answer.
    args : PyTree, optional
        Data of both.
    solver : LinearSolver, optional
        `DirectSolve`, `CGSolve` (the default), `NeumannSeries`, `NystromInverse`.

    Returns
    -------
    Hypergradient
        The gradient, the relative residual of the linear system and ``|grad_y lower|``. Read both before trusting it.

    Raises
    ------
    TypeError
        A solver that is none, or functions that are not scalars of three arguments.

    Notes
    -----
    An error e in y and a residual r in v move the gradient by O(e + r). Differentiable again with `DirectSolve` and
    `CGSolve`, y held fixed.

    References
    ----------
    Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016; Lorraine, Vicol, Duvenaud, AISTATS
    2020 (Neumann); Hataya, Yamada, AISTATS 2023 (Nystrom).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import hypergradient
    >>> lower = lambda x, y, _: 0.5 * jnp.sum((y - 2 * x) ** 2)
    >>> upper = lambda x, y, _: jnp.sum(y**2)
    >>> x = jnp.array([1.0, 3.0])
    >>> print(hypergradient(upper, lower, x, 2 * x).value)
    [ 8. 24.]
    """
    solver = CGSolve() if solver is None else solver
    if not isinstance(solver, LinearSolver):
        checks.fail("hypergradient", "solver", "a LinearSolver", type(solver).__name__, TypeError)
    for label, function in (("upper", upper), ("lower", lower)):
        checks.takes("hypergradient", label, function, "x", "y", "args")
        value = jax.eval_shape(function, x, y, args)
        if getattr(value, "shape", None) != ():
            checks.fail("hypergradient", label, "a function with a scalar as its value", value, TypeError)
    flat, unravel = ravel_pytree(y)
    by_x, by_y = jax.grad(upper, argnums=(0, 1))(x, y, args)
    b = ravel_pytree(by_y)[0]

    def slope(x, flat):
        return ravel_pytree(jax.grad(lower, argnums=1)(x, unravel(flat), args))[0]

    value, product = jax.linearize(lambda f: slope(x, f), flat)
    v = solver.solve(product, b)  # (2)
    _, pull = jax.vjp(lambda x: slope(x, flat), x)
    size = norm(b)
    residual = norm(product(v) - b) / jnp.where(size > 0, size, 1)
    return Hypergradient(axpy(-1, pull(v)[0], by_x), residual, norm(value))  # (1)
