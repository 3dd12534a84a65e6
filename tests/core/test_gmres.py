"""GMRES against dense solves in NumPy, its counts, and every reason to stop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.core.krylov.gmres import gmres
from solvers.core.krylov.result import KrylovReason
from solvers.core.precision import matmul

from ..conftest import FLOAT, X64

N = 12
GOOD = 1e-10 if X64 else 2e-4


@partial(jax.jit, static_argnames="memory")
def solve(matrix, b, tol, max_steps, inverse=None, memory=30):
    def times(m):
        return lambda v: matmul(m, v)

    precondition = None if inverse is None else times(inverse)
    return gmres(times(matrix), b, tol=tol, max_steps=max_steps, precondition=precondition, memory=memory)


def system(rng, shift=6.0):
    """An unsymmetric matrix whose eigenvalues surround `shift`."""
    return jnp.asarray(rng.standard_normal((N, N)) + shift * np.eye(N), FLOAT), jnp.asarray(
        rng.standard_normal(N), FLOAT)  # fmt: skip


def test_against_a_dense_solve_in_at_most_n_steps(rng):
    matrix, b = system(rng, shift=1.0)
    result = solve(matrix, b, GOOD, 100)
    assert int(result.reason) == KrylovReason.CONVERGED
    assert int(result.num_steps) <= N
    truth = np.linalg.solve(np.asarray(matrix, float), np.asarray(b, float))
    np.testing.assert_allclose(result.x, truth, atol=100 * GOOD)
    np.testing.assert_allclose(result.residual, np.linalg.norm(b - matmul(matrix, result.x)), atol=GOOD)


def test_each_step_minimises_the_residual_over_the_krylov_space(rng):
    matrix, b = system(rng)
    a, r = np.asarray(matrix, float), np.asarray(b, float)
    space = [r]
    for k in (1, 2, 3):
        image = a @ np.stack(space, 1)
        best = np.linalg.norm(r - image @ np.linalg.lstsq(image, r, rcond=None)[0])
        result = solve(matrix, b, 0.0, k)
        np.testing.assert_allclose(result.residual, best, rtol=1e-9 if X64 else 1e-4)
        assert int(result.num_steps) == k
        assert int(result.reason) == KrylovReason.MAX_STEPS
        space.append(a @ space[-1])


def test_restarts_go_on_from_where_they_were(rng):
    matrix, b = system(rng, shift=10.0)
    result = solve(matrix, b, GOOD, 200, memory=4)
    assert int(result.reason) == KrylovReason.CONVERGED
    assert int(result.num_steps) > 4
    assert float(np.linalg.norm(b - matmul(matrix, result.x))) <= 2 * GOOD


def test_an_exact_preconditioner_needs_one_step_and_leaves_the_residual_that_of_the_system(rng):
    matrix, b = system(rng)
    result = solve(matrix, b, GOOD, 100, inverse=jnp.linalg.inv(matrix))
    assert int(result.num_steps) == 1
    np.testing.assert_allclose(matmul(matrix, result.x), b, atol=10 * GOOD)


def test_a_singular_system_stagnates_at_its_least_residual():
    matrix = jnp.diag(jnp.asarray([1.0] * (N - 1) + [0.0], FLOAT))
    result = solve(matrix, jnp.ones(N, FLOAT), GOOD, 100)
    assert int(result.reason) == KrylovReason.STAGNATED
    np.testing.assert_allclose(result.residual, 1.0, rtol=1e-5)
    np.testing.assert_allclose(result.x[:-1], 1.0, rtol=1e-5)


@pytest.mark.parametrize(("b", "max_steps", "reason"), [
    (0.0, 100, KrylovReason.CONVERGED), (1.0, 0, KrylovReason.MAX_STEPS),
])  # fmt: skip
def test_nothing_to_do_takes_no_step(rng, b, max_steps, reason):
    result = solve(system(rng)[0], jnp.full(N, b, FLOAT), 1e-6, max_steps)
    assert int(result.num_steps) == 0
    assert int(result.reason) == reason
    np.testing.assert_array_equal(result.x, 0)


def test_nan_ends_and_is_not_called_converged(rng):
    matrix, b = system(rng)
    result = solve(matrix.at[0, 0].set(jnp.nan), b, GOOD, 100)
    assert int(result.reason) != KrylovReason.CONVERGED
    assert int(result.num_steps) <= 30


def test_lanes_are_independent(rng):
    matrix, b = system(rng)
    both = jax.vmap(lambda b: solve(matrix, b, GOOD, 100))(jnp.stack([b, jnp.zeros_like(b), 3 * b]))
    alone = solve(matrix, b, GOOD, 100)
    np.testing.assert_allclose(both.x[0], alone.x, atol=GOOD)
    np.testing.assert_array_equal(both.num_steps[:2], [int(alone.num_steps), 0])
    np.testing.assert_allclose(both.x[2], 3 * alone.x, atol=10 * GOOD)


def test_pytrees():
    b = {"p": jnp.asarray([1.0, 2.0], FLOAT), "q": jnp.asarray([[3.0]], FLOAT)}
    result = gmres(lambda v: jax.tree.map(lambda u: 2 * u, v), b, tol=1e-6, max_steps=5)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(2 * u, v, rtol=1e-5), result.x, b)
    assert int(result.num_steps) == 1
