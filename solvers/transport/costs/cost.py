"""What the methods need of a cost and of the plan around a pair of potentials, stored or not.

A `Cost` knows its smallest and largest entries, its soft minima and its Gibbs kernel; a kernel is known by its
products. `Stored` keeps an array; a lazy cost computes entries when they are wanted and never keeps n m of them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.precision import matmul
from ...core.typing import Array, Bool, Float

DEAD = -1e9
"""Exponent of pairs that may carry no mass, in place of minus infinity: its derivatives are zero and not NaN."""


def allowed(cost, a, b):
    """Pairs that may carry mass."""
    return (cost < jnp.inf) & (a > 0)[..., :, None] & (b > 0)[..., None, :]


def log_plan(f, g, cost, a, b, epsilon, shift):
    """``(f + g - (C - shift)) / epsilon``, minus infinity where no mass may go; NaN-free derivatives."""
    mask = allowed(cost, a, b)
    reduced = slack(f, g, jnp.where(mask, cost, 0), shift)
    return jnp.where(mask, reduced / epsilon[..., None, None], -jnp.inf)


def slack(f, g, costs, shift):
    """Return ``f_i + g_j - (C_ij - shift)``; in float32 what its sums round off is added to it in the end.

    Terms are often much larger than the result, and the result than epsilon.
    """
    sums, reduced = f[..., :, None] + g[..., None, :], costs - shift[..., None, None]
    result = sums - reduced
    if result.dtype == jnp.float64:
        return result
    lost = left_out(f[..., :, None], g[..., None, :], sums) + left_out(sums, -reduced, result)
    return result + lax.stop_gradient(lost - left_out(costs, -shift[..., None, None], reduced))


def left_out(x, y, rounded):
    """Return ``x + y - rounded`` exactly, `rounded` their sum in floating point (D. Knuth, two-sum)."""
    of_y = rounded - x
    return (x - (rounded - of_y)) + (y - of_y)


class Cost(eqx.Module):
    """Costs ``C_ij`` of moving a unit of mass from i to j.

    Class attributes
    ----------------
    stored : bool
        Whether an array of n m entries is kept.
    tiled : bool
        Whether products go over rows tile by tile, so that entries that matter can be picked out of a kernel.
    """

    stored: ClassVar[bool] = False
    tiled: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of points of both sides."""
        raise NotImplementedError

    @property
    def dtype(self):
        """Of the costs."""
        raise NotImplementedError

    @property
    def T(self) -> "Cost":
        """The cost with its sides exchanged."""
        raise NotImplementedError

    def dense(self) -> Float[Array, "n m"]:
        """Return all costs as one array."""
        raise NotImplementedError

    def astype(self, dtype) -> Self:
        """Return the cost in another precision."""
        return jax.tree.map(lambda x: x.astype(dtype), self)

    def has_nan(self, rows, columns) -> Bool[Array, ""]:
        """Return whether a cost between the given rows and columns is not a number: a minimum may lose that."""
        return jnp.any(jnp.stack([jnp.any(jnp.isnan(x)) for x in jax.tree.leaves(self)]))

    def least(self, g=None, columns=None) -> Float[Array, " n"]:
        """Return ``min_j C_ij - g_j`` over the given columns: the c-transform of g."""
        raise NotImplementedError

    def most(self, columns) -> Float[Array, " n"]:
        """Return the largest finite ``C_ij`` over the given columns, minus infinity where there is none."""
        raise NotImplementedError

    def logsumexp(self, g, columns, epsilon, shift) -> Float[Array, " n"]:
        """Return ``log sum_j exp((g_j - (C_ij - shift)) / epsilon)`` over the given columns."""
        raise NotImplementedError

    def column_logsumexp(self, f, rows, epsilon, shift) -> Float[Array, " m"]:
        """Return ``log sum_i exp((f_i - (C_ij - shift)) / epsilon)`` over the given rows."""
        return self.T.logsumexp(f, rows, epsilon, shift)

    def kernel(self, f, g, rows, columns, epsilon, shift) -> Any:
        """Return ``exp((f_i + g_j - (C_ij - shift)) / epsilon)`` on rows and columns that carry mass, zero elsewhere.

        Nothing differentiates it.
        """
        raise NotImplementedError

    def plan(self, potentials, a, b, epsilon, shift) -> Any:
        """Return the plan of potentials of ``cost - shift`` as a kernel; differentiable in all of them."""
        raise NotImplementedError

    def transform(self, g, b, epsilon, shift) -> Float[Array, " n"]:
        """Return the soft c-transform ``-epsilon log sum_j exp((g_j - C_ij) / epsilon)`` over columns with mass."""
        return -epsilon * self.logsumexp(g, b > 0, epsilon, shift)

    def of_product(self, p, q) -> Float[Array, ""]:
        """Return ``sum p_i C_ij q_j``; pairs without mass count as zero."""
        raise NotImplementedError

    def within(self, function: str) -> tuple["Cost", "Cost"]:
        """Return the costs among the first points and among the second, or raise if they are unknown."""
        expected = "a PointCloud, a Grid, or three arrays (C_ab, C_aa, C_bb)"
        checks.fail(function, "cost", expected, type(self).__name__, TypeError)

    def flat(self, weights, side: int) -> Any:
        """Return weights as a vector: those of an image may come in its shape."""
        return weights

    def blank(self) -> Any:
        """Return a kernel of zeros with the structure of `kernel`'s."""
        dtype, (n, m) = self.dtype, self.shape
        shapes = jnp.zeros(n, dtype), jnp.zeros(m, dtype), jnp.zeros(n, bool), jnp.zeros(m, bool)
        return self.kernel(*shapes, jnp.ones((), dtype), jnp.zeros((), dtype))


class Stored(Cost):
    """A cost kept as an array; ``inf`` forbids a pair."""

    array: Float[Array, "n m"]
    stored: ClassVar[bool] = True

    @property
    def shape(self):
        """Of the array."""
        return self.array.shape

    @property
    def dtype(self):
        """Of the array."""
        return self.array.dtype

    @property
    def T(self) -> "Stored":
        """The transposed array."""
        return Stored(self.array.T)

    def dense(self):
        """Return the array."""
        return self.array

    def has_nan(self, rows, columns):
        """Return whether an entry is not a number."""
        return jnp.any(jnp.isnan(self.array) & rows[:, None] & columns[None, :])

    def least(self, g=None, columns=None):
        """Return the smallest entry of every row, of ``C - g`` if g is given."""
        reduced = self.array if g is None else self.array - g[None, :]
        return jnp.min(reduced if columns is None else jnp.where(columns[None, :], reduced, jnp.inf), 1)

    def most(self, columns):
        """Return the largest finite entry of every row."""
        return jnp.max(jnp.where(columns[None, :] & (self.array < jnp.inf), self.array, -jnp.inf), 1)

    def logsumexp(self, g, columns, epsilon, shift):
        """Return the logarithm of the sum of every row."""
        exponent = jnp.where(columns[None, :], (g[None, :] - (self.array - shift)) / epsilon, -jnp.inf)
        return jax.nn.logsumexp(exponent, axis=1)

    def column_logsumexp(self, f, rows, epsilon, shift):
        """Return the logarithm of the sum of every column."""
        exponent = jnp.where(rows[:, None], (f[:, None] - (self.array - shift)) / epsilon, -jnp.inf)
        return jax.nn.logsumexp(exponent, axis=0)

    def kernel(self, f, g, rows, columns, epsilon, shift):
        """Return the kernel's entries, stored."""
        exponent = ((f[:, None] + g[None, :]) - (self.array - shift)) / epsilon
        return StoredKernel(jnp.where(rows[:, None] & columns[None, :], jnp.exp(exponent), 0))

    def plan(self, potentials, a, b, epsilon, shift):
        """Return the plan's entries, stored."""
        f, g = potentials
        return StoredKernel(jnp.exp(log_plan(f, g, self.array, a, b, epsilon, shift)))

    def transform(self, g, b, epsilon, shift):
        """Return the transform with NaN-free derivatives; zero for a row that may go nowhere."""
        reduced = self.array - shift
        mask = allowed(reduced, jnp.ones(reduced.shape[0], b.dtype), b)
        exponent = jnp.where(mask, (g[None, :] - jnp.where(mask, reduced, 0)) / epsilon, -jnp.inf)
        some = jnp.any(mask, 1)
        exponent = jnp.where(some[:, None], exponent, 0)
        return jnp.where(some, -epsilon * jax.nn.logsumexp(exponent, axis=1), 0)

    def of_product(self, p, q):
        """Return the sum over pairs with mass."""
        return jnp.sum(p * matmul(jnp.where((p[:, None] > 0) & (q[None, :] > 0), self.array, 0), q))

    def blank(self):
        """Return zeros."""
        return StoredKernel(jnp.zeros_like(self.array))


class StoredKernel(eqx.Module):
    """A kernel kept as an array.

    Class attributes
    ----------------
    stored : bool
        Whether an array of n m entries is kept; otherwise exponents are computed anew in every product.
    """

    array: Float[Array, "n m"]
    stored: ClassVar[bool] = True

    @property
    def shape(self):
        """Of the array."""
        return self.array.shape

    @property
    def T(self) -> "StoredKernel":
        """The transposed array."""
        return StoredKernel(self.array.T)

    def astype(self, dtype) -> "StoredKernel":
        """Return the kernel in another precision."""
        return StoredKernel(self.array.astype(dtype))

    def dense(self):
        """Return the array."""
        return self.array

    def times(self, x):
        """Return ``K x``."""
        return matmul(self.array, x)

    def transposed_times(self, x):
        """Return ``K' x``."""
        return matmul(x, self.array)

    def squares_times(self, x):
        """Return ``(K * K) x``, entry by entry squared."""
        return jnp.sum(self.array * self.array * x[None, :], axis=1)

    def sums(self):
        """Return the sums of the rows and of the columns."""
        return jnp.sum(self.array, 1), jnp.sum(self.array, 0)

    def mass(self):
        """Return the sum of all entries."""
        return jnp.sum(self.array)

    def costs(self, cost: Stored, x=None, y=None):
        """Return ``sum x_i K_ij C_ij y_j``; infinite costs of pairs without mass count as zero."""
        entries = jnp.where(self.array > 0, cost.array, 0) * self.array
        return jnp.sum(entries) if x is None else jnp.sum(x * matmul(entries, y))


class Lazy(Cost):
    """A cost that is never stored. Subclasses define `product`; everything else follows from it."""

    def product(self, f, g, x, scale, shift, *, weighted: bool = False) -> Float[Array, " n"]:
        """Return ``sum_j exp(scale (f_i + g_j - (C_ij - shift))) x_j``, each term times ``C_ij`` if `weighted`.

        Differentiable in all arguments and in the cost's own arrays, without an array of n m entries either way.
        """
        raise NotImplementedError

    def times(self, x) -> Float[Array, " n"]:
        """Return ``C x``."""
        none = jnp.zeros((), x.dtype)
        return self.product(jnp.zeros(self.shape[0], x.dtype), jnp.zeros_like(x), x, none, none, weighted=True)

    @property
    def T(self) -> "Lazy":
        """The cost with its sides exchanged."""
        raise NotImplementedError

    def plan(self, potentials, a, b, epsilon, shift):
        """Return the plan as an operator."""
        f, g = potentials
        return self.kernel(f, g, a > 0, b > 0, epsilon, shift)

    def of_product(self, p, q):
        """Return the sum from one product."""
        return jnp.sum(p * self.times(q))

    def kernel(self, f, g, rows, columns, epsilon, shift):
        """Return the kernel as an operator: a product computes its entries anew."""
        dead = lax.stop_gradient(DEAD * epsilon)
        f, g = jnp.where(rows, f, dead), jnp.where(columns, g, dead)
        return LazyKernel(self, self.T, f, g, 1 / epsilon, shift)


class LazyKernel(eqx.Module):
    """The kernel ``exp(scale (f_i + g_j - (C_ij - shift)))`` of a lazy cost, known by its products."""

    cost: Lazy
    transposed: Lazy
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    scale: Float[Array, ""]
    shift: Float[Array, ""]
    stored: ClassVar[bool] = False

    @property
    def shape(self):
        """Of the cost."""
        return self.cost.shape

    @property
    def T(self) -> "LazyKernel":
        """The transposed kernel."""
        return LazyKernel(self.transposed, self.cost, self.g, self.f, self.scale, self.shift)

    def over_rows(self, function, *vectors, shared: tuple = ()):
        """Return ``function(some rows of K, their entries of the vectors, *shared)``, stacked, for a `PointCloud`."""
        cost: Any = self.cost

        def rows(costs, f, *rest):
            *rest, g, scale, shift = rest
            return function(jnp.exp(scale * slack(f, g, costs, shift)), *rest)

        return cost.over_rows(rows, self.f, *vectors, shared=(*shared, self.g, self.scale, self.shift))

    def astype(self, dtype) -> "LazyKernel":
        """Return the kernel in another precision."""
        return jax.tree.map(lambda x: x.astype(dtype), self)

    def dense(self):
        """Return the entries as one array."""
        return jnp.exp(self.scale * slack(self.f, self.g, self.cost.dense(), self.shift))

    def times(self, x):
        """Return ``K x``."""
        return self.cost.product(self.f, self.g, x, self.scale, self.shift)

    def transposed_times(self, x):
        """Return ``K' x``."""
        return self.transposed.product(self.g, self.f, x, self.scale, self.shift)

    def squares_times(self, x):
        """Return ``(K * K) x``."""
        return self.cost.product(self.f, self.g, x, 2 * self.scale, self.shift)

    def sums(self):
        """Return the sums of the rows and of the columns."""
        return self.times(jnp.ones_like(self.g)), self.transposed_times(jnp.ones_like(self.f))

    def mass(self):
        """Return the sum of all entries."""
        return jnp.sum(self.times(jnp.ones_like(self.g)))

    def costs(self, cost: Cost, x=None, y=None):
        """Return ``sum x_i K_ij C_ij y_j``."""
        y = jnp.ones_like(self.g) if y is None else y
        costs = self.cost.product(self.f, self.g, y, self.scale, self.shift, weighted=True)
        return jnp.sum(costs if x is None else x * costs)


def as_cost(cost) -> Cost:
    """Return a cost as it is, an array as `Stored`."""
    return cost if isinstance(cost, Cost) else Stored(cost)
