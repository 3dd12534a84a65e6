"""A scan whose derivative needs no memory of its steps: it runs them backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def reversible_scan(
    step: Callable[[Any, Any, Any], Any], back: Callable[[Any, Any, Any], Any], parameters: Any, carry: Any, xs: Any
) -> Any:
    """Return the last carry of ``carry = step(parameters, carry, x)`` over `xs`; reverse mode by ``back``.

    Parameters
    ----------
    step, back : callable
        ``back(parameters, step(parameters, carry, x), x) = carry``, to rounding. They close over nothing that is
        differentiated.
    parameters, carry, xs : PyTree of float arrays

    Notes
    -----
    Memory of the derivative: one carry and one step's, whatever the length. Reverse mode only, first order.
    """

    @jax.custom_vjp
    def run(parameters, carry, xs):
        return lax.scan(lambda c, x: (step(parameters, c, x), None), carry, xs)[0]

    def forward(parameters, carry, xs):
        end = run(parameters, carry, xs)
        return end, (parameters, end, xs)

    def backward(saved, cotangent):
        parameters, end, xs = saved

        def one(c, x):
            after, cotangent, total = c
            before = back(parameters, after, x)
            _, pull = jax.vjp(step, parameters, before, x)
            share, cotangent, by_x = pull(cotangent)
            return (before, cotangent, jax.tree.map(jnp.add, total, share)), by_x

        zero = jax.tree.map(jnp.zeros_like, parameters)
        (_, cotangent, total), by_xs = lax.scan(one, (end, cotangent, zero), xs, reverse=True)
        return total, cotangent, by_xs

    run.defvjp(forward, backward)
    return run(parameters, carry, xs)
