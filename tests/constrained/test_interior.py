"""Inequalities and bounds: against linear programming, closed forms, KKT identities; attacks on every status."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, nnls

import solvers
from solvers import Status
from solvers.constrained.interior.acceptance import barrier
from solvers.constrained.interior.standard import bounded

from ..compiled import interior_point
from ..conftest import FLOAT, needs_x64

TOL = 1e-7 if FLOAT == "float64" else 3e-3


@cache
def quadratic():
    """A quadratic program with two inequalities and bounds on four variables; all of it is data."""

    def solve(data, x0, **options):
        return interior_point(
            lambda x, d: 0.5 * x @ d["P"] @ x + d["q"] @ x,
            x0,
            inequality=lambda x, d: d["G"] @ x - d["h"],
            bounds=(data["lower"], data["upper"]),
            args=data,
            **options,
        )

    return solve


@cache
def solved_quadratic():
    return jax.jit(quadratic())


def programs(seed, *, convex=True):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((4, 4))
    P = A @ A.T if convex else 0 * A
    data = {"P": P, "q": rng.standard_normal(4), "G": rng.standard_normal((2, 4)), "h": rng.random(2),
            "lower": -1 - rng.random(4), "upper": 1 + rng.random(4)}  # fmt: skip
    return {k: jnp.asarray(v, FLOAT) for k, v in data.items()}


def kkt_gap(data, x):
    """The distance of the gradient from the cone of active gradients, in NumPy float64, knowing nothing of ours."""
    d, x = ({k: np.asarray(v, float) for k, v in data.items()}, np.asarray(x, float))
    near = 1e-5 if FLOAT == "float64" else 2e-2
    rows = [d["G"][i] for i in range(2) if d["G"][i] @ x - d["h"][i] > -near]
    rows += [-np.eye(4)[i] for i in range(4) if x[i] - d["lower"][i] < near]
    rows += [np.eye(4)[i] for i in range(4) if d["upper"][i] - x[i] < near]
    gradient = d["P"] @ x + d["q"]
    return nnls(np.array(rows).T, -gradient)[1] if rows else np.linalg.norm(gradient)


@pytest.mark.parametrize("seed", [3, 4, 5, 6])
def test_quadratic_programs_meet_their_conditions(seed):
    data = programs(seed)
    solution = solved_quadratic()(data, jnp.zeros(4, FLOAT))
    assert solution.converged, solution
    assert kkt_gap(data, solution.value) < (1e-6 if FLOAT == "float64" else 2e-2)
    assert np.max(data["G"] @ solution.value - data["h"]) <= TOL


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_linear_programs_agree_with_highs(seed):
    """Value and multipliers; those of HiGHS are derivatives of the value, ours minus these."""
    data = programs(seed, convex=False)
    solution = solved_quadratic()(data, jnp.zeros(4, FLOAT))
    bounds = np.stack([data["lower"], data["upper"]], axis=1)
    oracle = linprog(data["q"], A_ub=data["G"], b_ub=data["h"], bounds=bounds)
    assert solution.converged
    np.testing.assert_allclose(solution.objective, oracle.fun, atol=10 * TOL)
    np.testing.assert_allclose(solution.value, oracle.x, atol=30 * TOL)
    np.testing.assert_allclose(solution.multipliers.inequality, -oracle.ineqlin.marginals, atol=30 * TOL)
    np.testing.assert_allclose(solution.multipliers.lower, oracle.lower.marginals, atol=30 * TOL)
    np.testing.assert_allclose(solution.multipliers.upper, -oracle.upper.marginals, atol=30 * TOL)


@cache
def hock_schittkowski_71():
    """The problem with its right-hand sides as data."""
    return jax.jit(
        lambda x0, rhs: interior_point(
            lambda x, _: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
            x0,
            equality=lambda x, a: jnp.sum(x**2) - a[0],
            inequality=lambda x, a: a[1] - jnp.prod(x),
            bounds=(1.0, 5.0),
            args=rhs,
        )
    )


def test_hock_schittkowski_71():
    """The published solution, its multipliers from the stationarity equations."""
    solution = hock_schittkowski_71()(jnp.asarray([1.0, 5.0, 5.0, 1.0], FLOAT), jnp.asarray([40.0, 25.0], FLOAT))
    assert solution.converged
    np.testing.assert_allclose(solution.value, [1, 4.74299963, 3.82114998, 1.37940829], atol=10 * TOL)
    np.testing.assert_allclose(solution.objective, 17.0140173, rtol=1e-4 if FLOAT == "float32" else 1e-8)
    m = solution.multipliers
    np.testing.assert_allclose(
        [m.equality, m.inequality, m.lower[0]], [0.16146857, 0.5522937, 1.0878712], atol=20 * TOL
    )


def test_a_nearly_active_inequality_does_not_pass_for_negative_curvature_in_single_precision():
    """Its weight then hides the Hessian behind 1e6; a convex system that is shifted all the same takes 115 steps."""
    x0 = [0.99916667, 4.631769, 5.111658, 1.0331154]
    solution = hock_schittkowski_71()(jnp.asarray(x0, FLOAT), jnp.asarray([31.532272, 25.236544], FLOAT))
    assert solution.converged
    assert solution.num_steps < 20


def test_a_hessian_without_diagonal_that_is_convex_along_the_equation_takes_newton_steps():
    """``2 x^2 - 2.2 x`` in disguise: solved at once, or linearly where the Hessian counts as indefinite."""
    solution = interior_point(
        lambda x, _: 2 * x[0] * x[1] - x[0] - x[1],
        jnp.asarray([3.0, -4.0], FLOAT),
        equality=lambda x, _: 0.1 - x[0] + x[1],
        bounds=(-9.0, 9.0),
    )
    assert solution.converged
    np.testing.assert_allclose(solution.value, [0.55, 0.45], atol=10 * TOL)
    assert solution.num_steps < 15


@cache
def scalar():
    """``min (x - t)^2`` on ``[lower, upper]``, the answer being a clip; and ``-x^2`` where `bend` is negative."""
    return jax.jit(
        lambda x0, lower, upper, bend, t: interior_point(
            lambda x, a: a[0] * jnp.sum((x - a[1]) ** 2), x0, bounds=(lower, upper), args=(bend, t)
        )
    )


@pytest.mark.parametrize(("t", "expected"), [(-3.0, -1.0), (0.3, 0.3), (9.0, 2.0)])
@pytest.mark.parametrize("start", [-50.0, 0.0, 2.0])
def test_projection_onto_an_interval(t, expected, start):
    """From inside, from a bound and from far outside."""
    x0, one = jnp.asarray([start], FLOAT), jnp.asarray(1.0, FLOAT)
    solution = scalar()(x0, jnp.asarray([-1.0], FLOAT), jnp.asarray([2.0], FLOAT), one, jnp.asarray(t, FLOAT))
    assert solution.converged
    np.testing.assert_allclose(solution.value, [expected], atol=10 * TOL)


def test_a_maximiser_is_no_answer():
    """From the symmetric point, where the gradient vanishes, -x^2 on [-1, 1] has a stationary point that is none."""
    x0, one = jnp.zeros(1, FLOAT), jnp.ones(1, FLOAT)
    solution = scalar()(x0, -one, one, jnp.asarray(-1.0, FLOAT), jnp.asarray(0.0, FLOAT))
    assert solution.converged
    np.testing.assert_allclose(np.abs(solution.value), [1.0], atol=10 * TOL)


def test_without_a_lower_bound_it_is_unbounded_or_left_the_range():
    x0, one = jnp.zeros(1, FLOAT), jnp.ones(1, FLOAT)
    solution = scalar()(x0, -jnp.inf * one, one, jnp.asarray(-1.0, FLOAT), jnp.asarray(0.0, FLOAT))
    assert solution.status in (Status.UNBOUNDED, Status.DIVERGED)


def test_fixed_variables_stay_and_have_multipliers():
    """Equal bounds, traced: the sign of the multiplier is that of the gradient."""
    x0, bound = jnp.asarray([5.0], FLOAT), jnp.asarray([0.5], FLOAT)
    solution = scalar()(x0, bound, bound, jnp.asarray(1.0, FLOAT), jnp.asarray(3.0, FLOAT))
    assert solution.converged
    assert solution.value == 0.5
    np.testing.assert_allclose(solution.multipliers.upper - solution.multipliers.lower, [5.0], rtol=1e-5)


def test_contradictory_bounds_raise_when_concrete_and_are_a_status_when_traced():
    one = jnp.ones(1, FLOAT)
    solution = scalar()(0 * one, one, -one, one[0], one[0])
    assert solution.status == Status.INFEASIBLE
    assert not solution.converged
    with pytest.raises(ValueError, match=r"interior_point: `bounds` must be lower <= upper"):
        solvers.interior_point(lambda x, _: jnp.sum(x), one, bounds=(1.0, -1.0))


@cache
def disc():
    """``min x + y`` in the disc ``x^2 + y^2 <= r``, with a second inequality that may contradict or repeat it."""
    return jax.jit(
        lambda x0, r, a, b: interior_point(
            lambda x, _: jnp.sum(x),
            x0,
            inequality=lambda x, args: jnp.stack([jnp.sum(x**2) - args[0], args[1] * jnp.sum(x**2) - args[2]]),
            args=(r, a, b),
        )
    )


def at_disc(r, a, b, start=(0.3, -0.2)):
    return disc()(jnp.asarray(start, FLOAT), *(jnp.asarray(v, FLOAT) for v in (r, a, b)))


def test_contradictory_inequalities_are_infeasible():
    """``|x|^2 <= 1`` and ``|x|^2 >= 2``: the least squared violation is at |x|^2 = 3/2."""
    solution = at_disc(1.0, -1.0, -2.0)
    assert solution.status == Status.INFEASIBLE
    np.testing.assert_allclose(jnp.sum(solution.value**2), 1.5, rtol=1e-2)
    np.testing.assert_allclose(solution.constraint_violation, 0.5, rtol=1e-2)
    assert "feasibility" in solution.message


def test_infeasibility_is_not_claimed_at_a_saddle_of_the_violation():
    """``|x|^2 >= 2`` from the origin, where the violation has a maximum and no gradient."""
    solution = at_disc(4.0, -1.0, -2.0, start=(0.0, 0.0))
    assert solution.status != Status.INFEASIBLE
    assert solution.converged, solution
    np.testing.assert_allclose(solution.value, [-np.sqrt(2.0)] * 2, atol=10 * TOL)


def test_a_start_on_the_boundary_of_an_inequality():
    """Both inequalities hold with equality at the start, and their slacks begin inside."""
    solution = at_disc(1.0, 1.0, 1.0, start=(np.sqrt(0.5), np.sqrt(0.5)))
    assert solution.converged
    np.testing.assert_allclose(solution.value, [-np.sqrt(0.5)] * 2, atol=10 * TOL)


def test_the_barrier_of_the_bounds_has_the_slope_that_the_steps_use():
    """None, a lower, an upper and both; where one stands alone its logarithm is damped, lest it leads to infinity."""
    inf = np.inf
    lower, upper = (jnp.asarray(v, FLOAT) for v in ([-inf, 0.0, -inf, 0.0], [inf, inf, 2.0, 3.0]))
    problem, x = bounded(None, lower, upper, 0, 0), jnp.asarray([5.0, 1e5, -2.0, 0.5], FLOAT)
    slope = jax.grad(lambda x: barrier(problem, x, jnp.zeros(0, FLOAT), jnp.asarray(0.1, FLOAT)))(x)
    np.testing.assert_allclose(problem.barrier_slope(x, 0.1), slope, rtol=1e-5)
    assert slope[0] == 0
    assert slope[1] > 0  # far from a bound alone the barrier leads back


def test_repeated_inequalities_are_solved():
    """Active gradients are dependent: the sum of the multipliers is unique, ``1 / (2 |x_i|)``."""
    solution = at_disc(1.0, 1.0, 1.0)
    assert solution.converged
    np.testing.assert_allclose(solution.value, [-np.sqrt(0.5)] * 2, atol=10 * TOL)
    np.testing.assert_allclose(jnp.sum(solution.multipliers.inequality), np.sqrt(0.5), rtol=1e-2)


@needs_x64
def test_opposite_inequalities_without_interior_are_solved():
    """``|x|^2 <= 1`` and ``|x|^2 >= 1``: an equation in disguise."""
    solution = at_disc(1.0, -1.0, -1.0)
    assert solution.converged, solution
    np.testing.assert_allclose(solution.value, [-np.sqrt(0.5)] * 2, atol=1e-5)


@needs_x64
def test_no_multiplier_exists_at_the_solution():
    """``|x|^2 <= 0``: the gradient of the constraint vanishes; whatever the status, the point is near the origin."""
    solution = at_disc(0.0, 1.0, 1.0)
    assert np.max(np.abs(solution.value)) < 1e-3
    assert solution.converged == (solution.error <= solution.tol)


def test_more_constraints_than_variables():
    """Twenty half planes around the unit disc, the corner nearest to a far point, found by enumeration."""
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    normals = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], 1), FLOAT)
    goal = jnp.asarray([2.0, 1.0], FLOAT)
    solution = interior_point(
        lambda x, a: -a[1] @ x, jnp.zeros(2, FLOAT), inequality=lambda x, a: a[0] @ x - 1, args=(normals, goal)
    )
    N = np.asarray(normals, float)
    corners = [np.linalg.solve(N[[i, (i + 1) % 20]], np.ones(2)) for i in range(20)]
    assert solution.converged
    np.testing.assert_allclose(solution.value, max(corners, key=lambda c: np.asarray(goal) @ c), atol=30 * TOL)


def test_nan_at_trial_points_is_stepped_over():
    """``x - log x`` with no bound to tell where the logarithm ends, and a first Newton step far beyond it."""
    solution = interior_point(
        lambda x, _: jnp.sum(100 * x - jnp.log(x)), jnp.asarray([1.0, 2.0], FLOAT), inequality=lambda x, _: x[0] - x[1]
    )
    assert solution.converged, solution
    # the slack s has the multiplier 5000 s, and their product is at most `tol`
    np.testing.assert_allclose(solution.value, [0.01, 0.01], atol=float(solution.tol / 5000) ** 0.5)


def test_nothing_bounds_the_start():
    """An objective that is not finite at the start says so."""
    solution = interior_point(lambda x, _: jnp.sum(jnp.log(x)), -jnp.ones(1, FLOAT), bounds=(-2.0, -0.5))
    assert solution.status == Status.NONFINITE


def test_pytrees_and_partial_bounds():
    """A dictionary of shapes, a bound for each leaf, inequalities as a dictionary; multipliers like them."""
    x0 = {"a": jnp.zeros((2, 2), FLOAT), "b": jnp.ones((), FLOAT)}
    solution = interior_point(
        lambda x, _: jnp.sum((x["a"] - 1) ** 2) + (x["b"] + 1) ** 2,
        x0,
        inequality=lambda x, _: {"sum": jnp.sum(x["a"]) - 2},
        bounds=({"a": -jnp.inf, "b": 0.0}, {"a": jnp.inf, "b": jnp.inf}),
    )
    assert solution.converged
    np.testing.assert_allclose(solution.value["a"], np.full((2, 2), 0.5), atol=10 * TOL)
    np.testing.assert_allclose(solution.value["b"], 0, atol=10 * TOL)
    np.testing.assert_allclose(solution.multipliers.inequality["sum"], 1.0, atol=10 * TOL)
    np.testing.assert_allclose(solution.multipliers.lower["b"], 2.0, atol=10 * TOL)


def test_warm_start_takes_fewer_steps():
    data = programs(3)
    cold = solved_quadratic()(data, jnp.zeros(4, FLOAT))
    moved = {**data, "q": data["q"] + 1e-3}
    again = solved_quadratic()(moved, jnp.zeros(4, FLOAT))
    warm = solved_quadratic()(moved, cold.value, multipliers=cold.multipliers)
    assert warm.converged
    assert warm.num_steps < again.num_steps
    np.testing.assert_allclose(warm.value, again.value, atol=30 * TOL)


@needs_x64
@pytest.mark.long
def test_derivatives_with_respect_to_bounds_and_right_hand_sides():
    """Against differences, all parts of the answer; some bounds and one inequality are active."""
    data = programs(5)
    one = solved_quadratic()(data, jnp.zeros(4, FLOAT), tol=1e-12)
    active = (one.multipliers.lower > 1e-3) | (one.multipliers.upper > 1e-3)
    assert np.any(active)
    rng = np.random.default_rng(11)
    direction = {k: jnp.asarray(0.1 * rng.standard_normal(v.shape)) for k, v in data.items()}

    def along(t):
        moved = {k: v + t * direction[k] for k, v in data.items()}
        s = quadratic()(moved, jnp.zeros(4, FLOAT), tol=1e-12)
        return jnp.concatenate([s.value, s.multipliers.inequality, s.multipliers.lower, s.multipliers.upper,
                                s.objective[None]])  # fmt: skip

    _, slopes = jax.jit(lambda t: jax.jvp(along, (t,), (1.0,)))(0.0)
    h = 1e-5
    ahead, behind = jax.jit(along)(h), jax.jit(along)(-h)
    np.testing.assert_allclose(slopes, (ahead - behind) / (2 * h), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bounds": 3.0}, "`bounds` must be a pair"),
        ({"bounds": (jnp.zeros(3), jnp.ones(3))}, "broadcast"),
        ({"inequality": 3}, "`inequality` must be a function"),
        ({"inequality": lambda x, _: jnp.arange(3)}, "`inequality` must be a function that returns real arrays"),
        ({"multipliers": 2}, "`multipliers` must be a"),
    ],
)
def test_wrong_arguments_raise(options, match):
    with pytest.raises((ValueError, TypeError), match=match):
        interior_point(lambda x, _: jnp.sum(x**2), jnp.ones(2, FLOAT), **options)
