"""Krylov methods preconditioned by a multigrid cycle."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from ..core import checks
from ..core.typing import Array, Float, Progress, Scalar
from .cycles.coarsening import Plan, coarsest_size, full_plan, invert, plan, strengths
from .cycles.cycle import cycle
from .cycles.grids import hierarchy
from .cycles.smoothing import chebyshev_smoother, gauss_seidel
from .pcg import conjugate
from .solution import LinearSolution, Method, Options, known, solve
from .systems.stencil import Stencil

LARGEST = 1024
"""A coarsest grid of more points would cost more than it saves."""


class MultigridSolution(LinearSolution):
    """What `multigrid_cg` returns; ``error = ||b - A value|| / ||b||``."""


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
        levels, coarsest = hierarchy(system, shape, self.plan)
        if self.smoother == "chebyshev":
            smoothers = [chebyshev_smoother(x.mv, x.scaling(), self.ratio, self.sweeps_each) for x in levels]
        else:
            smoothers = [gauss_seidel(x.stencil, x.shape, self.sweeps_each) for x in levels]
        return cycle(levels, smoothers, invert(coarsest), twice=self.cycle == "W")


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
    ((0,), (0,), (0, 1), (0, 1))
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
    if not isinstance(A, Stencil):
        checks.fail(name, "A", "a Stencil", type(A).__name__, TypeError)
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
    return checks.number(name, "ratio", ratio, positive=True), smoother, degree, cycle, chosen


def multigrid_cg(
    A: Stencil,
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
    """Solve ``A x = b`` on a grid, A symmetric positive definite, by conjugate gradients with geometric multigrid.

    The fastest of the family for one hard elliptic system: a handful of steps whatever the grid, the anisotropy along
    its axes and the jumps of its coefficients. For rows dominated by their diagonal `sor` or `chebyshev_cg` need about
    as few and cheaper steps; for constant coefficients on a box a fast sine transform, and for a matrix that never
    changes a stored factorisation, beat it. For unsymmetric systems take `multigrid_gmres`.

    Parameters
    ----------
    A : Stencil
        Symmetric positive definite, or semidefinite (a Neumann or periodic problem, b in its range); constant or
        varying coefficients, one to three dimensions, any grid size, but even along periodic axes. Traced,
        differentiable.
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
    A cycle costs about ``4 (degree + 1)`` products, twice that if axes are halved one at a time; set-up is included in
    every solve. Strong couplings that are not along axes (rotated anisotropy), that change direction from place to
    place, or jumps from point to point slow it down. Memory: about 15 vectors. Stopping and derivatives as for
    `ssor_cg`.

    References
    ----------
    U. Trottenberg, C. Oosterlee, A. Schueller, Multigrid, Academic Press 2001, sections 2.4, 5.1 and 7.7.
    J. E. Dendy, Black box multigrid, J. Comput. Phys. 48 (1982) 366-386.
    S. Schaffer, A semicoarsening multigrid method for elliptic PDEs with highly discontinuous and anisotropic
    coefficients, SIAM J. Sci. Comput. 20 (1998) 228-242.

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
