"""Precision as a decision: default tolerances, and products that never drop to TF32."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

HIGHEST = lax.Precision.HIGHEST


def eps(dtype) -> float:
    """Spacing of numbers next to one in ``dtype``, as a Python float."""
    return float(jnp.finfo(dtype).eps)


def tiny(dtype) -> float:
    """Smallest normal number of ``dtype``, as a Python float."""
    return float(jnp.finfo(dtype).tiny)


def binary_exponent(size):
    """Return e with ``2^(e-1) <= size < 2^e``, that of one where `size` is zero or not finite."""
    usable = jnp.isfinite(size) & (size > 0)
    return jnp.frexp(jnp.where(usable, size, 1))[1]


def power_of_two(exponent, dtype):
    """Return two to the power of an integer, a normal number of ``dtype``, put together from its bits."""
    info = jnp.finfo(dtype)
    bits = exponent.astype(f"int{info.bits}") + (info.maxexp - 1)
    return lax.bitcast_convert_type(bits << info.nmant, dtype)


def unit_of(x):
    """Return the power of two that brings the largest entry of an array near one."""
    return jnp.ldexp(jnp.ones((), x.dtype), -binary_exponent(jnp.max(jnp.abs(x))))


def complex_of(dtype):
    """Complex dtype whose parts have the real dtype ``dtype``."""
    return jnp.dtype(jnp.complex128 if dtype == jnp.float64 else jnp.complex64)


def real_of(dtype):
    """Real dtype of the parts of numbers of the dtype ``dtype``."""
    return jnp.finfo(dtype).dtype


def matmul(x, y):
    """``x @ y`` at the inputs' own precision on every backend."""
    return jnp.matmul(x, y, precision=HIGHEST)


def dot(x, y):
    """Inner product of two arrays of the same shape at full precision."""
    return jnp.vdot(x, y, precision=HIGHEST)
