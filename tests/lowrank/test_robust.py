"""Robust recovery, judged by the matrix and by which measurements were wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import DenseMeasurements, Entries, Status
from solvers.problems.lowrank import gaussian

from ..compiled import robust_recovery
from ..conftest import FLOAT

DIM, RANK, COUNT = 20, 3, 600


def instance(share, *, symmetric=True, size=100.0, noise=0.0, seed=4):
    """Gaussian measurements of a matrix of norm one, some replaced: operator, y, X and which."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((DIM, RANK))
    X = left @ (left if symmetric else rng.standard_normal((DIM, RANK))).T
    X = X / np.linalg.norm(X, 2)
    A = rng.standard_normal((COUNT, DIM, DIM))
    y = np.einsum("mij,ij->m", A, X) + noise * rng.standard_normal(COUNT)
    wrong = rng.random(COUNT) < share
    y[wrong] += size * rng.standard_normal(wrong.sum())
    return DenseMeasurements(jnp.asarray(A, FLOAT)), jnp.asarray(y, FLOAT), X, wrong


def relative(found, truth):
    return np.linalg.norm(np.asarray(found, float) - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("rank", [RANK, DIM])
def test_gross_outliers_change_nothing(share, rank):
    """Exact rank and rank over-specified to the dimension: the published method reached 8e-8 and 2e-3."""
    operator, y, X, wrong = instance(share)
    sol = robust_recovery(operator, y, rank, symmetric=True, max_steps=300)
    assert sol.converged
    assert relative(sol.matrix, X) < 20 * sol.tol
    assert (FLOAT == "float64") <= (relative(sol.matrix, X) < 1e-7)
    np.testing.assert_array_equal(~np.asarray(sol.inliers), wrong)


@pytest.mark.parametrize("size", [1e-1, 1e6])
def test_outliers_of_any_size(size):
    operator, y, X, _ = instance(0.25, symmetric=False, size=size)
    sol = robust_recovery(operator, y, RANK)
    assert sol.converged
    assert relative(sol.matrix, X) < 20 * sol.tol


def test_all_outliers_one_way_up():
    operator, y, X, wrong = instance(0.3, symmetric=False)
    y = y + 300 * jnp.asarray(wrong, FLOAT)
    sol = robust_recovery(operator, y, RANK)
    assert sol.converged
    assert relative(sol.matrix, X) < 20 * sol.tol


def test_the_published_steps_are_taken():
    """Against the formula in NumPy, from the same start."""
    operator, y, X, _ = instance(0.2)
    values, vectors = np.linalg.eigh(X)
    U = 0.7 * vectors[:, -RANK:] * np.sqrt(values[-RANK:])
    start = (jnp.asarray(U, FLOAT), jnp.asarray(U, FLOAT))
    sol = robust_recovery(operator, y, RANK, step_rule="geometric", symmetric=True, x0=start, max_steps=1, tol=0.0)
    A, b = np.asarray(operator.matrices, float), np.asarray(y, float)
    D = np.einsum("m,mij->ij", np.sign(np.einsum("mij,ij->m", A, U @ U.T) - b), A) / COUNT
    move, want = U - np.asarray(sol.left, float), (D + D.T) / 2 @ U
    length = np.sum(move * want) / np.sum(want * want)
    assert 0.2 < length < 0.3  # 0.25 over the gain of a measurement, about one
    np.testing.assert_allclose(move, length * want, atol=1e-5)


def test_geometric_steps_recover_too():
    operator, y, X, _ = instance(0.3)
    sol = robust_recovery(operator, y, RANK, symmetric=True, step_rule="geometric", decay=0.992, tol=1e-4,
                          max_steps=3000)  # fmt: skip
    assert sol.converged
    assert relative(sol.matrix, X) < 2e-3


def test_too_many_outliers_and_noise_are_not_called_converged():
    for operator, y, *_ in (instance(0.7), instance(0.2, noise=0.1)):
        sol = robust_recovery(operator, y, RANK, symmetric=True, max_steps=600)
        assert sol.status in (Status.STAGNATED, Status.MAX_STEPS)
        assert sol.error > 1e-3
        assert np.all(np.isfinite(sol.matrix))


def test_noise_is_met_when_asked_for():
    operator, y, X, _ = instance(0.2, noise=0.01)
    sol = robust_recovery(operator, y, RANK, symmetric=True, tol=0.02)
    assert sol.converged
    assert relative(sol.matrix, X) < 0.1


def test_a_picture_with_spoilt_pixels():
    rng = np.random.default_rng(15)
    X = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 35))
    rows, cols = np.nonzero(rng.random(X.shape) < 0.7)
    y = X[rows, cols] + 20 * rng.standard_normal(rows.size) * (rng.random(rows.size) < 0.2)
    operator = Entries(jnp.asarray(rows), jnp.asarray(cols), X.shape)
    sol = robust_recovery(operator, jnp.asarray(y, FLOAT), 2, share=0.7)
    assert sol.converged
    assert relative(sol.matrix, X) < 1e-3


@pytest.mark.parametrize("exponent", [-200, 200])
def test_the_size_of_the_data_does_not_matter(exponent):
    operator, y, X, _ = instance(0.2)
    size = 10.0**exponent if FLOAT == "float64" else 10.0 ** (np.sign(exponent) * 25)
    sol = robust_recovery(operator, y * FLOAT.type(size), RANK, symmetric=True)
    assert sol.converged
    assert relative(np.asarray(sol.matrix, float) / size, X) < 20 * sol.tol


def test_outliers_have_no_derivative():
    operator, y, _X, wrong = instance(0.2)
    g = jax.grad(lambda y: jnp.sum(robust_recovery(operator, y, RANK, symmetric=True).matrix))(y)
    assert np.all(np.asarray(g)[wrong] == 0)
    assert np.all(np.isfinite(g))
    assert np.any(np.asarray(g)[~wrong] != 0)


def test_infinite_and_missing_measurements_end_at_once():
    operator, y, *_ = instance(0.2)
    for bad in (np.nan, np.inf):
        sol = robust_recovery(operator, y.at[3].set(bad), RANK)
        assert sol.status == Status.NONFINITE
        assert sol.num_steps == 0


def test_wrong_arguments_raise():
    operator, y, *_ = instance(0.2)
    for broken in ({"rank": 0}, {"step_rule": "constant"}, {"share": -0.5}, {"y": y[:-1]}):
        with pytest.raises(ValueError, match="robust_recovery: `"):
            robust_recovery(operator, broken.get("y", y), broken.get("rank", 2),
                            **{k: v for k, v in broken.items() if k in ("step_rule", "share")})  # fmt: skip


def test_the_least_rank_that_converges_is_the_rank():
    """An asymmetric matrix of full rank has as many unknowns as a share has measurements: ask for less, and see.

    A rank below the true one meets no share of the data; the true one gives the matrix, with 30 % outliers.
    """
    given = gaussian(6, COUNT, (DIM, DIM), RANK, outliers=0.3)
    operator, y = DenseMeasurements(jnp.asarray(given.matrices, FLOAT)), jnp.asarray(given.values, FLOAT)
    found = [robust_recovery(operator, y, rank, max_steps=400) for rank in (2, 3)]
    assert [bool(sol.converged) for sol in found] == [False, True]
    assert relative(found[-1].matrix, given.truth) < 20 * found[-1].tol
    np.testing.assert_array_equal(~np.asarray(found[-1].inliers), given.wrong)
