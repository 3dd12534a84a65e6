"""The sparse Newton matrix: what it keeps, what it drops, and that it never cuts anything off."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.transport.problem import prepare
from solvers.transport.systems.gibbs_kernel import absorb, empty
from solvers.transport.systems.newton_systems import DenseCG, System
from solvers.transport.systems.sparse_systems import DROPPED, Kept, SparseCG, compressed, default_width

from ..compiled import sns_sinkhorn
from ..conftest import FLOAT, needs_x64


@pytest.fixture(scope="module")
def solved():
    """A kernel near the solution of a problem whose plan is sparse."""
    rng = np.random.default_rng(30)
    x, y = rng.random((60, 2)), rng.random((70, 2))
    cost = jnp.asarray(((x[:, None] - y[None]) ** 2).sum(-1), FLOAT)
    a, b = jnp.full(60, 1 / 60, FLOAT), jnp.full(70, 1 / 70, FLOAT)
    solution = sns_sinkhorn(cost, a, b, epsilon=0.005, tol=1e-3)
    problem = prepare(cost, a, b, jnp.asarray(0.005, FLOAT), jnp.asarray(1e-6, FLOAT))
    return problem, absorb(problem, empty(problem), *solution.reduced, problem.epsilon)


def dense(rows, shape):
    out = np.zeros(shape)
    for i, (index, values) in enumerate(zip(np.asarray(rows.index), np.asarray(rows.values), strict=True)):
        np.add.at(out[i], index, values)
    return out


@pytest.mark.long
def test_keeps_rows_and_columns_alike_and_drops_little_mass(solved):
    problem, kernel = solved
    prepared = SparseCG(70).prepare(problem, kernel)
    assert prepared.fits
    rows, columns = dense(prepared.rows, (60, 70)), dense(prepared.columns, (70, 60))
    np.testing.assert_array_equal(rows, columns.T)
    K, beta = np.asarray(kernel.K.dense()), np.asarray(kernel.beta)
    dropped = np.where(rows == 0, K, 0) * beta
    assert np.all(dropped.sum(1) <= DROPPED * np.asarray(kernel.r))
    assert np.all(dropped.sum(0) <= DROPPED * np.asarray(problem.b))
    assert np.count_nonzero(rows) < 0.9 * rows.size


@pytest.mark.parametrize("width", [70, 8])
def test_direction_equals_the_dense_one(solved, width):
    """With room for all kept entries, and without: then the dense product must have taken over."""
    problem, kernel = solved
    backend = SparseCG(width)
    prepared = backend.prepare(problem, kernel)
    assert bool(prepared.fits) == (width == 70)
    error = jnp.sum(jnp.abs(kernel.r - problem.a))
    system = System.at(problem, kernel, error, 0.0, 1e-3)
    no = jnp.zeros((), bool)
    d, exact = (h.direction(p, problem, kernel, system, no).d for h, p in ((backend, prepared), (DenseCG(), None)))
    d, exact = (np.asarray(x - jnp.sum(kernel.r * x) / jnp.sum(kernel.r)) for x in (d, exact))
    assert np.linalg.norm(d - exact) < 2e-2 * np.linalg.norm(exact)


def test_width_grows_slowly_and_never_beyond_the_row():
    assert default_width(10) == 10
    assert default_width(1000) == 192
    assert default_width(10_000) == 608


@needs_x64
@pytest.mark.parametrize("hessian", ["sparse", "dense"])
@pytest.mark.long
def test_same_answer_whatever_the_backend(hessian):
    rng = np.random.default_rng(31)
    cost = jnp.asarray(rng.random((150, 170)))
    one = sns_sinkhorn(cost, epsilon=0.002, hessian=hessian)
    other = sns_sinkhorn(cost, epsilon=0.002)
    assert one.converged
    assert other.converged
    np.testing.assert_allclose(one.f, other.f, atol=1e-8)
    jax.block_until_ready(one.f)


@pytest.mark.parametrize(("shape", "share"), [((5, 7), 0.5), ((33, 64), 0.3), ((64, 33), 1.0), ((3, 100), 0.0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_kept_entries_are_found_in_their_order(rng, shape, share, axis):
    """Thirty-two to a word, then by ranks: against NumPy, with words that are full, empty and cut off."""
    keep, K = rng.random(shape) < share, rng.random(shape)
    kept = Kept.of(jnp.asarray(keep), axis)
    assert int(kept.longest) == keep.sum(axis).max()
    lines = compressed(kept, jnp.asarray(K, FLOAT), shape[axis], FLOAT, axis)
    wanted = np.where(keep, np.asarray(K, FLOAT), 0)
    wanted = wanted if axis == 1 else wanted.T
    np.testing.assert_array_equal(dense(lines, wanted.shape), wanted)
    for index, mine in zip(np.asarray(lines.index), keep if axis == 1 else keep.T, strict=True):
        np.testing.assert_array_equal(index[: mine.sum()], np.flatnonzero(mine))


def test_kept_entries_follow_scalings_that_are_absorbed(solved, rng):
    problem, kernel = solved
    backend = SparseCG(70)
    alpha, beta = (jnp.asarray(np.exp(rng.standard_normal(n)), FLOAT) for n in (60, 70))
    scaled = eqx.tree_at(lambda k: (k.alpha, k.beta), kernel, (alpha, beta))
    new = backend.rescaled(backend.prepare(problem, kernel), scaled)
    rows, columns = dense(new.rows, (60, 70)), dense(new.columns, (70, 60))
    np.testing.assert_allclose(rows, columns.T, rtol=1e-6)
    P = np.asarray(alpha)[:, None] * np.asarray(kernel.K.dense()) * np.asarray(beta)
    np.testing.assert_allclose(rows[rows > 0], P[rows > 0], rtol=1e-6)
    assert new.fits
