"""Stationary kernels of one variable as linear stochastic differential equations: Gaussian processes in linear time.

Hartikainen and Sarkka, MLSP 2010; Solin and Sarkka, AISTATS 2014, for a gap d, P the covariance of the states:

(1) ``x(t + d) = A x(t) + q,  cov q = Q = P - A P A^T``
(2) ``A_ij = e^-s s^(i-j) / (i-j)!,  Q_ij = C(i+j, i) gamma(i+j+1, 2 s) / 2^(i+j+1)``, ``s = sqrt(2 nu) d / length``:
    Matern
(3) ``k(d) = sum_j q_j cos(2 pi j d)``, each term a rotation without noise: periodic
(4) ``A = A1 (x) A2,  Q = Q1 (x) P2 + A1 P1 A1^T (x) Q2`` of a product

The cascade of states in the second is ours: no entry of Q is a difference.
"""

from __future__ import annotations

from math import comb, factorial, pi, sqrt
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..checks import fail
from ..precision import dot, matmul
from ..typing import Array, Float
from .kernels import Kernel, Matern, PeriodicKernel, Product, Sum


class StateSpaceKernel(eqx.Module):
    """A Gaussian Markov process x with ``k(d) = cov(H x(t), H x(t + d))``; made by `to_sde`.

    ``x(t + d) = A(d) x(t) + q`` with q Gaussian of covariance ``Q(d) = P - A(d) P A(d)^T``.
    """

    # (1)
    def transition(self, d: Float[Array, "..."]) -> tuple[Float[Array, "... n n"], Float[Array, "... n n"]]:
        """Return ``A(d), Q(d)`` for gaps ``d >= 0``, Q without cancellation however small the gap."""
        raise NotImplementedError

    def stationary(self) -> Float[Array, "n n"]:
        """Return P, the covariance of x."""
        raise NotImplementedError

    def observation(self) -> Float[Array, " n"]:
        """Return H."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Number n of states."""
        raise NotImplementedError

    def missing_variance(self) -> Float[Array, ""]:
        """Return a bound on ``|k(d) - cov(H x(t), H x(t + d))|`` over all d: zero but where a series was cut."""
        return jnp.zeros((), self.stationary().dtype)


class MaternStates(StateSpaceKernel):
    """A Matern process as a cascade ``z_1' = l (w - z_1), z_k' = l (z_(k-1) - z_k)``, its output the last state.

    In units of ``1 / l``, with ``s = l d``: ``A_ij = e^-s s^(i-j) / (i-j)!`` and
    ``Q_ij = C(i+j, i) gamma(i+j+1, 2 s) / 2^(i+j+1)`` for a regularised lower incomplete gamma function: all entries
    are positive and accurate to rounding for any gap, where ``P - A P A^T`` loses Q altogether at small ones.
    """

    rate: Float[Array, ""]
    variance: Float[Array, ""]
    order: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Number of states, ``nu + 1/2``."""
        return self.order

    def transition(self, d):
        """Return ``A(d), Q(d)``."""
        n, s = self.order, self.rate * d
        i = np.arange(n)
        lag = i[:, None] - i[None, :]
        factorials = [float(factorial(k)) for k in range(n)]
        powers = [jnp.exp(-s)]
        for _ in range(n - 1):
            powers.append(powers[-1] * s)
        zero = jnp.zeros_like(s)
        # (2)
        A = jnp.stack(
            [jnp.stack([powers[k] / factorials[k] if k >= 0 else zero for k in row], -1) for row in lag.tolist()], -2
        )
        gammas = [lower_gamma(a, 2 * s) for a in range(1, 2 * n)]
        Q = jnp.stack([jnp.stack([gammas[a + b] * _weight(a, b) for b in range(n)], -1) for a in range(n)], -2)  # (2)
        return A, Q

    def stationary(self):
        """Return P."""
        n = self.order
        return jnp.asarray([[_weight(a, b) for b in range(n)] for a in range(n)], self.rate.dtype)

    def observation(self):
        """Return H, scaled to the variance."""
        last = np.eye(self.order)[-1] / sqrt(_weight(self.order - 1, self.order - 1))
        return jnp.sqrt(self.variance) * jnp.asarray(last, self.rate.dtype)


class Oscillators(StateSpaceKernel):
    """A sum of undamped oscillators ``sum_j weights_j cos(rates_j d)``: a constant first, then pairs of states."""

    weights: Float[Array, " J"]
    rates: Float[Array, " J"]
    missing: Float[Array, ""]

    @property
    def size(self) -> int:
        """Number of states, ``2 J``."""
        return 2 * self.weights.shape[0]

    def transition(self, d):
        """Return rotations, and no noise."""
        angle = d[..., None] * self.rates.reshape((1,) * d.ndim + (-1,))
        c, s = jnp.cos(angle), jnp.sin(angle)
        turn = jnp.stack([jnp.stack([c, -s], -1), jnp.stack([s, c], -1)], -2)  # (3)
        J = self.weights.shape[0]
        picked = jnp.asarray(np.eye(J), d.dtype).reshape((1,) * d.ndim + (J, 1, J, 1))
        A = (turn[..., :, :, None, :] * picked).reshape(*d.shape, 2 * J, 2 * J)
        return A, jnp.zeros_like(A)

    def stationary(self):
        """Return P."""
        return jnp.diag(jnp.repeat(self.weights, 2))

    def observation(self):
        """Return H: the first of each pair."""
        return jnp.asarray(np.tile([1.0, 0.0], self.weights.shape[0]), self.weights.dtype)

    def missing_variance(self):
        """Return the sum of the coefficients left out."""
        return self.missing


class SumStates(StateSpaceKernel):
    """Independent processes added up."""

    parts: tuple[StateSpaceKernel, ...]

    @property
    def size(self) -> int:
        """Number of states, of all parts."""
        return sum(p.size for p in self.parts)

    def transition(self, d):
        """Return block diagonal matrices."""
        A, Q = zip(*(p.transition(d) for p in self.parts), strict=True)
        return _block_diagonal(A), _block_diagonal(Q)

    def stationary(self):
        """Return P."""
        return _block_diagonal([p.stationary() for p in self.parts])

    def observation(self):
        """Return H."""
        return jnp.concatenate([p.observation() for p in self.parts])

    def missing_variance(self):
        """Return the sum of the parts'."""
        return sum((p.missing_variance() for p in self.parts[1:]), self.parts[0].missing_variance())


class ProductStates(StateSpaceKernel):
    """The product of two kernels: states are products, ``A = A1 (x) A2``, ``Q = Q1 (x) P2 + A1 P1 A1^T (x) Q2``."""

    one: StateSpaceKernel
    two: StateSpaceKernel

    @property
    def size(self) -> int:
        """Number of states, the product of the parts'."""
        return self.one.size * self.two.size

    def transition(self, d):
        """Return Kronecker products; both terms of Q are positive, so nothing cancels."""
        (A1, Q1), (A2, Q2) = self.one.transition(d), self.two.transition(d)
        P1, P2 = (jnp.broadcast_to(p.stationary(), A.shape) for p, A in ((self.one, A1), (self.two, A2)))
        moved = matmul(matmul(A1, P1), jnp.swapaxes(A1, -1, -2))
        return _kron(A1, A2), _kron(Q1, P2) + _kron(moved, Q2)  # (4)

    def stationary(self):
        """Return P."""
        return _kron(self.one.stationary(), self.two.stationary())

    def observation(self):
        """Return H."""
        return jnp.kron(self.one.observation(), self.two.observation())

    def missing_variance(self):
        """Return a bound from the parts' variances and what they miss."""
        k1, k2 = (dot(p.observation(), matmul(p.stationary(), p.observation())) for p in (self.one, self.two))
        m1, m2 = self.one.missing_variance(), self.two.missing_variance()
        return k1 * m2 + k2 * m1 + m1 * m2


def to_sde(kernel: Kernel, *, harmonics: int = 12, dtype: Any = None) -> StateSpaceKernel:
    """Return the state-space form of a stationary kernel of one variable.

    Parameters
    ----------
    kernel : Kernel
        `Matern` of any smoothness (nu + 1/2 states), `PeriodicKernel` (2 states a harmonic), and their sums and
        products. Its numbers are differentiable; lengths are in the units of the gaps.
    harmonics : int
        How many terms of a periodic kernel's Fourier series are kept, the constant included; static. What is left out
        is `missing_variance`.
    dtype : optional
        JAX's default float when the kernel holds Python numbers.

    Returns
    -------
    StateSpaceKernel
        With `transition`, `stationary`, `observation`, `missing_variance`.

    Raises
    ------
    TypeError
        For a kernel without a finite state-space form, such as the squared exponential; a Matern kernel of smoothness
        9/2 is close to it.
    ValueError
        For less than one harmonic.

    References
    ----------
    J. Hartikainen, S. Sarkka, *Kalman filtering and smoothing solutions to temporal Gaussian process regression
    models*, MLSP 2010. A. Solin, S. Sarkka, *Explicit link between periodic covariance functions and state space
    models*, AISTATS 2014.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Matern
    >>> from solvers.statespace import to_sde
    >>> A, Q = to_sde(Matern(length=2.0, nu=0.5)).transition(jnp.array(2.0))
    >>> print(jnp.allclose(A, jnp.exp(-1.0)), to_sde(Matern(nu=1.5) * Matern(nu=2.5)).size)
    True 6
    """
    if not isinstance(harmonics, int) or harmonics < 1:
        fail("to_sde", "harmonics", "a positive integer", harmonics)
    if isinstance(kernel, Sum):
        return SumStates(tuple(to_sde(k, harmonics=harmonics, dtype=dtype) for k in kernel.parts))
    if isinstance(kernel, Product):
        one, two = (to_sde(k, harmonics=harmonics, dtype=dtype) for k in kernel.parts)
        return ProductStates(one, two)
    if isinstance(kernel, Matern | PeriodicKernel):
        given = getattr(kernel.length, "dtype", getattr(kernel.variance, "dtype", None))
        dtype = dtype or (given if given is not None else jnp.result_type(float))
        length, variance = jnp.asarray(kernel.length, dtype), jnp.asarray(kernel.variance, dtype)
        if isinstance(kernel, Matern):
            return MaternStates(sqrt(2 * kernel.nu) / length, variance, int(kernel.nu + 0.5))
        waves, points = np.arange(64), np.arange(128)
        series = jnp.fft.rfft(jnp.exp((jnp.cos(jnp.asarray(2 * pi * points / 128, dtype)) - 1) / length**2)).real[:64]
        series = variance * series / jnp.where(waves == 0, 128, 64).astype(dtype)
        kept = jnp.maximum(series[:harmonics], 0)
        missing = jnp.sum(jnp.abs(series[harmonics:]))
        return Oscillators(kept, jnp.asarray(2 * pi * waves[:harmonics], dtype), missing)  # (3)
    fail(
        "to_sde",
        "kernel",
        "a Matern or periodic kernel, or sums and products of them",
        type(kernel).__name__,
        TypeError,
    )


def lower_gamma(a: int, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the regularised incomplete gamma function ``1 - e^-x sum_(k<a) x^k / k!``, to rounding for any x >= 0.

    By its series ``e^-x x^a / a! (1 + x / (a+1) + ...)`` up to ``x = a + 1``, where the formula cancels.
    """
    small = jnp.where(x < a + 1, x, 1)
    series = jnp.ones_like(small)
    for k in range(30 + 2 * a, 0, -1):
        series = 1 + small / (a + k) * series
    series = jnp.exp(-small) * small**a / factorial(a) * series
    large = jnp.where(x < a + 1, a + 1, x)
    polynomial = jnp.ones_like(large)
    for k in range(a - 1, 0, -1):
        polynomial = 1 + large / k * polynomial
    return jnp.where(x < a + 1, series, 1 - jnp.exp(-large) * polynomial)


def _weight(a: int, b: int) -> float:
    return comb(a + b, a) / 2.0 ** (a + b + 1)


def _block_diagonal(blocks):
    n = sum(b.shape[-1] for b in blocks)
    rows, at = [], 0
    for b in blocks:
        after = n - at - b.shape[-1]
        rows.append(jnp.pad(b, [(0, 0)] * (b.ndim - 1) + [(at, after)]))
        at += b.shape[-1]
    return jnp.concatenate(rows, axis=-2)


def _kron(one, two):
    both = one[..., :, None, :, None] * two[..., None, :, None, :]
    return both.reshape(*both.shape[:-4], one.shape[-2] * two.shape[-2], one.shape[-1] * two.shape[-1])
