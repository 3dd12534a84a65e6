"""The contract of public Equinox modules (see CONTRIBUTING.md), over the `MODULES` of tests/cases."""

import dataclasses
import io
import pickle
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import solvers

from .cases import collect
from .cases.module import ModuleCase
from .conftest import FLOAT, X64, needs_x64

MODULES: list[ModuleCase] = collect("MODULES")
LANES = 3

pytestmark = pytest.mark.parametrize("case", MODULES, ids=lambda c: c.name)


def made(case, seed=20, dtype=FLOAT):
    return case.make(jax.random.key(seed), dtype)


def example_of(case, seed=20, dtype=FLOAT):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), case.example(np.random.default_rng(seed)))


def stacked(trees):
    return jax.tree.map(lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0], *trees)


def close(x, y, case):
    tol = case.tol[FLOAT.name]
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tol, atol=tol), x, y)


@cache
def jitted(case):
    return jax.jit(case.call)


def loss(case, module, example):
    return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(case.call(module, example)))


def test_is_public_frozen_and_made_of_arrays(case):
    module = made(case)
    assert getattr(solvers, case.name) is case.module
    assert isinstance(module, case.module)
    assert isinstance(module, eqx.Module)
    name = dataclasses.fields(module)[0].name
    with pytest.raises(AttributeError):
        setattr(module, name, None)
    leaves = jax.tree.leaves(module)
    assert leaves
    assert all(eqx.is_array(x) for x in leaves)
    hash(jax.tree.structure(module))


def test_jit_equals_eager(case):
    module, example = made(case), example_of(case)
    close(jitted(case)(module, example), case.call(module, example), case)  # plain jit: all its leaves are arrays


def test_new_numbers_do_not_retrace(case):
    traces = []

    @jax.jit
    def call(module, example):
        traces.append(1)
        return case.call(module, example)

    for seed in (20, 21):
        call(made(case, seed), example_of(case, seed))
    assert len(traces) == 1


def test_vmap_over_examples_and_over_modules(case):
    modules, examples = [made(case, 20 + i) for i in range(LANES)], [example_of(case, 20 + i) for i in range(LANES)]
    alone = jitted(case)
    many = jax.jit(jax.vmap(case.call, in_axes=(None, 0)))(modules[0], stacked(examples))
    ensemble = jax.jit(jax.vmap(case.call))(stacked(modules), stacked(examples))
    for i in range(LANES):
        lane = lambda tree: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
        close(lane(many), alone(modules[0], examples[i]), case)
        close(lane(ensemble), alone(modules[i], examples[i]), case)


def test_a_nan_lane_leaves_its_neighbours_alone(case):
    examples = stacked([example_of(case, 20 + i) for i in range(LANES)])
    poisoned = jax.tree.map(lambda x: x.at[1].set(jnp.nan), examples)
    call = jax.jit(jax.vmap(case.call, in_axes=(None, 0)))
    clean, hit = call(made(case), examples), call(made(case), poisoned)
    for x, y in zip(jax.tree.leaves(clean), jax.tree.leaves(hit), strict=True):
        np.testing.assert_array_equal(x[::2], y[::2])
        assert np.isnan(np.asarray(y[1])).any()


@needs_x64
@pytest.mark.long
def test_derivatives_in_both_modes_to_second_order(case):
    module, example = made(case), example_of(case)
    check_grads(
        jax.jit(lambda m, x: loss(case, m, x)), (module, example), order=2, modes=("fwd", "rev"), rtol=2e-4, atol=2e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_its_dtype(case, dtype):
    if dtype == "float64" and not X64:
        pytest.skip("no float64 here")
    module, example = made(case, dtype=dtype), example_of(case, dtype=dtype)
    real = {
        x.dtype for x in jax.tree.leaves((module, jax.eval_shape(case.call, module, example))) if x.dtype.kind == "f"
    }
    assert real == {jnp.dtype(dtype)}


def test_every_parameter_moves_and_training_lowers_a_loss(case):
    if not case.trains:
        pytest.skip("its arrays are no parameters")
    module, example = made(case), example_of(case)
    target = jitted(case)(made(case, 21), example)

    def misfit(module):
        parts = jax.tree.map(lambda y, t: jnp.mean((y - t) ** 2), case.call(module, example), target)
        return sum(jax.tree.leaves(parts))

    value_and_grad = eqx.filter_jit(eqx.filter_value_and_grad(misfit))
    first, gradient = value_and_grad(module)
    assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(gradient))
    for _ in range(10):
        gradient = value_and_grad(module)[1]
        size = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient)))
        module = eqx.apply_updates(module, jax.tree.map(lambda g: -1e-2 / size * g, gradient))
    assert value_and_grad(module)[0] < first


def test_pickles_and_serialises(case):
    module, example = made(case), example_of(case)
    again = pickle.loads(pickle.dumps(module))
    close(jitted(case)(again, example), jitted(case)(module, example), case)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, module)
    file.seek(0)
    read = eqx.tree_deserialise_leaves(file, made(case, 21))
    for x, y in zip(jax.tree.leaves(read), jax.tree.leaves(module), strict=True):
        np.testing.assert_array_equal(x, y)


def test_no_callback_and_exports(case):
    module, example = made(case), example_of(case)
    assert "callback" not in str(jax.make_jaxpr(case.call)(module, example))
    leaves, structure = jax.tree.flatten((module, example))
    exported = jax.export.export(jax.jit(lambda *x: case.call(*jax.tree.unflatten(structure, x))))(*leaves)
    close(exported.call(*leaves), jitted(case)(module, example), case)


def test_same_key_same_module(case):
    same = jax.tree.map(lambda x, y: bool(jnp.all(x == y)), made(case, 23), made(case, 23))
    assert all(jax.tree.leaves(same))


def test_refuses_what_cannot_be(case):
    for call in case.refuse:
        with pytest.raises((ValueError, TypeError), match=case.name):
            call()
