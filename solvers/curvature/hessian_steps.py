"""Optimisers that measure curvature as they go: AdaHessian by its diagonal, heavy ball by the ends of its spectrum.

AdaHessian, Yao et al., AAAI 2021, with z random signs, both averages without their bias in the update:

(1) ``D = |mean_r z_r * (H z_r)|``, averaged over blocks
(2) ``m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) D^2``
(3) ``m / (sqrt(v)^hessian_power + eps)``

Heavy ball (Polyak 1964) from the spectrum, after Granziol, Zohren and Roberts, JMLR 2022, L and l the ends of the
latter:

(4) ``learning_rate = scale (2 / (sqrt L + sqrt l))^2,  momentum = ((sqrt L - sqrt l) / (sqrt L + sqrt l))^2``
(5) ``velocity <- momentum velocity - learning_rate g``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from ..core import checks
from ..core.krylov.lanczos import lanczos
from ..core.loop import when
from ..core.probes import probe
from ..core.typing import Array, Float, Int, Scalar


class AdaHessianState(NamedTuple):
    """State of `scale_by_adahessian`.

    Attributes
    ----------
    count : Int[Array, ""]
        Updates so far.
    measured : Int[Array, ""]
        Measurements of the diagonal so far.
    key : PRNG key
        Of the next probe.
    mu, nu : PyTree
        The moving average of the gradient, and the root of that of the squared diagonal: squares leave the range.
    """

    count: Int[Array, ""]
    measured: Int[Array, ""]
    key: Array
    mu: Any
    nu: Any


class _Diagonal(NamedTuple):
    """How the diagonal is measured."""

    block: Callable[[Any, Array], Array] | None
    every: int
    num_probes: int


def average_over_kernel(path: Any, d: Array) -> Array:
    """Average over all axes but the last two, if there are more: convolutions as (height, width, in, out)."""
    if d.ndim < 3:
        return d
    axes = tuple(range(d.ndim - 2))
    return jnp.broadcast_to(jnp.mean(d, axis=axes, keepdims=True), d.shape)


def _product(name: str, params: Any, obj_fn: Any, hvp_fn: Any) -> Callable[[Any], Any]:
    if params is None:
        checks.fail(name, "params", "given to `update`", None)
    if (obj_fn is None) == (hvp_fn is None):
        checks.fail(name, "obj_fn", "given to `update`, or `hvp_fn` instead", "neither" if obj_fn is None else "both")
    if hvp_fn is not None:
        return hvp_fn
    gradient = jax.grad(obj_fn)
    return lambda v: jax.jvp(gradient, (params,), (v,))[1]


def scale_by_adahessian(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-4,
    *,
    hessian_power: Scalar = 1.0,
    block: Callable[[Any, Array], Array] | None = average_over_kernel,
    update_every: int = 1,
    num_probes: int = 1,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Divide the averaged gradient by the averaged absolute diagonal of the Hessian, found with random probes.

    ``D = |mean_r z_r * (H z_r)|`` averaged by `block`, ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) D^2``, and the
    update is ``m_hat / (sqrt(v_hat)^hessian_power + eps)``, both averages without their bias.

    Parameters
    ----------
    b1, b2, eps, hessian_power : scalar
        As in the formula; traced.
    block : callable or None
        ``block(path, d)`` returns d averaged over entries that should share their curvature; None for no averaging. By
        default the spatial axes of convolution kernels in the order (height, width, in, out).
    update_every : int
        Measure the diagonal every so many updates; static.
    num_probes : int
        Probes a measurement, each a Hessian-vector product; static.
    seed : int
        Of the probes.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``update`` needs `params` and one of the extra arguments ``obj_fn``, the loss as a function of the parameters
        alone, or ``hvp_fn``, the product with its Hessian.

    Raises
    ------
    TypeError, ValueError
        For counts that are not positive integers, or missing arguments.

    Notes
    -----
    A probe costs about two gradients. The absolute value is taken before averaging, as in the authors' code. Moments
    are kept in float32 at least.

    References
    ----------
    Z. Yao et al., *ADAHESSIAN: an adaptive second order optimizer for machine learning*, AAAI 2021.
    """
    name = "adahessian"
    for argument, value in (("update_every", update_every), ("num_probes", num_probes)):
        if isinstance(value, bool) or not isinstance(value, int):
            checks.fail(name, argument, "an integer", repr(value), TypeError)
        if value < 1:
            checks.fail(name, argument, "positive", value)
    how = _Diagonal(block, update_every, num_probes)

    def init(params: Any) -> Any:
        wide = jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p.dtype)), params)
        zero = jnp.zeros((), jnp.int32)
        return AdaHessianState(zero, zero, jax.random.key(seed), wide, wide)

    def update(
        updates: Any, state: Any, params: Any = None, *, obj_fn: Any = None, hvp_fn: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del extra
        product = _product(name, params, obj_fn, hvp_fn)
        key, use = jax.random.split(state.key)
        due = state.count % how.every == 0
        blend = lambda rate, old, new: jnp.asarray(rate, old.dtype) * old + (1 - jnp.asarray(rate, old.dtype)) * new  # noqa: E731

        def measured(nu):
            d = _absolute_diagonal(product, use, params, how)
            return jax.tree.map(lambda old, d: _blended_root(b2, old, d.astype(old.dtype)), nu, d)  # (2)

        nu = when(due, measured, state.nu)
        mu = jax.tree.map(lambda old, g: blend(b1, old, g.astype(old.dtype)), state.mu, updates)  # (2)
        count = jnp.asarray(optax.safe_increment(state.count))
        times = state.measured + due.astype(jnp.int32)

        def step(m, v, g):
            m = m / _unbias(b1, count, m.dtype)
            v = v / jnp.sqrt(_unbias(b2, times, v.dtype))
            # (3)
            return (m / (v ** jnp.asarray(hessian_power, v.dtype) + jnp.asarray(eps, v.dtype))).astype(g.dtype)

        return jax.tree.map(step, mu, nu, updates), AdaHessianState(count, times, key, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _blended_root(rate: Scalar, old: Array, new: Array) -> Array:
    """Return ``sqrt(rate old^2 + (1 - rate) new^2)``."""
    rate = jnp.asarray(rate, old.dtype)
    return jnp.hypot(jnp.sqrt(rate) * old, jnp.sqrt(1 - rate) * new)


def _wide(dtype: Any) -> Any:
    return dtype if dtype.itemsize >= 4 else jnp.float32


def _unbias(rate: Scalar, count: Array, dtype: Any) -> Array:
    return 1 - jnp.asarray(rate, dtype) ** count.astype(dtype)


def _absolute_diagonal(product: Callable, key: Array, params: Any, how: _Diagonal) -> Any:
    def one(key):
        z = probe("rademacher", key, params)
        return jax.tree.map(lambda a, b: a * b, z, product(z))

    sampled = jax.lax.map(one, jax.random.split(key, how.num_probes))
    d = jax.tree.map(lambda x: jnp.abs(jnp.mean(x, axis=0)), sampled)  # (1)
    return d if how.block is None else jax.tree_util.tree_map_with_path(how.block, d)


def adahessian(
    learning_rate: optax.ScalarOrSchedule = 0.15,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-4,
    *,
    weight_decay: Scalar = 0.0,
    hessian_power: Scalar = 1.0,
    block: Callable[[Any, Array], Array] | None = average_over_kernel,
    update_every: int = 1,
    num_probes: int = 1,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Minimise by AdaHessian: Adam with the Hessian's diagonal in place of the squared gradient.

    ``theta = theta - learning_rate (m_hat / (sqrt(v_hat)^k + eps) + weight_decay theta)``, see `scale_by_adahessian`.
    Worth its Hessian-vector products where coordinates differ much in curvature; the learning rate carries over between
    problems better than Adam's.

    Parameters
    ----------
    learning_rate : scalar or schedule
        The published 0.15 is for networks.
    b1, b2, eps, hessian_power, block, update_every, num_probes, seed
        See `scale_by_adahessian`.
    weight_decay : scalar
        Decoupled.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``update`` needs `params` and one of the extra arguments ``obj_fn`` or ``hvp_fn``.

    Raises
    ------
    TypeError, ValueError
        As `scale_by_adahessian`.

    References
    ----------
    Z. Yao et al., *ADAHESSIAN: an adaptive second order optimizer for machine learning*, AAAI 2021.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> from solvers import adahessian
    >>> loss = lambda x: jnp.sum(jnp.array([1.0, 100.0]) * x**2)
    >>> optimiser, x = adahessian(0.5, eps=0.0), jnp.ones(2)
    >>> state = optimiser.init(x)
    >>> updates, state = optimiser.update(jax.grad(loss)(x), state, x, obj_fn=loss)
    >>> print(optax.apply_updates(x, updates).round(4))
    [0.5 0.5]
    """
    scaled = scale_by_adahessian(
        b1,
        b2,
        eps,
        hessian_power=hessian_power,
        block=block,
        update_every=update_every,
        num_probes=num_probes,
        seed=seed,
    )
    return optax.chain(scaled, optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate))


class HeavyBallState(NamedTuple):
    """State of `slq_heavy_ball`.

    Attributes
    ----------
    count : Int[Array, ""]
        Updates so far.
    key : PRNG key
        Of the next start.
    velocity : PyTree
        The last step.
    learning_rate, momentum : Float[Array, ""]
        In use.
    largest, least : Float[Array, ""]
        Ends of the spectrum that they were made from.
    """

    count: Int[Array, ""]
    key: Array
    velocity: Any
    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    largest: Float[Array, ""]
    least: Float[Array, ""]


def slq_heavy_ball(
    *, refresh_every: int = 100, num_steps: int = 20, scale: Scalar = 1.0, cutoff: Scalar = 1e-3, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Minimise by Polyak's heavy ball with learning rate and momentum from the measured spectrum.

    With the largest Ritz value L and the least one l above ``cutoff L`` of `num_steps` Lanczos steps:
    ``learning_rate = scale (2 / (sqrt L + sqrt l))^2``, ``momentum = ((sqrt L - sqrt l) / (sqrt L + sqrt l))^2``,
    ``v = momentum v - learning_rate g``, ``theta = theta + v``. On a quadratic whose spectrum is [l, L] this is the
    optimal pair, with rate ``(sqrt(L/l) - 1) / (sqrt(L/l) + 1)``.

    Parameters
    ----------
    refresh_every : int
        Updates between measurements; static.
    num_steps : int
        Lanczos steps, Hessian-vector products a measurement; static.
    scale : scalar
        Of the learning rate; below 1 where the loss is noisy. Traced.
    cutoff : scalar
        Ritz values below this share of the largest do not count as curvature; traced.
    seed : int
        Of the starting vectors.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``update`` needs `params` and one of the extra arguments ``obj_fn`` or ``hvp_fn``. Not to be followed by a
        learning rate.

    Raises
    ------
    TypeError, ValueError
        For counts that are not positive integers, or missing arguments.

    Notes
    -----
    Where no Ritz value is positive the rates of before are kept, at first 0: nothing moves along negative curvature.
    Memory of a measurement is `num_steps` copies of the parameters.

    References
    ----------
    D. Granziol, S. Zohren, S. Roberts, *Learning rates as a function of batch size: a random matrix theory approach to
    neural network training*, JMLR 2022. B. T. Polyak, *Some methods of speeding up the convergence of iteration
    methods*, 1964.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> from solvers import slq_heavy_ball
    >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * x**2)
    >>> optimiser, x = slq_heavy_ball(num_steps=2), jnp.ones(2)
    >>> _, state = optimiser.update(jax.grad(loss)(x), optimiser.init(x), x, obj_fn=loss)
    >>> print(state.learning_rate.round(4), state.momentum.round(4))
    0.25 0.25
    """
    name = "slq_heavy_ball"
    for argument, value in (("refresh_every", refresh_every), ("num_steps", num_steps)):
        if isinstance(value, bool) or not isinstance(value, int):
            checks.fail(name, argument, "an integer", repr(value), TypeError)
        if value < 1:
            checks.fail(name, argument, "positive", value)

    def init(params: Any) -> Any:
        dtype = max((_wide(p.dtype) for p in jax.tree.leaves(params)), key=lambda d: jnp.dtype(d).itemsize)
        zero = jnp.zeros((), dtype)
        still = jax.tree.map(jnp.zeros_like, params)
        return HeavyBallState(jnp.zeros((), jnp.int32), jax.random.key(seed), still, zero, zero, zero, zero)

    def update(
        updates: Any, state: Any, params: Any = None, *, obj_fn: Any = None, hvp_fn: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del extra
        product = _product(name, params, obj_fn, hvp_fn)
        key, use = jax.random.split(state.key)
        rates = (state.learning_rate, state.momentum, state.largest, state.least)
        due = state.count % refresh_every == 0
        rates = when(due, lambda old: _polyak(_ends(product, use, params, num_steps, cutoff), scale, old), rates)
        rate, momentum, largest, least = rates
        velocity = jax.tree.map(
            lambda v, g: momentum.astype(v.dtype) * v - rate.astype(v.dtype) * g.astype(v.dtype),  # (5)
            state.velocity,
            updates,
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return velocity, HeavyBallState(count, key, velocity, rate, momentum, largest, least)

    return optax.GradientTransformationExtraArgs(init, update)


def _ends(product: Callable, key: Array, params: Any, num_steps: int, cutoff: Scalar) -> tuple[Array, Array]:
    """Return the largest Ritz value and the least above the cutoff; the largest is not positive where none is."""
    start, _ = ravel_pytree(jax.tree.map(lambda z: z.astype(_wide(z.dtype)), probe("gaussian", key, params)))

    def matvec(x):
        narrow = jax.tree.map(lambda v, p: v.astype(p.dtype), unravel_wide(x), params)
        return ravel_pytree(jax.tree.map(lambda v: v.astype(x.dtype), product(narrow)))[0]

    def unravel_wide(x):
        leaves, ends = jax.tree.leaves(params), 0
        parts = []
        for leaf in leaves:
            parts.append(x[ends : ends + leaf.size].reshape(leaf.shape))
            ends += leaf.size
        return jax.tree.unflatten(jax.tree.structure(params), parts)

    run = lanczos(matvec, start, min(num_steps, start.size))
    values, vectors = run.ritz()
    seen = vectors[0] ** 2 > jnp.finfo(values.dtype).eps
    largest = jnp.max(jnp.where(seen, values, -jnp.inf))
    least = jnp.min(jnp.where(seen & (values > jnp.asarray(cutoff, values.dtype) * largest), values, jnp.inf))
    return largest, jnp.minimum(least, largest)


def _polyak(ends: tuple[Array, Array], scale: Scalar, old: tuple[Array, ...]) -> tuple[Array, ...]:
    largest, least = ends
    usable = jnp.isfinite(largest) & (largest > 0)
    top, low = (jnp.sqrt(jnp.where(usable, x, 1)) for x in (largest, least))
    # (4)
    new = (jnp.asarray(scale, top.dtype) * (2 / (top + low)) ** 2, ((top - low) / (top + low)) ** 2, largest, least)
    return tuple(jnp.where(usable, a.astype(b.dtype), b) for a, b in zip(new, old, strict=True))
