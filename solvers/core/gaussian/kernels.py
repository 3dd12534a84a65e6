"""Stationary priors of one variable with closed-form derivatives; lengths are fractions of the domain."""

from __future__ import annotations

from math import comb, sqrt
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..checks import choice, fail
from ..typing import Array, Float


class Kernel(eqx.Module):
    """A stationary covariance ``k(d)`` of one dimension, d being a difference in units of that dimension's length.

    ``k1 + k2`` and ``k1 * k2`` are kernels again. A tuple of kernels, one a dimension, is their product over
    dimensions; one kernel alone serves every dimension.
    """

    def derivative(self, d: Float[Array, "..."], order: int = 0) -> Float[Array, "..."]:
        """Return the derivative of that order at d."""
        raise NotImplementedError

    def atoms(self) -> tuple[Float[Array, " q"], Float[Array, " q"]]:
        """Return frequencies in cycles per domain length and their weights."""
        zero = jnp.zeros(())
        return zero[None], self.derivative(zero)[None]

    def __call__(self, d: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the covariance at d."""
        return self.derivative(d)

    def __add__(self, other: "Kernel") -> "Sum":
        return Sum((self, other))

    def __mul__(self, other: "Kernel") -> "Product":
        return Product((self, other))


class SquaredExponential(Kernel):
    """``variance exp(-d^2 / (2 length^2))``: very smooth.

    Attributes
    ----------
    length : scalar
        Distance over which values stay alike, in the units that the call asks for.
    variance : scalar
        Of a value, its standard deviation squared.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import SquaredExponential
    >>> print(SquaredExponential(length=0.5, variance=4.0)(jnp.array([0.0, 0.5])).round(2))
    [4.   2.43]
    """

    length: Any = 0.1
    variance: Any = 1.0

    def derivative(self, d, order: int = 0):
        """Return the derivative of that order: a Hermite polynomial times the kernel."""
        return self.variance * _gaussian(d, self.length, order)


class Matern(Kernel):
    """Matern covariance of smoothness `nu`, as scikit-learn's: ``variance * Matern(length, nu=nu)`` there.

    Attributes
    ----------
    length : scalar
        Distance over which values stay alike, in the units that the call asks for.
    variance : scalar
        Of a value, its standard deviation squared.
    nu : float
        1/2, 3/2, 5/2, 7/2 or 9/2; ``2 nu - 1`` derivatives exist. Static.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Matern
    >>> print(Matern(length=0.5, variance=4.0, nu=1.5)(jnp.array([0.0, 0.5])).round(2))
    [4.   1.93]
    """

    length: Any = 0.2
    variance: Any = 1.0
    nu: float = eqx.field(static=True, default=2.5)

    def derivative(self, d, order: int = 0):
        """Return the derivative of that order: a polynomial times an exponential."""
        return self.variance * _matern(d, self.length, order, self.nu)


class PeriodicKernel(Kernel):
    """``variance exp(-2 sin^2(pi d) / length^2)``: periodic over the domain, d a share of it.

    Attributes
    ----------
    length : scalar
        The larger, the smoother.
    variance : scalar
        Of a value.
    """

    length: Any = 1.0
    variance: Any = 1.0

    def derivative(self, d, order: int = 0):
        """Return the derivative of that order from the kernel's Fourier series, whose coefficients decay like 1/j!."""
        waves = np.arange(64)
        theta = jnp.asarray(2 * np.pi * np.arange(128) / 128, d.dtype)
        series = jnp.fft.rfft(jnp.exp((jnp.cos(theta) - 1) / self.length**2)).real[:64] / 64
        series = jnp.where(waves == 0, series / 2, series)
        rate = jnp.asarray(2 * np.pi * waves, d.dtype)
        phase = d[..., None] * _last(rate, d) + order * np.pi / 2
        return self.variance * jnp.sum(_last(series * rate**order, d) * jnp.cos(phase), axis=-1)


class SpectralMixture(Kernel):
    """``sum_q weights_q exp(-d^2 / (2 lengths_q^2)) cos(2 pi frequencies_q d)``: a spectrum of Gaussian peaks.

    Attributes
    ----------
    weights, frequencies, lengths : Float[Array, "q"]
        Variances, cycles per domain length, envelope lengths as fractions of the domain.
    """

    weights: Float[Array, " q"]
    frequencies: Float[Array, " q"]
    lengths: Float[Array, " q"]

    def derivative(self, d, order: int = 0):
        """Return the derivative of that order, by Leibniz' rule."""
        return _mixture(self, d, order, _gaussian)

    def atoms(self):
        """Return frequencies and weights."""
        return self.frequencies, self.weights


class StudentMixture(Kernel):
    """`SpectralMixture` with Matern-5/2 envelopes: a spectrum of Student-t peaks, heavier tails.

    Attributes
    ----------
    weights, frequencies, lengths : Float[Array, "q"]
        Of the peaks: variance, place in cycles, and the length of the envelope.
    """

    weights: Float[Array, " q"]
    frequencies: Float[Array, " q"]
    lengths: Float[Array, " q"]

    def derivative(self, d, order: int = 0):
        """Return the derivative of that order, by Leibniz' rule."""
        return _mixture(self, d, order, lambda d, length, p: _matern(d, length, p, 2.5))

    def atoms(self):
        """Return frequencies and weights."""
        return self.frequencies, self.weights


class Sum(Kernel):
    """Sum of kernels."""

    parts: tuple[Kernel, ...]

    def derivative(self, d, order: int = 0):
        """Return the sum of the parts' derivatives."""
        return sum((k.derivative(d, order) for k in self.parts[1:]), self.parts[0].derivative(d, order))

    def atoms(self):
        """Return those of all parts."""
        each = [k.atoms() for k in self.parts]
        return tuple(jnp.concatenate(c) for c in zip(*each, strict=True))


class Product(Kernel):
    """Product of two kernels of the same variable."""

    parts: tuple[Kernel, Kernel]

    def derivative(self, d, order: int = 0):
        """Return the derivative by Leibniz' rule."""
        one, two = self.parts
        terms = [comb(order, i) * one.derivative(d, i) * two.derivative(d, order - i) for i in range(order + 1)]
        return sum(terms[1:], terms[0])


def per_dimension(prior, ndim: int) -> tuple[Kernel, ...]:
    """Return one kernel a dimension."""
    kernels = tuple(prior) if isinstance(prior, tuple | list) else (prior,) * ndim
    if len(kernels) != ndim or not all(isinstance(k, Kernel) for k in kernels):
        fail("gp_solve", "prior", f"a kernel or a tuple of {ndim} kernels", [type(k).__name__ for k in kernels])
    return kernels


def _gaussian(d, length, order: int):
    s = d / length
    hermite, before = jnp.ones_like(s), jnp.zeros_like(s)
    for j in range(order):
        hermite, before = s * hermite - j * before, hermite
    return (-1 / length) ** order * hermite * jnp.exp(-(s**2) / 2)


def _matern(d, length, order: int, nu: float):
    choice("Matern", "nu", nu, (0.5, 1.5, 2.5, 3.5, 4.5))
    if order > 2 * nu - 1:
        fail("Matern", "nu", f"at least {(order + 1) / 2} for derivatives of total order {order}", nu)
    p = int(nu - 0.5)
    poly = np.array([1.0])
    for k in range(1, p + 1):  # coefficients of the reverse Bessel polynomial, normalised to one at zero
        poly = np.append(poly, poly[-1] * 2 * (p - k + 1) / (k * (2 * p - k + 1)))
    for _ in range(order):
        poly = np.append(np.arange(1, len(poly)) * poly[1:], 0.0) - poly
    rate = sqrt(2 * nu) / length
    s = rate * jnp.abs(d)
    value = jnp.zeros_like(s)
    for c in poly[::-1]:
        value = value * s + float(c)
    return value * jnp.exp(-s) * rate**order * (jnp.sign(d) if order % 2 else 1)


def _mixture(kernel, d, order: int, envelope):
    weights, frequencies, lengths = (_last(v, d) for v in (kernel.weights, kernel.frequencies, kernel.lengths))
    omega, total, d = 2 * np.pi * frequencies, 0.0, d[..., None]
    for i in range(order + 1):
        wave = omega ** (order - i) * jnp.cos(omega * d + (order - i) * np.pi / 2)
        total = total + comb(order, i) * envelope(d, lengths, i) * wave
    return jnp.sum(weights * total, axis=-1)


def _last(v, d):
    """Shape a vector to broadcast along a new last axis of d."""
    return v.reshape((1,) * d.ndim + (-1,))
