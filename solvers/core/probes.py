"""Random test vectors of mean zero and covariance one, shaped like a given pytree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .typing import Array

PROBES = ("rademacher", "gaussian", "sphere")


def probe(kind: str, key: Array, like: Any) -> Any:
    """Return one random vector z with ``E z z' = I``, a pytree of the shapes and dtypes of `like`.

    Parameters
    ----------
    kind : str
        "rademacher": independent signs, the smallest variance for a trace among independent entries. "gaussian":
        standard normal. "sphere": uniform on the sphere of radius ``sqrt(n)``.
    key : PRNG key
    like : PyTree
        Arrays or `jax.ShapeDtypeStruct`.
    """
    leaves, tree = jax.tree.flatten(like)
    draw = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal, "sphere": jax.random.normal}
    if kind not in draw:
        raise ValueError(f"probe: `kind` must be one of {PROBES}, got {kind!r}")
    keys = jax.random.split(key, max(len(leaves), 1))
    parts = [draw[kind](k, jnp.shape(leaf), leaf.dtype) for k, leaf in zip(keys, leaves, strict=False)]
    if kind == "sphere":
        size = sum(part.size for part in parts)
        widest = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
        squared = sum(jnp.sum(part**2).astype(widest) for part in parts)
        parts = [part * jnp.sqrt(size / squared).astype(part.dtype) for part in parts]
    return jax.tree.unflatten(tree, parts)


def probes(kind: str, key: Array, count: int, like: Any) -> Any:
    """Return `count` independent probes along a new leading axis; `count` is static."""
    return jax.vmap(lambda k: probe(kind, k, like))(jax.random.split(key, count))
