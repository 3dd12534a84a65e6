"""The Nystrom approximation: exact where the rank suffices, positive whatever the operator, a power of itself."""

import jax
import jax.numpy as jnp
import numpy as np

from solvers.core.linalg.nystrom import nystrom
from solvers.core.precision import matmul

from ..conftest import FLOAT


def test_an_indefinite_matrix_gives_a_positive_approximation():
    H = jnp.asarray(np.diag(np.concatenate([[-5.0, 4.0, 3.0], np.full(17, 0.5)])), FLOAT)
    P = nystrom(lambda v: matmul(H, v), 20, 6, jax.random.key(3), dtype=FLOAT)
    assert P.rest > 0
    assert jnp.all(P.values > 0)
    np.testing.assert_allclose(matmul(P.basis.T, P.basis), np.eye(6), atol=1e-4)


def test_a_matrix_of_low_rank_is_inverted_on_its_range(rng):
    U = np.linalg.qr(rng.standard_normal((30, 5)))[0]
    A = (U * [50.0, 20.0, 9.0, 5.0, 3.0]) @ U.T
    A_ = jnp.asarray(A, FLOAT)
    P = nystrom(lambda v: matmul(A_, v), 30, 8, jax.random.key(3), dtype=FLOAT)
    x = U @ rng.standard_normal(5)
    tol = {"float64": 1e-10, "float32": 2e-4}[FLOAT.name]
    np.testing.assert_allclose(P.values[:5], [50, 20, 9, 5, 3], rtol=tol)
    np.testing.assert_allclose(P.power(jnp.asarray(A @ x, FLOAT), -1.0), x, atol=tol)
    np.testing.assert_allclose(P.power(P.power(jnp.asarray(A @ x, FLOAT), -0.5), -0.5), x, atol=tol)
    other = rng.standard_normal(30)
    other -= U @ (U.T @ other)
    np.testing.assert_allclose(P.power(jnp.asarray(other, FLOAT), 1.0), 3 * other, rtol=1e-3, atol=tol)


def test_zero_is_approximated_by_something_invertible():
    P = nystrom(jnp.zeros_like, 7, 3, jax.random.key(3), dtype=FLOAT)
    assert np.all(np.isfinite(P.power(jnp.ones(7, FLOAT), -1.0)))
