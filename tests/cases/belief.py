"""What the contract asks of a call that returns Gaussian beliefs with a likelihood and a status."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class BeliefCase:
    """What `tests/test_contract_beliefs.py` asks of a filter, a smoother, a regression.

    Attributes
    ----------
    name : str
        Of the call.
    result : type
        What it returns.
    make : callable
        ``make(rng)``: data, NumPy float64 arrays of the same shapes each time.
    call : callable
        ``call(data)``.
    observed : str
        Name of the entry that holds what was observed.
    hidden : int
        The step of it that was not.
    noise : str
        Name of the entry that must be positive.
    """

    name: str
    result: type
    make: Callable[..., dict[str, Any]]
    call: Callable[[dict[str, Any]], Any]
    observed: str
    hidden: int
    noise: str
