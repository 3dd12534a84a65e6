"""What every estimator passes (see CONTRIBUTING.md), over the `ESTIMATORS` of the families."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .cases import collect
from .cases.estimator import Estimator
from .conftest import FLOAT, X64, whatever_precision

ESTIMATORS: list[Estimator] = collect("ESTIMATORS")

pytestmark = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)


def data_of(estimator, dtype=FLOAT):
    return {k: jnp.asarray(v, dtype) for k, v in estimator.make(np.random.default_rng(20)).items()}


def keys(count, seed=27):
    return jax.random.split(jax.random.key(seed), count)


@cache
def estimated(estimator):
    """Compiled once: one key after the other, one set of data after the other, goals traced."""

    def one(entry, data, key, rtol):
        data = {**data, estimator.poison: entry}
        return estimator.estimate(data, key, rtol=rtol) if estimator.stops else estimator.estimate(data, key)

    loop = lambda entries, data, keys, rtols: jax.lax.map(  # noqa: E731
        lambda x: one(x[0], data, x[1], x[2]), (entries, keys, rtols)
    )
    # Hundreds of runs take longer than compiling them with care.
    return jax.jit(loop, compiler_options={"xla_backend_optimization_level": 2})


def many(estimator, entries, several, rtol):
    data, count = data_of(estimator), len(several)
    rtol = jnp.broadcast_to(jnp.asarray(rtol, FLOAT), (count,))
    return estimated(estimator)(jnp.broadcast_to(entries, (count, *data[estimator.poison].shape)), data, several, rtol)


def entry(estimator):
    return data_of(estimator)[estimator.poison]


def flat(tree):
    """Return one row a lane."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def truth(estimator):
    whole = jax.tree.map(lambda x: np.asarray(x)[None], estimator.truth(data_of(estimator)))
    return flat(whole)[0]


def test_value_and_error_have_one_structure_and_dtype(estimator):

    def whole(data, key):
        found = estimator.estimate(data, key)
        return found, found.interval()

    found, ends = jax.eval_shape(whole, data_of(estimator, np.float32), keys(1)[0])
    for field in (found.standard_error, found.skewness, found.degrees):
        assert jax.tree.structure(field) == jax.tree.structure(found.value)
    for leaf in jax.tree.leaves((found.value, found.standard_error, ends)):
        assert leaf.dtype == np.float32
    assert [x.shape for x in jax.tree.leaves(found.value)] == [x.shape for x in jax.tree.leaves(found.standard_error)]


def test_intervals_hold_the_truth_as_often_as_they_say(estimator):
    """And the mean of the estimates is the truth, within its own error."""
    found = many(estimator, entry(estimator), keys(estimator.count), 0.0)
    low, high = (flat(end) for end in jax.vmap(lambda e: e.interval())(found))
    exact = truth(estimator)
    rounding = estimator.tol[FLOAT.name] * np.max(np.abs(exact))
    covered = np.mean((low - rounding <= exact) & (exact <= high + rounding), axis=0)
    assert estimator.coverage[0] <= covered.mean() <= estimator.coverage[1], covered
    mean, spread = flat(found.value).mean(0), np.sqrt((flat(found.standard_error) ** 2).mean(0) / estimator.count)
    assert np.all(abs(mean - exact) <= 4.5 * spread + rounding)


def test_same_key_same_bits_and_vmap_is_a_loop(estimator):
    several = keys(4)
    loop = many(estimator, entry(estimator), several.at[3].set(several[0]), 0.0)
    np.testing.assert_array_equal(flat(loop.value)[0], flat(loop.value)[3])
    assert np.any(flat(loop.value)[0] != flat(loop.value)[1])
    data = data_of(estimator)
    together = jax.jit(jax.vmap(lambda k: estimator.estimate(data, k, **({"rtol": 0.0} if estimator.stops else {}))))
    scale = estimator.tol[FLOAT.name] * np.max(np.abs(truth(estimator)))
    np.testing.assert_allclose(flat(together(several).value)[:3], flat(loop.value)[:3], atol=10 * scale)


def test_it_stops_at_the_error_asked_for_and_says_whether(estimator):
    if not estimator.stops:
        pytest.skip("makes a fixed number of products")
    rtols = np.asarray([1e9, 0.3, 0.1, 0.03, 1e-7])
    found = many(estimator, entry(estimator), jnp.tile(keys(1), 5), rtols)
    products = np.asarray(found.num_products)
    assert np.all(np.diff(products) >= 0)
    assert products[0] < products[-1]
    value, error = flat(found.value), flat(found.standard_error)
    if estimator.name.startswith("diagonal"):
        value, error = (np.linalg.norm(x, axis=1, keepdims=True) for x in (value, error))
    reached = np.all(error <= rtols[:, None] * abs(value) * (1 + 1e-5), axis=1)
    np.testing.assert_array_equal(np.asarray(found.converged), reached)
    assert reached[0]
    assert not reached[-1]


@pytest.mark.parametrize("exponent", [-150, 150] if X64 else [-15, 15])
def test_units_do_not_matter(estimator, exponent):
    unit = FLOAT.type(10.0**exponent)
    plain, scaled = (many(estimator, entry(estimator) * u, keys(4), 0.1) for u in (FLOAT.type(1), unit))
    size = np.max(np.abs(flat(plain.value)))
    for field in ("value", "standard_error"):
        ours = flat(getattr(scaled, field)) / float(unit)
        np.testing.assert_allclose(ours, flat(getattr(plain, field)), rtol=2e-3, atol=1e-4 * size)
    np.testing.assert_array_equal(scaled.num_products, plain.num_products)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_lane_says_so_and_leaves_the_others_alone(estimator, bad):
    whole = entry(estimator)
    broken = whole.reshape(-1).at[0].set(bad).reshape(whole.shape)
    lanes, same = jnp.stack([whole, broken, whole, whole]), jnp.tile(keys(1), 4)
    found = many(estimator, lanes, same, 0.0)
    assert not np.all(np.isfinite(flat(found.value)[1]))
    assert not np.asarray(found.converged)[1]
    for field in ("value", "standard_error"):
        np.testing.assert_array_equal(flat(getattr(found, field))[0], flat(getattr(found, field))[2])
        assert np.all(np.isfinite(flat(getattr(found, field))[0]))


def test_zero_is_exact(estimator):
    found = many(estimator, 0 * entry(estimator), keys(4), 0.0)
    np.testing.assert_array_equal(flat(found.value), 0)
    np.testing.assert_array_equal(flat(found.standard_error), 0)


def test_derivatives_pass_through_the_products(estimator):
    """The value is linear in the data for given vectors, up to what the subspace does: against a difference."""
    data, key = data_of(estimator), keys(1)[0]

    def observed(t):
        moved = {**data, estimator.poison: data[estimator.poison] * (1 + t)}
        leaves = jax.tree.leaves(estimator.estimate(moved, key, **({"rtol": 1e9} if estimator.stops else {})).value)
        return sum(jnp.sum(x) for x in leaves)

    here = jnp.asarray(0, FLOAT)
    value, slope = jax.jit(lambda t: jax.jvp(observed, (t,), (jnp.ones_like(t),)))(here)
    np.testing.assert_allclose(slope, value, rtol=1e-5 if X64 else 2e-2)


@whatever_precision
def test_no_callback_and_new_numbers_do_not_retrace(estimator):
    jaxpr = jax.make_jaxpr(lambda d, k: estimator.estimate(d, k).value)(data_of(estimator), keys(1)[0])
    assert "callback" not in str(jaxpr)
    before = estimated(estimator)._cache_size()
    many(estimator, 1.1 * entry(estimator), keys(4), 0.1)
    many(estimator, 1.2 * entry(estimator), keys(4, 28), 0.2)
    assert estimated(estimator)._cache_size() <= before + 1
