"""Products of functions on the sphere: the Gaunt tensor product, on a grid, by Fourier transforms, or densely.

The products, by Luo, Chen, Krishnapriyan (ICLR 2024), and on grids by Xie, Daigavane, Kotak, Smidt (ICML 2025),
numbered as in the comments; f and g are the functions with coefficients x and y in real spherical harmonics Y:

(1) ``z_c = sum_ab G_abc x_a y_b``, ``G_abc = int Y_a Y_b Y_c`` over the sphere: the coefficients of ``f g``
(2) ``z_c = int f g Y_c = sum_tp w_t (f g)(theta_t, phi_p) Y_c(theta_t, phi_p)``, exact on Gauss-Legendre nodes t and
    equal angles p, enough of them for degree ``L1 + L2 + L3``
(3) ``f(theta, phi) = sum_uv F_uv e^(i u theta + i v phi)``, ``-L <= u, v <= L``: products of functions are convolutions
    of F, by transforms of ``(2 band + 1)^2`` numbers, ``band = L1 + L2``
(4) ``z_lm = sum_u F_um 2 pi int_0^pi e^(i u theta) P_l|m|(theta) sin(theta) d theta``, F of ``f g``
(5) ``z_c = int f^nu Y_c``, by (2) with one power instead of ``nu - 1`` products
(6) ``f(theta_t, phi_p) = sum_m wave_m(phi_p) sum_l P_l|m|(theta_t) x_lm``: (2) at ``O(L^3)``
"""

from __future__ import annotations

from functools import lru_cache
from math import pi, sqrt

import jax.numpy as jnp
import numpy as np

from ..core.checks import choice, fail, float_array
from ..core.precision import HIGHEST, complex_of
from ..core.typing import Array, Float
from .harmonics import (
    degree,
    gaunt_table,
    grid_of,
    grid_table,
    legendre_table,
    reduced_legendre,
    wave_table,
    weights_table,
)

GAUNT_ROUTES = ("grid", "fourier", "dense")
SEPARABLE_FROM = 9
"""From this degree on a grid is reached by two smaller transforms instead of one matrix."""


def gaunt_product(
    x: Float[Array, "... (L1+1)^2"],
    y: Float[Array, "... (L2+1)^2"],
    *,
    lmax_out: int | None = None,
    weights: tuple[Array | None, Array | None, Array | None] | None = None,
    route: str = "grid",
) -> Float[Array, "... (L3+1)^2"]:
    """Return the coefficients of the product of two functions on the sphere, ``z_c = sum_ab int Y_a Y_b Y_c x_a y_b``.

    An equivariant tensor product at O(L^3) instead of the O(L^6) of Clebsch-Gordan coefficients. As a product of
    functions it is symmetric, and paths with ``l1 + l2 + l3`` odd are zero: no cross product is among them. Where
    pseudovectors are wanted, use a Clebsch-Gordan product (e3nn-jax).

    Parameters
    ----------
    x, y : Float[Array, "... (L+1)^2"]
        Coefficients in orthonormal real spherical harmonics, in e3nn's order (see `spherical_harmonics`); degrees may
        differ, leading axes broadcast (channel by channel, "uuu"). Differentiable.
    lmax_out : int, optional
        Degree of the result, at most ``L1 + L2``; ``max(L1, L2)`` by default. Static.
    weights : three arrays or None, optional
        For x, y and the result, each ``(..., L+1)``, one a degree, or None; they broadcast like x. Differentiable.
    route : {"grid", "fourier", "dense"}
        Static. "grid": values on the smallest Gauss-Legendre grid that is exact for the degrees asked for, products
        there, and back: the fastest. "fourier": both as trigonometric polynomials on a torus, as in the paper. "dense":
        all coefficients at once, O(L^6).

    Returns
    -------
    Float[Array, "... (L3+1)^2"]
        Coefficients of the product, exact up to degree `lmax_out`.

    Raises
    ------
    ValueError, TypeError
        For sizes that are no ``(L + 1)^2``, degrees beyond ``L1 + L2`` and weights that do not fit.

    Notes
    -----
    A grid of ``ceil((L1 + L2 + L3 + 1) / 2)`` nodes by ``L1 + L2 + L3 + 1`` angles integrates ``Y_a Y_b Y_c``
    exactly: for results up to L it is little more than half of the one for 2 L. Tables are made once a degree, in
    double precision.

    References
    ----------
    S. Luo, T. Chen, A. S. Krishnapriyan, *Enabling efficient equivariant operations in the Fourier basis via Gaunt
    tensor products*, ICLR 2024. Y. Xie, A. Daigavane, M. Kotak, T. Smidt, *The price of freedom: exploring
    expressivity and runtime tradeoffs in equivariant tensor products*, ICML 2025, which uses grids.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import gaunt_product
    >>> x = jnp.array([0.0, 1.0, 0.0, 0.0])  # the function sqrt(3 / 4 pi) x
    >>> print(jnp.round(gaunt_product(x, x, lmax_out=0) * jnp.sqrt(4 * jnp.pi), 3))
    [1.]
    """
    name = "gaunt_product"
    choice(name, "route", route, GAUNT_ROUTES)
    x, y = float_array(name, "x", x), float_array(name, "y", y)
    L1, L2 = (degree(name, argument, v.shape[-1] if v.ndim else 0) for argument, v in (("x", x), ("y", y)))
    if x.dtype != y.dtype:
        fail(name, "y", f"of the dtype of `x`, {x.dtype}", y.dtype, TypeError)
    L3 = max(L1, L2) if lmax_out is None else lmax_out
    _check_degree(name, L3, L1 + L2)
    wx, wy, wz = weights or (None, None, None)
    x, y = weighted(name, x, wx, L1), weighted(name, y, wy, L2)
    lead = jnp.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    flat = [jnp.broadcast_to(v, (*lead, v.shape[-1])).reshape(-1, v.shape[-1]) for v in (x, y)]
    if route == "dense":
        table = jnp.asarray(gaunt_table(L1, L2, L3), x.dtype)
        z = jnp.einsum("na,nb,abc->nc", *flat, table, precision=HIGHEST)  # (1)
    elif route == "fourier":
        # (3), (4)
        z = _from_torus(_on_torus(flat[0], L1, L1 + L2) * _on_torus(flat[1], L2, L1 + L2), L1 + L2, L3)
    else:
        grid = grid_of(L1 + L2 + L3)
        z = _from_grid(_on_grid(flat[0], L1, grid) * _on_grid(flat[1], L2, grid), L3, grid)  # (2)
    return weighted(name, z.reshape(*lead, -1), wz, L3)


def gaunt_power(
    x: Float[Array, "... (L+1)^2"], nu: int, *, lmax_out: int | None = None
) -> Float[Array, "... (L3+1)^2"]:
    """Return the coefficients of ``f^nu`` for a function f on the sphere: a product of many bodies at once.

    Parameters
    ----------
    x : Float[Array, "... (L+1)^2"]
        Coefficients of f, as in `gaunt_product`. Differentiable.
    nu : int
        Static power, at least one.
    lmax_out : int, optional
        Degree of the result, at most ``nu L``; L by default. Static.

    Returns
    -------
    Float[Array, "... (L3+1)^2"]
        Coefficients, exact up to degree `lmax_out`.

    Raises
    ------
    ValueError, TypeError
        For sizes, powers and degrees that do not fit.

    Notes
    -----
    One grid that is exact for degree ``nu L + lmax_out``, a power at each of its points, and one way back.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import gaunt_power, gaunt_product
    >>> x = jnp.arange(4.0)
    >>> print(bool(jnp.allclose(gaunt_power(x, 2), gaunt_product(x, x), atol=1e-5)))
    True
    """
    x = float_array("gaunt_power", "x", x)
    L = degree("gaunt_power", "x", x.shape[-1] if x.ndim else 0)
    if not isinstance(nu, int) or nu < 1:
        fail("gaunt_power", "nu", "a positive integer", nu)
    L3 = L if lmax_out is None else lmax_out
    _check_degree("gaunt_power", L3, nu * L)
    grid = grid_of(nu * L + L3)
    z = _from_grid(_on_grid(x.reshape(-1, x.shape[-1]), L, grid) ** nu, L3, grid)  # (5)
    return z.reshape(*x.shape[:-1], -1)


def weighted(function: str, x, weights, L: int):
    """Multiply each degree's coefficients by its weight."""
    if weights is None:
        return x
    weights = jnp.asarray(weights)
    if weights.shape[-1:] != (L + 1,) or weights.dtype != x.dtype:
        fail(function, "weights", f"(..., {L + 1}) of dtype {x.dtype}", f"{weights.dtype} {weights.shape}")
    one_each = jnp.repeat(weights, np.arange(1, 2 * L + 2, 2), axis=-1, total_repeat_length=(L + 1) ** 2)
    shape = jnp.broadcast_shapes(x.shape, one_each.shape)
    return jnp.broadcast_to(x, shape) * jnp.broadcast_to(one_each, shape)


def _check_degree(function: str, L3, most: int) -> None:
    if not isinstance(L3, int) or not 0 <= L3 <= most:
        fail(function, "lmax_out", f"an integer from 0 to {most}", L3)


def _on_grid(x, L: int, grid: tuple[int, int]):
    """Values of functions (n, (L+1)^2) on a grid: (n, nodes * points), or (n, nodes, points) for high degrees."""
    if L < SEPARABLE_FROM:
        return jnp.matmul(x, jnp.asarray(grid_table(L, *grid), x.dtype), precision=HIGHEST)
    rows = jnp.asarray(_by_order(L, grid[0]), x.dtype)
    # (6)
    g = jnp.einsum("nml,mlt->nmt", _orders(x, L), rows, precision=HIGHEST)
    values = jnp.einsum("nmt,mp->ntp", g, jnp.asarray(wave_table(L, grid[1]), x.dtype), precision=HIGHEST)
    return values.reshape(x.shape[0], -1)


def _from_grid(values, L: int, grid: tuple[int, int]):
    """Coefficients up to degree L of values on a grid, by its weights."""
    nodes, points = grid
    w = weights_table(nodes, points)
    if L < SEPARABLE_FROM:
        back = grid_table(L, nodes, points) * w.ravel()  # (2)
        return jnp.matmul(values, jnp.asarray(back.T, values.dtype), precision=HIGHEST)
    waves = jnp.asarray(wave_table(L, points), values.dtype)
    g = jnp.einsum("ntp,mp->nmt", values.reshape(-1, nodes, points), waves, precision=HIGHEST)
    rows = jnp.asarray(_by_order(L, nodes) * w[:, 0], values.dtype)
    return _coefficients(jnp.einsum("nmt,mlt->nml", g, rows, precision=HIGHEST), L)


@lru_cache(maxsize=64)
def _by_order(L: int, nodes: int) -> np.ndarray:
    """``P_l|m|`` for orders m from -L to L: (2 L + 1, L + 1, nodes)."""
    table = legendre_table(L, nodes)
    return np.stack([table[:, :, abs(m)].T for m in range(-L, L + 1)])


@lru_cache(maxsize=64)
def _places(L: int) -> tuple[np.ndarray, np.ndarray]:
    """Where (m, l) stands among the coefficients, with 0 where m > l, and which of them exist."""
    m, deg = np.arange(-L, L + 1)[:, None], np.arange(L + 1)[None, :]
    exists = np.abs(m) <= deg
    return np.where(exists, deg * deg + deg + m, 0), exists


def _orders(x, L: int):
    """Coefficients as (n, 2 L + 1, L + 1), by order and degree."""
    place, exists = _places(L)
    return jnp.where(jnp.asarray(exists)[None], x[:, place], 0)


def _coefficients(table, L: int):
    """Undo `_orders`."""
    deg = np.floor(np.sqrt(np.arange((L + 1) ** 2))).astype(int)
    return table[:, np.arange((L + 1) ** 2) - deg * deg - deg + L, deg]


@lru_cache(maxsize=64)
def _torus_tables(L: int, band: int) -> tuple[np.ndarray, np.ndarray]:
    """Fourier coefficients over a full circle of theta of ``P_l|m|``, and the integrals that bring them back.

    Beyond pi a harmonic goes on as ``(-1)^m P_l|m|(2 pi - theta)``, a trigonometric polynomial of degree l.
    """
    size = 2 * (2 * max(L, 1) + 1)
    theta = 2 * pi * np.arange(size) / size
    c, s = np.cos(theta), np.sin(theta)
    P = np.zeros((2 * L + 1, L + 1, size))
    for deg, row in enumerate(reduced_legendre(c, L)):
        for m, value in enumerate(row):
            P[L + m, deg] = P[L - m, deg] = value * s**m
    u = np.arange(-L, L + 1)
    there = np.fft.fft(P, axis=-1)[..., u] / size
    # int_0^pi P_l|m| e^(iu theta) sin theta d theta by Gauss-Legendre nodes in theta
    nodes, w = np.polynomial.legendre.leggauss(2 * (band + L) + 16)
    theta, w = 0.5 * pi * (nodes + 1), 0.5 * pi * w
    c, s = np.cos(theta), np.sin(theta)
    P = np.zeros((2 * L + 1, L + 1, theta.size))
    for deg, row in enumerate(reduced_legendre(c, L)):
        for m, value in enumerate(row):
            P[L + m, deg] = P[L - m, deg] = value * s**m
    waves = np.exp(1j * np.arange(-band, band + 1)[:, None] * theta)
    return there, np.einsum("mlt,ut->mlu", P * (w * s), waves)


def _on_torus(x, L: int, band: int):
    """Values (n, N, N) on a torus fine enough for products of that band, by a transform of sparse coefficients."""
    wide = complex_of(x.dtype)
    there = jnp.asarray(_torus_tables(L, band)[0], wide)
    F = jnp.einsum("nml,mlu->num", _orders(x, L).astype(wide), there, precision=HIGHEST)
    # real waves of orders -m and m into e^(i m phi)
    plus, minus = F[..., L + 1 :], F[..., :L][..., ::-1]
    positive = (plus - 1j * minus) / sqrt(2)
    negative = (plus + 1j * minus) / sqrt(2)
    F = jnp.concatenate([negative[..., ::-1], F[..., L : L + 1], positive], -1)
    N = 2 * band + 1
    full = jnp.zeros((x.shape[0], N, N), wide).at[:, band - L : band + L + 1, band - L : band + L + 1].set(F)
    # (3)
    return jnp.fft.ifft2(jnp.fft.ifftshift(full, axes=(1, 2)), axes=(1, 2)).real * N**2


def _from_torus(values, band: int, L: int):
    """Coefficients up to degree L of values on the torus."""
    N = 2 * band + 1
    F = jnp.fft.fftshift(jnp.fft.fft2(values, axes=(1, 2)), axes=(1, 2)) / N**2
    F = F[..., band - L : band + L + 1] if band >= L else F
    zero, plus, minus = F[..., L : L + 1], F[..., L + 1 :], F[..., :L][..., ::-1]
    cosine, sine = (plus + minus) / sqrt(2), 1j * (plus - minus) / sqrt(2)
    # (4): e^(i m phi) back to real waves
    waves = 2 * pi * jnp.concatenate([sine[..., ::-1], zero, cosine], -1)
    back = jnp.asarray(_torus_tables(L, band)[1], waves.dtype)
    return _coefficients(jnp.einsum("num,mlu->nml", waves, back, precision=HIGHEST).real, L)
