"""Random sketches: short, wide matrices S' that keep geometry, applied without being stored."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..precision import matmul
from ..typing import Array, Float

SKETCHES = ("gaussian", "kaczmarz", "countsketch", "srht")


def draw(kind: str, key: jax.Array, size: int, block: int, dtype) -> Callable[[Array], Float[Array, "block k"]]:
    """Return ``M -> S'M`` for a random S (size, block) and matrices M (size, k).

    Parameters
    ----------
    kind : str
        "gaussian": independent standard normal entries. "kaczmarz": rows of M drawn uniformly. "countsketch": each
        row of M is added with a random sign to one random row of the result. "srht": random signs, a Hadamard
        transform, and rows of the result drawn uniformly; `size` is padded to a power of two.
    key : PRNG key
    size, block : int
        Static.
    dtype : dtype
        Of M.
    """
    if kind == "gaussian":
        S = jax.random.normal(key, (block, size), dtype)
        return lambda M: matmul(S, M)
    if kind == "kaczmarz":
        rows = jax.random.randint(key, (block,), 0, size)
        return lambda M: M[rows]
    first, second = jax.random.split(key)
    signs = jax.random.rademacher(first, (size,), dtype)
    if kind == "countsketch":
        bucket = jax.random.randint(second, (size,), 0, block)
        return lambda M: jax.ops.segment_sum(signs[:, None] * M, bucket, block)
    if kind == "srht":
        padded = 1 << max(size - 1, 0).bit_length()
        rows = jax.random.randint(second, (block,), 0, padded)
        scale = block**-0.5
        return lambda M: scale * hadamard(jnp.pad(signs[:, None] * M, ((0, padded - size), (0, 0))))[rows]
    raise ValueError(f"draw: `kind` must be one of {SKETCHES}, got {kind!r}")


def hadamard(M: Float[Array, "size k"]) -> Float[Array, "size k"]:
    """Return ``H M`` for the Hadamard matrix of entries 1 and -1 in ``size log2(size)`` additions a column."""
    size, columns = M.shape
    half = 1
    while half < size:
        pairs = M.reshape(size // (2 * half), 2, half, columns)
        upper, lower = pairs[:, 0], pairs[:, 1]
        M = jnp.stack([upper + lower, upper - lower], axis=1).reshape(size, columns)
        half *= 2
    return M
