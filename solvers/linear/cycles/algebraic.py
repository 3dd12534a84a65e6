"""Algebraic multigrid: a hierarchy built once on the host by PyAMG, cycles and coarse products on the device."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ...core.checks import choice, fail, float_array
from ...core.precision import eps
from ...core.typing import Array, Float
from ..systems.sparse_rows import SparseRows
from ..systems.system import Layout, System
from .cycle import Level
from .host import MANY_UNKNOWNS, alike, constructed, in_order, inverse, scaled_inverse, transfers, with_zeros
from .sparse import Order, Sums, by_tables, times_matrix, times_vector

KINDS = ("smoothed_aggregation", "ruge_stuben", "rootnode")


class Patterns(eqx.Module):
    """The places of a level: of its products with vectors and, for new values, of ``A P`` and ``P' (A P)``."""

    matrix: Sums
    transposed: Sums
    interpolation: Sums
    restriction: Sums
    half: Sums | None
    whole: Sums | None


class SparseLevel(Level):
    """A sparse matrix and the interpolation from the next level, their entries gathered for products."""

    matrix: tuple[Array, ...]
    interpolation: tuple[Array, ...]
    restriction: tuple[Array, ...]
    product: Sums
    patterns: Patterns

    def mv(self, z):
        """Return A z."""
        return self.product.apply(self.matrix, z)

    def scaling(self):
        """Return the inverse absolute row sums."""
        some = self.matrix[0]
        sums = self.product.apply(tuple(map(jnp.abs, self.matrix)), jnp.ones(self.product.columns, some.dtype))
        return 1 / jnp.where(sums > 0, sums, 1)

    def restrict(self, r):
        """Return ``P' r``."""
        return self.patterns.restriction.apply(self.restriction, r)

    def prolong(self, z):
        """Return ``P z``."""
        return self.patterns.interpolation.apply(self.interpolation, z)


class AlgebraicLayout(Layout):
    """The hierarchy of an `AMG` ready for cycles."""

    fine: tuple[Array, ...]
    centre: Array
    levels: tuple[SparseLevel, ...]
    inverse: Array
    product: Sums
    order: Order | None

    def pack(self, x):
        """Return x in the order of the tables."""
        return x if self.order is None else x[self.order.old]

    def unpack(self, y):
        """Return y in the order of the matrix."""
        return y if self.order is None else y[self.order.new]

    def mv(self, y):
        """Return A y."""
        return self.product.apply(self.fine, y)

    def diagonal(self):
        """Return the diagonal."""
        return self.centre

    def row_bound(self):
        """Return the largest absolute row sum over the diagonal."""
        sums = self.product.apply(tuple(map(jnp.abs, self.fine)), jnp.ones_like(self.centre))
        return jnp.max(sums / jnp.abs(self.centre))


class AMG(System):
    """A sparse system with an algebraic multigrid hierarchy, for `multigrid_cg` and `multigrid_gmres`.

    For matrices without a grid: finite elements, graphs. PyAMG (``pip install pyamg``) chooses coarse unknowns and
    interpolation once, on the host; products, cycles and, with `updates`, coarse matrices of new values are this
    package's, compiled and on the device. On a regular grid with smooth coefficients a `Stencil` is much faster.

    Parameters
    ----------
    matrix : SparseRows, a SciPy sparse matrix or array, or a PyAMG ``MultilevelSolver``
        Square, with a diagonal entry in every row; its numbers must be known (outside of ``jit``).
    kind : {"smoothed_aggregation", "ruge_stuben", "rootnode"}
        Which of PyAMG's constructions. Smoothed aggregation is cheap and takes near-null vectors (``B=``), as
        elasticity needs; Ruge and Stueben's follows strong couplings, as anisotropy and jumps need. For quadratic
        elements rootnode, the solver's ``degree=3, ratio=16.0`` with it, takes 14 steps on 100,000 unknowns where
        aggregation takes 22; set-up takes half as long again.
    improve : int
        With ``kind="ruge_stuben"``, sweeps of Jacobi's method on every interpolation; 0 leaves it to PyAMG. One makes
        the steps few (at most 12) for finite elements and where couplings are strong along directions between those
        of the grid (rotated anisotropy); where coefficients jump from point to point it takes three, five on 65,536
        points. Set-up takes two to four times as long, so they pay where a hierarchy serves several solves.
    updates : bool
        Whether to keep the lists that `with_values` needs: about ten integers for each entry of the matrix.
    **options
        For PyAMG's function of that name: ``strength``, ``B``, ``max_coarse`` (200 here) and others.

    Raises
    ------
    ImportError, ValueError, TypeError
        PyAMG is missing; an unknown `kind`, `improve` with another kind, a matrix that is not square, traced, without a
        diagonal entry, or that does not coarsen to 4096 unknowns.

    Notes
    -----
    Restriction is the transpose of interpolation, coarse matrices are ``P' A P``, also where PyAMG has others. Under
    ``with_values`` interpolation stays as it was found: good while strong couplings stay strong. Solutions are
    differentiable in the values; cycles and hierarchy have no derivative, nor need one. Memory: two to three times
    that of the matrix, up to six with `improve`. A matrix of another pattern is another program to compile, seconds.

    References
    ----------
    J. W. Ruge, K. Stueben, Algebraic multigrid, in: Multigrid Methods, SIAM 1987, 73-130.
    K. Stueben, An introduction to algebraic multigrid, in: U. Trottenberg et al., Multigrid, Academic Press 2001,
    appendix A, on Jacobi interpolation.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> from solvers import AMG, multigrid_cg
    >>> line = sp.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(50, 50)).tocsr()
    >>> bool(multigrid_cg(AMG(line), np.ones(50), tol=1e-3).converged)
    True
    """

    values: Float[Array, " nnz"]
    slots: Array
    product: Sums
    transposed_product: Sums
    diagonal_slots: Array
    data: tuple[Array, ...]
    weights: tuple[Array, ...]
    patterns: tuple[Patterns, ...]
    last: tuple[Sums, Sums]
    inverse: Float[Array, "m m"]
    order: Order | None
    symmetric: bool = eqx.field(static=True)
    relaxable = False

    def __init__(
        self,
        matrix: Any,
        *,
        kind: str = "smoothed_aggregation",
        improve: int = 0,
        updates: bool = False,
        **options: Any,
    ):
        choice("AMG", "kind", kind, KINDS)
        if not isinstance(improve, int) or improve < 0 or (improve and kind != "ruge_stuben"):
            fail("AMG", "improve", 'a Python integer from 0 upwards, with `kind="ruge_stuben"` beyond 0', improve)
        solver = matrix if hasattr(matrix, "levels") else None
        self.values, fine, self.slots = _host(matrix if solver is None else solver.levels[0].A)
        dtype = self.values.dtype
        steps = constructed(fine, kind, improve, options) if solver is None else transfers(solver)
        self.symmetric = alike(fine, in_order(fine.T), 1e-12)
        order = by_tables(fine) if steps else None
        self.order = jax.device_put(order)
        self.product, self.transposed_product = products(fine, order, self.symmetric)
        own = np.flatnonzero(np.repeat(np.arange(fine.shape[0]), np.diff(fine.indptr)) == fine.indices)
        if own.size < fine.shape[0]:
            fail("AMG", "matrix", "with a diagonal entry in every row", f"{own.size} of {fine.shape[0]}")
        if (left := (steps[-1].interpolation.shape[1] if steps else fine.shape[0])) > MANY_UNKNOWNS:
            fail("AMG", "matrix", f"one that coarsens to {MANY_UNKNOWNS} unknowns; try another `kind`", f"{left} left")
        self.diagonal_slots = jax.device_put(own.astype(np.int32))
        data, weights, patterns, product = [], [], [], (self.product, self.transposed_product)
        for P, coarse in steps:
            lists = (None, None)
            if updates:
                half = with_zeros(fine, P)
                coarse = with_zeros(in_order(P.T), half)
                lists = times_matrix(fine, P, half), times_matrix(P, half, coarse, transposed=True)
            elif coarse is None:
                coarse = in_order(P.T @ (fine @ P))
            after = by_tables(coarse) if len(patterns) + 1 < len(steps) else None
            up = times_vector(P, rows=order, columns=after), times_vector(P, transposed=True, rows=after, columns=order)
            patterns.append(Patterns(*product, *up, *lists))
            weights.append(jax.device_put(P.data.astype(dtype)))
            data.append(jax.device_put(fine.data.astype(dtype)))
            fine, order = coarse, after
            product = products(fine, order, self.symmetric)
        self.data, self.weights, self.patterns, self.last = tuple(data), tuple(weights), tuple(patterns), product
        self.inverse = jax.device_put(inverse(fine, dtype, self.symmetric).astype(dtype))

    @classmethod
    def from_pyamg(cls, solver: Any, *, updates: bool = False) -> "AMG":
        """Return the system of a PyAMG ``MultilevelSolver``, with its interpolations."""
        if not hasattr(solver, "levels"):
            fail("AMG.from_pyamg", "solver", "a PyAMG MultilevelSolver", type(solver).__name__, TypeError)
        return cls(solver, updates=updates)

    @property
    def levels_of_unknowns(self) -> tuple[int, ...]:
        """How many unknowns each level has, from the finest."""
        return (*(p.matrix.columns for p in self.patterns), self.inverse.shape[0])

    def with_values(self, values: Float[Array, " nnz"]) -> "AMG":
        """Return the system with other entries at the same places, in the order of those it was made from.

        Coarse matrices are computed again, on the device, interpolation is kept; works under ``jit`` and ``vmap``.
        Needs ``updates=True``.
        """
        values = float_array("AMG.with_values", "values", values)
        if values.shape != self.values.shape:
            fail("AMG.with_values", "values", f"of shape {self.values.shape}", values.shape)
        if any(p.half is None for p in self.patterns):
            fail("AMG.with_values", "updates", "True when the hierarchy is made", False)
        fine, data = self._collected(values), []
        for p, weights in zip(self.patterns, self.weights, strict=True):
            weights = weights.astype(values.dtype)
            assert p.half is not None
            assert p.whole is not None
            data.append(fine)
            fine = p.whole.apply(p.whole.gather(weights), p.half.apply(p.half.gather(fine), weights))
        dense = jax.vmap(lambda e: self.last[0].apply(self.last[0].gather(fine), e), out_axes=-1)
        last = dense(jnp.eye(self.inverse.shape[0], dtype=values.dtype))
        found = scaled_inverse(jnp, last, eps(values.dtype), self.symmetric)
        return eqx.tree_at(lambda s: (s.values, s.data, s.inverse), self, (values, tuple(data), found))

    @property
    def transposed(self):
        """The transpose, with the same interpolations."""
        if self.symmetric:
            return self
        changed = (self.transposed_product, self.product, self.last[::-1], self.inverse.T)
        turned = eqx.tree_at(lambda s: (s.product, s.transposed_product, s.last, s.inverse), self, changed)
        patterns = tuple(
            eqx.tree_at(lambda p: (p.matrix, p.transposed), p, (p.transposed, p.matrix)) for p in self.patterns
        )
        return eqx.tree_at(lambda s: s.patterns, turned, patterns)

    def check(self, function, b):
        """Raise unless b has one entry a row."""
        if b.shape != self.diagonal_slots.shape:
            fail(function, "b", f"of shape {self.diagonal_slots.shape}, one entry a row of `A`", b.shape)

    def diagonal(self):
        """Return the diagonal."""
        return self._collected(self.values)[self.diagonal_slots]

    def times(self, unit):
        """Return the system and the hierarchy of ``unit A``."""
        changed = (unit * self.values, tuple(unit * entries for entries in self.data), self.inverse / unit)
        return eqx.tree_at(lambda s: (s.values, s.data, s.inverse), self, changed)

    def _collected(self, values):
        return jnp.zeros(self.product.entries, values.dtype).at[self.slots].add(values)

    def mv(self, x):
        """Return A x."""
        layout = self._laid(())
        return layout.unpack(layout.mv(layout.pack(x)))

    def layout(self, shape, *, sweeps):
        """Return the hierarchy with its entries gathered."""
        levels = tuple(
            SparseLevel(p.matrix.gather(a), p.interpolation.gather(w), p.restriction.gather(w), p.matrix, p)
            for a, w, p in zip(self.data, self.weights, self.patterns, strict=True)
        )
        return self._laid(levels)

    def _laid(self, levels: tuple[SparseLevel, ...]) -> AlgebraicLayout:
        """Return the layout with these levels."""
        fine = self._collected(self.values)
        own = self.diagonal_slots if self.order is None else self.diagonal_slots[self.order.old]
        return AlgebraicLayout(self.product.gather(fine), fine[own], levels, self.inverse, self.product, self.order)


def products(matrix: Any, order: Order | None, symmetric: bool) -> tuple[Sums, Sums]:
    """Return the products with a matrix and with its transpose, in this order of unknowns."""
    one = times_vector(matrix, rows=order, columns=order)
    return one, one if symmetric else times_vector(matrix, transposed=True, rows=order, columns=order)


def doubled(matrix: Any) -> Any:
    """Return a matrix in double precision, in which null vectors of coarse matrices stay what they are."""
    return matrix.astype(np.result_type(matrix.dtype, np.float64), copy=False)


def _host(matrix: Any) -> tuple[Array, Any, Array]:
    """Return the entries in the order given, the matrix in CSR and double precision, and where in it each entry is."""
    import scipy.sparse as sp

    if isinstance(matrix, SparseRows):
        if isinstance(matrix.values, Tracer):
            fail("AMG", "matrix", "a matrix of known numbers: make the hierarchy outside of jit", "a traced one")
        values, (row, column) = np.asarray(matrix.values), matrix.places()
        n = int(row.max()) + 1
    elif hasattr(matrix, "tocoo"):
        if matrix.shape[0] != matrix.shape[1]:
            fail("AMG", "matrix", "square", matrix.shape)
        given = matrix.tocsr()
        given = given if given.dtype.kind in "fc" else given.astype(float)
        if given.has_canonical_format:
            values, places = float_array("AMG", "matrix", given.data), np.arange(given.nnz, dtype=np.int32)
            return values, doubled(given), jax.device_put(places)
        values, column, n = given.data, given.indices, given.shape[0]
        row = np.repeat(np.arange(n), np.diff(given.indptr))
    else:
        expected = (
            "SparseRows, a SciPy sparse matrix (of a dense array, `scipy.sparse.csr_matrix(A)`) or a PyAMG solver"
        )
        fail("AMG", "matrix", expected, type(matrix).__name__, TypeError)
    csr = in_order(sp.coo_matrix((values, (row, column)), (n, n)))
    keys = np.repeat(np.arange(n), np.diff(csr.indptr)) * n + csr.indices
    slots = np.searchsorted(keys, np.asarray(row, np.int64) * n + column)
    return float_array("AMG", "matrix", values), doubled(csr), jax.device_put(slots.astype(np.int32))
