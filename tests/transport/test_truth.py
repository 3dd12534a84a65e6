"""What `error` and the status say, against marginals that NumPy makes in float64 of the potentials returned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import (
    Grid,
    PointCloud,
    Status,
    TransportStatus,
    barycenter,
    free_support_barycenter,
    sinkhorn,
    sinkhorn_divergence,
    sns_sinkhorn,
    unbalanced_sinkhorn,
)
from solvers.transport.problem import Goal

from ..conftest import FLOAT, X64

N, M = 28, 32  # the sizes of test_costs, which needs the same programs
SPACING = float(np.finfo(FLOAT).eps)


def clouds(offset=0.0):
    rng = np.random.default_rng(71)
    x, y = rng.random((N, 2)), rng.random((M, 2)) + offset
    a, b = (w / w.sum() for w in (rng.random(N) + 0.2, rng.random(M) + 0.2))
    return tuple(jnp.asarray(z, FLOAT) for z in (x, y, a, b))


def lacking(potentials, cost, a, b, epsilon, wanted=None):
    """The sum of both marginals' distances from what they should be, relative to the mass."""
    f, g, cost, a, b, epsilon = (np.asarray(z, np.float64) for z in (*potentials, cost, a, b, epsilon))
    plan = np.where((a > 0)[:, None] & (b > 0), np.exp((f[:, None] + g - cost) / epsilon), 0)
    return abs(plan.sum(1) - a).sum() / a.sum() + abs(plan.sum(0) - b).sum() / a.sum()


def agrees(solution, truth, room=0.0):
    """To a tenth and the rounding of sums; converged is what meets the tolerance."""
    assert abs(float(solution.error) - truth) <= 0.1 * truth + 20 * SPACING + room
    assert bool(solution.converged) == bool(solution.error <= solution.tol)


views = jax.jit(lambda solution: (solution.plan(), solution.transport_cost))


@pytest.mark.parametrize("relative", [1e-1, 1e-3, 1e-4])
@pytest.mark.parametrize("form", ["stored", "tiles", "far"])
def test_error_is_that_of_the_potentials_returned(form, relative):
    x, y, a, b = clouds(30.0 if form == "far" else 0.0)
    cost = PointCloud(x, y, tile=200 if form == "tiles" else None)
    epsilon = jnp.asarray(relative / 3, FLOAT)
    sol = sns_sinkhorn(cost, a, b, epsilon=epsilon)
    entries = np.asarray(cost.dense() if form == "tiles" else sol.cost, np.float64)
    truth = lacking(sol.reduced, entries - np.float64(sol.shift), a, b, epsilon)
    size = np.abs(entries - np.float64(sol.shift)).max()
    plan, paid = (np.asarray(z, np.float64) for z in views(sol))
    room = 2.0**-52 * size / float(epsilon)  # what NumPy rounds
    room += SPACING * float(paid) / float(epsilon) if form == "tiles" else 0  # costs, made twice
    agrees(sol, truth, room)
    if form != "far":  # there the offset of the cost takes the digits of `value`
        assert sol.shift == 0
        assert lacking(sol.value, entries, a, b, epsilon) == truth
        assert sol.converged
    seen = abs(plan.sum(1) - a).sum() + abs(plan.sum(0) - b).sum()
    assert abs(seen - truth) <= 0.1 * truth + 20 * SPACING + room
    mass = np.abs(sol.reduced[0]) @ a + np.abs(sol.reduced[1]) @ b
    assert truth <= max(1e-9 if X64 else 1e-5, SPACING * mass / epsilon + room)  # as good as the precision allows
    assert X64 or sol.tol <= 1e-3


def test_alternate_scaling_and_a_given_tolerance():
    x, y, a, b = clouds()
    cost, epsilon = PointCloud(x, y).dense(), jnp.asarray(0.02, FLOAT)
    for tol in (None, 1e-3, 2e-5):
        sol = sinkhorn(cost, a, b, epsilon=epsilon, tol=None if tol is None else jnp.asarray(tol, FLOAT))
        assert sol.converged
        assert sol.error <= (sol.tol if tol is None else np.asarray(tol, FLOAT))
        agrees(sol, lacking(sol.value, cost, a, b, epsilon))


@pytest.mark.skipif(X64, reason="a tolerance that float64 meets")
def test_float32_does_not_converge_to_what_its_potentials_cannot_say():
    x, y, a, b = clouds()
    sol = sns_sinkhorn(PointCloud(x, y), a, b, epsilon=jnp.asarray(3e-5, FLOAT), tol=jnp.asarray(1e-5, FLOAT))
    assert sol.status == Status.STAGNATED
    assert sol.error > 1e-5
    tiny = sns_sinkhorn(PointCloud(x, y), a, b, epsilon=jnp.asarray(1e-8, FLOAT))
    assert not tiny.converged


@pytest.mark.long
def test_grid():
    sides = [jnp.linspace(0, 1, k, dtype=FLOAT) for k in (4, 7, 4, 8)]
    grid = Grid(*sides[:2], targets=tuple(sides[2:]))
    _, _, a, b = clouds()
    epsilon = jnp.asarray(3e-3, FLOAT)
    sol = sns_sinkhorn(grid, a, b, epsilon=epsilon)
    assert sol.converged
    agrees(sol, lacking(sol.value, grid.dense(), a, b, epsilon))


@pytest.mark.parametrize("relative", [1e-1, 1e-3])
def test_priced_marginals(relative):
    x, y, a, b = clouds()
    a, cost = 1.5 * a, PointCloud(x, y).dense()
    epsilon, rho = jnp.asarray(relative / 3, FLOAT), jnp.asarray(0.5, FLOAT)
    sol = unbalanced_sinkhorn(cost, a, b, epsilon=epsilon, rho=rho)
    assert sol.converged
    f, g, C, p, q = (np.asarray(z, np.float64) for z in (*sol.value, cost, a, b))
    plan = p[:, None] * q * np.exp((f[:, None] + g - C) / np.float64(epsilon))
    truth = abs(plan.sum(1) - p * np.exp(-f / 0.5)).sum() + abs(plan.sum(0) - q * np.exp(-g / 0.5)).sum()
    agrees(sol, truth * 2 / (p.sum() + q.sum()))


@pytest.mark.long
def test_the_three_problems_of_a_divergence():
    x, y, a, b = (z[:N] for z in clouds())  # all three of one size: one program
    b = b / jnp.sum(b)
    epsilon = jnp.asarray(1e-3, FLOAT)
    sol = sinkhorn_divergence(PointCloud(x, y), a, b, epsilon=epsilon)
    assert sol.converged
    truths = []
    for part, (p, q), (v, w) in zip(
        (sol.between, sol.first, sol.second), ((x, y), (x, x), (y, y)), ((a, b), (a, a), (b, b)), strict=True
    ):
        truths.append(lacking(part.value, PointCloud(p, q).dense(), v, w, epsilon))
        agrees(part, truths[-1])
    agrees(sol, max(truths))


@pytest.mark.parametrize("debiased", [True, False])
def test_barycenters(debiased):
    x, y, _, _ = clouds()
    a = np.random.default_rng(73).random((2, N)) + 0.1
    a = jnp.asarray(a / a.sum(1, keepdims=True), FLOAT)
    epsilon, cost = jnp.asarray(0.05, FLOAT), PointCloud(x, y).dense()
    sol = barycenter(PointCloud(x, y), a, epsilon=epsilon, debiased=debiased)
    assert sol.converged
    measured = np.mean([lacking((sol.f[k], sol.g[k]), cost, a[k], sol.value, epsilon) for k in range(2)])
    if debiased:  # the error has the potential of the barycenter with itself too, which is not returned
        assert measured <= 1.1 * sol.error + 20 * SPACING
    else:
        assert abs(measured - float(sol.error)) <= 0.1 * measured + 40 * SPACING


def test_points_far_from_the_origin_are_rounded_and_say_so():
    """Moved by 2^k the data are the same; what is returned has a coarser grid."""
    x = np.round(np.random.default_rng(74).random((2, 6, 2)) * 2**9) / 2**9
    far = 2.0 ** (38 if X64 else 13)
    sols = [free_support_barycenter(jnp.asarray(x + s, FLOAT), epsilon=0.5) for s in (0.0, far)]
    assert all(sol.converged for sol in sols)
    off = np.sqrt(np.mean(np.sum((np.asarray(sols[1].value, float) - far - np.asarray(sols[0].value, float)) ** 2, 1)))
    spread = np.sqrt(np.mean(np.sum((x - x.mean((0, 1))) ** 2, -1)))
    assert off / spread > 1e-6  # a grid of 1e-4 or so
    assert sols[1].error >= 0.5 * off / spread


def test_a_verdict_is_that_of_the_error():
    goal = Goal(jnp.asarray(1e-3, FLOAT), 9)
    cases = {
        (Status.CONVERGED, 1e-4): Status.CONVERGED,
        (Status.CONVERGED, 2e-3): Status.STAGNATED,
        (Status.STAGNATED, 1e-4): Status.CONVERGED,
        (Status.MAX_STEPS, 2e-3): Status.MAX_STEPS,
        (Status.MAX_STEPS, 1e-4): Status.CONVERGED,
        (Status.CONVERGED, np.nan): Status.NONFINITE,
        (Status.STAGNATED, np.inf): Status.NONFINITE,
        (Status.NONFINITE, 1e-4): Status.NONFINITE,
        (TransportStatus.UNEQUAL_MASSES, 1e-4): TransportStatus.UNEQUAL_MASSES,
    }
    for (status, error), said in cases.items():
        code, tol = goal.judge(jnp.asarray(int(status)), jnp.asarray(error, FLOAT), jnp.zeros((), FLOAT))
        assert code == said
        assert tol == goal.tol
