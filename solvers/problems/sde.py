"""Stochastic differential equations with value functions in closed form."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.scipy.stats import norm as normal

from ..core.typing import Array


class SquaredBrownian(NamedTuple):
    """``dX = dW``, payoff ``X_T^2``: the value is ``x^2 + T - t``."""

    horizon: float = 1.0

    def drift(self, t, x, args):
        """Return zero."""
        return 0 * x

    def diffusion(self, t, x, args):
        """Return one."""
        return 1 + 0 * x

    def payoff(self, x) -> Array:
        """Return x^2."""
        return x[..., 0] ** 2

    def value(self, t, x) -> Array:
        """Return the value function."""
        return x[..., 0] ** 2 + self.horizon - t

    def features(self, t, x) -> Array:
        """Return x^2 and T - t, of which the coefficients are one and one."""
        return jnp.stack([x[0] ** 2, self.horizon - t])


class BlackScholes(NamedTuple):
    """The logarithm x of a price with rate and volatility, discounted at the rate; a call of strike one at T.

    Steps of Euler and Maruyama are exact in the logarithm, whose coefficients are constant.
    """

    rate: float = 0.05
    volatility: float = 0.4
    horizon: float = 1.0
    strike: float = 1.0

    def drift(self, t, x, args):
        """Return the logarithm's drift."""
        return self.rate - self.volatility**2 / 2 + 0 * x

    def diffusion(self, t, x, args):
        """Return the volatility."""
        return self.volatility + 0 * x

    def payoff(self, x) -> Array:
        """Return what the call pays."""
        return jnp.maximum(jnp.exp(x[..., 0]) - self.strike, 0)

    def value(self, t, x) -> Array:
        """Return the formula of Black and Scholes."""
        left = jnp.maximum(self.horizon - t, 1e-12)
        spread = self.volatility * jnp.sqrt(left)
        up = (x[..., 0] - jnp.log(self.strike) + (self.rate + self.volatility**2 / 2) * left) / spread
        return jnp.exp(x[..., 0]) * normal.cdf(up) - self.strike * jnp.exp(-self.rate * left) * normal.cdf(up - spread)


class QuadraticCost(NamedTuple):
    """``dX = -pull X dt + noise dW`` with running reward ``-X^2`` and no payoff: the value is quadratic in x."""

    pull: float = 0.7
    noise: float = 0.5
    horizon: float = 1.0
    discount: float = 0.3

    def drift(self, t, x, args):
        """Return the pull to zero."""
        return -self.pull * x

    def diffusion(self, t, x, args):
        """Return the noise."""
        return self.noise + 0 * x

    def reward(self, x) -> Array:
        """Return the rate of reward."""
        return -(x[..., 0] ** 2)

    def value(self, t, x: Any) -> Array:
        """Return the value function: of ``E X_s^2 = x^2 e^{-2 pull u} + noise^2 (1 - e^{-2 pull u}) / (2 pull)``."""
        left = self.horizon - t
        both, rate = 2 * self.pull + self.discount, self.discount
        decaying = (1 - jnp.exp(-both * left)) / both
        level = self.noise**2 / (2 * self.pull)
        return -((x[..., 0] ** 2 - level) * decaying + level * (1 - jnp.exp(-rate * left)) / rate)
