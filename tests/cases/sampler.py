"""What the contract asks of a public sampler."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Sampler:
    """What `tests/test_contract_samplers.py` asks of a sampler.

    Attributes
    ----------
    name : str
        Of the sampler, and its setting.
    make : callable
        ``make(rng)``: data, NumPy arrays by name.
    draw : callable
        ``draw(data, key)``: one sample, an array.
    exact : callable
        ``exact(data)``: mean and covariance of the distribution sampled from.
    poison : str
        Name of the entry into which NaN is put.
    count : int
        Samples to judge the moments by.
    bias : float
        How far the mean may be off beyond its standard error.
    spread : float
        By what share the total variance may be off, the sampling error of the estimate included.
    """

    name: str
    make: Callable[[np.random.Generator], dict[str, Any]]
    draw: Callable[[dict[str, Any], Any], Any]
    exact: Callable[[dict[str, Any]], tuple[Any, Any]]
    poison: str
    count: int = 2000
    bias: float = 0.02
    spread: float = 0.1
