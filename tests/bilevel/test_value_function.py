"""LV-HBA: the toy that the published script never settles on, half-spaces with closed-form lower solutions, attacks."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import PublishedSteps, Status, lv_hba
from solvers.problems.bilevel import CoupledToy, HalfSpace, half_space

from ..conftest import FLOAT, needs_x64, whatever_precision

TOY = CoupledToy(20)
P, D, LANES = 2, 4, 8
LOOSE = {"float64": 1, "float32": 10}[FLOAT.name]
TOL = {"float64": 1e-4, "float32": 5e-4}[FLOAT.name]


@cache
def toy_from_far(seed=23, width=10.0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.uniform(-width / 2, width / 2, (6, 20)), FLOAT)
    y = jnp.asarray(rng.uniform(-width / 2, width / 2, (6, 40)), FLOAT)
    solve = lambda x, y: lv_hba(TOY.upper, TOY.lower, x, y, constraint=TOY.constraint, equality=True,  # noqa: E731
                                project=TOY.project)  # fmt: skip
    return jax.jit(jax.vmap(solve))(x, y)


def test_the_toy_is_solved_from_everywhere():
    """With default settings, to a relative error of 1e-3 in x (single precision: 8e-3); y has many solutions."""
    sol = toy_from_far()
    x, y = TOY.optimum
    assert np.all(sol.converged), sol
    assert np.all(np.asarray(sol.num_steps) < 5000)
    far = np.linalg.norm(np.asarray(sol.value[0]) - x, axis=1) / np.linalg.norm(x)
    assert np.all(far < {"float64": 1e-3, "float32": 8e-3}[FLOAT.name])
    np.testing.assert_allclose(sol.value[1], np.tile(y, (6, 1)), atol=2e-3 * LOOSE)
    np.testing.assert_allclose(sol.multipliers, -np.ones((6, 1)), atol=1e-3 * LOOSE)
    np.testing.assert_allclose(sol.gap, np.zeros(6), atol=1e-5 * LOOSE)


def scaled(data, upper=1.0, lower=1.0, rows=1.0, onto=1.0):
    return data, jnp.asarray([upper, lower, rows, onto], FLOAT)


def _solve(data, units, max_steps, tol):
    up = lambda x, y, a: a[1][0] * HalfSpace.upper(x, y, a[0])  # noqa: E731
    low = lambda x, y, a: a[1][1] * HalfSpace.lower(x, y, a[0])  # noqa: E731
    rows = lambda x, y, a: a[1][2] * HalfSpace.constraint(x, y, a[0])  # noqa: E731

    def project(x, y, a):
        near = HalfSpace.project(x, y, a[0])
        return jax.tree.map(lambda u, v: jnp.where(a[1][3] > 0, u, v), near, (x, y))

    zeros = jnp.zeros(P, FLOAT), jnp.zeros(D, FLOAT)
    return lv_hba(up, low, *zeros, (data, units), constraint=rows, project=project, max_steps=max_steps, tol=tol)


many = jax.jit(jax.vmap(_solve, (0, 0, None, None)))


@cache
def solved():
    """Four instances; the second again in other units, with a wrong projection, with an empty one, and with a NaN."""
    four = [half_space(np.random.default_rng(seed), p=P, d=D, dtype=FLOAT) for seed in (23, 25, 26, 28)]
    second = four[1]
    lanes = [scaled(d) for d in four]
    lanes.append(scaled(second, upper=1e6, lower=1e-3, rows=50.0))
    lanes.append(scaled(second._replace(bound=second.bound - 5), onto=-1.0))
    lanes.append(scaled(second._replace(target=0 * second.target)))
    lanes.append(scaled(second._replace(B=second.B.at[0, 0].set(jnp.nan))))
    data, units = jax.tree.map(lambda *a: jnp.stack(a), *lanes)
    return lanes, many(data, units, 20000, TOL)


@pytest.mark.long
def test_half_spaces_are_solved_as_their_closed_form_says():
    """At x, y is the lower solution and the multiplier its multiplier; no x nearby is better."""
    lanes, sol = solved()
    active = []
    for i in range(4):
        data = lanes[i][0]
        assert sol.converged[i], (i, sol.error[i], sol.status[i])
        x, y = sol.value[0][i], sol.value[1][i]
        exact, multiplier = data.solution(x)
        size = np.linalg.norm(y) + np.linalg.norm(x)
        assert np.linalg.norm(y - exact) < 10 * TOL * size
        np.testing.assert_allclose(sol.multipliers[i][0], multiplier, atol=20 * TOL * (1 + float(multiplier)))
        active.append(float(multiplier) > 0.01)
        turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        around = x[None] + jnp.asarray(0.05 * np.stack([np.cos(turn), np.sin(turn)], axis=1), FLOAT)
        values = jax.vmap(data.value)(around)
        assert float(jnp.min(values)) > float(data.value(x)) - 1e-5 * LOOSE, i
    assert any(active)
    assert not all(active)


def test_units_change_nothing():
    _, sol = solved()
    np.testing.assert_allclose(sol.value[0][4], sol.value[0][1], rtol=20 * TOL, atol=20 * TOL)
    np.testing.assert_allclose(50 * sol.multipliers[4] / 1e-3, sol.multipliers[1], rtol=50 * TOL, atol=50 * TOL)
    if FLOAT.name == "float64":
        assert abs(int(sol.num_steps[4]) - int(sol.num_steps[1])) <= 0.1 * int(sol.num_steps[1])


def test_a_projection_that_is_none_is_seen():
    """The pair then leaves the constraint: the answer may not be called one unless it satisfies it."""
    lanes, sol = solved()
    data = lanes[5][0]
    violation = float(HalfSpace.constraint(sol.value[0][5], sol.value[1][5], data)[0])
    assert not sol.converged[5] or violation < 10 * TOL * float(jnp.linalg.norm(sol.value[1][5]) + 1)


def test_zero_data_and_a_nan_lane():
    _, sol = solved()
    assert sol.converged[6]
    np.testing.assert_allclose(sol.value[0][6], np.zeros(P), atol=1e-3)
    assert int(sol.status[7]) == Status.NONFINITE
    assert int(sol.num_steps[7]) == 0


def test_no_lane_says_more_than_is_true():
    """Forty problems in units up to 1e6 apart: what is called converged has y, multiplier and a feasible pair."""
    rng = np.random.default_rng(29)
    claimed = 0
    for _ in range(5):
        lanes = []
        for _ in range(LANES):
            data = half_space(rng, p=P, d=D, dtype=FLOAT)
            hit = data._replace(bound=data.bound * 10.0 ** rng.integers(-3, 4)) if rng.random() < 0.5 else data
            upper, lower, rows = 10.0 ** rng.integers(-6, 7, 3)
            lanes.append(scaled(hit, float(upper), float(lower), float(rows)))
        data, units = jax.tree.map(lambda *a: jnp.stack(a), *lanes)
        sol = many(data, units, 2000, 5 * TOL)
        for i in np.flatnonzero(np.asarray(sol.converged)):
            x, y = sol.value[0][i], sol.value[1][i]
            exact, _ = lanes[i][0].solution(x)
            size = float(jnp.linalg.norm(x) + jnp.linalg.norm(y))
            assert float(jnp.linalg.norm(y - exact)) < 100 * TOL * size, (i, lanes[i])
            assert float(HalfSpace.constraint(x, y, lanes[i][0])[0]) < 100 * TOL * (size + 1), (i, lanes[i])
            claimed += 1
    assert claimed > 20


@needs_x64
def test_few_steps_claim_nothing():
    lanes, _ = solved()
    data, units = jax.tree.map(lambda *a: jnp.stack(a), *lanes)
    for steps in (0, 1):
        sol = many(data, units, steps, 1e-4)
        assert np.all(np.asarray(sol.status[:4]) == Status.MAX_STEPS)
        assert np.all(np.asarray(sol.num_steps[:4]) == steps)
        assert np.all(np.isfinite(np.asarray(sol.value[0][:4])))


@pytest.mark.slow
def test_the_published_steps_do_not_settle_on_the_toy():
    """Plain descent and ascent leaves its stable region there; which this says, instead of an answer."""
    toy = CoupledToy(100)
    sol = lv_hba(
        toy.upper, toy.lower, jnp.full(100, 3.0, FLOAT), jnp.full(200, -2.0, FLOAT), constraint=toy.constraint,
        equality=True, project=toy.project, published=PublishedSteps(), max_steps=20_000,
    )  # fmt: skip
    assert not sol.converged
    assert np.linalg.norm(sol.value[0] + 0.3) / 3 > 0.1


@needs_x64
def test_published_steps_agree_with_own_ones_where_they_settle():
    """A lower problem without constraints: both find ``x = 0.6``, the published at its penalty's bias."""
    upper = lambda x, y, _: jnp.sum((x - 1) ** 2) + jnp.sum((y - 1) ** 2)  # noqa: E731
    lower = lambda x, y, _: jnp.sum((y - 2 * x) ** 2)  # noqa: E731
    steps = PublishedSteps(alpha=0.05, eta=0.1, gamma1=1.0, penalty=2.0)
    history = lv_hba(upper, lower, jnp.zeros(1), jnp.zeros(1), published=steps, history=40, max_steps=3000)
    np.testing.assert_allclose(history.value[0], 0.6, atol=0.02)
    assert history.history[39] < history.history[1]
    slope = jax.grad(lambda a: lv_hba(upper, lower, a * jnp.ones(1), jnp.zeros(1)).value[0][0])(1.0)
    assert np.isnan(slope)


@whatever_precision
def test_what_cannot_be_is_refused():
    toy, x, y = TOY, jnp.zeros(20), jnp.zeros(40)
    with pytest.raises(ValueError, match="lv_hba: `project`"):
        lv_hba(toy.upper, toy.lower, x, y, constraint=toy.constraint)
    with pytest.raises(ValueError, match="lv_hba: `constraint`"):
        lv_hba(toy.upper, toy.lower, x, y, constraint=toy.lower, project=toy.project)
    with pytest.raises(ValueError, match="lv_hba: `upper`"):
        lv_hba(lambda x, y, _: x, toy.lower, x, y)
    with pytest.raises(ValueError, match="lv_hba: `project`"):
        lv_hba(toy.upper, toy.lower, x, y, project=lambda x, y, _: (y, x))
    with pytest.raises(ValueError, match="lv_hba: `project_lower`"):
        lv_hba(toy.upper, toy.lower, x, y, project_lower=lambda y, _: y[1:])
    with pytest.raises(TypeError, match="lv_hba: `y0`"):
        lv_hba(toy.upper, toy.lower, x, jnp.zeros(40, jnp.float32))
