"""Test functions of Wendland, quadrature in balls, weak residuals of media that jump, and operator networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import DeepONet, MultiONet, ball_rule, darcy_residuals, weak_residual, wendland

from ..conftest import FLOAT, X64, needs_x64

GAP = 1e-12 if X64 else 2e-5


def published(r, d):
    """Return Wendland's function with four derivatives and its slope, as the paper's code has them."""
    k = d // 2 + 3
    value = (1 - r) ** (k + 2) * ((k**2 + 4 * k + 3) * r**2 + (3 * k + 6) * r + 3) / 3
    return value, -((1 - r) ** (k + 1)) * r * ((k**3 + 8 * k**2 + 19 * k + 12) * r + k**2 + 7 * k + 12) / 3


@pytest.mark.parametrize("d", [1, 2, 3])
def test_wendland_is_the_published_polynomial(d):
    r = np.linspace(0.01, 0.99, 37)
    x = jnp.asarray(np.outer(r, np.eye(d)[0]), FLOAT)
    w = wendland(2, d)
    np.testing.assert_allclose(w(x), published(r, d)[0], atol=GAP)
    np.testing.assert_allclose(w.gradient(x)[:, 0], published(r, d)[1], atol=10 * GAP)
    np.testing.assert_array_equal(w(x / 0.2 + 1), 0 * r)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_wendland_of_every_order(order):
    """Gradient, integral, and one derivative more would jump at the edge: 2 k of them are continuous."""
    for d in (1, 2, 3):
        w, rule = wendland(order, d), ball_rule(d, 18, FLOAT)
        np.testing.assert_allclose(jnp.sum(rule.weights * w(rule.points)), w.integral, rtol=100 * GAP)
        x = jnp.asarray(np.full((1, d), 0.4), FLOAT)
        np.testing.assert_allclose(jax.vmap(jax.grad(w))(x), w.gradient(x), atol=10 * GAP)
        np.testing.assert_allclose(w(jnp.zeros((1, d), FLOAT)), 1, rtol=GAP)
        np.testing.assert_array_equal(w.gradient(jnp.zeros((1, d), FLOAT)), 0)
        outside = jnp.full((1, d), 0.8 if d > 1 else 1.2, FLOAT)
        np.testing.assert_array_equal(w.gradient(outside), 0)
        assert w.value[0] == d // 2 + 2 * order + 1  # (1 - r)^(l + k), l = floor(d / 2) + k + 1


@pytest.mark.parametrize("d", [1, 2, 3])
def test_ball_rules_are_exact_for_polynomials(d):
    """Against ``int x_1^2p over the ball`` in closed form."""
    rule = ball_rule(d, 4, FLOAT)
    for p in range((8 - d) // 2 + 1):
        moment = {1: 2 / (2 * p + 1), 2: 2 * np.pi / (2 * p + 2), 3: 4 * np.pi / (2 * p + 3)}[d]
        mean = {1: 1.0, 2: np.prod([(2 * i - 1) / (2 * i) for i in range(1, p + 1)]), 3: 1 / (2 * p + 1)}[d]
        radial = moment if d == 1 else moment * mean
        np.testing.assert_allclose(jnp.sum(rule.weights * rule.points[:, 0] ** (2 * p)), radial, rtol=100 * GAP)
    np.testing.assert_allclose(jnp.sum(rule.weights * rule.points[:, 0]), 0, atol=GAP)


def medium(x):
    return jnp.where(x[0] < 0.5, 1.0, 20.0).astype(x.dtype)


def pressure(x):
    """Return u of ``-(a u')' = 8 - 12 x`` with flux ``a u' = 6 x^2 - 8 x + 1``, continuous with a kink at 1/2."""
    s = lambda t: 2 * t**3 - 4 * t**2 + t  # noqa: E731
    return jnp.where(x[0] < 0.5, s(x[0]), s(0.5) + (s(x[0]) - s(0.5)) / 20)


def flux(x):
    return 6 * x**2 - 8 * x + 1


def source(x):
    return 8 - 12 * x[0]


def test_two_phases_have_no_weak_residual():
    """Across the interface: the mixed form vanishes to rounding, where the strong form's u' jumps."""
    centers = jnp.asarray([[0.2], [0.45], [0.5], [0.52], [0.8]], FLOAT)
    found = weak_residual(flux, source, centers, radius=0.15)
    np.testing.assert_allclose(found, 0, atol=1e-12 if X64 else 1e-3)
    np.testing.assert_allclose(darcy_residuals(pressure, flux, medium, centers[jnp.asarray([0, 1, 3, 4])]), 0, atol=GAP)
    wrong = weak_residual(
        lambda x: medium(x) * jnp.ones_like(x), 0.0, centers, radius=0.15
    )  # u' = 1: a flux that jumps
    assert jnp.abs(wrong[2]) > 10
    np.testing.assert_allclose(wrong[jnp.asarray([0, 4])], 0, atol=1e-11 if X64 else 1e-2)


@needs_x64
@pytest.mark.long
def test_the_residual_converges_with_the_rule_and_with_the_radius():
    """Spectrally in the points of the rule for smooth fluxes; to the strong residual like the radius squared."""
    s, f = (lambda x: jnp.sin(7 * x) * jnp.exp(x[:1])), (lambda x: x[0] ** 2)
    centers = jnp.array([[0.3, 0.4], [0.6, 0.1]])
    exact = weak_residual(s, f, centers, radius=0.3, rule=ball_rule(2, 40))
    errors = [
        float(jnp.max(jnp.abs(weak_residual(s, f, centers, radius=0.3, rule=ball_rule(2, n)) - exact)))
        for n in (3, 6, 12)
    ]
    assert errors[1] < errors[0] / 30
    assert errors[2] < 1e-10
    strong = jax.vmap(lambda x: -jnp.trace(jax.jacfwd(s)(x)) - f(x))(centers)
    gaps = [float(jnp.max(jnp.abs(weak_residual(s, f, centers, radius=r) - strong))) for r in (0.1, 0.05, 0.025)]
    np.testing.assert_allclose(np.divide(gaps[:-1], gaps[1:]), 4, rtol=0.05)


def test_three_dimensions_and_a_constant_source():
    centers = jnp.asarray([[0.1, 0.2, 0.3]], FLOAT)
    np.testing.assert_allclose(weak_residual(lambda x: -x, 3.0, centers, radius=0.5), 0, atol=1e-11 if X64 else 1e-4)
    np.testing.assert_allclose(weak_residual(lambda x: -x, 1.0, centers, radius=0.5), 2, rtol=1e-10 if X64 else 1e-4)


def test_one_layer_is_a_deeponet_to_the_bit():
    model = DeepONet.init(jax.random.key(5), inputs=4, ndim=2, width=6, depth=3, dtype=FLOAT)
    one = MultiONet(model.branch, model.trunk, jnp.ones(1, FLOAT), model.bias)
    a, x = jnp.asarray([0.3, -1.0, 2.0, 0.1], FLOAT), jnp.asarray([0.2, 0.7], FLOAT)
    assert one(a, x) == model(a, x)
    more = MultiONet(model.branch, model.trunk, jnp.asarray([0.0, 0.0, 3.0], FLOAT), model.bias)
    np.testing.assert_allclose(more(a, x), model(a, x), rtol=1e-6)


@pytest.mark.long
def test_refusals():
    with pytest.raises(ValueError, match="wendland"):
        wendland(-1, 2)
    with pytest.raises(ValueError, match="flux"):
        weak_residual(lambda x: x[0], 0.0, jnp.ones((2, 1)), radius=0.1)
    with pytest.raises(ValueError, match="test"):
        weak_residual(lambda x: x, 0.0, jnp.ones((2, 2)), radius=0.1, test=wendland(2, 3))
    with pytest.raises(ValueError, match="ball_rule"):
        ball_rule(4, 3)
