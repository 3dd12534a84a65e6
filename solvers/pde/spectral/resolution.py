"""How many nodes: from the Chebyshev coefficients of the source and the conditions, then from those of the solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_context

from ...core.checks import fail
from ...core.precision import eps
from ...core.solution import Status
from ..frequencies import LINES
from ..problem import PDEProblem, line_through
from ..settings import DENSE
from ..solution import GPSolution, PDEStatus
from ..tracing import at_zero, trace
from .axes import fejer
from .spaces import face_values

NODES = 4096
LARGEST = {1: 2048, 2: 512, 3: 96}
"""Most nodes a dimension that are tried."""
CONDITIONED = {1: 128, 2: 20, 3: 8}
"""Most nodes a dimension when a prior of the whole field is conditioned, where the rows are dense."""
EXACTLY = {1: (512, 1024), 2: (40, 64), 3: (14, 20)}
"""Most nodes a dimension of the first grid, and of the last, where an exact equation is conditioned on data."""
NOISY = {1: (256, 512), 2: (32, 64), 3: (10, 16)}
"""The same where the equation has noise of its own, which makes every node an unknown, or the leading ones of many."""
MARGIN = 24
WHOLE = 5000
"""Unknowns up to which a linear equation is factorised densely where iterations have failed."""
SOLVED = (PDEStatus.UNIDENTIFIED, PDEStatus.UNDETERMINED, PDEStatus.CONTRADICTED)
"""Verdicts on the data: the equation itself was solved."""


class Task(NamedTuple):
    """What `refined` has to know: ``solve(grid, guess, dense)``; whether a prior is `forced`; ``exactly(orders)``:
    whether the equation would be solved exactly all the same; and the dtype.
    """

    solve: Callable[..., GPSolution]
    forced: bool
    exactly: Callable[[Any], bool]
    dtype: Any


def refined(problem: PDEProblem, args: Any, guess: Any, task: Task) -> GPSolution:
    """Solve on finer and finer grids until the coefficients of the solution have decayed; on the host.

    The first grid resolves source and conditions. A dimension whose last coefficients exceed ``eps^0.7`` of the largest
    (``eps^0.5`` with data, which are less exact than that) is refined, until that no longer helps; all are where
    Newton's method found nothing.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problem, args))):
        fail("gp_solve", "grid", "given where the data are traced: inside jit, vmap and grad", None)
    with eval_context():
        grid, conditioned, exactly, linear = first_grid(problem, args, task)
        dense = DENSE
        if conditioned and not exactly:
            return task.solve(grid, guess)
        unit, before, kept = eps(task.dtype), None, None
        ndim = len(grid)
        while True:
            solution = task.solve(grid, guess, dense)
            status, most = int(solution.status), limits_of(problem, conditioned, exactly)[1]
            failed = status in (Status.STAGNATED, Status.MAX_STEPS) and float(solution.error) > unit**0.5
            unknowns = math.prod(grid) * problem.fields
            if failed and linear and not conditioned and dense < WHOLE and DENSE < unknowns <= 4 * WHOLE:
                dense = WHOLE  # the iterative solves did not get there: no matter how fine the grid
                share = min(1.0, WHOLE / unknowns) ** (1 / ndim)
                grid = tuple(max(1, int(share * n)) for n in grid)
                continue
            if failed and kept is not None:
                return kept
            rounding = status == Status.STAGNATED and float(solution.error) <= unit**0.5
            solved = rounding or status in (Status.CONVERGED, *SOLVED)
            tails = _tails(solution, ndim)
            bad = tails > unit ** (0.5 if conditioned else 0.7) if solved else np.ones(ndim, bool)
            stuck = solved and before is not None and tails.max() < 1e-3 and tails.max() > before / 2
            faster = conditioned or not solved
            finer = tuple(
                max(n, min(most, 2 * n if faster else n + n // 2)) if b else n for n, b in zip(grid, bad, strict=True)
            )
            if stuck or finer == grid or status in (Status.NONFINITE, PDEStatus.SINGULAR):
                return solution
            before, kept = (tails.max(), solution) if solved else (None, kept)
            usable = solved or status == PDEStatus.UNRESOLVED
            grid, guess = finer, solution if usable and not conditioned else guess


def is_conditioned(problem: PDEProblem, orders) -> bool:
    """Whether the problem needs a prior: noise, observations, or not one condition for each derivative."""
    if problem.noise is not None or any(getattr(c, "noise", None) is not None for c in problem.conditions):
        return True
    for k, indices in enumerate(orders):
        for d, periodic in enumerate(problem.periodic):
            highest = max((o[d] for o in indices), default=0)
            if not periodic and len(problem.faces(k, d)) != highest:
                return True
    return False


def first_grid(problem: PDEProblem, args: Any, task: Task) -> tuple[tuple[int, ...], bool, bool, bool]:
    """Return the nodes a dimension that the source along a few lines and the face values need; if conditioned; if so,
    whether the equation is solved exactly; and whether it is linear.

    An equation that is not linear makes frequencies of its own, which the source of a given solution may have to
    cancel: for it only the strong ones count, and refinement does the rest.
    """
    try:
        lines, structure = _sampled(problem, args, task.dtype)
    except (TypeError, ValueError) as cause:
        if str(cause).startswith("PDEProblem"):
            raise
        fail("gp_solve", "grid", "given, or the residual a function of any x: it cannot be sampled elsewhere", cause)
    orders, linear = structure.value
    conditioned = task.forced or is_conditioned(problem, orders)
    exactly = conditioned and task.exactly(orders)
    most, grid = limits_of(problem, conditioned, exactly)[0], []
    for samples, periodic in zip(jax.device_get(lines), problem.periodic, strict=True):
        degree = max((_degree(s, periodic, eps(task.dtype), linear) for s in samples), default=0)
        grid.append(min(most, 2 * degree + MARGIN + 1 if periodic else degree + MARGIN))
    return tuple(grid), conditioned, exactly, linear


def limits_of(problem: PDEProblem, conditioned: bool, exactly: bool) -> tuple[int, int]:
    """Return the most nodes a dimension of the first grid and of the last."""
    ndim = problem.domain.ndim
    if not conditioned:
        return LARGEST[ndim], LARGEST[ndim]
    if not exactly:
        return CONDITIONED[ndim], CONDITIONED[ndim]
    return NOISY[ndim] if problem.noise is not None else EXACTLY[ndim]


class _Static(eqx.Module):
    value: Any = eqx.field(static=True)


@eqx.filter_jit
def _sampled(problem: PDEProblem, args, dtype):
    """Return, for each dimension, the source and the face values along lines in it; and the equation's structure."""
    ndim, names, fields = problem.domain.ndim, problem.domain.names, problem.fields
    result, equation = [], None
    for d in range(ndim):
        found = []
        for fraction in LINES if ndim > 1 else LINES[:1]:
            points = np.arange(NODES) / NODES if problem.periodic[d] else (fejer(NODES)[0] + 1) / 2
            x = line_through(problem, d, fraction, jnp.asarray(points, dtype))
            for axis in range(ndim):
                faces = [c for k in range(fields) for c in problem.faces(k, axis) if axis != d and callable(c.value)]
                found += [face_values(problem, c, axis, args, x).reshape(-1) for c in faces]
            equation = equation or trace(problem.residual, names, fields, x, args)
            found += [f.reshape(-1) for f in at_zero(problem.residual, names, fields, x, args)]
        result.append(found)
    assert equation is not None
    return result, _Static((equation.orders, equation.linear))


def _degree(samples: np.ndarray, periodic: bool, unit: float, linear: bool) -> int:
    """Return the number of coefficients above the noise: where their envelope comes down to its own last values."""
    c = np.abs(np.fft.rfft(samples)) if periodic else _chebyshev(samples)
    if not np.all(np.isfinite(c)) or c.max() == 0:
        return 0
    envelope = np.maximum.accumulate(c[::-1])[::-1] / c.max()
    floor = 30 * max(envelope[3 * len(c) // 4], unit / 3)
    degree = int(np.argmax(envelope <= (floor if linear else max(floor, 1e-4))))
    return degree if linear else degree + degree // 8


def _chebyshev(samples: np.ndarray) -> np.ndarray:
    """Return the sizes of the Chebyshev coefficients of values at `fejer`'s points."""
    n = len(samples)
    both = np.fft.fft(np.concatenate([samples, samples[::-1]]))[:n]
    return np.abs(np.real(both * np.exp(-0.5j * np.pi * np.arange(n) / n))) / n


def _tails(solution: GPSolution, ndim: int) -> np.ndarray:
    """Return, for each dimension, the largest of the last coefficients over the largest of all."""
    tails = np.zeros(ndim)
    for z in solution.value if isinstance(solution.value, tuple) else (solution.value,):
        size = np.abs(np.asarray(z))
        for d in range(ndim):
            profile = size.max(axis=tuple(e for e in range(ndim) if e != d))
            last = min(8, max(2, len(profile) // 20))
            tails[d] = max(tails[d], profile[-last:].max() / max(profile.max(), np.finfo(profile.dtype).tiny))
    return tails
