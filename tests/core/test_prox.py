"""Proximal maps against the definition: no other point has a smaller objective, and Moreau's identity holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.core import prox

from ..conftest import FLOAT

FUNCTIONS = {
    "zero": prox.Zero(),
    "l1": prox.L1(0.7),
    "weighted l1": prox.L1(np.array([0.1, 0.5, 2.0, 0.0, 1.0, 0.3], FLOAT)),
    "group": prox.GroupL1(0.6),
    "ridge": prox.SquaredL2(0.8, 0.5),
    "box": prox.Box(-0.3, 0.4),
    "nonnegative": prox.Box(),
    "simplex": prox.Simplex(1.5),
    "ball": prox.L2Ball(0.9),
}


@pytest.fixture(params=sorted(FUNCTIONS))
def function(request):
    return FUNCTIONS[request.param]


def test_no_point_is_better(function, rng):
    v, step = jnp.asarray(rng.standard_normal(6), FLOAT), 0.6
    x = function(v, step)

    def objective(x):
        return function.value(x) + jnp.sum((x - v) ** 2) / (2 * step)

    best = float(objective(x))
    assert np.isfinite(best)
    slack = 1e-9 if FLOAT == "float64" else 1e-4
    for size in (1e-4, 1e-2, 1.0):
        others = x[None] + jnp.asarray(size * rng.standard_normal((200, 6)), FLOAT)
        for candidates in (others, jax.vmap(lambda o: function(o, 1e-3))(others)):
            assert np.min(jax.vmap(objective)(candidates)) >= best - slack


def test_the_map_is_firmly_nonexpansive(function, rng):
    u, v = (jnp.asarray(3 * rng.standard_normal((50, 6)), FLOAT) for _ in range(2))
    apply = jax.vmap(lambda v: function(v, 0.5))
    p, q = apply(u), apply(v)
    assert np.all(np.sum((p - q) ** 2, 1) <= np.sum((p - q) * (u - v), 1) + 1e-5)


def test_projections_onto_sets_repeat_themselves(rng):
    v = jnp.asarray(2 * rng.standard_normal(6), FLOAT)
    for name in ("box", "simplex", "ball", "nonnegative"):
        once = FUNCTIONS[name](v, 0.3)
        np.testing.assert_allclose(FUNCTIONS[name](once, 5.0), once, atol=1e-6)
        assert FUNCTIONS[name].value(v) == np.inf
        assert FUNCTIONS[name].value(once) == 0


def test_groups_of_zero_have_a_gradient(rng):
    v = jnp.zeros((2, 3), FLOAT).at[1, 0].set(2.0)
    slope = jax.grad(lambda v: jnp.sum(prox.GroupL1(0.5)(v, 1.0)) + prox.GroupL1(0.5).value(v))(v)
    assert np.all(np.isfinite(slope))
