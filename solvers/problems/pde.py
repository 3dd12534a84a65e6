"""Differential equations with known solutions: the eleven of GP-HM (ICLR 2024), and nonlinear ones that bite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.numpy import cos, sin


@dataclass(frozen=True, eq=False)
class PDEInstance:
    """A residual on a box with Dirichlet data from a known solution.

    Attributes
    ----------
    name : str
        For tables.
    residual : callable
        ``residual(x, u, args)``, as `solvers.PDEProblem` takes it.
    bounds : dict
        ``{"x": (lower, upper), ...}``, as `solvers.Box` takes them by name.
    faces : tuple of str
        Where the solution is prescribed: ``"x-"``, ``"x+"``, ...
    exact : callable
        ``exact(*x)``: the solution on broadcasting coordinate arrays.
    grid : tuple of int
        Nodes that resolve it.
    args : Any
        Coefficients.
    guess : callable or None
        ``guess(x, args)`` from which Newton's method reaches the solution, where zero will not do.
    published : float or None
        The smallest relative L2 error in the logs of GP-HM's authors (smallest over checkpoints of the test error).
    """

    name: str
    residual: Callable
    bounds: dict
    faces: tuple[str, ...]
    exact: Callable
    grid: tuple[int, ...]
    args: Any = None
    guess: Callable | None = None
    published: float | None = None

    def test_points(self, count: int = 300):
        """Return the papers' uniform test grid, one vector a dimension."""
        return tuple(jnp.linspace(lower, upper, count) for lower, upper in self.bounds.values())

    def error(self, mean: Callable, count: int = 300) -> float:
        """Return the relative L2 error of ``mean(points)`` on the test grid."""
        points = self.test_points(count)
        truth = self.exact(*jnp.meshgrid(*points, indexing="ij"))
        return float(jnp.linalg.norm(mean(points) - truth) / jnp.linalg.norm(truth))


def _laplacian(exact: Callable, ndim: int) -> Callable:
    """Return the sum of second derivatives of a scalar function, on arrays."""

    def pointwise(*x):
        return sum(jax.grad(jax.grad(exact, d), d)(*x) for d in range(ndim))

    return lambda *x: jnp.vectorize(pointwise)(*jnp.broadcast_arrays(*x))


def _elliptic(name, exact, lengths, grid, *, reaction=False, published=None) -> PDEInstance:
    """``Laplace u = f``, or ``Laplace u + u (u^2 - 1) = f`` (Allen-Cahn), f from the solution."""
    ndim = len(lengths)
    laplacian = _laplacian(exact, ndim)

    def residual(x, u, args):
        v = exact(*jnp.broadcast_arrays(*x))
        total = u.dxx + u.dyy if ndim == 2 else u.dxx
        source = laplacian(*x)
        return total + u.v * (u.v**2 - 1) - source - v * (v**2 - 1) if reaction else total - source

    bounds = {n: (0.0, length) for n, length in zip("xy", lengths, strict=False)}
    faces = tuple(n + side for n in bounds for side in "-+")
    return PDEInstance(name, residual, bounds, faces, exact, grid, published=published)


TWO_PI = 2 * np.pi
BETA = 200.0


def _sum3(x):
    return sin(x) + 0.1 * sin(20 * x) + cos(100 * x)


def _advection(x, u, args):
    return BETA * u.dx + u.dt


PAPER: tuple[PDEInstance, ...] = (
    _elliptic("poisson sin(100x)", lambda x: sin(100 * x), (TWO_PI,), (400,), published=3.99e-7),
    _elliptic("poisson sin(6x)cos(100x)", lambda x: sin(6 * x) * cos(100 * x), (TWO_PI,), (400,), published=1.52e-6),
    _elliptic("poisson x sin(200x)", lambda x: x * sin(200 * x), (TWO_PI,), (760,), published=8.98e-7),
    _elliptic("poisson mix", lambda x: sin(x) + 0.1 * sin(20 * x) + 0.05 * cos(100 * x), (1.0,), (120,),
              published=3.5e-4),
    _elliptic("poisson sin(500x)-2(x-.5)^2", lambda x: sin(500 * x) - 2 * (x - 0.5) ** 2, (1.0,), (330,),
              published=4.22e-4),
    _elliptic("allen-cahn sin(100x)", lambda x: sin(100 * x), (TWO_PI,), (400,), reaction=True, published=7.71e-7),
    _elliptic("allen-cahn sin(6x)cos(100x)", lambda x: sin(6 * x) * cos(100 * x), (TWO_PI,), (400,), reaction=True,
              published=4.24e-6),
    _elliptic("poisson2d sin(100x)sin(100y)", lambda x, y: sin(100 * x) * sin(100 * y), (TWO_PI, TWO_PI), (400, 400),
              published=4.69e-6),
    _elliptic("poisson2d additive", lambda x, y: sin(6 * x) * cos(20 * x) + sin(6 * y) * cos(20 * y),
              (TWO_PI, TWO_PI), (150, 150), published=1.02e-3),
    _elliptic("allen-cahn2d mix", lambda x, y: _sum3(x) * _sum3(y), (1.0, 1.0), (110, 110), reaction=True,
              published=2.58e-3),
    PDEInstance("advection beta=200", _advection, {"x": (0.0, 1.0), "t": (0.0, 1.0)}, ("x-", "t-"),
                lambda x, t: sin(x - BETA * t), (12, 160), published=1.43e-4),
)  # fmt: skip
"""The eleven problems of the paper. Advection has initial and inflow data only, with which GP-HM fails (0.995); the
published figure prescribes the exact solution on all four edges, the outflow included."""


def bratu(strength: float = 1.0, *, upper: bool = False) -> PDEInstance:
    """``u'' + strength e^u = 0`` on [0, 1], zero at both ends: two solutions below strength 3.51, this one or that."""
    low, high = (2.4, 40.0) if upper else (0.0, 2.4)
    for _ in range(200):  # theta = sqrt(2 strength) cosh(theta / 4)
        mid = (low + high) / 2
        excess = mid - np.sqrt(2 * strength) * np.cosh(mid / 4)
        low, high = (mid, high) if (excess < 0) != upper else (low, mid)
    theta = float((low + high) / 2)

    def exact(x):
        return -2 * jnp.log(jnp.cosh((x - 0.5) * theta / 2) / float(np.cosh(theta / 4)))

    def residual(x, u, args):
        return u.dxx + args * jnp.exp(u.v)

    peak = float(2 * np.log(np.cosh(theta / 4)))
    guess = (lambda x, args: 4 * peak * x[0] * (1 - x[0])) if upper else None
    name = f"bratu {strength} " + ("upper" if upper else "lower")
    return PDEInstance(name, residual, {"x": (0.0, 1.0)}, ("x-", "x+"), exact, (48,), strength, guess)


def burgers_layer(nu: float = 1e-3) -> PDEInstance:
    """``u u' = nu u''`` on [0, 1] with ``u = -tanh(x / (2 nu))``: a boundary layer of width nu."""

    def residual(x, u, args):
        return u.v * u.dx - args * u.dxx

    return PDEInstance(f"burgers nu={nu}", residual, {"x": (0.0, 1.0)}, ("x-", "x+"), lambda x: -jnp.tanh(x / (2 * nu)),
                       (320,), nu)  # fmt: skip


def allen_cahn_interface(width: float = 0.01) -> PDEInstance:
    """``width^2 u'' + u - u^3 = 0`` with the interface ``tanh((x - 1/2) / (sqrt2 width))`` in the middle."""

    def residual(x, u, args):
        return args**2 * u.dxx + u.v - u.v**3

    def exact(x):
        return jnp.tanh((x - 0.5) / (2**0.5 * width))

    return PDEInstance(f"allen-cahn width={width}", residual, {"x": (0.0, 1.0)}, ("x-", "x+"), exact, (600,), width,
                       lambda x, args: jnp.tanh((x[0] - 0.5) / (2 * args)))  # fmt: skip
