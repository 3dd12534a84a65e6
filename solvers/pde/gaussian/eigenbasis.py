"""Whitened bases: a prior's own functions, or polynomials weighted by it, with unit Gaussian weights."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...core.gaussian.kernels import Kernel
from ...core.precision import eps, matmul
from ...core.typing import Array, Float
from ..spectral.axes import Fourier, Legendre


class Eigen(eqx.Module):
    """Functions ``k(x, anchors) U L^-1/2`` of one dimension: weights N(0, I) make u a draw from the prior.

    ``U L U'`` is the kernel matrix of the anchors, truncated relative to its largest eigenvalue, so nothing is added
    to the diagonal and the conditioning is that of the data, not of the kernel.

    Small eigenvalues are differences of large numbers, so the functions are built and evaluated in float64 where JAX
    has it switched on, whatever the dtype of the data; their values are rounded to it.

    With `line`, a standard deviation, the functions 1 and 2 s - 1 (s from 0 to 1) come first: what an exact equation
    leaves free where boundary data are missing, and what truncated functions could not imitate to its precision.
    """

    kernel: Kernel
    lower: Any
    upper: Any
    anchors: Float[Array, " m"]
    factor: Float[Array, "m r"]
    line: Any = None

    @staticmethod
    def build(kernel: Kernel, lower, upper, count: int, rank: int, line=None) -> "Eigen":
        """Take `count` Gauss-Legendre anchors and the `rank` leading eigenfunctions."""
        kernel = jax.tree.map(_widest, kernel)
        anchors = Legendre(_widest(lower), _widest(upper), count, 0).nodes
        width = _widest(upper) - _widest(lower)
        values, vectors = jnp.linalg.eigh(kernel.derivative((anchors[:, None] - anchors[None]) / width))
        values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
        keep = values > 100 * eps(values.dtype) * values[0]
        scale = jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, values, 1)), 0)
        return Eigen(kernel, lower, upper, anchors, vectors * scale[None], line)

    @property
    def size(self) -> int:
        """Number of functions."""
        return self.factor.shape[1] + (0 if self.line is None else 2)

    def evaluate(self, x, order: int = 0):
        """Return derivatives of that order at x (k,), shape (k, size)."""
        width = self.upper - self.lower
        wide = _widest(width)
        own = self.kernel.derivative((_widest(x)[:, None] - self.anchors[None]) / wide, order)
        own = (matmul(own, self.factor) / wide**order).astype(x.dtype)
        if self.line is None:
            return own
        zero, one = jnp.zeros_like(x), jnp.ones_like(x)
        pair = {0: (one, 2 * (x - self.lower) / width - 1), 1: (zero, 2 * one / width)}.get(order, (zero, zero))
        return jnp.concatenate([self.line * jnp.stack(pair, axis=1), own], axis=1)

    whitened = evaluate

    def colour(self, tensor, axis: int):
        """Turn whitened weights along one mode into coefficients: they are the same here."""
        return tensor


def _widest(x):
    return jnp.asarray(x, jax.dtypes.canonicalize_dtype(np.float64))


class Weighted(eqx.Module):
    """Polynomials, or trigonometric ones, whose coefficients have the covariance that a prior gives them."""

    basis: Legendre | Fourier
    factor: Float[Array, "n r"]

    @staticmethod
    def build(kernel: Kernel, basis: Legendre | Fourier, rank: int) -> "Weighted":
        """Interpolate the prior at the basis' nodes; covariance ``C K C'`` with C from values to coefficients."""
        x = basis.nodes
        values, vectors = jnp.linalg.eigh(kernel.derivative((x[:, None] - x[None]) / (basis.upper - basis.lower)))
        root = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None])[:, ::-1][:, :rank]
        return Weighted(basis, jnp.linalg.solve(basis.at_nodes(0), root))

    @property
    def lower(self):
        """Lower end of the interval."""
        return self.basis.lower

    @property
    def upper(self):
        """Upper end of the interval."""
        return self.basis.upper

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.factor.shape[1]

    def evaluate(self, x, order: int = 0):
        """Return derivatives of the polynomials at x (k,)."""
        return self.basis.evaluate(x, order)

    def whitened(self, x, order: int = 0):
        """Return derivatives of the functions that belong to unit weights."""
        return matmul(self.basis.evaluate(x, order), self.factor)

    def colour(self, tensor, axis: int):
        """Turn whitened weights along one mode into coefficients."""
        moved = jnp.moveaxis(tensor, axis, 0)
        flat = matmul(self.factor, moved.reshape(moved.shape[0], -1))
        return jnp.moveaxis(flat.reshape(-1, *moved.shape[1:]), 0, axis)
