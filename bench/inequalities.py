"""The CUTEst problems with inequalities or bounds: how they are loaded, differentiated and judged."""

import functools
import importlib
import importlib.util
import json
import pathlib
import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import nnls

PROBLEMS = json.loads((pathlib.Path(__file__).parent / "inequality_problems.json").read_text())
"""Module, n, p, q and the number of bounds of each problem of sif2jax with inequalities or bounds and n <= 30.

sif2jax hands inequalities out as CUTEst does, some meant ``>= 0`` and some ``<= 0``, and does not say which. They are
read as ``>= 0``, but as ``<= 0`` where a sixth entry -1 says so: where only that reading has the published optimum, or
where the other has no optimum at all.
"""
INFINITE = 1e19


class Bounded(NamedTuple):
    """A problem on flat vectors; equations and inequalities ``c = 0``, ``g <= 0``."""

    name: str
    f: Any
    constraints: Any
    x0: Any
    lower: Any
    upper: Any
    p: int
    q: int


@functools.cache
def installed() -> pathlib.Path:
    """Return where sif2jax is, found before stubs of its packages stand in for them."""
    found = importlib.util.find_spec("sif2jax")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("pip install sif2jax")
    return pathlib.Path(found.submodule_search_locations[0])


def load(name, module=None) -> Bounded:
    """Return a problem of sif2jax without importing all of it; its module, if it is not one of `PROBLEMS`."""
    module = module or PROBLEMS[name][0]
    entry = PROBLEMS.get(name, ())
    sign = entry[5] if len(entry) > 5 else 1
    root = installed()
    parts = module.split(".")
    for k in range(1, len(parts)):
        package = ".".join(parts[:k])
        if package not in sys.modules:
            stub = types.ModuleType(package)
            stub.__path__ = [str(root.joinpath(*parts[1:k]))]
            sys.modules[package] = stub
    instance = getattr(importlib.import_module(module), name)()
    x0, unravel = ravel_pytree(instance.y0)
    x0 = np.asarray(x0, float)
    bounds = getattr(instance, "bounds", None) or (-np.inf, np.inf)

    def flat(side):
        if np.ndim(side) == 0 and not isinstance(side, tuple | list):
            return np.full(x0.size, float(side))
        like = jax.tree.map(lambda b, y: jnp.broadcast_to(jnp.asarray(b, float), jnp.shape(y)), side, instance.y0)
        return np.asarray(ravel_pytree(like)[0])

    def f(x):
        return jnp.asarray(instance.objective(unravel(x), instance.args), float).reshape(())

    def constraints(x):
        if not hasattr(instance, "constraint"):
            return jnp.zeros(0), jnp.zeros(0)
        parts = (
            jnp.zeros(0) if v is None else ravel_pytree(v)[0].astype(float) for v in instance.constraint(unravel(x))
        )
        c, g = parts
        return c, -sign * g

    lower, upper = (flat(side) for side in bounds)
    lower = np.where(lower <= -INFINITE, -np.inf, lower)
    upper = np.where(upper >= INFINITE, np.inf, upper)
    p, q = (v.shape[0] for v in jax.eval_shape(constraints, x0))
    return Bounded(name, f, constraints, x0, lower, upper, p, q)


class Derivatives(NamedTuple):
    """Jitted values, and first and second derivatives from one linearisation, for solvers that call back."""

    values: Any
    model: Any


def derivatives(problem: Bounded) -> Derivatives:
    """Compile what callbacks need."""

    def values(x):
        return problem.f(x), *problem.constraints(x)

    def model(x, y, z, sigma):
        def gradient(x):
            found, pull = jax.vjp(values, x)
            return pull((sigma, y, z))[0], found

        _, push = jax.linearize(gradient, x)
        H, (df, C, G) = jax.vmap(push)(jnp.eye(x.size))
        return df, C.T, G.T, H

    calls = Derivatives(jax.jit(values), jax.jit(model))
    calls.values(problem.x0)
    calls.model(problem.x0, np.zeros(problem.p), np.zeros(problem.q), 1.0)
    return calls


def fitted(problem: Bounded, calls: Derivatives, x):
    """Return multipliers that suit x best, for solvers that return none or not all of them.

    They minimise the squares of stationarity and complementarity together; those of inequalities are not negative.
    """
    _, _, g = (np.asarray(v) for v in calls.values(x))
    df, C, G, _ = (np.asarray(v) for v in calls.model(x, np.zeros(problem.p), np.zeros(problem.q), 1.0))
    eye, p, q = np.eye(x.size), problem.p, problem.q
    low, high = (np.isfinite(side) & (problem.lower < problem.upper) for side in (problem.lower, problem.upper))
    columns = np.concatenate([C, -C, G, -eye[low], eye[high]]).T
    columns = np.where((problem.lower < problem.upper)[:, None], columns, 0)
    gaps = np.concatenate([np.zeros(2 * p), g, (x - problem.lower)[low], (problem.upper - x)[high]])
    rows = np.concatenate([columns, np.diag(gaps)])
    target = np.concatenate([-np.where(problem.lower < problem.upper, df, 0), np.zeros(gaps.size)])
    if not (np.all(np.isfinite(rows)) and np.all(np.isfinite(target))):
        return np.zeros(p), np.zeros(q), np.zeros(x.size), np.zeros(x.size)
    size = np.maximum(np.linalg.norm(rows, axis=0), 1e-30)
    v = nnls(rows / size, target, maxiter=100 * rows.shape[1] + 100)[0] / size
    zl, zu = np.zeros(x.size), np.zeros(x.size)
    zl[low], zu[high] = v[2 * p + q :][: low.sum()], v[2 * p + q :][low.sum() :]
    return v[:p] - v[p : 2 * p], v[2 * p : 2 * p + q], zl, zu


def judge(problem: Bounded, calls: Derivatives, x, multipliers):
    """Return objective, violation and scaled KKT residual of the problem as posed."""
    x, (y, z, zl, zu) = np.asarray(x, float), (np.asarray(v, float) for v in multipliers)
    f, c, g = (np.asarray(v) for v in calls.values(x))
    df, C, G, _ = (np.asarray(v) for v in calls.model(x, y, z, 1.0))
    free = problem.lower < problem.upper
    r = np.where(free, df + y @ C + z @ G - zl + zu, 0)
    parts = np.concatenate([np.abs(c), g, problem.lower - x, x - problem.upper])
    violation = np.inf if np.any(np.isnan(parts)) else max(0.0, np.max(parts))
    low, high = (np.where(np.isfinite(gap), gap, 0) for gap in (x - problem.lower, problem.upper - x))
    gaps = np.abs(np.concatenate([z * g, np.where(free, zl * low, 0), np.where(free, zu * high, 0)]))
    signs = np.concatenate([z, zl, zu])
    dual = max(100.0, np.mean(np.abs(np.concatenate([y, signs])))) / 100
    rest = max(100.0, np.mean(np.abs(signs))) / 100
    parts = np.array([np.max(np.abs(r)) / dual, max(0.0, -np.min(signs)) / dual, np.max(gaps) / rest])
    kkt = np.inf if np.any(np.isnan(parts)) else np.max(parts)
    return {"f": float(f), "violation": float(violation), "kkt": float(kkt)}
