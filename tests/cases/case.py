"""What the contract asks of a public solver."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solvers import Solution

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
        ``warm(data, solution)``: data and options from which the solution must be recognised in 0 steps; None for a
        call that has no start to give.
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
    orders : int
        How many orders of derivatives are promised: 2, or 1 where the solution is piecewise linear.
    accuracy : float
        Relative accuracy of slopes against differences of values.
    user_function : callable or None
        ``user_function(data, count)``: solve with a user function that calls ``count()`` whenever it is traced.
    """

    name: str
    solution: type
    make: Callable[[np.random.Generator], Data]
    solve: Callable[..., Solution]
    poison: str
    warm: Callable[[Data, Solution], tuple[Data, dict]] | None
    zero: Callable[[], Data]
    single: Callable[[], Data]
    failing: Callable[[Data], tuple[Data, dict, int]]
    differentiable: tuple[str, ...]
    direction: Callable[[np.random.Generator, Data], Data]
    observe: Callable[[Solution], Any]
    tol: dict = field(default_factory=lambda: {"float64": 1e-9, "float32": 1e-4})
    exact: dict = field(default_factory=lambda: {"tol": 1e-13})
    orders: int = 2
    accuracy: float = 1e-6
    user_function: Callable[[Data, Callable[[], None]], Any] | None = None
