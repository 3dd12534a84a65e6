"""The equation and its conditions where nobody asked them to hold: between the nodes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.linalg.kronecker import along, mode_products
from .problem import Neumann, PDEProblem, Robin, side
from .spectral.spaces import face_values
from .tracing import Equation

LEAST = {1: 256, 2: 32, 3: 16}
"""Fewest points a dimension; even numbers, so that the middle, where symmetric statements are special, is none."""
ENOUGH = {1: 256, 2: 64, 3: 24}
"""Points a dimension beside a grid at whose nodes the equation is judged too: more would take as long as solving."""


class Apart(NamedTuple):
    """Points that are no nodes: on [-1, 1] of each dimension, on the host, and in the domain."""

    reference: list[np.ndarray]
    vectors: list[Any]

    @property
    def coordinates(self):
        """The points of the domain, shaped to broadcast against each other."""
        return tuple(along(v, d, len(self.vectors)) for d, v in enumerate(self.vectors))

    def table(self, basis, d: int, order: int = 0):
        """Return derivatives of the functions of one dimension there."""
        known = getattr(basis, "at_reference", None)
        return basis.evaluate(self.vectors[d], order) if known is None else known(self.reference[d], order)


def apart(bounds, sizes, dtype, alone: bool = True) -> Apart:
    """Return Chebyshev points that are no nodes of a grid of those sizes: two a node where they judge `alone`."""
    ndim, reference, vectors = len(sizes), [], []
    for (lower, upper), size in zip(bounds, sizes, strict=True):
        count = max(LEAST[ndim], 2 * size + 1 if alone else min(size + 1, ENOUGH[ndim]))
        reference.append(np.polynomial.chebyshev.chebpts1(count + count % 2))
        lower, upper = jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)
        vectors.append(lower + (upper - lower) * jnp.asarray(reference[-1] / 2 + 0.5, dtype))
    return Apart(reference, vectors)


def _around(bases, dtype) -> Apart:
    return apart(
        [(b.lower, b.upper) for b in bases[0]], [max(b.size for b in bs) for bs in zip(*bases, strict=True)], dtype
    )


def faces_between(problem: PDEProblem, bases, coefficients, args, points: Apart | None = None):
    """Return how far exact conditions given as functions are missed between the nodes of their faces.

    Root mean square over all those faces, relative to the largest such value or to what the unknown itself would make
    of the conditions: values of zero may be stated up to rounding. None where there are none.
    """
    ndim, dtype = problem.domain.ndim, coefficients[0].dtype
    points = points or _around(bases, dtype)
    gaps, values, sizes = [], [], []
    for k, field in enumerate(bases if ndim > 1 else ()):
        tables = [points.table(b, e) for e, b in enumerate(field)]
        reach = None
        for d, basis in enumerate(field):
            rows, stated, own = [], [], 0.0
            for c in (c for c in problem.faces(k, d) if callable(c.value) and c.noise is None):
                try:
                    stated.append(face_values(problem, c, d, args, points.coordinates))
                except (TypeError, ValueError):  # it holds arrays of the nodes' shape
                    continue
                end, outward = side(c)
                a, b = jnp.asarray(c.a, dtype), jnp.asarray(c.b, dtype)
                row = a * _at_ends(basis, 0)[end]
                own = jnp.maximum(own, jnp.abs(a))
                if isinstance(c, Neumann | Robin):
                    row = row + outward * b * _at_ends(basis, 1)[end]
                    own = jnp.maximum(own, jnp.abs(b) / (basis.upper - basis.lower))
                rows.append(row)
            if not rows:
                continue
            matrices = [jnp.stack(rows) if e == d else t for e, t in enumerate(tables)]
            if reach is None:
                reach = jnp.max(jnp.abs(mode_products(tables, coefficients[k])))
            values.append(jnp.concatenate(stated, axis=d).ravel())
            gaps.append(mode_products(matrices, coefficients[k]).ravel() - values[-1])
            sizes.append(own * reach)
    if not gaps:
        return None
    size = jnp.maximum(jnp.max(jnp.abs(jnp.concatenate(values))), jnp.max(jnp.stack(sizes)))
    return _rms([jnp.concatenate(gaps)]) / jnp.where(size > 0, size, 1)


def _at_ends(basis, order: int):
    known = getattr(basis, "at_ends", None)
    return basis.evaluate(jnp.stack([basis.lower, basis.upper]), order) if known is None else known(order)


def between(equation: Equation, bases, coefficients, args, noise: Any):
    """Return the residual at points that are no nodes, relative to the equation's terms there, and its excess.

    A term counts as at least its coefficient times what the unknown itself divided by the domain's lengths would make
    it, so that the rounding of ``u'' = 0`` is no violation. The excess leaves out four times the equation's noise.
    None where the equation cannot be evaluated there.
    """
    bounds = [(b.lower, b.upper) for b in bases[0]]
    points = _around(bases, coefficients[0].dtype)
    x = points.coordinates
    jets = _jets(equation, points, bases, coefficients)
    try:
        strong, pull = jax.linearize(lambda u: equation.elsewhere(x, u, args), jets)
    except (TypeError, ValueError):
        return None
    size = _rms(equation.elsewhere(x, jax.tree.map(jnp.zeros_like, jets), args))
    size = jnp.where(jnp.isfinite(size), size, 0)
    for k, orders in enumerate(equation.orders):
        reach = _rms([mode_products([points.table(b, d) for d, b in enumerate(bases[k])], coefficients[k])])
        for j, index in enumerate(orders):
            length = 1.0
            for (lower, upper), p in zip(bounds, index, strict=True):
                length = length * (upper - lower) ** p
            term = jax.tree.map(jnp.zeros_like, jets)
            term[k][j] = jnp.ones_like(jets[k][j])
            slope = pull(term)
            size = size + _rms([c * jets[k][j] for c in slope]) + _rms(slope) * reach / length
    size = jnp.where(size > 0, size, 1)
    found = _rms(strong)
    return found / size, (found - (0 if noise is None else 4 * jnp.asarray(noise, size.dtype))) / size


def beside(equation: Equation, points: Apart, bases, coefficients, args, scale):
    """Return the root mean square of the residual where it was traced beside the grid, relative to its terms.

    `scale`: the terms' size at the nodes; only the source may be larger elsewhere. None as of `between`.
    """
    if equation.aside is None:
        return None
    x, jets = points.coordinates, _jets(equation, points, bases, coefficients)
    strong = equation.aside(x, jets, args)
    source = _rms(equation.aside(x, jax.tree.map(jnp.zeros_like, jets), args))
    blank = jnp.all(jnp.stack([jnp.all(z == 0) for z in coefficients]))  # nothing at the nodes: all sizes are one
    size = jnp.maximum(jnp.where(jnp.isfinite(source), source, 0), jnp.where(blank, 0, scale))
    return _rms(strong) / jnp.where(size > 0, size, 1)


def _jets(equation: Equation, points: Apart, bases, coefficients):
    """Return the derivatives that the equation names at those points."""
    jets = []
    for field, z, orders in zip(bases, coefficients, equation.orders, strict=True):
        tables = [{p: points.table(b, d, p) for p in {i[d] for i in orders}} for d, b in enumerate(field)]
        jets.append([mode_products([t[p] for t, p in zip(tables, i, strict=True)], z) for i in orders])
    return jets


def _rms(arrays):
    return jnp.sqrt(sum(jnp.mean(a**2) for a in arrays))
