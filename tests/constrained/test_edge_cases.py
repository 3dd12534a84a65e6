"""What happens where the theory's assumptions fail: each row of the table of edge cases, by its promised status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from solvers import Status

from ..compiled import sketched_newton
from ..conftest import FLOAT, X64, needs_x64
from .shared import LOOSE, TOL, problem, solution


def array(*x):
    return jnp.asarray(x, FLOAT)


def solve(f, x0, c, **options):
    return sketched_newton(lambda x, _: f(x), x0, equality=lambda x, _: c(x), **options)


def test_duplicated_rows_keep_x_and_give_finite_multipliers_that_sum_to_the_single_one():
    p, plain = problem("HS48"), solution("HS48")
    twice = sketched_newton(p.objective, p.x0, equality=lambda x, a: jnp.concatenate([p.equality(x, a)] * 2))
    assert twice.status == Status.CONVERGED
    assert twice.licq_suspect
    assert not plain.licq_suspect
    np.testing.assert_allclose(twice.value, plain.value, atol=LOOSE)
    np.testing.assert_allclose(twice.multipliers[:2] + twice.multipliers[2:], plain.multipliers, atol=LOOSE)


def test_a_scaled_copy_of_a_constraint_is_flagged_and_solved():
    s = solve(
        lambda x: jnp.sum((x - 2) ** 2), array(3, -1), lambda x: jnp.stack([x[0] + x[1] - 1, 2 * (x[0] + x[1] - 1)])
    )
    assert s.converged
    assert s.licq_suspect
    np.testing.assert_allclose(s.value, [0.5, 0.5], atol=LOOSE)


def test_a_jacobian_that_vanishes_only_at_the_start_is_left_behind():
    s = solve(lambda x: x[0] + 2 * x[1], array(0, 0), lambda x: jnp.sum(x**2) - 1)
    assert s.converged
    np.testing.assert_allclose(s.value, -np.array([1, 2]) / np.sqrt(5), atol=LOOSE)


def ellipsoid(x, _):
    return 0.5 * jnp.sum(jnp.asarray([3, 1, 2], x.dtype) * x**2)


def sphere(x, _):
    return jnp.sum(x**2) - 1


def test_a_start_where_everything_is_stationary_is_left_behind():
    s = sketched_newton(ellipsoid, array(0, 0, 0), equality=sphere)
    assert s.converged
    np.testing.assert_allclose(np.abs(s.value), [0, 1, 0], atol=LOOSE)


def test_a_maximiser_is_left_and_a_minimiser_is_recognised():
    for x0 in (array(1, 0, 0), array(0, 0, 1)):
        s = sketched_newton(ellipsoid, x0, equality=sphere)
        assert s.converged
        assert s.num_steps > 0
        np.testing.assert_allclose(np.abs(s.value), [0, 1, 0], atol=LOOSE)
    assert sketched_newton(ellipsoid, array(0, 1, 0), equality=sphere).num_steps == 0


def test_gradients_parallel_at_the_start():
    s = solution("HS61")
    assert s.converged
    np.testing.assert_allclose(s.objective, -143.6461422, rtol=1e-5)


def square_plus_one(x, _):
    return x[:1] ** 2 + 1


def parallel_or_exponential(x, which):
    def lines(x):
        return jnp.stack([x[0] + x[1], x[0] + x[1] - 1])

    def exponentials(x):
        return jnp.stack([jnp.exp(x[0]), jnp.exp(x[0]) + 1]) + x[1] ** 2

    return lax.switch(which, [lines, exponentials], x)


@pytest.mark.parametrize(
    ("c", "which", "x0", "least"),
    [
        (square_plus_one, 0, [2.0, 3.0], [0.0]),
        (parallel_or_exponential, 0, [1.0, 3.0], None),
        (parallel_or_exponential, 1, [0.3, 0.5], None),
    ],
    ids=["square plus one", "parallel lines", "exponentials"],
)
def test_infeasible_constraints_are_called_so_at_a_least_infeasible_point(c, which, x0, least):
    s = sketched_newton(one_away, array(*x0), equality=c, args=which)
    assert s.status == Status.INFEASIBLE
    gradient = jax.jacfwd(c)(s.value, which).T @ c(s.value, which)
    np.testing.assert_allclose(gradient, 0, atol=LOOSE)
    assert s.constraint_violation > 0.1
    if least is not None:
        np.testing.assert_allclose(s.value[:1], least, atol=LOOSE)


def one_away(x, _):
    return jnp.sum((x - 1) ** 2)


@pytest.mark.parametrize("which", [0, 1], ids=["quadratic", "linear"])
def test_an_unbounded_objective_is_called_so(which):
    s = sketched_newton(downhill, array(1, 1), equality=second, args=which)
    assert s.status == Status.UNBOUNDED


def downhill(x, which):
    return lax.switch(which, [lambda x: -(x[0] ** 2), lambda x: -x[0]], x)


def second(x, _):
    return x[1]


def test_a_step_out_of_the_domain_is_shortened():
    s = solve(lambda x: jnp.sum(x - jnp.log(x)) + 5 * jnp.sqrt(x[0]), array(0.01, 30.0), lambda x: x[0] * x[1] - 0.25)
    assert s.converged
    assert jnp.all(s.value > 0)


PLACES = ["x0", "f", "c", "gradient"]


def nan_in_f(x, where):
    terms = [lambda x: 0 * x[0], lambda x: jnp.log(-x[0]), lambda x: 0 * x[0], lambda x: jnp.sqrt(x[1])]
    return jnp.sum(x**2) + lax.switch(where, terms, x)


def nan_in_c(x, where):
    return x[0] - 2 + lax.cond(where == PLACES.index("c"), lambda x: jnp.log(-x[0]), lambda x: 0 * x[0], x)


@pytest.mark.parametrize("where", PLACES)
def test_nan_at_the_start_ends_at_once(where):
    x0 = array(1, jnp.nan if where == "x0" else 0)
    s = sketched_newton(nan_in_f, x0, equality=nan_in_c, args=PLACES.index(where))
    assert s.status == Status.NONFINITE
    assert s.num_steps == 0


def test_no_constraints_rosenbrock():
    s = solve(lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, array(-1.2, 1), lambda x: ())
    assert s.converged
    assert s.multipliers == ()
    np.testing.assert_allclose(s.value, [1, 1], atol=LOOSE)


@pytest.mark.long
def test_as_many_equations_as_unknowns():
    s = solve(
        lambda x: 0 * x[0], array(-1, 1, 0), lambda x: jnp.stack([jnp.exp(x[0]) - 2, x[1] ** 3 - 8, x[2] * x[1] - 1])
    )
    assert s.converged
    np.testing.assert_allclose(s.value, [np.log(2), 2, 0.5], atol=LOOSE)


@pytest.mark.long
def test_more_equations_than_unknowns_when_they_agree():
    s = solve(lambda x: 0 * x[0], array(3), lambda x: jnp.stack([x[0] ** 2 - 4, 3 * x[0] - 6]))
    assert s.converged
    np.testing.assert_allclose(s.value, [2], atol=LOOSE)


def scaled_hs78(x, factor):
    return factor * problem("HS78").equality(x, None)


@pytest.mark.parametrize("factor", [1e6, 1e-6] if FLOAT == "float64" else [1e3])
@pytest.mark.long
def test_scaling_the_constraints_changes_neither_path_nor_answer(factor):
    p, plain = problem("HS78"), solution("HS78")
    tol = TOL * max(1, factor)
    scaled = sketched_newton(p.objective, p.x0, equality=scaled_hs78, args=array(factor)[0], tol=tol)
    assert scaled.converged
    assert abs(int(scaled.num_steps) - int(plain.num_steps)) <= 1
    np.testing.assert_allclose(scaled.value, plain.value, atol=max(LOOSE, tol * 10 / factor))
    np.testing.assert_allclose(scaled.multipliers * factor, plain.multipliers, rtol=1e-2, atol=LOOSE)


@pytest.mark.long
def test_permuted_variables_and_constraints_permute_the_answer(rng):
    p, plain = problem("HS78"), solution("HS78")
    order, rows = rng.permutation(5), rng.permutation(3)
    back = np.argsort(order)
    mixed = sketched_newton(
        lambda x, a: p.objective(x[back], a), p.x0[order], equality=lambda x, a: p.equality(x[back], a)[rows]
    )
    np.testing.assert_allclose(mixed.value, plain.value[order], atol=LOOSE)
    np.testing.assert_allclose(mixed.multipliers, plain.multipliers[rows], atol=LOOSE)


@pytest.mark.long
def test_max_steps_returns_the_best_point_with_its_status():
    p = problem("HS7")
    s = sketched_newton(p.objective, p.x0, equality=p.equality, max_steps=3, history=True)
    assert s.status == Status.MAX_STEPS
    assert s.num_steps == 3
    np.testing.assert_allclose(s.error, np.nanmin(s.history), rtol=1e-6)


def test_an_unreachable_tolerance_stagnates_at_rounding():
    s = solution("HS100LNP", tol=1e-30)
    assert s.status == Status.STAGNATED
    assert s.error < (1e-9 if FLOAT == "float64" else 1e-2)
    assert s.num_steps < 40


def cubic_root(x, _):
    return jnp.stack([x[0] ** 3, x[1] - x[0]])


def powell_singular(x, _):
    a, b, c, d = x
    return jnp.stack([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])


def double_root(x, _):
    return jnp.stack([(x[0] - 1) ** 2, x[0] * x[1] - 1])


@pytest.mark.parametrize(
    ("c", "x0", "root"),
    [(cubic_root, [2.0, 3.0], [0, 0]), (powell_singular, [3.0, -1.0, 0.0, 1.0], [0, 0, 0, 0]),
     (double_root, [3.0, 2.0], [1, 1])],
    ids=["cubic", "Powell's singular function", "double root"],
)  # fmt: skip
def test_a_root_with_a_singular_jacobian_is_not_infeasible(c, x0, root):
    """The gradient of the violation fades with the Jacobian on the way there; SciPy finds these roots too."""
    s = sketched_newton(lambda x, _: 0.0 * jnp.sum(x), array(*x0), equality=c)
    assert s.converged, (s, s.message)
    assert np.linalg.norm(c(np.asarray(s.value, float), None)) <= float(s.tol)
    np.testing.assert_allclose(s.value, root, atol=0.02 if X64 else 0.5)


@pytest.mark.long
def test_a_missed_tolerance_says_which_part_missed():
    s = sketched_newton(one_away, array(2, 3), equality=lambda x, _: x[0] ** 3 - x[1], tol=0.0, max_steps=2)
    assert "above tol" in s.message
    assert "stationarity" in s.message or "feasibility" in s.message
    feasible = sketched_newton(one_away, array(2, 8), equality=lambda x, _: x[0] ** 3 - x[1], max_steps=0)
    assert "stationarity" in feasible.message
    assert "feasibility" not in feasible.message


def test_no_constraint_is_told_where_to_go():
    with pytest.raises(TypeError, match="interior_point"):
        sketched_newton(lambda x, args: jnp.sum(x**2), jnp.ones(3, FLOAT))


@needs_x64
def test_a_logarithm_from_beside_its_pole_is_followed_round_the_circle():
    """The first gradient is 1e8, so the objective is scaled by 1e-6; penalties of order one then crawl."""
    s = solve(lambda x: -jnp.log(x[0]), array(1e-8, 1.0), lambda x: x @ x - 1)
    assert s.converged, s.message
    np.testing.assert_allclose(s.value, [1, 0], atol=1e-7)
    assert s.num_steps < 150


def test_a_function_of_x_alone_is_told_what_is_missing():
    with pytest.raises(TypeError, match=r"`equality` must be a function of \(x, args\), got one of \(x\)"):
        sketched_newton(lambda x, args: jnp.sum(x**2), jnp.ones(3, FLOAT), equality=lambda x: x[:1])
