"""Input-convex networks: positive by parametrisation, dense or convolutional."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core.precision import HIGHEST, matmul
from ...core.typing import Array, Float


class ConvexNetwork(eqx.Module):
    """A smooth strongly convex function ``psi`` of an array.

    (1) ``z_1 = s(H_1 y + b_1)``
    (2) ``z_(k+1) = s(W_k z_k + H_(k+1) y + b_(k+1))``
    (3) ``psi = w'z + strong |y|^2 / 2``

    Here s is a softplus of steepness beta, and W, w are positive. Matrices on vectors, or convolutions on images of one
    channel, with zeros beyond the edges. It departs from Fang, Buchanan, Sulam (ICLR 2024), who clip W and w: here they
    are softplus of free numbers, so that nothing is clipped in training.

    Attributes
    ----------
    skips, biases : tuple of arrays
        The H_k and b_k.
    passes, readout : tuple of arrays, Array
        Free numbers under the W_k and w.
    beta, strong : float
        Static.
    """

    skips: tuple[Array, ...]
    biases: tuple[Array, ...]
    passes: tuple[Array, ...]
    readout: Array
    beta: float = eqx.field(static=True)
    strong: float = eqx.field(static=True)

    def __call__(self, y: Float[Array, "..."]) -> Float[Array, ""]:
        """Return psi(y)."""
        z = self._bend(self._apply(self.skips[0], y) + self._wide(self.biases[0], y))  # (1)
        for skip, bias, through in zip(self.skips[1:], self.biases[1:], self.passes, strict=True):
            mixed = self._apply(jax.nn.softplus(through), z)
            z = self._bend(mixed + self._apply(skip, y) + self._wide(bias, y))  # (2)
        weights = jax.nn.softplus(self.readout)
        # (3)
        return jnp.vdot(weights, z.reshape(weights.size, -1).sum(1), precision=HIGHEST) + self.strong / 2 * jnp.sum(
            y * y
        )

    def _bend(self, x):
        return jax.nn.softplus(self.beta * x) / self.beta

    def _wide(self, bias, y):
        return bias if self.skips[0].ndim == 2 else bias[:, None, None]

    def _apply(self, weights, x):
        if weights.ndim == 2:
            return matmul(weights, x)
        image = x[None, None] if x.ndim == 2 else x[None]
        return lax.conv_general_dilated(image, weights, (1, 1), "SAME", precision=HIGHEST)[0]


def convex_network(
    key: Array, size: int | None, *, width: int = 50, depth: int = 4, beta: float = 10.0, strong: float = 0.01,
    kernel: int = 3, dtype: Any = None,
) -> ConvexNetwork:  # fmt: skip
    """Return a network with random weights.

    Parameters
    ----------
    key : PRNG key
    size : int or None
        Length of the vectors acted on; None for images of any size, by convolutions.
    width, depth : int
        Units, or channels, and layers.
    beta : float
        Steepness of the softplus.
    strong : float
        Strong convexity of psi: the smallest eigenvalue that the map's Jacobian can have; positive.
    kernel : int
        Side of the convolutions.
    dtype : dtype, optional

    Returns
    -------
    ConvexNetwork
    """
    dtype = dtype or jnp.result_type(float)
    shape = (lambda rows, columns: (rows, columns)) if size is not None else (
        lambda rows, columns: (rows, columns, kernel, kernel)
    )  # fmt: skip
    fan = (size or 1) * (1 if size is not None else kernel**2)
    inner = width * (1 if size is not None else kernel**2)
    keys = jax.random.split(key, 3 * depth + 1)
    normal = lambda k, s: jax.random.normal(k, s, dtype)  # noqa: E731
    skips = [normal(keys[3 * i], shape(width, size or 1)) / fan**0.5 for i in range(depth)]
    biases = [0.5 * normal(keys[3 * i + 1], (width,)) for i in range(depth)]
    small = jnp.log(jnp.expm1(jnp.asarray(1 / inner, dtype)))
    passes = [small + 0.3 * normal(keys[3 * i + 2], shape(width, width)) for i in range(depth - 1)]
    readout = jnp.log(jnp.expm1(jnp.asarray(1 / width, dtype))) + 0.3 * normal(keys[-1], (width,))
    return ConvexNetwork(tuple(skips), tuple(biases), tuple(passes), readout, beta, strong)
