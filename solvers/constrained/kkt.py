"""What the Newton iteration asks of a solver of Karush-Kuhn-Tucker (KKT) systems, and what it is told.

It also asks for evidence that a violation which is not zero has a local minimum, to second order and in any units.
With c the residuals, J their Jacobian, ``p = J'c`` the slope of ``|c|^2 / 2`` and ``B = J'J + sum_i c_i c_i''`` its
Hessian, the violation is at a minimum as far as numbers tell if

(1) ``S B S + tau I`` is positive definite, ``S_j^-1 = max(|J_j|, |B_jj|^0.5)``, ``tau = eps^0.5``
(2) ``(S p)' (S B S + tau I)^-1 (S p) <= eps^0.75 |c|^2``, twice the fall that the best step promises

A small p alone proves nothing, for p fades wherever J does. Towards a singular root both sides of (2) fade alike; on a
plateau B is indefinite, however small it is; and where J fades because the violation has its minimum there, as that of
``x^2 + 1``, B does not. Where the violation falls for ever towards a limit at infinity, (2) holds in the end. A
variable whose ``S_j^-1`` is `FADED` times the ``|J_j|`` of the start has left the range of numbers: no evidence. Norms
are largest entries, for squares leave it sooner.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from ..core.krylov.cg import cg
from ..core.krylov.result import KrylovReason
from ..core.precision import dot, eps
from ..core.typing import Array, Bool, Float, Int, Scalar
from .problem import Problem

SHIFTS = 30
"""Shifts of the Hessian, eightfold each, that are tried before a system is given up."""
FALL = 0.75
"""A promised fall of ``|c|^2`` by less than ``eps^FALL``, 2e-12 in float64, counts as none."""
FADED = 1.5
"""Powers of eps."""
PATIENCE = 1000
"""Conjugate-gradient steps; where they do not suffice there is no evidence."""


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
        """Whether ``|c|`` is at a minimum to second order, by (1) and (2).

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


def seen(size, first):
    """Whether what was of size `first` at the start has not faded out of the range of numbers."""
    return (size >= eps(size.dtype) ** FADED * first) & ((size > 0) | (first == 0))


def at_minimum(B, columns, first, p, squares):
    """Whether (1) and (2) hold for matrices.

    `columns` are the ``|J_j|``, `first` those of the start, and `squares` is ``|c|^2``.
    """
    dtype, n = p.dtype, p.size
    # A variable that bends nothing but together with others counts at least so much.
    bend = jnp.maximum(jnp.abs(jnp.diagonal(B)), eps(dtype) ** 2 * jnp.max(jnp.abs(B), axis=1))
    size = jnp.maximum(columns, jnp.sqrt(bend))
    alive = jnp.all(seen(size, first))
    unit = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 1)
    scaled = B * unit[None] * unit[:, None] + eps(dtype) ** 0.5 * jnp.eye(n, dtype=dtype)
    index = jnp.arange(n)

    def eliminate(k, carry):
        whole, least, fall = carry
        row, column = whole[k], whole[:, k]
        pivot = row[k]
        whole = whole - jnp.where(index > k, column / pivot, 0)[:, None] * row[None]
        return whole, jnp.minimum(least, pivot), fall + row[n] ** 2 / pivot

    # By hand: library calls in one more place made large batches on processors wait for each other for ever.
    start = jnp.concatenate([scaled, (unit * p)[:, None]], axis=1), jnp.ones((), dtype), jnp.zeros((), dtype)
    _, least, fall = lax.fori_loop(0, n, eliminate, start)
    return alive & (least > 0) & (fall <= eps(dtype) ** FALL * squares)  # (1), (2)


def seems_at_minimum(product, columns, first, p, squares):
    """Whether (2) holds for a B given as a product, and conjugate gradients meet no curvature but positive.

    They look from p and from the image of a fixed vector, for p vanishes at a maximum too.
    """
    dtype = p.dtype

    def solve(b):
        size = jnp.max(jnp.abs(b), initial=0)
        b = b / jnp.where(size > 0, size, 1)
        return size, cg(product, b, tol=eps(dtype) ** 0.5 * jnp.sqrt(dot(b, b)), max_steps=PATIENCE)

    image = product(start_vector(p.size, dtype))
    alive = jnp.all(seen(jnp.maximum(columns, jnp.sqrt(jnp.abs(image))), first))
    (size, toward), (_, elsewhere) = solve(p), solve(image)
    found = [solved.reason == KrylovReason.CONVERGED for solved in (toward, elsewhere)]
    return alive & found[0] & found[1] & (size * dot(p, toward.x) <= eps(dtype) ** FALL * squares)
