"""Variational solvers: against SciPy, scikit-learn and the conditions of optimality in NumPy; statuses under attack."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import Lasso

from solvers import Status, inverse
from solvers.core.operators import Identity, LinearOperator, MatrixOperator
from solvers.core.prox import L1, Box, GroupL1, SquaredL2, Zero

from ..conftest import FLOAT, needs_x64

SOLVERS = {"admm": inverse.admm, "pgd": inverse.pgd, "hqs": inverse.hqs}
M, N = 15, 10
DOUBLE = FLOAT == "float64"


def instance(rng):
    matrix = rng.standard_normal((M, N))
    return matrix, matrix @ rng.standard_normal(N) + 0.3 * rng.standard_normal(M)


def cast(*arrays):
    return tuple(jnp.asarray(a, FLOAT) for a in arrays)


TOL, NEAR = (1e-10, 1e-8) if DOUBLE else (2e-4, 3e-3)
RHO = 3.0


def stated(name, matrix, y):
    """Return the least-squares problem that z solves: the data, or for half-quadratic splitting those without x.

    Minimised over x, ``|A x - y|^2 / 2 + rho |x - z|^2 / 2`` is ``|B z - c|^2 / 2`` and a constant with
    ``B'B = rho I - rho^2 (A'A + rho I)^-1``, ``B'c = rho (A'A + rho I)^-1 A'y``.
    """
    if name != "hqs":
        return matrix, y
    inner = np.linalg.inv(matrix.T @ matrix + RHO * np.eye(N))
    B = np.linalg.cholesky(RHO * np.eye(N) - RHO**2 * inner).T
    return B, np.linalg.solve(B.T, RHO * inner @ matrix.T @ y)


def solved(name, matrix, y, g):
    """Return the solution and its z."""
    a, b = cast(matrix, y)
    options = {"penalty": RHO} if name == "hqs" else {}
    solution = SOLVERS[name](MatrixOperator(a), b, g, tol=TOL, max_steps=3000, **options)
    return solution, solution.value - solution.dual / RHO if name == "hqs" else solution.value


@pytest.mark.parametrize("name", SOLVERS)
def test_lasso_is_scikit_learns(name, rng):
    matrix, y = instance(rng)
    B, c = stated(name, matrix, y)
    oracle = Lasso(alpha=2.0 / len(c), fit_intercept=False, tol=1e-14, max_iter=100_000).fit(B, c).coef_
    assert 0 < np.sum(oracle == 0) < N
    solution, z = solved(name, matrix, y, L1(2.0))
    assert solution.converged, solution
    np.testing.assert_allclose(z, oracle, atol=NEAR)
    if name != "hqs":
        assert np.all((np.asarray(z) == 0) == (oracle == 0))


@pytest.mark.parametrize("name", SOLVERS)
def test_constraints_hold_exactly_and_agree_with_nnls(name, rng):
    matrix, y = instance(rng)
    solution, z = solved(name, matrix, y, Box())
    assert solution.converged, solution
    np.testing.assert_allclose(z, nnls(*stated(name, matrix, y))[0], atol=NEAR)
    if name != "hqs":
        assert np.all(np.asarray(z) >= 0)


@pytest.mark.parametrize("name", SOLVERS)
def test_ridge_is_the_closed_form(name, rng):
    matrix, y = instance(rng)
    B, c = stated(name, matrix, y)
    oracle = np.linalg.solve(B.T @ B + 0.7 * np.eye(N), B.T @ c + 0.7 * 0.2)
    solution, z = solved(name, matrix, y, SquaredL2(0.7, 0.2))
    assert solution.converged, solution
    np.testing.assert_allclose(z, oracle, atol=NEAR)


def optimality_in_numpy(A, y, x, w, weight):
    """Return how far x, with the multipliers w, is from optimal for total variation: three residuals."""
    x, w, y = (np.asarray(v, float) for v in (x, w, y))
    M = np.asarray(A.matrix(), float)
    D = np.asarray(inverse.Differences(jnp.asarray(x, FLOAT)).matrix(), float)
    gradient = M.T @ (M @ x.ravel() - y.ravel())
    d, p = (D @ x.ravel()).reshape(w.shape), w
    size = np.linalg.norm(M.T @ y.ravel())
    stationary = np.linalg.norm(gradient + D.T @ p.ravel()) / size
    feasible = np.max(np.linalg.norm(p, axis=0) / weight) - 1
    gap = weight * np.linalg.norm(d, axis=0).sum() - np.sum(p * d)
    return stationary, feasible, gap / (np.linalg.norm(y) ** 2)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.long
def test_total_variation_satisfies_its_conditions(adaptive, rng):
    """Judged in NumPy with dense matrices: stationarity, ``|w_i| <= weight`` and no duality gap."""
    A = inverse.Radon(jnp.linspace(0, 3, 7, dtype=FLOAT), 12)
    truth = jnp.zeros((12, 12), FLOAT).at[3:8, 4:9].set(1)
    y = A(truth) + 0.1 * jnp.asarray(rng.standard_normal(A.codomain.shape), FLOAT)
    tol = 1e-5 if DOUBLE else 3e-4
    solution = inverse.admm(A, y, GroupL1(0.3, axis=0), analysis=inverse.Differences(truth), adaptive=adaptive,
                            tol=tol, max_steps=4000)  # fmt: skip
    assert solution.converged, solution
    stationary, feasible, gap = optimality_in_numpy(A, y, solution.value, solution.dual, 0.3)
    assert stationary <= 2 * tol
    assert feasible <= 1e-5
    assert abs(gap) <= 20 * tol


@pytest.mark.long
def test_two_routes_to_total_variation_agree(rng):
    v = jnp.asarray(rng.standard_normal((10, 9)), FLOAT)
    split = inverse.admm(Identity(v), v, GroupL1(0.4, axis=0), analysis=inverse.Differences(v),
                         tol=1e-8 if DOUBLE else 1e-5, max_steps=5000)  # fmt: skip
    direct = inverse.TotalVariation(0.4, tol=1e-6 if DOUBLE else 3e-4, max_steps=20_000).denoise(v)
    assert split.converged
    assert direct.converged
    np.testing.assert_allclose(split.value, direct.value, atol=1e-5 if DOUBLE else 3e-3)


def test_adapting_the_penalty_forgives_a_bad_one(rng):
    """From penalties a thousand times too large or small: at most three times the steps of the best, in all cases."""
    matrix, y = instance(rng)
    a, b = cast(matrix, y)
    start = lambda penalty, adaptive: inverse.admm(  # noqa: E731
        MatrixOperator(a), b, L1(2.0), penalty=penalty, adaptive=adaptive, max_steps=2000
    )
    solve = jax.jit(start, static_argnums=1)
    steps = {adaptive: [int(solve(p, adaptive).num_steps) for p in (1e-2, 10.0, 1e4)] for adaptive in (True, False)}
    best = min(steps[False])
    assert max(steps[True]) <= 4 * best + 20, steps
    assert max(steps[False]) > 10 * best, steps


class WrongAdjoint(LinearOperator):
    """The classical trouble of tomography: a back-projection that is not the projection's transpose."""

    radon: inverse.Radon
    blend: float

    @property
    def domain(self):
        return self.radon.domain

    def mv(self, x):
        return self.radon.mv(x)

    def transpose_mv(self, y):
        shifted = inverse.Radon(self.radon.angles + self.blend, self.radon.size)
        return shifted.transpose_mv(y)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.long
def test_an_unmatched_back_projector_is_caught(name):
    """A hundredth of a radian between projector and back-projector; the exact pair, and its composition, pass."""
    radon = inverse.Radon(jnp.linspace(0, 3, 9, dtype=FLOAT), 32)
    y = jnp.ones(radon.codomain.shape, FLOAT)
    wrong = SOLVERS[name](WrongAdjoint(radon, 0.01), y, Box(), max_steps=3)
    assert wrong.status == inverse.InverseStatus.ADJOINT_MISMATCH
    assert "transpose_mv" in wrong.message
    assert wrong.num_steps == 0
    right = SOLVERS[name](WrongAdjoint(radon, 0.0), y, Box(), max_steps=3)
    assert right.status == Status.MAX_STEPS


OPTIMISED = """
import jax, jax.numpy as jnp
from solvers import inverse
A = inverse.Radon(jnp.linspace(0, jnp.pi, 24, endpoint=False), 64)
D = inverse.Differences(jax.ShapeDtypeStruct((64, 64), jnp.result_type(float)))
y = jnp.ones(A.codomain.shape)
print(inverse.admm(A, y, inverse.GroupL1(0.15, axis=0), analysis=D, max_steps=2).status)
"""


@pytest.mark.long
def test_rays_of_round_angles_keep_their_transpose_in_an_optimised_program():
    """These tests compile without optimisation, which fused one position twice and rounded it differently."""
    plain = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    run = subprocess.run([sys.executable, "-c", OPTIMISED], env=plain | {"JAX_ENABLE_X64": str(int(DOUBLE))},
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert int(run.stdout) == Status.MAX_STEPS


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("power", [-30, 30] if not DOUBLE else [-200, 200])
def test_units_of_the_data_do_not_matter(name, power, rng):
    """Data times 1e+-200: weights go along, and the answer is the same up to that factor."""
    matrix, y = instance(rng)
    a, b = cast(matrix, y)
    unit = jnp.asarray(2.0 ** round(power * 3.3219), FLOAT)
    solve = lambda unit: SOLVERS[name](MatrixOperator(a), unit * b, L1(2.0 * unit), tol=TOL, max_steps=3000)  # noqa: E731
    plain, scaled = solve(jnp.ones((), FLOAT)), solve(unit)
    assert scaled.converged, scaled
    assert scaled.num_steps == plain.num_steps
    # To the bit on a CPU; on a GPU other kernels may serve other ranges.
    np.testing.assert_allclose(scaled.value / unit, plain.value, rtol=1e-12 if DOUBLE else 1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_rank_deficient_operator_without_regulariser_still_fits(name, rng):
    """Least squares of rank 3 in 10 unknowns: a minimiser, not the only one; its normal equations hold."""
    matrix = rng.standard_normal((M, 3)) @ rng.standard_normal((3, N))
    y = rng.standard_normal(M)
    a, b = cast(matrix, y)
    solution = SOLVERS[name](MatrixOperator(a), b, Zero(), tol=TOL, max_steps=3000)
    assert solution.converged, solution
    gradient = matrix.T @ (matrix @ np.asarray(solution.value, float) - y)
    assert np.linalg.norm(gradient) <= 3 * TOL * np.linalg.norm(matrix.T @ y) + (0 if DOUBLE else 1e-5)


def test_too_long_a_step_diverges_and_says_so(rng):
    matrix, y = instance(rng)
    a, b = cast(matrix, y)
    solution = inverse.pgd(MatrixOperator(a), b, Zero(), step=1.0, accelerated=False)
    assert solution.status in (Status.DIVERGED, Status.NONFINITE)
    assert np.all(np.isfinite(solution.value))


def test_no_image_on_the_way_to_the_penalty_is_an_answer(rng):
    """From a hundredth of the penalty: the same answer as from it, and none before it is reached."""
    matrix, y = instance(rng)
    a, b = cast(matrix, y)
    solve = lambda **options: inverse.hqs(MatrixOperator(a), b, L1(2.0), penalty=RHO, tol=TOL, **options)  # noqa: E731
    direct, continued = solve(), solve(first=RHO / 100, growth=1.5)
    assert continued.converged
    np.testing.assert_allclose(continued.value, direct.value, atol=NEAR)
    early = inverse.hqs(
        MatrixOperator(a), b, L1(2.0), penalty=RHO, first=RHO / 100, growth=1.01, tol=0.5, max_steps=100
    )
    assert early.status == Status.MAX_STEPS
    assert early.penalty < RHO


def test_a_denoiser_needs_its_setting(rng):
    matrix, y = instance(rng)
    a, b = cast(matrix, y)
    shrink = lambda v, step: 0.5 * v  # noqa: E731
    for name, argument in (("admm", "penalty"), ("pgd", "step"), ("hqs", "penalty")):
        with pytest.raises(TypeError, match=argument):
            SOLVERS[name](MatrixOperator(a), b, shrink)
    with pytest.raises(ValueError, match="adaptive"):
        inverse.admm(MatrixOperator(a), b, shrink, penalty=1.0, adaptive=True)
    # v -> v / 2 is the proximal map of |x|^2 / 2 in the penalty's units: ridge with weight `penalty`
    solution = inverse.admm(MatrixOperator(a), b, shrink, penalty=3.0)
    oracle = np.linalg.solve(matrix.T @ matrix + 3.0 * np.eye(N), matrix.T @ y)
    np.testing.assert_allclose(solution.value, oracle, atol=1e-4 if DOUBLE else 1e-3)


@pytest.mark.slow
@needs_x64
def test_total_variation_reconstruction_is_differentiable(rng):
    """In data and weight, through the analysis operator, against differences."""
    A = inverse.Radon(jnp.linspace(0, 3, 5, dtype=FLOAT), 6)
    y = A(jnp.zeros((6, 6), FLOAT).at[2:4, 1:4].set(1)) + 0.1 * jnp.asarray(rng.standard_normal((5, 6)))
    c, direction = jnp.asarray(rng.standard_normal((6, 6))), jnp.asarray(rng.standard_normal((5, 6)))

    @jax.jit
    def observed(y, weight):
        return jnp.sum(c * inverse.admm(A, y, GroupL1(weight, axis=0), analysis=inverse.Differences(c), tol=1e-9,
                                        max_steps=20_000).value)  # fmt: skip

    by_y, by_weight = jax.jit(jax.grad(observed, (0, 1)))(y, 0.3)
    h = 1e-5
    slope = (observed(y + h * direction, 0.3) - observed(y - h * direction, 0.3)) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(by_y, direction), slope, rtol=1e-4)
    np.testing.assert_allclose(by_weight, (observed(y, 0.3 + h) - observed(y, 0.3 - h)) / (2 * h), rtol=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda A, y: inverse.admm(jnp.eye(3), y, L1(1.0)),
        lambda A, y: inverse.admm(A, y, 3.0),
        lambda A, y: inverse.admm(A, y[:-1], L1(1.0)),
        lambda A, y: inverse.pgd(A, y, L1(1.0), x0=jnp.zeros(3, FLOAT)),
        lambda A, y: inverse.admm(A, y, L1(1.0), analysis=inverse.Differences(y)),
        lambda A, y: inverse.hqs(A, y, L1(1.0), penalty=-1.0),
        lambda A, y: inverse.admm(A, y, L1(1.0), unconverged="maybe"),
    ],
)
def test_wrong_arguments_are_refused(call, rng):
    a, b = cast(*instance(rng))
    with pytest.raises((ValueError, TypeError), match="must be"):
        call(MatrixOperator(a), b)
