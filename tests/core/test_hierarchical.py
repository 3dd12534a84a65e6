"""The polynomials of polynomials: moments for normal inputs, degree, and no linear part."""

import jax
import jax.numpy as jnp
import numpy as np

from solvers.problems.hierarchical import hierarchical_polynomial

from ..conftest import FLOAT


def test_feature_and_polynomial_are_what_they_say():
    problem = hierarchical_polynomial(np.random.default_rng(5), 12, FLOAT)
    x = jnp.asarray(np.random.default_rng(7).standard_normal((20_000, 12)), FLOAT)
    p, h = problem.feature(x), problem(x)
    assert abs(float(jnp.mean(p))) < 0.03
    assert abs(float(jnp.var(p)) - 1) < 0.05
    # Even in x, so that nothing linear is in it; and correlated with the feature.
    np.testing.assert_allclose(problem(-x[:5]), h[:5], rtol=1e-5)
    assert float(jnp.mean(h * p)) > 0.5
    # Of degree six along every line.
    line = np.linspace(-1, 1, 9)[:, None] * np.asarray(x[0], float)[None]
    with jax.numpy_dtype_promotion("standard"):
        values = np.asarray(problem(jnp.asarray(line, FLOAT)), float)
    residual = np.polynomial.polynomial.polyfit(np.linspace(-1, 1, 9), values, 6, full=True)[1][0]
    assert residual[0] < 1e-6 * np.sum(values**2)
