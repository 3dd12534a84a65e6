"""Layers on functions that are given at points: to a grid by kernels, and from points to points by an integral."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...core.checks import fail
from ...core.precision import HIGHEST
from ...core.typing import Array, Float
from ..problem import Box
from .cell_lists import neighbours
from .operator_networks import dense_layers, outputs


class KernelGridEncoder(eqx.Module):
    """Channels on a fixed grid from a function at any points: a network at each point, then kernel interpolation.

    (1) ``y_c(g) = sum_i k_c(g, x_i) h_c(x_i, u_i) / (sum_i k_c(g, x_i) + 1e-6)``
    (2) ``k_c(g, x) = exp(-|g - x|^2 / 2 l_c^2)``

    The order of the points does not matter and their number may change; what follows can be any network on grids.

    Parameters
    ----------
    layers : tuple of (matrix, bias)
        h, from (d + values) numbers to one a channel; swish between them.
    log_lengths : Float[Array, "c"]
        Logarithms of l.
    bounds : tuple of pairs of float
        Of the box. Static.
    counts : tuple of int
        Points of the grid a dimension. Static.

    References
    ----------
    A. Vadeboncoeur et al., Random Grid Neural Processes for Parametric PDEs, ICML 2023, section 4.2.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import Box, KernelGridEncoder
    >>> encoder = KernelGridEncoder.init(jax.random.key(3), Box((0.0, 1.0)), 8, channels=3)
    >>> encoder(jnp.linspace(0, 1, 20)[:, None], jnp.ones((20, 1))).shape
    (3, 8)
    """

    layers: tuple[Any, ...]
    log_lengths: Float[Array, " c"]
    bounds: tuple[tuple[float, float], ...] = eqx.field(static=True)
    counts: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def init(cls, key: Array, box: Box, counts: int | tuple[int, ...], *, values: int = 1, channels: int = 20,
             width: int = 32, dtype=None):  # fmt: skip
        """Return a random one: a uniform grid over a box, lengths spaced logarithmically from its spacing to its size.

        Parameters
        ----------
        key : PRNG key
        box : Box
        counts : int or tuple of int
            Points of the grid a dimension.
        values : int
            Numbers at a point.
        channels, width : int
            Of the output, and of the hidden layers.
        dtype : dtype, optional
        """
        counts = (counts,) * box.ndim if isinstance(counts, int) else tuple(counts)
        if len(counts) != box.ndim or min(counts) < 2:
            fail("KernelGridEncoder", "counts", f"{box.ndim} integers of at least 2", counts)
        dtype = jnp.result_type(float) if dtype is None else dtype
        bounds = tuple((float(lo), float(hi)) for lo, hi in box.bounds)
        size = max(hi - lo for lo, hi in bounds)
        logs = jnp.asarray(np.linspace(np.log(size / max(counts)), np.log(size), channels), dtype)
        layers = dense_layers(key, (box.ndim + values, width, width, channels), dtype)
        return cls(layers, logs, bounds, counts)

    @property
    def grid(self) -> Float[Array, "g d"]:
        """The points of the grid."""
        axes = [np.linspace(lo, hi, n) for (lo, hi), n in zip(self.bounds, self.counts, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
        return jnp.asarray(points, self.log_lengths.dtype)

    def __call__(self, x: Float[Array, "n d"], u: Float[Array, "n v"]) -> Float[Array, "c *g"]:
        """Return the channels on the grid from values u at points x."""
        grid = self.grid
        inputs = self.layers[0][0].shape[1]
        if x.ndim != 2 or u.ndim != 2 or x.shape[1] != grid.shape[1] or x.shape[1] + u.shape[1] != inputs:
            fail("KernelGridEncoder", "u", f"(n, {inputs - grid.shape[1]}) at points (n, {grid.shape[1]})", u.shape)
        h = jax.vmap(lambda v: outputs(self.layers, v, jax.nn.swish)[-1])(jnp.concatenate([x, u], 1))
        square = jnp.sum((grid[:, None] - x[None]) ** 2, -1)
        # (2)
        kernel = jnp.exp(-square[None] / (2 * jnp.exp(2 * self.log_lengths)[:, None, None]))
        total = jnp.einsum("cgn,nc->cg", kernel, h, precision=HIGHEST)
        return (total / (jnp.sum(kernel, -1) + 1e-6)).reshape(-1, *self.counts)  # (1)


class GraphKernelIntegral(eqx.Module):
    """``v(y) = mean over |x_j - y| < radius of kernel(x_j - y) u(x_j)`` (3): an integral operator on any points.

    With more points it converges to ``int kernel(x - y) u(x) p(x) dx`` over the ball, normalised by the points'
    density p there: with weights that undo the density, to a mean over the ball whatever the sampling.

    Parameters
    ----------
    layers : tuple of (matrix, bias)
        The kernel, from a difference in units of the radius to (outputs, inputs) numbers; GELU between them.
    shape : (int, int)
        Outputs and inputs. Static.
    bounds : tuple of pairs of float
        Of the box. Static.
    radius : float
        Static.
    capacity : int
        Most points in a cell of the size of the radius. Static.

    Notes
    -----
    A query without neighbours gives zero. Where a cell overflows, or a point is outside the box, the result is NaN:
    `neighbours` tells beforehand.

    References
    ----------
    H. Viswanath et al., Reduced-order neural operators: learning Lagrangian dynamics on highly sparse graphs, 2024;
    Z. Li et al., Neural operator: graph kernel network for partial differential equations, 2020.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import Box, GraphKernelIntegral
    >>> layer = GraphKernelIntegral.init(jax.random.key(3), Box((0.0, 1.0)), radius=0.3, capacity=8)
    >>> x = jnp.linspace(0, 1, 12)[:, None]
    >>> layer(x, x, jnp.ones((12, 1))).shape
    (12, 1)
    """

    layers: tuple[Any, ...]
    shape: tuple[int, int] = eqx.field(static=True)
    bounds: tuple[tuple[float, float], ...] = eqx.field(static=True)
    radius: float = eqx.field(static=True)
    capacity: int = eqx.field(static=True)

    @classmethod
    def init(cls, key: Array, box: Box, *, radius: float, capacity: int, shape: tuple[int, int] = (1, 1),
             width: int = 32, dtype=None):  # fmt: skip
        """Return a random one from `shape` outputs and inputs, with two hidden layers of the given width."""
        if not radius > 0 or capacity < 1:
            fail("GraphKernelIntegral", "radius", "positive, like the capacity", (radius, capacity))
        dtype = jnp.result_type(float) if dtype is None else dtype
        layers = dense_layers(key, (box.ndim, width, width, shape[0] * shape[1]), dtype)
        bounds = tuple((float(lo), float(hi)) for lo, hi in box.bounds)
        return cls(layers, (shape[0], shape[1]), bounds, float(radius), capacity)

    def kernel(self, difference: Float[Array, " d"]) -> Float[Array, "o i"]:
        """Return the kernel at a difference of two points."""
        return outputs(self.layers, difference / self.radius, jax.nn.gelu)[-1].reshape(self.shape)

    def __call__(
        self,
        queries: Float[Array, "m d"],
        points: Float[Array, "n d"],
        u: Float[Array, "n i"],
        weights: Float[Array, " n"] | None = None,
    ) -> Float[Array, "m o"]:
        """Return the values at the queries, from values u at points, with weights of the points' own."""
        if u.shape != (points.shape[0], self.shape[1]):
            fail("GraphKernelIntegral", "u", f"({points.shape[0]}, {self.shape[1]})", u.shape)
        found = neighbours(
            jax.lax.stop_gradient(queries),
            jax.lax.stop_gradient(points),
            box=Box(*self.bounds),
            radius=self.radius,
            capacity=self.capacity,
        )
        share = found.near.astype(u.dtype) if weights is None else jnp.where(found.near, weights[found.index], 0)
        difference = points[found.index] - queries[:, None]
        kernels = jax.vmap(jax.vmap(self.kernel))(difference)
        total = jnp.einsum("mk,mkoi,mki->mo", share, kernels, u[found.index], precision=HIGHEST)
        mass = jnp.sum(share, 1)[:, None]
        mean = total / jnp.where(mass != 0, mass, 1)  # (3)
        return jnp.where(found.overflow, jnp.asarray(jnp.nan, u.dtype), mean)
