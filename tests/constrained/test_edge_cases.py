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


def one_away(x):
    return jnp.sum((x - 1) ** 2)


def nothing(x):
    return 0.0 * jnp.sum(x)


def circle(x):
    return jnp.sum(x**2, keepdims=True) - 1


def second(x):
    return x[1:]


def first_is_two(x):
    return x[:1] - 2


ONE_EQUATION = {
    "vanishing": (lambda x: x[0] + 2 * x[1], circle),
    "square plus one": (one_away, lambda x: x[:1] ** 2 + 1),
    "quadratic": (lambda x: -(x[0] ** 2), second),
    "linear": (lambda x: -x[0], second),
    "domain": (lambda x: jnp.sum(x - jnp.log(x)) + 5 * jnp.sqrt(x[0]), lambda x: x[:1] * x[1] - 0.25),
    "pole": (lambda x: -jnp.log(x[0]), circle),
    "nan in x0": (lambda x: jnp.sum(x**2), first_is_two),
    "nan in f": (lambda x: jnp.sum(x**2) + jnp.log(-x[0]), first_is_two),
    "nan in c": (lambda x: jnp.sum(x**2), lambda x: x[:1] - 2 + jnp.log(-x[0])),
    "nan in gradient": (lambda x: jnp.sum(x**2) + jnp.sqrt(x[1]), first_is_two),
}
TWO_EQUATIONS = {
    "scaled copy": (lambda x: jnp.sum((x - 2) ** 2), lambda x: jnp.stack([x[0] + x[1] - 1, 2 * (x[0] + x[1] - 1)])),
    "parallel lines": (one_away, lambda x: jnp.stack([x[0] + x[1], x[0] + x[1] - 1])),
    "exponentials": (one_away, lambda x: jnp.stack([jnp.exp(x[0]), jnp.exp(x[0]) + 1]) + x[1] ** 2),
    "cubic": (nothing, lambda x: jnp.stack([x[0] ** 3, x[1] - x[0]])),
    "double root": (nothing, lambda x: jnp.stack([(x[0] - 1) ** 2, x[0] * x[1] - 1])),
}


def together(problems):
    """Return objective and equality of all of them: they differ in the data alone, and compile once."""
    f, c = ([pair[i] for pair in problems.values()] for i in (0, 1))
    return (lambda x, which: lax.switch(which, f, x)), (lambda x, which: lax.switch(which, c, x))


PROGRAMS = [(problems, together(problems)) for problems in (ONE_EQUATION, TWO_EQUATIONS)]


EQUATIONS = {name: c for problems, _ in PROGRAMS for name, (_, c) in problems.items()}


def in_the_plane(name, *x0, **options):
    problems, (f, c) = PROGRAMS[name in TWO_EQUATIONS]
    return sketched_newton(f, array(*x0), equality=c, args=list(problems).index(name), **options)


def test_duplicated_rows_keep_x_and_give_finite_multipliers_that_sum_to_the_single_one():
    p, plain = problem("HS48"), solution("HS48")
    twice = sketched_newton(p.objective, p.x0, equality=lambda x, a: jnp.concatenate([p.equality(x, a)] * 2))
    assert twice.status == Status.CONVERGED
    assert twice.licq_suspect
    assert not plain.licq_suspect
    np.testing.assert_allclose(twice.value, plain.value, atol=LOOSE)
    np.testing.assert_allclose(twice.multipliers[:2] + twice.multipliers[2:], plain.multipliers, atol=LOOSE)


def test_a_scaled_copy_of_a_constraint_is_flagged_and_solved():
    s = in_the_plane("scaled copy", 3, -1)
    assert s.converged
    assert s.licq_suspect
    np.testing.assert_allclose(s.value, [0.5, 0.5], atol=LOOSE)


def test_a_jacobian_that_vanishes_only_at_the_start_is_left_behind():
    s = in_the_plane("vanishing", 0, 0)
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


@pytest.mark.parametrize(
    ("name", "x0", "least"),
    [("square plus one", [2.0, 3.0], [0.0]), ("parallel lines", [1.0, 3.0], None), ("exponentials", [0.3, 0.5], None)],
    ids=["square plus one", "parallel lines", "exponentials"],
)
def test_infeasible_constraints_are_called_so_at_a_least_infeasible_point(name, x0, least):
    s, c = in_the_plane(name, *x0), EQUATIONS[name]
    assert s.status == Status.INFEASIBLE
    gradient = jax.jacfwd(c)(s.value).T @ c(s.value)
    np.testing.assert_allclose(gradient, 0, atol=LOOSE)
    assert s.constraint_violation > 0.1
    if least is not None:
        np.testing.assert_allclose(s.value[:1], least, atol=LOOSE)


@pytest.mark.parametrize("name", ["quadratic", "linear"])
def test_an_unbounded_objective_is_called_so(name):
    assert in_the_plane(name, 1, 1).status == Status.UNBOUNDED


def test_a_step_out_of_the_domain_is_shortened():
    s = in_the_plane("domain", 0.01, 30.0)
    assert s.converged
    assert jnp.all(s.value > 0)


@pytest.mark.parametrize("where", ["x0", "f", "c", "gradient"])
def test_nan_at_the_start_ends_at_once(where):
    s = in_the_plane(f"nan in {where}", 1, jnp.nan if where == "x0" else 0)
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


def powell_singular(x):
    a, b, c, d = x
    return jnp.stack([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])


@pytest.mark.parametrize(
    ("name", "x0", "root"),
    [("cubic", [2.0, 3.0], [0, 0]), ("Powell's singular function", [3.0, -1.0, 0.0, 1.0], [0, 0, 0, 0]),
     ("double root", [3.0, 2.0], [1, 1])],
    ids=["cubic", "Powell's singular function", "double root"],
)  # fmt: skip
def test_a_root_with_a_singular_jacobian_is_not_infeasible(name, x0, root):
    """The gradient of the violation fades with the Jacobian on the way there; SciPy finds these roots too."""
    plane = name in TWO_EQUATIONS
    c = EQUATIONS[name] if plane else powell_singular
    s = in_the_plane(name, *x0) if plane else solve(nothing, array(*x0), c)
    assert s.converged, (s, s.message)
    assert np.linalg.norm(c(np.asarray(s.value, float))) <= float(s.tol)
    np.testing.assert_allclose(s.value, root, atol=0.02 if X64 else 0.5)


@pytest.mark.long
def test_a_missed_tolerance_says_which_part_missed():
    s = sketched_newton(
        lambda x, _: one_away(x), array(2, 3), equality=lambda x, _: x[0] ** 3 - x[1], tol=0.0, max_steps=2
    )
    assert "above tol" in s.message
    assert "stationarity" in s.message or "feasibility" in s.message
    feasible = sketched_newton(
        lambda x, _: one_away(x), array(2, 8), equality=lambda x, _: x[0] ** 3 - x[1], max_steps=0
    )
    assert "stationarity" in feasible.message
    assert "feasibility" not in feasible.message


def test_no_constraint_is_told_where_to_go():
    with pytest.raises(TypeError, match="interior_point"):
        sketched_newton(lambda x, args: jnp.sum(x**2), jnp.ones(3, FLOAT))


@needs_x64
def test_a_logarithm_from_beside_its_pole_is_followed_round_the_circle():
    """The first gradient is 1e8, so the objective is scaled by 1e-6; penalties of order one then crawl."""
    s = in_the_plane("pole", 1e-8, 1.0)
    assert s.converged, s.message
    np.testing.assert_allclose(s.value, [1, 0], atol=1e-7)
    assert s.num_steps < 150


def test_a_function_of_x_alone_is_told_what_is_missing():
    with pytest.raises(TypeError, match=r"`equality` must be a function of \(x, args\), got one of \(x\)"):
        sketched_newton(lambda x, args: jnp.sum(x**2), jnp.ones(3, FLOAT), equality=lambda x: x[:1])
