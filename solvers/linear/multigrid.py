"""Krylov methods preconditioned by a multigrid cycle."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from ..core import checks
from ..core.typing import Array, Float, Progress, Scalar
from .cycles.algebraic import AMG, AlgebraicLayout
from .cycles.coarsening import Plan, coarsest_size, full_plan, plan, strengths
from .cycles.cycle import cycle, dense
from .cycles.grids import hierarchy
from .cycles.smoothing import chebyshev_smoother, gauss_seidel
from .gcr import conjugate_residuals
from .pcg import conjugate
from .solution import LinearSolution, Method, Options, known, solve
from .systems.stencil import Stencil

LARGEST = 1024
"""A coarsest grid of more points would cost more than it saves."""


class MultigridSolution(LinearSolution):
    """What the multigrid solvers return; ``error = ||b - A value|| / ||b||``."""


class MultigridCG(Method):
    """Conjugate gradients with a V- or W-cycle as preconditioner."""

    ratio: Array
    smoother: str = eqx.field(static=True)
    sweeps_each: int = eqx.field(static=True)
    cycle: str = eqx.field(static=True)
    plan: Plan | None = eqx.field(static=True, default=None)
    sweeps: ClassVar[bool] = False

    def run(self, system: Any, b: Any, start: Any, controls: Any):
        """Build the hierarchy for this system and precondition with one cycle over it."""
        return conjugate(system, b, start, self.preconditioner(system, b.shape), controls)

    def preconditioner(self, system: Any, shape: tuple[int, ...]):
        """Return one cycle over the hierarchy of this system."""
        if isinstance(system, AlgebraicLayout):
            levels, coarsest = system.levels, dense(system.inverse)
        else:
            levels, coarsest = hierarchy(system, shape, self.plan, symmetric=self.symmetric)

        def smoother(level):
            if self.smoother == "red-black":
                return gauss_seidel(level.stencil, level.shape, self.sweeps_each)
            return chebyshev_smoother(level.mv, level.scaling(), self.ratio, self.sweeps_each)

        smoothers = [smoother(x) for x in levels]
        return cycle(levels, smoothers, coarsest, twice=self.cycle == "W")


class MultigridGMRES(MultigridCG):
    """Generalised conjugate residuals with the same cycles."""

    memory: int = eqx.field(static=True, default=20)
    symmetric: ClassVar[bool] = False

    def run(self, system: Any, b: Any, start: Any, controls: Any):
        """As `MultigridCG`, for unsymmetric systems."""
        return conjugate_residuals(system, b, start, self.preconditioner(system, b.shape), controls, self.memory)


def coarsening_plan(A: Stencil, shape: tuple[int, ...]) -> Plan:
    """Return which axes multigrid halves at each level for this stencil on a grid of `shape`: strong couplings first.

    Looks at the numbers of `A`, so call it outside of ``jit``; the result is static and serves all stencils like it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Stencil
    >>> from solvers.linear import coarsening_plan
    >>> A = Stencil(jnp.array([202.0, -100.0, -100.0, -1.0, -1.0]), [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
    >>> print(coarsening_plan(A, (63, 63)))
    ((0,), (0,), (0,), (0, 1), (1,))
    """
    if not isinstance(A, Stencil):
        checks.fail("coarsening_plan", "A", "a Stencil", type(A).__name__, TypeError)
    if not known(A.coefficients):
        checks.fail("coarsening_plan", "A", "a stencil whose numbers are known: call it outside of jit", "a traced one")
    return plan(strengths(A), tuple(shape), A.periodic)


def settings(name: str, A: Any, b: Any, coarsening: Any, *rest: Any) -> tuple:
    """Return the fields of `MultigridCG` from the arguments of a public function, checked."""
    smoother, degree, ratio, cycle = rest
    checks.choice(name, "smoother", smoother, ("chebyshev", "red-black"))
    checks.choice(name, "cycle", cycle, ("V", "W"))
    if not isinstance(degree, int) or degree < 1:
        checks.fail(name, "degree", "a positive Python integer", degree)
    if not isinstance(A, Stencil | AMG):
        checks.fail(name, "A", "a Stencil, or `AMG(A)` of a sparse matrix", type(A).__name__, TypeError)
    ratio = checks.number(name, "ratio", ratio, positive=True)
    if isinstance(A, AMG):
        checks.choice(name, "coarsening", coarsening, ("auto",))
        checks.choice(name, "smoother", smoother, ("chebyshev",))
        return ratio, smoother, degree, cycle, None
    shape, dims = jnp.shape(b), len(A.periodic)
    if len(shape) != dims:
        checks.fail(name, "b", f"an array over a {dims}-D grid, like the stencil", f"shape {shape}")
    if not isinstance(coarsening, str):
        chosen = tuple(tuple(int(a) for a in axes) for axes in coarsening)
        if any(len(set(axes)) != len(axes) or not axes or not set(axes) <= set(range(dims)) for axes in chosen):
            checks.fail(name, "coarsening", f"for each level distinct axes of {dims}", coarsening)
    else:
        checks.choice(name, "coarsening", coarsening, ("auto", "full"))
        seen = coarsening == "auto" and known(A.coefficients)
        chosen = coarsening_plan(A, shape) if seen else full_plan(shape, A.periodic)
    if (left := coarsest_size(shape, chosen)) > LARGEST:
        checks.fail(
            name, "b", f"a grid that halves down to {LARGEST} points (periodic axes while even)", f"{left} left"
        )
    return ratio, smoother, degree, cycle, chosen


def multigrid_cg(
    A: Stencil | AMG,
    b: Float[Array, "*grid"],
    *,
    coarsening: str | Plan = "auto",
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
    """Solve ``A x = b``, A symmetric positive definite, by conjugate gradients with geometric or algebraic multigrid.

    The fastest of the family for one hard elliptic system: a handful of steps whatever the grid, the anisotropy along
    its axes and the jumps of its coefficients. For rows dominated by their diagonal `sor` or `chebyshev_cg` need about
    as few and cheaper steps; for constant coefficients on a box a fast sine transform, and for a matrix that never
    changes a stored factorisation, beat it. For unsymmetric systems take `multigrid_gmres`.

    Parameters
    ----------
    A : Stencil or AMG
        Symmetric positive definite, or semidefinite (a Neumann or periodic problem, b in its range). A stencil has
        constant or varying coefficients, one to three dimensions, any grid size, but even along periodic axes; any
        other sparse matrix comes with the hierarchy that `AMG` makes. Traced, differentiable.
    b : Float[Array, "*grid"]
        Traced, differentiable. Several at once: ``jax.vmap`` over b.
    coarsening : "auto", "full", or tuple of tuples of int
        Which axes each coarser level halves. ``"full"``: all of them. ``"auto"``: the strongly coupled ones first where
        the coefficients are known when the program is built, all of them where they are traced; inside ``jit`` pass
        ``coarsening_plan(A, shape)``, found outside. Static.
    smoother : str
        ``"chebyshev"``, or ``"red-black"`` (Gauss-Seidel; by parity classes if the stencil has diagonal neighbours).
    degree : int
        Chebyshev steps, or sweeps, before and after each coarse correction. Static.
    ratio : scalar
        The Chebyshev smoother works on eigenvalues of R^-1 A in ``[1 / ratio, 1]``, where R are the absolute row sums.
        Traced; no derivative.
    cycle : str
        ``"V"`` or ``"W"``, which helps where coefficients jump by many orders of magnitude.
    x0, tol, max_steps, every, unconverged, history, progress : optional
        As for `sor`. A step is one cycle and one product.

    Returns
    -------
    MultigridSolution
        ``value`` like `b`, ``num_steps``, ``error = ||b - A value||_2 / ||b||_2``; statuses as for `ssor_cg`.

    Raises
    ------
    ValueError, TypeError
        As `sor`; an unknown `coarsening`, `smoother` or `cycle`, a system other than a stencil, a large grid that
        cannot be halved because a periodic axis is odd.

    Notes
    -----
    Coarse operators are Galerkin products, computed axis by axis at the cost of a few products; the coarsest, of at
    most 64 unknowns, is inverted. Constant coefficients are interpolated linearly, varying ones by the operator itself,
    each row summed over the other axes, which keeps fluxes continuous across jumps and constants at walls without flux.
    Where coefficients are constant and couple along axes only, grids of at most 128 points an axis (in the plane 256 on
    accelerators) are solved on exactly, by products with the eigenvectors of each axis: one step if the system is one.
    A cycle costs about ``4 (degree + 1)`` products, twice that if axes are halved one at a time; set-up is included in
    every solve. Strong couplings that are not along axes (rotated anisotropy), that change direction from place to
    place, or jumps from point to point slow it down: `AMG` of ``A.rows(b.shape)`` with ``kind="ruge_stuben"`` and
    ``improve=3`` takes some 10 steps there, 18 for jumps of a million from point to point on 256 x 256 points (with
    ``improve=5`` 9). Memory: about 15 vectors. Stopping and derivatives as for `ssor_cg`.

    References
    ----------
    U. Trottenberg, C. Oosterlee, A. Schueller, Multigrid, Academic Press 2001, sections 2.4, 5.1 and 7.7.
    J. E. Dendy, Black box multigrid, J. Comput. Phys. 48 (1982) 366-386.
    S. Schaffer, A semicoarsening multigrid method for elliptic PDEs with highly discontinuous and anisotropic
    coefficients, SIAM J. Sci. Comput. 20 (1998) 228-242.
    R. E. Lynch, J. R. Rice, D. H. Thomas, Direct solution of partial difference equations by tensor product methods,
    Numer. Math. 6 (1964) 185-199.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Stencil, multigrid_cg
    >>> print(int(multigrid_cg(Stencil.laplacian(2), jnp.ones((31, 31)), tol=1e-5).num_steps) < 9)
    True
    """
    name = "multigrid_cg"
    method = MultigridCG(*settings(name, A, b, coarsening, smoother, degree, ratio, cycle))
    options = Options(x0, tol, max_steps, every, unconverged, history, progress)
    return solve(name, MultigridSolution, method, A, b, options)


def multigrid_gmres(
    A: Stencil | AMG,
    b: Float[Array, "*grid"],
    *,
    memory: int = 20,
    coarsening: str | Plan = "auto",
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
    """Solve ``A x = b``, A not symmetric, convection and diffusion say, by flexible GMRES with a multigrid cycle.

    The residual never rises. For symmetric positive definite systems `multigrid_cg` is as fast and needs less memory.

    Parameters
    ----------
    A : Stencil or AMG
        Of positive diagonal, as for `multigrid_cg` but for symmetry; convection is best discretised upwind, which keeps
        off-diagonal entries negative. Traced, differentiable.
    b : Float[Array, "*grid"]
        Traced, differentiable. Several at once: ``jax.vmap`` over b.
    memory : int
        Directions kept before a restart. Static.
    coarsening, smoother, degree, ratio, cycle : optional
        As for `multigrid_cg`.
    x0, tol, max_steps, every, unconverged, history, progress : optional
        As for `sor`. A step is one cycle and one product.

    Returns
    -------
    MultigridSolution
        ``value`` like `b`, ``num_steps``, ``error = ||b - A value||_2 / ||b||_2``. `Status.STAGNATED` when a step
        brings nothing new or rounding keeps the true residual above `tol`, `LinearStatus.DIAGONAL` and
        `LinearStatus.INCOMPATIBLE` as for `sor`.

    Raises
    ------
    ValueError, TypeError
        As `multigrid_cg`; `memory` below 1.

    Notes
    -----
    Generalised conjugate residuals: in exact arithmetic the iterates of right-preconditioned GMRES, with iterate and
    residual known in every step. Orthogonalisation by classical Gram-Schmidt, twice. Strong convection across many
    cells weakens coarse corrections, which are Galerkin products; counts grow with it. Memory: ``2 memory`` vectors
    beyond `multigrid_cg`. The true residual is checked as for `ssor_cg`. Derivatives: of ``A^-1 b``, to any order, by
    the same method on A and its transpose.

    References
    ----------
    S. C. Eisenstat, H. C. Elman, M. H. Schultz, Variational iterative methods for nonsymmetric systems of linear
    equations, SIAM J. Numer. Anal. 20 (1983) 345-357, algorithm 2.1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Stencil, multigrid_gmres
    >>> wind = Stencil(jnp.array([5.0, -1.0, -2.0, -1.0, -1.0]), [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
    >>> bool(multigrid_gmres(wind, jnp.ones((20, 20)), tol=1e-5).converged)
    True
    """
    name = "multigrid_gmres"
    if not isinstance(memory, int) or memory < 1:
        checks.fail(name, "memory", "a positive Python integer", memory)
    method = MultigridGMRES(*settings(name, A, b, coarsening, smoother, degree, ratio, cycle), memory=memory)
    options = Options(x0, tol, max_steps, every, unconverged, history, progress)
    return solve(name, MultigridSolution, method, A, b, options)
