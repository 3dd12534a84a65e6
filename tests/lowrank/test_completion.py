"""Completion, against closed forms, dense gradients in NumPy, and the matrix the entries came from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import solvers
from solvers import LowRankStatus, Status

from ..compiled import complete
from ..conftest import FLOAT, needs_x64

N, P, R = 60, 50, 3
EPS = float(np.finfo(FLOAT).eps)
METHODS = ("als_cg", "als_exact", "sketched", "scaled_gd")


def array(x):
    return jnp.asarray(x, FLOAT)


def instance(rng, share=0.5, shape=(N, P), rank=R, noise=0.0, offset=0.0):
    """A matrix of that rank, where its entries were seen, as many of them in each, and what was seen."""
    X = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1])) + offset
    rows, cols = np.unravel_index(np.sort(rng.permutation(X.size)[: int(share * X.size)]), shape)
    return X, rows, cols, X[rows, cols] + noise * rng.standard_normal(rows.size)


def relative(found, truth):
    return np.linalg.norm(np.asarray(found, float) - truth) / np.linalg.norm(truth)


def everything(X):
    rows, cols = (x.ravel() for x in np.indices(X.shape))
    return rows, cols, array(X.ravel())


@needs_x64
def test_forty_half_steps_give_twelve_digits():
    """400 x 400, rank 5, 15 % of the entries: 20 sweeps of two warm conjugate-gradient steps a half."""
    X, rows, cols, values = instance(np.random.default_rng(7), 0.15, (400, 400), 5)
    sol = complete(rows, cols, array(values), (400, 400), 5, tol=1e-13, max_steps=20)
    assert relative(sol.matrix, X) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_the_matrix_comes_back(rng, method):
    X, rows, cols, values = instance(rng)
    sol = complete(rows, cols, array(values), (N, P), R, method=method)
    assert sol.converged
    assert relative(sol.matrix, X) < 20 * sol.tol
    np.testing.assert_allclose(sol.predict(jnp.arange(5), jnp.arange(5)), np.diag(sol.matrix)[:5], rtol=1e-4, atol=1e-4)
    seen = np.asarray(sol.matrix, float)[rows, cols] - values
    assert np.isclose(np.linalg.norm(seen) / np.linalg.norm(values), sol.residual, rtol=1e-2, atol=20 * EPS)


@pytest.mark.parametrize("ridge", [0.0, 3.0, 12.0, 1e4])
@pytest.mark.parametrize("method", METHODS)
def test_with_all_entries_singular_values_lose_the_ridge(method, ridge):
    """The closed form: the leading singular values, less the ridge, down to zero."""
    X = instance(np.random.default_rng(21), noise=0.5)[0] + np.random.default_rng(5).standard_normal((N, P))
    u, s, vt = np.linalg.svd(X)
    want = (u[:, :R] * np.maximum(s[:R] - ridge, 0)) @ vt[:R]
    sol = complete(*everything(X), (N, P), R, ridge=array(ridge), method=method, max_steps=1000)
    assert sol.converged
    np.testing.assert_allclose(sol.matrix, want, atol=2e3 * sol.tol)
    np.testing.assert_allclose(sol.singular_values, np.maximum(s[:R] - ridge, 0), atol=2e3 * sol.tol)


def dense_gradient(sol, rows, cols, values, ridge, by_count):
    """The four gradients of the penalised problem, written out."""
    F, G, a, c = (np.asarray(x, float) for x in (sol.left, sol.right, sol.row_bias, sol.col_bias))
    R = np.zeros((N, P))
    np.add.at(R, (rows, cols), (F[rows] * G[cols]).sum(1) + a[rows] + c[cols] + values.mean() - values)
    n, p = (np.bincount(x, minlength=m) if by_count else np.ones(m) for x, m in ((rows, N), (cols, P)))
    parts = [R @ G + ridge * n[:, None] * F, R.T @ F + ridge * p[:, None] * G, R.sum(1) + ridge * n * a,
             R.sum(0) + ridge * p * c]  # fmt: skip
    return max(np.linalg.norm(x) for x in parts) / np.linalg.norm(values) / np.linalg.norm(F)


@pytest.mark.parametrize("by_count", [False, True])
@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.long
def test_biases_and_counted_ridges_end_where_the_gradient_does(rng, method, by_count):
    _X, rows, cols, values = instance(rng, 0.6, noise=0.3, offset=3.0)
    ridge = 0.05 if by_count else 1.5
    sol = complete(rows, cols, array(values), (N, P), R, ridge=ridge, biases=True, ridge_by_count=by_count,
                   method=method)  # fmt: skip
    assert sol.converged
    assert sol.num_steps < 60
    assert np.isclose(sol.mean, values.mean(), rtol=1e-5)
    assert dense_gradient(sol, rows, cols, values, ridge, by_count) < 5 * sol.tol
    np.testing.assert_allclose(np.asarray(sol.matrix)[rows, cols], sol.predict(rows, cols), rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_counted_ridges_without_biases(rng):
    _X, rows, cols, values = instance(rng, 0.6, noise=0.3)
    values = values - values.mean()
    sol = complete(rows, cols, array(values), (N, P), R, ridge=0.05, ridge_by_count=True)
    assert sol.converged
    flat = sol.left.T @ (np.bincount(rows, minlength=N)[:, None].astype(FLOAT) * sol.left)
    other = sol.right.T @ (np.bincount(cols, minlength=P)[:, None].astype(FLOAT) * sol.right)
    np.testing.assert_allclose(flat, other, rtol=1e-3, atol=1e-3 * float(flat[0, 0]))


@pytest.mark.long
def test_order_padding_and_repetition(rng):
    X, rows, cols, values = instance(rng, noise=0.2)
    mixed = rng.permutation(rows.size)
    plain = complete(rows, cols, array(values), (N, P), R, ridge=1.0)
    again = complete(rows[mixed], cols[mixed], array(values[mixed]), (N, P), R, ridge=1.0)
    np.testing.assert_allclose(plain.matrix, again.matrix, atol=1e3 * plain.tol)
    padded = complete(np.append(rows, [-1, 3, -1]), np.append(cols, [2, -1, -1]),
                      jnp.append(array(values), array([7.0, np.nan, np.inf])), (N, P), R, ridge=1.0)  # fmt: skip
    assert padded.converged
    np.testing.assert_allclose(plain.matrix, padded.matrix, atol=1e3 * plain.tol)
    twice = complete(np.tile(rows, 2), np.tile(cols, 2), jnp.tile(array(values), 2), (N, P), R, ridge=2.0)
    np.testing.assert_allclose(plain.matrix, twice.matrix, atol=1e3 * plain.tol)
    del X


@pytest.mark.parametrize("method", ["als_cg", "sketched"])
@pytest.mark.long
def test_entries_split_over_devices(rng, method):
    X, rows, cols, values = instance(rng)
    spare = -rows.size % 4
    rows, cols = (np.append(x, np.full(spare, -1)) for x in (rows, cols))
    values = jnp.append(array(values), jnp.zeros(spare, FLOAT))
    mesh = Mesh(np.array(jax.devices()[:4]), ("entries",))
    split = PartitionSpec("entries")

    def share(rows, cols, values):
        return complete(rows, cols, values, (N, P), R, method=method, axis="entries")

    solve = jax.jit(jax.shard_map(share, mesh=mesh, in_specs=split, out_specs=PartitionSpec(), check_vma=False))
    sol = solve(jnp.asarray(rows), jnp.asarray(cols), values)
    assert sol.converged
    assert relative(sol.matrix, X) < 20 * sol.tol
    whole = complete(rows, cols, values, (N, P), R)
    assert np.isclose(sol.singular_values[0], whole.singular_values[0], rtol=1e-4)


@pytest.mark.long
def test_large_sums_are_taken_block_by_block(rng, monkeypatch):
    from solvers.lowrank import sides

    X, rows, cols, values = instance(rng, 0.45)  # a size of its own: what was traced for another one knows nothing
    monkeypatch.setattr(sides, "BLOCK", 1000)
    for method in METHODS:
        sol = complete(rows, cols, array(values), (N, P), R, method=method)
        assert sol.converged
        assert relative(sol.matrix, X) < 20 * sol.tol


@pytest.mark.parametrize("exponent", [-250, -30, 30, 250])
def test_the_size_of_the_data_does_not_matter(rng, exponent):
    X, rows, cols, values = instance(rng)
    size = 10.0**exponent if FLOAT == "float64" else 10.0 ** (np.sign(exponent) * 28)
    sol = complete(rows, cols, array(values) * FLOAT.type(size), (N, P), R)
    assert sol.converged
    assert relative(np.asarray(sol.matrix, float) / size, X) < 20 * sol.tol
    with_ridge = complete(rows, cols, array(values) * FLOAT.type(size), (N, P), R, ridge=array(size))
    plain = complete(rows, cols, array(values), (N, P), R, ridge=array(1))
    assert with_ridge.converged
    np.testing.assert_allclose(np.asarray(with_ridge.matrix, float) / size, plain.matrix, atol=1e3 * sol.tol)


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.long
def test_a_rank_too_many_needs_a_ridge(rng, method):
    """Without one a row may get anything where it was not seen, at one rank more: the entries fit, and that is all."""
    X, rows, cols, values = instance(rng, 0.7)
    free = complete(rows, cols, array(values), (N, P), R + 2, method=method, max_steps=2000)
    assert free.converged
    assert free.residual < 20 * free.tol
    held = complete(rows, cols, array(values), (N, P), R + 2, method=method, max_steps=2000, ridge=1e-2)
    assert held.converged
    assert relative(held.matrix, X) < 2e-3
    assert held.singular_values[R] < 1e-3 * held.singular_values[0]


def test_noise_without_ridge_is_the_least_squares_fit(rng):
    """No small change of the factors fits better, and the residual is that of the noise."""
    _X, rows, cols, values = instance(rng, noise=0.3)
    sol = complete(rows, cols, array(values), (N, P), R)
    assert sol.converged
    F, G = (np.asarray(x, float) for x in sol.value)
    fit = lambda F, G: np.linalg.norm((F[rows] * G[cols]).sum(1) - values)  # noqa: E731
    for _ in range(5):
        d, e = 1e-2 * rng.standard_normal(F.shape), 1e-2 * rng.standard_normal(G.shape)
        assert fit(F + d, G + e) > fit(F, G)


def test_rows_without_entries_are_zero(rng):
    _X, rows, cols, values = instance(rng)
    sol = complete(np.where(rows == 4, -1, rows), cols, array(values), (N, P), R)
    assert sol.converged
    assert np.max(np.abs(sol.matrix[4])) < 1e-5 * np.max(np.abs(sol.matrix))


def test_too_few_entries_match_without_being_right(rng):
    """What converges is the fit: with 2 entries a row of rank 3, another matrix fits as well."""
    X, rows, cols, values = instance(rng)
    few = rng.integers(0, P, 2 * N)
    rows[: 2 * N], cols[: 2 * N], rows[2 * N :] = np.repeat(np.arange(N), 2), few, -1
    values[: 2 * N] = X[rows[: 2 * N], few]
    sol = complete(rows, cols, array(values), (N, P), R, max_steps=3000)
    if sol.converged:
        assert sol.residual < 1e-2
    assert relative(sol.matrix, X) > 0.1


@pytest.mark.long
def test_a_start_at_the_saddle_is_not_an_answer(rng):
    _X, rows, cols, values = instance(rng)
    zero = (jnp.zeros((N, R), FLOAT), jnp.zeros((P, R), FLOAT))
    sol = complete(rows, cols, array(values), (N, P), R, ridge=1.0, x0=zero)
    assert sol.status == LowRankStatus.STATIONARY
    assert complete(rows, cols, array(values), (N, P), R, ridge=1e6, x0=zero).converged


def test_infinite_values_end_at_once(rng):
    _X, rows, cols, values = instance(rng)
    values[3] = np.inf
    sol = complete(rows, cols, array(values), (N, P), R)
    assert sol.status == Status.NONFINITE
    assert sol.num_steps == 0


@pytest.mark.long
def test_the_sketch_keeps_up_where_columns_differ_in_length():
    """They make the rows' least-squares problems ill-conditioned; no claim that it is ahead there."""
    rng = np.random.default_rng(12)
    X = (rng.standard_normal((200, 8)) * np.geomspace(1, 1e-2, 8)) @ rng.standard_normal((8, 150))
    X = X * np.geomspace(1, 1e-2, 150)[rng.permutation(150)]
    rows, cols = np.nonzero(rng.random(X.shape) < 0.5)
    steps = {m: int(complete(rows, cols, array(X[rows, cols]), X.shape, 8, method=m, tol=1e-4).num_steps)
             for m in ("als_cg", "sketched", "als_exact")}  # fmt: skip
    assert steps["sketched"] <= 1.5 * steps["als_cg"] + 2, steps


@pytest.mark.parametrize("broken", [
    lambda r, c, v: complete(r, c[:-1], v, (N, P), R),
    lambda r, c, v: solvers.complete(r, c, v, (N, P - 1), R),
    lambda r, c, v: complete(r, c, v, (N, P), P + 1),
    lambda r, c, v: complete(r, c, v, (N, P), 0),
    lambda r, c, v: complete(r, c, v, (N, P), R, method="svd"),
    lambda r, c, v: complete(r, c, v, (N, P), R, biases=True),
    lambda r, c, v: complete(r, c, v, (N, P), R, inner_steps=0),
    lambda r, c, v: complete(r, c, v[:, None], (N, P), R),
    lambda r, c, v: complete(r, c, v, (N, P), R, x0=(jnp.zeros((N, 1)), jnp.zeros((P, 1)))),
    lambda r, c, v: complete(r[:0], c[:0], v[:0], (N, P), R),
])  # fmt: skip
def test_wrong_arguments_raise(rng, broken):
    _X, rows, cols, values = instance(rng)
    rows, cols, values = np.append(rows, N - 1), np.append(cols, P - 1), np.append(values, 1.0)
    with pytest.raises(ValueError, match="complete: `"):
        broken(rows, cols, array(values))


def test_places_known_while_tracing_are_constants():
    """Closed over by a function that is compiled, they are checked all the same."""
    places, values = jnp.arange(4), jnp.ones(4, FLOAT)
    jax.eval_shape(lambda v: solvers.complete(places, places, v, (4, 4), 1), values)
    with pytest.raises(ValueError, match="below 3"):
        jax.eval_shape(lambda v: solvers.complete(places, places, v, (3, 4), 1), values)
