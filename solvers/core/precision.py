"""Precision as a decision: default tolerances, and products that never drop to TF32."""

import jax.numpy as jnp
from jax import lax

HIGHEST = lax.Precision.HIGHEST


def eps(dtype) -> float:
    """Spacing of numbers next to one in ``dtype``, as a Python float."""
    return float(jnp.finfo(dtype).eps)


def tiny(dtype) -> float:
    """Smallest normal number of ``dtype``, as a Python float."""
    return float(jnp.finfo(dtype).tiny)


def matmul(x, y):
    """``x @ y`` at the inputs' own precision on every backend."""
    return jnp.matmul(x, y, precision=HIGHEST)


def dot(x, y):
    """Inner product of two arrays of the same shape at full precision."""
    return jnp.vdot(x, y, precision=HIGHEST)
