"""Uniform quantisation against brute force, and sensitivities against their formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import hawq_sensitivity
from solvers.compression import quantise

from ..conftest import FLOAT


def squared(x, step, top):
    return np.sum((np.clip(np.round(x / step), -top, top) * step - x) ** 2)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_values_are_the_nearest_on_the_grid(bits, axis):
    x = np.random.default_rng(5).standard_normal((6, 7)).astype(FLOAT)
    q = quantise(jnp.asarray(x), bits, axis=axis)
    top = 2 ** (bits - 1) - 1
    assert abs(np.asarray(q.codes)).max() == top
    assert np.all(abs(np.asarray(q.values()) - x) <= np.broadcast_to(0.5001 * np.asarray(q.scale), x.shape))
    over = {None: (0, 1), 0: (1,), -1: (0,)}[axis]
    np.testing.assert_allclose(q.scale, abs(x).max(axis=over, keepdims=True) / top, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_least_squares_scale_is_the_best_of_a_fine_grid(bits):
    x = np.random.default_rng(6).standard_t(4, 300)
    top = 2 ** (bits - 1) - 1
    grid = min(squared(x, s, top) for s in np.linspace(0.02, 1, 4000) * abs(x).max() / top)
    q = quantise(jnp.asarray(x, FLOAT), bits, scale="least_squares")
    ours = np.sum((np.asarray(q.values(), np.float64) - x) ** 2)
    assert ours <= 1.002 * grid
    assert ours < 0.8 * squared(x, abs(x).max() / top, top)


def test_zeros_scales_and_nan():
    exponent = 150 if FLOAT == "float64" else 20
    x = np.random.default_rng(7).standard_normal((3, 5))
    x[1] = 0
    for scale in ("largest", "least_squares"):
        plain = quantise(jnp.asarray(x, FLOAT), 4, axis=0, scale=scale)
        assert np.all(np.asarray(plain.values())[1] == 0)
        for e in (-exponent, exponent):
            scaled = quantise(jnp.asarray(x * 10.0**e, FLOAT), 4, axis=0, scale=scale)
            np.testing.assert_array_equal(scaled.codes, plain.codes)
        broken = quantise(jnp.asarray(x, FLOAT).at[0, 0].set(jnp.nan), 4, axis=0, scale=scale)
        assert np.all(np.isnan(np.asarray(broken.values())[0]))
        np.testing.assert_array_equal(broken.values()[1:], plain.values()[1:])


def test_straight_through_training_sees_the_quantised_loss():
    x = jnp.asarray([0.3, -1.0, 0.62], FLOAT)

    def loss(x):
        q = x + jax.lax.stop_gradient(quantise(x, 3).values() - x)
        return jnp.sum(q**2)

    np.testing.assert_allclose(jax.grad(loss)(x), 2 * np.asarray(quantise(x, 3).values()), rtol=1e-6)


def test_sensitivities_are_the_formula():
    rng = np.random.default_rng(8)
    weights = {"a": rng.standard_normal((4, 5)), "b": rng.standard_normal(9)}
    traces = {"a": 2.5, "b": 0.1}
    ours = np.asarray(
        jax.jit(lambda w: hawq_sensitivity(w, traces, (2, 8)))(jax.tree.map(lambda w: jnp.asarray(w, FLOAT), weights))
    )
    for row, name in zip(ours, "ab", strict=True):
        for value, bits in zip(row, (2, 8), strict=True):
            top = 2 ** (bits - 1) - 1
            w = weights[name].astype(FLOAT)
            expected = traces[name] / w.size * squared(w.astype(float), abs(w).max() / top, top)
            assert abs(value - expected) <= 1e-4 * expected


def test_impossible_requests_raise():
    x = jnp.ones(3, FLOAT)
    for bits in (1, 17, 2.5):
        with pytest.raises(ValueError, match="bits"):
            quantise(x, bits)
    with pytest.raises(ValueError, match="axis"):
        quantise(x, 4, axis=1)
    with pytest.raises(ValueError, match="scale"):
        quantise(x, 4, scale="best")
    with pytest.raises(ValueError, match="traces"):
        hawq_sensitivity([x, x], [1.0])
    with pytest.raises(ValueError, match="traces"):
        hawq_sensitivity([x], [x])
