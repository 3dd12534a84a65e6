"""No `converged` that is a lie: contradictions, missing and singular statements, priors too rough, at any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Status
from solvers.pde import (
    Box,
    Dirichlet,
    Matern,
    Neumann,
    Observe,
    PDEProblem,
    PDEStatus,
    SpectralMixture,
    SquaredExponential,
    gp_solve,
)  # fmt: skip

from ..conftest import FLOAT, X64, needs_x64

LINE = Box((0.0, 1.0))
MIDDLE = Observe(np.array([0.5]), np.array([1.0]), 1e-3)


def straight(x, u, args):
    return u.dxx - args


@pytest.mark.parametrize(
    ("conditions", "load", "status"),
    [
        ([Dirichlet("x-"), Dirichlet("x+", 1.0), Neumann("x+", 5.0)], 0.0, PDEStatus.CONTRADICTED),
        ([Dirichlet("all"), MIDDLE], 0.0, PDEStatus.CONTRADICTED),
        ([Dirichlet("x-")], 1.0, PDEStatus.UNDETERMINED),
        ([Neumann("x-", noise=0.1), Neumann("x+", noise=0.1)], 1.0, PDEStatus.CONTRADICTED),
        ([Neumann("all")], 1.0, PDEStatus.SINGULAR),
    ],
    ids=["three conditions", "a datum", "one condition", "noisy slopes", "slopes"],
)
def test_statements_without_one_answer_have_statuses_of_their_own(conditions, load, status):
    solution = gp_solve(PDEProblem(straight, LINE, conditions), args=jnp.asarray(load, FLOAT), grid=12)
    assert int(solution.status) == status
    if status == PDEStatus.UNDETERMINED:
        assert float(solution.std(jnp.asarray(0.9, FLOAT))) > 0.3
    elif solution.posterior is not None:
        assert bool(jnp.isnan(solution.std(jnp.asarray(0.4, FLOAT))))


def test_what_agrees_converges():
    """The same statements with numbers that fit together."""
    slope = gp_solve(PDEProblem(straight, LINE, [Dirichlet("x-"), Dirichlet("x+", 1.0), Neumann("x+", 1.0)]), args=0.0,
                     grid=12)  # fmt: skip
    datum = gp_solve(PDEProblem(straight, LINE, [Dirichlet("x-"), Dirichlet("x+", 2.0), MIDDLE]), args=0.0, grid=12)
    for solution in (slope, datum):
        assert bool(solution.converged)
        assert float(solution.misfit) < (1e-10 if X64 else 1e-4)


@pytest.mark.parametrize("size", [14, 40])
def test_resonance_is_singular_at_every_size(size):
    def residual(x, u, args):
        return u.dxx + args * u.v - jnp.sin(np.pi * x[0])

    problem = PDEProblem(residual, LINE, [Dirichlet("all")])
    at, beside = (gp_solve(problem, args=jnp.asarray(c, FLOAT), grid=size) for c in (np.pi**2, 9.0))
    if X64 and size > 14:  # fourteen polynomials have no eigenvalue there to sixteen digits
        assert int(at.status) == PDEStatus.SINGULAR
    assert bool(beside.converged)


@needs_x64
def test_a_neumann_problem_without_solution_ends_on_its_default_grid():
    solution = gp_solve(PDEProblem(lambda x, u, a: u.dxx - 1.0, LINE, [Neumann("all")]))
    assert int(solution.status) == PDEStatus.SINGULAR
    assert solution.grid[0] < 100


@needs_x64
@pytest.mark.parametrize("prior", [SquaredExponential(0.04), Matern(0.05, 1.0, 4.5),
                                   SpectralMixture(jnp.ones(1), jnp.zeros(1), jnp.asarray([0.03]))])  # fmt: skip
def test_a_prior_too_rough_for_its_nodes_does_not_converge(prior):
    def residual(x, u, a):
        return u.dxx + u.dyy + 2 * np.pi**2 * jnp.sin(np.pi * x[0]) * jnp.sin(np.pi * x[1])

    problem = PDEProblem(residual, Box((0.0, 1.0), (0.0, 1.0)), [Dirichlet("all", noise=0.01)])
    solution = gp_solve(problem, grid=(10, 10), prior=prior, rank=12)
    assert abs(float(solution.mean(jnp.asarray([0.5, 0.5]))) - 1) < 1e-2 or not bool(solution.converged)


def test_statuses_under_vmap_are_each_lane_s():
    def solve(slope):
        problem = PDEProblem(straight, LINE, [Dirichlet("x-"), Dirichlet("x+", 1.0), Neumann("x+", slope)])
        return gp_solve(problem, grid=8, args=jnp.asarray(0.0, FLOAT))

    status = jax.jit(jax.vmap(solve))(jnp.asarray([1.0, 5.0, np.nan], FLOAT)).status
    assert int(status[0]) == 0
    assert int(status[1]) == PDEStatus.CONTRADICTED
    assert int(status[2]) == Status.NONFINITE
