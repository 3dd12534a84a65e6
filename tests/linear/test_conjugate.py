"""The conjugate gradient family and multigrid against NumPy, dense algebra and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solvers
from solvers import LinearStatus, MatrixFree, Status, Stencil, multigrid_cg

from ..compiled import chebyshev_cg, flexible_cg, sor, ssor, ssor_cg
from .reference import dense, pcg

X64 = jax.config.jax_enable_x64
DTYPE = jnp.result_type(float)
TOL = 1e-9 if X64 else 1e-4
RNG = np.random.default_rng(37)
NINE = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
SHAPE = (9, 10)
VARYING = Stencil.diffusion(jnp.asarray(np.exp(RNG.standard_normal(SHAPE)), DTYPE), scale=2.0, shift=0.3)
B = jnp.asarray(RNG.standard_normal(SHAPE), DTYPE)
M = dense(VARYING, SHAPE)
# Two levels of multigrid compile in a third of the time of three; where the answer does not depend on it, use these.
SMALL = Stencil.diffusion(jnp.asarray(np.exp(RNG.standard_normal((5, 4))), DTYPE), scale=2.0, shift=0.3)
SMALL_B = B[:5, :4]


def identity(r, _):
    return r


SOLVERS = {
    "sor": lambda A, b, **k: sor(A, b, omega=1.5, **k),
    "ssor": lambda A, b, **k: ssor(A, b, omega=1.3, **k),
    "ssor_cg": lambda A, b, **k: ssor_cg(A, b, omega=1.1, **k),
    "chebyshev_cg": chebyshev_cg,
    "flexible_cg": lambda A, b, **k: flexible_cg(A, b, precondition=identity, **k),
    "multigrid_cg": multigrid_cg,
    "multigrid_cg red-black": lambda A, b, **k: multigrid_cg(A, b, smoother="red-black", degree=1, cycle="W", **k),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_all_solve_what_a_dense_solve_solves(name):
    sol = SOLVERS[name](VARYING, B, tol=TOL)
    want = np.linalg.solve(M, np.asarray(B, np.float64).ravel())
    assert sol.converged
    true = np.linalg.norm(M @ np.asarray(sol.value, np.float64).ravel() - np.asarray(B).ravel()) / np.linalg.norm(B)
    np.testing.assert_allclose(float(sol.error), true, rtol=0.05, atol=10 * float(jnp.finfo(DTYPE).eps))
    np.testing.assert_allclose(sol.value.ravel(), want, atol=TOL * 1e3)


@pytest.mark.parametrize("name", ["sor", "chebyshev_cg", "multigrid_cg"])
@pytest.mark.long
def test_derivatives_are_those_of_a_dense_solve(name):
    """Against automatic differentiation of a dense solve: reverse, forward, and forward over reverse."""
    offsets, direction = SMALL.offsets, jnp.asarray(RNG.standard_normal(SMALL_B.shape), DTYPE)

    def matrix(c):
        eye = jnp.eye(SMALL_B.size, dtype=DTYPE).reshape(-1, *SMALL_B.shape)
        return jax.vmap(Stencil(c, offsets).mv)(eye).reshape(SMALL_B.size, SMALL_B.size).T

    def loss(c, b, solve):
        return jnp.sum(direction * solve(c, b) ** 2)

    ours = jax.jit(lambda c, b: SOLVERS[name](Stencil(c, offsets), b, tol=TOL / 100, max_steps=400).value)
    exact = jax.jit(lambda c, b: jnp.linalg.solve(matrix(c), b.ravel()).reshape(SMALL_B.shape))
    data = SMALL.coefficients, SMALL_B
    got, want = (jax.jit(jax.grad(lambda c, b: loss(c, b, f), (0, 1)))(*data) for f in (ours, exact))
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(
            x, y, rtol=1e-5 if X64 else 0.02, atol=(1e-6 if X64 else 0.01) * float(jnp.abs(y).max())
        )

    # The stencil stays symmetric along this direction: twice the data, so second order has a meaning for CG too.
    def along(f):
        slope = jax.grad(lambda s: loss(s * data[0], data[1], f))
        return jax.jit(lambda s: jax.jvp(slope, (s,), (jnp.ones_like(s),)))(jnp.ones((), DTYPE))

    for x, y in zip(along(ours), along(exact), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5 if X64 else 0.02)


def test_chebyshev_of_degree_one_is_jacobi_cg():
    steps, x = pcg(M, np.asarray(B, np.float64).ravel(), lambda r: r / np.diag(M), 1e-4)
    sol = chebyshev_cg(VARYING, B, degree=1, tol=1e-4)
    assert int(sol.num_steps) == steps
    np.testing.assert_allclose(sol.value.ravel(), x, atol=1e-3)


@pytest.mark.long
def test_ssor_cg_in_natural_order_is_the_textbook_one():
    w, D, L = 1.4, np.diag(np.diag(M)), np.tril(M, -1)
    P = (D / w + L) @ np.linalg.inv(D) @ (D / w + L).T * w / (2 - w)
    steps, x = pcg(M, np.asarray(B, np.float64).ravel(), lambda r: np.linalg.solve(P, r), 1e-4)
    for system in (VARYING.rows(SHAPE, ordering="natural"), jnp.asarray(M, DTYPE)):
        sol = ssor_cg(system, B.ravel(), omega=w, tol=1e-4)
        assert int(sol.num_steps) == steps
        np.testing.assert_allclose(sol.value, x, atol=1e-3)


def test_identity_reproduces_conjugate_gradients():
    steps, x = pcg(M, np.asarray(B, np.float64).ravel(), lambda r: r, 1e-4)
    sol = flexible_cg(VARYING, B, precondition=identity, tol=1e-4, history=True)
    assert abs(int(sol.num_steps) - steps) <= (0 if X64 else 2)
    np.testing.assert_allclose(sol.value.ravel(), x, atol=1e-6 if X64 else 2e-3)
    assert np.isfinite(np.asarray(sol.history)).sum() == int(sol.num_steps) + 1


def test_a_nonlinear_preconditioner():
    weights = jnp.asarray(3.0, DTYPE)
    sol = flexible_cg(
        VARYING, B, precondition=lambda r, w: jnp.tanh(w * r / jnp.max(jnp.abs(r))), args=weights, tol=TOL
    )
    assert sol.converged
    with pytest.raises(ValueError, match="precondition"):
        flexible_cg(VARYING, B, precondition=lambda r, _: r[0])


def test_a_function_is_traced_once():
    calls = []

    def product(x, d):
        calls.append(1)
        return d * x + jnp.sum(x)

    d = jnp.asarray([1.0, 2.0, 3.0], DTYPE)
    system = MatrixFree(product, d + 1, args=d)
    b = jnp.asarray([1.0, 0.0, 2.0], DTYPE)
    got = chebyshev_cg(system, b, tol=TOL).value
    np.testing.assert_allclose(got, np.linalg.solve(np.diag(d) + 1, b), atol=TOL * 10)
    assert len(calls) <= 2
    slope = jax.grad(lambda d: jnp.sum(chebyshev_cg(MatrixFree(product, d + 1, args=d), b, tol=TOL).value))(d)
    want = jax.grad(lambda d: jnp.sum(jnp.linalg.solve(jnp.diag(d) + 1, b)))(d)
    np.testing.assert_allclose(slope, want, atol=TOL * 100)


@pytest.mark.parametrize("name", ["ssor_cg", "chebyshev_cg", "flexible_cg", "multigrid_cg"])
def test_indefinite_systems_say_so(name):
    A = Stencil.laplacian(2, shift=jnp.asarray(-1.0, DTYPE))
    # small grids of constant coefficients multigrid solves directly, indefinite or not
    varying = jnp.broadcast_to(A.coefficients[:, None, None], (5, *B.shape))
    sol = SOLVERS[name](Stencil(varying, A.offsets), B)
    assert sol.status == LinearStatus.INDEFINITE
    assert jnp.all(jnp.isfinite(sol.value))
    assert sol.error <= 1


@pytest.mark.parametrize("name", SOLVERS)
def test_ends(name):
    solve = jax.jit(lambda A, b, tol, steps: SOLVERS[name](A, b, tol=tol, max_steps=steps))
    zero = solve(SMALL, 0 * SMALL_B, TOL, 50)
    assert (int(zero.status), int(zero.num_steps), float(zero.error)) == (0, 0, 0.0)
    assert solve(SMALL, SMALL_B, TOL, 0).status == Status.MAX_STEPS
    assert jnp.all(solve(SMALL, SMALL_B, TOL, 0).value == 0)
    assert solve(SMALL, SMALL_B, TOL, 1).num_steps == 1
    lost = solve(SMALL, SMALL_B.at[3, 3].set(jnp.nan), TOL, 50)
    assert (int(lost.status), int(lost.num_steps)) == (Status.NONFINITE, 0)
    below = solve(SMALL, SMALL_B, 1e-25, 3000)
    assert below.status == Status.STAGNATED
    assert below.error < (1e-13 if X64 else 1e-5)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: chebyshev_cg(VARYING, B, degree=0), ValueError, "`degree`"),
        (lambda: solvers.chebyshev_cg(VARYING, B, ratio=0.5), ValueError, "`ratio`"),
        (lambda: multigrid_cg(jnp.eye(3), jnp.ones(3)), TypeError, "Stencil"),
        (lambda: flexible_cg(VARYING, B, precondition=3), TypeError, "callable"),
        (lambda: flexible_cg(VARYING, B, precondition=identity, directions=0), ValueError, "`directions`"),
        (lambda: chebyshev_cg(MatrixFree(lambda x, _: x[:2]), jnp.ones(3)), ValueError, "shape"),
        (lambda: ssor_cg(MatrixFree(lambda x, _: x), jnp.ones(3)), ValueError, "swept"),
    ],
)
def test_bad_input_raises(call, error, says):
    with pytest.raises(error, match=says):
        call()
