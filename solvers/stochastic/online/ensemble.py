"""Learners of many step sizes, weighted: small regret against a target that moves.

After Zhao, Zhang, Zhang, Zhou (Sword++, JMLR 25, 2024), whose constants were not at hand, numbered as in the comments;
learner i answers x_i with step eta_i, h is the last gradient, g this round's, L the smoothness, D the diameter:

(1) ``eta_i = 2^i min(D / (G sqrt(4 T)), 1 / (8 L))``, at most ``1 / (2 L)``
(2) ``expected_i = losses_i + <h, x_i> + L |x_i - x_i before|^2``
(3) ``p_i proportional to exp(-rate expected_i)``, ``rate = sqrt((log N + 1) / (D^2 (1 + variation)))``
(4) ``x = sum_i p_i x_i``
(5) ``losses_i <- losses_i + <g, x_i> + L |x_i - x_i before|^2``, ``variation <- variation + |g - h|^2``
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core import checks
from ...core.precision import matmul
from ...core.prox import L2Ball, ProximalFunction
from ...core.typing import Array, Float, Scalar
from ...core.vectors import inner
from .mirror import OnlineMethod, OnlineState, OptimisticMirrorDescent


class EnsembleState(eqx.Module):
    """Base learners' states, their cumulated losses, last answers, and the variation that sets the learning rate."""

    learners: OnlineState
    losses: Float[Array, " N"]
    answers: Float[Array, "N d"]
    hint: Float[Array, " d"]
    variation: Float[Array, ""]


class FixedStep(eqx.Module):
    """The same step every round."""

    length: Array

    def __call__(self, state):
        """Return the step."""
        return self.length


class DynamicEnsemble(OnlineMethod):
    """Learners with steps that differ by factors of two, weighted by optimistic Hedge: small dynamic regret.

    A single step cannot suit a target that moves by an unknown amount. Against any comparators of path length P the
    regret is ``O(sqrt((1 + P) (1 + V)))`` with V the variation of the gradients, at one gradient a round.

    Attributes
    ----------
    steps : Float[Array, "N"]
        Of the learners.
    domain : ProximalFunction
    diameter, smoothness : Float[Array, ""]

    References
    ----------
    P. Zhao, Y.-J. Zhang, L. Zhang, Z.-H. Zhou, "Adaptivity and non-stationarity: problem-dependent dynamic regret for
    online convex optimization", JMLR 25 (2024) (Sword++); constants were not checked against it.
    """

    steps: Float[Array, " N"]
    domain: ProximalFunction
    diameter: Array
    smoothness: Array

    @classmethod
    def of(
        cls, rounds: int, *, diameter: Scalar = 2.0, bound: Scalar = 1.0, smoothness: Scalar = 1.0,
        domain: ProximalFunction | None = None,
    ) -> "DynamicEnsemble":  # fmt: skip
        """Return the ensemble for that many rounds: ``1 + log2 sqrt(1 + 4 rounds)`` learners or so."""
        name = "DynamicEnsemble"
        D, G, L = (
            checks.number(name, label, x, positive=True)
            for label, x in (("diameter", diameter), ("bound", bound), ("smoothness", smoothness))
        )
        count = 2 + math.ceil(math.log2(math.sqrt(1 + 4 * rounds)))
        least = jnp.minimum(D / (G * jnp.sqrt(jnp.asarray(4.0 * rounds, D.dtype))), 1 / (8 * L))
        steps = jnp.minimum(least * 2.0 ** jnp.arange(count, dtype=D.dtype), 1 / (2 * L))  # (1)
        return cls(steps, L2Ball(D / 2) if domain is None else domain, D, L)

    def _learners(self):
        one = jnp.ones((), self.steps.dtype)
        return jax.vmap(lambda s: OptimisticMirrorDescent("euclidean", self.domain, FixedStep(s), one, one))(self.steps)

    def init(self, x):
        """Return the state before the first round."""
        x = checks.float_array("DynamicEnsemble", "x", x, ndim=1)
        learners = jax.vmap(lambda m: m.init(x))(self._learners())
        count, zero = self.steps.shape[0], jnp.zeros((), x.dtype)
        return EnsembleState(learners, jnp.zeros(count, x.dtype), jnp.tile(x, (count, 1)), jnp.zeros_like(x), zero)

    def _answers(self, state):
        return jax.vmap(lambda m, s: m.predict(s))(self._learners(), state.learners)

    def weights(self, state) -> Float[Array, " N"]:
        """Return how much each learner counts this round."""
        answers = self._answers(state)
        moved = self.smoothness.astype(answers.dtype) * jnp.sum((answers - state.answers) ** 2, axis=1)
        expected = state.losses + matmul(answers, state.hint) + moved  # (2)
        D = self.diameter.astype(answers.dtype)
        many = jnp.log(jnp.asarray(float(self.steps.shape[0]), answers.dtype)) + 1
        rate = jnp.sqrt(many / (D**2 * (1 + state.variation)))
        return jax.nn.softmax(-rate * (expected - jnp.min(expected)))  # (3)

    def predict(self, state):
        """Return the weighted answer."""
        return matmul(self.weights(state), self._answers(state))  # (4)

    def update(self, state, gradient):
        """Return the state that has seen the gradient at the weighted answer."""
        answers = self._answers(state)
        moved = self.smoothness.astype(answers.dtype) * jnp.sum((answers - state.answers) ** 2, axis=1)
        losses = state.losses + matmul(answers, gradient) + moved  # (5)
        change = gradient - state.hint  # (5)
        learners = jax.vmap(lambda m, s: m.update(s, gradient))(self._learners(), state.learners)
        return EnsembleState(
            learners, losses - jnp.min(losses), answers, gradient, state.variation + inner(change, change)
        )
