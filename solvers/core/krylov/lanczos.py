"""Lanczos tridiagonalisation with full reorthogonalisation, safe where the Krylov space ends early."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..precision import dot, eps, matmul
from ..typing import Array, Bool, Float


class Tridiagonal(NamedTuple):
    """``A V' = V' T + (a remainder in the last column)`` with orthonormal rows of V.

    Attributes
    ----------
    diagonal : Float[Array, "k"]
        Of T. Behind an early end of the Krylov space it repeats the first entry, so that no eigenvalue of T lies
        outside the range of A.
    off : Float[Array, "k-1"]
        Above and below it; zero from an early end on, so that T falls into blocks and the first row of its
        eigenvectors, the weights of a quadrature, vanishes on what is behind.
    basis : Float[Array, "k n"]
        V; rows behind an early end are zero.
    alive : Bool[Array, "k"]
        Whether a row is inside the Krylov space.
    remainder : Float[Array, ""]
        Norm of the last remainder: with the last entry of an eigenvector of T, the residual of its Ritz pair.
    """

    diagonal: Float[Array, " k"]
    off: Float[Array, " k-1"]
    basis: Float[Array, "k n"]
    alive: Bool[Array, " k"]
    remainder: Float[Array, ""]

    def matrix(self) -> Float[Array, "k k"]:
        """Return T as a dense matrix."""
        return jnp.diag(self.diagonal) + jnp.diag(self.off, 1) + jnp.diag(self.off, -1)

    def ritz(self) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
        """Return eigenvalues of T, ascending, and its eigenvectors as columns."""
        return jnp.linalg.eigh(self.matrix())


def lanczos(matvec: Callable[[Array], Array], start: Float[Array, " n"], num_steps: int) -> Tridiagonal:
    """Return T and V of `num_steps` Lanczos steps for a symmetric A from a vector.

    Parameters
    ----------
    matvec : callable
        ``x -> A x`` on arrays of shape (n,); traced once.
    start : Float[Array, "n"]
        Where to start, of any length but zero.
    num_steps : int
        Size k of T, also the number of products; static. Stored as k n numbers. Where k exceeds n, or the start lies in
        a smaller invariant space, what is beyond is masked.

    Notes
    -----
    Each new vector is orthogonalised twice against all before it: ``O(k^2 n)`` operations; orthonormal to rounding.
    A remainder below ``sqrt(n) eps |A v|``-like size counts as the end of the space. Differentiable in both modes.
    """
    dtype, n = start.dtype, start.shape[0]
    first = start / jnp.sqrt(dot(start, start))
    small = 10 * eps(dtype) * n**0.5

    def step(carry, k):
        basis, v, scale, alive = carry
        basis = basis.at[k].set(v)
        w = matvec(v)
        alpha = dot(v, w)
        scale = jnp.maximum(scale, jnp.sqrt(dot(lax.stop_gradient(w), lax.stop_gradient(w))))
        for _ in range(2):
            w = w - matmul(matmul(basis, w), basis)
        squared = dot(w, w)
        going = alive & (squared > (small * scale) ** 2)
        beta = jnp.where(going, jnp.sqrt(jnp.where(going, squared, 1)), 0)
        following = jnp.where(going, w / jnp.where(going, beta, 1), 0)
        return (basis, following, scale, going), (alpha, beta, alive)

    carry = (jnp.zeros((num_steps, n), dtype), first, jnp.zeros((), dtype), jnp.asarray(True))
    (basis, *_), (diagonal, off, alive) = lax.scan(step, carry, jnp.arange(num_steps))
    diagonal = jnp.where(alive, diagonal, diagonal[0])
    return Tridiagonal(diagonal, off[:-1], basis, alive, off[-1])


def extreme_ritz(tridiagonal: Tridiagonal) -> tuple[Array, Array, Array]:
    """Return the smallest and largest Ritz value and bounds on their distance to eigenvalues of A, shape (2,)."""
    values, vectors = tridiagonal.ritz()
    last = jnp.abs(vectors[-1]) * tridiagonal.remainder
    return values[0], values[-1], jnp.stack([last[0], last[-1]])


def ritz_vectors(tridiagonal: Tridiagonal) -> Float[Array, "k n"]:
    """Return approximate eigenvectors of A as rows, in the order of `Tridiagonal.ritz`."""
    return matmul(jax.lax.stop_gradient(tridiagonal.ritz()[1]).T, tridiagonal.basis)
