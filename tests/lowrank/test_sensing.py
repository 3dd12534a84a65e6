"""Matrix sensing: the rates of the papers, recovery judged by the matrix itself, and data that cannot be matched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import DenseMeasurements, Entries, LowRankStatus, RankOneMeasurements, Status, WholeMatrix

from ..compiled import matrix_sensing
from ..conftest import FLOAT, needs_x64

N, R, K = 30, 3, 6
EPS = float(np.finfo(FLOAT).eps)
TIGHT = 1e-12 if FLOAT == "float64" else 2e-6


def array(x):
    return jnp.asarray(x, FLOAT)


def projector(rng):
    u = np.linalg.qr(rng.standard_normal((N, R)))[0]
    return u @ u.T


def gaussian(rng, m=240, n=9, p=8, r=2):
    matrices, left, right = (rng.standard_normal(s) for s in ((m, n, p), (n, r), (p, r)))
    X = left @ right.T
    return DenseMeasurements(array(matrices)), array(np.einsum("mnp,np->m", matrices, X)), X


def relative(X, truth):
    return np.linalg.norm(np.asarray(X, float) - truth) / np.linalg.norm(truth)


def curve(rng, k, scale, steps, **options):
    """Errors of gradient descent with the published constant step from a small start, the whole matrix seen."""
    symmetric = options.get("symmetric", False)
    left = scale * rng.standard_normal((N, k)) / (np.sqrt(k) if symmetric else 1)
    right = left if symmetric else scale / 3 * rng.standard_normal((N, k))
    X = array(projector(rng))
    options = {"method": "gd", "step": 0.1, "tol": 0.0, "max_steps": steps, "history": steps + 1, **options}
    return np.asarray(matrix_sensing(WholeMatrix((N, N)), X, k, x0=(array(left), array(right)), **options).history)


def test_the_published_steps_are_taken(rng):
    """Against the two formulas of the paper written out in NumPy."""
    X, F, G = projector(rng), 0.3 * rng.standard_normal((N, K)), 0.1 * rng.standard_normal((N, K))
    options = {"method": "gd", "step": 0.1, "max_steps": 3, "tol": 0.0}
    found = matrix_sensing(WholeMatrix((N, N)), array(X), K, x0=(array(F), array(G)), **options)
    same = matrix_sensing(WholeMatrix((N, N)), array(X), K, x0=(array(F), array(F)), symmetric=True, **options)
    U = F.copy()
    for _ in range(3):
        residual = F @ G.T - X
        F, G = F - 0.1 * residual @ G, G - 0.1 * residual.T @ F
        U = U - 0.1 * (U @ U.T - X) @ U
    assert relative(found.matrix, F @ G.T) < 50 * EPS
    assert relative(same.matrix, U @ U.T) < 50 * EPS


@needs_x64
def test_rate_of_the_symmetric_problem(rng):
    """Exponential at the exact rank; one over the steps beyond it."""
    exact = curve(rng, R, 0.1, 400, symmetric=True)
    assert exact[400] < 1e-13 * exact[0] or np.log(exact[300] / exact[200]) / 100 < -0.05
    over = curve(rng, K, 0.1, 20_000, symmetric=True)
    assert abs(np.log(over[20_000] / over[2_000]) / np.log(10) + 1) < 0.05


@needs_x64
def test_rate_of_the_asymmetric_problem_is_that_of_the_start_squared():
    rates = []
    for scale in (0.06, 0.1, 0.14):
        early, late = int(4 / scale**2), int(8 / scale**2)
        errors = curve(np.random.default_rng(22), K, scale, late)
        rates.append(np.log(errors[late] / errors[early]) / (late - early) / scale**2)
    assert all(-3 < r < -0.5 for r in rates)
    assert max(rates) / min(rates) > 0.8


@needs_x64
@pytest.mark.parametrize("scale", [0.2, 0.1, 0.05])
def test_rebalancing_frees_the_rate_of_the_start(rng, scale):
    errors = curve(rng, K, scale, 3000, method="rebalanced")
    near = int(np.argmax(errors < 0.05))
    rate = np.log(errors[near + 600] / errors[near + 300]) / 300
    assert -0.04 < rate < -0.015
    assert np.nanmin(errors) < 1e-13


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("init", ["spectral", "small"])
def test_twice_the_rank_costs_nothing_when_preconditioned(rng, symmetric, init):
    X = projector(rng)
    sol = matrix_sensing(WholeMatrix((N, N)), array(X), K, symmetric=symmetric, init=init, key=jax.random.key(9),
                         tol=TIGHT, max_steps=150)  # fmt: skip
    assert sol.converged
    assert relative(sol.matrix, X) < 2 * TIGHT


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("method", ["preconditioned", "scaled", "gd", "rebalanced"])
def test_gaussian_measurements_give_the_matrix_back(rng, method, rank):
    operator, b, X = gaussian(rng)
    sol = matrix_sensing(operator, b, rank, method=method, max_steps=2000)
    if rank == 2 or method in ("preconditioned", "scaled"):
        assert sol.converged
    if sol.converged:
        assert relative(sol.matrix, X) < 10 * sol.tol
    np.testing.assert_allclose(np.linalg.svd(np.asarray(sol.matrix), compute_uv=False)[:rank], sol.singular_values,
                               rtol=1e-3, atol=1e-3)  # fmt: skip


def test_a_bad_condition_slows_the_gradient_and_not_its_scaled_forms(rng):
    matrices, left, right = (rng.standard_normal(s) for s in ((400, 12, 10), (12, 2), (10, 2)))
    X = np.linalg.qr(left)[0] * [1, 1e-3] @ np.linalg.qr(right)[0].T
    operator, b = DenseMeasurements(array(matrices)), array(np.einsum("mnp,np->m", matrices, X))
    steps = {m: matrix_sensing(operator, b, 2, method=m, tol=2e-5, max_steps=300) for m in ("scaled", "gd")}
    assert steps["scaled"].converged
    assert relative(steps["scaled"].matrix, X) < 1e-4
    assert not steps["gd"].converged


def test_rank_one_measurements_are_dense_ones(rng):
    a, c = rng.standard_normal((120, 7)), rng.standard_normal((120, 6))
    one = RankOneMeasurements(array(a), array(c))
    dense = DenseMeasurements(array(np.einsum("mn,mp->mnp", a, c)))
    left, right, r = array(rng.standard_normal((7, 3))), array(rng.standard_normal((6, 3))), rng.standard_normal(120)
    np.testing.assert_allclose(one.product(left, right), dense.product(left, right), rtol=1e-4, atol=1e-4)
    want = np.einsum("m,mn,mp->np", r, a, c)
    for operator in (one, dense):
        by_left, by_right = want.T @ np.asarray(left), want @ np.asarray(right)
        np.testing.assert_allclose(operator.adjoint_times(array(r), right), by_right, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(operator.transposed_adjoint_times(array(r), left), by_left, rtol=1e-3, atol=1e-3)
    X = rng.standard_normal((7, 1)) @ rng.standard_normal((1, 6))
    sol = matrix_sensing(one, array(np.einsum("mn,np,mp->m", a, X, c)), 1)
    assert sol.converged
    assert relative(sol.matrix, X) < 100 * sol.tol


def test_entries_are_completed(rng):
    X = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 14))
    rows, cols = np.nonzero(rng.random(X.shape) < 0.7)
    sol = matrix_sensing(Entries(jnp.asarray(rows), jnp.asarray(cols), X.shape), array(X[rows, cols]), 2)
    assert sol.converged
    assert relative(sol.matrix, X) < 100 * sol.tol


@pytest.mark.parametrize("exponent", [-200, -30, 30, 200])
def test_the_size_of_the_data_does_not_matter(rng, exponent):
    operator, b, X = gaussian(rng)
    size = 10.0**exponent
    if not np.isfinite(FLOAT.type(size)) or FLOAT.type(size) == 0:
        size = 10.0 ** (np.sign(exponent) * 28)
    sol = matrix_sensing(operator, b * FLOAT.type(size), 2)
    assert sol.converged
    assert relative(np.asarray(sol.matrix, float) / size, X) < 100 * sol.tol


def test_noise_and_too_small_a_rank_are_not_called_converged(rng):
    operator, b, _X = gaussian(rng)
    noisy = matrix_sensing(operator, b + array(rng.standard_normal(b.shape)), 2, tol=EPS)
    short = matrix_sensing(operator, b, 1, tol=EPS)
    for sol in (noisy, short):
        assert sol.status in (LowRankStatus.STATIONARY, Status.STAGNATED)
        assert sol.error > 1e-2
    assert matrix_sensing(operator, b + array(0.1 * rng.standard_normal(b.shape)), 2, tol=0.1).converged


def test_contradictory_measurements(rng):
    matrices = np.repeat(rng.standard_normal((1, 4, 4)), 2, axis=0)
    sol = matrix_sensing(DenseMeasurements(array(matrices)), array([1.0, -1.0]), 1)
    assert not sol.converged
    assert np.isclose(sol.error, 1, atol=1e-6)


def test_an_operator_that_sees_nothing():
    sol = matrix_sensing(DenseMeasurements(jnp.zeros((5, 3, 3), FLOAT)), jnp.ones(5, FLOAT), 1)
    assert not sol.converged
    assert np.all(np.isfinite(sol.matrix))


def test_a_start_at_the_saddle_is_not_an_answer(rng):
    operator, b, _ = gaussian(rng)
    zero = (jnp.zeros((9, 2), FLOAT), jnp.zeros((8, 2), FLOAT))
    for method in ("preconditioned", "gd"):
        sol = matrix_sensing(operator, b, 2, x0=zero, method=method)
        assert sol.status == LowRankStatus.STATIONARY
        assert np.isclose(sol.error, 1)


def test_a_negative_matrix_has_no_symmetric_factor(rng):
    sol = matrix_sensing(WholeMatrix((N, N)), array(-projector(rng)), R, symmetric=True)
    assert not sol.converged
    assert sol.error > 0.99


def test_too_long_a_step_diverges(rng):
    operator, b, _ = gaussian(rng)
    sol = matrix_sensing(operator, b, 2, method="gd", step=1.0)
    assert sol.status in (Status.DIVERGED, Status.NONFINITE)
    assert np.all(np.isfinite(sol.matrix))


def test_rank_beyond_the_matrix_is_allowed(rng):
    X = rng.standard_normal((4, 3))
    sol = matrix_sensing(WholeMatrix((4, 3)), array(X), 6)
    assert sol.converged
    assert sol.left.shape == (4, 6)


@pytest.mark.long
def test_no_derivative_where_there_is_none(rng):
    """Over-specified rank, and a solve that was cut short, unless asked for."""
    operator, b, _ = gaussian(rng)

    def total(b, **options):
        return jnp.sum(matrix_sensing(operator, b, **options).matrix)

    assert np.all(np.isnan(jax.grad(total)(b, rank=4)))
    assert np.all(np.isnan(jax.grad(total)(b, rank=2, max_steps=1)))
    noisy = b + array(rng.standard_normal(b.shape))
    assert np.all(np.isnan(jax.grad(total)(noisy, rank=2)))
    slope = jax.grad(total)(noisy, rank=2, unconverged="approximate")
    if FLOAT == "float64":  # at a stationary point those are the derivatives of the least-squares fit
        d = array(rng.standard_normal(b.shape))
        ends = [total(noisy + s * 1e-2 * d, rank=2, tol=0.0) for s in (1, -1)]
        assert np.isclose((ends[0] - ends[1]) / 2e-2, slope @ d, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("broken", [
    lambda op, b: matrix_sensing(op, b, 0),
    lambda op, b: matrix_sensing(op, b[:-1], 2),
    lambda op, b: matrix_sensing(op, b, 2, method="newton"),
    lambda op, b: matrix_sensing(op, b, 2, symmetric=True),
    lambda op, b: matrix_sensing(op, b, 2, x0=(jnp.zeros((9, 3)), jnp.zeros((8, 3)))),
    lambda op, b: matrix_sensing(WholeMatrix((3, 3)), jnp.ones((3, 3)), 1, symmetric=True, method="rebalanced"),
    lambda op, b: matrix_sensing(op, b, 2, step=-1.0),
])  # fmt: skip
def test_wrong_arguments_raise(rng, broken):
    operator, b, _ = gaussian(rng)
    with pytest.raises(ValueError, match="matrix_sensing: `"):
        broken(operator, b)


def test_wrong_types_raise(rng):
    operator, b, _ = gaussian(rng)
    with pytest.raises(TypeError, match="operator"):
        matrix_sensing(jnp.eye(3), b, 2)
    with pytest.raises(TypeError, match="key"):
        matrix_sensing(operator, b, 2, init="small")
