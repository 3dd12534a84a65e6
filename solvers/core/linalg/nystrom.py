"""A low-rank approximation of a positive semidefinite operator from a few products, and its inverse.

After Frangella, Tropp and Udell, SIAM J. Matrix Anal. Appl. 44 (2023), algorithm 2.1, for ``A + shift I``:

(1) ``Y = (A + shift I) Omega``, Omega an orthonormal basis of Gaussian vectors
(2) ``Y (Omega'Y)^+ Y' = U diag(values) U'``
(3) ``A + shift I ~ U diag(values) U' + rest (I - U U')``, rest the smallest of the values

It departs from the paper, which moves A by a multiple of eps and factorises ``Omega'Y`` by Cholesky, and adds the shift
to the values afterwards: here what is not positive in ``Omega'Y`` is left out, so that A may be indefinite.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from ..precision import eps, matmul
from ..typing import Array, Float, Scalar


class NystromApproximation(eqx.Module):
    """``A ~ U diag(values) U' + rest (I - U U')``.

    Attributes
    ----------
    basis : Float[Array, "n rank"]
        U, orthonormal columns.
    values : Float[Array, "rank"]
        Positive, descending.
    rest : Float[Array, ""]
        What all other directions are taken to have; positive.
    """

    basis: Float[Array, "n rank"]
    values: Float[Array, " rank"]
    rest: Float[Array, ""]

    def power(self, x: Float[Array, "... n"], exponent: Scalar) -> Float[Array, "... n"]:
        """Return the approximation to that power times x: -1 for a preconditioner, -1/2 to split it."""
        inside = matmul(x, self.basis)
        outside = self.rest**exponent * (x - matmul(inside, self.basis.T))
        return outside + matmul(inside * self.values**exponent, self.basis.T)  # (3): a power of it


def nystrom(
    product: Callable[[Array], Array], n: int, rank: int, key: Array, *, shift: Scalar = 0.0, dtype
) -> NystromApproximation:
    """Return the randomised Nystrom approximation of ``A + shift I``.

    Parameters
    ----------
    product : callable
        ``x -> A x`` on vectors of length n. In directions of negative curvature A counts as `rest`.
    n, rank : int
        Static; `rank` products are made at once. Directions beyond are taken to have the smallest eigenvalue seen, so
        it should exceed the number of eigenvalues that stand out.
    key : PRNG key
    shift : scalar
        Traced.
    dtype : dtype

    References
    ----------
    Frangella, Tropp, Udell, "Randomized Nystrom preconditioning", SIAM J. Matrix Anal. Appl. 44 (2023), algorithm 2.1.
    """
    probes = jnp.linalg.qr(jax.random.normal(key, (n, rank), dtype))[0]
    Y = jax.vmap(product, in_axes=1, out_axes=1)(probes) + shift * probes  # (1)
    core, V = jnp.linalg.eigh(matmul(probes.T, Y))
    positive = core > floor(jnp.max(jnp.abs(core)))
    half = matmul(Y, V) * jnp.where(positive, jnp.where(positive, core, 1) ** -0.5, 0)[None]
    U, sigma, _ = jnp.linalg.svd(half, full_matrices=False)  # (2)
    values, top = sigma**2, sigma[0] ** 2
    kept = values > floor(top)
    rest = jnp.min(jnp.where(kept, values, top))  # (3)
    rest = jnp.where(rest > 0, rest, 1)
    return NystromApproximation(U, jnp.where(kept, values, rest), rest)


def floor(top: Array) -> Array:
    """Return what counts as zero beside `top`."""
    return eps(top.dtype) ** 0.75 * top + jnp.finfo(top.dtype).tiny
