"""Products with a filter along a direction, by turning it to the pole, where only order zero is left of it.

The steps, by Passaro, Zitnick (ICML 2023), numbered as in the comments; R is the rotation that takes the direction to
the pole and D its matrix on coefficients:

(1) ``f(x) = D(R)' f(D(R) x)``: what commutes with rotations can be done with the direction at the pole
(2) ``Y_lm(pole) = sqrt((2 l + 1) / (4 pi))`` for m = 0 and zero otherwise, so that
    ``z_c = sum_l filters_l Y_l0(pole) sum_a x_a int Y_l0 Y_a Y_c``

It departs from the paper in its filters: there weights mix channels for each order m, here they are those of a Gaunt
product.
"""

from __future__ import annotations

from functools import lru_cache

import jax.numpy as jnp
import numpy as np

from ..core.checks import choice, fail, float_array
from ..core.precision import HIGHEST
from ..core.typing import Array, Float
from .gaunt import _check_degree, gaunt_product, weighted
from .harmonics import degree, gaunt_table, spherical_harmonics, swap_table


def gaunt_convolution(
    x: Float[Array, "... (L1+1)^2"],
    direction: Float[Array, "... 3"],
    filters: Float[Array, "... L2+1"],
    *,
    lmax_out: int | None = None,
    route: str = "rotate",
) -> Float[Array, "... (L3+1)^2"]:
    """Return the product of x with ``sum_l filters_l sum_m Y_lm(direction) Y_lm``: messages along an edge of a graph.

    The same numbers as `gaunt_product` with ``filters`` times `spherical_harmonics` of the direction, at O(L^3) with
    small constants: x is turned so that the direction is the pole, where the filter has order zero only (eSCN).

    Parameters
    ----------
    x : Float[Array, "... (L1+1)^2"]
        Features, as in `gaunt_product`. Differentiable.
    direction : Float[Array, "... 3"]
        Directions, one for each of the leading axes of x (they broadcast); lengths do not matter. Differentiable but
        along the polar axis y with "rotate", where angles have no derivative, and at zero.
    filters : Float[Array, "... L2+1"]
        One weight a degree of the filter, radial functions for instance. Differentiable.
    lmax_out : int, optional
        Degree of the result, at most ``L1 + L2``; L1 by default. Static.
    route : {"rotate", "product"}
        Static. "product": by `gaunt_product`, differentiable along the polar axis too.

    Returns
    -------
    Float[Array, "... (L3+1)^2"]
        Coefficients of the product.

    Raises
    ------
    ValueError, TypeError
        For sizes, dtypes and degrees that do not fit.

    References
    ----------
    S. Passaro, C. L. Zitnick, *Reducing SO(3) convolutions to SO(2) for efficient equivariant GNNs*, ICML 2023.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import gaunt_convolution
    >>> z = gaunt_convolution(jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.array([1.0, 0.0, 0.0]), jnp.ones(2))
    >>> print(bool(jnp.allclose(z[:2], jnp.array([1, jnp.sqrt(3)]) / (4 * jnp.pi))))
    True
    """
    name = "gaunt_convolution"
    choice(name, "route", route, ("rotate", "product"))
    x, direction = float_array(name, "x", x), float_array(name, "direction", direction)
    filters = float_array(name, "filters", filters)
    L1, L2 = degree(name, "x", x.shape[-1] if x.ndim else 0), (filters.shape[-1] if filters.ndim else 0) - 1
    if direction.ndim < 1 or direction.shape[-1] != 3:
        fail(name, "direction", "an array (..., 3)", f"shape {direction.shape}")
    if L2 < 0:
        fail(name, "filters", "an array (..., L2 + 1)", f"shape {filters.shape}")
    if not x.dtype == direction.dtype == filters.dtype:
        fail(name, "direction", f"of the dtype of `x` and `filters`, {x.dtype}", direction.dtype, TypeError)
    L3 = L1 if lmax_out is None else lmax_out
    _check_degree(name, L3, L1 + L2)
    if route == "product":
        return gaunt_product(x, weighted(name, spherical_harmonics(direction, L2), filters, L2), lmax_out=L3)
    lead = jnp.broadcast_shapes(x.shape[:-1], direction.shape[:-1], filters.shape[:-1])
    x, direction, filters = (jnp.broadcast_to(v, (*lead, v.shape[-1])) for v in (x, direction, filters))
    polar, turn = _angles(direction)
    table = jnp.asarray(_polar_table(L1, L2, L3), x.dtype)
    turned = _tilt(_spin(x, -turn, L1), -polar, L1)  # (1)
    z = jnp.einsum("...l,...a,lac->...c", filters, turned, table, precision=HIGHEST)  # (2)
    return _spin(_tilt(z, polar, L3), turn, L3)  # (1)


def _angles(direction):
    """Angle of a direction from the pole y, and about it from z to x."""
    x, y, z = direction[..., 0], direction[..., 1], direction[..., 2]
    return jnp.arctan2(jnp.sqrt(x * x + z * z), y), jnp.arctan2(x, z)


def _spin(c, angle, L: int):
    """Turn functions by an angle about the pole: orders m and -m mix."""
    deg = np.floor(np.sqrt(np.arange((L + 1) ** 2))).astype(int)
    m = np.arange((L + 1) ** 2) - deg * deg - deg
    phase = angle[..., None] * jnp.asarray(m, c.dtype).reshape((1,) * angle.ndim + (-1,))
    return jnp.cos(phase) * c - jnp.sin(phase) * c[..., deg * deg + deg - m]


def _tilt(c, angle, L: int):
    """Turn functions by an angle about the x axis, which takes the pole y towards z."""
    to_pole = jnp.asarray(swap_table(L), c.dtype)
    moved = jnp.einsum("...a,ab->...b", c, to_pole, precision=HIGHEST)
    return jnp.einsum("...a,ba->...b", _spin(moved, angle, L), to_pole, precision=HIGHEST)


@lru_cache(maxsize=32)
def _polar_table(L1: int, L2: int, L3: int) -> np.ndarray:
    """Gaunt coefficients with a filter ``Y_l0(pole) Y_l0``: (L2 + 1, (L1+1)^2, (L3+1)^2)."""
    deg = np.arange(L2 + 1)
    # (2)
    return np.sqrt((2 * deg + 1) / (4 * np.pi))[:, None, None] * gaunt_table(L2, L1, L3)[deg * deg + deg]
