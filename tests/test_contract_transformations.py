"""The contract of Optax gradient transformations (see CONTRIBUTING.md), over the `TRANSFORMATIONS` of `tests/cases`."""

import pickle
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import solvers

from .cases import collect
from .cases.transformation import Transformation
from .conftest import FLOAT, X64

ENTRIES: list[Transformation] = collect("TRANSFORMATIONS")
pytestmark = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)


class Odd(NamedTuple):
    """A container that is none of dict, list and tuple."""

    first: object
    second: object


def params_of(dtype=FLOAT, seed=20):
    """A tree with a matrix, a vector, a scalar and an empty branch."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    return {"w": draw(4, 3), "rest": Odd(draw(5), (draw(), None))}


def loss(params):
    """A quadratic whose curvatures span two decades, with its minimum 0 at 1."""
    leaves = jax.tree.leaves(params)
    flat = [(leaf - 1).reshape(-1) for leaf in leaves]
    x = jnp.concatenate(flat)
    scales = jnp.asarray(np.geomspace(1, 100, x.size), x.dtype)
    return 0.5 * jnp.sum(scales * x**2)


def run(transformation, entry, params, key, steps, objective=loss):
    """Take some steps in one scan; return the parameters, the state and all updates."""
    transformation = optax.with_extra_args_support(transformation)

    def step(carry, key):
        params, state = carry
        extra = entry.extra(objective, params, key)
        updates, state = transformation.update(entry.gradient(objective, params), state, params, **extra)
        return (optax.apply_updates(params, updates), state), updates

    (params, state), updates = jax.lax.scan(step, (params, transformation.init(params)), jax.random.split(key, steps))
    return params, state, updates


@cache
def ran(entry, dtype=FLOAT.name):
    return jax.jit(lambda p, k: run(entry.make(), entry, p, k, 5))(params_of(dtype), jax.random.key(3))


def close(x, y, entry, dtype=FLOAT.name):
    tol = dict(entry.tol)[dtype]
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for u, v in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
        np.testing.assert_allclose(u, v, rtol=tol, atol=tol * max(1.0, float(np.max(np.abs(v), initial=0))))


def test_it_is_public_and_an_optax_transformation(entry):
    made = entry.make()
    assert isinstance(made, optax.GradientTransformation)
    assert callable(getattr(solvers, entry.name))


def test_updates_and_state_keep_structure_shape_and_dtype(entry):
    for dtype in entry.dtypes:
        if dtype == "float64" and not X64:
            continue
        params = params_of(dtype)
        end, state, updates = ran(entry, dtype)
        like = jax.eval_shape(lambda p: entry.make().init(p), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        for u, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
            assert (u.shape[1:], u.dtype) == (p.shape, p.dtype)
        assert jax.tree.structure(state) == jax.tree.structure(like)
        for s, t in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
            assert (s.shape, s.dtype) == (t.shape, t.dtype)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(end))
        assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(updates))


def test_a_scan_equals_a_python_loop_of_eager_steps(entry):
    """The same updates without jit; the state given to `update` is left as it was."""
    made = optax.with_extra_args_support(entry.make())
    params, keys = params_of(), jax.random.split(jax.random.key(3), 5)
    state = made.init(params)
    for t in range(2):
        before = jax.tree.map(np.array, jax.tree.map(_plain, state))
        updates, after = made.update(entry.gradient(loss, params), state, params, **entry.extra(loss, params, keys[t]))
        jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(_plain, state))
        close(updates, jax.tree.map(lambda u, t=t: u[t], ran(entry)[2]), entry)
        params, state = optax.apply_updates(params, updates), after


def _plain(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_the_state_is_a_plain_pytree_of_arrays(entry):
    state = jax.tree.map(_plain, ran(entry)[1])
    again = pickle.loads(pickle.dumps(jax.device_get(state)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), again)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_no_callback_and_the_same_key_gives_the_same_bits(entry):
    program = jax.make_jaxpr(lambda p, k: run(entry.make(), entry, p, k, 2))(params_of(), jax.random.key(3))
    assert "callback" not in str(program)
    first, second = (
        jax.jit(lambda p, k: run(entry.make(), entry, p, k, 5)[0])(params_of(), jax.random.key(3)) for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_lanes_of_vmap_are_alone(entry):
    """Each lane as by itself, and a NaN in one leaves the bits of the others alone."""
    lanes = jax.tree.map(lambda *x: jnp.stack(x), *(params_of(seed=20 + i) for i in range(3)))
    batched = jax.jit(jax.vmap(lambda p: run(entry.make(), entry, p, jax.random.key(3), 5)[2]))
    healthy = batched(lanes)
    close(jax.tree.map(lambda u: u[0], healthy), ran(entry)[2], entry)
    poisoned = batched({**lanes, "w": lanes["w"].at[1, 0, 0].set(jnp.nan)})
    for i in (0, 2):
        jax.tree.map(lambda u, v, i=i: np.testing.assert_array_equal(u[i], v[i]), healthy, poisoned)
    assert np.isnan(np.asarray(poisoned["w"][1])).any() or not np.asarray(poisoned["w"][1]).any()


def test_it_chains(entry):
    """``chain`` passes extra arguments on, and what comes behind sees the update."""
    doubled = optax.chain(optax.identity(), entry.make(), optax.scale(2.0))
    params, key = params_of(), jax.random.key(3)
    made = optax.with_extra_args_support(doubled)
    extra = entry.extra(loss, params, jax.random.split(key, 5)[0])
    updates, _ = jax.jit(lambda p: made.update(entry.gradient(loss, p), made.init(p), p, **extra))(params)
    close(jax.tree.map(lambda u: u / 2, updates), jax.tree.map(lambda u: u[0], ran(entry)[2]), entry)


def test_it_runs_under_a_mask(entry):
    """On one branch of the tree; the other passes through untouched. Extra arguments are those of the branch."""
    params, key = params_of(), jax.random.key(3)
    only = {"w": True, "rest": Odd(False, (False, None))}
    made = optax.with_extra_args_support(optax.masked(entry.make(), only))

    def branch(p):
        w = p["w"] if isinstance(p["w"], jax.Array) else params["w"]
        return loss({**params, "w": w})

    extra = entry.extra(branch, params, key)
    grads = entry.gradient(loss, params)
    updates, state = jax.jit(lambda g, p: made.update(g, made.init(p), p, **extra))(grads, params)
    jax.tree.map(np.testing.assert_array_equal, updates["rest"], grads["rest"])
    assert updates["w"].shape == params["w"].shape
    assert np.all(np.isfinite(updates["w"]))
    jax.jit(lambda g, s, p: made.update(g, s, p, **extra))(grads, state, params)


def test_its_numbers_are_traced(entry):
    """One program for all values, the same result as with the number built in, and another for another number."""
    name, value = entry.number
    traces = []

    @jax.jit
    def steps(number):
        traces.append(1)
        return run(entry.make(**{name: number}), entry, params_of(), jax.random.key(3), 5)[2]

    built_in = jax.jit(lambda: run(entry.make(**{name: value}), entry, params_of(), jax.random.key(3), 5)[2])()
    traced, other = steps(jnp.asarray(value, FLOAT)), steps(jnp.asarray(0.5 * value, FLOAT))
    close(traced, built_in, entry)
    assert len(traces) == 1
    assert any(bool(jnp.any(u != v)) for u, v in zip(jax.tree.leaves(traced), jax.tree.leaves(other), strict=True))


def test_it_works_under_inject_hyperparams(entry):
    """A schedule or a state can set the number; the update follows it."""
    name, value = entry.number
    made = optax.inject_hyperparams(entry.make, static_args=entry.static)(**{name: value})
    params, key = params_of(), jax.random.key(3)
    extra = entry.extra(loss, params, jax.random.split(key, 5)[0])
    made = optax.with_extra_args_support(made)
    state = made.init(params)
    step = jax.jit(lambda s, p: made.update(entry.gradient(loss, p), s, p, **extra)[0])
    expected = jax.jit(lambda p: run(entry.make(**{name: value}), entry, p, key, 5)[2])(params)
    close(step(state, params), jax.tree.map(lambda u: u[0], expected), entry)
    state.hyperparams[name] = 0.5 * state.hyperparams[name]
    step(state, params)


def test_it_descends(entry):
    if entry.descends is None:
        pytest.skip("no optimiser by itself")
    start = params_of()
    end = jax.jit(lambda p: run(entry.make(), entry, p, jax.random.key(3), entry.steps)[0])(start)
    assert float(loss(end)) <= entry.descends * float(loss(start))
