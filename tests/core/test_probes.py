"""Probes have mean zero and covariance one, keep dtypes and shapes, and are the same for the same key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.core.probes import PROBES, probe, probes

from ..conftest import FLOAT

LIKE = {"a": jnp.zeros((2, 1), FLOAT), "b": jnp.zeros(3, jnp.float32)}


@pytest.mark.parametrize("kind", PROBES)
def test_mean_and_covariance(kind):
    z = probes(kind, jax.random.key(5), 40_000, LIKE)
    assert z["b"].dtype == jnp.float32
    assert z["a"].dtype == FLOAT
    flat = np.concatenate([np.asarray(z["a"], float)[..., 0], np.asarray(z["b"], float)], axis=1)
    np.testing.assert_allclose(flat.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(5), atol=0.03)
    if kind != "gaussian":
        np.testing.assert_allclose(np.sum(flat**2, 1), 5, rtol=1e-5)


def test_the_key_decides_and_the_kind_is_checked():
    first, second = (probe("gaussian", jax.random.key(6), LIKE) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert np.any(probe("gaussian", jax.random.key(7), LIKE)["b"] != first["b"])
    with pytest.raises(ValueError, match="rademacher"):
        probe("normal", jax.random.key(6), LIKE)
