"""Noise schedules: ``x_t = alpha(t) x_0 + sigma(t) noise`` with t from 0 (clean) to 1 (noise).

Of Ho, Jain, Abbeel (2020), in continuous time and as a table, numbered as in the comments:

(1) ``log alpha^2 = -(beta_min t + (beta_max - beta_min) t^2 / 2)``, ``alpha^2 + sigma^2 = 1``
(2) ``alpha_k^2 = prod_(j <= k) (1 - beta_j)``, beta linear in j
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from ...core.typing import Array, Float, Scalar


class Grid(NamedTuple):
    """Times from 1 to 0 and the two factors there; at the last, alpha is one and sigma zero exactly."""

    t: Float[Array, " points"]
    alpha: Float[Array, " points"]
    sigma: Float[Array, " points"]


class NoiseSchedule(eqx.Module):
    """How much signal and noise are left at time t: ``x_t = alpha(t) x_0 + sigma(t) noise``.

    A subclass gives `alpha` and `sigma`; sigma rises from about 0 at ``t = 0``, and at ``t = 1`` there is nearly
    nothing but noise. Models are asked at ``0 < t <= 1`` only.
    """

    @abstractmethod
    def alpha(self, t: Scalar) -> Array:
        """Return the factor of the signal."""

    @abstractmethod
    def sigma(self, t: Scalar) -> Array:
        """Return the deviation of the noise."""

    def grid(self, steps: int, dtype=None) -> Grid:
        """Return ``steps + 1`` times, equally spaced from 1 to 0, and the factors there."""
        t = jnp.linspace(1, 0, steps + 1, dtype=dtype or jnp.result_type(float))
        alpha = jnp.broadcast_to(jnp.asarray(self.alpha(t), t.dtype), t.shape)
        sigma = jnp.asarray(self.sigma(t), t.dtype)
        return Grid(t, alpha.at[-1].set(1), sigma.at[-1].set(0))


class VariancePreserving(NoiseSchedule):
    """The linear schedule: ``log alpha^2 = -(beta_min t + (beta_max - beta_min) t^2 / 2)``, ``alpha^2 + sigma^2 = 1``.

    Attributes
    ----------
    beta_min, beta_max : scalar
        Rates at both ends; Ho, Jain, Abbeel (2020) in continuous time.
    """

    beta_min: Any = 0.1
    beta_max: Any = 20.0

    def _log(self, t):
        return -(self.beta_min * t + (self.beta_max - self.beta_min) * t * t / 2)  # (1)

    def alpha(self, t):
        """Return the factor of the signal."""
        return jnp.exp(self._log(t) / 2)

    def sigma(self, t):
        """Return the deviation of the noise, without cancellation near zero."""
        return jnp.sqrt(-jnp.expm1(self._log(t)))  # (1)


class VarianceExploding(NoiseSchedule):
    """Noise added to the whole signal: ``alpha = 1``, ``sigma = sigma_min (sigma_max / sigma_min)^t``.

    Attributes
    ----------
    sigma_min, sigma_max : scalar
        Deviations at both ends, in units of the data.
    """

    sigma_min: Any = 0.01
    sigma_max: Any = 50.0

    def alpha(self, t):
        """Return one."""
        return jnp.ones_like(1.0 * t)

    def sigma(self, t):
        """Return the deviation of the noise."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t


class CosineSchedule(NoiseSchedule):
    """A quarter of a circle: ``alpha = cos(angle t)``, ``sigma = sin(angle t)``, to where alpha is `alpha_min`.

    Attributes
    ----------
    alpha_min : scalar
        What is left of the signal at the end; positive, so that it can be divided by. The covariance that a score
        implies, ``sigma^2 / alpha^2 (I + sigma^2 ds/dx)``, is a difference that rounding knows to ``eps / alpha^2``: in
        float32 take no less than 0.03 where it is used (second-order conditioning).
    """

    alpha_min: Any = 1e-3

    def alpha(self, t):
        """Return the factor of the signal."""
        return jnp.cos(jnp.arccos(self.alpha_min) * t)

    def sigma(self, t):
        """Return the deviation of the noise."""
        return jnp.sin(jnp.arccos(self.alpha_min) * t)


class DiscreteSchedule(NoiseSchedule):
    """A table of a model that was trained at T times: at ``t = k / T`` it is the k-th entry's.

    Between them the logarithm of ``alpha / sigma`` is linear in t; before the first entry it is constant. A model that
    takes integer times is asked at ``round(t T) - 1``.

    Attributes
    ----------
    alpha_bars : Float[Array, "T"]
        ``alpha^2``, falling from nearly one, ``alpha^2 + sigma^2 = 1``.
    """

    alpha_bars: Float[Array, " T"]

    @classmethod
    def linear(cls, steps: int = 1000, *, beta_min: float = 1e-4, beta_max: float = 0.02, dtype=None):
        """Return the table of Ho, Jain, Abbeel (2020): products of ``1 - beta`` with beta linear."""
        beta = jnp.linspace(beta_min, beta_max, steps, dtype=dtype or jnp.result_type(float))
        return cls(jnp.exp(jnp.cumsum(jnp.log1p(-beta))))  # (2)

    def _log_ratio(self, t):
        count = self.alpha_bars.shape[0]
        knots = jnp.arange(1, count + 1, dtype=self.alpha_bars.dtype) / count
        return jnp.interp(t, knots, jnp.log(self.alpha_bars) - jnp.log1p(-self.alpha_bars))

    def alpha(self, t):
        """Return the factor of the signal."""
        return 1 / jnp.sqrt(1 + jnp.exp(-self._log_ratio(t)))

    def sigma(self, t):
        """Return the deviation of the noise."""
        return 1 / jnp.sqrt(1 + jnp.exp(self._log_ratio(t)))
