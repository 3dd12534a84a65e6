"""Coarser grids: which axes to halve, interpolation from the operator's own coefficients, Galerkin products.

Transfers and Galerkin products are written here, not taken from solvax: its transfers (0.34) are dense matrices, one an
axis, with Dirichlet axes of odd length only. Here a grid has any size, memory is a few vectors, and coarse operators
are stencils again.

After Dendy (1982) and Schaffer (1998), along one axis at a time, u on the fine and v on the coarse grid:

(1) ``u(2 j + 1) = v(j),  u(2 j) = left(j) v(j - 1) + right(j) v(j)``: this is P
(2) ``left = l / c,  right = r / c`` where the row of A, summed over the other axes, reads
    ``-l u(i-1) + c u(i) - r u(i+1)``
(3) ``P' r`` to go down
(4) ``P' A P``, the coarse operator

It departs from the papers in that l and r are at least zero and c at least ``l + r``.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.precision import eps
from ...core.typing import Array
from ..systems.stencil import Stencil
from ..systems.system import settle

COARSEST = 64
"""At most this many unknowns are solved for directly."""
SHORTEST = 3
"""Axes of at most this many points are not halved."""
STRONG = 4.0
"""Axes are halved together with the strongest one while its coupling is at most this many times theirs."""
SAMPLE = 4096
"""How many points of a grid the choice of axes looks at."""

Plan = tuple[tuple[int, ...], ...]


def full_plan(shape: tuple[int, ...], periodic: tuple[bool, ...]) -> Plan:
    """Return the plan that halves every axis at every level."""
    return plan([1.0] * len(shape), shape, periodic)


def plan(strengths: Any, shape: tuple[int, ...], periodic: tuple[bool, ...]) -> Plan:
    """Return the axes to halve on the way to each coarser level, strong couplings first.

    Point smoothers leave errors that are smooth along strong couplings only, and halving an axis divides its coupling
    by four against the others: so axes within `STRONG` of the strongest are halved until all are alike. Stops at
    `COARSEST` points, or where no axis is longer than `SHORTEST`; a periodic axis must have an even number of points.
    """
    strengths, sizes, out = list(strengths), list(shape), []

    def free(axis):
        return sizes[axis] > SHORTEST and not (periodic[axis] and sizes[axis] % 2)

    while math.prod(sizes) > COARSEST and any(map(free, range(len(sizes)))):
        axes = [a for a in range(len(sizes)) if free(a)]
        strongest = max(strengths[a] for a in axes)
        axes = [a for a in axes if strengths[a] * STRONG >= strongest]
        for a in axes:
            strengths[a] /= 4
            sizes[a] //= 2
        out.append(tuple(axes))
    return tuple(out)


def coarsest_size(shape: tuple[int, ...], plan: Plan) -> int:
    """Return how many points the plan leaves of a grid."""
    return math.prod(n // 2 ** sum(axis in axes for axes in plan) for axis, n in enumerate(shape))


def strengths(stencil: Stencil) -> list[float]:
    """Return the coupling along each axis, on the host: relative to the strongest at each point, geometric mean."""
    dims = len(stencil.offsets[0])
    coefficients: Any = stencil.coefficients
    if coefficients.ndim > 1:
        every = max(1, round((coefficients[0].size / SAMPLE) ** (1 / dims)))
        coefficients = coefficients[(slice(None), *(slice(every // 2, None, every) for _ in range(dims)))]
    values = dict(zip(stencil.offsets, np.asarray(coefficients, np.float64), strict=True))
    along = [abs(sum(c for o, c in values.items() if o[a] == -1)) for a in range(dims)]
    along = [c + abs(sum(c for o, c in values.items() if o[a] == 1)) for a, c in enumerate(along)]
    most = np.max(np.broadcast_arrays(*along), axis=0)
    share = [np.where(most > 0, c / np.where(most > 0, most, 1), 1) for c in along]
    return [float(np.exp(np.mean(np.log(np.clip(s, 1e-9, 1))))) for s in share]


class Interpolation(eqx.Module):
    """Interpolation along one axis: fine point 2 j + 1 is coarse point j, fine point 2 j lies between two.

    Attributes
    ----------
    left, right : Float[Array, "..."]
        Weights with which even point 2 j takes coarse points j - 1 and j. Along the axis there is one more than coarse
        points; they broadcast against the rest of the grid.
    axis, size : int
        Along which axis, and how many fine points it has.
    periodic : bool
        Whether the axis wraps round.
    """

    left: Array
    right: Array
    axis: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    periodic: bool = eqx.field(static=True)

    def prolong(self, z: Array) -> Array:
        """Return ``P z``."""
        m, axis = self.size // 2, self.axis
        outside = neighbours(z, axis, self.periodic)
        after = cut(outside, axis, 1, m + 2)
        between = self.left * cut(outside, axis, 0, m + 1) + self.right * after  # (1)
        # stacked as in `Phases.unpack`
        pairs = jnp.stack([between, after], axis + 1)
        return cut(pairs.reshape([*z.shape[:axis], 2 * m + 2, *z.shape[axis + 1 :]]), axis, 0, self.size)

    def restrict(self, r: Array) -> Array:
        """Return ``P' r``."""
        m, axis = self.size // 2, self.axis
        even, odd = halves(r, axis, self.periodic)
        return odd + cut(self.right * even, axis, 0, m) + cut(self.left * even, axis, 1, m + 1)  # (3)

    def galerkin(self, rows: Array, periodic: tuple[bool, ...]) -> Array:
        """Return the rows of ``P' A P``; rows come as an array over offsets and grid, (3, ..., 3, *grid).

        First ``A P``: the entry at offset o of fine row i belongs to column ``i + o``, which is a coarse point or takes
        from two, with the weights at that column. Then the rows are collected. What points outside the grid keeps
        pointing outside.
        """
        dims, axis, m = rows.ndim // 2, self.axis, self.size // 2
        along = dims + axis
        own = [jnp.expand_dims(w, tuple(range(dims))) for w in (self.left, self.right)]
        left, right = (over_offsets(w, axis, periodic) for w in own)
        even, odd = halves(rows, along, self.periodic)

        def entries(x):
            return (lax.index_in_dim(x, k, axis) for k in range(3))

        def now(x):
            return cut(x, along, 0, m)

        def later(x):
            return cut(x, along, 1, m + 1)

        below, centre, above = entries(odd)
        odd = (below * now(left), below * now(right) + centre + above * later(left), above * later(right))
        below, centre, above = entries(even)
        even = (below + centre * left, above + centre * right)
        parts = (
            # (4)
            odd[0] + now(own[1] * even[0]),
            odd[1] + now(own[1] * even[1]) + later(own[0] * even[0]),
            odd[2] + later(own[0] * even[1]),
        )
        return jnp.concatenate(parts, axis)


def linear_weights(size: int, periodic: bool) -> np.ndarray:
    """Return the weights of even points in linear interpolation along an axis, one more than coarse points."""
    weights = np.full(size // 2 + 1, 0.5)
    weights[-1] *= size % 2 or periodic
    return weights


def linear(shape: tuple[int, ...], axis: int, periodic: bool, dtype: Any) -> Interpolation:
    """Return linear interpolation along an axis of a grid."""
    weights = linear_weights(shape[axis], periodic)
    weights = jnp.asarray(np.expand_dims(weights, [a for a in range(len(shape)) if a != axis]), dtype)
    return Interpolation(weights, weights, axis, shape[axis], periodic)


def from_operator(rows: Array, axis: int, periodic: bool) -> Interpolation:
    """Return interpolation along an axis by the operator itself, each row summed over the other axes.

    A row ``-l u(i - 1) + c u(i) - r u(i + 1) = 0`` gives the weights l / c and r / c: what leaves the fluxes continuous
    where coefficients jump, what is exact in one dimension, and at a boundary without flux what keeps constants.
    """
    dims = rows.ndim // 2
    even, _ = halves(rows, dims + axis, periodic)
    others = tuple(a for a in range(dims) if a != axis)
    below, centre, above = (lax.index_in_dim(jnp.sum(even, others), k, 0, keepdims=False) for k in range(3))
    below, above = jnp.maximum(-below, 0), jnp.maximum(-above, 0)
    scale = jnp.maximum(centre, below + above)
    scale = jnp.where(scale > 0, scale, 1)
    # (2)
    return Interpolation(below / scale, above / scale, axis, rows.shape[dims + axis], periodic)


def coarser(
    stencil: Stencil, shape: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[Stencil, tuple[Interpolation, ...]]:
    """Return the Galerkin operator of a grid halved along `axes`, and the interpolations by the operator."""
    dims = len(shape)
    offsets = list(itertools.product((-1, 0, 1), repeat=dims))
    given = dict(zip(stencil.offsets, stencil.coefficients, strict=True))
    zero = jnp.zeros((), stencil.coefficients.dtype)
    rows = jnp.stack([jnp.broadcast_to(given.get(o, zero), shape) for o in offsets]).reshape((3,) * dims + shape)
    steps = []
    for axis in axes:
        steps.append(from_operator(rows, axis, stencil.periodic[axis]))
        rows = settle(steps[-1].galerkin(rows, stencil.periodic))
    rows = rows.reshape(len(offsets), *rows.shape[dims:])
    return Stencil(rows, offsets, periodic=stencil.periodic), tuple(steps)


def invert(matrix: Array) -> Array:
    """Return the inverse of a small symmetric matrix by Gauss and Jordan's sweeps, without pivoting.

    A call of LAPACK costs more than a whole cycle here, and far more on a busy machine. A sweep is one kernel. Where a
    pivot vanishes, as the last one of a Neumann problem does, its unknown is left at zero: that solves what has a
    solution.
    """
    size = matrix.shape[0]
    index = jnp.arange(size, dtype=jnp.int32)
    largest = jnp.max(jnp.abs(matrix))
    unit = jnp.exp2(-jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1))))  # a product of two entries may overflow
    matrix = matrix * unit
    least = size * eps(matrix.dtype) * jnp.diagonal(matrix)

    def sweep(k, carry):
        m, kept = carry
        row, column = lax.dynamic_slice_in_dim(m, k, 1, 0), lax.dynamic_slice_in_dim(m, k, 1, 1)
        below, beside = index[:, None] == k, index[None, :] == k
        sound = jnp.abs(row[0, k]) > least[k]
        pivot = jnp.where(sound, row[0, k], 1)
        others = jnp.where(beside, -column / pivot, m - column * row / pivot)
        swept = jnp.where(below, jnp.where(beside, 1, row) / pivot, others)
        return jnp.where(sound, swept, m), kept & (sound | (index != k))

    def sweeps(unroll):  # on the CPU one sweep a turn is faster, and three times as fast to compile
        return lambda carry: lax.fori_loop(0, size, sweep, carry, unroll=unroll)

    inverse, kept = lax.platform_dependent((matrix, jnp.ones(size, bool)), cpu=sweeps(1), default=sweeps(4))
    inverse = jnp.where(kept[:, None] & kept[None], inverse, 0)
    return unit * (inverse + inverse.T) / 2


def cut(x: Array, axis: int, start: int, stop: int) -> Array:
    """Return the entries from `start` to `stop` along an axis."""
    return lax.slice_in_dim(x, start, stop, 1, axis)


def neighbours(x: Array, axis: int, periodic: bool) -> Array:
    """Return x with one more entry at both ends of an axis: zeros, or the other end's."""
    ends = [(0, 0)] * x.ndim
    ends[axis] = (1, 1)
    return jnp.pad(x, ends, mode="wrap") if periodic else jnp.pad(x, ends)


def halves(x: Array, axis: int, periodic: bool) -> tuple[Array, Array]:
    """Return the even and the odd entries along an axis, one even one more than odd ones."""
    n = x.shape[axis]
    even, odd = (lax.slice_in_dim(x, k, n, 2, axis) for k in (0, 1))
    if n % 2 == 0:
        even = jnp.concatenate(
            [even, cut(even, axis, 0, 1) if periodic else jnp.zeros_like(cut(even, axis, 0, 1))], axis
        )
    return even, odd


def over_offsets(weights: Array, axis: int, periodic: tuple[bool, ...]) -> Array:
    """Return weights (1, ..., 1, *grid) as they are at each offset along the other axes, (3, ..., 1, ..., 3, *grid)."""
    dims = weights.ndim // 2
    for other in range(dims):
        if other != axis and weights.shape[dims + other] > 1:
            n, outside = weights.shape[dims + other], neighbours(weights, dims + other, periodic[other])
            weights = jnp.concatenate([cut(outside, dims + other, k, k + n) for k in range(3)], other)
    return weights
