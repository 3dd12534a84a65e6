"""`collocate`: a differential equation solved by a field with closed-form derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.checks import choice, count, fail, float_array, number
from ...core.implicit import UNCONVERGED, attach, distrust
from ...core.loop import Limits, Run, iterate
from ...core.precision import eps, matmul
from ...core.solution import Status
from ...core.typing import Array, Float, Progress, Scalar
from ..field_solution import FieldSolution
from ..problem import PDEProblem
from ..solution import PDEStatus, told
from .collocation_rows import (
    FEWEST_CHECKS,
    MOST_CHECKS,
    Points,
    Statement,
    face_points,
    gauss_points,
    golden_points,
    pointwise,
    state,
)
from .field_descent import descend
from .gaussian_field import GaussianField
from .projection import RIDGE, Fit, factor, search, stability, weight_columns

STALL = 15
"""Steps of the search without a smaller error after which it ends."""


class Options(NamedTuple):
    """The static side of `collocate`: points a dimension or None, whether shapes move, the optimiser, derivatives."""

    counts: tuple[int, ...] | None
    train: bool
    optimizer: Any
    unconverged: str


def collocate(
    problem: PDEProblem,
    field: Any,
    *,
    args: Any = None,
    points: int | tuple[int, ...] | Float[Array, "m d"] | None = None,
    train: bool = True,
    optimizer: Any = "projection",
    boundary_weight: Scalar = 100.0,
    tol: Scalar | None = None,
    max_steps: Scalar = 50,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> FieldSolution:
    r"""Solve a differential equation by a sum of Gaussians, or by a published network of them, at points.

    Minimises the squares of ``residual(x, u, args)`` at points of a `Box` and of its conditions on faces, by default
    with variable projection: the weights of a `GaussianField` are solved for by linear least squares and only centres
    and shapes are searched, by Gauss-Newton steps. For solutions with features that move or sharpen at places not known
    beforehand. On a box that a grid resolves `gp_solve` is faster and more accurate by orders.

    Parameters
    ----------
    problem : PDEProblem
        The statement, without noise and `Observe`. Differentiable in its numbers; static in its functions. Condition
        values are numbers or callables.
    field : GaussianField or PublishedPIG
        Where to start; its dtype is that of the solve. No derivative.
    args : PyTree, optional
        Handed to the residual and to callable condition values. Differentiable.
    points : int, tuple of int or Float[Array, "m d"], optional
        Gauss-Legendre points a dimension, or the points themselves (then faces get about ``m^(1/d)`` a dimension); by
        default twice as many as there are numbers to find. Integers are static.
    train : bool
        Whether centres and shapes move. Without, a linear equation takes one step. Static.
    optimizer : "projection", "lbfgs" or an Optax transformation
        How. All but the first move every number at once, as published. Static.
    boundary_weight : scalar
        How much more the conditions count than the equation, each in units of its terms.
    tol : float, optional
        See `error`; 1e-6 in float64, 1e-3 in float32. Traced.
    max_steps : int
        Steps of the search, or of the optimiser. Traced.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the error of that many steps (``True``: 256). Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``.

    Returns
    -------
    FieldSolution
        ``.mean(x)``, ``.derivative(x, orders)``; ``value`` at the points, and the `field`. Its
        `error` is the larger of the equation's root mean square residual over the sum of its terms' and the conditions'
        misfit over their values and terms,
        both at points that the fit has not seen.

    Raises
    ------
    ValueError
        For noise or observations, a field that does not fit the box or the unknowns, points outside what their shape
        may be, condition values that are arrays.
    TypeError
        For `PublishedPIG` with variable projection.

    Notes
    -----
    With r residuals linear in p weights one QR factorisation of ``(r + p) p`` numbers a step; the columns of the shapes
    are projected on what the weights cannot make good (Kaufman's form) and damped after Levenberg and Marquardt. A
    nonlinear equation takes one Gauss-Newton step in the weights after each in the shapes. Weights carry a ridge of
    8 units of rounding relative to their columns.

    *Status.* `Status.STAGNATED` when 15 steps bring no smaller error, or one without `train`. `PDEStatus.SINGULAR` when
    a function with the residuals found, or residuals of the square root of rounding, may be as large as a tenth of the
    solution: the problem has many solutions, or nearly. Only with "projection".

    *Derivatives.* Implicit, forward and reverse, any order, in the numbers of the problem and `args`, with centres and
    shapes held: those of the least-squares weights up to terms of the size of the residual. Zero with other optimisers.

    *Departures from [1].* No network behind the sums (`PublishedPIG` has it), second-order steps, deterministic points.

    References
    ----------
    .. [1] Kang et al. PIG: Physics-Informed Gaussians as Adaptive Parametric Mesh Representations. ICLR 2025.
    .. [2] Golub, Pereyra. Separable nonlinear least squares. Inverse Problems 19 (2003).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Box, Dirichlet, GaussianField, PDEProblem, collocate
    >>> problem = PDEProblem(lambda x, u, a: u.dxx + a * u.v, Box((0.0, 1.0)), [Dirichlet("x-"), Dirichlet("x+", 1.0)])
    >>> field = GaussianField.on_grid(problem.domain, 12, overlap=2.0)
    >>> solution = collocate(problem, field, args=4.0, train=False, tol=1e-2)
    >>> bool(abs(solution.mean(jnp.array([0.5])) - jnp.sin(1.0) / jnp.sin(2.0)) < 1e-3)
    True
    """
    name = "collocate"
    features = getattr(field, "features", field)
    if not isinstance(features, GaussianField):
        fail(name, "field", "a GaussianField or PublishedPIG", type(field).__name__, TypeError)
    if optimizer == "projection" and not isinstance(field, GaussianField):
        fail(name, "optimizer", "'lbfgs' or an Optax transformation for a network", "'projection'", TypeError)
    if not isinstance(optimizer, str) and not hasattr(optimizer, "update"):
        fail(name, "optimizer", "'projection', 'lbfgs' or an Optax transformation", type(optimizer).__name__, TypeError)
    if isinstance(optimizer, str):
        choice(name, "optimizer", optimizer, ("projection", "lbfgs"))
    choice(name, "unconverged", unconverged, UNCONVERGED)
    ndim, dtype = problem.domain.ndim, features.centers.dtype
    if features.centers.shape[1] != ndim or field.fields != problem.fields:
        fail(
            name, "field", f"of {problem.fields} unknowns in {ndim} dimensions", (field.fields, features.centers.shape)
        )
    if points is None:
        moving = sum(v.size for v in jax.tree.leaves(field)) if train else field.fields * features.centers.shape[0]
        points = max(4, int(np.ceil((2 * moving) ** (1 / ndim))))
    if isinstance(points, int | np.integer | tuple):
        counts = (int(points),) * ndim if not isinstance(points, tuple) else tuple(int(n) for n in points)
        if len(counts) != ndim or min(counts) < 1:
            fail(name, "points", f"{ndim} positive integers, or an array (m, {ndim})", points)
        given = None
    else:
        counts, given = None, float_array(name, "points", points, ndim=2).astype(dtype)
        if given.shape[1] != ndim or not given.shape[0]:
            fail(name, "points", f"an array (m, {ndim})", given.shape)
    numbers = jax.tree.map(lambda v: _cast(v, dtype), (problem, args, boundary_weight))
    tol = (1e-6 if dtype == jnp.float64 else 1e-3) if tol is None else tol
    limits = Limits(number(name, "tol", tol, dtype=dtype), count(name, "max_steps", max_steps), history, progress)
    return _collocate(numbers, field, given, limits, Options(counts, train, optimizer, unconverged))


def _cast(leaf, dtype):
    if isinstance(leaf, bool) or not isinstance(leaf, int | float | np.ndarray | np.generic | jax.Array):
        return leaf
    if np.iscomplexobj(leaf):
        fail("collocate", "args", "real, like all other numbers: split a complex equation in two", "complex", TypeError)
    inexact = isinstance(leaf, int) or jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, dtype) if inexact else jnp.asarray(leaf)


@eqx.filter_jit
def _collocate(numbers, field, given, limits: Limits, options: Options) -> FieldSolution:
    moving, still = eqx.partition(numbers, eqx.is_inexact_array)
    frozen, field, given = lax.stop_gradient((moving, field, given))
    problem, args, _ = eqx.combine(frozen, still)
    residual_rest, args_rest = (eqx.filter(v, eqx.is_array, inverse=True) for v in (problem.residual, args))

    def residual(x, u, data):
        return eqx.combine(data[0], residual_rest)(x, u, eqx.combine(data[1], args_rest))

    equation = pointwise(problem, residual, _data(problem, args), jnp.result_type(jax.tree.leaves(field)[0]))
    place = Place(field, given, options.counts)
    scale = _build(eqx.combine(frozen, still), equation, place, None)[0].scale

    def build(moving):
        return _build(eqx.combine(moving, still), equation, place, scale)

    statement, points, checks = build(frozen)
    if options.optimizer != "projection":
        begin, step = descend(statement, points, checks, options.optimizer)
        run = _limited(step, begin(field), limits, None)
        (found, residual, misfit), none = run.value, jnp.full((), jnp.nan, run.error.dtype)
        return lax.stop_gradient(_solution((found, points), run.status, run, limits, (residual, misfit, none, none)))
    return _projected(build, frozen, moving, field, limits, options)


def _projected(build, frozen, moving, field, limits: Limits, options: Options) -> FieldSolution:
    statement, points, checks = build(frozen)

    def fit(field, rest, factored, damping):
        residual, misfit = statement.judged(field, checks)
        return Fit(field, rest, factored, damping, jnp.stack([residual, misfit]), misfit)

    def step(s: Fit) -> Fit:
        return fit(*search(statement, points, s, options.train))

    rest = statement.residuals(field, points)
    start = fit(field, rest, factor(weight_columns(statement, field, points)), jnp.ones((), rest.dtype))
    run = _limited(step, start, limits, STALL if options.train else 1)
    found, residual, misfit = run.value
    last = factor(weight_columns(statement, found, points))
    amplification = stability(statement, found, checks, last)
    own = jnp.sqrt(
        sum(jnp.sum(checks.weights * v**2) for v in found.jets(checks.inside, [(0,) * checks.inside.shape[1]])[0])
    )
    left = jnp.sqrt(jnp.sum(statement.residuals(found, checks) ** 2))
    bound = amplification * left / jnp.where(own > 0, own, 1)
    vague = ~(amplification < min(1e4, 0.3 / eps(rest.dtype) ** 0.5)) | ~(amplification * run.error < 3)
    status = told(run.status, vague, PDEStatus.SINGULAR)

    def residual_of(weights, moving):
        here, at, _ = build(moving)
        rest = here.residuals(found.with_weights(weights), at)
        change = ((weights - found.weights).ravel() * last.unit) * RIDGE * eps(rest.dtype)
        ridge = jax.scipy.linalg.solve_triangular(last.r, RIDGE * eps(rest.dtype) * change, trans=1)
        return (matmul(last.q.T, rest) + ridge).reshape(weights.shape)

    def dense(jacobian, b):
        matrix = jax.jacfwd(lambda w: jacobian(w.reshape(b.shape)).ravel())(jnp.zeros_like(b.ravel()))
        return jnp.linalg.solve(matrix, b.ravel()).reshape(b.shape)

    weights = attach(residual_of, found.weights, moving, solve=dense)
    if options.unconverged == "nan":
        weights = distrust(weights, status == Status.CONVERGED)
    measures = lax.stop_gradient((residual, misfit, amplification, bound))
    return _solution((found.with_weights(weights), points), status.astype(jnp.int32), run, limits, measures)


def _limited(step, start, limits: Limits, stall) -> Run:
    return iterate(
        step,
        start,
        limits,
        value=lambda s: (s.field, *_measures(s)),
        error=lambda s: jnp.max(jnp.stack(_measures(s))),
        stall=stall,
    )


def _measures(s):
    return (s.error[0], s.error[1]) if s.error.ndim else (s.error, s.misfit)


def _solution(found, status, run: Run, limits: Limits, measures) -> FieldSolution:
    (field, points), (residual, misfit, amplification, bound) = found, measures
    (values,) = field.jets(points.inside, [(0,) * points.inside.shape[1]])
    return FieldSolution(
        value=values if field.fields > 1 else values[0], field=field, points=points.inside, status=status,
        num_steps=run.num_steps, error=run.error, tol=limits.tol, history=run.history, residual=residual,
        misfit=misfit, amplification=amplification, bound=bound,
    )  # fmt: skip


class Place(NamedTuple):
    """The first field, the points given or None, and how many a dimension otherwise."""

    field: Any
    given: Any
    counts: Any


def _data(problem, args):
    """Return the arrays of the residual and of its args."""
    return eqx.filter(problem.residual, eqx.is_array), eqx.filter(args, eqx.is_array)


def _build(numbers, equation, place: Place, scale) -> tuple[Statement, Points, Points]:
    """Return the statement, the points of the fit and the points it is judged at."""
    problem, args, weight = numbers
    field, given, counts = place
    ndim, dtype = problem.domain.ndim, jnp.result_type(jax.tree.leaves(field)[0])
    bounds = problem.domain.bounds
    if given is None:
        inside, weights = gauss_points(counts, bounds, dtype)
    else:
        inside, weights = given, jnp.full(given.shape[0], 1 / given.shape[0], dtype)
        counts = (max(2, round(given.shape[0] ** (1 / ndim))),) * ndim
    statement = state(problem, equation, _data(problem, args), args, field, Points(inside, weights, ()), weight)
    if scale is not None:
        statement = eqx.tree_at(lambda s: s.scale, statement, scale)
    entries = statement.stated()

    def placed(make):
        return face_points(entries, problem, make, dtype)

    def others(bounds_of):
        keep = [n for n, b in zip(counts, bounds, strict=True) if any(b is c for c in bounds_of)]
        return gauss_points(tuple(keep), bounds_of, dtype)

    fit = Points(inside, weights, placed(others))
    size = min(MOST_CHECKS, max(FEWEST_CHECKS, inside.shape[0] // 2))
    along = max(16, round(size ** (1 / ndim))) if ndim > 1 else 1
    x, w = golden_points(size, bounds, dtype)
    return statement, fit, Points(x, w, placed(lambda b: golden_points(along ** (ndim - 1), b, dtype)))
