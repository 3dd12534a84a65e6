"""Hypergradients against closed forms: every solver, its residual, and what it says of a point that is no minimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import CGSolve, DirectSolve, NeumannSeries, NystromInverse
from solvers.problems.bilevel import block_quadratics

from ..compiled import hypergradient
from ..conftest import FLOAT

TOL = {"float64": 1e-10, "float32": 2e-4}[FLOAT.name]


@pytest.fixture(scope="module")
def problem():
    return block_quadratics(np.random.default_rng(5), blocks=1, p=4, d=6, dtype=FLOAT)


def solved(problem, x):
    block = jax.tree.map(lambda a: a[0], problem.data)
    return block, problem.minimisers(x)[0]


SOLVERS = {
    "default": None,
    "direct": DirectSolve(),
    "cg": CGSolve(),
    "neumann": NeumannSeries(0.2, terms=400),
    "nystrom": NystromInverse(jax.random.key(3), rank=6, shift=0.0),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_gives_the_closed_form(name, problem):
    x = jnp.asarray([0.3, -1.0, 0.5, 2.0], FLOAT)
    block, y = solved(problem, x)
    found = hypergradient(problem.upper, problem.lower, x, y, block, solver=SOLVERS[name])
    exact = problem.gradient(x)
    np.testing.assert_allclose(found.value, exact, rtol=100 * TOL, atol=TOL)
    assert found.linear < 100 * TOL
    assert found.stationarity < 100 * TOL


def test_it_is_the_derivative_of_the_value(problem):
    """By differentiating the closed form of the objective."""
    x = jnp.asarray([0.3, -1.0, 0.5, 2.0], FLOAT)
    np.testing.assert_allclose(problem.gradient(x), jax.grad(problem.value)(x), rtol=1e-4, atol=10 * TOL)
    np.testing.assert_allclose(problem.gradient(problem.optimum), jnp.zeros(4), atol=1e3 * TOL)


def test_truncated_solvers_and_wrong_points_say_so(problem):
    x = jnp.asarray([0.3, -1.0, 0.5, 2.0], FLOAT)
    block, y = solved(problem, x)
    for solver in (CGSolve(max_steps=1), NeumannSeries(0.05, terms=3), NystromInverse(jax.random.key(3), rank=1)):
        found = hypergradient(problem.upper, problem.lower, x, y, block, solver=solver)
        wrong = jnp.linalg.norm(found.value - problem.gradient(x))
        assert found.linear > 1e-3
        assert wrong > 1e-4
    elsewhere = hypergradient(problem.upper, problem.lower, x, y + 1, block)
    assert elsewhere.stationarity > 0.5
    assert elsewhere.linear < 100 * TOL


def test_trees_units_maps_and_refusals(problem):
    def lower(x, y, _):
        return jnp.sum((y["u"] - x["k"]) ** 2) + jnp.sum((y["w"] - 2 * x["k"]) ** 2)

    upper = lambda x, y, _: jnp.sum(y["u"]) + jnp.sum(y["w"] ** 2)  # noqa: E731
    x = {"k": jnp.asarray(1.5, FLOAT)}
    y = {"u": jnp.full(2, 1.5, FLOAT), "w": jnp.full((1, 3), 3.0, FLOAT)}
    found = jax.jit(lambda x: hypergradient(upper, lower, x, y))(x)
    np.testing.assert_allclose(found.value["k"], 2 + 3 * 2 * 3 * 2, rtol=1e-5)
    xs = jnp.asarray(np.random.default_rng(3).standard_normal((3, 4)), FLOAT)
    block = jax.tree.map(lambda a: a[0], problem.data)
    many = jax.vmap(lambda x: hypergradient(problem.upper, problem.lower, x, problem.minimisers(x)[0], block).value)(xs)
    np.testing.assert_allclose(many, jax.vmap(problem.gradient)(xs), rtol=1e-3, atol=10 * TOL)
    with pytest.raises(TypeError, match="LinearSolver"):
        hypergradient(upper, lower, x, y, solver="cg")
