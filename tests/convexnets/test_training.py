"""Convex training: certificates, the network's own objective, closed forms, and what must not be believed."""

from functools import partial
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from solvers import ConvexReLU, ConvexReLUSolution, Status
from solvers.convexnets.problem import Blocks, distinct_rows, dual_bound, network_objective
from solvers.problems.convexnets import one_neuron

from ..compiled import train_relu
from ..conftest import FLOAT, needs_x64

KINDS = [("squared", False), ("squared", True), ("hinge", False), ("hinge", True)]
N, D, P = 16, 3, 24


def problem(rng, loss="squared", gated=False, beta=0.05, scale=1.0):
    X = np.column_stack([rng.standard_normal((N, D - 1)), np.ones(N)])
    y = np.sin(3 * X[:, 0]) + 0.3 * rng.standard_normal(N)
    y = np.sign(y) if loss == "hinge" else scale * y
    return ConvexReLU.sampled(jnp.asarray(X, FLOAT), jnp.asarray(y, FLOAT), beta=beta, patterns=P, loss=loss,
                              gated=gated, key=jax.random.key(6))  # fmt: skip


solve = jax.jit(train_relu)


def objective(net, p):
    """The nonconvex objective in NumPy."""
    X, y = np.asarray(p.X, float), np.asarray(p.y, float)
    hidden, output = np.asarray(net.hidden, float), np.asarray(net.output, float)
    inside = X @ hidden.T
    on = inside > 0 if net.gates is None else X @ np.asarray(net.gates, float).T >= 0
    f = np.where(on, inside, 0) @ output
    loss = np.sum((f - y) ** 2) / 2 if p.loss == "squared" else np.sum(np.maximum(1 - y * f, 0))
    return loss + float(p.beta) * (np.sum(hidden**2) + np.sum(output**2)) / 2


@pytest.mark.parametrize(("loss", "gated"), KINDS)
def test_the_network_has_the_optimum_for_its_objective(rng, loss, gated):
    p = problem(rng, loss, gated)
    sol = solve(p)
    if FLOAT == "float64":
        assert sol.converged, sol
    assert sol.status in (Status.CONVERGED, Status.STAGNATED)
    assert sol.num_steps < 200
    assert np.isclose(objective(sol.to_network(), p), sol.objective, rtol=1e-6 if FLOAT == "float64" else 1e-4)
    assert sol.lower_bound <= sol.objective * (1 + 1e-6)
    assert np.isclose(sol.duality_gap, sol.error * sol.objective, rtol=1e-3, atol=1e-7)
    assert sol.error <= sol.tol or not sol.converged


@needs_x64
@pytest.mark.parametrize(("loss", "gated"), [KINDS[3]])
def test_a_sketch_changes_the_work_and_not_the_answer(loss, gated):
    """Step by step, where rounding ended it too early when conjugate gradients left the last digits open."""
    sketched = jax.jit(partial(train_relu, sketch=6))
    for seed in (20, 104, 105, 107):
        p = problem(np.random.default_rng(seed), loss, gated)
        exact, ours = solve(p), sketched(p)
        assert ours.converged
        assert np.isclose(ours.objective, exact.objective, rtol=2e-6)
        assert abs(int(ours.num_steps) - int(exact.num_steps)) <= 2
    with pytest.raises(ValueError, match="sketch"):
        train_relu(p, sketch=0)


@needs_x64
@pytest.mark.long
def test_many_examples_of_few_neurons(rng):
    """The step's system is in the neurons then: the same answer as with one in the examples, as a sketch asks for."""
    p = problem(rng)
    few = jnp.arange(P) < 3
    X = jnp.concatenate([p.X, p.X + 0.1, p.X - 0.2])
    y = jnp.concatenate([p.y, p.y - 0.1, p.y + 0.3])
    p = ConvexReLU(X, y, p.beta, p.gates[:3], few[:3])
    narrow, wide = solve(p), jax.jit(partial(train_relu, sketch=3 * N))(p)
    assert narrow.converged
    assert abs(int(narrow.num_steps) - int(wide.num_steps)) <= 2
    assert np.isclose(narrow.objective, wide.objective, rtol=2e-6)
    assert np.isclose(objective(narrow.to_network(), p), narrow.objective, rtol=1e-6)


@needs_x64
@pytest.mark.long
def test_gated_optimum_against_scipy(rng):
    """The group lasso without constraints, its lengths smoothed a little, by L-BFGS."""
    p = problem(rng, gated=True)
    sol = solve(p)
    masks = np.asarray(p.active)[np.asarray(p.distinct)]
    F = np.concatenate([m[:, None] * np.asarray(p.X) for m in masks], axis=1)

    def smooth(u):
        r = F @ u - np.asarray(p.y)
        lengths = np.sqrt(np.sum(u.reshape(-1, D) ** 2, axis=1) + 1e-12)
        slope = F.T @ r + 0.05 * (u.reshape(-1, D) / lengths[:, None]).ravel()
        return r @ r / 2 + 0.05 * lengths.sum(), slope

    best = min(minimize(smooth, s, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15}).fun
               for s in 0.1 * rng.standard_normal((2, F.shape[1])))  # fmt: skip
    assert sol.lower_bound <= best
    assert np.isclose(best, sol.objective, rtol=1e-4)


@needs_x64
@pytest.mark.long
def test_no_network_found_by_descent_beats_the_bound(rng):
    """Local search from the answer and from random networks, with the sampled patterns or not, stays above."""
    X = np.column_stack([np.linspace(-1, 1, 7) ** 3, np.ones(7)])
    y = np.cos(4 * X[:, 0])
    p = ConvexReLU.sampled(jnp.asarray(X), jnp.asarray(y), beta=0.05, patterns=400, key=jax.random.key(8))
    assert int(p.distinct.sum()) == 14  # all there are: 2 n in two dimensions
    sol = solve(p)
    assert sol.converged

    def value(w):
        hidden, out = w[: 2 * 6].reshape(6, 2), w[12:]
        return np.sum((np.maximum(X @ hidden.T, 0) @ out - y) ** 2) / 2 + 0.025 * w @ w

    found = min(minimize(value, rng.standard_normal(18), method="L-BFGS-B").fun for _ in range(25))
    assert found >= float(sol.lower_bound) - 1e-9
    assert found < 1.05 * float(sol.objective)


def test_a_bound_is_one_for_any_slope_and_multipliers(rng):
    for loss, gated in KINDS:
        p = problem(rng, loss, gated)
        best = float(solve(p).objective)
        blocks = Blocks.of(p)
        for _ in range(5):
            z = jnp.asarray(rng.standard_normal((blocks.sign.shape[0], N)), FLOAT)
            slope = jnp.asarray(rng.standard_normal(N), FLOAT)
            bound = dual_bound(blocks, loss, p.y, p.beta, slope, None if gated else z)
            assert float(bound) <= best * (1 + 1e-4)
            u = jnp.asarray(rng.standard_normal((blocks.sign.shape[0], D)), FLOAT)
            assert float(network_objective(blocks, loss, p.y, p.beta, u)) >= best * (1 - 1e-3)


@pytest.mark.parametrize("loss", ["squared", "hinge"])
def test_a_large_penalty_leaves_nothing(rng, loss):
    p = problem(rng, loss, beta=1e4)
    sol = solve(p)
    assert sol.converged
    assert sol.num_steps == 0
    assert not np.any(sol.value)


def test_one_neuron_in_closed_form():
    """One example, one input: min (x u - y)^2 / 2 + beta u."""
    p = ConvexReLU.sampled(jnp.full((1, 1), 2.0, FLOAT), jnp.full(1, 3.0, FLOAT), beta=0.5, patterns=4,
                           key=jax.random.key(7))  # fmt: skip
    sol = solve(p)
    u = (2 * 3 - 0.5) / 4
    assert sol.converged
    assert np.isclose(sol.objective, one_neuron(2.0, 3.0, 0.5), rtol=1e-5 if FLOAT == "float64" else 2e-3)
    net = sol.to_network().pruned(1e-2)
    assert np.isclose(net(jnp.full(1, 2.0, FLOAT)), 2 * u, rtol=1e-2)


@pytest.mark.parametrize("exponent", [-120, 120] if FLOAT == "float64" else [-12, 12])
def test_the_size_of_the_data_does_not_matter(rng, exponent):
    size = 10.0**exponent
    p = problem(rng)
    plain = solve(p)
    wide = ConvexReLU(p.X * FLOAT.type(size), p.y * FLOAT.type(size), p.beta, p.gates, p.distinct)
    large = solve(ConvexReLU(wide.X, wide.y, p.beta * FLOAT.type(size) ** 2, p.gates, p.distinct))
    assert large.converged
    assert np.isclose(np.asarray(large.objective, float) / size**2, plain.objective, rtol=1e-5 if FLOAT == "float64"
                      else 1e-2)  # fmt: skip


def test_examples_of_zeros_and_repeated_ones(rng):
    p = problem(rng)
    X = jnp.concatenate([p.X, jnp.zeros((2, D), FLOAT), p.X[:1]])
    y = jnp.concatenate([p.y, jnp.ones(2, FLOAT), p.y[:1] + 1])
    sol = solve(ConvexReLU(X, y, p.beta, p.gates, p.distinct))
    assert sol.converged
    assert sol.objective > 1.0  # the two that no network can fit


def test_contradictory_targets_are_certified_all_the_same(rng):
    p = problem(rng)
    X, y = jnp.concatenate([p.X, p.X]), jnp.concatenate([p.y, -p.y])
    sol = solve(ConvexReLU(X, y, p.beta, p.gates, p.distinct))
    assert sol.converged
    assert np.isclose(sol.objective, np.sum(np.asarray(p.y, float) ** 2), rtol=1e-3)  # f = 0 is best


def test_broken_data_ends_at_once(rng):
    p = problem(rng)
    for bad in (np.nan, np.inf):
        sol = solve(ConvexReLU(p.X.at[2, 1].set(bad), p.y, p.beta, p.gates, p.distinct))
        assert sol.status == Status.NONFINITE
        assert sol.num_steps == 0


def test_patterns_are_counted_once():
    rows = jnp.asarray([[1, 0], [0, 1], [1, 0], [1, 1], [0, 1]], FLOAT)
    np.testing.assert_array_equal(distinct_rows(rows), [True, True, False, True, False])


@needs_x64
@pytest.mark.parametrize(("loss", "gated"), [KINDS[0], *KINDS[2:]])
@pytest.mark.long
def test_outputs_have_derivatives(rng, loss, gated):
    """Of the objective and of outputs, against differences; the hinge's outputs bend where examples change sides."""
    p = problem(rng, loss, gated)

    def observe(t):
        y = p.y * (1 + t) if loss == "squared" else p.y
        moved = ConvexReLU(p.X + t * jnp.cos(5 * p.X), y, p.beta * (1 + 3 * t), p.gates, p.distinct, loss, gated)
        sol = train_relu(moved, tol=1e-8, unconverged="nan" if loss == "squared" else "approximate")
        return sol.objective, jnp.sum(jnp.sin(jax.vmap(sol.to_network())(p.X[:5] + 0.1)))

    value = jax.jit(observe)
    slopes = jax.jit(lambda t: jax.jvp(observe, (t,), (1.0,)))(0.0)[1]
    ends = [value(t) for t in (1e-3, -1e-3)]
    tolerances = (1e-3, 1e-3) if loss == "squared" else (1e-2, 0.1)
    for slope, high, low, rtol in zip(slopes, *ends, tolerances, strict=True):
        assert np.isclose(slope, (high - low) / 2e-3, rtol=rtol), (slope, (high - low) / 2e-3)


@pytest.mark.long
def test_wrong_arguments_raise(rng):
    p = problem(rng)
    with pytest.raises(TypeError, match="problem"):
        train_relu(p.X)
    for options in ({"y": p.y[:-1]}, {"loss": "log"}, {"patterns": 0}, {"beta": -1.0}):
        given = {"y": p.y, "beta": 0.1, "patterns": 3, **options}
        with pytest.raises(ValueError, match="ConvexReLU: `"):
            ConvexReLU.sampled(p.X, key=jax.random.key(7), **given)
    assert issubclass(type(solve(p)), ConvexReLUSolution)


@pytest.mark.parametrize(("n", "d"), [(9, 1), (11, 2), (10, 3), (8, 4)])
def test_all_patterns_are_found(rng, n, d):
    """As many as Cover counts, none twice, and every sampled one among them; repeated and zero examples add none."""
    X = rng.standard_normal((n, d))
    p = ConvexReLU.exhaustive(jnp.asarray(X, FLOAT), jnp.ones(n, FLOAT), beta=0.1)
    count = 2 * sum(comb(n - 1, i) for i in range(d))
    assert len(p.gates) == count
    assert int(p.distinct.sum()) == count
    known = {tuple(row) for row in np.asarray(p.active, int)}
    drawn = (X @ rng.standard_normal((d, 300)) >= 0).T.astype(int)
    assert {tuple(row) for row in drawn} <= known
    more = np.concatenate([X, -2 * X[:2], np.zeros((1, d))])
    again = ConvexReLU.exhaustive(jnp.asarray(more, FLOAT), jnp.ones(n + 3, FLOAT), beta=0.1)
    assert int(again.distinct.sum()) == count


def test_patterns_that_cannot_be_counted_raise(rng):
    X = rng.standard_normal((6, 3))
    for broken in (np.concatenate([X, X[:1] + X[1:2]]), X[:, [0, 1, 1]], X[:2]):
        with pytest.raises(ValueError, match="ConvexReLU: `X`"):
            ConvexReLU.exhaustive(jnp.asarray(broken, FLOAT), jnp.ones(len(broken), FLOAT), beta=0.1)
    with pytest.raises(ValueError, match="cells"):
        ConvexReLU.exhaustive(jnp.asarray(X, FLOAT), jnp.ones(6, FLOAT), beta=0.1, most=10)
    with pytest.raises(TypeError, match="host"):
        jax.eval_shape(lambda X: ConvexReLU.exhaustive(X, jnp.ones(6, FLOAT), beta=0.1), jnp.asarray(X, FLOAT))
