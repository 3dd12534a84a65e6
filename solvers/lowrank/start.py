"""Where a recovery starts: at the spectrum of the back-projected data, or near zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ..core.precision import eps, matmul, tiny
from ..core.typing import Array
from ..core.vectors import inner
from .operators import Measurement
from .solution import Factors

POWERS, EXTRA = 4, 8


def spectral(operator: Measurement, b: Array, rank: int, *, symmetric: bool) -> Factors:
    """Return the best multiple of the leading part of ``A*(b)`` of that rank, balanced.

    The leading subspace is found by subspace iteration from a fixed pseudo-random block. Directions beyond the rank
    of ``A*(b)`` get a thousandth of the largest value, so that none is dead.
    """
    n, p = operator.shape
    width = min(n, p, rank + EXTRA)
    y = jax.random.normal(jax.random.key(29), (p, width), b.dtype)

    def power(y, _):
        z = jnp.linalg.qr(operator.adjoint_times(b, y))[0]
        return jnp.linalg.qr(operator.transposed_adjoint_times(b, z))[0], None

    y = lax.scan(power, y, None, length=POWERS)[0]
    image = operator.adjoint_times(b, y)
    if symmetric:
        core = matmul(y.T, image)
        values, vectors = jnp.linalg.eigh((core + core.T) / 2)
        values, vectors = values[::-1], matmul(y, vectors[:, ::-1])
        left, right = vectors, vectors
    else:
        u, values, vt = jnp.linalg.svd(image, full_matrices=False)
        left, right = u, matmul(y, vt.T)
    values = jnp.maximum(values, 1e-3 * jnp.max(jnp.abs(values)))
    values, left, right = values[:rank], left[:, :rank], right[:, :rank]
    # Two roots and one division, in units of the largest value: neither large nor small data overflow.
    largest = jnp.maximum(jnp.max(jnp.abs(values)), tiny(b.dtype))
    root = jnp.sqrt(values / largest)[None, :]
    left, right = left * root, right * root
    seen = operator.product(left, right)
    size = inner(seen, seen)
    multiple = jnp.sqrt(jnp.maximum(inner(seen, b), 0) / jnp.where(size > 0, size, 1))
    factors = Factors(multiple * left, multiple * right)
    pad = rank - values.shape[0]
    return Factors(*(jnp.pad(x, ((0, 0), (0, pad))) for x in factors))


def small(key: Array, factors: Factors, scale: Array, *, symmetric: bool) -> Factors:
    """Return Gaussian factors of that size beside the root of the largest singular value of `factors`.

    The right one is a third of the left one, as the paper has it.
    """
    size = scale * jnp.sqrt(jnp.max(jnp.sum(factors.left**2, axis=0), initial=0))
    one, two = jax.random.split(key)
    left = size * jax.random.normal(one, factors.left.shape, factors.left.dtype)
    if symmetric:
        return Factors(left, left)
    return Factors(left, size / 3 * jax.random.normal(two, factors.right.shape, factors.right.dtype))


def gain(operator: Measurement, factors: Factors) -> Array:
    """Return ``|A(X)| / |X|`` of one matrix: how much the measurements magnify, about."""
    seen = operator.product(*factors)
    gram = inner(matmul(factors.left.T, factors.left), matmul(factors.right.T, factors.right))
    size = inner(seen, seen)
    usable = (gram > eps(seen.dtype) ** 4) & (size > 0)
    return jnp.where(usable, jnp.sqrt(size / jnp.where(usable, gram, 1)), 1)
