"""Pytrees of arrays as vectors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .precision import dot
from .typing import Array


def inner(x: Any, y: Any) -> Array:
    """Return the inner product of two pytrees of arrays."""
    parts = [dot(u, v) for u, v in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)]
    return sum(parts[1:], parts[0])


def norm(x: Any) -> Array:
    """Return the Euclidean norm of a pytree of arrays."""
    return jnp.sqrt(inner(x, x))


def axpy(alpha: Any, x: Any, y: Any) -> Any:
    """Return ``y + alpha x``."""
    return jax.tree.map(lambda u, v: v + alpha * u, x, y)


def scale(alpha: Any, x: Any) -> Any:
    """Return ``alpha x``."""
    return jax.tree.map(lambda u: alpha * u, x)


def combine(*terms: tuple[Any, Any]) -> Any:
    """Return ``sum alpha x`` over pairs ``(alpha, x)``."""
    return jax.tree.map(
        lambda *leaves: sum(a * u for (a, _), u in zip(terms, leaves, strict=True)), *(x for _, x in terms)
    )
