"""Estimators of policy gradients against sums over all trajectories, and control against Riccati's equation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Trajectory, policy_gradient, policy_hvp, rewards_to_go
from solvers.problems.stochastic import scalar_lqr

from ..conftest import FLOAT

STATES, ACTIONS, HORIZON, DISCOUNT = 2, 2, 3, 0.9
TOL = {"float64": 2e-15, "float32": 3e-6}[FLOAT.name]


def log_policy(params, state, action):
    return jax.nn.log_softmax(params.reshape(STATES, ACTIONS)[state])[action]


@pytest.fixture(scope="module")
def everything():
    """All 64 trajectories of a random decision process, and its parts."""
    rng = np.random.default_rng(31)
    move = jnp.asarray(rng.dirichlet(np.ones(STATES), (STATES, ACTIONS)), FLOAT)
    reward = jnp.asarray(rng.standard_normal((STATES, ACTIONS)), FLOAT)
    paths = list(itertools.product(itertools.product(range(STATES), repeat=HORIZON),
                                   itertools.product(range(ACTIONS), repeat=HORIZON)))  # fmt: skip
    states, actions = (jnp.asarray([p[i] for p in paths]) for i in (0, 1))
    trajectories = Trajectory(states, actions, reward[states, actions])
    dynamics = 0.5 * jnp.prod(move[states[:, :-1], actions[:, :-1], states[:, 1:]], axis=1)
    params = jnp.asarray(rng.standard_normal(STATES * ACTIONS), FLOAT)

    def probabilities(params):
        logs = jax.vmap(jax.vmap(lambda s, a: log_policy(params, s, a)))(states, actions)
        return dynamics * jnp.exp(jnp.sum(logs, axis=1))

    def value(params):
        powers = DISCOUNT ** jnp.arange(HORIZON, dtype=FLOAT)
        return probabilities(params) @ (trajectories.rewards @ powers)

    return params, trajectories, probabilities(params), value


@pytest.mark.parametrize("with_baseline", [False, True])
@pytest.mark.long
def test_gradient_and_curvature_are_unbiased_to_the_last_bit(everything, with_baseline):
    params, trajectories, weight, value = everything
    of_state = jnp.asarray([0.7, -1.3], FLOAT)
    baseline = of_state[trajectories.states] if with_baseline else jnp.zeros((64, HORIZON), FLOAT)
    gradients = jax.vmap(
        lambda t, b: policy_gradient(log_policy, params, t, discount=DISCOUNT, baseline=b)
    )(trajectories, baseline)  # fmt: skip
    np.testing.assert_allclose(weight @ gradients, jax.grad(value)(params), atol=TOL)
    hessian = jax.hessian(value)(params)
    for direction in jnp.eye(4, dtype=FLOAT):
        products = jax.vmap(
            lambda t, b, d=direction: policy_hvp(log_policy, params, t, d, discount=DISCOUNT, baseline=b)
        )(trajectories, baseline)  # fmt: skip
        np.testing.assert_allclose(weight @ products, hessian @ direction, atol=TOL)


@pytest.mark.long
def test_the_likelihood_term_of_the_curvature_is_needed(everything):
    """Without it the Hessian of Phi alone is biased: what a program that differentiates twice would return."""
    params, trajectories, weight, value = everything

    def phi(p, t):
        logs = jax.vmap(lambda s, a: log_policy(p, s, a))(t.states, t.actions)
        return jnp.sum(rewards_to_go(t.rewards, DISCOUNT) * logs)

    bent = jax.vmap(lambda t: jax.hessian(lambda p: phi(p, t))(params))(trajectories)
    naive = jnp.einsum("t,tij->ij", weight, bent)
    assert float(jnp.max(jnp.abs(naive - jax.hessian(value)(params)))) > 0.05


def test_rewards_to_go():
    np.testing.assert_allclose(rewards_to_go(jnp.asarray([1.0, 2.0, 4.0], FLOAT), 0.5), [3.0, 2.0, 1.0])


@pytest.mark.long
def test_riccati_is_the_minimum_of_the_closed_form_cost():
    lqr = scalar_lqr(FLOAT)
    best = lqr.optimal_gain()
    assert float(jnp.abs(jax.grad(lqr.cost)(best))[0, 0]) < {"float64": 1e-12, "float32": 1e-4}[FLOAT.name]
    for other in (best + 0.1, best - 0.1):
        assert lqr.cost(other) > lqr.cost(best)
    assert jnp.isinf(lqr.cost(best - 2))


def test_rollouts_have_the_closed_form_cost_and_gradient():
    """Within four standard errors, horizon 40 at discount 0.8 being as good as infinite."""
    lqr = scalar_lqr(FLOAT)
    K = lqr.optimal_gain() - 0.25
    count = 4000
    runs = jax.jit(jax.vmap(lambda key: lqr.rollout(K, key)))(jax.random.split(jax.random.key(5), count))
    returns = jax.vmap(lambda r: rewards_to_go(r, lqr.discount)[0])(runs[2])
    assert abs(float(jnp.mean(returns) + lqr.cost(K))) < 4 * float(jnp.std(returns)) / count**0.5 + 1e-3
    value = jnp.mean(jax.vmap(lambda r: rewards_to_go(r, lqr.discount))(runs[2]), axis=0)
    gradients = jax.jit(jax.vmap(
        lambda t: policy_gradient(lqr.log_policy, K, Trajectory(*t), discount=lqr.discount, baseline=value)
    ))(runs)[:, 0, 0]  # fmt: skip
    slope = -float(jax.grad(lqr.cost)(K)[0, 0])
    assert abs(float(jnp.mean(gradients)) - slope) < 4 * float(jnp.std(gradients)) / count**0.5
    assert abs(slope) > 5 * float(jnp.std(gradients)) / count**0.5
