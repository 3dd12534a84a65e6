"""The statement: a residual, a box, and what is known on its faces and inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core.checks import fail, takes
from ..core.linalg.kronecker import along
from ..core.typing import Array, Float


class Box(eqx.Module):
    """A product of intervals, one a dimension; time is a dimension like the others.

    Parameters
    ----------
    *bounds : tuple of float
        ``(lower, upper)`` of each dimension; the dimensions are named ``x, y, z``. Numbers may be traced.
    **named : tuple of float
        The same with names of one letter: ``Box(x=(0, 1), t=(0, 2))``.

    Examples
    --------
    >>> from solvers.pde import Box
    >>> Box(x=(0.0, 1.0), t=(0.0, 2.0)).names
    ('x', 't')
    """

    bounds: tuple[tuple[Any, Any], ...]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, *bounds, **named):
        if bool(bounds) == bool(named):
            fail("Box", "bounds", "given either by position or by name", f"{len(bounds)} and {len(named)}")
        self.names = tuple(named) or tuple("xyz"[: len(bounds)])
        self.bounds = tuple(named.values()) or bounds
        if not 1 <= len(self.bounds) <= 3:
            fail("Box", "bounds", "1, 2 or 3 intervals", len(self.bounds))
        for name, interval in zip(self.names, self.bounds, strict=True):
            if len(name) != 1 or name == "d":
                fail("Box", "names", "single letters other than 'd'", repr(name))
            if not (isinstance(interval, tuple | list) and len(interval) == 2):
                fail("Box", name, "an interval (lower, upper)", interval)
            lower, upper = interval
            if not isinstance(lower, jax.Array) and not isinstance(upper, jax.Array) and not lower < upper:
                fail("Box", name, "an interval with lower < upper", interval)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.names)


class Condition(eqx.Module):
    """``a u + b du/dn = value`` on a face, n pointing outwards; base of `Dirichlet`, `Neumann` and `Robin`.

    Parameters
    ----------
    face : str
        Name of the dimension and side: ``"x-"``, ``"x+"``, ``"t-"``, ...; ``"all"`` for every face.
    value : float, array or callable
        A number; an array that broadcasts on the face's nodes; or ``value(x, args)`` with ``x`` the tuple of
        coordinate arrays, ``x[d]`` being constant on the face. Differentiable.
    noise : float, optional
        Standard deviation of the values; None means exact.
    field : int
        Which unknown, for a system.
    """

    face: str = eqx.field(static=True)
    value: Any
    a: Any
    b: Any
    noise: Any
    field: int = eqx.field(static=True)


class Dirichlet(Condition):
    """``u = value`` on a face.

    Parameters
    ----------
    face : str
        Dimension and side: ``"x-"``, ``"x+"``, ``"t-"``, ...; ``"all"`` for every face.
    value : float, array or callable
        A number; an array that broadcasts on the face's nodes; or ``value(x, args)``, x the tuple of coordinate arrays.
        Differentiable.
    noise : float, optional
        Standard deviation of the values; None means exact.
    field : int
        Which unknown, for a system. Static.
    """

    def __init__(self, face: str, value: Any = 0.0, *, noise=None, field: int = 0):
        self.face, self.value, self.a, self.b, self.noise, self.field = face, value, 1.0, 0.0, noise, field


class Neumann(Condition):
    """``du/dn = value`` on a face, n pointing outwards (at ``"t-"`` that is minus the time derivative).

    Parameters
    ----------
    face : str
        Dimension and side: ``"x-"``, ``"x+"``, ``"t-"``, ...; ``"all"`` for every face.
    value : float, array or callable
        A number; an array that broadcasts on the face's nodes; or ``value(x, args)``, x the tuple of coordinate arrays.
        Differentiable.
    noise : float, optional
        Standard deviation of the values; None means exact.
    field : int
        Which unknown, for a system. Static.
    """

    def __init__(self, face: str, value: Any = 0.0, *, noise=None, field: int = 0):
        self.face, self.value, self.a, self.b, self.noise, self.field = face, value, 0.0, 1.0, noise, field


class Robin(Condition):
    """``a u + b du/dn = value`` on a face, n pointing outwards.

    Parameters
    ----------
    face : str
        Dimension and side: ``"x-"``, ``"x+"``, ``"t-"``, ...; ``"all"`` for every face.
    value : float, array or callable
        A number; an array that broadcasts on the face's nodes; or ``value(x, args)``, x the tuple of coordinate arrays.
        Differentiable.
    a, b : float
        Differentiable.
    noise : float, optional
        Standard deviation of the values; None means exact.
    field : int
        Which unknown, for a system. Static.
    """

    def __init__(self, face: str, value: Any = 0.0, *, a=1.0, b=1.0, noise=None, field: int = 0):
        self.face, self.value, self.a, self.b, self.noise, self.field = face, value, a, b, noise, field


class Periodic(eqx.Module):
    """The dimension `axis` (a name) is periodic, for every unknown."""

    axis: str = eqx.field(static=True)


class Observe(eqx.Module):
    """Measurements of an unknown at scattered points.

    Parameters
    ----------
    points : Float[Array, "k d"]
        Where; for one dimension ``(k,)`` will do.
    values : Float[Array, "k"]
        What was measured. Differentiable.
    noise : float
        Standard deviation of the measurements; traced.
    field : int
        Which unknown, for a system.
    """

    points: Float[Array, "k d"]
    values: Float[Array, " k"]
    noise: Any
    field: int = eqx.field(static=True)

    def __init__(self, points, values, noise, *, field: int = 0):
        self.points, self.values, self.noise, self.field = jnp.asarray(points), jnp.asarray(values), noise, field
        if self.points.ndim == 1:
            self.points = self.points[:, None]
        if self.points.ndim != 2 or self.values.shape != self.points.shape[:1]:
            fail("Observe", "values", f"({self.points.shape[0]},) like points", self.values.shape)


class PDEProblem(eqx.Module):
    """A differential equation ``residual(x, u, args) = 0`` on a box, with conditions.

    Parameters
    ----------
    residual : callable
        ``residual(x, u, args)``: pointwise in the arrays it is given. ``x`` is a tuple of coordinate arrays that
        broadcast against each other, ``u`` carries ``u.v`` and the derivatives ``u.dx, u.dxx, u.dxt, ...`` on the same
        nodes (up to order 4); those used are found by tracing. For a system ``u`` is a tuple of such objects and the
        result a tuple of as many residuals, the k-th one that of the k-th unknown.
    domain : Box
        Where.
    conditions : sequence, or a single one
        `Dirichlet`, `Neumann`, `Robin`, `Periodic`, `Observe`. A face without a condition is free (outflow).
    noise : float, optional
        Standard deviation of the equation's source; None means exact.
    fields : int
        Number of unknowns. Static.

    Examples
    --------
    >>> from solvers.pde import Box, Dirichlet, PDEProblem
    >>> problem = PDEProblem(lambda x, u, args: u.dxx + u.dyy - args, Box((0, 1), (0, 1)), [Dirichlet("all")])
    """

    residual: Callable
    domain: Box
    conditions: tuple
    noise: Any
    fields: int = eqx.field(static=True)

    def __init__(self, residual: Callable, domain: Box, conditions=(), *, noise=None, fields: int = 1):
        self.residual, self.domain, self.noise, self.fields = residual, domain, noise, fields
        takes("PDEProblem", "residual", residual, "x", "u", "args")
        if isinstance(conditions, Condition | Periodic | Observe):
            conditions = (conditions,)
        self.conditions = tuple(single for c in conditions for single in _split(c, domain))
        for c in self.conditions:
            if not isinstance(c, Periodic) and not 0 <= c.field < fields:
                fail("PDEProblem", "conditions", f"on fields 0 to {fields - 1}", f"field {c.field}")
            if isinstance(c, Condition) and callable(c.value):
                takes(type(c).__name__, "value", c.value, "x", "args")
            if isinstance(c, Observe) and c.points.shape[1] != domain.ndim:
                fail("PDEProblem", "conditions", f"points with {domain.ndim} coordinates", c.points.shape)
        for c in self.conditions:
            level = None if isinstance(c, Periodic) else c.noise
            if isinstance(level, int | float | np.number) and level < 0:
                fail("PDEProblem", "noise", "a standard deviation, at least zero", level)
            if isinstance(c, Observe) and not isinstance(c.points, Tracer):
                _inside(c.points, domain)
        if isinstance(noise, int | float | np.number) and noise < 0:
            fail("PDEProblem", "noise", "a standard deviation, at least zero", noise)
        for name in (c.axis for c in self.conditions if isinstance(c, Periodic)):
            if any(isinstance(c, Condition) and c.face[0] == name for c in self.conditions):
                fail("PDEProblem", "conditions", f"no face conditions on the periodic dimension {name!r}", "some")

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Whether each dimension is periodic."""
        return tuple(any(isinstance(c, Periodic) and c.axis == n for c in self.conditions) for n in self.domain.names)

    @property
    def observations(self) -> tuple[Observe, ...]:
        """The scattered measurements."""
        return tuple(c for c in self.conditions if isinstance(c, Observe))

    def faces(self, field: int, axis: int) -> tuple[Condition, ...]:
        """Return the conditions of one unknown on the two faces of one dimension."""
        name = self.domain.names[axis]
        return tuple(c for c in self.conditions if isinstance(c, Condition) and c.field == field and c.face[0] == name)


def _split(condition, domain: Box):
    """Replace ``face="all"`` by one condition a face, and check names."""
    faces = [name + side for name in domain.names for side in "-+"]
    if isinstance(condition, Periodic):
        if condition.axis not in domain.names:
            fail("Periodic", "axis", "one of " + ", ".join(map(repr, domain.names)), repr(condition.axis))
    elif isinstance(condition, Condition):
        if condition.face == "all":
            return [_on(condition, face) for face in faces]
        if condition.face not in faces:
            fail(type(condition).__name__, "face", "one of " + ", ".join(map(repr, ["all", *faces])), condition.face)
    elif not isinstance(condition, Observe):
        fail("PDEProblem", "conditions", "Dirichlet, Neumann, Robin, Periodic or Observe", type(condition).__name__)
    return [condition]


def _inside(points, domain: Box) -> None:
    """Raise for a measurement outside the box, where the bounds are numbers; the last digits are forgiven."""
    for d, bounds in enumerate(domain.bounds):
        if any(isinstance(b, Tracer) for b in bounds):
            continue
        (lower, upper), found = (float(b) for b in bounds), np.asarray(points)[:, d]
        slack = 1e-5 * (upper - lower)
        if np.any(found < lower - slack) or np.any(found > upper + slack):
            fail("Observe", "points", f"in the box, from {lower} to {upper} in {domain.names[d]!r}", "some outside")


def _on(condition: Condition, face: str) -> Condition:
    single = object.__new__(type(condition))
    for name in ("value", "a", "b", "noise", "field"):
        object.__setattr__(single, name, getattr(condition, name))
    object.__setattr__(single, "face", face)
    return single


class Face(eqx.Module):
    """A condition with its values on the nodes: ``a u + outward b du/dx_axis = values`` at ``x_axis = end``.

    Attributes
    ----------
    axis : int
        The face's dimension. Static.
    end : scalar
        Where it is.
    outward : float
        Sign of the outer normal. Static.
    a, b, values, noise
        As in `Condition`; values have one entry along `axis`.
    """

    axis: int = eqx.field(static=True)
    outward: float = eqx.field(static=True)
    end: Any
    a: Any
    b: Any
    values: Any
    noise: Any

    def with_noise(self, noise) -> "Face":
        """Return the same face with another standard deviation."""
        return Face(self.axis, self.outward, self.end, self.a, self.b, self.values, noise)


def side(condition: Condition) -> tuple[int, float]:
    """Return which end of the interval a face is at, 0 or 1, and the sign of its outer normal."""
    return (0, -1.0) if condition.face[1] == "-" else (1, 1.0)


def line_through(problem: PDEProblem, axis: int, fraction: float, points) -> tuple:
    """Return coordinates along one dimension, at `points` in [0, 1], the others held at a fraction of their widths."""
    x, ndim = [], problem.domain.ndim
    for d, (lower, upper) in enumerate(problem.domain.bounds):
        lower, upper = jnp.asarray(lower, points.dtype), jnp.asarray(upper, points.dtype)
        s = points if d == axis else jnp.full(1, fraction, points.dtype)
        x.append(along(lower + (upper - lower) * s, d, ndim))
    return tuple(x)


def float_type(tree) -> np.dtype:
    """Return the common float dtype of the arrays in ``tree``; JAX's default when there are none."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array | np.ndarray | np.generic)]
    types = [x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating) and not getattr(x, "weak_type", False)]
    return jnp.result_type(*types) if types else jnp.result_type(float)
