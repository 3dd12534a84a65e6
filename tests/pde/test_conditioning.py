"""The Bayesian solve against dense Gaussian conditioning in NumPy, its calibration, and data below Nyquist."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Status
from solvers.pde import (
    Box,
    Dirichlet,
    Neumann,
    Observe,
    PDEProblem,
    PDEStatus,
    Periodic,
    SquaredExponential,
    gp_solve,
)  # fmt: skip
from solvers.pde.frequencies import pursue

from ..conftest import FLOAT, X64, needs_x64

T = jnp.asarray(np.linspace(0, 1, 9), FLOAT)
PRIOR = SquaredExponential(0.4, 1.5)
NODES = np.linspace(0.05, 0.95, 8)
SEEN = np.array([0.15, 0.5, 0.85])


def poisson(x, u, args):
    return u.dxx - args * jnp.sin(3 * x[0])


def noisy():
    return PDEProblem(poisson, Box((0.0, 1.0)),
                      [Dirichlet("x-", 0.2, noise=0.1), Observe(SEEN, np.array([0.3, -0.1, 0.2]), 0.05)],
                      noise=0.3)  # fmt: skip


def dense_conditioning():
    """Posterior mean and covariance at T, and the log density of the data, from the kernel's derivatives in NumPy."""
    length, variance = 0.4, 1.5

    def k(x, y, p):  # p-th derivative of the squared exponential in x
        d = (np.asarray(x, float)[:, None] - np.asarray(y, float)[None]) / length
        hermite = [np.ones_like(d), d, d**2 - 1, d**3 - 3 * d, d**4 - 6 * d**2 + 3][p]
        return variance * (-1 / length) ** p * hermite * np.exp(-(d**2) / 2)

    plain = np.concatenate([[0.0], SEEN])
    gram = np.block([[k(NODES, NODES, 4), k(NODES, plain, 2)], [k(plain, NODES, 2), k(plain, plain, 0)]])
    noise = np.array([0.3] * 8 + [0.1] + [0.05] * 3)
    y = np.concatenate([2.0 * np.sin(3 * NODES), [0.2, 0.3, -0.1, 0.2]])
    cross = np.concatenate([k(T, NODES, 2), k(T, plain, 0)], 1)
    full = gram + np.diag(noise**2)
    mean = cross @ np.linalg.solve(full, y)
    covariance = k(T, T, 0) - cross @ np.linalg.solve(full, cross.T)
    log_density = -(y @ np.linalg.solve(full, y) + np.linalg.slogdet(full)[1] + len(y) * np.log(2 * np.pi)) / 2
    return mean, covariance, log_density, cross @ np.linalg.inv(full)


@pytest.fixture(scope="module")
def posterior():
    return gp_solve(noisy(), grid=(jnp.asarray(NODES, FLOAT),), args=jnp.asarray(2.0, FLOAT), prior=PRIOR, rank=24)


@needs_x64
def test_mean_std_and_evidence_against_dense_conditioning(posterior):
    mean, covariance, log_density = dense_conditioning()[:3]
    tol = 1e-7 if X64 else 2e-3
    np.testing.assert_allclose(posterior.mean(T), mean, atol=tol)
    np.testing.assert_allclose(posterior.std(T), np.sqrt(np.diag(covariance)), atol=tol)
    np.testing.assert_allclose(posterior.log_evidence, log_density, atol=100 * tol)


@needs_x64
@pytest.mark.long
def test_derivatives_in_the_observations_are_the_gain_of_dense_conditioning():
    gain = dense_conditioning()[3][:, -3:]

    def mean(values):
        problem = PDEProblem(poisson, Box((0.0, 1.0)),
                             [Dirichlet("x-", 0.2, noise=0.1), Observe(SEEN, values, 0.05)], noise=0.3)  # fmt: skip
        return gp_solve(problem, grid=(jnp.asarray(NODES),), args=2.0, prior=PRIOR, rank=24).mean(T)

    values = jnp.asarray([0.3, -0.1, 0.2])
    np.testing.assert_allclose(jax.jit(jax.jacrev(mean))(values), gain, atol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(mean))(values), gain, atol=1e-7)


def test_samples_have_the_posterior_covariance(posterior):
    keys = jax.random.split(jax.random.key(7), 4000)
    draws = jax.vmap(lambda k: posterior.sample(k, T))(keys)
    covariance = dense_conditioning()[1]
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=5 * covariance.max() / np.sqrt(4000))


def test_noise_widens_the_posterior():
    wide = gp_solve(PDEProblem(poisson, Box((0.0, 1.0)), noisy().conditions, noise=3.0), prior=PRIOR, rank=24,
                    grid=(jnp.asarray(NODES, FLOAT),), args=jnp.asarray(2.0, FLOAT))  # fmt: skip
    narrow = gp_solve(noisy(), grid=(jnp.asarray(NODES, FLOAT),), args=jnp.asarray(2.0, FLOAT), prior=PRIOR, rank=24)
    assert bool(jnp.all(wide.std(T) > narrow.std(T)))


def test_pursuit_finds_close_and_weak_frequencies():
    s = jnp.linspace(0, 1, 1024, dtype=FLOAT)
    signal = jnp.sin(94 * s) - 0.8 * jnp.cos(131 * s) + 0.01 * jnp.sin(300 * s)
    omega, amplitude = pursue(signal, 6)
    for w, a in ((94, 1), (131, 0.8), (300, 0.01)):
        j = int(jnp.argmin(jnp.where(amplitude > 1e-3, jnp.abs(omega - w), jnp.inf)))
        assert abs(float(omega[j]) - w) < (1e-3 if X64 else 0.3)
        assert abs(float(amplitude[j]) - a) < 1e-2 * a + 2e-4


def fast(x, u, args):
    return u.dxx + 1e4 * jnp.sin(100 * x[0])


@needs_x64
@pytest.mark.parametrize(("count", "target"), [(30, 3e-3), (60, 6e-4)])
@pytest.mark.long
def test_below_nyquist(count, target):
    problem = PDEProblem(fast, Box((0.0, 2 * np.pi)), [Dirichlet("all")])
    solution = gp_solve(problem, grid=(jnp.linspace(0, 2 * np.pi, count),), basis="kernel")
    x = jnp.linspace(0, 2 * np.pi, 300)
    error = jnp.linalg.norm(solution.mean(x) - jnp.sin(100 * x)) / jnp.linalg.norm(jnp.sin(100 * x))
    assert bool(solution.converged)
    assert float(error) <= target
    assert abs(float(solution.spectrum[0][0][0]) - 100) < 1e-3


@needs_x64
@pytest.mark.long
def test_aliasing_on_a_uniform_grid_is_refused():
    problem = PDEProblem(fast, Box((0.0, 2 * np.pi)), [Dirichlet("all")])
    solution = gp_solve(problem, grid=(jnp.linspace(0, 2 * np.pi, 100),), basis="kernel")
    assert int(solution.status) == PDEStatus.ALIASED


def diffusion(x, u, args):
    return jnp.exp(args) * u.dxx + jnp.sin(np.pi * x[0])


def inverse(values, noise):
    problem = PDEProblem(diffusion, Box((0.0, 1.0)), [Dirichlet("all"), Observe(SEEN, values, noise)])
    return gp_solve(problem, grid=16, args=jnp.asarray(0.0, FLOAT), infer=jnp.asarray(1.5, FLOAT), rank=20,
                    prior=SquaredExponential(0.4, 1.0))  # fmt: skip


@needs_x64
@pytest.mark.long
def test_unknown_coefficient_is_found_with_calibrated_intervals(rng):
    truth, noise, draws = np.log(0.5), 2e-3, 200
    clean = np.sin(np.pi * SEEN) / (0.5 * np.pi**2)
    values = jnp.asarray(clean + noise * rng.standard_normal((draws, 3)))
    found = jax.jit(jax.vmap(lambda v: inverse(v, noise)))(values)
    assert bool(jnp.all(found.converged))
    inside = jnp.mean(jnp.abs(found.args - truth) <= 1.96 * found.args_std)
    assert 0.91 <= float(inside) <= 0.985  # 95 %, give or take 2.6 standard errors of 200 draws
    assert abs(float(jnp.exp(jnp.mean(found.args))) / 0.5 - 1) < 0.01


def test_a_coefficient_that_the_data_do_not_see_is_called_so():
    problem = PDEProblem(lambda x, u, a: u.dxx + 0 * a, Box((0.0, 1.0)), [Dirichlet("all")], noise=0.1)
    solution = gp_solve(
        problem, grid=8, args=jnp.asarray(0.3, FLOAT), infer=jnp.asarray(1.0, FLOAT), rank=12, prior=PRIOR
    )
    assert int(solution.status) == PDEStatus.UNIDENTIFIED


def test_nan_in_the_data_ends_at_once():
    solution = gp_solve(
        noisy(), grid=(jnp.asarray(NODES, FLOAT),), args=jnp.asarray(np.nan, FLOAT), prior=PRIOR, rank=24
    )
    assert int(solution.status) == Status.NONFINITE
    assert int(solution.num_steps) == 0


@needs_x64
@pytest.mark.long
def test_polynomials_weighted_by_the_prior_give_the_same(posterior):
    other = gp_solve(noisy(), grid=24, args=jnp.asarray(2.0, FLOAT), prior=PRIOR, basis="polynomial", rank=24)
    same = gp_solve(noisy(), grid=24, args=jnp.asarray(2.0, FLOAT), prior=PRIOR, rank=24)
    np.testing.assert_allclose(other.mean(T), same.mean(T), atol=1e-6 if X64 else 5e-3)
    np.testing.assert_allclose(other.std(T), same.std(T), atol=1e-6 if X64 else 5e-3)


def test_periodic_prior_is_periodic():
    problem = PDEProblem(lambda x, u, a: u.dxx - u.v, Box((0.0, 1.0)),
                         [Periodic("x"), Observe(SEEN, np.array([1.0, 0.0, -1.0]), 0.1)], noise=5.0)  # fmt: skip
    solution = gp_solve(problem, grid=15, prior=SquaredExponential(0.3))
    ends = jnp.asarray([0.0, 1.0], FLOAT)
    for orders in (0, 1):
        left, right = solution.derivative(ends, orders)
        np.testing.assert_allclose(left, right, atol=1e-10 if X64 else 1e-3)


@needs_x64
@pytest.mark.long
def test_peaks_are_ranked_by_what_the_solution_has_of_them():
    """In u'' the wave 0.1 sin 20 x is 1/250 of cos 100 x; in u it is a tenth."""
    problem = PDEProblem(lambda x, u, a: u.dxx + 40 * jnp.sin(20 * x[0]) + 1e4 * jnp.cos(100 * x[0]),
                         Box((0.0, 2 * np.pi)), [Dirichlet("all", 1.0)])  # fmt: skip
    ((omega, weights),) = gp_solve(problem, grid=30, basis="kernel").spectrum
    slow, quick = (float(weights[jnp.argmin(jnp.abs(omega - w))]) for w in (20.0, 100.0))
    assert 0.005 < slow / quick < 0.02


def test_contradicting_data_are_met_by_least_squares_and_the_misfit_is_reported():
    def solve(slope):
        problem = PDEProblem(lambda x, u, a: u.dxx, Box((0.0, 1.0)),
                             [Dirichlet("x-"), Dirichlet("x+", 1.0), Neumann("x-", slope)])  # fmt: skip
        return gp_solve(problem, grid=8, prior=SquaredExponential(0.8), rank=12)

    good, bad = jax.jit(jax.vmap(solve))(jnp.asarray([-1.0, 0.0], FLOAT)).misfit
    assert float(good) < (1e-6 if X64 else 0.2 * float(bad))
    assert float(bad) > 0.3


@needs_x64
def test_an_l_shaped_domain_by_rows_inside_and_observed_edges():
    """Rows outside are zero, the curved or broken boundary is observed: the box is only where the prior lives."""

    def u(x, y):
        return jnp.exp(x) * jnp.sin(y)

    def residual(x, v, a):
        return jnp.where((x[0] < 0.5) | (x[1] < 0.5), v.dxx + v.dyy, 0)

    s = np.linspace(0, 1, 13)
    edges = np.array([(0, 0), (1, 0), (1, 0.5), (0.5, 0.5), (0.5, 1), (0, 1), (0, 0)])
    points = np.concatenate([a + s[:-1, None] * (b - a) for a, b in pairwise(edges)])
    problem = PDEProblem(residual, Box((0.0, 1.0), (0.0, 1.0)),
                         [Observe(points, u(points[:, 0], points[:, 1]), 1e-8)])  # fmt: skip
    solution = gp_solve(problem, grid=(12, 12), prior=SquaredExponential(0.7), rank=11)
    inside = jnp.asarray([(0.2, 0.2), (0.3, 0.8), (0.8, 0.3), (0.45, 0.45)])
    np.testing.assert_allclose(solution.mean(inside), u(inside[:, 0], inside[:, 1]), atol=1e-5)


@needs_x64
def test_float32_data_stay_float32_and_say_what_was_reached():
    nodes, seen = jnp.asarray(NODES, jnp.float32), SEEN.astype(np.float32)
    problem = PDEProblem(poisson, Box((np.float32(0), np.float32(1))),
                         [Dirichlet("x-", np.float32(0.2), noise=np.float32(0.1)),
                          Observe(seen, np.asarray([0.3, -0.1, 0.2], np.float32), np.float32(0.05))],
                         noise=np.float32(0.3))  # fmt: skip
    solution = gp_solve(problem, grid=(nodes,), args=np.float32(2), rank=24,
                        prior=SquaredExponential(np.float32(0.4), np.float32(1.5)))  # fmt: skip
    mean, covariance = dense_conditioning()[:2]
    assert solution.value.dtype == solution.error.dtype == jnp.float32
    assert bool(solution.converged)
    points = T.astype(jnp.float32)
    np.testing.assert_allclose(solution.mean(points), mean, atol=2e-3)
    np.testing.assert_allclose(solution.std(points), np.sqrt(np.diag(covariance)), atol=2e-3)


@needs_x64
@pytest.mark.long
def test_an_exact_equation_without_boundary_data_is_a_regression_on_straight_lines(rng):
    """What f leaves free is a line; twenty noisy observations find it as least squares does, with the same errors."""

    def u(x):
        return np.sin(x) + 0.1 * np.sin(20 * x) + 0.05 * np.cos(100 * x)

    def residual(x, v, a):
        return v.dxx + jnp.sin(x[0]) + 40 * jnp.sin(20 * x[0]) + 500 * jnp.cos(100 * x[0])

    seen = np.sort(rng.uniform(0.05, 0.95, 20))
    noise = 0.01 * rng.standard_normal(20)
    problem = PDEProblem(residual, Box((0.0, 1.0)), [Observe(seen, u(seen) + noise, 0.01)])
    solution = gp_solve(problem, grid=100)
    rows, t = np.stack([np.ones(20), seen], 1), np.asarray(T)
    at = np.stack([np.ones(9), t], 1)
    covariance = at @ np.linalg.inv(rows.T @ rows) @ at.T * 1e-4
    np.testing.assert_allclose(solution.std(T), np.sqrt(np.diag(covariance)), rtol=1e-2)
    np.testing.assert_allclose(solution.mean(T), u(t) + at @ np.linalg.lstsq(rows, noise, rcond=None)[0], atol=1e-4)
    assert bool(solution.converged)
    # Functions a twentieth of the domain long imitate no line to the precision of an exact equation: it is said so.
    assert int(gp_solve(problem, grid=100, prior=SquaredExponential(0.05)).status) == PDEStatus.CONTRADICTED
