"""Descent of a discretised energy in the inner product of H1: as many steps on every grid.

Marwah, Lipton, Lu and Risteski, ICML 2023, with H the second derivative of the energy E:

(1) ``u <- u + t d,  d = -(shift - Laplace)^-1 DE(u)``
(2) ``H d = -DE(u)``, inexactly, for Newton's direction
(3) ``t = -DE(u) d / (d, H d)``, halved until ``E(u + t d) <= E(u) + 1e-4 t DE(u) d``
(4) ``error = |DE(u)| / (|DE(0)| + k |u|),  k = |(d, H d)| / |d|^2``, slopes in the dual norm

It departs from the paper, whose step is a small constant that the proof needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun

from ...core.checks import choice, count, fail, float_array, number
from ...core.implicit import UNCONVERGED, attach, distrust, linear_solve
from ...core.krylov.cg import cg
from ...core.loop import Limits, iterate
from ...core.precision import eps
from ...core.search import backtrack
from ...core.solution import Solution, Status, StatusCode
from ...core.typing import Array, Float, Int, Progress, Scalar
from ...core.vectors import inner as dot
from ..solution import PDEStatus
from .transforms import Inner, inner_product

LANCZOS = 24
"""Products with the Hessian that look for a direction of negative curvature at the end."""


class SobolevSolution(Solution):
    """A stationary point of an energy.

    Attributes
    ----------
    energy : Float[Array, ""]
        At the point.
    curvature : Float[Array, ""]
        Smallest curvature found there, in units of the inner product: positive at a minimum.
    num_evaluations : Int[Array, ""]
        Of the energy with its slope.
    linear_steps : Int[Array, ""]
        Products with the Hessian.
    """

    energy: Float[Array, "..."]
    curvature: Float[Array, "..."]
    num_evaluations: Int[Array, "..."]
    linear_steps: Int[Array, "..."]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, PDEStatus)


class _Energy(eqx.Module):
    """An energy traced once, with its data, and the product that stands for its second derivative."""

    function: Callable
    product: Callable | None
    args: Any

    def value(self, u):
        """Return the energy."""
        return self.function(u, self.args).astype(u.dtype)

    def pair(self, u):
        """Return energy and slope."""
        return jax.value_and_grad(self.value)(u)

    def curve(self, u, v):
        """Return the Hessian, or what stands for it, times v."""
        if self.product is not None:
            return self.product(u, v, self.args).astype(u.dtype)
        return jax.jvp(jax.grad(self.value), (u,), (v,))[1]


def _traced(energy: Callable, product: Callable | None, args: Any, u) -> _Energy:
    """Trace the user's functions, and raise unless they return what they should."""
    arrays, rest = eqx.partition(args, eqx.is_array)

    def plain(function: Callable, count: int, argument: str, shape):
        full = lambda *operands: function(*operands[:-1], eqx.combine(operands[-1], rest))  # noqa: E731
        closed = jax.make_jaxpr(full)(*(u,) * count, arrays)
        found = [v.shape for v in closed.out_avals]
        if found != [shape]:
            expected = "a function to one number" if not shape else f"a function to an array of shape {shape}"
            fail("sobolev_descent", argument, expected, f"shapes {found}")
        evaluate = jaxpr_as_fun(closed)
        return lambda *operands: evaluate(*jax.tree.leaves(operands))[0]

    slope = None if product is None else plain(product, 2, "product", u.shape)
    return _Energy(plain(energy, 1, "energy", ()), slope, arrays)


class _State(NamedTuple):
    """Point, energy, slope, its representative and size, next direction with slope and curvature, error, counts."""

    u: Array
    energy: Array
    slope: Array
    dual: Array
    direction: Array
    falling: Array
    curvature: Array
    error: Array
    refused: Array
    evaluations: Array
    products: Array


class _Trial(NamedTuple):
    """A point, its energy, slope, and the representative of the slope."""

    u: Array
    energy: Array
    slope: Array
    representative: Array


def sobolev_descent(
    energy: Callable[[Array, Any], Array],
    u0: Float[Array, "*n"],
    *,
    args: Any = None,
    lengths: Any = 1.0,
    boundary: str | Sequence[str] = "dirichlet",
    shift: Scalar | None = None,
    direction: str = "gradient",
    product: Callable[[Array, Array, Any], Array] | None = None,
    tol: Scalar | None = None,
    max_steps: Scalar = 500,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> SobolevSolution:
    """Minimise a discretised energy ``energy(u, args)`` by descent in the inner product of H1.

    ``u <- u - t (shift - Laplace)^-1 DE(u)``, solved by sine, cosine or Fourier transforms, t by a line search. Where
    the second derivative of the energy is bounded above and below in H1 the number of steps does not depend on the
    grid. For elliptic variational problems on boxes with smooth or moderate coefficients; with coefficients that jump
    by orders of magnitude take ``direction="newton"``.

    Parameters
    ----------
    energy : callable
        ``energy(u, args)``, a scalar: an integral over the box by a quadrature on the grid. Static, differentiable
        twice.
    u0 : Float[Array, "*n"]
        Where to start. No derivative. Its grid: on a Dirichlet axis n interior nodes, ``length / (n + 1)`` apart; on a
        Neumann axis n cell centres, on a periodic one n nodes, ``length / n`` apart.
    args : PyTree
        Data of the energy. Differentiable.
    lengths : scalar or tuple of scalars
        Of the box. Traced; decides on the metric only.
    boundary : {"dirichlet", "neumann", "periodic"} or a tuple of them
        Of the metric: sine, cosine or Fourier transforms. Static.
    shift : scalar, optional
        Of the metric; zero with a Dirichlet axis, otherwise one over the largest length squared. Traced.
    direction : {"gradient", "newton"}
        ``"newton"`` solves with the Hessian, inexactly, by conjugate gradients preconditioned with the metric. Static.
    product : callable, optional
        ``product(u, v, args)``, in place of the Hessian times v in directions and line searches: a Gauss-Newton product
        say, symmetric and positive semidefinite. Static.
    tol : float, optional
        See `error`; 1e-8 in float64, 1e-4 in float32. Traced.
    max_steps : int
        Traced.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the error of that many steps (``True``: 256). Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``.

    Returns
    -------
    SobolevSolution
        ``value`` like `u0`; ``error = |DE(u)| / (|DE(0)| + k |u|)`` with dual norms of slopes, the metric's norm of u,
        and k the curvature of the energy along the direction, in units of the metric: about the relative distance from
        a stationary point in H1. Where DE(0) is not finite it is left out.

    Raises
    ------
    ValueError, TypeError
        For an energy that is no scalar, an unknown boundary or direction, shapes that do not fit.

    Notes
    -----
    *Step.* The first length is ``-DE(u) d / (d, H d)``, halved until the energy falls enough or, where rounding hides
    that, the slope does. A step costs an energy with slope, a Hessian product, and a solve by transforms, all
    ``O(n log n)`` for n unknowns; memory about ten fields.

    *Status.* `PDEStatus.SADDLE` when 24 steps of Lanczos' method find negative curvature at the end: a stationary
    point is no minimum then. `Status.STAGNATED` when no step along the direction lowers energy or slope.

    *Derivatives.* Of the stationary point in `args`, implicit, both modes, any order, by conjugate gradients on the
    Hessian. None in `u0`, `lengths`, `shift`.

    *Departures from [1].* There the step is a small constant that the proof needs; here it is found.

    References
    ----------
    .. [1] Marwah, Lipton, Lu, Risteski. Neural Network Approximations of PDEs Beyond Linearity: A Representational
       Perspective. ICML 2023.
    .. [2] Neuberger. Sobolev Gradients and Differential Equations. Springer 2010.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import sobolev_descent
    >>> def energy(u, f):
    ...     steps = jnp.diff(jnp.pad(u, 1)) * 32
    ...     return (jnp.sum(steps**2) / 2 + jnp.sum(u**4) / 4 - f * jnp.sum(u)) / 32
    >>> solution = sobolev_descent(energy, jnp.zeros(31), args=10.0)
    >>> bool(solution.converged), bool(solution.curvature > 0)
    (True, True)
    """
    name = "sobolev_descent"
    u0 = float_array(name, "u0", u0)
    if u0.ndim == 0 or u0.size == 0:
        fail(name, "u0", "an array with at least one axis and one number", u0.shape)
    for argument, given in (("energy", energy), ("product", product)):
        if given is not None and not callable(given):
            fail(name, argument, "callable", type(given).__name__, TypeError)
    choice(name, "direction", direction, ("gradient", "newton"))
    choice(name, "unconverged", unconverged, UNCONVERGED)
    metric = lax.stop_gradient(inner_product(name, u0, lengths, boundary, shift))
    tol = (1e-8 if u0.dtype == jnp.float64 else 1e-4) if tol is None else tol
    limits = Limits(number(name, "tol", tol, dtype=u0.dtype), count(name, "max_steps", max_steps), history, progress)
    args = jax.tree.map(lambda v: jnp.asarray(v, u0.dtype) if isinstance(v, float | int) else v, args)
    return _descend((energy, product), args, u0, metric, limits, (direction, unconverged))


@eqx.filter_jit
def _descend(functions, args, u0, metric: Inner, limits: Limits, static) -> SobolevSolution:
    direction, unconverged = static
    energy, product = functions
    u0 = lax.stop_gradient(u0)
    traced = _traced(energy, product, args, u0)

    def given(args) -> _Energy:
        return _Energy(traced.function, traced.product, args)

    frozen = given(lax.stop_gradient(traced.args))
    nothing = _size(metric, frozen.pair(jnp.zeros_like(u0))[1])
    nothing = jnp.where(jnp.isfinite(nothing), nothing, 0)

    def ready(t: _Trial, refused, evaluations, products, error) -> _State:
        dual = jnp.sqrt(jnp.maximum(-dot(t.slope, t.representative), 0))
        step, steps = t.representative, jnp.zeros((), jnp.int32)
        if direction == "newton":
            # (2)
            found = cg(
                lambda v: frozen.curve(t.u, v),
                -t.slope,
                tol=jnp.minimum(0.5, jnp.sqrt(error)) * dual,
                max_steps=200,
                precondition=metric.solve,
                norm=lambda r: _size(metric, r),
            )
            steps = found.num_steps
            usable = (dot(t.slope, found.x) < 0) & jnp.all(jnp.isfinite(found.x))
            step = jnp.where(usable, found.x, step)
        curved = dot(step, frozen.curve(t.u, step))
        square = metric.square(step)
        quotient = jnp.abs(curved) / jnp.where(square > 0, square, 1)
        size = nothing + quotient * jnp.sqrt(metric.square(t.u))
        error = jnp.where(dual == 0, dual, dual / jnp.where(size > 0, size, 1))  # (4)
        error = jnp.where(jnp.isfinite(t.energy), error, jnp.nan)
        return _State(
            t.u, t.energy, t.slope, dual, step, dot(t.slope, step), curved, error, refused, evaluations,
            products + steps + 1,
        )  # fmt: skip

    def at(u) -> _Trial:
        value, slope = frozen.pair(u)
        return _Trial(u, value, slope, -metric.solve(slope))  # (1)

    def step(s: _State) -> _State:
        # (3)
        first = jnp.where(s.curvature > 0, -s.falling / jnp.where(s.curvature > 0, s.curvature, 1), 1)
        noise = 10 * eps(s.energy.dtype) * jnp.abs(s.energy)

        def accept(t, trial: _Trial):
            fell = trial.energy <= s.energy + 1e-4 * t * s.falling  # (3)
            size = jnp.sqrt(jnp.maximum(-dot(trial.slope, trial.representative), 0))
            return fell | ((trial.energy <= s.energy + noise) & (size < s.dual))

        found = backtrack(lambda t: at(s.u + t * s.direction), accept, start=first, most=30)
        here = _Trial(s.u, s.energy, s.slope, s.direction)
        kept = jax.tree.map(lambda a, b: jnp.where(found.accepted, a, b), found.result, here)
        return ready(kept, ~found.accepted, s.evaluations + found.tried, s.products, s.error)

    zero = jnp.zeros((), jnp.int32)
    start = ready(at(u0), jnp.zeros((), bool), zero + 1, zero, jnp.ones((), u0.dtype))
    run = iterate(
        step,
        start,
        limits,
        value=lambda s: s.u,
        error=lambda s: s.error,
        status=lambda s: jnp.where(s.refused, Status.STAGNATED, Status.RUNNING),
        stall=50,
    )
    lowest, highest = _curvatures(lambda v: frozen.curve(run.value, v), metric, u0)
    saddle = (run.status == Status.CONVERGED) & ~(lowest >= -(eps(u0.dtype) ** 0.5) * highest)
    status = jnp.where(saddle, int(PDEStatus.SADDLE), run.status).astype(jnp.int32)
    moving, still = eqx.partition(traced.args, eqx.is_inexact_array)

    def residual(u, moving):
        return jax.grad(given(eqx.combine(moving, still)).value)(u)

    def solve(hessian, b):
        def solver(matvec, b):
            small = 100 * eps(b.dtype) * _size(metric, b)
            found = cg(matvec, b, tol=small, max_steps=1000, precondition=metric.solve, norm=lambda r: _size(metric, r))
            return found.x

        return linear_solve(hessian, b, solver)

    u = attach(residual, run.value, moving, solve=solve)
    if unconverged == "nan":
        u = distrust(u, status == Status.CONVERGED)
    return SobolevSolution(
        value=u, status=status, num_steps=run.num_steps, error=run.error, tol=limits.tol, history=run.history,
        energy=frozen.value(run.value), curvature=lowest, num_evaluations=run.state.evaluations,
        linear_steps=run.state.products + LANCZOS,
    )  # fmt: skip


def _size(metric: Inner, slope):
    return jnp.sqrt(jnp.maximum(dot(slope, metric.solve(slope)), 0))


def _curvatures(product, metric: Inner, like):
    """Return the smallest and the largest absolute Ritz value of the Hessian in units of the metric.

    Lanczos' recurrence without reorthogonalisation: copies of eigenvalues may come, false ones do not.
    """

    def apply(v):
        return metric.power(product(metric.power(v, -0.5)), -0.5)

    def step(carry, _):
        v, before, beta = carry
        w = apply(v) - beta * before
        alpha = dot(v, w)
        w = w - alpha * v
        length = jnp.sqrt(dot(w, w))
        going = length > 100 * eps(v.dtype) * jnp.abs(alpha)
        length = jnp.where(going, length, 0)
        return (jnp.where(going, w / jnp.where(going, length, 1), 0), v, length), (alpha, length)

    # Waves of all lengths, the long ones most: where negative curvature is.
    first = metric.power(jax.random.normal(jax.random.key(7), like.shape, like.dtype), -0.5)
    first = first / jnp.sqrt(dot(first, first))
    carry = (first, jnp.zeros_like(first), jnp.zeros((), like.dtype))
    _, (alphas, betas) = lax.scan(step, carry, None, length=min(LANCZOS, like.size))
    # Behind an early end of the Krylov space entries are zero: repeat the first.
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(betas[:-1] > 0) > 0])
    alphas = jnp.where(alive, alphas, alphas[0])
    off = jnp.where(alive[1:], betas[:-1], 0)
    values = jnp.linalg.eigvalsh(jnp.diag(alphas) + jnp.diag(off, 1) + jnp.diag(off, -1))
    return values[0], jnp.max(jnp.abs(values))
