"""Conjugate gradients preconditioned by a geometric multigrid cycle, for stencils.

Transfers and Galerkin products are written here, not taken from solvax: its transfers (0.34) are dense matrices, one an
axis, with Dirichlet axes of odd length only, and its solvers' step limits are static. Here a grid has any size, memory
is a few vectors, coarse operators are stencils again, and limits are traced.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.precision import matmul
from ..core.typing import Array, Float, Progress, Scalar
from .pcg import chebyshev, conjugate
from .solution import LinearSolution, Method, Options, solve
from .systems.stencil import Phases, Stencil
from .systems.system import repeat, settle

FEW_COLOURS = 4
"""Sweeps over more colours than this are loops over them."""
COARSEST = 16
"""At most this many unknowns are solved for directly."""


class MultigridSolution(LinearSolution):
    """What `multigrid_cg` returns; ``error = ||b - A value|| / ||b||``."""


class MultigridCG(Method):
    """Conjugate gradients with a V- or W-cycle as preconditioner."""

    ratio: Array
    smoother: str = eqx.field(static=True)
    sweeps_each: int = eqx.field(static=True)
    cycle: str = eqx.field(static=True)
    sweeps: ClassVar[bool] = False

    def run(self, system: Any, b: Any, start: Any, controls: Any):
        """Build the hierarchy for this system and precondition with one cycle over it."""
        levels = hierarchy(system, b.shape)
        smoothers = [self.smooth(*level) for level in levels[:-1]]
        coarse, shape = levels[-1]
        size = math.prod(shape)
        identity = jnp.eye(size, dtype=b.dtype).reshape((size, *shape))
        inverse = invert(jnp.reshape(jax.vmap(coarse.mv)(identity), (size, size)))

        def cycle(k, r):
            if k == len(smoothers):
                return jnp.reshape(matmul(inverse, jnp.ravel(r)), r.shape)
            before, after = smoothers[k]
            stencil, shape = levels[k]
            target = levels[k + 1][1]
            z = settle(before(r))
            for _ in range(2 if self.cycle == "W" and 0 < k < len(smoothers) - 1 else 1):
                coarse = settle(restrict(settle(r - stencil.mv(z)), target))
                z = settle(z + prolong(cycle(k + 1, coarse), shape))
            return settle(after(z, r))

        return conjugate(system, b, start, lambda r: cycle(0, r), controls)

    def smooth(self, stencil, shape):
        """Return the smoother from zero, and its adjoint from a given point."""
        if self.smoother == "chebyshev":
            # Scaled by absolute row sums, the largest eigenvalue is at most one: no bound to be found on any level.
            inverse = 1 / jnp.sum(jnp.abs(stencil.coefficients), 0)
            one = jnp.ones((), inverse.dtype)
            polynomial = chebyshev(stencil.mv, inverse, one / self.ratio, one, self.sweeps_each)
            return polynomial, lambda z, r: z + polynomial(settle(r - stencil.mv(z)))
        phases = Phases(stencil, shape)
        if len(phases.colours) > FEW_COLOURS:
            one_by_one = by_colours(stencil, shape)

            def repeated(z, r, reverse):
                return repeat(lambda z: one_by_one(z, r, reverse), z, self.sweeps_each)

            return lambda r: repeated(jnp.zeros_like(r), r, False), lambda z, r: repeated(z, r, True)
        sweep = phases.sweeper(jnp.ones((), stencil.coefficients.dtype))

        def relax(z, r, reverse):
            z, r = phases.pack(z), phases.pack(r)
            for _ in range(self.sweeps_each):
                z = sweep(z, r, reverse=reverse)
            return phases.unpack(z)

        return lambda r: relax(jnp.zeros_like(r), r, False), lambda z, r: relax(z, r, True)


def by_colours(stencil: Stencil, shape: tuple[int, ...]) -> Callable:
    """Return a multicolour sweep that takes a whole product a colour: slower to run than `Phases`, a loop to compile.

    Written out, the 8 classes of a 27-point stencil take minutes to compile; below the finest level they cost little.
    """
    parities = [lax.broadcasted_iota(jnp.int32, shape, axis) % 2 for axis in range(len(shape))]
    colour = sum(p * 2**k for k, p in enumerate(reversed(parities)))  # the order of `Phases.parities`
    last, gain = 2 ** len(shape) - 1, 1 / stencil.diagonal()

    def sweep(z, r, reverse):
        def one(k, z):
            here = colour == (last - k if reverse else k)
            return jnp.where(here, z + gain * (r - stencil.mv(z)), z)

        return lax.fori_loop(jnp.zeros((), jnp.int32), last + 1, one, z)

    return sweep


def hierarchy(stencil: Stencil, shape: tuple[int, ...]) -> list[tuple[Stencil, tuple[int, ...]]]:
    """Return ``(stencil, grid)`` from the finest level to the coarsest, by Galerkin products ``P' A P``.

    Every axis of more than three points is halved; coarse point j is fine point ``2 j + 1``, whatever the size.
    """
    levels, dims = [(stencil, shape)], len(shape)
    offsets = list(itertools.product((-1, 0, 1), repeat=dims))
    while math.prod(shape) > COARSEST and max(shape) > 3:
        given = dict(zip(stencil.offsets, stencil.coefficients, strict=True))
        zero = jnp.zeros((), stencil.coefficients.dtype)
        rows = jnp.stack([jnp.broadcast_to(given.get(o, zero), shape) for o in offsets])
        rows = rows.reshape((3,) * dims + shape)
        for axis, n in enumerate(shape):
            if n > 3:
                rows = _halve(rows, axis)
        shape = rows.shape[dims:]
        stencil = Stencil(rows.reshape(len(offsets), *shape), offsets)
        levels.append((stencil, shape))
    return levels


def _halve(rows: Array, axis: int) -> Array:
    """Return the rows of ``P' A P`` with P linear interpolation along one axis.

    Rows come as an array over offsets and grid, (3, ..., 3, *grid). Coarse row j collects fine rows ``2 j + 1 + d``
    with weight ``1 - |d| / 2``. Such a row's entry at offset o belongs to fine column ``2 j + 1 + s``, s = d + o, which
    interpolates from the coarse columns ``j + k`` with weight ``1 - |s - 2 k| / 2``.
    """
    along = rows.ndim // 2 + axis
    column = lax.broadcasted_iota(jnp.int32, rows.shape, along) + lax.broadcasted_iota(jnp.int32, rows.shape, axis) - 1
    rows = jnp.where((column >= 0) & (column < rows.shape[along]), rows, 0)
    fine = {d: (1 - abs(d) / 2) * _every_other(rows, along, 1 + d, rows.shape[along] // 2) for d in (-1, 0, 1)}

    def collect(k):
        pairs = [(d, o, 1 - abs(d + o - 2 * k) / 2) for d in (-1, 0, 1) for o in (-1, 0, 1)]
        return sum(w * lax.index_in_dim(fine[d], o + 1, axis) for d, o, w in pairs if w > 0)

    return jnp.concatenate([collect(k) for k in (-1, 0, 1)], axis)


def invert(matrix: Array) -> Array:
    """Return the inverse of a small symmetric positive definite matrix by Gauss and Jordan's sweeps, without pivoting.

    A call of LAPACK costs more than a whole cycle here, and far more on a busy machine. A sweep is one kernel.
    """
    index = jnp.arange(matrix.shape[0], dtype=jnp.int32)
    largest = jnp.max(jnp.abs(matrix))
    unit = jnp.exp2(-jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1))))  # a product of two entries may overflow
    matrix = matrix * unit

    def sweep(k, m):
        row, column = lax.dynamic_slice_in_dim(m, k, 1, 0), lax.dynamic_slice_in_dim(m, k, 1, 1)
        pivot, below, beside = row[0, k], index[:, None] == k, index[None, :] == k
        others = jnp.where(beside, -column / pivot, m - column * row / pivot)
        return jnp.where(below, jnp.where(beside, 1, row) / pivot, others)

    inverse = lax.fori_loop(0, matrix.shape[0], sweep, matrix, unroll=4)
    return unit * (inverse + inverse.T) / 2


def restrict(r: Array, shape: tuple[int, ...]) -> Array:
    """Return ``P' r``."""
    for axis, n in enumerate(shape):
        if n != r.shape[axis]:
            left, centre, right = (_every_other(r, axis, k, n) for k in (0, 1, 2))
            r = centre + (left + right) / 2
    return r


def prolong(z: Array, shape: tuple[int, ...]) -> Array:
    """Return ``P z``, linear interpolation to a grid of `shape`."""
    for axis, n in enumerate(shape):
        if n != (m := z.shape[axis]):
            ends = [(0, 0)] * z.ndim
            ends[axis] = (1, 1)
            outside = jnp.pad(z, ends)
            between = (lax.slice_in_dim(outside, 0, m + 1, 1, axis) + lax.slice_in_dim(outside, 1, m + 2, 1, axis)) / 2
            # fine point 2 j + 1 is coarse point j, fine point 2 j is between two; stacked as in `Phases.unpack`
            pairs = jnp.stack([between, lax.slice_in_dim(outside, 1, m + 2, 1, axis)], axis + 1)
            z = lax.slice_in_dim(pairs.reshape([*z.shape[:axis], 2 * m + 2, *z.shape[axis + 1 :]]), 0, n, 1, axis)
    return z


def _every_other(x: Array, axis: int, start: int, count: int) -> Array:
    """Return `count` entries of x along an axis, from `start` in steps of two, zero beyond the end."""
    short = max(0, start + 2 * count - 1 - x.shape[axis])
    if short:
        x = jnp.pad(x, [(0, short if a == axis else 0) for a in range(x.ndim)])
    return lax.slice_in_dim(x, start, start + 2 * count - 1, 2, axis)


def multigrid_cg(
    A: Stencil,
    b: Float[Array, "*grid"],
    *,
    smoother: str = "chebyshev",
    degree: int = 2,
    ratio: Scalar = 4.0,
    cycle: str = "V",
    x0: Float[Array, "*grid"] | None = None,
    tol: Scalar | None = None,
    max_steps: int | Array = 1_000,
    every: int = 1,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> MultigridSolution:
    """Solve ``A x = b`` on a grid, A symmetric positive definite, by conjugate gradients with geometric multigrid.

    The fastest of the family for one hard elliptic system: a handful of steps whatever the grid. For rows dominated by
    their diagonal `sor` or `chebyshev_cg` need about as few and cheaper steps; for constant coefficients on a box a
    fast sine transform, and for a matrix that never changes a stored factorisation, beat it.

    Parameters
    ----------
    A : Stencil
        Symmetric positive definite, constant or varying coefficients, one to three dimensions, any grid size. Traced,
        differentiable.
    b : Float[Array, "*grid"]
        Traced, differentiable. Several at once: ``jax.vmap`` over b.
    smoother : str
        ``"chebyshev"``, or ``"red-black"`` (Gauss-Seidel; by parity classes if the stencil has diagonal neighbours).
    degree : int
        Chebyshev steps, or sweeps, before and after each coarse correction. Static.
    ratio : scalar
        The Chebyshev smoother works on eigenvalues of R^-1 A in ``[1 / ratio, 1]``, where R are the absolute row sums.
        Traced; no derivative.
    cycle : str
        ``"V"`` or ``"W"``.
    x0, tol, max_steps, every, unconverged, history, progress : optional
        As for `sor`. A step is one cycle and one product.

    Returns
    -------
    MultigridSolution
        ``value`` like `b`, ``num_steps``, ``error = ||b - A value||_2 / ||b||_2``; statuses as for `ssor_cg`.

    Raises
    ------
    ValueError, TypeError
        As `sor`; an unknown `smoother` or `cycle`, a system other than a stencil.

    Notes
    -----
    Coarse operators are Galerkin products with linear interpolation, exact for varying coefficients and computed axis
    by axis at the cost of a few products; the coarsest, of at most 16 unknowns, is inverted. A cycle costs about
    ``4 (degree + 1)`` products, set-up included in every solve. Strong anisotropy or jumps in the coefficients slow it
    down, as point smoothers do. Memory: about 15 vectors. Stopping and derivatives as for `ssor_cg`.

    References
    ----------
    U. Trottenberg, C. Oosterlee, A. Schueller, Multigrid, Academic Press 2001, sections 2.4 and 7.7.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Stencil, multigrid_cg
    >>> print(int(multigrid_cg(Stencil.laplacian(2), jnp.ones((31, 31)), tol=1e-5).num_steps) < 9)
    True
    """
    name = "multigrid_cg"
    checks.choice(name, "smoother", smoother, ("chebyshev", "red-black"))
    checks.choice(name, "cycle", cycle, ("V", "W"))
    if not isinstance(degree, int) or degree < 1:
        checks.fail(name, "degree", "a positive Python integer", degree)
    if not isinstance(A, Stencil):
        checks.fail(name, "A", "a Stencil", type(A).__name__, TypeError)
    method = MultigridCG(checks.number(name, "ratio", ratio, positive=True), smoother, degree, cycle)
    options = Options(x0, tol, max_steps, every, unconverged, history, progress)
    return solve(name, MultigridSolution, method, A, b, options)
