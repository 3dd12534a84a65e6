"""What every sampler passes (see CONTRIBUTING.md), over the `SAMPLERS` of the families."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .cases import collect
from .cases.sampler import Sampler
from .conftest import FLOAT

SAMPLERS: list[Sampler] = collect("SAMPLERS")

pytestmark = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)


def data_of(sampler, dtype=FLOAT):
    return {k: jnp.asarray(v, dtype) for k, v in sampler.make(np.random.default_rng(20)).items()}


def drawn(sampler):
    return jax.jit(sampler.draw)


def mapped(sampler):
    return jax.jit(jax.vmap(sampler.draw, (None, 0)))


def keys(count, seed=27):
    return jax.random.split(jax.random.key(seed), count)


def test_same_key_same_answer(sampler):
    """To the bit; and another key gives another one."""
    draw, data, (one, two) = drawn(sampler), data_of(sampler), keys(2)
    np.testing.assert_array_equal(draw(data, one), draw(data, one))
    assert np.any(np.asarray(draw(data, one)) != np.asarray(draw(data, two)))


def test_vmap_over_keys_is_a_loop_over_them(sampler):
    data, several = data_of(sampler), keys(3)
    together = mapped(sampler)(data, several)
    tol = 1e-9 if FLOAT == "float64" else 1e-3
    for k, x in zip(several, together, strict=True):
        np.testing.assert_allclose(drawn(sampler)(data, k), x, rtol=tol, atol=tol)


def test_one_scan_and_no_callback(sampler):
    """One loop over the steps, whatever their number, outside of which no other runs."""
    jaxpr = jax.make_jaxpr(sampler.draw)(data_of(sampler), keys(1)[0])
    loops = [e.primitive.name for e in jaxpr.jaxpr.eqns if e.primitive.name in ("scan", "while")]
    assert loops == ["scan"]
    assert "callback" not in str(jaxpr)


def test_keeps_the_dtype(sampler):
    assert drawn(sampler)(data_of(sampler, np.dtype("float32")), keys(1)[0]).dtype == "float32"


def test_new_numbers_do_not_retrace(sampler):
    traces = []

    @jax.jit
    def draw(data, key):
        traces.append(1)
        return sampler.draw(data, key)

    data = data_of(sampler)
    for k in keys(2):
        draw(data, k)
        data = {name: 1.1 * entry for name, entry in data.items()}
    assert len(traces) == 1


def test_nan_data_give_nan_and_leave_other_lanes_alone(sampler):
    data, key = data_of(sampler), keys(1)[0]
    entry = data[sampler.poison]
    lanes = {**data, sampler.poison: jnp.stack([entry, jnp.full_like(entry, jnp.nan), entry])}
    axes = {name: 0 if name == sampler.poison else None for name in data}
    draws = jax.jit(jax.vmap(sampler.draw, (axes, None)))(lanes, key)
    assert np.all(np.isnan(draws[1]))
    assert np.all(np.isfinite(draws[0]))
    np.testing.assert_array_equal(draws[0], draws[2])


def test_moments_are_those_of_the_exact_distribution(sampler):
    """Mean within four standard errors and the entry's own bias; total variance within its share."""
    draws = np.asarray(mapped(sampler)(data_of(sampler), keys(sampler.count)), float)
    mean, covariance = (np.asarray(m, float) for m in sampler.exact(data_of(sampler)))
    error = np.linalg.norm(draws.mean(0) - mean)
    assert error <= 4 * np.sqrt(np.trace(covariance) / sampler.count) + sampler.bias
    ratio = np.trace(np.atleast_2d(np.cov(draws.T))) / np.trace(covariance)
    assert abs(ratio - 1) <= sampler.spread
