"""Contract entries of constrained optimisation."""

import jax.numpy as jnp
import numpy as np

import solvers
from solvers import Status

from .case import Case


def _quartic(x, args):
    return 0.5 * jnp.sum((x - args["target"]) ** 2) + 0.1 * jnp.sum(x**4)


def _curved_rows(x, args):
    return args["rows"] @ x + 0.1 * jnp.sum(x**2) - args["rhs"]


def _sketched_newton_data(rng):
    return {
        "target": rng.standard_normal(4),
        "rows": np.eye(2, 4) + 0.3 * rng.standard_normal((2, 4)),
        "rhs": rng.standard_normal(2),
    }


def _sketched_newton(data, x0=None, objective=_quartic, **options):
    x0 = jnp.ones_like(data["target"]) if x0 is None else x0
    return solvers.sketched_newton(objective, x0, equality=_curved_rows, args=data, **options)


def _counted_newton(data, count):
    def objective(x, args):
        count()
        return _quartic(x, args)

    return _sketched_newton(data, objective=objective)


_SKETCHED_NEWTON = Case(
    name="sketched_newton",
    solution=solvers.NewtonSolution,
    make=_sketched_newton_data,
    solve=_sketched_newton,
    poison="target",
    warm=lambda data, solution: (data, {"x0": solution.value, "multipliers": solution.multipliers}),
    zero=lambda: {"target": np.zeros(4), "rows": np.zeros((2, 4)), "rhs": np.zeros(2)},
    single=lambda: {"target": np.ones(1), "rows": np.ones((1, 1)), "rhs": np.ones(1)},
    failing=lambda data: ({**data, "rhs": np.full(2, -50.0)}, {}, int(Status.INFEASIBLE)),
    differentiable=("target", "rows", "rhs"),
    direction=lambda rng, data: {k: 0.1 * rng.standard_normal(v.shape) for k, v in data.items()},
    observe=lambda s: jnp.sum(s.value**3) + s.multipliers[0] + s.objective,
    tol={"float64": 1e-8, "float32": 1e-3},
    exact={"tol": 1e-13},
    user_function=_counted_newton,
)


def _interior_point_data(rng):
    return {
        "target": rng.standard_normal(4) + np.array([1.5, -1.5, 2.0, 2.0]),
        "rows": np.eye(2, 4) + 0.3 * rng.standard_normal((2, 4)),
        "rhs": 0.5 + 0.1 * rng.standard_normal(2),
        "radius": 0.6 + 0.1 * rng.random(1),
    }


def _ball(x, args):
    return jnp.sum(x**2) - args["radius"][0]


def _first_row(x, args):
    return args["rows"][0] @ x - args["rhs"][0] + 0.1 * jnp.sum(x**2)


def _second_row(x, args):
    return jnp.stack([args["rows"][1] @ x - args["rhs"][1], _ball(x, args)])


def _interior_point(data, x0=None, objective=_quartic, **options):
    x0 = jnp.ones_like(data["target"]) if x0 is None else x0
    return solvers.interior_point(
        objective, x0, equality=_first_row, inequality=_second_row, bounds=(0.0, 2.0), args=data, **options
    )


def _counted_interior(data, count):
    def objective(x, args):
        count()
        return _quartic(x, args)

    return _interior_point(data, objective=objective)


_INTERIOR_POINT = Case(
    name="interior_point",
    solution=solvers.InteriorSolution,
    make=_interior_point_data,
    solve=_interior_point,
    poison="target",
    warm=lambda data, solution: (data, {"x0": solution.value, "multipliers": solution.multipliers}),
    zero=lambda: {"target": np.zeros(4), "rows": np.zeros((2, 4)), "rhs": np.zeros(2), "radius": np.zeros(1)},
    single=lambda: {"target": np.ones(1), "rows": np.ones((2, 1)), "rhs": np.ones(2), "radius": np.ones(1)},
    failing=lambda data: ({**data, "radius": np.full(1, -0.5)}, {}, int(Status.INFEASIBLE)),
    differentiable=("target", "rows", "rhs", "radius"),
    direction=lambda rng, data: {k: 0.02 * rng.standard_normal(v.shape) for k, v in data.items()},
    observe=lambda s: (
        jnp.sum(s.value**3)
        + s.multipliers.equality
        + jnp.sum(s.multipliers.inequality)
        + jnp.sum(s.multipliers.lower**2)
        + s.objective
    ),
    tol={"float64": 1e-8, "float32": 1e-3},
    exact={"tol": 1e-13},
    user_function=_counted_interior,
)


CASES = [
    _SKETCHED_NEWTON,
    _INTERIOR_POINT,
]
