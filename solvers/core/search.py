"""Backtracking along a direction, with rules for its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from .typing import Array, Scalar


class Found(NamedTuple):
    """Where a search ended.

    `length` of the step, `result` of the trial there, whether it was `accepted`, and how many lengths were `tried`.
    """

    length: Array
    result: Any
    accepted: Array
    tried: Array


def backtrack(
    trial: Callable[[Array], Any],
    accept: Callable[[Array, Any], Array],
    *,
    start: Scalar = 1.0,
    shrink: float = 0.5,
    most: Scalar = 30,
) -> Found:
    """Shorten a step until what it leads to is accepted.

    Parameters
    ----------
    trial : callable
        ``trial(t)``: the point at step length t, with all that deciding and going on need; a pytree of arrays. Traced
        twice.
    accept : callable
        ``accept(t, trial(t))``: whether to take it. Write it so that NaN compares to false.
    start : scalar
        First length; its dtype is that of all others. Traced.
    shrink : float
        Factor from a refused length to the next.
    most : scalar
        How often to shorten at most; traced.

    Notes
    -----
    Under ``jax.vmap`` all lanes go on until the last has ended, and finished ones keep their result. A search that
    ends without acceptance returns the shortest length tried.
    """
    start = jnp.asarray(start)

    def at(t: Array, tried: Array) -> Found:
        result = trial(t)
        return Found(t, result, jnp.asarray(accept(t, result)), tried)

    return lax.while_loop(
        lambda s: ~s.accepted & (s.tried <= most),
        lambda s: at(s.length * jnp.asarray(shrink, s.length.dtype), s.tried + 1),
        at(start, jnp.ones((), jnp.int32)),
    )
