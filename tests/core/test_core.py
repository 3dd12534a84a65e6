"""The loop, the Krylov method, implicit derivatives and the solution, each against something known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from solvers import Solution, SolveError, Status
from solvers.core.implicit import attach, envelope, linear_solve
from solvers.core.krylov.cg import cg
from solvers.core.krylov.result import KrylovReason
from solvers.core.loop import Limits, iterate, when
from solvers.core.precision import matmul
from solvers.core.search import backtrack

from ..conftest import FLOAT, needs_x64

LIMITS = {"tol": None, "max_steps": None, "history": 0, "progress": None}


def run(factors, start=1.0, **options):
    """Multiply the error by the next factor in every step, the last one for ever."""
    factors = jnp.asarray(factors, FLOAT)

    def step(state):
        x, k = state
        return x * factors[jnp.minimum(k, len(factors) - 1)], k + 1

    given = {"tol": 1e-3, "max_steps": 50, **options}
    limits = Limits(*(given.pop(name, default) for name, default in LIMITS.items()))
    state = (jnp.asarray(start, FLOAT), jnp.zeros((), jnp.int32))
    return iterate(step, state, limits, value=lambda s: s[1], error=lambda s: s[0], **given)


@pytest.mark.parametrize(
    ("factors", "options", "status", "steps", "best"),
    [
        ([0.125], {}, Status.CONVERGED, 4, 4),
        ([0.1], {"start": 1e-4}, Status.CONVERGED, 0, 0),
        ([0.5], {"max_steps": 4}, Status.MAX_STEPS, 4, 4),
        ([0.5], {"max_steps": 0}, Status.MAX_STEPS, 0, 0),
        ([0.5, 0.5, 1.0], {"stall": 5}, Status.STAGNATED, 7, 2),
        ([0.5, 3.0], {"divergence": 100.0}, Status.DIVERGED, 6, 1),
        ([0.5, np.nan], {}, Status.NONFINITE, 2, 1),
        ([0.5], {"start": np.nan}, Status.NONFINITE, 0, 0),
        ([0.5], {"status": lambda s: jnp.where(s[1] >= 2, 5, -1)}, Status.INFEASIBLE, 2, 2),
        ([0.01], {"status": lambda s: jnp.where(s[1] >= 1, 5, -1), "tol": 0.1}, Status.CONVERGED, 1, 1),
        ([0.01], {"refused": lambda s: jnp.where(s[1] >= 1, 5, -1), "tol": 0.1}, Status.INFEASIBLE, 1, 1),
        ([0.5], {"start": np.nan, "refused": lambda s: jnp.asarray(5)}, Status.INFEASIBLE, 0, 0),
        ([0.5], {"answers": lambda s: s[1] >= 12}, Status.CONVERGED, 12, 12),
        ([0.5, 0.5, 4.0, 0.5], {"answers": lambda s: s[1] > 2, "max_steps": 4}, Status.MAX_STEPS, 4, 4),
        ([0.5, 4.0], {"answers": lambda s: s[1] < 0, "max_steps": 3}, Status.MAX_STEPS, 3, 3),
    ],
)
def test_loop_stops_for_the_right_reason_with_the_best_iterate(factors, options, status, steps, best):
    out = run(factors, **options)
    assert out.status == status
    assert out.num_steps == steps
    assert out.value == best


@pytest.mark.parametrize(
    ("factor", "options"),
    [(0.125, {}), (0.5, {"max_steps": 0}), (0.5, {"start": np.nan}), (1.0, {"stall": 3}), (0.1, {"start": 1e-4}),
     (0.5, {"divergence": 100.0}), (0.5, {"answers": lambda s: s[1] >= 12})],
)  # fmt: skip
def test_a_loop_that_makes_its_first_state_ends_as_one_that_is_given_it(factor, options):
    given = {"start": 1.0, "tol": 1e-3, "max_steps": 50, **options}
    start = jnp.asarray(given.pop("start"), FLOAT)
    limits = Limits(given.pop("tol"), given.pop("max_steps"), 8)

    def step(s):
        x, k = s
        return jnp.where(k < 0, start, x * factor), k + 1

    def loop(x, k, fresh):
        state = jnp.asarray(x, FLOAT), jnp.asarray(k, jnp.int32)
        return iterate(step, state, limits, value=lambda s: s[1], error=lambda s: s[0], fresh=fresh, **given)

    one, two = loop(start, 0, False), loop(0.0, -1, True)
    for name in ("value", "error", "status", "num_steps", "history"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_history_goes_on_in_a_second_run():
    first = run([0.5], max_steps=3, history=8)
    second = run([0.5], start=0.125, max_steps=5, history=8, after=first)
    assert second.num_steps == 5
    np.testing.assert_allclose(second.history[:6], 0.5 ** np.arange(6))
    assert np.all(np.isnan(second.history[6:]))


def test_when_updates_only_the_lanes_that_ask():
    out = jax.vmap(lambda c, x: when(c, lambda y: y + 1, x))(jnp.asarray([True, False]), jnp.asarray([1, 5]))
    np.testing.assert_array_equal(out, [2, 5])


def spd(n=12):
    rng = np.random.default_rng(60)
    a = rng.standard_normal((n, n))
    return jnp.asarray(a @ a.T + n * np.eye(n), FLOAT), jnp.asarray(rng.standard_normal(n), FLOAT)


@pytest.mark.parametrize("unroll", [1, 3])
def test_cg_solves_and_counts(unroll):
    a, b = spd()
    out = cg(lambda x: matmul(a, x), b, tol=1e-4, max_steps=50, unroll=unroll)
    np.testing.assert_allclose(out.x, np.linalg.solve(a, b), atol=1e-4)
    assert out.reason == KrylovReason.CONVERGED
    assert 1 <= out.num_steps <= 12
    exact = cg(lambda x: matmul(a, x), b, tol=1e-4, max_steps=50, precondition=lambda r: jnp.linalg.solve(a, r))
    assert exact.num_steps == 1


@pytest.mark.parametrize(
    ("matvec", "options", "reason"),
    [
        (lambda x: -x, {}, KrylovReason.NOT_POSITIVE),
        (lambda x: x * jnp.arange(1, 13, dtype=FLOAT), {"max_steps": 2}, KrylovReason.MAX_STEPS),
        (lambda x: x * jnp.arange(1, 13, dtype=FLOAT), {"tol": 0.0}, KrylovReason.STAGNATED),
        (lambda x: x, {"tol": 1e9}, KrylovReason.CONVERGED),
    ],
)
def test_cg_says_why_it_stopped(matvec, options, reason):
    out = cg(matvec, jnp.ones(12, FLOAT), **{"tol": 1e-6, "max_steps": 500, **options})
    assert out.reason == reason
    assert np.all(np.isfinite(out.x))


def test_cg_starts_where_it_is_told():
    a, b = spd()
    solution = jnp.linalg.solve(a, b)
    there = cg(lambda x: matmul(a, x), b, solution, tol=1e-4, max_steps=50)
    assert there.num_steps == 0
    np.testing.assert_array_equal(there.x, solution)
    far = cg(lambda x: matmul(a, x), b, solution + 3, tol=1e-4, max_steps=50)
    np.testing.assert_allclose(far.x, solution, atol=1e-4)
    assert 1 <= far.num_steps <= 13


def test_cg_takes_pytrees_and_singular_consistent_systems():
    b = {"x": jnp.asarray([1.0, -1.0], FLOAT), "y": jnp.asarray(2.0, FLOAT)}
    laplacian = lambda v: {"x": v["x"] - jnp.mean(v["x"]), "y": 4 * v["y"]}  # noqa: E731
    out = cg(laplacian, b, tol=1e-5, max_steps=20)
    np.testing.assert_allclose(out.x["x"], [1, -1], atol=1e-4)
    np.testing.assert_allclose(out.x["y"], 0.5, atol=1e-4)


def cube_root(d):
    return attach(lambda x, d: x**3 - d, jnp.cbrt(d), d, solve=lambda jac, b: linear_solve(jac, b, divide))


def divide(matvec, b):
    return b / matvec(jnp.ones_like(b))


@needs_x64
def test_attached_derivatives_are_those_of_the_root():
    d = jnp.asarray(2.0)
    np.testing.assert_allclose(jax.grad(cube_root)(d), 2 ** (-2 / 3) / 3, rtol=1e-12)
    for second in (jax.grad(jax.grad(cube_root)), jax.jacfwd(jax.grad(cube_root)), jax.hessian(cube_root)):
        np.testing.assert_allclose(second(d), -2 / 9 * 2 ** (-5 / 3), rtol=1e-12)


@needs_x64
def test_envelope_differentiates_the_optimal_value():
    """min x^4 / 4 - d x has the value -3/4 d^(4/3)."""
    value = lambda d: envelope(lambda x, d: x**4 / 4 - d * x, cube_root(d), d)  # noqa: E731
    d = jnp.asarray(2.0)
    np.testing.assert_allclose(value(d), -0.75 * 2 ** (4 / 3), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(value)(d), -(2 ** (1 / 3)), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(jax.grad(value))(d), -(2 ** (-2 / 3)) / 3, rtol=1e-12)


def solution(status, error):
    status, error = jnp.asarray(status, jnp.int32), jnp.asarray(error, FLOAT)
    return Solution(
        error, status, jnp.full(status.shape, 7, jnp.int32), error, jnp.full(status.shape, 1e-6, FLOAT), None
    )


def test_solution_explains_itself():
    good = solution(0, 1e-7)
    assert repr(good) == "Solution: converged in 7 steps, error 1.0e-07 (tol 1.0e-06)"
    assert good.check() is good
    bad = solution([0, 1, 2], [1e-7, 3e-2, 1e-5])
    assert repr(bad) == "Solution: 1 of 3 converged; worst error 3.0e-02 in lane 1 (max_steps)"
    np.testing.assert_array_equal(bad.converged, [True, False, False])
    with pytest.raises(SolveError, match="raise `max_steps`"):
        bad.check()
    texts = []
    jax.jit(lambda s: texts.append(repr(s)) or s.error)(good)
    assert texts == ["Solution(traced)"]


@needs_x64
def test_derivatives_of_what_is_not_a_root_are_nan():
    """Forward, reverse and twice; a trusted lane beside it keeps its own."""

    def root(data, trusted):
        point = lax.stop_gradient(jnp.sqrt(data))
        return attach(lambda x, d: x * x - d, point, data, solve=lambda f, b: b / f(jnp.ones(())), trusted=trusted)

    trusted = jnp.asarray([True, False])
    data = jnp.asarray([4.0, 4.0])
    first = jax.vmap(jax.grad(root))(data, trusted)
    second = jax.vmap(jax.grad(jax.grad(root)))(data, trusted)
    np.testing.assert_allclose(first, [0.25, np.nan])
    np.testing.assert_allclose(second, [-1 / 32, np.nan])
    forward = jax.vmap(lambda d, t: jax.jvp(lambda d: root(d, t), (d,), (1.0,))[1])(data, trusted)
    np.testing.assert_allclose(forward, [0.25, np.nan])
    np.testing.assert_allclose(jax.vmap(root)(data, trusted), [2, 2])


@pytest.mark.parametrize("needed", [0, 3, 40])
def test_backtracking_ends_with_the_first_length_that_is_accepted_or_says_that_none_was(needed):
    found = backtrack(lambda t: (t, 2 * t), lambda t, y: y[1] <= 2.0 ** (1 - needed), most=10)
    assert bool(found.accepted) == (needed <= 10)
    steps = min(needed, 10)
    assert found.tried == steps + 1
    assert found.length == 0.5**steps
    assert found.result == (0.5**steps, 2 * 0.5**steps)


def test_backtracking_takes_no_nan_for_a_descent():
    """Where the trial is not finite the comparison is false, and the length shrinks."""
    found = backtrack(lambda t: jnp.where(t > 0.3, jnp.nan, t), lambda t, y: y < 10.0, most=10)
    assert found.length == 0.25
    assert found.accepted
