"""The equation's residual where nobody asked for it to be small: between the nodes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.linalg.kronecker import along, mode_products
from .tracing import Equation

LEAST = {1: 257, 2: 33, 3: 15}
"""Fewest points a dimension."""


def between(equation: Equation, bases, coefficients, args, noise: Any):
    """Return the residual at points that are no nodes, relative to the equation's terms there, and its excess.

    A term counts as at least its coefficient times what the unknown itself divided by the domain's lengths would make
    it, so that the rounding of ``u'' = 0`` is no violation. The excess leaves out four times the equation's noise.
    None where the equation cannot be evaluated there.
    """
    ndim = len(bases[0])
    bounds = [(b.lower, b.upper) for b in bases[0]]
    vectors, reference = [], []
    for d, (lower, upper) in enumerate(bounds):
        count = max(LEAST[ndim], *(2 * b[d].size + 1 for b in bases))
        reference.append(np.polynomial.chebyshev.chebpts1(count))
        vectors.append(lower + (upper - lower) * jnp.asarray(reference[-1] / 2 + 0.5, coefficients[0].dtype))
    x = tuple(along(v, d, ndim) for d, v in enumerate(vectors))

    def table(basis, d: int, order: int):
        known = getattr(basis, "at_reference", None)
        return basis.evaluate(vectors[d], order) if known is None else known(reference[d], order)

    values = [
        [{p: table(b, d, p) for p in {i[d] for i in orders} | {0}} for d, b in enumerate(bs)]
        for bs, orders in zip(bases, equation.orders, strict=True)
    ]  # fmt: skip

    def derivative(k, index):
        return mode_products([v[p] for v, p in zip(values[k], index, strict=True)], coefficients[k])

    jets = [[derivative(k, i) for i in orders] for k, orders in enumerate(equation.orders)]
    try:
        strong, pull = jax.linearize(lambda u: equation.elsewhere(x, u, args), jets)
    except (TypeError, ValueError):
        return None
    size = _rms(equation.elsewhere(x, jax.tree.map(jnp.zeros_like, jets), args))
    size = jnp.where(jnp.isfinite(size), size, 0)
    for k, orders in enumerate(equation.orders):
        own = _rms([derivative(k, (0,) * ndim)])
        for j, index in enumerate(orders):
            length = 1.0
            for (lower, upper), p in zip(bounds, index, strict=True):
                length = length * (upper - lower) ** p
            term = jax.tree.map(jnp.zeros_like, jets)
            term[k][j] = jnp.ones_like(jets[k][j])
            slope = pull(term)
            size = size + _rms([c * jets[k][j] for c in slope]) + _rms(slope) * own / length
    size = jnp.where(size > 0, size, 1)
    found = _rms(strong)
    return found / size, (found - (0 if noise is None else 4 * jnp.asarray(noise, size.dtype))) / size


def _rms(arrays):
    return jnp.sqrt(sum(jnp.mean(a**2) for a in arrays))
