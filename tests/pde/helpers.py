"""What several test files of this family share."""

import jax.numpy as jnp

from solvers.pde import Box, Dirichlet, PDEProblem, gp_solve


def stated(instance):
    """The `PDEProblem` of a `PDEInstance`."""
    conditions = [Dirichlet(face, lambda x, args: instance.exact(*x)) for face in instance.faces]
    return PDEProblem(instance.residual, Box(**instance.bounds), conditions)


def solved(instance, grid=None, **options):
    options = {"args": instance.args, "guess": instance.guess, **options}
    return gp_solve(stated(instance), grid=grid or instance.grid, **options)


def relative(a, b):
    return float(jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b)))
