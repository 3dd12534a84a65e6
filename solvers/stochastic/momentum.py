"""Momentum without its bias, as Optax transformations: transported points, and corrections of the change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core import checks
from ..core.typing import Array, Int, Scalar
from ..core.variance_reduction import schedule_at, track, transported, unit


def igt_schedule(count: Any) -> Any:
    """Return ``(2 / (t + 2))^(4/5)``, the published weight of `igt_momentum`."""
    return (2 / (count + 2)) ** 0.8


def hessian_aided_schedule(count: Any) -> Any:
    """Return ``5 / (t + 5)``, the published weight of `hessian_aided_momentum`."""
    return 5 / (count + 5)


class TransportState(NamedTuple):
    """Hold what `igt_momentum` knows.

    Attributes
    ----------
    direction : PyTree
        The estimate of the gradient.
    previous : PyTree
        The parameters before the last step.
    momentum : Array
        The weight e that the coming update will use, and `transported_point` before it.
    count : Int[Array, ""]
    """

    direction: Any
    previous: Any
    momentum: Array
    count: Int[Array, ""]


class CorrectedState(NamedTuple):
    """Hold what `hessian_aided_momentum` and `storm_momentum` know.

    Attributes
    ----------
    direction, previous : PyTree
        The estimate of the gradient, and the parameters where it was made.
    key : PRNG key
    count : Int[Array, ""]
    """

    direction: Any
    previous: Any
    key: Array
    count: Int[Array, ""]


def igt_momentum(
    learning_rate: optax.ScalarOrSchedule,
    momentum: optax.ScalarOrSchedule = igt_schedule,
    *,
    normalise: bool = True,
) -> optax.GradientTransformation:
    """Descend along a moving average of gradients sampled at transported points (N-PG-IGT).

    (1) ``d <- (1 - e) d + e g(x + (1 - e) / e (x - x_before))``
    (2) ``x <- x - learning_rate d / |d|``

    A plain moving average lags behind; this one is unbiased where the Hessian is constant, and its bias is of second
    order elsewhere. Use it where gradients are noisy and only one can be had a step. The gradient belongs at
    `transported_point`.

    Parameters
    ----------
    learning_rate : scalar or schedule
        With `normalise` the length of a step, in units of the parameters.
    momentum : scalar or schedule
        e, in (0, 1]; the published ``(2 / (t + 2))^(4/5)`` by default.
    normalise : bool
        Whether to divide by ``|d|``, over all leaves. Static.

    Returns
    -------
    optax.GradientTransformation
        A chain that holds a `TransportState`. Its `update` needs the parameters.

    Raises
    ------
    ValueError
        When `update` is called without parameters, or `momentum` is a number outside (0, 1].

    Notes
    -----
    Memory: two copies of the parameters. Sampled at the parameters themselves it is normalised momentum.

    References
    ----------
    I. Fatkhullin, A. Barakat, A. Kireeva, N. He, *Stochastic policy gradient methods: improved sample complexity for
    Fisher-non-degenerate policies*, ICML 2023, algorithm 1; the exponents were read in a summary, not in the paper.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> from solvers import igt_momentum, transported_point
    >>> optimiser = igt_momentum(0.1)
    >>> x = jnp.array([1.0, -1.0])
    >>> state = optimiser.init(x)
    >>> for _ in range(3):
    ...     gradient = jax.grad(lambda x: jnp.sum(x**2))(transported_point(state, x))
    ...     updates, state = optimiser.update(gradient, state, x)
    ...     x = optax.apply_updates(x, updates)
    >>> print(x.round(3))
    [ 0.788 -0.788]
    """
    in_unit_interval("igt_momentum", momentum)

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        return TransportState(zeros(params), params, schedule_at(momentum, zero), zero)

    def update(updates, state, params=None):
        need("igt_momentum", params)
        still = jax.tree.map(jnp.zeros_like, updates)
        direction = track(state.direction, updates, still, state.momentum, 0)  # (1)
        count = jnp.asarray(optax.safe_increment(state.count))
        following = schedule_at(momentum, count).astype(state.momentum.dtype)
        # (2)
        return unit(direction) if normalise else direction, TransportState(direction, params, following, count)

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))


def transported_point(state: Any, params: Any) -> Any:
    """Return where the gradient for the coming update of `igt_momentum` is to be taken.

    Parameters
    ----------
    state : PyTree
        Of an optimiser that holds one `TransportState`, however chained.
    params : PyTree
        The current parameters.
    """
    held = [
        leaf
        for leaf in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, TransportState))
        if isinstance(leaf, TransportState)
    ]
    if len(held) != 1:
        checks.fail("transported_point", "state", "the state of one igt_momentum", f"{len(held)} of them")
    return transported(params, held[0].previous, held[0].momentum)  # (1)


def hessian_aided_momentum(
    learning_rate: optax.ScalarOrSchedule,
    momentum: optax.ScalarOrSchedule = hessian_aided_schedule,
    *,
    normalise: bool = False,
    key: Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend along an average of gradients that is carried along by Hessian-vector products (HARPG, N-HARPG).

    (3) ``d <- (1 - e) (d + H(q x + (1 - q) x_before) (x - x_before)) + e g(x)``, q uniform in (0, 1)

    The expectation of the product is the change of the gradient, exactly, so old gradients stay unbiased. Where
    gradients at two points can be taken of the same sample, `storm_momentum` does that for less; in reinforcement
    learning they cannot.

    Parameters
    ----------
    learning_rate : scalar or schedule
        With `normalise` the length of a step.
    momentum : scalar or schedule
        e, in (0, 1]; the published ``5 / (t + 5)`` by default.
    normalise : bool
        Whether to divide by ``|d|`` (N-HARPG). Static.
    key : PRNG key, optional
        For q; a fixed one by default.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its `update` needs the parameters and ``hvp=``: a callable ``hvp(point, direction)`` that returns an unbiased
        Hessian-vector product, such as ``jax.jvp(jax.grad(loss), (point,), (direction,))[1]`` or `policy_hvp`.

    Raises
    ------
    ValueError
        When `update` is called without parameters, or `momentum` is a number outside (0, 1].

    References
    ----------
    I. Fatkhullin, A. Barakat, A. Kireeva, N. He, *Stochastic policy gradient methods: improved sample complexity for
    Fisher-non-degenerate policies*, ICML 2023, algorithms 2 and 3; the weights were read in a summary.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> from solvers import hessian_aided_momentum
    >>> optimiser = hessian_aided_momentum(0.25)
    >>> loss = lambda x: jnp.sum(x**2)
    >>> hvp = lambda point, direction: jax.jvp(jax.grad(loss), (point,), (direction,))[1]
    >>> x = jnp.array([1.0, -1.0])
    >>> state = optimiser.init(x)
    >>> for _ in range(3):
    ...     updates, state = optimiser.update(jax.grad(loss)(x), state, x, hvp=hvp)
    ...     x = optax.apply_updates(x, updates)
    >>> print(x.round(3))
    [ 0.125 -0.125]
    """

    def change(state, params, draw, extra):
        q = jax.random.uniform(draw)
        delta = jax.tree.map(jnp.subtract, params, state.previous)
        point = jax.tree.map(lambda x, d: x - (1 - q).astype(x.dtype) * d, params, delta)
        return extra["hvp"](point, delta)  # (3)

    inner = _corrected("hessian_aided_momentum", momentum, normalise, key, change)
    return optax.chain(inner, optax.scale_by_learning_rate(learning_rate))


def storm_momentum(
    learning_rate: optax.ScalarOrSchedule,
    momentum: optax.ScalarOrSchedule = hessian_aided_schedule,
    *,
    normalise: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend along an average of gradients that is carried along by differences at the same sample (STORM).

    (4) ``d <- g(x) + (1 - e) (d - g(x_before))``, both gradients of one sample

    Parameters
    ----------
    learning_rate : scalar or schedule
        With `normalise` the length of a step.
    momentum : scalar or schedule
        e, in (0, 1].
    normalise : bool
        Whether to divide by ``|d|``. Static.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its `update` needs the parameters and ``gradient=``: a callable of a point that returns the gradient there of
        the sample whose gradient at the parameters is given.

    Raises
    ------
    ValueError
        When `update` is called without parameters, or `momentum` is a number outside (0, 1].

    References
    ----------
    A. Cutkosky, F. Orabona, *Momentum-based variance reduction in non-convex SGD*, NeurIPS 2019, without its adaptive
    learning rate.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import storm_momentum
    >>> optimiser = storm_momentum(0.25, momentum=0.5)
    >>> gradient = jax.grad(lambda x: jnp.sum(x**2))
    >>> x = jnp.array([1.0, -1.0])
    >>> updates, state = optimiser.update(gradient(x), optimiser.init(x), x, gradient=gradient)
    >>> print(updates)
    [-0.5  0.5]
    """

    def change(state, params, draw, extra):
        before = extra["gradient"](state.previous)
        return jax.tree.map(jnp.subtract, extra["updates"], before)  # (4)

    inner = _corrected("storm_momentum", momentum, normalise, None, change)
    return optax.chain(inner, optax.scale_by_learning_rate(learning_rate))


def _corrected(
    name: str, momentum: Any, normalise: bool, key: Array | None, change: Callable
) -> optax.GradientTransformationExtraArgs:
    """Return ``d = (1 - e) (d + change) + e g``; the first estimate is the first gradient."""
    in_unit_interval(name, momentum)

    def init(params):
        start = jax.random.key(0) if key is None else key
        return CorrectedState(zeros(params), params, start, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra):
        need(name, params)
        following, draw = jax.random.split(state.key)
        e = jnp.where(state.count == 0, 1, schedule_at(momentum, state.count))
        moved = change(state, params, draw, {**extra, "updates": updates})
        direction = track(state.direction, updates, moved, e, 1 - e)  # (3), (4)
        result = unit(direction) if normalise else direction
        return result, CorrectedState(direction, params, following, jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformationExtraArgs(init, update)


def zeros(params: Any) -> Any:
    """Return zeros like the parameters."""
    return jax.tree.map(jnp.zeros_like, params)


def need(name: str, params: Any) -> None:
    """Raise unless there are parameters."""
    if params is None:
        checks.fail(name, "params", "given to update", None)


def in_unit_interval(name: str, momentum: Scalar | Callable) -> None:
    """Raise if the momentum is a Python number outside (0, 1]."""
    if isinstance(momentum, int | float) and not 0 < momentum <= 1:
        checks.fail(name, "momentum", "in (0, 1]", momentum)
