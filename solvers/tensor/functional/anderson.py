"""Anderson's acceleration of a fixed-point iteration, with a way back to plain steps."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from ...core.precision import dot, eps, matmul
from ...core.typing import Array, Float

GROWTH = 10.0
"""An error that grew by this factor ends a run of accelerated steps."""
NEAR = 0.03
"""Errors above it are far from the fixed point: plain steps."""
CUT = 1e-12
"""Relative size of what is added to the normal equations."""


class Memory(NamedTuple):
    """Differences of the last residuals and images, the newest first, and the last ones themselves.

    Attributes
    ----------
    residuals, images : [Array, "m d"]
        Zero where there is none yet.
    residual, image, error : [Array, "d"], [Array, "d"], [Array, ""]
        Of the last point; an infinite error where there is none.
    """

    residuals: Float[Array, "m d"]
    images: Float[Array, "m d"]
    residual: Float[Array, " d"]
    image: Float[Array, " d"]
    error: Float[Array, ""]


def empty(like: Float[Array, " d"], memory: int) -> Memory:
    """Return a memory of nothing."""
    none = jnp.zeros((memory, like.shape[0]), like.dtype)
    return Memory(none, none, jnp.zeros_like(like), jnp.zeros_like(like), jnp.full((), jnp.inf, like.dtype))


def extrapolated(memory: Memory, point: Array, image: Array, error: Array) -> tuple[Array, Memory]:
    """Return where to go from a point and its image, and what to remember; after a growing error, the image itself."""
    residual = image - point
    fresh = ~jnp.isfinite(memory.error)
    bad = (~fresh & ~(error <= GROWTH * memory.error)) | ~(error <= NEAR)

    def pushed(rows, row):
        rows = jnp.concatenate([jnp.where(fresh, 0, row)[None], rows[:-1]])
        return jnp.where(bad, 0, rows)

    residuals = pushed(memory.residuals, residual - memory.residual)
    images = pushed(memory.images, image - memory.image)
    # columns scaled to one, so that what rounding leaves of dependent ones is cut off evenly
    size = jnp.sqrt(jnp.sum(residuals**2, axis=1))
    scale = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    unit = residuals * scale[:, None]
    gram = matmul(unit, unit.T)
    cut = max(CUT, eps(point.dtype)) * jnp.trace(gram)
    gram = gram + jnp.diag(jnp.where(size > 0, cut, 1))
    gamma = scale * jnp.linalg.solve(gram, matmul(unit, residual))
    there = image - matmul(gamma, images)
    there = jnp.where(bad | ~jnp.isfinite(dot(there, there)), image, there)
    return lax.stop_gradient((there, Memory(residuals, images, residual, image, error)))
