"""One entry a public solver: data, the call, and what the contract asks about. Adding a solver is adding an entry."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

import solvers
from solvers import Solution, Status

Data = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """What `tests/test_contract.py` asks of a solver.

    Attributes
    ----------
    name : str
        Of the solver.
    solution : type
        The class it returns.
    make : callable
        ``make(rng)``: data of a small well-posed problem, NumPy float64 arrays; every call has the same shapes.
    solve : callable
        ``solve(data, **options)`` with options ``tol, max_steps, history, progress`` and the solver's own.
    poison : str
        Name of the entry into which a NaN is put.
    warm : callable
        ``warm(data, solution)``: data and options from which the solution must be recognised in 0 steps.
    zero, single : callable
        ``() -> data``: all-zero data that has an answer, and a problem with one unknown.
    failing : callable
        ``failing(data)``: data, options and the status that must come out, which is not success.
    differentiable : tuple of str
        Entries that derivatives are promised for.
    direction : callable
        ``direction(rng, data)``: a feasible direction for those entries.
    observe : callable
        ``observe(solution)``: a smooth scalar of the solution, moved by all differentiable entries.
    tol : dict
        Tolerance by dtype name used in comparisons; the error must come below it.
    exact : dict
        Options of a solve accurate enough to be differentiated numerically.
    user_function : callable or None
        ``user_function(data, count)``: solve with a user function that calls ``count()`` whenever it is traced.
    """

    name: str
    solution: type
    make: Callable[[np.random.Generator], Data]
    solve: Callable[..., Solution]
    poison: str
    warm: Callable[[Data, Solution], tuple[Data, dict]]
    zero: Callable[[], Data]
    single: Callable[[], Data]
    failing: Callable[[Data], tuple[Data, dict, int]]
    differentiable: tuple[str, ...]
    direction: Callable[[np.random.Generator, Data], Data]
    observe: Callable[[Solution], Any]
    tol: dict = field(default_factory=lambda: {"float64": 1e-9, "float32": 1e-4})
    exact: dict = field(default_factory=lambda: {"tol": 1e-13})
    user_function: Callable[[Data, Callable[[], None]], Any] | None = None


def _transport_data(rng):
    cost = (rng.random((6, 1)) - rng.random((1, 7))) ** 2
    a, b = (x / x.sum() for x in (rng.random(6) + 0.2, rng.random(7) + 0.2))
    return {"cost": cost, "a": a, "b": b, "epsilon": np.asarray(0.05)}


def _zero_sum(rng, n):
    x = rng.standard_normal(n)
    return 0.02 * (x - x.mean())


def _transport(name, **settings) -> Case:
    function = getattr(solvers, name)
    uneven = np.linspace(-1, 1, 7)

    def solve(data, **options):
        return function(data["cost"], data.get("a"), data.get("b"), epsilon=data["epsilon"], **settings, **options)

    return Case(
        name=name,
        solution=solvers.TransportSolution,
        make=_transport_data,
        solve=solve,
        poison="cost",
        warm=lambda data, solution: (data, {"init": solution.value}),
        zero=lambda: {
            "cost": np.zeros((6, 7)),
            "a": np.full(6, 1 / 6),
            "b": np.full(7, 1 / 7),
            "epsilon": np.asarray(0.5),
        },
        single=lambda: {"cost": np.full((1, 1), 3.0), "epsilon": np.asarray(0.5)},
        failing=lambda data: ({**data, "a": 2 * data["a"]}, {}, int(solvers.TransportStatus.UNEQUAL_MASSES)),
        differentiable=("cost", "a", "b", "epsilon"),
        direction=lambda rng, data: {
            "cost": 0.1 * rng.standard_normal((6, 7)),
            "a": _zero_sum(rng, 6),
            "b": _zero_sum(rng, 7),
            "epsilon": np.asarray(0.01),
        },
        observe=lambda s: jnp.sum(s.g * jnp.asarray(uneven, s.g.dtype)) + s.transport_cost + s.f[0],
    )


def _divergence_data(rng):
    a, b = (w / w.sum() for w in (rng.random(5) + 0.2, rng.random(6) + 0.2))
    return {"x": rng.random((5, 2)), "y": rng.random((6, 2)), "a": a, "b": b, "epsilon": np.asarray(0.1)}


def _divergence(data, **options):
    cloud = solvers.PointCloud(data["x"], data["y"])
    return solvers.sinkhorn_divergence(cloud, data.get("a"), data.get("b"), epsilon=data["epsilon"], **options)


_SINKHORN_DIVERGENCE = Case(
    name="sinkhorn_divergence",
    solution=solvers.DivergenceSolution,
    make=_divergence_data,
    solve=_divergence,
    poison="x",
    warm=lambda data, solution: (data, {"init": solution.between.value}),
    zero=lambda: {"x": np.zeros((3, 2)), "y": np.zeros((3, 2)), "epsilon": np.asarray(0.5)},
    single=lambda: {"x": np.ones((1, 1)), "y": np.zeros((1, 1)), "epsilon": np.asarray(0.5)},
    failing=lambda data: ({**data, "a": 2 * data["a"]}, {}, int(solvers.TransportStatus.UNEQUAL_MASSES)),
    differentiable=("x", "y", "a", "b", "epsilon"),
    direction=lambda rng, data: {
        "x": 0.1 * rng.standard_normal((5, 2)),
        "y": 0.1 * rng.standard_normal((6, 2)),
        "a": _zero_sum(rng, 5),
        "b": _zero_sum(rng, 6),
        "epsilon": np.asarray(0.01),
    },
    observe=lambda s: s.value,
)


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


def _grid_data(rng, shape):
    return {"conductivity": 0.5 + rng.random(shape), "shift": np.asarray(0.5), "b": rng.standard_normal(shape)}


def _linear(name, solution, status, *, shape=(4, 5), user_function=None, **settings) -> Case:
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
        failing=lambda data: ({**data, "shift": jnp.full_like(data["shift"], -2)}, {}, int(status)),
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
    _SKETCHED_NEWTON,
    _transport("sinkhorn"),
    _transport("sns_sinkhorn"),
    _SINKHORN_DIVERGENCE,
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
    _pde(),
]

__all__ = ["CASES", "Case", "Data", "Status"]
