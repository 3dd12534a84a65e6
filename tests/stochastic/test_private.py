"""Privacy: the accountant against integrals, sensitivity against all neighbours, DIFF2 without noise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

import solvers
from solvers import diff2, diff2_noise, epsilon_to_rho, gaussian_delta, gaussian_rho, previous_point, rho_to_epsilon
from solvers.stochastic.accounting import renyi_divergence
from solvers.stochastic.private import clipped_mean

from ..conftest import FLOAT, needs_x64


@needs_x64
@pytest.mark.parametrize(("rho", "epsilon"), [(0.05, 1.0), (0.5, 2.0), (2.0, 0.5), (0.01, 0.8)])
def test_delta_is_the_hockey_stick_divergence(rho, epsilon):
    """Against a numerical integral of ``max(p - e^epsilon q, 0)`` over two Gaussians."""
    m = np.sqrt(2 * rho)
    excess = lambda t: max(stats.norm.pdf(t, m) - np.exp(epsilon) * stats.norm.pdf(t), 0)  # noqa: E731
    edge = epsilon / m + m / 2
    exact = integrate.quad(excess, edge, edge + 40, epsabs=1e-16, epsrel=1e-10)[0]
    np.testing.assert_allclose(gaussian_delta(rho, epsilon), exact, rtol=1e-7)


@needs_x64
def test_renyi_divergence_is_the_integral():
    for rho, order in ((0.3, 2.0), (0.1, 5.5)):
        m = np.sqrt(2 * rho)
        moment = integrate.quad(lambda t: stats.norm.pdf(t, m) ** order * stats.norm.pdf(t) ** (1 - order), -12, 16)[0]
        np.testing.assert_allclose(renyi_divergence(rho, order), np.log(moment) / (order - 1), rtol=1e-7)


@needs_x64
@pytest.mark.long
def test_conversions_invert_and_are_ordered():
    for rho in (1e-3, 0.05, 1.0, 10.0):
        for delta in (1e-3, 1e-6, 1e-12):
            of = lambda c: float(rho_to_epsilon(rho, delta, conversion=c))  # noqa: E731
            exact, renyi, simple = map(of, ("exact", "renyi", "simple"))
            assert exact <= renyi * (1 + 1e-9) <= simple * (1 + 1e-9) ** 2
            np.testing.assert_allclose(simple, rho + 2 * np.sqrt(rho * np.log(1 / delta)), rtol=1e-12)
            np.testing.assert_allclose(gaussian_delta(rho, exact), delta, rtol=1e-6)
            orders = 1 + np.geomspace(1e-3, 1e5, 200_000)
            grid = rho * orders + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
            np.testing.assert_allclose(renyi, max(grid.min(), 0), rtol=1e-5)
            for conversion, epsilon in (("exact", exact), ("renyi", renyi), ("simple", simple)):
                np.testing.assert_allclose(epsilon_to_rho(epsilon, delta, conversion=conversion), rho, rtol=1e-5)


@needs_x64
def test_against_dp_accounting():
    """Google's accountant, where it is installed: composed Gaussians, its privacy loss distributions and its orders."""
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders=1 + np.geomspace(1e-2, 1e3, 2000))
    accountant.compose(dp.GaussianDpEvent(4.0), 20)
    rho = 20 * float(gaussian_rho(1.0, 4.0))
    np.testing.assert_allclose(rho_to_epsilon(rho, 1e-5, conversion="renyi"), accountant.get_epsilon(1e-5), rtol=1e-3)


def test_costs_of_zero_and_infinity():
    assert rho_to_epsilon(0.0, 1e-5) == 0
    assert gaussian_delta(0.0, 1.0) == 0
    assert gaussian_rho(1.0, 0.0) == np.inf
    with pytest.raises(ValueError, match="delta"):
        rho_to_epsilon(0.1, 1.5)


def test_no_neighbour_moves_the_mean_further_than_the_sensitivity():
    """All replacements of one of four examples by any of six, hostile ones too, over two leaves."""
    pool = np.array([[3.0, 0], [-4, 0.1], [0.1, 0.1], [1e20, -1e20], [np.nan, 1], [np.inf, 0]])
    limit, n = jnp.asarray(1.5, FLOAT), 4
    means = {}
    for chosen in itertools.product(range(6), repeat=n):
        if sorted(chosen) == list(chosen):
            rows = pool[list(chosen)]
            tree = {"a": jnp.asarray(rows[:, :1], FLOAT), "b": jnp.asarray(rows[:, 1], FLOAT)}
            mean = clipped_mean(tree, limit)
            means[chosen] = np.array([float(mean["a"][0]), float(mean["b"])])
    worst = 0.0
    for one, mean in means.items():
        for i, other in itertools.product(range(n), range(6)):
            swapped = tuple(sorted((*one[:i], *one[i + 1 :], other)))
            worst = max(worst, np.linalg.norm(mean - means[swapped]))
    assert np.isfinite(worst)
    assert worst <= 2 * 1.5 / n * (1 + 1e-6)
    assert worst > 0.8 * 2 * 1.5 / n


def quadratic_run(options, steps=12, n=5):
    rng = np.random.default_rng(3)
    data = jnp.asarray(rng.standard_normal((n, 3)), FLOAT)
    bend = jnp.asarray(1 + rng.random((n, 1)), FLOAT)
    gradients = lambda x: bend * (x[None, :] - data)  # noqa: E731
    optimiser = diff2(0.3, clip=1e3, clip_difference=10.0, restart=4, key=jax.random.key(5), **options)

    def step(carry, _):
        x, state = carry
        updates, state = optimiser.update(gradients(x), state, x, before=gradients(previous_point(state)))
        return (optax.apply_updates(x, updates), state), x

    x = jnp.zeros(3, FLOAT)
    (x, state), path = jax.lax.scan(step, (x, optimiser.init(x)), None, length=steps)
    return x, state, path, gradients


def test_without_noise_it_is_gradient_descent():
    x, _, _, gradients = quadratic_run({"noise": 0.0, "noise_difference": 0.0})
    y = jnp.zeros(3, FLOAT)
    for _ in range(12):
        y = y - 0.3 * jnp.mean(gradients(y), axis=0)
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_the_noise_has_the_size_that_is_accounted_for():
    """The first release: its deviation over keys is the multiplier times 2 clip / n, and its cost 1 / (2 noise^2)."""
    n, clip, noise = 4, 2.0, 0.7
    g = jnp.asarray(np.random.default_rng(3).standard_normal((n, 50)), FLOAT)
    x = jnp.zeros(50, FLOAT)

    def release(key):
        optimiser = diff2(1.0, clip=clip, clip_difference=1.0, noise=noise, noise_difference=noise, restart=3, key=key)
        updates, state = optimiser.update(g, optimiser.init(x), x, before=g)
        return updates, state

    draws, state = jax.vmap(release)(jax.random.split(jax.random.key(5), 200))
    np.testing.assert_allclose(jnp.std(draws, axis=0).mean(), noise * 2 * clip / n, rtol=0.03)
    np.testing.assert_allclose(state[0].rho[0], 1 / (2 * noise**2), rtol=1e-6)
    halved = diff2(1.0, clip=clip, clip_difference=1.0, noise=noise, noise_difference=noise, restart=3,
                   key=jax.random.key(5), neighbours="add_remove")  # fmt: skip
    other = diff2(1.0, clip=clip, clip_difference=1.0, noise=noise, noise_difference=noise, restart=3,
                  key=jax.random.key(5))  # fmt: skip
    mean = -clipped_mean(g, jnp.asarray(clip, FLOAT))
    one, two = (o.update(g, o.init(x), x, before=g)[0] - mean for o in (halved, other))
    np.testing.assert_allclose(2 * one, two, rtol=1e-4, atol=1e-6)


def test_the_budget_is_spent_exactly():
    rho, steps = 0.3, 12
    for share in (0.3, 0.7):
        noise, difference = diff2_noise(rho, steps, 4, share=share)
        _, state, _, _ = quadratic_run({"noise": noise, "noise_difference": difference}, steps)
        np.testing.assert_allclose(state[0].rho, rho, rtol=1e-5)
    np.testing.assert_allclose(1 / (2 * float(diff2_noise(rho, 7, 1)[0]) ** 2) * 7, rho, rtol=1e-6)


@pytest.mark.long
def test_what_is_missing_is_named():
    optimiser = diff2(1.0, clip=1.0, clip_difference=1.0, noise=1.0, noise_difference=1.0, restart=3,
                      key=jax.random.key(5))  # fmt: skip
    g, x = jnp.ones((4, 2), FLOAT), jnp.zeros(2, FLOAT)
    with pytest.raises(ValueError, match="diff2: `before`"):
        optimiser.update(g, optimiser.init(x), x)
    with pytest.raises(ValueError, match="diff2: `params`"):
        optimiser.update(g, optimiser.init(x), before=g)
    with pytest.raises(ValueError, match="neighbours"):
        solvers.diff2(1.0, clip=1.0, clip_difference=1.0, noise=1.0, noise_difference=1.0, restart=3,
                      key=jax.random.key(5), neighbours="friends")  # fmt: skip
