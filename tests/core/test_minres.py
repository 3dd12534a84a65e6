"""MINRES against dense solves, and its count of steps against the number of distinct eigenvalues."""

import jax.numpy as jnp
import numpy as np

from solvers.core.krylov.minres import minres
from solvers.core.krylov.result import KrylovReason
from solvers.core.precision import matmul

from ..conftest import FLOAT

TOL = {"float64": 1e-10, "float32": 1e-4}[FLOAT.name]


def indefinite(rng, n=12):
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (Q * np.concatenate([-np.linspace(1, 3, n // 2), np.linspace(0.5, 4, n - n // 2)])) @ Q.T


def test_solves_an_indefinite_system_on_a_pytree(rng):
    A, b = indefinite(rng), rng.standard_normal(12)
    A_ = jnp.asarray(A, FLOAT)

    def product(z):
        y = matmul(A_, jnp.concatenate([z["u"], z["v"]]))
        return {"u": y[:5], "v": y[5:]}

    s = minres(product, {"u": jnp.asarray(b[:5], FLOAT), "v": jnp.asarray(b[5:], FLOAT)}, tol=TOL, max_steps=100)
    x = np.concatenate([s.x["u"], s.x["v"]])
    np.testing.assert_allclose(x, np.linalg.solve(A, b), atol=100 * TOL)
    assert s.reason == KrylovReason.CONVERGED
    np.testing.assert_allclose(s.residual, np.linalg.norm(A @ x - b), atol=TOL)


def test_takes_three_steps_with_the_exact_block_preconditioner(rng):
    n, m = 9, 4
    H, G = np.diag(rng.random(n) + 0.5), rng.standard_normal((m, n))
    K = jnp.asarray(np.block([[H, G.T], [G, np.zeros((m, m))]]), FLOAT)
    S = G @ np.linalg.solve(H, G.T)
    P = jnp.asarray(np.linalg.inv(np.block([[H, np.zeros((n, m))], [np.zeros((m, n)), S]])), FLOAT)
    b = jnp.asarray(rng.standard_normal(n + m), FLOAT)
    s = minres(lambda x: matmul(K, x), b, tol=10 * TOL, max_steps=50, precondition=lambda r: matmul(P, r))
    assert s.num_steps <= 3
    np.testing.assert_allclose(s.x, np.linalg.solve(np.asarray(K, float), np.asarray(b, float)), atol=1e3 * TOL)


def test_says_when_it_ran_out_of_steps_and_when_there_was_nothing_to_do(rng):
    A, b = jnp.asarray(indefinite(rng), FLOAT), jnp.asarray(rng.standard_normal(12), FLOAT)
    cut = minres(lambda x: matmul(A, x), b, tol=TOL, max_steps=3)
    assert cut.reason == KrylovReason.MAX_STEPS
    assert cut.num_steps == 3
    assert jnp.linalg.norm(matmul(A, cut.x) - b) < jnp.linalg.norm(b)
    nothing = minres(lambda x: matmul(A, x), jnp.zeros_like(b), tol=TOL, max_steps=3)
    assert nothing.num_steps == 0
    assert nothing.reason == KrylovReason.CONVERGED
