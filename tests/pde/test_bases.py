"""Bases and priors: derivatives against automatic differentiation, quadrature against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gamma, kv

from solvers.pde import Matern, PeriodicKernel, SpectralMixture, SquaredExponential, StudentMixture
from solvers.pde.gaussian.eigenbasis import Eigen, Weighted
from solvers.pde.spectral.axes import Fourier, Legendre, _gauss

from ..conftest import FLOAT, X64, needs_x64

LOWER, UPPER = jnp.asarray(0.3, FLOAT), jnp.asarray(1.9, FLOAT)
X = jnp.asarray(np.linspace(0.35, 1.85, 5), FLOAT)
MIXTURE = tuple(jnp.asarray(v, FLOAT) for v in ([1.0, 0.3], [2.0, 5.0], [0.4, 0.2]))


def test_gauss_nodes_are_numpys():
    for n in (1, 2, 7, 64):
        for ours, theirs in zip(_gauss(n), np.polynomial.legendre.leggauss(n), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-14)


def check_derivatives(function, closed, x, orders=(1, 2, 3, 4)):
    """Compare closed forms with nested forward differentiation, all orders in one compilation."""

    @jax.jit
    def both(x):
        auto, f = [], function
        for _ in orders:
            f = (lambda g: lambda x: jax.jvp(g, (x,), (jnp.ones_like(x),))[1])(f)
            auto.append(f(x))
        return auto, [closed(p) for p in orders]

    for auto, ours in zip(*both(x), strict=True):
        scale = np.abs(auto).max()
        np.testing.assert_allclose(ours, auto, atol=1e-9 * scale)


@needs_x64
@pytest.mark.parametrize("order", [0, 2])
def test_legendre_derivatives(order):
    basis = Legendre(LOWER, UPPER, 8, order)
    check_derivatives(lambda x: basis.evaluate(x), lambda p: basis.evaluate(X, p), X)


def test_legendre_highest_derivative_is_orthonormal():
    basis = Legendre(LOWER, UPPER, 12, 2)
    half = (UPPER - LOWER) / 2
    top = basis.at_nodes(2)[:, 2:] * half**2
    gram = top.T @ (basis.weights[:, None] * top)
    np.testing.assert_allclose(gram, np.eye(10), atol=1e-12 if X64 else 1e-4)


def test_integrated_functions_vanish_at_both_ends():
    basis = Legendre(LOWER, UPPER, 12, 2)
    ends = jnp.stack([LOWER, UPPER])
    for p in (0, 1):
        assert jnp.abs(basis.evaluate(ends, p)[:, 4:]).max() < (1e-13 if X64 else 1e-5)


@needs_x64
def test_fourier_derivatives():
    basis = Fourier(LOWER, UPPER, 7)
    check_derivatives(lambda x: basis.evaluate(x), lambda p: basis.evaluate(X, p), X)


KERNELS = {
    "se": lambda: SquaredExponential(0.3, 1.7),
    "matern": lambda: Matern(0.4, 1.2, nu=4.5),
    "periodic": lambda: PeriodicKernel(0.8, 1.1),
    "mixture": lambda: SpectralMixture(*MIXTURE),
    "student": lambda: StudentMixture(*MIXTURE),
    "sum": lambda: SquaredExponential(0.3) + Matern(0.4, nu=4.5),
    "product": lambda: SquaredExponential(0.3) * PeriodicKernel(0.8),
}


@needs_x64
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_derivatives_against_autodiff(name):
    kernel, d = KERNELS[name](), X - 1.0
    check_derivatives(kernel, lambda p: kernel.derivative(d, p), d)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, 3.5, 4.5])
def test_matern_against_bessel(nu):
    d = np.array([0.05, 0.3, 0.9])
    s = np.sqrt(2 * nu) * d / 0.4
    truth = 2 ** (1 - nu) / gamma(nu) * s**nu * kv(nu, s)
    np.testing.assert_allclose(Matern(0.4, nu=nu)(jnp.asarray(d, FLOAT)), truth, rtol=1e-10 if X64 else 1e-4)


def test_matern_refuses_derivatives_it_does_not_have():
    with pytest.raises(ValueError, match=r"Matern: `nu` must be at least 2.5"):
        Matern(0.4, nu=1.5).derivative(X, 4)


@pytest.mark.parametrize("name", ["se", "mixture", "student"])
def test_whitened_functions_reproduce_the_kernel(name):
    kernel, d = KERNELS[name](), (X[:, None] - X[None, :]) / (UPPER - LOWER)
    for basis in (Eigen.build(kernel, LOWER, UPPER, 64, 64),
                  Weighted.build(kernel, Legendre(LOWER, UPPER, 64, 2), 64)):  # fmt: skip
        rows = basis.whitened(X)
        np.testing.assert_allclose(rows @ rows.T, kernel(d), atol=2e-4 if name == "student" or not X64 else 1e-8)


@pytest.mark.parametrize(
    "basis", [Legendre(LOWER, UPPER, 9, 2), Legendre(LOWER, UPPER, 12, 1), Fourier(LOWER, UPPER, 7)]
)
def test_tables_made_on_the_host_are_what_evaluation_gives(basis):
    s = np.array([-1.0, -0.3, 0.2, 0.95])
    x = LOWER + (UPPER - LOWER) * jnp.asarray(s / 2 + 0.5, FLOAT)
    for order in (0, 1, 2):
        there = np.asarray(basis.evaluate(x, order))
        np.testing.assert_allclose(
            basis.at_reference(s, order), there, atol=100 * np.finfo(FLOAT).eps * abs(there).max()
        )
    nodes = LOWER + (UPPER - LOWER) * jnp.asarray(basis.reference / 2 + 0.5, FLOAT)
    np.testing.assert_allclose(nodes, basis.nodes, rtol=10 * np.finfo(FLOAT).eps)


@pytest.mark.parametrize("size", [1, 5, 64, 128])
def test_the_matrix_from_nodes_to_coefficients_is_as_good_as_a_factorisation(size):
    """A smooth function and a rough one come back; where an inverse would spoil smooth ones there is none."""
    for order in (0, 1):
        basis = Legendre(LOWER, UPPER, size, min(order, size - 1))
        there, back = (np.asarray(m, float) for m in (basis.at_nodes(), basis.from_nodes()))
        for values in (np.sin(3 * basis.reference), np.cos(2.0 * np.arange(size) ** 2)):
            assert abs(there @ (back @ values) - values).max() <= 100 * np.finfo(FLOAT).eps
    assert Legendre(LOWER, UPPER, max(size, 3), 2).from_nodes() is None
    assert Legendre(LOWER, UPPER, 129, 1).from_nodes() is None
