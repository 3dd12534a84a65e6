"""Transported and corrected momentum, and the chain that no first-order method can shorten."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import solvers
from solvers.problems.stochastic import query_lower_bound, zero_chain

from ..conftest import FLOAT

T = 12
CURVES = jnp.asarray([1.0, 4.0], FLOAT)


def quadratic(x):
    return jnp.sum(CURVES * x**2) / 2


def hvp_of(loss):
    return lambda point, direction: jax.jvp(jax.grad(loss), (point,), (direction,))[1]


def test_transported_momentum_is_exact_on_quadratics():
    """With momentum far from one and steps of any length, the average is the gradient."""
    optimiser = solvers.igt_momentum(0.1, lambda t: jnp.where(t == 0, 1.0, 0.1), normalise=False)
    x = jnp.asarray([1.0, -2.0], FLOAT)
    state = optimiser.init(x)
    for _ in range(5):
        sample = jax.grad(quadratic)(solvers.transported_point(state, x))
        updates, state = optimiser.update(sample, state, x)
        np.testing.assert_allclose(-10 * updates, jax.grad(quadratic)(x), rtol=1e-4)
        x = optax.apply_updates(x, updates)


def test_hessian_aided_momentum_is_exact_on_quadratics_and_unbiased_beyond():
    """On a cubic loss the correction is right in the mean over q, not at a fixed q."""
    loss = lambda x: jnp.sum(x**3)  # noqa: E731
    x, y = jnp.asarray([1.0, 2.0], FLOAT), jnp.asarray([1.5, 1.0], FLOAT)

    def second(key):
        optimiser = solvers.hessian_aided_momentum(1.0, 0.25, key=key)
        _, state = optimiser.update(jax.grad(loss)(x), optimiser.init(x), x, hvp=hvp_of(loss))
        updates, _ = optimiser.update(jax.grad(loss)(y), state, y, hvp=hvp_of(loss))
        return -updates

    draws = jax.vmap(second)(jax.random.split(jax.random.key(3), 3000))
    error = jnp.std(draws, axis=0) / 3000**0.5
    assert np.all(np.abs(jnp.mean(draws, axis=0) - jax.grad(loss)(y)) < 4 * error)
    assert np.all(jnp.std(draws, axis=0) > 0.1)


def test_storm_without_noise_is_gradient_descent(rng):
    optimiser = solvers.storm_momentum(0.1, 0.3)
    x = y = jnp.asarray([1.0, -2.0], FLOAT)
    state = optimiser.init(x)
    for _ in range(4):
        updates, state = optimiser.update(jax.grad(quadratic)(x), state, x, gradient=jax.grad(quadratic))
        x, y = optax.apply_updates(x, updates), y - 0.1 * jax.grad(quadratic)(y)
        np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.parametrize("name", ["storm", "hessian"])
def test_corrections_beat_plain_momentum_under_noise(name):
    """The error of the estimate falls below that of a moving average with the same weights, on a moving target."""
    weight = lambda t: 5 / (t + 5)  # noqa: E731

    def run(key, corrected):
        first, second = jax.random.split(key)
        if name == "storm":
            optimiser = solvers.storm_momentum(0.02, weight)
        else:
            optimiser = solvers.hessian_aided_momentum(0.02, weight, key=second)

        def step(carry, key):
            x, state = carry
            noise = 0.5 * jax.random.normal(key, (2,), FLOAT)
            gradient = lambda z: jax.grad(quadratic)(z) + noise  # noqa: E731
            extra = {"storm": {"gradient": gradient}, "hessian": {"hvp": hvp_of(quadratic)}}[name]
            if not corrected:
                extra = {
                    "storm": {"gradient": lambda z: gradient(x)},
                    "hessian": {"hvp": lambda p, v: jnp.zeros_like(v)},
                }[name]
            updates, state = optimiser.update(gradient(x), state, x, **extra)
            error = jnp.sum((-updates / 0.02 - jax.grad(quadratic)(x)) ** 2)
            return (optax.apply_updates(x, updates), state), error

        x = jnp.asarray([5.0, -3.0], FLOAT)
        return jnp.mean(jax.lax.scan(step, (x, optimiser.init(x)), jax.random.split(first, 100))[1][20:])

    keys = jax.random.split(jax.random.key(7), 50)
    with_it, without = (jnp.mean(jax.jit(jax.vmap(lambda k, c=c: run(k, c)))(keys)) for c in (True, False))
    assert with_it < 0.6 * without


def test_normalised_steps_have_the_length_asked_for():
    for optimiser, extra in (
        (solvers.igt_momentum(0.25), {}),
        (solvers.hessian_aided_momentum(0.25, normalise=True), {"hvp": hvp_of(quadratic)}),
    ):
        x = jnp.asarray([3.0, 4.0], FLOAT)
        updates, _ = optimiser.update(jax.grad(quadratic)(x), optimiser.init(x), x, **extra)
        np.testing.assert_allclose(jnp.linalg.norm(updates), 0.25, rtol=1e-6)


def test_what_cannot_be_is_refused():
    x = jnp.zeros(2, FLOAT)
    optimiser = solvers.igt_momentum(0.1)
    with pytest.raises(ValueError, match="igt_momentum: `params`"):
        optimiser.update(x, optimiser.init(x))
    with pytest.raises(ValueError, match="hessian_aided_momentum: `momentum` must be in"):
        solvers.hessian_aided_momentum(0.1, 1.5)
    with pytest.raises(ValueError, match="transported_point: `state`"):
        solvers.transported_point(optax.adam(0.1).init(x), x)


def with_hvp(optimiser):
    def update(g, state, x):
        return optimiser.update(g, state, x, hvp=hvp_of(zero_chain), gradient=jax.grad(zero_chain))

    return optimiser.init, update


OURS = {
    "igt_momentum": lambda: with_hvp(optax.with_extra_args_support(solvers.igt_momentum(0.5))),
    "hessian_aided_momentum": lambda: with_hvp(solvers.hessian_aided_momentum(0.1)),
    "n_hessian_aided": lambda: with_hvp(solvers.hessian_aided_momentum(0.5, normalise=True)),
    "storm_momentum": lambda: with_hvp(solvers.storm_momentum(0.1, 0.5)),
}
OPTAX = ("sgd", "adam", "adagrad", "rmsprop", "lion", "nadam", "yogi", "optimistic_gradient_descent", "noisy_sgd")


def steps_of(name):
    if name in OURS:
        return OURS[name]()
    optimiser = optax.noisy_sgd(0.5, key=jax.random.key(3)) if name == "noisy_sgd" else getattr(optax, name)(0.5)

    def update(g, state, x):
        with jax.numpy_dtype_promotion("standard"):
            return optimiser.update(g, state, x)

    return optimiser.init, update


@pytest.mark.parametrize("name", [*OURS, *OPTAX])
def test_no_method_shortens_the_chain(name):
    """After t gradients at most t coordinates have left zero, and every gradient before the T-th exceeds one.

    A method that moves without having seen a gradient is not bound by this, and must be seen to break it.
    """
    init, update = steps_of(name)

    def step(carry, _):
        x, state = carry
        gradient = jax.grad(zero_chain)(x)
        point = solvers.transported_point(state, x) if name == "igt_momentum" else x
        updates, state = update(jax.grad(zero_chain)(point), state, x)
        return (optax.apply_updates(x, updates), state), (x, jnp.linalg.norm(gradient))

    x = jnp.zeros(T, FLOAT)
    points, norms = jax.jit(lambda x: jax.lax.scan(step, (x, init(x)), None, length=T))(x)[1]
    awake = np.array([np.max(np.flatnonzero(p), initial=-1) + 1 for p in np.asarray(points)])
    if name in ("noisy_sgd", "yogi"):  # Optax starts Yogi's momentum at 1e-6 instead of zero
        assert awake[1] == T
        return
    assert np.all(awake <= np.arange(T))
    assert awake[-1] >= 1
    assert np.all(np.asarray(norms) > 1)


def test_lower_bounds_have_the_published_exponents():
    for setting, p, exponent in (
        ("deterministic", 1, 2), ("deterministic", 2, 1.5), ("stochastic", 1, 4), ("mean_squared_smooth", 1, 3)
    ):  # fmt: skip
        ratio = query_lower_bound(setting, 1e-3, p) / query_lower_bound(setting, 1e-2, p)
        np.testing.assert_allclose(np.log10(ratio), exponent)
    with pytest.raises(ValueError, match="query_lower_bound: `setting`"):
        query_lower_bound("quantum", 0.1)
