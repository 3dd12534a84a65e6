"""Successive over-relaxation, plain and symmetric.

D. M. Young, Iterative Solution of Large Linear Systems, 1971, with ``A = L + D + U`` in the order of the sweep:

(1) ``x <- x + (D / omega + L)^-1 (b - A x)``
(2) ``x <- x + (D / omega + U)^-1 (b - A x)``, the opposite order: with the first, ``M`` of `ssor`
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..core import checks
from ..core.typing import Array, Float, Progress, Scalar
from .solution import LinearSolution, Method, Options, known, measure, solve
from .stopping import Rules, drive
from .systems.system import System

PATIENCE = 2000
"""Sweeps without a new smallest residual that are always allowed."""


class SORSolution(LinearSolution):
    """What `sor` returns; ``error = ||b - A value|| / ||b||``."""


class SSORSolution(LinearSolution):
    """What `ssor` returns; ``error = ||b - A value|| / ||b||``."""


class SOR(Method):
    """Sweeps of relaxation ``omega``; with ``both_ways``, each followed by one in the opposite order."""

    omega: Array
    both_ways: bool = eqx.field(static=True, default=False)
    sweeps: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    def run(self, system, b, start, controls):
        """Sweep until the residual is small."""
        residual, size = measure(system, b)
        sweep = system.sweeper(self.omega)

        def step(y):
            y = sweep(y, b)  # (1)
            return sweep(y, b, reverse=True) if self.both_ways else y  # (2)

        # A first sweep may double a smooth residual, in red-black order on one colour; over-relaxation raises it for
        # a few times 1 / (2 - omega) sweeps; at a slow rate it then takes a thousand sweeps to be below the first.
        patience = PATIENCE + 20 / jnp.maximum(jnp.abs(2 - self.omega), 1e-3)
        patience = jnp.where(jnp.isnan(patience), PATIENCE, patience)  # a NaN shows in the first sweep
        rules = Rules(patience, divergence=1e4)
        return drive(step, start, controls, rules, value=lambda y: y, error=lambda y: size(residual(y)))


def sor(
    A: System | Float[Array, "n n"],
    b: Float[Array, "*n"],
    *,
    omega: Scalar,
    x0: Float[Array, "*n"] | None = None,
    tol: Scalar | None = None,
    max_steps: int | Array = 10_000,
    every: int = 8,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> SORSolution:
    """Solve ``A x = b`` by successive over-relaxation, ``x <- x + (D / omega + L)^-1 (b - A x)``.

    Use it for many related systems whose best `omega` is known or learned (`learned_sor`), on grids, in batches and
    on accelerators: it needs no inner products. For one hard system take `multigrid_cg` or `chebyshev_cg`, for one
    small dense system a factorisation.

    Parameters
    ----------
    A : Stencil, SparseRows or Float[Array, "n n"]
        D is its diagonal, L what a sweep visits before the diagonal: the strictly lower triangle in natural order
        (dense), otherwise in the order of colours. Traced, differentiable.
    b : Float[Array, "*n"]
        In the shape of the system: a vector, or an array over the grid of a stencil. Traced, differentiable. For
        several right-hand sides at once map over b: ``jax.vmap(lambda b: sor(A, b, omega=1.5))(bs)``.
    omega : scalar
        Relaxation, in (0, 2); 1 is Gauss-Seidel. Traced; a Python number out of range raises, a traced one is run and
        reported as what comes of it. The solution does not depend on it, so its derivative is zero. `young_omega`
        gives the best one from the spectral radius of Jacobi's method.
    x0 : Float[Array, "*n"], optional
        Start; zero by default. Its derivative is zero.
    tol : scalar, optional
        Traced; 1e-8 in float64, 1.2e-5 in float32.
    max_steps : int
        Sweeps; traced.
    every : int
        Test the residual every so many sweeps. Static. The count stays exact: the last block is done again sweep by
        sweep.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record errors; tests every sweep.
    progress : callable, optional
        ``progress(step, error)`` on the host; tests every sweep.

    Returns
    -------
    SORSolution
        ``value`` like `b`, ``num_steps`` sweeps, ``error = ||b - A value||_2 / ||b||_2``. Its status is
        `Status.DIVERGED` once the error exceeds 1e4 times the first, `Status.STAGNATED` without a new smallest error in
        ``2000 + 20 / (2 - omega)`` sweeps, `LinearStatus.DIAGONAL` for a traced system with a diagonal entry <= 0,
        `LinearStatus.RANGE` (and zeros) where x over- or underflows; `LinearStatus.INCOMPATIBLE` in the place of others
        that give up, where the columns of A add up to zero and `b` does not: no x is a solution.

    Raises
    ------
    ValueError
        Shapes that do not fit, `omega` outside (0, 2), a diagonal entry <= 0 (when they are known while tracing).
    TypeError
        `A` is a bare function, or data are not real.

    Notes
    -----
    Converges for every symmetric positive definite A and omega in (0, 2) (Ostrowski, Reich), never outside (Kahan).
    For consistently ordered A, red-black included, the rate is Young's: see `young_rate`.
    Cost: a sweep is one product with A, ``2 n^2`` flops dense, 4 words a grid point of memory traffic for a constant
    stencil. Memory: five vectors. Derivatives: of ``A^-1 b``, forward and reverse, to any order, by sweeps with the
    same omega on A and its transpose. b is scaled by a power of two, so its size does not matter; b = 0 gives 0 in no
    steps.

    References
    ----------
    D. M. Young, Iterative Solution of Large Linear Systems, Academic Press 1971, chapters 5 and 6.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import sor
    >>> A = jnp.array([[4.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 4.0]])
    >>> sol = sor(A, jnp.array([3.0, 2.0, 3.0]), omega=1.05, tol=1e-6)
    >>> print(sol.value.round(4), bool(sol.converged))
    [1. 1. 1.] True
    """
    method = SOR(relaxation("sor", omega))
    options = Options(x0, tol, max_steps, every, unconverged, history, progress)
    return solve("sor", SORSolution, method, A, b, options)


def ssor(
    A: System | Float[Array, "n n"],
    b: Float[Array, "*n"],
    *,
    omega: Scalar,
    x0: Float[Array, "*n"] | None = None,
    tol: Scalar | None = None,
    max_steps: int | Array = 10_000,
    every: int = 8,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> SSORSolution:
    """Solve ``A x = b`` by symmetric successive over-relaxation: a sweep, then one in the opposite order.

    On its own slower than `sor` at its best omega, but far less sensitive to omega, and the error falls monotonically
    in the energy norm; as a preconditioner it is `ssor_cg`.

    Parameters
    ----------
    A, b, omega, x0, tol, max_steps, every, unconverged, history, progress : optional but for the first three
        As for `sor`; a step is a pair of sweeps.

    Returns
    -------
    SSORSolution
        ``value`` like `b`, ``num_steps`` pairs of sweeps, ``error = ||b - A value||_2 / ||b||_2``;
        statuses as for `sor`.

    Raises
    ------
    ValueError, TypeError
        As `sor`.

    Notes
    -----
    ``x <- x + M^-1 (b - A x)`` with ``M = omega / (2 - omega) (D / omega + L) D^-1 (D / omega + U)``. Derivatives,
    precision and memory as for `sor`; twice its cost a step.

    References
    ----------
    O. Axelsson, Iterative Solution Methods, Cambridge 1994, section 7.4.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Stencil, ssor
    >>> bool(ssor(Stencil.laplacian(2, shift=1.0), jnp.ones((4, 4)), omega=1.2).converged)
    True
    """
    method = SOR(relaxation("ssor", omega), both_ways=True)
    options = Options(x0, tol, max_steps, every, unconverged, history, progress)
    return solve("ssor", SSORSolution, method, A, b, options)


def relaxation(name: str, omega: ArrayLike) -> Any:
    """Return omega as an array, or raise if it is known to be outside (0, 2)."""
    array = checks.number(name, "omega", omega)
    if known(array) and not 0 < float(array) < 2:
        checks.fail(name, "omega", "in (0, 2)", omega)
    return array
