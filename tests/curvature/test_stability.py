"""SGD's stability against closed forms, simulation by moments, and random matrices; alignment against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaincinv

from solvers import batch_hessian_outlier, scale_learning_rate
from solvers.core.precision import matmul

from ..compiled import hessian_alignment, sgd_stability
from ..conftest import FLOAT


def isotropic(radii=400, angles=16):
    """Points of the plane with the moments of a standard normal: equal angles, radii at the quantiles."""
    r = np.sqrt(2 * gammaincinv(1.0, (np.arange(radii) + 0.5) / radii))
    phi = 2 * np.pi * np.arange(angles) / angles
    return np.stack([np.outer(r, np.cos(phi)), np.outer(r, np.sin(phi))], axis=-1).reshape(-1, 2)


def test_isotropic_data_is_stable_up_to_the_closed_bound():
    """eta tr H <= 2 d / (d + 2) at B = 1, though gradient descent allows 2 / lambda_max."""
    stability = sgd_stability(jnp.asarray(isotropic(), FLOAT))
    trace = float(jnp.sum(stability.curvatures))
    assert abs(float(stability.critical) * trace / 1.0 - 1) < 0.01
    assert abs(stability.radius(0.7 / trace) - (1 - 1.4 / trace + 0.49 / trace**2 * 4)) < 0.01
    assert stability.resolved
    assert stability.critical <= stability.trace_bound <= 2 * stability.largest_bound


@pytest.mark.parametrize(("batch", "replacement"), [(1, True), (3, True), (3, False), (6, False)])
def test_the_radius_is_that_of_the_dense_map(batch, replacement):
    a = np.random.default_rng(5).standard_normal((6, 9))
    n, rate = 6, 0.11
    h = a.T @ a / n
    c = 1 / batch if replacement else (n - batch) / (batch * (n - 1))
    single = sum(np.kron(np.outer(x, x), np.outer(x, x)) for x in a) / n
    eye = np.eye(9)
    dense = np.kron(eye - rate * h, eye - rate * h) + rate**2 * c * (single - np.kron(h, h))
    q = np.linalg.svd(a, full_matrices=False)[2].T
    span = np.kron(q, q)
    expected = abs(np.linalg.eigvals(span.T @ dense @ span)).max()
    stability = sgd_stability(jnp.asarray(a, FLOAT), batch, replacement=replacement)
    np.testing.assert_allclose(stability.radius(rate), expected, rtol=1e-3)
    np.testing.assert_allclose(stability.radius(stability.critical), 1, rtol=2e-3)
    assert stability.radius(0.9 * stability.critical) < 1 < stability.radius(1.1 * stability.critical)
    if batch == 6:
        np.testing.assert_allclose(stability.critical, stability.largest_bound, rtol=1e-3)


def test_degenerate_data():
    line = jnp.asarray([[1.0, 2.0], [2.0, 4.0]], FLOAT)
    stability = sgd_stability(line)
    h, fourth = 12.5, (25 + 400) / 2
    np.testing.assert_allclose(stability.critical, 2 * h / fourth, rtol=1e-3)
    assert sgd_stability(jnp.zeros((3, 2), FLOAT)).critical == np.inf
    assert np.isnan(sgd_stability(line.at[0, 0].set(jnp.nan)).critical)
    scaled = sgd_stability(1e8 * line)
    np.testing.assert_allclose(scaled.critical * 1e16, stability.critical, rtol=1e-3)
    for bad in ({"batch_size": 0}, {"batch_size": 3, "replacement": False}):
        with pytest.raises(ValueError, match="batch_size"):
            sgd_stability(line, **bad)
    with pytest.raises(ValueError, match="gradients"):
        sgd_stability(line[:0])


def test_outliers_of_a_noisy_matrix():
    """A spike in a Wigner matrix of radius 2, to 2 %."""
    size = 700
    w = np.random.default_rng(6).standard_normal((size, size))
    w = (w + w.T) / np.sqrt(2 * size)
    for spike, theory in ((1.2, 1.2 + 1 / 1.2), (2.0, 2.5), (4.0, 4.25), (0.5, 2.0)):
        ours = batch_hessian_outlier(spike, num_params=size, variance=1 / size * 8, batch_size=8)
        np.testing.assert_allclose(ours, theory, rtol=1e-5)
        h = w.copy()
        h[0, 0] += spike
        np.testing.assert_allclose(np.linalg.eigvalsh(h)[-1], ours, rtol=0.02)
    assert batch_hessian_outlier(3.0, 100, 5.0, batch_size=10, num_data=10) == 3
    np.testing.assert_allclose(batch_hessian_outlier(jnp.asarray([-4.0, -0.1], FLOAT), 1, 1.0, 1), [-4.25, -2])


def test_learning_rates_follow_the_batch():
    assert abs(scale_learning_rate(0.1, 64, 256) - 0.4) < 1e-6
    assert abs(scale_learning_rate(0.1, 64, 256, rule="sqrt") - 0.2) < 1e-6
    with pytest.raises(ValueError, match="rule"):
        scale_learning_rate(0.1, 1, 2, rule="cubic")


def domains(seed=7):
    rng = np.random.default_rng(seed)
    draw = lambda n, s: (jnp.asarray(s * rng.standard_normal((n, 4)), FLOAT), jnp.asarray(rng.integers(0, 3, n)))  # noqa: E731
    return [draw(12, 1.0), draw(9, 2.0)], jnp.asarray(0.3 * rng.standard_normal((3, 4)), FLOAT)


def loss(w, x, y):
    logits = matmul(x, w.T)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0])


@pytest.mark.long
def test_alignment_is_its_definition():
    pairs, w = domains()
    g = [np.asarray(jax.grad(loss)(w, *d), np.float64).ravel() for d in pairs]
    h = [np.asarray(jax.hessian(loss)(w, *d), np.float64).reshape(12, 12) for d in pairs]
    spread = lambda x: np.mean([np.sum((v - np.mean(x, 0)) ** 2) for v in x])  # noqa: E731
    tol = {"rtol": 1e-9 if FLOAT == "float64" else 1e-3}
    expected = {
        "exact": h,
        "diagonal": [np.diag(x) for x in h],
        "gradient_product": [a @ b for a, b in zip(h, g, strict=True)],
    }
    for method, u in expected.items():
        parts = hessian_alignment(pairs, w, alpha=2.0, beta=3.0, method=method)
        np.testing.assert_allclose(parts.hessian, spread(u), **tol)
        np.testing.assert_allclose(parts.gradient, spread(g), **tol)
        np.testing.assert_allclose(parts.loss, np.mean([loss(w, *d) for d in pairs]), **tol)
        np.testing.assert_allclose(parts.total, parts.loss + 2 * parts.hessian + 3 * parts.gradient, rtol=1e-5)
    sampled = hessian_alignment(pairs, w, method="hutchinson", key=jax.random.key(3), num_probes=3000)
    np.testing.assert_allclose(sampled.hessian, spread(expected["diagonal"]), rtol=0.2)


def test_the_exact_penalty_has_the_gradient_of_the_dense_one():
    """The mean has no derivative, as published."""
    pairs, w = domains()

    def dense(w):
        h = jnp.stack([jax.hessian(loss)(w, *d).reshape(-1) for d in pairs])
        return jnp.sum((h - jax.lax.stop_gradient(jnp.mean(h, axis=0, keepdims=True))) ** 2) / 2

    ours = jax.jit(jax.grad(lambda w: hessian_alignment(pairs, w).hessian))(w)
    np.testing.assert_allclose(ours, jax.jit(jax.grad(dense))(w), rtol=1e-3, atol=1e-6)


def test_impossible_alignments_raise():
    pairs, w = domains()
    for bad, match in (({"method": "all"}, "method"), ({"method": "hutchinson"}, "key")):
        with pytest.raises(ValueError, match=match):
            hessian_alignment(pairs, w, **bad)
    with pytest.raises(ValueError, match="domains"):
        hessian_alignment([(pairs[0][0], pairs[0][1][:3])], w)
    with pytest.raises(ValueError, match="domains"):
        hessian_alignment([], w)
