"""Value functions against closed forms, the conditions' identities, the bias of squared errors, coverage, attacks."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import (
    Paths,
    lstd,
    martingale_loss,
    orthogonality,
    simulate,
    squared_td_error,
    td_learning,
)
from solvers.problems.sde import BlackScholes, QuadraticCost, SquaredBrownian
from solvers.tour.sde import base as without_volatility
from solvers.tour.sde import features as bumps

from ..conftest import FLOAT, needs_x64, whatever_precision

K = 50
SQUARE, CALL, COST = SquaredBrownian(), BlackScholes(), QuadraticCost()


@cache
def sampled(problem, N, start=0.0, spread=0.0, seed=3, K=K):
    keys = jax.random.split(jax.random.key(seed))
    x0 = start + spread * jax.random.normal(keys[0], (N, 1), FLOAT)
    times = jnp.linspace(0, problem.horizon, K + 1, dtype=FLOAT)
    states = jax.jit(lambda x0, key: simulate(problem.drift, problem.diffusion, x0, times, key))(x0, keys[1])
    if problem is COST:
        return Paths(times, states, jnp.zeros(N, FLOAT), COST.reward(states[:, :-1]), COST.discount)
    return Paths(times, states, problem.payoff(states[:, -1]), None, CALL.rate if problem is CALL else 0.0)


def linear(features):
    return lambda c, t, x: jnp.sum(c * features(t, x))


def normal_equations(objective, p):
    """Return the minimiser of a quadratic function of p coefficients."""
    slope = jax.jit(jax.vmap(jax.grad(objective)))
    at = slope(jnp.concatenate([jnp.zeros((1, p), FLOAT), jnp.eye(p, dtype=FLOAT)]))
    return -jnp.linalg.solve(at[1:] - at[:1], at[0])


@pytest.mark.long
def test_the_bias_of_squared_errors_and_its_cure():
    """From zero over unit time: the squared error is least at (3/5, 1) as dt falls, the truth is (1, 1)."""
    paths = sampled(SQUARE, 20_000)
    J = linear(SQUARE.features)
    biased = normal_equations(lambda c: squared_td_error(J, c, paths), 2)
    np.testing.assert_allclose(biased, [0.6, 1.0], atol=0.05)
    cured = normal_equations(lambda c: martingale_loss(J, c, paths), 2)
    np.testing.assert_allclose(cured, [1.0, 1.0], rtol=0.02)
    np.testing.assert_allclose(lstd(SQUARE.features, paths).coefficients, [1.0, 1.0], rtol=0.02)


def test_lam_one_is_regression_on_outcomes():
    """An identity, path by path: with discount and rewards too."""
    paths = sampled(COST, 200, spread=1.0)
    features = lambda t, x: jnp.stack([x[0] ** 2, (1 - t) * x[0] ** 2, 1 - t])  # noqa: E731
    regression = normal_equations(lambda c: martingale_loss(linear(features), c, paths), 3)
    tol = {"float64": 1e-9, "float32": 2e-3}[FLOAT.name]
    np.testing.assert_allclose(lstd(features, paths, lam=1.0).coefficients, regression, rtol=tol, atol=tol)


def test_orthogonality_vanishes_at_the_value_and_not_beside_it():
    """Within four standard errors, for test functions that are no features; beside it by far more."""
    for problem in (SQUARE, CALL):
        paths = sampled(problem, 4000, spread=0.3)
        test = lambda c, t, x: jnp.stack([1 + 0 * t, jnp.sin(x[0]), x[0] * t])  # noqa: E731
        right = orthogonality(lambda c, t, x: problem.value(t, x), None, paths, test=test)
        assert np.all(np.abs(right.value) < 4 * right.standard_error + 1e-3)
        wrong = orthogonality(lambda c, t, x: problem.value(t, x) + 0.3 * (1 - t), None, paths, test=test)
        assert np.any(np.abs(wrong.value) > 8 * wrong.standard_error)


def test_rewards_and_discount_have_their_closed_form():
    """Features that span the value of a quadratic cost; the answer at the start against the formula."""
    both, rate = 2 * COST.pull + COST.discount, COST.discount

    def features(t, x):
        left = COST.horizon - t
        return jnp.stack(
            [x[0] ** 2 * (1 - jnp.exp(-both * left)), 1 - jnp.exp(-both * left), 1 - jnp.exp(-rate * left)]
        )

    fit = lstd(features, sampled(COST, 4000, spread=1.0))
    x = jnp.asarray([[-1.0], [0.0], [1.5]], FLOAT)
    found = jax.vmap(lambda x: fit(jnp.zeros((), FLOAT), x))(x)
    np.testing.assert_allclose(found, COST.value(0.0, x), atol=0.03)


def test_a_call_is_priced():
    """Black and Scholes at several prices, with features that do not span the value but come close."""
    paths = sampled(CALL, 4000, start=0.0, spread=0.4)
    fit = lstd(bumps, paths, base=without_volatility)
    x = jnp.asarray([[-0.3], [0.0], [0.3]], FLOAT)
    found = jax.vmap(lambda x: fit(jnp.zeros((), FLOAT), x))(x)
    np.testing.assert_allclose(found, CALL.value(0.0, x), atol=0.02)


def test_intervals_cover():
    """Of 60 fits to 300 paths each, two standard errors cover the coefficient of x^2 about 95 times of 100."""
    times = jnp.linspace(0, 1, 21, dtype=FLOAT)

    def fit(key):
        x0 = jnp.zeros((300, 1), FLOAT)
        states = simulate(SQUARE.drift, SQUARE.diffusion, x0, times, key)
        made = lstd(SQUARE.features, Paths(times, states, SQUARE.payoff(states[:, -1])))
        return made.coefficients, made.standard_error

    c, error = jax.jit(jax.vmap(fit))(jax.random.split(jax.random.key(7), 60))
    # Brownian increments are exact, so that the discretisation leaves these coefficients without bias.
    covered = np.abs(np.asarray(c) - 1) < 2 * np.asarray(error)
    assert 0.85 < covered.mean() <= 1.0
    assert np.all(np.asarray(error) < 0.5)


@pytest.mark.parametrize(
    ("method", "online", "options"),
    [
        ("td", False, {"rate": 0.3}),
        ("td", True, {"rate": 0.05}),
        ("gtd2", False, {"rate": 0.02, "second_rate": 0.4}),
        ("tdc", False, {"rate": 0.02, "second_rate": 0.4}),
    ],
)
def test_learning_ends_where_least_squares_does(method, online, options):
    """On one set of paths, from zero, all of them offline or step by step."""
    paths = sampled(SQUARE, 500, spread=0.5, K=10)
    exact = lstd(SQUARE.features, paths).coefficients
    learner = td_learning(linear(SQUARE.features), method=method, online=online, **options)
    state = jax.jit(lambda p: learner.run(learner.init(jnp.zeros(2, FLOAT)), p, 3000))(paths)
    loose = 0.1 if online else 0.01
    np.testing.assert_allclose(state.params, exact, atol=loose)
    moments = orthogonality(linear(SQUARE.features), state.params, paths)
    assert np.all(np.abs(moments.value) < 2 * loose)


def test_learning_from_a_stream_path_by_path():
    paths = sampled(SQUARE, 2000, spread=0.5, K=10)
    learner = td_learning(linear(SQUARE.features), rate=lambda k: 2 / (k + 20), lam=0.3)
    state = jax.jit(lambda p: learner.run(learner.init(jnp.zeros(2, FLOAT)), p, 2000, batch=1))(paths)
    np.testing.assert_allclose(state.params, [1.0, 1.0], atol=0.15)
    assert int(state.count) == 2000


def test_features_that_cannot_be_told_apart_are_not_given_coefficients():
    paths = sampled(SQUARE, 200, spread=0.5, K=10)
    twice = lambda t, x: jnp.stack([x[0] ** 2, 2 * x[0] ** 2])  # noqa: E731
    fit = lstd(twice, paths)
    assert np.all(np.isnan(fit.coefficients))
    assert not fit.condition < 1 / jnp.finfo(FLOAT).eps / 10
    # Units do not matter: a condition in scaled features.
    far = lstd(lambda t, x: jnp.stack([1e-6 * x[0] ** 2, 1e6 * (1 - t)]), paths)
    near = lstd(SQUARE.features, paths)
    tol = {"float64": 1e-9, "float32": 1e-3}[FLOAT.name]
    np.testing.assert_allclose(far.coefficients * jnp.asarray([1e-6, 1e6], FLOAT), near.coefficients, rtol=tol)
    assert np.all(np.isnan(lstd(SQUARE.features, Paths(paths.times, paths.states.at[3, 2].set(jnp.nan),
                                                        paths.terminal)).coefficients))  # fmt: skip


@needs_x64
@pytest.mark.long
def test_derivatives_of_a_fit_and_many_at_once():
    """Of the coefficients in the payoffs, which enter linearly: against differences; and batches give the same."""
    paths = sampled(SQUARE, 200, spread=0.5, K=10)

    def first(scale):
        return lstd(SQUARE.features, Paths(paths.times, paths.states, scale * paths.terminal)).coefficients[0]

    slope = jax.grad(first)(1.0)
    np.testing.assert_allclose(slope, (first(1.5) - first(0.5)), rtol=1e-8)
    small = Paths(paths.times, jnp.tile(paths.states, (25, 1, 1)), jnp.tile(paths.terminal, 25))
    np.testing.assert_allclose(
        lstd(SQUARE.features, small).coefficients, lstd(SQUARE.features, paths).coefficients, rtol=1e-9
    )


def test_simulated_paths_have_the_moments_of_the_equation():
    states = sampled(COST, 4000, spread=0.0, start=1.0).states[:, -1, 0]
    mean, level = np.exp(-COST.pull), COST.noise**2 / (2 * COST.pull)
    assert abs(float(jnp.mean(states)) - mean) < 0.03
    assert abs(float(jnp.var(states)) - level * (1 - mean**2)) < 0.02


@whatever_precision
def test_what_cannot_be_is_refused():
    times, x, h = jnp.linspace(0, 1, 4), jnp.zeros((2, 4, 1)), jnp.zeros(2)
    with pytest.raises(ValueError, match="Paths: `states`"):
        Paths(times, jnp.zeros((2, 3, 1)), h)
    with pytest.raises(ValueError, match="Paths: `terminal`"):
        Paths(times, x, jnp.zeros(3))
    with pytest.raises(ValueError, match="Paths: `rewards`"):
        Paths(times, x, h, jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="lstd: `lam`"):
        lstd(SQUARE.features, Paths(times, x, h), lam=1.5)
    with pytest.raises(ValueError, match="lstd: `features`"):
        lstd(lambda t, x: t, Paths(times, x, h))
    with pytest.raises(ValueError, match="td_learning: `method`"):
        td_learning(linear(SQUARE.features), method="sarsa", rate=0.1)
    with pytest.raises(ValueError, match="td_learning: `lam`"):
        td_learning(linear(SQUARE.features), rate=0.1, lam=-1.0)
