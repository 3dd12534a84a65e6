"""The factor of a sliding window against a dense factorisation in NumPy, over many windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.core.linalg.sliding import rank_one_update, slide

from ..conftest import FLOAT

EPS = float(np.finfo(FLOAT).eps)


@pytest.mark.parametrize("m", [1, 2, 9])
def test_a_rank_one_update_is_the_factor_of_the_sum(m):
    rng = np.random.default_rng(5)
    b, x = rng.standard_normal((m, m + 2)), 3 * rng.standard_normal(m)
    a = b @ b.T
    ours = np.asarray(rank_one_update(jnp.asarray(np.linalg.cholesky(a), FLOAT), jnp.asarray(x, FLOAT)))
    truth = np.linalg.cholesky(a + np.outer(x, x))
    assert abs(ours - truth).max() <= 500 * EPS * abs(truth).max()
    assert np.all(np.triu(ours, 1) == 0)


@pytest.mark.parametrize("m", [1, 2, 24])
def test_the_error_of_many_slides_does_not_grow(m):
    """The last 20 windows of 300 are as good as the first 20: entries leave with what rounding did to them."""
    rng = np.random.default_rng(6)
    shift = 1e3 * EPS
    # More rows than unknowns, scaled over four decades: singular without the shift.
    g = rng.standard_normal((300 + m, 7)) * 10 ** rng.uniform(-2, 0, (300 + m, 1))
    gram = lambda rows: rows @ rows.T + shift * np.eye(len(rows))  # noqa: E731
    rows = np.stack([gram(g[t + 1 : t + 1 + m])[-1] for t in range(300)])
    step = lambda f, row: (slide(f, row, jnp.asarray(shift, FLOAT)),) * 2  # noqa: E731
    start = jnp.asarray(np.linalg.cholesky(gram(g[:m])), FLOAT)
    _, factors = jax.jit(lambda s, r: jax.lax.scan(step, s, r))(start, jnp.asarray(rows, FLOAT))
    errors = []
    for t in range(300):
        truth, ours = gram(g[t + 1 : t + 1 + m]), np.asarray(factors[t], np.float64)
        size = np.sqrt(np.diag(truth))
        errors.append(np.max(abs(ours @ ours.T - truth) / np.outer(size, size)))
    assert max(errors) <= 20 * m * EPS
    assert max(errors[-20:]) <= 3 * max(errors[:20]) + 4 * EPS


def test_a_repeated_row_keeps_a_positive_pivot():
    shift = jnp.asarray(4 * EPS, FLOAT)
    row = jnp.ones(6, FLOAT).at[-1].add(shift)
    factor = jnp.linalg.cholesky(jnp.eye(6, dtype=FLOAT) * shift + 1)
    for _ in range(8):
        factor = slide(factor, row, shift)
    assert np.all(np.diagonal(factor) ** 2 >= 0.99 * float(shift))
