"""Infeasible is said only where nothing around violates the constraints less: attacks on that verdict, both calls."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from solvers import Status, interior_point, sketched_newton
from solvers.constrained.kkt import at_minimum, seems_at_minimum

from ..conftest import FLOAT, X64

MAPS = {
    "parabola": lambda x: [x[0] ** 2 + 1, 0 * x[1]],
    "paraboloid": lambda x: [x[0] ** 2 + x[1] ** 2 + 1, 0 * x[1]],
    "quartic": lambda x: [x[0] ** 4 + 1, x[1]],
    "cubic with a valley": lambda x: [x[0] ** 3 - 3 * x[0] + 5, x[1]],
    "contradiction": lambda x: [0 * x[0] + 1, x[1]],
    "inflection on the way": lambda x: [x[0] ** 2 + 1 + x[1] ** 3, x[1] ** 3],
    "limit at infinity": lambda x: [jnp.exp(x[0]) + 1, 0 * x[1]],
    "arc tangent": lambda x: [jnp.arctan(x[0]) - 2, 0 * x[1]],
    "exponential": lambda x: [jnp.exp(x[0]), 0 * x[1]],
    "singular root": lambda x: [x[0] ** 3, x[1] - x[0]],
    "bump": lambda x: [1 - 2 * jnp.exp(-(x[0] ** 2)), x[1]],
    "growth": lambda x: [x[0] * jnp.exp(x[1]) - 3, x[0] * jnp.exp(2 * x[1]) - 7],
    "saddle": lambda x: [x[0] * x[1] + 1, 0 * x[0]],
    "maximum": lambda x: [1 - x[0] ** 2, 0 * x[1]],
}
NONE = ("parabola", "paraboloid", "quartic", "cubic with a valley", "contradiction", "inflection on the way")
STARTS = {
    "parabola": [(2, 3), (1e-3, 1), (0, 0)], "paraboloid": [(2, 3), (100, -1)], "quartic": [(2, 1)],
    "cubic with a valley": [(3, 1), (1, 0)], "contradiction": [(1, 1)], "inflection on the way": [(2, 1.5)],
    "limit at infinity": [(1, 1)], "arc tangent": [(0.5, 1), (-3, 0)], "exponential": [(1, 1)],
    "singular root": [(2, 3)], "bump": [(3, 1), (6, 1)], "growth": [(1e-3, -20), (1e-2, -60)],
    "saddle": [(0, 0), (1, 1)], "maximum": [(0, 0), (1e-9, 0)],
}  # fmt: skip
SCALES = {"float64": [(1, 1), (1e8, 1), (1e-8, 1), (1, 1e-4)], "float32": [(1, 1), (1e-2, 1), (1, 0.1)]}
"""Units of x and weights of the equations, which above one would be scaled apart and have their minimum elsewhere."""


def constraint(x, which):
    name, unit, weight = which
    return weight * lax.switch(name, [lambda x, c=c: jnp.stack(c(x)) for c in MAPS.values()], unit * x)


@cache
def program(how):
    def solve(x0, which):
        objective = lambda x, which: jnp.sum((which[1] * x - 1) ** 2)  # noqa: E731
        if how == "interior":
            return interior_point(objective, x0, equality=constraint, args=which, max_steps=300)
        return sketched_newton(objective, x0, equality=constraint, args=which, kkt=how, max_steps=300)

    return jax.jit(jax.vmap(solve))


@cache
def ends(how):
    """Return all names with their scales, starts and solutions, from one batch."""
    lanes = [(name, *scale, start) for name in MAPS for scale in SCALES[FLOAT.name] for start in STARTS[name]]
    names, units, weights, starts = zip(*lanes, strict=True)
    unit = np.asarray(units)
    which = (np.asarray([list(MAPS).index(name) for name in names]), unit.astype(FLOAT), np.asarray(weights, FLOAT))
    s = program(how)(jnp.asarray(np.asarray(starts) / unit[:, None], FLOAT), jax.tree.map(jnp.asarray, which))
    return list(zip(lanes, np.asarray(s.status), np.asarray(s.value, float) * unit[:, None], strict=True))


def least_around(name, x, rng):
    """Return by how much points around x violate less, relative to the violation there; nothing of ours is asked."""
    sizes = np.repeat(10.0 ** -np.arange(0.5, 4), 50)[:, None] * (1 + np.abs(x))
    around = x + sizes * rng.standard_normal((len(sizes), 2))

    def violation(x):
        return np.linalg.norm([np.asarray(v, float) * np.ones(len(x)) for v in MAPS[name](x.T)], axis=0)

    here = violation(x[None])[0]
    return 1 - np.min(violation(around)) / here


@pytest.mark.parametrize("how", ["dense", pytest.param("krylov", marks=pytest.mark.long), "interior"])
def test_a_point_called_infeasible_has_no_better_one_around(how, rng):
    for lane, status, x in ends(how):
        if status == Status.INFEASIBLE:
            assert least_around(lane[0], x, rng) < (1e-5 if X64 else 1e-2), (lane, x)


@pytest.mark.parametrize("how", ["dense", pytest.param("krylov", marks=pytest.mark.long), "interior"])
def test_what_has_a_root_ahead_is_never_called_infeasible(how):
    told = {lane for lane, status, _ in ends(how) if status == Status.INFEASIBLE}
    assert not [lane for lane in told if lane[0] not in (*NONE, "limit at infinity", "arc tangent")]


@pytest.mark.parametrize("how", ["dense", "interior"])
def test_minima_of_the_violation_are_recognised(how):
    for lane, status, x in ends(how):
        if lane[0] in NONE and lane[1:] == (1, 1, STARTS[lane[0]][0]):
            assert status == Status.INFEASIBLE, (lane, Status(int(status)), x)


@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e12])
def test_evidence_does_not_depend_on_units(unit):
    """A bowl, a saddle, a slope and a plateau, all as steep as the units of the first variable make them."""
    scale, none, ones = np.asarray([unit, 1.0]), np.zeros(2), np.ones(2)
    bowl = np.asarray([[2.0, 0.5], [0.5, 1.0]])

    def says(B, p, columns):
        B, p, columns = (jnp.asarray(v, FLOAT) for v in (np.outer(scale, scale) * B, scale * p, scale * columns))
        return bool(at_minimum(B, columns, columns, p, jnp.ones((), FLOAT)))

    assert says(bowl, none, ones)
    assert not says(np.diag([-1e-3, 1.0]), none, np.asarray([0.03, 1.0]))
    assert not says(bowl, np.asarray([1e-2, 0.0]), ones)
    assert not says(np.asarray([[0.0, 1.0], [1.0, 0.0]]), none, none)


def test_a_variable_that_left_the_range_of_numbers_proves_nothing():
    B, p, one = jnp.diag(jnp.asarray([0.0, 1.0], FLOAT)), jnp.zeros(2, FLOAT), jnp.ones((), FLOAT)
    columns, first = jnp.asarray([0.0, 1.0], FLOAT), jnp.asarray([1.0, 1.0], FLOAT)
    assert bool(at_minimum(B, columns, columns, p, one))
    assert not bool(at_minimum(B, columns, first, p, one))
    assert bool(seems_at_minimum(lambda v: B @ v, columns, columns, p, one))
    assert not bool(seems_at_minimum(lambda v: B @ v, columns, first, p, one))
    assert not bool(seems_at_minimum(lambda v: v * jnp.asarray([1.0, -1.0], FLOAT), columns, columns, p, one))
