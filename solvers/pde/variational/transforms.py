"""Trigonometric transforms that diagonalise the Laplacian of a grid, and the map from slopes to directions.

(1) ``shift + sum_d (2 / h sin(pi angle_d))^2``, the eigenvalues of ``shift - Laplace`` on a grid of spacing h
(2) ``sum (1 + |w|)^order |c(w)|``, the Barron norm of Marwah et al., ICML 2023
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...core.checks import choice, fail
from ...core.linalg.kronecker import along, mode_product
from ...core.typing import Array, Float

SHORT = 32
"""Axes of up to this length are transformed by a matrix: XLA's FFT on CPUs fails on axes of length one."""

BOUNDARIES = ("dirichlet", "neumann", "periodic")


class Inner(eqx.Module):
    """The inner product ``volume * sum u (shift - Laplace) v`` on a grid, its solves and its powers.

    Dirichlet axes hold n interior nodes, ``length / (n + 1)`` apart; Neumann axes n cell centres and periodic axes n
    nodes, ``length / n`` apart.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    boundary: tuple[str, ...] = eqx.field(static=True)
    spacing: tuple[Any, ...]
    shift: Any

    @property
    def volume(self):
        """Of a cell."""
        return math.prod(self.spacing[1:], start=self.spacing[0])

    def eigenvalues(self) -> Array:
        """Return those of ``volume (shift - Laplace)``, on the grid of frequencies."""
        total = self.shift
        for d, (n, kind, h) in enumerate(zip(self.shape, self.boundary, self.spacing, strict=True)):
            k = jnp.arange(n, dtype=h.dtype)
            angle = {"dirichlet": (k + 1) / (2 * (n + 1)), "neumann": k / (2 * n), "periodic": k / n}[kind]
            total = total + along((2 / h * jnp.sin(jnp.pi * angle)) ** 2, d, len(self.shape))  # (1)
        return self.volume * total

    def power(self, x: Array, exponent: float) -> Array:
        """Apply a power of the operator."""
        values = self.eigenvalues()
        factor = 1 / values if exponent == -1 else values**exponent
        for d, kind in enumerate(self.boundary):
            x = forward(x, d, kind)
        x = x * factor
        for d, kind in enumerate(self.boundary):
            x = backward(x, d, kind)
        return x

    def solve(self, g: Array) -> Array:
        """Return the direction that represents a slope."""
        return self.power(g, -1)

    def square(self, u: Array) -> Array:
        """Return ``volume * sum u (shift - Laplace) u``, by differences."""
        total = self.shift * jnp.sum(u * u)
        for d, (kind, h) in enumerate(zip(self.boundary, self.spacing, strict=True)):
            if kind == "dirichlet":
                padded = jnp.pad(u, [(1, 1) if e == d else (0, 0) for e in range(u.ndim)])
                steps = jnp.diff(padded, axis=d)
            elif kind == "neumann":
                steps = jnp.diff(u, axis=d)
            else:
                steps = jnp.roll(u, -1, d) - u
            total = total + jnp.sum((steps / h) ** 2)
        return self.volume * total


def forward(x: Array, axis: int, kind: str) -> Array:
    """Return the orthonormal sine, cosine or Hartley transform along an axis."""
    n = x.shape[axis]
    if n <= SHORT:
        return mode_product(jnp.asarray(_matrix(n, kind), x.dtype), x, axis)
    if kind == "neumann":
        return jax.scipy.fft.dct(x, axis=axis, norm="ortho")
    if kind == "periodic":
        spectrum = jnp.fft.fft(x, axis=axis)
        return (spectrum.real - spectrum.imag) / jnp.asarray(n**0.5, x.dtype)
    zero = jnp.zeros_like(jnp.take(x, jnp.zeros(1, jnp.int32), axis=axis))
    odd = jnp.concatenate([zero, x, zero, -jnp.flip(x, axis)], axis)
    sines = -jnp.fft.rfft(odd, axis=axis).imag
    return jax.lax.slice_in_dim(sines, 1, n + 1, axis=axis) / jnp.asarray((2 * (n + 1)) ** 0.5, x.dtype)


def backward(x: Array, axis: int, kind: str) -> Array:
    """Undo `forward`; sine and Hartley transforms are their own inverses."""
    if kind != "neumann":
        return forward(x, axis, kind)
    n = x.shape[axis]
    if n <= SHORT:
        return mode_product(jnp.asarray(_matrix(n, kind).T, x.dtype), x, axis)
    return jax.scipy.fft.idct(x, axis=axis, norm="ortho")


def _matrix(n: int, kind: str) -> np.ndarray:
    """Return the matrix of `forward`."""
    j = np.arange(n)
    if kind == "dirichlet":
        return np.sqrt(2 / (n + 1)) * np.sin(np.pi * np.outer(j + 1, j + 1) / (n + 1))
    if kind == "periodic":
        angle = 2 * np.pi * np.outer(j, j) / n
        return (np.cos(angle) + np.sin(angle)) / np.sqrt(n)
    rows = np.sqrt(2 / n) * np.cos(np.pi * np.outer(j, 2 * j + 1) / (2 * n))
    rows[0] /= np.sqrt(2)
    return rows


def inner_product(name: str, u: Array, lengths: Any, boundary: str | Sequence[str], shift: Any) -> Inner:
    """Check the grid's description and return its inner product."""
    kinds = (boundary,) * u.ndim if isinstance(boundary, str) else tuple(boundary)
    for kind in kinds:
        choice(name, "boundary", kind, BOUNDARIES)
    sizes = tuple(lengths) if isinstance(lengths, tuple | list) else (lengths,) * u.ndim
    if len(kinds) != u.ndim or len(sizes) != u.ndim:
        fail(name, "boundary", f"one entry, or one for each of the {u.ndim} axes", (kinds, sizes))
    spacing = []
    for n, kind, length in zip(u.shape, kinds, sizes, strict=True):
        if isinstance(length, int | float) and not length > 0:
            fail(name, "lengths", "positive", length)
        spacing.append(jnp.asarray(length, u.dtype) / (n + (kind == "dirichlet")))
    if shift is None:
        longest = jnp.max(jnp.stack([jnp.asarray(length, u.dtype) for length in sizes]))
        shift = 0.0 if "dirichlet" in kinds else 1 / longest**2
    elif isinstance(shift, int | float) and not (shift > 0 or (shift == 0 and "dirichlet" in kinds)):
        fail(name, "shift", "positive, or zero with a Dirichlet axis", shift)
    return Inner(u.shape, kinds, tuple(spacing), jnp.asarray(shift, u.dtype))


def barron_norm(
    u: Float[Array, "*n"], *, lengths: Any = 1.0, boundary: str | Sequence[str] = "dirichlet", order: float = 1.0
) -> Float[Array, ""]:
    """Return ``sum (1 + |w|)^order |c(w)|`` over the frequencies w of a grid function's trigonometric series.

    The norm in which functions that neural networks approximate well are small: for approximation by networks, not for
    smoothness, which Sobolev norms measure.

    Parameters
    ----------
    u : Float[Array, "*n"]
        Values on the grid, see `sobolev_descent`. Differentiable.
    lengths : scalar or tuple of scalars
        Of the box.
    boundary : {"dirichlet", "neumann", "periodic"} or a tuple of them
        Sine, cosine or Fourier series. Static.
    order : float
        Of the weight. Static.

    Returns
    -------
    Float[Array, ""]
        ``w = pi k / length``, for periodic axes ``2 pi k / length``; c are coefficients of products of sines, cosines
        and exponentials with amplitude one.

    References
    ----------
    T. Marwah, Z. C. Lipton, J. Lu, A. Risteski, Neural Network Approximations of PDEs Beyond Linearity, ICML 2023.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import barron_norm
    >>> x = jnp.arange(1, 32) / 32
    >>> print(barron_norm(3 * jnp.sin(2 * jnp.pi * x)).round(3))
    21.85
    """
    inner = inner_product("barron_norm", u, lengths, boundary, 1.0)
    frequency, c = jnp.zeros((), u.dtype), u
    for d, (n, kind, h) in enumerate(zip(u.shape, inner.boundary, inner.spacing, strict=True)):
        k = jnp.arange(n, dtype=u.dtype)
        if kind == "periodic":
            w = 2 * jnp.pi * jnp.minimum(k, n - k) / (n * h)
            c = jnp.fft.fft(c, axis=d) / n
        elif kind == "dirichlet":
            w = jnp.pi * (k + 1) / ((n + 1) * h)
            c = _real(c, d, kind) * jnp.asarray((2 / (n + 1)) ** 0.5, c.dtype)
        else:
            w = jnp.pi * k / (n * h)
            c = _real(c, d, kind) * along(jnp.where(k > 0, (2 / n) ** 0.5, (1 / n) ** 0.5), d, u.ndim).astype(c.dtype)
        frequency = frequency + along(w**2, d, u.ndim)
    frequency = jnp.sqrt(frequency)
    return jnp.sum((1 + frequency) ** order * jnp.abs(c))  # (2)


def _real(c, axis: int, kind: str):
    if jnp.iscomplexobj(c):
        return jax.lax.complex(forward(c.real, axis, kind), forward(c.imag, axis, kind))
    return forward(c, axis, kind)
