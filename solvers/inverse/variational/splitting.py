"""Splitting: the alternating direction method of multipliers, and half-quadratic splitting, in one loop.

Numbered as in the comments; rho is the penalty, ``w = rho u`` the dual, D the analysis. By Boyd and others (2011), who
have u:

(1) ``(A'A + rho D'D) x = A'y + D'(rho z - w)``
(2) ``z = prox_(g / rho)(D x + w / rho)``
(3) ``w <- rho (D x + w / rho - z)``
(4) ``rho`` doubled where ``|D x - z| / max(|D x|, |z|)`` exceeds 5 times ``rho |D'(z - z_before)| / |D'w|``, halved
    where it is the other way round; relative as by Wohlberg (2017)

Without w, (1) and (2) are half-quadratic splitting, by Geman, Yang (1995), with

(5) ``rho <- min(growth rho, last)``
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.implicit import UNCONVERGED
from ...core.krylov.cg import cg
from ...core.loop import Limits, iterate
from ...core.operators import LinearOperator
from ...core.prox import ProximalFunction
from ...core.solution import Status
from ...core.typing import Array, Progress, Scalar
from ...core.vectors import axpy, combine, norm
from ..forward.quadratic import split_system
from .statement import (
    InverseSolution,
    InverseStatus,
    Optimality,
    Statement,
    finish,
    freeze,
    length,
    mismatched,
    needs_setting,
    optimality,
    prepare,
)

UNBALANCED, FACTOR, ADAPTING = 5.0, 2.0, 60
"""Residuals this far apart change the penalty by that factor, in the first so many steps."""
FORCING = 0.1
"""The linear solve is this much more exact than its start and than the last step's image."""


class Setting(eqx.Module):
    """`multipliers`: ADMM, else half-quadratic; the penalty's `growth` to its `last`; most `cg_steps` a step."""

    multipliers: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    growth: Array
    last: Any
    cg_steps: Array


class State(NamedTuple):
    """Image x, split variable z, subgradient w of g at z, penalty, measure, and counts of steps and products."""

    x: Array
    z: Array
    w: Array
    penalty: Array
    measure: Optimality
    steps: Array
    products: Array


def measured(s: Statement, back: Array, multipliers: bool, x: Array, z: Array, w: Array) -> Optimality:
    """Return the optimality of z where it is an image, else of x with z beside it; of x alone without multipliers."""
    zero = jnp.zeros((), x.dtype)
    if not multipliers:
        return optimality(s, s.gradient(x), back, w, zero, zero)
    if s.analysis is None:
        return optimality(s, s.gradient(z), back, w, zero, zero)
    analysed = s.analyse(x)
    return optimality(s, s.gradient(x), back, w, length(axpy(-1, z, analysed)),
                      jnp.maximum(length(analysed), length(z)))  # fmt: skip


def step(s: Statement, back: Array, setting: Setting, c: State) -> State:
    """Solve for the image, apply the proximal map, update the dual."""
    # (5)
    penalty = c.penalty if setting.multipliers else jnp.minimum(c.penalty * setting.growth, setting.last)
    pulled = s.synthesise(combine((penalty, c.z), (-1, c.w)) if setting.multipliers else penalty * c.z)
    system, b = split_system(s.operator, s.analysis, penalty), axpy(1, back, pulled)
    # Relative to where it starts, too: one that is skipped as good enough stalls the rest.
    needed = jnp.minimum(c.measure.stationarity * c.measure.size, length(axpy(-1, system(c.x), b)))
    found = cg(system, b, c.x, tol=FORCING * needed, max_steps=setting.cg_steps)  # (1)
    analysed = s.analyse(found.x)
    v = axpy(1 / penalty, c.w, analysed) if setting.multipliers else analysed
    z = s.prox(v, 1 / penalty)  # (2)
    w = penalty * (v - z)  # (3)
    measure = measured(s, back, setting.multipliers, found.x, z, w)
    next_penalty = penalty
    if setting.adaptive:
        primal = norm(analysed - z) / safe(jnp.maximum(norm(analysed), norm(z)))
        dual = penalty * norm(s.synthesise(z - c.z)) / safe(norm(s.synthesise(w)))
        # (4)
        up, down = primal > UNBALANCED * dual, dual > UNBALANCED * primal
        factor = jnp.where(up, FACTOR, jnp.where(down, 1 / FACTOR, 1)).astype(penalty.dtype)
        next_penalty = penalty * jnp.where(c.steps < ADAPTING, factor, 1)
    return State(found.x, z, w, next_penalty, measure, c.steps + 1, c.products + found.num_steps + 2)


def safe(x: Array) -> Array:
    """Return x, or one where it is zero."""
    return jnp.where(x > 0, x, 1)


def stiffness(s: Statement, back: Array) -> Array:
    """Return a Rayleigh quotient of A'A at the back-projected data: the scale at which both terms bend alike."""
    stiff = norm(s.operator.normal_mv(back)) / safe(norm(back))
    return jnp.where(stiff > 0, 0.1 * stiff, 1)


def begin(s: Statement, back: Array, multipliers: bool, start, penalty: Array) -> State:
    """Return the state at the start: one proximal step, so that its subgradient is one."""
    x0, dual = start
    analysed = s.analyse(x0)
    v = analysed if dual is None else axpy(1 / penalty, dual, analysed)
    z = s.prox(v, 1 / penalty)
    w = penalty * (v - z)
    zero = jnp.zeros((), jnp.int32)
    return State(x0, z, w, penalty, measured(s, back, multipliers, x0, z, w), zero, zero + 2)


@eqx.filter_jit
def solve(s: Statement, start, penalty, setting: Setting, limits: Limits, unconverged: str) -> InverseSolution:
    """Run the loop from ``start = (image, dual)`` and wrap up."""
    frozen = freeze(s)
    back = frozen.operator.transpose_mv(frozen.y)
    wrong = mismatched(frozen)
    if setting.last is None:
        last = stiffness(frozen, back)
        penalty = last if penalty is None else penalty
        setting = Setting(setting.multipliers, setting.adaptive, setting.growth, last, setting.cg_steps)
    multipliers, last = setting.multipliers, lax.stop_gradient(setting.last)
    first = last if penalty is None else penalty if multipliers else jnp.minimum(penalty, last)
    frozen_setting = lax.stop_gradient(setting)
    run = iterate(
        lambda c: step(frozen, back, frozen_setting, c),
        begin(frozen, back, multipliers, start, first),
        limits,
        value=lambda c: (c.z if multipliers and s.analysis is None else c.x, c.w, c.penalty),
        error=lambda c: c.measure.error,
        refused=lambda c: jnp.where(wrong, InverseStatus.ADJOINT_MISMATCH, Status.RUNNING),
        answers=None if multipliers else lambda c: c.penalty >= last,
        stall=200,
        divergence=1e6,
    )
    image, dual, penalty = run.value
    envelope = None if multipliers else setting.last
    return finish(s, run, limits, (image, dual, penalty, run.state.products, envelope), unconverged)


def admm(
    A: LinearOperator,
    y: Any,
    g: ProximalFunction | Any,
    *,
    analysis: LinearOperator | None = None,
    penalty: Scalar | None = None,
    adaptive: bool | None = None,
    cg_steps: Scalar = 50,
    x0: Array | None = None,
    dual: Array | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 500,
    history: bool | int = False,
    progress: Progress | None = None,
) -> InverseSolution:
    """Minimise ``|A x - y|^2 / 2 + g(D x)`` by the alternating direction method of multipliers.

    For regularisers with a proximal map: sparsity, boxes, groups; total variation with ``analysis=Differences(x)`` and
    ``g = GroupL1(weight, axis=0)``; and learned maps or denoisers in the place of one (plug and play). Take `pgd` where
    A is cheap and well conditioned, or where no penalty should be chosen; `hqs` for a few steps with a denoiser.

    Parameters
    ----------
    A : LinearOperator
        From an image to data; its float leaves are differentiable.
    y : PyTree of arrays
        Data shaped like ``A x``; differentiable.
    g : ProximalFunction or callable
        ``g(v, step)`` is the proximal map. A callable that is no `ProximalFunction` is used as it is, whatever the
        step; then the penalty belongs to the problem and must be given. Float leaves of a module are differentiable.
    analysis : LinearOperator, optional
        D; the identity by default.
    penalty : scalar, optional
        rho, in units of ``|A|^2``; estimated by default. Traced; it has no derivative.
    adaptive : bool, optional
        Whether to balance primal and dual residual by changing the penalty in the first 60 steps; by default where g
        is a `ProximalFunction`. Static.
    cg_steps : scalar
        Most steps of the linear solve in one step; traced.
    x0, dual : Float[Array, "..."], optional
        Where to start; an earlier solution's `value` and `dual`. Not differentiable.
    unconverged : str
        "nan": derivatives where the solve did not converge are NaN. "approximate": those of the equations at the point.
    tol : scalar, optional
        1e-6 in float64, 1e-4 in float32; traced.
    max_steps : int
        Traced.
    history : bool or int
        Whether, or how many, errors to record.
    progress : callable, optional
        Host callback ``progress(step, error)``.

    Returns
    -------
    InverseSolution
        ``error = max(|A'(A x - y) + D'w| / max(|A'(A x - y)|, |D'w|, |A'y| / 100), |D x - z| / max(|D x|, |z|))`` with
        w a subgradient of g at z. Without D, x is z itself, so a constraint of g holds exactly.

    Raises
    ------
    ValueError, TypeError
        For shapes, dtypes or options that cannot be right.

    Notes
    -----
    A step: conjugate gradients on ``A'A + rho D'D`` from the last image, to a tenth of its residual there, one
    proximal map, and one more product with A'A for the error, which is that of the original problem: it does not trust
    the linear solve. A' is compared with A on a random pair first; a mismatch ends as `InverseStatus.ADJOINT_MISMATCH`.
    For a denoiser the error is that of the fixed-point equations, which need not belong to a minimum of anything.
    Derivatives are implicit, by GMRES; g must be differentiable at the solution's arguments, as l1 is off its kinks.

    References
    ----------
    Boyd, Parikh, Chu, Peleato, Eckstein, "Distributed optimization and statistical learning via ADMM", 2011,
    (3.2)-(3.4) and 3.4.1. Wohlberg, "ADMM penalty parameter selection by residual balancing", 2017: relative residuals.
    Venkatakrishnan, Bouman, Wohlberg, "Plug-and-play priors for model based reconstruction", 2013.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import admm, Mask
    >>> from solvers.core.prox import L1
    >>> sol = admm(Mask(jnp.array([1.0, 2.0, 0.0])), jnp.array([3.0, 0.5, 1.0]), L1(1.0))
    >>> bool(sol.converged), sol.value.round(3).tolist()
    (True, [2.0, 0.0, 0.0])
    """
    name = "admm"
    needs_setting(name, "penalty", penalty, g)
    adaptive = isinstance(g, ProximalFunction) if adaptive is None else adaptive
    if adaptive and not isinstance(g, ProximalFunction):
        checks.fail(name, "adaptive", "False where g is not a ProximalFunction", adaptive)
    return _split(name, (A, y, g, analysis), (x0, dual), (penalty, None, None, cg_steps, adaptive), unconverged,
                  (tol, max_steps, history, progress))  # fmt: skip


def hqs(
    A: LinearOperator,
    y: Any,
    g: ProximalFunction | Any,
    *,
    penalty: Scalar | None = None,
    first: Scalar | None = None,
    growth: Scalar = 1.2,
    analysis: LinearOperator | None = None,
    cg_steps: Scalar = 50,
    x0: Array | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 1000,
    history: bool | int = False,
    progress: Progress | None = None,
) -> InverseSolution:
    """Minimise ``|A x - y|^2 / 2 + g(z) + penalty |D x - z|^2 / 2`` over x and z, each in turn.

    Half-quadratic splitting: what is minimised over x alone is the data term plus g's Moreau envelope, g smoothed at
    the scale ``1 / penalty``. Plug-and-play restorations run a few steps of it with a denoiser for g and the penalty
    rising from `first`. For g itself take `admm` or `pgd`: without multipliers that needs a penalty without bound, and
    steps in proportion to it.

    Parameters
    ----------
    A : LinearOperator
        From an image to data; its float leaves are differentiable.
    y : PyTree of arrays
        Data shaped like ``A x``; differentiable.
    g : ProximalFunction or callable
        ``g(v, step)`` is the proximal map, asked at ``step = 1 / penalty``; differentiable leaves.
    penalty : scalar, optional
        Of the problem, in units of ``|A|^2``; a tenth of a Rayleigh quotient by default, to be given where g is not a
        `ProximalFunction`. Traced and differentiable.
    first : scalar, optional
        Where the penalty starts, if not there; no image on the way is an answer. Traced.
    growth : scalar
        Factor from a step's penalty to the next one's on that way. Traced.
    analysis : LinearOperator, optional
        D; the identity by default.
    cg_steps : scalar
        Most steps of the linear solve in one step; traced.
    x0 : Float[Array, "..."], optional
        Where to start. Not differentiable.
    unconverged : str
        "nan": derivatives where the solve did not converge are NaN. "approximate": those of the equations at the point.
    tol : scalar, optional
        1e-6 in float64, 1e-4 in float32; traced.
    max_steps : int
        Traced.
    history : bool or int
        Whether, or how many, errors to record.
    progress : callable, optional
        Host callback ``progress(step, error)``.

    Returns
    -------
    InverseSolution
        ``value`` is x; ``z = D x - dual / penalty``, ``dual = penalty (D x - prox(D x))``.
        ``error = |A'(A x - y) + D' dual| / max(|A'(A x - y)|, |D' dual|, |A'y| / 100)``: the gradient of the objective
        over x, relative to its two parts.

    Raises
    ------
    ValueError, TypeError
        For shapes, dtypes or options that cannot be right.

    Notes
    -----
    The error falls at best by ``penalty / (penalty + smallest eigenvalue of A'A)`` a step. Cost, checks and derivatives
    as of `admm`.

    References
    ----------
    Geman, Yang, "Nonlinear image recovery with half-quadratic regularization", IEEE Trans. Image Process. 4 (1995).
    Zhang et al., "Plug-and-play image restoration with deep denoiser prior", 2021.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import hqs, Mask
    >>> from solvers.core.prox import L1
    >>> sol = hqs(Mask(jnp.array([1.0, 2.0, 1.0])), jnp.array([3.0, 0.5, 0.1]), L1(1.0), penalty=1.0)
    >>> bool(sol.converged), [round(v, 2) for v in sol.value.tolist()]  # the last two in Huber's quadratic part
    (True, [2.0, 0.2, 0.05])
    """
    name = "hqs"
    needs_setting(name, "penalty", penalty, g)
    return _split(name, (A, y, g, analysis), (x0, None), (first, penalty, growth, cg_steps, False), unconverged,
                  (tol, max_steps, history, progress))  # fmt: skip


def _split(name: str, problem, start, setting, unconverged: str, limits) -> InverseSolution:
    A, y, g, analysis = problem
    x0, dual = start
    penalty, last, growth, cg_steps, adaptive = setting
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    s, x0 = prepare(name, A, y, g, analysis, x0)
    dtype = x0.dtype
    if dual is not None:
        dual = checks.float_array(name, "dual", dual).astype(dtype) / s.unit
    if penalty is not None:
        penalty = checks.number(name, "penalty" if growth is None else "first", penalty, positive=True, dtype=dtype)
    if last is not None:
        last = checks.number(name, "penalty", last, positive=True, dtype=dtype)
    factor = checks.number(name, "growth", 1.0 if growth is None else growth, positive=True, dtype=dtype)
    setting = Setting(growth is None, adaptive, factor, last, checks.count(name, "cg_steps", cg_steps))
    return solve(s, (x0, dual), penalty, setting, limits_of(name, dtype, *limits), unconverged)


def limits_of(name: str, dtype, tol, max_steps, history, progress) -> Limits:
    """Return the checked limits of a solve."""
    tol = checks.number(name, "tol", (1e-6 if dtype == jnp.float64 else 1e-4) if tol is None else tol, dtype=dtype)
    return Limits(tol, checks.count(name, "max_steps", max_steps), history, progress)
