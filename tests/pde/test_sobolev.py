"""Sobolev descent: steps that do not depend on the grid, exact answers, saddles that are called so."""

import jax.numpy as jnp
import numpy as np
import pytest

from solvers import PDEStatus, Status, barron_norm, sobolev_descent
from solvers.pde.variational.transforms import inner_product

from ..conftest import FLOAT, X64, needs_x64


def quartic(u, f):
    """Return the energy of ``-Laplace u + u^3 = f`` on the unit square."""
    steps = [jnp.diff(u, axis=d, prepend=0.0, append=0.0) * (u.shape[d] + 1) for d in range(2)]
    volume = 1.0 / ((u.shape[0] + 1) * (u.shape[1] + 1))
    return volume * (sum(jnp.sum(s**2) for s in steps) / 2 + jnp.sum(u**4) / 4 - jnp.sum(f * u))


def laplacian(u):
    padded = np.pad(u, 1)
    core = padded[1:-1, 1:-1]
    across = padded[2:, 1:-1] + padded[:-2, 1:-1] - 2 * core
    return (u.shape[0] + 1) ** 2 * across + (u.shape[1] + 1) ** 2 * (padded[1:-1, 2:] + padded[1:-1, :-2] - 2 * core)


def instance(n):
    s = np.arange(1, n + 1) / (n + 1)
    u = 4 * np.sin(np.pi * s)[:, None] * np.sin(2 * np.pi * s)[None]
    return u, jnp.asarray(u**3 - laplacian(u), FLOAT)


@pytest.mark.parametrize(("direction", "least", "most"), [("gradient", 3, 25), ("newton", 2, 9)])
@pytest.mark.long
def test_steps_do_not_depend_on_the_grid(direction, least, most):
    """Against the solution of the discrete equation, known in closed form."""
    tol, steps = (1e-8 if X64 else 1e-4), []
    for n in (15, 63):
        u, f = instance(n)
        s = sobolev_descent(quartic, jnp.zeros_like(f), args=f, tol=tol, direction=direction)
        assert s.converged, s
        assert jnp.max(jnp.abs(s.value - u)) < 20 * tol * 4
        assert s.curvature > 0.5
        steps.append(int(s.num_steps))
    assert max(steps) - min(steps) <= 1
    assert least <= steps[0] <= most


@pytest.mark.slow
@needs_x64
def test_steps_from_31_to_1023():
    steps = []
    for n in (31, 255, 1023):
        u, f = instance(n)
        s = sobolev_descent(quartic, jnp.zeros_like(f), args=f)
        assert s.converged
        assert jnp.max(jnp.abs(s.value - u)) < 1e-6
        steps.append(int(s.num_steps))
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("kinds", [("dirichlet", "neumann"), ("periodic", "dirichlet"), ("neumann", "periodic")])
def test_transforms_diagonalise_the_metric(kinds):
    """Against the dense matrix of the differences that `square` adds up, and powers that compose."""
    shape = (5, 34)  # by a matrix, and by an FFT
    inner = inner_product("test", jnp.zeros(shape, FLOAT), (1.0, 2.0), kinds, 0.7)
    rng = np.random.default_rng(11)
    u, v = (jnp.asarray(rng.standard_normal(shape), FLOAT) for _ in range(2))
    tol = 1e-11 if X64 else 1e-4
    applied = inner.power(u, 1.0)
    np.testing.assert_allclose(jnp.vdot(u, applied), inner.square(u), rtol=tol)
    cross = (inner.square(u + v) - inner.square(u) - inner.square(v)) / 2
    np.testing.assert_allclose(jnp.vdot(v, applied), cross, rtol=10 * tol, atol=10 * tol)
    np.testing.assert_allclose(inner.solve(applied), u, rtol=tol, atol=10 * tol)
    half = inner.power(inner.power(u, -0.5), -0.5)
    np.testing.assert_allclose(half, inner.solve(u), rtol=tol, atol=10 * tol)


def wells(u, a):
    """Return the energy of Allen and Cahn on a line: wells at 1 and -1, a saddle at 0."""
    steps = jnp.diff(u) * u.size
    return (0.001 * jnp.sum(steps**2) + jnp.sum((u**2 - a) ** 2) / 4) / u.size


@pytest.mark.long
def test_a_saddle_is_no_minimum():
    """At zero the slope vanishes and every direction falls: an error of 0 that must not be called converged."""
    flat = jnp.zeros(33, FLOAT)
    s = sobolev_descent(wells, flat, args=1.0, boundary="neumann")
    assert s.error == 0
    assert s.status == PDEStatus.SADDLE
    assert s.curvature < 0
    good = sobolev_descent(wells, flat + 0.1, args=1.0, boundary="neumann", direction="newton")
    assert good.converged, good
    np.testing.assert_allclose(good.value, 1.0, atol=1e-5 if X64 else 1e-2)


def test_no_minimum_is_not_converged():
    """A linear energy falls for ever, and one with a pole gives NaN."""
    falling = sobolev_descent(lambda u, a: -jnp.sum(u), jnp.zeros(9, FLOAT), max_steps=40)
    assert not falling.converged
    pole = sobolev_descent(lambda u, a: jnp.sum(jnp.log(u)), jnp.zeros(9, FLOAT))
    assert pole.status == Status.NONFINITE


@pytest.mark.parametrize("scale", [1e-30, 1e30] if X64 else [1e-8, 1e8])
def test_units_of_energy_do_not_matter(scale):
    _, f = instance(15)
    plain = sobolev_descent(quartic, jnp.zeros_like(f), args=f)
    scaled = sobolev_descent(lambda u, a: scale * quartic(u, a), jnp.zeros_like(f), args=f)
    assert scaled.converged
    assert abs(int(scaled.num_steps) - int(plain.num_steps)) <= 1
    np.testing.assert_allclose(scaled.value, plain.value, atol=1e-6 if X64 else 1e-2)


@pytest.mark.long
def test_a_gauss_newton_product_leads_there_too():
    """``|u^2 - g|^2 / 2 + |grad u|^2`` with the positive part of its Hessian."""
    g = jnp.asarray(np.linspace(1, 4, 31), FLOAT)

    def energy(u, g):
        steps = jnp.diff(u, prepend=0.0, append=0.0) * 32
        return (jnp.sum((u**2 - g) ** 2) / 2 * 100 + jnp.sum(steps**2) / 2) / 32

    def product(u, v, g):
        steps = jnp.diff(v, prepend=0.0, append=0.0) * 32
        return (400 * u**2 * v - jnp.diff(steps) * 32) / 32

    start = jnp.ones(31, FLOAT)
    plain = sobolev_descent(energy, start, args=g, direction="newton")
    given = sobolev_descent(energy, start, args=g, direction="newton", product=product)
    assert plain.converged
    assert given.converged, given
    np.testing.assert_allclose(plain.value, given.value, atol=1e-6 if X64 else 1e-2)


def test_barron_norm_of_waves():
    n = 24
    s = jnp.arange(1, n + 1, dtype=FLOAT) / (n + 1)
    c, p = (jnp.arange(n, dtype=FLOAT) + 0.5) / n, jnp.arange(n, dtype=FLOAT) / n
    tol = 1e-10 if X64 else 1e-3
    wave = 3 * jnp.sin(2 * jnp.pi * s)[:, None] * jnp.cos(np.pi * c)[None]
    expected = 3 * (1 + np.pi * np.hypot(2, 1 / 2))
    found = barron_norm(wave, lengths=(1.0, 2.0), boundary=("dirichlet", "neumann"))
    np.testing.assert_allclose(found, expected, rtol=tol)
    np.testing.assert_allclose(
        barron_norm(2 + jnp.cos(6 * np.pi * p), boundary="periodic"), 2 + (1 + 6 * np.pi), rtol=tol
    )
    both = barron_norm(jnp.cos(2 * np.pi * p)[:, None] * jnp.sin(np.pi * s)[None], boundary=("periodic", "dirichlet"))
    np.testing.assert_allclose(both, 1 + np.pi * np.hypot(2, 1), rtol=tol)


def test_refusals():
    with pytest.raises(ValueError, match="boundary"):
        sobolev_descent(wells, jnp.ones(3), boundary="robin")
    with pytest.raises(ValueError, match="shift"):
        sobolev_descent(wells, jnp.ones(3), boundary="neumann", shift=0.0)
    with pytest.raises(ValueError, match="one number"):
        sobolev_descent(lambda u, a: u, jnp.ones(3))
    with pytest.raises(TypeError, match="energy"):
        sobolev_descent(3.0, jnp.ones(3))
