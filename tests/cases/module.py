"""What the contract asks of an Equinox module: a layer, a prior, a field."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class ModuleCase:
    """What `tests/test_contract_modules.py` asks of a module.

    Attributes
    ----------
    name : str
        Of the class.
    module : type
        The class.
    make : callable
        ``make(key, dtype)``: a small module; different keys give different arrays of the same shapes.
    example : callable
        ``example(rng)``: one example, a NumPy float64 array or a pytree of them, the same shapes each time.
    call : callable
        ``call(module, example)``: what is differentiated and compared, ``module(example)`` by default.
    refuse : tuple of callables
        ``() -> anything``: each must raise ValueError or TypeError that names the class.
    trains : bool
        Whether its inexact leaves are parameters, all of which move the output.
    tol : dict
        Tolerance of comparisons by dtype name, relative and absolute.
    """

    name: str
    module: type
    make: Callable[..., Any]
    example: Callable[..., Any]
    call: Callable[..., Any] = field(default=lambda module, example: module(example))
    refuse: tuple[Callable[[], Any], ...] = ()
    trains: bool = True
    tol: dict = field(default_factory=lambda: {"float64": 1e-10, "float32": 1e-4})
