"""Errors of shape, dtype and option, raised while tracing and worded alike everywhere."""

from __future__ import annotations

import inspect
from numbers import Real
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np


def fail(function: str, argument: str, expected: str, got, error: type[Exception] = ValueError) -> NoReturn:
    """Raise ``function: `argument` must be expected, got ...``."""
    raise error(f"{function}: `{argument}` must be {expected}, got {got}")


def float_array(function: str, argument: str, x, *, ndim: int | None = None, dtype=None) -> jax.Array:
    """Return ``x`` as a floating array; integers and booleans are promoted, complex and objects refused.

    A Python number or list takes ``dtype`` (default: JAX's default float).
    """
    try:
        given = x if isinstance(x, jax.Array) else np.asarray(x)
    except Exception as cause:
        raise TypeError(f"{function}: `{argument}` must be a real array, got {type(x).__name__}") from cause
    if given.dtype == object or not (jnp.issubdtype(given.dtype, jnp.floating) or _is_integral(given.dtype)):
        fail(function, argument, "a real array", f"dtype {given.dtype}", TypeError)
    if _is_integral(given.dtype) or not hasattr(x, "dtype"):
        array = jnp.asarray(x, dtype or jnp.result_type(float))
    else:
        array = jnp.asarray(x)
    if ndim is not None and array.ndim != ndim:
        fail(function, argument, f"an array with {ndim} axes", f"shape {array.shape}")
    return array


def number(function: str, argument: str, x, *, positive: bool = False, dtype=None) -> jax.Array:
    """Return a scalar array; a Python number out of range raises here, a traced one is the solver's business."""
    if isinstance(x, Real) and (x != x or (positive and not float(x) > 0)):
        fail(function, argument, "a positive number" if positive else "a number", x)
    array = float_array(function, argument, x, dtype=dtype)
    if array.ndim:
        fail(function, argument, "a scalar (use jax.vmap for several)", f"shape {array.shape}")
    return array if dtype is None else array.astype(dtype)


def count(function: str, argument: str, x) -> jax.Array:
    """Return a traced step count as int32; negative Python integers raise."""
    if isinstance(x, int | np.integer):
        if x < 0:
            fail(function, argument, "a non-negative integer", x)
        x = min(int(x), np.iinfo(np.int32).max)
    elif not jnp.issubdtype(jnp.result_type(x), jnp.integer):
        fail(function, argument, "an integer", x, TypeError)
    return jnp.asarray(x, jnp.int32)


def choice(function: str, argument: str, x, allowed: tuple) -> None:
    """Raise unless ``x`` is one of ``allowed``."""
    if x not in allowed:
        fail(function, argument, "one of " + ", ".join(repr(a) for a in allowed), repr(x))


def takes(function: str, argument: str, f, *names: str) -> None:
    """Raise unless ``f`` can be called with that many positional arguments."""
    expected = f"a function of ({', '.join(names)})"
    if not callable(f):
        fail(function, argument, expected, type(f).__name__, TypeError)
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # built-in functions need not have one
        return
    try:
        signature.bind(*names)
    except TypeError:
        fail(function, argument, expected, f"one of {signature}", TypeError)


def random_key(function: str, argument: str, key) -> None:
    """Raise unless ``key`` is a key of JAX, of either kind; a seed is none."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        fail(function, argument, "a key, such as jax.random.key(seed)", repr(key), TypeError)


def known(x) -> bool:
    """Whether the numbers of an array can be looked at now, that is outside of a trace."""
    return not isinstance(x, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]


def _is_integral(dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
