"""Hundreds of damaged sparse problems: no lane of a variational solver says more than is true."""

import jax
import numpy as np
import pytest

from solvers import InverseStatus, Status, admm, pgd
from solvers.core.operators import MatrixOperator
from solvers.core.prox import L1

from ..conftest import FLOAT
from ..test_fuzz import damaged, generators, stacked

LANES, TOL = 384, 1e-6 if FLOAT == "float64" else 1e-4


def data(rng):
    matrix = rng.standard_normal((6, 4))
    return {"matrix": matrix, "y": matrix @ np.array([1.0, 0, -2, 0]) + 0.1 * rng.standard_normal(6),
            "weight": np.array(0.3)}  # fmt: skip


def misses(lane, x):
    """Return how far x is from optimal, relative to the two forces that have to cancel; NaN where doubles overflow."""
    matrix, y, weight = (np.asarray(np.asarray(lane[k], FLOAT), float) for k in ("matrix", "y", "weight"))
    with np.errstate(all="ignore"):
        gradient, back = matrix.T @ (matrix @ x - y), matrix.T @ y
        left = np.where(x != 0, gradient + weight * np.sign(x), np.maximum(np.abs(gradient) - weight, 0))
        size = max(np.linalg.norm(gradient), np.linalg.norm(back) / 100)
        # what single precision cannot know: rounding of products with the matrix
        floor = 16 * np.finfo(FLOAT).eps * np.linalg.norm(np.abs(matrix).T @ (np.abs(matrix) @ np.abs(x) + np.abs(y)))
        return max(np.linalg.norm(left) - floor, 0) / size if size > 0 else np.linalg.norm(left)


@pytest.mark.parametrize("name", ["admm", "pgd"])
def test_no_lane_says_more_than_is_true(name):
    solve = {"admm": admm, "pgd": pgd}[name]

    @jax.jit
    @jax.vmap
    def run(d):
        found = solve(MatrixOperator(d["matrix"]), d["y"], L1(d["weight"]), tol=TOL, max_steps=400)
        return found.value, found.status

    for rng in generators(29, LANES):
        kinds, lanes = map(np.array, zip(*damaged(data, LANES, rng), strict=True))
        judge(kinds, lanes, *jax.device_get(run(stacked(lanes))))


def judge(kinds, lanes, value, status):
    good = status == Status.CONVERGED
    assert set(np.unique(status)) <= {int(s) for s in (*Status, *InverseStatus)}
    missing = np.array([any(np.isnan(x).any() for x in lane.values()) for lane in lanes])
    assert np.all(good[kinds == "none"])
    assert not np.any(good & missing)
    assert np.all(np.isfinite(value[good]))
    judged = 0
    for i in np.flatnonzero(good):
        if not lanes[i]["weight"] >= 0:
            continue  # a negative weight has no minimum; what L1 makes of it is its own affair
        found = misses(lanes[i], np.asarray(value[i], float))
        if np.isfinite(found):
            judged += 1
            assert found <= 20 * TOL, (kinds[i], lanes[i], value[i])
    assert judged > LANES / 2
