"""Sequences of linear systems with known best settings: the two experiments of Learning to Relax."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class HeatStep(NamedTuple):
    """One Crank-Nicolson step: ``(1 + 4 s) u - s (sum of neighbours) = rhs``, diffusivity, and the step's s."""

    s: jax.Array
    rhs: jax.Array
    kappa: jax.Array


def diffusivity(t):
    """Return ``max(0.1 sin 2 pi t, -10 sin 2 pi t)``: half a unit of time nearly none, half a unit strong."""
    wave = jnp.sin(2 * jnp.pi * t)
    return jnp.maximum(0.1 * wave, -10 * wave)


def bump(x, y, centre_x, centre_y, radius):
    """Return ``exp(1 - 1 / (1 - q))``, q the squared distance over the squared radius; zero outside."""
    q = ((x - centre_x) ** 2 + (y - centre_y) ** 2) / radius**2
    inside = q < 1
    return jnp.where(inside, jnp.exp(1 - 1 / jnp.where(inside, 1 - q, 1)), 0)


def heat_start(nx: int, dtype=None):
    """Return the initial temperature, a bump of radius 1/4, at the ``(nx - 1)^2`` inner points of the unit square."""
    x, y = _grid(nx, dtype)
    return bump(x, y, 0.5, 0.5, 0.25)


def heat_step(t, u, *, dt: float = 1e-3) -> HeatStep:
    """Return the system of step t (from 0) of ``du/dt = kappa(t) Laplacian u + f`` with f a circling bump.

    Parameters
    ----------
    t : int or Int[Array, ""]
        Number of the step.
    u : Float[Array, "m m"]
        The temperature before it; ``nx = m + 1``.
    dt : float
        Time step.
    """
    nx = u.shape[0] + 1
    x, y = _grid(nx, u.dtype)
    t = jnp.asarray(t, u.dtype)
    middle = (t + 0.5) * dt
    s = 0.5 * diffusivity(middle) * dt * nx**2
    angle = 16 * jnp.pi * middle
    source = 32 * bump(x, y, 0.5 + jnp.cos(angle) / 4, 0.5 + jnp.sin(angle) / 4, 0.125)
    p = jnp.pad(u, 1)
    neighbours = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]
    return HeatStep(s, (1 - 4 * s) * u + s * neighbours + dt * source, diffusivity(t * dt))


def model_radius(shift, n: int):
    """Return the spectral radius of Jacobi's method for the five-point Laplacian plus `shift` on an n x n grid."""
    return 4 * np.cos(np.pi / (n + 1)) / (4 + shift)


def shifted_laplacians(rng: np.random.Generator, size: int, *, spread: str, n: int = 10):
    """Return shifts ``-0.15 + 0.6 Beta`` (T,) and right-hand sides (T, n, n) of the i.i.d. experiment.

    Parameters
    ----------
    rng : numpy.random.Generator
    size : int
        T.
    spread : str
        ``"high"`` for Beta(1/2, 3/2), ``"low"`` for Beta(2, 6).
    n : int
        Points an axis. Right-hand sides are standard normal, drawn again while longer than n.
    """
    shifts = -0.15 + 0.6 * rng.beta(*{"high": (0.5, 1.5), "low": (2.0, 6.0)}[spread], size)
    rhs = rng.standard_normal((size, n, n))
    while np.any(far := np.linalg.norm(rhs, axis=(1, 2)) > n):
        rhs[far] = rng.standard_normal((int(far.sum()), n, n))
    return shifts, rhs


def _grid(nx: int, dtype):
    g = jnp.arange(1, nx, dtype=dtype or jnp.result_type(float)) / nx
    return jnp.meshgrid(g, g, indexing="ij")
