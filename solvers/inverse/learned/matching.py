"""Training a proximal map: the matching loss, its schedule, and the loop.

Proximal matching, by Fang, Buchanan, Sulam (ICLR 2024), numbered as in the comments:

(1) ``loss = 1 - exp(-|f(y) - x|^2 / gamma^2)``, up to the constant that makes the Gaussian a density
(2) ``y = x + noise e``, x a clean example and e standard normal
(3) ``min_theta mean over examples of loss(f_theta(y), x)``, for one falling gamma after another

Given y, the clean example is any x_i of the batch with a chance that the noise knows, so that at points y of one's own

(4) ``loss at y = sum_i w_i loss(f_theta(y), x_i)``, ``w_i`` proportional to ``exp(-|y - x_i|^2 / (2 noise^2))``

has the same minimiser at every y, up to the sampling of the x_i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax

from ...core import checks
from ...core.typing import Array, Float, Progress, Scalar
from .proximal_network import LearnedProx

Loss = Callable[[Array, Array], Array]


def proximal_matching_loss(gamma: Scalar) -> Loss:
    """Return the loss ``1 - exp(-|estimate - truth|^2 / gamma^2)`` of one example.

    As gamma falls its minimiser goes from the posterior mean to the most probable clean signal: the proximal map.

    Parameters
    ----------
    gamma : scalar
        In units of the distance; grows like the root of the number of entries for images.

    Returns
    -------
    callable
        ``loss(estimate, truth)``, a scalar.

    Notes
    -----
    The minimiser is the mode of the posterior smoothed by a Gaussian of deviation ``gamma / sqrt(2)``, which at a kink
    is off the proximal map by about gamma: for a Laplace prior and unit noise by 0.11 at gamma = 0.1, 0.043 at 0.03 and
    0.031 at 0.02, however well a network is trained. Smaller gammas ask for larger batches, as only examples within
    gamma count.

    References
    ----------
    Fang, Buchanan, Sulam (ICLR 2024).
    """

    def loss(estimate, truth):
        return -jnp.expm1(-jnp.sum((estimate - truth) ** 2) / gamma**2)  # (1)

    return loss


def absolute_loss(estimate: Array, truth: Array) -> Array:
    """Return the sum of absolute errors; its minimiser is the posterior median. For the first stage."""
    return jnp.sum(jnp.abs(estimate - truth))


def squared_loss(estimate: Array, truth: Array) -> Array:
    """Return the sum of squared errors; its minimiser is the posterior mean."""
    return jnp.sum((estimate - truth) ** 2)


class Stage(NamedTuple):
    """A part of the training: a loss of one example, how many steps, and the learning rate."""

    loss: Loss
    steps: int
    learning_rate: float


def matching_stages(
    gammas: Sequence[float] = (0.5, 0.4, 0.3, 0.2, 0.1), *, pretrain: int = 2000, steps: int = 1000
) -> tuple[Stage, ...]:
    """Return the published order: absolute errors first, then matching with gamma falling, at a tenth of the rate."""
    return (
        Stage(absolute_loss, pretrain, 1e-2),
        *(Stage(proximal_matching_loss(gamma), steps, 1e-3) for gamma in gammas),
    )


class Fitted(NamedTuple):
    """A trained map and the mean loss of each step."""

    model: LearnedProx
    losses: Float[Array, " steps"]


def fit_prox(
    model: LearnedProx,
    draw: Callable[[Array], Array],
    key: Array,
    *,
    noise: Scalar,
    stages: Sequence[Stage] | None = None,
    at: Callable[[Array], Array] | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Train a map to be the proximal map of minus the log density that samples come from, times ``noise^2``.

    Parameters
    ----------
    model : LearnedProx
        Where to start.
    draw : callable
        ``draw(key)``: a batch of clean examples, along the first axis.
    key : PRNG key
    noise : scalar
        Deviation of what is added to them.
    stages : sequence of Stage, optional
        `matching_stages` by default.
    at : callable, optional
        ``at(key)``: noisy points, along the first axis, to train at in place of the clean examples with noise. Each is
        compared with all clean examples of the batch, weighted by the likelihood of the noise (4). For few dimensions,
        and where rare signals count: points may lie as often as wanted where examples are few, and the gradient's
        variance is that of a batch, not of one example a point. Draw the examples in strata where that can be done.
    progress : callable, optional
        Called on the host as ``progress(step, loss)`` after each hundredth of a stage.

    Returns
    -------
    Fitted
        ``model`` and ``losses``.

    Notes
    -----
    Adam, one program a stage. The same key gives the same network, to the bit, on one machine.
    """
    if not isinstance(model, LearnedProx):
        checks.fail("fit_prox", "model", "a LearnedProx", type(model).__name__, TypeError)
    losses, done = [], 0
    for i, stage in enumerate(matching_stages() if stages is None else stages):
        optimiser = optax.adam(optax.cosine_decay_schedule(stage.learning_rate, stage.steps, 0.1))
        train = _program(stage.loss, optimiser, draw, at)
        state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
        keys = jax.random.split(jax.random.fold_in(key, i), stage.steps)  # the same whether or not anybody watches
        chunk = max(1, stage.steps // 100) if progress is not None else stage.steps
        for k in range(0, stage.steps, chunk):
            (model, state), seen = train(model, state, keys[k : k + chunk], noise)
            losses.append(seen)
            done += len(seen)
            if progress is not None:
                progress(done, float(seen[-1]))
    return Fitted(model, jnp.concatenate(losses))


def likely(noisy: Array, clean: Array, noise: Scalar) -> Float[Array, "m n"]:
    """Return how likely each clean example is behind each noisy point, in sum one for each point."""
    apart = jax.vmap(lambda y: jax.vmap(lambda x: jnp.sum((y - x) ** 2))(clean))(noisy)
    return jax.nn.softmax(-apart / (2 * noise**2), axis=1)


def _program(loss: Loss, optimiser: optax.GradientTransformation, draw: Callable[[Array], Array], at: Any) -> Any:
    @eqx.filter_jit
    def train(model, state, keys, noise):
        moving, fixed = eqx.partition(model, eqx.is_inexact_array)

        def one(c, key):
            moving, state = c
            first, second = jax.random.split(key)
            clean = draw(first)
            if at is None:
                noisy, weights = clean + noise * jax.random.normal(second, clean.shape, clean.dtype), None  # (2)
            else:
                noisy = at(second)
                weights = likely(noisy, clean, noise)

            def mean_loss(moving):
                estimates = jax.vmap(eqx.combine(moving, fixed).prox)(noisy)
                if weights is None:
                    return jnp.mean(jax.vmap(loss)(estimates, clean))  # (3)
                pairs = jax.vmap(lambda one: jax.vmap(lambda x: loss(one, x))(clean))(estimates)
                return jnp.mean(jnp.sum(weights * pairs, axis=1))  # (4)

            value, slope = jax.value_and_grad(mean_loss)(moving)
            # Optax multiplies its integer step count by floats, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                change, state = optimiser.update(slope, state)
            return (optax.apply_updates(moving, change), state), value

        (moving, state), values = lax.scan(one, (moving, state), keys)
        return (eqx.combine(moving, fixed), state), values

    return train
