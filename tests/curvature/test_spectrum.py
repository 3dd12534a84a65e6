"""Spectra and eigenpairs against dense eigendecompositions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Status
from solvers.core.probes import probes

from ..compiled import extreme_eigenpairs, spectral_density
from ..conftest import FLOAT, X64, needs_x64

N = 40


def matrix(values=None, seed=5):
    values = np.linspace(-1, 4, N) ** 3 if values is None else np.asarray(values)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    return jnp.asarray((q * values) @ q.T, FLOAT), values, q


@pytest.mark.long
def test_moments_are_exact_for_the_probes_used():
    a, values, q = matrix(np.linspace(-1, 2, N))
    density = spectral_density(a, jax.random.key(4), num_steps=10, num_probes=3)
    z = np.asarray(probes("sphere", jax.random.key(4), 3, jax.ShapeDtypeStruct((N,), FLOAT)), np.float64)
    for power in range(11):
        expected = np.mean(np.sum((z @ q) ** 2 * values**power, axis=1))
        assert abs(density.moment(power).value - expected) <= (1e-6 if X64 else 2e-4) * np.sum(abs(values) ** power)
    np.testing.assert_allclose(jnp.sum(density.weights, axis=1), 1, rtol=1e-5)


@pytest.mark.long
def test_density_and_counts_are_those_of_the_spectrum():
    a, values, _ = matrix(np.repeat([0.0, 1.0, 5.0], [25, 10, 5]))
    density = spectral_density(a, jax.random.key(4), num_steps=6, num_probes=40)
    np.testing.assert_allclose(
        density.below(jnp.asarray([-0.1, 0.5, 2.0, 5.5], FLOAT)), [0, 25 / 40, 35 / 40, 1], atol=0.06
    )
    x = jnp.linspace(-2, 8, 2001, dtype=FLOAT)
    assert abs(jnp.sum(density.density(x, 0.1)) * (x[1] - x[0]) - 1) < 1e-3
    estimate = density.trace_of(jnp.exp)
    assert abs(estimate.value - np.exp(values).sum()) <= 4 * estimate.standard_error
    assert not np.any(np.isnan(density.nodes))


@needs_x64
@pytest.mark.parametrize("values", [np.linspace(1, 2, 8), [1.0, 1.0, 1.0, 3.0]], ids=["plain", "early end"])
@pytest.mark.long
def test_derivatives_pass_through(values):
    """Against differences of the same quadrature, also where the Krylov space ends early."""
    a, _, _ = matrix(values)

    def observed(t):
        density = spectral_density(a * jnp.exp(t), jax.random.key(4), num_steps=6, num_probes=2)
        return density.trace_of(jnp.log).value + density.moment(2).value

    slope = jax.jit(jax.grad(observed))(0.1)
    step = jax.jit(jax.jvp, static_argnums=0)(observed, (0.1,), (1.0,))[1]
    difference = (observed(0.1 + 1e-5) - observed(0.1 - 1e-5)) / 2e-5
    np.testing.assert_allclose([slope, step], difference, rtol=1e-6)


@pytest.mark.parametrize(("count", "smallest"), [(1, False), (3, False), (3, True)])
def test_eigenpairs_are_the_dense_ones(count, smallest):
    a, values, _ = matrix()
    sol = jax.jit(lambda a: extreme_eigenpairs(a, jax.random.key(6), count, smallest=smallest))(a)
    expected = np.sort(values)[:count] if smallest else np.sort(values)[::-1][:count]
    assert sol.converged, sol
    np.testing.assert_allclose(
        sol.value, expected, rtol=1e-4 if X64 else 2e-3, atol=1e-2 * abs(values).max() * float(sol.tol)
    )
    residual = np.linalg.norm(
        np.asarray(a) @ np.asarray(sol.vectors).T - np.asarray(sol.vectors).T * np.asarray(sol.value), axis=0
    )
    assert residual.max() <= 4 * float(sol.tol) * abs(values).max()
    np.testing.assert_allclose(np.asarray(sol.vectors) @ np.asarray(sol.vectors).T, np.eye(count), atol=1e-4)


@pytest.mark.long
def test_multiples_small_sizes_and_zero():
    sol = extreme_eigenpairs(jnp.eye(5, dtype=FLOAT) * 2, jax.random.key(6), 3)
    assert sol.converged
    np.testing.assert_allclose(sol.value, 2, rtol=1e-5)
    zero = extreme_eigenpairs(jnp.zeros((30, 30), FLOAT), jax.random.key(6))
    assert zero.converged
    assert zero.value[0] == 0
    assert extreme_eigenpairs(jnp.asarray([[3.0]], FLOAT), jax.random.key(6)).value[0] == 3


@pytest.mark.long
def test_what_did_not_converge_says_so():
    a, _, _ = matrix(np.linspace(1, 2, 200))
    short = extreme_eigenpairs(a, jax.random.key(6), num_basis=4, max_steps=1)
    assert short.status == Status.MAX_STEPS
    assert extreme_eigenpairs(a.at[3, 3].set(jnp.nan), jax.random.key(6)).status == Status.NONFINITE
    with pytest.raises(ValueError, match="count"):
        extreme_eigenpairs(a, jax.random.key(6), 0)
    with pytest.raises(ValueError, match="num_basis"):
        extreme_eigenpairs(a, jax.random.key(6), 3, num_basis=2)
    with pytest.raises(ValueError, match="num_steps"):
        spectral_density(a, jax.random.key(6), num_steps=0)


@pytest.mark.long
def test_the_derivative_of_an_eigenvalue():
    a, _, _ = matrix()
    direction = jnp.asarray(np.random.default_rng(7).standard_normal((N, N)), FLOAT)
    direction = direction + direction.T
    value = lambda t: extreme_eigenpairs(a + t * direction, jax.random.key(6)).value[0]  # noqa: E731
    h = 1e-4 if X64 else 3e-2
    top = lambda t: np.linalg.eigvalsh(np.asarray(a, np.float64) + t * np.asarray(direction, np.float64))[-1]  # noqa: E731
    np.testing.assert_allclose(jax.grad(value)(jnp.asarray(0, FLOAT)), (top(h) - top(-h)) / (2 * h), rtol=1e-3)
