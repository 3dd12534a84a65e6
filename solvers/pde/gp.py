"""`gp_solve`: a differential equation conditioned on, with its data, on a product grid."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import choice, count, fail, number
from ..core.precision import eps
from ..core.solution import Status
from ..core.typing import Progress, Scalar
from .axes import Fourier, Legendre
from .kronecker import along, mode_product
from .problem import Condition, PDEProblem, float_type
from .solution import GPSolution, PDEStatus
from .spaces import face_values, line
from .spectral import Discretisation, solve_spectral
from .tracing import trace


def gp_solve(
    problem: PDEProblem,
    *,
    grid,
    args: Any = None,
    prior: Any = None,
    basis: str = "auto",
    guess: Any = None,
    tol: Scalar | None = None,
    max_steps: Scalar = 50,
    history: bool | int = False,
    progress: Progress | None = None,
) -> GPSolution:
    """Solve."""
    choice("gp_solve", "basis", basis, ("auto", "polynomial", "kernel"))
    ndim = problem.domain.ndim
    grid = (grid,) if isinstance(grid, int | np.integer) else tuple(grid)
    if len(grid) != ndim or not all(isinstance(n, int | np.integer) and n >= 1 for n in grid):
        fail("gp_solve", "grid", f"{ndim} positive integers, one a dimension", grid)
    dtype = float_type((problem, args))
    tol = number("gp_solve", "tol", 50 * eps(dtype) if tol is None else tol, dtype=dtype)
    problem, args = _arrays((problem, args), dtype)
    return _spectral(problem, args, guess, tol, count("gp_solve", "max_steps", max_steps), tuple(map(int, grid)),
                     history, progress)  # fmt: skip


@eqx.filter_jit
def _spectral(problem, args, guess, tol, max_steps, grid, history, progress):
    dtype = tol.dtype
    ndim, fields = problem.domain.ndim, problem.fields
    (dynamic, (residual, static)) = _payload(problem.residual, args)
    x = _nodes(problem, grid, dtype)
    equation = trace(
        lambda x, u, a: eqx.combine(a[0], residual)(x, u, eqx.combine(a[1], static)), problem.domain.names, fields, x,
        dynamic,
    )  # fmt: skip
    highest = [[max((o[d] for o in orders), default=0) for d in range(ndim)] for orders in equation.orders]
    values = [[_axis_values(problem, k, d, args, x) for d in range(ndim)] for k in range(fields)]
    moving, still = eqx.partition((_without_values(problem), values, dynamic), eqx.is_inexact_array)

    def build(data):
        stated, values, dynamic = eqx.combine(data, still)
        lines = [
            [line(stated, k, d, grid[d], highest[k][d], ndim > 1, dtype) for d in range(ndim)] for k in range(fields)
        ]
        return Discretisation(equation, lines, values, dynamic)

    start = None if guess is None else (lambda found: _start(found, guess, args))
    found, y, run, strong = solve_spectral(
        build, moving, start, tol=tol, max_steps=max_steps, history=history, progress=progress
    )
    z = found.coefficients(y)
    unresolved = (run.status == Status.CONVERGED) & (strong > 10 * jnp.sqrt(tol))
    status = jnp.where(unresolved, PDEStatus.UNRESOLVED, run.status).astype(jnp.int32)
    return GPSolution(
        value=z if fields > 1 else z[0], status=status, num_steps=run.num_steps, error=run.error, tol=tol,
        history=run.history, residual=strong, misfit=found.misfit,
        bases=tuple(tuple(ln.basis for ln in ls) for ls in found.lines), posterior=None, args=args, args_std=None,
        log_evidence=None, prior=None,
    )  # fmt: skip


def _start(found: Discretisation, guess, args):
    """Turn a guess, a function or an earlier solution, into free coefficients."""
    if isinstance(guess, GPSolution):
        tensors = guess._tensors()
    else:
        values = guess(found.x, args)
        values = values if len(found.lines) > 1 else (values,)
        shape = jnp.broadcast_shapes(*(c.shape for c in found.x))
        tensors = []
        for lines, v in zip(found.lines, values, strict=True):
            t = jnp.broadcast_to(jnp.asarray(v, found.x[0].dtype), shape)
            for d, ln in enumerate(lines):
                t = ln.interpolate(t, d)
            tensors.append(t)
    free = []
    for z, offset, lines in zip(tensors, found.offsets, found.lines, strict=True):
        if z.shape != offset.shape:
            fail("gp_solve", "guess", f"on the same grid {offset.shape}", z.shape)
        t = z - offset
        for d, ln in enumerate(lines):
            t = mode_product(jnp.linalg.solve(ln.null.T @ ln.null, ln.null.T), t, d)
        free.append(t)
    return tuple(free)


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
        if isinstance(leaf, bool) or not isinstance(leaf, int | float | np.ndarray | np.generic | jax.Array):
            return leaf
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) or isinstance(
            leaf, int) else jnp.asarray(leaf)  # fmt: skip

    return jax.tree.map(convert, tree)
