"""What has to be asked at an interface: an algebraic test with polynomials on two domains."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Box, Dirichlet, GaussianField, MultiDomainProblem, PDEProblem
from solvers.pde import INTERFACE_TERMS

from ..conftest import FLOAT, X64, needs_x64


class Polynomials(eqx.Module):
    """``sum c_k x^k`` in one dimension: any object with ``jets`` is a field."""

    c: jax.Array

    def jets(self, x, indices):
        """Return derivatives, (1, m) each."""
        found = []
        for (p,) in indices:
            total = jnp.zeros(x.shape[0], x.dtype)
            for k in range(p, self.c.size):
                total = total + math.perm(k, p) * self.c[k] * x[:, 0] ** (k - p)
            found.append(total[None])
        return found


def poisson():
    """``u'' = 12 x^2 - 2``, u = x^4 - x^2 + x / 2."""
    problem = PDEProblem(lambda x, u, a: u.dxx - 12 * x[0] ** 2 + 2, BOX, [Dirichlet("x-"), Dirichlet("x+", 0.5)])
    return MultiDomainProblem(problem, 0, (0.4,), 8)


BOX = Box((0.0, 1.0))


def solved(terms, degree=5):
    """Return the least-squares coefficients of both domains, the residuals' rank, and the vector of residuals there."""
    domains = poisson()
    zero = jnp.zeros(2 * degree, FLOAT)

    def residuals(c):
        return domains.residuals([Polynomials(c[:degree]), Polynomials(c[degree:])], terms)

    matrix, right = np.asarray(jax.jacfwd(residuals)(zero), np.float64), np.asarray(residuals(zero), np.float64)
    c = np.linalg.lstsq(matrix, -right, rcond=1e-11 if X64 else 1e-6)[0]
    return (
        c.reshape(2, degree),
        np.linalg.matrix_rank(matrix, tol=1e-9 if X64 else 1e-4),
        residuals(jnp.asarray(c.ravel(), FLOAT)),
    )


EXACT = [0, 0.5, -1, 0, 1]


@pytest.mark.long
def test_jump_and_flux_jump_give_the_exact_solution():
    c, rank, left = solved(("jump", "flux_jump"))
    assert rank == 10
    np.testing.assert_allclose(c, [EXACT, EXACT], atol=1e-12 if X64 else 1e-3)
    np.testing.assert_allclose(left, 0, atol=1e-12 if X64 else 1e-4)


@pytest.mark.parametrize(
    ("terms", "lost"), [(("jump",), 1), (("flux_jump",), 1), ((), 2), (("residual",), 2), (("average", "flux_jump"), 0)]
)
def test_fewer_terms_leave_a_family(terms, lost):
    """Ranks: what the interface does not ask stays open, though every residual is zero."""
    _, rank, left = solved(terms)
    assert rank == 10 - lost
    np.testing.assert_allclose(left, 0, atol=1e-11 if X64 else 1e-4)


@pytest.mark.long
def test_every_term_vanishes_for_the_solution_and_sees_another():
    box = Box((0.0, 1.0), (0.0, 1.0))
    problem = PDEProblem(lambda x, u, a: u.dxx + u.dyy - a * u.v, box, [Dirichlet("all", lambda x, a: x[0] * a)])
    domains = MultiDomainProblem(problem, 0, (0.5,), (4, 5))
    one, two = (GaussianField.scattered(jax.random.key(k), box, 6, width=0.4, dtype=FLOAT) for k in (3, 4))
    plain = domains.residuals([one, one], (), args=2.0).size
    for name in INTERFACE_TERMS:
        same = domains.residuals([one, one], (name,), args=2.0)[plain:]
        different = domains.residuals([one, two], (name,), args=2.0)[plain:]
        assert same.size in (5, 10)
        assert jnp.max(jnp.abs(different)) > 1e-2
        if not name.startswith("residual") or name == "residual_jump":
            np.testing.assert_allclose(same, 0, atol=1e-10 if X64 else 1e-3)


@needs_x64
@pytest.mark.long
def test_terms_are_differences_of_nested_derivatives():
    """Normal and tangential terms in two dimensions against `jax.grad`; a wrong axis would show."""
    box = Box((0.0, 1.0), (0.0, 1.0))
    problem = PDEProblem(lambda x, u, a: u.dxx + u.dyy, box, [Dirichlet("all")])
    domains = MultiDomainProblem(problem, 1, (0.5,), (3, 4))
    one, two = (GaussianField.scattered(jax.random.key(k), box, 6, width=0.4) for k in (3, 4))
    plain = domains.residuals([one, two], ()).size
    x, w = domains._interface(0, one.centers.dtype, False)
    np.testing.assert_array_equal(x[:, 1], 0.5)

    def gap(function):
        return jnp.sqrt(w) * (jax.vmap(function(one))(x) - jax.vmap(function(two))(x))

    for name, function in {
        "flux_jump": lambda f: lambda x: jax.grad(f)(x)[1],
        "slope_jump": lambda f: lambda x: jax.grad(f)(x)[0],
        "curvature_jump": lambda f: lambda x: jax.hessian(f)(x)[1, 1],
        "tangential_jump": lambda f: lambda x: jax.hessian(f)(x)[0, 0],
    }.items():
        np.testing.assert_allclose(domains.residuals([one, two], (name,))[plain:], gap(function), atol=1e-10)


@pytest.mark.long
def test_refusals():
    problem = PDEProblem(lambda x, u, a: u.dxx, BOX, [Dirichlet("all")])
    with pytest.raises(ValueError, match="cuts"):
        MultiDomainProblem(problem, 0, (0.5, 0.2), 4)
    with pytest.raises(ValueError, match="axis"):
        MultiDomainProblem(problem, 1, (0.5,), 4)
    with pytest.raises(ValueError, match="fields"):
        MultiDomainProblem(problem, 0, (0.5,), 4).residuals([Polynomials(jnp.ones(3))], ())
    domains = MultiDomainProblem(problem, 0, (0.5,), 4)
    with pytest.raises(ValueError, match="names"):
        domains.residuals([Polynomials(jnp.ones(3)), Polynomials(jnp.ones(3))], ("kink",))
