"""What estimators take and return: an operator on flat vectors, a goal, a value with its standard error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.special import ndtri

from ...core import checks
from ...core.operators import LinearOperator, MatrixOperator
from ...core.typing import Array, Bool, Float, Int, Scalar


class Estimate(eqx.Module):
    """A random estimate and what is known of its error.

    Attributes
    ----------
    value : PyTree
        The mean of independent (or exchangeable) estimates, plus what is known exactly.
    standard_error : PyTree
        Estimated standard deviation of `value`, of the same structure.
    skewness : PyTree
        Estimated skewness of `value`, which chi-square-like samples leave in means of few.
    degrees : PyTree
        Of freedom of the standard error: estimates less one, fewer where their fourth moment says that the standard
        error itself is uncertain.
    num_products : Int[Array, ""]
        Products with the operator.
    converged : Bool[Array, ""]
        Whether the requested standard error was reached.
    """

    value: Any
    standard_error: Any
    skewness: Any
    degrees: Any
    num_products: Int[Array, ""]
    converged: Bool[Array, ""]

    def interval(self, level: Scalar = 0.95) -> tuple[Any, Any]:
        """Return the ends of the interval that holds the truth in a share `level` of cases.

        From Student's t, turned by the skewness as P. Hall proposed (*On the removal of skewness by transformation*,
        J. R. Statist. Soc. B 1992): ``value - standard_error (3/g) ((1 + g (t - g/6))^(1/3) - 1)`` at the quantiles t.
        """

        def end(value, error, skewness, degrees, sign):
            dtype = jnp.result_type(value)
            t = sign * student_quantile(0.5 + jnp.asarray(level, dtype) / 2, degrees.astype(dtype))
            g = skewness.astype(dtype)
            slight = jnp.abs(g) < 1e-2
            x = t - g / 6
            turned = 3 * (jnp.cbrt(1 + g * x) - 1) / jnp.where(slight, 1, g)
            return value - error * jnp.where(slight, x - g * x**2 / 3, turned)

        parts = (self.value, self.standard_error, self.skewness, self.degrees)
        low, high = (jax.tree.map(lambda v, e, g, d, sign=sign: end(v, e, g, d, sign), *parts) for sign in (1, -1))
        return low, high


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


def shape_of_mean(samples: Float[Array, "k ..."], count: Any) -> tuple[Array, Array]:
    """Return skewness of the mean of the first `count` samples, and degrees of freedom of its standard error.

    Moments without their bias; with excess kurtosis K the variance of k samples is that of a chi-square variable of
    ``2 / (2 / (k - 1) + K / k)`` degrees. Fewer than four samples are taken for normal ones, and no excess counts below
    3 degrees, where the quantiles of Student's t are of no use.
    """
    dtype = samples.dtype
    k = jnp.asarray(count, dtype)
    used = (jnp.arange(samples.shape[0], dtype=jnp.int32) < count).reshape(-1, *[1] * (samples.ndim - 1))
    x = jnp.where(used, samples, 0)
    x = jnp.where(used, x - jnp.sum(x, axis=0, keepdims=True) / k, 0)
    size = jnp.max(jnp.abs(x), axis=0, keepdims=True)
    x = x / jnp.where(size > 0, size, 1)
    second, third, fourth = (jnp.sum(x**power, axis=0) / k for power in (2, 3, 4))
    safe = jnp.where(second > 0, second, 1)
    skew = third / safe**1.5 * jnp.sqrt(k * (k - 1)) / jnp.maximum(k - 2, 1)
    excess = (k - 1) / jnp.maximum((k - 2) * (k - 3), 1) * ((k + 1) * (fourth / safe**2 - 3) + 6)
    plain = jnp.maximum(k - 1, 1)
    degrees = jnp.maximum(2 / (2 / plain + jnp.maximum(excess, 0) / k), jnp.minimum(plain, 3))
    known = (k >= 4) & (second > 0)
    return jnp.where(known, skew / jnp.sqrt(k), 0), jnp.where(known, degrees, plain)


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
