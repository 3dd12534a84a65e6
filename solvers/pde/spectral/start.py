"""Where Newton's method starts: a guess, a function or an earlier solution, as free coefficients."""

from __future__ import annotations

import jax.numpy as jnp

from ...core.linalg.kronecker import mode_product
from ...core.precision import matmul
from ..solution import GPSolution
from .newton import Discretisation


def start(found: Discretisation, guess, args):
    """Turn a guess, a function or an earlier solution, into free coefficients."""
    shapes = [offset.shape for offset in found.offsets]
    if isinstance(guess, GPSolution) and [z.shape for z in guess._tensors()] == shapes:
        tensors = guess._tensors()
    else:
        if isinstance(guess, GPSolution):
            vectors = tuple(c.reshape(-1) for c in found.x)
            values = [guess.mean(vectors, field=k) for k in range(len(found.lines))]
        else:
            values = guess(found.x, args)
            values = values if len(found.lines) > 1 else (values,)
        shape = jnp.broadcast_shapes(*(c.shape for c in found.x))
        tensors = []
        for lines, v in zip(found.lines, values, strict=True):
            t = jnp.broadcast_to(jnp.asarray(v, found.x[0].dtype), shape)
            for d, ln in enumerate(lines):
                t = ln.interpolate(t, d)
            tensors.append(t)
    free = []
    for z, offset, lines in zip(tensors, found.offsets, found.lines, strict=True):
        t = z - offset
        for d, ln in enumerate(lines):
            t = mode_product(jnp.linalg.solve(matmul(ln.null.T, ln.null), ln.null.T), t, d)
        free.append(t)
    return tuple(free)
