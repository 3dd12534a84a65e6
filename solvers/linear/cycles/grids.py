"""Multigrid on regular grids: the levels of a stencil."""

from __future__ import annotations

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.accelerator import present
from ...core.typing import Array
from ..systems.stencil import Stencil
from .coarsening import Interpolation, Plan, coarser, full_plan, invert, linear, linear_weights
from .constant import halved, operator, separable, shifts, tensor_inverse
from .cycle import Level, dense

SMALL, SMALL_IN_THE_PLANE = 128, 256
"""Grids of constant coefficients with at most this many points an axis are solved on exactly; the second holds on
accelerators in one and two dimensions."""


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


def hierarchy(
    stencil: Stencil, shape: tuple[int, ...], plan: Plan | None, *, symmetric: bool = False
) -> tuple[list[GridLevel], Callable[[Array], Array]]:
    """Return the levels above the coarsest, by Galerkin products ``P' A P``, and the solve on the coarsest.

    Constant coefficients and all that comes from them are interpolated linearly, which is cheaper and as good; others
    by the operator. While the axes halved are of odd length, or periodic, coefficients stay constant. Where those of a
    `symmetric` system couple along axes only, grids of at most `SMALL` points an axis are solved on exactly.
    """
    plan = full_plan(shape, stencil.periodic) if plan is None else plan
    if stencil.coefficients.ndim == 1:
        return constant_hierarchy(stencil, shape, plan, symmetric=symmetric)
    levels = []
    for axes in plan:
        coarse, steps = coarser(stencil, shape, axes)
        levels.append(GridLevel(stencil, steps, shape))
        stencil, shape = coarse, halved_shape(shape, axes)
    return levels, inverted(stencil, shape)


def constant_hierarchy(
    stencil: Stencil, shape: tuple[int, ...], plan: Plan, *, symmetric: bool
) -> tuple[list[GridLevel], Callable[[Array], Array]]:
    """Return what `hierarchy` does, for constant coefficients."""
    given, dtype, periodic = stencil, stencil.coefficients.dtype, stencil.periodic
    axes = [shifts(n) for n in shape]
    exact = symmetric and separable(stencil.offsets)
    small = SMALL_IN_THE_PLANE if present() and len(shape) <= 2 else SMALL
    levels = []
    for halved_axes in plan:
        if exact and max(shape) <= small:
            break
        steps = tuple(linear(shape, a, periodic[a], dtype) for a in halved_axes)
        levels.append(GridLevel(stencil, steps, shape))
        for a in halved_axes:
            axes[a] = halved(axes[a], linear_weights(shape[a], periodic[a]), periodic[a])
        shape = halved_shape(shape, halved_axes)
        stencil = operator(given, axes)
    if exact and max(shape) <= small:
        return levels, tensor_inverse(given, axes, periodic)
    return levels, inverted(stencil, shape)


def halved_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the next grid."""
    return tuple(n // 2 if axis in axes else n for axis, n in enumerate(shape))


def inverted(stencil: Stencil, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """Return the solve by the inverse of the whole matrix."""
    size = math.prod(shape)
    identity = jnp.eye(size, dtype=stencil.coefficients.dtype).reshape((size, *shape))
    return dense(invert(jnp.reshape(jax.vmap(stencil.mv, out_axes=-1)(identity), (size, size))))
