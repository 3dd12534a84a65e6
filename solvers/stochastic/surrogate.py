"""Target-based surrogates: one expensive gradient in the space of a model's outputs, many cheap steps in its
weights.

By Lavington, Vaswani, Babanezhad, Schmidt, Le Roux (ICML 2023), numbered as in the comments; z are the model's outputs,
g the gradient of the loss at ``z_t = model(w_t)``:

(1) ``q(z) = <g, z - z_t> + |z - z_t|^2 / (2 eta)``
(2) ``q(z) = <g, z - z_t> + (phi(z) - phi(z_t) - <grad phi(z_t), z - z_t>) / eta``: the same in the divergence of phi
(3) ``w_(t+1)``: some steps of an inner method on ``w -> q(model(w))``
(4) ``J' (Hess q) J d = -J' grad q``, ``w = w_t + s d``: one Gauss-Newton step as that method, J the model's Jacobian

It departs from the paper in (4), its default, and in eta, which is halved where the loss rises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from ..core import checks
from ..core.implicit import UNCONVERGED, attach, distrust, linear_solve
from ..core.krylov.cg import cg
from ..core.loop import Limits, iterate
from ..core.operators import gauss_newton
from ..core.precision import eps
from ..core.search import backtrack
from ..core.solution import Solution, Status, StatusCode
from ..core.typing import Array, Float, Int, Progress, Scalar
from ..core.vectors import axpy, inner, norm


class SurrogateStatus(StatusCode):
    """Why `target_surrogate` stopped, beyond `Status`."""

    REFUSED = 100, "refused: no shorter surrogate lowers the loss any more; loosen `tol` or check the loss's gradient"


class SurrogateSolution(Solution):
    """What `target_surrogate` returns; `loss` at its value, and how often it was asked for with its gradient."""

    loss: Float[Array, "..."]
    num_oracle: Int[Array, "..."]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, SurrogateStatus)


class Problem(NamedTuple):
    """The model, its loss, the divergence's potential (None for Euclidean), inner method and steps."""

    model: Callable
    loss: Callable
    potential: Callable | None
    inner: optax.GradientTransformation | None
    inner_steps: int


class State(NamedTuple):
    """Weights, outputs, loss, its gradient in the outputs and in the weights, step, how often the loss was asked."""

    w: Any
    z: Any
    value: Array
    slope: Any
    error: Array
    eta: Array
    asked: Int[Array, ""]
    refusals: Int[Array, ""]


def surrogate(problem: Problem, s: State, z: Any) -> Array:
    """Return ``<g, z - z_t> + D(z, z_t) / eta``."""
    move = jax.tree.map(jnp.subtract, z, s.z)
    linear = inner(s.slope, move)
    if problem.potential is None:
        return linear + inner(move, move) / (2 * s.eta)  # (1)
    bregman = problem.potential(z) - problem.potential(s.z) - inner(jax.grad(problem.potential)(s.z), move)
    return linear + bregman / s.eta  # (2)


def descend(problem: Problem, s: State, args: Any) -> Any:
    """Return weights with a smaller surrogate."""
    objective = lambda w: surrogate(problem, s, problem.model(w, args))  # noqa: E731
    if problem.inner is None:
        return newton(problem, s, args, objective)
    method = optax.with_extra_args_support(problem.inner)

    def step(carry, _):
        w, memory, best, least = carry
        value, gradient = jax.value_and_grad(objective)(w)
        better = value < least
        best, least = jax.tree.map(lambda a, b: jnp.where(better, a, b), w, best), jnp.where(better, value, least)
        updates, memory = method.update(gradient, memory, w, value=value, grad=gradient, value_fn=objective)
        return (optax.apply_updates(w, updates), memory, best, least), None

    start = (s.w, method.init(s.w), s.w, jnp.zeros_like(s.value))
    (w, _, best, least), _ = lax.scan(step, start, None, length=problem.inner_steps)
    better = objective(w) < least
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), w, best)


def newton(problem: Problem, s: State, args: Any, objective: Callable) -> Any:
    """Return a Gauss-Newton step on the surrogate, by truncated conjugate gradients and backtracking."""
    gradient = jax.grad(objective)(s.w)
    bend = gauss_newton(lambda w: problem.model(w, args), lambda z: surrogate(problem, s, z), s.w)
    tol = 100 * eps(s.value.dtype) * norm(gradient)
    down = cg(bend.mv, jax.tree.map(jnp.negative, gradient), tol=tol, max_steps=problem.inner_steps).x  # (4)
    slope = inner(gradient, down)
    # Outputs are known to rounding only; without this the steps end at a gradient of the root of it.
    noise = 10 * eps(s.value.dtype) * norm(s.slope) * norm(s.z)
    found = backtrack(
        lambda t: objective(axpy(t, down, s.w)),
        lambda t, after: after <= 1e-4 * t * slope + noise,
        start=jnp.ones((), s.value.dtype),
    )
    return axpy(jnp.where(found.accepted, found.length, 0), down, s.w)  # (4)


def target_surrogate(
    model: Callable[[Any, Any], Any],
    loss: Callable[[Any, Any], Float[Array, ""]],
    w0: Any,
    args: Any = None,
    *,
    eta: Scalar,
    inner: optax.GradientTransformation | None = None,
    inner_steps: int = 20,
    potential: Callable[[Any], Float[Array, ""]] | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 500,
    history: bool | int = False,
    progress: Progress | None = None,
) -> SurrogateSolution:
    """Minimise ``loss(model(w))`` when the loss is expensive and the model cheap, by surrogates in the model's outputs.

    Each step asks once for the loss and its gradient g at ``z_t = model(w_t)``, then lowers ``<g, z - z_t> + |z -
    z_t|^2 / (2 eta)`` over weights by `inner_steps` steps of any method. Use it where the loss is a simulator or a
    human; where model and loss cost alike, an ordinary optimiser is simpler.

    Parameters
    ----------
    model : callable
        ``model(w, args)``, the outputs z, a pytree of arrays; differentiable. Static.
    loss : callable
        ``loss(z, args)``, a scalar, smooth and best convex in z. Static.
    w0 : PyTree of arrays
        Where to start; its derivative is zero.
    args : PyTree, optional
        Differentiable data.
    eta : scalar
        In (0, 1 / L] with L the smoothness of the loss in z (relative to `potential`): then every step lowers the loss.
        A longer one is halved when it does not. For a mean over n examples of logistic losses L is ``1 / (4 n)``.
        Traced.
    inner : optax.GradientTransformation, optional
        What lowers the surrogate, ``optax.lbfgs()`` or ``optax.adam(1e-2)``; started afresh every step. By default one
        Gauss-Newton step by `inner_steps` conjugate gradients: for a linear model the best point that as many gradient
        steps of any kind can reach. Static.
    inner_steps : int
        Static.
    potential : callable, optional
        Convex phi(z); the surrogate then has ``phi(z) - phi(z_t) - <grad phi(z_t), z - z_t>`` for half the square.
        Static.
    unconverged : {"nan", "approximate"}
        Derivatives of a run that did not converge. Static.
    tol : scalar, optional
        Traced; 1e-6 in float64, 1e-4 in float32.
    max_steps : int
        Traced.
    history : bool or int
        Record errors.
    progress : callable, optional
        ``progress(step, error)`` on the host.

    Returns
    -------
    SurrogateSolution
        `value`, the last point, which has the smallest loss seen; ``error = |grad_w loss(model(w))|`` there, absolute;
        `loss`, and `num_oracle`, the calls for loss and gradient.

    Raises
    ------
    ValueError, TypeError
        Options that cannot be, a loss that is no real scalar.

    Notes
    -----
    A step that raises the loss by more than rounding is taken back and eta halved, so the loss never rises, and the
    oracle is never asked for what it has been asked before. Derivatives: of a minimiser with positive definite Hessian,
    with respect to `args`, by conjugate gradients.

    References
    ----------
    J. W. Lavington, S. Vaswani, R. Babanezhad, M. Schmidt, N. Le Roux, *Target-based surrogates for stochastic
    optimization*, ICML 2023, algorithm 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import target_surrogate
    >>> X, y = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, 3.0, 5.0])
    >>> sol = target_surrogate(lambda w, _: X @ w, lambda z, _: jnp.sum((z - y) ** 2), jnp.zeros(2), eta=0.5, tol=1e-4)
    >>> print(sol.value.round(3), int(sol.num_oracle))
    [1. 2.] 2
    """
    name = "target_surrogate"
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    if isinstance(inner_steps, bool) or not isinstance(inner_steps, int) or inner_steps < 1:
        checks.fail(name, "inner_steps", "a positive integer", inner_steps)
    w0 = jax.tree.map(lambda x: checks.float_array(name, "w0", x), w0)
    value = jax.eval_shape(lambda w: loss(model(w, args), args), w0)
    if not hasattr(value, "shape") or value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        checks.fail(name, "loss", "a real scalar", value, TypeError)
    tol = {8: 1e-6, 4: 1e-4}.get(value.dtype.itemsize, 1e-2) if tol is None else tol
    eta = checks.number(name, "eta", eta, positive=True, dtype=value.dtype)
    limits = Limits(
        checks.number(name, "tol", tol, dtype=value.dtype),
        checks.count(name, "max_steps", max_steps),
        history,
        progress,
    )
    problem = Problem(model, loss, potential, inner, inner_steps)
    dynamic, static = eqx.partition(args, eqx.is_array)
    return _solve(problem, _Held(static), unconverged, w0, dynamic, eta, limits)


class _Held:
    """What of the data is no array, as a static argument compared by identity of its leaves."""

    def __init__(self, tree):
        self.tree = tree
        self.leaves, self.structure = jax.tree.flatten(tree)

    def __hash__(self):
        return hash((self.structure, *map(id, self.leaves)))

    def __eq__(self, other):
        return self.structure == other.structure and all(a is b for a, b in zip(self.leaves, other.leaves, strict=True))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _solve(problem: Problem, held: _Held, unconverged: str, w0: Any, dynamic: Any, eta: Array, limits: Limits):
    args = eqx.combine(dynamic, held.tree)
    frozen = lax.stop_gradient(dynamic)
    data = eqx.combine(frozen, held.tree)
    w0 = lax.stop_gradient(w0)

    def ask(w, eta, asked, refusals) -> State:
        z, pull = jax.vjp(lambda w: problem.model(w, data), w)
        value, slope = jax.value_and_grad(lambda z: problem.loss(z, data))(z)
        return State(w, z, value, slope, norm(pull(slope)[0]), eta, asked + 1, refusals)

    def step(s: State) -> State:
        new = ask(descend(problem, s, data), s.eta, s.asked, jnp.zeros((), jnp.int32))  # (3)
        # Within rounding of the loss the gradient decides: its own rounding is far smaller.
        noise = eps(s.value.dtype) * jnp.maximum(jnp.abs(s.value), jnp.abs(new.value))
        good = (new.value <= s.value) | ((new.value <= s.value + 100 * noise) & (new.error <= s.error))
        back = s._replace(eta=s.eta / 2, asked=new.asked, refusals=s.refusals + 1)
        return jax.tree.map(lambda a, b: jnp.where(good | ~jnp.isfinite(s.value), a, b), new, back)

    zero = jnp.zeros((), jnp.int32)
    run = iterate(
        step,
        ask(w0, eta, zero, zero),
        limits,
        value=lambda s: (s.w, s.value),
        error=lambda s: jnp.where(jnp.isfinite(s.value), s.error, jnp.nan),
        status=lambda s: jnp.where(s.refusals >= 30, SurrogateStatus.REFUSED, Status.RUNNING),
        stall=200,
    )
    # The loss never rose, so the last point is the best; unless it is no point at all.
    last = (run.state.w, run.state.value, run.state.error)
    w, value, error = jax.tree.map(
        lambda a, b: jnp.where(jnp.isfinite(run.state.error), a, b), last, (*run.value, run.error)
    )
    moving, fixed = eqx.partition(args, eqx.is_inexact_array)

    def residual(w, moving):
        every = eqx.combine(moving, fixed)
        return jax.grad(lambda w: problem.loss(problem.model(w, every), every))(w)

    def solve(jacobian, b):
        size = ravel_pytree(b)[0].size
        krylov = lambda A, b: cg(A, b, tol=10 * eps(norm(b).dtype) * norm(b), max_steps=10 * size).x  # noqa: E731
        return linear_solve(jacobian, b, krylov)

    trusted = (run.status == Status.CONVERGED) | (unconverged == "approximate")
    w = distrust(attach(residual, w, moving, solve=solve), trusted)
    return SurrogateSolution(w, run.status, run.num_steps, error, limits.tol, run.history, value, run.state.asked)
