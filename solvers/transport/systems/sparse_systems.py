"""The Newton matrix on the entries of the plan that matter, in rows of a static length.

Where Tang et al. (ICLR 2024) keep a fixed number of entries, here the mass that is dropped is bounded:

(1) ``P_ij >= delta min(r_i / m, c_j / n)`` is kept, so that row i loses at most ``delta r_i``, column j ``delta c_j``
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from ...core.typing import Array, Bool, Float, Int
from ..problem import Problem
from .gibbs_kernel import Kernel
from .newton_systems import DenseCG, Direction, System, improve, pcg
from .slow_modes import SlowModes

DROPPED = 1e-5
"""Bound on the fraction of any row's or column's mass that is left out."""


class PaddedRows(eqx.Module):
    """A sparse matrix: row i has `values[i]` at columns `index[i]`, padded with zeros."""

    index: Int[Array, "n width"]
    values: Float[Array, "n width"]

    def __matmul__(self, x):
        return jnp.sum(self.values * x[self.index], axis=1)


class SparseKernel(eqx.Module):
    """The kept entries of a kernel, by rows and by columns, and whether they fitted."""

    rows: PaddedRows
    columns: PaddedRows
    fits: Bool[Array, ""]


class SparseCG(eqx.Module):
    """Conjugate gradients on the entries ``P_ij >= delta min(r_i / m, c_j / n)``.

    What is dropped from row i is then at most ``delta r_i``, from column j ``delta c_j``; the diagonal keeps the full
    sums, so the matrix stays positive semidefinite and within ``delta`` of S relative to ``D_r``. Where a row or column
    keeps more than `width` entries, `dense` takes over: nothing is cut off.
    """

    width: int = eqx.field(static=True)
    dense: DenseCG = DenseCG()

    def prepare(self, problem: Problem, kernel: Kernel) -> Any:
        """Find the kept entries of a kernel just formed (three passes over it), unless it is still annealing."""
        if not kernel.K.stored:
            return self.prepare_streamed(problem, kernel)
        n, m = kernel.K.shape
        K = kernel.K.dense()
        dtype = self.dense.dtype_for(K.dtype)
        nothing = self.nothing(n, m, dtype)

        def kept():
            # (1)
            least = DROPPED * jnp.minimum((kernel.r / m)[:, None], (problem.b / n)[None, :])
            return (kernel.alpha[:, None] * K * kernel.beta[None, :] >= least) & (K > 0)

        def build():
            keep = kept()
            rows, columns = (_compress(keep, K, self.width, dtype, axis) for axis in (1, 0))
            return SparseKernel(rows, columns, jnp.ones((), bool))

        longest = [jnp.max(jnp.sum(kept(), axis, dtype=jnp.int32)) for axis in (0, 1)]
        fits = (longest[0] <= self.width) & (longest[1] <= self.width)
        return lax.cond(fits & (kernel.epsilon <= problem.epsilon), build, lambda: nothing)

    def nothing(self, n: int, m: int, dtype) -> SparseKernel:
        """Return room for the kept entries of an n x m kernel."""
        blank = lambda k: PaddedRows(jnp.zeros((k, self.width), jnp.int32), jnp.zeros((k, self.width), dtype))  # noqa: E731
        return SparseKernel(blank(n), blank(m), jnp.zeros((), bool))

    def prepare_streamed(self, problem: Problem, kernel: Kernel) -> SparseKernel:
        """Find the kept entries of a kernel that is not stored, tile by tile, while annealing too."""
        n, m = kernel.K.shape
        rows, columns = kernel.r / m, problem.b / n
        dtype = self.dense.dtype_for(kernel.r.dtype)

        def lines(K, alpha, beta, mine, other, compress):
            def tile(entries, alpha, mine, beta, other):
                # (1)
                least = DROPPED * jnp.minimum(mine[:, None], other[None, :])
                keep = (alpha[:, None] * entries * beta[None, :] >= least) & (entries > 0)
                if compress:
                    return _compress(keep, entries, self.width, dtype, 1)
                return jnp.sum(keep, 1, dtype=jnp.int32)

            return K.over_rows(tile, alpha, mine, shared=(beta, other))

        def both(compress):
            return (
                lines(kernel.K, kernel.alpha, kernel.beta, rows, columns, compress),
                lines(kernel.K.T, kernel.beta, kernel.alpha, columns, rows, compress),
            )

        longest = jnp.maximum(*(jnp.max(x) for x in both(False)))
        fits = longest <= self.width
        return lax.cond(fits, lambda: SparseKernel(*both(True), jnp.ones((), bool)), lambda: self.nothing(n, m, dtype))

    def modes(self, problem: Problem) -> SlowModes | None:
        """Return those of the dense backend."""
        return self.dense.modes(problem)

    def direction(self, prepared, problem: Problem, kernel: Kernel, system: System, hard, modes=None) -> Direction:
        """Solve on the kept entries where they fitted, else on all."""

        def sparse():
            dtype = prepared.rows.values.dtype
            s, alpha = system.astype(dtype), kernel.alpha.astype(dtype)
            squares = PaddedRows(prepared.rows.index, prepared.rows.values**2)
            diagonal = s.r - alpha**2 * (squares @ s.w)
            product = lambda x: alpha * (prepared.rows @ (s.w * (prepared.columns @ (alpha * x))))  # noqa: E731
            better, correct = improve(modes, kernel.K.astype(dtype), alpha, s, problem.rows)
            return Direction.of(pcg(product, diagonal, s, problem.rows, self.dense, correct), system, better)

        return lax.cond(prepared.fits, sparse, lambda: self.dense.direction(None, problem, kernel, system, hard, modes))


def default_width(m: int) -> int:
    """Return how many entries a row may keep: ``6 sqrt(m)``, rounded up to a multiple of 32, at most m."""
    return min(m, 32 * math.ceil(6 * math.sqrt(m) / 32))


def _compress(keep, K, width: int, dtype, axis: int):
    """Return the kept entries along an axis, one row of the result a line."""
    n, m = keep.shape
    slot = jnp.where(keep, jnp.cumsum(keep, axis=axis, dtype=jnp.int32) - 1, width)
    i, j = (jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32).reshape(shape), (n, m)) for k, shape in
            ((n, (n, 1)), (m, (1, m))))  # fmt: skip
    line, along = (i, j) if axis == 1 else (j, i)
    lines = n if axis == 1 else m
    index = jnp.full((lines, width), -1, jnp.int32).at[line, slot].set(along, mode="drop")
    here, there = jnp.arange(lines, dtype=jnp.int32)[:, None], jnp.maximum(index, 0)
    values = K[here, there] if axis == 1 else K[there, here]
    return PaddedRows(there, jnp.where(index >= 0, values, 0).astype(dtype))
