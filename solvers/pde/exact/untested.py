"""What no test function of a grid saw: the step that one more Newton iteration on a finer grid would take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from ...core.linalg.kronecker import mode_products
from ...core.typing import Array, Float
from ..spectral.newton import Discretisation, coordinates
from ..spectral.spaces import Line
from ..tracing import Equation
from .reduced import Reduced

FINER = 0.5
"""How many more nodes the finer grid has, as a share."""
AT_LEAST = 4


class Slip(NamedTuple):
    """What the grid leaves of the unknown: coefficients of each field (in the grid's bases) and values at its nodes."""

    coefficients: tuple[Float[Array, "..."], ...]
    values: tuple[Float[Array, "..."], ...]


def slip(model: Reduced, equation: Equation, y, p, lines: Callable[[tuple[int, ...]], list[list[Line]]]) -> Slip:
    """Return the correction that the equation on half as many nodes more makes, face values and `args` as they are.

    Parameters
    ----------
    lines : callable
        ``lines(grid)``: the trial and test functions of the completed problem on a grid.

    Notes
    -----
    The residual between the nodes is made of degrees that nothing tested. Solved for with the equation linearised at
    the solution, on a grid that tests them, it says what it does to the solution, place by place; a bound by its norm
    is tens of times larger, or too small where the solution oscillates. At the nodes of the grid the highest degrees
    vanish, so the values there are scaled to the size of the whole. Noise of the equation is interpolated between the
    nodes and taken off. For equations that can be evaluated on other points, which `between` has seen.
    """
    found = model.found
    here = model.at(p)
    z = here.coefficients(y)
    grid = tuple(ln.basis.size for ln in found.lines[0])
    finer = lines(tuple(n + max(AT_LEAST, int(FINER * n)) for n in grid))
    arrays, rest = eqx.partition((finer, z, here.args), eqx.is_array)
    finer, z, args = eqx.combine(lax.stop_gradient(arrays), rest)
    other = Equation(equation.orders, equation.linear, equation.coordinates, equation.elsewhere, equation.elsewhere)
    fine = Discretisation(other, finer, [[None] * len(grid) for _ in finer], args, dense=found.dense)
    fine.offsets = [padded(v, ln) for v, ln in zip(z, finer, strict=True)]
    start = fine.zeros()
    strong = fine.equation(coordinates(finer[0]), fine.jets(fine.offsets), args)
    if p[1] is not None:
        noise = [a - b for a, b in zip(here.equation(here.x, here.jets(z), args), model.strong(y, p), strict=True)]
        strong = tuple(s - between(lax.stop_gradient(q), field, ln) for s, q, field, ln in zip(
            strong, noise, found.lines, finer, strict=True))  # fmt: skip
    step = fine.factorise(start).solve(fine.project(strong), 1e-3)
    coefficients, values = [], []
    for k, (coarse, ln) in enumerate(zip(found.lines, finer, strict=True)):
        full = mode_products([a.null for a in ln], step[k])
        whole = jnp.sqrt(jnp.mean(mode_products([a.values(0) for a in ln], full) ** 2))
        tables = [b.basis.at_reference(a.basis.reference) for a, b in zip(coarse, ln, strict=True)]
        seen: Any = mode_products(tables, full)
        size = jnp.sqrt(jnp.mean(seen**2))
        seen = seen * jnp.maximum(whole / jnp.where(size > 0, size, 1), 1)
        values.append(seen)
        for d, a in enumerate(coarse):
            seen = a.interpolate(seen, d)
        coefficients.append(seen)
    return Slip(tuple(map(lax.stop_gradient, coefficients)), tuple(map(lax.stop_gradient, values)))


def padded(z, lines: list[Line]):
    """Return coefficients in larger bases of the same kind, whose first functions are those of the smaller ones."""
    return jnp.pad(z, [(0, ln.basis.size - n) for ln, n in zip(lines, z.shape, strict=True)])


def between(values, coarse: list[Line], fine: list[Line]):
    """Return the polynomial through values at the nodes of a grid, at those of another."""
    for d, ln in enumerate(coarse):
        values = ln.interpolate(values, d)
    return mode_products([b.basis.at_reference(a.basis.reference) for a, b in zip(fine, coarse, strict=True)], values)
