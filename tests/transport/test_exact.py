"""Transport without entropy, against linear programming and a network simplex."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from solvers import Grid, PointCloud, Status, TransportStatus
from solvers.transport.entropic import newton

from ..compiled import transport_exactly
from ..conftest import FLOAT, X64, needs_x64

GAP = 1e-6 if X64 else 3e-3


def network_simplex(a, b, cost):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ot = pytest.importorskip("ot")
        return ot.emd2(*(np.asarray(z, float) for z in (a, b, cost)))


solve = jax.jit(lambda cost, a, b: transport_exactly(cost, a, b))


def clouds(n, m, seed=80):
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 2)), rng.normal(0.5, 0.15, (m, 2))
    a, b = (w / w.sum() for w in (rng.random(n) + 0.1, rng.random(m) + 0.1))
    return tuple(jnp.asarray(z, FLOAT) for z in (x, y, a, b))


def check(solution, cost, a, b):
    """Feasible on both sides in NumPy, and as close to the optimum as it says."""
    cost, a, b = (np.asarray(z, float) for z in (cost, a, b))
    f, g = (np.asarray(z, float) for z in solution.value)
    plan = np.asarray(solution.plan(), float)
    tiny = 1e-12 if X64 else 1e-5
    assert (f[:, None] + g - cost)[np.ix_(a > 0, b > 0)].max() < tiny
    assert plan.min() >= 0
    assert abs(plan.sum(1) - a).sum() + abs(plan.sum(0) - b).sum() < tiny
    exact = network_simplex(a, b, cost)
    assert solution.converged, solution
    assert solution.error <= GAP
    lower, upper = a[a > 0] @ f[a > 0] + b[b > 0] @ g[b > 0], (plan * cost).sum()
    assert lower - tiny <= exact <= upper + tiny
    assert upper - lower <= 1.1 * GAP * exact + tiny
    np.testing.assert_allclose(solution.transport_cost, upper, rtol=1e-9 if X64 else 1e-4)


@pytest.mark.long
def test_clouds():
    x, y, a, b = clouds(60, 47)
    a = a.at[5].set(0) / (1 - a[5])
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    check(solve(cost, a, b), cost, a, b)


@pytest.mark.long
def test_after_annealing_in_single_precision(monkeypatch):
    """As on an accelerator: the target is a rounding error below where float32 arrived."""
    monkeypatch.setattr(newton, "anneals_in_single", lambda problem: X64)
    x, y, a, b = clouds(30, 37)
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    check(jax.jit(lambda cost, a, b: transport_exactly(cost, a, b))(cost, a, b), cost, a, b)


@pytest.mark.long
def test_assignment():
    cost = jnp.asarray(np.random.default_rng(81).random((40, 40)), FLOAT)
    solution = transport_exactly(cost)
    rows, columns = linear_sum_assignment(np.asarray(cost))
    assert solution.converged
    np.testing.assert_allclose(solution.transport_cost, np.asarray(cost)[rows, columns].mean(), rtol=2 * GAP)


@pytest.mark.long
def test_never_stored():
    x, y, a, b = clouds(30, 35)
    cost = PointCloud(x, y, tile=300)
    solution = solve(cost, a, b)
    check(solution, cost.dense(), a, b)
    np.testing.assert_allclose(solution.apply(y), solution.plan() @ y, atol=1e-9 if X64 else 1e-4)


@pytest.mark.long
def test_images():
    rng = np.random.default_rng(82)
    a, b = (w / w.sum() for w in rng.random((2, 6, 6)))
    grid = Grid(*(jnp.linspace(0, 1, 6, dtype=FLOAT),) * 2)
    solution = solve(grid, jnp.asarray(a, FLOAT), jnp.asarray(b, FLOAT))
    check(solution, grid.dense(), a.ravel().astype(FLOAT), b.ravel().astype(FLOAT))


@needs_x64
@pytest.mark.long
def test_gradients_are_plan_and_potentials():
    x, y, a, b = clouds(60, 47)
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    of_cost, of_a = jax.jit(jax.grad(lambda c, a: transport_exactly(c, a, b).transport_cost, (0, 1)))(cost, a)
    solution = solve(cost, a, b)
    np.testing.assert_allclose(of_cost, solution.plan(), atol=1e-5)
    f = np.asarray(solution.f)
    np.testing.assert_allclose(of_a - of_a.mean(), f - f.mean(), atol=1e-3)


@pytest.mark.long
def test_equal_measures_and_failures():
    x, _, a, _ = clouds(60, 47)
    cost = ((x[:, None] - x[None]) ** 2).sum(-1)
    same = solve(cost, a, a)
    assert same.converged, same
    assert abs(same.transport_cost) < 1e-6
    assert solve(cost, a, 2 * a).status == TransportStatus.UNEQUAL_MASSES
    assert solve(cost * jnp.nan, a, a).status == Status.NONFINITE
    short = transport_exactly(cost[:, :47], tol=0.0, max_steps=2)
    assert short.status == Status.MAX_STEPS
    assert short.num_steps == 2
    assert short.error > 0
