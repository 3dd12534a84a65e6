"""Bilevel problems with closed-form answers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.precision import matmul
from ..core.typing import Array, Float


class Block(NamedTuple):
    """One or m lower problems ``y'A y / 2 - y'(B x + c)``."""

    A: Float[Array, "... d d"]
    B: Float[Array, "... d p"]
    c: Float[Array, "... d"]


class BlockQuadratics(NamedTuple):
    """``min_x (1/m) sum_i |y_i(x) - 1|^2 / 2 + ridge |x|^2 / 2`` with ``y_i(x) = A_i^-1 (B_i x + c_i)``."""

    data: Block
    ridge: float

    def upper(self, x, y, block):
        """Return one block's upper loss."""
        return jnp.sum((y - 1) ** 2) / 2 + self.ridge * jnp.sum(x**2) / 2

    def lower(self, x, y, block):
        """Return one block's lower loss."""
        return jnp.vdot(y, matmul(block.A, y)) / 2 - jnp.vdot(y, matmul(block.B, x) + block.c)

    def minimisers(self, x) -> Float[Array, "m d"]:
        """Return all y_i(x)."""
        right = matmul(self.data.B, x) + self.data.c
        return jnp.linalg.solve(self.data.A, right[..., None])[..., 0]

    def value(self, x):
        """Return the objective in closed form."""
        return jnp.mean(jnp.sum((self.minimisers(x) - 1) ** 2, axis=1)) / 2 + self.ridge * jnp.sum(x**2) / 2

    def gradient(self, x):
        """Return ``mean_i B_i' A_i^-1 (y_i - 1) + ridge x``."""
        v = jnp.linalg.solve(self.data.A, (self.minimisers(x) - 1)[..., None])[..., 0]
        return jnp.mean(jnp.einsum("mdp,md->mp", self.data.B, v, precision="highest"), axis=0) + self.ridge * x

    @property
    def optimum(self) -> Float[Array, " p"]:
        """The minimiser, one linear solve."""
        p = self.data.B.shape[-1]
        zero = jnp.zeros(p, self.data.B.dtype)
        constant = self.gradient(zero)
        H = jax.vmap(lambda e: self.gradient(e) - constant)(jnp.eye(p, dtype=zero.dtype))
        return -jnp.linalg.solve(H, constant)


def block_quadratics(
    rng: np.random.Generator, *, blocks: int, p: int, d: int, ridge: float = 0.1, dtype=None
) -> BlockQuadratics:
    """Return random blocks whose lower curvatures lie between one and about five."""
    Q = rng.standard_normal((blocks, d, d))
    A = Q @ np.swapaxes(Q, 1, 2) / d + np.eye(d)
    B, c = rng.standard_normal((blocks, d, p)) / 3, rng.standard_normal((blocks, d))
    return BlockQuadratics(Block(*(jnp.asarray(M, dtype) for M in (A, B, c))), ridge)
