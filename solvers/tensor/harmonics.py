"""Real spherical harmonics, in the order and axes of e3nn, and the tables that products of them need."""

from __future__ import annotations

from functools import lru_cache
from math import pi, sqrt

import jax.numpy as jnp
import numpy as np

from ..core.checks import fail
from ..core.typing import Array, Float


def degree(function: str, argument: str, size: int) -> int:
    """Return L for ``(L + 1)^2`` coefficients, or raise."""
    L = round(sqrt(size)) - 1
    if L < 0 or size != (L + 1) ** 2:
        fail(function, argument, "an array whose last axis has (L + 1)^2 entries", f"{size} of them")
    return L


def spherical_harmonics(direction: Float[Array, "... 3"], L: int) -> Float[Array, "... (L+1)^2"]:
    """Return orthonormal real spherical harmonics of all degrees up to L.

    Parameters
    ----------
    direction : Float[Array, "... 3"]
        Vectors ``(x, y, z)``; only their directions matter. Differentiable but at zero, where the result is NaN.
    L : int
        Highest degree, static.

    Returns
    -------
    Float[Array, "... (L+1)^2"]
        Entry ``l^2 + l + m`` is ``Y_lm``, m from -l to l, as in e3nn: y is the polar axis, so that degree one is
        ``sqrt(3 / 4 pi) (x, y, z)``.

    Raises
    ------
    ValueError
        For shapes and degrees that do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers.tensor import spherical_harmonics
    >>> print(jnp.round(spherical_harmonics(jnp.array([0.0, 2.0, 0.0]), 1)[1:] * jnp.sqrt(4 * jnp.pi / 3)))
    [0. 1. 0.]
    """
    direction = jnp.asarray(direction)
    if direction.ndim < 1 or direction.shape[-1] != 3:
        fail("spherical_harmonics", "direction", "an array (..., 3)", f"shape {direction.shape}")
    if not isinstance(L, int) or L < 0:
        fail("spherical_harmonics", "L", "a non-negative integer", L)
    direction = direction / jnp.sqrt(jnp.sum(direction**2, -1, keepdims=True))
    # polar axis y, and (z, x) turn about it: cos and sin of m phi times sin^m theta are polynomials
    x, y, z = direction[..., 0], direction[..., 1], direction[..., 2]
    cosines, sines = [jnp.ones_like(x)], [jnp.zeros_like(x)]
    for _ in range(L):
        cosines, sines = [*cosines, z * cosines[-1] - x * sines[-1]], [*sines, z * sines[-1] + x * cosines[-1]]
    rows = reduced_legendre(y, L)
    parts = []
    for deg in range(L + 1):
        for m in range(-deg, deg + 1):
            wave = sqrt(2) * (sines[-m] if m < 0 else cosines[m]) if m else cosines[0]
            parts.append(rows[deg][abs(m)] * wave)
    return jnp.stack(parts, -1)


def reduced_legendre(c, L: int):
    """Return ``P_lm(c) / s^m`` with ``s = sqrt(1 - c^2)`` for all l and m >= 0, orthonormal with e^(i m phi).

    Standard recurrences, with ``Q_lm = P_lm / s^m``:

    (1) ``Q_mm = prod_(k=1..m) sqrt((2 k + 1) / (2 k)) / sqrt(4 pi)``
    (2) ``Q_lm = a_l (c Q_(l-1)m - Q_(l-2)m / a_(l-1))``, ``a_l = sqrt((4 l^2 - 1) / (l^2 - m^2))``
    """
    rows: list[list] = []
    for deg in range(L + 1):
        row = []
        for m in range(deg + 1):
            if m == deg:
                ratio = np.prod([sqrt((2 * k + 1) / (2 * k)) for k in range(1, m + 1)])
                row.append(c * 0 + ratio / sqrt(4 * pi))  # (1)
            else:
                a = sqrt((4 * deg * deg - 1) / (deg * deg - m * m))
                value = a * c * rows[deg - 1][m]  # (2)
                if m <= deg - 2:
                    value = value - a * sqrt(((deg - 1) ** 2 - m * m) / (4 * (deg - 1) ** 2 - 1)) * rows[deg - 2][m]
                row.append(value)
        rows.append(row)
    return rows


@lru_cache(maxsize=64)
def legendre_table(L: int, nodes: int) -> np.ndarray:
    """Return ``P_lm`` at Gauss-Legendre nodes: (nodes, L + 1, L + 1), zero where m > l; see `reduced_legendre`."""
    c, _ = np.polynomial.legendre.leggauss(nodes)
    s = np.sqrt(1 - c * c)
    table = np.zeros((nodes, L + 1, L + 1))
    for deg, row in enumerate(reduced_legendre(c, L)):
        for m, value in enumerate(row):
            table[:, deg, m] = value * s**m
    return table


@lru_cache(maxsize=64)
def wave_table(L: int, points: int) -> np.ndarray:
    """Return the waves of orders -L to L at equidistant angles: (2 L + 1, points), of square mean one."""
    phi = 2 * pi * np.arange(points) / points
    m = np.arange(1, L + 1)[:, None]
    return np.concatenate([sqrt(2) * np.sin(m * phi)[::-1], np.ones((1, points)), sqrt(2) * np.cos(m * phi)])


@lru_cache(maxsize=64)
def grid_table(L: int, nodes: int, points: int) -> np.ndarray:
    """Return all harmonics on the grid: ((L + 1)^2, nodes * points)."""
    P, waves = legendre_table(L, nodes), wave_table(L, points)
    rows = [np.outer(P[:, deg, abs(m)], waves[L + m]).ravel() for deg in range(L + 1) for m in range(-deg, deg + 1)]
    return np.stack(rows)


@lru_cache(maxsize=64)
def weights_table(nodes: int, points: int) -> np.ndarray:
    """Return the grid's weights, whose sum is the sphere's area: (nodes, points)."""
    _, w = np.polynomial.legendre.leggauss(nodes)
    return np.outer(w, np.full(points, 2 * pi / points))


def grid_of(band: int) -> tuple[int, int]:
    """Return the smallest grid, nodes by points, that integrates polynomials of that degree exactly."""
    return band // 2 + 1, band + 1


@lru_cache(maxsize=32)
def gaunt_table(L1: int, L2: int, L3: int) -> np.ndarray:
    """Return ``int Y_a Y_b Y_c`` over the sphere: ((L1+1)^2, (L2+1)^2, (L3+1)^2)."""
    nodes, points = grid_of(L1 + L2 + L3)
    one, two, three = (grid_table(L, nodes, points) for L in (L1, L2, L3))
    G = np.einsum("ag,bg,cg->abc", one * weights_table(nodes, points).ravel(), two, three, optimize=True)
    return np.where(np.abs(G) < 1e-14, 0, G)


@lru_cache(maxsize=32)
def swap_table(L: int) -> np.ndarray:
    """Return what the coefficients of a function become when its axes (x, y, z) are renamed (z, x, y), block diagonal.

    A rotation that takes the polar axis y to x; `J` of the usual factorisation of rotations, up to a turn about y.
    """
    nodes, points = grid_of(2 * L)
    c, _ = np.polynomial.legendre.leggauss(nodes)
    phi = 2 * pi * np.arange(points) / points
    s = np.sqrt(1 - c * c)
    x, y, z = np.outer(s, np.sin(phi)).ravel(), np.repeat(c, points), np.outer(s, np.cos(phi)).ravel()
    table, w = grid_table(L, nodes, points), weights_table(nodes, points).ravel()
    # values at directions (z, x, y) of the same harmonics
    moved = []
    sin_, cos_ = [np.zeros_like(x)], [np.ones_like(x)]
    for _ in range(L):
        cos_, sin_ = [*cos_, y * cos_[-1] - z * sin_[-1]], [*sin_, y * sin_[-1] + z * cos_[-1]]
    rows = reduced_legendre(x, L)
    for deg in range(L + 1):
        for m in range(-deg, deg + 1):
            wave = sqrt(2) * (sin_[-m] if m < 0 else cos_[m]) if m else cos_[0]
            moved.append(rows[deg][abs(m)] * wave)
    M = (table * w) @ np.stack(moved).T
    deg = np.floor(np.sqrt(np.arange((L + 1) ** 2))).astype(int)
    return np.where(deg[:, None] == deg[None, :], M, 0)
