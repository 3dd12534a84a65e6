"""Kernels as differential equations, filters and smoothers, against dense Gaussian algebra in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import gammainc

import solvers
from solvers import GaussianStatus, LinearGaussian, Matern, PeriodicKernel, SolveError, SquaredExponential, to_sde
from solvers.core.gaussian.sde import lower_gamma

from ..compiled import gp_regression, kalman_filter, kalman_smoother
from ..conftest import FLOAT, X64, needs_x64

TOL = 1e-10 if X64 else 3e-4
HOW = [(f, m) for f in ("covariance", "square_root") for m in ("sequential", "parallel")]
T, N, P = 23, 3, 2


@partial(jax.jit, static_argnames=("form", "method", "block"))
def smooth(model, y, observed, *, form="covariance", method="sequential", block=None):
    return kalman_smoother(model, y, observed=observed, form=form, method=method, block=block)


@partial(jax.jit, static_argnames=("form", "method"))
def filtered(model, y, observed, *, form="covariance", method="sequential"):
    return kalman_filter(model, y, observed=observed, form=form, method=method)


@partial(jax.jit, static_argnames=("form", "method", "harmonics"))
def regress(kernel, t, y, noise, at=None, observed=None, *, form="covariance", method="sequential", harmonics=12):
    return gp_regression(kernel, t, y, noise, at=at, observed=observed, form=form, method=method, harmonics=harmonics)


@jax.jit
def parts_of(kernel, d):
    """All that a kernel's equation says, in one program."""
    sde = to_sde(kernel)
    return (*sde.transition(d), sde.stationary(), sde.observation(), sde.missing_variance(), kernel(d))


gamma = jax.jit(lower_gamma, static_argnums=0)


def model_of(seed=20, dtype=FLOAT):
    rng = np.random.default_rng(seed)

    def positive(*shape):
        X = rng.standard_normal((*shape, shape[-1]))
        return X @ np.swapaxes(X, -1, -2) + 0.1 * np.eye(shape[-1])

    arrays = {
        "A": 0.5 * rng.standard_normal((T - 1, N, N)),
        "Q": positive(T - 1, N),
        "H": rng.standard_normal((T, P, N)),
        "R": positive(P),
        "mean": rng.standard_normal(N),
        "covariance": positive(N),
        "b": rng.standard_normal(N),
        "c": rng.standard_normal((T, P)),
    }
    y, seen = rng.standard_normal((T, P)), rng.random((T, P)) > 0.4
    return (
        LinearGaussian(**{k: jnp.asarray(v, dtype) for k, v in arrays.items()}),
        jnp.asarray(y, dtype),
        jnp.asarray(seen),
    )


def dense(model, y, seen, upto=None):
    """Mean and covariance of all states and the log-likelihood, from one Gaussian of T n numbers."""
    parts = (model.A, model.Q, model.H, model.R, model.mean, model.covariance, model.b, model.c)
    A, Q, H, R, m0, P0, b, c = (np.asarray(x, float) for x in parts)
    forward, noise, start = np.eye(T * N), np.zeros((T * N, T * N)), np.zeros(T * N)
    see = np.zeros((T * P, T * N))
    cut = [slice(k * N, (k + 1) * N) for k in range(T)]
    for k in range(T):
        noise[cut[k], cut[k]] = P0 if k == 0 else Q[k - 1]
        start[cut[k]] = m0 if k == 0 else b
        if k:
            forward[cut[k], cut[k - 1]] = -A[k - 1]
        see[k * P : (k + 1) * P, cut[k]] = H[k]
    inverse = np.linalg.inv(forward)
    mean, cov = inverse @ start, inverse @ noise @ inverse.T
    kept = np.asarray(seen).copy()
    if upto is not None:
        kept[upto + 1 :] = False
    kept = kept.ravel()
    see, noise_y = see[kept], np.kron(np.eye(T), R)[np.ix_(kept, kept)]
    v = (np.asarray(y, float) - c).ravel()[kept] - see @ mean
    S = see @ cov @ see.T + noise_y
    gain = np.linalg.solve(S, see @ cov).T
    log = -0.5 * (v @ np.linalg.solve(S, v) + np.linalg.slogdet(S)[1] + len(v) * np.log(2 * np.pi))
    mean, cov = mean + gain @ v, cov - gain @ S @ gain.T
    return mean.reshape(T, N), np.stack([cov[c, c] for c in cut]), log


@pytest.mark.parametrize(("form", "method"), HOW)
def test_smoother_is_dense_conditioning(form, method):
    model, y, seen = model_of()
    y = jnp.where(seen, y, jnp.nan)  # what was not seen does not matter
    found = smooth(model, y, seen, form=form, method=method)
    mean, cov, log = dense(model, jnp.where(seen, y, 0), seen)
    np.testing.assert_allclose(found.mean, mean, atol=TOL, rtol=TOL)
    np.testing.assert_allclose(found.covariance, cov, atol=TOL, rtol=TOL)
    np.testing.assert_allclose(found.log_likelihood, log, rtol=TOL)
    assert found.check() is found


@pytest.mark.parametrize(("form", "method"), HOW)
def test_filter_is_dense_conditioning_on_the_past(form, method):
    model, y, seen = model_of()
    found = filtered(model, y, seen, form=form, method=method)
    for k in (0, 7, T - 1):
        mean, cov, _ = dense(model, y, seen, k)
        np.testing.assert_allclose(found.mean[k], mean[k], atol=TOL, rtol=TOL)
        np.testing.assert_allclose(found.covariance[k], cov[k], atol=TOL, rtol=TOL)


@pytest.mark.parametrize("block", [1, 5, 23, 100])
def test_blocks_of_any_length(block):
    model, y, seen = model_of()
    found = smooth(model, y, seen, method="parallel", block=block)
    np.testing.assert_allclose(found.mean, dense(model, y, seen)[0], atol=TOL, rtol=TOL)


def test_many_blocks_go_in_groups():
    """More blocks than go one after the other, the last group not full: what one step after another gives."""
    rng = np.random.default_rng(9)
    t, y = np.sort(rng.random(611)) * 20, rng.standard_normal(611)
    data = [jnp.asarray(x, FLOAT) for x in (t, y, 0.3)]
    seen = jnp.asarray(rng.random(611) > 0.4)
    one, groups = (
        jax.jit(lambda t, y, r, how=how: gp_regression(KERNELS["matern32"], t, y, r, observed=seen, **how))(*data)
        for how in ({}, {"method": "parallel", "block": 1})
    )
    for name in ("mean", "variance", "log_likelihood"):
        np.testing.assert_allclose(getattr(groups, name), getattr(one, name), rtol=TOL, atol=TOL)
    assert groups.converged


def test_lanes_are_alone_and_a_nan_stays_in_its_own():
    models, ys, seens = zip(*(model_of(20 + i) for i in range(3)), strict=True)
    stack = lambda x: jax.tree.map(lambda *v: jnp.stack(v), *x)  # noqa: E731
    seen = jnp.ones_like(stack(seens))
    many = jax.jit(jax.vmap(lambda m, y, s: kalman_smoother(m, y, observed=s, method="parallel")))
    clean = many(stack(models), stack(ys), seen)
    hit = many(stack(models), stack(ys).at[1, 4, 0].set(jnp.nan), seen)
    np.testing.assert_array_equal(hit.status, [0, GaussianStatus.NONFINITE, 0])
    np.testing.assert_array_equal(clean.mean[::2], hit.mean[::2])
    np.testing.assert_allclose(clean.mean[1], smooth(models[1], ys[1], seen[1]).mean, atol=TOL, rtol=TOL)
    with pytest.raises(SolveError, match="nonfinite"):
        hit.check()


@needs_x64
@pytest.mark.parametrize("method", ["sequential", "parallel"])
@pytest.mark.long
def test_derivatives_of_the_likelihood(method):
    model, y, seen = model_of()
    f = jax.jit(lambda m, y: kalman_filter(m, y, observed=seen, method=method).log_likelihood)
    check_grads(f, (model, y), order=1, modes=("fwd", "rev"), rtol=1e-4)


def test_singular_noise_and_repeated_steps():
    """A constant level seen three times, the last twice at once, has the mean of all; no noise of the state at all."""
    one = jnp.ones((1, 1), FLOAT)
    level = LinearGaussian(one, 0 * one, one, one, jnp.zeros(1, FLOAT), 1e2 * one)
    for form, method in HOW:
        found = smooth(level, jnp.asarray([[1.0], [2.0], [6.0]], FLOAT), jnp.ones(3, bool), form=form, method=method)
        np.testing.assert_allclose(found.mean[:, 0], 9 / (3 + 1e-2), rtol=1e-12 if X64 else 1e-5)
        assert found.converged


def test_draws_have_the_model_s_moments():
    model, y, seen = model_of()
    x, seen_y = jax.jit(jax.vmap(lambda k: model.sample(T, key=k)))(jax.random.split(jax.random.key(3), 4000))
    mean, cov, _ = dense(model, y, np.zeros((T, P), bool))
    deviation = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    assert np.max(np.abs(x.mean(0) - mean) / deviation) < 5 / np.sqrt(4000)
    assert np.max(np.abs(x.std(0) / deviation - 1)) < 5 / np.sqrt(8000)
    H, R, c = (np.asarray(v, float) for v in (model.H, model.R, model.c))
    spread = np.sqrt(np.einsum("tpi,tij,tpj->tp", H, cov, H) + np.diag(R))
    expected = np.einsum("tpi,ti->tp", H, mean) + c
    assert np.max(np.abs(seen_y.mean(0) - expected) / spread) < 5 / np.sqrt(4000)
    keys = jax.random.split(jax.random.key(4), 4000)
    draws = jax.jit(jax.vmap(lambda k: model.posterior_sample(y, key=k, observed=seen)))(keys)
    mean, cov, _ = dense(model, y, seen)
    deviation = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    assert np.max(np.abs(draws.mean(0) - mean) / deviation) < 5 / np.sqrt(4000)
    assert np.max(np.abs(draws.std(0) / deviation - 1)) < 5 / np.sqrt(8000)


@pytest.mark.long
def test_single_precision_needs_the_square_root_form():
    """Positions to 1e-4 after a diffuse prior: the plain form fails in float32, loses digits in float64, says so."""
    rng = np.random.default_rng(6)
    steps, gap = 400, 1e-2
    A = np.array([[1.0, gap, gap**2 / 2], [0, 1, gap], [0, 0, 1]])
    g = np.array([gap**3 / 6, gap**2 / 2, gap])
    arrays = (A, 1e-2 * np.outer(g, g), np.eye(3)[:1], np.array([[1e-8]]), np.zeros(3), 1e4 * np.eye(3))
    y = np.cumsum(np.cumsum(rng.standard_normal((steps, 1)), 0), 0) * gap**2

    def run(dtype, form):
        model = LinearGaussian(*(jnp.asarray(x, dtype) for x in arrays))
        return smooth(model, jnp.asarray(y, dtype), jnp.ones(steps, bool), form=form)

    plain, rooted = run(np.float32, "covariance"), run(np.float32, "square_root")
    assert plain.status == GaussianStatus.INDEFINITE
    assert rooted.converged
    t = jnp.linspace(0, 1, 20).astype(jnp.float32)
    single = regress(KERNELS["product"], t, jnp.sin(t), jnp.asarray(0.1, jnp.float32))
    assert {x.dtype for x in (single.mean, single.variance, single.log_likelihood)} == {jnp.dtype(jnp.float32)}
    assert np.all(np.diagonal(np.asarray(rooted.covariance), axis1=1, axis2=2) > 0)
    if X64:
        assert run(np.float64, "covariance").status == GaussianStatus.IMPRECISE
        truth = np.asarray(run(np.float64, "square_root").mean[:, 0])
        error = np.abs(np.asarray(rooted.mean[:, 0], float) - truth)
        assert np.max(error) < 1e-3 * np.max(np.abs(y))


KERNELS = {
    "matern12": Matern(0.3, 2.0, 0.5),
    "matern32": Matern(0.3, 2.0, 1.5),
    "matern52": Matern(0.3, 2.0, 2.5),
    "matern92": Matern(0.3, 2.0, 4.5),
    "sum": Matern(0.3, 2.0, 2.5) + PeriodicKernel(0.9, 0.5),
    "product": Matern(0.3, 2.0, 1.5) * PeriodicKernel(0.9, 0.5),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_their_differential_equations(name):
    kernel = KERNELS[name]
    d = np.append(np.linspace(0, 2, 30), [0.2, 0.35, 0.55]).astype(FLOAT)
    A, Q, stationary, H, missing, expected = (np.asarray(x, float) for x in parts_of(kernel, d))
    assert missing < 1e-5
    slack = missing + (1e-13 if X64 else 1e-5)
    np.testing.assert_allclose(np.einsum("i,tij,jk,k->t", H, A, stationary, H), expected, atol=slack)
    np.testing.assert_allclose(Q, stationary - A @ stationary @ np.swapaxes(A, 1, 2), atol=1e-13 if X64 else 1e-5)
    assert len(H) == to_sde(kernel).size
    np.testing.assert_allclose(A[-2] @ A[-3], A[-1], atol=1e-13 if X64 else 1e-5)


def test_noise_over_tiny_gaps_keeps_its_digits():
    """For Matern-5/2 the output's noise over a gap s grows like s^5 / 20 of unit cascades, far below rounding of P."""
    s = 1e-5
    Q = np.asarray(parts_of(Matern(1.0, 1.0, 2.5), jnp.asarray(s / np.sqrt(5), FLOAT))[1], float)
    np.testing.assert_allclose(Q[2, 2], s**5 / 20, rtol=1e-4)
    scaled = Q / np.sqrt(np.outer(np.diag(Q), np.diag(Q)))
    assert np.linalg.eigvalsh(scaled)[0] > 1e-3
    for a in range(1, 10):
        x = np.geomspace(1e-6 if X64 else 1e-3, 60, 100)
        np.testing.assert_allclose(gamma(a, jnp.asarray(x, FLOAT)), gammainc(a, x), rtol=1e-12 if X64 else 1e-4)


@pytest.mark.parametrize(("form", "method"), HOW)
def test_regression_is_dense_regression(form, method):
    """On irregular points with repeated times and 40 % missing, asked for in any order, inside, between and beyond."""
    rng = np.random.default_rng(5)
    t = np.sort(rng.random(120))
    t[10], t[50] = t[11], t[51]
    at, y, seen = np.concatenate([rng.random(6), [-0.3, 1.4, t[20]]]), np.sin(9 * t), rng.random(120) > 0.4
    kernel = Matern(0.3, 2.0, 1.5)
    data = (jnp.asarray(x, FLOAT) for x in (t, np.where(seen, y, np.nan), 0.01, at))
    found = regress(kernel, *data, jnp.asarray(seen), form=form, method=method)
    cov = lambda a, b: np.asarray(kernel(jnp.asarray(np.abs(a[:, None] - b[None]), FLOAT)), float)  # noqa: E731
    S = cov(t[seen], t[seen]) + 0.01 * np.eye(seen.sum())
    cross = cov(at, t[seen])
    mean = cross @ np.linalg.solve(S, y[seen])
    variance = 2.0 - np.sum(cross * np.linalg.solve(S, cross.T).T, 1)
    log = -0.5 * (y[seen] @ np.linalg.solve(S, y[seen]) + np.linalg.slogdet(S)[1] + seen.sum() * np.log(2 * np.pi))
    tol = TOL if X64 else 5e-3
    np.testing.assert_allclose(found.mean, mean, atol=tol)
    np.testing.assert_allclose(found.variance, variance, atol=tol)
    np.testing.assert_allclose(found.log_likelihood, log, rtol=tol)
    assert found.converged


@pytest.mark.slow
@needs_x64
def test_regression_differentiates_in_hyperparameters_times_and_values():
    t = jnp.asarray(np.sort(np.random.default_rng(7).random(30)))

    def f(length, variance, noise, t, y):
        found = gp_regression(Matern(length, variance, 1.5), t, y, noise)
        return found.log_likelihood + jnp.sum(jnp.sin(found.mean))

    check_grads(jax.jit(f), (jnp.array(0.3), jnp.array(2.0), jnp.array(0.1), t, jnp.sin(9 * t)), order=1, rtol=1e-3)


@pytest.mark.long
def test_bad_times_data_and_kernels():
    t = jnp.asarray([0.0, 0.2, 0.1], FLOAT)
    y = jnp.ones(3, FLOAT)
    with pytest.raises(ValueError, match="not falling"):
        solvers.gp_regression(Matern(), t, y, 0.1)
    assert regress(KERNELS["matern12"], t, y, 0.1).status == GaussianStatus.UNSORTED
    rising = jnp.sort(t)
    assert regress(KERNELS["matern12"], rising, y.at[1].set(jnp.inf), 0.1).status == GaussianStatus.NONFINITE
    assert regress(KERNELS["matern12"], rising, y, -5.0).status == GaussianStatus.INDEFINITE
    assert regress(KERNELS["matern12"], rising, y, -5.0, form="square_root").status == GaussianStatus.INDEFINITE
    assert regress(KERNELS["matern12"], rising.at[2].set(jnp.nan), y, 0.1).status != 0
    with pytest.raises(TypeError, match="Matern or periodic"):
        gp_regression(SquaredExponential(), rising, y, 0.1)
    model, y, seen = model_of()
    for bad, word in (
        (lambda: kalman_smoother(model, y[:, :1]), "y"),
        (lambda: kalman_smoother(model, y, observed=seen[:3]), "observed"),
        (lambda: kalman_smoother(model, y, form="cubic"), "form"),
        (lambda: kalman_smoother(model, y, method="fast"), "method"),
        (lambda: kalman_smoother(model, y, block=0), "block"),
        (lambda: kalman_smoother(LinearGaussian(*[jnp.ones((2, 2), FLOAT)] * 4, jnp.ones(3, FLOAT), 1.0), y), "model"),
    ):
        with pytest.raises(ValueError, match=word):
            bad()
