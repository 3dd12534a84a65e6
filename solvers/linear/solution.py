"""From a method and a system to a `Solution`: checks, scaling, the solve in its layout, exact derivatives."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from ..core import checks
from ..core.implicit import UNCONVERGED, attach
from ..core.loop import Limits, Run
from ..core.precision import binary_exponent, eps, power_of_two
from ..core.solution import Solution, Status, StatusCode
from ..core.typing import Array, Progress, Scalar
from ..core.vectors import norm
from .stopping import Controls
from .systems.system import Layout, System, as_system


class LinearStatus(StatusCode):
    """Why a linear solve stopped, beyond `Status`."""

    INDEFINITE = (
        100,
        "indefinite: a direction of zero or negative curvature, so `A` is not positive definite; try `sor`, or, if it "
        "is singular, take the parts along its null vectors off `b`",
    )
    DIAGONAL = 101, "diagonal: `A` has a zero or negative diagonal entry, which these methods divide by"
    RANGE = 102, "range: the solution is too large or too small for this precision; rescale `A` or `b`"
    INCOMPATIBLE = (
        103,
        "incompatible: the columns of `A` add up to zero and `b` does not, so that no x solves the system; take the "
        "mean off `b`, `b - b.mean()`",
    )


GAVE_UP = tuple(map(int, (*(Status.MAX_STEPS, Status.STAGNATED, Status.DIVERGED), LinearStatus.INDEFINITE)))
"""Statuses for which a system without a solution may be the reason."""
NO_SUM = 16
"""Column sums below this many units of rounding of the diagonal are zero."""


class LinearSolution(Solution):
    """A linear system's solution; ``error = ||b - A value|| / ||b||``."""

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, LinearStatus)


class Method(eqx.Module):
    """An iteration for ``A x = b`` with its settings: numbers are traced, structure is static."""

    sweeps: ClassVar[bool] = False
    symmetric: ClassVar[bool] = True
    numbers: ClassVar[bool] = True
    """Whether floating leaves are settings, to be cast to the dtype of the system."""

    @abstractmethod
    def run(self, system: Layout, b: Any, start: Any, controls: Controls) -> Run:
        """Iterate from `start`; the run's error is the true relative residual, in `measure`."""


class Options(NamedTuple):
    """What all public calls share, as the user gave it: start, limits, and how often the residual is tested."""

    x0: Any
    tol: Any
    max_steps: Any
    every: int
    unconverged: str
    history: bool | int
    progress: Progress | None


def solve(name: str, solution: type[LinearSolution], method: Method, A: Any, b: Any, options: Options) -> Any:
    """Check the arguments of the public function `name`, run `method` and wrap what it found."""
    system, b, x0 = prepare(name, A, b, options.x0, sweeps=method.sweeps)
    tol = default_tol(b.dtype) if options.tol is None else options.tol
    tol = checks.number(name, "tol", tol, dtype=b.dtype)
    max_steps = checks.count(name, "max_steps", options.max_steps)
    check_every(name, options.every)
    checks.choice(name, "unconverged", options.unconverged, UNCONVERGED)
    if method.numbers:
        method = jax.tree.map(lambda v: v.astype(b.dtype) if eqx.is_inexact_array(v) else v, method)
    limits = Limits(tol, max_steps, options.history, options.progress)
    return _solve(system, b, x0, method, limits, (solution, options.every, options.unconverged))


def check_every(name: str, every: Any) -> None:
    """Raise unless `every` is a positive Python integer."""
    if not isinstance(every, int) or every < 1:
        checks.fail(name, "every", "a positive Python integer", every)


def prepare(name: str, A: Any, b: Any, x0: Any, *, sweeps: bool) -> tuple[System, Array, Array]:
    """Return system, right-hand side and start in one dtype, or raise."""
    b = checks.float_array(name, "b", b)
    leaves = [x for x in jax.tree.leaves(A) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)]
    dtype = jnp.result_type(*{b.dtype, *(x.dtype for x in leaves)}) if len({x.dtype for x in leaves}) < 2 else b.dtype
    b = b.astype(dtype)
    if b.size == 0:
        checks.fail(name, "b", "at least one number", f"shape {b.shape}")
    system = as_system(name, A, dtype)
    system.check(name, b)
    system = system.like(b)
    if sweeps and not system.relaxable:
        checks.fail(
            name, "A", "a dense array, Stencil or SparseRows (a product alone cannot be swept)", type(A).__name__
        )
    x0 = jnp.zeros_like(b) if x0 is None else checks.float_array(name, "x0", x0).astype(dtype)
    if x0.shape != b.shape:
        checks.fail(name, "x0", f"of shape {b.shape}, like `b`", x0.shape)
    diagonal = system.diagonal()
    if known(diagonal) and np.any(np.asarray(diagonal) <= 0):
        row = np.argwhere(np.asarray(diagonal) <= 0)[0]
        checks.fail(name, "A", "of positive diagonal", f"{np.asarray(diagonal)[tuple(row)]} in row {row.tolist()}")
    return system, b, x0


def known(x: Any) -> bool:
    """Return whether the numbers of an array are known, that is, not being traced."""
    return not isinstance(x, Tracer)


def default_tol(dtype) -> float:
    """Return 1e-8 in float64 and a hundred units of rounding in lower precision."""
    return max(1e-8, 100 * eps(dtype))


def measure(system: Layout, b: Any) -> tuple[Any, Any]:
    """Return ``residual(y) = b - A y`` and ``size(r) = ||r|| / ||b||``, which is ``||r||`` where b = 0."""
    size_b = norm(b)
    scale = jnp.where(size_b > 0, 1 / jnp.where(size_b > 0, size_b, 1), 1)
    scale = jnp.where(jnp.isnan(size_b), size_b, scale)
    return lambda y: jax.tree.map(jnp.subtract, b, system.mv(y)), lambda r: norm(r) * scale


class Units(NamedTuple):
    """A system of ordinary size, and the exponents of two of which A and b are that many times theirs."""

    system: System
    b: Array
    matrix: Array
    rhs: Array

    @classmethod
    def of(cls, system: System, b: Array) -> "Units":
        """Bring the largest entry of b to between 1/2 and 1, and one to the middle of A's diagonal."""
        limit = jnp.finfo(b.dtype).maxexp - 4

        least, largest = system.extent(b)
        sizes = jnp.stack([jnp.where(least > 0, least, largest), largest, jnp.max(jnp.abs(b))])
        exponents = jnp.clip(binary_exponent(sizes), -limit, limit)
        matrix, rhs = (exponents[0] + exponents[1]) >> 1, exponents[2]
        return cls(system.times(power_of_two(-matrix, b.dtype)), b * power_of_two(-rhs, b.dtype), matrix, rhs)

    def solution(self, x: Array, sign: int = 1) -> Array:
        """Return a solution in the units of the user; with -1, the way back."""
        exponent = sign * (self.rhs - self.matrix)  # which may be that of no number
        half = exponent >> 1
        return x * power_of_two(half, x.dtype) * power_of_two(exponent - half, x.dtype)


@jax.jit
def run_method(system: System, b: Array, x0: Array, method: Method, controls: Controls) -> Run:
    """Solve in the method's layout, with A and b of ordinary size; b = 0 gives x = 0.

    Scales are powers of two, so that those of A and b change no bit of what a method does. A program of its own: that
    of the answer serves the derivatives too.
    """
    units = Units.of(system, b)
    layout = units.system.layout(b.shape, sweeps=method.sweeps)
    x0 = jnp.where(jnp.any(b != 0), x0, 0)
    bad = jnp.any(system.diagonal() <= 0)
    steps = jnp.where(bad, 0, jnp.asarray(controls.limits.max_steps, jnp.int32))
    run = method.run(layout, layout.pack(units.b), layout.pack(units.solution(x0, -1)), controls.within(steps))
    status = jnp.where(bad & jnp.isfinite(run.error), LinearStatus.DIAGONAL, run.status)
    found = layout.unpack(run.value)
    value = units.solution(found)
    # Exact unless x leaves the range of the precision in the units of the user; then it is no solution.
    lost = jnp.max(jnp.abs(units.solution(value, -1) - found)) > 16 * eps(b.dtype) * jnp.max(jnp.abs(found))
    lost = (lost | ~jnp.all(jnp.isfinite(value))) & jnp.all(jnp.isfinite(found))
    status = jnp.where(lost, LinearStatus.RANGE, status)
    error = jnp.where(lost, jnp.maximum(run.error, 1), run.error)
    return Run(None, jnp.where(lost, 0, value), error, status.astype(jnp.int32), run.num_steps, run.history)


def incompatible(system: System, b: Array, tol: Scalar) -> Array:
    """Return whether no x can bring the error to `tol` because A has no mean and b has one.

    With e all ones, ``e'(b - A x) = e'b`` for all x where ``A'e = 0``, so ``||b - A x|| >= |e'b| / ||e||``.
    """
    units = Units.of(system, b)
    sums, size = units.system.mv(jnp.ones_like(b)), jnp.abs(units.system.diagonal())
    mean = jnp.abs(jnp.sum(units.b)) / (math.sqrt(b.size) * norm(units.b))
    singular = jnp.all(jnp.abs(sums) <= NO_SUM * eps(b.dtype) * size)
    return singular & (mean > jnp.maximum(tol, 100 * eps(b.dtype)))


def attached(
    system: System, b: Array, x: Array, solver: Callable[[System, Array], Run], *, symmetric: bool, tol, trusted
) -> Array:
    """Return x with the derivative of ``A^-1 b`` in b and in the numbers of A; ``solver(system, r)`` solves for it.

    Derivatives are NaN where `trusted` is false, and where their own solve came to nothing.
    """
    moving, fixed = eqx.partition(system, eqx.is_inexact_array)
    frozen = lax.stop_gradient(system)

    def residual(x, data):
        moving, b = data
        return eqx.combine(moving, fixed).mv(x) - b

    def solved(system, r):
        run = solver(system, r)
        # two digits short of the solution's own tolerance is a derivative still
        near = (run.status == Status.CONVERGED) | (run.error <= 100 * tol)
        return run.value if trusted is None else jnp.where(near, run.value, jnp.nan)

    def tangent(jacobian, r):
        def solve(_, r):
            return solved(frozen, r)

        if symmetric:
            return lax.custom_linear_solve(jacobian, r, solve, symmetric=True)
        return lax.custom_linear_solve(jacobian, r, solve, transpose_solve=lambda _, r: solved(frozen.transposed, r))

    return attach(residual, x, (moving, b), solve=tangent, trusted=trusted)


@partial(jax.jit, static_argnums=5)
def _solve(system, b, x0, method, limits: Limits, static: tuple[type[LinearSolution], int, str]):
    solution, every, unconverged = static
    limits = eqx.tree_at(lambda x: x.tol, limits, lax.stop_gradient(limits.tol))
    frozen = lax.stop_gradient(method)
    run = run_method(*lax.stop_gradient((system, b, x0)), frozen, Controls(limits, every))
    turned = lax.stop_gradient(system if method.symmetric else system.transposed)
    gave_up = jnp.isin(run.status, jnp.asarray(GAVE_UP, jnp.int32))
    unsolvable = gave_up & incompatible(turned, lax.stop_gradient(b), limits.tol)
    status = jnp.where(unsolvable, LinearStatus.INCOMPATIBLE, run.status).astype(jnp.int32)
    silent = Controls(Limits(limits.tol, limits.max_steps), every)

    def again(system, r):
        return run_method(system, r, jnp.zeros_like(r), frozen, silent)

    trusted = None if unconverged == "approximate" else run.status == Status.CONVERGED
    x = attached(system, b, run.value, again, symmetric=method.symmetric, tol=limits.tol, trusted=trusted)
    return solution(x, status, run.num_steps, run.error, limits.tol, run.history)
