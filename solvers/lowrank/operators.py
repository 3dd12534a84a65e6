"""What is measured of a matrix: one protocol, its adjoint found by transposition."""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.precision import HIGHEST, matmul
from ..core.typing import Array, Float, Int


class Measurement(eqx.Module):
    """A linear map A from matrices to arrays of numbers, known by what it does to a product of factors.

    A subclass gives `shape` and `product`; everything else follows: ``A*(r) R`` is the transpose of
    ``L -> A(L R')``, so that no matrix is ever formed.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrices that are measured."""

    @abstractmethod
    def product(self, left: Float[Array, "n k"], right: Float[Array, "p k"]) -> Array:
        """Return ``A(left right')``."""

    def adjoint_times(self, r: Array, right: Float[Array, "p k"]) -> Float[Array, "n k"]:
        """Return ``A*(r) right``."""
        start = jax.ShapeDtypeStruct((self.shape[0], right.shape[1]), right.dtype)
        return jax.linear_transpose(lambda left: self.product(left, right), start)(r)[0]

    def transposed_adjoint_times(self, r: Array, left: Float[Array, "n k"]) -> Float[Array, "p k"]:
        """Return ``A*(r)' left``."""
        start = jax.ShapeDtypeStruct((self.shape[1], left.shape[1]), left.dtype)
        return jax.linear_transpose(lambda right: self.product(left, right), start)(r)[0]


class DenseMeasurements(Measurement):
    """Inner products with given matrices, ``A(X)_i = <A_i, X>``: Gaussian measurements among them.

    Attributes
    ----------
    matrices : Float[Array, "m n p"]
        Differentiable.
    """

    matrices: Float[Array, "m n p"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.matrices.shape[-2], self.matrices.shape[-1]

    def product(self, left, right):
        """Return ``<A_i, left right'>``."""
        return jnp.einsum("mnp,np->m", self.matrices, matmul(left, right.T), precision=HIGHEST)


class RankOneMeasurements(Measurement):
    """Bilinear measurements, ``A(X)_i = a_i' X c_i``, at m (n + p) numbers instead of m n p.

    Attributes
    ----------
    left : Float[Array, "m n"]
        The a_i. Differentiable.
    right : Float[Array, "m p"]
        The c_i; the same array for quadratic measurements (phase retrieval). Differentiable.
    """

    left: Float[Array, "m n"]
    right: Float[Array, "m p"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.left.shape[-1], self.right.shape[-1]

    def product(self, left, right):
        """Return ``a_i' left right' c_i``."""
        return jnp.sum(matmul(self.left, left) * matmul(self.right, right), axis=-1)


class Entries(Measurement):
    """Single entries, ``A(X)_i = X[rows_i, cols_i]``.

    Attributes
    ----------
    rows, cols : Int[Array, "m"]
        Which. An index out of range reads the nearest entry, as indexing in JAX does.
    size : tuple of int
        Rows and columns of X; static.
    """

    rows: Int[Array, " m"]
    cols: Int[Array, " m"]
    size: tuple[int, int] = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.size

    def product(self, left, right):
        """Return the entries of ``left right'``."""
        return jnp.sum(left[self.rows] * right[self.cols], axis=-1)


class WholeMatrix(Measurement):
    """The identity: every entry is seen, ``A(X) = X``; recovery is then low-rank approximation.

    Attributes
    ----------
    size : tuple of int
        Rows and columns of X; static.
    """

    size: tuple[int, int] = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.size

    def product(self, left, right):
        """Return ``left right'``."""
        return matmul(left, right.T)
