"""An equation's noise in fewer numbers than nodes: the directions that move the solution most, and probes of the rest.

Independent noise at every node of a fine grid is thousands of unknowns, but solving the equation smooths it: a few
hundred directions W hold all but a small part of what it does to the solution. They are unknowns; the rest is not
learned from the data but stays as uncertain as before them, in the intervals (columns of random draws) and as noise of
the data that see it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core.linalg.kronecker import mode_products
from ...core.precision import matmul
from ...core.typing import Array, Float
from ..spectral.newton import Inverse
from .reduced import COLUMNS, Reduced

EVERY_NODE = 600
"""Nodes, all equations together, up to which every one's noise is an unknown."""
LEADING = 480
"""Directions that are unknowns beyond that."""
PROBES = 32
POWERS = 2


class NoiseRank(NamedTuple):
    """Orthonormal directions of the noise at the nodes, and what the rest does.

    Attributes
    ----------
    basis : Float[Array, "nodes r"]
        W.
    rest : tuple of Float[Array, "n1 ... PROBES"]
        Coefficients of each unknown; their squares add up to the variance that W leaves out.
    excess : Float[Array, "m"] or None
        How much larger it makes the data's standard deviations, a factor each.
    """

    basis: Float[Array, "nodes r"]
    rest: tuple
    excess: Float[Array, " m"] | None = None

    def within(self, model: Reduced) -> Reduced:
        """Return the model with the noise in those directions, and the data as noisy as the rest makes them."""
        return model.with_noise(self.basis, self.excess)


def leading(model: Reduced, y, inverse: Inverse) -> NoiseRank:
    """Find the directions by randomised subspace iteration; where solves are iterative, with their preconditioner."""
    found, near = model.found, inverse.near or inverse
    shape, fields = jnp.broadcast_shapes(*(c.shape for c in found.x)), len(found.lines)
    dtype = found.x[0].dtype
    functions = [[matmul(v[0], ln.null) for v, ln in zip(vs, lines, strict=True)] for vs, lines in zip(
        found.values, found.lines, strict=True)]  # fmt: skip
    tests = [[ln.test for ln in lines] for lines in found.lines]
    root = jnp.sqrt(found.weight)

    def split(q):
        return q.reshape(fields, *shape)

    def tested(q):
        return tuple(mode_products([t.T for t in ts], f) for ts, f in zip(tests, split(q), strict=True))

    def forward(q):
        moved = near.solve(tested(q), 1e-8)
        return jnp.stack([root * mode_products(f, m) for f, m in zip(functions, moved, strict=True)]).reshape(-1)

    def back(v):
        pulled = tuple(mode_products([m.T for m in f], root * p) for f, p in zip(functions, split(v), strict=True))
        raised = near.transposed(pulled, 1e-8)
        return jnp.stack([mode_products(ts, t) for ts, t in zip(tests, raised, strict=True)]).reshape(-1)

    size = fields * found.weight.size
    keys = jax.random.split(jax.random.key(20240617), 2)
    basis = jax.random.normal(keys[0], (size, min(LEADING, size)), dtype)
    for _ in range(POWERS):
        rows = lax.map(lambda q: back(forward(q)), basis.T, batch_size=COLUMNS)
        basis = jnp.linalg.qr(rows.T)[0]
    draws = jax.random.normal(keys[1], (size, PROBES), dtype) / jnp.sqrt(jnp.asarray(PROBES, dtype))
    draws = model.noise * (draws - matmul(basis, matmul(basis.T, draws)))
    columns = lax.map(lambda q: inverse.solve(tested(q), 1e-8), draws.T, batch_size=COLUMNS)
    columns = tuple(jnp.moveaxis(c, 0, -1) for c in columns)
    rest = tuple(mode_products([*(ln.null for ln in lines), None], c) for lines, c in zip(
        found.lines, columns, strict=True))  # fmt: skip
    return lax.stop_gradient(NoiseRank(basis, rest))


def judged_by(model: Reduced, few: NoiseRank) -> NoiseRank:
    """Return the same with its `excess`."""
    none = jnp.zeros((model.root.shape[1], PROBES), model.root.dtype)
    parts = model.slopes(few.rest, none)
    return lax.stop_gradient(few._replace(excess=jnp.sqrt(1 + jnp.sum(parts**2, axis=1))))
