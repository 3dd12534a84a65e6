"""Bilevel problems with closed-form answers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.precision import dot, matmul
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
        return dot(y, matmul(block.A, y)) / 2 - dot(y, matmul(block.B, x) + block.c)

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


class CoupledToy(NamedTuple):
    """``min |x - y2|^2 / 2 + |y1 - 1|^2 / 2``, y of the minimisers of ``|y1|^2 / 2 - x.y1 + 1.y2`` at sum zero.

    The lower problem has many solutions, ``y1 = x + 1`` and any y2 of the right sum; the answer is x = -0.3, y1 = 0.7
    and y2 = -0.4, all entries alike.
    """

    n: int

    def upper(self, x, y, args):
        """Return the upper loss."""
        return (jnp.sum((x - y[self.n :]) ** 2) + jnp.sum((y[: self.n] - 1) ** 2)) / 2

    def lower(self, x, y, args):
        """Return the lower loss."""
        first = y[: self.n]
        return jnp.sum(first**2) / 2 - dot(x, first) + jnp.sum(y[self.n :])

    def constraint(self, x, y, args):
        """Return what is to be zero."""
        return (jnp.sum(x) + jnp.sum(y))[None]

    def project(self, x, y, args):
        """Return the nearest pair of sum zero."""
        shift = (jnp.sum(x) + jnp.sum(y)) / (3 * self.n)
        return x - shift, y - shift

    @property
    def optimum(self) -> tuple[np.ndarray, np.ndarray]:
        """The answer, by hand: with ``y1 = x + 1`` and ``y2 = -2 x - 1`` the loss is ``(3 x + 1)^2 / 2 + x^2 / 2``."""
        return np.full(self.n, -0.3), np.concatenate([np.full(self.n, 0.7), np.full(self.n, -0.4)])


class HalfSpace(NamedTuple):
    """``min |y - target|^2 / 2 + ridge |x|^2 / 2``, y minimising ``y'A y / 2 - y'B x`` where ``a.y + b.x <= bound``."""

    A: Float[Array, "d d"]
    B: Float[Array, "d p"]
    target: Float[Array, " d"]
    a: Float[Array, " d"]
    b: Float[Array, " p"]
    bound: Float[Array, ""]
    ridge: Float[Array, ""]

    @staticmethod
    def upper(x, y, data):
        """Return the upper loss."""
        return jnp.sum((y - data.target) ** 2) / 2 + data.ridge * jnp.sum(x**2) / 2

    @staticmethod
    def lower(x, y, data):
        """Return the lower loss."""
        return dot(y, matmul(data.A, y)) / 2 - dot(y, matmul(data.B, x))

    @staticmethod
    def constraint(x, y, data):
        """Return the constraint, of length one."""
        return (dot(data.a, y) + dot(data.b, x) - data.bound)[None]

    @staticmethod
    def project(x, y, data):
        """Return the nearest pair in the half-space."""
        over = jnp.maximum(HalfSpace.constraint(x, y, data)[0], 0)
        shift = over / (dot(data.a, data.a) + dot(data.b, data.b))
        return x - shift * data.b, y - shift * data.a

    def solution(self, x) -> tuple[Array, Array]:
        """Return the lower solution and its multiplier in closed form."""
        free = jnp.linalg.solve(self.A, matmul(self.B, x))
        along = jnp.linalg.solve(self.A, self.a)
        over = jnp.maximum(dot(self.a, free) + dot(self.b, x) - self.bound, 0)
        multiplier = over / dot(self.a, along)
        return free - multiplier * along, multiplier

    def value(self, x):
        """Return the objective in closed form."""
        return HalfSpace.upper(x, self.solution(x)[0], self)


def half_space(rng: np.random.Generator, *, p: int, d: int, ridge: float = 0.3, dtype=None) -> HalfSpace:
    """Return a random instance; the constraint is active at the answer of about every second."""
    Q = rng.standard_normal((d, d))
    parts = (
        Q @ Q.T / d + np.eye(d) / 2, rng.standard_normal((d, p)), rng.standard_normal(d), rng.standard_normal(d),
        rng.standard_normal(p), rng.standard_normal(), ridge,
    )  # fmt: skip
    return HalfSpace(*(jnp.asarray(part, dtype) for part in parts))
