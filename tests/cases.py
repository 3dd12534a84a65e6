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
        zero=lambda: {"cost": np.zeros((3, 3)), "epsilon": np.asarray(0.5)},
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
    _transport("sinkhorn"),
    _transport("sns_sinkhorn"),
    _pde(),
]

__all__ = ["CASES", "Case", "Data", "Status"]
