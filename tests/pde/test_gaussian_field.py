"""Gaussian fields against nested differentiation, and what `collocate` says of problems that it cannot solve."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from solvers import (
    Box,
    Dirichlet,
    GaussianField,
    Neumann,
    Observe,
    PDEProblem,
    PDEStatus,
    Periodic,
    PublishedPIG,
    Robin,
    Status,
    collocate,
)

from ..conftest import FLOAT, X64, needs_x64

BOX = Box((0.0, 1.0))
GAP = 1e-12 if X64 else 2e-4


def line(count=24, overlap=3.0, margin=0.4, fields=1):
    return GaussianField.on_grid(BOX, count, overlap=overlap, margin=margin, fields=fields, dtype=FLOAT)


def at(*x):
    return jnp.asarray(x, FLOAT)[:, None]


@pytest.mark.parametrize("full", [False, True])
def test_derivatives_are_those_of_nested_differentiation(full):
    """Value, gradient, Laplacian, and every mixed derivative up to the fourth, in three dimensions."""
    one, two, three = jax.random.split(jax.random.key(5), 3)
    field = GaussianField.scattered(one, Box((0, 1), (0, 1), (0, 2)), 7, width=0.4, full=full, dtype=FLOAT)
    if full:
        field = GaussianField(field.weights, field.centers, field.root + jax.random.normal(two, (7, 3, 3), FLOAT))
    x = jax.random.uniform(three, (3,), FLOAT)
    value, gradient, laplacian = jax.jit(lambda x: field.value_grad_laplacian(x))(x)
    hessian = jax.jit(jax.hessian(field))(x)
    scale = float(jnp.max(jnp.abs(hessian)))
    np.testing.assert_allclose(value, field(x), rtol=GAP, atol=GAP)
    np.testing.assert_allclose(gradient, jax.grad(field)(x), rtol=GAP, atol=GAP * scale)
    np.testing.assert_allclose(laplacian, jnp.trace(hessian), rtol=GAP, atol=GAP * scale)
    indices = [a for a in itertools.product(range(5), repeat=3) if sum(a) in (2, 4)]
    jets = dict(zip(indices, jax.jit(lambda x: field.jets(x[None], indices))(x), strict=True))
    fourth = jax.jit(jax.jacfwd(jax.jacfwd(jax.hessian(field))))(x)
    for a in indices:
        places = tuple(d for d, p in enumerate(a) for _ in range(p))
        expected = (hessian if len(places) == 2 else fourth)[places]
        size = scale if len(places) == 2 else float(jnp.max(jnp.abs(fourth)))
        np.testing.assert_allclose(jets[a][0, 0], expected, atol=GAP * size)


def test_far_away_is_zero_and_not_nan():
    field = GaussianField(jnp.ones(2, FLOAT), jnp.zeros((2, 2), FLOAT), jnp.full((2, 2), 1e3, FLOAT))
    far = jnp.full((1, 2), 1e18, FLOAT)
    for value in (*field.jets(far, [(0, 0), (2, 2)]), *field.value_grad_laplacian(far[0])):
        np.testing.assert_array_equal(value, 0)
    assert jnp.isnan(field(jnp.full(2, jnp.nan, FLOAT)))


@pytest.mark.long
def test_a_nonlinear_equation_with_training():
    """``u'' = u^3 + f`` with u = tanh-like layer; a search from few Gaussians finds where they are needed."""
    steep = 6.0

    def exact(x):
        return jnp.tanh(steep * (x - 0.6))

    def residual(x, u, args):
        t = exact(x[0])
        return u.dxx - u.v**3 + 2 * steep**2 * t * (1 - t**2) + t**3

    problem = PDEProblem(residual, BOX, [Dirichlet("x-", lambda x, a: exact(x[0])), Dirichlet("x+", exact(1.0))])
    start, tol = line(12, 1.3, 0.15), 2e-3 if X64 else 1e-2
    still = collocate(problem, start, points=60, tol=tol, train=False)
    s = collocate(problem, start, points=60, max_steps=60, tol=tol)
    assert s.converged, s
    if X64:
        assert still.status == Status.STAGNATED
    x = jnp.linspace(0, 1, 31, dtype=FLOAT)
    gap = jnp.max(jnp.abs(s.mean(x[:, None]) - exact(x)))
    assert gap < 3 * tol
    assert gap <= 3 * s.bound  # what the residual allows


def test_conditions_with_slopes_and_a_system():
    """``u' = v, v' = -u`` with Robin and Dirichlet data, and its derivative reports the other unknown."""

    def residual(x, u, args):
        return u[0].dx - u[1].v, u[1].dx + u[0].v

    problem = PDEProblem(
        residual, BOX, [Robin("x-", 1.0, a=1.0, b=-1.0, field=0), Dirichlet("x+", jnp.cos(1.0), field=1)], fields=2
    )  # u + u' = 1 at 0 with u = sin
    s = collocate(problem, line(fields=2), train=False, points=60, tol=1e-6 if X64 else 1e-2)
    assert s.converged, s
    np.testing.assert_allclose(s.mean(at(0.4)), np.sin(0.4), atol=1e-6 if X64 else 1e-2)
    np.testing.assert_allclose(s.derivative(at(0.4), 1), s.mean(at(0.4), unknown=1), atol=1e-5 if X64 else 5e-2)


@pytest.mark.long
def test_periodic_and_mixed_second_derivatives():
    """``u_xx + u_xy + u_yy - u = f`` periodic in x, on a plane."""
    box = Box((0.0, 1.0), (0.0, 1.0))
    w = 2 * np.pi

    def residual(x, u, args):
        s, c = jnp.sin(w * x[0]), jnp.cos(w * x[0])
        y = x[1]
        return u.dxx + u.dxy + u.dyy - u.v - (-(w**2) * s * y**2 + 2 * w * c * y + 2 * s - s * y**2)

    value = Dirichlet("y+", lambda x, a: jnp.sin(w * x[0]))
    problem = PDEProblem(residual, box, [Periodic("x"), Dirichlet("y-"), value])
    field = GaussianField.on_grid(box, (12, 7), overlap=2.0, margin=0.3, dtype=FLOAT)
    s = collocate(problem, field, train=False, points=20, tol=1e-3 if X64 else 5e-2)
    assert s.converged, s
    np.testing.assert_allclose(
        s.mean(jnp.asarray([0.2, 0.7], FLOAT)), np.sin(w * 0.2) * 0.49, atol=3e-3 if X64 else 5e-2
    )


@pytest.mark.parametrize(
    ("faces", "shift"),
    [((Neumann("x-"), Neumann("x+")), 0.0), ((), 1.0), ((Dirichlet("x-"), Dirichlet("x+")), np.pi**2)],
    ids=["floating", "free", "resonant"],
)
def test_many_solutions_are_not_a_solution(faces, shift):
    """Residual zero, and still nothing is known about u."""
    source = lambda x: jnp.cos(np.pi * x) if faces else 0 * x  # noqa: E731
    problem = PDEProblem(lambda x, u, a: u.dxx + shift * u.v - a * source(x[0]), BOX, faces)
    s = collocate(problem, line(), args=1.0 if shift == 0 else 0.0, train=False, points=60)
    assert s.status == PDEStatus.SINGULAR, s
    assert s.amplification > 100


def test_what_the_field_cannot_show_is_not_converged():
    """A wave of forty periods between the points: least squares are content on twelve, the checks are not."""
    problem = PDEProblem(lambda x, u, a: u.dxx - 1e4 * jnp.sin(251.3 * x[0]), BOX, [Dirichlet("all")])
    s = collocate(problem, line(12), train=False, points=12, tol=1e-2)
    assert s.status == Status.STAGNATED
    assert s.error > 0.1


@pytest.mark.parametrize("scale", [1e-100, 1e100] if X64 else [1e-12, 1e12])
def test_units_of_equation_and_unknown_do_not_matter(scale):
    def solve(c, s):
        problem = PDEProblem(lambda x, u, a: a[0] * (u.dxx + u.v - a[1] * x[0]), BOX, [Dirichlet("all")])
        return collocate(problem, line(), args=(c, s), train=False, points=60, tol=1e-5 if X64 else 1e-2)

    plain, scaled, other = solve(1.0, 1.0), solve(scale, 1.0), solve(1.0, scale)
    assert plain.converged
    assert scaled.converged
    assert other.converged
    expected = plain.mean(at(0.3, 0.6))
    tol = 1e-6 if X64 else 1e-2
    np.testing.assert_allclose(scaled.mean(at(0.3, 0.6)), expected, rtol=tol)
    np.testing.assert_allclose(other.mean(at(0.3, 0.6)) / scale, expected, rtol=tol)


@needs_x64
@pytest.mark.long
def test_gaussians_that_stay_are_spectral_collocation():
    """The notes' figure: 15 to 20 a dimension on a smooth problem leave an error of about 1e-8."""
    problem = PDEProblem(lambda x, u, a: u.dxx + jnp.pi**2 * jnp.sin(jnp.pi * x[0]), BOX, [Dirichlet("all")])
    errors = []
    for count in (8, 18):
        s = collocate(problem, line(count, 2.5, 0.3), train=False, points=60, tol=1e-12)
        x = jnp.linspace(0, 1, 41)
        errors.append(float(jnp.max(jnp.abs(s.mean(x[:, None]) - jnp.sin(jnp.pi * x)))))
    assert errors[0] > 1e-6
    assert errors[1] < 2e-8


@pytest.mark.long
def test_published_training_lowers_the_error():
    problem = PDEProblem(lambda x, u, a: u.dxx + u.v - 1.0, BOX, [Dirichlet("all")])
    network = PublishedPIG.scattered(jax.random.key(4), BOX, 8, width=0.3, features=2, hidden=4, dtype=FLOAT)
    for optimizer, steps in (("lbfgs", 30), (optax.adam(1e-2), 60)):
        s = collocate(
            problem, network, points=20, optimizer=optimizer, max_steps=steps, boundary_weight=1.0, history=64
        )
        assert s.status == Status.MAX_STEPS
        assert s.error < s.history[0] / 2
        assert s.bound != s.bound  # not known


def test_refusals():
    problem = PDEProblem(lambda x, u, a: u.dxx, BOX, [Dirichlet("all")])
    with pytest.raises(ValueError, match="points"):
        collocate(problem, line(), points=(3, 3))
    with pytest.raises(ValueError, match="field"):
        collocate(problem, line(fields=2))
    with pytest.raises(TypeError, match="GaussianField"):
        collocate(problem, lambda x: x)
    with pytest.raises(TypeError, match="projection"):
        collocate(problem, PublishedPIG.scattered(jax.random.key(3), BOX, 3, width=0.1))
    observed = PDEProblem(lambda x, u, a: u.dxx, BOX, [Observe(jnp.ones(1), jnp.ones(1), 0.1)])
    with pytest.raises(ValueError, match="gp_solve"):
        collocate(observed, line())
    with pytest.raises(ValueError, match="number or a callable"):
        collocate(PDEProblem(lambda x, u, a: u.dxx, BOX, [Dirichlet("x-", jnp.ones(2))]), line())
