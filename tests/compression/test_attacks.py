"""What would make a choice or a score a lie: damaged tables, ties, numbers near the ends of the range."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from solvers import Status, Units, bit_allocation, group_scores, hesso, parameter_groups
from solvers.compression.bits import AllocationStatus

from ..conftest import FLOAT

TOP = int(0.45 * np.log10(float(np.finfo(FLOAT).max)))


def damaged(rng):
    """Return sensitivities, costs and budget of a few layers: ties, negative, forbidden, huge, tiny, missing."""
    layers, options = rng.integers(1, 6), rng.integers(1, 5)
    kind = rng.choice(["plain", "ties", "negative", "forbidden", "huge", "tiny", "spread", "nan", "zero", "real"])
    value, cost = rng.random((layers, options)), rng.integers(1, 9, (layers, options)).astype(float)
    if kind == "ties":
        value, cost = rng.integers(0, 3, value.shape).astype(float), rng.integers(0, 3, value.shape).astype(float)
    elif kind == "negative":
        value, cost = value - 0.5, cost - 4
    elif kind == "forbidden":
        value[rng.random(value.shape) < 0.3], cost[rng.random(value.shape) < 0.2] = np.inf, np.inf
    elif kind in ("huge", "tiny"):
        value = value * 10.0 ** (200 if kind == "huge" else -200)
        cost = cost * 2.0 ** (600 if kind == "huge" else -600)
    elif kind == "spread":
        value = 10.0 ** rng.uniform(-12, 12, value.shape)
    elif kind == "nan":
        (value if rng.random() < 0.5 else cost)[rng.integers(layers), rng.integers(options)] = np.nan
    elif kind == "zero":
        value, cost = 0 * value, 0 * cost
    elif kind == "real":
        cost = rng.random(cost.shape)
    real = np.where(np.isfinite(cost), cost, 0)
    low, high = real.min(axis=1).sum(), real.max(axis=1).sum()
    return kind, value, cost, low + rng.uniform(-0.2, 1.1) * (high - low)


def by_enumeration(value, cost, budget):
    """Return the least objective, infinite where nothing fits."""
    rows, best = np.arange(len(value)), np.inf
    for choice in itertools.product(range(value.shape[1]), repeat=len(value)):
        if cost[rows, list(choice)].sum() <= budget:
            best = min(best, value[rows, list(choice)].sum())
    return best


def test_every_certificate_is_true():
    """400 damaged tables: a choice called best is within the budget and as good as any; none is where none fits."""
    rng, seen = np.random.default_rng(23), set()
    for _ in range(400):
        kind, value, cost, budget = damaged(rng)
        found = bit_allocation(value, cost, budget)
        seen.add((kind, int(found.status)))
        if kind == "nan":
            assert found.status == Status.NONFINITE
            continue
        best, rows = by_enumeration(value, cost, budget), np.arange(len(value))
        if found.converged:
            size = np.sum(np.max(np.where(np.isfinite(value), abs(value), 0), axis=1))
            assert cost[rows, found.value].sum() <= budget * (1 + 1e-12 * np.sign(budget)), (kind, value, cost, budget)
            assert found.objective <= best + 1e-12 * size, (kind, value, cost, budget)
        else:
            assert found.status == AllocationStatus.TOO_EXPENSIVE
            assert best == np.inf, (kind, value, cost, budget)
    assert len(seen) >= 18  # every kind, and most of them both ways


@pytest.mark.parametrize("exponents", [(TOP, 0), (-TOP, 0), (0, TOP), (TOP, -TOP), (-TOP, -TOP), (2 * TOP, 0)])
def test_scores_do_not_know_units(exponents):
    """All but the square of the Taylor score, which may leave the range; what has left it spoils no other."""
    rng = np.random.default_rng(5)
    x, d = rng.standard_normal((2, 9, 4))
    groups = parameter_groups({"w": jnp.asarray(x, FLOAT)}, [Units([("w", 0)])])
    array = lambda v, e: jnp.asarray(v * 10.0**e, FLOAT)  # noqa: E731
    names = ("magnitude", "avg_magnitude", "cosine_similarity", "taylor_first_order")

    @jax.jit
    def scored(x, d):
        weights = (dict.fromkeys(names, 0.25), *({name: 1.0} for name in names), None)
        return [group_scores({"w": x}, {"w": d}, groups, scores=w) for w in weights]

    plain, moved = scored(array(x, 0), array(d, 0)), scored(array(x, exponents[0]), array(d, exponents[1]))
    np.testing.assert_allclose(np.stack(moved[:-1]), np.stack(plain[:-1]), rtol=1e-4, atol=1e-6)
    assert np.all(np.isfinite(moved[-1]))


@pytest.mark.parametrize("seed", range(3))
def test_the_promised_zeros_come_whatever_happens(seed):
    """Random trees, gradients that jump over the range, vanish or repeat: as many zeros as promised, then for good."""
    rng = np.random.default_rng(seed + 5)
    rows = int(rng.integers(3, 9))
    a, b = rng.standard_normal((rows, 3)), rng.standard_normal(rows)
    params = {"a": jnp.asarray(a, FLOAT), "b": jnp.asarray(b, FLOAT), "free": jnp.ones(2, FLOAT)}
    groups = parameter_groups(params, [Units([("a", 0), ("b", 0)])])
    share, start, steps = 0.5, int(rng.integers(0, 4)), int(rng.integers(1, 6))
    optimiser = hesso(optax.sgd(0.1), groups, target_sparsity=share, start=start, steps=steps, periods=1)
    sizes = jnp.asarray(rng.choice([0.0, 1.0, 10.0 ** (TOP // 2), 10.0**-TOP], 14), FLOAT)

    @jax.jit
    def run(params):
        def step(carry, size):
            params, state = carry
            grads = jax.tree.map(lambda x: size * jnp.cos(7 * x), params)
            updates, state = optimiser.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, groups.zero(params))

        return jax.lax.scan(step, (params, optimiser.init(params)), sizes)[1]

    path, zero = jax.tree.map(np.asarray, run(params))
    promised = int(np.floor(share * rows))
    assert np.all(np.isfinite(path["free"]))
    assert np.all(np.sum(zero, axis=1)[start + steps - 1 :] == promised)
    assert np.all(zero[start + steps - 1 :] == zero[-1])


def test_a_broken_lane_leaves_its_neighbours_alone():
    params = {"w": jnp.arange(1.0, 13.0).reshape(3, 4).astype(FLOAT)}
    groups = parameter_groups(params, [Units([("w", 0)])])
    optimiser = hesso(optax.sgd(0.1), groups, target_sparsity=0.34, steps=1)

    def one(scale):
        updates, _ = optimiser.update({"w": scale * params["w"]}, optimiser.init(params), params)
        return optax.apply_updates(params, updates)["w"]

    lanes = jax.jit(jax.vmap(one))(jnp.asarray([1e-3, np.nan, 1e-3], FLOAT))
    np.testing.assert_array_equal(lanes[0], lanes[2])
    assert np.all(np.isfinite(lanes[0]))
    assert np.all(np.asarray(lanes[0])[0] == 0)
    assert np.all(np.isnan(np.asarray(lanes[1])[1:]))  # what is zero already may stay so
