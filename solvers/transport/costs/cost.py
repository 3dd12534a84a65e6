"""What the methods need of a cost and of the plan around a pair of potentials, stored or not.

A `Cost` knows its smallest and largest entries, its soft minima and its Gibbs kernel; a kernel is known by its
products. `Stored` keeps an array; a lazy cost computes entries when they are wanted and never keeps n m of them.
"""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.precision import matmul
from ...core.typing import Array, Bool, Float

DEAD = -1e9
"""Exponent of pairs that may carry no mass, in place of minus infinity: its derivatives are zero and not NaN."""


class Cost(eqx.Module):
    """Costs ``C_ij`` of moving a unit of mass from i to j."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of points of both sides."""
        raise NotImplementedError

    @property
    def dtype(self):
        """Of the costs."""
        raise NotImplementedError

    @property
    def T(self) -> "Cost":  # noqa: N802
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

    def blank(self) -> Any:
        """Return a kernel of zeros with the structure of `kernel`'s."""
        dtype, (n, m) = self.dtype, self.shape
        shapes = jnp.zeros(n, dtype), jnp.zeros(m, dtype), jnp.zeros(n, bool), jnp.zeros(m, bool)
        return self.kernel(*shapes, jnp.ones((), dtype), jnp.zeros((), dtype))


class Stored(Cost):
    """A cost kept as an array; ``inf`` forbids a pair."""

    array: Float[Array, "n m"]

    @property
    def shape(self):
        """Of the array."""
        return self.array.shape

    @property
    def dtype(self):
        """Of the array."""
        return self.array.dtype

    @property
    def T(self) -> "Stored":  # noqa: N802
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

    def blank(self):
        """Return zeros."""
        return StoredKernel(jnp.zeros_like(self.array))


class StoredKernel(eqx.Module):
    """A kernel kept as an array."""

    array: Float[Array, "n m"]

    @property
    def shape(self):
        """Of the array."""
        return self.array.shape

    @property
    def T(self) -> "StoredKernel":  # noqa: N802
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


class Lazy(Cost):
    """A cost that is never stored. Subclasses define `product`; everything else follows from it."""

    def product(self, u, v, x, scale, *, weighted: bool = False) -> Float[Array, " n"]:
        """Return ``sum_j exp(u_i + v_j - scale C_ij) x_j``, each term times ``C_ij`` if `weighted`.

        Differentiable in all arguments and in the cost's own arrays, without an array of n m entries either way.
        """
        raise NotImplementedError

    def times(self, x) -> Float[Array, " n"]:
        """Return ``C x``."""
        zeros = jnp.zeros_like
        n, _ = self.shape
        return self.product(jnp.zeros(n, x.dtype), zeros(x), x, jnp.zeros((), x.dtype), weighted=True)

    @property
    def T(self) -> "Lazy":  # noqa: N802
        """The cost with its sides exchanged."""
        raise NotImplementedError

    def kernel(self, f, g, rows, columns, epsilon, shift):
        """Return the kernel as an operator: a product computes its entries anew."""
        scale = 1 / epsilon
        u = jnp.where(rows, (f + shift) * scale, DEAD)
        return LazyKernel(self, self.T, u, jnp.where(columns, g * scale, DEAD), scale)


class LazyKernel(eqx.Module):
    """The kernel ``exp(u_i + v_j - scale C_ij)`` of a lazy cost, known by its products."""

    cost: Lazy
    transposed: Lazy
    u: Float[Array, " n"]
    v: Float[Array, " m"]
    scale: Float[Array, ""]

    @property
    def shape(self):
        """Of the cost."""
        return self.cost.shape

    @property
    def T(self) -> "LazyKernel":  # noqa: N802
        """The transposed kernel."""
        return LazyKernel(self.transposed, self.cost, self.v, self.u, self.scale)

    def over_rows(self, function, *vectors, shared: tuple = ()):
        """Return ``function(some rows of K, their entries of the vectors, *shared)``, stacked, for a `PointCloud`."""
        cost: Any = self.cost

        def rows(costs, u, *rest):
            *rest, v, scale = rest
            return function(jnp.exp((u[:, None] + v[None, :]) - scale * costs), *rest)

        return cost.over_rows(rows, self.u, *vectors, shared=(*shared, self.v, self.scale))

    def astype(self, dtype) -> "LazyKernel":
        """Return the kernel in another precision."""
        return jax.tree.map(lambda x: x.astype(dtype), self)

    def dense(self):
        """Return the entries as one array."""
        return jnp.exp(self.u[:, None] + self.v[None, :] - self.scale * self.cost.dense())

    def times(self, x):
        """Return ``K x``."""
        return self.cost.product(self.u, self.v, x, self.scale)

    def transposed_times(self, x):
        """Return ``K' x``."""
        return self.transposed.product(self.v, self.u, x, self.scale)

    def squares_times(self, x):
        """Return ``(K * K) x``."""
        return self.cost.product(2 * self.u, 2 * self.v, x, 2 * self.scale)


def live_exponents(f, g, a, b, epsilon) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Return ``f / epsilon`` and ``g / epsilon``, `DEAD` where there is no mass."""
    return jnp.where(a > 0, f / epsilon, DEAD), jnp.where(b > 0, g / epsilon, DEAD)


def as_cost(cost) -> Cost:
    """Return a cost as it is, an array as `Stored`."""
    return cost if isinstance(cost, Cost) else Stored(cost)
