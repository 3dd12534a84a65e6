"""`gp_solve`: a differential equation conditioned on, with its data, on a product grid."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import choice, count, fail, number
from ..core.gaussian.kernels import per_dimension
from ..core.implicit import UNCONVERGED, distrust
from ..core.linalg.kronecker import along
from ..core.loop import Limits
from ..core.precision import eps
from ..core.solution import Status
from ..core.typing import Progress, Scalar
from .between import apart, beside, faces_between
from .exact.answer import completion_for, conditioned_exactly
from .exact.completion import completed
from .gaussian.posterior import conditioned
from .gaussian.published import PublishedGPHM, solve_published
from .gaussian.random_field import spreads
from .problem import Condition, PDEProblem, float_type
from .settings import DENSE, Settings
from .solution import GPSolution, PDEStatus, told
from .spectral.axes import Fourier, Legendre
from .spectral.newton import Discretisation, solve_spectral
from .spectral.resolution import Task, is_conditioned, refined
from .spectral.spaces import face_values, line
from .spectral.start import start
from .tracing import trace

BETWEEN = 1e-3
"""Largest relative residual of an exact equation that holds between the nodes, unless `tol` is larger."""
ROUNDED = 2
"""What differentiating a product basis of n functions rounds to, in ``eps n^2``: it is smooth in first derivatives."""


def gp_solve(
    problem: PDEProblem,
    *,
    grid: Any = None,
    args: Any = None,
    prior: Any = None,
    basis: str = "auto",
    rank: int | tuple[int, ...] | None = None,
    infer: Any = None,
    learn: str | None = None,
    published: PublishedGPHM | None = None,
    guess: Any = None,
    tol: Scalar | None = None,
    max_steps: Scalar = 50,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> GPSolution:
    r"""Solve a differential equation on a product grid, exactly or as Gaussian-process conditioning.

    ``residual(x, u, args) = 0`` on a `Box` with the problem's conditions. Without noise, observations or a `prior`, and
    with as many conditions in each dimension as derivatives, u is a spectral expansion on the grid and the equation is
    tested with as many functions as it has free coefficients: the right choice where the grid resolves the solution.
    With noisy or missing data or unknown coefficients it is that same expansion, and what exact statements leave open,
    values on faces, the equation's noise, unknown `args`, is Gaussian and conditioned on the data. With a `prior`, or
    ``basis="kernel"`` or `learn`, u itself has a Gaussian prior that is conditioned on everything, each with its noise:
    for grids below Nyquist and domains that are no boxes. Means are most probable points and uncertainties Laplace's
    where something is not linear. Not for shocks.

    Parameters
    ----------
    problem : PDEProblem
        The statement. Differentiable in its numbers; static in its functions.
    grid : int, or tuple of int or Float[Array, "n"], optional
        Nodes a dimension (Gauss-Legendre, equally spaced where periodic), also the number of polynomials; static.
        Vectors of nodes are for conditioning only. By default what the source and the conditions need, refined until
        the solution's coefficients have decayed (`GPSolution.grid` says to what): on the host, so not inside ``jit``,
        ``vmap`` or ``grad`` of the data.
    args : PyTree, optional
        Handed to the residual and to callable condition values. Differentiable. Python numbers become arrays.
    prior : Kernel or tuple of Kernel, optional
        Of u: one for every dimension, or one a dimension, whose product it is. With ``basis="kernel"`` and none given
        it is a `SpectralMixture` read off the source and the conditions. No derivatives.
    basis : {"auto", "polynomial", "kernel"}
        ``"kernel"`` asks for conditioning in the prior's own functions; with a prior, ``"polynomial"`` conditions
        polynomials weighted by the prior. Static.
    rank : int or tuple of int, optional
        Most functions of the prior a dimension; 256, 40, 12 in one, two, three dimensions. Static.
    infer : PyTree, optional
        Standard deviations like `args`: makes those unknown, with prior mean `args`; None where one is known, 1 for a
        `RandomField` (a coefficient that varies) as it is stated.
    learn : {None, "prior", "noise", "both"}
        Maximise the evidence, the field integrated out, over the numbers of the prior or the noises stated (which then
        are first guesses), or both; `GPSolution.prior` and `.noise` say what was found. Static.
    published : PublishedGPHM, optional
        Run GP-HM as its authors do, `max_steps` steps of Adam, to compare with; its `error` is the root mean square of
        the residual on the grid over the terms', and derivatives are zero. It needs a `grid` and takes none of
        `prior`, `basis`, `rank`, `infer`, `learn`, `guess`.
    guess : callable or GPSolution, optional
        ``guess(x, args)`` to start Newton's method from, or an earlier solution; decides the branch where there are
        several. Zero derivative.
    tol : float, optional
        See `error`; 50 eps; with data ``eps^0.75``, not linear ``eps^0.6``; with a prior of u about 3e-6 (float64) or
        2e-2 (float32). Traced.
    max_steps : int
        Newton steps. Traced.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the error of that many steps (``True``: 256). Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``.

    Returns
    -------
    GPSolution
        Callable anywhere: ``.mean(x)``, ``.derivative(x, orders)``, ``.std(x)``, ``.sample(key, x)``. Its `error` is
        the norm of the tested residual over the norms of the equation's terms, ``|test' R| / (|R(0)| + sum |c u|)``, a
        term counting as at least its coefficient times u over the domain's lengths (with data see the notes); with a
        prior of u ``|Q' rho| / sqrt(1 + |rho|^2)``: how far the most probable point is from stationary, rho
        being all data misfits over their noise and Q an orthonormal basis of their Jacobian's range.

    Raises
    ------
    ValueError
        For a grid that does not fit, an unknown face, a residual without the unknown or one that is not pointwise,
        an observation outside the box or a negative noise (where these are not traced), options that `published`
        would ignore.
    TypeError
        For complex numbers.
    AttributeError
        For a derivative that does not exist.

    Notes
    -----
    *Spectral.* In each dimension the highest derivative is a Legendre series, so nothing is lost to differentiation.
    A linear equation that separates, found by tracing, is solved directly: each symmetric dimension
    by one eigendecomposition, one general dimension beside them by small LU factorisations, two by squaring Cayley
    transforms. In one dimension, or with few unknowns, Newton's method factorises densely; otherwise by GMRES with the
    averaged separable operator. Cost after set-up: 2 d mode products of ``2 n^(d+1)`` operations, memory for a few
    fields; no Kronecker product is formed.

    *Exact equations with data.* Noisy conditions, or missing ones, are replaced by unknown values on their faces, which
    makes a well-posed problem; p are the whitened weights of those values, the noise of the equation at each node and
    `args` to be found. Newton's method steps in y and p together: one factorisation, one solve for each of the r
    numbers of p, and one QR factorisation of ``(m + r) r`` numbers for m data; memory ``3 r n^d``. Noise at more than
    600 nodes is taken in the 480 directions that move the solution most; the rest is not learned but widens intervals
    and data. Derivatives solve a dense system in y and p. Face values are traces
    of a constant plus a smooth process on the box, whose length and scale are the best of 9 by 13 by the evidence with
    a weak belief; they have at most 64 (in 3-D 12 by 12) polynomials a face. Its error is the larger of the equation's
    and of ``|Q' rho| / (1 + |rho| + |terms|)``. The noise of a condition is independent at each node of the grid, so
    it averages out on finer ones.

    *Conditioning u.* One QR factorisation a step, ``O(m k^2)`` for m data and k weights, of the Jacobian in whitened
    weights: the kernel matrix is truncated relative to its largest eigenvalue and never inverted. The Jacobian is
    dense, ``(m + k) k`` numbers, so k should stay below a few thousand. Exact data have noise of ``eps^0.55`` of what
    the prior allows.

    *Learning.* ``log N(y; 0, K + noise^2)`` of the data (at most 160 of an equation, 40 of a face), linearised at a
    first solution where need be, is maximised by BFGS over logarithms, with frequencies; `SpectralMixture` components
    that BIC finds superfluous get weight zero. Kernels enter by their closed-form derivatives: no eigenvector is
    differentiated.

    *Default grid.* Degrees come from the Chebyshev coefficients of the source along lines and of the face values; a
    dimension whose last coefficients exceed ``eps^0.7`` of the largest gets half as many nodes more, up to 2048, 512 or
    96 in one, two or three dimensions. With data the end is ``eps^0.5``, at most 1024, 64, 20 (512, 64, 16
    where the equation has noise); with a prior of u 128, 20, 8, which is below Nyquist where it must be.

    *Domains other than boxes*: a residual that is zero outside, `Observe` on the boundary, and a prior.

    *Status.* `PDEStatus.UNRESOLVED` when the equation is solved on the grid yet its residual at the nodes or between
    them, on 256, 32 to 64 or 16 to 24 points a dimension, exceeds ``10 sqrt(tol)`` or 1e-3 (or `tol`, or the rounding
    ``2 eps n^2`` in several dimensions), or with data exceeds four noises and 0.03 (0.3, where the step that a grid of
    half as many nodes more takes is below half of `std`: noisy faces do not fit in corners) between them; the same of
    exact conditions given as
    functions, between the nodes of their faces. Where equation or conditions hold arrays of the grid's shape the nodes
    are all there is to judge by. `PDEStatus.SINGULAR`
    when a linear equation's terms cancel to fewer than three digits (resonance) or its factorisation does not solve it;
    `PDEStatus.UNDETERMINED` when more than half the variance of what is open is left (with no more data, `std` is the
    prior's); `PDEStatus.UNIDENTIFIED` when 95 % of the prior's standard deviation is left of an `args` (of a field, on
    average); `PDEStatus.CONTRADICTED` when a measurement lies
    twelve standard deviations from the mean, or all their squares eight from what they should be: equation, prior and
    data cannot all be right, or not in this precision; `PDEStatus.ALIASED`. Without an answer to trust `std` is NaN;
    otherwise it holds what the discretisation leaves as well, place by place: that step, and the last coefficients.

    *Derivatives.* Implicit, forward and reverse, any order, in condition values and coefficients, bounds (spectral
    only), `args`, noise and observations. In the prior: of `log_evidence` by `learn`, not through the solution.

    *Precision.* In the inputs' dtype; float32 reaches about 1e-5 and says so in `error` and `residual`.

    *Departures from [1].* No Adam (but see `published`): the spectrum is read off the data and u eliminated. Error is
    judged by the residual at the last state, never by the test error.

    References
    ----------
    .. [1] Fang, Cooley, Long, Li, Kirby, Zhe. Solving high frequency and multi-scale PDEs with Gaussian processes.
       ICLR 2024, arXiv:2311.04465.
    .. [2] Shen. Efficient spectral-Galerkin method I. SIAM J. Sci. Comput. 15 (1994).
    .. [3] Deuflhard. Newton methods for nonlinear problems. Springer 2011, section 3.1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Box, Dirichlet, PDEProblem, gp_solve
    >>> problem = PDEProblem(lambda x, u, a: u.dxx + a * u.v, Box((0.0, 1.0)), [Dirichlet("x-"), Dirichlet("x+", 1.0)])
    >>> solution = gp_solve(problem, grid=16, args=4.0)
    >>> bool(abs(solution.mean(0.5) - jnp.sin(1.0) / jnp.sin(2.0)) < 1e-5)
    True
    """
    choice("gp_solve", "basis", basis, ("auto", "polynomial", "kernel"))
    choice("gp_solve", "learn", learn, (None, "prior", "noise", "both"))
    ndim = problem.domain.ndim
    if grid is not None:
        grid = (grid,) if isinstance(grid, int | np.integer) or getattr(grid, "ndim", 0) == 1 else tuple(grid)
        sizes = [n if isinstance(n, int | np.integer) else np.size(n) for n in grid]
        if len(grid) != ndim or any(n < 1 for n in sizes):
            fail("gp_solve", "grid", f"{ndim} positive integers or vectors of nodes, one a dimension", grid)
    dtype = float_type((problem, args))
    if prior is not None:
        prior = per_dimension(prior, ndim)
    if tol is not None:
        tol = number("gp_solve", "tol", tol, dtype=dtype)
    problem, args, prior, infer, published = _arrays((problem, args, prior, infer, published), dtype)
    limits = Limits(tol, count("gp_solve", "max_steps", max_steps), history, progress)
    choice("gp_solve", "unconverged", unconverged, UNCONVERGED)

    def solve(grid, guess, dense=DENSE):
        settings = Settings(grid, guess, prior, infer, learn, basis, rank, published, limits, unconverged, dense)
        return _solve(problem, args, settings)

    if published is not None:
        settings = {"prior": prior, "rank": rank, "infer": infer, "learn": learn, "guess": guess}
        given = [name for name, value in settings.items() if value is not None]
        given += ["basis"] if basis != "auto" else []
        if given:
            fail("gp_solve", given[0], "left out with `published`, which has settings of its own", "one")
        if grid is None:
            fail("gp_solve", "grid", "given for the published method", None)
    infer = spreads(infer, args)
    if grid is None:
        whole = prior is not None or basis == "kernel" or learn is not None

        def exactly(orders) -> bool:
            return not whole and completed(problem, orders) is not None

        return refined(problem, args, guess, Task(solve, whole or infer is not None, exactly, dtype))
    return solve(tuple(int(n) if isinstance(n, int | np.integer) else jnp.asarray(n, dtype) for n in grid), guess)


@eqx.filter_jit
def _solve(problem: PDEProblem, args: Any, settings: Settings) -> GPSolution:
    grid = settings.grid
    dtype = problem.domain.bounds[0][0].dtype
    ndim, fields = problem.domain.ndim, problem.fields
    dynamic, (residual, static) = _payload(problem.residual, args)
    x = _nodes(problem, grid, dtype)

    def pointwise(x, u, a):
        return eqx.combine(a[0], residual)(x, u, eqx.combine(a[1], static))

    if settings.published is not None:
        return solve_published(problem, pointwise, dynamic, args, settings)
    sizes = [n if isinstance(n, int) else n.size for n in grid]
    points = apart(problem.domain.bounds, sizes, dtype, alone=False)
    averaged = ndim == 1 and not problem.periodic[0] and settings.infer is None
    equation = trace(pointwise, problem.domain.names, fields, x, dynamic, points.coordinates, averaged)
    if settings.conditions or is_conditioned(problem, equation.orders):
        completion = completion_for(problem, equation, settings)
        if completion is not None:
            exact = conditioned_exactly(problem, completion, equation, args, dynamic, settings)
            return _distrusted(exact, settings)
        return _distrusted(conditioned(problem, equation, args, dynamic, x, settings), settings)
    limits = settings.within(jnp.asarray(50 * eps(dtype), dtype))
    tol, guess = limits.tol, settings.guess
    highest = [[max((o[d] for o in orders), default=0) for d in range(ndim)] for orders in equation.orders]
    values = [[_axis_values(problem, k, d, args, x) for d in range(ndim)] for k in range(fields)]
    moving, still = eqx.partition((_without_values(problem), values, dynamic), eqx.is_inexact_array)

    def build(data):
        stated, values, dynamic = eqx.combine(data, still)
        lines = [
            [line(stated, k, d, grid[d], highest[k][d], ndim > 1, dtype) for d in range(ndim)] for k in range(fields)
        ]
        return Discretisation(equation, lines, values, dynamic, dense=settings.dense)

    begin = None if guess is None else (lambda found: start(found, guess, args))
    found, y, run, strong, scale, alone = solve_spectral(build, moving, begin, limits)
    z = found.coefficients(y)
    bases = tuple(tuple(ln.basis for ln in ls) for ls in found.lines)
    judged = lax.stop_gradient((z, scale / 2 ** (ndim / 2)))  # a mean, where the norm integrates over [-1, 1]^d
    strong = lax.stop_gradient(_between(problem, equation, (points, bases), judged, (args, dynamic), strong))
    rounding = ROUNDED * eps(dtype) * max(b.size for bs in bases for b in bs) ** 2 if ndim > 1 else 0.0
    allowed = jnp.maximum(tol, jnp.minimum(10 * jnp.sqrt(tol), max(BETWEEN, rounding)))
    status = told(run.status, ~(strong <= allowed), PDEStatus.UNRESOLVED)
    status = jnp.where(alone, int(PDEStatus.SINGULAR), status).astype(jnp.int32)
    return _distrusted(GPSolution(
        value=z if fields > 1 else z[0], status=status, num_steps=run.num_steps, error=run.error, tol=tol,
        history=run.history, residual=strong, misfit=found.misfit,
        bases=bases, posterior=None, args=args, args_std=None,
        infer=None, log_evidence=None, prior=None, noise=None,
    ), settings)  # fmt: skip


def _between(problem: PDEProblem, equation, where, judged, args, strong):
    """Return the largest relative residual of equation and conditions, at the nodes and between them.

    `where`: the points and the bases; `judged`: coefficients and the size of the equation's terms; `args`: the user's,
    and their traced parts; `strong`: the equation's residual at the nodes.
    """
    (points, bases), (z, scale) = where, judged
    bases, dynamic = lax.stop_gradient((bases, args[1]))
    elsewhere = beside(equation, points, bases, z, dynamic, scale)
    faced = faces_between(problem, bases, z, args[0], points)
    for found in (elsewhere, faced):
        strong = strong if found is None else jnp.maximum(strong, found)
    return strong


def _distrusted(solution: GPSolution, settings: Settings) -> GPSolution:
    """Return the solution with derivatives that are NaN unless it converged or approximate ones were asked for."""
    if settings.unconverged == "approximate":
        return solution
    found = solution.value, solution.posterior, solution.args if settings.infer is not None else None
    arrays, rest = eqx.partition(found, eqx.is_inexact_array)
    value, posterior, args = eqx.combine(distrust(arrays, solution.status == Status.CONVERGED), rest)
    args = solution.args if settings.infer is None else args
    return eqx.tree_at(
        lambda s: (s.value, s.posterior, s.args), solution, (value, posterior, args), is_leaf=lambda x: x is None
    )


def _payload(residual, args):
    """Split the residual and its args into arrays and the rest."""
    residual_arrays, residual_rest = eqx.partition(residual, eqx.is_array)
    args_arrays, args_rest = eqx.partition(args, eqx.is_array)
    return (residual_arrays, args_arrays), (residual_rest, args_rest)


def _nodes(problem: PDEProblem, grid, dtype):
    """Return the grid's coordinates, shaped to broadcast against each other."""
    x = []
    for d, (periodic, (lower, upper), n) in enumerate(zip(problem.periodic, problem.domain.bounds, grid, strict=True)):
        lower, upper = jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)
        if not isinstance(n, int):
            x.append(along(n, d, len(grid)))
            continue
        nodes = (Fourier(lower, upper, n) if periodic else Legendre(lower, upper, n, 0)).nodes
        x.append(along(nodes, d, len(grid)))
    return tuple(x)


def _axis_values(problem: PDEProblem, field: int, axis: int, args, x):
    conditions = problem.faces(field, axis)
    if not conditions:
        return None
    return jnp.concatenate([face_values(problem, c, axis, args, x) for c in conditions], axis)


def _without_values(problem: PDEProblem) -> PDEProblem:
    """Drop what is evaluated before the solve: condition values and the residual."""
    stripped = [eqx.tree_at(lambda c: c.value, c, None, is_leaf=lambda v: v is None) if isinstance(c, Condition) else c
                for c in problem.conditions]  # fmt: skip
    return eqx.tree_at(lambda p: (p.residual, p.conditions), problem, (None, tuple(stripped)))


def _arrays(tree, dtype):
    """Turn Python and NumPy numbers into arrays, so that new ones do not retrace."""

    def convert(leaf):
        if isinstance(leaf, complex | np.ndarray | np.generic | jax.Array) and np.iscomplexobj(leaf):
            fail(
                "gp_solve",
                "args",
                "real, like all other numbers: split a complex equation in two",
                "complex",
                TypeError,
            )
        if isinstance(leaf, bool) or not isinstance(leaf, int | float | np.ndarray | np.generic | jax.Array):
            return leaf
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) or isinstance(
            leaf, int) else jnp.asarray(leaf)  # fmt: skip

    return jax.tree.map(convert, tree)
