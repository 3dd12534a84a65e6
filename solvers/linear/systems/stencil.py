"""Stencil systems on regular grids, and the polyphase layout that makes their sweeps fast."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.accelerator import present
from ...core.checks import fail, float_array
from ...core.typing import Array, Scalar
from .sparse_rows import SparseRows
from .system import Layout, System, settle

Offset = tuple[int, ...]
FEW_POINTS = 512 * 512
"""On accelerators a sweep over a grid of at most so many points takes as long as launching it."""


class Stencil(System, Layout):
    """A matrix on a regular grid: ``(A u)(i) = sum_k coefficients[k] u(i + offsets[k])``, with u = 0 outside.

    Zero outside is a Dirichlet boundary. For one without flux let no coefficient point outside and the others of its
    row add up as they should; axes in `periodic` wrap round.

    Parameters
    ----------
    coefficients : Float[Array, "k"] or Float[Array, "k *grid"]
        One number an offset, or one array over the grid. Traced, differentiable. Those that point outside the grid
        are ignored.
    offsets : sequence of tuples of int
        Distinct, entries in {-1, 0, 1}, one to three of them, the zero offset included. Static.
    periodic : bool or sequence of bool
        Which axes wrap round, all or each. Sweeps and multigrid want an even number of points there. Static.

    Notes
    -----
    The grid is that of the right-hand side. Sweeps are red-black when every offset but the centre joins points of
    different parity (3-, 5- and 7-point stencils), otherwise each of the 2^d parity classes is a colour. They run on
    the classes as separate arrays (the polyphase layout): no masks, and every access has stride one.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Stencil, sor
    >>> A = Stencil.laplacian(2, shift=0.5)
    >>> print(sor(A, jnp.ones((8, 8)), omega=1.3, tol=1e-5).converged)
    True
    """

    coefficients: Array
    offsets: tuple[Offset, ...] = eqx.field(static=True)
    periodic: tuple[bool, ...] = eqx.field(static=True)
    relaxable = True

    def __init__(self, coefficients, offsets: Sequence[Sequence[int]], *, periodic: bool | Sequence[bool] = False):
        self.offsets = tuple(tuple(int(k) for k in o) for o in offsets)
        self.coefficients = float_array("Stencil", "coefficients", coefficients)
        dims = {len(o) for o in self.offsets}
        if len(dims) != 1 or not dims <= {1, 2, 3} or len(set(self.offsets)) != len(self.offsets):
            fail("Stencil", "offsets", "distinct tuples of one length from 1 to 3", offsets)
        if any(abs(k) > 1 for o in self.offsets for k in o) or self._centre not in self.offsets:
            fail("Stencil", "offsets", "in {-1, 0, 1} with the zero offset among them", offsets)
        if self.coefficients.ndim not in (1, 1 + dims.pop()) or len(self.coefficients) != len(self.offsets):
            expected = f"({len(self.offsets)},) or ({len(self.offsets)}, *grid)"
            fail("Stencil", "coefficients", expected, self.coefficients.shape)
        each = (periodic,) * len(self._centre) if isinstance(periodic, bool) else tuple(map(bool, periodic))
        if len(each) != len(self._centre):
            fail("Stencil", "periodic", f"one bool, or one for each of {len(self._centre)} axes", periodic)
        self.periodic = each

    @classmethod
    def laplacian(
        cls, ndim: int = 2, *, scale: Scalar = 1.0, shift: Scalar = 0.0, periodic: bool | Sequence[bool] = False
    ) -> "Stencil":
        """Return ``shift I + scale (2 ndim I - sum of the 2 ndim neighbours)``."""
        scale = float_array("Stencil.laplacian", "scale", scale)
        shift = float_array("Stencil.laplacian", "shift", shift, dtype=scale.dtype)
        dtype = jnp.result_type(scale, shift)
        scale, shift = scale.astype(dtype), shift.astype(dtype)
        coefficients = jnp.stack([shift + 2 * ndim * scale] + [-scale] * (2 * ndim))
        return cls(coefficients, _star(ndim), periodic=periodic)

    @classmethod
    def diffusion(cls, conductivity, *, scale=1.0, shift=1.0) -> "Stencil":
        """Return ``shift I - scale div(conductivity grad)`` on unit cells, zero outside.

        Parameters
        ----------
        conductivity : Float[Array, "*grid"]
            Positive, at the points; a face takes the mean of its two points, a boundary face its only one.
        scale, shift : scalar
            For a step of the heat equation, ``scale = dt / h^2`` (half of it for Crank-Nicolson) and ``shift = 1``.
        """
        k = float_array("Stencil.diffusion", "conductivity", conductivity)
        edge = jnp.pad(k, 1, mode="edge")
        centre = (slice(1, -1),) * k.ndim
        faces = []
        for o in _star(k.ndim)[1:]:
            there = tuple(slice(1 + s, 1 + s + n) for s, n in zip(o, k.shape, strict=True))
            faces.append(jnp.asarray(scale, k.dtype) * (edge[centre] + edge[there]) / 2)
        return cls(jnp.stack([jnp.asarray(shift, k.dtype) + sum(faces), *(-f for f in faces)]), _star(k.ndim))

    @property
    def _centre(self) -> Offset:
        return (0,) * len(self.offsets[0])

    @property
    def transposed(self):
        """The transpose: offsets change sign and varying coefficients move with them."""
        flipped = tuple(tuple(-k for k in o) for o in self.offsets)
        if self.coefficients.ndim == 1:
            return Stencil(self.coefficients, flipped, periodic=self.periodic)
        moved = [shift(c, o, c.shape, self.periodic) for c, o in zip(self.coefficients, flipped, strict=True)]
        return Stencil(jnp.stack(moved), flipped, periodic=self.periodic)

    def check(self, function, b):
        """Raise unless b is an array over the stencil's grid."""
        grid = self.coefficients.shape[1:]
        if b.ndim != len(self._centre):
            fail(function, "b", f"an array over a {len(self._centre)}-D grid, like the stencil", f"shape {b.shape}")
        if grid and grid != b.shape:
            fail(function, "A", f"a stencil with coefficients over the grid {b.shape} of `b`", f"one over {grid}")

    def even(self, function: str, shape: Sequence[int]) -> None:
        """Raise unless periodic axes have an even number of points, as two colours need."""
        odd = [n for n, wraps in zip(shape, self.periodic, strict=True) if wraps and n % 2]
        if odd:
            fail(function, "b", "an even number of points along periodic axes", f"shape {tuple(shape)}")

    def layout(self, shape, *, sweeps):
        """Return the polyphase layout for sweeps, or masks where launches count; the plain grid without sweeps."""
        if not sweeps:
            return self
        small = math.prod(shape) <= FEW_POINTS and present()
        return Masked(self) if small and two_colours(self.offsets) else Phases(self, shape)

    def mv(self, x) -> Array:
        """Return A x."""
        pairs = zip(self.coefficients, self.offsets, strict=True)
        return jnp.asarray(sum(c * shift(x, o, x.shape, self.periodic) for c, o in pairs))

    def diagonal(self):
        """Return the centre coefficient, a scalar when constant."""
        return self.coefficients[self.offsets.index(self._centre)]

    def times(self, unit):
        """Return the stencil of ``unit A``."""
        return eqx.tree_at(lambda s: s.coefficients, self, unit * self.coefficients)

    def row_bound(self):
        """Return the largest absolute row sum over the diagonal; entries that point outside count too."""
        return jnp.max(jnp.sum(jnp.abs(self.coefficients), 0) / jnp.abs(self.diagonal()))

    def rows(self, shape: Sequence[int], *, ordering: str = "colour") -> SparseRows:
        """Return the same matrix as `SparseRows` on the flattened grid, for sweeps in natural order."""
        shape = tuple(shape)
        index: np.ndarray = np.indices(shape)
        entries, row, column = [], [], []
        for k, o in enumerate(self.offsets):
            target = index + np.reshape(o, (-1,) + (1,) * len(shape))
            sizes, wraps = (np.reshape(t, (-1,) + (1,) * len(shape)) for t in (shape, self.periodic))
            target = np.where(wraps, target % sizes, target)
            inside = np.all((target >= 0) & (target < sizes), axis=0)
            row.append(np.asarray(np.ravel_multi_index(tuple(index), shape))[inside])
            column.append(np.ravel_multi_index(tuple(t[inside] for t in target), shape))
            entries.append(k * inside.size + np.flatnonzero(inside))
        full = jnp.reshape(self.coefficients, (len(self.offsets), -1))
        full = jnp.broadcast_to(full, (len(self.offsets), index[0].size)).ravel()
        values = full[np.concatenate(entries)]
        return SparseRows(values, np.concatenate(row), np.concatenate(column), ordering=ordering)


class Masked(Layout):
    """A stencil of two colours on the whole grid: a sweep computes twice what it needs, in one expression.

    Accelerators make one kernel of it, where the polyphase layout takes several; on a small grid nothing else counts.
    """

    stencil: Stencil

    def mv(self, y):
        """Return A y."""
        return self.stencil.mv(y)

    def diagonal(self):
        """Return the diagonal."""
        return self.stencil.diagonal()

    def sweeper(self, omega):
        """Return the sweep of `Phases`: even points first."""
        diagonal, centre = self.stencil.diagonal(), (0,) * len(self.stencil.periodic)
        pairs = [p for p in zip(self.stencil.coefficients, self.stencil.offsets, strict=True) if p[1] != centre]

        def sweep(y, b, reverse=False):
            colour = sum(lax.broadcasted_iota(jnp.int32, b.shape, axis) for axis in range(b.ndim)) % 2
            for c in (1, 0) if reverse else (0, 1):
                others = sum(k * shift(y, o, y.shape, self.stencil.periodic) for k, o in pairs)
                y = jnp.where(colour == c, (1 - omega) * y + omega / diagonal * (b - others), y)  # (1)
            return y

        return sweep


def two_colours(offsets: Sequence[Offset]) -> bool:
    """Return whether every offset but the centre joins points of different parity."""
    return all(sum(o) % 2 for o in offsets if any(o))


class Phases(Layout):
    """The polyphase layout of a stencil: one array for each parity class of grid points.

    A point ``2 i + p`` with p in {0, 1}^d lives at index i of array p; its neighbour at offset o is at index
    ``i + (p + o - q) / 2`` of array ``q = (p + o) mod 2``. An odd axis is padded by a layer that stays zero, so that
    all classes have one shape and XLA makes one kernel of those of a colour.
    """

    coefficients: tuple[tuple[Array, ...], ...]
    masks: tuple[Array | None, ...]
    offsets: tuple[Offset, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    periodic: tuple[bool, ...] = eqx.field(static=True)

    def __init__(self, stencil: Stencil, shape: tuple[int, ...]):
        stencil.even("Stencil", shape)
        self.offsets, self.shape, self.periodic = stencil.offsets, shape, stencil.periodic
        self.masks = tuple(self._mask(p, stencil.coefficients.dtype) for p in self.parities)
        if stencil.coefficients.ndim == 1:
            self.coefficients = tuple((c,) * len(self.parities) for c in stencil.coefficients)
        else:
            # XLA for GPUs (0.11) returns other numbers where it fuses what makes the coefficients into their classes:
            # a solve then converges, to the solution of another system.
            pairs = zip(lax.optimization_barrier(stencil.coefficients), self.offsets, strict=True)
            self.coefficients = tuple(self._split(c, 0 if any(o) else 1) for c, o in pairs)

    @property
    def parities(self) -> list[Offset]:
        """The classes, in the order they are packed."""
        return list(itertools.product((0, 1), repeat=len(self.shape)))

    @property
    def colours(self) -> list[list[int]]:
        """Classes that may be updated at once, in sweep order."""
        parities = self.parities
        if two_colours(self.offsets):
            return [[k for k, p in enumerate(parities) if sum(p) % 2 == c] for c in (0, 1)]
        return [[k] for k in range(len(parities))]

    def _split(self, x, fill):
        x = jnp.pad(x, [(0, n % 2) for n in self.shape], constant_values=fill) if any(n % 2 for n in self.shape) else x
        return tuple(x[tuple(slice(k, None, 2) for k in p)] for p in self.parities)

    def _mask(self, parity: Offset, dtype) -> Array | None:
        """Return one inside the grid and zero in the padding of a class, None for a class without."""
        shape = tuple((n + 1) // 2 for n in self.shape)
        inside = [
            lax.broadcasted_iota(jnp.int32, shape, axis) < n // 2
            for axis, (n, p) in enumerate(zip(self.shape, parity, strict=True))
            if n % 2 and p
        ]
        # An array of its own: a comparison of indices inside the sweep would keep the CPU from vectorising it.
        return settle(functools.reduce(jnp.logical_and, inside).astype(dtype)) if inside else None

    def _inside(self, x, k: int):
        return x if self.masks[k] is None else self.masks[k] * x

    def pack(self, x):
        """Return the tuple of parity classes."""
        return self._split(x, 0)

    def unpack(self, y):
        """Interleave the classes."""
        dims = len(self.shape)
        # Stacked, not added up from dilated pads: one pass over the result instead of one a class.
        classes = jnp.stack(y).reshape((2,) * dims + y[0].shape)
        order = [k for axis in range(dims) for k in (dims + axis, axis)]
        whole = classes.transpose(order).reshape([2 * half for half in y[0].shape])
        return whole[tuple(slice(n) for n in self.shape)]

    def _couplings(self, y, k: int):
        """Return the off-diagonal part of A y on class k."""
        parities, total = self.parities, jnp.zeros_like(y[k])
        for c, o in zip(self.coefficients, self.offsets, strict=True):
            if any(o):
                there = [p + s for p, s in zip(parities[k], o, strict=True)]
                source = tuple(t % 2 for t in there)
                total += c[k] * shift(
                    y[parities.index(source)], tuple(t // 2 for t in there), y[k].shape, self.periodic
                )
        return total

    def mv(self, y):
        """Return A y."""
        parts = enumerate(zip(self.diagonal(), y, strict=True))
        return tuple(self._inside(d * part + self._couplings(y, k), k) for k, (d, part) in parts)

    def diagonal(self):
        """Return the diagonal on each class."""
        return self.coefficients[self.offsets.index((0,) * len(self.shape))]

    def sweeper(self, omega):
        """Return the sweep colour by colour, ``x_k <- (1 - omega) x_k + (omega / D_k) (b_k - (L x + U x)_k)`` (1)."""
        gain = [settle(self._inside(omega / d, k)) for k, d in enumerate(self.diagonal())]

        def sweep(y, b, reverse=False):
            y = list(y)
            for colour in reversed(self.colours) if reverse else self.colours:
                for k in colour:
                    y[k] = (1 - omega) * y[k] + gain[k] * (b[k] - self._couplings(y, k))  # (1)
            return tuple(y)

        return sweep


def shift(x: Array, offset: Sequence[int], shape: Sequence[int], periodic: Sequence[bool] = ()) -> Array:
    """Return the array of `shape` with ``x[i + offset]`` at i; zero where that is outside, but periodic axes wrap."""
    for axis, wraps in enumerate(periodic):
        if wraps and offset[axis]:
            x = jnp.roll(x, -offset[axis], axis)
            offset = tuple(0 if a == axis else o for a, o in enumerate(offset))
    ends = [(-o, n - m + o, 0) for o, n, m in zip(offset, shape, x.shape, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), ends) if any(map(any, ends)) else x


def _star(ndim: int) -> tuple[Offset, ...]:
    """Return the centre and the 2 ndim nearest neighbours."""
    unit = np.eye(ndim, dtype=int)
    return tuple(tuple(int(k) for k in o) for o in [np.zeros(ndim, int), *unit, *-unit])
