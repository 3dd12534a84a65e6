"""Directions from functions: what they must not break, what they are trained on, and that training helps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import (
    ConvPreconditioner,
    LinearStatus,
    MatrixFree,
    Status,
    Stencil,
    energy_residual_loss,
    fit_preconditioner,
    flexible_cg,
    ritz_dataset,
)
from solvers.core.precision import matmul
from solvers.linear.learned.preconditioner_training import _waves
from solvers.problems.linear import poisson_with_obstacles

from ..conftest import FLOAT, X64

SHAPE = (12, 12)
TIGHT = 1e-13 if X64 else 1e-4


def obstacles(key=jax.random.key(6), shape=SHAPE):
    found = poisson_with_obstacles(key, shape, count=3, dtype=FLOAT)
    return Stencil(found.coefficients, found.offsets), found.fluid


def dense(A, shape=SHAPE):
    eye = jnp.eye(int(np.prod(shape)), dtype=FLOAT).reshape(-1, *shape)
    return np.asarray(jax.vmap(A.mv)(eye).reshape(eye.shape[0], -1), np.float64)


def right_side(fluid, seed=9):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(fluid.shape), FLOAT) * fluid


def textbook(matrix, b, steps):
    """Return the relative residuals of conjugate gradients, in NumPy."""
    x, r = np.zeros_like(b), b.copy()
    p, sizes = r.copy(), [1.0]
    for _ in range(steps):
        q = matrix @ p
        a = (r @ r) / (p @ q)
        x, new = x + a * p, r - a * q
        p, r = new + (new @ new) / (r @ r) * p, new
        sizes.append(np.linalg.norm(r) / np.linalg.norm(b))
    return np.array(sizes)


def test_the_matrix_is_symmetric_positive_and_ignores_the_obstacles():
    A, fluid = obstacles()
    matrix = dense(A)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix)[0] > 0
    inside = np.asarray(fluid).ravel() > 0
    assert 0.5 < inside.mean() < 1
    np.testing.assert_array_equal(matrix[np.ix_(inside, ~inside)], 0)


def test_the_identity_is_conjugate_gradients():
    """The notes' figure: the whole history of residuals, to 1e-13 of the first."""
    A, fluid = obstacles()
    b = right_side(fluid)
    s = flexible_cg(A, b, precondition=lambda r, _: r, tol=1e-10 if X64 else 1e-4, history=64)
    expected = textbook(dense(A), np.asarray(b, np.float64).ravel(), int(s.num_steps))
    assert s.num_steps > 20
    most = int(s.num_steps) + 1 if X64 else 12  # in float32 rounding has its way later
    np.testing.assert_allclose(s.history[:most], expected[:most], atol=TIGHT)


@pytest.mark.parametrize("scale", [3.7, 1e-8, 1e8])
def test_a_multiple_of_the_inverse_takes_one_step(scale):
    A, fluid = obstacles()
    inverse = jnp.asarray(scale * np.linalg.inv(dense(A)), FLOAT)

    def exact(r, inverse):
        return matmul(inverse, r.ravel()).reshape(r.shape)

    s = flexible_cg(A, right_side(fluid), precondition=exact, args=inverse, tol=1e-12 if X64 else 1e-4)
    assert s.converged
    assert s.num_steps == 1


@pytest.mark.parametrize("harm", ["noise", "opposite", "zero", "nan"])
def test_a_bad_network_never_lies(harm):
    """Noise still converges; a direction upwards is the same line; none, or NaN, ends and says so."""
    A, fluid = obstacles()
    b, rng = right_side(fluid), jnp.asarray(np.random.default_rng(3).standard_normal(SHAPE), FLOAT)

    def bad(r, rng):
        return {"noise": r + 0.3 * jnp.abs(r) * rng, "opposite": -r, "zero": 0 * r, "nan": r * jnp.nan}[harm]

    s = flexible_cg(A, b, precondition=bad, args=rng, tol=1e-8 if X64 else 1e-4, max_steps=400)
    left = np.linalg.norm(b - A.mv(s.value)) / np.linalg.norm(b)
    assert np.isfinite(left)
    if harm in ("noise", "opposite"):
        assert s.converged
        assert left <= 1.01 * float(s.tol)
    else:
        assert s.status in (int(LinearStatus.INDEFINITE), int(Status.NONFINITE), int(Status.STAGNATED))


def test_the_loss_knows_the_inverse_and_no_scale():
    A, fluid = obstacles()
    r = right_side(fluid)
    solved = jnp.asarray(np.linalg.solve(dense(A), np.asarray(r, np.float64).ravel()).reshape(SHAPE), FLOAT)
    assert energy_residual_loss(A, solved, r) < (1e-24 if X64 else 1e-8)
    one = energy_residual_loss(A, r, r)
    np.testing.assert_allclose(energy_residual_loss(A, -7 * r, 1e3 * r), one, rtol=1e-4)
    after = flexible_cg(A, r, precondition=lambda r, _: r, tol=0.0, max_steps=1)
    np.testing.assert_allclose(one, after.error**2, rtol=1e-4)
    assert energy_residual_loss(A, 0 * r, r) == 1


@pytest.mark.long
def test_ritz_data_are_combinations_of_low_modes():
    """Unit vectors; Ritz values within the spectrum, the smallest a bound from above; low modes carry the weight."""
    A = Stencil.laplacian(2)
    data = ritz_dataset(A, SHAPE, jax.random.key(5), samples=40, vectors=60)
    exact = np.linalg.eigvalsh(dense(A))
    np.testing.assert_allclose(jnp.sum(data.residuals**2, (1, 2)), 1, rtol=1e-4)
    assert exact[0] * (1 - 1e-4) <= data.values[0] <= 1.1 * exact[0]
    assert data.values[-1] <= exact[-1] * (1 + 1e-4)
    quotients = jax.vmap(lambda r: jnp.sum(r * A.mv(r)))(data.residuals)
    assert jnp.mean(quotients) < 0.6 * np.mean(exact)


def test_ritz_data_leave_zero_modes_out():
    """A Laplacian with Neumann ends: the constant is no residual of any system that can be solved."""

    def product(x, _):
        return -jnp.diff(jnp.diff(x, prepend=x[:1], append=x[-1:]))

    A = MatrixFree(product, args=jnp.ones((), FLOAT))
    data = ritz_dataset(A, (16,), jax.random.key(8), samples=9, vectors=16)
    np.testing.assert_allclose(jnp.sum(data.residuals, 1), 0, atol=1e-6 if X64 else 1e-2)


@pytest.mark.long
def test_the_network_keeps_scale_and_geometry():
    _, fluid = obstacles(shape=(11, 7))
    model = ConvPreconditioner.init(jax.random.key(2), 2, channels=3, levels=3, geometry=True, dtype=FLOAT)
    r = right_side(fluid)
    d = model(r, fluid)
    np.testing.assert_allclose(model(1e-20 * r, fluid) / 1e-20, d, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(jnp.where(fluid > 0, 0, d), 0)
    np.testing.assert_array_equal(model(0 * r, fluid), 0)


@pytest.mark.long
def test_training_on_a_family_saves_steps_elsewhere():
    """Trained on random obstacles, used on others: fewer steps than without, and the same solution."""
    model = ConvPreconditioner.init(jax.random.key(3), 2, channels=6, levels=3, geometry=True, dtype=jnp.float32)

    def draw(key):
        found = poisson_with_obstacles(key, SHAPE, count=3, dtype=jnp.float32)
        return Stencil(found.coefficients, found.offsets), found.fluid

    seen = []
    trained = fit_preconditioner(
        model, draw, SHAPE, jax.random.key(4), steps=150, batch=6, learning_rate=6e-3,
        progress=lambda k, loss: seen.append(k),
    )  # fmt: skip
    assert seen[-1] == 150
    assert np.mean(trained.losses[-20:]) < 0.7 * np.mean(trained.losses[:20])
    A, fluid = obstacles(jax.random.key(99))
    b = right_side(fluid)
    solve = partial(flexible_cg, A, b, tol=1e-6 if X64 else 1e-4)
    plain = solve(precondition=lambda r, _: r)
    learned = solve(precondition=lambda r, a: a[0](r, a[1]), args=(trained.model, fluid))
    assert learned.converged
    assert int(learned.num_steps) <= 0.7 * int(plain.num_steps), (learned, plain)
    np.testing.assert_allclose(learned.value, plain.value, atol=1e-4 if X64 else 2e-2)


@pytest.mark.long
def test_published_training_lowers_the_published_loss():
    A = Stencil.laplacian(2)
    data = ritz_dataset(A, SHAPE, jax.random.key(5), samples=64, vectors=40)
    model = ConvPreconditioner.init(jax.random.key(3), 2, channels=4, levels=2, dtype=FLOAT)
    trained = fit_preconditioner(
        model, A, SHAPE, jax.random.key(4), steps=80, batch=8, residuals=data.residuals, learning_rate=5e-3
    )
    assert np.mean(trained.losses[-10:]) < 0.7 * np.mean(trained.losses[:10])


def test_right_sides_have_waves_of_all_lengths():
    waves = jax.vmap(lambda k: _waves(k, (32,), FLOAT))(jax.random.split(jax.random.key(3), 200))
    power = jnp.mean(jnp.abs(jnp.fft.rfft(waves)) ** 2, 0)
    assert power[1] > 20 * power[-1]
    assert power[-1] > 0


def test_refusals():
    model = ConvPreconditioner.init(jax.random.key(3), 2, channels=2, levels=1)
    with pytest.raises(ValueError, match="geometry"):
        model(jnp.ones(SHAPE), jnp.ones(SHAPE))
    with pytest.raises(TypeError, match="system"):
        fit_preconditioner(model, 3.0, SHAPE, jax.random.key(3), steps=1)
    with pytest.raises(ValueError, match="residuals"):
        fit_preconditioner(model, Stencil.laplacian(2), SHAPE, jax.random.key(3), steps=1, residuals=jnp.ones((9, 3)))
