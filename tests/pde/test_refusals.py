"""Statements that cannot be right are refused by name, and no option is dropped in silence."""

import jax.numpy as jnp
import numpy as np
import pytest

from solvers.pde import Box, Dirichlet, Observe, PDEProblem, PublishedGPHM, SquaredExponential, gp_solve

BOX, ENDS = Box((0.0, 1.0)), [Dirichlet("all")]


def poisson(x, u, args):
    return u.dxx - 1.0


@pytest.mark.parametrize(
    "option",
    [
        {"prior": SquaredExponential(0.3)}, {"basis": "kernel"}, {"rank": 4}, {"infer": 1.0}, {"learn": "prior"},
        {"guess": lambda x, args: x[0]},
    ],
)  # fmt: skip
def test_the_published_method_takes_no_option_that_it_would_ignore(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"gp_solve: `{name}` must be left out"):
        gp_solve(PDEProblem(poisson, BOX, ENDS), grid=8, published=PublishedGPHM(), **option)


def test_a_residual_without_the_unknown_is_refused():
    with pytest.raises(ValueError, match="a function of every unknown"):
        gp_solve(PDEProblem(lambda x, u, a: jnp.sin(x[0]), BOX, ENDS), grid=8)


def test_a_residual_summed_over_the_nodes_is_refused():
    with pytest.raises(ValueError, match="pointwise in u"):
        gp_solve(PDEProblem(lambda x, u, a: jnp.sum(u.dxx), BOX, ENDS), grid=8)


def test_complex_numbers_are_refused():
    with pytest.raises(TypeError, match="real"):
        gp_solve(PDEProblem(lambda x, u, a: u.dxx - a, BOX, ENDS), grid=8, args=np.asarray(1.0 + 1.0j))


@pytest.mark.parametrize("point", [-0.2, 1.3])
def test_an_observation_outside_the_box_is_refused(point):
    with pytest.raises(ValueError, match="in the box"):
        PDEProblem(poisson, BOX, [*ENDS, Observe(np.array([0.5, point]), np.zeros(2), 0.1)])


def test_a_negative_noise_is_refused():
    for make in (lambda: PDEProblem(poisson, BOX, ENDS, noise=-0.1),
                 lambda: PDEProblem(poisson, BOX, [Dirichlet("all", noise=-0.1)]),
                 lambda: PDEProblem(poisson, BOX, [*ENDS, Observe(np.array([0.5]), np.zeros(1), -0.1)])):  # fmt: skip
        with pytest.raises(ValueError, match="at least zero"):
            make()


def test_functions_of_too_few_arguments_are_refused_and_one_condition_needs_no_list():
    for make, whose in (
        (lambda: PDEProblem(lambda u: u.dxx, BOX, ENDS), r"residual` must be a function of \(x, u, args\)"),
        (lambda: PDEProblem(poisson, BOX, Dirichlet("x-", lambda x: 0 * x)), r"value` must be a function of \(x,"),
    ):
        with pytest.raises(TypeError, match=whose):
            make()
    assert len(PDEProblem(poisson, BOX, Dirichlet("all")).conditions) == 2
