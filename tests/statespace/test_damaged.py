"""Hundreds of damaged data sets, and scales far apart: no lane of a regression or a smoother says more than is true."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import GaussianStatus, Matern, gp_regression
from solvers.core.gaussian.square_root import eliminate

from ..conftest import FLOAT
from ..test_fuzz import damaged, generators, stacked

LANES, T = 384, 8


def data(rng):
    t = np.sort(rng.random(T))
    return {
        "t": t,
        "y": np.sin(6 * t) + 0.1 * rng.standard_normal(T),
        "noise": np.full(T, 0.05),
        "length": np.array(0.4),
    }


def dense(lane, at):
    """Mean, variance and how errors of y can grow, by NumPy in doubles, or None where these have too few digits."""
    t, y, noise, length = (np.asarray(lane[k], float) for k in ("t", "y", "noise", "length"))

    def k(a, b):
        d = 3**0.5 * np.abs(a[:, None] - b) / length
        return (1 + d) * np.exp(-d)

    S, cross = k(t, t) + np.diag(noise), k(at, t)
    with np.errstate(all="ignore"):
        scale = 1 / np.sqrt(np.diag(S))
        whitened = S * scale[:, None] * scale
        condition = np.linalg.cond(whitened) if np.all(np.isfinite(whitened)) else np.inf
        if not condition < 1e-4 / np.finfo(float).eps:
            return None
        solved = np.linalg.solve(whitened, (scale[:, None] * np.concatenate([y[:, None], cross.T], 1)))
        gain = scale[:, None] * solved
        weights = np.linalg.solve(whitened, scale[:, None] * cross.T) * scale[:, None]
        return cross @ gain[:, 0], 1 - np.sum(cross * gain[:, 1:].T, 1), np.sum(np.abs(weights), axis=0)


@pytest.mark.parametrize("form", ["covariance", "square_root"])
def test_no_lane_says_more_than_is_true(form):
    at = np.linspace(0, 1, 4)

    @jax.jit
    @jax.vmap
    def solve(d):
        kernel = Matern(d["length"], jnp.ones_like(d["length"]), 1.5)
        return gp_regression(kernel, d["t"], d["y"], d["noise"], at=jnp.asarray(at, FLOAT), form=form)

    for rng in generators(23, LANES):
        kinds, lanes = [], []
        for kind, lane in damaged(data, LANES, rng):
            kinds.append(kind)
            lanes.append({**lane, "t": np.sort(lane["t"]) if rng.random() < 0.8 else lane["t"]})
        judge(form, at, np.array(kinds), lanes, jax.device_get(solve(stacked(lanes))))


def judge(form, at, kinds, lanes, found):
    good = found.status == 0
    assert set(np.unique(found.status)) <= {0, *(int(s) for s in GaussianStatus)}
    healthy = kinds == "none"
    with np.errstate(invalid="ignore"):
        sorted_ = np.array([np.all(np.diff(lane["t"]) >= 0) for lane in lanes])
    # an infinite noise, length or time has a limit; a value that is not finite has none
    missing = np.array([any(np.isnan(x).any() for x in lane.values()) or np.isinf(lane["y"]).any() for lane in lanes])
    assert np.all(good[healthy & sorted_])
    assert not np.any(good & ~sorted_)
    assert not np.any(good & missing)
    assert not np.any(good & np.array([np.any(lane["noise"] < 0) for lane in lanes]) & (form == "square_root"))
    judged = 0
    for i in np.flatnonzero(good):
        cast = {k: np.asarray(v, FLOAT) for k, v in lanes[i].items()}
        if not float(cast["length"]) > 0:
            raise AssertionError(f"{kinds[i]}: a length of {cast['length']} was called solved")
        exact, eps = dense(cast, at), np.finfo(FLOAT).eps
        if exact is None or not np.all(np.isfinite(exact[0])):
            continue
        mean, variance, growth = exact
        judged += 1
        # half of the digits may be lost before it is said; the square-root form loses what the data's rounding does
        slack = 8 * eps**0.5
        size = np.max(np.abs(cast["y"]))
        rounding = 16 * eps * growth * size  # of the data: far outside it, their mean can be large
        assert np.all(np.abs(found.mean[i] - mean) <= slack * np.maximum(size, np.abs(mean)) + rounding), (
            kinds[i],
            lanes[i],
        )
        assert np.all(np.abs(found.covariance[i] - variance) <= slack), (kinds[i], lanes[i])
    assert judged > LANES / 4


def long_dense(t, y, noise, length, at):
    """Mean and variance for a Matern-5/2 kernel in extended precision, and what rounding the data does to the mean."""
    t, y, at = (np.asarray(v, np.longdouble) for v in (t, y, at))

    def k(a, b):
        d = np.sqrt(np.longdouble(5)) * np.abs(a[:, None] - b) / np.longdouble(length)
        return (1 + d + d * d / 3) * np.exp(-d)

    S = k(t, t) + np.longdouble(noise) * np.eye(len(t))
    root = np.zeros_like(S)
    for i in range(len(t)):
        for j in range(i + 1):
            left = S[i, j] - root[i, :j] @ root[j, :j]
            root[i, j] = np.sqrt(left) if i == j else left / root[j, j]
    inverse = np.eye(len(t), dtype=np.longdouble)
    for i in range(len(t)):
        inverse[i] = (inverse[i] - root[i, :i] @ inverse[:i]) / root[i, i]
    half = inverse @ k(t, at)
    weights = inverse.T @ half
    return weights.T @ y, 1 - np.sum(half**2, 0), np.max(np.abs(weights.T) @ np.abs(y))


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="needs extended precision as a judge")
@pytest.mark.parametrize("method", ["sequential", "parallel"])
def test_single_precision_keeps_the_mean_at_any_noise(method):
    """Noise down to 1e-14 of the process: the error is a small multiple of what rounding the data alone does."""
    rng, single = np.random.default_rng(5), np.float32
    at = np.linspace(0, 1.2, 9).astype(single)
    kernel = Matern(single(0.4), single(1), 2.5)
    solve = jax.jit(lambda *data: gp_regression(kernel, *data, at=at, form="square_root", method=method, block=4))
    for noise in (1e-2, 1e-5, 5e-8, 1e-10, 1e-14):
        for offset in (0, 100):
            t = np.sort(rng.random(12)).astype(single)
            y = (np.sin(6 * t) + 0.1 * rng.standard_normal(12) + offset).astype(single)
            found = solve(t, y, single(noise))
            mean, variance, moved = long_dense(t, y, single(noise), single(0.4), at)
            assert found.converged
            assert np.max(np.abs(np.asarray(found.mean) - mean)) <= 300 * np.finfo(single).eps * moved
            assert np.max(np.abs(np.asarray(found.variance) - variance)) <= 1e-5


def test_rows_of_sizes_far_apart_keep_their_digits(rng):
    """Least squares with rows 1e16 apart in double precision, 1e8 in single, against exact rational arithmetic."""
    large = 1e8 if FLOAT == "float64" else 1e4
    rows = rng.standard_normal((6, 5)).astype(FLOAT) * np.repeat([1 / large, large, 1.0], 2)[:, None].astype(FLOAT)
    rows[2, 0] = 0  # what a triangle taken in order would lead with
    turned, order = jax.jit(lambda r: eliminate(r, 4))(rows)
    R, right = np.asarray(turned[:4, :4], float)[:, order], np.asarray(turned[:4, 4], float)
    found = np.zeros(4)
    found[np.asarray(order)] = np.linalg.solve(R, right)
    exact = [[Fraction(float(x)) for x in row] for row in rows]
    normal = [[sum(r[i] * r[j] for r in exact) for j in range(5)] for i in range(4)]
    for i in range(4):
        for j in range(4):
            if i != j:
                factor = normal[j][i] / normal[i][i]
                normal[j] = [x - factor * z for x, z in zip(normal[j], normal[i], strict=True)]
    truth = np.array([float(normal[i][4] / normal[i][i]) for i in range(4)])
    np.testing.assert_allclose(found, truth, rtol=1e4 * np.finfo(FLOAT).eps)
    np.testing.assert_array_equal(np.asarray(turned)[4:, :4], 0)
