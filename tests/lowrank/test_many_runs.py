"""Ten thousand preconditioned recoveries: no NaN, and nothing called converged that is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import DenseMeasurements, matrix_sensing

from ..conftest import FLOAT

N, P, M, RANK = 6, 5, 60, 4


def lanes(count, seed):
    """Gaussian measurements of matrices of rank 0 to 5: badly conditioned, huge, tiny, noisy, contradictory, few."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((count, M, N, P))
    rank = rng.integers(0, 6, count)
    spread = 10.0 ** -(rng.integers(0, 9, count)[:, None] * np.arange(5) / 4) * (np.arange(5) < rank[:, None])
    X = np.einsum("cnk,ck,cpk->cnp", rng.standard_normal((count, N, 5)), spread, rng.standard_normal((count, P, 5)))
    kind = rng.integers(0, 8, count)
    top = 0.8 * np.log10(float(np.finfo(FLOAT).max))
    A[kind == 1, rng.integers(5, M) :] = 0  # few measurements
    A[kind == 2, 1::2] = A[kind == 2, ::2]  # pairs, which may contradict each other
    A[kind == 3] *= 1e-8
    y = np.einsum("cmnp,cnp->cm", A, X)
    y[kind == 2, 1::2] += 0.1 * rng.standard_normal(((kind == 2).sum(), M // 2))
    y[kind == 4] += 0.01 * rng.standard_normal(((kind == 4).sum(), M))
    y[kind == 5] *= 10.0**top
    y[kind == 6] *= 10.0**-top
    return A, y


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_nan_and_no_false_claim(count):
    A, y = lanes(count, 31)
    A, y = jnp.asarray(A, FLOAT), jnp.asarray(y, FLOAT)

    def one(A, y):
        sol = matrix_sensing(DenseMeasurements(A), y, RANK, max_steps=200)
        return sol.left, sol.right, sol.error, sol.converged

    chunks = jax.tree.map(lambda x: x.reshape(-1, 100, *x.shape[1:]), (A, y))
    found = jax.jit(lambda a, y: jax.lax.map(lambda s: jax.vmap(one)(*s), (a, y)))(*chunks)
    left, right, error, converged = (np.asarray(x).reshape(count, *x.shape[2:]) for x in found)
    assert np.all(np.isfinite(left))
    assert np.all(np.isfinite(right))
    assert np.all(np.isfinite(error))
    size = np.maximum(np.max(np.abs(np.asarray(y, float)), axis=1), np.finfo(float).tiny)
    root = np.sqrt(size)[:, None, None]  # factors near the ends of the range are divided before they are multiplied
    seen = np.einsum("cmnp,cnk,cpk->cm", np.asarray(A, float), left / root, right / root)
    given = np.asarray(y, float) / size[:, None]
    left_over = np.linalg.norm(seen - given, axis=1) / np.maximum(np.linalg.norm(given, axis=1), 1e-300)
    tol = 1e-9 if FLOAT == "float64" else 1e-5
    claimed = converged & (np.max(np.abs(np.asarray(y)), axis=1) > 0)
    assert np.all(left_over[claimed] <= 1.1 * tol)
    assert converged.mean() > 0.3, converged.mean()
