"""Contract entries of structured tensors."""

import jax
import jax.numpy as jnp
import numpy as np

import solvers

from .case import Case

N = 10


def _data(rng, shape=(N, 2)):
    coords = (rng.permuted(np.tile(np.arange(shape[0]), (shape[1], 1)), axis=1).T + rng.random(shape)) / shape[0]
    y = 2 * np.sin(4 * coords[:, 0] + 0.5) * np.cos(coords.sum(1) - coords[:, 0]) + 0.1 * rng.standard_normal(shape[0])
    return {"coords": coords, "y": y, "noise": np.asarray(0.1), "length": np.asarray(0.5)}


def _solve(data, **options):
    kernel = solvers.Matern(data["length"], jnp.ones_like(data["length"]), 0.5)
    rest = {"core": "cp", "noise": data["noise"], "key": jax.random.key(5), **options}
    return solvers.functional_tucker(kernel, data["coords"], data["y"], 1, **rest)


CASES = [
    Case(
        name="functional_tucker",
        solution=solvers.FunctionalTucker,
        make=_data,
        solve=_solve,
        poison="y",
        warm=lambda data, solution: (data, {"x0": solution.value}),
        zero=lambda: {**_data(np.random.default_rng(23)), "y": np.zeros(N)},
        single=lambda: _data(np.random.default_rng(24), (1, 1)),
        failing=lambda data: ({**data, "noise": -data["noise"]}, {}, int(solvers.TensorStatus.IMPROPER)),
        differentiable=("coords", "y", "noise", "length"),
        direction=lambda rng, data: {
            "coords": 0.01 * rng.standard_normal((N, 2)),
            "y": rng.standard_normal(N),
            "noise": np.asarray(0.02),
            "length": np.asarray(0.1),
        },
        observe=lambda s: jnp.sum(jnp.sin(s.beliefs.factors.mean)) + jnp.sum(s.beliefs.factors.cov),
        tol={"float64": 1e-6, "float32": 1e-4},
        exact={"tol": 1e-13},
        orders=1,
    ),
]
