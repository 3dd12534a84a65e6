"""What the contract asks of a random estimator: a value with a standard error, an interval, an honest stop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Estimator:
    """What `tests/test_contract_estimators.py` asks of an estimator.

    Attributes
    ----------
    name : str
        Of the estimator, and its setting.
    make : callable
        ``make(rng)``: data, NumPy arrays by name.
    estimate : callable
        ``estimate(data, key, **options)``: an `Estimate`, with the options ``rtol, atol``.
    truth : callable
        ``truth(data)``: what is estimated, of the structure of `value`, by NumPy in float64.
    poison : str
        Name of the entry into which NaN is put; `value` is linear in it.
    coverage : tuple of float
        Between which the share of 95 % intervals that hold the truth must be, over `count` keys.
    count : int
        Keys to judge the interval by.
    stops : bool
        Whether it takes ``rtol`` and ``atol``.
    """

    name: str
    make: Callable[[np.random.Generator], dict[str, Any]]
    estimate: Callable[..., Any]
    truth: Callable[[dict[str, Any]], Any]
    poison: str
    coverage: tuple[float, float] = (0.93, 0.97)
    count: int = 600
    stops: bool = True
    tol: dict = field(default_factory=lambda: {"float64": 1e-9, "float32": 2e-4})
