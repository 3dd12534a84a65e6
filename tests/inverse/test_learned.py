"""Learned proximal maps: a potential known by hand, what any network must be, and training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Status, inverse
from solvers.core.operators import MatrixOperator
from solvers.inverse.learned.matching import likely

from ..conftest import FLOAT

DOUBLE = FLOAT == "float64"


def by_hand(y):
    """Half the squared distance beyond one: its gradient is soft thresholding."""
    return jnp.sum(jnp.maximum(jnp.abs(y) - 1, 0) ** 2) / 2


def network(size=6):
    return inverse.LearnedProx(
        inverse.convex_network(jax.random.key(13), size, width=12, depth=3, strong=0.1, dtype=FLOAT)
    )


IMAGES = inverse.LearnedProx(
    inverse.convex_network(jax.random.key(17), None, width=4, depth=2, strong=0.1, dtype=FLOAT)
)


def test_the_potential_by_hand_is_soft_thresholding():
    """And its function is the absolute value, with derivative ``sign``."""
    model = inverse.LearnedProx(by_hand)
    y = jnp.linspace(-3, 3, 13, dtype=FLOAT)
    np.testing.assert_allclose(model.prox(y), jnp.sign(y) * jnp.maximum(jnp.abs(y) - 1, 0), atol=1e-6)
    x = jnp.asarray([2.0, -0.5], FLOAT)
    np.testing.assert_allclose(model.regularizer(x), 2.5, atol=1e-5)
    np.testing.assert_allclose(jax.grad(model.regularizer)(x), [1, -1], atol=1e-5)


@pytest.mark.parametrize("kind", ["vectors", "images"])
def test_any_network_is_a_proximal_map(kind, rng):
    """Its Jacobian is symmetric positive definite, with nothing clipped."""
    model, shape = (network(), (6,)) if kind == "vectors" else (IMAGES, (5, 4))
    y = jnp.asarray(rng.standard_normal(shape), FLOAT)
    count = y.size
    J = jax.jit(jax.jacobian(model.prox))(y).reshape(count, count)
    # A GPU's library chooses among convolutions, of which some are good to ten digits in float64.
    tol = 1e-12 if jax.default_backend() == "cpu" else 1e-9
    np.testing.assert_allclose(J, J.T, atol=tol if DOUBLE else 1e-5)
    assert np.linalg.eigvalsh(J)[0] >= 0.1 - 1e-5
    assert np.linalg.eigvalsh(J)[-1] > 0.2


@pytest.mark.parametrize("kind", ["vectors", "images"])
@pytest.mark.long
def test_inversion_and_the_duality_identity(kind, rng):
    """``prox(invert(x)) = x`` to 1e-8, in fewer than a tenth of the published thousand gradients."""
    model, shape = (network(), (6,)) if kind == "vectors" else (IMAGES, (5, 4))
    y = jnp.asarray(2 * rng.standard_normal(shape), FLOAT)
    x = model.prox(y)
    found = jax.jit(lambda x: model.invert(x))(x)
    assert found.converged, found
    tol = 1e-8 if DOUBLE else 1e-4
    np.testing.assert_allclose(model.prox(found.value), x, atol=tol)
    assert found.num_evaluations + found.linear_steps <= 100
    identity = jnp.vdot(y, x) - jnp.vdot(x, x) / 2 - model.potential(y)
    np.testing.assert_allclose(model.regularizer(x), identity, rtol=1e-7 if DOUBLE else 1e-4)
    np.testing.assert_allclose(jax.grad(model.regularizer)(x), y - x, atol=10 * tol)


def test_a_point_without_a_preimage_is_not_claimed():
    """The gradient of ``sqrt(1 + y^2)`` stays below one: 2 has no preimage, and R there is infinite; NaN is said."""
    model = inverse.LearnedProx(lambda y: jnp.sum(jnp.sqrt(1 + y * y)))
    x = jnp.asarray([2.0], FLOAT)
    found = model.invert(x)
    assert not found.converged
    assert jnp.isnan(model.regularizer(x))
    assert model.invert(x * jnp.nan).status == Status.NONFINITE


def test_plug_and_play_solves_the_variational_problem(rng):
    """ADMM and proximal gradients with a network find a point where ``A'(A x - y) + rho grad R(x) = 0``."""
    model, rho = network(), 20.0
    matrix = jnp.asarray(rng.standard_normal((9, 6)), FLOAT)
    y = matrix @ model.prox(jnp.asarray(rng.standard_normal(6), FLOAT)) + 0.1 * jnp.asarray(
        rng.standard_normal(9), FLOAT
    )
    A, tol = MatrixOperator(matrix), 1e-8 if DOUBLE else 2e-4
    split = inverse.admm(A, y, model, penalty=rho, tol=tol, max_steps=2000)
    descent = inverse.pgd(A, y, model, step=1 / rho, accelerated=False, tol=tol, max_steps=4000)
    assert split.converged
    assert descent.converged
    for solution in (split, descent):
        slope = rho * jax.grad(model.regularizer)(solution.value)
        gradient = matrix.T @ (matrix @ solution.value - y)
        assert jnp.linalg.norm(gradient + slope) <= (1e-5 if DOUBLE else 5e-2) * jnp.linalg.norm(matrix.T @ y)


def test_losses_have_their_known_optima():
    """Of the estimates of a skewed sample: mean, median, and near the mode for a small gamma."""
    sample = jnp.asarray([0.0, 0.0, 0.05, -0.05, 1.0, 2.0, 4.0], FLOAT)[:, None]
    grid = jnp.linspace(-1, 4, 2001, dtype=FLOAT)[:, None]
    best = lambda loss: grid[jnp.argmin(jax.vmap(lambda e: jnp.mean(jax.vmap(lambda x: loss(e, x))(sample)))(grid)), 0]  # noqa: E731
    np.testing.assert_allclose(best(inverse.squared_loss), 1.0, atol=5e-3)
    np.testing.assert_allclose(best(inverse.absolute_loss), 0.05, atol=5e-3)
    np.testing.assert_allclose(best(inverse.proximal_matching_loss(0.1)), 0.0, atol=5e-3)


@pytest.mark.parametrize(("gamma", "off"), [(0.1, 0.111), (0.03, 0.043), (0.02, 0.031)])
def test_what_matching_minimises_is_off_the_proximal_map_by_its_width(gamma, off):
    """Laplace prior, unit noise, at the kink y = 1 where soft thresholding is 0: expected losses by quadrature."""
    truth, estimates = np.linspace(-1, 3, 16001), np.linspace(0, 0.2, 201)
    weight = np.exp(-np.abs(truth) - (1 - truth) ** 2 / 2)
    loss = jax.vmap(inverse.proximal_matching_loss(gamma), (None, 0))
    given = [jnp.asarray(x, FLOAT) for x in (estimates[:, None], truth[:, None], weight)]
    expected = jax.jit(lambda e, x, w: jax.vmap(lambda one: loss(one, x) @ w)(e))(*given)
    assert abs(estimates[np.argmin(expected)] - off) < (0.002 if DOUBLE else 0.02)


@pytest.mark.long
def test_training_goes_down_and_is_repeatable():
    draw = lambda key: jax.random.laplace(key, (64, 6), FLOAT)  # noqa: E731
    seen = []
    stages = (
        inverse.Stage(inverse.squared_loss, 60, 1e-2),
        inverse.Stage(inverse.proximal_matching_loss(2.0), 20, 1e-3),
    )
    fit = lambda **more: inverse.fit_prox(network(), draw, jax.random.key(19), noise=1.0, stages=stages, **more)  # noqa: E731
    once, again = fit(), fit(progress=lambda step, loss: seen.append(step))
    assert once.losses.shape == (80,)
    assert np.mean(once.losses[40:60]) < 0.93 * np.mean(once.losses[:10])
    assert seen == sorted(seen)
    assert seen[-1] == 80
    np.testing.assert_allclose(once.losses, again.losses, rtol=1e-3)
    with pytest.raises(TypeError, match="LearnedProx"):
        inverse.fit_prox(by_hand, draw, jax.random.key(19), noise=1.0)


@pytest.mark.long
def test_training_at_points_of_ones_own_has_the_same_optimum():
    """A normal prior and unit noise: squared errors are least at y / 2, also far out, where no example lies."""

    def draw(key):
        return jax.random.normal(key, (256, 1), FLOAT)

    def at(key):
        return (jnp.arange(32, dtype=FLOAT) + jax.random.uniform(key, (32,), FLOAT))[:, None] / 4 - 4

    stages = (inverse.Stage(inverse.squared_loss, 300, 2e-2),)
    flat = inverse.LearnedProx(inverse.convex_network(jax.random.key(3), 1, width=8, depth=2, beta=2.0, dtype=FLOAT))
    fitted = inverse.fit_prox(flat, draw, jax.random.key(19), noise=1.0, stages=stages, at=at)
    y = jnp.linspace(-3, 3, 25, dtype=FLOAT)[:, None]
    assert jnp.max(jnp.abs(jax.vmap(fitted.model.prox)(y) - y / 2)) < 0.1


def test_a_noisy_point_comes_from_any_example_with_the_chance_that_bayes_gives():
    clean, noisy = jnp.asarray([[0.0, 1.0], [2.0, 0.0]], FLOAT), jnp.asarray([[1.0, 1.0]], FLOAT)
    chances = np.exp([-0.5 / 0.64, -1.0 / 0.64])
    np.testing.assert_allclose(likely(noisy, clean, 0.8)[0], chances / chances.sum(), rtol=1e-5)
