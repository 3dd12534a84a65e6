"""The default grid: chosen from the data, refined by the solution, refused where it cannot be chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Status
from solvers.pde import Box, Dirichlet, PDEProblem, Periodic, gp_solve
from solvers.pde.spectral.axes import fejer
from solvers.pde.spectral.resolution import _degree

from ..conftest import FLOAT, X64, needs_x64


def test_fejer_weights_integrate_polynomials():
    x, w = fejer(33)
    for k in range(0, 33, 8):
        np.testing.assert_allclose(w @ x**k, 2 / (k + 1), rtol=1e-14)


def test_degree_of_a_polynomial_and_of_a_wave():
    s, unit = fejer(512)[0], np.finfo(float).eps
    assert _degree(np.polynomial.chebyshev.chebval(s, [1, 0, 0, 2, 1e-6]), False, unit, True) == 5
    assert 60 < _degree(np.sin(40 * s), False, unit, True) < 80  # 40, and what the Bessel functions need to decay
    assert _degree(np.sin(2 * np.pi * 9 * np.arange(64) / 64), True, unit, True) == 10
    assert _degree(np.full(16, np.nan), False, unit, True) == 0


@needs_x64
@pytest.mark.long
def test_a_layer_that_no_source_announces_is_refined_until_resolved():
    """``u'' = 400 u``: nothing but the solution's own coefficients tells how many nodes it needs."""
    problem = PDEProblem(lambda x, u, a: u.dxx - 400 * u.v, Box((0.0, 1.0)), [Dirichlet("all", 1.0)])
    solution = gp_solve(problem)
    t = jnp.linspace(0, 1, 30)
    assert bool(solution.converged)
    assert solution.grid[0] > 24
    np.testing.assert_allclose(solution.mean(t), jnp.cosh(20 * (t - 0.5)) / np.cosh(10.0), atol=1e-12)


def test_periodic_default_grid():
    problem = PDEProblem(lambda x, u, a: u.dxx - u.v + 37 * jnp.sin(6 * x[0]), Box((0.0, 2 * np.pi)), [Periodic("x")])
    t = jnp.linspace(0, 6, 9, dtype=FLOAT)
    np.testing.assert_allclose(gp_solve(problem).mean(t), jnp.sin(6 * t), atol=1e-11 if X64 else 2e-4)


def test_a_residual_that_zero_is_no_place_for():
    """1 / u^3 at zero is infinite: it must not make every error look small."""
    problem = PDEProblem(lambda x, u, a: u.dxx - u.v**-3, Box((0.0, 1.0)),
                         [Dirichlet("x-", 1.0), Dirichlet("x+", np.sqrt(2.0))])  # fmt: skip
    solution = gp_solve(problem, grid=24, guess=lambda x, a: 1 + 0 * x[0])
    t = jnp.linspace(0, 1, 9, dtype=FLOAT)
    assert bool(solution.converged)
    np.testing.assert_allclose(solution.mean(t), jnp.sqrt(1 + t**2), atol=1e-11 if X64 else 1e-5)


def test_traced_data_and_grid_shaped_arrays_are_asked_for_a_grid():
    def solve(f):
        return gp_solve(PDEProblem(lambda x, u, a: u.dxx - a, Box((0, 1)), [Dirichlet("all")]), args=f)

    with pytest.raises(ValueError, match="gp_solve: `grid` must be given where the data are traced"):
        jax.jit(lambda f: solve(f).value)(jnp.ones((), FLOAT))
    with pytest.raises(ValueError, match="gp_solve: `grid` must be given, or the residual a function of any x"):
        solve(jnp.ones(7, FLOAT))


def test_nan_in_the_data_is_not_refined():
    problem = PDEProblem(lambda x, u, a: u.dxx - a, Box((0, 1)), [Dirichlet("all")])
    assert int(gp_solve(problem, args=np.nan).status) == Status.NONFINITE


@needs_x64
def test_where_iterations_fail_a_smaller_grid_is_factorised(monkeypatch):
    """Three wavelengths in a medium that varies both ways, GMRES cut short: a smaller grid than the first will do."""
    from solvers.pde.spectral import newton, resolution

    k = 6 * np.pi

    def u(x, y):
        return jnp.sin(k * (x + 0.1 * x**2)) * jnp.cos(k * y)

    def residual(x, v, a):
        (s, t), n = x, k**2 * (1 + 0.3 * jnp.sin(5 * x[0]) * jnp.cos(3 * x[1]))
        phase, slope = k * (s + 0.1 * s**2), k * (1 + 0.2 * s)
        second = (0.2 * k * jnp.cos(phase) - slope**2 * jnp.sin(phase) - k**2 * jnp.sin(phase)) * jnp.cos(k * t)
        return v.dxx + v.dyy + n * v.v - second - n * u(s, t)

    problem = PDEProblem(residual, Box((0.0, 1.0), (0.0, 1.0)), [Dirichlet("all", lambda x, a: u(*x))])
    monkeypatch.setattr(newton, "KRYLOV_STEPS", 1)
    monkeypatch.setattr(resolution, "DENSE", 100)
    monkeypatch.setattr(resolution, "WHOLE", 1600)
    solution = gp_solve(problem)
    x = jnp.linspace(0, 1, 21)
    assert bool(solution.converged)
    assert np.prod(solution.grid) <= 1600
    assert float(jnp.max(jnp.abs(solution.mean((x, x)) - u(x[:, None], x[None])))) < 1e-9
