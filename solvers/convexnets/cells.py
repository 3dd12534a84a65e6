"""Activation patterns of a neuron: the cells into which the examples' hyperplanes cut the space of its weights.

All of them, on the host; and of a given one a neuron that stays in its cell however the examples are perturbed.
"""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import checks
from ..core.precision import matmul, tiny
from ..core.typing import Array, Bool, Float

REPAIRS = 1000
"""Steps of the perceptron that looks for a neuron within a pattern."""


def every_gate(name: str, X: np.ndarray, most: int, rounding: float) -> np.ndarray:
    """Return one gate in each cell of the central arrangement ``{g: x_i g = 0}``, rows of X in general position.

    Cosines below `rounding` count as zero: the sign of such a product is not known.

    Each cell is a cone with an extreme ray, which is orthogonal to d - 1 of the examples; from both directions of that
    ray the cells round it are reached by moving into each of the ``2^(d-1)`` orthants of those examples. Every cell is
    met that way, whichever of its rays is taken.
    """
    d = X.shape[1]
    sizes = np.linalg.norm(X, axis=1)
    rows = X[sizes > 0] / sizes[sizes > 0, None]
    rows = distinct_lines(rows, rounding)
    if d == 1 or len(rows) == 0:
        gates = np.zeros((2, d))
        gates[:, 0] = 1, -1
        return gates
    if len(rows) < d or np.linalg.matrix_rank(rows) < d:
        checks.fail(name, "X", "of full column rank", X.shape)
    number = comb(len(rows), d - 1) * 2**d
    if number > most:
        checks.fail(name, "X", f"of few examples in few dimensions: at most {most:,} cells to look at", f"{number:,}")
    signs = np.array(list(product((1.0, -1.0), repeat=d - 1))).T
    found = []
    for chosen in combinations(range(len(rows)), d - 1):
        sub = rows[list(chosen)]
        _, values, vt = np.linalg.svd(sub)
        others = np.delete(rows, chosen, axis=0)
        ray = vt[-1]
        seen = others @ ray
        if values[-1] < rounding or np.any(np.abs(seen) < rounding):
            checks.fail(name, "X", "in general position: any d examples independent", f"examples {chosen} with another")
        into = np.linalg.pinv(sub) @ signs
        step = 0.5 * np.min(np.abs(seen)[:, None] / np.maximum(np.abs(others @ into), 1e-300), axis=0, initial=1.0)
        found += [way * ray[None, :] + (step * into).T for way in (1.0, -1.0)]
    gates = np.concatenate(found)
    _, first = np.unique(rows @ gates.T >= 0, axis=1, return_index=True)
    return gates[np.sort(first)]


def distinct_lines(rows: np.ndarray, rounding: float) -> np.ndarray:
    """Return one of the unit rows on each line through the origin."""
    kept: list[np.ndarray] = []
    for row in rows:
        sizes = [min(np.linalg.norm(row - old), np.linalg.norm(row + old)) for old in kept]
        if not sizes or min(sizes) > rounding:
            kept.append(row)
    return np.array(kept).reshape(-1, rows.shape[1])


def robust_gates(X: Array, gates: Array, active: Array, radius: Array) -> tuple[Float[Array, "p d"], Bool[Array, " p"]]:
    """Return a neuron of each pattern that keeps its sides within all boxes, and whether one was found.

    By the perceptron: the worst example, with the worst of its box, is added to the neuron until none is left.
    """
    norms = lambda v: jnp.sqrt(jnp.sum(v * v, axis=1))  # noqa: E731
    sides = 2 * active - 1
    unit = jnp.maximum(jnp.max(jnp.abs(X)), tiny(X.dtype))
    X, radius = X / unit, radius / unit

    def look(v):
        return sides * matmul(v, X.T) - matmul(jnp.abs(v), radius)[:, None]

    def step(_, carry):
        v, best, most = carry
        margin = look(v)
        worst = jnp.argmin(margin, axis=1)
        least = jnp.min(margin, axis=1) / jnp.maximum(norms(v), tiny(v.dtype))
        better = least > most
        best, most = jnp.where(better[:, None], v, best), jnp.where(better, least, most)
        side = jnp.take_along_axis(sides, worst[:, None], axis=1)
        push = side * X[worst] - radius[None, :] * jnp.sign(v)
        return v + push, best, most

    size = jnp.maximum(norms(gates), tiny(gates.dtype))
    v = gates / size[:, None]
    start = (v, v, jnp.full(v.shape[:1], -jnp.inf, v.dtype))
    _, best, most = lax.fori_loop(0, REPAIRS, step, start)
    found = most > 1e-4
    best = best / jnp.maximum(norms(best), tiny(best.dtype))[:, None]
    return jnp.where(found[:, None], best, gates), found
