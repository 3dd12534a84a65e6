"""A scan whose derivative needs no memory of its steps: it runs them backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def reversible_scan(
    step: Callable[[Any, Any, Any], Any],
    back: Callable[[Any, Any, Any], Any],
    parameters: Any,
    carry: Any,
    xs: Any,
    *,
    rtol: float | None = None,
) -> Any:
    """Return the last carry of ``carry = step(parameters, carry, x)`` over `xs`; reverse mode by ``back``.

    Parameters
    ----------
    step, back : callable
        ``back(parameters, step(parameters, carry, x), x) = carry``, to rounding. They close over nothing that is
        differentiated.
    parameters, carry, xs : PyTree of float arrays
    rtol : float, optional
        Where the way back misses the first carry by more, relative to it (to the last where it is zero) in the maximum
        norm, derivatives are NaN: what it passed through was another trajectory. Static.

    Notes
    -----
    Memory of the derivative: two carries and one step's, whatever the length. Reverse mode only, first order.
    """

    @jax.custom_vjp
    def run(parameters, carry, xs):
        return lax.scan(lambda c, x: (step(parameters, c, x), None), carry, xs)[0]

    def forward(parameters, carry, xs):
        end = run(parameters, carry, xs)
        return end, (parameters, carry, end, xs)

    def backward(saved, cotangent):
        parameters, begin, end, xs = saved

        def one(c, x):
            after, cotangent, total = c
            before = back(parameters, after, x)
            _, pull = jax.vjp(step, parameters, before, x)
            share, cotangent, by_x = pull(cotangent)
            return (before, cotangent, jax.tree.map(jnp.add, total, share)), by_x

        zero = jax.tree.map(jnp.zeros_like, parameters)
        (found, cotangent, total), by_xs = lax.scan(one, (end, cotangent, zero), xs, reverse=True)
        slopes = total, cotangent, by_xs
        if rtol is None:
            return slopes
        there = missed(found, begin, end) <= rtol
        return jax.tree.map(lambda v: jnp.where(there, v, jnp.full_like(v, jnp.nan)), slopes)

    run.defvjp(forward, backward)
    return run(parameters, carry, xs)


def missed(found: Any, target: Any, other: Any) -> jax.Array:
    """Return the largest difference of two pytrees over the largest entry of the second, or of `other` if it is 0."""
    dtype = max((jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(target)), key=lambda d: d.itemsize)

    def largest(tree):
        return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)).astype(dtype) for leaf in jax.tree.leaves(tree)]))

    size, instead = largest(target), largest(other)
    size = jnp.where(size > 0, size, jnp.where(instead > 0, instead, 1))
    return largest(jax.tree.map(jnp.subtract, found, target)) / size
