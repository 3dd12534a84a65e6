"""Learners: probabilities to rounding, guarantees on small instances, regressions against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import ChebCB, ContextBins, ExpertMix, ThompsonRegression, TsallisINF, replay
from solvers.core.bandits.learners import Pull, tsallis_probabilities

DTYPE = jnp.result_type(float)
RNG = np.random.default_rng(41)
KEY = jax.random.key(11)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("eta", [4.0, 0.3, 0.02])
def test_tsallis_probabilities(spread, eta):
    losses = np.asarray(spread * np.random.default_rng(41).random(20) - spread / 3, DTYPE)
    p = np.asarray(tsallis_probabilities(jnp.asarray(losses), eta), np.float64)
    above = losses.astype(float) - losses.min().astype(float)
    low, high = 2 / eta, 2 * np.sqrt(20) / eta
    for _ in range(200):
        u = (low + high) / 2
        low, high = (u, high) if np.sum(4 / (eta * (above + u)) ** 2) > 1 else (low, u)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
    rtol = 1e-10 if jnp.float64 == DTYPE else 1e-4
    np.testing.assert_allclose(p, 4 / (eta * (above + low)) ** 2, rtol=rtol)


def test_importance_weights_are_those_of_the_paper():
    learner = TsallisINF("importance")
    state = learner.init(3)
    total, mean, costs = np.zeros(3), 1.0, [4.0, 9.0, 2.0]
    for t, cost in enumerate(costs, 1):
        p = np.asarray(learner.propose(state, None, KEY)[0])
        want = np.asarray(tsallis_probabilities(jnp.asarray(total / mean, DTYPE), 2 / np.sqrt(t)))
        np.testing.assert_allclose(p, want, rtol=1e-4)
        arm = t % 3
        state = learner.update(state, Pull(jnp.int32(arm), p[arm], jnp.asarray(p), None), cost)
        total[arm] += (cost - 1) / p[arm]
        mean = (np.mean(costs[:t])) - 1


@pytest.mark.parametrize("estimator", ["importance", "variance"])
def test_regret_grows_like_a_root(estimator):
    rounds = 2048
    costs = jnp.asarray(1 + RNG.random((rounds, 5)) * np.array([1.0, 1.0, 0.5, 1.0, 1.0]), DTYPE)
    run = jax.jit(jax.vmap(lambda k: replay(TsallisINF(estimator), costs, key=k).costs))
    paid = np.asarray(run(jax.random.split(KEY, 12))).mean(0)
    regret = np.cumsum(paid - np.asarray(costs[:, 2]))
    assert 0 < regret[-1] < 4 * np.sqrt(5 * rounds)
    slope = np.log(regret[-1] / regret[rounds // 16]) / np.log(16)
    assert slope < 0.75


def test_variance_reduction_lowers_the_cost_of_learning():
    costs = jnp.asarray(10 + 20 * RNG.random((2048, 8)) + 10 * np.arange(8)[::-1], DTYPE)
    paid = []
    for estimator in ("importance", "variance"):
        run = jax.jit(jax.vmap(lambda k, e=estimator: replay(TsallisINF(e), costs, key=k).costs.mean()))
        paid.append(float(run(jax.random.split(KEY, 12)).mean()))
    assert paid[1] < paid[0]


def test_millions_of_rounds_fit_float32():
    learner = TsallisINF()
    state = learner.init(4)
    state = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == DTYPE else x, state)
    for _ in range(3):
        state = jax.tree.map(lambda x: x, state)
        p = learner.propose(state, None, KEY)[0]
        pull = Pull(jnp.int32(1), p[1], p, None)
        state = learner.update(state, pull, jnp.float32(1e8))
    assert float(state.losses.min()) == 0
    assert jnp.isfinite(learner.propose(state, None, KEY)[0]).all()


def contextual(rounds, arms=6):
    context = RNG.random(rounds)
    best = np.linspace(0, 1, arms)
    return context, 5 + 40 * (context[:, None] - best[None, :]) ** 2 + RNG.random((rounds, arms))


def paid_last(learner, costs, contexts, trials=6):
    costs, contexts = jnp.asarray(costs, DTYPE), jnp.asarray(contexts, DTYPE)
    run = jax.jit(jax.vmap(lambda k: replay(learner, costs, key=k, contexts=contexts).costs))
    return float(np.asarray(run(jax.random.split(KEY, trials)))[:, -len(costs) // 4 :].mean())


def test_context_is_used():
    contexts, costs = contextual(2048)
    fixed, best = costs[-512:].mean(0).min(), costs[-512:].min(1).mean()
    blind = paid_last(TsallisINF(), costs, contexts)
    binned = paid_last(ContextBins(TsallisINF(), 0.0, 1.0, 4), costs, contexts)
    cheb = paid_last(ChebCB(0.0, 1.0), costs, contexts)
    assert best < cheb < binned < blind
    assert binned < fixed
    assert cheb < best * 1.2


def test_recursive_least_squares_is_the_ridge_fit():
    learner = ChebCB(-1.0, 1.0, features=3)
    state, x, y = learner.init(2), RNG.uniform(-1, 1, 7), 5 + 3 * RNG.random(7)
    p = jnp.full(2, 0.5, DTYPE)
    for c, cost in zip(x, y, strict=True):
        state = learner.update(state, Pull(jnp.int32(1), p[1], p, jnp.asarray(c, DTYPE)), cost)
    F = np.stack([np.ones(7), x, 2 * x**2 - 1], 1)
    want = np.linalg.solve(F.T @ F + 1e-3 * np.eye(3), F.T @ (y - 1))
    np.testing.assert_allclose(state.weights[1], want, rtol=1e-2, atol=1e-2)
    assert jnp.all(state.weights[0] == 0)


def features(context, arms):
    return jnp.stack([jnp.ones_like(arms), arms * context], axis=1)


def test_square_root_update_is_bayes_rule():
    learner = ThompsonRegression(features, jnp.asarray([0.5, -1.0], DTYPE), 2.0, forget=1.0)
    arms = jnp.asarray([0.0, 1.0, 2.0], DTYPE)
    state = learner.init(arms)
    F, y = [], []
    for k in range(6):
        c = jnp.asarray(0.3 * k, DTYPE)
        p, detail = learner.propose(state, c, KEY)
        state = learner.update(state, Pull(jnp.int32(k % 3), p[0], p, c, detail), 2.0 + k)
        F.append(np.asarray(features(c, arms))[k % 3])
        y.append(np.log(2.5 + k))
    F, y = np.array(F), np.array(y)
    precision = F.T @ F + np.eye(2) / 4
    root = np.asarray(state.root, float)
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(precision), rtol=1e-4, atol=1e-5)
    mean = np.linalg.solve(precision, F.T @ y + np.array([0.5, -1.0]) / 4)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-4, atol=1e-5)


class Stubborn(TsallisINF):
    """Always plays arm 0."""

    def propose(self, state, context, key):
        return (jnp.arange(state.losses.size) == 0).astype(DTYPE), None


def test_a_mix_survives_a_wrong_expert():
    costs = jnp.asarray(1 + RNG.random((2048, 4)) + np.array([10.0, 2.0, 2.0, 1.0]), DTYPE)
    mix = ExpertMix((Stubborn(), TsallisINF("importance")))
    paid = replay(mix, costs, key=KEY).costs
    assert float(paid[-400:].mean()) < 4
    states, master = mix.init(4)
    (p, (proposals, weights, _)) = mix.propose((states, master), None, KEY)
    np.testing.assert_allclose(p, weights @ proposals, rtol=1e-6)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)


def test_same_key_same_run_and_bad_arms():
    costs = jnp.asarray(RNG.random((20, 3)), DTYPE)
    one, other = (replay(TsallisINF(), costs, key=KEY).arms for _ in range(2))
    assert jnp.all(one == other)
    with pytest.raises(ValueError, match="arms"):
        TsallisINF().init(0)
    with pytest.raises(ValueError, match="estimator"):
        TsallisINF("loss")
    with pytest.raises(ValueError, match="`mean`"):
        ThompsonRegression(features).init(3)
