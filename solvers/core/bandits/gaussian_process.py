"""A bandit that believes costs to be a Gaussian process over arms and contexts."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular

from ..checks import choice, fail
from ..precision import matmul
from ..typing import Array, Float, Int, Scalar
from .learners import Learner

RATES = (0.5, 1.0, 2.0, 4.0, 8.0)
ACQUISITIONS = ("ucb", "thompson", "greedy")


class GPState(eqx.Module):
    """Features of all arms, those that were played with their contexts and costs, in the order of play, and a count."""

    arms: Float[Array, "d f"]
    played: Float[Array, "capacity f"]
    contexts: Float[Array, "capacity c"]
    costs: Float[Array, " capacity"]
    rounds: Int[Array, ""]


class GPBandit(Learner):
    """Gaussian-process bandit: bounds on the cost, or draws of the whole cost function, over many arms with features.

    For arms that are similar in a way their features tell, choices among interface terms say, where playing all even
    once is too dear. Costs of any sign; smaller is better.

    Parameters
    ----------
    acquisition : {"ucb", "thompson", "greedy"}
        Play the smallest lower bound ``mean - width std``; the best arm of one joint draw of all costs; or the smallest
        mean, to compare with. Static.
    contexts : int
        Numbers in a context; 0 for none. Static.
    capacity : int
        Rounds that are remembered: the first ones, then the latest replaces the oldest. Static.
    width : scalar
    noise : scalar
        Standard deviation of a cost, in units of the costs' spread.
    context_length : scalar
        In ``exp(-|s - s'|^2 / length)``.

    Notes
    -----
    With K the kernel among what was played and k between that and an arm:

    (1) ``exp(-|s - s'|^2 / length) exp(-c mean |a - a'|)`` over contexts s and features a of arms
    (2) ``mean = k'(K + noise^2 I)^-1 y,  variance = 1 - k'(K + noise^2 I)^-1 k``
    (3) play the smallest ``mean - width std``
    (4) play the best of ``mean + root z``, z normal: one draw of all costs together

    c is the most probable of five powers of two by the evidence in each round. Costs are centred and scaled by what was
    seen. A round costs five Cholesky factors of the memory's size, and a draw one more of the number of arms.

    For two stages, such as Adam and then L-BFGS, the authors use two: the second has how the first stage ended as one
    number more in its context, and the first is told its own cost and 0.9 of what the second's came to.

    The authors' Thompson sampling takes the largest of 20 independent draws of each arm; here it is one joint draw.

    References
    ----------
    S. Li et al., METALIC, ICML 2023, section 3; N. Srinivas et al., Gaussian process optimization in the bandit
    setting, ICML 2010.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import GPBandit
    >>> learner = GPBandit(capacity=16)
    >>> state = learner.init(jnp.eye(4))
    >>> pull = learner.select(state, None, jax.random.key(3))
    >>> state = learner.update(state, pull, 2.5)
    """

    acquisition: str = eqx.field(static=True, default="ucb")
    contexts: int = eqx.field(static=True, default=0)
    capacity: int = eqx.field(static=True, default=256)
    width: Any = 1.0
    noise: Any = 0.1
    context_length: Any = 1.0

    def __post_init__(self):
        choice("GPBandit", "acquisition", self.acquisition, ACQUISITIONS)
        if not isinstance(self.capacity, int) or self.capacity < 1 or self.contexts < 0:
            fail("GPBandit", "capacity", "a positive integer", self.capacity)

    def init(self, arms: Any) -> GPState:
        """Return an empty memory; `arms` is an array (d, features), or a number of unrelated arms."""
        if isinstance(arms, int):
            arms = arms * jnp.eye(arms)
        arms = jnp.asarray(arms)
        if arms.ndim != 2 or not jnp.issubdtype(arms.dtype, jnp.floating) or 0 in arms.shape:
            fail("GPBandit.init", "arms", "floats (d, features), or a number of arms", (arms.shape, arms.dtype))
        empty = lambda *shape: jnp.zeros((self.capacity, *shape), arms.dtype)  # noqa: E731
        return GPState(arms, empty(arms.shape[1]), empty(self.contexts), empty(), jnp.zeros((), jnp.int32))

    def belief(self, state: GPState, context: Any):
        """Return mean and covariance factor of all arms' costs: means (d,), ``k`` (d, d) less ``b'b`` with b (n, d)."""
        dtype, n = state.costs.dtype, self.capacity
        seen = jnp.arange(n, dtype=jnp.int32) < state.rounds
        count = jnp.maximum(jnp.sum(seen), 1).astype(dtype)
        centre = jnp.sum(jnp.where(seen, state.costs, 0)) / count
        spread = jnp.sqrt(jnp.sum(jnp.where(seen, (state.costs - centre) ** 2, 0)) / count)
        spread = jnp.where(spread > 0, spread, 1)
        y = jnp.where(seen, (state.costs - centre) / spread, 0)
        here = jnp.zeros(0, dtype) if context is None else jnp.atleast_1d(jnp.asarray(context, dtype))
        if here.shape != (self.contexts,):
            fail("GPBandit", "context", f"{self.contexts} numbers", here.shape)
        length = jnp.asarray(self.context_length, dtype)
        near = jnp.exp(-jnp.sum((state.contexts - here[None]) ** 2, 1) / length)
        between = jnp.exp(-jnp.sum((state.contexts[:, None] - state.contexts[None]) ** 2, -1) / length)
        among, across, all_arms = (_gaps(a, b) for a, b in (
            (state.played, state.played), (state.played, state.arms), (state.arms, state.arms)))  # fmt: skip
        both = seen[:, None] & seen[None]
        noise = jnp.where(seen, jnp.asarray(self.noise, dtype) ** 2, 1)

        def factor(rate):
            gram = jnp.where(both, between * jnp.exp(-rate * among), 0)  # (1)
            return jnp.linalg.cholesky(gram + jnp.diag(noise + jnp.where(seen, 0, 1)))

        def evidence(rate):
            root = factor(rate)
            inner = solve_triangular(root, y, lower=True)
            inside = jnp.where(seen, jnp.log(jnp.diagonal(root)), 0)
            return -jnp.sum(inner**2) / 2 - jnp.sum(inside)

        rates = jnp.asarray(RATES, dtype)
        rate = rates[jnp.argmax(jax.lax.map(evidence, rates))]
        root = factor(rate)
        cross = jnp.where(seen[:, None], near[:, None] * jnp.exp(-rate * across), 0)
        mean = matmul(cross.T, cho_solve((root, True), y))  # (2)
        explained = solve_triangular(root, cross, lower=True)
        return centre + spread * mean, spread, jnp.exp(-rate * all_arms), explained

    def propose(self, state: GPState, context: Any, key: Array):
        """Return all probability on one arm; ties go to a random one."""
        first, second = jax.random.split(key)
        mean, spread, prior, explained = self.belief(state, context)
        if self.acquisition == "thompson":
            d = mean.size
            covariance = prior - matmul(explained.T, explained)
            jitter = math.sqrt(float(jnp.finfo(mean.dtype).eps)) * jnp.eye(d, dtype=mean.dtype)
            root = jnp.linalg.cholesky(covariance + jitter)
            # (4)
            score = mean + spread * matmul(root, jax.random.normal(first, (d,), mean.dtype))
        else:
            std = jnp.sqrt(jnp.maximum(1 - jnp.sum(explained**2, 0), 0))
            width = jnp.asarray(self.width, mean.dtype) if self.acquisition == "ucb" else 0.0
            score = mean - width * spread * std  # (3)
        least = score <= jnp.min(score)
        chosen = jnp.argmax(jnp.where(least, jax.random.uniform(second, score.shape, score.dtype), -1))
        return (jnp.arange(mean.size) == chosen).astype(mean.dtype), None

    def update(self, state: GPState, pull, cost: Scalar, rate=None) -> GPState:
        """Remember what was played and what it cost; a cost that is no number is left out."""
        k = state.rounds % self.capacity
        here = jnp.zeros(0, state.costs.dtype) if pull.context is None else jnp.atleast_1d(
            jnp.asarray(pull.context, state.costs.dtype))  # fmt: skip
        cost = jnp.asarray(cost, state.costs.dtype)
        new = GPState(
            state.arms,
            state.played.at[k].set(state.arms[pull.arm]),
            state.contexts.at[k].set(here),
            state.costs.at[k].set(cost),
            state.rounds + 1,
        )
        return jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(cost), a, b), new, state)


def _gaps(a, b):
    """Return mean absolute differences of features, (n, m), a feature at a time."""
    total = jnp.zeros((a.shape[0], b.shape[0]), a.dtype)
    for k in range(a.shape[1]):
        total = total + jnp.abs(a[:, k, None] - b[None, :, k])
    return total / a.shape[1]
