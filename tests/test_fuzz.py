"""Thousands of damaged problems a family: nothing raises, nothing hangs, and no lane says more than is true.

``SOLVERS_FUZZ_CASES=10000 pytest -m "slow or not slow" tests/test_fuzz.py tests/*/test_damaged.py`` tries so many a
solver, in rounds of one compiled program; without it there is one round.
"""

import os

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


def generators(seed, lanes):
    """Yield one random generator a round of so many lanes; the first is that of a default run."""
    for k in range(max(1, -(-int(os.environ.get("SOLVERS_FUZZ_CASES", 0)) // lanes))):
        yield np.random.default_rng((seed, k) if k else seed)


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
    size = jnp.concatenate(
        [jnp.abs(jacobian.T) @ jnp.abs(y), jnp.abs(data["rows"]) @ jnp.abs(x) + jnp.abs(data["rhs"])]
    )
    floor = 16 * jnp.finfo(x.dtype).eps * jnp.linalg.norm(size)  # what the terms' own rounding leaves
    return solution, jnp.maximum(jnp.linalg.norm(jnp.concatenate([gradient, violation])) - floor, 0)


def interior_lane(solve, data):
    """Judge by the conditions of Karush, Kuhn and Tucker, written out, each against the size of its terms."""
    solution = solve(data)
    x, y = solution.value, solution.multipliers
    rows, rhs = data["rows"], data["rhs"]
    equality = jnp.stack([rows[0] @ x, -rhs[0], 0.1 * jnp.sum(x**2)])
    inequality = jnp.stack([rows[1] @ x - rhs[1], jnp.sum(x**2) - data["radius"][0]])
    terms = jnp.stack([
        x, -data["target"], 0.4 * x**3, y.equality * (rows[0] + 0.2 * x),
        y.inequality[0] * rows[1], y.inequality[1] * 2 * x, -y.lower, y.upper,
    ])  # fmt: skip
    slack = jnp.concatenate([-inequality, x, 2 - x])
    dual = jnp.concatenate([y.inequality, y.lower, y.upper])
    size = jnp.maximum(1, jnp.max(jnp.abs(terms)))
    parts = [
        jnp.max(jnp.abs(jnp.sum(terms, axis=0))) / size,
        jnp.abs(jnp.sum(equality)) / jnp.maximum(1, jnp.max(jnp.abs(equality))),
        jnp.max(jnp.maximum(-slack, 0)) / jnp.maximum(1, jnp.max(jnp.abs(rhs)) + jnp.abs(data["radius"][0])),
        jnp.max(jnp.maximum(-dual, 0)) / size,
        jnp.max(jnp.abs(slack * dual)) / size,
    ]
    return solution, jnp.max(jnp.stack(parts))


def relu_lane(solve, data):
    """Judge by the network's objective and by networks near it: none may lie below the certified bound."""
    solution = solve(data)
    network, X = solution.to_network(), data["X"]
    unit = jnp.where(jnp.any(data["y"] != 0), jnp.max(jnp.abs(data["y"])), 1)  # whose square may overflow
    y, beta, root = data["y"] / unit, data["beta"] / unit, jnp.sqrt(unit)

    def objective(scale):
        hidden, output = scale * network.hidden / root, scale * network.output / root
        misfit = jnp.maximum(X @ hidden.T, 0) @ output - y
        return jnp.sum(misfit**2) / 2 + beta / 2 * (jnp.sum(hidden**2) + jnp.sum(output**2))

    others = jax.vmap(objective)(jnp.asarray([0.0, 0.9, 0.99, 1.0, 1.01, 1.1], X.dtype))
    best, bound = solution.objective / unit / unit, solution.lower_bound / unit / unit
    known = jnp.isfinite(best)
    misses = jnp.where(known, jnp.maximum(jnp.abs(others[3] - best), best - bound), 0)
    misses = jnp.maximum(misses, jnp.where(known, bound, others[3]) - jnp.min(others))
    return solution, misses / jnp.where(others[0] > 0, others[0], 1)


def least_violation(data, rng):
    """Return what SciPy leaves of the equations from five starts."""
    equations = lambda x: data["rows"] @ x + 0.1 * x @ x - data["rhs"]  # noqa: E731
    return min(least_squares(equations, start).cost for start in 2 * rng.standard_normal((5, 4)))


def least_violation_in_the_box(data, rng):
    """Return the same with the inequalities, within the bounds."""

    def violations(x):
        rows, square = data["rows"] @ x - data["rhs"], x @ x
        return np.array([rows[0] + 0.1 * square, max(rows[1], 0), max(square - data["radius"][0], 0)])

    return min(least_squares(violations, start, bounds=(0, 2)).cost for start in 0.1 + rng.random((5, 4)))


def gp_lane(solve, data):
    solution = solve(data)
    x = jnp.linspace(0, 1, 5, dtype=data["c"].dtype)
    u, bend = solution.mean(x), solution.derivative(x, (2,))
    terms = jnp.stack([bend, data["c"] * u, data["f"] * jnp.sin(3 * x)])
    size = jnp.max(jnp.abs(terms)) + jnp.abs(data["left"]) + jnp.max(jnp.abs(u)) + 1
    equation = jnp.max(jnp.abs(terms[0] - terms[1] - terms[2])) / size
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


LEAST_VIOLATION = {"sketched_newton": least_violation, "interior_point": least_violation_in_the_box}
FAMILIES = {
    "mudag": gossip_lane,
    "target_surrogate": surrogate_lane,
    "sobolev_descent": descent_lane,
    "collocate": field_lane,
    "sns_sinkhorn": sinkhorn_lane,
    "sketched_newton": newton_lane,
    "interior_point": interior_lane,
    "train_relu": relu_lane,
    "multigrid_cg": linear_lane,
    "gp_solve": gp_lane,
}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in FAMILIES], ids=lambda case: case.name)
@pytest.mark.long
def test_no_lane_says_more_than_is_true(case):
    solve = lambda data: case.solve(data, max_steps=MAX_STEPS)  # noqa: E731
    run = jax.jit(jax.vmap(lambda data: FAMILIES[case.name](solve, data)))
    for rng in generators(23, LANES):
        kinds, lanes = map(np.array, zip(*damaged(case.make, LANES, rng), strict=True))
        judge(case, kinds, lanes, *run(stacked(lanes)), rng)


def judge_alone(kinds, lanes, solution):
    """Check what a batch of solutions says of itself, and of data that are not numbers."""
    converged = np.asarray(solution.converged)
    known = {int(code) for statuses in solution.statuses for code in statuses} - {int(Status.RUNNING)}
    assert set(np.unique(solution.status).tolist()) <= known
    assert np.all(np.asarray(solution.num_steps) >= 0)
    assert np.all(np.asarray(solution.error)[converged] <= np.asarray(solution.tol)[converged])
    for leaf in jax.tree.leaves(solution.value):
        assert np.all(np.isfinite(np.asarray(leaf)[converged]))
    poisoned = np.array([any(np.isnan(x).any() for x in lane.values()) for lane in lanes])
    assert np.all(np.asarray(solution.status)[poisoned] == Status.NONFINITE)
    assert np.all(np.asarray(solution.num_steps)[poisoned] == 0)


def judge(case, kinds, lanes, solution, true_error, rng):
    judge_alone(kinds, lanes, solution)
    converged = np.asarray(solution.converged)
    assert np.all(np.asarray(solution.num_steps) <= MAX_STEPS)
    # judged by root mean squares, of which a residual in the narrowest layer is eight times as much at a face
    between_nodes = {"float64": 1e-5, "float32": 1e-2}[FLOAT.name] if case.name == "gp_solve" else 0.0
    allowed = 20 * np.asarray(solution.tol) + case.tol[FLOAT.name] + between_nodes
    dishonest = converged & ~(np.asarray(true_error) <= allowed)
    assert not dishonest.any(), [(kinds[i], lanes[i], true_error[i]) for i in np.flatnonzero(dishonest)[:2]]
    for i in np.flatnonzero((kinds == "none") & ~converged):
        assert solution.status[i] in (Status.INFEASIBLE, Status.STAGNATED, Status.MAX_STEPS)
        assert LEAST_VIOLATION[case.name](lanes[i], rng) > 1e-8
    assert repr(solution).startswith(type(solution).__name__)


OTHERS = [case for case in CASES if case.name not in FAMILIES]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
@pytest.mark.slow
def test_no_lane_of_the_others_contradicts_itself(case):
    """No judge of its own here: what a solution says of itself must fit together, and missing data are noticed."""
    run = jax.jit(jax.vmap(case.solve))
    for rng in generators(31, LANES):
        kinds, lanes = map(np.array, zip(*damaged(case.make, LANES, rng), strict=True))
        solution = run(stacked(lanes))
        judge_alone(kinds, lanes, solution)
        if case.name != "gp_solve_conditioned":  # most of whose random observations contradict its equation
            assert np.mean(np.asarray(solution.converged)[kinds == "none"]) > 0.9


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
