"""GP-HM as published: the trajectory of the authors' released code, and its refusals."""

import jax.numpy as jnp
import pytest

from solvers import Status
from solvers.pde import Box, Dirichlet, Neumann, PDEProblem, PublishedGPHM, gp_solve
from solvers.problems.pde import PAPER

from ..conftest import FLOAT, needs_x64
from .helpers import solved


@needs_x64
@pytest.mark.long
def test_error_after_61_steps_is_that_of_the_released_code():
    solution = solved(PAPER[0], grid=(400,), published=PublishedGPHM(), max_steps=61)
    assert abs(PAPER[0].error(solution.mean) - 0.4344) < 5e-5
    assert int(solution.status) == Status.MAX_STEPS
    assert int(solution.num_steps) == 61


@pytest.mark.long
def test_two_dimensions_and_gaussian_peaks_descend():
    problem = PDEProblem(lambda x, u, a: u.dxx + u.dyy + a * jnp.sin(3 * x[0]), Box((0.0, 1.0), (0.0, 1.0)),
                         [Dirichlet("all", lambda x, a: jnp.sin(3 * x[0]) + 0 * x[1])])  # fmt: skip
    settings = PublishedGPHM(3, 1.0, envelope="gaussian", jitter=1e-4, learning_rate=0.03)
    solution = gp_solve(problem, grid=(7, 6), args=jnp.asarray(9.0, FLOAT), published=settings, max_steps=300,
                        history=True)  # fmt: skip
    assert float(solution.error) < 0.9 * float(solution.history[0])
    points = jnp.linspace(0, 1, 7, dtype=FLOAT), jnp.linspace(0, 1, 6, dtype=FLOAT)
    gap = solution.mean(points) - solution.value
    assert float(jnp.max(jnp.abs(gap))) < 0.02 * float(jnp.max(jnp.abs(solution.value)))  # interpolates, but for jitter


@pytest.mark.parametrize(("condition", "grid", "message"), [
    (Neumann("x-"), 8, "gp_solve: `published` must be for one unknown with Dirichlet conditions"),
    (Dirichlet("x-"), None, "gp_solve: `grid` must be given for the published method"),
    (Dirichlet("x-"), 1, "gp_solve: `grid` must be integers above one"),
])  # fmt: skip
def test_what_it_does_not_do_is_refused(condition, grid, message):
    with pytest.raises(ValueError, match=message):
        gp_solve(PDEProblem(lambda x, u, a: u.dx, Box((0, 1)), [condition]), grid=grid, published=PublishedGPHM())
