"""What the Newton iteration asks of a solver of Karush-Kuhn-Tucker (KKT) systems, and what it is told."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from ..core.precision import dot
from ..core.typing import Array, Bool, Float, Int, Scalar
from .problem import Problem

SHIFTS = 30
"""Shifts of the Hessian, eightfold each, that are tried before a system is given up."""


class Question(NamedTuple):
    """Solve ``[[B, G'], [G, -d I]] (dx, dlam) = (rx, rc)`` with ``B = H + shift I`` made convex.

    Convex means positive definite on the null space of G; when `penalised`, that ``B + G'G`` is positive definite, and
    then d = 1 and dlam is of no interest. Otherwise d is as small as keeps dlam in proportion to `lam`.

    Where a shift was needed, dlam comes from ``(rx, 0)`` instead: a correction of the multipliers for the gradient -rx.
    With `renew` such a correction, best by least squares, is all that is wanted. `hint` is the last step's shift.
    With `explore`, a direction of negative curvature is wanted if a shift was needed.
    """

    rx: Float[Array, " n"]
    rc: Float[Array, " m"]
    penalised: Bool[Array, ""]
    renew: Bool[Array, ""]
    lam: Float[Array, " m"]
    hint: Float[Array, ""]
    explore: Bool[Array, ""]
    index: Int[Array, ""]
    """Steps taken, to vary random numbers with."""


class Answer(NamedTuple):
    """A step, the shift it needed, and a unit direction `v` of curvature ``v'Hv`` (zero unless found negative).

    `deficient`: the rows of G look linearly dependent.
    """

    dx: Float[Array, " n"]
    dlam: Float[Array, " m"]
    shift: Float[Array, ""]
    valid: Bool[Array, ""]
    deficient: Bool[Array, ""]
    v: Float[Array, " n"]
    curvature: Float[Array, ""]
    inner: Int[Array, ""]


class KKT(eqx.Module):
    """A way to solve KKT systems: `DenseKKT`, `KrylovKKT` or `SketchProject`."""

    width: ClassVar[int] = 1
    """How many step lengths the line search tries at once; more than one where a system costs far more than a trial."""

    def model(self, problem: Problem, x, sigma: Scalar, mu) -> Any:
        """Return the Hessian of ``sigma f + mu'c`` and the Jacobian G of c at `x`, with products as methods."""
        raise NotImplementedError

    def row_norms(self, model, m, dtype) -> Float[Array, " m"]:
        """Return the norms of the rows of G, for scaling."""
        raise NotImplementedError

    def column_sizes(self, model, x, weights) -> Float[Array, " n"]:
        """Return the largest entries of the columns of G, its rows weighted; zeros where they are not at hand."""
        return jnp.zeros_like(x)

    def at_minimum(self, model, c, first) -> Bool[Array, ""]:
        """Whether ``|c|`` is at a minimum to second order, by `evidence`.

        The H of `model` is that of ``u'c(x)`` with u = c; `first` are the `column_sizes` of the start.
        """
        raise NotImplementedError

    def multipliers(self, model, g) -> Float[Array, " m"]:
        """Return ``argmin_u |g + G'u|``, the least-squares multipliers for the gradient `g` of the objective."""
        raise NotImplementedError

    def solve(self, model, ask: Question, penalties: tuple[Scalar, Scalar]) -> Answer:
        """Answer a `Question`; `penalties` are those of the merit function, eta1 and eta2."""
        raise NotImplementedError

    def implicit(self, matvec, b, n: int):
        """Solve ``matvec(z) = b`` for the KKT matrix at a solution, z = (x, lam); for derivatives."""
        raise NotImplementedError


def norm(v):
    """Return the Euclidean norm."""
    return jnp.sqrt(dot(v, v))


def unit(v):
    """Return ``v / |v|``, zero for zero."""
    size = norm(v)
    return v / jnp.where(size > 0, size, 1)


def start_vector(n, dtype):
    """Return a fixed vector that no symmetry of a problem is likely to share."""
    return unit(jnp.cos(jnp.arange(1, n + 1, dtype=dtype) ** 2 * 0.7) + 0.1)
