"""A small convolutional network on several grids that proposes directions for conjugate gradients."""

from __future__ import annotations

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core.checks import fail
from ...core.typing import Array, Float


class ConvPreconditioner(eqx.Module):
    """A map from residuals to directions: residual convolutions on a grid, its half, its quarter, and so on.

    ``f(r) = |r| g(r / |r|)`` (1): its scale is that of the residual, as the deep conjugate direction method wants.
    Made for `flexible_cg`, where any direction is followed by an exact line search: a bad network costs steps, never
    the answer. With ReLU it is not linear, so plain conjugate gradients may not use it.

    Parameters
    ----------
    lift : Float[Array, "c i *3"]
        First convolution, from the residual and the geometry.
    blocks : tuple of pairs
        ``x + conv(relu(conv(x)))`` (2): one a level on the way down, one on the way up, from the finest.
    project : Float[Array, "1 c *3"]
        Last convolution.
    skip : scalar
        Multiple of the residual that is added: the start of training is nearly the identity.

    Notes
    -----
    A call costs about ``4 (27 c^2)`` products a point in 3-D on the finest of the levels. Levels halve by averages, odd
    sizes are padded with zeros. Products run in the accelerator's default precision: the solver's own are exact.

    References
    ----------
    A. Kaneda et al., A Deep Conjugate Direction Method for Iteratively Solving Linear Systems, ICML 2023, section 4:
    one level of 16 channels; here there are as many as the grid allows, since what costs conjugate gradients steps are
    the longest waves.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import ConvPreconditioner, Stencil, flexible_cg
    >>> model = ConvPreconditioner.init(jax.random.key(3), 2, channels=4, levels=2)
    >>> A, b = Stencil.laplacian(2), jnp.ones((8, 8))
    >>> solution = flexible_cg(A, b, precondition=lambda r, model: model(r), args=model)
    >>> bool(solution.converged)
    True
    """

    lift: Float[Array, "..."]
    blocks: tuple[Any, ...]
    project: Float[Array, "..."]
    skip: Float[Array, ""]

    @classmethod
    def init(cls, key: Array, ndim: int, *, channels: int = 16, levels: int = 4, geometry: bool = False, dtype=None):
        """Return a random network that is nearly the identity.

        Parameters
        ----------
        key : PRNG key
        ndim : int
            Dimensions of the grid, 1 to 3.
        channels, levels : int
            Width, and how many grids.
        geometry : bool
            Whether calls come with an array that says where the domain is.
        dtype : dtype, optional
        """
        if not isinstance(ndim, int) or not 1 <= ndim <= 3:
            fail("ConvPreconditioner", "ndim", "1, 2 or 3", ndim)
        if channels < 1 or levels < 1:
            fail("ConvPreconditioner", "levels", "positive, like channels", (channels, levels))
        dtype = jnp.result_type(float) if dtype is None else dtype
        keys = iter(jax.random.split(key, 2 + 4 * levels))
        width = 3**ndim

        def kernel(out: int, into: int, gain: float):
            size = gain * (2 / (into * width)) ** 0.5
            return size * jax.random.normal(next(keys), (out, into, *(3,) * ndim), dtype)

        blocks = tuple((kernel(channels, channels, 1), kernel(channels, channels, 0.1)) for _ in range(2 * levels - 1))
        first = kernel(channels, 1 + geometry, 1)
        return cls(first, blocks, kernel(1, channels, 0.1), jnp.ones((), dtype))

    @property
    def levels(self) -> int:
        """How many grids."""
        return (len(self.blocks) + 1) // 2

    def __call__(self, r: Float[Array, "*n"], geometry: Float[Array, "*n"] | None = None) -> Float[Array, "*n"]:
        """Return a direction for the residual `r`; `geometry` is one inside the domain and zero outside."""
        ndim, known = self.lift.ndim - 2, self.lift.shape[1] - 1
        if r.ndim != ndim or (geometry is not None) != bool(known):
            expected = f"an array with {ndim} axes, with" + ("" if known else "out") + " a geometry"
            fail("ConvPreconditioner", "r", expected, f"{r.ndim} axes, geometry {geometry is not None}")
        dtype = self.lift.dtype
        largest = jnp.max(jnp.abs(r))
        size = largest * jnp.sqrt(jnp.mean((r / jnp.where(largest > 0, largest, 1)) ** 2))
        unit = jnp.where(size > 0, size, 1)
        x = (r / unit).astype(dtype)[None]
        inside = None if geometry is None else geometry.astype(dtype)[None]
        v = _conv(self.lift, x if inside is None else jnp.concatenate([x, inside]))
        v, kept, masks = v if inside is None else v * inside, [], []
        for level in range(self.levels - 1):
            v = self._block(level, v, inside)
            kept.append(v)
            masks.append(inside)
            v = _halve(v)
            inside = None if inside is None else _halve(inside)
        v = self._block(self.levels - 1, v, inside)
        for level in reversed(range(self.levels - 1)):
            v = kept[level] + _double(v, kept[level].shape)
            v = self._block(2 * self.levels - 2 - level, v, masks[level])
        out = (_conv(self.project, v) + self.skip * x)[0]
        out = out if geometry is None else out * geometry.astype(dtype)
        return out.astype(r.dtype) * size  # (1)

    def _block(self, k: int, v, inside):
        one, two = self.blocks[k]
        v = v + _conv(two, jax.nn.relu(_conv(one, v)))  # (2)
        return v if inside is None else v * inside


def _conv(kernel, x):
    return lax.conv_general_dilated(x[None], kernel, (1,) * (x.ndim - 1), "SAME")[0]


def _halve(x):
    """Return averages of cells of two points an axis, with zeros after an odd end."""
    x = jnp.pad(x, [(0, 0), *((0, n % 2) for n in x.shape[1:])])
    ndim = x.ndim - 1
    parts = [x[(slice(None), *(slice(k, None, 2) for k in p))] for p in itertools.product((0, 1), repeat=ndim)]
    return sum(parts[1:], parts[0]) / 2**ndim


def _double(x, shape):
    """Return every cell repeated, cut to a shape."""
    for axis in range(1, x.ndim):
        x = jnp.repeat(x, 2, axis)
    return x[tuple(slice(n) for n in shape)]
