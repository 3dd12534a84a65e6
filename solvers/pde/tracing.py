"""What tracing the residual once tells: the derivatives it needs, whether it is linear, what its coefficients see."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, jaxpr_as_fun

from ..core.checks import fail

MAX_ORDER = 4


class Jet:
    """An unknown and its derivatives on a set of points: ``u.v``, ``u.dx``, ``u.dxt``, ... are arrays."""

    def __init__(self, names: tuple[str, ...], array: Callable):
        self._names, self._array = names, array

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        letters = "" if name == "v" else name[1:]
        known = name == "v" or (name[0] == "d" and 0 < len(letters) <= MAX_ORDER and set(letters) <= set(self._names))
        if not known:
            raise AttributeError(
                f"residual: `u.{name}` must be u.v or u.d followed by up to {MAX_ORDER} of "
                + ", ".join(self._names)
                + ", got "
                + name
            )
        return self._array(tuple(letters.count(n) for n in self._names))


class Equation(eqx.Module):
    """A residual as a function of plain arrays, and its structure.

    Attributes
    ----------
    orders : tuple of tuple of tuple of int
        For each unknown, the multi-indices of the derivatives that occur, sorted.
    linear : bool
        Whether the residual is affine in the unknowns.
    coordinates : tuple of dict
        For each unknown, multi-index -> dimensions that the coefficient of that derivative in the unknown's own
        equation varies with. Only meaningful when `linear`.
    function : callable
        ``function(x, jets, args)``: ``jets[k][j]`` belongs to ``orders[k][j]``; returns a tuple of arrays.
    elsewhere : callable
        The same on points of another shape; traces the user's residual again.
    aside : callable or None
        The same on points of the shape of those `trace` was given beside the grid; the residual is not traced again.
        None where it was given none, or where the residual holds arrays of the grid's own shape.
    source : callable or None
        ``source(x, args)``: the residuals of zero on any points of one dimension; None where `aside` is, or when it was
        not asked for.
    """

    orders: tuple = eqx.field(static=True)
    linear: bool = eqx.field(static=True)
    coordinates: tuple = eqx.field(static=True)
    function: Callable
    elsewhere: Callable
    source: Callable | None = None
    aside: Callable | None = None

    def __call__(self, x, jets, args):
        """Return the residuals, a tuple of arrays."""
        return self.function(x, jets, args)

    def coefficients(self, x, jets, args):
        """Return ``c[i][k][j]``: the derivative of residual i in ``jets[k][j]``, an array over the points."""
        columns = []
        for k, jet in enumerate(jets):
            column = []
            for j in range(len(jet)):

                def alone(u, k=k, j=j):  # tangents of zero would carry the other terms' coordinates along
                    others = [[u if (i, m) == (k, j) else v for m, v in enumerate(vs)] for i, vs in enumerate(jets)]
                    return self.function(x, others, args)

                column.append(jax.jvp(alone, (jet[j],), (jnp.ones_like(jet[j]),))[1])
            columns.append(column)
        return [[[column[j][i] for j in range(len(column))] for column in columns] for i in range(len(jets))]


def trace(residual: Callable, names: tuple[str, ...], fields: int, x, args, beside=None, averaged=False) -> Equation:
    """Trace ``residual(x, u, args)`` twice: to see which derivatives it names, then as a function of those arrays.

    The first time on the points `beside` the grid, when given and the residual can be evaluated there; see
    `Equation.aside`, and `Equation.source` where it is wanted `averaged`, in one dimension.
    """
    shape, dtype = shape_of(x), x[0].dtype
    seen: list[set] = [set() for _ in range(fields)]
    aside = _aside(residual, names, fields, beside, args, seen)
    if aside is None:
        seen = [set() for _ in range(fields)]
        jax.eval_shape(lambda x, args: at_zero(residual, names, fields, x, args, seen), x, args)
    orders = tuple(tuple(sorted(s)) for s in seen)
    for k, used in enumerate(orders):
        if not used:
            fail(
                "PDEProblem", "residual", f"a function of every unknown and its derivatives (field {k})", "one without"
            )

    def plain(x, jets, args):
        unknowns = _unknowns(names, fields, lambda k, index: jets[k][orders[k].index(index)])
        values = residual(x, unknowns, args)
        for v in tuple(values) if fields > 1 else (values,):
            if jnp.shape(v) != shape_of(x):  # u comes with the shape of the grid; what lost it was summed over nodes
                fail("PDEProblem", "residual", f"pointwise in u, whose arrays have shape {shape_of(x)}", jnp.shape(v))
        return _outputs(values, fields, shape_of(x), dtype)

    jets = [[jax.ShapeDtypeStruct(shape, dtype) for _ in o] for o in orders]
    closed = jax.make_jaxpr(plain)(x, jets, args)
    evaluate = jaxpr_as_fun(closed)

    def function(x, jets, args):
        return tuple(evaluate(*jax.tree.leaves((x, jets, args))))

    bare = Equation(orders, True, (), function, plain)
    flat = jax.make_jaxpr(bare.coefficients)(x, jets, args)
    starts = [len(x), len(x) + sum(len(o) for o in orders)]
    needs = iter(_dependencies(flat.jaxpr))
    linear, coordinates = True, [{} for _ in range(fields)]
    for i in range(fields):
        for k in range(fields):
            for index in orders[k]:
                inputs = next(needs)
                linear &= not any(starts[0] <= n < starts[1] for n in inputs)
                if i == k:
                    coordinates[k][index] = tuple(n for n in inputs if n < starts[0])
    coordinates = tuple(_Frozen(c) for c in coordinates)
    if aside is None or beside is None:
        return Equation(orders, linear, coordinates, function, plain)

    def named(x, jets, args):
        return aside(x, [dict(zip(o, j, strict=True)) for o, j in zip(orders, jets, strict=True)], args)

    count = beside[0].size

    def source(x, args):
        zero = [{} for _ in orders]
        blocks = jnp.pad(x[0], (0, -x[0].size % count), mode="edge").reshape(-1, count)
        found = jax.vmap(lambda v: aside((v,), zero, args))(blocks)
        return tuple(v.ravel()[: x[0].size] for v in found)

    return Equation(orders, linear, coordinates, function, plain, source if averaged else None, named)


def at_zero(residual: Callable, names: tuple[str, ...], fields: int, x, args, seen: list[set] | None = None):
    """Return the residuals of zero, a tuple of arrays, and note in `seen` which derivatives were asked for."""

    def array(k, index):
        if seen is not None:
            seen[k].add(index)
        return jnp.zeros(shape_of(x), x[0].dtype)

    return _outputs(residual(x, _unknowns(names, fields, array), args), fields, shape_of(x), x[0].dtype)


FORESEEN = 4
"""Highest order of the derivatives that a residual may name without being traced a third time."""


def _aside(residual, names, fields, points, args, seen):
    """Return the residuals at points of that shape as ``f(x, {order: array} for each field, args)``; others are zero.

    The derivatives that are named are noted in `seen`: all that may be are inputs of the trace. None where that is not
    possible.
    """
    if points is None:
        return None
    shape, dtype = shape_of(points), points[0].dtype
    orders = [i for i in np.ndindex(*[FORESEEN + 1] * len(points)) if sum(i) <= FORESEEN]
    bank = [dict.fromkeys(orders, jax.ShapeDtypeStruct(shape, dtype)) for _ in range(fields)]

    def foreseen(x, jets, args):
        def array(k, index):
            seen[k].add(index)
            return jets[k][index]

        return _outputs(residual(x, _unknowns(names, fields, array), args), fields, shape, dtype)

    try:
        evaluate = jaxpr_as_fun(jax.make_jaxpr(foreseen)(points, bank, args))
    except (TypeError, ValueError, KeyError):  # arrays of the grid's shape, a high order, or what is said on the grid
        return None

    def aside(x, jets, args):
        zero = jnp.zeros(shape, dtype)
        whole = [{i: js.get(i, zero) for i in orders} for js in jets]
        return tuple(evaluate(*jax.tree.leaves((x, whole, args))))

    return aside


def _unknowns(names, fields: int, array: Callable):
    jets = tuple(Jet(names, lambda index, k=k: array(k, index)) for k in range(fields))
    return jets if fields > 1 else jets[0]


def _outputs(value, fields: int, shape, dtype):
    values = tuple(value) if fields > 1 else (value,)
    if len(values) != fields:
        fail("PDEProblem", "residual", f"a function returning {fields} arrays", f"{len(values)}")
    for v in values:
        if jnp.broadcast_shapes(jnp.shape(v), shape) != shape:
            fail("PDEProblem", "residual", f"pointwise, broadcasting to {shape}", f"shape {jnp.shape(v)}")
    return tuple(jnp.broadcast_to(jnp.asarray(v, dtype), shape) for v in values)


def shape_of(x):
    """Return the shape that coordinates broadcast to."""
    return jnp.broadcast_shapes(*(c.shape for c in x))


class _Frozen(dict):
    def __hash__(self):
        return hash(tuple(sorted(self.items())))


def _dependencies(jaxpr) -> list[tuple[int, ...]]:
    """For each output of a jaxpr, the positions of the inputs it may depend on."""
    reach = {v: frozenset([i]) for i, v in enumerate(jaxpr.invars)}

    def of(atom):
        return frozenset() if isinstance(atom, Literal) else reach.get(atom, frozenset())

    for eqn in jaxpr.eqns:
        inputs = [of(a) for a in eqn.invars]
        inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == len(inputs) and eqn.primitive.name in ("jit", "pjit"):
            for var, needs in zip(eqn.outvars, _dependencies(inner), strict=True):
                reach[var] = frozenset().union(*(inputs[n] for n in needs))
        else:
            union = frozenset().union(*inputs)
            reach.update((var, union) for var in eqn.outvars)
    return [tuple(sorted(of(v))) for v in jaxpr.outvars]
