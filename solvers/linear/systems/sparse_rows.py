"""Sparse matrices of a fixed pattern, with rows sorted by colour so that a sweep is a few gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.checks import choice, fail, float_array
from ...core.typing import Array, Float, Int
from .system import Layout, System

UNROLLED = 8
"""Sweeps over at most this many colours are unrolled."""


class SparseRows(System):
    """A sparse matrix given by its entries ``values[e]`` at ``(row[e], column[e])``; duplicates add up.

    Parameters
    ----------
    values : Float[Array, "nnz"]
        Traced, differentiable; `with_values` keeps the pattern, so that nothing is compiled or coloured again.
    row, column : Int[np.ndarray, "nnz"]
        The pattern; host arrays. Every row needs a diagonal entry.
    ordering : str
        In what order a sweep visits rows: ``"colour"`` (greedy colouring, rows of a colour at once) or ``"natural"``
        (rows in their own order, those that do not wait for each other at once; deep patterns make slow sweeps).

    Notes
    -----
    Colours and dependency levels are found once on the host, in O(nnz). Rows are stored at one width (ELL) with
    their columns renumbered in the order of the sweep; a colour is then a slice, and no scatter is needed. Derivatives
    with respect to the whole system need ``equinox.filter_grad``, since the pattern is made of integer arrays.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> from solvers import SparseRows, sor
    >>> A = SparseRows.from_scipy(sp.diags([-1.0, 2.5, -1.0], [-1, 0, 1], shape=(6, 6)))
    >>> bool(sor(A, np.ones(6), omega=1.1, tol=1e-5).converged)
    True
    """

    values: Float[Array, " nnz"]
    order: Int[Array, " n"]
    position: Int[Array, " n"]
    pattern: tuple[Array, Array, Array]
    pattern_t: tuple[Array, Array, Array]
    starts: tuple[int, ...] = eqx.field(static=True)
    relaxable = True

    def __init__(self, values, row, column, *, ordering: str = "colour"):
        self.values = float_array("SparseRows", "values", values, ndim=1)
        choice("SparseRows", "ordering", ordering, ("colour", "natural"))
        row, column = np.asarray(row, np.int64), np.asarray(column, np.int64)
        if row.shape != column.shape or row.shape != self.values.shape:
            shapes = f"{row.shape}, {column.shape} and {self.values.shape}"
            fail("SparseRows", "row", "of one shape with `column` and `values`", shapes)
        if row.size == 0:
            fail("SparseRows", "row", "at least one entry", "none")
        for name, index in (("row", row), ("column", column)):
            if index.min() < 0:
                at = int(np.argmin(index))
                fail("SparseRows", name, "indices from 0 upwards", f"{index[at]} at entry {at}")
        n = int(max(row.max(), column.max())) + 1
        if n > row.size:
            where = "row" if row.max() >= column.max() else "column"
            fail("SparseRows", where, f"below the number of rows, at most {row.size} with a diagonal entry each", n - 1)
        missing = np.setdiff1d(np.arange(n), row[row == column])
        if missing.size:
            fail("SparseRows", "row", "a pattern with every diagonal entry", f"none in row {missing[0]}")
        group = _groups(n, row, column, ordering)
        order = np.argsort(group, kind="stable")
        position = np.empty(n, np.int64)
        position[order] = np.arange(n)
        self.order, self.position = jnp.asarray(order, jnp.int32), jnp.asarray(position, jnp.int32)
        self.starts = tuple(int(s) for s in np.searchsorted(group[order], np.arange(group.max() + 2)))
        self.pattern = _ell(n, position[row], position[column])
        self.pattern_t = _ell(n, position[column], position[row])

    @classmethod
    def from_scipy(cls, matrix: Any, *, ordering: str = "colour") -> "SparseRows":
        """Return the system of a SciPy sparse matrix or array of any format."""
        if matrix.shape[0] != matrix.shape[1]:
            fail("SparseRows.from_scipy", "matrix", "square", matrix.shape)
        coo = matrix.tocoo()
        return cls(jnp.asarray(coo.data), coo.row, coo.col, ordering=ordering)

    def with_values(self, values) -> "SparseRows":
        """Return the system with other entries at the same places."""
        values = float_array("SparseRows.with_values", "values", values)
        if values.shape != self.values.shape:
            fail("SparseRows.with_values", "values", f"of shape {self.values.shape}", values.shape)
        return eqx.tree_at(lambda s: s.values, self, values)

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Return row and column of each of `values`, as host arrays."""
        columns, slots, diagonal = (np.asarray(p) for p in self.pattern)
        order, count = np.asarray(self.order), self.values.size
        row, column = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
        row[slots], column[slots] = order[:, None], order[columns]  # those of the slot past the end are dropped
        row[diagonal] = column[diagonal] = order[:, None]
        return row[:-1], column[:-1]

    @property
    def transposed(self):
        """The transpose, on the same colours."""
        return eqx.tree_at(lambda s: (s.pattern, s.pattern_t), self, (self.pattern_t, self.pattern))

    def diagonal(self):
        """Return the diagonal."""
        padded = jnp.append(self.values, jnp.zeros(1, self.values.dtype))
        return jnp.sum(padded[self.pattern[2]], 1)[self.position]

    def times(self, unit):
        """Return the system of ``unit A``."""
        return eqx.tree_at(lambda s: s.values, self, unit * self.values)

    def check(self, function, b):
        """Raise unless b has one entry a row."""
        if b.shape != self.order.shape:
            fail(function, "b", f"of shape {self.order.shape}, one entry a row of `A`", b.shape)

    def mv(self, x):
        """Return A x."""
        sorted_rows = self.layout(x.shape, sweeps=False)
        return sorted_rows.unpack(sorted_rows.mv(sorted_rows.pack(x)))

    def layout(self, shape, *, sweeps):
        """Return the rows in sweep order with the entries gathered into them."""
        columns, slots, diagonal_slots = self.pattern
        padded = jnp.append(self.values, jnp.zeros(1, self.values.dtype))
        return SortedRows(
            columns, padded[slots], jnp.sum(padded[diagonal_slots], 1), self.order, self.position, self.starts
        )


class SortedRows(Layout):
    """Rows in sweep order: ``columns`` and ``entries`` off the diagonal, the diagonal, and where each group starts."""

    columns: Int[Array, "n width"]
    entries: Float[Array, "n width"]
    centre: Float[Array, " n"]
    order: Int[Array, " n"]
    position: Int[Array, " n"]
    starts: tuple[int, ...] = eqx.field(static=True)

    def pack(self, x):
        """Return the entries in sweep order."""
        return x[self.order]

    def unpack(self, y):
        """Undo `pack`."""
        return y[self.position]

    def mv(self, y):
        """Return A y."""
        return self.centre * y + jnp.sum(self.entries * y[self.columns], 1)

    def diagonal(self):
        """Return the diagonal in sweep order."""
        return self.centre

    def row_bound(self):
        """Return the largest absolute row sum over the diagonal."""
        return jnp.max(1 + jnp.sum(jnp.abs(self.entries), 1) / jnp.abs(self.centre))

    def sweeper(self, omega):
        """Return the sweep group by group."""
        gain, n, groups = omega / self.centre, self.centre.shape[0], len(self.starts) - 1
        width = max(b - a for a, b in zip(self.starts, self.starts[1:], strict=False))

        def relax(y, b, start, size, stop):
            def part(x):
                return lax.dynamic_slice_in_dim(x, start, size)

            change = part(gain) * (part(b) - jnp.sum(part(self.entries) * y[part(self.columns)], 1)) - omega * part(y)
            inside = start + jnp.arange(size, dtype=jnp.int32)
            mine = (inside >= stop[0]) & (inside < stop[1])
            return lax.dynamic_update_slice_in_dim(y, part(y) + jnp.where(mine, change, 0), start, 0)

        def unrolled(y, b, reverse=False):
            spans = list(zip(self.starts, self.starts[1:], strict=False))
            for a, z in reversed(spans) if reverse else spans:
                y = relax(y, b, jnp.int32(a), z - a, (a, z))
            return y

        def looped(y, b, reverse=False):
            edges = jnp.asarray(self.starts, jnp.int32)

            def body(k, y):
                k = groups - 1 - k if reverse else k
                start = jnp.minimum(edges[k], n - width)
                return relax(y, b, start, width, (edges[k], edges[k + 1]))

            return lax.fori_loop(0, groups, body, y)

        return unrolled if groups <= UNROLLED else looped


def _groups(n: int, row: np.ndarray, column: np.ndarray, ordering: str) -> np.ndarray:
    """Return for each row its greedy colour, or its level in the graph of dependencies of a natural sweep."""
    off = row != column
    pairs = np.unique(np.stack([np.r_[row[off], column[off]], np.r_[column[off], row[off]]]), axis=1)
    lower = pairs[:, pairs[1] < pairs[0]]
    starts = np.searchsorted(lower[0], np.arange(n + 1))
    before: Sequence[int] = lower[1].tolist()
    group = [0] * n
    for i in range(n):
        taken = {group[j] for j in before[starts[i] : starts[i + 1]]}
        if ordering == "natural":
            group[i] = 1 + max(taken, default=-1)
        else:
            while group[i] in taken:
                group[i] += 1
    return np.asarray(group)


def _ell(n: int, row: np.ndarray, column: np.ndarray) -> tuple[Array, Array, Array]:
    """Return columns and value slots (n, width) off the diagonal and slots (n, k) on it; slot nnz stands for zero."""

    def table(entries, fill):
        entries = entries[np.argsort(row[entries], kind="stable")]
        place = np.arange(entries.size) - np.searchsorted(row[entries], row[entries])
        out = np.full((n, int(place.max(initial=-1)) + 1), fill)
        out[row[entries], place] = entries
        return out

    slots = table(np.flatnonzero(row != column), row.size)
    columns = np.append(column, 0)[slots]
    diagonal = table(np.flatnonzero(row == column), row.size)
    return jnp.asarray(columns, jnp.int32), jnp.asarray(slots, jnp.int32), jnp.asarray(diagonal, jnp.int32)
