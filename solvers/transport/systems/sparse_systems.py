"""The Newton matrix on the entries of the plan that matter, in rows of a static length.

Where Tang et al. (ICLR 2024) keep a fixed number of entries, here the mass that is dropped is bounded:

(1) ``P_ij >= delta min(r_i / m, c_j / n)`` is kept, so that row i loses at most ``delta r_i``, column j ``delta c_j``
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core.typing import Array, Bool, Float, Int
from ..problem import Problem
from .gibbs_kernel import Kernel
from .newton_systems import DenseCG, Direction, System, improve, pcg
from .slow_modes import SlowModes

DROPPED = 1e-5
"""Bound on the fraction of any row's or column's mass that is left out."""
WORD = 32
"""Entries whose fate one word holds."""


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
        """Find the kept entries of a kernel just formed (two passes over it), unless it is still annealing."""
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

        def packed():
            rows, columns = (Kept.of(kept(), axis) for axis in (1, 0))

            def build():
                by_row = compressed(rows, K, self.width, dtype, 1)
                return SparseKernel(by_row, compressed(columns, K, self.width, dtype, 0), jnp.ones((), bool))

            return lax.cond(jnp.maximum(rows.longest, columns.longest) <= self.width, build, lambda: nothing)

        return lax.cond(kernel.epsilon <= problem.epsilon, packed, lambda: nothing)

    def rescaled(self, prepared: SparseKernel, kernel: Kernel) -> SparseKernel:
        """Return the kept entries of the kernel that results when the scalings of `kernel` are absorbed."""
        rows, columns = prepared.rows, prepared.columns
        alpha, beta = (x.astype(rows.values.dtype) for x in (kernel.alpha, kernel.beta))
        rows = PaddedRows(rows.index, alpha[:, None] * rows.values * beta[rows.index])
        columns = PaddedRows(columns.index, beta[:, None] * columns.values * alpha[columns.index])
        return SparseKernel(rows, columns, prepared.fits)

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
                    return compressed(Kept.of(keep, 1), entries, self.width, dtype, 1)
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


class Kept(eqx.Module):
    """Which entries of each line of a matrix are kept, 32 of them a word, and how many come before each word's end."""

    words: Int[Array, "lines words"]
    ends: Int[Array, "lines words"]

    @classmethod
    def of(cls, keep: Bool[Array, "n m"], axis: int) -> "Kept":
        """Pack the entries along an axis: one pass over them, after which only words are looked at."""
        size = keep.shape[axis]
        keep = jnp.pad(keep, [(0, -size % WORD if k == axis else 0) for k in range(2)])
        keep = keep.reshape((-1, WORD, keep.shape[1]) if axis == 0 else (keep.shape[0], -1, WORD))
        place = jnp.arange(WORD, dtype=jnp.uint32)
        place = place[None, :, None] if axis == 0 else place[None, None, :]
        words = jnp.sum(keep.astype(jnp.uint32) << place, axis + 1, dtype=jnp.uint32)
        words = words.T if axis == 0 else words
        return cls(words, jnp.cumsum(lax.population_count(words).astype(jnp.int32), 1, dtype=jnp.int32))

    @property
    def longest(self) -> Int[Array, ""]:
        """Largest number of entries that a line keeps."""
        return jnp.max(self.ends[:, -1])

    def places(self, width: int) -> tuple[Int[Array, "lines width"], Bool[Array, "lines width"]]:
        """Return where the first, second, ... kept entry of each line is, zero beyond, and whether there is one."""
        slot = (
            jnp.arange(width, dtype=jnp.int32) + 0 * self.ends[0, 0]
        )  # else XLA folds a constant of the result's size
        find = partial(jnp.searchsorted, v=slot, side="right", method="scan_unrolled")
        word = jnp.minimum(jax.vmap(find)(self.ends).astype(jnp.int32), self.words.shape[1] - 1)
        bits = jnp.take_along_axis(self.words, word, 1)
        count = lambda x: lax.population_count(x).astype(jnp.int32)  # noqa: E731
        rank = slot[None, :] - (jnp.take_along_axis(self.ends, word, 1) - count(bits))
        place = jnp.zeros_like(word)
        for half in (16, 8, 4, 2, 1):  # the bit of that rank, by halves
            low = count(bits & jnp.uint32((1 << half) - 1))
            above = rank >= low
            rank, place = jnp.where(above, rank - low, rank), jnp.where(above, place + half, place)
            bits = jnp.where(above, bits >> half, bits)
        some = slot[None, :] < self.ends[:, -1:]
        return jnp.where(some, WORD * word + place, 0), some


def compressed(kept: Kept, K, width: int, dtype, axis: int) -> PaddedRows:
    """Return the kept entries along an axis, one row of the result a line."""
    there, some = kept.places(width)
    here = jnp.arange(there.shape[0], dtype=jnp.int32)[:, None]
    values = K[here, there] if axis == 1 else K[there, here]
    return PaddedRows(there, jnp.where(some, values, 0).astype(dtype))
