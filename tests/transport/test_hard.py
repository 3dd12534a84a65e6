"""Plans whose points have one partner each, and plans of groups that exchange little mass: how many steps they take."""

import jax.numpy as jnp
import numpy as np
import pytest

from solvers.problems.transport import HARD, device_clouds
from solvers.transport import DenseCG, SparseCG
from solvers.transport.entropic.newton_step import shrunk
from solvers.transport.problem import prepare
from solvers.transport.systems.gibbs_kernel import absorb, empty
from solvers.transport.systems.slow_modes import SlowModes, coarse, orthonormal

from ..compiled import sns_sinkhorn
from ..conftest import FLOAT, X64

N = 300
MOST = {"rings": (12, 700), "clusters": (20, 450), "sixteen dimensions": (30, 700), "heavy tails": (32, 1500)}
"""Outer steps and products that the default takes at most; before, sixteen dimensions took 140 and 8,700."""


def solve(problem, **settings):
    return sns_sinkhorn(problem.cost, problem.a, problem.b, epsilon=problem.epsilon, **settings)


@pytest.mark.parametrize("kind", HARD)
def test_hard_clouds_take_few_steps_and_meet_their_marginals(kind):
    problem = device_clouds(N, relative=1e-3, kind=kind, seed=3, dtype=FLOAT)
    sol = solve(problem, hessian="dense")
    assert sol.converged
    if X64:
        steps, products = MOST[kind]
        assert int(sol.num_steps) <= steps
        assert int(sol.linear_steps) <= products
        assert problem.marginal_error(problem.plan(sol.f, sol.g)) < 3e-9


@pytest.mark.parametrize("kind", ["rings", "clusters"])
@pytest.mark.parametrize("backend", [DenseCG(coarse=True), SparseCG(N, DenseCG(coarse=True))], ids=["dense", "sparse"])
def test_a_coarse_space_saves_most_products_and_changes_no_answer(kind, backend):
    problem = device_clouds(N, relative=1e-3, kind=kind, seed=3, dtype=FLOAT)
    plain, sol = solve(problem, hessian=DenseCG()), solve(problem, hessian=backend)
    assert sol.converged
    assert int(sol.linear_steps) < 0.6 * int(plain.linear_steps)
    f, g = (np.asarray(p - jnp.mean(p), float) for p in (sol.f - plain.f, sol.g - plain.g))
    scale = float(jnp.max(problem.cost))
    assert max(abs(f).max(), abs(g).max()) < (1e-6 if X64 else 1e-3) * scale


def test_modes_are_the_leading_ones_and_their_correction_is_definite():
    """Against a dense eigendecomposition in NumPy; twenty clusters have twenty slow modes, the constants among them."""
    given = device_clouds(N, relative=1e-3, kind="clusters", seed=3, dtype=FLOAT)
    sol = solve(given, hessian="dense")
    problem = prepare(given.cost, given.a, given.b, jnp.asarray(given.epsilon, FLOAT), jnp.asarray(1e-6, FLOAT))
    kernel = absorb(problem, empty(problem), *sol.reduced, problem.epsilon)
    K, r, w = (np.asarray(x, float) for x in (kernel.K.dense(), kernel.r, kernel.beta**2 / problem.b))
    T = (K * w) @ K.T / np.sqrt(r[:, None] * r[None])
    values, vectors = np.linalg.eigh(T)

    def products(X):
        return kernel.K.dense() @ (jnp.asarray(w, FLOAT)[:, None] * (kernel.K.dense().T @ X))

    modes = SlowModes.random(N, FLOAT)
    modes = modes.after(jnp.asarray(99))
    lam = jnp.asarray(1e-6, FLOAT)
    for _ in range(4):
        modes, correction = coarse(modes, products, kernel.r, problem.rows, lam)
    V = np.asarray(modes.basis, float)
    np.testing.assert_allclose(V.T @ V, np.eye(V.shape[1]), atol=1e-4)
    slow = vectors[:, values > 0.9]
    assert 10 <= slow.shape[1] <= 20
    np.testing.assert_allclose(np.linalg.norm(V.T @ slow, axis=0), 1, atol=1e-3)  # they lie in the span
    M = np.asarray(correction.basis, float) @ np.asarray(correction.weighted, float).T
    np.testing.assert_allclose(M, M.T, atol=1e-3 * abs(M).max())
    assert np.linalg.eigvalsh((M + M.T) / 2).min() > -1e-4 * abs(M).max()


def test_a_basis_of_columns_that_depend_on_each_other_is_finite():
    column = jnp.arange(1, 21, dtype=FLOAT)[:, None]
    assert np.all(np.isfinite(orthonormal(jnp.concatenate([column, column, 0 * column], 1))))


def test_modes_stay_as_they_are_while_steps_are_quick_and_once_they_did_not_help():
    start = SlowModes.random(7, FLOAT)
    slow = start.after(jnp.asarray(99))
    assert slow.wanted
    assert slow.after(jnp.asarray(3)).after(jnp.asarray(99)).wanted
    useless = slow.after(jnp.asarray(99)).after(jnp.asarray(99))
    assert not useless.wanted
    assert not useless.after(jnp.asarray(99)).wanted
    ones = jnp.ones(7, FLOAT)
    modes, correction = coarse(start, lambda X: X, ones, ones > 0, jnp.asarray(0.1, FLOAT))
    np.testing.assert_array_equal(modes.basis, start.basis)
    np.testing.assert_array_equal(correction(ones), 0)


def test_modes_that_are_not_finite_are_left_out():
    start, ones = SlowModes.random(7, FLOAT).after(jnp.asarray(99)), jnp.ones(7, FLOAT)
    modes, correction = coarse(start, lambda X: X * jnp.inf, ones, ones > 0, jnp.asarray(0.1, FLOAT))
    assert modes.wanted
    np.testing.assert_array_equal(modes.basis, start.basis)
    np.testing.assert_array_equal(correction(ones), 0)


@pytest.mark.parametrize("hessian", ["direct", "dense"])
def test_islands_whose_masses_do_not_match_are_reached(rng, hessian):
    """Potentials of far points must change by 1e4 epsilon; scaling all steps for it ended as `stagnated` at 6e-2."""
    x, y, a, b = (rng.random(shape) for shape in ((40, 2), (40, 2), 40, 40))
    for z in (x, y):
        z[:3] += [10, 0]
        z[3:5] -= [0, 20]
    a, b = ((w + 0.5) / (w + 0.5).sum() for w in (a, b))
    cost = ((x[:, None] - y[None]) ** 2).sum(2)
    arrays = (jnp.asarray(z, FLOAT) for z in (cost, a, b))
    sol = sns_sinkhorn(*arrays, epsilon=jnp.asarray(0.01, FLOAT), hessian=hessian, max_steps=200, tol=1e-4)
    if X64:
        assert sol.converged
        f, g = (np.asarray(p) for p in sol.value)
        plan = np.exp((f[:, None] + g[None] - cost) / 0.01)
        assert abs(plan.sum(1) - a).sum() + abs(plan.sum(0) - b).sum() < 2e-4
    else:  # costs of 400 in units of 0.01 leave float32 three digits
        assert np.all(np.isfinite(sol.f))


def test_long_moves_shrink_to_what_a_growing_coupling_asks_for():
    off = jnp.asarray([-1e5, -2.0, -0.3, 0.0, 0.5, 1.9, 1e8], FLOAT)
    new = np.asarray(shrunk(off), float)
    np.testing.assert_allclose(new, [-2 - 2 * np.log(5e4), -2, -0.3, 0, 0.5, 1.9, 2 + 2 * np.log(5e7)], rtol=1e-6)
