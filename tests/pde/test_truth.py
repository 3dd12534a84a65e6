"""No `converged` where the equation does not hold between the nodes: contradictions, and a prior that is too rough."""

import jax.numpy as jnp
import numpy as np
import pytest

from solvers.pde import Box, Dirichlet, Neumann, Observe, PDEProblem, gp_solve

from ..conftest import needs_x64

OVER = [
    [Dirichlet("x-"), Dirichlet("x+", 1.0), Neumann("x+", 5.0)],
    [Dirichlet("all"), Observe(np.array([0.5]), np.array([1.0]), 1e-3)],
]


@needs_x64
@pytest.mark.parametrize("conditions", OVER)
def test_data_that_contradict_the_equation_do_not_converge(conditions):
    solution = gp_solve(PDEProblem(lambda x, u, a: u.dxx, Box((0.0, 1.0)), conditions))
    assert not bool(solution.converged)
    assert float(solution.residual) > 0.5


@needs_x64
def test_a_plane_solved_on_its_nodes_alone_does_not_converge():
    def residual(x, u, a):
        return u.dxx + u.dyy + 2 * np.pi**2 * jnp.sin(np.pi * x[0]) * jnp.sin(np.pi * x[1])

    solution = gp_solve(PDEProblem(residual, Box((0.0, 1.0), (0.0, 1.0)), [Dirichlet("all", noise=0.01)]))
    centre = abs(float(solution.mean(jnp.asarray([0.5, 0.5]))) - 1)
    assert centre < 1e-2 or not bool(solution.converged)
