"""Neighbours against brute force; layers on points against the integrals that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Box, GraphKernelIntegral, KernelGridEncoder, neighbours

from ..conftest import FLOAT, X64

BOX = Box((0.0, 1.0), (0.0, 2.0))


def cloud(seed, n):
    return jnp.asarray(np.random.default_rng(seed).random((n, 2)) * [1.0, 2.0], FLOAT)


@pytest.mark.parametrize("radius", [0.09, 0.3, 5.0])
def test_neighbours_are_those_of_brute_force(radius):
    x, y = cloud(3, 150), cloud(4, 40)
    found = jax.jit(lambda y, x: neighbours(y, x, box=BOX, radius=radius, capacity=150))(y, x)
    assert not found.overflow
    gaps = np.linalg.norm(np.asarray(y)[:, None] - np.asarray(x)[None], axis=-1)
    for row, index, near in zip(gaps, found.index, found.near, strict=True):
        np.testing.assert_array_equal(np.sort(np.asarray(index)[np.asarray(near)]), np.flatnonzero(row < radius))


@pytest.mark.long
def test_overflow_and_strays_are_said():
    crowd = jnp.full((5, 2), 0.5, FLOAT)
    assert not neighbours(crowd, crowd, box=BOX, radius=0.2, capacity=5).overflow
    assert neighbours(crowd, crowd, box=BOX, radius=0.2, capacity=4).overflow
    for stray in (jnp.asarray([[0.5, 2.5]], FLOAT), jnp.asarray([[jnp.nan, 1.0]], FLOAT)):
        assert neighbours(crowd, stray, box=BOX, radius=0.2, capacity=4).overflow


def layer(radius=0.4, capacity=200, seed=5):
    return GraphKernelIntegral.init(jax.random.key(seed), BOX, radius=radius, capacity=capacity, width=6, dtype=FLOAT)


@pytest.mark.long
def test_a_constant_kernel_with_a_large_radius_is_the_mean():
    model = layer(radius=9.0)
    last = model.layers[-1]
    zero = (*((0 * m, 0 * b) for m, b in model.layers[:-1]), (0 * last[0], last[1] + 1))
    model = GraphKernelIntegral(zero, model.shape, model.bounds, model.radius, model.capacity)
    x, u = cloud(6, 50), jnp.asarray(np.random.default_rng(7).standard_normal((50, 1)), FLOAT)
    np.testing.assert_allclose(model(x[:3], x, u), jnp.full((3, 1), u.mean()), rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_points_may_be_permuted_and_everything_moved():
    model, x, y = layer(), cloud(6, 60), cloud(8, 4)
    u = jnp.sin(3 * x[:, :1])
    value = model(y, x, u)
    order = np.random.default_rng(9).permutation(60)
    tol = 1e-12 if X64 else 1e-5
    np.testing.assert_allclose(model(y, x[order], u[order]), value, atol=tol)
    other = GraphKernelIntegral(model.layers, model.shape, ((3.0, 4.0), (-1.0, 1.0)), model.radius, model.capacity)
    step = jnp.asarray([[3.0, -1.0]], FLOAT)
    np.testing.assert_allclose(other(y + step, x + step, u), value, atol=1e-9 if X64 else 1e-4)


@pytest.mark.long
def test_overflow_is_nan_and_no_neighbour_is_zero():
    x, u = cloud(6, 60), jnp.ones((60, 1), FLOAT)
    assert jnp.all(jnp.isnan(layer(capacity=2)(x[:2], x, u)))
    lonely = layer(radius=0.01)(jnp.asarray([[0.5, 0.5]], FLOAT), x[:1], u[:1])
    np.testing.assert_array_equal(lonely, 0)


@pytest.mark.long
def test_more_points_converge_to_the_integral():
    """Random samples, four times as many: half the error. Weights undo a density that is not uniform."""
    model, y = layer(radius=0.5, capacity=4000), jnp.asarray([[0.5, 1.0]], FLOAT)
    s = (np.arange(200) + 0.5) / 200
    fine = np.stack(np.meshgrid(s - 0.5, s - 0.5, indexing="ij"), -1).reshape(-1, 2)
    fine = jnp.asarray(fine[np.linalg.norm(fine, axis=1) < 0.5], FLOAT)
    value = lambda x: jnp.cos(3 * x[:, :1]) * x[:, 1:]  # noqa: E731
    kernels = jax.vmap(model.kernel)(fine)[:, 0, 0]
    exact = float(jnp.mean(kernels * value(y + fine)[:, 0]))
    call = jax.jit(lambda x, u, w: model(y, x, u, w)[0, 0])
    errors = {}
    for n in (256, 1024, 4096):
        misses = []
        for seed in range(6):
            r = np.random.default_rng(seed + 10).random((n, 2))
            r[:, 0] = np.sqrt(r[:, 0])  # density 2 x
            x = jnp.asarray(r * [1.0, 2.0], FLOAT)
            misses.append(float(call(x, value(x), 1 / x[:, 0])) - exact)
        errors[n] = np.sqrt(np.mean(np.square(misses)))
    assert errors[4096] < errors[256] / 2
    assert errors[4096] < 0.1 * abs(exact) + 0.02


@pytest.mark.long
def test_encoder_ignores_the_order_and_keeps_constants():
    encoder = KernelGridEncoder.init(jax.random.key(5), BOX, (4, 5), channels=3, width=6, dtype=FLOAT)
    x, order = cloud(3, 30), np.random.default_rng(9).permutation(30)
    u = jnp.sin(x[:, :1])
    value = encoder(x, u)
    assert value.shape == (3, 4, 5)
    np.testing.assert_allclose(encoder(x[order], u[order]), value, atol=1e-12 if X64 else 1e-5)
    flat = tuple((0 * m, 0 * b + 2) for m, b in encoder.layers)
    constant = KernelGridEncoder(flat, encoder.log_lengths + 1, encoder.bounds, encoder.counts)
    np.testing.assert_allclose(constant(x, u), 2, rtol=3e-6)  # the 1e-6 in the denominator


def test_refusals():
    with pytest.raises(ValueError, match="neighbours"):
        neighbours(jnp.ones((2, 2)), jnp.ones((2, 2)), box=BOX, radius=-1.0, capacity=3)
    with pytest.raises(ValueError, match="GraphKernelIntegral"):
        layer()(cloud(3, 2), cloud(3, 4), jnp.ones((4, 2), FLOAT))
    with pytest.raises(ValueError, match="KernelGridEncoder"):
        KernelGridEncoder.init(jax.random.key(3), BOX, (4, 1))
