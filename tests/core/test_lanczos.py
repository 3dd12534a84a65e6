"""Lanczos against dense eigendecompositions: moments, early ends, bounds, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.core.krylov.lanczos import extreme_ritz, lanczos, ritz_vectors
from solvers.core.precision import matmul

from ..conftest import FLOAT, needs_x64

TOL = {"float64": 1e-11, "float32": 2e-4}[FLOAT.name]


def symmetric(rng, n=30):
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (Q * np.concatenate([np.linspace(-1, 1, n - 2), [4.0, 9.0]])) @ Q.T


def run(A, b, k):
    A = jnp.asarray(A, FLOAT)
    return lanczos(lambda x: matmul(A, x), jnp.asarray(b, FLOAT), k)


def test_the_basis_is_orthonormal_and_gives_the_moments(rng):
    A, b = symmetric(rng), rng.standard_normal(30)
    t = run(A, b, 12)
    basis = np.asarray(t.basis, float)
    np.testing.assert_allclose(basis @ basis.T, np.eye(12), atol=TOL)
    np.testing.assert_allclose(basis @ A @ basis.T, t.matrix(), atol=10 * TOL)
    values, vectors = t.ritz()
    for power in range(12):
        moment = np.linalg.multi_dot([b, np.linalg.matrix_power(A, power), b]) / (b @ b)
        quadrature = np.sum(np.asarray(vectors[0]) ** 2 * np.asarray(values) ** power)
        np.testing.assert_allclose(quadrature, moment, rtol=100 * TOL, atol=100 * TOL * 9.0**power)


def test_an_early_end_is_masked_and_adds_no_eigenvalue(rng):
    A = np.diag([2.0, 2.0, 2.0, 5.0, 7.0])
    t = run(A, np.ones(5), 5)
    assert np.asarray(t.alive).tolist() == [True, True, True, False, False]
    values, vectors = t.ritz()
    weights = np.asarray(vectors[0]) ** 2
    np.testing.assert_allclose(sorted({round(float(v), 3) for v, w in zip(values, weights, strict=True) if w > 1e-6}),
                               [2, 5, 7])  # fmt: skip
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    low, high, _ = extreme_ritz(t)
    np.testing.assert_allclose([low, high], [2, 7], rtol=1e-5)
    assert t.remainder == 0


def test_more_steps_than_unknowns_and_an_eigenvector_as_start(rng):
    A = symmetric(rng, 6)
    t = run(A, rng.standard_normal(6), 9)
    assert int(np.sum(t.alive)) == 6
    low, high, _ = extreme_ritz(t)
    np.testing.assert_allclose([low, high], np.linalg.eigvalsh(A)[[0, -1]], atol=10 * TOL)
    one = run(np.diag([3.0, 1.0]), np.array([1.0, 0.0]), 2)
    assert np.asarray(one.alive).tolist() == [True, False]
    np.testing.assert_allclose(one.diagonal, 3)


def test_bounds_hold_and_ritz_vectors_are_eigenvectors_when_they_are_small(rng):
    A, b = symmetric(rng), rng.standard_normal(30)
    t = run(A, b, 14)
    low, high, bounds = extreme_ritz(t)
    exact = np.linalg.eigvalsh(A)
    assert np.min(np.abs(exact - float(low))) <= bounds[0] + TOL
    assert abs(exact[-1] - float(high)) <= bounds[1] + 10 * TOL
    v = np.asarray(ritz_vectors(t)[-1], float)
    np.testing.assert_allclose(np.linalg.norm(A @ v - float(high) * v), bounds[1], atol=100 * TOL)


def test_scales_do_not_matter(rng):
    A, b = symmetric(rng), rng.standard_normal(30)
    big = 1e150 if FLOAT == "float64" else 1e15
    for factor in (1 / big, big):
        t = run(A * factor, b, 8)
        assert np.all(t.alive)
        np.testing.assert_allclose(np.asarray(t.diagonal) / factor, run(A, b, 8).diagonal, rtol=1e-3, atol=1e-4)


@needs_x64
@pytest.mark.long
def test_the_quadrature_is_differentiable(rng):
    D, b = jnp.asarray(np.diag(rng.random(8) + 1)), jnp.asarray(rng.standard_normal(8))
    A = jnp.asarray(symmetric(rng, 8) / 9)

    def logdet_form(t):
        tri = lanczos(lambda x: (A + t * D + 3 * jnp.eye(8)) @ x, b, 8)
        values, vectors = tri.ritz()
        return jnp.sum(vectors[0] ** 2 * jnp.log(values))

    slope = jax.grad(logdet_form)(0.3)
    forward = jax.jvp(logdet_form, (0.3,), (1.0,))[1]
    difference = (logdet_form(0.3 + 1e-5) - logdet_form(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose([slope, forward], difference, rtol=1e-7)
