"""Regret: constant without noise, of order sqrt(T) with it; projections in every metric; a moving target."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import solvers
from solvers import DynamicEnsemble, optimistic_descent, optimistic_mirror_descent, play, regret
from solvers.core.prox import Box, L2Ball, Zero

from ..conftest import FLOAT

D = 5
CURVES = jnp.asarray(np.linspace(0.1, 1, D), FLOAT)


def loss(x, target):
    return jnp.sum(CURVES * (x - target) ** 2) / 2


def targets(noise, T, seed=3):
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(D)
    centre *= 0.5 / np.linalg.norm(centre)
    return jnp.asarray(centre + noise * rng.standard_normal((T, D)), FLOAT)


def total(method, rounds):
    result = jax.jit(lambda r: play(method, loss, jnp.zeros(D, FLOAT), r))(rounds)
    return regret(loss, result.answers, rounds, jnp.mean(rounds, axis=0))


def test_regret_is_constant_without_noise():
    sums = total(optimistic_mirror_descent(bound=2.0), targets(0.0, 4000))
    assert 0 < sums[-1] < 1
    np.testing.assert_allclose(sums[-1], sums[400], rtol=1e-2)


def test_regret_grows_like_the_root_of_time_under_noise():
    method = optimistic_mirror_descent(bound=4.0)
    ends = [float(jnp.mean(jnp.stack([total(method, targets(1.0, T, seed))[-1] for seed in (3, 4, 5)])))
            for T in (400, 6400)]  # fmt: skip
    slope = np.log(ends[1] / ends[0]) / np.log(16)
    assert 0.3 < slope < 0.65


def test_curvature_makes_it_logarithmic():
    sums = total(optimistic_mirror_descent(loss="strongly_convex", curvature=0.1, bound=2.0), targets(0.3, 4000))
    assert float(sums[-1]) < 2 * float(sums[400]) + 1


def test_without_the_hint_it_is_projected_gradient_descent():
    """One step by hand: the anchor moves by the gradient, the answer by the hint as well."""
    method = optimistic_mirror_descent(diameter=2.0, bound=1.0, smoothness=1.0)
    state = method.init(jnp.zeros(2, FLOAT))
    g = jnp.asarray([3.0, 0.0], FLOAT)
    state = method.update(state, g)
    first, second = 2 / np.sqrt(40 + 4), 2 / np.sqrt(40 + 4 + 9)
    np.testing.assert_allclose(state.anchor, [-3 * first, 0], rtol=1e-6)
    np.testing.assert_allclose(method.predict(state), [max(-3 * first - 3 * second, -1), 0], rtol=1e-6)


def test_entropy_is_hedge():
    """On the simplex, with linear losses: the weights are the exponentials of the cumulated losses."""
    method = optimistic_mirror_descent(mirror="entropy")
    state = method.init(jnp.full(3, 1 / 3, FLOAT))
    rng = np.random.default_rng(3)
    logits = np.zeros(3)
    for g in rng.random((6, 3)):
        step = 2 / np.sqrt(44 + float(state.variation))
        state = method.update(state, jnp.asarray(g, FLOAT))
        logits = logits - step * g
        np.testing.assert_allclose(state.anchor, np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(method.predict(state)), 1, rtol=1e-6)


def test_newton_projects_in_its_own_metric():
    """Against the optimality condition: H (u - x) is a nonnegative multiple of x on the sphere."""
    method = optimistic_mirror_descent(mirror="newton", loss="exp_concave", bound=0.5, curvature=4.0)
    state = method.init(jnp.asarray([0.5, 0.1], FLOAT))
    for g in ([0.1, 0.4], [0.2, -0.4]):
        state = method.update(state, jnp.asarray(g, FLOAT))
    g = jnp.asarray([-30.0, 4.0], FLOAT)
    after = method.update(state, g)
    u = state.anchor - jnp.linalg.solve(state.metric, g)
    x = after.anchor
    np.testing.assert_allclose(jnp.linalg.norm(x), 1, rtol=1e-5)
    multiplier = state.metric @ (u - x)
    np.testing.assert_allclose(multiplier, jnp.vdot(multiplier, x) * x, rtol=1e-3, atol=1e-3)
    assert jnp.vdot(multiplier, x) > 0
    np.testing.assert_allclose(after.metric - state.metric, method.rate / 2 * jnp.outer(g, g), rtol=1e-5)


@pytest.mark.long
def test_the_ensemble_follows_a_target_that_jumps():
    """Dynamic regret far below that of the single adaptive step, and the weights favour long steps."""
    T = 2000
    sides = np.where((np.arange(T) // 100) % 2, 0.6, -0.6)
    rounds = jnp.asarray(np.tile(sides[:, None], (1, D)) / np.sqrt(D), FLOAT)
    quick = lambda x, r: 5 * jnp.sum((x - r) ** 2) / 2  # noqa: E731
    methods = {
        "ensemble": DynamicEnsemble.of(T, bound=5.0, smoothness=5.0),
        "single": optimistic_mirror_descent(loss="strongly_convex", curvature=5.0, bound=5.0, smoothness=5.0),
    }
    sums = {}
    for name, method in methods.items():
        result = jax.jit(lambda r, m=method: play(m, quick, jnp.zeros(D, FLOAT), r))(rounds)
        sums[name] = float(regret(quick, result.answers, rounds, rounds)[-1])
    assert sums["ensemble"] < 0.3 * sums["single"]
    np.testing.assert_allclose(jnp.sum(methods["ensemble"].weights(result_state(methods["ensemble"]))), 1, rtol=1e-5)


def result_state(method):
    return method.init(jnp.zeros(D, FLOAT))


def test_many_adversaries_in_one_map():
    method = optimistic_mirror_descent(bound=2.0)
    lanes = jnp.stack([targets(0.3, 50, seed) for seed in range(3, 7)])
    batch = jax.jit(jax.vmap(lambda r: play(method, loss, jnp.zeros(D, FLOAT), r).answers))(lanes)
    for i in range(4):
        np.testing.assert_allclose(batch[i], play(method, loss, jnp.zeros(D, FLOAT), lanes[i]).answers, rtol=1e-4,
                                   atol=1e-6)  # fmt: skip


def test_the_transformation_plays_the_same_game():
    method = optimistic_mirror_descent(diameter=2.0, bound=2.0, domain=Zero())
    optimiser = optimistic_descent(2.0, 2.0, 1.0)
    x = jnp.asarray([0.3, -0.2], FLOAT)
    state, memory = method.init(x), optimiser.init(x)
    for target in ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0]):
        gradient = x - jnp.asarray(target, FLOAT)
        state = method.update(state, gradient)
        updates, memory = optimiser.update(gradient, memory, x)
        x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(x, method.predict(state), rtol=1e-5)
    boxed = optimistic_descent(2.0, 2.0, 1.0, domain=Box(-0.1, 0.1))
    updates, _ = boxed.update(jnp.full(2, 9.0, FLOAT), boxed.init(jnp.zeros(2, FLOAT)), jnp.zeros(2, FLOAT))
    np.testing.assert_allclose(updates, [-0.1, -0.1], rtol=1e-6)


def test_what_cannot_be_is_refused():
    for options, message in (
        ({"mirror": "newton"}, "loss"),
        ({"mirror": "entropy", "domain": L2Ball(1.0)}, "domain"),
        ({"mirror": "newton", "loss": "exp_concave", "domain": Box(0, 1)}, "L2Ball"),
        ({"bound": -1.0}, "bound"),
        ({"loss": "concave"}, "loss"),
    ):
        with pytest.raises(ValueError, match=message):
            solvers.optimistic_mirror_descent(**options)
