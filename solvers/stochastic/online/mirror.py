"""Optimistic online mirror descent: regret between that of stochastic and that of adversarial rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from ...core import checks
from ...core.precision import eps, matmul
from ...core.prox import L2Ball, ProximalFunction, Zero
from ...core.typing import Array, Float, Int, Scalar
from ...core.vectors import inner


class OnlineState(eqx.Module):
    """What an online method knows between rounds.

    Attributes
    ----------
    anchor : Float[Array, "d"]
        The point that all gradients so far lead to.
    hint : Float[Array, "d"]
        The last gradient, what the next one is expected to be.
    variation : Float[Array, ""]
        ``sum |g_t - g_{t-1}|^2``.
    metric : Float[Array, "d d"] or None
        H, of the Newton mirror.
    rounds : Int[Array, ""]
    """

    anchor: Float[Array, " d"]
    hint: Float[Array, " d"]
    variation: Float[Array, ""]
    metric: Float[Array, "d d"] | None
    rounds: Int[Array, ""]


class OnlineMethod(eqx.Module):
    """A rule that answers each round before its loss is known: ``init``, then ``predict`` and ``update`` by turns."""

    @abstractmethod
    def init(self, x: Float[Array, " d"]) -> Any:
        """Return the state before the first round, its answer near x."""

    @abstractmethod
    def predict(self, state: Any) -> Float[Array, " d"]:
        """Return this round's answer."""

    @abstractmethod
    def update(self, state: Any, gradient: Float[Array, " d"]) -> Any:
        """Return the state that has seen the gradient of this round's loss at the answer."""


class OptimisticMirrorDescent(OnlineMethod):
    """Optimistic mirror descent with the last gradient as the hint; made by `optimistic_mirror_descent`."""

    mirror: str = eqx.field(static=True)
    domain: ProximalFunction
    step: Callable[[OnlineState], Array]
    rate: Array
    first: Array

    def init(self, x):
        """Return the state before the first round."""
        x = checks.float_array("optimistic_mirror_descent", "x", x, ndim=1)
        metric = jnp.eye(x.shape[0], dtype=x.dtype) * self.first.astype(x.dtype) if self.mirror == "newton" else None
        zero = jnp.zeros((), x.dtype)
        x = self._move(OnlineState(x, x, zero, metric, jnp.zeros((), jnp.int32)), jnp.zeros_like(x), metric)
        return OnlineState(x, jnp.zeros_like(x), zero, metric, jnp.zeros((), jnp.int32))

    def predict(self, state):
        """Return ``argmin step <hint, x> + D(x, anchor)``."""
        return self._move(state, state.hint, state.metric)  # (1)

    def update(self, state, gradient):
        """Return the state with ``anchor <- argmin step <g, x> + D(x, anchor)``."""
        change = gradient - state.hint
        metric = state.metric
        if metric is not None:
            metric = metric + self.rate.astype(metric.dtype) / 2 * gradient[:, None] * gradient[None, :]  # (5)
        anchor = self._move(state, gradient, state.metric)  # (2)
        return OnlineState(anchor, gradient, state.variation + inner(change, change), metric, state.rounds + 1)

    def _move(self, state, gradient, metric):
        x = state.anchor
        if self.mirror == "newton":
            return _project_in(metric, x - jax.scipy.linalg.solve(metric, gradient, assume_a="pos"), self.domain)  # (8)
        step = self.step(state).astype(x.dtype)
        if self.mirror == "euclidean":
            return self.domain(x - step * gradient, jnp.ones((), x.dtype))  # (6)
        logits = jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny)) - step * gradient
        return jax.nn.softmax(logits)  # (7)


MIRRORS = ("euclidean", "entropy", "newton")
LOSSES = ("convex", "strongly_convex", "exp_concave")


class Convex(eqx.Module):
    """``D / sqrt(10 D^2 L^2 + 4 G^2 + variation)``."""

    diameter: Array
    bound: Array
    smoothness: Array

    def __call__(self, state):
        """Return the step of this round."""
        D, G, L = (x.astype(state.anchor.dtype) for x in (self.diameter, self.bound, self.smoothness))
        return D / jnp.sqrt(10 * (D * L) ** 2 + 4 * G**2 + state.variation)  # (3)


class StronglyConvex(eqx.Module):
    """``2 / (curvature t)``."""

    curvature: Array

    def __call__(self, state):
        """Return the step of this round."""
        return 2 / (self.curvature.astype(state.anchor.dtype) * (state.rounds + 1).astype(state.anchor.dtype))  # (4)


def optimistic_mirror_descent(
    *,
    mirror: str = "euclidean",
    loss: str = "convex",
    domain: ProximalFunction | None = None,
    diameter: Scalar = 2.0,
    bound: Scalar = 1.0,
    smoothness: Scalar = 1.0,
    curvature: Scalar = 1.0,
) -> OptimisticMirrorDescent:
    """Return an online method whose regret adapts to how much the rounds' losses vary.

    (1) ``x_t = argmin step_t <g_(t-1), x> + D(x, anchor_t)``
    (2) ``anchor_(t+1) = argmin step_t <g_t, x> + D(x, anchor_t)``

    Over T rounds with losses of mean F_t and deviation sigma, convex: regret
    ``O(sqrt(sigma^2 T) + sqrt(total change of F))``: constant where nothing varies, ``sqrt(T)`` at worst.

    Parameters
    ----------
    mirror : {"euclidean", "entropy", "newton"}
        D: half the squared distance; the relative entropy on the probability simplex; half the squared distance in
        ``H_t = first I + (rate / 2) sum g g'`` (online Newton step). Static.
    loss : {"convex", "strongly_convex", "exp_concave"}
        Which published steps; the Newton mirror is for exp-concave losses and only for them. Static.
    domain : ProximalFunction, optional
        The set of answers, from `solvers.core.prox`; the ball of that `diameter` by default. Newton takes a ball or
        nothing, entropy none.
    diameter, bound, smoothness : scalar
        Of the set; of gradients, ``|g| <= bound``; of the mean losses. Traced.
    curvature : scalar
        Strong convexity of the losses, or the constant of exp-concavity. Traced.

    Returns
    -------
    OptimisticMirrorDescent
        With ``init(x)``, ``predict(state)``, ``update(state, gradient)``; all pure, for ``lax.scan`` and ``vmap``.

    Raises
    ------
    ValueError
        Combinations that have no published analysis, or a domain without a projection in the mirror's metric.

    Notes
    -----
    Steps, with G the bound, L the smoothness and D the diameter:

    (3) ``step_t = D / sqrt(10 D^2 L^2 + 4 G^2 + sum_(s < t) |g_s - g_(s-1)|^2)``: convex
    (4) ``step_t = 2 / (curvature t)``: strongly convex
    (5) ``H_1 = (1 + rate G^2 / 2) I``, ``H_(t+1) = H_t + rate / 2 g_t g_t'``,
        ``rate = min(1 / (4 G D), curvature) / 2``

    They were read in a summary, not in the paper. Of (1) and (2) in closed form, P being the projection:

    (6) ``P(anchor - step g)``: euclidean
    (7) ``x proportional to anchor exp(-step g)``: entropy
    (8) ``P_H(anchor - H^-1 g)``, ``P_H(x) = (H + nu)^-1 H x`` with nu as long as needed: newton

    A round costs O(d), for Newton O(d^3).

    References
    ----------
    S. Chen, Y.-J. Zhang, W.-W. Tu, P. Zhao, L. Zhang, *Optimistic online mirror descent for bridging stochastic and
    adversarial online convex optimization*, JMLR 25 (2024).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import optimistic_mirror_descent
    >>> method = optimistic_mirror_descent(bound=2.0)
    >>> state = method.init(jnp.zeros(2))
    >>> for t in range(200):
    ...     x = method.predict(state)
    ...     state = method.update(state, x - jnp.array([0.5, 0.0]))
    >>> print(method.predict(state).round(3))
    [0.5 0. ]
    """
    name = "optimistic_mirror_descent"
    checks.choice(name, "mirror", mirror, MIRRORS)
    checks.choice(name, "loss", loss, LOSSES)
    if (mirror == "newton") != (loss == "exp_concave"):
        checks.fail(name, "loss", "exp_concave with the newton mirror and only there", loss)
    if mirror == "entropy" and (domain is not None or loss != "convex"):
        checks.fail(name, "domain", "None with the entropy mirror, whose set is the simplex, and loss convex", domain)
    if mirror == "newton" and not isinstance(domain, None | L2Ball | Zero):
        checks.fail(name, "domain", "an L2Ball or Zero with the newton mirror", type(domain).__name__)
    D, G, L, c = (
        checks.number(name, label, x, positive=True)
        for label, x in (
            ("diameter", diameter), ("bound", bound), ("smoothness", smoothness), ("curvature", curvature)
        )
    )  # fmt: skip
    domain = L2Ball(D / 2) if domain is None else domain
    rate = jnp.minimum(1 / (4 * G * D), c) / 2  # (5)
    step = StronglyConvex(c) if loss == "strongly_convex" else Convex(D, G, L)
    return OptimisticMirrorDescent(mirror, domain, step, rate, 1 + rate * G**2 / 2)


def _project_in(metric: Array, x: Array, domain: ProximalFunction) -> Array:
    """Return the point of the ball nearest to x in the metric, ``(H + nu)^-1 H x`` with nu as long as needed."""
    if not isinstance(domain, L2Ball):
        return x
    values, vectors = jnp.linalg.eigh(metric)
    weights = matmul(vectors.T, x) * values
    radius = jnp.asarray(domain.radius, x.dtype)

    def length(nu):
        return jnp.sqrt(jnp.sum((weights / (values + nu)) ** 2))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        long = length(middle) > radius
        return jnp.where(long, middle, low), jnp.where(long, high, middle)

    zero = jnp.zeros((), x.dtype)
    top = jnp.sqrt(jnp.sum(weights**2)) / radius
    _, nu = jax.lax.fori_loop(0, 60 if eps(x.dtype) < 1e-10 else 30, halve, (zero, top))
    shortened = matmul(vectors, weights / (values + nu))  # (8)
    return jnp.where(jnp.sum(x * x) > radius**2, shortened, x)


class Play(NamedTuple):
    """What happened over T rounds: the answers, their losses, and the last state."""

    answers: Float[Array, "T d"]
    losses: Float[Array, " T"]
    state: Any


def play(method: OnlineMethod, loss: Callable[[Array, Any], Array], x: Float[Array, " d"], rounds: Any) -> Play:
    """Play all rounds in one scan.

    Parameters
    ----------
    method : OnlineMethod
        Such as `optimistic_mirror_descent`, or a `DynamicEnsemble`.
    loss : callable
        ``loss(x, round)``, differentiable in x.
    x : Float[Array, "d"]
        Where to start.
    rounds : PyTree of arrays with leading axis T
        What makes the losses.

    Returns
    -------
    Play
        With `answers` and `losses`; `regret` compares them.
    """

    def turn(state, data):
        answer = method.predict(state)
        value, gradient = jax.value_and_grad(loss)(answer, data)
        return method.update(state, gradient), (answer, value)

    state, (answers, losses) = jax.lax.scan(turn, method.init(x), rounds)
    return Play(answers, losses, state)


def regret(
    loss: Callable[[Array, Any], Array], answers: Float[Array, "T d"], rounds: Any, comparator: Float[Array, "..."]
) -> Float[Array, " T"]:
    """Return ``sum_{s <= t} loss_s(answer_s) - loss_s(comparator)`` after every round.

    Parameters
    ----------
    loss : callable
        ``loss(x, round)``.
    answers : Float[Array, "T d"]
    rounds : PyTree of arrays with leading axis T
    comparator : Float[Array, "d"] or Float[Array, "T d"]
        One point for static regret, the best of all rounds for instance; one a round for dynamic regret.
    """
    rivals = jnp.broadcast_to(comparator[None] if comparator.ndim == 1 else comparator, answers.shape)
    return jnp.cumsum(jax.vmap(loss)(answers, rounds) - jax.vmap(loss)(rivals, rounds))


class OptimisticState(NamedTuple):
    """Anchor, last gradient and variation of `optimistic_descent`."""

    anchor: Any
    hint: Any
    variation: Array


def optimistic_descent(
    diameter: Scalar = 2.0, bound: Scalar = 1.0, smoothness: Scalar = 1.0, *, domain: ProximalFunction | None = None
) -> optax.GradientTransformation:
    """Descend optimistically with the adaptive step of `optimistic_mirror_descent`, as an Optax transformation.

    ``step = D / sqrt(10 D^2 L^2 + 4 G^2 + sum |g_s - g_{s-1}|^2)``: no learning rate to tune when the scales are known.

    Parameters
    ----------
    diameter, bound, smoothness : scalar
        How far the answer may be from the start, and of gradients and their changes; traced.
    domain : ProximalFunction, optional
        Applied to every leaf; none by default.

    Returns
    -------
    optax.GradientTransformation
        Its `update` needs the parameters; its state is an `OptimisticState`.

    Raises
    ------
    ValueError
        When `update` is called without parameters, or a scale is a number that is not positive.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from solvers import optimistic_descent
    >>> optimiser = optimistic_descent(2.0, 1.0, 1.0)
    >>> x = jnp.array([1.0])
    >>> state = optimiser.init(x)
    >>> for _ in range(100):
    ...     updates, state = optimiser.update(x, state, x)
    ...     x = optax.apply_updates(x, updates)
    >>> print(bool(jnp.abs(x[0]) < 1e-3))
    True
    """
    name = "optimistic_descent"
    for label, x in (("diameter", diameter), ("bound", bound), ("smoothness", smoothness)):
        checks.number(name, label, x, positive=True)
    project = Zero() if domain is None else domain

    def init(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return OptimisticState(params, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), dtype))

    def update(updates, state, params=None):
        if params is None:
            checks.fail(name, "params", "given to update", None)

        def length(variation):
            D, G, L = (jnp.asarray(x).astype(variation.dtype) for x in (diameter, bound, smoothness))
            return D / jnp.sqrt(10 * (D * L) ** 2 + 4 * G**2 + variation)  # (3)

        def move(x, g, step):
            return jax.tree.map(
                lambda x, g: project(x - step.astype(x.dtype) * g, jnp.ones((), x.dtype)).astype(x.dtype), x, g
            )

        squares = [jnp.sum((g - h) ** 2).astype(state.variation.dtype)
                   for g, h in zip(jax.tree.leaves(updates), jax.tree.leaves(state.hint), strict=True)]  # fmt: skip
        variation = state.variation + sum(squares)
        anchor = move(state.anchor, updates, length(state.variation))  # (2)
        following = move(anchor, updates, length(variation))  # (1)
        return jax.tree.map(jnp.subtract, following, params), OptimisticState(anchor, updates, variation)

    return optax.GradientTransformation(init, update)
