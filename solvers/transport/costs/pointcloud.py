"""Costs between points, computed tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...core import accelerator, checks
from ...core.precision import matmul
from ...core.typing import Array, Float
from .cost import DEAD, Lazy, slack

METRICS = ("sqeuclidean", "euclidean", "manhattan", "cosine")
UNROLLED = 8
"""Up to this many coordinates squared distances are summed from differences, beyond by a product of matrices."""
TILE = 2**20
"""Entries of a tile: what a core's cache holds ..."""
ACCELERATOR_TILE = 2**26
"""... or enough to fill an accelerator."""
STORED = 2**25
"""Up to this many costs a matrix is worth its memory, 256 MiB in float64: computing them again takes longer."""


class PointCloud(Lazy):
    """The cost ``metric(x_i, y_j)`` between two sets of points; a large one is never stored: memory O((n + m) d).

    Accepted by `sinkhorn`, `sns_sinkhorn`, `sinkhorn_divergence` and `transport_exactly` in the place of a cost matrix.
    Use it when the matrix does not fit, or to differentiate with respect to the points. A problem with at most 2^25
    costs, 5,792 points to as many, is solved with their matrix, which is three times as fast; say `tile` to prevent it.

    Parameters
    ----------
    x, y : Float[Array, "n d"], Float[Array, "m d"]
        Points. Differentiable.
    metric : str or callable
        "sqeuclidean", "euclidean", "manhattan", "cosine" (one minus the cosine of the angle), or a function of two
        points of shape ``(d,)`` that returns a scalar. Static: pass the same function object to avoid recompiling.
    tile : int, optional
        Largest number of costs computed at a time; by default 2^20 on a CPU and 2^26 on accelerators. Where it is
        said, only a matrix no larger than that is stored. Static.
    mesh : jax.sharding.Mesh, optional
        Devices to spread the work over, any number of them. Static.

    Raises
    ------
    ValueError, TypeError
        If the points are not real ``(n, d)`` and ``(m, d)`` arrays of one dtype, or the metric is unknown.

    Notes
    -----
    Squared and plain Euclidean distances of more than 8 coordinates come from a matrix product at full precision (never
    TF32) of centred points; coinciding points then have a distance of rounding size, not zero. Gradients of "euclidean"
    and "cosine" are zero where they do not exist. Derivatives with respect to the points, of any order, recompute tiles
    and keep none.

    *Several devices.* With a `mesh` each device computes the rows of its share of the points, or the columns of its
    share when the kernel is applied transposed, and a product ends in one gathering of a marginal; the points and all
    vectors are on every device, entries kept for Newton's systems are spread. Several processes count as one if all
    make the same call inside ``jax.jit`` after ``jax.distributed.initialize()``. A stored matrix needs nothing of this:
    pass one whose rows JAX has spread. Batches are spread by ``jax.shard_map`` over the batch.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import PointCloud, sns_sinkhorn
    >>> x = jnp.linspace(0, 1, 6)[:, None]
    >>> sol = sns_sinkhorn(PointCloud(x, x + 1), epsilon=0.1)
    >>> bool(sol.converged), sol.f.shape
    (True, (6,))
    """

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    metric: Any = eqx.field(static=True)
    tile: int | None = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)
    tiled: ClassVar[bool] = True

    def __init__(
        self, x, y, *, metric: str | Callable = "sqeuclidean", tile: int | None = None, mesh: Mesh | None = None
    ):
        x, y = (checks.float_array("PointCloud", name, z, ndim=2) for name, z in (("x", x), ("y", y)))
        if 0 in (*x.shape, *y.shape) or x.shape[1] != y.shape[1]:
            checks.fail("PointCloud", "y", f"(m, {x.shape[1]}), points like `x`, and none empty", y.shape)
        if x.dtype != y.dtype:
            checks.fail("PointCloud", "y", f"of dtype {x.dtype} like `x`", y.dtype, TypeError)
        if not callable(metric):
            checks.choice("PointCloud", "metric", metric, METRICS)
        if tile is not None and tile < 1:
            checks.fail("PointCloud", "tile", "a positive integer", tile)
        if mesh is not None and not isinstance(mesh, Mesh):
            checks.fail("PointCloud", "mesh", "a jax.sharding.Mesh", type(mesh).__name__, TypeError)
        self.x, self.y, self.metric, self.tile = x, y, metric, tile
        self.mesh = None if mesh is None else Mesh(mesh.devices, mesh.axis_names)

    @property
    def shape(self):
        """Numbers of points."""
        return self.x.shape[-2], self.y.shape[-2]

    @property
    def dtype(self):
        """Of the points."""
        return self.x.dtype

    @property
    def T(self) -> "PointCloud":
        """The points exchanged."""
        return PointCloud(self.y, self.x, metric=_flipped(self.metric), tile=self.tile, mesh=self.mesh)

    def within(self, function: str) -> tuple["PointCloud", "PointCloud"]:
        """Return the costs among the first points and among the second."""
        settings = {"metric": self.metric, "tile": self.tile, "mesh": self.mesh}
        return PointCloud(self.x, self.x, **settings), PointCloud(self.y, self.y, **settings)

    @property
    def tile_size(self) -> int:
        """Entries of a tile."""
        return self.tile or usual_tile()

    @property
    def is_small(self) -> bool:
        """Whether all costs together are few enough for their matrix to be stored, on one device."""
        n, m = self.shape
        return n * m <= (self.tile or max(self.tile_size, STORED)) and self.mesh is None

    def entries(self, x, y) -> Float[Array, "k m"]:
        """Return the costs between some points."""
        return _distances(self.metric, x, y)

    def dense(self):
        """Return all costs as one array."""
        return self.entries(self.x, self.y)

    def over_rows(self, function: Callable, *vectors, shared: tuple = ()) -> Any:
        """Return ``function(costs of some rows, their entries of the vectors, *shared)``, stacked over the rows.

        Tile by tile; padding rows repeat the first one. What is differentiated must be among the arguments, not closed
        over. Reverse mode keeps the inputs and recomputes each tile.
        """
        if self.mesh is None:
            return self._tiled(function, (self.x, *vectors), (self.y, *shared))
        mesh, n = self.mesh, self.x.shape[0]
        spread, whole = PartitionSpec(mesh.axis_names), NamedSharding(mesh, PartitionSpec())
        padded = tuple(_pad_rows(z, -n % mesh.size) for z in (self.x, *vectors))
        share = jax.shard_map(
            partial(self._tiled, function), mesh=mesh, in_specs=(spread, PartitionSpec()), out_specs=spread
        )
        parts = share(padded, (self.y, *shared))
        parts = jax.tree.map(lambda z: lax.with_sharding_constraint(z, whole) if z.ndim == 1 else z, parts)
        return jax.tree.map(lambda z: z[:n], parts)

    def _tiled(self, function: Callable, lines: tuple, shared: tuple) -> Any:
        (n, dimension), m = lines[0].shape, self.shape[1]
        wide = 1 if isinstance(self.metric, str) and self.metric != "manhattan" else dimension
        height = max(1, min(n, self.tile_size // (m * wide)))
        count = -(-n // height)
        height = -(-n // count)

        @jax.checkpoint
        def tile(lines, shared):
            return function(self.entries(lines[0], shared[0]), *lines[1:], *shared[1:])

        if count == 1:
            return tile(lines, shared)

        def split(z):
            return _pad_rows(z, count * height - n).reshape(count, height, *z.shape[1:])

        stacked = lax.map(lambda part: tile(part, shared), tuple(split(z) for z in lines))
        return jax.tree.map(lambda z: z.reshape(count * height, *z.shape[2:])[:n], stacked)

    def product(self, f, g, x, scale, shift, *, weighted: bool = False):
        """Return ``sum_j exp(scale (f_i + g_j - (C_ij - shift))) x_j``, tile by tile."""

        def rows(cost, f, g, x, scale, shift):
            terms = jnp.exp(scale * slack(f, g, cost, shift))
            terms = terms * jnp.where(terms > 0, cost, 0) if weighted else terms
            # a GPU fuses all of it into one pass without a tile in memory; a CPU is faster with a product of the tile
            return jnp.sum(terms * x[None, :], axis=1) if accelerator.present() else matmul(terms, x)

        return self.over_rows(rows, f, shared=(g, x, scale, shift))

    def soft_map(self, points, g, columns, epsilon, shift) -> Float[Array, "k d"]:
        """Return ``sum_j w_ij y_j`` for other points in the place of x: w softmax of ``(g_j - C_ij) / epsilon``."""
        there = PointCloud(points, self.y, metric=self.metric, tile=self.tile, mesh=self.mesh)
        f = lax.stop_gradient(-epsilon * there.logsumexp(g, columns, epsilon, shift))  # any number that is near
        g = jnp.where(columns, g, lax.stop_gradient(DEAD * epsilon))
        targets = jnp.concatenate([jnp.ones_like(self.y[:, :1]), self.y], 1)
        sums = jax.vmap(lambda target: there.product(f, g, target, 1 / epsilon, shift), 1, 1)(targets)
        return sums[:, 1:] / sums[:, :1]

    def least(self, g=None, columns=None):
        """Return ``min_j C_ij - g_j``."""
        lift = jnp.zeros(self.shape[1], self.dtype) if g is None else g
        lift = lift if columns is None else jnp.where(columns, lift, -jnp.inf)
        return self.over_rows(lambda cost, lift: jnp.min(cost - lift[None, :], 1), shared=(lift,))

    def most(self, columns):
        """Return the largest entry of every row."""

        def rows(cost, columns):
            return jnp.max(jnp.where(columns[None, :] & (cost < jnp.inf), cost, -jnp.inf), 1)

        return self.over_rows(rows, shared=(columns,))

    def logsumexp(self, g, columns, epsilon, shift):
        """Return ``log sum_j exp((g_j - (C_ij - shift)) / epsilon)``."""
        scale = 1 / epsilon
        v = jnp.where(columns, (g + shift) * scale, DEAD)

        def rows(cost, v, scale):
            exponent = v[None, :] - scale * cost
            top = lax.stop_gradient(jnp.max(exponent, 1))
            return top + jnp.log(jnp.sum(jnp.exp(exponent - top[:, None]), 1))

        return self.over_rows(rows, shared=(v, scale))


def usual_tile() -> int:
    """Return how many entries a tile has where nobody says."""
    return ACCELERATOR_TILE if accelerator.present() else TILE


def stored_if_small(cost):
    """Return the matrix of a point cloud's costs if they are few, else the cost as it is."""
    return cost.dense() if isinstance(cost, PointCloud) and cost.is_small else cost


class Flipped(eqx.Module):
    """A user's metric with its arguments exchanged."""

    metric: Callable = eqx.field(static=True)

    def __call__(self, y, x):
        """Return ``metric(x, y)``."""
        return self.metric(x, y)


def _pad_rows(z, extra: int):
    return jnp.concatenate([z, jnp.broadcast_to(z[:1], (extra, *z.shape[1:]))]) if extra else z


def _flipped(metric):
    if isinstance(metric, str):
        return metric
    return metric.metric if isinstance(metric, Flipped) else Flipped(metric)


def _distances(metric, x, y):
    if metric in ("sqeuclidean", "euclidean"):
        if x.shape[1] <= UNROLLED:
            squares = (x[:, 0, None] - y[None, :, 0]) ** 2
            for k in range(1, x.shape[1]):
                squares += (x[:, k, None] - y[None, :, k]) ** 2
        else:
            centre = lax.stop_gradient(jnp.mean(y, 0))
            x, y = x - centre[None], y - centre[None]
            squares = jnp.sum(x * x, 1)[:, None] + jnp.sum(y * y, 1)[None, :] - 2 * matmul(x, y.T)
            squares = jnp.maximum(squares, 0)
        return squares if metric == "sqeuclidean" else _safe_sqrt(squares)
    if metric == "manhattan":
        return jnp.sum(jnp.abs(x[:, None, :] - y[None, :, :]), -1)
    if metric == "cosine":
        x, y = (z / _positive(_safe_sqrt(jnp.sum(z * z, 1)))[:, None] for z in (x, y))
        return 1 - matmul(x, y.T)
    if isinstance(metric, Flipped):
        return _distances(metric.metric, y, x).T
    pair = jax.jit(metric)  # traced once, however many products need it
    return jax.vmap(lambda p: jax.vmap(lambda q: pair(p, q))(y))(x)


def _safe_sqrt(squares):
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def _positive(norm):
    return jnp.where(norm > 0, norm, 1)
