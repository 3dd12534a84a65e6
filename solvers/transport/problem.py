"""The entropic transport problem: checked, reduced to unit mass and a cost that starts at zero."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core import accelerator, checks
from ..core.loop import Limits
from ..core.precision import eps as machine_eps
from ..core.solution import Status, StatusCode
from ..core.typing import Array, Bool, Float, Int, Scalar
from .costs.cost import Cost, as_cost


class TransportStatus(StatusCode):
    """What can be wrong with the data of a transport problem, found before the first step."""

    UNEQUAL_MASSES = 100, "unequal masses: sum(a) must equal sum(b); normalise the weights"
    NEGATIVE_WEIGHTS = 101, "negative weights: every entry of a and b must be at least zero"
    FORBIDDEN_POINT = 102, "forbidden point: a point with mass has infinite cost to every point of the other side"
    NOT_POSITIVE_EPSILON = 103, "epsilon is not positive: the regularisation must be greater than zero"
    ZERO_MASS = 104, "zero mass: a or b sums to zero; nothing to transport"


class Problem(eqx.Module):
    """Minimise ``<C, P> + epsilon sum P (log P - 1)`` over ``P 1 = a, P' 1 = b``, with sum(a) = 1 and n <= m.

    Attributes
    ----------
    cost : Cost
        As given, or its transpose when the first marginal is the longer one.
    shift : Float[Array, ""]
        Smallest finite cost if that is larger than `spread`, else zero; the methods work with ``cost - shift``.
    spread : Float[Array, ""]
        Largest finite cost minus the smallest.
    least : Float[Array, "m"]
        Smallest reduced cost of each column: the column potential of a vanishing row potential as epsilon tends to 0.
    a, b : Float[Array, "n"], Float[Array, "m"]
        Weights divided by `mass`.
    epsilon, mass : Float[Array, ""]
        Regularisation, and the total mass.
    transposed : bool
        Whether rows and columns were exchanged. Static.
    status : Int[Array, ""]
        `Status.RUNNING` where the data make sense, else what is wrong with them.
    """

    cost: Cost
    shift: Float[Array, ""]
    spread: Float[Array, ""]
    least: Float[Array, " m"]
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: Float[Array, ""]
    mass: Float[Array, ""]
    status: Int[Array, ""]
    transposed: bool = eqx.field(static=True)

    def astype(self, dtype, epsilon) -> "Problem":
        """Return the problem in another precision and at another epsilon."""
        arrays, static = eqx.partition(self, lambda x: eqx.is_array(x) and jnp.issubdtype(x.dtype, jnp.floating))
        arrays = eqx.tree_at(lambda p: p.epsilon, arrays, epsilon)
        return eqx.combine(jax.tree.map(lambda x: x.astype(dtype), arrays), static)

    @property
    def rows(self) -> Bool[Array, " n"]:
        """Rows that carry mass."""
        return self.a > 0

    @property
    def columns(self) -> Bool[Array, " m"]:
        """Columns that carry mass."""
        return self.b > 0


def check(function: str, cost, a, b, epsilon):
    """Return cost, a, b and epsilon as floating arrays of one dtype and fitting shapes, or raise."""
    if not isinstance(cost, Cost):
        cost = checks.float_array(function, "cost", cost, ndim=2)
        if a is not None and jnp.ndim(a) == 2 and jnp.shape(a)[1] == cost.shape[1]:
            got = f"an array {jnp.shape(a)} like points; for two point clouds write `PointCloud(x, y)`"
            checks.fail(function, "a", "a vector of weights, after one cost", got)
    n, m = cost.shape
    if n == 0 or m == 0:
        checks.fail(function, "cost", "an (n, m) array with n, m >= 1", f"shape {cost.shape}")
    a, b = (w if w is None else as_cost(cost).flat(w, side) for side, w in enumerate((a, b)))
    a, b = (_weights(function, name, w, k, cost.dtype) for name, w, k in (("a", a, n), ("b", b, m)))
    epsilon = checks.number(function, "epsilon", epsilon, positive=True, dtype=cost.dtype)
    return cost, a, b, epsilon


def _weights(function: str, argument: str, weights, length: int, dtype):
    if weights is None:
        return jnp.full(length, 1 / length, dtype)
    weights = checks.float_array(function, argument, weights, dtype=dtype)
    if weights.shape != (length,):
        axis = "rows" if argument == "a" else "columns"
        checks.fail(function, argument, f"({length},), one weight for each of the cost's {axis}", weights.shape)
    return weights.astype(dtype)


def prepare(cost, a, b, epsilon, tol: Scalar) -> Problem:
    """Reduce checked data to a `Problem` and find out what is wrong with them."""
    cost = as_cost(cost)
    transposed = cost.shape[0] > cost.shape[1]
    if transposed:
        cost, a, b = cost.T, b, a
    mass, mass_b = jnp.sum(a), jnp.sum(b)
    rows, columns = a > 0, b > 0
    row_least = cost.least(columns=columns)
    row_most = cost.most(_after(row_least, columns))
    least = cost.T.least(columns=_after(row_most, rows))
    stuck = jnp.any(rows & (row_least == jnp.inf)) | jnp.any(columns & (least == jnp.inf))
    shift = jnp.min(jnp.where(rows, row_least, jnp.inf))
    most = jnp.max(jnp.where(rows & (row_least < jnp.inf), row_most, -jnp.inf))
    numbers = jnp.sum(row_least, where=row_least < jnp.inf) + jnp.sum(least, where=least < jnp.inf) + mass + mass_b
    broken = ~jnp.isfinite(numbers + epsilon) | cost.has_nan(rows, columns)
    shift, most = (jnp.where(jnp.isfinite(x), x, 0) for x in (shift, most))
    spread = most - shift
    shift = jnp.where(jnp.abs(shift) > spread, shift, 0)  # else it is not worth a rounding of the potentials
    slack = jnp.maximum(jnp.asarray(tol, a.dtype), 100 * machine_eps(a.dtype))

    code = first_fault(
        (stuck, TransportStatus.FORBIDDEN_POINT),
        (jnp.abs(mass - mass_b) > slack * mass, TransportStatus.UNEQUAL_MASSES),
        ((mass <= 0) | (mass_b <= 0), TransportStatus.ZERO_MASS),
        (jnp.any(a < 0) | jnp.any(b < 0), TransportStatus.NEGATIVE_WEIGHTS),
        (epsilon <= 0, TransportStatus.NOT_POSITIVE_EPSILON),
        (broken, Status.NONFINITE),
    )
    least = jnp.where(columns & jnp.isfinite(least), least - shift, 0)
    return Problem(cost, shift, spread, least, a / mass, b / mass, epsilon, mass, code, transposed)


def _after(pass_before, mask):
    """Return the mask, known once a pass over the costs is over: on a CPU each pass holds an array of their size."""
    return mask if accelerator.present() else mask & (jnp.sum(jnp.isnan(pass_before)) >= 0)


def first_fault(*faults: tuple[Any, StatusCode]) -> Int[Array, ""]:
    """Return the status of the last condition that holds, `Status.RUNNING` if none does."""
    code = jnp.asarray(Status.RUNNING, jnp.int32)
    for condition, status in faults:
        code = jnp.where(condition, int(status), code)
    return code.astype(jnp.int32)


def check_potentials(function: str, init, data):
    """Return the pair of starting potentials as floating arrays, or None, or raise."""
    if init is None:
        return None
    cost = data[0]
    if not (isinstance(init, tuple | list) and len(init) == 2):
        checks.fail(function, "init", "a pair (f, g) of potentials", type(init).__name__, TypeError)
    f, g = (checks.float_array(function, "init", x, ndim=1, dtype=cost.dtype).astype(cost.dtype) for x in init)
    if (len(f), len(g)) != cost.shape:
        expected = f"potentials of lengths {cost.shape[0]} and {cost.shape[1]}"
        checks.fail(function, "init", expected, f"lengths {len(f)} and {len(g)}")
    return f, g


def default_tol(dtype) -> Float[Array, ""]:
    """Return the marginal error that Newton's method reaches in this precision on ordinary problems."""
    return jnp.asarray(1e-9 if machine_eps(dtype) < 1e-10 else 1e-5, dtype)


class Goal(Limits):
    """Limits of a solve that is judged by the potentials it returns, rounded as they are.

    Attributes
    ----------
    rounding : Float[Array, ""]
        One where the tolerance is at least twice `rounding_floor`, zero where a tolerance was given.
    """

    rounding: Any = 0.0

    @classmethod
    def of(cls, function: str, tol, usual: Array, max_steps, history: Any = False, progress: Any = None) -> "Goal":
        """Return the limits that a call asks for, with `usual` in the place of a tolerance of None, or raise."""
        rounding = jnp.asarray(tol is None, usual.dtype)
        tol = checks.number(function, "tol", usual if tol is None else tol, dtype=usual.dtype)
        return cls(tol, checks.count(function, "max_steps", max_steps), history, progress, rounding)

    def within(self, spread, epsilon) -> Limits:
        """Return the limits of the loop, whose error leaves room for the rounding of potentials of size `spread`."""
        room = jnp.minimum(machine_eps(epsilon.dtype) / 2 * spread / epsilon, self.tol / 2)
        return Limits(self.tol - room, self.max_steps, self.history, self.progress)

    def judge(self, status, error, floor) -> tuple[Int[Array, ""], Float[Array, ""]]:
        """Return the status of potentials with this error, and the tolerance it was compared with.

        `floor` is their `rounding_floor`. Converged is what meets the tolerance, however the loop ended, and nothing
        else; data without an answer stay without.
        """
        tol, least = jnp.asarray(self.tol, error.dtype), 2 * jnp.asarray(self.rounding, error.dtype) * floor
        tol = jnp.where(least > tol, jnp.minimum(least, WORST_ROUNDING), tol)
        missed = jnp.where(status == Status.CONVERGED, Status.STAGNATED, status)
        code = jnp.where(error <= tol, Status.CONVERGED, jnp.where(jnp.isfinite(error), missed, Status.NONFINITE))
        return jnp.where(status <= Status.STAGNATED, code, status).astype(jnp.int32), tol


WORST_ROUNDING = 1e-3
"""What a default tolerance is raised to at most: beyond, a plan has lost what is worth calling an answer."""


def rounding_floor(weights, potentials, epsilon) -> Float[Array, ""]:
    """Return to first order what rounding one of the potentials changes in the marginals at most, in units of mass.

    ``spacing (<a, |f|> + <b, |g|>) / (2 epsilon)``, for potentials of equal means.
    """
    sizes = (jnp.sum(w * jnp.abs(p)) for w, p in zip(weights, potentials, strict=True))
    return machine_eps(epsilon.dtype) / 2 * sum(sizes) / epsilon
