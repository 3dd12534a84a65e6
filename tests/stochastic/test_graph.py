"""Gossip on graphs: closed forms of chi1 and chi2, optimal rates against a search and their own bound."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import solvers
from solvers import Status, chi1, chi2, gossip_rates
from solvers.problems.stochastic import barbell, complete, grid, ring, star
from solvers.stochastic import GraphStatus, laplacian

from ..conftest import FLOAT

TOL = {"float64": 1e-10, "float32": 2e-4}[FLOAT.name]


def ones(edges):
    return jnp.ones(len(edges), FLOAT)


def test_laplacian_of_a_path():
    edges = np.array([[0, 1], [2, 1]])
    expected = [[2, -2, 0], [-2, 5, -3], [0, -3, 3]]
    np.testing.assert_allclose(laplacian(edges, jnp.asarray([2.0, 3.0], FLOAT), 3), expected)


@pytest.mark.long
def test_closed_forms():
    """A ring: 1 / (2 - 2 cos(2 pi / n)), resistance (n - 1) / n; a complete graph: 1 / n, 2 / n; a star: 1, 1."""
    for n in (3, 8):
        np.testing.assert_allclose(chi1(ring(n), ones(ring(n)), n), 1 / (2 - 2 * np.cos(2 * np.pi / n)), rtol=TOL)
        np.testing.assert_allclose(chi2(ring(n), ones(ring(n)), n), (n - 1) / n / 2, rtol=TOL)
        np.testing.assert_allclose(chi1(complete(n), ones(complete(n)), n), 1 / n, rtol=TOL)
        np.testing.assert_allclose(chi2(complete(n), ones(complete(n)), n), 1 / n, rtol=TOL)
    np.testing.assert_allclose(chi1(star(6), ones(star(6)), 6), 1, rtol=TOL)
    np.testing.assert_allclose(chi2(star(6), ones(star(6)), 6), 0.5, rtol=TOL)


def total_of(edges, shares, n):
    shares = jnp.asarray(np.abs(shares) / np.sum(np.abs(shares)), FLOAT)
    return float(jnp.sqrt(2 * chi1(edges, shares, n) * chi2(edges, shares, n)))


@pytest.mark.parametrize(
    ("edges", "n"), [(ring(8), 8), (barbell(4), 8), (grid(3, 3), 9)], ids=["ring", "barbell", "grid"]
)
def test_rates_are_admissible_and_none_are_cheaper(edges, n):
    """The bound says that no rates are cheaper; random ones and a direct search agree."""
    tol = {"float64": 1e-3, "float32": 1e-2}[FLOAT.name]
    sol = gossip_rates(edges, n, tol=tol)
    assert sol.converged, sol
    assert np.all(sol.value > 0)
    np.testing.assert_allclose(sol.total, jnp.sum(sol.value), rtol=1e-5)
    np.testing.assert_allclose(chi1(edges, sol.value, n) * chi2(edges, sol.value, n), 0.5, rtol=1e-3)
    rng = np.random.default_rng(3)
    rivals = [total_of(edges, rng.random(len(edges)) + 0.1, n) for _ in range(20)]
    near = np.asarray(sol.value / sol.total)
    rivals += [total_of(edges, near * (1 + 0.1 * rng.standard_normal(len(edges))), n) for _ in range(20)]
    assert min(rivals) >= float(sol.least) * (1 - 1e-5)
    assert total_of(edges, np.ones(len(edges)), n) >= float(sol.least) * (1 - 1e-5)
    assert float(sol.total) <= min(rivals) * (1 + 2 * tol)


@pytest.mark.long
def test_a_direct_search_finds_nothing_better():
    edges, n = barbell(3), 6
    sol = gossip_rates(edges, n, tol=1e-2)
    found = minimize(lambda s: total_of(edges, np.exp(s), n), np.zeros(len(edges)), method="Nelder-Mead",
                     options={"maxiter": 300})  # fmt: skip
    assert float(sol.least) <= found.fun * (1 + 1e-5)
    assert float(sol.total) <= found.fun * 1.02
    assert float(sol.total) < 0.8 * total_of(edges, np.ones(len(edges)), n)


@pytest.mark.long
def test_degenerate_graphs():
    sol = gossip_rates(np.array([[0, 1], [2, 3]]), 4)
    assert sol.status == GraphStatus.DISCONNECTED
    assert not sol.converged
    pair = gossip_rates(np.array([[0, 1]]), 2)
    assert pair.converged
    np.testing.assert_allclose(pair.value, [0.5**0.5], rtol=1e-4)
    assert gossip_rates(grid(3, 3), 9, max_steps=2).status == Status.MAX_STEPS
    for edges, n, message in (
        (np.array([[0, 0]]), 2, "two different nodes"),
        (np.array([[0, 2]]), 2, "two different nodes"),
        (np.array([0, 1]), 2, "pairs"),
        (np.array([[0, 1]]), 1, "at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            solvers.gossip_rates(edges, n)
