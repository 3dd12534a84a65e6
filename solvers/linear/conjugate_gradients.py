"""Conjugate gradients preconditioned by sweeps, by Chebyshev polynomials, or by any function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core import checks
from ..core.precision import unit_of
from ..core.typing import Array, Float, Progress, Scalar
from .cycles.smoothing import chebyshev
from .pcg import conjugate
from .relaxation import relaxation
from .solution import LinearSolution, Method, Options, known, solve
from .systems.system import System


class CGSolution(LinearSolution):
    """What the conjugate gradient solvers return; ``error = ||b - A value|| / ||b||``."""


class SSORCG(Method):
    """Conjugate gradients with a sweep there and back as preconditioner."""

    omega: Array
    sweeps: ClassVar[bool] = True

    def run(self, system, b, start, controls):
        """Precondition by SSOR from zero."""
        sweep = system.sweeper(self.omega)
        zero = jax.tree.map(jnp.zeros_like, b)
        # (1)
        return conjugate(system, b, start, lambda r: sweep(sweep(zero, r), r, reverse=True), controls)


class ChebyshevCG(Method):
    """Conjugate gradients with a Chebyshev polynomial in D^-1 A as preconditioner."""

    ratio: Array
    degree: Any = None
    fixed_degree: int | None = eqx.field(static=True, default=None)

    def run(self, system, b, start, controls):
        """Precondition by a given number of Chebyshev steps."""
        high = system.row_bound()
        degree = self.degree if self.fixed_degree is None else self.fixed_degree
        inverse = jax.tree.map(lambda d: 1 / d, system.diagonal())
        polynomial = chebyshev(system.mv, inverse, high / self.ratio, high, degree)
        return conjugate(system, b, start, polynomial, controls)


class FlexibleCG(Method):
    """Conjugate gradients with any function as preconditioner."""

    precondition: Callable = eqx.field(static=True)
    args: Any
    directions: int = eqx.field(static=True)
    numbers: ClassVar[bool] = False

    def run(self, system, b, start, controls):
        """Precondition by the user's function, in the shape of b."""
        apply = jax.jit(self.precondition)

        def direction(r):
            r = system.unpack(r)
            z = apply(r, self.args)
            if jnp.shape(z) != r.shape:
                checks.fail("flexible_cg", "precondition", f"a function to arrays of shape {r.shape}", jnp.shape(z))
            z = z.astype(r.dtype)
            return system.pack(z * unit_of(z))  # its scale does not matter, unless curvatures over- or underflow

        # (2), (3)
        return conjugate(system, b, start, direction, controls, directions=self.directions)


def ssor_cg(
    A: System | Float[Array, "n n"],
    b: Float[Array, "*n"],
    *,
    omega: Scalar = 1.0,
    x0: Float[Array, "*n"] | None = None,
    tol: Scalar | None = None,
    max_steps: int | Array = 10_000,
    every: int = 1,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> CGSolution:
    """Solve ``A x = b``, A symmetric positive definite, by conjugate gradients preconditioned with SSOR.

    In natural order (dense, or ``SparseRows(..., ordering="natural")``) the method of the heat experiment of Learning
    to Relax, with an omega worth learning. In red-black order omega = 1 is best and it amounts to conjugate gradients
    on half of the unknowns: there prefer `sor`, `chebyshev_cg` or `multigrid_cg`.

    Parameters
    ----------
    A : Stencil, SparseRows or Float[Array, "n n"]
        Symmetric positive definite. Traced, differentiable.
    b : Float[Array, "*n"]
        In the shape of the system. Traced, differentiable. Several at once: ``jax.vmap`` over b.
    omega : scalar
        Relaxation, in (0, 2). Traced; no derivative.
    x0, tol, max_steps, every, unconverged, history, progress : optional
        As for `sor`. A step is one product with A and one sweep there and back.

    Returns
    -------
    CGSolution
        ``value`` like `b`, ``num_steps``, ``error = ||b - A value||_2 / ||b||_2``. `LinearStatus.INDEFINITE` when a
        direction has no positive curvature, `LinearStatus.DIAGONAL` as for `sor`, `Status.STAGNATED` when rounding
        keeps the true residual above `tol`, `LinearStatus.INCOMPATIBLE` as for `sor`.

    Raises
    ------
    ValueError, TypeError
        As `sor`.

    Notes
    -----
    ``M = omega / (2 - omega) (D / omega + L) D^-1 (D / omega + U)`` (1). The test uses the recurred residual; the true
    one is computed when that passes, and the method restarts from there if it does not agree. Memory: six vectors.
    Derivatives: of ``A^-1 b``, to any order, by the same method, A taken to be symmetric.

    References
    ----------
    M. Khodak, E. Chow, M.-F. Balcan, A. Talwalkar, Learning to Relax, ICLR 2024, section 4.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Stencil, ssor_cg
    >>> bool(ssor_cg(Stencil.laplacian(2), jnp.ones((5, 5))).converged)
    True
    """
    method = SSORCG(relaxation("ssor_cg", omega))
    options = Options(x0, tol, max_steps, every, unconverged, history, progress)
    return solve("ssor_cg", CGSolution, method, A, b, options)


def chebyshev_cg(
    A: System | Float[Array, "n n"],
    b: Float[Array, "*n"],
    *,
    degree: int = 4,
    ratio: Scalar = 30.0,
    x0: Float[Array, "*n"] | None = None,
    tol: Scalar | None = None,
    max_steps: int | Array = 10_000,
    every: int = 1,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> CGSolution:
    """Solve ``A x = b``, A symmetric positive definite, by conjugate gradients with a Chebyshev-Jacobi preconditioner.

    Needs only products and the diagonal: for matrix-free systems and wherever inner products are dear (accelerators,
    many devices). ``degree=1`` is Jacobi-preconditioned conjugate gradients.

    Parameters
    ----------
    A : Stencil, SparseRows, MatrixFree or Float[Array, "n n"]
        Symmetric positive definite. Traced, differentiable.
    b : Float[Array, "*n"]
        In the shape of the system. Traced, differentiable. Several at once: ``jax.vmap`` over b.
    degree : int
        Steps of Chebyshev's method a preconditioning, at least 1; ``degree - 1`` products. A Python integer is static
        (the steps are a loop of known length), an array is traced.
    ratio : scalar
        The polynomial is small on eigenvalues of D^-1 A in ``[bound / ratio, bound]``, where bound is the largest
        absolute row sum over the diagonal (`MatrixFree`: as given or estimated). At least 1. Traced; no derivative.
    x0, tol, max_steps, every, unconverged, history, progress : optional
        As for `sor`. A step is ``degree`` products with A.

    Returns
    -------
    CGSolution
        As for `ssor_cg`; ``error = ||b - A value||_2 / ||b||_2``.

    Raises
    ------
    ValueError, TypeError
        As `sor`; `degree` or `ratio` below 1.

    Notes
    -----
    The preconditioner is positive definite because the row sum bounds the spectrum. Stopping, memory and derivatives
    as for `ssor_cg`.

    References
    ----------
    O. Axelsson, Iterative Solution Methods, Cambridge 1994, section 5.3.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Stencil, chebyshev_cg
    >>> bool(chebyshev_cg(Stencil.laplacian(2), jnp.ones((5, 5))).converged)
    True
    """
    name = "chebyshev_cg"
    ratio = checks.number(name, "ratio", ratio)
    if known(ratio) and not float(ratio) >= 1:
        checks.fail(name, "ratio", "at least 1", ratio)
    if isinstance(degree, int) and degree < 1:
        checks.fail(name, "degree", "at least 1", degree)
    fixed = isinstance(degree, int)
    method = ChebyshevCG(ratio, None if fixed else checks.count(name, "degree", degree), degree if fixed else None)
    options = Options(x0, tol, max_steps, every, unconverged, history, progress)
    return solve(name, CGSolution, method, A, b, options)


def flexible_cg(
    A: System | Float[Array, "n n"],
    b: Float[Array, "*n"],
    *,
    precondition: Callable[[Array, Any], Array],
    args: Any = None,
    directions: int = 2,
    x0: Float[Array, "*n"] | None = None,
    tol: Scalar | None = None,
    max_steps: int | Array = 10_000,
    every: int = 1,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> CGSolution:
    """Solve ``A x = b``, A symmetric positive definite, with any function, a network say, proposing directions.

    The deep conjugate direction scheme: the proposal is made A-orthogonal to the last `directions` directions and
    followed by an exact line search. The preconditioner may be nonlinear, unsymmetric or different at each call. For a
    fixed symmetric one, the plain solvers are cheaper.

    Parameters
    ----------
    A : Stencil, SparseRows, MatrixFree or Float[Array, "n n"]
        Symmetric positive definite. Traced, differentiable.
    b : Float[Array, "*n"]
        In the shape of the system. Traced, differentiable. Several at once: ``jax.vmap`` over b.
    precondition : callable
        ``precondition(residual, args)``, an array like b. Static, traced once. Its scale does not matter.
    args : PyTree
        Its data, a network's weights say. Traced; the solution does not depend on them, so no derivative.
    directions : int
        How many old directions to orthogonalise against, at least 1. Static.
    x0, tol, max_steps, every, unconverged, history, progress : optional
        As for `sor`. A step is one product with A and one call of `precondition`.

    Returns
    -------
    CGSolution
        As for `ssor_cg`; ``error = ||b - A value||_2 / ||b||_2``.

    Raises
    ------
    ValueError, TypeError
        As `sor`; `directions` below 1.

    Notes
    -----
    A step, with f the function `precondition`:

    (2) ``p = f(r) - sum_i (f(r)'A p_i / p_i'A p_i) p_i``, over the last directions
    (3) ``x <- x + alpha p,  r <- r - alpha A p,  alpha = p'r / p'A p``

    With the identity it reproduces conjugate gradients to rounding. It departs from the paper, which gives f the
    residual over its length and computes r anew in every step: here r is recurred and checked at the end, at half the
    cost. Memory: ``4 + 2 directions`` vectors. Derivatives as
    for `ssor_cg`.

    References
    ----------
    A. Kaneda et al., A Deep Conjugate Direction Method for Iteratively Solving Linear Systems, ICML 2023, algorithm 2.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Stencil, flexible_cg
    >>> bool(flexible_cg(Stencil.laplacian(2), jnp.ones((5, 5)), precondition=lambda r, _: r).converged)
    True
    """
    name = "flexible_cg"
    if not callable(precondition):
        checks.fail(name, "precondition", "callable", type(precondition).__name__, TypeError)
    if not isinstance(directions, int) or directions < 1:
        checks.fail(name, "directions", "a positive Python integer", directions)
    method = FlexibleCG(precondition, args, directions)
    options = Options(x0, tol, max_steps, every, unconverged, history, progress)
    return solve(name, CGSolution, method, A, b, options)
