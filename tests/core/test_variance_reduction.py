"""The one recursion behind moving averages, STORM, SARAH and MSVR, and the transported point."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from solvers.core.variance_reduction import msvr_weight, track, transported, unit

from ..conftest import FLOAT

TOL = {"float64": 1e-13, "float32": 1e-5}[FLOAT.name]


def test_storm_is_its_usual_formula(rng):
    d, g, before = (jnp.asarray(rng.standard_normal(5), FLOAT) for _ in range(3))
    usual = g + (1 - 0.3) * (d - before)
    np.testing.assert_allclose(track(d, g, g - before, 0.3, 0.7), usual, rtol=TOL, atol=TOL)


def test_sarah_telescopes_to_the_last_full_gradient(rng):
    H, points = jnp.asarray(rng.standard_normal((4, 4)), FLOAT), jnp.asarray(rng.standard_normal((7, 4)), FLOAT)
    v = H @ points[0]
    for before, after in itertools.pairwise(points):
        v = track(v, H @ after, H @ after - H @ before, 0, 1)
    np.testing.assert_allclose(v, H @ points[-1], rtol=20 * TOL, atol=20 * TOL)


def test_msvr_with_every_block_is_storm():
    assert msvr_weight(7, 7, 0.25) == 0.75
    assert msvr_weight(10, 2, 0.5) == 8 / (2 * 0.5) + 0.5


def test_msvr_estimates_of_seldom_seen_blocks_are_unbiased(rng):
    """Over sampled blocks and noise the error of m trackers contracts: its mean obeys (1 - e p), none is left over.

    A block that is seen with probability p moves by ``change`` every step; the correction makes up for the unseen
    moves in expectation. With the weight of STORM it would not.
    """
    m, seen, e, steps = 20, 5, 0.2, 400
    drift = jnp.asarray(rng.standard_normal(3), FLOAT)

    def run(weight):
        def step(d, key):
            t, one = key
            chosen = jnp.zeros(m, bool).at[jax.random.choice(one, m, (seen,), replace=False)].set(True)
            target = drift * t
            new = jax.vmap(lambda d: track(d, target, drift, e, weight))(d)
            d = jnp.where(chosen[:, None], new, d)
            return d, jnp.mean(d, axis=0) - target

        keys = jax.random.split(jax.random.key(3), steps)
        errors = jax.lax.scan(step, jnp.zeros((m, 3), FLOAT), (jnp.arange(steps, dtype=FLOAT), keys))[1]
        return float(jnp.linalg.norm(jnp.mean(errors[200:], axis=0)) / jnp.linalg.norm(drift))

    assert run(msvr_weight(m, seen, e)) < 0.35 * run(1 - e)


def test_transport_removes_the_lag_of_a_moving_average(rng):
    """On a quadratic the average of transported gradients is the gradient, whatever the weights."""
    H = jnp.asarray(rng.standard_normal((3, 3)), FLOAT)
    x = before = jnp.zeros(3, FLOAT)
    d, lagging = H @ x, H @ x
    still = jnp.zeros(3, FLOAT)
    for e in (0.9, 0.5, 0.2, 0.4):
        before, x = x, x + jnp.asarray(rng.standard_normal(3), FLOAT)
        d = track(d, H @ transported(x, before, e), still, e, 0)
        lagging = track(lagging, H @ x, still, e, 0)
    np.testing.assert_allclose(d, H @ x, rtol=50 * TOL, atol=50 * TOL)
    assert jnp.linalg.norm(lagging - H @ x) > 0.1


def test_unit_vectors_of_extreme_lengths():
    big = {"float64": 1e300, "float32": 1e37}[FLOAT.name]
    x = {"a": jnp.asarray([3.0, 0.0], FLOAT), "b": jnp.asarray(4.0, FLOAT)}
    for size in (big, 1 / big):
        u = unit(jax.tree.map(lambda leaf, size=size: leaf * FLOAT.type(size), x))
        np.testing.assert_allclose(u["a"], [0.6, 0], rtol=10 * TOL)
        np.testing.assert_allclose(u["b"], 0.8, rtol=10 * TOL)
    assert not np.any(unit({"a": jnp.zeros(3)})["a"])
