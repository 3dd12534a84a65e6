"""Solutions, multipliers and derivatives against SciPy, closed forms and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.test_util import check_grads

from solvers import SolveError
from solvers.problems.constrained import HAND_WRITTEN, logistic

from ..compiled import sketched_newton
from ..conftest import FLOAT, needs_x64
from .shared import TOL, problem, solution

SAMPLE = ["HS7", "HS42", "HS78", "MWRIGHT", "HS100LNP"]


@needs_x64
@pytest.mark.parametrize("name", SAMPLE)
def test_scipy_started_nearby_stays_and_agrees(name):
    p, s = problem(name), solution(name)
    s.check()
    f = jax.jit(jax.value_and_grad(lambda x: p.objective(x, p.args)))
    c, G = jax.jit(lambda x: p.equality(x, p.args)), jax.jit(jax.jacfwd(lambda x: p.equality(x, p.args)))
    found = scipy.optimize.minimize(
        lambda x: [np.asarray(v) for v in f(x)],
        np.asarray(s.value) + 0.01,
        jac=True,
        method="trust-constr",
        constraints=scipy.optimize.NonlinearConstraint(c, 0, 0, jac=G),
        options={"gtol": 1e-10, "xtol": 1e-12},
    )
    np.testing.assert_allclose(s.objective, found.fun, rtol=1e-7)
    np.testing.assert_allclose(s.value, found.x, atol=1e-4)
    np.testing.assert_allclose(s.multipliers, found.v[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", list(HAND_WRITTEN))
def test_known_minima_at_the_promised_residual(name):
    p, s = problem(name), solution(name)
    assert s.converged, s
    # The residual once more, in NumPy float64, from the derivatives alone.
    g, G = jax.grad(p.objective)(s.value, p.args), jax.jacfwd(p.equality)(s.value, p.args)
    g, G, c, lam = (np.asarray(a, np.float64) for a in (g, G, p.equality(s.value, p.args), s.multipliers))
    residual = np.sqrt(np.sum((g + lam @ G) ** 2) + np.sum(c**2))
    assert residual <= 1.5 * TOL
    np.testing.assert_allclose(residual, s.error, rtol=0.2, atol=TOL / 10)
    np.testing.assert_allclose(s.objective, p.best, rtol=1e-4 if FLOAT.name == "float32" else 2e-6, atol=10 * TOL)


def quadratic(rng, n=6, m=3):
    M = rng.standard_normal((n, n))
    return tuple(
        jnp.asarray(a, FLOAT)
        for a in (M @ M.T + np.eye(n), rng.standard_normal(n), rng.standard_normal((m, n)), rng.standard_normal(m))
    )


def quadratic_objective(x, args):
    return 0.5 * x @ args[0] @ x + args[1] @ x


def linear_equations(x, args):
    return args[2] @ x - args[3]


@jax.jit
def quadratic_programme(Q, q, A, b):
    return sketched_newton(quadratic_objective, jnp.zeros_like(q), equality=linear_equations, args=(Q, q, A, b))


def test_a_quadratic_programme_takes_one_step_to_the_linear_solve(rng):
    Q, q, A, b = quadratic(rng)
    s = quadratic_programme(Q, q, A, b)
    K = np.block([[np.asarray(Q, float), np.asarray(A, float).T], [np.asarray(A, float), np.zeros((3, 3))]])
    z = np.linalg.solve(K, np.concatenate([-np.asarray(q, float), np.asarray(b, float)]))
    assert s.num_steps == 1
    np.testing.assert_allclose(
        np.concatenate([s.value, s.multipliers]), z, rtol=1e-3 if FLOAT.name == "float32" else 1e-7
    )


def test_the_multipliers_are_minus_the_price_of_the_right_hand_side(rng):
    Q, q, A, b = quadratic(rng)
    price = jax.grad(lambda b: quadratic_programme(Q, q, A, b).objective)(b)
    np.testing.assert_allclose(price, -quadratic_programme(Q, q, A, b).multipliers, rtol=1e-3)


@needs_x64
def test_the_multipliers_have_the_sign_of_ipopt():
    ipopt = pytest.importorskip("cyipopt")
    p, s = problem("HS78"), solution("HS78")
    f, g = jax.jit(lambda x: p.objective(x, None)), jax.jit(jax.grad(lambda x: p.objective(x, None)))
    c, G = jax.jit(lambda x: p.equality(x, None)), jax.jit(jax.jacfwd(lambda x: p.equality(x, None)))

    class Callbacks:
        def objective(self, x):
            return float(f(x))

        def gradient(self, x):
            return np.asarray(g(x), float)

        def constraints(self, x):
            return np.asarray(c(x), float)

        def jacobian(self, x):
            return np.asarray(G(x), float).ravel()

    nlp = ipopt.Problem(
        n=5, m=3, problem_obj=Callbacks(), lb=[-1e20] * 5, ub=[1e20] * 5, cl=np.zeros(3), cu=np.zeros(3)
    )
    nlp.add_option("print_level", 0)
    nlp.add_option("sb", "yes")
    nlp.add_option("hessian_approximation", "limited-memory")
    _, info = nlp.solve(np.asarray(s.value, float))
    np.testing.assert_allclose(s.multipliers, info["mult_g"], atol=1e-3 if FLOAT.name == "float64" else 1e-1)


def circle(args):
    """Nearest point of a circle: x = radius * centre / |centre|."""
    return sketched_newton(
        lambda x, a: jnp.sum((x - a["centre"]) ** 2),
        {"p": jnp.asarray(1.0, FLOAT), "q": jnp.asarray([0.1], FLOAT)}["q"].repeat(2) + jnp.asarray([1.0, 0.0], FLOAT),
        equality=lambda x, a: {"on": jnp.sum(x**2) - a["radius"] ** 2},
        args=args,
        tol=1e-12 if FLOAT.name == "float64" else None,
    )


@pytest.mark.long
def test_derivatives_of_solution_and_multipliers_against_the_closed_form():
    args = {"centre": jnp.asarray([3.0, 4.0], FLOAT), "radius": jnp.asarray(2.0, FLOAT)}

    def closed(a):
        size = jnp.sqrt(jnp.sum(a["centre"] ** 2))
        return a["radius"] * a["centre"] / size, size / a["radius"] - 1

    def ours(a):
        s = circle(a)
        return s.value, s.multipliers["on"]

    rtol = 1e-6 if FLOAT.name == "float64" else 2e-2
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=rtol, atol=rtol), ours(args), closed(args))
    for transform in (jax.jacfwd, jax.jacrev, lambda f: jax.jacfwd(jax.jacrev(f))):
        left, right = jax.jit(transform(ours))(args), transform(closed)(args)
        jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=rtol, atol=rtol), left, right)


@needs_x64
@pytest.mark.long
def test_derivatives_of_a_nonconvex_problem_by_differences(rng):
    p = problem("HS78")

    def answer(r):
        s = sketched_newton(
            lambda x, r: p.objective(x, None) + 0.1 * r[0] * x[0] ** 2,
            p.x0,
            equality=lambda x, r: p.equality(x, None) - r,
            args=r,
            tol=1e-12,
        )
        return s.value, s.multipliers, s.objective

    check_grads(jax.jit(answer), (jnp.asarray(0.1 * rng.standard_normal(3)),), 2, rtol=1e-4, eps=1e-4)


def test_the_derivative_with_respect_to_the_start_is_zero():
    p = problem("HS42")
    slope = jax.grad(lambda x0: sketched_newton(p.objective, x0, equality=p.equality).value[3])(p.x0)
    np.testing.assert_array_equal(slope, 0)


def test_arrays_inside_an_objective_that_is_a_pytree_are_differentiated():
    import equinox as eqx

    class Distance(eqx.Module):
        centre: jax.Array

        def __call__(self, x, args):
            return jnp.sum((x - self.centre) ** 2)

    def first(centre):
        return sketched_newton(Distance(centre), jnp.ones_like(centre), equality=lambda x, _: jnp.sum(x) - 1).value[0]

    centre = jnp.asarray([1.0, 2.0, 4.0], FLOAT)
    np.testing.assert_allclose(jax.grad(first)(centre), [2 / 3, -1 / 3, -1 / 3], rtol=1e-3)


def test_a_warm_start_from_the_solution_takes_no_step_and_from_nearby_few():
    p, s = problem("HS7"), solution("HS7")
    again = sketched_newton(p.objective, s.value, equality=p.equality, multipliers=s.multipliers)
    assert again.num_steps == 0
    near = sketched_newton(p.objective, s.value + 0.01, equality=p.equality, multipliers=s.multipliers)
    assert near.num_steps <= 3 < s.num_steps


def test_pytrees_go_in_and_come_out():
    x0 = {"a": jnp.ones((2, 2), FLOAT), "b": (jnp.zeros((), FLOAT),)}
    s = sketched_newton(
        lambda x, shift: jnp.sum((x["a"] - shift) ** 2) + (x["b"][0] - 1) ** 2,
        x0,
        equality=lambda x, _: [jnp.sum(x["a"]) - 2, {"b": x["b"][0] + x["a"][0, :1]}],
        args=3,
    )
    assert jax.tree.structure(s.value) == jax.tree.structure(x0)
    assert s.multipliers[1]["b"].shape == (1,)
    np.testing.assert_allclose(jnp.sum(s.value["a"]), 2, atol=TOL)


@pytest.mark.long
def test_a_thousand_starts_at_once_agree_with_one_by_one(rng):
    p = problem("HS78")
    starts = p.x0[None] + jnp.asarray(0.2 * rng.standard_normal((1024, 5)), FLOAT)
    one = jax.jit(lambda x: sketched_newton(p.objective, x, equality=p.equality))
    many = jax.jit(jax.vmap(one))(starts.at[7, 2].set(jnp.nan))
    assert int(jnp.sum(many.status == 0)) >= 1020
    assert many.status[7] == 3
    with pytest.raises(SolveError, match="lane 7"):
        many.check()
    for i in (0, 5, 8, 511):
        alone = one(starts[i])
        assert alone.num_steps == many.num_steps[i]
        np.testing.assert_allclose(alone.value, many.value[i], atol=10 * TOL)


def test_logistic_regression_on_the_sphere(rng):
    features = rng.standard_normal((200, 15))
    p = logistic(features, np.sign(features @ rng.standard_normal(15) + 0.5 * rng.standard_normal(200)), num_rows=4)
    s = sketched_newton(p.objective, p.x0, equality=p.equality, args=p.args).check()
    assert s.num_steps <= 20
    np.testing.assert_allclose(jnp.sum(s.value**2), 1, atol=10 * TOL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x0": ()}, "`x0` must be a pytree with at least one array"),
        ({"kkt": "lu"}, "`kkt` must be one of 'auto', 'dense', 'krylov'"),
        ({"objective": lambda x, _: x}, "`objective` must be a function that returns a real scalar"),
        ({"multipliers": np.zeros(3, FLOAT)}, "`multipliers` must be like the output of `equality`, 1 numbers, got 3"),
        ({"tol": float("nan")}, "`tol` must be a number, got nan"),
        ({"equality": 3}, "`equality` must be a function of"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    right = {"objective": lambda x, _: jnp.sum(x**2), "x0": jnp.ones(2, FLOAT), "equality": lambda x, _: jnp.sum(x)}
    arguments = {**right, **change}
    with pytest.raises((ValueError, TypeError)) as raised:
        sketched_newton(arguments.pop("objective"), arguments.pop("x0"), **arguments)
    assert str(raised.value).startswith("sketched_newton: " + message)
