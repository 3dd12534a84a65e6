"""Sums of products along fixed lists of places: sparse matrices times vectors, and times sparse matrices."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.typing import Array, Int

SPREAD = 1.5
"""Rows of one table differ in length by at most this factor."""
WRITTEN_OUT = 32
"""Tables of at most this many entries a row are summed in one expression, wider ones in a loop over pieces."""
PIECE = 8


class Sums(eqx.Module):
    """``out[i] = sum_k a[left[i, k]] b[right[i, k]]``, rows of about equal length in one table: gathers, no scatter.

    Attributes
    ----------
    left, right : tuple of Int[Array, "width rows"]
        One table a length; an index one beyond the end of `a` stands for zero.
    place : Int[Array, "n"]
        Where each row of the result is in the tables one after the other.
    columns, entries : int
        The lengths of `b` and `a`.
    """

    left: tuple[Int[Array, "width rows"], ...]
    right: tuple[Int[Array, "width rows"], ...]
    place: Int[Array, " n"] | None
    columns: int = eqx.field(static=True)
    entries: int = eqx.field(static=True)

    def __init__(self, row: Any, left: Any, right: Any, shape: tuple[int, int], entries: int):
        n, self.columns, self.entries = shape[0], shape[1], entries
        row, left, right = (np.asarray(v, np.int64) for v in (row, left, right))
        order = np.argsort(row, kind="stable")
        row, left, right = row[order], left[order], right[order]
        counts = np.bincount(row, minlength=n)
        starts = np.r_[0, np.cumsum(counts)]
        limits, tables, places = np.unique(np.ceil(SPREAD ** np.arange(40))), [], []
        kind = np.searchsorted(limits, np.maximum(counts, 1))
        if counts.sum() * SPREAD > n * max(int(counts.max(initial=0)), 1):
            kind[:] = 0  # one table wastes little
        for k in np.unique(kind):
            mine = np.flatnonzero(kind == k)
            width = max(int(counts[mine].max()), 1)
            width = width if width <= WRITTEN_OUT else -(-width // PIECE) * PIECE
            at = starts[mine] + np.arange(width)[:, None]
            inside = np.arange(width)[:, None] < counts[mine]
            at = np.where(inside, at, 0)
            pick = lambda v, fill, at=at, inside=inside: np.where(inside, np.append(v, 0)[at], fill)  # noqa: E731
            tables.append((pick(left, entries), pick(right, 0)))
            places.append(mine)
        self.left, self.right = (tuple(jnp.asarray(t[s], jnp.int32) for t in tables) for s in (0, 1))
        place = np.empty(n, np.int64)
        place[np.concatenate(places)] = np.arange(n)
        self.place = None if len(tables) == 1 else jnp.asarray(place, jnp.int32)

    def gather(self, a: Array) -> tuple[Array, ...]:
        """Return the entries of `a` in the tables, for `apply` to use many times."""
        a = jnp.append(a, jnp.zeros(1, a.dtype))
        return tuple(a.at[t].get(mode="promise_in_bounds") for t in self.left)

    def apply(self, entries: tuple[Array, ...], b: Array) -> Array:
        """Return the sums with gathered entries."""
        parts = [summed(e, t, b) for e, t in zip(entries, self.right, strict=True)]
        return parts[0] if self.place is None else jnp.concatenate(parts)[self.place]


def summed(entries: Array, table: Array, b: Array) -> Array:
    """Return ``sum_k entries[k] b[table[k]]``, written out: one pass, at ten times the speed of XLA's reduction."""

    def piece(total, e, t):
        for k in range(e.shape[0]):
            total = total + e[k] * b.at[t[k]].get(mode="promise_in_bounds")
        return total

    width, rows = table.shape
    total = jnp.zeros(rows, jnp.result_type(entries, b))
    if width <= WRITTEN_OUT:
        return piece(total, entries, table)
    pieces = tuple(x.reshape(-1, PIECE, rows) for x in (entries, table))
    return lax.scan(lambda total, x: (piece(total, *x), None), total, pieces)[0]


def _coordinates(matrix: Any, transposed: bool) -> tuple[Any, Any, Any]:
    """Return row, column and place in the data of each entry of a CSR matrix, or of its transpose, row by row."""
    row, column = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices
    if transposed:
        order = np.argsort(column, kind="stable")
        return column[order], row[order], order
    return row, column, np.arange(matrix.nnz)


def times_vector(matrix: Any, *, transposed: bool = False) -> Sums:
    """Return the sums of a CSR matrix, its data as a, or of its transpose, times a vector b."""
    row, column, place = _coordinates(matrix, transposed)
    return Sums(row, place, column, matrix.shape[::-1] if transposed else matrix.shape, matrix.nnz)


def times_matrix(left: Any, right: Any, result: Any, *, transposed: bool = False) -> Sums:
    """Return the sums that give the data of ``result = left @ right``, or ``left' @ right``, from the data of both.

    CSR with sorted indices; the pattern of `result` may be larger than that of the product, not smaller.
    """
    row, column, place = _coordinates(left, transposed)
    column = column.astype(np.int64)
    lengths = np.diff(right.indptr)[column]
    first = np.repeat(np.arange(left.nnz), lengths)
    within = np.arange(first.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    second = np.repeat(right.indptr[column], lengths) + within
    width = result.shape[1]
    keys = np.repeat(np.arange(result.shape[0]), np.diff(result.indptr)) * width + result.indices
    slot = np.searchsorted(keys, row[first].astype(np.int64) * width + right.indices[second])
    return Sums(slot, place[first], second, (result.nnz, right.nnz), left.nnz)
