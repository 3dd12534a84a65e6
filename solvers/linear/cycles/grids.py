"""Multigrid on regular grids: the levels of a stencil."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.typing import Array
from ..systems.stencil import Stencil
from .coarsening import Interpolation, Plan, coarser, from_operator, full_plan, linear
from .cycle import Level


class GridLevel(Level):
    """A stencil on a grid with the interpolations from the next grid, in the order in which axes were halved."""

    stencil: Stencil
    steps: tuple[Interpolation, ...]
    shape: tuple[int, ...] = eqx.field(static=True)

    def mv(self, z):
        """Return A z."""
        return self.stencil.mv(z)

    def scaling(self):
        """Return the inverse absolute row sums."""
        return 1 / jnp.sum(jnp.abs(self.stencil.coefficients), 0)

    def restrict(self, r):
        """Return ``P' r``."""
        for step in self.steps:
            r = step.restrict(r)
        return r

    def prolong(self, z):
        """Return ``P z``."""
        for step in reversed(self.steps):
            z = step.prolong(z)
        return z


def hierarchy(stencil: Stencil, shape: tuple[int, ...], plan: Plan | None) -> tuple[list[GridLevel], Array]:
    """Return the levels above the coarsest, by Galerkin products ``P' A P``, and the matrix of the coarsest.

    Constant coefficients and all that comes from them are interpolated linearly, which is cheaper and as good; others
    by the operator. While the axes halved are of odd length, or periodic, coefficients stay constant.
    """
    interpolate = linear if stencil.coefficients.ndim == 1 else from_operator
    levels = []
    for axes in full_plan(shape, stencil.periodic) if plan is None else plan:
        coarse, steps = coarser(stencil, shape, axes, interpolate)
        levels.append(GridLevel(stencil, steps, shape))
        stencil, shape = coarse, tuple(n // 2 if axis in axes else n for axis, n in enumerate(shape))
    size = math.prod(shape)
    identity = jnp.eye(size, dtype=stencil.coefficients.dtype).reshape((size, *shape))
    return levels, jnp.reshape(jax.vmap(stencil.mv, out_axes=-1)(identity), (size, size))
