"""Proximal maps: ``prox(v, step) = argmin_x g(x) + |x - v|^2 / (2 step)``, and the functions g they belong to."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .typing import Array, Float, Scalar


class ProximalFunction(eqx.Module):
    """A convex function of an array with a proximal map in closed form.

    Indicator functions are 0 on their set and infinite outside, and their map is the projection, whatever the step.
    """

    @abstractmethod
    def value(self, x: Array) -> Float[Array, ""]:
        """Return g(x)."""

    @abstractmethod
    def __call__(self, v: Array, step: Scalar) -> Array:
        """Return ``argmin_x g(x) + |x - v|^2 / (2 step)``."""


class Zero(ProximalFunction):
    """No regularisation: ``g = 0``."""

    def value(self, x):
        """Return 0."""
        return jnp.zeros((), x.dtype)

    def __call__(self, v, step):
        """Return v."""
        return v


class L1(ProximalFunction):
    """``g(x) = sum_i weight_i |x_i|``; the map is soft thresholding.

    Attributes
    ----------
    weight : scalar or Array
        Broadcast against x; differentiable.
    """

    weight: Any = 1.0

    def value(self, x):
        """Return the weighted sum of absolute values."""
        return jnp.sum(self.weight * jnp.abs(x))

    def __call__(self, v, step):
        """Return ``sign(v) max(|v| - step weight, 0)``."""
        return jnp.sign(v) * jnp.maximum(jnp.abs(v) - step * self.weight, 0)


class GroupL1(ProximalFunction):
    """``g(x) = weight sum_groups |x_group|``, the groups along one axis; the map shortens each group.

    Attributes
    ----------
    weight : scalar
        Differentiable.
    axis : int
        Along which a group's entries lie; static.
    """

    weight: Any = 1.0
    axis: int = eqx.field(static=True, default=-1)

    def _length(self, x):
        squared = jnp.sum(x * x, axis=self.axis, keepdims=True)
        return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)

    def value(self, x):
        """Return the weighted sum of the groups' Euclidean norms."""
        return self.weight * jnp.sum(self._length(x))

    def __call__(self, v, step):
        """Return each group times ``max(1 - step weight / length, 0)``."""
        length = self._length(v)
        kept = length > step * self.weight
        return jnp.where(kept, v * (1 - step * self.weight / jnp.where(kept, length, 1)), 0)


class SquaredL2(ProximalFunction):
    """``g(x) = weight |x - centre|^2 / 2``.

    Attributes
    ----------
    weight, centre : scalar or Array
        Differentiable.
    """

    weight: Any = 1.0
    centre: Any = 0.0

    def value(self, x):
        """Return half the weighted squared distance from the centre."""
        return jnp.sum(self.weight * (x - self.centre) ** 2) / 2

    def __call__(self, v, step):
        """Return ``(v + step weight centre) / (1 + step weight)``."""
        return (v + step * self.weight * self.centre) / (1 + step * self.weight)


class Box(ProximalFunction):
    """The indicator of ``lower <= x <= upper``.

    Attributes
    ----------
    lower, upper : scalar or Array
        Infinite where there is no bound; differentiable.
    """

    lower: Any = 0.0
    upper: Any = jnp.inf

    def value(self, x):
        """Return 0 inside and infinity outside."""
        return _indicator(jnp.all((x >= self.lower) & (x <= self.upper)), x)

    def __call__(self, v, step):
        """Return v clipped to the box."""
        return jnp.clip(v, self.lower, self.upper)


class Simplex(ProximalFunction):
    """The indicator of ``x >= 0, sum x = total`` for a vector.

    Attributes
    ----------
    total : scalar
        Positive; differentiable.
    """

    total: Any = 1.0

    def value(self, x):
        """Return 0 on the simplex to rounding and infinity outside."""
        slack = 10 * jnp.finfo(x.dtype).eps * x.size * self.total
        return _indicator(jnp.all(x >= 0) & (jnp.abs(jnp.sum(x) - self.total) <= slack), x)

    def __call__(self, v, step):
        """Return ``max(v - level, 0)`` with the level at which it sums to the total."""
        # Optax has this projection too, but not under strict dtype promotion.
        descending = jnp.sort(v)[::-1]
        count = jnp.arange(1, v.size + 1, dtype=v.dtype)
        levels = (jnp.cumsum(descending) - self.total) / count
        support = jnp.sum(descending > levels)
        return jnp.maximum(v - levels[support - 1], 0)


class L2Ball(ProximalFunction):
    """The indicator of ``|x| <= radius`` for the Euclidean norm of the whole array.

    Attributes
    ----------
    radius : scalar
        Differentiable.
    """

    radius: Any = 1.0

    def value(self, x):
        """Return 0 inside, to rounding, and infinity outside."""
        slack = 1 + 10 * jnp.finfo(x.dtype).eps
        return _indicator(jnp.sum(x * x) <= (self.radius * slack) ** 2, x)

    def __call__(self, v, step):
        """Return v, shortened to the radius where it is longer."""
        squared = jnp.sum(v * v)
        outside = squared > self.radius**2
        return jnp.where(outside, v * (self.radius / jnp.sqrt(jnp.where(outside, squared, 1))), v)


def _indicator(inside, x):
    return jnp.where(inside, 0, jnp.inf).astype(x.dtype)
