"""Variable projection: weights by linear least squares, centres and shapes by damped Gauss-Newton on what is left.

Golub and Pereyra, Inverse Problems 19 (2003), in Kaufman's form: r the residuals, A their columns in the weights w, S
in the centres and shapes s, D a diagonal:

(1) ``dw = argmin |r + A dw| = -R^-1 Q' r,  A = Q R``
(2) ``(S_o' S_o + damping D) ds = -S_o' r_o,  S_o = (I - Q Q') S,  r_o = (I - Q Q') r``
(3) ``dw = argmin |r + S ds + A dw|``, the step in the weights that follows
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from ...core.precision import eps, matmul
from ...core.typing import Array, Float
from .collocation_rows import Points, Statement
from .gaussian_field import GaussianField, gaussians

RIDGE = 8.0
"""Weights are damped by this many units of rounding, relative to their columns: Gaussians overlap."""


class Factored(NamedTuple):
    """``[A / unit; ridge] = Q R`` of the weights' columns, the part of Q that belongs to A, the columns' units."""

    q: Float[Array, "r p"]
    r: Float[Array, "p p"]
    unit: Float[Array, " p"]

    def step(self, rest):
        """Return the change of weights, flat, that least squares asks for at residuals `rest`."""
        return -solve_triangular(self.r, matmul(self.q.T, rest)) / self.unit  # (1)

    def outside(self, v):
        """Return v without its part in the range of A."""
        return v - matmul(self.q, matmul(self.q.T, v))


class Fit(NamedTuple):
    """A field with optimal weights where the equation is linear, its residuals and factors, damping, and its error."""

    field: Any
    rest: Array
    factored: Factored
    damping: Array
    error: Array
    misfit: Array


def factor(matrix) -> Factored:
    """Factorise a matrix (r, p) whose columns may depend on each other to rounding."""
    unit = jnp.sqrt(jnp.sum(matrix**2, 0))
    unit = jnp.where(unit > 0, unit, 1)
    count = matrix.shape[1]
    ridge = RIDGE * eps(matrix.dtype) * jnp.eye(count, dtype=matrix.dtype)
    q, r = jnp.linalg.qr(jnp.concatenate([matrix / unit[None], ridge]))
    return Factored(q[: matrix.shape[0]], r, unit)


def weight_columns(statement: Statement, field: GaussianField, points: Points):
    """Return the residuals' derivatives in the weights, (r, k n)."""
    slopes = statement.slopes(field, points)
    matrix = statement.columns(field.centers, field.root, points, slopes)
    return matrix.reshape(matrix.shape[0], -1)


def shape_columns(statement: Statement, field: GaussianField, points: Points):
    """Return the residuals' derivatives in all centres and shapes, (r, parameters of one * n), parameters first."""
    slopes = statement.slopes(field, points)
    weights = field.weights if field.weights.ndim == 2 else field.weights[None]

    def table(centers, root):
        return jnp.sum(statement.columns(centers, root, points, slopes) * weights[None], 1)

    def along(axis_of, entry):
        tangents = [jnp.zeros_like(field.centers), jnp.zeros_like(field.root)]
        tangents[axis_of] = tangents[axis_of].at[(slice(None), *entry)].set(1)
        return jax.jvp(table, (field.centers, field.root), tuple(tangents))[1]

    parts = [along(0, (i,)) for i in range(field.centers.shape[1])]
    if field.root.ndim == 2:
        parts += [along(1, (i,)) for i in range(field.root.shape[1])]
    else:
        d = field.root.shape[1]
        parts += [along(1, (i, j)) for i in range(d) for j in range(i + 1)]
    return jnp.concatenate(parts, 1)


def moved(field: GaussianField, shapes, weights) -> GaussianField:
    """Return the field with flat changes, in the order of `shape_columns`, added to its numbers."""
    n, d = field.centers.shape
    parts = shapes.reshape(-1, n)
    centers = field.centers + parts[:d].T
    if field.root.ndim == 2:
        root = field.root + parts[d:].T
    else:
        places = [(i, j) for i in range(d) for j in range(i + 1)]
        root = field.root
        for (i, j), part in zip(places, parts[d:], strict=True):
            root = root.at[:, i, j].add(part)
    return GaussianField(field.weights + weights.reshape(field.weights.shape), centers, root)


def fitted(statement: Statement, field: GaussianField, points: Points):
    """Return the field after one Gauss-Newton step in the weights, if that lowers the residuals, with the factors."""
    rest = statement.residuals(field, points)
    factored = factor(weight_columns(statement, field, points))
    better = field.with_weights(field.weights + factored.step(rest).reshape(field.weights.shape))
    new = statement.residuals(better, points)
    lower = jnp.sum(new**2) < jnp.sum(rest**2)
    better = jax.tree.map(lambda a, b: jnp.where(lower, a, b), better, field)
    return better, jnp.where(lower, new, rest), factored


def search(statement: Statement, points: Points, s: Fit, train: bool):
    """Return the next fit: one damped step of everything, kept if it lowers the residuals."""
    field, rest = s.field, s.rest
    zero = jnp.zeros((), rest.dtype)
    if train:
        weight_step = s.factored.step(rest)
        here = field.with_weights(field.weights + weight_step.reshape(field.weights.shape))
        slopes = shape_columns(statement, here, points)
        # A step in the weights that follows from one in the shapes: what A cannot make good decides on the shapes.
        outside = s.factored.outside(slopes)
        left = s.factored.outside(rest)
        scale = jnp.sum(outside**2, 0)
        scale = scale + eps(rest.dtype) * jnp.max(scale) + jnp.where(jnp.max(scale) > 0, 0, 1)
        normal = matmul(outside.T, outside) + jnp.diag(s.damping * scale)
        # (2)
        shapes = -jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(normal), True), matmul(outside.T, left))
        shapes = jnp.where(jnp.all(jnp.isfinite(shapes)), shapes, zero)
        weights = s.factored.step(rest + matmul(slopes, shapes)) / jnp.maximum(s.damping, 1)  # (3)
        trial = moved(field, shapes, weights)
    else:
        trial = field
    trial, new, factored = fitted(statement, trial, points)
    accept = jnp.sum(new**2) < jnp.sum(rest**2)
    if not train:
        accept = jnp.ones((), bool)
    keep = lambda a, b: jax.tree.map(lambda u, v: jnp.where(accept, u, v), a, b)  # noqa: E731
    damping = jnp.where(accept, jnp.maximum(s.damping / 5, 1e-12), jnp.minimum(s.damping * 8, 1e12))
    return keep(trial, field), keep(new, rest), keep(factored, s.factored), damping.astype(rest.dtype)


def stability(statement: Statement, field: GaussianField, checks: Points, factored: Factored, steps: int = 20):
    """Return how large, in root mean square, a function of this field with residuals of norm one can be.

    The largest singular value of ``U R^-1``, U the values at `checks`, by the power method; from below.
    """
    fields = statement.problem.fields
    zero = (0,) * field.centers.shape[1]
    values = gaussians(checks.inside, field.centers, field.root, [zero])[zero]
    values = values * jnp.sqrt(checks.weights)[:, None]
    size, n = factored.r.shape[0], values.shape[1]

    def forward(y):
        w = (solve_triangular(factored.r, y) / factored.unit).reshape(fields, n)
        return matmul(values, w.T)

    transposed = jax.linear_transpose(forward, jnp.zeros(size, values.dtype))

    def step(carry, _):
        y, _ = carry
        (z,) = transposed(forward(y))
        length = jnp.sqrt(jnp.sum(z * z))
        return (z / jnp.where(length > 0, length, 1), length), None

    start = jnp.cos(jnp.arange(size, dtype=values.dtype) * 1.7 + 0.3)
    start = start / jnp.sqrt(jnp.sum(start**2))
    (_, squared), _ = jax.lax.scan(step, (start, jnp.zeros((), values.dtype)), None, length=steps)
    return jnp.sqrt(squared)
