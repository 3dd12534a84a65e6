"""Young's theory of relaxation, and what a learner can make of it.

With beta the radius of Jacobi's method and a consistently ordered A (Young 1971; Hageman and Young 1981):

(1) ``omega* = 2 / (1 + sqrt(1 - beta^2))``
(2) ``rate = ((omega beta + sqrt(omega^2 beta^2 - 4 (omega - 1))) / 2)^2`` below omega*, ``omega - 1`` above
(3) ``beta = (rate + omega - 1) / (omega sqrt(rate))``, the inverse below omega*
(4) ``log cost ~ log(-1 / log rate)``
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ...core.bandits.learners import ExpertMix, Learner, TsallisINF, count_arms
from ...core.bandits.regression import ThompsonRegression
from ...core.typing import Array, Scalar

BASE = 9
"""Features of `relaxation_features` before the surrogates."""

RATIOS = (1.0, 0.99, 0.96)
"""Jacobi radius over its bound: one surrogate each. On an n x n grid it is ``cos(pi / (n + 1))``: n large, 21, 10."""


def young_omega(beta: Scalar) -> Array:
    """Return the omega at which SOR is fastest, ``2 / (1 + sqrt(1 - beta^2))``.

    Parameters
    ----------
    beta : scalar
        Spectral radius of Jacobi's method, ``rho(I - D^-1 A) < 1``, for consistently ordered A (red-black included).
        For the five-point Laplacian on an n x n grid plus c, ``4 cos(pi / (n + 1)) / (4 + c)``.

    References
    ----------
    D. M. Young, Iterative Solution of Large Linear Systems, 1971, section 6.2.

    Examples
    --------
    >>> from solvers import young_omega
    >>> print(round(float(young_omega(0.8)), 4))
    1.25
    """
    beta = jnp.asarray(beta, jnp.result_type(beta, float) if isinstance(beta, float | int) else None)
    return 2 / (1 + jnp.sqrt(1 - beta**2))  # (1)


def young_rate(omega: Scalar, beta: Scalar) -> Array:
    """Return the spectral radius of SOR's iteration, the factor that a sweep takes off the error in the end.

    ``((omega beta + sqrt(omega^2 beta^2 - 4 (omega - 1))) / 2)^2`` below `young_omega`, ``omega - 1`` above.

    Parameters
    ----------
    omega, beta : scalar or array
        As for `young_omega`; they broadcast.

    Examples
    --------
    >>> from solvers import young_rate
    >>> print(round(float(young_rate(1.0, 0.8)), 4), round(float(young_rate(1.25, 0.8)), 4))
    0.64 0.25
    """
    omega, beta = jnp.asarray(omega), jnp.asarray(beta)
    inside = (omega * beta) ** 2 - 4 * (omega - 1)
    slow = ((omega * beta + jnp.sqrt(jnp.maximum(inside, 0))) / 2) ** 2  # (2)
    return jnp.where(inside > 0, slow, jnp.abs(omega - 1))


def jacobi_radius(rate: Scalar, omega: Scalar) -> Array:
    """Return beta from an observed rate below the best omega: Young's ``(rate + omega - 1) / (omega sqrt(rate))``."""
    rate = jnp.asarray(rate)
    # (3)
    return jnp.clip((rate + omega - 1) / (omega * jnp.sqrt(jnp.maximum(rate, 1e-30))), 0, 1 - 1e-7)


def relaxation_features(context: Array, arms: Any) -> Array:
    """Return features (d, 13) of log cost for `ThompsonRegression`: Chebyshev products, and Young's surrogates.

    The surrogate of log cost is ``log(-1 / log rate)`` with Young's rate at the Jacobi radius. The context is a bound
    on that radius, so there is one surrogate for each of several ratios of the radius to the bound: the regression
    finds which of them explains the counts. That matters where the bound is above one, and near the best omega always.

    Parameters
    ----------
    context : scalar
        Bound on the Jacobi radius beta: the largest sum of absolute off-diagonal entries over the diagonal, or beta
        itself. It does not change with the scale of A.
    arms : object with an array ``omega`` (d,), or that array
    """
    omega = getattr(arms, "omega", arms)
    bound = jnp.asarray(context, omega.dtype)
    beta = jnp.clip(bound, 1e-6, 1 - 1e-6)
    a = jnp.clip(jnp.log(beta / (1 - beta)) / 6, -1, 1)
    w = jnp.clip(2 * (omega - 1) / 0.95 - 1, -1, 1)
    chebyshev = [jnp.ones_like(w), w, 2 * w**2 - 1]
    products = [x * y for x in (1.0, a, 2 * a**2 - 1) for y in chebyshev]
    radius = jnp.clip(jnp.asarray(RATIOS, omega.dtype) * bound, 1e-6, 1 - 1e-6)
    rate = jnp.clip(young_rate(omega[:, None], radius[None, :]), 1e-6, 1 - 1e-6)
    surrogates = jnp.log(-1 / jnp.log(rate))  # (4)
    return jnp.concatenate([jnp.stack(products, axis=1), surrogates, surrogates[:, :1] ** 2 / 10], axis=1)


def arm_features(context: Array, arms: Any) -> Array:
    """Return features (d, 3 d) that fit every arm on its own, quadratic in the log odds of the context.

    For arms of different methods, which no surrogate compares.
    """
    d = count_arms("arm_features", arms)
    beta = jnp.clip(jnp.asarray(context), 1e-6, 1 - 1e-6)
    a = jnp.clip(jnp.log(beta / (1 - beta)) / 6, -1, 1)
    powers = jnp.stack([jnp.ones_like(a), a, a**2])
    return (jnp.eye(d, dtype=a.dtype)[:, :, None] * powers[None, None, :]).reshape(d, 3 * d)


def young_prior(**options: Any) -> ThompsonRegression:
    """Return Thompson sampling that expects before any data what Young's theory expects.

    Parameters
    ----------
    **options
        Other settings of `ThompsonRegression`.
    """
    end = BASE + len(RATIOS)
    mean = jnp.zeros(end + 1).at[0].set(2.5).at[BASE:end].set(1 / len(RATIOS))
    scale = jnp.full(end + 1, 1.0).at[0].set(10.0).at[BASE:end].set(3.0)
    return ThompsonRegression(relaxation_features, mean, scale, **options)


def safe_learner() -> ExpertMix:
    """Return `young_prior` and Tsallis-INF under a master: fast where theory holds, safe where it does not."""
    return ExpertMix((young_prior(), TsallisINF()))


class HagemanYoung(Learner):
    """Estimate the Jacobi radius within each solve from the rate observed, and take Young's omega for the next system.

    Parameters
    ----------
    start : scalar
        First guess of the ratio of the Jacobi radius to its bound, the context; from below.
    speed : scalar
        How far an observation moves the estimate, in (0, 1].

    Notes
    -----
    A rate above ``omega - 1`` shows that omega is below the best one, and Young's relation then gives beta; otherwise
    the estimate creeps down. Needs the `rate` of each solve, which `solve_sequence` hands over, and arms with `omega`.

    References
    ----------
    L. A. Hageman, D. M. Young, Applied Iterative Methods, Academic Press 1981, section 9.5.
    """

    start: Scalar = 0.9
    speed: Scalar = 0.5

    def init(self, arms):
        """Return the arms' omega and the first guess."""
        omega = jnp.asarray(getattr(arms, "omega", arms))
        return omega, jnp.asarray(self.start, omega.dtype)

    def propose(self, state, context, key):
        """Return the arm nearest to Young's omega, in the log of its distance from two."""
        omega, ratio = state
        target = young_omega(jnp.clip(ratio * jnp.asarray(context, omega.dtype), 0, 1 - 1e-7))
        best = jnp.argmin(jnp.abs(jnp.log((2 - omega) / (2 - target))))
        return (jnp.arange(omega.size, dtype=best.dtype) == best).astype(omega.dtype), None

    def update(self, state, pull, cost, rate=None):
        """Move the ratio towards the one that explains the rate."""
        omega, ratio = state
        if rate is None:
            return state
        w, rate = omega[pull.arm], jnp.asarray(rate, omega.dtype)
        seen = jacobi_radius(rate, w) / jnp.maximum(jnp.asarray(pull.context, omega.dtype), 1e-6)
        below = rate > w - 1 + 0.01 * (2 - w)
        moved = jnp.where(below, ratio + self.speed * (seen - ratio), ratio - 0.02 * (1 - ratio))
        return omega, jnp.clip(moved, 0.1, 1)
