"""Maps between clouds: how far one is from optimal, and how to learn one that is.

After T. Uscidda, M. Cuturi, "The Monge gap", ICML 2023, definition 1 and section 4, with S the Sinkhorn divergence:

(1) ``gap(T) = sum_i a_i c(x_i, T x_i) / sum(a) - S(x, T x)``
(2) ``loss(T) = S(T x, y) + strength gap(T)``

It departs from the paper, whose gap subtracts the regularised cost of transport where (1) has S.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.loop import Limits, iterate
from ...core.precision import matmul
from ...core.solution import Solution, Status, StatusCode
from ...core.typing import Array, Float, Int, Progress, Scalar
from ..costs.pointcloud import PointCloud
from ..entropic.newton import sns_sinkhorn
from ..problem import Goal, TransportStatus, check
from .divergence import DivergenceSolution, sinkhorn_divergence, solve_symmetric

RELATIVE_EPSILON = 0.05
"""Default epsilon of `fit_transport_map`, in units of the mean cost between the clouds."""
INNER_TOL = 1e-3
"""Marginal error of the problems solved in every training step."""


class MongeGapSolution(Solution):
    """How much more a map pays than an optimal one to the same place: ``value``, and the divergence subtracted."""

    divergence: DivergenceSolution
    paid: Float[Array, "*batch"]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, TransportStatus)


def monge_gap(
    x: Float[Array, "n d"],
    mapped: Float[Array, "n d"],
    a: Float[Array, " n"] | None = None,
    *,
    epsilon: Scalar,
    metric: Any = "sqeuclidean",
    tol: Scalar | None = None,
    max_steps: Scalar = 200,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> MongeGapSolution:
    """Compute the debiased Monge gap of a map T that sends x_i to ``mapped_i``.

    ``sum_i a_i c(x_i, T x_i) / sum(a) - S(x, T x)`` with S the Sinkhorn divergence of the two clouds: what the map pays
    minus what the best one pays. Zero for optimal maps as epsilon tends to zero; at any epsilon zero for the identity,
    and ``4 (1 - cos theta)`` for the rotation of a standard Gaussian in the plane. As a regulariser it makes a map
    optimal; without the debiasing it would also be rewarded for shrinking.

    Parameters
    ----------
    x, mapped : Float[Array, "n d"]
        Points and where they go. Differentiable.
    a : Float[Array, "n"], optional
        Weights; uniform by default. Differentiable.
    epsilon : scalar
        Regularisation, in the units of the cost; positive. Traced, differentiable.
    metric : str or callable
        As in `PointCloud`. Static.
    tol, max_steps, unconverged, history, progress : optional
        As in `sinkhorn_divergence`.

    Returns
    -------
    MongeGapSolution
        ``value``, a scalar; ``error`` and ``status`` are those of the divergence.

    Raises
    ------
    ValueError, TypeError
        While tracing, if shapes do not fit or `epsilon` is a number that is not positive.

    Notes
    -----
    Three transport problems, stopped when ``error <= tol``; gradients by the envelope theorem. The published gap
    subtracts the regularised cost instead of the divergence, hence is not zero at the identity.

    References
    ----------
    .. [1] T. Uscidda, M. Cuturi, "The Monge gap: a regularizer to learn all transport maps", ICML 2023, definition 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import monge_gap
    >>> x = jnp.linspace(-1, 1, 6)[:, None]
    >>> bool(abs(monge_gap(x, x, epsilon=0.1).value) < 1e-5), bool(monge_gap(x, -x, epsilon=0.1).value > 1)
    (True, True)
    """
    cloud = PointCloud(x, mapped, metric=metric)
    if cloud.x.shape != cloud.y.shape:
        checks.fail("monge_gap", "mapped", f"{cloud.x.shape} like `x`", cloud.y.shape)
    _, a, _, epsilon = check("monge_gap", cloud, a, a, epsilon)
    solution = sinkhorn_divergence(
        cloud, a, a, epsilon=epsilon, tol=tol, max_steps=max_steps, unconverged=unconverged,
        history=history, progress=progress,
    )  # fmt: skip
    paid = jnp.sum(a * _pairwise(metric, cloud.x, cloud.y))
    gap = (paid - solution.value) / jnp.sum(a)  # (1)
    status = jnp.where(solution.converged & ~jnp.isfinite(gap), Status.NONFINITE, solution.status)
    return MongeGapSolution(
        gap, status, solution.num_steps, solution.error, solution.tol, solution.history, solution, paid
    )


def _pairwise(metric, x, y):
    """Return ``c(x_i, y_i)``."""
    one = lambda p, q: PointCloud(p[None], q[None], metric=metric).dense()[0, 0]  # noqa: E731
    return jax.vmap(one)(x, y)


class TransportMap(eqx.Module):
    """A map ``x + network(x)`` of points; the network is a perceptron with smooth activations, zero at the start.

    Attributes
    ----------
    weights, offsets : tuple of Float[Array, "k j"] and Float[Array, "k"]
        Of each layer.
    """

    weights: tuple[Float[Array, "k j"], ...]
    offsets: tuple[Float[Array, " k"], ...]

    @classmethod
    def random(cls, key, dimension: int, *, width: int, depth: int, dtype) -> "TransportMap":
        """Return a map close to the identity, its hidden layers random."""
        sizes = [dimension, *[width] * depth, dimension]
        keys = jax.random.split(key, len(sizes))
        pairs = list(pairwise(sizes))
        weights = [jax.random.normal(k, (q, p), dtype) / p**0.5 for k, (p, q) in zip(keys, pairs, strict=False)]
        weights[-1] = jnp.zeros_like(weights[-1])
        offsets = [jax.random.normal(jax.random.fold_in(keys[-1], i), (q,), dtype) for i, (_, q) in enumerate(pairs)]
        offsets[-1] = jnp.zeros_like(offsets[-1])
        return cls(tuple(weights), tuple(offsets))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Return where points go."""
        h = x
        for i, (w, b) in enumerate(zip(self.weights, self.offsets, strict=True)):
            h = matmul(h, w.T)
            h = h + b.reshape((1,) * (h.ndim - 1) + b.shape)
            h = jax.nn.gelu(h) if i < len(self.weights) - 1 else h
        return x + h


class MapSolution(Solution):
    """A fitted map: ``value`` is a `TransportMap`, a pytree of arrays that is called on points.

    ``error`` is ``(S(T x, y) + strength * gap(T)) / S(x, y)`` on the points trained on: the fraction of the divergence
    that is left, plus how far the map is from optimal.

    Attributes
    ----------
    divergence, gap : Float[Array, ""]
        The two parts, in the units of the cost, on the training points.
    """

    divergence: Float[Array, "*batch"]
    gap: Float[Array, "*batch"]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, TransportStatus)


class Training(eqx.Module):
    """The map, the optimiser's state, warm potentials of both problems, and what is left of the loss."""

    map: TransportMap
    optimiser: Any
    towards: tuple[Float[Array, " n"], Float[Array, " m"]]
    back: tuple[Float[Array, " n"], Float[Array, " n"]]
    parts: tuple[Float[Array, ""], Float[Array, ""]]
    step: Int[Array, ""]


def fit_transport_map(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    *,
    key: Array,
    strength: Scalar = 1.0,
    epsilon: Scalar | None = None,
    width: int = 64,
    depth: int = 2,
    learning_rate: float = 1e-2,
    tol: Scalar | None = None,
    max_steps: int = 500,
    history: bool | int = False,
    progress: Progress | None = None,
) -> MapSolution:
    """Learn a map that carries one cloud to another as cheaply as possible (squared distance).

    ``min over T of S(T x, y) + strength * gap(T)`` with S the Sinkhorn divergence and the debiased Monge gap. The
    result can be applied to new points. For the points themselves ``sns_sinkhorn(...).barycentric_map(y)`` needs no
    training.

    Parameters
    ----------
    x, y : Float[Array, "n d"], Float[Array, "m d"]
        Source and target points, of some thousand points at most: every training step uses all of them.
    key : PRNG key
        Draws the network's hidden layers.
    strength : scalar
        Weight of the gap. Traced.
    epsilon : scalar, optional
        Regularisation, in squared units of the points; by default 0.05 of the mean cost between the clouds. Traced.
    width, depth : int
        Hidden units a layer, and hidden layers. Static.
    learning_rate : float
        Of Adam at the start; it falls to zero along a cosine over `max_steps`. Traced.
    tol : scalar, optional
        Target for `error`; 1e-4 by default. Traced.
    max_steps : int
        Largest number of training steps. Traced.
    history : bool or int
        Record the error of that many steps (``True``: 256). Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``.

    Returns
    -------
    MapSolution
        ``value(points)`` maps points ``(..., d)``; ``error`` is ``(S(T x, y) + strength * gap(T)) / S(x, y)``.

    Raises
    ------
    ValueError, TypeError
        While tracing, if shapes do not fit. ImportError without Optax.

    Notes
    -----
    The terms of the two divergences that concern x and y alone do not depend on the map, so a step solves three
    transport problems instead of six, started from the potentials of the step before. Stops when ``error <= tol``; a
    good fit that ends as `Status.MAX_STEPS` is the rule for networks: look at `error`. The fitted map is not
    differentiated with respect to the points.

    References
    ----------
    .. [1] T. Uscidda, M. Cuturi, "The Monge gap: a regularizer to learn all transport maps", ICML 2023, section 4.

    Examples
    --------
    >>> import jax
    >>> from solvers import fit_transport_map
    >>> x = jax.random.normal(jax.random.key(7), (30, 2))
    >>> sol = fit_transport_map(x, x + 1, key=jax.random.key(8), width=8, depth=1, max_steps=60)
    >>> sol.value(x).shape, bool(sol.error < 0.5)
    ((30, 2), True)
    """
    name = "fit_transport_map"
    cloud = PointCloud(x, y)
    dtype = cloud.dtype
    mean = jnp.mean(jnp.sum((cloud.x - jnp.mean(cloud.y, 0)[None]) ** 2, 1)) + jnp.sum(jnp.var(cloud.y, axis=0))
    mean = jnp.maximum(mean, jnp.finfo(dtype).tiny)
    epsilon = RELATIVE_EPSILON * mean if epsilon is None else epsilon
    epsilon = checks.number(name, "epsilon", epsilon, positive=True, dtype=dtype)
    strength = checks.number(name, "strength", strength, dtype=dtype)
    tol = checks.number(name, "tol", 1e-4 if tol is None else tol, dtype=dtype)
    rate = checks.number(name, "learning_rate", learning_rate, positive=True, dtype=dtype)
    limit = checks.count(name, "max_steps", max_steps)
    start = TransportMap.random(key, cloud.x.shape[1], width=width, depth=depth, dtype=dtype)
    return _fit(start, cloud.x, cloud.y, epsilon, strength, rate, Limits(tol, limit, history, progress))


@jax.jit
def _fit(start, x, y, epsilon, strength, rate, limits: Limits) -> MapSolution:
    import optax

    x, y, start = lax.stop_gradient((x, y, start))
    settings = {"epsilon": epsilon, "tol": INNER_TOL, "unconverged": "approximate"}  # a rough slope is a slope
    inner = Goal(jnp.asarray(INNER_TOL, x.dtype), jnp.asarray(200, jnp.int32))
    uniform_x, uniform_y = (jnp.full(len(z), 1 / len(z), x.dtype) for z in (x, y))

    def within(z, weights):
        return solve_symmetric((PointCloud(z, z), weights, weights, epsilon), inner, "approximate")

    alone = within(x, uniform_x)
    of_x, of_y = alone.regularized_cost, within(y, uniform_y).regularized_cost
    first = sns_sinkhorn(PointCloud(x, y), **settings)
    initial = first.regularized_cost - (of_x + of_y) / 2
    optimiser = optax.adam(1.0)

    def loss(model, state: Training):
        moved = model(x)
        towards = sns_sinkhorn(PointCloud(moved, y), init=state.towards, **settings)
        along = sns_sinkhorn(PointCloud(x, moved), init=state.back, **settings)
        of_moved = within(moved, uniform_x).regularized_cost
        divergence = towards.regularized_cost - (of_moved + of_y) / 2
        # (1)
        gap = jnp.mean(jnp.sum((x - moved) ** 2, 1)) - (along.regularized_cost - (of_moved + of_x) / 2)
        return divergence + strength * gap, (towards.value, along.value, (divergence, gap))  # (2)

    def step(state: Training) -> Training:
        gradient, (towards, along, parts) = jax.grad(loss, has_aux=True)(state.map, state)
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes integers and floats
            updates, optimiser_state = optimiser.update(gradient, state.optimiser)
        done = state.step / jnp.maximum(limits.max_steps, 1)
        scale = rate * 0.5 * (1 + jnp.cos(jnp.pi * done)).astype(rate.dtype)
        moved = jax.tree.map(lambda p, u: p + scale * u, state.map, updates)
        return Training(moved, optimiser_state, *lax.stop_gradient((towards, along, parts)), state.step + 1)

    zero = jnp.zeros((), x.dtype)
    state = Training(start, optimiser.init(start), first.value, alone.value, (initial, zero), jnp.zeros((), jnp.int32))
    unit = jnp.maximum(jnp.abs(initial), jnp.finfo(x.dtype).eps * epsilon)
    run = iterate(
        step,
        state,
        limits,
        value=lambda s: (s.map, s.parts),
        error=lambda s: (jnp.maximum(s.parts[0], 0) + strength * jnp.maximum(s.parts[1], 0)) / unit,
    )
    model, (divergence, gap) = run.value
    return MapSolution(model, run.status, run.num_steps, run.error, limits.tol, run.history, divergence, gap)
