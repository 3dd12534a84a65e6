"""Functions of several variables that are sums of few products, with noisy values at scattered points."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..core.typing import Array, Float


def waves(x: Float[Array, "N 3"]) -> Float[Array, " N"]:
    """Return ``sin 6x e^(-2y) (1 + z) + cos 9x y sin 4z``: of rank two over the unit cube."""
    one, two, three = x[:, 0], x[:, 1], x[:, 2]
    first = jnp.sin(6 * one) * jnp.exp(-2 * two) * (1 + three)
    return first + jnp.cos(9 * one) * two * jnp.sin(4 * three)


def scattered_waves(
    key: Array, count: int, *, noise: float = 0.05, nodes: int | None = None, dtype=None
) -> tuple[Float[Array, "N 3"], Float[Array, " N"]]:
    """Return points of the unit cube, of a grid where `nodes` a side are given, and noisy values of `waves` there.

    The values have a deviation of about 0.6, the noise the one given.
    """
    dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    for_points, for_noise = jax.random.split(key)
    points = jax.random.uniform(for_points, (count, 3), dtype)
    if nodes is not None:
        points = jnp.floor(points * nodes) / nodes
    return points, waves(points) + noise * jax.random.normal(for_noise, (count,), dtype)
