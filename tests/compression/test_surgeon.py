"""Pruning with the inverse Fisher matrix against dense constrained least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import EmpiricalFisher

from ..compiled import obs_scores, obs_update
from ..conftest import FLOAT, X64

TOL = 1e-9 if X64 else 2e-4
M, D = 9, 14
DAMPING = 0.05


def data(seed=5):
    rng = np.random.default_rng(seed)
    g, w = rng.standard_normal((M, D)), rng.standard_normal(D)
    return g, w, DAMPING * np.eye(D) + g.T @ g / M


def tree(x, dtype=FLOAT):
    return {"a": jnp.asarray(x[..., :8].reshape(*x.shape[:-1], 4, 2), dtype), "b": jnp.asarray(x[..., 8:], dtype)}


def flat(t):
    return np.concatenate([np.asarray(t["a"], np.float64).ravel(), np.asarray(t["b"], np.float64)])


def exact(w, f, prune):
    """The change that is -w on the pruned and minimises d'Fd/2 over the rest."""
    d = np.where(prune, -w, 0.0)
    kept = ~prune
    if kept.any():
        d[kept] = np.linalg.solve(f[np.ix_(kept, kept)], -f[np.ix_(kept, prune)] @ d[prune])
    return d


@pytest.mark.parametrize("count", [0, 1, 6, D])
def test_joint_pruning_is_the_constrained_minimum(count):
    g, w, f = data()
    prune = np.zeros(D, bool)
    prune[np.random.default_rng(6).permutation(D)[:count]] = True
    d = exact(w, f, prune)
    after = jax.jit(obs_update)(tree(w), EmpiricalFisher(tree(g), DAMPING), tree(prune, bool))
    assert np.all(flat(after.weights)[prune] == 0)
    np.testing.assert_allclose(flat(after.weights), w + d, atol=TOL * 10)
    assert abs(after.rise - d @ f @ d / 2) <= 10 * TOL * max(1, d @ f @ d)
    single = obs_update(tree(w), EmpiricalFisher(tree(g), DAMPING), tree(prune, bool), method="one_by_one")
    assert np.all(flat(single.weights)[prune] == 0)
    assert single.rise >= after.rise - TOL
    if count == 1:
        np.testing.assert_allclose(flat(single.weights), w + d, atol=TOL * 10)


def test_the_score_of_a_weight_is_the_rise_when_it_goes():
    g, w, f = data(7)
    scores = flat(obs_scores(tree(w), EmpiricalFisher(tree(g), DAMPING)))
    for k in (0, 5, 13):
        d = exact(w, f, np.arange(D) == k)
        assert abs(scores[k] - d @ f @ d / 2) <= 10 * TOL * scores[k]


def test_a_nan_gradient_shows_and_bad_masks_raise():
    g, w, _ = data()
    fisher = EmpiricalFisher(tree(g), DAMPING)
    prune = tree(np.arange(D) < 3, bool)
    g[2, 4] = np.nan
    assert np.isnan(obs_update(tree(w), EmpiricalFisher(tree(g), DAMPING), prune).rise)
    with pytest.raises(TypeError, match="prune"):
        obs_update(tree(w), fisher, tree(w))
    with pytest.raises(ValueError, match="weights"):
        obs_scores({"a": jnp.ones((4, 2), FLOAT)}, fisher)
    with pytest.raises(ValueError, match="prune"):
        obs_update(tree(w), fisher, {"a": prune["a"]})
    with pytest.raises(ValueError, match="method"):
        obs_update(tree(w), fisher, prune, method="greedily")
