"""Unbalanced transport, against the one-point closed form, optimality in NumPy, POT and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import PointCloud, PublishedSNS, Status, TransportStatus, UnbalancedSolution
from solvers.transport import DenseCG

from ..compiled import sinkhorn, sns_sinkhorn, unbalanced_sinkhorn
from ..conftest import FLOAT, X64, needs_x64

N, M = 14, 17


def data(seed=70):
    rng = np.random.default_rng(seed)
    x, y = rng.random((N, 2)), rng.random((M, 2)) + 0.2
    a, b = 1.3 * rng.random(N) / N, rng.random(M) / M
    a[2] = 0
    return tuple(jnp.asarray(z, FLOAT) for z in (x, y, a, b))


@jax.jit
def solve(x, y, a, b, epsilon, rho_a, rho_b):
    return unbalanced_sinkhorn(PointCloud(x, y), a, b, epsilon=epsilon, rho=(rho_a, rho_b))


def numbers(*values):
    return tuple(jnp.asarray(v, FLOAT) for v in values)


def optimality(solution, rho_a, rho_b):
    """Both marginals must be what the potentials ask for, the plan being what they say: NumPy, float64."""
    cost, a, b, f, g = (np.asarray(z, float) for z in (solution.cost, solution.a, solution.b, *solution.value))
    plan = np.outer(a, b) * np.exp((f[:, None] + g - cost) / float(solution.epsilon))
    np.testing.assert_allclose(solution.plan(), plan, rtol=1e-8 if X64 else 1e-2, atol=1e-12)
    return abs(plan.sum(1) - a * np.exp(-f / rho_a)).sum() + abs(plan.sum(0) - b * np.exp(-g / rho_b)).sum()


@pytest.mark.parametrize(("epsilon", "rho_a", "rho_b"), [(0.1, 1.0, 0.3), (0.003, 0.5, 0.5), (0.01, 30.0, np.inf)])
def test_is_optimal(epsilon, rho_a, rho_b):
    """To `tol`, or to what potentials of this size can say in this precision."""
    solution = solve(*data(), *numbers(epsilon, rho_a, rho_b))
    assert isinstance(solution, UnbalancedSolution)
    rounding = 4 * jnp.finfo(FLOAT).eps * jnp.abs(solution.f).max() / epsilon
    assert solution.converged or (solution.status == Status.STAGNATED and solution.error < rounding), solution
    assert optimality(solution, rho_a, rho_b) < (1e-8 if X64 else 1e-4)
    assert np.isfinite(solution.f).all()
    if rho_b == np.inf:
        np.testing.assert_allclose(solution.marginals[1], data()[3], rtol=max(1e-5, float(rounding)))


def test_one_point_each():
    """P = argmin c P + e KL(P | ab) + rho_a KL(P | a) + rho_b KL(P | b): a weighted geometric mean."""
    e, p, q, a, b, c = 0.2, 0.7, 1.5, 0.4, 2.0, 0.3
    exact = np.exp((e * np.log(a * b) + p * np.log(a) + q * np.log(b) - c) / (e + p + q))
    found = unbalanced_sinkhorn(*(np.asarray(z, FLOAT) for z in ([[c]], [a], [b])), epsilon=e, rho=(p, q))
    np.testing.assert_allclose(found.mass, exact, rtol=1e-8 if X64 else 1e-4)


@needs_x64
def test_agrees_with_pot_and_with_scaling():
    with jax.numpy_dtype_promotion("standard"):
        ot = pytest.importorskip("ot")
    x, y, a, b = data()
    a = a.at[2].set(0.05)
    newton = solve(x, y, a, b, *numbers(0.05, 0.4, 0.4))
    plain = unbalanced_sinkhorn(PointCloud(x, y), a, b, epsilon=0.05, rho=0.4, method="scaling", max_steps=10_000)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        other = ot.unbalanced.sinkhorn_unbalanced(
            *(np.asarray(z) for z in (a, b, newton.cost)), 0.05, 0.4, reg_type="kl", stopThr=1e-13, numItermax=20_000
        )
    np.testing.assert_allclose(newton.plan(), other, rtol=1e-6)
    np.testing.assert_allclose(plain.f, newton.f, atol=1e-7)
    assert 2 * newton.num_steps < plain.num_steps
    P, mass = np.asarray(newton.plan()), np.asarray(a)[:, None] * np.asarray(b)

    def kl(p, q):
        return (p * np.log(p / q) - p + q).sum()

    primal = (newton.cost * P).sum() + 0.05 * kl(P, mass) + 0.4 * (kl(P.sum(1), a) + kl(P.sum(0), b))
    np.testing.assert_allclose(newton.regularized_cost, primal, rtol=1e-9)
    np.testing.assert_allclose(newton.transport_cost, (newton.cost * P).sum(), rtol=1e-9)
    np.testing.assert_allclose(newton.apply(y), P @ y, rtol=1e-8)


@needs_x64
@pytest.mark.long
def test_derivatives_against_differences():
    rng = np.random.default_rng(71)
    base = (*data(), *numbers(0.05, 0.4, 0.8))
    move = [jnp.asarray(rng.normal(size=z.shape)) * (0.01 if z.ndim == 0 else z) for z in base]

    def observed(t):
        s = solve(*(z + t * d for z, d in zip(base, move, strict=True)))
        return jnp.stack([s.regularized_cost, s.transport_cost, jnp.sum(jnp.sin(s.f)) + s.g[3]])

    h = 1e-3
    difference = (8 * (observed(h) - observed(-h)) - (observed(2 * h) - observed(-2 * h))) / (12 * h)
    np.testing.assert_allclose(jax.jacfwd(observed)(0.0), difference, rtol=1e-6)
    np.testing.assert_allclose(jax.jacrev(observed)(0.0), difference, rtol=1e-6)


@pytest.mark.long
def test_never_stored_equals_stored_and_batches():
    x, y, a, b = data()
    lazy = unbalanced_sinkhorn(PointCloud(x, y, tile=60), a, b, epsilon=0.02, rho=0.5)
    stored = solve(x, y, a, b, *numbers(0.02, 0.5, 0.5))
    np.testing.assert_allclose(lazy.f, stored.f, atol=1e-7 if X64 else 1e-3)
    np.testing.assert_allclose(lazy.transport_cost, stored.transport_cost, rtol=1e-6 if X64 else 1e-3)
    rho = jnp.asarray([0.5, 5.0], FLOAT)
    many = jax.vmap(lambda r: solve(x, y, a, b, *numbers(0.02), r, r))(rho)
    np.testing.assert_allclose(many.f[0], stored.f, atol=1e-7 if X64 else 1e-3)
    assert many.mass.shape == (2,)


def test_bad_values_are_named_without_a_step():
    x, y, a, b = data()
    for change, status in [
        ((x * jnp.nan, y, a, b), Status.NONFINITE),
        ((x, y, -a, b), TransportStatus.NEGATIVE_WEIGHTS),
        ((x, y, 0 * a, b), TransportStatus.ZERO_MASS),
    ]:
        solution = solve(*change, *numbers(0.02, 0.5, 0.5))
        assert solution.status == status
        assert solution.num_steps == 0
    with pytest.raises(ValueError, match="`rho`"):
        unbalanced_sinkhorn(PointCloud(x, y), a, b, epsilon=0.1, rho=(None, None))
    with pytest.raises(ValueError, match="positive number"):
        unbalanced_sinkhorn(PointCloud(x, y), a, b, epsilon=0.1, rho=-1.0)


@pytest.mark.parametrize("solver", [sinkhorn, sns_sinkhorn])
def test_the_old_keyword_names_the_new_call(solver):
    with pytest.raises(ValueError, match="unbalanced_sinkhorn"):
        solver(jnp.zeros((2, 2), FLOAT), epsilon=0.1, unbalanced=0.5)


def test_options_that_would_be_ignored_raise():
    with pytest.raises(ValueError, match="`anneal`"):
        unbalanced_sinkhorn(jnp.zeros((2, 2), FLOAT), epsilon=0.1, rho=1.0, method="scaling", anneal=False)
    for ignored in ({"hessian": "dense"}, {"anneal": False}):
        with pytest.raises(ValueError, match="`published`"):
            sns_sinkhorn(jnp.zeros((2, 2), FLOAT), epsilon=0.1, published=PublishedSNS(), **ignored)


@needs_x64
def test_hessian_may_be_an_object():
    x, y, _, _ = data()
    rows = sns_sinkhorn(PointCloud(x, y), epsilon=0.01, hessian=DenseCG(max_steps=40))
    np.testing.assert_allclose(rows.f, sns_sinkhorn(PointCloud(x, y), epsilon=0.01).f, atol=1e-8)
    with pytest.raises(ValueError, match="`hessian`"):
        sns_sinkhorn(PointCloud(x, y), epsilon=0.01, hessian=object())
