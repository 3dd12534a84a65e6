"""HESSO on planted problems: support, exact zeros at the promised update, lines to zero, cycles, smaller arrays."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from solvers import Units, group_scores, hesso, parameter_groups, shrink
from solvers.compression import Cycles
from solvers.core.precision import matmul

from ..conftest import FLOAT

GROUPS, WIDTH = 12, 4


def planted(seed=5):
    """A regression whose coefficients come in 12 groups, 6 of them without effect."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((GROUPS, WIDTH)) + 2 * np.sign(rng.standard_normal((GROUPS, WIDTH)))
    support = np.sort(rng.permutation(GROUPS)[: GROUPS // 2])
    truth[np.setdiff1d(np.arange(GROUPS), support)] = 0
    x = rng.standard_normal((100, GROUPS * WIDTH))
    y = x @ truth.ravel() + 0.01 * rng.standard_normal(100)
    x, y = jnp.asarray(x, FLOAT), jnp.asarray(y, FLOAT)
    return lambda p: jnp.mean((matmul(x, p["w"].reshape(-1)) - y) ** 2), truth, support


def start(seed=6):
    return {"w": jnp.asarray(np.random.default_rng(seed).standard_normal((GROUPS, WIDTH)), FLOAT)}


ROWS = parameter_groups(start(), [Units([("w", 0)])])


def train(optimiser, loss, params, count, **extra):
    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params), state, params, **extra)
            params = optax.apply_updates(params, updates)
            return (params, state), params["w"]

        return jax.lax.scan(step, (params, optimiser.init(params)), None, length=count)

    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam asks for it
        (params, state), path = run(params)
    return params, state, np.asarray(path)


@pytest.mark.parametrize("inner", [optax.sgd(0.05, momentum=0.9), optax.adam(0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize("periods", [1, 3])
def test_planted_groups_are_found_and_zero_at_the_promised_update(inner, periods):
    loss, _, support = planted()
    optimiser = hesso(inner, ROWS, start=150, steps=30, periods=periods)
    params, state, path = train(optimiser, loss, start(), 300)
    zero = np.all(path == 0, axis=2)
    redundant = np.setdiff1d(np.arange(GROUPS), support)
    np.testing.assert_array_equal(np.flatnonzero(zero[-1]), redundant)
    assert zero[179:, redundant].all()
    assert zero[178].sum() == GROUPS // 2 - GROUPS // 2 // periods
    assert not zero[:, support].any()
    np.testing.assert_array_equal(np.flatnonzero(state.pruned | state.active), redundant)
    assert loss(params) < 1e-3


def test_groups_go_to_zero_along_straight_lines():
    w = start()
    optimiser = hesso(optax.sgd(0.0), ROWS, start=2, steps=5, scores={"magnitude": 1.0})
    _, state, path = train(optimiser, lambda p: jnp.sum(p["w"] ** 2), w, 8)
    least = np.argsort(np.linalg.norm(w["w"], axis=1))[: GROUPS // 2]
    np.testing.assert_array_equal(np.flatnonzero(state.active), np.sort(least))
    for t in range(8):
        left = np.clip(1 - (t - 1) / 5, 0, 1)
        np.testing.assert_allclose(path[t, least], left * np.asarray(w["w"])[least], rtol=1e-5)
    kept = np.setdiff1d(np.arange(GROUPS), least)
    np.testing.assert_array_equal(path[-1, kept], np.asarray(w["w"])[kept])


def test_scores_are_the_published_formulas():
    rng = np.random.default_rng(7)
    x, d = rng.standard_normal((2, GROUPS, WIDTH))
    inner = np.sum(x * d, 1)
    nx, nd = np.linalg.norm(x, axis=1), np.linalg.norm(d, axis=1)
    table = {
        "magnitude": nx, "avg_magnitude": nx / WIDTH, "cosine_similarity": inner / (nx * nd) + 1,
        "taylor_first_order": abs(inner), "taylor_second_order": inner**2 / 2,
    }  # fmt: skip
    tree = lambda v: {"w": jnp.asarray(v, FLOAT)}  # noqa: E731
    total = 0
    for name, value in table.items():
        ours = group_scores(tree(x), tree(d), ROWS, scores={name: 1.0})
        np.testing.assert_allclose(ours, value / np.linalg.norm(value), rtol=1e-4, atol=1e-6)
        total = total + 0.2 * value / np.linalg.norm(value)
    np.testing.assert_allclose(group_scores(tree(x), tree(d), ROWS), total, rtol=1e-4)
    assert np.all(np.isfinite(group_scores(tree(0 * x), tree(0 * d), ROWS)))


def test_cycles_return_and_end_and_prune_within_their_bound():
    loss, _, support = planted(8)
    optimiser = hesso(optax.sgd(0.05, momentum=0.9), ROWS, start=60, steps=20, cycles=4, sampling_steps=6)
    _, state, path = train(optimiser, loss, start(), 160)
    assert isinstance(state.cycles, Cycles)
    used = int(state.cycles.cycle) * 6
    assert 6 <= used <= 24
    zero = np.all(path == 0, axis=2)
    np.testing.assert_array_equal(np.flatnonzero(zero[-1]), np.setdiff1d(np.arange(GROUPS), support))
    assert zero[60 + used + 20 - 1].sum() == GROUPS // 2
    assert zero[60 + used + 20 - 2].sum() == 0
    for cycle in range(int(state.cycles.cycle)):
        np.testing.assert_allclose(path[60 + 6 * (cycle + 1) - 1], path[59], rtol=1e-5, atol=1e-6)
    plain = train(optax.sgd(0.05, momentum=0.9), loss, start(), 61)[2]
    kept = path[60 + used][support]
    np.testing.assert_allclose(kept, plain[60][support], rtol=1e-4, atol=1e-5)


def test_trials_see_what_a_score_at_one_point_cannot():
    """Two groups of equal norm and no gradient: the loss hardly minds the one and depends on the other."""
    curvature = jnp.asarray([[1e-3], [10.0]], FLOAT)
    loss = lambda p: jnp.sum(curvature * (p["w"] - 1) ** 2)  # noqa: E731
    params = {"w": jnp.asarray([[1.0001], [1.0]], FLOAT)}
    groups = parameter_groups(params, [Units([("w", 0)])])
    options = {"steps": 4, "scores": {"taylor_first_order": 1.0}}
    for cycles, expected in ((0, 1), (3, 0)):
        optimiser = hesso(optax.sgd(1e-3), groups, cycles=cycles, sampling_steps=5, **options)
        end, _, _ = train(optimiser, loss, params, 30)
        assert np.flatnonzero(np.asarray(end["w"]) == 0).tolist() == [expected]


def test_trial_losses_protect_a_family():
    """Equal magnitudes everywhere; the loss depends on the first family alone."""
    params = {"w": jnp.ones(4, FLOAT), "v": jnp.ones(4, FLOAT)}
    loss = lambda p: jnp.sum((p["w"] - 1.1) ** 2) + 0 * jnp.sum(p["v"])  # noqa: E731
    groups = parameter_groups(params, [Units([("w", 0)]), Units([("v", 0)])])
    optimiser = hesso(optax.sgd(0.0), groups, target_sparsity=0.3, steps=2, cycles=1, sampling_steps=2,
                      scores={"magnitude": 0.2, "loss": 1.0})  # fmt: skip
    end, _, _ = train(optimiser, loss, params, 8, value_fn=loss)
    assert np.all(end["w"] != 0)
    assert np.sum(np.asarray(end["v"]) == 0) == 2
    with pytest.raises(ValueError, match="value_fn"):
        optimiser.update(params, optimiser.init(params), params)


def network(seed=9, hidden=8):
    rng = np.random.default_rng(seed)
    draw = lambda *s: jnp.asarray(rng.standard_normal(s), FLOAT)  # noqa: E731
    return {
        "conv": {"w": draw(3, 3, 1, 6), "b": draw(6)},
        "dense": {"w": draw(4 * 4 * 6, hidden), "b": draw(hidden)},
        "head": {"w": draw(hidden, 3)},
    }


FAMILIES = [
    Units([("conv/w", 3), ("conv/b", 0)], [("dense/w", 0, np.arange(4 * 4 * 6) % 6)]),
    Units([("dense/w", 1), ("dense/b", 0)], [("head/w", 0)]),
]


def apply(p, x):
    y = jax.lax.conv_general_dilated(x, p["conv"]["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jax.nn.relu(y + p["conv"]["b"][None, None, None]).reshape(len(x), -1)
    y = jax.nn.relu(y @ p["dense"]["w"] + p["dense"]["b"][None])
    return y @ p["head"]["w"]


@pytest.mark.long
def test_a_smaller_network_computes_the_same():
    params = network()
    groups = parameter_groups(params, FAMILIES)
    assert groups.count == 14
    np.testing.assert_array_equal(groups.size, [10] * 6 + [97] * 8)
    off = jnp.isin(jnp.arange(14), jnp.asarray([1, 4, 6, 9, 13]))
    mask = groups.spread(jnp.where(off, 0.0, 1.0).astype(FLOAT), params, outside=1)
    pruned = jax.tree.map(jnp.multiply, params, mask)
    np.testing.assert_array_equal(groups.zero(pruned), off)
    small = shrink(pruned, groups)
    assert [x.shape for x in jax.tree.leaves(small)] == [(4,), (3, 3, 1, 4), (5,), (64, 5), (5, 3)]
    x = jnp.asarray(np.random.default_rng(3).standard_normal((5, 6, 6, 1)), FLOAT)
    np.testing.assert_allclose(apply(small, x), apply(pruned, x), rtol=1e-4, atol=1e-4)
    nothing = shrink(jax.tree.map(jnp.zeros_like, params), groups)
    assert nothing["head"]["w"].shape == (1, 3)
    with pytest.raises(TypeError, match="concrete"):
        jax.jit(partial(shrink, groups=groups))(params)


def test_a_family_keeps_its_last_unit():
    params = {"w": jnp.asarray([1e-3, 1e-3], FLOAT), "v": jnp.ones(6, FLOAT)}
    groups = parameter_groups(params, [Units([("w", 0)]), Units([("v", 0)])])
    optimiser = hesso(optax.sgd(0.0), groups, target_sparsity=0.9, steps=1)
    updates, _ = optimiser.update(params, optimiser.init(params), params)
    end = optax.apply_updates(params, updates)
    assert np.sum(np.asarray(end["w"]) == 0) == 1
    assert np.sum(np.asarray(end["v"]) == 0) == 5


def test_impossible_groups_and_settings_raise():
    params = network()
    for families, match in (
        ([Units([("conv/w", 3)]), Units([("conv/w", 3)])], "overlap"),
        ([Units([("conv/w", 3)]), Units([("conv/w", 2)])], "overlap"),
        ([Units([("conv/w", 3), ("dense/b", 0)])], "cover"),
        ([Units([("kernel", 3)])], "paths"),
        ([Units([("conv/b", 1)])], "axis"),
        ([Units([("conv/b", 0, [0, 1])])], "units"),
        ([], "families"),
    ):
        with pytest.raises(ValueError, match=match):
            parameter_groups(params, families)
    for options, error in (
        ({"target_sparsity": 1.0}, ValueError), ({"target_sparsity": -0.1}, ValueError), ({"steps": 0}, ValueError),
        ({"steps": 2.5}, TypeError), ({"periods": 3, "steps": 2}, ValueError), ({"scores": {"size": 1}}, ValueError),
        ({"scores": {"loss": 1.0}}, ValueError), ({"start": -1}, ValueError), ({"cycles": -1}, ValueError),
    ):  # fmt: skip
        with pytest.raises(error):
            hesso(optax.sgd(0.1), ROWS, **options)
    with pytest.raises(ValueError, match="params"):
        hesso(optax.sgd(0.1), ROWS).update(start(), hesso(optax.sgd(0.1), ROWS).init(start()))
    with pytest.raises(TypeError, match="groups"):
        hesso(optax.sgd(0.1), {"w": 0})
