"""Preconditioners for matrix-free KKT systems, built at every step from a few products with H and G."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from ..core.linalg.sketch import draw
from ..core.precision import eps, matmul
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
        Kind of W; see `core.sketch.draw`. Static.

    Notes
    -----
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
        U, values, rest = nystrom(model.hessian, n, min(self.rank, n), first, shift, dtype)

        def power(x, exponent):
            """Return ``P^exponent x``."""
            inside = matmul(x, U)
            return rest**exponent * (x - matmul(inside, U.T)) + matmul(inside * values**exponent, U.T)

        columns = self.oversampling * m
        if columns < n:
            W = draw(self.sketch, second, n, columns, dtype)(jnp.eye(n, dtype=dtype))
            W = W / jnp.sqrt(jnp.sum(W**2) / n)
        else:
            W = jnp.eye(n, dtype=dtype)
        rows = jax.vmap(lambda w: model.jacobian(power(w, -0.5)))(W)
        # A QR factorisation, not the Gram matrix: that would square the condition of G.
        rest_of_rank = jnp.sqrt(damping + eps(dtype) ** 1.5 * jnp.sum(rows**2) + jnp.finfo(dtype).tiny)
        R = jnp.linalg.qr(jnp.concatenate([rows, rest_of_rank * jnp.eye(m, dtype=dtype)]), mode="r")
        return lambda rx, rc: (power(rx, -1.0), cho_solve((R, False), rc))


def nystrom(product, n, rank, key, shift, dtype):
    """Return U (n, rank), eigenvalues and one for all other directions: ``A ~ U diag(values) U' + rest (I - U U')``.

    A is the positive part of the operator plus `shift`; in directions of negative curvature it counts as `rest`.
    """
    basis = jnp.linalg.qr(jax.random.normal(key, (n, rank), dtype))[0]
    Y = jax.vmap(product, in_axes=1, out_axes=1)(basis) + shift * basis
    core, V = jnp.linalg.eigh(matmul(basis.T, Y))
    positive = core > floor(jnp.max(jnp.abs(core)))
    half = matmul(Y, V) * jnp.where(positive, jnp.where(positive, core, 1) ** -0.5, 0)[None]
    U, sigma, _ = jnp.linalg.svd(half, full_matrices=False)
    values, top = sigma**2, sigma[0] ** 2
    kept = values > floor(top)
    rest = jnp.min(jnp.where(kept, values, top))
    rest = jnp.where(rest > 0, rest, 1)
    return U, jnp.where(kept, values, rest), rest


def floor(top):
    """Return what counts as zero beside `top`."""
    return eps(top.dtype) ** 0.75 * top + jnp.finfo(top.dtype).tiny
