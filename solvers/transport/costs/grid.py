"""Costs on regular grids that are sums over the axes: products go axis by axis."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core import checks
from ...core.typing import Array, Float
from .cost import DEAD, Lazy, left_out
from .pointcloud import usual_tile

POWERS = {"sqeuclidean": lambda d: d * d, "manhattan": jnp.abs}


class Grid(Lazy):
    """A cost between images: the sum over the axes of a cost of one coordinate each.

    ``C[(i, j, ...), (k, l, ...)] = c_1(s_i, t_k) + c_2(s_j, t_l) + ...`` costs a product of two 512 x 512 images
    ``512^3`` exponentials where a matrix would need ``512^4``, and memory for the axes' own small matrices.
    Squared Euclidean and Manhattan distances are of this kind, Euclidean distance is not. Accepted by `sinkhorn`,
    `sns_sinkhorn`, `sinkhorn_divergence`, `transport_exactly` and `barycenter` in the place of a cost matrix; weights
    may then have the image's shape or be flat, potentials are flat.

    Parameters
    ----------
    *axes : Float[Array, "n_k"]
        Coordinates along each axis, at least one. Differentiable.
    targets : sequence of Float[Array, "m_k"], optional
        Coordinates of the second image; by default those of the first. Differentiable.
    metric : {"sqeuclidean", "manhattan"} or callable
        Cost along an axis, or a function of two coordinates (scalars). Static.

    Raises
    ------
    ValueError, TypeError
        If an axis is not a real vector, or their numbers differ.

    Notes
    -----
    Sums are taken by stabilised exponentials along each axis in turn, so no epsilon is too small; there is no matrix of
    all costs anywhere, derivatives included.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Grid, sns_sinkhorn
    >>> side = jnp.linspace(0, 1, 5)
    >>> image = jnp.ones((5, 5)) / 25
    >>> sol = sns_sinkhorn(Grid(side, side), image, image, epsilon=0.1)
    >>> bool(sol.converged), sol.f.shape
    (True, (25,))
    """

    sides: tuple[Float[Array, " n_k"], ...]
    others: tuple[Float[Array, " m_k"], ...]
    metric: Any = eqx.field(static=True)
    flipped: bool = eqx.field(static=True)

    def __init__(self, *axes, targets=None, metric: str | Callable = "sqeuclidean", _flipped: bool = False):
        if not axes:
            checks.fail("Grid", "axes", "one vector of coordinates an axis", "none")
        if len(axes) == 1 and _is_several(axes[0]):
            checks.fail("Grid", "axes", "vectors, one an argument: write `Grid(*axes)`", _shown(axes[0]))
        targets = axes if targets is None else tuple(targets)
        if len(targets) != len(axes):
            checks.fail("Grid", "targets", f"{len(axes)} vectors, like the axes", len(targets))
        if not callable(metric):
            checks.choice("Grid", "metric", metric, tuple(POWERS))
        self.sides, self.others = (
            tuple(checks.float_array("Grid", name, z, ndim=1) for z in group)
            for name, group in (("axes", axes), ("targets", targets))
        )
        if any(z.shape[0] == 0 for z in (*self.sides, *self.others)):
            checks.fail("Grid", "axes", "vectors that are not empty", [z.shape for z in (*self.sides, *self.others)])
        self.metric, self.flipped = metric, _flipped

    @property
    def image_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the two images."""
        return tuple(z.shape[-1] for z in self.sides), tuple(z.shape[-1] for z in self.others)

    @property
    def shape(self):
        """Numbers of pixels."""
        return prod(self.image_shapes[0]), prod(self.image_shapes[1])

    @property
    def dtype(self):
        """Of the coordinates."""
        return self.sides[0].dtype

    @property
    def T(self) -> "Grid":
        """The images exchanged."""
        return Grid(*self.others, targets=self.sides, metric=self.metric, _flipped=not self.flipped)

    def within(self, function: str) -> tuple["Grid", "Grid"]:
        """Return the costs within the first image and within the second."""
        settings = {"metric": self.metric, "_flipped": self.flipped}
        return Grid(*self.sides, **settings), Grid(*self.others, **settings)

    def flat(self, weights, side: int):
        """Return an image's weights as a vector."""
        if np.shape(weights) != self.image_shapes[side]:
            return weights
        return np.reshape(weights, -1) if isinstance(weights, np.ndarray) else jnp.reshape(weights, -1)

    @property
    def matrices(self) -> list[Float[Array, "n_k m_k"]]:
        """The cost matrix of each axis."""
        one = POWERS[self.metric] if isinstance(self.metric, str) else None

        def matrix(s, t):
            if one is not None:
                return one(s[:, None] - t[None, :])
            pair = jax.jit(self.metric)
            ordered = (lambda p, q: pair(q, p)) if self.flipped else pair
            return jax.vmap(lambda p: jax.vmap(lambda q: ordered(p, q))(t))(s)

        return [matrix(s, t) for s, t in zip(self.sides, self.others, strict=True)]

    def dense(self):
        """Return all costs as one array."""
        total = jnp.zeros((1, 1), self.dtype)
        for c in self.matrices:
            total = total[:, None, :, None] + c[None, :, None, :]
            total = total.reshape(total.shape[0] * total.shape[1], -1)
        return total

    def along_axes(self, reduce: Callable, fields: Any) -> Any:
        """Apply ``reduce(axis matrix, fields of one line)`` along every axis in turn, lines in chunks."""
        _, shape = self.image_shapes
        fields = jax.tree.map(lambda z: z.reshape(shape), fields)
        for k, c in enumerate(self.matrices):
            lines = jax.tree.map(lambda z: jnp.moveaxis(z, k, -1), fields)  # noqa: B023
            rest = jax.tree.leaves(lines)[0].shape[:-1]
            lines = jax.tree.map(lambda z: z.reshape(-1, z.shape[-1]), lines)
            height = max(1, usual_tile() // c.size)
            reduced = _in_chunks(jax.vmap(lambda line: reduce(c, line)), lines, height)  # noqa: B023
            fields = jax.tree.map(lambda z: jnp.moveaxis(z.reshape(*rest, -1), -1, k), reduced)  # noqa: B023
        return jax.tree.map(lambda z: z.reshape(-1), fields)

    def product(self, f, g, x, scale, shift, *, weighted: bool = False):
        """Return ``sum_j exp(scale (f_i + g_j - (C_ij - shift))) x_j``, axis by axis."""
        if weighted:  # along this direction the exponent's derivative is C
            inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
            along = f * inverse, g * inverse, shift * inverse, -jnp.ones_like(scale)
            return jax.jvp(lambda f, g, h, s: self.product(f, g, x, s, h), (f, g, shift, scale), along)[1]
        top = lax.stop_gradient(g)

        def reduce(c, line):
            top, x = line
            reduced = top[None, :] - c
            lost = lax.stop_gradient(left_out(top[None, :], -c, reduced))
            highest = lax.stop_gradient(jnp.max(reduced, 1))
            return highest, jnp.sum(jnp.exp(scale * ((reduced - highest[:, None]) + lost)) * x[None, :], 1)

        top, total = self.along_axes(reduce, (top, x * jnp.exp(scale * (g - top))))
        both = f + top
        result = both + shift
        lost = lax.stop_gradient(left_out(f, top, both) + left_out(both, shift, result))
        return jnp.exp(scale * (result + lost)) * total

    def least(self, g=None, columns=None):
        """Return ``min_j C_ij - g_j``."""
        lift = jnp.zeros(self.shape[1], self.dtype) if g is None else -g
        lift = lift if columns is None else jnp.where(columns, lift, jnp.inf)
        return self.along_axes(lambda c, line: jnp.min(c + line[None, :], 1), lift)

    def most(self, columns):
        """Return the largest cost of every row."""
        lift = jnp.where(columns, 0, -jnp.inf).astype(self.dtype)
        return self.along_axes(lambda c, line: jnp.max(c + line[None, :], 1), lift)

    def logsumexp(self, g, columns, epsilon, shift):
        """Return ``log sum_j exp((g_j - (C_ij - shift)) / epsilon)``."""
        scale = 1 / epsilon

        def reduce(c, line):
            exponent = line[None, :] - scale * c
            highest = lax.stop_gradient(jnp.max(exponent, 1))
            return highest + jnp.log(jnp.sum(jnp.exp(exponent - highest[:, None]), 1))

        return self.along_axes(reduce, jnp.where(columns, (g + shift) * scale, DEAD))


def _is_several(axis: Any) -> bool:
    """Whether what was given as one axis is a sequence of vectors."""
    if isinstance(axis, tuple | list):
        return any(isinstance(z, tuple | list) or jnp.ndim(z) > 0 for z in axis)
    return jnp.ndim(axis) == 2


def _shown(axes: Any) -> str:
    return f"a {type(axes).__name__} of {len(axes)}" if isinstance(axes, tuple | list) else f"shape {jnp.shape(axes)}"


def _in_chunks(function: Callable, lines: Any, height: int) -> Any:
    """Map over lines, `height` at a time; reverse mode recomputes."""
    n = jax.tree.leaves(lines)[0].shape[0]
    count = -(-n // height)
    function = jax.checkpoint(function)
    if count == 1:
        return function(lines)
    height = -(-n // count)
    padded = jax.tree.map(lambda z: jnp.pad(z, ((0, count * height - n), (0, 0)), mode="edge"), lines)
    split = jax.tree.map(lambda z: z.reshape(count, height, -1), padded)
    mapped = lax.map(function, split)
    return jax.tree.map(lambda z: z.reshape(count * height, *z.shape[2:])[:n], mapped)
