"""Equality-constrained problems with known answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.precision import dot, matmul


class NLP(NamedTuple):
    """``min objective(x, args)`` subject to ``equality(x, args) = 0`` from ``x0``.

    ``best`` is the value of the best known minimum, or None.
    """

    name: str
    objective: Callable
    equality: Callable
    x0: Any
    args: Any = None
    best: float | None = None


HAND_WRITTEN: dict[str, Callable[[], NLP]] = {}


def _problem(name, x0, best=None):
    def register(values):
        def build() -> NLP:
            return NLP(
                name,
                lambda x, args: values(*x)[0],
                lambda x, args: jnp.stack(values(*x)[1]),
                jnp.asarray(x0, jnp.result_type(float)),
                None,
                best,
            )

        build.__doc__ = f"Return {name}, best value {best}."
        HAND_WRITTEN[name] = build
        return build

    return register


@_problem("HS6", [-1.2, 1.0], 0.0)
def hs6(a, b):
    """Return f and c: a parabola's valley."""
    return (1 - a) ** 2, [10 * (b - a**2)]


@_problem("HS7", [2.0, 2.0], -np.sqrt(3.0))
def hs7(a, b):
    """Return f and c: a logarithm on a quartic curve."""
    return jnp.log(1 + a**2) - b, [(1 + a**2) ** 2 + b**2 - 4]


@_problem("HS28", [-4.0, 1.0, 1.0], 0.0)
def hs28(a, b, c):
    """Return f and c: a convex quadratic programme."""
    return (a + b) ** 2 + (b + c) ** 2, [a + 2 * b + 3 * c - 1]


@_problem("HS42", [1.0, 1.0, 1.0, 1.0], 28 - 10 * np.sqrt(2.0))
def hs42(a, b, c, d):
    """Return f and c: the nearest point of a circle."""
    return (a - 1) ** 2 + (b - 2) ** 2 + (c - 3) ** 2 + (d - 4) ** 2, [a - 2, c**2 + d**2 - 2]


@_problem("HS48", [3.0, 5.0, -3.0, 2.0, -2.0], 0.0)
def hs48(a, b, c, d, e):
    """Return f and c: a convex quadratic programme."""
    return (a - 1) ** 2 + (b - c) ** 2 + (d - e) ** 2, [a + b + c + d + e - 5, c - 2 * (d + e) + 3]


@_problem("HS61", [0.0, 0.0, 0.0], -143.6461422)
def hs61(a, b, c):
    """Return f and c: the constraint gradients are parallel at the start."""
    return 4 * a**2 + 2 * b**2 + 2 * c**2 - 33 * a + 16 * b - 24 * c, [3 * a - 2 * b**2 - 7, 4 * a - c**2 - 11]


@_problem("HS78", [-2.0, 1.5, 2.0, -1.0, -1.0], -2.91970041)
def hs78(a, b, c, d, e):
    """Return f and c: a product of five variables."""
    return a * b * c * d * e, [a**2 + b**2 + c**2 + d**2 + e**2 - 10, b * c - 5 * d * e, a**3 + b**3 + 1]


@_problem("BT3", [20.0, 20.0, 20.0, 20.0, 20.0], 176 / 43)
def bt3(a, b, c, d, e):
    """Return f and c: a convex quadratic programme."""
    return (a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2, [a + 3 * b, c + d - 2 * e, b - e]


@_problem("BT8", [1.0, 1.0, 1.0, 0.0, 0.0], 1.0)
def bt8(a, b, c, d, e):
    """Return f and c: constraints with dependent gradients at the solution."""
    return a**2 + b**2 + c**2, [a - 1 - d**2 + b**2, -1 + a**2 + b**2 - e**2]


@_problem("MARATOS", [1.1, 0.1], -1.0)
def maratos(a, b):
    """Return f and c: full steps that every penalty with a kink refuses."""
    return -a + 1e-6 * (a**2 + b**2 - 1), [a**2 + b**2 - 1]


@_problem("GENHS28", [-4.0] + [1.0] * 9, 0.9271736955)
def genhs28(*x):
    """Return f and c: a convex quadratic programme of ten variables."""
    x = jnp.stack(x)
    return jnp.sum((x[:-1] + x[1:]) ** 2), list(x[:-2] + 2 * x[1:-1] + 3 * x[2:] - 1)


@_problem("MWRIGHT", [-1.0, 2.0, 1.0, -2.0, -2.0], 24.26562690)
def mwright(a, b, c, d, e):
    """Return f and c: several local minima; `best` is the one that IPOPT finds from the standard start."""
    s = float(np.sqrt(2.0))
    f = a**2 + (a - b) ** 2 + (b - c) ** 3 + (c - d) ** 4 + (d - e) ** 4
    return f, [a + b**2 + c**3 - 3 * s - 2, b - c**2 + d - 2 * s + 2, a * e - 2]


@_problem("HS100LNP", [1.0, 2.0, 0.0, 4.0, 0.0, 1.0, 1.0], 680.6300573)
def hs100lnp(a, b, c, d, e, f, g):
    """Return f and c: the active constraints of HS100 as equations."""
    value = (a - 10) ** 2 + 5 * (b - 12) ** 2 + c**4 + 3 * (d - 11) ** 2 + 10 * e**6
    value = value + 7 * f**2 + g**4 - 4 * f * g - 10 * f - 8 * g
    first = 2 * a**2 + 3 * b**4 + c + 4 * d**2 + 5 * e - 127
    return value, [first, 4 * a**2 + b**2 - 3 * a * b + 2 * c**2 + 5 * f - 11 * g]


@_problem("ZANGWIL3", [100.0, -1.0, 2.5], 0.0)
def zangwil3(a, b, c):
    """Return f and c: three linear equations."""
    return 0 * a, [a - b + c, -a + b + c, a + b - c]


@_problem("CUBENE", [-1.2, 1.0], 0.0)
def cubene(a, b):
    """Return f and c: two equations along a cubic."""
    return 0 * a, [a - 1, 10 * (b - a**3)]


@_problem("RSNBRNE", [-1.2, 1.0], 0.0)
def rsnbrne(a, b):
    """Return f and c: Rosenbrock's function as two equations."""
    return 0 * a, [10 * (b - a**2), a - 1]


def logistic(features, labels, *, num_rows: int = 10, seed: int = 2023) -> NLP:
    """Return logistic regression on the unit sphere cut by random hyperplanes, starting from ones.

    ``min mean_i log(1 + exp(-labels_i features_i'x))`` subject to ``A x = b`` with standard normal A (num_rows, n) and
    b, and ``|x|^2 = 1``. ``args = (features, labels, A, b)``; labels are -1 and 1.
    """
    features = jnp.asarray(features, jnp.result_type(float))
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((num_rows, features.shape[1]))
    b = rng.standard_normal(num_rows)
    args = (features, *(jnp.asarray(a, features.dtype) for a in (labels, A, b)))
    return NLP("logistic", _logistic_loss, _sphere_and_planes, jnp.ones(features.shape[1], features.dtype), args)


def _logistic_loss(x, args):
    features, labels, _, _ = args
    return jnp.mean(jnp.logaddexp(0.0, -labels * matmul(features, x)))


def _sphere_and_planes(x, args):
    _, _, A, b = args
    return jnp.concatenate([matmul(A, x) - b, (dot(x, x) - 1)[None]])


def pde_control(size: int, *, weight: float = 0.1, cubic: float = 1.0) -> NLP:
    """Return the control of a semilinear Poisson equation on a ``size`` by ``size`` grid, n = 2 size^2, m = size^2.

    ``min |w - target|^2 / 2 + weight |z|^2 / 2`` subject to ``Lap(w) + z - cubic w^3 = 0`` with the five-point
    Laplacian for h = 2 / (size + 1) and zero boundary values; x is the dict of state w and control z.
    """
    s = 0.1 / np.sqrt(15)
    centred = np.arange(1, size + 1) - (size + 1) / 2
    target = jnp.asarray(np.sin(4 + s * centred[:, None]) + np.cos(3 + s * centred[None, :]))
    args = (target, jnp.asarray(float(weight)), jnp.asarray(float(cubic)))
    ones = jnp.ones((size, size), target.dtype)
    return NLP(f"pde{size}", _tracking, _poisson, {"control": ones, "state": ones}, args)


def _tracking(x, args):
    target, weight, _ = args
    return 0.5 * jnp.sum((x["state"] - target) ** 2) + 0.5 * weight * jnp.sum(x["control"] ** 2)


def _poisson(x, args):
    w = x["state"]
    return laplacian(w) + x["control"] - args[2] * w**3


def laplacian(w: jax.Array) -> jax.Array:
    """Return the five-point Laplacian on the square [-1, 1]^2 with zero boundary values."""
    h = 2.0 / (w.shape[0] + 1)
    p = jnp.pad(w, 1)
    return (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * w) / h**2


def pde_preconditioner(size: int, *, weight: float = 0.1) -> Callable:
    """Return ``(rx, rc) -> (P^-1 rx, S^-1 rc)`` for `pde_control`, exact but for the cubic term.

    P is the Hessian ``diag(weight, 1)`` and ``S = Lap^2 + I / weight``, diagonal in the sine basis.
    """
    k = np.arange(1, size + 1)
    basis = jnp.asarray(np.sin(np.pi * np.outer(k, k) / (size + 1)) * np.sqrt(2 / (size + 1)))
    line = (2 - 2 * np.cos(np.pi * k / (size + 1))) * ((size + 1) / 2) ** 2
    schur = jnp.asarray((line[:, None] + line[None, :]) ** 2 + 1 / weight)

    def apply(rx, rc):
        control, state = jnp.split(rx, 2)
        coefficients = basis @ rc.reshape(size, size) @ basis
        solved = basis @ (coefficients / schur) @ basis
        return jnp.concatenate([control / weight, state]), solved.ravel()

    return apply


def low_rank_regression(n: int, samples: int, m: int, *, ridge: float = 1e-4, decay: float = 1.0, seed: int = 5) -> NLP:
    """Return ridge-regularised logistic regression on a sphere cut by hyperplanes: a low-rank Hessian plus a ridge.

    The features' singular values fall like ``k^-decay``; ``args = (features, labels, A, b, ridge)`` with m - 1 random
    hyperplanes ``A x = b`` and ``|x|^2 = 1``, which are feasible together.
    """
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((samples, min(samples, n))) * np.arange(1.0, min(samples, n) + 1) ** -decay
    features = mixing @ np.linalg.qr(rng.standard_normal((n, min(samples, n))))[0].T
    labels = np.sign(features @ rng.standard_normal(n) + 0.1 * rng.standard_normal(samples))
    x = rng.standard_normal(n)
    A = rng.standard_normal((m - 1, n)) / np.sqrt(n)
    data = (features, labels, A, A @ (0.9 * x / np.linalg.norm(x)), np.asarray(ridge))
    args = tuple(jnp.asarray(a, jnp.result_type(float)) for a in data)
    return NLP("low-rank regression", _ridge_loss, _sphere_and_rows, jnp.ones(n, args[0].dtype) / np.sqrt(n), args)


def _ridge_loss(x, args):
    return _logistic_loss(x, (*args[:2], None, None)) + 0.5 * args[4] * jnp.sum(x**2)


def _sphere_and_rows(x, args):
    return _sphere_and_planes(x, args[:4])
