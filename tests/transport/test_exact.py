"""Transport without entropy, against linear programming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from scipy.optimize import linear_sum_assignment, linprog

from solvers import Grid, PointCloud, Status, TransportStatus, transport_exactly
from solvers.transport.entropic import newton

from ..conftest import FLOAT, X64, needs_x64

GAP = 1e-6 if X64 else 3e-3


def optimum(a, b, cost):
    """Return the least cost of a plan, by a simplex method."""
    n, m = cost.shape
    of_rows = scipy.sparse.kron(scipy.sparse.eye(n), np.ones((1, m)))
    of_columns = scipy.sparse.kron(np.ones((1, n)), scipy.sparse.eye(m))
    sums = scipy.sparse.vstack([of_rows, of_columns])
    b = b * (a.sum() / b.sum())  # sums in float32 are equal to its rounding only
    found = linprog(cost.ravel(), A_eq=sums.tocsr()[:-1], b_eq=np.concatenate([a, b])[:-1], method="highs-ds")
    assert found.status == 0, found.message
    return found.fun


seen = jax.jit(lambda solution: (solution.plan(), solution.transport_cost))


@jax.jit
def priced(cost, a, b, tol, max_steps):
    """Return the solution and the gradient of its cost in the costs and in a: one program for most tests."""

    def price(cost, a):
        solution = transport_exactly(cost, a, b, tol=tol, max_steps=max_steps)
        return solution.transport_cost, solution

    return jax.grad(price, (0, 1), has_aux=True)(cost, a)


def solve(cost, a, b, tol=GAP, max_steps=30):
    return priced(cost, a, b, jnp.asarray(tol, FLOAT), jnp.asarray(max_steps))[1]


def clouds(n, m, seed=80):
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 2)), rng.normal(0.5, 0.15, (m, 2))
    a, b = (w / w.sum() for w in (rng.random(n) + 0.1, rng.random(m) + 0.1))
    return tuple(jnp.asarray(z, FLOAT) for z in (x, y, a, b))


def check(solution, cost, a, b):
    """Feasible on both sides in NumPy, and as close to the optimum as it says."""
    cost, a, b = (np.asarray(z, float) for z in (cost, a, b))
    f, g = (np.asarray(z, float) for z in solution.value)
    plan, paid = (np.asarray(z, float) for z in seen(solution))
    tiny = 1e-12 if X64 else 1e-5
    assert (f[:, None] + g - cost)[np.ix_(a > 0, b > 0)].max() < tiny
    assert plan.min() >= 0
    assert abs(plan.sum(1) - a).sum() + abs(plan.sum(0) - b).sum() < tiny
    exact = optimum(a, b, cost)
    assert solution.converged, solution
    assert solution.error <= GAP
    lower, upper = a[a > 0] @ f[a > 0] + b[b > 0] @ g[b > 0], (plan * cost).sum()
    assert lower - tiny <= exact <= upper + tiny
    assert upper - lower <= 1.1 * GAP * exact + tiny
    np.testing.assert_allclose(paid, upper, rtol=1e-9 if X64 else 1e-4)


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
    check(transport_exactly(cost, a, b), cost, a, b)  # at a shape of its own: traced after the exchange


@pytest.mark.long
def test_assignment():
    cost = jnp.asarray(np.random.default_rng(81).random((40, 40)), FLOAT)
    solution = transport_exactly(cost)
    rows, columns = linear_sum_assignment(np.asarray(cost))
    assert solution.converged
    np.testing.assert_allclose(seen(solution)[1], np.asarray(cost)[rows, columns].mean(), rtol=2 * GAP)


@pytest.mark.long
def test_never_stored():
    x, y, a, b = clouds(30, 35)
    cost = PointCloud(x, y, tile=300)
    solution = transport_exactly(cost, a, b)
    check(solution, cost.dense(), a, b)
    moved = jax.jit(lambda solution, y: solution.apply(y))(solution, y)
    np.testing.assert_allclose(moved, seen(solution)[0] @ y, atol=1e-9 if X64 else 1e-4)


@pytest.mark.long
def test_images():
    rng = np.random.default_rng(82)
    a, b = (w / w.sum() for w in rng.random((2, 6, 6)))
    grid = Grid(*(jnp.linspace(0, 1, 6, dtype=FLOAT),) * 2)
    solution = transport_exactly(grid, jnp.asarray(a, FLOAT), jnp.asarray(b, FLOAT))
    check(solution, grid.dense(), a.ravel().astype(FLOAT), b.ravel().astype(FLOAT))


@needs_x64
@pytest.mark.long
def test_gradients_are_plan_and_potentials():
    x, y, a, b = clouds(60, 47)
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    (of_cost, of_a), solution = priced(cost, a, b, jnp.asarray(GAP, FLOAT), jnp.asarray(30))
    np.testing.assert_allclose(of_cost, seen(solution)[0], atol=1e-5)
    f = np.asarray(solution.f)
    np.testing.assert_allclose(of_a - of_a.mean(), f - f.mean(), atol=1e-3)


@pytest.mark.long
def test_equal_measures():
    x, _, a, _ = clouds(40, 47)
    cost = ((x[:, None] - x[None]) ** 2).sum(-1)
    same = transport_exactly(cost, a, a)
    assert same.converged, same
    assert abs(seen(same)[1]) < 1e-6


@pytest.mark.long
def test_failures():
    x, y, a, b = clouds(60, 47)
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    assert solve(cost, a, 2 * b).status == TransportStatus.UNEQUAL_MASSES
    assert solve(cost * jnp.nan, a, b).status == Status.NONFINITE
    short = solve(cost, a, b, tol=0.0, max_steps=2)
    assert short.status == Status.MAX_STEPS
    assert short.num_steps == 2
    assert short.error > 0
