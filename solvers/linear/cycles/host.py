"""The set-up of algebraic multigrid on the host: PyAMG's hierarchies, and its coarse unknowns with better weights."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

FEW_UNKNOWNS = 200
"""Levels of at most this many unknowns are solved for directly."""
MANY_UNKNOWNS = 4096
"""A coarsest level of more than these cannot be inverted in reasonable time."""
MOST_LEVELS = 30
SHRINKS = 0.95
"""Coarsening ends where it leaves more than this share of the unknowns."""
STRENGTH = ("classical", {"theta": 0.25, "norm": "min"})
"""Couplings of at least a quarter of the most negative one of their row are strong."""
DROPPED = 0.05
"""Improved weights below this share of the largest of their row are dropped."""
NULL = 16
"""Eigenvalues below this many units of rounding of the largest are those of null vectors."""
LEAST = 1e-12
"""As are those below this share of it, whatever the precision."""
MANY_ENTRIES, MOST_THREADS = 100_000, 4
"""Products of a matrix of at least so many entries are shared among so many threads, where there are cores."""


class Transfer(NamedTuple):
    """The interpolation from the next level, and the matrix there where it is known."""

    interpolation: Any
    coarse: Any


def in_order(matrix: Any) -> Any:
    """Return a matrix in CSR, its columns in order and none twice."""
    matrix = matrix.tocsr()
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix


def alike(a: Any, b: Any, close: float) -> bool:
    """Return whether two matrices in order agree, entries within a multiple `close` of the largest."""
    if a.shape != b.shape:
        return False
    if np.array_equal(a.indptr, b.indptr) and np.array_equal(a.indices, b.indices):
        return bool(np.max(np.abs(a.data - b.data), initial=0) <= close * np.max(np.abs(a.data), initial=0))
    return bool(abs(a - b).max() <= close * abs(a).max())


def transfers(solver: Any) -> list[Transfer]:
    """Return those of a PyAMG solver; its coarse matrices where they are ``P' A P``."""
    out = []
    for level, after in zip(solver.levels, solver.levels[1:], strict=False):
        P, R = in_order(level.P), in_order(level.R)
        out.append(Transfer(P, in_order(after.A) if alike(R, in_order(P.T), 0.0) else None))
    return out


def constructed(matrix: Any, kind: str, improve: int, options: dict[str, Any]) -> list[Transfer]:
    """Return the transfers of one of PyAMG's constructions, or of Ruge and Stueben's with improved interpolation."""
    try:
        import pyamg
    except ImportError as cause:
        raise ImportError("AMG: PyAMG chooses the hierarchy; install it with `pip install pyamg`") from cause
    options = {"max_coarse": FEW_UNKNOWNS, **options}
    largest = np.max(np.abs(matrix.data), initial=0)
    # PyAMG takes denominators below 1e-15 for zero, and products of entries over- or underflow: a matrix near one
    exponent = int(np.frexp(largest)[1]) if 0 < largest < np.inf else 0
    matrix = scaled(matrix, -exponent)
    if improve:
        steps = improved(matrix, improve, options)
    else:
        steps = transfers(getattr(pyamg, kind + "_solver")(matrix, **options))
    return [Transfer(P, None if coarse is None else scaled(coarse, exponent)) for P, coarse in steps]


def scaled(matrix: Any, exponent: int) -> Any:
    """Return a matrix times a power of two."""
    if not exponent:
        return matrix
    data = np.ldexp(1.0, exponent) * matrix.data
    return type(matrix)((data, matrix.indices, matrix.indptr), matrix.shape)


def improved(matrix: Any, sweeps: int, options: dict[str, Any]) -> list[Transfer]:
    """Return Ruge and Stueben's hierarchy by PyAMG, level by level, with `sweeps` of Jacobi's on every interpolation.

    Classical interpolation replaces what a fine unknown is coupled to, and does not interpolate from, by an average.
    A sweep of Jacobi's method for ``A P = 0`` in the rows of fine unknowns takes these couplings as they are: along
    directions between those of the grid, and from island to island where coefficients jump, that is what counts.
    """
    most = options.pop("max_coarse")
    levels = options.pop("max_levels", MOST_LEVELS)
    out: list[Transfer] = []
    while matrix.shape[0] > most and len(out) + 1 < levels:
        P, coarse = classical(matrix, options)
        if not 0 < P.shape[1] <= SHRINKS * matrix.shape[0]:
            break
        P = in_order(smoothed(matrix, P, ~coarse, sweeps))
        matrix = in_order(product(P.T.tocsr(), product(matrix, P)))
        out.append(Transfer(P, matrix))
    return out


def classical(matrix: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return PyAMG's classical interpolation and which unknowns are coarse; no coarse matrix where it can be helped."""
    from pyamg.classical import interpolate, ruge_stuben_solver, split
    from pyamg.strength import classical_strength_of_connection

    if options:
        options = {"strength": STRENGTH, **options}
        first: Any = ruge_stuben_solver(matrix, max_levels=2, max_coarse=1, **options).levels[0]
        nothing = csr(np.zeros(0), np.zeros(0, np.int32), np.zeros(matrix.shape[0] + 1, np.int32), 0)
        return (first.P.tocsr(), first.splitting) if hasattr(first, "P") else (nothing, None)
    strong = classical_strength_of_connection(matrix, **STRENGTH[1])
    coarse = split.RS(strong)
    return interpolate.classical_interpolation(matrix, strong, coarse), coarse.astype(bool)


def csr(data: Any, indices: Any, indptr: Any, width: int) -> Any:
    """Return a SciPy matrix of these arrays."""
    import scipy.sparse as sp

    return sp.csr_array((data, indices, indptr), (len(indptr) - 1, width))


def product(left: Any, right: Any) -> Any:
    """Return the product of two matrices in CSR, its columns in any order: a few rows a thread where it is large."""
    workers = min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if workers == 1 or left.nnz < MANY_ENTRIES:
        return left @ right
    cuts = np.searchsorted(left.indptr, np.linspace(0, left.nnz, 4 * workers + 1)[1:-1])
    cuts = [0, *cuts.tolist(), left.shape[0]]
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(lambda k: left[cuts[k] : cuts[k + 1]] @ right, range(len(cuts) - 1)))
    ends = np.cumsum([0, *(part.nnz for part in parts)])
    indptr = np.concatenate([[0], *(part.indptr[1:] + end for part, end in zip(parts, ends, strict=False))])
    data, indices = (np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "indices"))
    return csr(data, indices, indptr.astype(indices.dtype), right.shape[1])


def with_zeros(left: Any, right: Any) -> Any:
    """Return the product of two matrices in order, with the entries that cancel: SciPy leaves out what is zero."""
    found = in_order(left @ right)
    ones = [csr(np.ones(m.nnz), m.indices, m.indptr, m.shape[1]) for m in (left, right)]
    whole = in_order(ones[0] @ ones[1])
    keys, own = (rows_of(m).astype(np.int64) * m.shape[1] + m.indices for m in (whole, found))
    data = np.zeros(whole.nnz, found.dtype)
    data[np.searchsorted(keys, own)] = found.data
    return csr(data, whole.indices, whole.indptr, whole.shape[1])


def inverse(matrix: Any, dtype: Any, symmetric: bool) -> Any:
    """Return `scaled_inverse` of a small sparse matrix in double precision, whose entries are rounded to `dtype`."""
    return scaled_inverse(np, matrix.toarray(), float(np.finfo(dtype).eps), symmetric)


def scaled_inverse(xp: Any, matrix: Any, rounding: float, symmetric: bool) -> Any:
    """Return the inverse of a small matrix; for a singular one, what solves systems that have a solution.

    With the diagonal scaled to one, so that small eigenvalues tell null vectors from small coefficients:

    (1) ``A^-1 = S (S A S)^+ S,  S = 1 / sqrt(diag A)``

    `xp` is the module of the array, NumPy or JAX's, `rounding` the unit of its entries.
    """
    diagonal = xp.real(xp.diagonal(matrix))
    scale = xp.where(diagonal > 0, 1 / xp.sqrt(xp.where(diagonal > 0, diagonal, 1)), 1)
    both = xp.outer(scale, scale)
    # (1)
    return both * xp.linalg.pinv(both * matrix, max(LEAST, NULL * rounding), hermitian=symmetric)


def smoothed(matrix: Any, P: Any, fine: Any, sweeps: int) -> Any:
    """Return P after Jacobi sweeps for ``A P = 0`` in the rows `fine`, small weights dropped.

    As in Stueben's appendix (2001), D the diagonal in these rows and zero in others:

    (2) ``P <- P - D^+ A P``

    which is one product: in these rows ``I - D^+ A`` is without a diagonal entry, in others it is the identity.
    """
    matrix, row = in_order(matrix), rows_of(matrix)
    diagonal = matrix.diagonal()
    sound = fine & (diagonal != 0)
    own = row == matrix.indices
    scale = np.where(sound, -1 / np.where(sound, diagonal, 1), 0)
    data = np.where(own, ~sound[row], scale[row] * matrix.data)
    kept = own | sound[row]
    ends = np.r_[0, np.cumsum(kept)][matrix.indptr].astype(matrix.indptr.dtype)
    sweep = csr(data[kept], matrix.indices[kept], ends, matrix.shape[1])
    for _ in range(sweeps):
        P = without_small(product(sweep, P))  # (2)
    return P


def rows_of(matrix: Any) -> Any:
    """Return the row of every entry of a matrix in CSR."""
    return np.repeat(np.arange(matrix.shape[0], dtype=matrix.indices.dtype), np.diff(matrix.indptr))


def without_small(P: Any) -> Any:
    """Return P without its small weights, every row scaled to the sum that it had."""
    size, row, some = np.abs(P.data), rows_of(P), np.diff(P.indptr) > 0
    if not size.size:
        return P
    largest = np.zeros(P.shape[0])
    largest[some] = np.maximum.reduceat(size, P.indptr[:-1][some])
    kept = size >= (DROPPED * largest)[row]
    before = np.bincount(row, P.data, P.shape[0])
    row, data = row[kept], P.data[kept]
    after = np.bincount(row, data, P.shape[0])
    sound = np.abs(after) > 0.1 * np.abs(before)
    scale = np.where(sound, before / np.where(sound, after, 1), 1)
    ends = np.r_[0, np.cumsum(np.bincount(row, minlength=P.shape[0]))].astype(P.indptr.dtype)
    return csr(data * scale[row], P.indices[kept], ends, P.shape[1])
