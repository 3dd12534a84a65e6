"""Contract entries of convex networks."""

import jax
import jax.numpy as jnp
import numpy as np

import solvers
from solvers import Status

from .case import Case

GATES = np.random.default_rng(19).standard_normal((6, 2))


def _data(rng, n=8):
    x = np.linspace(-1, 1, n) + 0.05 * rng.standard_normal(n)
    return {"X": np.column_stack([x, np.ones(n)]), "y": np.abs(x) + 0.3 * x, "beta": np.asarray(0.05)}


def _problem(data):
    X = data["X"]
    gates = jnp.asarray(GATES, X.dtype)
    active = gates @ jax.lax.stop_gradient(X).T >= 0
    earlier = jnp.all(active[:, None] == active[None], axis=2) & (jnp.arange(6)[:, None] > jnp.arange(6)[None])
    return solvers.ConvexReLU(X, data["y"], data["beta"], gates, ~jnp.any(earlier, axis=1))


CASES = [
    Case(
        name="train_relu",
        solution=solvers.ConvexReLUSolution,
        make=_data,
        solve=lambda data, **options: solvers.train_relu(_problem(data), **options),
        poison="y",
        warm=lambda data, solution: (data, {"x0": solution}),
        zero=lambda: {**_data(np.random.default_rng(3)), "y": np.zeros(8)},
        single=lambda: {"X": np.array([[0.5, 1.0]]), "y": np.ones(1), "beta": np.asarray(0.05)},
        failing=lambda data: (data, {"tol": jnp.asarray(0, data["y"].dtype), "max_steps": 3}, int(Status.MAX_STEPS)),
        differentiable=("y", "beta"),
        direction=lambda rng, data: {"y": 0.1 * rng.standard_normal(8), "beta": np.asarray(0.01)},
        observe=lambda s: s.objective,
        tol={"float64": 1e-6, "float32": 5e-3},
        exact={"tol": 1e-9},
        orders=1,
        accuracy=1e-5,
    ),
]
