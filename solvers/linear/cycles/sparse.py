"""Sums of products along fixed lists of places: sparse matrices times vectors, and times sparse matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.typing import Array, Int

SPREAD = 1.5
"""Rows of one table differ in length by at most this factor, but for tables of few rows."""
FEW_ENTRIES = 50_000
"""What fits a table of this size goes into one: another kernel costs more than what padding adds."""
FEWEST_ROWS = 1 / 16
"""Lengths that fewer than this share of the rows have go to the next longer ones."""
PIECE = 8
"""Entries of a row that are summed in one expression, in a loop over such pieces: little to compile."""
WRITTEN_OUT, MANY_ROWS = 32, 2048
"""Where rows are this many, so many entries are still written out in one expression, which is faster to run."""


def at_once(width: int, rows: int) -> bool:
    """Return whether rows of a table of this size are summed in one expression; otherwise whole pieces fill them."""
    return width < 2 * PIECE or (width <= WRITTEN_OUT and rows >= MANY_ROWS)


def tables_of(counts: Any) -> Any:
    """Return the table of each row, by its number of entries."""
    n, longest = counts.size, int(counts.max(initial=0))
    limits = np.unique(np.ceil(SPREAD ** np.arange(40)))
    kind = np.searchsorted(limits, np.maximum(counts, 1))
    if n * max(longest, 1) <= max(counts.sum() * SPREAD, FEW_ENTRIES):
        kind[:] = 0
    rows_of = np.bincount(kind)
    for k in range(len(rows_of) - 1):
        if 0 < rows_of[k] < FEWEST_ROWS * n:
            kind[kind == k] = k + 1
            rows_of[k + 1] += rows_of[k]
    return kind


class Order(NamedTuple):
    """Another numbering of unknowns: which old one each new one is, and the new number of each old one."""

    old: Any
    new: Any


def by_tables(matrix: Any) -> Order | None:
    """Return the numbering of the rows of a CSR matrix table by table: its product is then in order as it comes.

    None where all are in one.
    """
    kind = tables_of(np.diff(matrix.indptr))
    if np.all(kind == kind[:1]):
        return None
    old = np.argsort(kind, kind="stable").astype(np.int32)
    new = np.empty_like(old)
    new[old] = np.arange(old.size, dtype=np.int32)
    return Order(old, new)


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
        row, left, right = (np.asarray(v) for v in (row, left, right))
        if np.any(row[1:] < row[:-1]):
            order = np.argsort(row, kind="stable")
            row, left, right = row[order], left[order], right[order]
        counts = np.bincount(row, minlength=n)
        ends = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(row.size) - np.repeat(ends[:-1], counts)
        kind, tables, start = tables_of(counts), [], 0
        place = np.empty(n, np.int32)
        for k in np.unique(kind):
            mine = np.flatnonzero(kind == k)
            rows, width = mine.size, max(int(counts[mine].max()), 1)
            width = width if at_once(width, rows) else -(-width // PIECE) * PIECE
            place[mine] = start + np.arange(rows, dtype=np.int32)
            if mine[-1] - mine[0] + 1 == rows:  # one after the other, as in the order of the tables
                these = slice(ends[mine[0]], ends[mine[-1] + 1])
                at = within[these] * rows + (row[these] - mine[0])
            else:
                these = np.flatnonzero((kind == k)[row])
                at = within[these] * rows + (place[row[these]] - start)
            pair = np.full(width * rows, entries, np.int32), np.zeros(width * rows, np.int32)
            for table, values in zip(pair, (left, right), strict=True):
                table[at] = values[these]
            tables.append(tuple(table.reshape(width, rows) for table in pair))
            start += rows
        self.left, self.right = (tuple(jax.device_put(t[s]) for t in tables) for s in (0, 1))
        self.place = None if np.array_equal(place, np.arange(n)) else jax.device_put(place)

    def gather(self, a: Array) -> tuple[Array, ...]:
        """Return the entries of `a` in the tables, for `apply` to use many times."""
        a = jnp.append(a, jnp.zeros(1, a.dtype))
        return tuple(a.at[t].get(mode="promise_in_bounds") for t in self.left)

    def apply(self, entries: tuple[Array, ...], b: Array) -> Array:
        """Return the sums with gathered entries."""
        parts = [summed(e, t, b) for e, t in zip(entries, self.right, strict=True)]
        sums = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        return sums if self.place is None else sums[self.place]


def summed(entries: Array, table: Array, b: Array) -> Array:
    """Return ``sum_k entries[k] b[table[k]]``, piece by piece: ten times the speed of XLA's reduction."""

    def piece(total, e, t):
        for k in range(e.shape[0]):
            total = total + e[k] * b.at[t[k]].get(mode="promise_in_bounds")
        return total

    width, rows = table.shape
    total = jnp.zeros(rows, jnp.result_type(entries, b))
    if at_once(width, rows):
        return piece(total, entries, table)
    pieces = tuple(x.reshape(-1, PIECE, rows) for x in (entries, table))
    return lax.scan(lambda total, x: (piece(total, *x), None), total, pieces)[0]


def _coordinates(matrix: Any, transposed: bool, rows: Order | None = None) -> tuple[Any, Any, Any]:
    """Return row, column and place in the data of each entry of a CSR matrix, or of its transpose, row by row."""
    column, ends, place = matrix.indices, matrix.indptr, np.arange(matrix.nnz)
    if transposed or rows is not None:
        numbered = type(matrix)((place, column, ends), matrix.shape)
        numbered = numbered.T.tocsr() if transposed else numbered
        numbered = numbered if rows is None else numbered[rows.old]
        column, ends, place = numbered.indices, numbered.indptr, numbered.data
    return np.repeat(np.arange(len(ends) - 1), np.diff(ends)), column, place


def times_vector(
    matrix: Any, *, transposed: bool = False, rows: Order | None = None, columns: Order | None = None
) -> Sums:
    """Return the sums of a CSR matrix, its data as a, or of its transpose, times a vector b, both in other orders."""
    row, column, place = _coordinates(matrix, transposed, rows)
    column = column if columns is None else columns.new[column]
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
