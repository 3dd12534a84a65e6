"""Preconditioners for matrix-free KKT systems, built at every step from a few products with H and G."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from ..core.linalg.nystrom import floor, nystrom
from ..core.linalg.sketch import draw
from ..core.precision import eps
from ..core.typing import Array, Scalar

Precondition = Callable[[Array, Array], tuple[Array, Array]]


class Preconditioner(eqx.Module):
    """A recipe for ``(rx, rc) -> (P^-1 rx, S^-1 rc)`` with P near ``H + shift I`` and S near ``G P^-1 G' + damping I``.

    With the exact P and S, MINRES takes three steps.
    """

    def build(self, model, n: int, m: int, *, shift: Scalar, damping: Scalar, dtype) -> Precondition:
        """Return the map for the products of `model`."""
        raise NotImplementedError


class DiagonalPreconditioner(Preconditioner):
    """The diagonals of H and of ``G P^-1 G'``, estimated from products with random signs.

    Use it where variables or constraints are badly scaled and the system is otherwise tame.

    Parameters
    ----------
    key : PRNG key
    probes : int
        Products with H, and with G; the diagonals' relative errors are about ``probes^-1/2`` times the weight of the
        off-diagonal entries. Static.

    References
    ----------
    Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a matrix", Appl. Numer. Math. 57 (2007).
    """

    key: jax.Array
    probes: int = eqx.field(static=True, default=16)

    def build(self, model, n, m, *, shift, damping, dtype):
        """Estimate both diagonals."""
        signs = jax.random.rademacher(self.key, (self.probes, n), dtype)
        diagonal = jnp.abs(jnp.mean(jax.vmap(lambda sign: sign * model.hessian(sign))(signs), axis=0) + shift)
        P = jnp.maximum(diagonal, floor(jnp.max(diagonal)))
        rows = jax.vmap(lambda sign: model.jacobian(sign / jnp.sqrt(P)))(signs)
        S = jnp.mean(rows**2, axis=0) + damping
        S = jnp.maximum(S, floor(jnp.max(S, initial=0.0)))
        return lambda rx, rc: (rx / P, rc / S)


class NystromPreconditioner(Preconditioner):
    """A randomised low-rank approximation of H, and a sketch of the Jacobian in its metric.

    Use it where H is of low rank but for a multiple of the identity, as in regularised regression, kernel methods and
    misfit functionals, and n is too large for `DenseKKT`.

    Parameters
    ----------
    key : PRNG key
    rank : int
        Products with H, made all at once. Directions beyond are taken to have the smallest eigenvalue seen, so it
        should exceed the number of eigenvalues that stand out. Static.
    oversampling : int
        ``S = (G P^-1/2 W)(G P^-1/2 W)'`` with a sketch W of ``oversampling * m`` columns, or exactly if that is n or
        more. The condition number left is at most about ``((1 + q) / (1 - q))^2`` with ``q = oversampling^-1/2``,
        whatever that of G. Static.
    sketch : str
        Kind of W: "gaussian", "kaczmarz", "countsketch" or "srht". Static.

    Notes
    -----
    (1) ``P = U diag(values) U' + rest (I - U U')``, of H shifted: see `solvers.core.linalg.nystrom`
    (2) ``S = (G P^-1/2 W)(G P^-1/2 W)' + damping I = R'R``

    Costs ``rank`` products with H and ``min(oversampling * m, n)`` with G, ``O(n rank^2 + m^3)`` operations and
    ``(rank + oversampling * m) n`` numbers a step.

    References
    ----------
    Frangella, Tropp, Udell, "Randomized Nystrom preconditioning", SIAM J. Matrix Anal. Appl. 44 (2023), algorithm 2.1;
    Avron, Maymounkov, Toledo, "Blendenpik", SIAM J. Sci. Comput. 32 (2010).
    """

    key: jax.Array
    rank: int = eqx.field(static=True, default=32)
    oversampling: int = eqx.field(static=True, default=4)
    sketch: str = eqx.field(static=True, default="gaussian")

    def build(self, model, n, m, *, shift, damping, dtype):
        """Approximate H, then factorise the sketched complement."""
        first, second = jax.random.split(self.key)
        # (1)
        P = nystrom(model.hessian, n, min(self.rank, n), first, shift=shift, dtype=dtype)

        columns = self.oversampling * m
        if columns < n:
            W = draw(self.sketch, second, n, columns, dtype)(jnp.eye(n, dtype=dtype))
            W = W / jnp.sqrt(jnp.sum(W**2) / n)
        else:
            W = jnp.eye(n, dtype=dtype)
        rows = jax.vmap(lambda w: model.jacobian(P.power(w, -0.5)))(W)
        # A QR factorisation, not the Gram matrix: that would square the condition of G.
        rest_of_rank = jnp.sqrt(damping + eps(dtype) ** 1.5 * jnp.sum(rows**2) + jnp.finfo(dtype).tiny)
        # (2)
        R = jnp.linalg.qr(jnp.concatenate([rows, rest_of_rank * jnp.eye(m, dtype=dtype)]), mode="r")
        return lambda rx, rc: (P.power(rx, -1.0), cho_solve((R, False), rc))
