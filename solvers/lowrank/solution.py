"""What the solvers of this family return, and the derivatives of a recovered matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.implicit import attach, distrust, linear_solve
from ..core.krylov.cg import cg
from ..core.precision import binary_exponent, eps, matmul
from ..core.solution import Solution, Status, StatusCode
from ..core.typing import Array, Float
from ..core.vectors import norm


class LowRankStatus(StatusCode):
    """Why a recovery stopped, beyond `Status`."""

    STATIONARY = (
        100,
        "stationary: no nearby matrix of this rank fits better, yet the data are not matched to `tol`; "
        "the data hold noise (set `tol` to its relative size), `rank` is too small, or the start was poor",
    )


class Factors(NamedTuple):
    """A matrix as ``left right'``."""

    left: Float[Array, "n k"]
    right: Float[Array, "p k"]


class LowRankSolution(Solution):
    """A recovered matrix, as factors.

    Attributes
    ----------
    value : tuple of two arrays
        ``left (n, k)`` and ``right (p, k)``, balanced: both are orthogonal times the roots of `singular_values`.
    singular_values : Float[Array, "k"]
        Of the matrix, in falling order.
    """

    singular_values: Float[Array, "..."]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, LowRankStatus)

    @property
    def left(self) -> Array:
        """The left factor."""
        return self.value[0]

    @property
    def right(self) -> Array:
        """The right factor."""
        return self.value[1]

    @property
    def matrix(self) -> Array:
        """The matrix itself, ``left right'``."""
        return matmul(self.left, jnp.swapaxes(self.right, -1, -2))


def balanced(factors: Factors) -> tuple[Factors, Array]:
    """Return the same matrix with ``left = U sqrt(S), right = V sqrt(S)``, and S."""
    (q, a), (p, c) = jnp.linalg.qr(factors.left), jnp.linalg.qr(factors.right)
    u, s, vt = jnp.linalg.svd(matmul(a, c.T), full_matrices=False)
    pad = factors.left.shape[1] - s.shape[0]
    root = jnp.sqrt(s)[None, :]
    left, right = matmul(q, u) * root, matmul(p, vt.T) * root
    top = jnp.take_along_axis(left, jnp.argmax(jnp.abs(left), axis=0)[None, :], axis=0)
    sign = jnp.where(top < 0, -1, 1).astype(left.dtype)  # which of two is the same on every machine
    left, right = left * sign, right * sign
    finite = jnp.all(jnp.isfinite(left)) & jnp.all(jnp.isfinite(right))
    left, right = (jnp.pad(x, ((0, 0), (0, pad))) for x in (left, right))
    left, right = jnp.where(finite, left, factors.left), jnp.where(finite, right, factors.right)
    return Factors(left, right), jnp.pad(jnp.where(finite, s, jnp.nan), (0, pad))


def exponent_of(b: Array) -> tuple[Array, Array]:
    """Return ``(down, up)``, powers of two with ``down up = 1`` and the largest entry of ``down^2 b`` near one."""
    exponent = binary_exponent(jnp.max(jnp.abs(b), initial=0)) // 2
    return jnp.ldexp(jnp.ones((), b.dtype), -exponent), jnp.ldexp(jnp.ones((), b.dtype), exponent)


def differentiable(
    objective: Callable[[Any, Any], Array],
    point: Any,
    data: Any,
    trusted: Array,
    weight: Array,
    *,
    rigid: bool = False,
    columns: int | None = None,
) -> Any:
    """Return the minimiser `point` of ``objective(point, data)`` with its derivatives in `data`, NaN unless `trusted`.

    `point` is `Factors`, or one factor of a symmetric matrix. The Hessian is singular along the changes of basis that
    leave the objective as it is, all or, where `rigid`, the rotations, of the first `columns`; the gradient never
    points there. A multiple `weight` of the projection on them makes it definite without changing the solution, so
    that the matrix, if not its factors, has the derivative it should, to any order.
    """
    moving, fixed = eqx.partition(data, eqx.is_inexact_array)
    point = lax.stop_gradient(point)

    def stationarity(point, moving):
        return jax.grad(objective)(point, eqx.combine(moving, fixed))

    def turn(x):
        if isinstance(point, Factors):
            (f, g), (d, e) = ((x[:, :columns] for x in pair) for pair in (point, x))
            c = matmul(f.T, d) - matmul(e.T, g)
            c = (c - c.T) / 2 if rigid else c
            turned = Factors(weight * matmul(f, c), -weight * matmul(g, c.T))
            rest = 0 if columns is None else point.left.shape[1] - columns
            return Factors(*(jnp.pad(x, ((0, 0), (0, rest))) for x in turned))
        c = matmul(point.T, x)
        return weight * matmul(point, c - c.T) / 2

    def solve(jacobian, b):
        size = sum(x.size for x in jax.tree.leaves(b))

        def iterate(matvec, b):
            definite = lambda x: jax.tree.map(jnp.add, matvec(x), turn(x))  # noqa: E731
            return cg(definite, b, tol=10 * eps(jax.tree.leaves(b)[0].dtype) * norm(b), max_steps=10 * size).x

        return linear_solve(jacobian, b, iterate)

    return distrust(attach(stationarity, point, moving, solve=solve), lax.stop_gradient(trusted))
