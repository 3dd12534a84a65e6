"""Sequences of linear systems with known best settings: the two experiments of Learning to Relax."""

from __future__ import annotations

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


class ObstacleSystem(NamedTuple):
    """A 3-, 5- or 7-point matrix on a grid, as `solvers.Stencil` takes it, and where the fluid is."""

    coefficients: jax.Array
    offsets: tuple[tuple[int, ...], ...]
    fluid: jax.Array


def poisson_with_obstacles(key, shape: tuple[int, ...], *, count: int = 6, dtype=None) -> ObstacleSystem:
    """Return the pressure equation of a flow round balls: no flux through them, zero outside the box.

    Parameters
    ----------
    key : PRNG key
    shape : tuple of int
        Of the grid; cells are cubes of side one.
    count : int
        Balls, of radii between 6 and 18 per cent of the shortest side; they may overlap and touch the wall.
    dtype : dtype, optional

    Notes
    -----
    A row of the fluid is ``2 d - (neighbours in a ball)`` times u minus the neighbours in the fluid; the rows inside
    the balls are those of the identity. Symmetric positive definite as long as no fluid is enclosed.
    """
    dtype = dtype or jnp.result_type(float)
    ndim, short = len(shape), min(shape)
    one, two = jax.random.split(key)
    centres = jax.random.uniform(one, (count, ndim), dtype) * jnp.asarray(shape, dtype)[None]
    radii = short * jax.random.uniform(two, (count,), dtype, 0.06, 0.18)
    axes = jnp.meshgrid(*(jnp.arange(n, dtype=dtype) + 0.5 for n in shape), indexing="ij")
    solid = jnp.zeros(shape, bool)
    for k in range(count):
        solid |= sum((x - c) ** 2 for x, c in zip(axes, centres[k], strict=True)) < radii[k] ** 2
    fluid = (~solid).astype(dtype)
    padded = jnp.pad(fluid, 1, constant_values=1)
    centre = (slice(1, -1),) * ndim
    offsets, links = [], []
    for d in range(ndim):
        for side in (1, -1):
            o = tuple(side * (e == d) for e in range(ndim))
            there = tuple(slice(1 + s, 1 + s + n) for s, n in zip(o, shape, strict=True))
            offsets.append(o)
            links.append(padded[centre] * padded[there])
    diagonal = sum(links) + (1 - fluid)
    # A fluid cell with solids all round is a row of its own.
    diagonal = jnp.where(diagonal > 0, diagonal, 1)
    return ObstacleSystem(jnp.stack([diagonal, *(-v for v in links)]), ((0,) * ndim, *offsets), fluid)


def _grid(nx: int, dtype):
    g = jnp.arange(1, nx, dtype=dtype or jnp.result_type(float)) / nx
    return jnp.meshgrid(g, g, indexing="ij")
