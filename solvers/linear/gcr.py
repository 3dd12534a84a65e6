"""Generalised conjugate residuals: flexible GMRES that knows its iterate in every step."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp

from ..core.loop import Run
from ..core.precision import dot, eps, matmul
from ..core.solution import Status
from ..core.typing import Array
from .pcg import verified
from .solution import measure
from .stopping import Controls
from .systems.system import Layout


class State(eqx.Module):
    """Iterate, residual, directions and their products, which are orthonormal, their count, the error, a verdict."""

    x: Array
    r: Array
    directions: Array
    products: Array
    count: Array
    error: Array
    code: Array


def conjugate_residuals(
    system: Layout, b: Array, start: Array, precondition: Callable[[Array], Array], controls: Controls, memory: int
) -> Run:
    """Minimise ``||b - A x||`` over `memory` preconditioned directions, then start again from the best point.

    In exact arithmetic the iterates of right-preconditioned, restarted GMRES, wherever that does not stand still.
    """
    residual, size = measure(system, b)

    def begin(x):
        r = residual(x)
        none = jnp.zeros((memory, b.size), b.dtype)
        running = jnp.asarray(Status.RUNNING, jnp.int32)
        return State(x, r, none, none, jnp.zeros((), jnp.int32), size(r), running)

    def step(s):
        again = s.count == memory
        products, directions = (jnp.where(again, 0, x) for x in (s.products, s.directions))
        count = jnp.where(again, 0, s.count)
        z = precondition(s.r)
        q = system.mv(z).ravel()
        z, before = z.ravel(), jnp.sqrt(dot(q, q))
        for _ in range(2):  # once leaves rounding that grows; twice is enough
            h = matmul(products, q)
            q, z = q - matmul(h, products), z - matmul(h, directions)
        length = jnp.sqrt(dot(q, q))
        # A product within those before has nothing new: the space is exhausted, or the residual orthogonal to A M r.
        sound = length > 10 * eps(b.dtype) * before
        scale = jnp.where(sound, 1 / jnp.where(sound, length, 1), jnp.where(jnp.isfinite(length), 0, jnp.nan))
        q, z = scale * q, scale * z
        gain = dot(q, s.r.ravel())
        r = s.r - (gain * q).reshape(b.shape)
        error = size(r)
        stuck = (~sound & jnp.isfinite(length)) | (error <= 0.01 * eps(error.dtype))
        code = jnp.where(stuck, Status.STAGNATED, Status.RUNNING).astype(jnp.int32)
        return State(
            s.x + (gain * z).reshape(b.shape), r, directions.at[count].set(z), products.at[count].set(q), count + 1,
            error, code,
        )  # fmt: skip

    return verified(system, b, start, begin, step, controls)
