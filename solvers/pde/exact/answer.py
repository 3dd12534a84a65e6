"""The conditioned solve of an exact equation from end to end: completion, prior, most probable solution, the answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import block_diag, solve_triangular

from ...core.linalg.kronecker import along, mode_products
from ...core.loop import Run
from ...core.precision import eps, matmul
from ...core.solution import Status
from ..between import between, faces_between
from ..gaussian.random_field import unseen
from ..problem import Condition, PDEProblem
from ..settings import Settings
from ..solution import GPSolution, PDEStatus, Response, told
from ..spectral.axes import Fourier, Legendre
from ..spectral.newton import Discretisation, singular, solve_spectral
from ..spectral.spaces import Line, face_values, line
from ..spectral.start import start
from ..tracing import Equation
from .completion import Completion, completed, corners, face_spaces, offsets, stated_faces
from .face_prior import FacePrior, chosen, magnitude_of, none
from .noise import EVERY_NODE, NoiseRank, judged_by, leading
from .reduced import Reduced, attached, factorised, jacobian, responses, solve_reduced
from .untested import slip

RANK = 600
"""Most weights of the open face values."""
HOLDS, LOOSE = 0.03, 0.3
"""Relative residual between the nodes up to which an equation holds; and where what it does to u is below its std."""
LAST = 2
"""Degrees a dimension whose coefficients say how large those beyond them are."""
SPARE = 0.5
"""How much of its std that may be, root mean square over the domain."""
OUTLIER, SURPRISE = 12.0, 8.0
"""Standard deviations that a datum may be off; that the mean square of all misfits may be."""
UNTOUCHED = 0.5
"""Fraction of the prior variance that may be left."""


def completion_for(problem: PDEProblem, equation, settings: Settings) -> Completion | None:
    """Return how the problem is completed, or None where a prior of the whole field is asked for or needed."""
    if settings.prior is not None or settings.basis == "kernel" or settings.learn is not None:
        return None
    if any(not isinstance(n, int) for n in settings.grid):
        return None
    found = completed(problem, equation.orders)
    if found is None:
        return None
    for d, n in enumerate(settings.grid):
        if any(n <= len(found.problem.faces(k, d)) for k in range(problem.fields)):
            return None
    return found


def conditioned_exactly(problem, completion: Completion, equation, args, dynamic, settings: Settings) -> GPSolution:
    """Return the solution of a problem whose equation is solved, not fitted; `dynamic`: the traced parts of `args`."""
    grid, infer = settings.grid, settings.infer
    ndim, fields = problem.domain.ndim, problem.fields
    dtype = jnp.result_type(problem.domain.bounds[0][0])
    linear = equation.linear and infer is None
    limits = settings.within(jnp.asarray(eps(dtype) ** (0.75 if linear else 0.6), dtype))
    whole = completion.problem
    highest = [[max((o[d] for o in orders), default=0) for d in range(ndim)] for orders in equation.orders]
    x = _nodes(problem, grid, dtype)
    values = [[_axis_values(whole, k, d, args, x) for d in range(ndim)] for k in range(fields)]
    observed = [face_values(problem, c, d, args, x) for _, d, c in completion.data]
    counts = [[sum((k, d) == o[:2] for o in completion.opened) for d in range(ndim)] for k in range(fields)]
    order = sorted(range(ndim), key=lambda d: sum(counts[k][d] for k in range(fields)))
    # Condition values are evaluated, residual and args are arrays: what is left of the statement is numbers.
    bare = Completion(
        _without_values(whole), completion.opened,
        [(k, d, eqx.tree_at(lambda c: c.value, c, None)) for k, d, c in completion.data],
    )  # fmt: skip
    seen = (problem.noise, problem.observations)
    moving, still = eqx.partition((bare, values, observed, seen, dynamic, infer), eqx.is_inexact_array)

    def lines_on(grid, bare=bare):
        return [
            [line(bare.problem, k, d, grid[d], highest[k][d], ndim > 1, dtype) for d in range(ndim)]
            for k in range(fields)
        ]  # fmt: skip

    def parts(moving):
        """Return the discretisation, the open conditions' polynomials with what they add, and what is stated."""
        bare, values, observed, (noise, observations), dynamic, infer = eqx.combine(moving, still)
        lines = lines_on(grid, bare)
        found = Discretisation(equation, lines, values, dynamic, order)
        spaces = face_spaces(bare, lines, dtype)
        lifts = [offsets(spaces, k, field, values[k], order) for k, field in enumerate(lines)]
        edges = _edges(spaces, bare, lines, values, counts)
        noise = None if noise is None else jnp.asarray(noise, dtype)
        stated = (dynamic, infer, noise, stated_faces(bare, observed, dtype), observations, edges)
        return found, spaces, lifts, stated

    live = parts(moving)
    found, spaces, lifts, stated = live[0].frozen(), *_frozen(live[1:])
    open_count = sum(s.size for s in spaces)
    y = found.zeros() if settings.guess is None else lax.stop_gradient(start(found, settings.guess, args))
    faced = [v for vs in values for v in vs] + observed + [o.values for o in problem.observations]
    unknown = open_count > 0 or infer is not None or problem.noise is not None

    if not unknown:  # the data only have to agree: this is the noise-free solve, with its derivatives
        begin = None if settings.guess is None else (lambda found: start(found, settings.guess, args))
        found, y, run, *judged, _ = solve_spectral(lambda moving: parts(moving)[0], moving, begin, limits)
        magnitude = magnitude_of([*faced, *(_at_nodes(found, z) for z in found.coefficients(y))], dtype)
        nugget = magnitude * eps(dtype) ** 0.5
        model = Reduced(found, [], lifts, jnp.zeros((0, 0), dtype), parts(moving)[3], nugget)
        response = tuple(jnp.zeros((*z.shape, 0), dtype) for z in found.coefficients(y))
        run = eqx.tree_at(lambda r: r.value, run, (y, model.zeros(), judged, response, model.root))
        asked = Asked(problem, equation, args, observed, settings.infer, limits.tol, lines_on)
        return _answer(model, (y, model.zeros()), run, none(dtype), asked)

    identity = jnp.eye(open_count, dtype=dtype)
    first = Reduced(found, spaces, lifts, identity, stated, jnp.ones((), dtype))
    p: Any = first.zeros()
    here = found.moved(found.offsets, first.args(p))
    inverse = here.factorise(y)
    few = None
    if problem.noise is not None and p[1][0].size * fields > EVERY_NODE:
        few = leading(first, y, inverse)
    settled = tuple(v - d for v, d in zip(y, inverse.solve(here.residual(y), 1e-8), strict=True)) if linear else y
    magnitude = magnitude_of([*faced, *(_at_nodes(found, z) for z in found.coefficients(settled))], dtype)
    nugget = magnitude * eps(dtype) ** 0.5
    first = Reduced(found, spaces, lifts, identity, stated, nugget)
    if few is not None:
        few = judged_by(first, few)
        first = few.within(first)
    p = first.zeros()
    columns, response = responses(first, y, p, inverse)
    slopes = jacobian(first, p, response)
    prior = none(dtype)
    if open_count:
        soft = first.sigmas / jnp.maximum(first.sigmas, magnitude * eps(dtype) ** 0.25)  # its square must not overflow
        misfit = (first.seen(here.coefficients(settled), p[0]) - first.values) / first.spreads
        known, extra = (soft[:, None] * part for part in (slopes[:, :open_count], slopes[:, open_count:]))
        prior = chosen(spaces, found.lines, magnitude, known, extra, soft * misfit, min(open_count, RANK))
    model = _with(Reduced(found, spaces, lifts, prior.root, stated, nugget), few)

    def rooted(v):
        return jnp.concatenate([matmul(v[..., :open_count], prior.root), v[..., open_count:]], axis=-1)

    once = None
    if linear:
        once = factorised(inverse, tuple(map(rooted, columns)), tuple(map(rooted, response)), rooted(slopes))
    run = solve_reduced(model, y, limits, once)
    y, p = run.value[:2]

    def build(moving):
        found, spaces, lifts, stated = parts(moving)
        return _with(Reduced(found, spaces, lifts, prior.root, stated, nugget), few)

    y, p = attached(build, moving, model, y, p)
    model = _with(Reduced(*live[:3], prior.root, live[3], nugget), few)
    if few is not None:
        run = eqx.tree_at(lambda r: r.value, run, (*run.value, few.rest))
    asked = Asked(problem, equation, args, observed, settings.infer, limits.tol, lines_on)
    return _answer(model, (y, p), run, prior, asked)


class Asked(NamedTuple):
    """The statement: problem, equation, the user's `args`, values of the face data, what to infer, the tolerance.

    ``lines(grid)`` are the trial and test functions of the completed problem.
    """

    problem: PDEProblem
    equation: Equation
    args: Any
    observed: list
    infer: Any
    tol: Any
    lines: Callable[[tuple[int, ...]], list[list[Line]]]


def _answer(model: Reduced, point, run: Run, prior: FacePrior, asked: Asked) -> GPSolution:
    """Judge the solution between the nodes, by its data and by what they leave open, and say how sure it is."""
    (y, p), problem, equation, args, observed = point, asked.problem, asked.equation, asked.args, asked.observed
    _, _, (strong, scale), response, r, *rest = run.value
    dtype, fields = r.dtype, len(model.found.lines)
    z = model.coefficients(y, p)
    bases = tuple(tuple(ln.basis for ln in ls) for ls in model.found.lines)
    flat, unravel = ravel_pytree(p)
    gaps = model.seen(z, p[0]) - model.values
    rho = gaps / model.spreads
    status = run.status

    residual = strong
    here = model.at(p).frozen()
    stated = here.terms(lax.optimization_barrier(here.zeros()))[1]
    status = jnp.where(singular(here, run, scale, stated), int(PDEStatus.SINGULAR), status).astype(jnp.int32)
    inverse = solve_triangular(r, jnp.eye(r.shape[0], dtype=dtype))
    nodes = jnp.concatenate([_rows_of(_at_nodes(model.found, v, f)) for f, v in enumerate(response)])
    left = jnp.sum(matmul(nodes, inverse) ** 2)
    size = jnp.stack([jnp.max(jnp.abs(_at_nodes(model.found, v, f))) for f, v in enumerate(z)])
    judged = between(equation, bases, z, model.args(p), problem.noise)
    unseen_by_tests = None
    if judged is not None:
        residual, excess = judged
        unseen_by_tests = slip(model, equation, y, p, asked.lines) if rho.size else None
        spare = jnp.ones((), bool)
        if unseen_by_tests is not None:
            weight, own = lax.stop_gradient((model.found.weight, jnp.sum(matmul(nodes, inverse) ** 2, axis=1)))
            off = jnp.stack([jnp.mean(weight * v**2) for v in unseen_by_tests.values])
            allowed = jnp.mean(weight[None] * own.reshape(-1, *weight.shape), axis=tuple(range(1, weight.ndim + 1)))
            spare = jnp.all(off <= SPARE**2 * allowed)
            status = told(status, ~jnp.all(jnp.isfinite(off)), PDEStatus.UNRESOLVED)
        status = told(status, ~((excess <= HOLDS) | ((excess <= LOOSE) & spare)), PDEStatus.UNRESOLVED)
    elif rho.size:
        status = told(status, ~(strong <= HOLDS), PDEStatus.UNRESOLVED)
    faced = faces_between(problem, bases, z, args)
    if faced is not None:
        status = told(status, ~(faced <= HOLDS), PDEStatus.UNRESOLVED)
    # What no test saw is in `slip`; elsewhere the residual at the nodes has to stand for it.
    floor = size * (strong if unseen_by_tests is None and problem.noise is None else run.error)
    if rho.size:
        floor = jnp.maximum(floor, jnp.stack([_tail(model.found, v, f) for f, v in enumerate(z)]))
    floor = lax.stop_gradient(floor)
    if rho.size:
        worst = jnp.max(jnp.abs(rho))
        status = jnp.where(jnp.isfinite(worst), status, int(Status.NONFINITE)).astype(jnp.int32)
        surprise = (jnp.sum(rho**2) - rho.size) / jnp.sqrt(2.0 * rho.size)
        status = told(status, (worst > OUTLIER) | (surprise > SURPRISE), PDEStatus.CONTRADICTED)
    spread, found_args = None, args
    if asked.infer is not None:
        whitened = unravel(jnp.sqrt(jnp.sum(inverse**2, axis=1)))[2]
        status = told(status, unseen(args, whitened), PDEStatus.UNIDENTIFIED)
        spread, found_args = jax.tree.map(jnp.multiply, asked.infer, whitened), eqx.combine(model.args(p)[1], args)
    count = p[0].size
    if count:
        status = told(status, left > UNTOUCHED * prior.share * jnp.sum(nodes[:, :count] ** 2), PDEStatus.UNDETERMINED)
    trusted = (status == Status.CONVERGED) | (status == PDEStatus.UNIDENTIFIED) | (status == PDEStatus.UNDETERMINED)
    r, floor = jnp.where(trusted, r, jnp.nan), jnp.where(trusted, floor, jnp.nan)
    if spread is not None:
        spread = jax.tree.map(lambda s: jnp.where(trusted, s, jnp.nan), spread)
    on_faces, all_data = (sum(t.values.size for t in ts) for ts in (model.faces, model.targets))
    misfit = model.found.misfit
    if on_faces:
        misfit = jnp.maximum(misfit, jnp.max(jnp.abs(gaps[:on_faces])) / magnitude_of(observed, dtype))
    evidence = -jnp.sum(rho**2) / 2 - jnp.sum(flat**2) / 2 - jnp.sum(jnp.log(jnp.abs(jnp.diagonal(r))))
    evidence = evidence - jnp.sum(jnp.log(model.sigmas[:all_data])) - rho.size * jnp.log(2 * jnp.pi) / 2
    if unseen_by_tests is not None:
        rest.append(tuple(v[..., None] for v in unseen_by_tests.coefficients))
    for columns in rest:  # what the data did not teach: draws of it, and what no test saw, before what they did
        response = tuple(jnp.concatenate(pair, -1) for pair in zip(columns, response, strict=True))
        more = columns[0].shape[
            -1
        ]  # the numbers of `args` stay the last ones, where `GPSolution.of_args` looks for them
        flat, r = jnp.pad(flat, (more, 0)), block_diag(jnp.eye(more, dtype=dtype), r)
    noise = problem.noise, tuple(c.noise for c in problem.conditions if isinstance(c, Condition)), tuple(
        o.noise for o in problem.observations)  # fmt: skip
    return GPSolution(
        value=z if fields > 1 else z[0], status=status, num_steps=run.num_steps, error=run.error, tol=asked.tol,
        history=run.history, residual=residual, misfit=misfit, bases=bases,
        posterior=Response(flat, r, response, floor), args=found_args, args_std=spread, infer=asked.infer,
        log_evidence=evidence,
        prior=None if count == 0 else (prior.kernel,) * problem.domain.ndim, noise=noise,
    )  # fmt: skip


def _with(model: Reduced, few: NoiseRank | None) -> Reduced:
    return model if few is None else few.within(model)


def _rows_of(tensor):
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _tail(found: Discretisation, z, field: int):
    """Return the size of what the last degrees say of u: about that of the degrees that the grid does not have."""
    last = jnp.zeros(z.shape, bool)
    for d, n in enumerate(z.shape):
        if not isinstance(found.lines[field][d].basis, Fourier):
            last = last | (jnp.arange(n, dtype=jnp.int32) >= n - LAST).reshape(
                [-1 if e == d else 1 for e in range(z.ndim)]
            )
    return jnp.sqrt(jnp.mean(_at_nodes(found, jnp.where(last, z, 0), field) ** 2))


def _frozen(tree):
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(lax.stop_gradient(arrays), rest)


def _edges(spaces, completion: Completion, lines, values, counts):
    """Return the rows of all edges in all open weights."""
    rows, total, before = [], sum(s.size for s in spaces), 0
    for s in spaces:
        k = s.opened.field
        exact = [ln.rows.shape[0] - counts[k][d] for d, ln in enumerate(lines[k])]
        for a, b in corners(s, completion, lines, values, exact):
            rows.append((jnp.pad(a, ((0, 0), (before, total - before - a.shape[1]))), b))
        before += s.size
    return rows


def _at_nodes(found: Discretisation, coefficients, field: int = 0):
    """Return values at the nodes, further axes of the coefficients kept."""
    matrices: list[Any] = [values[0] for values in found.values[field]]
    return mode_products(matrices + [None] * (coefficients.ndim - len(matrices)), coefficients)


def _nodes(problem: PDEProblem, grid, dtype):
    bases = []
    for periodic, (lower, upper), n in zip(problem.periodic, problem.domain.bounds, grid, strict=True):
        lower, upper = jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)
        bases.append(Fourier(lower, upper, n) if periodic else Legendre(lower, upper, n, 0))
    return tuple(along(b.nodes, d, len(grid)) for d, b in enumerate(bases))


def _axis_values(problem: PDEProblem, field: int, axis: int, args, x):
    conditions = problem.faces(field, axis)
    if not conditions:
        return None
    return jnp.concatenate([face_values(problem, c, axis, args, x) for c in conditions], axis)


def _without_values(problem: PDEProblem) -> PDEProblem:
    stripped = [eqx.tree_at(lambda c: c.value, c, None, is_leaf=lambda v: v is None) if isinstance(c, Condition) else c
                for c in problem.conditions]  # fmt: skip
    bare = eqx.tree_at(lambda p: (p.residual, p.conditions), problem, (None, tuple(stripped)))
    return eqx.tree_at(lambda p: p.noise, bare, None, is_leaf=lambda v: v is None)
