"""Data for convex training of ReLU networks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Examples(NamedTuple):
    """Examples with a column of ones for the bias, and targets.

    Attributes
    ----------
    X : Float[Array, "n d"]
    y : Float[Array, "n"]
    """

    X: Any
    y: Any


def noisy_ridges(seed: int, n: int, d: int, noise: float = 0.2) -> Examples:
    """Return ``sin(2 x_0) + |x_1|`` with noise at Gaussian points; the last of the d columns is ones."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.standard_normal((n, d - 1)), np.ones(n)])
    return Examples(X, np.sin(2 * X[:, 0]) + np.abs(X[:, 1]) + noise * rng.standard_normal(n))


def one_neuron(x: float, y: float, beta: float) -> float:
    """Return the optimum of one example in one dimension, ``min (x u - y)^2 / 2 + beta |u|`` where ``|x y| > beta``."""
    u = (abs(x * y) - beta) / x**2
    return (abs(x) * u - abs(y)) ** 2 / 2 + beta * u
