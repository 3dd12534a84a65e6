"""The entries of a matrix as its rows see them and as its columns do, in chunks of equal length."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.precision import HIGHEST
from ..core.typing import Array, Float, Int

BLOCK = 1 << 22
"""Numbers gathered at a time; what a sum over all entries needs beside its result."""


class Side(eqx.Module):
    """One side of the entries: each row's own, padded to whole chunks.

    ``sum ceil(d_i / L)`` chunks of length L hold rows of d_i entries; there are at most ``m / L + n``, so the arrays
    have fixed shapes whatever the entries. A free place points behind the last row of the other side, at zeros.

    Attributes
    ----------
    near : Int[Array, "c l"]
        Row on the other side.
    values : Float[Array, "c l"]
        The entries, zero at free places.
    row : Int[Array, "c"]
        Whose chunk it is, rising; `size` for free chunks.
    degree : Float[Array, "n"]
        Entries of each row, on all devices.
    size : int
        Rows, static.
    axis : str or None
        Mapped axis over which the entries are split; static.
    """

    near: Int[Array, "c l"]
    values: Float[Array, "c l"]
    row: Int[Array, " c"]
    degree: Float[Array, " n"]
    size: int = eqx.field(static=True)
    axis: str | None = eqx.field(static=True)

    @staticmethod
    def of(own: Array, other: Array, values: Array, sizes: tuple[int, int], *, length: int, axis=None) -> "Side":
        """Sort the entries into chunks; indices out of range are no entries."""
        (n, p), m = sizes, values.shape[0]
        real = (own >= 0) & (own < n) & (other >= 0) & (other < p)
        own = jnp.where(real, own, n).astype(jnp.int32)
        order = jnp.argsort(own, stable=True)
        own = own[order]
        degree = jnp.zeros(n, jnp.int32).at[own].add(1, mode="drop", indices_are_sorted=True)
        chunks = (degree + length - 1) // length
        first, ends = jnp.cumsum(degree) - degree, jnp.cumsum(chunks)
        # A place for each entry: the chunks of its row begin at ends - chunks.
        of_row = jnp.minimum(own, n - 1)
        rank = jnp.arange(m, dtype=jnp.int32) - first[of_row]
        count = (m + min(n, m) * (length - 1)) // length
        place = jnp.where(own < n, (ends - chunks)[of_row] * length + rank, count * length)
        near = jnp.full(count * length, p, jnp.int32).at[place].set(other[order].astype(jnp.int32), mode="drop")
        placed = jnp.zeros(count * length, values.dtype).at[place].set(values[order], mode="drop")
        row = jnp.searchsorted(ends, jnp.arange(count, dtype=jnp.int32), side="right").astype(jnp.int32)
        seen = degree.astype(values.dtype)
        seen = seen if axis is None else lax.psum(seen, axis)
        return Side(near.reshape(count, length), placed.reshape(count, length), row, seen, n, axis)

    @property
    def length(self) -> int:
        """Places of a chunk."""
        return self.near.shape[1]

    def total(self, x: Array) -> Array:
        """Return a sum over all devices."""
        return x if self.axis is None else lax.psum(x, self.axis)

    def gather(self, function, tables: Array, own: Array, shape: tuple[int, ...]) -> Array:
        """Return, for each row, the sum over its chunks of ``function(near rows of tables, own row, values, number)``.

        `function` takes a block of chunks, (b, l, k), (b, j), (b, l), (b,), and returns (b, *shape).
        """
        tables = jnp.pad(tables, ((0, 1), (0, 0)))
        own = jnp.pad(own, ((0, 1), (0, 0)))
        count, length = self.near.shape
        block = max(1, min(count, BLOCK // (length * tables.shape[1])))
        blocks = math.ceil(count / block)
        number = jnp.arange(count, dtype=jnp.int32)
        start = jnp.zeros((self.size, *shape), tables.dtype)

        def add(total, arrays):
            near, values, row, number = arrays
            parts = function(tables[near], own[row], values, number)
            return total.at[row].add(parts, mode="drop", indices_are_sorted=True)

        if blocks == 1:
            return self.total(add(start, (self.near, self.values, self.row, number)))
        spare = blocks * block - count
        last = jnp.pad(self.near, ((0, spare), (0, 0)), constant_values=tables.shape[0] - 1)
        arrays = (
            last,
            jnp.pad(self.values, ((0, spare), (0, 0))),
            jnp.pad(self.row, (0, spare), constant_values=self.size),
            jnp.pad(number, (0, spare), mode="edge"),
        )
        arrays = jax.tree.map(lambda x: x.reshape(blocks, block, *x.shape[1:]), arrays)
        return self.total(lax.scan(lambda total, x: (add(total, x), None), start, arrays)[0])

    def values_times(self, other: Float[Array, "p k"]) -> Float[Array, "n k"]:
        """Return ``V other`` for the matrix V of the entries, zero elsewhere."""
        empty = jnp.zeros((self.size, 0), other.dtype)
        return self.gather(lambda z, _, v, __: pair("clk,cl->ck", z, v), other, empty, other.shape[1:])

    def normal_times(self, own: Array, design: Array, *, data: bool = False) -> Array:
        """Return ``Z'(Z own - values)`` row by row, Z the near rows of `design`; of its linear part without `data`.

        With `data`, `design` may have one column more than `own`, which is added to ``Z own``.
        """
        k = own.shape[1]

        def one(z, own, v, _):
            seen = pair("clk,ck->cl", z[:, :, :k], own)
            if data:
                seen = seen - v if z.shape[2] == k else seen + z[:, :, k] - v
            return pair("clk,cl->ck", z[:, :, :k], seen)

        return self.gather(one, design, own, (k,))

    def residual_times(self, left: Array, design: Array, other: Array) -> Array:
        """Return ``A*(A(left design') - values) other``."""
        k = left.shape[1]

        def one(z, own, v, _):
            seen = pair("clk,ck->cl", z[:, :, :k], own)
            seen = seen - v if design.shape[1] == k else seen + z[:, :, k] - v
            return pair("clk,cl->ck", z[:, :, design.shape[1] :], seen)

        return self.gather(one, jnp.concatenate([design, other], axis=1), left, (other.shape[1],))

    def gram(self, design: Float[Array, "p k"]) -> Float[Array, "n k k"]:
        """Return ``Z'Z`` of each row."""
        k = design.shape[1]
        empty = jnp.zeros((self.size, 0), design.dtype)
        return self.gather(lambda z, *_: pair("clk,clj->ckj", z, z), design, empty, (k, k))

    def sketched_gram(self, design: Float[Array, "p k"], key: Array) -> Float[Array, "n k k"]:
        """Return ``(S Z)'(S Z)``; S adds each entry, signed at random, to one of as many sums as a chunk has places."""
        k = design.shape[1]

        def one(z, _, __, number):
            draw = jax.vmap(lambda i: jax.random.rademacher(jax.random.fold_in(key, i), (self.length,), z.dtype))
            return z * draw(number)[:, :, None]

        empty = jnp.zeros((self.size, 0), design.dtype)
        sketch = self.gather(one, design, empty, (self.length, k))
        return pair("nlk,nlj->nkj", sketch, sketch)

    def square(self, left: Array, design: Array) -> Array:
        """Return ``|A(left design') - values|^2``."""
        k = left.shape[1]

        def one(z, own, v, _):
            seen = pair("clk,ck->cl", z[:, :, :k], own)
            seen = seen - v if design.shape[1] == k else seen + z[:, :, k] - v
            return jnp.sum(seen * seen, axis=1)

        return jnp.sum(self.gather(one, design, left, ()))

    def quartic(self, point: tuple[Array, Array], move: tuple[Array, Array]) -> Array:
        """Return ``r0 r1, r1 r1, r0 r2, r1 r2, r2 r2`` of ``r0 + t r1 + t^2 r2 = A((F + t D)(G + t E)') - v``."""
        k = point[0].shape[1]

        def one(z, own, v, _):
            (g, e), (f, d) = (z[:, :, :k], z[:, :, k:]), (own[:, :k], own[:, k:])
            r0 = pair("clk,ck->cl", g, f) - v
            r1 = pair("clk,ck->cl", g, d) + pair("clk,ck->cl", e, f)
            r2 = pair("clk,ck->cl", e, d)
            return jnp.stack([jnp.sum(x * y, axis=1) for x, y in ((r0, r1), (r1, r1), (r0, r2), (r1, r2), (r2, r2))], 1)

        near, own = (jnp.concatenate([x, y], axis=1) for x, y in ((point[1], move[1]), (point[0], move[0])))
        return jnp.sum(self.gather(one, near, own, (5,)), axis=0)


def pair(subscripts: str, x: Array, y: Array) -> Array:
    """Return ``einsum`` at full precision."""
    return jnp.einsum(subscripts, x, y, precision=HIGHEST)


def chunk_length(entries: int, rows: int) -> int:
    """Return a power of two near a third of the mean number of entries of a row: padding costs half of it a row."""
    mean = max(entries, 1) / max(rows, 1)
    return int(min(128, max(4, 2 ** round(math.log2(max(mean / 3, 1))))))
