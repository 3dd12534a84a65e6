"""Products on the sphere against SciPy's harmonics, pointwise products, the dense contraction, and rotations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from solvers.tensor import spherical_harmonics
from solvers.tensor.harmonics import gaunt_table, grid_of, grid_table

from ..compiled import gaunt_convolution, gaunt_power, gaunt_product
from ..conftest import FLOAT, X64, needs_x64

TOL = 2e-13 if X64 else 2e-4
ROUTES = ("grid", "fourier", "dense")

harmonics = jax.jit(spherical_harmonics, static_argnums=1)


@partial(jax.jit, static_argnames=("lmax_out", "route"))
def product(x, y, weights=None, *, lmax_out=None, route="grid"):
    return gaunt_product(x, y, lmax_out=lmax_out, weights=weights, route=route)


@partial(jax.jit, static_argnames=("lmax_out", "route"))
def convolve(x, direction, filters, *, lmax_out=None, route="rotate"):
    return gaunt_convolution(x, direction, filters, lmax_out=lmax_out, route=route)


def draw(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), FLOAT)


def values(coefficients, directions, L):
    return np.asarray(harmonics(jnp.asarray(directions, FLOAT), L), float) @ np.asarray(coefficients, float).T


def test_harmonics_are_scipy_s_with_the_axes_of_e3nn(rng):
    d = rng.standard_normal((7, 3))
    unit = d / np.linalg.norm(d, axis=1, keepdims=True)
    Y = np.asarray(harmonics(jnp.asarray(d, FLOAT), 10), float)
    np.testing.assert_allclose(Y[:, 1:4], np.sqrt(3 / (4 * np.pi)) * unit, atol=TOL)
    theta, phi = np.arccos(unit[:, 1]), np.arctan2(unit[:, 0], unit[:, 2])
    for deg in (2, 5, 10):
        for m in range(1, deg + 1):
            wave = np.sqrt(2) * (-1.0) ** m * sph_harm_y(deg, m, theta, phi)
            np.testing.assert_allclose(Y[:, deg * deg + deg + m], wave.real, atol=50 * TOL)
            np.testing.assert_allclose(Y[:, deg * deg + deg - m], wave.imag, atol=50 * TOL)
        np.testing.assert_allclose(Y[:, deg * deg + deg], sph_harm_y(deg, 0, theta, phi).real, atol=50 * TOL)


def test_the_gradient_is_smooth_at_the_pole():
    pole = jnp.asarray([0.0, 1.0, 0.0], FLOAT)
    jacobian = jax.jit(jax.jacobian(lambda d: spherical_harmonics(d, 3)))(pole)
    assert np.all(np.isfinite(jacobian))
    np.testing.assert_allclose(jacobian[1], [np.sqrt(3 / (4 * np.pi)), 0, 0], atol=TOL)


@pytest.mark.parametrize(("L1", "L2", "L3"), [(3, 2, 4), (4, 4, 8), (0, 0, 0), (10, 3, 10)])
@pytest.mark.parametrize("route", ROUTES)
def test_product_is_the_pointwise_product(L1, L2, L3, route, rng):
    """To all degrees where L3 = L1 + L2; else its part up to L3, which the dense contraction gives."""
    x, y = draw(rng, 3, (L1 + 1) ** 2), draw(rng, 3, (L2 + 1) ** 2)
    z = product(x, y, lmax_out=L3, route=route)
    expected = np.einsum("abc,na,nb->nc", gaunt_table(L1, L2, L3), np.asarray(x, float), np.asarray(y, float))
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(z, expected, atol=(2e-14 if route == "grid" and X64 else TOL) * scale)
    if L3 == L1 + L2:
        d = rng.standard_normal((9, 3))
        np.testing.assert_allclose(values(z, d, L3), values(x, d, L1) * values(y, d, L2), atol=20 * TOL * scale)


def test_gaunt_coefficients_are_integrals_with_selection_rules():
    G = gaunt_table(2, 2, 2)
    np.testing.assert_allclose(gaunt_table(3, 0, 3)[:, 0, :], np.eye(16) / np.sqrt(4 * np.pi), atol=1e-14)
    np.testing.assert_array_equal(gaunt_table(1, 1, 1)[1:, 1:, 1:], 0)
    np.testing.assert_allclose(G, np.transpose(G, (1, 0, 2)), atol=1e-15)
    # int Y_20^3 = sqrt(5 / pi) / 7
    assert abs(G[6, 6, 6] - np.sqrt(5 / np.pi) / 7) < 1e-14


def test_the_grid_is_the_smallest_exact_one():
    """One node or one angle less and harmonics of the degrees in question are no longer orthonormal."""
    L = 4
    nodes, points = grid_of(3 * L)
    G = gaunt_table(L, L, L)

    def error(nodes, points):
        table = grid_table(L, nodes, points)
        _, w = np.polynomial.legendre.leggauss(nodes)
        weights = np.outer(w, np.full(points, 2 * np.pi / points)).ravel()
        return np.max(np.abs(np.einsum("ag,bg,cg->abc", table * weights, table, table, optimize=True) - G))

    assert error(nodes, points) < 1e-14
    assert error(nodes - 1, points) > 1e-3
    assert error(nodes, points - 1) > 1e-3


def rotated(coefficients, R, L, rng):
    """Coefficients of ``f(R^-1 d)`` by least squares at random directions, in float64 NumPy with SciPy's harmonics."""
    d = rng.standard_normal((6 * (L + 1) ** 2, 3))
    table = lambda d: np.asarray(spherical_harmonics(jnp.asarray(d), L), float)  # noqa: E731
    return np.linalg.lstsq(table(d), table(d @ R) @ np.asarray(coefficients, float).T, rcond=None)[0].T


@needs_x64
@pytest.mark.parametrize("route", ROUTES)
def test_equivariance_under_rotations(route, rng):
    R = Rotation.random(random_state=5).as_matrix()
    x, y = draw(rng, 2, 25), draw(rng, 2, 16)
    weights = (draw(rng, 5), draw(rng, 4), draw(rng, 6))
    turned = [jnp.asarray(rotated(v, R, L, rng)) for v, L in ((x, 4), (y, 3))]
    before = rotated(product(x, y, weights, lmax_out=5, route=route), R, 5, rng)
    np.testing.assert_allclose(product(*turned, weights, lmax_out=5, route=route), before, atol=1e-12)


def test_weights_scale_degrees_and_channels_broadcast(rng):
    x, y = draw(rng, 3, 2, 9), draw(rng, 2, 4)
    w = (draw(rng, 2, 3), None, draw(rng, 3))
    z = product(x, y, w)
    one_each = lambda v: jnp.repeat(v, np.array([1, 3, 5]), axis=-1)  # noqa: E731
    plain = product(x * one_each(w[0])[None], jnp.broadcast_to(y, (3, 2, 4)))
    np.testing.assert_allclose(z, plain * one_each(w[2])[None, None], atol=TOL * 10)


def test_powers_are_repeated_products(rng):
    x = draw(rng, 4, 9)
    cube = jax.jit(lambda x: gaunt_power(x, 3, lmax_out=6))(x)
    np.testing.assert_allclose(cube, product(product(x, x, lmax_out=4), x, lmax_out=6), atol=30 * TOL)
    np.testing.assert_allclose(gaunt_power(x, 1), x, atol=TOL)


@pytest.mark.parametrize("L", [3, 9])
def test_convolution_is_the_product_with_a_filter(L, rng):
    x, d, h = draw(rng, 5, (L + 1) ** 2), draw(rng, 5, 3), draw(rng, 5, 4)
    d = d.at[3].set(jnp.asarray([0.0, 2.0, 0.0], FLOAT)).at[4].set(jnp.asarray([0.0, -1.0, 0.0], FLOAT))
    turned, plain = (convolve(x, d, h, lmax_out=L + 2, route=route) for route in ("rotate", "product"))
    np.testing.assert_allclose(turned, plain, atol=30 * TOL)


@needs_x64
@pytest.mark.long
def test_derivatives(rng):
    x, y, d, h = draw(rng, 9), draw(rng, 4), draw(rng, 3), draw(rng, 3)
    for route in ROUTES:
        f = jax.jit(lambda x, y, r=route: jnp.sum(jnp.sin(gaunt_product(x, y, route=r))))
        check_grads(f, (x, y), order=2, modes=("fwd", "rev"))
    check_grads(jax.jit(lambda x, d, h: jnp.sum(jnp.sin(gaunt_convolution(x, d, h)))), (x, d, h), order=1)


def test_no_lane_touches_another_and_dtypes_stay(rng):
    x, y = draw(rng, 3, 16), draw(rng, 3, 16)
    clean, hit = product(x, y), product(x.at[1].set(jnp.nan), y)
    np.testing.assert_array_equal(clean[::2], hit[::2])
    assert np.isnan(np.asarray(hit[1])).all()
    single = product(x.astype(jnp.float32), y.astype(jnp.float32), route="fourier")
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(jax.vmap(product)(x, y), clean, atol=TOL)


def test_refusals():
    x = jnp.ones(9, FLOAT)
    for call, word in (
        (lambda: gaunt_product(x[:8], x), "last axis"),
        (lambda: gaunt_product(x, x, lmax_out=5), "lmax_out"),
        (lambda: gaunt_product(x, x, route="magic"), "route"),
        (lambda: gaunt_product(x, x, weights=(jnp.ones(2, FLOAT), None, None)), "weights"),
        (lambda: gaunt_power(x, 0), "nu"),
        (lambda: gaunt_power(x, 2, lmax_out=5), "lmax_out"),
        (lambda: gaunt_convolution(x, jnp.ones(2, FLOAT), x[:2]), "direction"),
        (lambda: gaunt_convolution(x, jnp.ones(3, FLOAT), x[:0]), "filters"),
        (lambda: spherical_harmonics(jnp.ones(2, FLOAT), 2), "direction"),
        (lambda: spherical_harmonics(jnp.ones(3, FLOAT), -1), "`L`"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
    with pytest.raises(TypeError, match="dtype"):
        gaunt_product(x, x.astype(jnp.float16))
