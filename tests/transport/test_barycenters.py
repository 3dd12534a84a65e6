"""Barycenters against closed forms, against optimality judged by other solvers, and attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Grid, PointCloud, Status, TransportStatus

from ..compiled import barycenter, sinkhorn_divergence, sns_sinkhorn
from ..conftest import FLOAT, needs_x64

X = np.linspace(-4, 4, 41)[:, None]


def bump(centre, width, x=X):
    b = np.exp(-((x[:, 0] - centre) ** 2) / (2 * width**2))
    return b / b.sum()


def line(dtype=FLOAT):
    return PointCloud(jnp.asarray(X, dtype), jnp.asarray(X, dtype))


def moments(b, x=X[:, 0]):
    b = np.asarray(b, float)
    mean = b @ x
    return mean, b @ (x - mean) ** 2


def test_gaussians_of_one_width_keep_it_without_bias_and_widen_with_it():
    """Janati et al. 2020, theorem 3: debiased, the variance stays; else it grows by epsilon / 2 (costs |x - y|^2)."""
    a = jnp.asarray(np.stack([bump(-1, 0.7), bump(0.8, 0.7)]), FLOAT)
    shares = jnp.asarray([0.25, 0.75], FLOAT)
    for debiased, variance in ((True, 0.49), (False, 0.49 + 0.25)):
        sol = barycenter(line(), a, epsilon=0.5, shares=shares, debiased=debiased)
        assert sol.converged, sol
        mean, spread = moments(sol.value)
        np.testing.assert_allclose(mean, 0.25 * -1 + 0.75 * 0.8, atol=2e-3)
        np.testing.assert_allclose(spread, variance, rtol=5e-3)
        np.testing.assert_allclose(sol.value.sum(), 1, rtol=1e-5)


@needs_x64
def test_one_measure_is_its_own_barycenter():
    a = jnp.asarray(bump(0.3, 0.5) * 0.6 + bump(-1.5, 0.3) * 0.4)[None]
    sol = barycenter(line(), a, epsilon=0.1, tol=1e-9)
    np.testing.assert_allclose(sol.value, a[0], atol=1e-6)


@needs_x64
@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.long
def test_optimal_by_the_potentials_of_other_solvers(rng, debiased):
    """The objective's gradient in b, from `sinkhorn_divergence` or `sns_sinkhorn`, is constant on the simplex."""
    x, y = jnp.asarray(rng.random((8, 2))), jnp.asarray(rng.random((7, 2)))
    a = rng.random((3, 8)) * (rng.random((3, 8)) > 0.3) + 1e-3
    a[1, 4] = 0
    a = jnp.asarray(a / a.sum(1, keepdims=True))
    shares = jnp.asarray([0.2, 0.5, 0.3])
    sol = barycenter(PointCloud(x, y), a, epsilon=0.15, shares=shares, debiased=debiased, tol=1e-10)
    assert sol.converged
    loss = sinkhorn_divergence if debiased else sns_sinkhorn
    slopes = sum(
        s * loss(PointCloud(x, y), w, sol.value, epsilon=0.15, tol=1e-12).g for s, w in zip(shares, a, strict=True)
    )
    alive = np.asarray(sol.value) > 1e-6
    excess = np.asarray(slopes - slopes[np.argmax(sol.value)])
    np.testing.assert_allclose(excess[alive], 0, atol=1e-7)
    assert np.all(excess > -1e-7)


@needs_x64
def test_images_by_axes_equal_the_same_points_as_a_cloud(rng):
    images = rng.random((2, 4, 5)) + 0.05
    images = images / images.sum((1, 2), keepdims=True)
    grid = Grid(jnp.arange(4.0) / 4, jnp.arange(5.0) / 5)
    flat = jnp.asarray(images.reshape(2, -1))
    sol = barycenter(grid, jnp.asarray(images), epsilon=0.05)
    dense, within = grid.dense(), grid.within("test")[1].dense()
    again = barycenter((dense, within), flat, epsilon=0.05)
    assert sol.converged
    np.testing.assert_allclose(sol.value, again.value, atol=1e-8)


def test_a_batch_of_shares_interpolates():
    a = jnp.asarray(np.stack([bump(-1, 0.7), bump(1, 0.7)]), FLOAT)
    t = jnp.asarray([0.0, 0.5, 1.0], FLOAT)
    sols = jax.vmap(lambda t: barycenter(line(), a, epsilon=0.5, shares=jnp.stack([1 - t, t])))(t)
    assert np.all(sols.converged)
    np.testing.assert_allclose([moments(b)[0] for b in sols.value], [-1, 0, 1], atol=5e-3)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda a, s: (a.at[0, 0].add(0.1), s), TransportStatus.UNEQUAL_MASSES),
        (lambda a, s: (a.at[0, 0].add(-0.3).at[0, 1].add(0.3), s), TransportStatus.NEGATIVE_WEIGHTS),
        (lambda a, s: (a, s * 2), TransportStatus.UNEQUAL_MASSES),
        (lambda a, s: (a.at[1, 2].set(jnp.nan), s), Status.NONFINITE),
        (lambda a, s: (a, s.at[0].set(jnp.nan)), Status.NONFINITE),
    ],
)
def test_bad_numbers_are_a_status_and_take_no_step(change, status):
    a = jnp.full((2, 41), 1 / 41, FLOAT)
    a, shares = change(a, jnp.full(2, 0.5, FLOAT))
    sol = barycenter(line(), a, epsilon=0.5, shares=shares)
    assert sol.status == status
    assert sol.num_steps == 0


def test_bad_shapes_raise():
    a = jnp.full((2, 41), 1 / 41, FLOAT)
    with pytest.raises(ValueError, match="within the support"):
        barycenter(jnp.zeros((41, 5), FLOAT), a, epsilon=0.5)
    with pytest.raises(ValueError, match=r"\(k, 41\)"):
        barycenter(line(), a[:, :3], epsilon=0.5)
    with pytest.raises(ValueError, match="shares"):
        barycenter(line(), a, epsilon=0.5, shares=jnp.ones(3, FLOAT))
    with pytest.raises(ValueError, match="positive"):
        barycenter(line(), a, epsilon=0.0)


@pytest.mark.long
def test_a_small_epsilon_that_does_not_finish_says_so():
    a = jnp.asarray(np.stack([bump(-2, 0.2), bump(2, 0.2)]), FLOAT)
    sol = barycenter(line(), a, epsilon=1e-3, max_steps=20)
    assert sol.status == Status.MAX_STEPS
    assert np.all(np.isfinite(sol.value))
    slope = jax.grad(lambda a: barycenter(line(), a, epsilon=1e-3, max_steps=20).value[3])(a)
    assert np.all(np.isnan(slope) | (np.asarray(a) < 1e-30))  # no mass, or so little that it counts as none
