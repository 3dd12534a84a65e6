"""The contract that every public solver passes (see CONTRIBUTING.md), over the entries of `cases.py`."""

import importlib
import json
import pickle
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from solvers import SolveError, Status

from .cases import CASES, Case
from .conftest import FLOAT, needs_x64, whatever_precision

BENCH = Path(__file__).parents[1] / "bench"
LANES = 4

pytestmark = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def data_of(case: Case, dtype=FLOAT, seed=20):
    return cast(case.make(np.random.default_rng(seed)), dtype)


def cast(data, dtype=FLOAT):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if np.asarray(x).dtype.kind == "f" else jnp.asarray(x), data)


@cache
def batch(case: Case):
    """Four different problems, stacked."""
    return jax.tree.map(lambda *x: jnp.stack(x), *(data_of(case, seed=20 + i) for i in range(LANES)))


@cache
def jitted(case: Case):
    return jax.jit(lambda data, **options: case.solve(data, **options))


@cache
def limited(case: Case):
    """A solve with traced limits, and a list that grows whenever it is traced."""
    traces = []

    @jax.jit
    def solve(data, tol, max_steps):
        traces.append(1)
        return case.solve(data, tol=tol, max_steps=max_steps)

    return solve, traces


@cache
def scanned(case: Case):
    """The batch one after the other, with the errors after each step."""
    return jax.jit(lambda data: jax.lax.scan(lambda c, d: (c, case.solve(d, history=64)), 0, data)[1])(batch(case))


@cache
def mapped(case: Case):
    return jax.jit(jax.vmap(lambda data: case.solve(data)))


@cache
def solved_batch(case: Case):
    return mapped(case)(batch(case))


def lane(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def close(x, y, case):
    tol = 100 * case.tol[FLOAT.name]
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tol, atol=tol), x, y)


def test_converges_and_says_so(case):
    solution = jitted(case)(data_of(case))
    assert isinstance(solution, case.solution)
    assert solution.converged, solution
    assert solution.error <= solution.tol <= case.tol[FLOAT.name]
    assert solution.check() is solution
    assert "converged in" in repr(solution)
    assert solution.message == "converged"


def test_counts_have_not_grown(case, monkeypatch):
    """Against the stored ones; `python bench/counts.py --write` renews them when a change is meant."""
    monkeypatch.syspath_prepend(str(BENCH))
    bench = importlib.import_module("counts")
    stored = json.loads(bench.BASELINE.read_text())[case.name][FLOAT.name]
    now = bench.counts(solved_batch(case))
    assert {"equations", *now} == set(stored)
    for name, lanes in now.items():
        assert sum(lanes) <= 1.1 * sum(stored[name]) + 2, (name, lanes, stored[name])
    assert bench.program_size(case.solve, data_of(case)) <= 1.2 * stored["equations"]


@whatever_precision
def test_jit_equals_eager(case):
    eager, compiled = case.solve(data_of(case)), jitted(case)(data_of(case))
    close(eager.value, compiled.value, case)
    assert eager.num_steps == compiled.num_steps
    assert eager.status == compiled.status


def test_vmap_equals_a_python_loop(case):
    solutions = solved_batch(case)
    for i in range(LANES):
        alone = jitted(case)(lane(batch(case), i))
        close(lane(solutions.value, i), alone.value, case)
        assert solutions.status[i] == alone.status
        # a product of a batch rounds in another order: in float32 that can decide whether a step more is taken
        assert abs(solutions.num_steps[i] - alone.num_steps) <= int(FLOAT == "float32")


def test_nan_lane_leaves_the_others_alone(case):
    data = dict(batch(case))
    entry = data[case.poison]
    data[case.poison] = entry.at[(1,) + (0,) * (entry.ndim - 1)].set(jnp.nan)
    poisoned, healthy = mapped(case)(data), solved_batch(case)
    assert poisoned.status[1] == Status.NONFINITE
    for i in (0, 2, 3):
        jax.tree.map(np.testing.assert_array_equal, lane(poisoned.value, i), lane(healthy.value, i))
        assert poisoned.status[i] == Status.CONVERGED
        assert poisoned.num_steps[i] == healthy.num_steps[i]
    assert f"{LANES - 1} of {LANES} converged" in repr(poisoned)
    with pytest.raises(SolveError, match="nonfinite"):
        poisoned.check()


def test_nan_ends_at_once(case):
    data = dict(data_of(case))
    entry = data[case.poison]
    data[case.poison] = entry.at[(0,) * entry.ndim].set(jnp.nan)
    solution = jitted(case)(data)
    assert solution.status == Status.NONFINITE
    assert solution.num_steps == 0
    assert not solution.converged


@needs_x64
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_first_and_second_derivatives(case, mode):
    """Along a feasible direction, against differences of the values, and of the first derivatives."""
    data = data_of(case)
    rng = np.random.default_rng(21)
    second = case.orders > 1
    direction = cast({k: v for k, v in case.direction(rng, data).items() if k in case.differentiable})

    def observed(t):
        moved = {k: data[k] + t * direction[k] if k in direction else data[k] for k in data}
        return case.observe(case.solve(moved, **case.exact))

    def forward(t):
        slope = lambda t: jax.jvp(observed, (t,), (1.0,))  # noqa: E731
        return jax.jvp(slope, (t,), (1.0,)) if second else (slope(t), (0.0, 0.0))

    def reverse(t):
        def slope(t):
            value, first = jax.value_and_grad(observed)(t)
            return first, (value, first)

        if not second:
            return slope(t)[1], (0.0, 0.0)
        bend, aux = jax.grad(slope, has_aux=True)(t)
        return aux, (aux[1], bend)

    derivatives = jax.jit(forward if mode == "forward" else reverse)
    h = 1e-4
    (values, slopes), (_, bend) = jax.tree.map(lambda *x: np.array(x), *(derivatives(k * h) for k in (-2, -1, 0, 1, 2))
                                               )  # fmt: skip
    np.testing.assert_allclose(slopes[2], _difference(values, h), rtol=case.accuracy, atol=1e-8)
    if second:
        np.testing.assert_allclose(bend[2], _difference(slopes, h), rtol=case.accuracy, atol=1e-7)
    assert abs(slopes[2]) > 1e-3


def _difference(x, h):
    """Fourth-order central difference."""
    return (8 * (x[3] - x[1]) - (x[4] - x[0])) / (12 * h)


@pytest.mark.long
def test_every_promised_entry_has_a_derivative_under_vmap(case):
    gradient = jax.grad(lambda d: case.observe(case.solve(d)), allow_int=True)
    gradients, one = jax.jit(jax.vmap(gradient))(batch(case)), jax.jit(gradient)(lane(batch(case), 2))
    # in float32 a batch may stop one step apart from its lanes alone: each is then off by as much as the solver allows
    rtol, atol = (1e-5, 1e-7) if FLOAT == "float64" else (2e-2, max(1e-3, 2 * case.tol["float32"]))
    for name in case.differentiable:
        assert np.any(np.asarray(one[name]) != 0), name
        jax.tree.map(
            lambda u, v: np.testing.assert_allclose(u, v, rtol=rtol, atol=atol), lane(gradients[name], 2), one[name]
        )


@pytest.mark.long
def test_derivatives_of_what_did_not_converge_are_nan(case):
    """By default in every entry; those of the equations at the point returned where they are asked for."""
    data, options = data_of(case), {"tol": jnp.asarray(0, FLOAT), "max_steps": 1}

    def gradient(**more):
        moving = {k: v for k, v in data.items() if k in case.differentiable}
        return jax.jit(jax.grad(lambda d: case.observe(case.solve({**data, **d}, **options, **more))))(moving)

    if case.solve(data, **options).converged:
        pytest.skip("one step solves it to the last bit")
    for name, entry in gradient().items():
        assert np.all(np.isnan(entry)), name
    for name, entry in gradient(unconverged="approximate").items():
        assert np.all(np.isfinite(entry)), name


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=needs_x64)])
def test_keeps_the_dtype(case, dtype):
    solution = jitted(case)(data_of(case, np.dtype(dtype)))
    for leaf in jax.tree.leaves((solution.value, solution.error)):
        assert leaf.dtype == dtype
    assert solution.status.dtype == jnp.int32
    assert solution.converged, solution


@whatever_precision
def test_new_numbers_do_not_retrace(case):
    solve, traces = limited(case)
    for seed, tol, max_steps in ((20, 1e-3, 50), (22, 1e-2, 60)):
        solve(data_of(case, seed=seed), jnp.asarray(tol, FLOAT), max_steps)
    assert len(traces) == 1


@whatever_precision
def test_user_function_is_traced_at_most_twice(case):
    if case.user_function is None:
        pytest.skip("takes no user function")
    calls = []
    case.user_function(data_of(case), lambda: calls.append(1))
    assert 1 <= len(calls) <= 2


@whatever_precision
def test_no_callback_unless_asked(case):
    data = data_of(case)
    assert "callback" not in str(jax.make_jaxpr(lambda d: case.solve(d).value)(data))
    assert "callback" in str(jax.make_jaxpr(lambda d: case.solve(d, progress=lambda k, e: None).value)(data))


@whatever_precision
def test_progress_sees_increasing_steps(case):
    seen = []
    solve = jax.jit(lambda data: case.solve(data, progress=lambda step, error: seen.append((step, error))))
    solution = solve(data_of(case))
    jax.block_until_ready(solution.value)
    jax.effects_barrier()
    steps = [s for s, _ in seen]
    assert steps == sorted(set(steps))
    assert steps[-1] == solution.num_steps
    assert all(isinstance(s, int) and isinstance(e, float) for s, e in seen)


def test_history_records_the_errors(case):
    solutions = scanned(case)
    assert solutions.history.shape == (LANES, 64)
    for steps, errors in zip(solutions.num_steps, solutions.history, strict=True):
        assert np.all(np.isfinite(errors[: steps + 1]))
        assert np.all(np.isnan(errors[steps + 1 :]))
    assert jitted(case)(data_of(case)).history is None


@whatever_precision
def test_solution_is_a_plain_pytree(case):
    solution = jitted(case)(data_of(case))
    host = pickle.loads(pickle.dumps(jax.device_get(solution)))
    jax.tree.map(np.testing.assert_array_equal, host, jax.device_get(solution))
    assert type(host) is case.solution
    assert host.converged
    close(scanned(case).value, solved_batch(case).value, case)


@whatever_precision
def test_value_exports(case):
    data = data_of(case)
    exported = jax.export.export(jax.jit(lambda d: case.solve(d).value))(data)
    reloaded = jax.export.deserialize(exported.serialize())
    close(reloaded.call(data), jitted(case)(data).value, case)


@whatever_precision
def test_batch_shards_over_devices(case):
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    spec = PartitionSpec("batch")
    sharded = jax.shard_map(lambda d: jax.vmap(lambda one: case.solve(one).value)(d), mesh=mesh, in_specs=spec,
                            out_specs=spec, check_vma=False)  # fmt: skip
    close(jax.jit(sharded)(batch(case)), solved_batch(case).value, case)


@pytest.mark.parametrize("max_steps", [0, 1])
def test_step_limit_is_kept(case, max_steps):
    solution = limited(case)[0](data_of(case), jnp.asarray(0, FLOAT), max_steps)
    assert solution.num_steps <= max_steps
    assert solution.status == Status.MAX_STEPS or solution.error == 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(solution.value))
    assert "max_steps" in repr(solution) or solution.converged


def test_solved_input_takes_no_step(case):
    if case.warm is None:
        pytest.skip("takes no start")
    data, options = case.warm(data_of(case), jitted(case)(data_of(case)))
    again = jax.jit(lambda d, o: case.solve(d, **o))(data, {**options, "tol": jnp.asarray(case.tol[FLOAT.name], FLOAT)})
    assert again.converged
    assert again.num_steps == 0


@pytest.mark.parametrize("which", ["zero", "single"])
def test_degenerate_data_is_ordinary(case, which):
    solution = jitted(case)(cast(getattr(case, which)()))
    assert solution.converged, solution
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(solution.value))


def test_failure_says_so(case):
    data, options, status = case.failing(data_of(case))
    solution = jitted(case)(data, **options)
    assert solution.status == status
    assert not solution.converged
    with pytest.raises(SolveError, match=type(solution).__name__):
        solution.check()


@whatever_precision
def test_same_data_same_bits(case):
    first, second = (jitted(case)(data_of(case)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
