"""Conditioning on a covariance that may be none: exact where it is one, bounded and confessed where it is not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import inverse
from solvers.core.operators import MatrixOperator
from solvers.inverse.diffusion.conditioning import condition
from solvers.problems.inverse import gaussian_instance

from ..conftest import FLOAT

N, SQUARE = 12, 0.01
DOUBLE = FLOAT == "float64"


@partial(jax.jit, static_argnums=3)
def conditioned(K, r, square, most, rtol):
    return condition(lambda q: K @ q, r, square, most, rtol)


def symmetric(rng, values):
    V = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    return (V * values) @ V.T, V


def run(K, r, most=N, rtol=0.0):
    found = conditioned(jnp.asarray(K, FLOAT), jnp.asarray(r, FLOAT), jnp.asarray(SQUARE, FLOAT), most,
                        jnp.asarray(rtol, FLOAT))  # fmt: skip
    return np.asarray(found.q, float), int(found.products), bool(found.negative)


@pytest.mark.parametrize("rank", [N, 5])
def test_a_covariance_is_conditioned_on_exactly(rng, rank):
    """The dense solution to 1e-10, of singular K too, and no false alarm from rounded zeros among the eigenvalues."""
    K, _ = symmetric(rng, np.concatenate([10.0 ** rng.uniform(-2, 0, rank), np.zeros(N - rank)]))
    r = rng.standard_normal(N)
    q, products, negative = run(K, r)
    exact = np.linalg.solve(K + SQUARE * np.eye(N), r)
    assert not negative
    assert products <= N
    assert np.linalg.norm(K @ (q - exact)) <= (1e-10 if DOUBLE else 1e-3) * np.linalg.norm(r)
    assert np.linalg.norm(q - exact) <= (1e-10 if DOUBLE else 1e-3) * np.linalg.norm(exact)


@pytest.mark.parametrize("square", [0.0, 1e-30])
def test_exact_data_along_directions_that_are_seen(rng, square):
    """Data without noise, K of rank five: nothing but rounding is known of the rest, and it is left alone."""
    K, V = symmetric(rng, np.concatenate([10.0 ** rng.uniform(-1, 0, 5), np.zeros(N - 5)]))
    r = K @ rng.standard_normal(N) + 1e-3 * V[:, -1]
    found = conditioned(*(jnp.asarray(x, FLOAT) for x in (K, r, square)), N, jnp.asarray(0.0, FLOAT))
    assert np.all(np.isfinite(found.q))
    assert np.linalg.norm(found.q) < 1e3 * np.linalg.norm(r)
    assert np.linalg.norm(V[:, :5].T @ (K @ np.asarray(found.q, float) - r)) < (1e-8 if DOUBLE else 1e-3)


def test_it_stops_at_the_tolerance(rng):
    K, _ = symmetric(rng, np.linspace(1, 1.2, N))
    r = rng.standard_normal(N)
    q, products, _ = run(K, r, rtol=1e-3)
    residual = np.linalg.norm(r - K @ q - SQUARE * q) / np.linalg.norm(r)
    assert products < N
    assert 1e-3 / 200 < residual <= 1.001e-3


@pytest.mark.parametrize("worst", [-0.5, -0.999 * SQUARE, -1.001 * SQUARE, -0.1 * SQUARE])
def test_directions_of_negative_variance_do_not_move(rng, worst):
    """Oracle: the eigenvectors of K with positive eigenvalues alone. As it comes, K would throw a sample far off."""
    values = np.concatenate([[worst, worst / 2], np.linspace(0.3, 1, N - 2)])
    K, V = symmetric(rng, values)
    r = rng.standard_normal(N)
    q, _, negative = run(K, r)
    gain = np.where(values > 0, 1 / (np.maximum(values, 0) + SQUARE), 0)
    oracle = V @ (gain * (V.T @ r))
    assert negative
    assert np.linalg.norm(q - oracle) <= (1e-8 if DOUBLE else 2e-2) * np.linalg.norm(oracle)
    assert np.linalg.norm(K @ q) <= np.linalg.norm(r)
    as_it_comes = np.linalg.solve(K + SQUARE * np.eye(N), r)
    if abs(worst + SQUARE) < 0.01 * SQUARE:
        assert abs(V[:, 0] @ K @ as_it_comes) > 500 * abs(V[:, 0] @ r)


@pytest.mark.parametrize("most", [1, 3, 6])
def test_truncated_it_never_leads_away_from_the_data(rng, most):
    """In the Krylov space data move by l / (l + s^2) along Ritz vectors: r'K q >= 0 and r'K q <= |r|^2, for any K."""
    for _ in range(20):
        K, _ = symmetric(rng, rng.standard_normal(N) * 10.0 ** rng.uniform(-4, 1, N))
        r = rng.standard_normal(N)
        q, products, _ = run(K, r, most)
        assert products <= most
        moved = r @ K @ q
        assert -1e-4 * r @ r <= moved <= (1 + 1e-4) * r @ r


def test_no_residual_and_broken_ones(rng):
    K, _ = symmetric(rng, np.linspace(0.1, 1, N))
    q, products, negative = run(K, np.zeros(N))
    assert not np.any(q)
    assert products == 0
    assert not negative
    assert np.all(np.isnan(run(K, np.full(N, np.nan))[0]))
    assert not np.all(np.isfinite(run(np.full((N, N), np.nan), np.ones(N))[0]))


def sampled(bend, lost=0.0, steps=40):
    """Draw from a Gaussian model that leaves some noise, turned: its Jacobian is symmetric and negative in places.

    With `lost`, one that runs away.
    """
    case = gaussian_instance(jax.random.key(11), dtype=FLOAT)
    schedule = inverse.CosineSchedule(0.03)

    def model(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        clean = (x + sigma**2 * case.prior.score(x, alpha, sigma)) / alpha
        turned = lambda v: jnp.roll(jnp.flip(v), 3)  # noqa: E731
        return clean + bend * turned(x / alpha - clean) - lost * sigma**2 / alpha * turned(x)

    draw = lambda bend, lost, key: inverse.posterior_sample(  # noqa: E731
        model, schedule, MatrixOperator(case.matrix), case.y, key, noise=case.noise, steps=steps, kind="denoiser",
        details=True,
    )  # fmt: skip
    return jax.jit(jax.vmap(partial(draw, bend, lost)))(jax.random.split(jax.random.key(5), 8))


def test_a_sample_says_how_far_to_trust_it():
    """No doubt and a fit to the noise with an exact score; doubt and a fit with a bent one; no fit where it is lost."""
    exact, bent, lost = sampled(0.0), sampled(0.1), sampled(0.0, 3.0)
    assert not np.any(exact.doubted)
    assert np.all(exact.misfit < 2)
    assert np.all(bent.doubted > 0)
    assert np.all(bent.misfit < 2)  # conjugate gradients that take the Jacobian as it comes reach 11
    assert np.all(lost.doubted > 0)
    assert np.all(lost.misfit > 100)


def test_the_dimension_is_checked():
    with pytest.raises(ValueError, match="cg_steps"):
        inverse.SecondOrder(cg_steps=0)
