"""Contract entries of low-rank recovery."""

import jax.numpy as jnp
import numpy as np

import solvers

from .case import Case

M, N, P, K = 60, 6, 5, 2


def _sensing_data(rng, shape=(M, N, P, K)):
    m, n, p, k = shape
    return {
        "matrices": rng.standard_normal((m, n, p)),
        "left": rng.standard_normal((n, k)),
        "right": rng.standard_normal((p, k)),
        "noise": np.zeros(m),
    }


def _operator(data):
    return solvers.DenseMeasurements(data["matrices"])


def _measured(data):
    return _operator(data).product(data["left"], data["right"]) + data["noise"]


def _zero():
    data = _sensing_data(np.random.default_rng(23))
    return {**data, "left": np.zeros((N, K)), "right": np.zeros((P, K))}


ROWS, COLS = np.nonzero((np.arange(9)[:, None] * 5 + np.arange(8) * 3) % 7 < 5)


def _ratings(rng):
    X = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 8))
    return {"values": X[ROWS, COLS] + 0.1 * rng.standard_normal(ROWS.size), "ridge": np.asarray(0.4)}


def _complete(data, **options):
    one = data["values"].shape == (1,)
    rows, cols, shape = (ROWS[:1] * 0, ROWS[:1] * 0, (1, 1)) if one else (ROWS, COLS, (9, 8))
    return solvers.complete(
        rows, cols, data["values"], shape, 1 if one else 2, ridge=data["ridge"], **{"max_steps": 1500, **options}
    )


OUTLIERS = np.arange(M) % 5 == 0


def _robust(data, **options):
    y = _measured(data)
    if y.size == M and "clean" not in data:
        y = y + jnp.asarray(50.0 * OUTLIERS, y.dtype)
    return solvers.robust_recovery(_operator(data), y, data["left"].shape[1], **options)


CASES = [
    Case(
        name="robust_recovery",
        solution=solvers.RobustSolution,
        make=_sensing_data,
        solve=_robust,
        poison="left",
        warm=lambda data, solution: (data, {"x0": solution.value}),
        zero=lambda: {**_zero(), "clean": np.zeros(())},
        single=lambda: _sensing_data(np.random.default_rng(24), (1, 1, 1, 1)),
        failing=lambda data: (
            {**data, "noise": jnp.asarray(np.cos(7.0 * np.arange(M) ** 2), data["noise"].dtype)},
            {},
            int(solvers.Status.STAGNATED),
        ),
        differentiable=("left", "right"),
        direction=lambda rng, data: {
            "left": 0.3 * rng.standard_normal((N, K)),
            "right": 0.3 * rng.standard_normal((P, K)),
        },
        observe=lambda s: jnp.sum(jnp.sin(s.matrix)) + s.matrix[0, 1] ** 2,
        tol={"float64": 1e-9, "float32": 2e-5},
    ),
    Case(
        name="complete",
        solution=solvers.CompletionSolution,
        make=_ratings,
        solve=_complete,
        poison="values",
        warm=lambda data, solution: (data, {"x0": solution.value}),
        zero=lambda: {"values": np.zeros(ROWS.size), "ridge": np.asarray(0.4)},
        single=lambda: {"values": np.full(1, 3.0), "ridge": np.asarray(0.4)},
        failing=lambda data: (
            data,
            {"x0": (jnp.zeros((9, 2), data["values"].dtype), jnp.zeros((8, 2), data["values"].dtype))},
            int(solvers.LowRankStatus.STATIONARY),
        ),
        differentiable=("values", "ridge"),
        direction=lambda rng, data: {"values": 0.3 * rng.standard_normal(ROWS.size), "ridge": np.asarray(0.1)},
        observe=lambda s: jnp.sum(jnp.sin(s.matrix)) + s.matrix[0, 1] ** 2,
        tol={"float64": 1e-9, "float32": 2e-5},
    ),
    Case(
        name="matrix_sensing",
        solution=solvers.LowRankSolution,
        make=_sensing_data,
        solve=lambda data, **options: solvers.matrix_sensing(
            _operator(data), _measured(data), data["left"].shape[1], **options
        ),
        poison="left",
        warm=lambda data, solution: (data, {"x0": solution.value}),
        zero=_zero,
        single=lambda: _sensing_data(np.random.default_rng(24), (1, 1, 1, 1)),
        failing=lambda data: (
            {**data, "noise": jnp.where(jnp.arange(M) % 2 == 0, 1, -1).astype(data["noise"].dtype)},
            {},
            int(solvers.LowRankStatus.STATIONARY),
        ),
        differentiable=("left", "right"),
        direction=lambda rng, data: {
            "left": 0.3 * rng.standard_normal((N, K)),
            "right": 0.3 * rng.standard_normal((P, K)),
        },
        observe=lambda s: jnp.sum(jnp.sin(s.matrix)) + s.matrix[0, 1] ** 2,
        tol={"float64": 1e-9, "float32": 2e-5},
    ),
]
