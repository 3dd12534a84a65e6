"""The entropic map at new points, and the messages that lead to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import PointCloud

from ..compiled import sinkhorn, sns_sinkhorn
from ..conftest import FLOAT, needs_x64

TOL = {"float64": 1e-7, "float32": 1e-3}[FLOAT.name]


def clouds(rng, n=12, m=15):
    return jnp.asarray(rng.standard_normal((n, 2)), FLOAT), jnp.asarray(rng.standard_normal((m, 2)) + 1, FLOAT)


@pytest.mark.parametrize("tile", [None, 40])
@pytest.mark.long
def test_at_the_points_themselves_it_is_the_barycentric_map(rng, tile):
    x, y = clouds(rng)
    b = jnp.asarray(rng.random(15) + 0.1, FLOAT).at[3].set(0)
    sol = sns_sinkhorn(PointCloud(x, y, tile=tile), b=b / b.sum(), epsilon=0.3)
    np.testing.assert_allclose(sol.map(x), sol.barycentric_map(y), atol=TOL)
    back = sol.apply(x, transpose=True) / jnp.where(sol.b > 0, sol.b, 1)[:, None]
    kept = np.asarray(b) > 0
    np.testing.assert_allclose(sol.map(y, transpose=True)[kept], back[kept], atol=TOL)


def test_new_points_against_a_sum_in_numpy(rng):
    x, y = clouds(rng)
    sol = sinkhorn(PointCloud(x, y, metric="manhattan"), epsilon=0.7)
    new = rng.standard_normal((4, 2)) * 5
    logits = (np.asarray(sol.g)[None] - np.abs(new[:, None] - np.asarray(y)[None]).sum(-1)) / 0.7
    weights = np.exp(logits - logits.max(1, keepdims=True))
    expected = weights @ np.asarray(y) / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(sol.map(new), expected, atol=100 * TOL)


@needs_x64
@pytest.mark.long
def test_gaussians_are_moved_as_the_closed_form_says(rng):
    """Between N(0, 1) and N(m, s^2) the entropic map is affine; many quantiles stand for the measures."""
    from scipy.stats import norm

    q = norm.ppf((np.arange(400) + 0.5) / 400)[:, None]
    s, m, epsilon = 0.5, 2.0, 0.4
    sol = sns_sinkhorn(PointCloud(jnp.asarray(q), jnp.asarray(s * q + m)), epsilon=epsilon)
    slope = np.sqrt(epsilon**2 / 16 + s**2) - epsilon / 4  # cov(x, y) of the entropic plan, |x - y|^2 costs
    np.testing.assert_allclose(np.asarray(sol.map(np.array([[-1.0], [0.3], [1.0]])))[:, 0],
                               m + slope * np.array([-1.0, 0.3, 1.0]), atol=5e-3)  # fmt: skip


@needs_x64
@pytest.mark.long
def test_derivatives_in_points_and_targets_under_jit(rng):
    x, y = clouds(rng)
    new = jnp.asarray(rng.standard_normal((3, 2)))
    w = jnp.asarray(rng.standard_normal((3, 2)))

    def moved(x, y, new):
        return jnp.sum(w * sns_sinkhorn(PointCloud(x, y), epsilon=0.5, tol=1e-12).map(new))

    directions = [jnp.asarray(rng.standard_normal(z.shape)) for z in (x, y, new)]
    slopes = jax.jit(jax.grad(moved, argnums=(0, 1, 2)))(x, y, new)
    value = jax.jit(lambda t: moved(x + t * directions[0], y + t * directions[1], new + t * directions[2]))
    difference = (value(1e-5) - value(-1e-5)) / 2e-5
    np.testing.assert_allclose(
        sum(jnp.sum(s * d) for s, d in zip(slopes, directions, strict=True)), difference, rtol=1e-6
    )


@pytest.mark.long
def test_a_batch_moves_a_batch(rng):
    x, y = clouds(rng)
    new = jnp.asarray(rng.standard_normal((2, 3, 2)), FLOAT)
    sols = jax.vmap(lambda e: sns_sinkhorn(PointCloud(x, y), epsilon=e))(jnp.asarray([0.3, 1.0], FLOAT))
    one = sns_sinkhorn(PointCloud(x, y), epsilon=1.0)
    np.testing.assert_allclose(sols.map(new)[1], one.map(new[1]), atol=100 * TOL)


@pytest.mark.long
def test_messages_name_the_cure(rng):
    x, y = clouds(rng, 12, 12)
    with pytest.raises(ValueError, match=r"PointCloud\(x, y\)"):
        sns_sinkhorn(x, y, epsilon=0.3)
    sol = sns_sinkhorn(jnp.asarray(rng.random((12, 12)), FLOAT), epsilon=0.3)
    with pytest.raises(ValueError, match="see `map`"):
        sol.apply(x[:5])
    with pytest.raises(TypeError, match="PointCloud"):
        sol.map(x)
    with pytest.raises(ValueError, match=r"\(k, 2\)"):
        sns_sinkhorn(PointCloud(x, y), epsilon=0.3).map(x[:, :1])
    for look in (lambda s: s.check().f, lambda s: (s.message, s.f)[1]):
        with pytest.raises(TypeError, match="outside, or branch on"):
            jax.jit(lambda e: look(sns_sinkhorn(x @ y.T, epsilon=e)))(0.5)
