"""What estimators take and return: an operator on flat vectors, a goal, a value with its standard error."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.special import ndtri

from ..core import checks
from ..core.operators import LinearOperator, MatrixOperator
from ..core.typing import Array, Bool, Float, Int, Scalar


class Estimate(eqx.Module):
    """A random estimate and what is known of its error.

    Attributes
    ----------
    value : PyTree
        The mean of independent (or exchangeable) estimates, plus what is known exactly.
    standard_error : PyTree
        Estimated standard deviation of `value`, of the same structure.
    num_products : Int[Array, ""]
        Products with the operator.
    degrees : Float[Array, ""]
        Of freedom of the standard error: estimates less one.
    converged : Bool[Array, ""]
        Whether the requested standard error was reached.
    """

    value: Any
    standard_error: Any
    num_products: Int[Array, ""]
    degrees: Float[Array, ""]
    converged: Bool[Array, ""]

    def interval(self, level: Scalar = 0.95) -> tuple[Any, Any]:
        """Return the ends of the interval that holds the truth in a share `level` of cases, by Student's t."""
        width = student_quantile(0.5 + jnp.asarray(level, self.degrees.dtype) / 2, self.degrees)
        end = lambda sign: jax.tree.map(  # noqa: E731
            lambda v, s: v + sign * width.astype(v.dtype) * s, self.value, self.standard_error
        )
        return end(-1), end(1)


def student_quantile(p: Array, degrees: Array) -> Array:
    """Return the p-quantile of Student's t by its expansion in 1 / degrees; to 1 % from 3 degrees on at p <= 0.99."""
    z = ndtri(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    inverse = 1 / jnp.maximum(degrees, 1)
    return z + sum(term * inverse ** (k + 1) for k, term in enumerate(terms))


class Goal(NamedTuple):
    """When to stop: at ``standard_error <= max(atol, rtol |value|)``, or after `most` products (static)."""

    atol: Any
    rtol: Any
    most: int

    def reached(self, value: Array, error: Array) -> Array:
        """Whether every entry is good enough."""
        return jnp.all(error <= jnp.maximum(jnp.asarray(self.atol, error.dtype),
                                            jnp.asarray(self.rtol, error.dtype) * jnp.abs(value)))  # fmt: skip


class Flat(NamedTuple):
    """A symmetric operator on vectors of length `size`: rows in, rows out."""

    rows: Callable[[Array], Array]
    size: int
    dtype: Any
    unravel: Callable[[Array], Any]


def flattened(name: str, operator: Any) -> Flat:
    """Return the operator, or a square matrix, as one on stacks of flat vectors, all in one product."""
    if not isinstance(operator, LinearOperator):
        matrix = checks.float_array(name, "operator", operator, ndim=2)
        if matrix.shape[0] != matrix.shape[1]:
            checks.fail(name, "operator", "square", matrix.shape)
        operator = MatrixOperator(matrix)
    leaves = jax.tree.leaves(operator.domain)
    if len({leaf.dtype for leaf in leaves}) != 1 or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves):
        checks.fail(name, "operator", "on real arrays of one dtype", [str(x.dtype) for x in leaves], TypeError)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), operator.domain)
    flat, unravel = ravel_pytree(zero)
    if flat.size == 0:
        checks.fail(name, "operator", "on at least one number", flat.size)
    rows = jax.vmap(lambda x: ravel_pytree(operator.mv(unravel(x)))[0])
    return Flat(rows, flat.size, flat.dtype, unravel)
