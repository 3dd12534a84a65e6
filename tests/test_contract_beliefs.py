"""The contract of calls that return Gaussian beliefs: filters, smoothers, regression in one variable."""

import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import GaussianStatus, SolveError

from .cases import collect
from .cases.belief import BeliefCase
from .conftest import FLOAT, X64, needs_x64, whatever_precision

LANES = 3
TOL = 1e-10 if X64 else 2e-4

pytestmark = pytest.mark.parametrize("case", collect("BELIEFS"), ids=lambda c: c.name)


def cast(data, dtype=FLOAT):
    return {k: jnp.asarray(v, dtype) for k, v in data.items()}


def data_of(case: BeliefCase, seed=20, dtype=FLOAT):
    return cast(case.make(np.random.default_rng(seed)), dtype)


@cache
def jitted(case: BeliefCase):
    return jax.jit(case.call)


@cache
def batch(case: BeliefCase):
    return jax.tree.map(lambda *x: jnp.stack(x), *(data_of(case, 20 + i) for i in range(LANES)))


@cache
def mapped(case: BeliefCase):
    return jax.jit(jax.vmap(case.call))


def close(one, two, tol=TOL):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=tol), one, two)


def test_solves_and_says_so(case):
    found = jitted(case)(data_of(case))
    assert type(found) is case.result
    assert found.converged
    assert found.status.dtype == jnp.int32
    assert found.message == "solved"
    assert found.check() is found
    assert {x.dtype for x in (found.mean, found.covariance, found.log_likelihood)} == {FLOAT}
    host = pickle.loads(pickle.dumps(jax.device_get(found)))
    jax.tree.map(np.testing.assert_array_equal, host, jax.device_get(found))


def test_a_lane_is_alone_and_a_nan_stays_in_its_own(case):
    healthy, data = mapped(case)(batch(case)), dict(batch(case))
    for i in range(LANES):
        close(jax.tree.map(lambda x: x[i], healthy), jitted(case)(data_of(case, 20 + i)))
    data[case.observed] = data[case.observed].at[1, 0].set(jnp.nan)
    hit = mapped(case)(data)
    np.testing.assert_array_equal(hit.status, [0, GaussianStatus.NONFINITE, 0])
    for i in (0, 2):
        np.testing.assert_array_equal(hit.mean[i], healthy.mean[i])
    with pytest.raises(SolveError, match="nonfinite"):
        hit.check()


def test_what_was_not_seen_does_not_matter(case):
    data = data_of(case)
    moved = {**data, case.observed: data[case.observed].at[case.hidden].set(jnp.inf)}
    close(jitted(case)(data), jitted(case)(moved), 0)


def test_noise_that_cannot_be_says_so(case):
    data = data_of(case)
    assert jitted(case)({**data, case.noise: -100 * data[case.noise]}).status == GaussianStatus.INDEFINITE
    assert jitted(case)({**data, case.noise: data[case.noise] * jnp.nan}).status == GaussianStatus.NONFINITE


@whatever_precision
def test_new_numbers_do_not_retrace_and_nothing_calls_back(case):
    traces = []

    @jax.jit
    def call(data):
        traces.append(1)
        return case.call(data).mean

    for seed in (20, 22):
        call(data_of(case, seed))
    assert len(traces) == 1
    assert "callback" not in str(jax.make_jaxpr(case.call)(data_of(case)))


@needs_x64
@pytest.mark.long
def test_single_precision_stays_single_and_the_likelihood_is_differentiable(case):
    assert jitted(case)(data_of(case, dtype=np.float32)).mean.dtype == jnp.float32
    data = data_of(case)
    rng = np.random.default_rng(21)
    way = cast({k: 0.1 * np.abs(v) * rng.random(v.shape) for k, v in data.items()})

    def along(t):
        return case.call({k: data[k] + t * way[k] for k in data}).log_likelihood

    value, slope = jax.jit(jax.value_and_grad(along))(0.0)
    ahead, behind = (jitted(case)({k: data[k] + h * way[k] for k in data}).log_likelihood for h in (1e-4, -1e-4))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-4, rtol=1e-5)
    assert np.isfinite(value)
