"""Which oscillations sampled lines hold: matching pursuit, and the spectral mixture of what it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.gaussian.kernels import SpectralMixture
from ..core.precision import eps, matmul

SAMPLES = 1024
"""Equally spaced points of a line."""
PAD = 16
LINES = (0.137, 0.391, 0.733)
"""Where in the other dimensions the lines lie, as fractions of the domain."""
BACKGROUND = ((1.0, 0.15), (1e-2, 0.04))
"""Weights and lengths of the two squared exponentials that take up what is slower than three half waves."""


def pursue(signal, count: int):
    """Return `count` angular frequencies on [0, 1] and amplitudes of the strongest oscillations of a sampled line.

    Orthogonal matching pursuit: the highest peak of the windowed periodogram, then a joint least-squares fit of all
    atoms with linearly varying amplitudes, whose slopes also correct the frequencies to first order.
    """
    n, dtype = signal.size, signal.dtype
    s = jnp.linspace(0, 1, n, dtype=dtype) - 0.5
    window = jnp.asarray(np.hanning(n), dtype)
    grid = 2 * np.pi * jnp.arange(PAD * n // 2 + 1, dtype=dtype) * (n - 1) / (PAD * n)

    def atoms(omega, used):
        c, d = jnp.cos(omega[None] * s[:, None]), jnp.sin(omega[None] * s[:, None])
        return jnp.concatenate([c, d, s[:, None] * c, s[:, None] * d], axis=1) * jnp.tile(used, 4)[None]

    def fit(omega, used):
        a = jnp.concatenate([atoms(omega, used), jnp.stack([jnp.ones_like(s), s, s**2], 1)], 1)
        gram = matmul(a.T, a)
        ridge = 50 * eps(dtype) * jnp.trace(gram)
        factor = jnp.linalg.cholesky(gram + ridge * jnp.eye(gram.shape[0], dtype=dtype))
        x, r = jnp.zeros(a.shape[1], dtype), signal
        for _ in range(2):
            x = x + jax.scipy.linalg.cho_solve((factor, True), matmul(a.T, r))
            r = signal - matmul(a, x)
        return x[: 4 * count].reshape(4, count), r

    def add(q, carry):
        omega, used, _, residual = carry
        power = jnp.abs(jnp.fft.rfft(residual * window, PAD * n))
        power = jnp.where(grid < 3 * np.pi, 0, power)
        j = jnp.clip(jnp.argmax(power), 1, grid.size - 2)
        left, mid, right = (jnp.log(power[j + k] + eps(dtype) ** 2) for k in (-1, 0, 1))
        bend = left - 2 * mid + right
        offset = jnp.where(bend < 0, (left - right) / jnp.where(bend < 0, bend, 1) / 2, 0)
        worth = jnp.max(jnp.abs(residual)) > 1e-7 * jnp.max(jnp.abs(signal))
        omega = omega.at[q].set(grid[j] + jnp.clip(offset, -1, 1) * grid[1])
        used = used.at[q].set(jnp.where(worth, 1.0, 0.0).astype(dtype))
        x, _ = fit(omega, used)
        size = x[0] ** 2 + x[1] ** 2
        turn = jnp.where(size > 0, (x[1] * x[2] - x[0] * x[3]) / jnp.where(size > 0, size, 1), 0)
        omega = omega + used * jnp.clip(turn, -1.0, 1.0)
        x, residual = fit(omega, used)
        return omega, used, x, residual

    start = (jnp.zeros(count, dtype), jnp.zeros(count, dtype), jnp.zeros((4, count), dtype), signal)
    omega, used, x, _ = lax.fori_loop(0, count, add, start)
    amplitude = jnp.sqrt(x[0] ** 2 + x[1] ** 2 + (x[2] ** 2 + x[3] ** 2) / 4)
    return omega, used * amplitude


def mixture(found, count: int, dtype, magnitude: Any = 0.0):
    """Keep the `count` largest atoms of all lines, no two closer than a wave and a half, and add the background."""
    omega = jnp.concatenate([f[0] for f in found]) if found else jnp.zeros(count, dtype)
    amplitude = jnp.concatenate([f[1] for f in found]) if found else jnp.zeros(count, dtype)

    def pick(amplitude, _):
        j = jnp.argmax(amplitude)
        chosen = (omega[j], amplitude[j])
        return jnp.where(jnp.abs(omega - omega[j]) < 3 * np.pi, 0, amplitude), chosen

    _, (omega, amplitude) = lax.scan(pick, amplitude, length=count)
    largest = jnp.max(amplitude)
    amplitude = jnp.where(amplitude > 1e-6 * largest, jnp.maximum(amplitude, 1e-4 * largest), 0)
    scale = jnp.maximum(largest, magnitude)
    scale = jnp.where(scale > 0, scale, 1) ** 2
    weights = jnp.concatenate([amplitude**2, scale * jnp.asarray([b[0] for b in BACKGROUND], dtype)])
    lengths = jnp.asarray([0.5] * count + [b[1] for b in BACKGROUND], dtype)
    frequencies = jnp.concatenate([omega / (2 * np.pi), jnp.zeros(len(BACKGROUND), dtype)])
    return SpectralMixture(weights, frequencies, lengths)


def spectrum(bases, prior, mean: Callable, *, count: int = 8):
    """Return, a dimension, angular frequencies and weights: of the prior's atoms, or of the solution along lines."""
    result = []
    for d, b in enumerate(bases):
        width = b.upper - b.lower
        if prior is not None:
            frequencies, weights = prior[d].atoms()
            result.append((2 * np.pi * frequencies / width, weights))
            continue
        s = jnp.linspace(0, 1, SAMPLES, dtype=b.lower.dtype)
        points = tuple(
            e.lower + (e.upper - e.lower) * (s if k == d else jnp.asarray(LINES, s.dtype)) for k, e in enumerate(bases)
        )
        values = jnp.moveaxis(mean(points), d, -1).reshape(-1, SAMPLES)
        found = mixture([pursue(v, count) for v in values[:: max(1, len(values) // 3)]], count, s.dtype)
        result.append((2 * np.pi * found.frequencies / width, found.weights))
    return tuple(result)
