"""The set-up of algebraic multigrid on the host: PyAMG's hierarchies, and its coarse unknowns with better weights."""

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
    if improve:
        return improved(matrix, improve, options)
    return transfers(getattr(pyamg, kind + "_solver")(matrix, **options))


def improved(matrix: Any, sweeps: int, options: dict[str, Any]) -> list[Transfer]:
    """Return Ruge and Stueben's hierarchy by PyAMG, level by level, with `sweeps` of Jacobi's on every interpolation.

    Classical interpolation replaces what a fine unknown is coupled to, and does not interpolate from, by an average.
    A sweep of Jacobi's method for ``A P = 0`` in the rows of fine unknowns takes these couplings as they are: along
    directions between those of the grid, and from island to island where coefficients jump, that is what counts.
    """
    from pyamg.classical import ruge_stuben_solver

    most = options.pop("max_coarse")
    levels = options.pop("max_levels", MOST_LEVELS)
    options = {"strength": STRENGTH, **options}
    out: list[Transfer] = []
    while matrix.shape[0] > most and len(out) + 1 < levels:
        pair: Any = ruge_stuben_solver(matrix, max_levels=2, max_coarse=1, **options).levels
        if len(pair) < 2 or pair[1].A.shape[0] > SHRINKS * matrix.shape[0]:
            break
        P = smoothed(matrix, in_order(pair[0].P), ~pair[0].splitting, sweeps)
        matrix = in_order(in_order(P.T) @ in_order(matrix @ P))
        out.append(Transfer(P, matrix))
    return out


def smoothed(matrix: Any, P: Any, fine: Any, sweeps: int) -> Any:
    """Return P after Jacobi sweeps for ``A P = 0`` in the rows `fine`, small weights dropped.

    As in Stueben's appendix (2001), D the diagonal in these rows and zero in others:

    (1) ``P <- P - D^+ A P``
    """
    import scipy.sparse as sp

    diagonal = matrix.diagonal()
    sound = fine & (diagonal != 0)
    scaled = sp.diags_array(np.where(sound, 1 / np.where(sound, diagonal, 1), 0)) @ matrix
    for _ in range(sweeps):
        P = without_small(in_order(P - scaled @ P))  # (1)
    return P


def without_small(P: Any) -> Any:
    """Return P without its small weights, every row scaled to the sum that it had."""
    import scipy.sparse as sp

    size, row = np.abs(P.data), np.repeat(np.arange(P.shape[0]), np.diff(P.indptr))
    largest = np.zeros(P.shape[0])
    np.maximum.at(largest, row, size)
    kept = size >= DROPPED * largest[row]
    before = np.bincount(row, P.data, P.shape[0])
    after = np.bincount(row, P.data * kept, P.shape[0])
    sound = np.abs(after) > 0.1 * np.abs(before)
    scale = np.where(sound, before / np.where(sound, after, 1), 1)
    row = row[kept]
    counts = np.bincount(row, minlength=P.shape[0])
    return sp.csr_array((P.data[kept] * scale[row], P.indices[kept], np.r_[0, np.cumsum(counts)]), P.shape)
