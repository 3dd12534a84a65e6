"""Nasty data, against closed forms, linear programming, and the same problem without the nastiness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from solvers import Status, TransportStatus

from ..compiled import sinkhorn, sns_sinkhorn
from ..conftest import FLOAT, X64, needs_x64

TOL = 1e-10 if X64 else 2e-5
N, M = 12, 15


def problem(seed=40):
    rng = np.random.default_rng(seed)
    x, y = rng.random((N, 2)), rng.random((M, 2))
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    a, b = (w / w.sum() for w in (rng.random(N) + 0.3, rng.random(M) + 0.3))
    return cost, a, b


@jax.jit
def _solve(cost, a, b, epsilon):
    return sns_sinkhorn(cost, a, b, epsilon=epsilon, tol=TOL)


def solve(cost, a, b, epsilon):
    return _solve(*(jnp.asarray(x, FLOAT) for x in (cost, a, b, epsilon)))


def marginal_error(solution, a, b):
    plan = np.asarray(solution.plan(), float)
    return abs(plan.sum(1) - a).sum() + abs(plan.sum(0) - b).sum()


@pytest.mark.parametrize("relative", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_any_epsilon(relative):
    """Down to a millionth of the mean cost, where the plan is a vertex of the linear programme."""
    cost, a, b = problem()
    if not X64 and relative < 1e-4:
        pytest.skip("float32 holds no exponent of that size")
    solution = solve(cost, a, b, relative * cost.mean())
    floor = np.finfo(FLOAT).eps * (a @ np.abs(solution.f) + b @ np.abs(solution.g)) / (relative * cost.mean())
    if not X64 and floor > TOL:  # what rounding of the potentials may make is above the tolerance, and is named
        assert solution.error < floor
        assert solution.status == (Status.CONVERGED if solution.error <= TOL else Status.STAGNATED)
        assert relative == 1e-3 or solution.error > TOL
        np.testing.assert_allclose(marginal_error(solution, a, b), solution.error, rtol=0.1)
        return
    assert solution.converged, solution
    assert marginal_error(solution, a, b) < 20 * TOL
    if relative <= 1e-5:
        rows = np.kron(np.eye(N), np.ones(M)), np.kron(np.ones(N), np.eye(M))
        exact = linprog(cost.ravel(), A_eq=np.vstack(rows), b_eq=np.concatenate([a, b]), bounds=(0, None)).fun
        assert abs(float(solution.transport_cost) - exact) < 2 * relative * cost.mean()


@pytest.mark.long
def test_zero_weights_equal_removed_points():
    cost, a, b = problem()
    a[[2, 7]], b[[0, 5]] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    whole, part = solve(cost, a, b, 0.01), sns_sinkhorn(
        *(jnp.asarray(x, FLOAT) for x in (cost[np.ix_(a > 0, b > 0)], a[a > 0], b[b > 0])), epsilon=0.01, tol=TOL
    )  # fmt: skip
    assert whole.converged
    plan = np.asarray(whole.plan())
    assert np.all(plan[[2, 7]] == 0)
    assert np.all(plan[:, [0, 5]] == 0)
    np.testing.assert_allclose(plan[np.ix_(a > 0, b > 0)], part.plan(), atol=1e-12 if X64 else 1e-5)
    f, g = np.asarray(whole.f, float), np.asarray(whole.g, float)
    transform = -0.01 * np.log(np.exp((g[b > 0] - cost[2, b > 0]) / 0.01).sum())
    np.testing.assert_allclose(f[2], transform, rtol=1e-6 if X64 else 1e-3)
    gradient = jax.grad(lambda c, a: sns_sinkhorn(c, a, jnp.asarray(b, FLOAT), epsilon=0.01).regularized_cost, (0, 1))
    of_cost, of_a = gradient(jnp.asarray(cost, FLOAT), jnp.asarray(a, FLOAT))
    assert np.all(np.isfinite(of_cost))
    assert np.all(np.asarray(of_cost)[2] == 0)
    np.testing.assert_allclose(of_a, whole.f, atol=1e-6 if X64 else 1e-2)


@needs_x64
def test_weights_over_twelve_decades():
    cost, a, b = problem()
    a = np.logspace(-12, 0, N)
    a /= a.sum()
    solution = solve(cost, a, b, 1e-3)
    assert solution.converged, solution
    plan = np.asarray(solution.plan())
    np.testing.assert_allclose(plan.sum(1)[0], a[0], rtol=1e-2)


@pytest.mark.long
def test_forbidden_pairs():
    cost, a, b = problem()
    cost[np.random.default_rng(41).random((N, M)) < 0.4] = np.inf
    cost[:, 0] = 0.5
    cost[0] = 0.5
    solution = solve(cost, a, b, 0.05)
    assert solution.converged, solution
    assert np.all(np.asarray(solution.plan())[np.isinf(cost)] == 0)
    assert np.isfinite(solution.transport_cost)
    for gradient in jax.grad(lambda c, e: sns_sinkhorn(c, epsilon=e).transport_cost, (0, 1))(
        jnp.asarray(cost, FLOAT), jnp.asarray(0.05, FLOAT)
    ):
        assert np.all(np.isfinite(gradient))


def test_scale_is_exact_for_powers_of_two_and_shift_to_rounding():
    cost, a, b = problem()
    one, scaled = solve(cost, a, b, 0.01), solve(cost * 2.0**20, a, b, 0.01 * 2.0**20)
    assert one.num_steps == scaled.num_steps
    np.testing.assert_array_equal(np.asarray(scaled.f), np.asarray(one.f) * 2.0**20)
    huge = solve(cost * 1e10, a, b, 0.01e10)
    assert huge.converged
    shifted = solve(np.round(cost * 2**10) / 2**10 - 2.0**10, a, b, 0.02)
    plain = solve(np.round(cost * 2**10) / 2**10, a, b, 0.02)
    assert shifted.num_steps == plain.num_steps
    np.testing.assert_allclose(shifted.plan(), plain.plan(), rtol=1e-9 if X64 else 1e-4)


@pytest.mark.parametrize("cost", [np.zeros((N, M)), np.full((N, M), -3.0)])
def test_constant_cost_gives_the_product_plan(cost):
    _, a, b = problem()
    solution = solve(cost, a, b, 0.1)
    np.testing.assert_allclose(solution.plan(), np.outer(a, b), rtol=1e-6)
    np.testing.assert_allclose(solution.transport_cost, cost[0, 0], atol=1e-6)


def test_duplicated_points():
    cost, a, b = problem()
    cost[1], cost[:, 3] = cost[0], cost[:, 2]
    solution = solve(cost, a, b, 1e-3)
    assert solution.converged
    plan = np.asarray(solution.plan())
    np.testing.assert_allclose(plan[1] / a[1], plan[0] / a[0], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (40, 3)])
@pytest.mark.long
def test_lopsided_shapes(shape):
    cost = jnp.asarray(np.random.default_rng(42).random(shape), FLOAT)
    solution = sns_sinkhorn(cost, epsilon=1e-3, tol=TOL)
    assert solution.converged
    assert solution.f.shape == shape[:1]
    np.testing.assert_allclose(np.asarray(solution.plan()).sum(1), 1 / shape[0], rtol=1e-4)
    flipped = sns_sinkhorn(cost.T, epsilon=1e-3, tol=TOL)
    apart = float(solution.error + flipped.error)  # in float32 either is right up to how its potentials are rounded
    assert apart < 1e-4
    np.testing.assert_allclose(flipped.plan().T, solution.plan(), atol=max(1e-7, apart))


def test_any_total_mass():
    cost, a, b = problem()
    solution, unit = solve(cost, 1e6 * a, 1e6 * b, 0.01), solve(cost, a, b, 0.01)
    assert solution.converged
    np.testing.assert_allclose(np.asarray(solution.plan()) / 1e6, unit.plan(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("solver", [sinkhorn, sns_sinkhorn])
@pytest.mark.parametrize(
    ("spoil", "status", "word"),
    [
        (lambda c, a, b: (c, a, 2 * b), TransportStatus.UNEQUAL_MASSES, "unequal masses"),
        (lambda c, a, b: (c, a - 0.2, b - 0.2 * N / M), TransportStatus.NEGATIVE_WEIGHTS, "negative weights"),
        (lambda c, a, b: (c, 0 * a, 0 * b), TransportStatus.ZERO_MASS, "zero mass"),
        (
            lambda c, a, b: (np.where(np.arange(N)[:, None] == 3, np.inf, c), a, b),
            TransportStatus.FORBIDDEN_POINT,
            "forbid",
        ),
        (lambda c, a, b: (np.where(np.arange(M) == 3, np.inf, c), a, b), TransportStatus.FORBIDDEN_POINT, "forbidden"),
        (lambda c, a, b: (c * np.nan, a, b), Status.NONFINITE, "nonfinite"),
        (lambda c, a, b: (c, a * np.nan, b), Status.NONFINITE, "nonfinite"),
        (lambda c, a, b: (np.where(c == c.max(), -np.inf, c), a, b), Status.NONFINITE, "nonfinite"),
    ],
)
def test_bad_values_are_named_without_a_step(solver, spoil, status, word):
    data = (jnp.asarray(x, FLOAT) for x in spoil(*problem()))
    solution = solver(*data, epsilon=0.1)
    assert solution.status == status
    assert solution.num_steps == 0
    assert word in solution.message
    assert word in repr(solution)


def test_traced_epsilon_of_the_wrong_sign():
    cost, a, b = problem()
    assert solve(cost, a, b, -1.0).status == TransportStatus.NOT_POSITIVE_EPSILON


@pytest.mark.parametrize("solver", [sinkhorn, sns_sinkhorn])
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"cost": np.zeros(3)}, ValueError, r"`cost` must be an array with 2 axes, got shape \(3,\)"),
        ({"cost": np.zeros((0, 3))}, ValueError, "n, m >= 1"),
        ({"cost": np.zeros((3, 3), complex)}, TypeError, "`cost` must be a real array"),
        ({"cost": "no"}, TypeError, "`cost`"),
        ({"cost": np.zeros((3, 4)), "a": np.ones(4)}, ValueError, r"`a` must be \(3,\)"),
        ({"cost": np.zeros((3, 4)), "b": np.ones((4, 1))}, ValueError, r"`b` must be \(4,\)"),
        ({"cost": np.zeros((3, 4)), "epsilon": -1.0}, ValueError, "`epsilon` must be a positive number, got -1.0"),
        ({"cost": np.zeros((3, 4)), "epsilon": np.ones(2)}, ValueError, "jax.vmap"),
        ({"cost": np.zeros((3, 4)), "max_steps": -1}, ValueError, "`max_steps`"),
        ({"cost": np.zeros((3, 4)), "max_steps": 2.5}, TypeError, "`max_steps`"),
        ({"cost": np.zeros((3, 4)), "init": (np.zeros(4), np.zeros(3))}, ValueError, "lengths 3 and 4"),
    ],
)
def test_impossible_arguments_raise_while_tracing(solver, arguments, error, words):
    options = {"epsilon": 0.1, **arguments}
    cost, a, b = (options.pop(k, None) for k in ("cost", "a", "b"))
    with pytest.raises(error, match=f"{solver.__name__}: .*{words}|{words}"):
        solver(cost, a, b, **options)


def test_unknown_hessian_raises():
    with pytest.raises(ValueError, match="sns_sinkhorn: `hessian` must be one of 'auto'"):
        sns_sinkhorn(np.zeros((2, 2)), epsilon=1.0, hessian="magic")


def test_integer_costs_are_promoted():
    solution = sns_sinkhorn(np.arange(6).reshape(2, 3), epsilon=1)
    assert solution.converged
    assert solution.f.dtype == FLOAT


def test_unreachable_tolerance_ends_as_stagnated():
    cost, a, b = (jnp.asarray(x, jnp.float32) for x in problem())
    solution = sns_sinkhorn(cost, a, b, epsilon=1e-3, tol=1e-12)
    assert solution.status == Status.STAGNATED
    assert solution.error < 1e-4
    assert solution.num_steps < 60
