"""Random collocation points: unbiased sums, known sequences, the bound on the evidence against the evidence itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, qmc

from solvers import Box, LowRankGaussian, random_grid, random_grid_elbo
from solvers.pde.neural import random_grids

from ..conftest import FLOAT, X64, needs_x64

BOX = Box((0.0, 1.0), (0.0, 2.0))
KINDS = ("uniform", "stratified", "sobol", "weighted")


def f(x):
    return jnp.exp(x[:, 0]) * x[:, 1]


MEAN = np.e - 1


def estimates(kind, count, repeats=400):
    options = {"density": lambda x: 0.05 + x[:, 1] ** 2} if kind == "weighted" else {}

    @jax.jit
    def one(key):
        grid = random_grid(key, BOX, count, kind=kind, dtype=FLOAT, **options)
        return jnp.sum(grid.weights * f(grid.points))

    return np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(31), repeats)), np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_unbiased(kind):
    """Within four standard errors; a program that forgets the weights of drawn points is off by a third."""
    found = estimates(kind, 16)
    assert abs(found.mean() - MEAN) < 4 * found.std() / np.sqrt(found.size) + 1e-6
    assert found.std() > 0


def test_variance_falls_as_it_should():
    """``1 / n`` for independent points, faster in cells, and faster still for Sobol's sequence."""
    ratio = {kind: estimates(kind, 16).var() / estimates(kind, 144).var() for kind in KINDS[:2]}
    assert 6 < ratio["uniform"] < 14
    assert ratio["stratified"] > 40
    assert estimates("sobol", 16).var() / estimates("sobol", 128).var() > 30


def test_sobol_is_the_known_sequence(monkeypatch):
    """Against SciPy's, without the shift: the same points in the same order."""
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    found = random_grids._sobol(None, 64, 3, FLOAT)
    np.testing.assert_allclose(found, qmc.Sobol(3, scramble=False).random(64), atol=1e-7)


def test_a_density_that_is_nothing_or_nan_is_uniform():
    for density in (lambda x: 0 * x[:, 0], lambda x: jnp.nan * x[:, 0]):
        grid = random_grid(jax.random.key(3), BOX, 8, kind="weighted", density=density, dtype=FLOAT)
        np.testing.assert_allclose(grid.weights, 1 / 8, rtol=1e-5)


def posterior(seed=4, n=5, k=2):
    one, two, three = jax.random.split(jax.random.key(seed), 3)
    normal = lambda key, *s: jax.random.normal(key, s, FLOAT)  # noqa: E731
    return LowRankGaussian(normal(one, n), 0.3 * normal(two, n), normal(three, n, k))


def covariance(q):
    return (
        np.diag(np.exp(2 * np.asarray(q.log_scale, np.float64)))
        + np.asarray(q.factor, np.float64) @ np.asarray(q.factor, np.float64).T
    )


def test_low_rank_gaussian_against_the_dense_one():
    """Density, precision, divergence, and the covariance of its draws."""
    q = posterior()
    dense, x = covariance(q), np.linspace(-1, 2, 5)
    tol = 1e-10 if X64 else 1e-4
    expected = multivariate_normal(np.asarray(q.mean), dense).logpdf(x)
    np.testing.assert_allclose(q.log_density(jnp.asarray(x, FLOAT)), expected, rtol=tol)
    np.testing.assert_allclose(
        q.precision_times(jnp.asarray(x, FLOAT)), np.linalg.solve(dense, x), rtol=10 * tol, atol=tol
    )
    mean = np.asarray(q.mean, np.float64) - 0.3
    kl = (np.trace(dense) / 4 + mean @ mean / 4 - 5 + 5 * np.log(4) - np.linalg.slogdet(dense)[1]) / 2
    np.testing.assert_allclose(q.divergence(2.0, 0.3), kl, rtol=10 * tol)
    draws = np.asarray(jax.vmap(q.sample)(jax.random.split(jax.random.key(8), 20000)))
    np.testing.assert_allclose(np.cov(draws.T), dense, atol=0.12 * np.max(dense))


def test_the_bound_is_the_evidence_at_the_exact_posterior():
    """A linear residual on a fixed grid: the bound is the evidence, and less elsewhere."""
    rng = np.random.default_rng(12)
    A, b, noise, prior = rng.standard_normal((8, 3)), rng.standard_normal(8), 0.7, 1.5
    precision = A.T @ A / noise**2 + np.eye(3) / prior**2
    cov = np.linalg.inv(precision)
    mean = cov @ A.T @ b / noise**2
    floor = 0.5 * np.sqrt(np.linalg.eigvalsh(cov)[0])
    factor = np.linalg.cholesky(cov - floor**2 * np.eye(3))
    q = LowRankGaussian(*(jnp.asarray(v, FLOAT) for v in (mean, np.full(3, np.log(floor)), factor)))
    points = jnp.zeros((8, 1), FLOAT), jnp.full(8, 1 / 8, FLOAT)
    A_, b_ = jnp.asarray(A, FLOAT), jnp.asarray(b, FLOAT)

    def bound(q):
        fixed = random_grids.RandomGrid(*points)
        return random_grid_elbo(
            lambda w, x: jnp.matmul(A_, w) - b_, q, jax.random.key(6), grid=lambda key: fixed, noise=noise,
            prior_scale=prior, samples=20000,
        )  # fmt: skip

    evidence = multivariate_normal(np.zeros(8), prior**2 * A @ A.T + noise**2 * np.eye(8)).logpdf(b)
    np.testing.assert_allclose(bound(q), evidence, atol=0.05)
    worse = LowRankGaussian(q.mean + 0.2, q.log_scale, q.factor)
    assert bound(worse) < evidence - 0.05


@needs_x64
def test_maximising_over_random_grids_solves_poisson():
    """``u'' = -pi^2 sin(pi x)`` in sines: the mean that maximises the bound is least squares', the truth."""
    k = jnp.arange(1.0, 4.0) * jnp.pi

    def residual(w, x):
        curvature = jnp.sum(-(k**2 * w)[None] * jnp.sin(k[None] * x), -1)
        return (curvature + jnp.pi**2 * jnp.sin(jnp.pi * x[:, 0])) / 10

    def loss(q, key):
        draw = lambda key: random_grid(key, Box((0.0, 1.0)), 16, kind="sobol")  # noqa: E731
        return -random_grid_elbo(residual, q, key, grid=draw, noise=0.05, samples=4)

    @jax.jit
    def train(q):
        def step(q, key):
            g = jax.grad(loss)(q, key)
            mean = q.mean - 1.5e-3 * g.mean / k**4
            return LowRankGaussian(mean, q.log_scale - 1e-2 * g.log_scale, q.factor), None

        return jax.lax.scan(step, q, jax.random.split(jax.random.key(3), 1500))[0]

    start = LowRankGaussian(jnp.zeros(3), jnp.full(3, -6.0), jnp.zeros((3, 0)))
    found = train(start)
    np.testing.assert_allclose(found.mean, [1, 0, 0], atol=0.02)
    # Curvature of the expected loss: 16 points, means of sines squared 1/2, (k^2 / 10 / noise)^2.
    np.testing.assert_allclose(found.log_scale, -jnp.log(1 + 32 * k**4) / 2, atol=0.3)


def test_refusals():
    key = jax.random.key(3)
    with pytest.raises(ValueError, match="kind"):
        random_grid(key, BOX, 8, kind="halton")
    with pytest.raises(ValueError, match="density"):
        random_grid(key, BOX, 8, kind="weighted")
    with pytest.raises(ValueError, match="count"):
        random_grid(key, BOX, 8, kind="stratified")
    with pytest.raises(ValueError, match="LowRankGaussian"):
        LowRankGaussian(jnp.ones(3), jnp.ones(3), jnp.ones((2, 1)))
