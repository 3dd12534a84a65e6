"""AdaHessian against its formula in NumPy; the heavy ball's rate on known spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from solvers import adahessian, scale_by_adahessian, slq_heavy_ball

from ..conftest import FLOAT

H = np.array([1.0, 4.0, 100.0])


def quadratic(x):
    return 0.5 * jnp.sum(jnp.asarray(H, FLOAT) * x**2)


@pytest.mark.parametrize("every", [1, 3])
def test_updates_are_the_formula_where_one_probe_is_exact(every):
    """On a diagonal Hessian: moments, their bias, the power, the decay, and measurements every few updates."""
    optimiser = adahessian(0.3, 0.8, 0.9, 1e-3, weight_decay=0.1, hessian_power=0.5, update_every=every)
    x, m, v, measured = np.array([1.0, -2.0, 0.5]), np.zeros(3), np.zeros(3), 0
    ours = jnp.asarray(x, FLOAT)
    state = optimiser.init(ours)
    for t in range(5):
        updates, state = optimiser.update(jax.grad(quadratic)(ours), state, ours, obj_fn=quadratic)
        ours = optax.apply_updates(ours, updates)
        m = 0.8 * m + 0.2 * H * x
        if t % every == 0:
            v, measured = 0.9 * v + 0.1 * H**2, measured + 1
        root = np.sqrt(v / (1 - 0.9**measured))
        x = x - 0.3 * (m / (1 - 0.8 ** (t + 1)) / (root**0.5 + 1e-3) + 0.1 * x)
        np.testing.assert_allclose(ours, x, rtol=1e-4)


def test_probes_find_the_diagonal_of_rosenbrock():
    f = lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2  # noqa: E731
    x = jnp.asarray([-2.0, 2.0], FLOAT)
    transform = scale_by_adahessian(num_probes=500)
    _, state = transform.update(jax.grad(f)(x), transform.init(x), x, obj_fn=f)
    np.testing.assert_allclose(state.nu / np.sqrt(1 - 0.999), [4002, 200], rtol=0.3)


def test_kernels_share_their_curvature_and_hvp_will_do():
    params = {"k": jnp.ones((3, 3, 2, 2), FLOAT), "b": jnp.ones(4, FLOAT)}
    scale = jax.tree.map(lambda p: jnp.arange(1, p.size + 1, dtype=p.dtype).reshape(p.shape), params)
    transform = scale_by_adahessian()
    hvp = lambda v: jax.tree.map(jnp.multiply, scale, v)  # noqa: E731
    _, state = transform.update(params, transform.init(params), params, hvp_fn=hvp)
    d = jax.tree.map(lambda v: v / np.sqrt(1e-3), state.nu)
    expected = np.broadcast_to(np.asarray(scale["k"]).mean((0, 1), keepdims=True), (3, 3, 2, 2))
    np.testing.assert_allclose(d["k"], expected, rtol=1e-3)
    np.testing.assert_allclose(d["b"], scale["b"], rtol=1e-3)


def test_the_heavy_ball_is_polyaks_and_reaches_the_optimal_rate():
    values = np.linspace(1, 50, 12)
    q = np.linalg.qr(np.random.default_rng(5).standard_normal((12, 12)))[0]
    a = jnp.asarray((q * values) @ q.T, FLOAT)
    loss = lambda x: 0.5 * x @ a @ x  # noqa: E731
    optimiser = slq_heavy_ball(num_steps=12)
    x = jnp.asarray(q.sum(1), FLOAT)

    def step(carry, _):
        x, state = carry
        updates, state = optimiser.update(jax.grad(loss)(x), state, x, obj_fn=loss)
        return (optax.apply_updates(x, updates), state), jnp.linalg.norm(x)

    (_, state), norms = jax.jit(lambda x: jax.lax.scan(step, (x, optimiser.init(x)), None, length=80))(x)
    rate = (np.sqrt(50) - 1) / (np.sqrt(50) + 1)
    np.testing.assert_allclose(state.momentum, rate**2, rtol=2e-3)
    np.testing.assert_allclose(state.learning_rate, (2 / (np.sqrt(50) + 1)) ** 2, rtol=2e-3)
    assert (norms[70] / norms[30]) ** (1 / 40) <= rate + 0.03
    assert (norms[70] / norms[30]) ** (1 / 40) >= rate - 0.05


def test_no_positive_curvature_means_no_step():
    x = jnp.ones(3, FLOAT)
    optimiser = slq_heavy_ball(num_steps=3)
    updates, state = optimiser.update(-x, optimiser.init(x), x, hvp_fn=lambda v: -v)
    assert jnp.all(updates == 0)
    updates, _ = optimiser.update(x, state, x, hvp_fn=lambda v: v * jnp.nan)
    assert jnp.all(updates == 0)


@pytest.mark.long
def test_missing_arguments_and_bad_counts_raise():
    x = jnp.ones(3, FLOAT)
    for optimiser in (scale_by_adahessian(), slq_heavy_ball()):
        with pytest.raises(ValueError, match="obj_fn"):
            optimiser.update(x, optimiser.init(x), x)
        with pytest.raises(ValueError, match="obj_fn"):
            optimiser.update(x, optimiser.init(x), x, obj_fn=quadratic, hvp_fn=lambda v: v)
        with pytest.raises(ValueError, match="params"):
            optimiser.update(x, optimiser.init(x), obj_fn=quadratic)
    with pytest.raises(ValueError, match="num_probes"):
        adahessian(num_probes=0)
    with pytest.raises(TypeError, match="update_every"):
        adahessian(update_every=1.5)
    with pytest.raises(ValueError, match="refresh_every"):
        slq_heavy_ball(refresh_every=0)
