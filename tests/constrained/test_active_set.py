"""Derivatives through the active set where it is hard to tell: nearly active, weakly active, degenerate, ill scaled."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import interior_point

from ..conftest import FLOAT

DOUBLE = FLOAT == "float64"
LOOSE = 1e-5 if DOUBLE else 2e-3
N, Q, LANES = 2, 3, 128


@cache
def gradients():
    """Gradients of ``weight'x`` through quadratic programs of two variables, a lane each."""

    def loss(data, rest):
        P, G, weight, x0 = rest
        solution = interior_point(
            lambda x, a: 0.5 * x @ a[0] @ x + a[1]["q"] @ x,
            x0,
            inequality=lambda x, a: a[2] @ x - a[1]["h"],
            bounds=(data["lower"], jnp.inf),
            args=(P, data, G),
        )
        return weight @ solution.value, solution

    return jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))


def program(rng, depth, scaled):
    """A program made from its solution, with multipliers and distances down to ``10^-depth``, and its gradients.

    The active set is chosen, so the linear equations of the solution, solved in NumPy float64, are the oracle.
    """
    x, A, G = rng.standard_normal(N), rng.standard_normal((N, N)), rng.standard_normal((Q, N))
    P = A @ A.T + 0.1 * np.eye(N)
    active = np.zeros(Q + N, bool)
    active[rng.permutation(Q + N)[: rng.integers(0, N + 1)]] = True
    multiplier, gap = (10 ** -rng.uniform(0, depth, Q + N) for _ in range(2))
    rows = np.concatenate([G, -np.eye(N)])
    q = -P @ x - np.where(active, multiplier, 0) @ rows
    room = np.where(active, 0, gap)
    units = 10 ** rng.uniform(-3, 3, N) if scaled else np.ones(N)
    weight = rng.standard_normal(N)
    held = rows[active]
    m = len(held)
    K = np.block([[P, held.T], [held, np.zeros((m, m))]])
    solved = np.linalg.solve(K, np.concatenate([weight, np.zeros(m)]))
    right = np.zeros(Q + N)
    right[active] = solved[N:]
    data = {"q": q * units, "h": G @ x + room[:Q], "lower": (x - room[Q:]) / units}
    rest = (P * units * units[:, None], G * units, weight * units, (x + 0.1 * rng.standard_normal(N)) / units)
    expected = {"q": -solved[:N] / units, "h": right[:Q], "lower": -right[Q:] * units}
    return data, rest, expected, np.linalg.cond(K)


def batch(seed, depth, scaled):
    rng = np.random.default_rng(seed)
    lanes = [lane for lane in (program(rng, depth, scaled) for _ in range(400)) if lane[3] < 100][:LANES]
    data, rest, expected, _ = jax.tree.map(lambda *v: np.stack(v), *lanes)
    data, rest = jax.tree.map(lambda v: jnp.asarray(v, FLOAT), (data, rest))
    return data, rest, expected


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_are_right_or_nan_however_weakly_constraints_are_active(scaled):
    """At `tol` multipliers and distances of 1e-4 (1e-2 in float32) look alike: what is told apart must be right."""
    depth = 4.0 if DOUBLE else 2.0
    data, rest, expected = batch(23, depth, scaled)
    found, solution = gradients()(data, rest)
    assert np.all(solution.converged)
    unknown = np.zeros(len(data["q"]), bool)
    for key, exact in expected.items():
        got = np.asarray(found[key], float)
        unknown |= np.any(np.isnan(got), axis=1)
        size = np.maximum(np.max(np.abs(exact), axis=1, keepdims=True), 1)
        ours = np.where(np.isnan(got), exact, got)
        np.testing.assert_allclose(ours / size, exact / size, atol=LOOSE)
    assert np.mean(unknown) < 0.05


@cache
def clipped():
    """The derivative of ``clip(t, 0, 1)`` as a quadratic program in units of `unit`."""

    def clip(t, unit):
        solution = interior_point(
            lambda x, a: 0.5 * jnp.sum((x - a[0]) ** 2) / a[1],
            0.4 * unit[None],
            bounds=(0.0, unit[None]),
            args=(t, unit),
        )
        return solution.value[0], solution.converged

    return jax.jit(jax.vmap(jax.value_and_grad(clip, has_aux=True), in_axes=(0, None)))


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e3])
def test_a_clip_has_its_derivative_beside_the_bound(unit):
    """Where x is off its bound by `tol ** 0.5`, the derivative is not: 0 or 1, and one of them at the bound itself."""
    near = 1e-7 if DOUBLE else 1e-4
    t = np.array([-1, -0.01, -near, near, 0.01, 0.5, 1 - near, 1 + near, 3, 0, 1])
    (_, converged), slopes = clipped()(jnp.asarray(t * unit, FLOAT), jnp.asarray(unit, FLOAT))
    assert np.all(converged)
    np.testing.assert_allclose(slopes[:9], ((t > 0) & (t < 1))[:9], atol=LOOSE)
    np.testing.assert_allclose(np.asarray(slopes[9:]) * (1 - np.asarray(slopes[9:])), 0, atol=LOOSE)


ROWS = np.array([[-1.0, 0.2], [0.3, -1.0], [-1.0, -1.0]])
START = np.array([[0.7, 0.9]])
COSTS = np.array([[1.0, 1.0], [1.0, 0.4], [0.5, 1.0], [1.0, 0.9]])


def corner(h, cost, weight):
    """``min cost'x`` over three half planes, and the gradient of ``weight'x`` in their right-hand sides.

    The same program as above with four lanes over and over, without bounds and a Hessian.
    """

    def lanes(v):
        return jnp.asarray(np.resize(v, (LANES, *np.shape(v)[1:])), FLOAT)

    data = {"q": lanes(cost), "h": lanes(h), "lower": jnp.full((LANES, N), -jnp.inf, FLOAT)}
    found, solution = gradients()(data, (lanes(np.zeros((1, N, N))), lanes(ROWS[None]), *map(lanes, (weight, START))))
    return np.asarray(found["h"], float)[:4], solution


def test_a_degenerate_vertex_has_the_derivative_of_one_of_its_sides():
    """The gradient of the value must be minus the multipliers of a pair of constraints that carries the cost alone."""
    found, solution = corner(np.zeros((4, Q)), COSTS, COSTS)
    assert np.all(solution.converged)
    for cost, slope in zip(COSTS, found, strict=True):
        sides = []
        for pair in ([0, 1], [0, 2], [1, 2]):
            multipliers = np.zeros(3)
            multipliers[pair] = np.linalg.solve(ROWS[pair].T, -cost)
            sides += [-multipliers] if np.all(multipliers >= 0) else []
        assert min(np.max(np.abs(slope - side)) for side in sides) < LOOSE


def test_an_objective_that_leaves_x_undetermined_has_no_derivative():
    """``min x + y`` with ``x + y >= 1``: a face of solutions; x has no derivative, not a plausible one."""
    found, solution = corner(np.array([[0.0, 0.0, -1.0]] * 4), np.ones((4, 2)), COSTS - 0.5)
    assert np.all(solution.converged)
    assert np.all(np.isnan(found[:, 2]))
