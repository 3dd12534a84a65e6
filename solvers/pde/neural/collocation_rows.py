"""What a differential equation asks of a field at points: residuals, their rows, and how large their terms are."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...core.checks import fail
from ...core.linalg.kronecker import along
from ...core.precision import unit_of
from ...core.typing import Array, Float
from ..problem import Observe, PDEProblem, side
from ..tracing import Equation, trace
from .gaussian_field import Index, gaussians

FEWEST_CHECKS, MOST_CHECKS = 256, 4096


class Points(NamedTuple):
    """Where to ask: points inside (m, d) with weights that add up to one, and the same for each condition."""

    inside: Array
    weights: Array
    faces: tuple[tuple[Array, Array], ...]


class Rows(NamedTuple):
    """Rows of the equations, then of the conditions, in units of their terms."""

    equations: tuple
    conditions: tuple


class Statement(eqx.Module):
    """The equation and its conditions as functions of a field's derivatives at points.

    Attributes
    ----------
    needed : tuple of multi-indices
        Derivatives that occur anywhere. Static.
    scale : Float[Array, "k"]
        Each equation is divided by: the sum of its coefficients over powers of the box's lengths.
    """

    problem: PDEProblem
    equation: Equation
    data: Any
    args: Any
    scale: Float[Array, " k"]
    needed: tuple[Index, ...] = eqx.field(static=True)
    boundary_weight: Any

    def equations(self, points: Points, jets):
        """Return the residuals of the equations, a tuple of (m,)."""
        x = tuple(points.inside.T)
        return self.equation(x, self.ordered(jets), self.data)

    def ordered(self, jets: dict[Index, Array]):
        """Return derivatives as the traced residual takes them."""
        return [[jets[a][k] for a in orders] for k, orders in enumerate(self.equation.orders)]

    def stated(self):
        """Return (condition, axis, end) of each face condition, then (None, axis, p, field) of each periodic match."""
        problem, found = self.problem, []
        for k, d in itertools.product(range(problem.fields), range(problem.domain.ndim)):
            for c in problem.faces(k, d):
                found.append((c, d, 0, k))
            if problem.periodic[d]:
                highest = max((o[d] for o in self.equation.orders[k]), default=0)
                found += [(None, d, p, k) for p in range(max(highest, 1))]
        return found

    def condition(self, table, entry, x):
        """Return ``a u + outward b du/dx`` from ``table(points, index)`` at points of a face."""
        c, axis, p, _ = entry
        zero = (0,) * self.problem.domain.ndim
        slope = tuple(int(d == axis) for d in range(len(zero)))
        if c is None:
            index = tuple(p * (d == axis) for d in range(len(zero)))
            lower, upper = (jnp.asarray(b, x.dtype) for b in self.problem.domain.bounds[axis])
            length = (upper - lower) ** p
            other = x.at[:, axis].set(upper)
            return length * (table(x, index) - table(other, index))
        value = jnp.asarray(c.a, x.dtype) * table(x, zero)
        if _zero(c.b):
            return value
        return value + side(c)[1] * jnp.asarray(c.b, x.dtype) * table(x, slope)

    def target(self, entry, x):
        """Return the values of a condition at points of its face."""
        c = entry[0]
        if c is None:
            return jnp.zeros(x.shape[:1], x.dtype)
        value = c.value(tuple(x.T), self.args) if callable(c.value) else c.value
        value = jnp.asarray(value, x.dtype)
        if value.shape not in ((), x.shape[:1]):
            fail(type(c).__name__, "value", "a number or a callable, away from grids", f"shape {value.shape}")
        return jnp.broadcast_to(value, x.shape[:1])

    def unit(self, entry, dtype):
        """Return what a condition is divided by."""
        c, axis, _, _ = entry
        if c is None:
            return jnp.ones((), dtype)
        lower, upper = (jnp.asarray(b, dtype) for b in self.problem.domain.bounds[axis])
        total = jnp.abs(jnp.asarray(c.a, dtype)) + jnp.abs(jnp.asarray(c.b, dtype)) / (upper - lower)
        return jnp.where(total > 0, total, 1) / self.boundary_weight

    def residuals(self, field, points: Points) -> Float[Array, " r"]:
        """Return all residuals in one vector, whose square is what is minimised."""
        jets = dict(zip(self.needed, field.jets(points.inside, self.needed), strict=True))
        root = jnp.sqrt(points.weights)
        parts = [root * r / s for r, s in zip(self.equations(points, jets), self.scale, strict=True)]
        return jnp.concatenate([*parts, *self._conditions(field, points)])

    def _conditions(self, field, points: Points):
        parts = []
        for entry, (x, w) in zip(self.stated(), points.faces, strict=True):
            k = entry[3]
            gap = self.condition(lambda y, a, k=k: field.jets(y, [a])[0][k], entry, x) - self.target(entry, x)
            parts.append(jnp.sqrt(w) * gap / self.unit(entry, x.dtype))
        return parts

    def slopes(self, field, points: Points):
        """Return the residuals' derivatives in the equation's jets, ``c[i][k][j]`` of shape (m,)."""
        jets = dict(zip(self.needed, field.jets(points.inside, self.needed), strict=True))
        x, jets = tuple(points.inside.T), self.ordered(jets)
        return self.equation.coefficients(x, jets, self.data)

    def columns(self, centers, root, points: Points, slopes) -> Float[Array, "r k n"]:
        """Return what each Gaussian of each unknown does to the residuals, linearised."""
        table = gaussians(points.inside, centers, root, self.needed)
        heavy, fields = jnp.sqrt(points.weights), self.problem.fields
        blocks = []
        for row, s in zip(slopes, self.scale, strict=True):
            parts = [
                sum((heavy * c / s)[:, None] * table[a] for c, a in zip(column, orders, strict=True))
                for column, orders in zip(row, self.equation.orders, strict=True)
            ]
            blocks.append(jnp.stack(parts, 1))
        for entry, (x, w) in zip(self.stated(), points.faces, strict=True):
            part = self.condition(lambda y, a: gaussians(y, centers, root, [a])[a], entry, x)
            part = jnp.sqrt(w)[:, None] * part / self.unit(entry, x.dtype)
            unit = jnp.zeros(fields, x.dtype).at[entry[3]].set(1)
            blocks.append(part[:, None, :] * unit[None, :, None])
        return jnp.concatenate(blocks)

    def judged(self, field, points: Points):
        """Return the equation's relative residual and the conditions' relative misfit at points.

        An equation counts relative to the sum of its terms' root mean squares, a term being at least its coefficient
        times the unknown over the box's lengths; a condition relative to its values and its two terms.
        """
        jets = dict(zip(self.needed, field.jets(points.inside, self.needed), strict=True))
        mean = lambda v: _rms(points.weights, v)  # noqa: E731
        zero = (0,) * self.problem.domain.ndim
        own = [mean(v) for v in field.jets(points.inside, [zero])[0]]
        nothing = jax.tree.map(jnp.zeros_like, jets)
        sources = self.equations(points, nothing)
        slopes, worst = self.slopes(field, points), jnp.zeros((), points.inside.dtype)
        for i, found in enumerate(self.equations(points, jets)):
            size = mean(sources[i])
            size = jnp.where(jnp.isfinite(size), size, 0)
            for k, orders in enumerate(self.equation.orders):
                for c, a in zip(slopes[i][k], orders, strict=True):
                    size = size + mean(c * jets[a][k]) + mean(c) * own[k] / self.length(a)
            worst = _larger(worst, mean(found) / jnp.where(size > 0, size, 1))
        misfit = jnp.zeros_like(worst)
        for entry, (x, w) in zip(self.stated(), points.faces, strict=True):
            c, axis, _, k = entry
            target = self.target(entry, x)
            gap = self.condition(lambda y, a, k=k: field.jets(y, [a])[0][k], entry, x) - target
            slope = mean(field.jets(points.inside, [tuple(int(d == axis) for d in range(len(zero)))])[0][k])
            if c is None:
                lower, upper = (jnp.asarray(b, x.dtype) for b in self.problem.domain.bounds[axis])
                size = own[k] + slope * (upper - lower)
            else:
                size = _rms(w, target) + jnp.abs(jnp.asarray(c.a)) * own[k] + jnp.abs(jnp.asarray(c.b)) * slope
            misfit = _larger(misfit, _rms(w, gap) / jnp.where(size > 0, size, 1))
        return worst, misfit

    def length(self, index: Index):
        """Return the product of the box's lengths to powers."""
        out = 1.0
        for (lower, upper), p in zip(self.problem.domain.bounds, index, strict=True):
            out = out * (jnp.asarray(upper) - jnp.asarray(lower)) ** p
        return out


def _rms(weights, v):
    """Return ``sqrt(sum weights v^2)``, of numbers whose squares vanish or overflow too."""
    unit = unit_of(v)
    return jnp.sqrt(jnp.sum(weights * (unit * v) ** 2)) / unit


def _larger(a, b):
    return jnp.where(jnp.isnan(a) | jnp.isnan(b), jnp.nan, jnp.maximum(a, b))


def _zero(b) -> bool:
    return isinstance(b, int | float) and b == 0


def pointwise(problem: PDEProblem, residual, data, dtype) -> Equation:
    """Trace the residual at one point, once for all points: what it returns evaluates it at any number of them."""
    x = tuple(jnp.zeros(1, dtype) for _ in problem.domain.names)
    found = trace(residual, problem.domain.names, problem.fields, x, data)

    def function(x, jets, data):
        def one(x, jets):
            x, jets = jax.tree.map(lambda v: v[None], (x, jets))
            return tuple(v[0] for v in found.function(x, jets, data))

        return jax.vmap(one)(x, jets)

    return Equation(found.orders, found.linear, found.coordinates, function, function)


def state(problem: PDEProblem, equation: Equation, data, args, field, points: Points, boundary_weight) -> Statement:
    """Return the statement in the units of its terms at a first field."""
    if any(isinstance(c, Observe) or getattr(c, "noise", None) is not None for c in problem.conditions):
        fail("collocate", "problem", "without `Observe` and noise: `gp_solve` conditions on those", "some")
    if problem.noise is not None:
        fail("collocate", "problem", "without noise: `gp_solve` conditions on it", "some")
    ndim = problem.domain.ndim
    needed = tuple(sorted({a for orders in equation.orders for a in orders} | {(0,) * ndim}))
    one = jnp.ones(problem.fields, points.inside.dtype)
    bare = Statement(problem, equation, data, args, one, needed, boundary_weight)
    scales = []
    for row in bare.slopes(field, points):
        total = sum(
            jnp.sqrt(jnp.sum(points.weights * c * c)) / bare.length(a)
            for column, orders in zip(row, equation.orders, strict=True)
            for c, a in zip(column, orders, strict=True)
        )
        scales.append(jnp.where((total > 0) & jnp.isfinite(total), total, 1))
    return eqx.tree_at(lambda s: s.scale, bare, jax.lax.stop_gradient(jnp.stack(scales)))


def gauss_points(counts, bounds, dtype):
    """Return a product Gauss-Legendre grid as points (m, d) and weights that add up to one."""
    if not counts:
        return jnp.zeros((1, 0), dtype), jnp.ones(1, dtype)
    nodes, weights = zip(*(np.polynomial.legendre.leggauss(n) for n in counts), strict=True)
    ndim = len(counts)
    axes = [
        jnp.asarray(lo, dtype) + (jnp.asarray(hi, dtype) - jnp.asarray(lo, dtype)) * jnp.asarray(s / 2 + 0.5, dtype)
        for s, (lo, hi) in zip(nodes, bounds, strict=True)
    ]
    x = jnp.stack([jnp.broadcast_to(along(a, d, ndim), counts).ravel() for d, a in enumerate(axes)], -1)
    w = np.ones(counts)
    for d, v in enumerate(weights):
        w = w * (v / 2).reshape([-1 if e == d else 1 for e in range(ndim)])
    return x, jnp.asarray(w.ravel(), dtype)


def golden_points(count: int, bounds, dtype):
    """Return evenly spread points that lie on no grid: multiples, modulo 1, of powers of a root of x^(d+1) = x + 1."""
    ndim = len(bounds)
    if not ndim:
        return jnp.zeros((1, 0), dtype), jnp.ones(1, dtype)
    ratio = 2.0
    for _ in range(60):
        ratio = (1 + ratio) ** (1 / (ndim + 1))
    steps = np.arange(1, count + 1)[:, None] * (1 / ratio) ** np.arange(1, ndim + 1)
    s = jnp.asarray((0.5 + steps) % 1, dtype)
    lower, upper = (jnp.stack([jnp.asarray(b[e], dtype) for b in bounds]) for e in (0, 1))
    return lower[None] + (upper - lower)[None] * s, jnp.full(count, 1 / count, dtype)


def face_points(statement_entries, problem: PDEProblem, make, dtype):
    """Return points and weights of each entry's face; ``make(bounds)`` fills the other dimensions."""
    faces = []
    for c, axis, _, _ in statement_entries:
        bounds = [b for d, b in enumerate(problem.domain.bounds) if d != axis]
        x, w = make(bounds)
        end = jnp.asarray(problem.domain.bounds[axis][0 if c is None else side(c)[0]], dtype)
        faces.append((jnp.insert(x, axis, end, axis=1), w))
    return tuple(faces)
