"""Bits a layer against SciPy's integer program, published numbers and enumeration."""

import itertools

import jax
import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from solvers import SolveError, Status, bit_allocation, pareto_front
from solvers.compression import AllocationStatus
from solvers.problems.compression import resnet18


def by_milp(value, cost, budget):
    layers, options = value.shape
    one = np.kron(np.eye(layers), np.ones(options))
    rules = [LinearConstraint(one, 1, 1), LinearConstraint(cost.reshape(1, -1), -np.inf, budget)]
    answer = milp(value.ravel(), constraints=rules, integrality=np.ones(value.size), bounds=Bounds(0, 1),
                  options={"mip_rel_gap": 0})  # fmt: skip
    return None if answer.x is None else answer.x.reshape(layers, options).argmax(1)


def enumerated(value, cost):
    layers, options = value.shape
    choices = np.array(list(itertools.product(range(options), repeat=layers)))
    rows = np.arange(layers)
    return choices, value[rows, choices].sum(1), cost[rows, choices].sum(1)


def test_the_published_resnet18_is_reproduced():
    """4 bits on layers 15, 17 and 18, objective -1.2332072 relative to 4 bits everywhere."""
    data = resnet18()
    best = bit_allocation(data.sensitivity, data.size, data.budget, tied=data.tied)
    assert best.converged
    assert best.error == 0
    assert np.flatnonzero(best.value == 0).tolist() == [15, 17, 18]
    assert abs(best.objective - data.sensitivity[:, 0].sum() - -1.2332072) < 1e-7
    assert abs(best.objective - 0.0745059) < 1e-7
    assert abs(best.cost - 7.266) < 1e-3
    assert best.cost <= data.budget


@pytest.mark.parametrize("seed", range(12))
def test_random_instances_equal_the_integer_program(seed):
    """Also where sensitivities are nearly those of a line, which leaves bounds little to say."""
    rng = np.random.default_rng(seed + 5)
    layers, options = int(rng.integers(5, 26)), int(rng.integers(2, 6))
    cost = rng.integers(1, 400, (layers, options)).astype(float)
    value = rng.exponential(size=(layers, options)) if seed % 2 else 500 - cost + rng.random((layers, options))
    low, high = cost.min(1).sum(), cost.max(1).sum()
    budget = low + rng.random() * (high - low)
    best, truth = bit_allocation(value, cost, budget), by_milp(value, cost, budget)
    rows = np.arange(layers)
    assert best.converged
    assert best.cost <= budget
    assert best.objective <= value[rows, truth].sum() + 1e-9 * abs(value).sum()
    if seed % 2:
        np.testing.assert_array_equal(best.value, truth)


def test_many_layers_are_fast_and_few_partial_choices():
    rng = np.random.default_rng(7)
    cost = np.outer(rng.integers(100, 100_000, 200), [2, 4, 8])
    value = rng.exponential(size=(200, 1)) * np.array([1.0, 0.1, 0.004])
    best = bit_allocation(value, cost, 0.5 * cost[:, 2].sum())
    assert best.converged
    assert best.num_steps < 300_000


@pytest.mark.parametrize("exponent", [-200, 0, 200])
def test_units_do_not_matter(exponent):
    rng = np.random.default_rng(8)
    value, cost = rng.random((6, 3)), rng.random((6, 3))
    choices, values, costs = enumerated(value, cost)
    budget = np.median(costs)
    truth = choices[np.argmin(np.where(costs <= budget, values, np.inf))]
    unit = 10.0**exponent
    for best in (bit_allocation(unit * value, cost, budget), bit_allocation(value, unit * cost, unit * budget)):
        assert best.converged
        np.testing.assert_array_equal(best.value, truth)


def test_a_search_cut_short_says_how_far_off_it_may_be():
    rng = np.random.default_rng(9)
    cost = rng.integers(50, 100, (10, 3)).astype(float)
    value = 100 - cost + rng.random((10, 3))
    _, values, costs = enumerated(value, cost)
    for budget in np.quantile(costs, [0.1, 0.35, 0.5]):
        optimum = values[costs <= budget].min()
        best = bit_allocation(value, cost, budget, max_states=2)
        assert best.cost <= budget
        assert best.objective - best.error <= optimum + 1e-9
        assert best.objective >= optimum - 1e-9
        if not best.converged:
            assert best.status == AllocationStatus.MAX_STATES
            assert best.error > 0


def test_what_cannot_be_answered_says_so():
    value, cost = np.ones((3, 2)), np.array([[4.0, 8], [4, 8], [4, 8]])
    poor = bit_allocation(value, cost, 11.9)
    assert poor.status == AllocationStatus.TOO_EXPENSIVE
    assert "budget" in poor.message
    with pytest.raises(SolveError, match="infeasible"):
        poor.check()
    assert bit_allocation(value, cost, 12).converged
    for broken in ((value * np.nan, cost, 20), (value, cost * np.nan, 20), (value, cost, np.nan)):
        assert bit_allocation(*broken).status == Status.NONFINITE
    with pytest.raises(ValueError, match="cost"):
        bit_allocation(value, cost[:2], 20)
    with pytest.raises(ValueError, match="tied"):
        bit_allocation(value, cost, 20, tied=[0, 1])
    with pytest.raises(TypeError, match="host"):
        jax.jit(lambda v: bit_allocation(v, cost, 20).value)(value)
    with pytest.raises(ValueError, match="finite"):
        pareto_front(value * np.inf, cost)


def test_forbidden_options_and_unlimited_budgets():
    value = np.array([[3.0, np.inf, 1.0], [np.inf, 2.0, 0.5]])
    cost = np.array([[1.0, 2, np.inf], [1, 2, 3]])
    assert bit_allocation(value, cost, np.inf).value.tolist() == [0, 2]
    assert bit_allocation(value, cost, 3).value.tolist() == [0, 1]
    assert bit_allocation(value, cost, 2.5).status != 0


@pytest.mark.parametrize("tied", [None, [0, 1, 0, 2, 1]])
def test_the_front_is_what_enumeration_finds(tied):
    rng = np.random.default_rng(10)
    value, cost = rng.random((5, 3)), rng.integers(1, 9, (5, 3)).astype(float)
    choices, values, costs = enumerated(value, cost)
    if tied is not None:
        same = np.all([choices[:, i] == choices[:, tied.index(t)] for i, t in enumerate(tied)], axis=0)
        choices, values, costs = choices[same], values[same], costs[same]
    beaten = [
        np.any((costs <= c) & (values <= v) & ((costs < c) | (values < v))) for c, v in zip(costs, values, strict=True)
    ]
    expected = sorted(set(zip(costs[~np.array(beaten)], values[~np.array(beaten)].round(9), strict=True)))
    front = pareto_front(value, cost, tied=tied)
    assert front.complete
    assert list(zip(front.cost, front.sensitivity.round(9), strict=True)) == expected
    hull = pareto_front(value, cost, tied=tied, max_states=1)
    assert not hull.complete
    assert set(zip(hull.cost, hull.sensitivity.round(9), strict=True)) <= set(expected)
    np.testing.assert_allclose(value[np.arange(5), hull.choice].sum(1), hull.sensitivity)
    for budget in front.cost:
        assert (
            bit_allocation(value, cost, budget, tied=tied).objective
            <= front.sensitivity[front.cost <= budget].min() + 1e-12
        )
