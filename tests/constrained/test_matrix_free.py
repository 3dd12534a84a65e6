"""The matrix-free path: the same answers as the dense one, and PDE control at a size where that is hopeless."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import DiagonalPreconditioner, KrylovKKT, NystromPreconditioner, Status
from solvers.constrained.matrix_free import ProductModel
from solvers.core.krylov.minres import minres
from solvers.problems.constrained import pde_control, pde_preconditioner

from ..compiled import sketched_newton
from ..conftest import FLOAT, needs_x64
from .shared import problem


@needs_x64
@pytest.mark.long
def test_agrees_with_the_dense_path_on_hs78_with_its_derivative():
    p = problem("HS78")

    def answer(kkt):
        def value(r):
            s = sketched_newton(
                lambda x, r: p.objective(x, None), p.x0, equality=lambda x, r: p.equality(x, None) - r, args=r, kkt=kkt
            )
            return s.value[0], s

        (_, s), slope = jax.value_and_grad(value, has_aux=True)(jnp.asarray([0.1, 0.0, -0.1]))
        return s, slope

    (dense, slope), (krylov, same) = answer("dense"), answer("krylov")
    assert krylov.status == Status.CONVERGED
    np.testing.assert_allclose(krylov.value, dense.value, atol=1e-7)
    np.testing.assert_allclose(krylov.multipliers, dense.multipliers, atol=1e-7)
    np.testing.assert_allclose(same, slope, rtol=1e-5)


@needs_x64
@pytest.mark.long
def test_pde_control_on_31_by_31_in_few_inner_steps():
    p = pde_control(31)
    kkt = KrylovKKT(pde_preconditioner(31))
    s = sketched_newton(p.objective, p.x0, equality=p.equality, args=p.args, kkt=kkt).check()
    np.testing.assert_allclose(s.objective, 1129.5124, rtol=1e-7)  # IPOPT on the same grid
    assert s.num_steps <= 8
    assert s.num_inner <= 20 * s.num_steps
    assert s.value["state"].shape == (31, 31)


@needs_x64
def test_an_infeasible_problem_is_called_so_without_matrices():
    s = sketched_newton(
        lambda x, _: jnp.sum(x**2), jnp.asarray([2.0, 1.0], FLOAT), equality=lambda x, _: x[:1] ** 2 + 1, kkt="krylov"
    )
    assert s.status == Status.INFEASIBLE
    np.testing.assert_allclose(s.value[0], 0, atol=1e-2)


def products(H, G):
    return ProductModel(lambda v: H @ v, lambda v: G @ v, lambda u: u @ G)


def decaying(rng, n, ridge):
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (U * np.arange(1.0, n + 1) ** -2) @ U.T + ridge * np.eye(n)


def test_nystrom_clusters_the_spectrum_and_its_complement_is_that_of_its_own_metric(rng):
    n, m, ridge = 40, 4, 1e-3
    H, G = decaying(rng, n, ridge), rng.standard_normal((m, n))
    build = NystromPreconditioner(jax.random.key(3), rank=20, oversampling=n // m).build
    apply = build(products(jnp.asarray(H, FLOAT), jnp.asarray(G, FLOAT)), n, m, shift=0.0, damping=0.0, dtype=FLOAT)
    inverse, complement = (
        np.asarray(a, float)
        for a in (
            jax.vmap(lambda v: apply(v, jnp.zeros(m, FLOAT))[0])(jnp.eye(n, dtype=FLOAT)),
            jax.vmap(lambda u: apply(jnp.zeros(n, FLOAT), u)[1])(jnp.eye(m, dtype=FLOAT)),
        )
    )
    values = np.linalg.eigvals(inverse @ H).real
    assert np.linalg.cond(H) > 500
    assert values.min() > 0
    assert values.max() / values.min() < 12
    np.testing.assert_allclose(complement @ G @ inverse @ G.T, np.eye(m), atol=1e-6 if FLOAT == "float64" else 2e-2)


@pytest.mark.long
def test_a_sketch_bounds_the_condition_whatever_that_of_the_jacobian(rng):
    n, m = 400, 8
    G = np.logspace(0, -3, m)[:, None] * rng.standard_normal((m, n))
    build = NystromPreconditioner(jax.random.key(3), rank=2, oversampling=6).build
    model = products(jnp.eye(n, dtype=FLOAT), jnp.asarray(G, FLOAT))
    apply = build(model, n, m, shift=0.0, damping=0.0, dtype=FLOAT)
    inverse = jax.vmap(lambda u: apply(jnp.zeros(n, FLOAT), u)[1])(jnp.eye(m, dtype=FLOAT))
    values = np.linalg.eigvals(np.asarray(inverse, float) @ G @ G.T).real
    assert np.linalg.cond(G @ G.T) > 1e5
    q = 6**-0.5
    assert values.max() / values.min() < 1.5 * ((1 + q) / (1 - q)) ** 2


def test_diagonals_of_diagonal_matrices_are_exact(rng):
    d = rng.uniform(1, 100, 20)
    G = np.zeros((2, 20))
    G[0, 3], G[1, 7] = 2.0, 0.1
    build = DiagonalPreconditioner(jax.random.key(3), probes=2).build
    apply = build(
        products(jnp.asarray(np.diag(d), FLOAT), jnp.asarray(G, FLOAT)), 20, 2, shift=0.5, damping=0, dtype=FLOAT
    )
    px, pc = apply(jnp.ones(20, FLOAT), jnp.ones(2, FLOAT))
    np.testing.assert_allclose(px, 1 / (d + 0.5), rtol=1e-3)
    np.testing.assert_allclose(pc, [(d[3] + 0.5) / 4, (d[7] + 0.5) / 0.01], rtol=1e-3)


@needs_x64
@pytest.mark.long
def test_nystrom_saves_inner_steps_on_a_decaying_hessian(rng):
    n, m = 120, 3
    H, G = decaying(rng, n, 1e-5), rng.standard_normal((m, n))
    model = products(jnp.asarray(H), jnp.asarray(G))
    rhs = jnp.asarray(rng.standard_normal(n)), jnp.asarray(rng.standard_normal(m))
    key = jax.random.key(3)
    helper = NystromPreconditioner(key, rank=40).build(model, n, m, shift=0.0, damping=0.0, dtype=FLOAT)

    def product(z):
        return model.hessian(z[0]) + model.adjoint(z[1]), model.jacobian(z[0])

    def steps(precondition, tol):
        solved = minres(product, rhs, tol=tol, max_steps=2000, precondition=precondition)
        residual = jnp.hypot(*(jnp.linalg.norm(a - b) for a, b in zip(product(solved.x), rhs, strict=True)))
        return int(solved.num_steps), float(residual)

    (plain, left), (helped, right) = steps(None, 1e-6), steps(lambda r: helper(*r), 1e-8)
    assert max(left, right) < 1e-5
    assert 3 * helped < plain
