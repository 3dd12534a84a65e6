"""Accelerated proximal gradients, with restarts and a step length that corrects itself.

By Beck, Teboulle (SIAM J. Imaging Sci. 2, 2009), numbered as in the comments; L is the curvature and slope the gradient
of the data term:

(1) ``x = prox_(g / L)(v - slope(v) / L)``
(2) ``t = (1 + sqrt(1 + 4 t_before^2)) / 2``
(3) ``v = x + (t_before - 1) / t (x - x_before)``

By O'Donoghue, Candes (2015):

(4) ``t = 1`` where ``(v - x)'(x - x_before) > 0``

It departs from the first paper in L, which is raised where ``(slope(x) - slope(v))'(x - v) > L |x - v|^2``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core import checks
from ...core.implicit import UNCONVERGED
from ...core.loop import Limits, iterate
from ...core.operators import LinearOperator
from ...core.prox import ProximalFunction
from ...core.solution import Status
from ...core.typing import Array, Progress, Scalar
from ...core.vectors import inner
from .splitting import limits_of, safe
from .statement import (
    InverseSolution,
    InverseStatus,
    Statement,
    finish,
    freeze,
    largest_eigenvalue,
    mismatched,
    needs_setting,
    optimality,
    prepare,
)

RAISE = 1.3
"""Factor by which the curvature is raised when a step shows that it was too small."""


class State(NamedTuple):
    """Image and gradient, those before, subgradient of g at the image, momentum, curvature, error, products."""

    x: Array
    gradient: Array
    x_before: Array
    gradient_before: Array
    w: Array
    momentum: Array
    curvature: Array
    error: Array
    products: Array


def forward_backward(s: Statement, back: Array, v: Array, slope: Array, curvature: Array):
    """Return the next image, its gradient, its subgradient of g and the error there."""
    x = s.prox(v - slope / curvature, 1 / curvature)  # (1)
    gradient = s.gradient(x)
    w = curvature * (v - x) - slope
    zero = jnp.zeros((), x.dtype)
    return x, gradient, w, optimality(s, gradient, back, w, zero, zero).error


def step(s: Statement, back: Array, accelerated: bool, fixed: bool, c: State) -> State:
    """Extrapolate, step, restart where momentum points uphill."""
    momentum = (1 + jnp.sqrt(1 + 4 * c.momentum**2)) / 2  # (2)
    beta = (c.momentum - 1) / momentum if accelerated else jnp.zeros_like(c.momentum)
    # The gradient is affine: at the extrapolated point it is the extrapolated gradient, and costs nothing.
    v = c.x + beta * (c.x - c.x_before)  # (3)
    slope = c.gradient + beta * (c.gradient - c.gradient_before)
    x, gradient, w, error = forward_backward(s, back, v, slope, c.curvature)
    moved = x - v
    bend, room = inner(gradient - slope, moved), inner(moved, moved)
    short = (bend > (1 + 1e-3) * c.curvature * room) & (not fixed)
    raised = jnp.maximum(RAISE * c.curvature, 1.01 * bend / safe(room))
    uphill = inner(v - x, x - c.x) > 0  # (4)
    momentum = jnp.where(uphill, 1, momentum)
    new = State(x, gradient, c.x, c.gradient, w, momentum, c.curvature, error, c.products + 1)
    again = c._replace(curvature=raised, momentum=jnp.ones_like(momentum), products=c.products + 1)
    return jax.tree.map(lambda u, v: jnp.where(short, u, v), again, new)


@eqx.filter_jit
def solve(s: Statement, x0, curvature, accelerated: bool, limits: Limits, unconverged: str) -> InverseSolution:
    """Run the loop and wrap up."""
    frozen = freeze(s)
    back = frozen.operator.transpose_mv(frozen.y)
    wrong = mismatched(frozen)
    fixed = curvature is not None
    if curvature is None:
        curvature = 1.02 * largest_eigenvalue(frozen)
        curvature = jnp.where(curvature > 0, curvature, 1)
    x, gradient, w, error = forward_backward(frozen, back, x0, frozen.gradient(x0), curvature)
    one = jnp.ones((), x0.dtype)
    run = iterate(
        lambda c: step(frozen, back, accelerated, fixed, c),
        State(x, gradient, x, gradient, w, one, curvature, error, jnp.full((), 2, jnp.int32)),
        limits,
        value=lambda c: (c.x, c.w, c.curvature),
        error=lambda c: c.error,
        refused=lambda c: jnp.where(wrong, InverseStatus.ADJOINT_MISMATCH, Status.RUNNING),
        stall=500,
        divergence=1e6,
    )
    return finish(s, run, limits, (*run.value, run.state.products, None), unconverged)


def pgd(
    A: LinearOperator,
    y: Any,
    g: ProximalFunction | Any,
    *,
    step: Scalar | None = None,
    accelerated: bool = True,
    x0: Array | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 2000,
    history: bool | int = False,
    progress: Progress | None = None,
) -> InverseSolution:
    """Minimise ``|A x - y|^2 / 2 + g(x)`` by accelerated proximal gradients.

    One product with A'A and one proximal map a step, and nothing to tune; for ill-conditioned A, or g of a transform
    (total variation), `admm` needs fewer. With a learned map or denoiser as g it is plug and play (PnP-PGD).

    Parameters
    ----------
    A : LinearOperator
        From an image to data; its float leaves are differentiable.
    y : PyTree of arrays
        Data shaped like ``A x``; differentiable.
    g : ProximalFunction or callable
        ``g(v, step)`` is the proximal map; float leaves of a module are differentiable. A map that is itself iterated
        (`TotalVariation`) limits what can be reached to its own accuracy.
    step : scalar, optional
        Step length; by default the inverse of ``|A|^2``, estimated by power iteration and shortened wherever a step
        shows that it was too long. To be given where g is not a `ProximalFunction`. Traced.
    accelerated : bool
        Whether to extrapolate; static. Set it to False for denoisers, for which nothing is proved with it.
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
        ``error = |A'(A x - y) + w| / max(|A'(A x - y)|, |w|, |A'y| / 100)`` with w a subgradient of g at x: how far
        zero is from the subdifferential of the objective. A constraint of g holds exactly.

    Raises
    ------
    ValueError, TypeError
        For shapes, dtypes or options that cannot be right.

    Notes
    -----
    Momentum restarts where it points uphill, which makes convergence linear on strongly convex problems without knowing
    their constant. A' is compared with A on a random pair first. Derivatives as of `admm`.

    References
    ----------
    Beck, Teboulle, "A fast iterative shrinkage-thresholding algorithm", SIAM J. Imaging Sci. 2 (2009), (4.1)-(4.3).
    O'Donoghue, Candes, "Adaptive restart for accelerated gradient schemes", 2015, (13).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import pgd, Mask
    >>> from solvers.core.prox import L1
    >>> sol = pgd(Mask(jnp.array([1.0, 2.0, 0.0])), jnp.array([3.0, 0.5, 1.0]), L1(1.0))
    >>> bool(sol.converged), sol.value.round(3).tolist()
    (True, [2.0, 0.0, 0.0])
    """
    name = "pgd"
    needs_setting(name, "step", step, g)
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    s, x0 = prepare(name, A, y, g, None, x0)
    curvature = None if step is None else 1 / checks.number(name, "step", step, positive=True, dtype=x0.dtype)
    limits = limits_of(name, x0.dtype, tol, max_steps, history, progress)
    return solve(s, x0, curvature, bool(accelerated), limits, unconverged)
