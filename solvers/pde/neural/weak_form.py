"""Weak residuals: compactly supported test functions of any smoothness, and quadrature in balls.

Wendland (1995), and Zang and Koutsourelakis, DGenNO, 2025:

(1) ``phi = I^k (1 - r)_+^l,  l = floor(d / 2) + k + 1,  (I f)(r) = int_r^1 t f(t) dt``
(2) ``(int s . grad w - int f w) / int w`` over a ball, zero where ``-div s = f``
(3) ``s - a grad u``, the other half of the mixed form

Equation 2 departs from the paper, which does not divide by ``int w``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...core.checks import fail, float_array
from ...core.typing import Array, Float, Scalar


class Wendland(eqx.Module):
    """Wendland's function ``w(x) = phi(|x|)``, zero outside the unit ball, of least degree for its smoothness.

    Attributes
    ----------
    ndim, order : int
        Dimensions of x, and k: the function has 2 k continuous derivatives. Static.
    value, slope : tuple of (int, tuple of float)
        ``phi(r) = (1 - r)^p sum a_j r^j`` as (p, a), and so ``-phi'(r) / r`` (without the r where k is 0). No
        coefficient is negative: nothing cancels. Static.
    integral : float
        Over the unit ball. Static.
    """

    ndim: int = eqx.field(static=True)
    order: int = eqx.field(static=True)
    value: tuple[int, tuple[float, ...]] = eqx.field(static=True)
    slope: tuple[int, tuple[float, ...]] = eqx.field(static=True)
    integral: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "..."]:
        """Return the values."""
        return _evaluate(self.value, x)

    def gradient(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Return the gradients; at the origin, where k is 0, the zero vector."""
        slope = _evaluate(self.slope, x)[..., None]
        if self.order:
            return -slope * x
        square = jnp.sum(x * x, -1, keepdims=True)
        return jnp.where(square > 0, -slope * x / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def wendland(order: int, ndim: int) -> Wendland:
    """Return Wendland's compactly supported function with ``2 order`` continuous derivatives in `ndim` dimensions.

    ``phi = I^k (1 - r)_+^l`` with ``l = floor(d / 2) + k + 1`` and ``(I f)(r) = int_r^1 t f(t) dt``, one at the origin.

    Parameters
    ----------
    order : int
        k, at least 0.
    ndim : int
        At least 1.

    Returns
    -------
    Wendland
        Its coefficients are computed in rational arithmetic.

    References
    ----------
    H. Wendland, Piecewise polynomial, positive definite and compactly supported radial functions of minimal degree,
    Advances in Computational Mathematics 4 (1995).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import wendland
    >>> w = wendland(2, 2)
    >>> print(w(jnp.array([[0.0, 0.0], [0.3, 0.4], [1.0, 0.0]])).round(5))
    [1.      0.10807 0.     ]
    """
    if not isinstance(order, int) or not isinstance(ndim, int) or order < 0 or ndim < 1:
        fail("wendland", "order", "an integer from 0, in at least one dimension", (order, ndim))
    power = ndim // 2 + order + 1
    phi = [Fraction(0)] * power + [Fraction(1)]
    below = [c * power for c in phi[1:]]  # minus the slope, where there is nothing to integrate
    for _ in range(order):
        below = phi
        phi = [Fraction(0)] * (len(phi) + 2)
        for j, c in enumerate(below):  # int_r^1 t (1 - t)^j dt = s^(j+1)/(j+1) - s^(j+2)/(j+2), s = 1 - r
            phi[j + 1] += c / (j + 1)  # (1)
            phi[j + 2] -= c / (j + 2)
    top = sum(phi)
    moment = sum(
        c * Fraction(math.factorial(j) * math.factorial(ndim - 1), math.factorial(j + ndim)) for j, c in enumerate(phi)
    )
    surface = 2 * math.pi ** (ndim / 2) / math.gamma(ndim / 2)
    return Wendland(
        ndim,
        order,
        _outward([c / top for c in phi]),
        _outward([c / top for c in below]),
        surface * float(moment / top),
    )


def _outward(powers: list[Fraction]) -> tuple[int, tuple[float, ...]]:
    """Turn ``sum c_j (1 - r)^j`` into ``(1 - r)^p sum a_j r^j``."""
    least = next(j for j, c in enumerate(powers) if c)
    rest = powers[least:]
    found = [sum(c * math.comb(j, i) * (-1) ** i for j, c in enumerate(rest) if j >= i) for i in range(len(rest))]
    return least, tuple(float(a) for a in found)


def _evaluate(form: tuple[int, tuple[float, ...]], x):
    power, coefficients = form
    square = jnp.sum(x * x, -1)
    r = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    total = jnp.zeros_like(r)
    for c in reversed(coefficients):
        total = total * r + c
    return jnp.where(r < 1, jnp.maximum(1 - r, 0) ** power * total, 0)


class BallRule(NamedTuple):
    """Points in the unit ball (q, d), and weights (q,) that add up to its volume."""

    points: Array
    weights: Array


def ball_rule(ndim: int, count: int, dtype=None) -> BallRule:
    """Return a product rule in the unit ball: `count` radii times directions.

    Parameters
    ----------
    ndim : int
        1, 2 or 3.
    count : int
        n: Gauss points along the radius; ``2 n`` angles, and n heights in three dimensions.
    dtype : dtype, optional

    Returns
    -------
    BallRule
        Exact for polynomials of degree ``2 n - d`` in x, and as exact for them times a `Wendland` function of a degree
        that makes the sum no larger: both are smooth along radii. The radii have no point at the origin.
    """
    if ndim not in (1, 2, 3) or not isinstance(count, int) or count < 1:
        fail("ball_rule", "ndim", "1, 2 or 3, with a positive count", (ndim, count))
    nodes, weights = np.polynomial.legendre.leggauss(count)
    r, wr = (nodes + 1) / 2, weights / 2
    wr = wr * r ** (ndim - 1)
    if ndim == 1:
        directions, wd = np.array([[1.0], [-1.0]]), np.ones(2)
    else:
        angle = 2 * np.pi * (np.arange(2 * count) + 0.5) / (2 * count)
        circle = np.stack([np.cos(angle), np.sin(angle)], -1)
        directions, wd = circle, np.full(2 * count, np.pi / count)
        if ndim == 3:
            flat = np.sqrt(1 - nodes**2)
            directions = np.concatenate(
                [(flat[:, None, None] * circle).reshape(-1, 2), np.repeat(nodes, 2 * count)[:, None]], 1
            )
            wd = (weights[:, None] * wd).ravel()
    dtype = jnp.result_type(float) if dtype is None else dtype
    points = (r[:, None, None] * directions).reshape(-1, ndim)
    return BallRule(jnp.asarray(points, dtype), jnp.asarray((wr[:, None] * wd).ravel(), dtype))


def weak_residual(
    flux: Callable[[Array], Array],
    source: Callable[[Array], Array] | Scalar,
    centers: Float[Array, "c d"],
    *,
    radius: Scalar,
    test: Wendland | None = None,
    rule: BallRule | None = None,
) -> Float[Array, " c"]:
    """Return ``(int s . grad w - int f w) / int w`` of ``-div s = f`` for a test function round each centre.

    Only s itself enters: it may have kinks and jumps along the interface, where the strong residual does not exist and
    a mean over points never meets the flux that jumps. For small radii it is the strong residual at the centre.

    Parameters
    ----------
    flux : callable
        ``flux(x)`` (d,) at one point x (d,). Differentiable in what it holds.
    source : callable or scalar
        ``source(x)``, a number.
    centers : Float[Array, "c d"]
        Balls should lie in the domain.
    radius : scalar
        Of all balls. Traced.
    test : Wendland, optional
        ``wendland(2, d)`` by default.
    rule : BallRule, optional
        ``ball_rule(d, 7)`` by default.

    Returns
    -------
    Float[Array, "c"]

    Notes
    -----
    Exact up to the quadrature. With the mixed equation ``s = a grad u`` at points it is the residual of a Darcy flow
    in media of several phases. Rounding in s is divided by the radius.

    References
    ----------
    Y. Zang, P.-S. Koutsourelakis, DGenNO: a physics-aware neural operator for solving forward and inverse PDE problems
    based on deep generative modeling, 2025.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import weak_residual
    >>> found = weak_residual(lambda x: -x, 1.0, jnp.array([[0.2], [0.5]]), radius=0.1)
    >>> bool(jnp.max(jnp.abs(found)) < 1e-4)
    True
    """
    name = "weak_residual"
    centers = float_array(name, "centers", centers, ndim=2)
    ndim, dtype = centers.shape[1], centers.dtype
    test = wendland(2, ndim) if test is None else test
    rule = ball_rule(ndim, 7, dtype) if rule is None else rule
    if test.ndim != ndim or rule.points.shape[1] != ndim:
        fail(name, "test", f"a test function and a rule in {ndim} dimensions", (test.ndim, rule.points.shape[1]))
    radius = jnp.asarray(radius, dtype)
    weights = rule.weights.astype(dtype)
    points = rule.points.astype(dtype)
    value, slope = test(points), test.gradient(points)
    mass = jnp.asarray(test.integral, dtype)

    def one(center):
        x = center[None] + radius * points
        s = jax.vmap(flux)(x)
        if s.shape != x.shape:
            fail(name, "flux", f"a vector of length {ndim} at a point", s.shape[1:])
        f = jax.vmap(lambda y: jnp.asarray(source(y) if callable(source) else source, dtype))(x)
        # (2)
        return (jnp.sum(weights * jnp.sum(s * slope, -1)) / radius - jnp.sum(weights * f * value)) / mass

    return jax.vmap(one)(centers)


def darcy_residuals(
    pressure: Callable[[Array], Array],
    flux: Callable[[Array], Array],
    permeability: Callable[[Array], Array],
    points: Any,
) -> Float[Array, "m d"]:
    """Return ``s - a grad u`` at points (m, d), the other half of the mixed form of ``-div(a grad u) = f``.

    Parameters
    ----------
    pressure, permeability : callable
        u and a: a number at one point (d,).
    flux : callable
        s: a vector at one point.
    points : Float[Array, "m d"]
    """
    return jax.vmap(lambda x: flux(x) - permeability(x) * jax.grad(pressure)(x))(points)  # (3)
