"""All points within a radius, by a table of cells of static capacity; too many in a cell is said, not dropped."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp

from ...core.checks import fail, float_array
from ...core.typing import Array, Float
from ..problem import Box


class Neighbours(NamedTuple):
    """Candidates of each query.

    Attributes
    ----------
    index : Int[Array, "m k"]
        Of points; anything where `near` is false.
    near : Bool[Array, "m k"]
        Whether they are points within the radius.
    overflow : Bool[Array, ""]
        Whether a cell held more points than its capacity, or a point lay outside the box: then some are missing.
    """

    index: Array
    near: Array
    overflow: Array


def neighbours(
    queries: Float[Array, "m d"],
    points: Float[Array, "n d"],
    *,
    box: Box,
    radius: float,
    capacity: int,
) -> Neighbours:
    """Return the points within a radius of each query.

    Parameters
    ----------
    queries, points : Float[Array, "m d"], Float[Array, "n d"]
        In the box. Traced; no derivative.
    box : Box
        Its bounds are Python numbers: they decide on the number of cells, ``floor(length / radius)`` a dimension.
    radius : float
        Positive; static.
    capacity : int
        Most points a cell. Static: each query looks at ``3^d capacity`` candidates.

    Returns
    -------
    Neighbours

    Notes
    -----
    ``O(n log n + m 3^d capacity)``: points are sorted by cell. A distance equal to the radius does not count.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Box, neighbours
    >>> x = jnp.array([[0.1], [0.2], [0.8]])
    >>> found = neighbours(x, x, box=Box((0.0, 1.0)), radius=0.25, capacity=2)
    >>> print(found.near.sum(1), found.overflow)
    [2 2 1] False
    """
    name = "neighbours"
    points, queries = (float_array(name, n, v, ndim=2) for n, v in (("points", points), ("queries", queries)))
    if points.shape[1] != box.ndim or queries.shape[1] != box.ndim:
        fail(name, "points", f"with {box.ndim} coordinates, like the queries", (points.shape, queries.shape))
    if not isinstance(radius, int | float) or not radius > 0 or not isinstance(capacity, int) or capacity < 1:
        fail(name, "radius", "a positive number, with a positive integer capacity", (radius, capacity))
    bounds = [(float(lo), float(hi)) for lo, hi in box.bounds]
    cells = tuple(max(1, math.floor((hi - lo) / radius)) for lo, hi in bounds)
    total, n = math.prod(cells), points.shape[0]

    def place(x):
        found = []
        for d, ((lo, hi), count) in enumerate(zip(bounds, cells, strict=True)):
            k = jnp.floor((x[:, d] - lo) / (hi - lo) * count)
            found.append(jnp.clip(jnp.where(jnp.isfinite(k), k, 0), 0, count - 1).astype(jnp.int32))
        return found

    def flat(parts):
        out = jnp.zeros_like(parts[0])
        for part, count in zip(parts, cells, strict=True):
            out = out * count + part
        return out

    inside = jnp.ones((), bool)
    for d, (lo, hi) in enumerate(bounds):
        inside &= jnp.all((points[:, d] >= lo) & (points[:, d] <= hi))
    mine = flat(place(points))
    order = jnp.argsort(mine)
    sorted_cells = mine[order]
    first = jnp.searchsorted(sorted_cells, jnp.arange(total, dtype=jnp.int32)).astype(jnp.int32)
    rank = jnp.arange(n, dtype=jnp.int32) - first[sorted_cells]
    table = jnp.full((total, capacity), n, jnp.int32)
    table = table.at[sorted_cells, rank].set(order.astype(jnp.int32), mode="drop")
    overflow = ~inside | jnp.any(rank >= capacity)

    here, lists = place(queries), []
    for step in itertools.product((-1, 0, 1), repeat=box.ndim):
        there = [k + s for k, s in zip(here, step, strict=True)]
        valid = jnp.ones(queries.shape[0], bool)
        for k, count in zip(there, cells, strict=True):
            valid &= (k >= 0) & (k < count)
        found = table[jnp.where(valid, flat(there), 0)]
        lists.append(jnp.where(valid[:, None], found, n))
    index = jnp.concatenate(lists, 1)
    safe = jnp.minimum(index, n - 1)
    square = sum((queries[:, d, None] - points[safe, d]) ** 2 for d in range(box.ndim))
    return Neighbours(safe, (index < n) & (square < radius**2), overflow)
