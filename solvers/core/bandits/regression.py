"""Contextual learners that predict costs: Chebyshev regression an arm, and one Bayesian regression for all arms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer

from ..checks import fail
from ..typing import Array, Float, Int, Scalar
from .learners import Learner, Pull, count_arms


class ChebState(eqx.Module):
    """Per arm the inverse Gram matrix and coefficients; extreme costs, excess squared error, rounds."""

    inverse: Float[Array, "d m m"]
    weights: Float[Array, "d m"]
    largest: Float[Array, ""]
    smallest: Float[Array, ""]
    excess: Float[Array, ""]
    rounds: Int[Array, ""]


class ChebCB(Learner):
    """Chebyshev regression of the cost on a scalar context, arm by arm, with inverse-gap weighting.

    Parameters
    ----------
    low, high : scalar
        Range of the context; it is clipped to it. Traced.
    features : int
        Chebyshev polynomials, degree 0 upwards; 6 in the paper. Static.
    least : scalar
        The smallest cost possible, subtracted.

    Notes
    -----
    With K the largest and l the smallest cost so far, m features, y* the smallest prediction of d, and R the cumulative
    squared prediction error less the fit's:

    (1) ``y_i = sum_j w_ij T_j(context) / (K N),  N = 2 + 4 ((K - l) / K) (1 + log m)``
    (2) ``|w_i0| <= K,  |w_ij| <= 2 (K - l) / j``
    (3) ``p_i = 1 / (d + eta (y_i - y*))``, the rest on the best
    (4) ``eta = 2 t sqrt(d t / (R + 2 a^2 t)),  a = (pi + (2 / pi) log(2 m + 1)) (K - l) / (2 K N (m + 1))``

    Departures from the paper: recursive least squares
    with a ridge of 1e-3 instead of the minimum-norm fit, and coefficients clipped to the paper's box instead of
    refitted inside it. O(d m + m^2) a round.

    References
    ----------
    M. Khodak et al., Learning to Relax, ICLR 2024, algorithm 2; D. Foster, A. Rakhlin, Beyond UCB, ICML 2020.
    """

    low: Scalar
    high: Scalar
    features: int = eqx.field(static=True, default=6)
    least: float = 1.0

    def __check_init__(self):
        low, high = self.low, self.high
        known = not any(isinstance(x, Tracer) or jnp.ndim(x) for x in (low, high))
        if known and not float(low) < float(high):
            fail("ChebCB", "high", "a number above `low`", f"low = {low}, high = {high}")

    def init(self, arms):
        """Return the ridge fit to nothing."""
        d, m, dtype = count_arms("ChebCB.init", arms), self.features, jnp.result_type(float)
        inverse = jnp.broadcast_to(1e3 * jnp.eye(m, dtype=dtype), (d, m, m))
        one, zero = jnp.ones((), dtype), jnp.zeros((), dtype)
        return ChebState(inverse, jnp.zeros((d, m), dtype), one, one, zero, jnp.ones((), jnp.int32))

    def _polynomials(self, context, dtype):
        scaled = 2 * (jnp.asarray(context, dtype) - self.low) / (self.high - self.low) - 1
        return jnp.cos(jnp.arange(self.features, dtype=dtype) * jnp.arccos(jnp.clip(scaled, -1, 1)))

    def propose(self, state, context, key):
        """Return the inverse-gap weights of the predictions."""
        d, m = state.weights.shape
        dtype = state.weights.dtype
        largest, spread = state.largest, state.largest - state.smallest
        degree = jnp.maximum(jnp.arange(m, dtype=dtype), 1)
        box = jnp.where(jnp.arange(m) == 0, largest, 2 * spread / degree)
        weights = jnp.clip(state.weights, -box[None, :], box[None, :])  # (2)
        unit = largest * (2 + 4 * spread / largest * (1 + jnp.log(float(m))))
        y = jnp.sum(weights * self._polynomials(context, dtype)[None, :], 1) / unit  # (1)
        t = state.rounds.astype(dtype)
        tail = (jnp.pi + 2 / jnp.pi * jnp.log(2.0 * m + 1)) * spread / (2 * unit * (m + 1))
        # (4)
        eta = 2 * t * jnp.sqrt(d * t / (state.excess / unit**2 + 2 * tail**2 * t + jnp.finfo(dtype).tiny))
        eta = jnp.where(state.rounds > 1, eta, 0)
        best = jnp.argmin(y)
        # (3)
        p = jnp.where(jnp.arange(d, dtype=best.dtype) == best, 0, 1 / (d + eta * (y - y[best])))
        return p.at[best].set(1 - jnp.sum(p)), None

    def update(self, state, pull, cost, rate=None):
        """Refit the arm played by recursive least squares."""
        dtype = state.weights.dtype
        y = jnp.maximum(jnp.asarray(cost, dtype) - self.least, 0)
        f = self._polynomials(pull.context, dtype)
        inverse, weights = state.inverse[pull.arm], state.weights[pull.arm]
        gain = jnp.sum(inverse * f[None, :], 1)
        leverage, miss = jnp.sum(gain * f), y - jnp.sum(weights * f)
        inverse = inverse - gain[:, None] * gain[None, :] / (1 + leverage)
        weights = weights + gain * miss / (1 + leverage)
        first = state.rounds == 1
        return ChebState(
            state.inverse.at[pull.arm].set(inverse),
            state.weights.at[pull.arm].set(weights),
            jnp.maximum(jnp.where(first, 1, state.largest), y),
            jnp.where(first, y, jnp.minimum(state.smallest, y)),
            state.excess + miss**2 * leverage / (1 + leverage),
            state.rounds + 1,
        )


class RegressionState(eqx.Module):
    """The arms, mean and square root of the covariance of the weights, squared errors and rounds."""

    arms: Any
    mean: Float[Array, " m"]
    root: Float[Array, "m m"]
    squares: Float[Array, ""]
    rounds: Float[Array, ""]


class ThompsonRegression(Learner):
    """One Bayesian linear regression of log cost on features of (context, arm), shared by all arms; Thompson sampling.

    Sample-efficient where Tsallis-INF and ChebCB start from nothing in every arm: a pull teaches about all of them.

    Parameters
    ----------
    features : callable
        ``features(context, arms)``, an array (d, m). Static.
    mean : Float[Array, "m"], optional
        Prior mean of the weights; zero by default, which needs a context that is one number. A surrogate of the log
        cost among the features, with weight one, makes the first choice a good one.
    scale : scalar or Float[Array, "m"]
        Prior standard deviation in units of the noise.
    temperature : scalar
        Standard deviation of the draw over that of the posterior; 0 plays the posterior mean.
    noise : scalar
        Least standard deviation of log cost, and its value before the first rounds.
    forget : scalar
        Weight of the past a round, at most 1; below 1 follows drift.

    Notes
    -----
    (5) ``log(cost + 1/2) = features . w + noise``
    (6) ``w = mean + temperature spread root z``, z normal: the draw whose best arm is played

    The covariance is kept as a square root (Potter's update), so it stays
    positive semidefinite in float32, and sampling needs no factorisation. The probability given the key is one. O(d m +
    m^2) a round.
    """

    features: Callable[[Any, Any], Array] = eqx.field(static=True)
    mean: Any = None
    scale: Any = 3.0
    temperature: Scalar = 0.5
    noise: Scalar = 0.1
    forget: Scalar = 1.0

    def init(self, arms):
        """Return the prior."""
        count_arms("ThompsonRegression.init", arms)
        if isinstance(arms, int):
            arms = jnp.arange(arms)
        arms, dtype = jax.tree.map(jnp.asarray, arms), jnp.result_type(float)
        mean = jnp.zeros(self._count_features(arms), dtype) if self.mean is None else jnp.asarray(self.mean, dtype)
        if mean.ndim != 1:
            fail("ThompsonRegression", "mean", "an array (m,), one prior weight a feature", f"shape {mean.shape}")
        root = jnp.diag(jnp.broadcast_to(jnp.asarray(self.scale, dtype), mean.shape))
        return RegressionState(arms, mean, root, jnp.zeros((), dtype), jnp.zeros((), dtype))

    def _count_features(self, arms) -> int:
        """Return how many features there are, from a context of one number: the prior mean was left out."""
        try:
            return jax.eval_shape(self.features, jax.ShapeDtypeStruct((), jnp.result_type(float)), arms).shape[1]
        except Exception as cause:
            expected = "given, one prior weight a feature, where the context is more than a number"
            raise ValueError(f"ThompsonRegression: `mean` must be {expected}, got None") from cause

    def propose(self, state, context, key):
        """Return the arm that is best for a draw of the weights."""
        table = self.features(context, state.arms).astype(state.mean.dtype)
        spread = jnp.sqrt(jnp.maximum(self.noise**2, state.squares / jnp.maximum(state.rounds, 1)))
        z = jax.random.normal(key, state.mean.shape, state.mean.dtype)
        # (6)
        weights = state.mean + self.temperature * spread * jnp.sum(state.root * z[None, :], 1)
        best = jnp.argmin(jnp.sum(table * weights[None, :], 1))
        return (jnp.arange(table.shape[0], dtype=best.dtype) == best).astype(state.mean.dtype), table

    def select(self, state, context, key):
        """Return the proposal as it is: it leaves nothing to draw."""
        probabilities, detail = self.propose(state, context, key)
        arm = jnp.argmax(probabilities).astype(jnp.int32)
        return Pull(arm, jnp.ones((), probabilities.dtype), probabilities, context, detail)

    def update(self, state, pull, cost, rate=None):
        """Condition on the cost of one pull."""
        dtype = state.mean.dtype
        f, y = pull.detail[pull.arm], jnp.log(jnp.asarray(cost, dtype) + 0.5)  # (5)
        miss = y - jnp.sum(f * state.mean)
        root = state.root / jnp.sqrt(jnp.asarray(self.forget, dtype))
        v = jnp.sum(root * f[:, None], 0)
        gain, beta = jnp.sum(root * v[None, :], 1), 1 / (1 + jnp.sum(v * v))
        return RegressionState(
            state.arms,
            state.mean + beta * gain * miss,
            root - beta / (1 + jnp.sqrt(beta)) * gain[:, None] * v[None, :],
            self.forget * state.squares + miss**2 * beta,
            self.forget * state.rounds + 1,
        )
