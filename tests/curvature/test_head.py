"""The closed Hessian of a linear softmax head against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import head_hessian
from solvers.core.precision import matmul

from ..conftest import X64

TOL = 1e-12 if X64 else 1e-5


def data(seed, n):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((n, 5))), jnp.asarray(0.3 * rng.standard_normal((3, 5)))


def reference(x, w):
    def loss(w):
        logits = matmul(x, w.T)
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 1])

    return np.asarray(jax.jit(jax.hessian(loss))(w)).reshape(15, 15)


def test_it_is_the_hessian():
    x, w = data(11, 9)
    ours, full = head_hessian(x, w), reference(x, w)
    scale = abs(full).max()
    v = np.random.default_rng(3).standard_normal((3, 5))
    assert abs(np.asarray(ours.as_matrix()) - full).max() <= TOL * scale
    assert abs(np.asarray(ours.mv(jnp.asarray(v))).ravel() - full @ v.ravel()).max() <= 10 * TOL * scale
    assert abs(np.asarray(ours.diagonal()).ravel() - np.diag(full)).max() <= TOL * scale
    assert abs(ours.trace() - np.trace(full)) <= 10 * TOL * scale


def test_distances_of_two_domains():
    (x, w), (y, u) = data(11, 9), data(12, 6)
    ours, other = head_hessian(x, w), head_hessian(y, u)
    a, b = reference(x, w), reference(y, u)
    scale = np.sum(a**2) + np.sum(b**2)
    assert abs(ours.inner(other) - np.sum(a * b)) <= TOL * scale
    assert abs(ours.squared_distance(other) - np.sum((a - b) ** 2)) <= 4 * TOL * scale
    assert 0 <= ours.squared_distance(ours) <= 4 * TOL * scale


def test_large_logits_are_harmless_and_nan_shows():
    x, w = data(11, 9)
    assert jnp.all(jnp.isfinite(head_hessian(x, 1e30 * w).diagonal()))
    assert jnp.all(jnp.isnan(head_hessian(x.at[0, 0].set(jnp.nan), w).trace()))


def test_shapes_and_dtypes_raise():
    x, w = data(11, 9)
    with pytest.raises(ValueError, match="weights"):
        head_hessian(x, w.T)
    with pytest.raises(ValueError, match="weights"):
        head_hessian(x[:0], w)
    with pytest.raises(TypeError, match="weights"):
        head_hessian(x, w.astype(jnp.bfloat16))
