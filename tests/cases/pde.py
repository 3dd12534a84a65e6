"""Contract entries of differential equations."""

import jax.numpy as jnp
import numpy as np

import solvers
from solvers import Status

from .case import Case


def _pde() -> Case:
    """``u'' - c u = f sin(3 x)`` with Dirichlet and Robin data."""

    def residual(x, u, args):
        return u.dxx - args["c"] * u.v - args["f"] * jnp.sin(3 * x[0])

    def problem(data, residual=residual):
        faces = [solvers.Dirichlet("x-", data["left"]), solvers.Robin("x+", data["right"], a=1.0, b=0.5)]
        return solvers.PDEProblem(residual, solvers.Box((0.0, 1.0)), faces)

    def solve(data, grid=16, **options):
        return solvers.gp_solve(problem(data), grid=grid, args={"c": data["c"], "f": data["f"]}, **options)

    def counted(data, count):
        def traced(x, u, args):
            count()
            return residual(x, u, args)

        return solvers.gp_solve(problem(data, traced), grid=16, args={"c": data["c"], "f": data["f"]})

    return Case(
        name="gp_solve",
        solution=solvers.GPSolution,
        make=lambda rng: {k: np.asarray(0.5 + rng.random()) for k in ("c", "f", "left", "right")},
        solve=solve,
        poison="f",
        warm=lambda data, solution: (data, {"guess": solution}),
        zero=lambda: {k: np.zeros(()) for k in ("c", "f", "left", "right")},
        single=lambda: {k: np.ones(()) * (k == "c") for k in ("c", "f", "left", "right")},
        failing=lambda data: ({**data, "f": 1e9 * data["f"]}, {"tol": 0.0}, int(Status.STAGNATED)),
        differentiable=("c", "f", "left", "right"),
        direction=lambda rng, data: {k: np.asarray(0.2 * rng.standard_normal()) for k in data},
        observe=lambda s: s.mean(jnp.asarray(0.3, s.value.dtype)) + s.mean(jnp.asarray(0.8, s.value.dtype)) ** 2,
        exact={},
        user_function=counted,
    )


CASES = [
    _pde(),
]
