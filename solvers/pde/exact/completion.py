"""What exact conditions leave open: values on faces, unknown, that make the equation with them a well-posed problem."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.linalg.kronecker import along, mode_product, mode_products
from ...core.precision import matmul
from ..problem import Condition, Dirichlet, Face, Neumann, PDEProblem, Periodic, side
from ..spectral.spaces import Line, lifted

FACE_DEGREE = {1: 1, 2: 64, 3: 12}
"""Most polynomials a dimension that unknown face values are made of, by the number of dimensions."""


class Open(NamedTuple):
    """A condition ``a u + outward b du/dx_axis`` whose values are not known; `place` among those of its dimension.

    `flux` is False where b is known to be zero.
    """

    field: int
    axis: int
    place: int
    end: Any
    a: Any
    outward: float
    b: Any
    flux: bool


class Completion(NamedTuple):
    """How a problem is completed.

    Attributes
    ----------
    problem : PDEProblem
        With as many conditions in each dimension as derivatives: the exact ones and the open ones.
    opened : list of tuple
        ``(field, axis, place)``: which of them are open.
    data : list of tuple
        ``(field, axis, condition)``: what is stated with noise, or beside what is needed.
    """

    problem: PDEProblem
    opened: list[tuple[int, int, int]]
    data: list[tuple[int, int, Condition]]


def completed(problem: PDEProblem, orders) -> Completion | None:
    """Choose what is open; None where the statement does not tell how (systems with conditions missing).

    Where exact and noisy conditions are together as many as derivatives, the noisy ones' own values are open: the
    statement is trusted to be well-posed. Otherwise values on the faces that have none, then normal derivatives. A
    constant that nothing fixes is no harm among data but one in the equation, so an unknown of derivatives alone has
    its open derivatives replaced by values.
    """
    conditions: list = [c for c in problem.conditions if isinstance(c, Periodic)]
    opened, data = [], []
    for k, indices in enumerate(orders):
        every = [c for d in range(problem.domain.ndim) for c in problem.faces(k, d)]
        floating = all(isinstance(c, Neumann) for c in every)
        for d, name in enumerate(problem.domain.names):
            stated = sorted(problem.faces(k, d), key=lambda c: c.noise is not None)
            needed = 0 if problem.periodic[d] else max((i[d] for i in indices), default=0)
            if problem.fields > 1 and len(stated) != needed:
                return None
            exact = _one_a_face([c for c in stated if c.noise is None])
            noisy = [c for c in stated if c.noise is not None]
            kept = exact[:needed]
            data += [(k, d, c) for c in exact[needed:] + noisy]
            if len(kept) + len(noisy) == needed:
                new = [_blank(c, k) if not floating else Dirichlet(c.face, field=k) for c in noisy]
            else:
                new = _missing(kept, noisy, needed, name, k)
            opened += [(k, d, len(kept) + j) for j in range(len(new))]
            conditions += [*kept, *new]
    return Completion(eqx.tree_at(lambda p: p.conditions, problem, tuple(conditions)), opened, data)


def _one_a_face(conditions):
    """Order conditions so that the first of each face comes before the second of any."""
    return sorted(conditions, key=lambda c: [e for e in conditions if e.face == c.face].index(c))


def _blank(condition: Condition, field: int) -> Condition:
    return eqx.tree_at(lambda c: (c.value, c.noise), condition, (0.0, None), is_leaf=lambda v: v is None)


def _missing(kept, noisy, needed: int, name: str, field: int):
    """Return open conditions for what is missing: values before derivatives, faces with data before those without."""
    faces = [name + "-", name + "+"]
    taken = {(c.face, isinstance(c, Neumann)) for c in kept}
    candidates = []
    for kind in (Dirichlet, Neumann):
        for face in sorted(faces, key=lambda f: not any(c.face == f for c in noisy)):
            if (face, kind is Neumann) not in taken:
                candidates.append(kind(face, field=field))
    candidates.sort(key=lambda c: sum(e.face == c.face for e in kept) + isinstance(c, Neumann))
    return candidates[: max(needed - len(kept), 0)]


class FaceSpace(NamedTuple):
    """The polynomials of one open condition: their values at the face's nodes, a matrix a dimension (None across)."""

    opened: Open
    tables: list
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def functions(self):
        """The polynomials at the nodes of the face, shape (size, n1, ...) with one entry across."""
        ndim = len(self.tables)
        found = jnp.ones((1,) * (ndim + 1), self.opened.a.dtype)
        for d, t in enumerate(self.tables):
            if t is not None:
                part = t.T.reshape(t.shape[1], *[t.shape[0] if e == d else 1 for e in range(ndim)])
                product = found[:, None] * part[None]
                found = product.reshape(-1, *product.shape[2:])
        return found


def face_spaces(completion: Completion, lines: list[list[Line]], dtype) -> list[FaceSpace]:
    """Return the polynomials of every open condition, orthonormal at the nodes of its face."""
    ndim, found = len(lines[0]), []
    ready: dict[tuple[int, int], Any] = {}
    for k, d, place in completion.opened:
        condition = completion.problem.faces(k, d)[place]
        end, outward = side(condition)
        bound = jnp.asarray(completion.problem.domain.bounds[d][end], dtype)
        a, b = (jnp.asarray(v, dtype) for v in (condition.a, condition.b))
        tables: list[Any] = []
        for e, ln in enumerate(lines[k]):
            if (k, e) not in ready:
                ready[k, e] = _orthonormal(ln, min(ln.basis.size, FACE_DEGREE[ndim]))
            tables.append(None if e == d else ready[k, e])
        shape = tuple(1 if t is None else t.shape[1] for t in tables)
        flux = not isinstance(condition, Dirichlet)
        found.append(FaceSpace(Open(k, d, place, bound, a, outward, b, flux), tables, shape))
    return found


def _orthonormal(ln: Line, count: int):
    if hasattr(ln.basis, "orthonormal"):
        return ln.basis.orthonormal(count)
    return ln.basis.at_nodes(0)[:, :count]


def offsets(spaces: list[FaceSpace], k: int, lines: list[Line], axis_values, first: list[int]):
    """Return the coefficients (n1, ..., open weights) that every polynomial of an open condition adds to unknown k."""
    total, before = sum(s.size for s in spaces), 0
    shape = tuple(ln.basis.size for ln in lines)
    dtype = lines[0].null.dtype
    if not any(s.opened.field == k for s in spaces):
        return jnp.zeros((*shape, total), dtype)
    values = [None if g is None else jnp.zeros((total, *g.shape), dtype) for g in axis_values]
    for s in spaces:
        _, d, place = s.opened[:3]
        if s.opened.field == k:
            at = (slice(before, before + s.size), *(slice(None),) * d, slice(place, place + 1))
            values[d] = values[d].at[at].set(s.functions)  # type: ignore[union-attr]
        before += s.size
    return jax.vmap(lambda g: lifted(lines, g, first)[0], out_axes=-1)(values)


def corners(space: FaceSpace, completion: Completion, lines: list[list[Line]], axis_values, count: list[int]):
    """Return rows for an open condition's weights, and their values: what the exact conditions of its edges say there.

    With the open condition A and the exact one ``B u = g`` of a neighbouring face, ``B h = A g`` where h = A u.
    """
    o, found = space.opened, []
    for e, ln in enumerate(lines[o.field]):
        exact = [] if e == o.axis or ln.rows.shape[0] == 0 else range(count[e])
        for j in exact:
            values = jnp.take(axis_values[o.field][e], jnp.asarray([j]), axis=e)
            across = lines[o.field][o.axis]
            end = slice(0, 1) if o.outward < 0 else slice(1, 2)
            row = o.a * across.basis.at_ends()[end]
            row = row + o.outward * o.b * across.basis.at_ends(1)[end] if o.flux else row
            target = mode_product(row, across.interpolate(values, o.axis), o.axis)
            tables = list(space.tables)
            flat = ln.interpolate(space.tables[e], 0)
            tables[e] = matmul(ln.rows[j : j + 1], flat)
            eye = jnp.eye(space.size, dtype=target.dtype)
            rows = jax.vmap(lambda w, t=tables: mode_products(t, w.reshape(space.shape)).reshape(-1), out_axes=1)(eye)
            found.append((rows, target.reshape(-1)))
    return found


def trace_points(space: FaceSpace, lines: list[list[Line]]):
    """Return the nodes of an open condition's face, one vector a dimension, flat."""
    o, ndim = space.opened, len(lines[0])
    x = [along(jnp.atleast_1d(o.end) if d == o.axis else ln.basis.nodes, d, ndim) for d, ln in enumerate(
        lines[o.field])]  # fmt: skip
    shape = jnp.broadcast_shapes(*(c.shape for c in x))
    return [jnp.broadcast_to(c, shape).reshape(-1) for c in x]


def stated_faces(completion: Completion, values: list, dtype) -> list[tuple[int, Face, bool]]:
    """Return the conditions that are data: field, face with its values, and whether derivatives are seen."""
    found = []
    for (k, d, c), v in zip(completion.data, values, strict=True):
        end, outward = side(c)
        bound = jnp.asarray(completion.problem.domain.bounds[d][end], dtype)
        found.append((k, Face(d, outward, bound, c.a, c.b, v, c.noise), not isinstance(c, Dirichlet)))
    return found
