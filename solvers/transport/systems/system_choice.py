"""Which backend solves the Newton systems."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ...core import accelerator, checks
from ..problem import Problem
from .newton_systems import Cholesky, DenseCG, Escalating
from .sparse_systems import SparseCG, default_width

Backend = DenseCG | SparseCG | Cholesky | Escalating

HESSIANS = ("auto", "dense", "sparse", "direct")
SMALL = 128
"""Up to this many rows the Newton matrix is factored in every step."""
LARGE = 4096
"""Beyond this many rows it never is."""
SPARSE_FROM = 1024
"""From this many rows on, accelerators use sparse rows."""


def check_hessian(function: str, hessian: Any) -> None:
    """Raise unless `hessian` is one of the names or an object with `prepare` and `direction`."""
    if not all(callable(getattr(hessian, method, None)) for method in ("prepare", "direction")):
        checks.choice(function, "hessian", hessian, HESSIANS)


def choose_backend(hessian: Any, problem: Problem) -> Any:
    """Return the backend that `hessian` names, or the object that it is.

    On a CPU, products with the whole kernel run from cache or at memory speed and gathers do not, so "auto" stays dense
    there; on accelerators the sparse rows save an order of magnitude where they fit, and give way where they do not.
    A product with a cost that is not stored takes n m exponentials, so there entries are kept wherever they fit.
    """
    if not isinstance(hessian, str):
        return hessian
    n, m = problem.cost.shape
    accelerated = n >= SPARSE_FROM and accelerator.present()
    dense = DenseCG(coarse=accelerated)
    sparse = SparseCG(default_width(m), dense)
    if not problem.cost.stored and hessian in ("auto", "sparse"):
        return Escalating(sparse if problem.cost.tiled else DenseCG(), DenseCG(single=False))
    if hessian == "direct" or (hessian == "auto" and n <= SMALL):
        return Cholesky()
    first = sparse if hessian == "sparse" or (hessian == "auto" and accelerated) else dense
    return Escalating(first, Cholesky() if hessian == "auto" and n <= LARGE else DenseCG(single=False))


def anneals_in_single(problem: Problem) -> bool:
    """Whether a float64 problem is annealed in float32: on accelerators, from `SPARSE_FROM` rows on.

    It halves the memory traffic of the annealing and doubles the program, which on a CPU does not pay.
    """
    large = problem.cost.shape[0] >= SPARSE_FROM and accelerator.present()
    return large and problem.cost.dtype == jnp.float64
