"""Other packages' estimators on the instances of `curvature.py`; what is not installed or fails stays a row."""

import importlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp


def installed(name: str) -> Any:
    """Return the module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def trace_estimators(products: int, n: int) -> dict[str, Callable]:
    """Return ``estimate(matrix, key)`` by name: value, standard error (NaN where none) and degrees of freedom."""
    found: dict[str, Callable] = {}
    if (traceax := installed("traceax")) and (lineax := installed("lineax")):
        for name, half in (("Hutchinson", 1), ("HutchPlusPlus", 1), ("XTrace", 2), ("XNysTrace", 1)):
            method = getattr(traceax, f"{name}Estimator")()
            tags = (lineax.symmetric_tag, lineax.positive_semidefinite_tag)

            def one(a, key, method=method, tags=tags, half=half):
                value, info = method.estimate(key, lineax.MatrixLinearOperator(a, tags), products)
                return value, info.get("std.err", jnp.nan), products / half - 1

            found[f"traceax {name}"] = one
    if matfree := installed("matfree.stochtrace"):
        for name, half in (("xtrace", 2), ("xnystrace", 1)):
            sampler = matfree.sampler_sphere(jnp.zeros(n), num=products // half)
            integrand = getattr(matfree, f"leave_one_out_{name}")()
            estimate = matfree.estimator_leave_one_out_mean_and_sem(integrand, sampler)
            found[f"matfree {name}"] = lambda a, key, e=estimate, half=half: (
                *e(lambda v: a @ v, key), products / half - 1)  # fmt: skip
        sampler = matfree.sampler_signs(jnp.zeros(n), num=products)
        plain = matfree.estimator_monte_carlo_mean_and_sem(matfree.monte_carlo_trace(), sampler)
        found["matfree Hutchinson"] = lambda a, key: (*plain(lambda v: a @ v, key), products - 1)
    return found
