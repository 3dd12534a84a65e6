"""What a diffusion model knows of the clean signal: mean and covariance given the noisy one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from ...core import checks
from ...core.operators import LinearOperator, Scaled, jacobian
from ...core.typing import Array, Scalar
from .schedules import NoiseSchedule

KINDS = ("score", "denoiser", "noise")


class Moments(NamedTuple):
    """Mean and covariance of x_0 given x_t; the covariance is None at first order."""

    mean: Array
    covariance: LinearOperator | None


class Noised(NamedTuple):
    """A time with its two factors."""

    t: Array
    alpha: Array
    sigma: Array


def denoise(model: Callable, kind: str, x: Array, at: Noised) -> Array:
    """Return ``E[x_0 | x_t = x]`` from a score, a denoiser, or a prediction of the noise."""
    out = model(x, at.t)
    if kind == "denoiser":
        return out
    # (2), (1)
    return (x + at.sigma**2 * out) / at.alpha if kind == "score" else (x - at.sigma * out) / at.alpha


def predict(model: Callable, kind: str, x: Array, at: Noised) -> tuple[Array, Array]:
    """Return the denoised signal and the noise, ``x = alpha x_0 + sigma noise``, by one call of the model."""
    out = model(x, at.t)
    if kind == "noise":
        return (x - at.sigma * out) / at.alpha, out  # (1)
    if kind == "score":
        return (x + at.sigma**2 * out) / at.alpha, -at.sigma * out  # (2)
    return out, (x - at.alpha * out) / at.sigma  # (1)


def tweedie(
    model: Callable[[Array, Array], Array],
    schedule: NoiseSchedule,
    x: Array,
    t: Scalar,
    *,
    kind: str = "score",
    order: int = 1,
) -> Moments:
    """Return the mean, and at order 2 the covariance, of the clean signal given the noisy one.

    With the score ``s = grad log p_t``, exact for an exact score:

    (1) ``x_t = alpha x_0 + sigma noise``
    (2) ``E[x_0 | x_t] = (x_t + sigma^2 s) / alpha``
    (3) ``Cov[x_0 | x_t] = (sigma / alpha)^2 (I + sigma^2 grad s) = sigma^2 / alpha`` times the Jacobian of (2)

    Parameters
    ----------
    model : callable
        ``model(x, t)``.
    schedule : NoiseSchedule
    x : Float[Array, "..."]
        The noisy signal.
    t : scalar
        Its time, 0 < t <= 1.
    kind : str
        What the model returns: "score", "denoiser" (the mean itself) or "noise" (its prediction). Static.
    order : int
        1 or 2; static.

    Returns
    -------
    Moments
        ``mean`` and ``covariance``, an operator: a product costs one forward derivative of the model, linearised once,
        and one with its transpose one reverse derivative. For a learned model it is not exactly symmetric;
        ``0.5 * (C + C.T)`` is.

    References
    ----------
    Efron, "Tweedie's formula and selection bias", J. Amer. Statist. Assoc. 106 (2011), (1.4) and (2.8).
    """
    name = "tweedie"
    checks.choice(name, "kind", kind, KINDS)
    checks.choice(name, "order", order, (1, 2))
    x = checks.float_array(name, "x", x)
    at = look_up(schedule, t, x.dtype)
    mean = denoise(model, kind, x, at)
    if order == 1:
        return Moments(mean, None)
    return Moments(mean, covariance(lambda x: denoise(model, kind, x, at), x, at))


def covariance(function: Callable[[Array], Array], x: Array, at: Noised) -> LinearOperator:
    """Return ``sigma^2 / alpha`` times the Jacobian of the denoised signal: the covariance, by Tweedie's formula."""
    return Scaled(jacobian(function, x), at.sigma**2 / at.alpha)  # (3)


def look_up(schedule: NoiseSchedule, t: Any, dtype) -> Noised:
    """Return the time and its factors in that dtype."""
    t = jnp.asarray(t, dtype)
    return Noised(t, jnp.asarray(schedule.alpha(t), dtype), jnp.asarray(schedule.sigma(t), dtype))
