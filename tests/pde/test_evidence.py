"""Evidence maximisation against a dense Gaussian in NumPy and SciPy; surplus components and wrong noises."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from solvers.pde import Box, Dirichlet, Observe, PDEProblem, SpectralMixture, SquaredExponential, gp_solve
from solvers.pde.gaussian.evidence import SPREAD, Functionals, bfgs, log_density

from ..conftest import FLOAT, X64, needs_x64

NODES = np.linspace(0.05, 0.95, 8)
SEEN = np.array([0.15, 0.5, 0.85])
NOISE = np.array([0.3] * 8 + [0.1] + [0.05] * 3)
DATA = np.concatenate([2.0 * np.sin(3 * NODES), [0.2, 0.3, -0.1, 0.2]])


def se(gap, p, length, variance):
    d = gap / length
    hermite = [np.ones_like(d), d, d**2 - 1, d**3 - 3 * d, d**4 - 6 * d**2 + 3][p]
    return variance * (-1 / length) ** p * hermite * np.exp(-(d**2) / 2)


def dense(length, variance):
    """Log density of u'' at the nodes and u at four points, from the kernel's derivatives in NumPy."""
    x = np.concatenate([NODES, [0.0], SEEN])
    gap = x[:, None] - x[None]
    second = np.arange(12) < 8
    order = 2 * (second[:, None].astype(int) + second[None])
    gram = sum(np.where(order == p, se(gap, p, length, variance), 0) for p in (0, 2, 4)) + np.diag(NOISE**2)
    return -(DATA @ np.linalg.solve(gram, DATA) + np.linalg.slogdet(gram)[1] + 12 * np.log(2 * np.pi)) / 2


def noisy():
    return PDEProblem(lambda x, u, a: u.dxx - a * jnp.sin(3 * x[0]), Box((0.0, 1.0)),
                      [Dirichlet("x-", 0.2, noise=0.1), Observe(SEEN, DATA[9:], 0.05)], noise=0.3)  # fmt: skip


def test_log_density_is_that_of_a_dense_gaussian():
    second = np.arange(12) < 8
    facts = Functionals(jnp.asarray(np.concatenate([NODES, [0.0], SEEN])[:, None], FLOAT),
                        [{(2,): jnp.asarray(second, FLOAT), (0,): jnp.asarray(~second, FLOAT)}],
                        jnp.asarray(DATA, FLOAT), jnp.asarray(NOISE, FLOAT), np.zeros(12, int))  # fmt: skip
    ours = log_density((SquaredExponential(0.4, 1.5),), facts, facts.noise)
    np.testing.assert_allclose(ours, dense(0.4, 1.5), rtol=1e-9 if X64 else 1e-3)


@needs_x64
@pytest.mark.long
def test_learned_prior_is_where_scipy_finds_the_maximum():
    solution = gp_solve(noisy(), grid=(jnp.asarray(NODES),), args=2.0, prior=SquaredExponential(0.4, 1.5), rank=24,
                        learn="prior")  # fmt: skip

    def objective(theta):
        return theta[0] ** 2 / (2 * SPREAD**2) - dense(0.4 * np.exp(theta[0]), 1.5 * np.exp(theta[1]))

    best = minimize(objective, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-8}).x
    (found,) = solution.prior
    np.testing.assert_allclose([found.length / 0.4, found.variance / 1.5], np.exp(best), rtol=5e-2)
    np.testing.assert_allclose(solution.log_evidence, dense(float(found.length), float(found.variance)), atol=1e-4)
    assert float(solution.log_evidence) > dense(0.4, 1.5) + 0.1


def wave(noise, rng, amplitude=1.0):
    x = np.sort(rng.random(40))
    return x, amplitude * np.sin(20 * x + 0.3) + noise * rng.standard_normal(40)


@needs_x64
@pytest.mark.long
def test_surplus_components_are_pruned(rng):
    x, values = wave(0.05, rng)
    problem = PDEProblem(lambda x, u, a: u.dxx + 400 * u.v, Box((0.0, 1.0)), [Observe(x, values, 0.05)], noise=100.0)
    prior = SpectralMixture(jnp.ones(4), jnp.asarray([3.0, 1.5, 5.0, 7.5]), jnp.full(4, 0.5))
    solution = gp_solve(problem, grid=12, prior=prior, rank=40, learn="prior")
    weights = np.asarray(solution.prior[0].weights)
    assert weights[0] > 0.05
    np.testing.assert_array_equal(weights[1:], 0)
    assert abs(float(solution.prior[0].frequencies[0]) * 2 * np.pi - 20) < 1


@needs_x64
@pytest.mark.parametrize("stated", [0.02, 0.5])
@pytest.mark.long
def test_a_noise_stated_wrong_is_found(rng, stated):
    x, values = wave(0.1, rng)
    problem = PDEProblem(lambda x, u, a: u.dxx + 400 * u.v, Box((0.0, 1.0)), [Observe(x, values, stated)], noise=1.0)
    prior = SpectralMixture(jnp.ones(1), jnp.asarray([3.2]), jnp.full(1, 0.5))
    solution = gp_solve(problem, grid=12, prior=prior, rank=40, learn="noise")
    _, _, (found,) = solution.noise
    assert 0.075 < float(found) < 0.135  # 0.1, give or take two standard errors of 40 data, drawn towards `stated`


def test_bfgs_on_a_bent_valley():
    def rosenbrock(x):
        return 10 * jnp.sum((x[1:] - x[:-1] ** 2) ** 2) + jnp.sum((1 - x[:-1]) ** 2)

    np.testing.assert_allclose(bfgs(rosenbrock, jnp.asarray([-0.5, 0.4, 0.1], FLOAT)), 1.0, atol=5e-2)
