"""Several domains with a field each: what may be asked of them where they meet.

The terms of METALIC (S. Li et al., ICML 2023, table 1), u and v the fields of the two sides, n normal, t tangential:

(1) ``u - v``
(2) ``u - (u + v) / 2`` and ``v - (u + v) / 2``
(3) ``R(u)`` and ``R(v)``, the residuals of the equation
(4) ``R(u) - R(v)``
(5) ``D_n u - D_n v``
(6) ``D_t^2 u - D_t^2 v``
(7) ``D_n R(u)`` and ``D_n R(v)``
(8) ``D_t u - D_t v``
(9) ``D_n^2 u - D_n^2 v``
(10) ``|equations|^2 + |conditions|^2 + weight sum |terms|^2``, what a fit minimises

It departs from the paper, whose loss weighs conditions 20, equations 1 and terms 5: here a row is in units of its
terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.checks import choice, fail
from ...core.typing import Array, Float
from ..problem import Box, Condition, PDEProblem
from .collocation_rows import Points, face_points, gauss_points, golden_points, pointwise, state

INTERFACE_TERMS = (
    "jump", "average", "residual", "residual_jump", "flux_jump", "tangential_jump", "residual_slope", "slope_jump",
    "curvature_jump",
)  # fmt: skip
"""The nine terms of METALIC: jump of u; u minus the mean of both, on both sides; the equation's residual on both sides,
and its jump; jumps of the normal derivative, of the second tangential one; the residual's normal derivative on both
sides; jumps of the tangential derivative and of the second normal one."""


def interface_terms(
    names: Sequence[str], residual: Callable[[Any, Array], Array], axis: int, fields: Sequence[Any], x: Array
) -> dict[str, Array]:
    """Return the named terms at points of an interface, an array of numbers each, zero for the exact solution.

    Parameters
    ----------
    names : sequence of str
        Among `INTERFACE_TERMS`. Static.
    residual : callable
        ``residual(field, x)`` (m,): of the equation for a field, at points (m, d).
    axis : int
        Normal to the interface. Static.
    fields : pair of fields
        On the two sides, each with ``jets(x, multi-indices)``.
    x : Float[Array, "m d"]

    Returns
    -------
    dict
        Two arrays in a row where a term is asked on both sides. In one dimension tangential terms are empty.

    References
    ----------
    S. Li et al., METALIC: Meta Learning of Interface Conditions for Multi-Domain Physics-Informed Neural Networks,
    ICML 2023, table 1.
    """
    ndim = x.shape[1]
    for name in names:
        choice("interface_terms", "names", name, INTERFACE_TERMS)

    def order(d: int, p: int):
        return tuple(p * (e == d) for e in range(ndim))

    def jump(index):
        left, right = (f.jets(x, [index])[0][0] for f in fields)
        return left - right

    def slope(field):
        normal = jnp.zeros_like(x).at[:, axis].set(1)
        return jax.jvp(lambda y: residual(field, y), (x,), (normal,))[1]

    across = [d for d in range(ndim) if d != axis]
    none = jnp.zeros(0, x.dtype)
    made: dict[str, Callable[[], Array]] = {
        "jump": lambda: jump(order(0, 0)),  # (1)
        "average": lambda: jnp.concatenate([jump(order(0, 0)) / 2, -jump(order(0, 0)) / 2]),  # (2)
        "residual": lambda: jnp.concatenate([residual(f, x) for f in fields]),  # (3)
        "residual_jump": lambda: residual(fields[0], x) - residual(fields[1], x),  # (4)
        "flux_jump": lambda: jump(order(axis, 1)),  # (5)
        "tangential_jump": lambda: jnp.concatenate([none, *(jump(order(d, 2)) for d in across)]),  # (6)
        "residual_slope": lambda: jnp.concatenate([slope(f) for f in fields]),  # (7)
        "slope_jump": lambda: jnp.concatenate([none, *(jump(order(d, 1)) for d in across)]),  # (8)
        "curvature_jump": lambda: jump(order(axis, 2)),  # (9)
    }
    return {name: made[name]() for name in names}


class MultiDomainProblem(eqx.Module):
    """A `PDEProblem` on a box that is cut along one dimension into several, for a field on each.

    Parameters
    ----------
    problem : PDEProblem
        For one unknown, without observations or noise.
    axis : int
        The dimension that is cut. Static.
    cuts : tuple of scalars
        Where, ascending.
    counts : tuple of int
        Gauss points a dimension in each domain; the interfaces have those of the other dimensions. Static.

    Examples
    --------
    >>> from solvers import Box, Dirichlet, MultiDomainProblem, PDEProblem
    >>> problem = PDEProblem(lambda x, u, a: u.dxx - 1.0, Box((0.0, 1.0)), [Dirichlet("all")])
    >>> len(MultiDomainProblem(problem, 0, (0.5,), (8,)).parts)
    2
    """

    problem: PDEProblem
    cuts: tuple[Any, ...]
    axis: int = eqx.field(static=True)
    counts: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, problem: PDEProblem, axis: int, cuts: Sequence[Any], counts: int | Sequence[int]):
        name, ndim = "MultiDomainProblem", problem.domain.ndim
        self.counts = (counts,) * ndim if isinstance(counts, int) else tuple(counts)
        self.problem, self.axis, self.cuts = problem, axis, tuple(cuts)
        if not 0 <= axis < ndim or len(self.counts) != ndim or not self.cuts:
            fail(name, "axis", f"one of {ndim} dimensions, with as many counts, and a cut", (axis, self.counts))
        if problem.fields != 1 or any(problem.periodic) or problem.observations or problem.noise is not None:
            fail(name, "problem", "for one unknown, without periodic dimensions, observations and noise", "another")
        ends = [problem.domain.bounds[axis][0], *self.cuts, problem.domain.bounds[axis][1]]
        known = [float(e) for e in ends if isinstance(e, int | float)]
        if len(known) == len(ends) and sorted(set(known)) != known:
            fail(name, "cuts", "ascending, inside the box", self.cuts)

    @property
    def parts(self) -> list[PDEProblem]:
        """The problems of the domains, without what is asked at interfaces."""
        names, bounds = self.problem.domain.names, list(self.problem.domain.bounds)
        ends = [bounds[self.axis][0], *self.cuts, bounds[self.axis][1]]
        found = []
        for k in range(len(ends) - 1):
            box = Box(**dict(zip(names, [*bounds[: self.axis], (ends[k], ends[k + 1]), *bounds[self.axis + 1 :]],
                                 strict=True)))  # fmt: skip
            gone = [names[self.axis] + "-"] * (k > 0) + [names[self.axis] + "+"] * (k < len(ends) - 2)
            stay = [c for c in self.problem.conditions if isinstance(c, Condition) and c.face not in gone]
            found.append(PDEProblem(self.problem.residual, box, stay))
        return found

    def residuals(
        self, fields: Sequence[Any], terms: Sequence[str], *, args: Any = None, weight: Any = 1.0, fine: bool = False
    ) -> Float[Array, " r"]:
        """Return all residuals in one vector: equations and conditions of each domain, then the terms asked for.

        Parameters
        ----------
        fields : sequence of fields
            One a domain, each with ``jets(x, multi-indices)``; see `GaussianField`. Differentiable.
        terms : sequence of str
            Among `INTERFACE_TERMS`. Static.
        args : PyTree, optional
            Of the residual and of callable condition values.
        weight : scalar
            Of the interface terms.
        fine : bool
            At points that lie on no grid, to judge a fit by. Static.
        """
        parts = self.parts
        if len(fields) != len(parts):
            fail("MultiDomainProblem", "fields", f"{len(parts)}, one a domain", len(fields))
        dtype = jnp.result_type(*jax.tree.leaves(fields))
        found, equations = [], []
        for part, field in zip(parts, fields, strict=True):
            statement, points = self._stated(part, field, args, dtype, fine)
            found.append(statement.residuals(field, points))
            equations.append(_equation(statement))
        for k in range(len(parts) - 1):
            x, w = self._interface(k, dtype, fine)
            residual = equations[k]
            for part in interface_terms(terms, residual, self.axis, fields[k : k + 2], x).values():
                times = part.shape[0] // x.shape[0]
                found.append(jnp.sqrt(weight * jnp.tile(w, times)) * part)  # (10)
        return jnp.concatenate(found)

    def _stated(self, part: PDEProblem, field, args, dtype, fine: bool):
        def make(bounds):
            if fine:
                return golden_points(4 * len(bounds) and 64, bounds, dtype)
            keep = [n for n, b in zip(self.counts, part.domain.bounds, strict=True) if any(b is c for c in bounds)]
            return gauss_points(tuple(keep), bounds, dtype)

        x, w = make(part.domain.bounds)
        inner = Points(x, w, ())
        equation = pointwise(part, lambda x, u, data: part.residual(x, u, data[1]), (None, args), dtype)
        statement = state(part, equation, (None, args), args, field, inner, 1.0)
        return statement, Points(x, w, face_points(statement.stated(), part, make, dtype))

    def _interface(self, k: int, dtype, fine: bool):
        bounds = [b for d, b in enumerate(self.problem.domain.bounds) if d != self.axis]
        counts = tuple(n for d, n in enumerate(self.counts) if d != self.axis)
        x, w = golden_points(64, bounds, dtype) if fine else gauss_points(counts, bounds, dtype)
        return jnp.insert(x, self.axis, jnp.asarray(self.cuts[k], dtype), axis=1), w


def _equation(statement):
    """Return the equation's residual for a field at points, in the units of the statement."""

    def residual(field, x):
        jets = dict(zip(statement.needed, field.jets(x, statement.needed), strict=True))
        weights = jnp.full(x.shape[0], 1 / x.shape[0], x.dtype)
        return statement.equations(Points(x, weights, ()), jets)[0] / statement.scale[0]

    return residual
