"""The dense algebra under the KKT solver, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from solvers.constrained.dense import SWEPT, DenseKKT, DenseModel, back_substitute, factorise, product

from ..conftest import FLOAT

RTOL = {"float64": 1e-8, "float32": 1e-2}[FLOAT.name]


@pytest.mark.parametrize("n", [SWEPT - 4, SWEPT + 4], ids=["swept", "factorised"])
def test_a_quasi_definite_system_and_the_sign_of_its_pivots(n, rng):
    m, damping = 4, 1e-2
    M, G = rng.standard_normal((n, n)), rng.standard_normal((m, n))
    K, r = M @ M.T / n + np.eye(n), rng.standard_normal(n + m)
    whole = np.block([[K, G.T], [G, -damping * np.eye(m)]])

    @jax.jit
    def solve(K):
        factor, smallest, dual = factorise(K, jnp.asarray(G, FLOAT), damping)
        return back_substitute(factor, jnp.asarray(r, FLOAT), n), smallest, dual

    z, smallest, dual = solve(jnp.asarray(K, FLOAT))
    np.testing.assert_allclose(z, np.linalg.solve(whole, r), rtol=RTOL, atol=RTOL)
    np.testing.assert_allclose(smallest, np.min(np.diagonal(np.linalg.cholesky(K))) ** 2, rtol=RTOL)
    complement = G @ np.linalg.solve(K, G.T) + damping * np.eye(m)
    np.testing.assert_allclose(dual, np.min(np.diagonal(np.linalg.cholesky(complement))) ** 2, rtol=RTOL)
    assert not solve(jnp.asarray(K - 3 * np.outer(M[0], M[0]), FLOAT))[1] > 0


def test_a_violation_along_a_short_column_is_not_at_its_minimum():
    """Relative to the whole of G its gradient is eps^0.7: no evidence that nothing nearby violates less."""
    large = float(np.finfo(FLOAT).eps) ** -0.7
    G, c = jnp.asarray(np.diag([large, 1.0]), FLOAT), jnp.asarray([0.0, 2.0], FLOAT)
    says = lambda G: DenseKKT().at_minimum(DenseModel(jnp.zeros((2, 2), FLOAT), G), c, jnp.zeros(2, FLOAT))  # noqa: E731
    assert not says(G)
    assert says(G.at[1, 1].set(0))


def test_what_accelerators_compute_for_small_products(monkeypatch, rng):
    A, B = rng.standard_normal((5, 7)), rng.standard_normal((7, 3))
    monkeypatch.setattr(lax, "platform_dependent", lambda *operands, cpu, default: default(*operands))
    for right in (B, B[:, 0]):
        got = product(jnp.asarray(A, FLOAT), jnp.asarray(right, FLOAT))
        np.testing.assert_allclose(got, A @ right, rtol=RTOL, atol=RTOL)
