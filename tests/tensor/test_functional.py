"""Functional tensors against dense Gaussian algebra in NumPy: sweeps, exact cases, batches, attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Matern, Status, functional_tucker
from solvers.tensor import TensorStatus

from ..conftest import FLOAT, X64, needs_x64

KERNEL = Matern(0.6, 1.5, 1.5)
RANK, N, SIZES = 2, 60, (6, 4, 5)
KEY = jax.random.key(5)


def entries(seed=20, noise=0.2):
    """A tensor of rank two on a grid of uneven points, seen at random entries with repetitions."""
    rng = np.random.default_rng(seed)
    nodes = [np.sort(rng.random(T)) for T in SIZES]
    index = np.stack([rng.integers(0, T, N) for T in SIZES])
    coords = np.stack([t[i] for t, i in zip(nodes, index, strict=True)], 1)
    return coords.astype(FLOAT), (truth(coords) + noise * rng.standard_normal(N)).astype(FLOAT)


def truth(x):
    return np.sin(5 * x[:, 0]) * np.cos(4 * x[:, 1]) * (1 + x[:, 2]) + np.cos(3 * x[:, 0]) * x[:, 1] * x[:, 2]


def fit(coords, y, **options):
    options = {"key": KEY, "noise": 0.04, "max_steps": 1500, "tol": 1e-8 if X64 else 1e-5, **options}
    return functional_tucker(KERNEL, coords, y, RANK, **options)


def dense_sweep(found, coords, y, noise=0.04):
    """One sweep by definition: all of a mode's process at once, all pairs of core entries, entry by entry."""
    mean, cov = (np.asarray(x, float) for x in found.beliefs.factors)
    nodes = [np.unique(c) for c in coords.T]
    index = [np.searchsorted(t, c) for t, c in zip(nodes, coords.T, strict=True)]
    core = found.beliefs.core
    if core is None:
        W, S = np.zeros((RANK,) * 3), np.zeros((RANK,) * 6)
        W[range(RANK), range(RANK), range(RANK)] = 1
    else:
        W = np.asarray(core.mean, float)
        S = np.zeros((RANK,) * 6) if core.cov is None else np.asarray(core.cov, float).reshape((RANK,) * 6)
    C = S + W[..., None, None, None] * W[None, None, None]
    m = [mean[k][index[k]] for k in range(3)]
    M = [cov[k][index[k]] + m[k][:, :, None] * m[k][:, None, :] for k in range(3)]
    new = []
    for k in range(3):
        i, j = (x for x in range(3) if x != k)
        a = np.einsum("rst,ns,nt->nr", np.moveaxis(W, k, 0), m[i], m[j])
        aa = np.einsum("abcdef,nbe,ncf->nad", np.moveaxis(C, (k, 3 + k), (0, 3)), M[i], M[j])
        T = len(nodes[k])
        said, shift = np.zeros((T, RANK, T, RANK)), np.zeros((T, RANK))
        for n, t in enumerate(index[k]):
            said[t, :, t] += aa[n] / noise
            shift[t] += a[n] * y[n] / noise
        gaps = jnp.asarray(np.abs(nodes[k][:, None] - nodes[k][None]), FLOAT)
        prior = np.kron(np.asarray(KERNEL(gaps), float), np.eye(RANK))
        post = np.linalg.solve(np.eye(T * RANK) + prior @ said.reshape(T * RANK, -1), prior)
        mu = (post @ shift.ravel()).reshape(T, RANK)
        var = np.stack([post[t * RANK : (t + 1) * RANK, t * RANK : (t + 1) * RANK] for t in range(T)])
        m[k] = mu[index[k]]
        M[k] = var[index[k]] + m[k][:, :, None] * m[k][:, None, :]
        new.append((mu, var))
    if core is None:
        return new, None
    phi = np.einsum("na,nb,nc->nabc", *m).reshape(N, -1)
    second = np.einsum("nad,nbe,ncf->nabcdef", *M).reshape(N, RANK**3, RANK**3)
    P = np.eye(RANK**3) + second.sum(0) / noise
    return new, (np.linalg.solve(P, phi.T @ y / noise).reshape(W.shape), np.linalg.inv(P))


@pytest.mark.parametrize(
    "options",
    [{"core": "cp"}, {}, pytest.param({"core_solver": "cg"}, marks=pytest.mark.slow)],
    ids=["cp", "tucker", "tucker-cg"],
)
def test_a_sweep_by_definition_leaves_the_answer_alone(options):
    coords, y = entries()
    found = fit(coords, y, **options)
    assert found.converged, found
    new, core = dense_sweep(found, np.asarray(coords, float), np.asarray(y, float))
    tol = 1e-5 if X64 else 2e-2  # the error is of the entries' values; factors move a little more
    for k, (mean, cov) in enumerate(new):
        np.testing.assert_allclose(found.beliefs.factors.mean[k, : len(mean)], mean, atol=tol)
        np.testing.assert_allclose(found.beliefs.factors.cov[k, : len(mean)], cov, atol=tol)
    if core is not None:
        np.testing.assert_allclose(found.beliefs.core.mean, core[0], atol=tol)
        if found.beliefs.core.cov is not None:
            np.testing.assert_allclose(found.beliefs.core.cov, core[1], atol=tol)
    # at the nodes the prediction is what the marginals say, with nothing subtracted
    mean, variance = found.predict(coords)
    W = np.zeros((RANK,) * 3) if core is None else np.asarray(found.beliefs.core.mean, float)
    if core is None:
        W[range(RANK), range(RANK), range(RANK)] = 1
    at = [np.searchsorted(np.unique(c), c) for c in coords.T]
    u = [np.asarray(found.beliefs.factors.mean[k], float)[at[k]] for k in range(3)]
    np.testing.assert_allclose(mean, np.einsum("abc,na,nb,nc->n", W, *u), atol=tol)
    assert np.all(np.asarray(variance) > 0)


@pytest.mark.parametrize("rank", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_one_mode_is_gaussian_process_regression(rank):
    """The conjugate case: exact, in one sweep, and exact in batches, each the prior of the next."""
    rng = np.random.default_rng(6)
    t, at = np.round(rng.random(40), 2), np.append(rng.random(9), [-0.3, 1.4])
    y = np.sin(9 * t) + 0.1 * rng.standard_normal(40)
    cov = lambda a, b: rank * np.asarray(KERNEL(jnp.asarray(np.abs(a[:, None] - b[None]), FLOAT)), float)  # noqa: E731
    S, cross = cov(t, t) + 0.01 * np.eye(40), cov(at, t)
    mean, variance = cross @ np.linalg.solve(S, y), rank * 1.5 - np.sum(cross * np.linalg.solve(S, cross.T).T, 1)
    tol = 1e-9 if X64 else 3e-3
    t, y, at = (jnp.asarray(x, FLOAT) for x in (t, y, at))
    how = {"core": "cp", "noise": 0.01, "key": KEY}
    found = functional_tucker(KERNEL, t[:, None], y, rank, **how)
    assert found.converged
    assert found.num_steps <= 2
    first = functional_tucker(KERNEL, t[:25, None], y[:25], rank, **how)
    second = functional_tucker(KERNEL, t[25:, None], y[25:], rank, prior=first, **how)
    for one in (found, second):
        m, v = one.predict(at[:, None])
        np.testing.assert_allclose(m, mean, atol=tol)
        np.testing.assert_allclose(v, variance, atol=tol)


@pytest.mark.slow
def test_known_in_closed_form_given_the_other_mode():
    """Entries that share one coordinate of mode two: y = u(t) c, c a Gaussian number; c's belief as by hand."""
    rng = np.random.default_rng(7)
    t = np.sort(rng.random(12)).astype(FLOAT)
    coords = np.stack([t, np.full(12, 0.5, FLOAT)], 1)
    y = (2 * np.sin(5 * t)).astype(FLOAT)
    found = functional_tucker(KERNEL, coords, y, 1, key=KEY, core="cp", noise=0.01, tol=1e-9 if X64 else 1e-5)
    u, s = (
        np.asarray(found.beliefs.factors.mean[0, :, 0], float),
        np.asarray(found.beliefs.factors.cov[0, :, 0, 0], float),
    )
    variance = 1 / (1 / 1.5 + np.sum(u**2 + s) / 0.01)
    tol = 1e-6 if X64 else 1e-3
    np.testing.assert_allclose(found.beliefs.factors.cov[1, 0, 0, 0], variance, rtol=100 * tol)
    np.testing.assert_allclose(found.beliefs.factors.mean[1, 0, 0], variance * np.sum(u * y) / 0.01, rtol=tol)


@pytest.mark.slow
def test_intervals_hold_what_they_say_and_noise_is_learned():
    coords, y = entries(noise=0.1)
    found = fit(coords, y, core="cp", noise=None)
    assert found.converged
    rng = np.random.default_rng(8)
    new = rng.random((2000, 3)).astype(FLOAT)
    mean, variance = (np.asarray(x, float) for x in found.predict(new))
    seen = truth(new) + 0.1 * rng.standard_normal(2000)
    inside = np.mean(np.abs(seen - mean) < 1.645 * np.sqrt(variance + float(found.noise)))
    assert 0.8 < inside <= 1.0, inside
    assert 0.005 < found.noise < 0.04
    np.testing.assert_allclose(found.gamma[0] / found.gamma[1] * found.noise, 1, rtol=1e-3)
    far, spread = found.predict(jnp.full((1, 3), 30.0, FLOAT))
    np.testing.assert_allclose(far, 0, atol=1e-4)
    np.testing.assert_allclose(spread, RANK * 1.5**3, rtol=1e-3)


@pytest.mark.slow
def test_batches_add_up():
    """A second batch from elsewhere sharpens what it saw and forgets nothing."""
    coords, y = entries(noise=0.05)
    first = fit(coords[:40], y[:40], core="cp", noise=0.01)
    both = fit(coords[40:], y[40:], core="cp", noise=0.01, prior=first)
    assert both.converged
    error = lambda s: np.sqrt(np.mean((np.asarray(s.predict(coords)[0], float) - truth(coords)) ** 2))  # noqa: E731
    spread = lambda s: np.mean(np.asarray(s.predict(coords)[1], float))  # noqa: E731
    assert error(both) < error(first)
    assert spread(both) < spread(first)


@pytest.mark.slow
def test_order_copies_and_what_was_not_seen_do_not_matter():
    coords, y = entries()
    plain = fit(coords, y, core="cp", noise=0.08)
    order = np.random.default_rng(9).permutation(2 * N)
    seen = order < N
    shuffled, hidden = np.tile(coords, (2, 1))[order], np.where(seen, np.tile(y, 2)[order], np.nan)
    other = fit(shuffled, hidden, core="cp", noise=0.08, observed=seen)
    twice = fit(np.tile(coords, (2, 1)), np.tile(y, 2), core="cp", noise=0.16)
    tol = 1e-6 if X64 else 5e-3
    for found in (other, twice):
        np.testing.assert_allclose(found.predict(coords)[0], plain.predict(coords)[0], atol=tol)
    side = fit(coords, y, core="cp", noise=0.08, method="parallel")
    np.testing.assert_allclose(side.predict(coords)[0], plain.predict(coords)[0], atol=tol)


@pytest.mark.slow
@needs_x64
def test_ranks_that_differ_are_a_smaller_core():
    coords, y = entries()
    found = functional_tucker(KERNEL, coords, y, (2, 1, 2), key=KEY, noise=0.04, tol=1e-8, max_steps=2000)
    assert found.converged
    assert np.all(np.asarray(found.beliefs.factors.cov[1, :, 1]) == 0)
    np.testing.assert_allclose(np.asarray(found.beliefs.core.mean)[:, 1], 0, atol=1e-12)
    assert np.sqrt(np.mean((np.asarray(found.predict(coords)[0]) - truth(coords)) ** 2)) < 0.4


@pytest.mark.slow
def test_plain_sweeps_and_published_ones():
    """Damping and acceleration lead to the same answer; the published messages to one that is more sure of itself."""
    coords, y = entries()
    plain = fit(coords, y, core="cp", acceleration=0)
    fast, slow = fit(coords, y, core="cp"), fit(coords, y, core="cp", acceleration=0, damping=(0.5, 0.9, 0.6))
    assert fast.num_steps < plain.num_steps < slow.num_steps
    tol = 1e-5 if X64 else 1e-2
    for found in (fast, slow):
        np.testing.assert_allclose(found.predict(coords)[0], plain.predict(coords)[0], atol=tol)
    published = fit(coords, y, core="cp", published=True)
    assert published.converged
    assert np.mean(np.asarray(published.predict(coords)[1])) < np.mean(np.asarray(plain.predict(coords)[1]))


def test_failures_say_so():
    coords, y = entries()
    how = {"core": "cp", "max_steps": 50}
    assert fit(coords, y, core="cp", max_steps=2).status == Status.MAX_STEPS
    assert fit(coords, np.where(np.arange(N) == 3, np.nan, y).astype(FLOAT), **how).status == Status.NONFINITE
    assert fit(np.where(coords == coords[3], np.nan, coords).astype(FLOAT), y, **how).status == Status.NONFINITE
    big = np.finfo(FLOAT).max ** 0.7
    assert not fit(coords, (y * big).astype(FLOAT), **how).converged


@pytest.mark.slow
def test_numbers_that_cannot_be_have_a_status_inside_jit():
    coords, y = entries()
    bad = jax.jit(lambda noise, length: functional_tucker(
        Matern(length, 1.5, 1.5), coords, y, RANK, key=KEY, core="cp", noise=noise, max_steps=50).status)  # fmt: skip
    numbers = lambda *x: (jnp.asarray(v, FLOAT) for v in x)  # noqa: E731
    assert bad(*numbers(-0.1, 0.6)) == TensorStatus.IMPROPER
    assert bad(*numbers(0.1, -0.6)) == TensorStatus.IMPROPER
    assert bad(*numbers(np.nan, 0.6)) == Status.NONFINITE


@pytest.mark.slow
@needs_x64
def test_data_that_drown_the_prior_are_not_called_solved():
    """Noise of 1e-17 of the prior's variance leaves no digit of the posterior's."""
    t = np.linspace(0, 1, 10)[:, None]
    found = functional_tucker(KERNEL, t, np.sin(t[:, 0]), 1, key=KEY, core="cp", noise=1e-17)
    assert found.status == TensorStatus.IMPRECISE


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rank": 0}, "rank"), ({"rank": (2, 2)}, "rank"), ({"rank": (1, 2, 2), "core": "cp"}, "rank"),
        ({"core": "tt"}, "core"), ({"key": None}, "key"), ({"damping": 1.0}, "damping"), ({"noise": -1.0}, "noise"),
        ({"kernels": (KERNEL, KERNEL)}, "kernels"), ({"observed": np.ones(3, bool)}, "observed"),
        ({"method": "fast"}, "method"), ({"y": np.ones(4, FLOAT)}, "coords"), ({"x0": 3.0}, "x0"),
        ({"prior": 3.0}, "prior"), ({"core_solver": "lu"}, "core_solver"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, word):
    coords, y = entries()
    given = {"kernels": KERNEL, "coords": coords, "y": y, "rank": RANK, "key": KEY, **change}
    data = [given.pop(name) for name in ("kernels", "coords", "y", "rank")]
    with pytest.raises((ValueError, TypeError), match=f"functional_tucker: `{word}`"):
        functional_tucker(*data, **given)


def test_a_derivative_in_one_number_among_constants():
    """The length's, noise being given: some equations of the fixed point do not depend on it."""
    t = np.linspace(0, 1, 6)
    y = np.sin(5 * t)

    def at_new(length):
        kernel = Matern(length, jnp.ones_like(length), 0.5)
        found = functional_tucker(kernel, t[:, None].astype(FLOAT), y.astype(FLOAT), 1, core="cp", noise=0.01,
                                  key=jax.random.key(5), acceleration=0)  # fmt: skip
        return found.predict(jnp.asarray([[0.37]], FLOAT))[0][0]

    def exact(length):
        k = lambda a, b: np.exp(-np.abs(a[:, None] - b) / length)  # noqa: E731
        return (k(np.array([0.37]), t) @ np.linalg.solve(k(t, t) + 0.01 * np.eye(6), y))[0]

    slope = jax.jit(jax.grad(at_new))(jnp.asarray(0.4, FLOAT))
    difference = (exact(0.4001) - exact(0.3999)) / 0.0002
    np.testing.assert_allclose(slope, difference, rtol=1e-5 if FLOAT == "float64" else 1e-2)
