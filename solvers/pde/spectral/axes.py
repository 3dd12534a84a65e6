"""One-dimensional bases with exact derivatives: integrated Legendre polynomials, trigonometric polynomials.

A basis knows its nodes and quadrature weights and evaluates any derivative of its functions anywhere. The kernel
eigenbasis of `eigenbasis` has the same interface.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Basis(Protocol):
    """Functions of one variable: ``size`` of them, ``nodes`` to sample at, ``evaluate`` for any derivative."""

    @property
    def size(self) -> int:
        """Number of functions."""
        ...

    @property
    def nodes(self) -> jax.Array:
        """Sample points, shape (n,)."""
        ...

    @property
    def weights(self) -> jax.Array:
        """Quadrature weights of the nodes; they add up to 2, as on [-1, 1]."""
        ...

    def evaluate(self, x: jax.Array, order: int = 0) -> jax.Array:
        """Return the derivatives of that order at points x (k,), shape (k, size)."""
        ...


HOST = 128
"""Polynomials up to which tables at known places are made on the host; beyond, programs would carry too much."""
ENDS = np.array([-1.0, 1.0])


class Legendre(eqx.Module):
    """Polynomials of degree below `size` whose derivatives of order `order` are Legendre polynomials.

    With u in that basis its highest derivative in an equation is a plain Legendre series and lower ones are repeated
    integrals of it: no large numbers meet, where differentiating a series of degree n loses n^(2 order) digits. The
    first `order` functions are P_0, P_1, ...; function ``order + j`` is the repeated integral of the normalised
    P_j, and for j >= order it vanishes at both ends together with its first ``order - 1`` derivatives.
    """

    lower: Any
    upper: Any
    size: int = eqx.field(static=True)
    order: int = eqx.field(static=True)

    @property
    def _half(self):
        return (self.upper - self.lower) / 2

    @property
    def nodes(self):
        """Gauss-Legendre points of the interval."""
        s = jnp.asarray(_gauss(self.size)[0], jnp.result_type(self.lower))
        return (self.lower + self.upper) / 2 + self._half * s

    @property
    def weights(self):
        """Gauss-Legendre weights."""
        return jnp.asarray(_gauss(self.size)[1], jnp.result_type(self.lower))

    @property
    def reference(self) -> np.ndarray:
        """The nodes on [-1, 1], on the host."""
        return _gauss(self.size)[0]

    def at_nodes(self, order: int = 0):
        """Return `evaluate` at the nodes, without the rounding of mapping them back and forth."""
        return self.at_reference(self.reference, order)

    def at_ends(self, order: int = 0):
        """Return `evaluate` at both ends, shape (2, size)."""
        return self.at_reference(ENDS, order)

    def at_reference(self, s: np.ndarray, order: int = 0):
        """Return `evaluate` at points of [-1, 1] known on the host: neither traced nor compiled unless it is large."""
        dtype = jnp.result_type(self.lower)
        if self.size <= HOST:
            table = lax.optimization_barrier(jnp.asarray(_table(self.size, self.order, order, s.tobytes()), dtype))
            return table / self._half**order if order else table
        return self._reference(jnp.asarray(s, dtype), order)

    def from_nodes(self):
        """Return the matrix that turns values at the nodes into coefficients; None: solve.

        Functions integrated more than once differ so much in size that an inverse, however exact, loses the digits of
        smooth functions that a factorisation keeps.
        """
        if self.size > HOST or self.order > 1:
            return None
        return lax.optimization_barrier(jnp.asarray(_inverse(self.size, self.order), jnp.result_type(self.lower)))

    def evaluate(self, x, order: int = 0):
        """Return derivatives of that order at x (k,), shape (k, size)."""
        return self._reference((x - (self.lower + self.upper) / 2) / self._half, order)

    def orthonormal(self, count: int, s=None):
        """Return the first `count` normalised Legendre polynomials at the nodes, or at s in [-1, 1]."""
        dtype = jnp.result_type(self.lower)
        if s is None and self.size <= HOST:
            table = _table(self.size, 0, 0, self.reference.tobytes())[:, :count]
            return lax.optimization_barrier(jnp.asarray(table, dtype))
        s = jnp.asarray(_gauss(self.size)[0] if s is None else s, dtype)
        return _legendre(s, count) * _norms(count, dtype)[None]

    def _reference(self, s, order: int):
        """Return derivatives of that order at s in [-1, 1], per length of the domain."""
        degrees = max(self.size - self.order, 0) + max(self.order - order, 0)
        values = _legendre(s, max(degrees, min(self.order, self.size), 1))
        return _functions(values, self.size, self.order, order, jnp) / self._half**order


class Fourier(eqx.Module):
    """Trigonometric polynomials 1, sqrt2 cos, sqrt2 sin, ... of a periodic dimension, on uniform nodes."""

    lower: Any
    upper: Any
    size: int = eqx.field(static=True)

    @property
    def nodes(self):
        """Equally spaced points, the lower end included."""
        k = jnp.arange(self.size, dtype=jnp.result_type(self.lower))
        return self.lower + (self.upper - self.lower) * k / self.size

    @property
    def weights(self):
        """Equal weights."""
        return jnp.full(self.size, 2.0 / self.size, jnp.result_type(self.lower))

    @property
    def reference(self) -> np.ndarray:
        """The nodes on [-1, 1], on the host."""
        return 2 * np.arange(self.size) / self.size - 1

    def at_nodes(self, order: int = 0):
        """Return `evaluate` at the nodes, with exact phases."""
        turns = (np.outer(np.arange(self.size), self._waves) % self.size) / self.size
        return self._values(jnp.asarray(turns, jnp.result_type(self.lower)), order)

    def at_reference(self, s: np.ndarray, order: int = 0):
        """Return `evaluate` at points of [-1, 1] known on the host."""
        turns = np.outer((s + 1) / 2, self._waves) % 1.0
        return self._values(jnp.asarray(turns, jnp.result_type(self.lower)), order)

    def from_nodes(self):
        """Return the matrix that turns values at the nodes into coefficients; None: solve."""
        return None

    def evaluate(self, x, order: int = 0):
        """Return derivatives of that order at x (k,), shape (k, size)."""
        t = (x - self.lower) / (self.upper - self.lower)
        return self._values(t[:, None] * jnp.asarray(self._waves, t.dtype)[None], order)

    @property
    def _waves(self):
        return (np.arange(self.size) + 1) // 2

    def _values(self, turns, order: int):
        rate = 2 * np.pi * jnp.asarray(self._waves, turns.dtype) / (self.upper - self.lower)
        quarter = np.where(np.arange(self.size) % 2 == 1, 0.0, -0.25) + 0.25 * order  # cos, then sin = cos(. - pi/2)
        quarter[0] = 0.25 * order
        scale = np.where(self._waves == 0, 1.0, np.sqrt(2.0)) / np.sqrt(2.0)
        phase = 2 * np.pi * (turns + jnp.asarray(quarter, turns.dtype)[None])
        return (jnp.asarray(scale, turns.dtype) * rate**order)[None] * jnp.cos(phase)


@lru_cache(maxsize=64)
def _gauss(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights by Newton's method from Tricomi's guess, on the host in float64."""
    theta = np.pi * (np.arange(n, 0, -1) - 0.25) / (n + 0.5)
    s = (1 - (n - 1) / (8 * n**3)) * np.cos(theta)
    derivative = np.ones_like(s)
    for _ in range(6):
        p, q = np.ones_like(s), np.zeros_like(s)
        for j in range(n):
            p, q = ((2 * j + 1) * s * p - j * q) / (j + 1), p
        derivative = n * (q - s * p) / (1 - s**2)
        s = s - p / derivative
    s = (s - s[::-1]) / 2
    weights = 2 / ((1 - s**2) * derivative**2)
    return s, weights * (2 / weights.sum())


@lru_cache(maxsize=256)
def _table(size: int, folded: int, order: int, points: bytes) -> np.ndarray:
    """Return what `Legendre` knows beforehand, at points of [-1, 1]: on the host, neither traced nor compiled."""
    s = np.frombuffer(points)
    degrees = max(max(size - folded, 0) + max(folded - order, 0), min(folded, size), 1)
    columns = [np.ones_like(s), s]
    for j in range(1, degrees):
        columns.append((2 * j + 1) / (j + 1) * s * columns[j] - j / (j + 1) * columns[j - 1])
    return _functions(np.stack(columns[:degrees], axis=1), size, folded, order, np)


@lru_cache(maxsize=64)
def _inverse(size: int, folded: int) -> np.ndarray:
    """Return the inverse of the table at the nodes, each entry to the last digit or so."""
    table = _table(size, folded, 0, _gauss(size)[0].tobytes())
    inverse = np.linalg.inv(table)
    defect = (np.eye(size) - table.astype(np.longdouble) @ inverse.astype(np.longdouble)).astype(float)
    return inverse + inverse @ defect


def _functions(values, size: int, folded: int, order: int, xp: Any):
    """Return derivatives of the functions of `Legendre` from the values of enough Legendre polynomials."""
    low, high, folds = min(folded, size), max(size - folded, 0), max(folded - order, 0)
    head, tail = values[:, :low], values[:, : high + folds]
    for _ in range(order):
        head = _differentiate(head, xp)
    for _ in range(folds):
        tail = _integrate(tail, xp)
    for _ in range(order - folded):
        tail = _differentiate(tail, xp)
    return xp.concatenate([head, tail * xp.asarray(_norms(high, values.dtype))[None]], axis=1)


@lru_cache(maxsize=4)
def fejer(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Chebyshev points of the first kind, which avoid the ends, and the weights of Fejer's rule."""
    j = np.arange(n)
    moments = np.where(j % 2 == 0, 1 / (1 - j.astype(float) ** 2 + (j == 1)), 0.0)
    moments[0] /= 2
    twisted = np.zeros(2 * n, complex)
    twisted[:n] = moments * np.exp(0.5j * np.pi * j / n)
    return -np.cos((j + 0.5) * np.pi / n), 8 * np.fft.ifft(twisted).real[:n]


def _legendre(s, count: int):
    """P_0 ... P_{count-1} at s, shape (k, count), by the three-term recurrence."""

    def step(carry, j):
        p, q = carry
        return ((2 * j + 1) * s * p / (j + 1) - j * q / (j + 1), p), p

    _, columns = lax.scan(step, (jnp.ones_like(s), jnp.zeros_like(s)), jnp.arange(count, dtype=s.dtype), unroll=4)
    return columns.T


def _integrate(g, xp: Any):
    """Integrals from -1 of a family with ``g_j = (h_{j+1} - h_{j-1})' / (2j+1)``; one column fewer."""
    j = 2 * xp.arange(1, g.shape[1] - 1, dtype=g.dtype) + 1
    first = g[:, :1] + g[:, 1:2]
    return xp.concatenate([first, (g[:, 2:] - g[:, :-2]) / j[None]], axis=1)


def _differentiate(g, xp: Any):
    """Differentiate a Legendre family: ``P_j' = sum (2i+1) P_i`` over i = j-1, j-3, ..."""
    k, n = g.shape
    scaled = g * (2 * xp.arange(n, dtype=g.dtype) + 1)[None]
    padded = xp.pad(scaled, ((0, 0), (0, n % 2))).reshape(k, (n + 1) // 2, 2)
    sums = xp.cumsum(padded, axis=1).reshape(k, n + n % 2)[:, :n]
    return xp.concatenate([xp.zeros((k, 1), g.dtype), sums[:, : n - 1]], axis=1)[:, :n]


def _norms(count: int, dtype):
    return np.sqrt(np.arange(count) + 0.5).astype(dtype)
