"""Sequences with known answers: a task for layers that must remember, and a wave at irregular times."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.typing import Array, Bool, Float


class Wave(NamedTuple):
    """Noisy values of `wave` at rising irregular times, some hidden.

    Attributes
    ----------
    times, values : Float[Array, "T"]
    seen : Bool[Array, "T"]
    noise : float
        Deviation of the noise.
    """

    times: Float[Array, " T"]
    values: Float[Array, " T"]
    seen: Bool[Array, " T"]
    noise: float


def wave(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return ``sin 3t + sin(11 t + 1) e^(-t / 10) / 2``."""
    return jnp.sin(3 * t) + 0.5 * jnp.sin(11 * t + 1) * jnp.exp(-0.1 * t)


def irregular_wave(
    key: Array, count: int, *, length: float = 20.0, noise: float = 0.3, hidden: float = 0.4, dtype=None
) -> Wave:
    """Return so many values at uniformly random times in ``[0, length]``, a share of them hidden at random."""
    dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    for_times, for_noise, for_seen = jax.random.split(key, 3)
    times = jnp.sort(jax.random.uniform(for_times, (count,), dtype)) * length
    values = wave(times) + noise * jax.random.normal(for_noise, (count,), dtype)
    return Wave(times, values, jax.random.uniform(for_seen, (count,)) >= hidden, noise)


def marked_sum(
    key: Array, size: int, length: int, dtype=None
) -> tuple[Float[Array, "size length 2"], Float[Array, " size"]]:
    """Return sequences of numbers in [-1/2, 1/2] beside marks, and the sum of the two that are marked, plus one.

    One mark is in each half. Always answering one has a mean squared error of 1/6; a network that does better
    remembers. Hochreiter and Schmidhuber's adding problem.
    """
    dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    for_values, *for_marks = jax.random.split(key, 3)
    values = jax.random.uniform(for_values, (size, length), dtype, -0.5, 0.5)
    half = length // 2
    at = jnp.stack([jax.random.randint(k, (size,), i * half, (i + 1) * half) for i, k in enumerate(for_marks)], 1)
    marks = jnp.zeros((size, length), dtype).at[jnp.arange(size)[:, None], at].set(1)
    return jnp.stack([values, marks], -1), 1 + jnp.sum(values * marks, 1)
