"""Thousands of damaged problems a family: nothing raises, nothing hangs, and no lane says more than is true."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

import solvers
from solvers import Status, Stencil

from .cases import CASES
from .conftest import FLOAT

LANES = 512
MAX_STEPS = 60
DAMAGE = ("none", "scale", "zeros", "duplicates", "negative", "tiny", "huge", "inf", "nan")


def damage(kind, x, rng):
    """Return one entry of the data after something that happens to data."""
    x = np.array(x, float)
    some = rng.random(x.shape) < 0.4
    if kind == "scale":
        return x * 10.0 ** rng.integers(-6, 7)
    if kind == "zeros":
        return np.where(some, 0.0, x)
    if kind == "duplicates" and x.ndim:
        return x[rng.integers(0, len(x), len(x))]
    if kind == "negative":
        return np.where(some, -x, x)
    if kind in ("tiny", "huge"):
        exponent = np.log10(float(np.finfo(FLOAT).max))
        return np.where(some, x * 10 ** (0.8 * exponent * (1 if kind == "huge" else -1)), x)
    if kind in ("inf", "nan"):
        return np.where(some, np.inf if kind == "inf" else np.nan, x)
    return x


def damaged(make, count, rng):
    """Yield so many kinds of damage, each with data of ``make(rng)`` of which about half the entries suffered it."""
    for kind in rng.choice(DAMAGE, count):
        data = make(rng)
        struck = rng.random(len(data)) < 0.5
        yield kind, {k: damage(kind, x, rng) if hit else x for (k, x), hit in zip(data.items(), struck, strict=True)}


def stacked(lanes):
    """Return the lanes' data as one batch."""
    with np.errstate(over="ignore"):
        return {k: jnp.asarray(np.stack([lane[k] for lane in lanes]), FLOAT) for k in lanes[0]}


def sinkhorn_lane(solve, data):
    solution = solve(data)
    plan = solution.plan()
    mismatch = jnp.abs(plan.sum(1) - data["a"]).sum() + jnp.abs(plan.sum(0) - data["b"]).sum()
    return solution, mismatch / data["a"].sum()


def linear_lane(solve, data):
    solution = solve(data)
    residual = data["b"] - Stencil.diffusion(data["conductivity"], shift=data["shift"]).mv(solution.value)
    size = jnp.max(jnp.abs(data["b"]))
    norm = jnp.linalg.norm(residual / size) / jnp.linalg.norm(data["b"] / size)
    return solution, jnp.where(size > 0, norm, jnp.linalg.norm(residual))


def newton_lane(solve, data):
    solution = solve(data)
    x, y = solution.value, solution.multipliers
    jacobian = data["rows"] + 0.2 * x[None, :]
    gradient = x - data["target"] + 0.4 * x**3 + jacobian.T @ y
    violation = data["rows"] @ x + 0.1 * jnp.sum(x**2) - data["rhs"]
    return solution, jnp.linalg.norm(jnp.concatenate([gradient, violation]))


def least_violation(data, rng):
    """Return what SciPy leaves of the equations from five starts."""
    equations = lambda x: data["rows"] @ x + 0.1 * x @ x - data["rhs"]  # noqa: E731
    return min(least_squares(equations, start).cost for start in 2 * rng.standard_normal((5, 4)))


def gp_lane(solve, data):
    solution = solve(data)
    x = jnp.linspace(0, 1, 5, dtype=data["c"].dtype)
    u, bend = solution.mean(x), solution.derivative(x, (2,))
    terms = jnp.stack([bend, data["c"] * u, data["f"] * jnp.sin(3 * x)])
    equation = jnp.max(jnp.abs(terms[0] - terms[1] - terms[2])) / (jnp.max(jnp.abs(terms)) + jnp.abs(data["left"]) + 1)
    return solution, equation + jnp.abs(u[0] - data["left"]) / (1 + jnp.max(jnp.abs(u)))


def gossip_lane(solve, data):
    """Judge by the mean gradient alone, whose size bounds the distance where the promised curvature is true."""
    solution = solve(data)
    x = solution.value
    slope = jnp.mean(2 * x[None] + 0.5 * data["bend"] * jnp.tanh(x)[None] - data["target"], axis=0)
    size = jnp.maximum(jnp.linalg.norm(x), jnp.linalg.norm(jnp.mean(data["target"], axis=0)) / 4)
    apart = jnp.max(jnp.abs(solution.nodes - x[None]))
    return solution, (jnp.linalg.norm(slope) / 2 + apart) / jnp.where(size > 0, size, 1)


def descent_lane(solve, data):
    """Judge by the equation ``-a Laplace u + c u^3 = f`` at the nodes, against its terms."""
    solution = solve(data)
    u, f = solution.value, data["f"]
    padded = jnp.pad(u, 1)
    bend = sum(
        (padded[s] - 2 * u + padded[t]) * (n + 1) ** 2
        for n, s, t in zip(
            u.shape, (np.s_[:-2, 1:-1], np.s_[1:-1, :-2]), (np.s_[2:, 1:-1], np.s_[1:-1, 2:]), strict=True
        )
    )
    terms = jnp.stack([-data["a"] * bend, data["c"] * u**3, -f])
    size = jnp.max(jnp.abs(terms))
    return solution, jnp.max(jnp.abs(jnp.sum(terms, axis=0))) / jnp.where(size > 0, size, 1)


def field_lane(solve, data):
    """Judge a sum of Gaussians by nested differentiation of its values, between the points."""
    solution = solve(data)
    value = lambda x: solution.mean(x[None])  # noqa: E731
    x = jnp.linspace(0, 1, 5, dtype=data["c"].dtype)
    u = jax.vmap(value)(x)
    terms = jnp.stack([jax.vmap(jax.grad(jax.grad(value)))(x), -data["c"] * u, -data["f"] * jnp.sin(3 * x)])
    right = u[-1] + 0.5 * jax.grad(value)(x[-1]) - data["right"]
    size = jnp.max(jnp.abs(terms)) + jnp.abs(data["left"]) + jnp.abs(data["right"])
    equation = jnp.max(jnp.abs(jnp.sum(terms, axis=0)))
    faces = jnp.abs(u[0] - data["left"]) + jnp.abs(right)
    return solution, (equation + faces) / jnp.where(size > 0, size, 1)


def surrogate_lane(solve, data):
    solution = solve(data)
    misses = data["X"] @ solution.value - data["y"]
    return solution, jnp.linalg.norm(data["X"].T @ (jnp.tanh(misses) + 0.1 * misses))


FAMILIES = {
    "mudag": gossip_lane,
    "target_surrogate": surrogate_lane,
    "sobolev_descent": descent_lane,
    "collocate": field_lane,
    "sns_sinkhorn": sinkhorn_lane,
    "sketched_newton": newton_lane,
    "multigrid_cg": linear_lane,
    "gp_solve": gp_lane,
}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in FAMILIES], ids=lambda case: case.name)
@pytest.mark.long
def test_no_lane_says_more_than_is_true(case):
    rng = np.random.default_rng(23)
    kinds, lanes = map(np.array, zip(*damaged(case.make, LANES, rng), strict=True))
    batch = stacked(lanes)

    solve = lambda data: case.solve(data, max_steps=MAX_STEPS)  # noqa: E731
    solution, true_error = jax.jit(jax.vmap(lambda data: FAMILIES[case.name](solve, data)))(batch)

    converged = np.asarray(solution.converged)
    known = {int(code) for statuses in solution.statuses for code in statuses} - {int(Status.RUNNING)}
    assert set(np.unique(solution.status).tolist()) <= known
    assert np.all((solution.num_steps >= 0) & (solution.num_steps <= MAX_STEPS))
    assert np.all(np.asarray(solution.error)[converged] <= np.asarray(solution.tol)[converged])
    for leaf in jax.tree.leaves(solution.value):
        assert np.all(np.isfinite(np.asarray(leaf)[converged]))
    between_nodes = {"float64": 1e-5, "float32": 1e-2}[FLOAT.name] if case.name == "gp_solve" else 0.0
    allowed = 20 * np.asarray(solution.tol) + case.tol[FLOAT.name] + between_nodes
    dishonest = converged & ~(np.asarray(true_error) <= allowed)
    assert not dishonest.any(), [(kinds[i], lanes[i], true_error[i]) for i in np.flatnonzero(dishonest)[:2]]
    poisoned = np.array([any(np.isnan(x).any() for x in lane.values()) for lane in lanes])
    assert np.all(np.asarray(solution.status)[poisoned] == Status.NONFINITE)
    assert np.all(np.asarray(solution.num_steps)[poisoned] == 0)
    for i in np.flatnonzero((kinds == "none") & ~converged):
        assert case.name == "sketched_newton"
        assert solution.status[i] == Status.INFEASIBLE
        assert least_violation(lanes[i], rng) > 1e-5
    assert repr(solution).startswith(type(solution).__name__)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (9, 3), (5, 5)])
@pytest.mark.long
def test_transport_is_scale_free_over_twelve_decades(n, m):
    """Units of cost and mass do not matter, nor do they change the work."""
    rng = np.random.default_rng(24)
    cost, weights = rng.random((n, m)), rng.random(n) + 0.1
    scale = 10.0 ** np.arange(-6, 7, dtype=FLOAT)

    @jax.jit
    @jax.vmap
    def solve(scale):
        a, b = weights.astype(FLOAT) / weights.sum().astype(FLOAT), np.full(m, 1 / m, FLOAT)
        return solvers.sns_sinkhorn(scale * cost.astype(FLOAT), scale * a, scale * b, epsilon=scale * FLOAT.type(0.02))

    solution = solve(jnp.asarray(scale))
    assert np.all(solution.converged)
    assert np.ptp(solution.num_steps) <= 1
    shift = 0.01 * np.log(scale)[:, None]  # the plan, exp((f + g - cost) / epsilon), has the mass of the weights
    np.testing.assert_allclose(solution.f / scale[:, None] - shift, np.tile(solution.f[6], (13, 1)), atol=1e-4)
