"""The Gaussian-process bandit against a dense regression, and its regret on 512 arms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import GPBandit

from ..conftest import FLOAT, X64

BITS = np.array(np.meshgrid(*[[0.0, 1.0]] * 9, indexing="ij")).reshape(9, -1).T


def costs_of(seed):
    """Return costs of 512 arms and of a context in [0, 1]: linear, pairwise, and shifting with the context."""
    rng = np.random.default_rng(seed)
    one, two, three = rng.standard_normal(9), np.triu(rng.standard_normal((9, 9)), 1), rng.standard_normal(9)

    def cost(context):
        weights = jnp.asarray(one, FLOAT) + context * jnp.asarray(three, FLOAT)
        arms = jnp.asarray(BITS, FLOAT)
        return arms @ weights + 0.3 * jnp.sum((arms @ jnp.asarray(two, FLOAT)) * arms, 1)

    return cost


def played(learner, cost, rounds, key):
    """Return the regret of each round: context uniform, noise a tenth."""
    state = learner.init(jnp.asarray(BITS, FLOAT))

    def body(state, key):
        one, two, three = jax.random.split(key, 3)
        context = jax.random.uniform(one, (1,), FLOAT)
        pull = learner.select(state, context, two)
        row = cost(context[0])
        state = learner.update(state, pull, row[pull.arm] + 0.1 * jax.random.normal(three, (), FLOAT))
        return state, row[pull.arm] - jnp.min(row)

    return jax.lax.scan(body, state, jax.random.split(key, rounds))[1]


@pytest.mark.long
def test_belief_is_the_regression_with_the_best_rate():
    """Mean and variance at all arms against NumPy, at the rate whose evidence is the largest."""
    rng, learner = np.random.default_rng(5), GPBandit(contexts=1, capacity=8, noise=0.2, context_length=0.5)
    arms = rng.random((6, 2))
    state = learner.init(jnp.asarray(arms, FLOAT))
    index, contexts, costs = rng.integers(0, 6, 5), rng.random((5, 1)), rng.standard_normal(5) * 3 + 7
    for i, s, c in zip(index, contexts, costs, strict=True):
        pull = learner.select(state, jnp.asarray(s, FLOAT), jax.random.key(3))
        pull = jax.tree.map(lambda x: x, pull)
        object.__setattr__(pull, "arm", jnp.asarray(i, jnp.int32))
        state = learner.update(state, pull, c)
    here = np.array([0.4])
    mean, spread, _, explained = learner.belief(state, jnp.asarray(here, FLOAT))
    y = (costs - costs.mean()) / costs.std()
    best = (-np.inf, None)
    for rate in (0.5, 1.0, 2.0, 4.0, 8.0):
        gram = lambda a, b, r=rate: np.exp(-r * np.abs(a[:, None] - b[None]).mean(-1))  # noqa: E731
        near = lambda s, t: np.exp(-((s - t.T) ** 2) / 0.5)  # noqa: E731
        K = gram(arms[index], arms[index]) * near(contexts, contexts) + 0.04 * np.eye(5)
        evidence = -y @ np.linalg.solve(K, y) / 2 - np.linalg.slogdet(K)[1] / 2
        k = gram(arms[index], arms) * near(contexts, here[None])
        if evidence > best[0]:
            best = evidence, (k.T @ np.linalg.solve(K, y), 1 - np.sum(k * np.linalg.solve(K, k), 0))
    tol = 1e-10 if X64 else 1e-4
    np.testing.assert_allclose(mean, costs.mean() + costs.std() * best[1][0], rtol=10 * tol)
    np.testing.assert_allclose(1 - jnp.sum(explained**2, 0), best[1][1], atol=10 * tol)
    np.testing.assert_allclose(spread, costs.std(), rtol=tol)


@pytest.mark.parametrize("acquisition", ["ucb", "thompson"])
@pytest.mark.long
def test_regret_is_sublinear_on_512_arms(acquisition):
    """Cumulative regret grows with an exponent well below one, and is a fraction of that of uniform play."""
    cost, rounds = costs_of(3), 96
    learner = GPBandit(acquisition, contexts=1, capacity=rounds)
    regrets = np.asarray(jax.jit(lambda k: played(learner, cost, rounds, k))(jax.random.key(7)))
    total = np.cumsum(regrets)
    late = regrets[-24:].mean()
    rows = jax.vmap(cost)(jnp.linspace(0, 1, 32, dtype=FLOAT))
    uniform = float(jnp.mean(rows - jnp.min(rows, 1, keepdims=True)))
    assert late < uniform / 5
    slope = np.polyfit(np.log(np.arange(16, rounds)), np.log(total[16:]), 1)[0]
    assert slope < 0.8


@pytest.mark.long
def test_before_any_cost_all_arms_are_equal_and_a_cost_that_is_nan_is_left_out():
    learner = GPBandit(capacity=4)
    state = learner.init(3)
    pull = learner.select(state, None, jax.random.key(5))
    assert pull.probabilities.sum() == 1
    seen = {int(learner.select(state, None, jax.random.key(k)).arm) for k in range(10, 30)}
    assert seen == {0, 1, 2}
    assert learner.update(state, pull, jnp.nan).rounds == 0
    assert learner.update(state, pull, 1.0).rounds == 1


@pytest.mark.long
def test_memory_keeps_the_latest():
    learner = GPBandit("greedy", capacity=2)
    state = learner.init(3)
    for cost in (1.0, 2.0, 3.0):
        state = learner.update(state, learner.select(state, None, jax.random.key(5)), cost)
    assert sorted(np.asarray(state.costs)) == [2.0, 3.0]
    assert np.all(np.isfinite(learner.belief(state, None)[0]))


def test_refusals():
    with pytest.raises(ValueError, match="acquisition"):
        GPBandit("softmax")
    with pytest.raises(ValueError, match="arms"):
        GPBandit().init(jnp.ones(3))
    with pytest.raises(ValueError, match="context"):
        GPBandit(contexts=1).select(GPBandit(contexts=1).init(3), None, jax.random.key(3))


def test_two_stages_are_two_learners_where_the_second_sees_the_first():
    """METALIC's sequence, Adam and then L-BFGS: the first stage is told 0.9 of what the second came to.

    The best second choice turns round with how the first stage ended: blind to it, every arm costs 1/2 on average.
    """
    rounds, arms = 96, jnp.asarray(BITS[:8, 6:], FLOAT)
    first, second = GPBandit(contexts=1, capacity=rounds), GPBandit(contexts=2, capacity=rounds)
    goal, wanted = jnp.asarray([1, 1, 0], FLOAT), jnp.asarray([[1, 0, 1], [0, 1, 0]], FLOAT)

    def body(states, key):
        one, two, three = jax.random.split(key, 3)
        task = jax.random.bernoulli(one).astype(FLOAT)
        pull = first.select(states[0], task[None], two)
        ended = task + 0.15 * jnp.sum(jnp.abs(arms[pull.arm] - goal))
        after = second.select(states[1], jnp.stack([task, ended]), three)
        cost = jnp.mean(jnp.abs(arms[after.arm] - wanted[(ended > 0.5).astype(int)]))
        states = first.update(states[0], pull, ended + 0.9 * cost), second.update(states[1], after, cost)
        return states, jnp.stack([ended - task, cost])

    start = first.init(arms), second.init(arms)
    run = jax.jit(lambda key: jax.lax.scan(body, start, jax.random.split(key, rounds))[1])
    several = np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(jax.random.split(jax.random.key(7), 4)))
    own, after = several[:, -32:].mean((0, 1))
    assert own < 0.2  # arms at random: 0.225; a step of 0.15 is small beside the tasks, one apart
    assert after < 0.1
