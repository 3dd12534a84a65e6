"""Contract entries of linear systems."""

import jax
import jax.numpy as jnp
import numpy as np

import solvers
from solvers import Status

from .case import Case
from .module import ModuleCase


def _grid_data(rng, shape):
    return {"conductivity": 0.5 + rng.random(shape), "shift": np.asarray(0.5), "b": rng.standard_normal(shape)}


def _linear(name, solution, status, *, shape=(4, 5), user_function=None, limits=None, **settings) -> Case:
    function = getattr(solvers, name)

    def system(data):
        return solvers.Stencil.diffusion(data["conductivity"], shift=data["shift"])

    def flat(shape, b):
        return {"conductivity": np.ones(shape), "shift": np.asarray(1.0), "b": np.full(shape, b)}

    return Case(
        name=name,
        solution=solution,
        make=lambda rng: _grid_data(rng, shape),
        solve=lambda data, **options: function(system(data), data["b"], **settings, **options),
        poison="b",
        warm=lambda data, solution: (data, {"x0": solution.value}),
        zero=lambda: flat(shape, 0.0),
        single=lambda: flat((1, 1), 2.0),
        failing=lambda data: ({**data, "shift": jnp.full_like(data["shift"], -2)}, limits or {}, int(status)),
        differentiable=("conductivity", "shift", "b"),
        direction=lambda rng, data: {
            "conductivity": 0.1 * rng.standard_normal(shape),
            "shift": np.asarray(0.1),
            "b": rng.standard_normal(shape),
        },
        observe=lambda s: jnp.sum(jnp.sin(s.value)) + s.value[0, 1] ** 2,
        tol={"float64": 1e-8, "float32": 2e-5},
        user_function=user_function,
    )


def _counted(data, count, function):
    def called(x, scale):
        count()
        return scale * x

    return function(data, called)


def _flexible_counted(data, count):
    system = solvers.Stencil.laplacian(2, shift=data["shift"])
    return _counted(data, count, lambda d, f: solvers.flexible_cg(system, d["b"], precondition=f, args=d["shift"]))


def _product_counted(data, count):
    return _counted(
        data, count, lambda d, f: solvers.chebyshev_cg(solvers.MatrixFree(f, args=d["shift"]), d["b"], max_steps=5)
    )


CASES = [
    _linear("sor", solvers.SORSolution, Status.DIVERGED, omega=1.4),
    _linear("ssor", solvers.SSORSolution, Status.DIVERGED, omega=1.2),
    _linear("ssor_cg", solvers.CGSolution, solvers.LinearStatus.INDEFINITE),
    _linear("chebyshev_cg", solvers.CGSolution, solvers.LinearStatus.INDEFINITE, user_function=_product_counted),
    _linear(
        "flexible_cg",
        solvers.CGSolution,
        solvers.LinearStatus.INDEFINITE,
        precondition=lambda r, _: r,
        user_function=_flexible_counted,
    ),
    _linear("multigrid_cg", solvers.MultigridSolution, solvers.LinearStatus.INDEFINITE, shape=(9, 8)),
    _linear(
        "multigrid_gmres", solvers.MultigridSolution, Status.MAX_STEPS, shape=(9, 8), limits={"max_steps": 2}, memory=9
    ),
]

MODULES = [
    ModuleCase(
        name="ConvPreconditioner",
        module=solvers.ConvPreconditioner,
        make=lambda key, dtype: solvers.ConvPreconditioner.init(key, 2, channels=2, levels=2, dtype=dtype),
        example=lambda rng: rng.standard_normal((4, 3)),
        refuse=(
            lambda: solvers.ConvPreconditioner.init(jax.random.key(3), 4),
            lambda: solvers.ConvPreconditioner.init(jax.random.key(3), 2)(jnp.ones(3)),
        ),
    ),
]
