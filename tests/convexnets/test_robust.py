"""Training against perturbed examples: the worst of each box by enumeration, bounds for any multipliers, limits."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import ConvexReLU, Status
from solvers.convexnets.problem import Blocks
from solvers.convexnets.robust import margins, robust_bound, robust_objective

from ..compiled import train_relu
from ..conftest import FLOAT, needs_x64

N, D, P = 14, 3, 10
RADIUS = np.array([0.03, 0.05, 0.0])  # the last column is the bias
DOUBLE = FLOAT == "float64"


def problem(rng, loss="squared", robust=RADIUS, beta=0.05, scale=1.0):
    X = np.column_stack([rng.standard_normal((N, D - 1)), np.ones(N)])
    y = np.sin(3 * X[:, 0]) + 0.3 * rng.standard_normal(N)
    y = np.sign(y) if loss == "hinge" else scale * y
    plain = ConvexReLU.sampled(jnp.asarray(X, FLOAT), jnp.asarray(y, FLOAT), beta=beta, patterns=P, loss=loss,
                               key=jax.random.key(6))  # fmt: skip
    return plain if robust is None else plain.robust(robust)


solve = jax.jit(lambda p, max_steps=200: train_relu(p, max_steps=max_steps))


def worst(net, p, radius):
    """The nonconvex objective in NumPy, the worst corner of each example's box."""
    X, y = np.asarray(p.X, float), np.asarray(p.y, float)
    hidden, output = np.asarray(net.hidden, float), np.asarray(net.output, float)
    losses = []
    for corner in product((-1.0, 1.0), repeat=D):
        f = np.maximum((X + radius * np.array(corner)) @ hidden.T, 0) @ output
        losses.append((f - y) ** 2 / 2 if p.loss == "squared" else np.maximum(1 - y * f, 0))
    return np.sum(np.max(losses, axis=0)) + float(p.beta) * (np.sum(hidden**2) + np.sum(output**2)) / 2


@pytest.mark.parametrize("loss", ["squared", "hinge"])
def test_the_objective_is_the_worst_within_the_boxes(rng, loss):
    """Of the network that comes out, by enumeration, and within 1e-6 of the bound."""
    p = problem(rng, loss)
    assert int(p.distinct.sum()) >= 5
    sol = solve(p)
    if DOUBLE:
        assert sol.converged, sol
        assert sol.num_steps < 60
    assert sol.status in (Status.CONVERGED, Status.STAGNATED)
    assert np.isclose(worst(sol.to_network(), p, RADIUS), sol.objective, rtol=1e-7 if DOUBLE else 1e-4)
    assert sol.error < (1e-6 if DOUBLE else 0.05)


@pytest.mark.parametrize("loss", ["squared", "hinge"])
def test_a_bound_is_one_for_any_slopes_and_multipliers(rng, loss):
    p = problem(rng, loss)
    best, blocks, radius = solve(p), Blocks.of(p), jnp.asarray(RADIUS, FLOAT)
    bound = jax.jit(partial(robust_bound, blocks, loss, p.y, p.beta, radius))
    value = jax.jit(partial(robust_objective, blocks, loss, p.y, p.beta, radius))
    for _ in range(40):
        z = jnp.asarray(rng.exponential(size=(blocks.sign.shape[0], N)), FLOAT)
        slopes = jnp.asarray(rng.standard_normal((N, D + 1)), FLOAT)
        assert float(bound(slopes, z)) <= float(best.objective) * (1 + 1e-4)
        near = best.slope + 0.1 * slopes, best.multipliers * (1 + 0.1 * z)
        assert float(bound(*near)) <= float(best.objective) * (1 + 1e-4)
        # Cones are convex: multiples of the neurons and of the gates stay inside.
        share, more = rng.uniform(0.8, 1.1, (2 * P, 1)), 10.0 ** rng.uniform(-4, -1, (2 * P, 1))
        u = jnp.asarray(share, FLOAT) * best.value + jnp.asarray(more, FLOAT) * jnp.tile(p.gates, (2, 1))
        assert np.isfinite(value(u))
        assert float(value(u)) >= float(best.objective) * (1 - 1e-4)
    outside = best.value + jnp.asarray(rng.standard_normal(best.value.shape), FLOAT)
    assert np.isinf(value(outside))


@pytest.mark.slow
def test_without_a_radius_it_is_the_plain_problem(rng):
    p = problem(rng, robust=0.0)
    plain = solve(ConvexReLU(p.X, p.y, p.beta, p.gates, p.distinct))
    assert np.isclose(solve(p).objective, plain.objective, rtol=3e-6 if DOUBLE else 2e-2)


def test_more_perturbation_costs_more_until_nothing_is_left(rng):
    p = problem(rng)
    objectives = []
    for radius in (0.25, 1.0):
        some = ConvexReLU(p.X, p.y, p.beta, p.gates, p.distinct, radius=jnp.asarray(radius * RADIUS, FLOAT))
        objectives.append(float(solve(some).objective))
    assert objectives[0] < objectives[1]
    none = problem(rng, robust=10.0)
    assert not np.any(none.distinct)
    sol = solve(none)
    assert sol.converged
    assert np.isclose(sol.objective, np.sum(np.asarray(none.y, float) ** 2) / 2, rtol=1e-5)
    assert not np.any(sol.value)


def test_gates_keep_their_sides(rng):
    """Each gate of a pattern that counts clears all boxes, and gives the pattern it stands for."""
    p = problem(rng)
    room = np.asarray(margins(Blocks.of(p), p.radius, jnp.tile(p.gates, (2, 1))))[:P]
    assert np.all(room[np.asarray(p.distinct)] > 0)
    plain = problem(np.random.default_rng(3), robust=None)
    aware = problem(np.random.default_rng(3), robust=RADIUS)
    kept = np.asarray(aware.distinct)
    assert np.array_equal(np.asarray(plain.active)[kept], np.asarray(aware.active)[kept])


@needs_x64
@pytest.mark.slow
@pytest.mark.parametrize("loss", ["squared", "hinge"])
def test_the_objective_has_derivatives(rng, loss):
    """In X, y, beta and the radii, against differences; of the neurons there are none, and they say so."""
    p = problem(rng, loss)

    def observe(t):
        y = p.y * (1 + t * jnp.cos(jnp.arange(N))) if loss == "squared" else p.y
        moved = ConvexReLU(p.X + t * jnp.cos(5 * p.X), y, p.beta * (1 + 3 * t), p.gates, p.distinct, loss,
                           radius=p.radius * (1 + 2 * t))  # fmt: skip
        return train_relu(moved, tol=1e-9)

    def slope_of(t):
        return jax.jvp(lambda t: (lambda s: (s.objective, s.value))(observe(t)), (t,), (1.0,))[1]

    slope, lost = jax.jit(slope_of)(0.0)
    high, low = (jax.jit(observe)(t).objective for t in (1e-4, -1e-4))
    assert np.isclose(slope, (high - low) / 2e-4, rtol=1e-3)
    assert np.all(np.isnan(lost))
    assert np.isclose(jax.jit(jax.grad(lambda t: observe(t).objective))(0.0), slope, rtol=1e-9)


@pytest.mark.parametrize("exponent", [-120, 120] if DOUBLE else [-12, 12])
def test_the_size_of_the_data_does_not_matter(rng, exponent):
    size = FLOAT.type(10.0**exponent)
    p = problem(rng)
    plain = solve(p)
    large = solve(ConvexReLU(p.X * size, p.y * size, p.beta * size**2, p.gates, p.distinct, radius=p.radius * size))
    assert large.status == plain.status
    assert np.isclose(np.asarray(large.objective, float) / float(size) ** 2, plain.objective,
                      rtol=1e-5 if DOUBLE else 2e-2)  # fmt: skip


def test_broken_data_ends_at_once(rng):
    p = problem(rng)
    radius = p.radius.at[0].set(jnp.nan)
    for bad in (
        {"y": p.y.at[2].set(jnp.nan)},
        {"radius": radius},
        {"radius": -p.radius},
        {"X": p.X.at[1, 1].set(jnp.inf)},
    ):
        given = {"X": p.X, "y": p.y, "radius": p.radius, **bad}
        sol = solve(ConvexReLU(given["X"], given["y"], p.beta, p.gates, p.distinct, radius=given["radius"]))
        assert sol.status == Status.NONFINITE
        assert sol.num_steps == 0
    assert solve(p, 0).status == Status.MAX_STEPS


@pytest.mark.slow
def test_lanes_and_warm_starts(rng):
    p = problem(rng)
    y = jnp.stack([p.y, p.y.at[2].set(jnp.nan), 2 * p.y])
    lanes = jax.jit(jax.vmap(lambda y: train_relu(ConvexReLU(p.X, y, p.beta, p.gates, p.distinct, radius=p.radius))))(y)
    assert lanes.status[1] == Status.NONFINITE
    for k in (0, 2):
        alone = solve(ConvexReLU(p.X, y[k], p.beta, p.gates, p.distinct, radius=p.radius))
        assert np.isclose(lanes.objective[k], alone.objective, rtol=1e-6 if DOUBLE else 2e-2)
    before = solve(p)
    warm = train_relu(p, x0=before, max_steps=0)
    assert np.isclose(warm.objective, before.objective, rtol=1e-6)
    assert np.isclose(warm.lower_bound, before.lower_bound, rtol=1e-6)


def test_what_cannot_be_asked_for_raises(rng):
    p = problem(rng)
    for gated, radius in ((False, -0.1), (False, jnp.ones(2, FLOAT)), (True, 0.1)):
        plain = ConvexReLU.sampled(p.X, p.y, beta=0.1, patterns=3, key=jax.random.key(7), gated=gated)
        with pytest.raises(ValueError, match="ConvexReLU: `radius`"):
            plain.robust(radius)
    with pytest.raises(ValueError, match="sketch"):
        train_relu(p, sketch=3)
