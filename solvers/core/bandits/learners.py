"""Bandits as pure functions: choose an arm, see its cost, choose better; inside ``lax.scan`` and under ``vmap``."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..checks import choice, fail
from ..typing import Array, Float, Int, Scalar


class Pull(eqx.Module):
    """A choice made by a learner, all that its update needs beside the cost.

    Attributes
    ----------
    arm : Int[Array, ""]
        What to play.
    probability : Float[Array, ""]
        With what probability it was played, given the key's part that made the proposal.
    probabilities : Float[Array, "d"]
        The same for every arm; for off-policy estimates.
    context : PyTree
        What was known.
    detail : PyTree
        The learner's own.
    """

    arm: Int[Array, ""]
    probability: Float[Array, ""]
    probabilities: Float[Array, " d"]
    context: Any
    detail: Any = None


class Learner(eqx.Module):
    """A rule that learns from costs which of d arms to play. Its state is a pytree of fixed shape.

    ``state = learner.init(arms)``; then each round ``pull = learner.select(state, context, key)`` and
    ``state = learner.update(state, pull, cost)``. `arms` is a number of arms or a pytree with leading axis d. A round
    without information is skipped by not updating. Smaller costs are better; all are nonnegative.
    """

    @abstractmethod
    def init(self, arms: Any) -> Any:
        """Return the state before the first round."""

    @abstractmethod
    def propose(self, state: Any, context: Any, key: Array) -> tuple[Float[Array, " d"], Any]:
        """Return the probabilities with which to play, and details for the update."""

    @abstractmethod
    def update(self, state: Any, pull: Pull, cost: Scalar, rate: Scalar | None = None) -> Any:
        """Return the state that has seen the cost of a pull; `rate` is the factor per unit of cost, where known."""

    def select(self, state: Any, context: Any, key: Array) -> Pull:
        """Return a pull drawn from the proposed probabilities."""
        ours, theirs = jax.random.split(key)
        probabilities, detail = self.propose(state, context, theirs)
        cumulative = jnp.cumsum(probabilities)
        draw = jax.random.uniform(ours, dtype=cumulative.dtype) * cumulative[-1]
        arm = jnp.argmax(cumulative > draw).astype(jnp.int32)
        return Pull(arm, probabilities[arm], probabilities, context, detail)


class TsallisState(eqx.Module):
    """Estimated total losses up to a common constant, corrections, mean cost, rounds."""

    losses: Float[Array, " d"]
    corrections: Float[Array, " d"]
    mean: Float[Array, ""]
    rounds: Int[Array, ""]


class TsallisINF(Learner):
    """Tsallis-INF with exponent 1/2: optimal against adversaries and in stochastic surroundings at once.

    Parameters
    ----------
    estimator : str
        ``"importance"``, as in Learning to Relax, step size ``2 / sqrt(t)``; or ``"variance"``, the reduced-variance
        estimator, step size ``4 / sqrt(t)``. Static.
    least : scalar
        The smallest cost possible, subtracted from costs; costs are then measured in units of their running mean.

    Notes
    -----
    With L the estimated losses in units of their running mean, p the probabilities and t the round:

    (1) ``eta = 2 / sqrt(t)``, or ``4 / sqrt(t)``
    (2) ``p_i = 4 / (eta (L_i + u))^2`` with u such that they sum to one
    (3) ``L_i <- L_i + (cost - least) / p_i`` for the arm played
    (4) ``L_i <- L_i + 1/2 - (1 / (2 p_i) if played)`` besides, for arms with ``t p_i >= 16``: the reduced variance

    It departs from the papers in how u is found, by Newton's method on a concave function. The context is ignored.
    Expected regret against the best arm is at most ``4 K sqrt(d T)`` for costs in [0, K]. O(d) a round.

    References
    ----------
    J. Zimmert, Y. Seldin, Tsallis-INF, JMLR 22 (2021); M. Khodak et al., Learning to Relax, ICLR 2024, algorithm 1.

    Examples
    --------
    >>> import jax
    >>> from solvers import TsallisINF
    >>> learner = TsallisINF()
    >>> state = learner.init(5)
    >>> pull = learner.select(state, None, jax.random.key(3))
    >>> state = learner.update(state, pull, 12.0)
    """

    estimator: str = eqx.field(static=True, default="variance")
    least: float = 1.0

    def __post_init__(self):
        choice("TsallisINF", "estimator", self.estimator, ("importance", "variance"))

    def init(self, arms):
        """Return zero losses."""
        d, dtype = count_arms("TsallisINF.init", arms), jnp.result_type(float)
        zero = jnp.zeros(d, dtype)
        return TsallisState(zero, zero, jnp.ones((), dtype), jnp.ones((), jnp.int32))

    def propose(self, state, context, key):
        """Return the regularised leader."""
        gain = 4.0 if self.estimator == "variance" else 2.0
        eta = gain / jnp.sqrt(state.rounds.astype(state.mean.dtype))  # (1)
        return tsallis_probabilities(state.losses / state.mean + state.corrections, eta), None

    def update(self, state, pull, cost, rate=None):
        """Add the importance-weighted loss of the arm played."""
        cost = jnp.maximum(jnp.asarray(cost, state.mean.dtype) - self.least, 0)
        played = jnp.arange(state.losses.size, dtype=jnp.int32) == pull.arm
        p = pull.probability.astype(cost.dtype)
        return self.learn(state, jnp.where(played, cost / p, 0), played, pull.probabilities, cost)  # (3)

    def learn(self, state, estimates, played, probabilities, loss):
        """Return the state after a round with the given loss estimates of all arms."""
        t = state.rounds.astype(loss.dtype)
        mean = jnp.where(t > 1, state.mean + (loss - state.mean) / t, loss)
        losses, corrections = state.losses + estimates, state.corrections
        if self.estimator == "variance":
            p = probabilities.astype(loss.dtype)
            frequent = (t * p >= 16) & (t >= 16)
            # (4)
            corrections += jnp.where(frequent, 0.5 - jnp.where(played, 0.5 / jnp.where(p > 0, p, 1), 0), 0)
        # Only differences matter: keeping the smallest at zero keeps float32 exact enough for any number of rounds.
        losses -= jnp.min(losses)
        corrections -= jnp.min(corrections)
        tiny = jnp.finfo(loss.dtype).tiny
        return TsallisState(losses, corrections, jnp.maximum(mean, tiny), state.rounds + 1)


def tsallis_probabilities(losses: Float[Array, " d"], eta: Scalar) -> Float[Array, " d"]:
    """Return ``p_i = 4 / (eta (losses_i + u))^2`` with u such that they sum to one.

    Newton's method on ``H(u) = (sum_i p_i(u))^(-1/2) = 1``. H is increasing and concave (a power mean of exponent -2),
    so from ``u = 2 / eta - min(losses)``, where the best arm alone has p = 1 and hence H <= 1, the steps increase
    towards the root and never cross a pole. For equal losses the first step is exact; eight reach rounding.
    """
    shifted = losses - jnp.min(losses)
    start = jnp.asarray(2 / eta, losses.dtype)

    def newton(_, u):
        s = 1 / (shifted + u)
        square, cube = jnp.sum(s * s), jnp.sum(s * s * s)
        return u + (start * square * jnp.sqrt(square) - square) / cube

    u = lax.fori_loop(0, 8, newton, start, unroll=True)
    # (2)
    p = (start / (shifted + u)) ** 2
    return p / jnp.sum(p)


class ContextBins(Learner):
    """One learner for each of several bins of a scalar context.

    Parameters
    ----------
    learner : Learner
        What runs in each bin.
    low, high : scalar
        Range of the context; values outside go to the end bins. Traced.
    bins : int
        Static.
    """

    learner: Learner
    low: Scalar
    high: Scalar
    bins: int = eqx.field(static=True)

    def init(self, arms):
        """Return the states of all bins."""
        return jax.tree.map(lambda x: jnp.stack([x] * self.bins), self.learner.init(arms))

    def _bin(self, context):
        place = (context - self.low) / (self.high - self.low) * self.bins
        return jnp.clip(jnp.floor(place).astype(jnp.int32), 0, self.bins - 1)

    def propose(self, state, context, key):
        """Ask the bin's learner."""
        k = self._bin(context)
        return self.learner.propose(jax.tree.map(lambda x: x[k], state), context, key)

    def update(self, state, pull, cost, rate=None):
        """Tell the bin's learner."""
        k = self._bin(pull.context)
        mine = self.learner.update(jax.tree.map(lambda x: x[k], state), pull, cost, rate)
        return jax.tree.map(lambda x, new: x.at[k].set(new), state, mine)


class ExpertMix(Learner):
    """Follow several learners in the proportions that Tsallis-INF finds best: as safe as the safest of them.

    Parameters
    ----------
    experts : tuple of Learner
        They propose probabilities over the same arms; all learn from every round.
    master : TsallisINF
        Weighs them by the importance-weighted costs of following each.

    Notes
    -----
    Each expert is charged ``pi_e(arm) cost / p(arm)`` (5) where p mixes all proposals, an unbiased estimate of the cost
    of following it, so the master's guarantee against an adversary holds against each expert as it was played. Put
    `TsallisINF` among the experts to keep a guarantee against the best fixed arm when a model is wrong.
    """

    experts: tuple[Learner, ...]
    master: TsallisINF = TsallisINF("importance")

    def init(self, arms):
        """Return the states of the experts and the master's."""
        return tuple(e.init(arms) for e in self.experts), self.master.init(len(self.experts))

    def propose(self, state, context, key):
        """Return the mixture of proposals."""
        states, master = state
        weights, _ = self.master.propose(master, context, key)
        keys = jax.random.split(key, len(self.experts))
        asked = [e.propose(s, context, k) for e, s, k in zip(self.experts, states, keys, strict=True)]
        proposals = jnp.stack([p.astype(weights.dtype) for p, _ in asked])
        mixture = jnp.sum(weights[:, None] * proposals, axis=0)
        return mixture, (proposals, weights, tuple(d for _, d in asked))

    def update(self, state, pull, cost, rate=None):
        """Let every expert learn, and charge it for its part in the choice."""
        states, master = state
        proposals, weights, details = pull.detail
        own = [eqx.tree_at(lambda p: p.detail, pull, d, is_leaf=lambda x: x is None) for d in details]
        states = tuple(e.update(s, p, cost, rate) for e, s, p in zip(self.experts, states, own, strict=True))
        loss = jnp.maximum(jnp.asarray(cost, master.mean.dtype) - self.master.least, 0)
        # (5)
        share = proposals[:, pull.arm] / pull.probability
        return states, self.master.learn(master, share * loss, share > 0, weights, loss)


class Replay(eqx.Module):
    """A learner's run over a table: arms (T,), their costs (T,) and probabilities (T,), and the final state."""

    arms: Int[Array, " T"]
    costs: Float[Array, " T"]
    propensities: Float[Array, " T"]
    state: Any


def replay(
    learner: Learner, costs: Float[Array, "T d"], *, key: Array, contexts: Any = None, arms: Any = None
) -> Replay:
    """Run `learner` over a table of the costs of every arm in every round; ``vmap`` over keys for many trials.

    Parameters
    ----------
    learner : Learner
    costs : Float[Array, "T d"]
        Traced.
    key : key
        Of ``jax.random``.
    contexts : PyTree, optional
        Leading axis T.
    arms : PyTree, optional
        Leading axis d; by default their number.

    Returns
    -------
    Replay
    """
    start = learner.init(costs.shape[1] if arms is None else arms)

    def body(state, inputs):
        row, context, k = inputs
        pull = learner.select(state, context, k)
        return learner.update(state, pull, row[pull.arm]), (pull.arm, row[pull.arm], pull.probability)

    keys = jax.random.split(key, costs.shape[0])
    state, (played, paid, propensities) = lax.scan(body, start, (costs, contexts, keys))
    return Replay(played, paid, propensities, state)


def count_arms(name: str, arms: Any) -> int:
    """Return the number of arms that `arms` stands for."""
    sizes = {arms} if isinstance(arms, int) else {jnp.shape(x)[0] for x in jax.tree.leaves(arms) if jnp.ndim(x)}
    if len(sizes) != 1 or not min(sizes) > 0:
        fail(name, "arms", "a positive number of arms or a pytree of arrays with one leading axis", arms)
    return sizes.pop()
