"""What happens where the theory's assumptions fail: each row of the table of edge cases, by its promised status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Status, sketched_newton
from solvers.problems.constrained import HAND_WRITTEN

FLOAT = jnp.result_type(float)
TOL = 1e-8 if jnp.float64 == FLOAT else 1e-3
LOOSE = 1e-5 if jnp.float64 == FLOAT else 2e-2


def array(*x):
    return jnp.asarray(x, FLOAT)


def solve(f, x0, c, **options):
    return sketched_newton(lambda x, _: f(x), x0, equality=lambda x, _: c(x), **options)


def test_duplicated_rows_keep_x_and_give_finite_multipliers_that_sum_to_the_single_one():
    p = HAND_WRITTEN["HS48"]()
    plain = sketched_newton(p.objective, p.x0, equality=p.equality)
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


def test_a_start_where_everything_is_stationary_is_left_behind():
    a = array(3, 1, 2)
    s = solve(lambda x: 0.5 * jnp.sum(a * x**2), array(0, 0, 0), lambda x: jnp.sum(x**2) - 1)
    assert s.converged
    np.testing.assert_allclose(np.abs(s.value), [0, 1, 0], atol=LOOSE)


def test_gradients_parallel_at_the_start():
    p = HAND_WRITTEN["HS61"]()
    s = sketched_newton(p.objective, p.x0.astype(FLOAT), equality=p.equality)
    assert s.converged
    np.testing.assert_allclose(s.objective, -143.6461422, rtol=1e-5)


@pytest.mark.parametrize(
    ("c", "x0", "least"),
    [
        (lambda x: x[:1] ** 2 + 1, [2.0, 3.0], [0.0]),
        (lambda x: jnp.stack([x[0] + x[1], x[0] + x[1] - 1]), [1.0, 3.0], None),
        (lambda x: jnp.stack([jnp.exp(x[0]), jnp.exp(x[0]) + 1]) + x[1] ** 2, [0.3, 0.5], None),
    ],
    ids=["square plus one", "parallel lines", "exponentials"],
)
def test_infeasible_constraints_are_called_so_at_a_least_infeasible_point(c, x0, least):
    s = solve(lambda x: jnp.sum((x - 1) ** 2), array(*x0), c)
    assert s.status == Status.INFEASIBLE
    gradient = jax.grad(lambda x: 0.5 * jnp.sum(c(x) ** 2))(s.value)
    np.testing.assert_allclose(gradient, 0, atol=LOOSE)
    assert s.constraint_violation > 0.1
    if least is not None:
        np.testing.assert_allclose(s.value[:1], least, atol=LOOSE)


def test_a_maximiser_is_left_and_a_minimiser_is_recognised():
    a = array(3, 1, 2)

    def start(x):
        return solve(lambda x: 0.5 * jnp.sum(a * x**2), x, lambda x: jnp.sum(x**2) - 1)

    for x0 in (array(1, 0, 0), array(0, 0, 1)):
        s = start(x0)
        assert s.converged
        assert s.num_steps > 0
        np.testing.assert_allclose(np.abs(s.value), [0, 1, 0], atol=LOOSE)
    assert start(array(0, 1, 0)).num_steps == 0


def test_an_unbounded_objective_is_called_so():
    s = solve(lambda x: -(x[0] ** 2), array(1, 1), lambda x: x[1])
    assert s.status == Status.UNBOUNDED
    s = solve(lambda x: -x[0], array(1, 1), lambda x: x[1])
    assert s.status == Status.UNBOUNDED


def test_a_step_out_of_the_domain_is_shortened():
    s = solve(lambda x: jnp.sum(x - jnp.log(x)) + 5 * jnp.sqrt(x[0]), array(0.01, 30.0), lambda x: x[0] * x[1] - 0.25)
    assert s.converged
    assert jnp.all(s.value > 0)


@pytest.mark.parametrize("where", ["x0", "f", "c", "gradient"])
def test_nan_at_the_start_ends_at_once(where):
    x0 = array(1, jnp.nan if where == "x0" else 0)
    s = solve(
        lambda x: (
            jnp.sum(x**2) + (jnp.log(-x[0]) if where == "f" else 0) + (jnp.sqrt(x[1]) if where == "gradient" else 0)
        ),
        x0,
        lambda x: x[0] - 2 + (jnp.log(-x[0]) if where == "c" else 0),
    )
    assert s.status == Status.NONFINITE
    assert s.num_steps == 0


def test_no_constraints_rosenbrock():
    s = solve(lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, array(-1.2, 1), lambda x: ())
    assert s.converged
    assert s.multipliers == ()
    np.testing.assert_allclose(s.value, [1, 1], atol=LOOSE)


def test_as_many_equations_as_unknowns():
    s = solve(
        lambda x: 0 * x[0], array(-1, 1, 0), lambda x: jnp.stack([jnp.exp(x[0]) - 2, x[1] ** 3 - 8, x[2] * x[1] - 1])
    )
    assert s.converged
    np.testing.assert_allclose(s.value, [np.log(2), 2, 0.5], atol=LOOSE)


def test_more_equations_than_unknowns_when_they_agree():
    s = solve(lambda x: 0 * x[0], array(3), lambda x: jnp.stack([x[0] ** 2 - 4, 3 * x[0] - 6]))
    assert s.converged
    np.testing.assert_allclose(s.value, [2], atol=LOOSE)


@pytest.mark.parametrize("factor", [1e6, 1e-6] if jnp.float64 == FLOAT else [1e3])
def test_scaling_the_constraints_changes_neither_path_nor_answer(factor):
    p = HAND_WRITTEN["HS78"]()
    plain = sketched_newton(p.objective, p.x0, equality=p.equality)
    tol = TOL * max(1, factor)
    scaled = sketched_newton(p.objective, p.x0, equality=lambda x, a: factor * p.equality(x, a), tol=tol)
    assert scaled.converged
    assert abs(int(scaled.num_steps) - int(plain.num_steps)) <= 1
    np.testing.assert_allclose(scaled.value, plain.value, atol=max(LOOSE, tol * 10 / factor))
    np.testing.assert_allclose(scaled.multipliers * factor, plain.multipliers, rtol=1e-2, atol=LOOSE)


def test_permuted_variables_and_constraints_permute_the_answer(rng):
    p = HAND_WRITTEN["HS78"]()
    order, rows = rng.permutation(5), rng.permutation(3)
    plain = sketched_newton(p.objective, p.x0, equality=p.equality)
    back = np.argsort(order)
    mixed = sketched_newton(
        lambda x, a: p.objective(x[back], a), p.x0[order], equality=lambda x, a: p.equality(x[back], a)[rows]
    )
    np.testing.assert_allclose(mixed.value, plain.value[order], atol=LOOSE)
    np.testing.assert_allclose(mixed.multipliers, plain.multipliers[rows], atol=LOOSE)


def test_max_steps_returns_the_best_point_with_its_status():
    p = HAND_WRITTEN["HS7"]()
    s = sketched_newton(p.objective, p.x0, equality=p.equality, max_steps=3, history=True)
    assert s.status == Status.MAX_STEPS
    assert s.num_steps == 3
    np.testing.assert_allclose(s.error, np.nanmin(s.history), rtol=1e-6)


def test_an_unreachable_tolerance_stagnates_at_rounding():
    p = HAND_WRITTEN["HS100LNP"]()
    s = sketched_newton(p.objective, p.x0, equality=p.equality, tol=1e-30)
    assert s.status == Status.STAGNATED
    assert s.error < (1e-9 if jnp.float64 == FLOAT else 1e-2)
    assert s.num_steps < 40
