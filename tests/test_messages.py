"""What a newcomer gets wrong, and the cure that the message names; all of it is said while tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solvers
from solvers.core.operators import Identity

from .conftest import FLOAT

X = np.random.default_rng(23).normal(size=(6, 2)).astype(FLOAT)
KEY = jax.random.key(23)
RING = [(0, 1), (1, 2), (2, 0)]
ONE = jnp.ones((1, 1), FLOAT)
LEVEL = solvers.LinearGaussian(A=ONE, Q=ONE, H=ONE, R=ONE, mean=jnp.zeros(1, FLOAT), covariance=ONE)
DIFF2 = {"clip": 1.0, "clip_difference": 1.0, "noise": 1.0, "noise_difference": 1.0, "restart": 3}
DADAO = {"x0": jnp.zeros(2, FLOAT), "args": X[:3], "edges": RING, "mu": 1.0, "smoothness": 1.0}
START = [1 / 3] * 3
BOX = [(0, 1)] * 3
SUM = lambda x, a: jnp.sum(x, keepdims=True) - 1  # noqa: E731
MISTAKES = {
    "a list for an array": (
        lambda: solvers.interior_point(lambda x, a: jnp.sum((x * 0.5) ** 2), START),
        r"interior_point: `x0` must be one array where `objective` takes one: jnp.asarray\(x0\), got a list",
    ),
    "a list for an inequality": (
        lambda: solvers.interior_point(lambda x, a: x[0] * x[0], START, inequality=lambda x, a: -x),
        r"where `inequality` takes one: jnp.asarray\(x0\)",
    ),
    "a list for an equation": (
        lambda: solvers.sketched_newton(lambda x, a: x[0] * x[0], START, equality=SUM),
        r"sketched_newton: `x0` must be one array where `equality` takes one: jnp.asarray\(x0\), got a list",
    ),
    "bounds in pairs": (
        lambda: solvers.interior_point(lambda x, a: x @ x, jnp.asarray(START, FLOAT), bounds=BOX),
        r"interior_point: `bounds` must be a pair \(lower, upper\); .* tuple\(jnp.asarray\(bounds, float\).T\), got 3",
    ),
    "two pairs": (
        lambda: solvers.interior_point(lambda x, a: x @ x, jnp.asarray(START[:2], FLOAT), bounds=BOX[:2]),
        r"tuple\(jnp.asarray\(bounds, float\).T\), got 2 pairs",
    ),
    "a seed of a network": (
        lambda: solvers.ConvexReLU.sampled(X, X[:, 0], beta=0.1, patterns=3, key=3), r"`key` must be .*jax.random.key",
    ),
    "a tuple of axes": (lambda: solvers.Grid((X[:, 0], X[:4, 1])), r"Grid: `axes` must be .* write `Grid\(\*axes\)`"),
    "axes in a row": (lambda: solvers.Grid(X.T), r"write `Grid\(\*axes\)`, got shape \(2, 6\)"),
    "one image of many": (
        lambda: solvers.barycenter(solvers.Grid(X[:, 0], X[:4, 1]), np.ones((6, 4), FLOAT), epsilon=1.0),
        r"barycenter: `a` must be \(k, 24\), a measure a row or an image \(6, 4\) each, k >= 1, got \(6, 4\)",
    ),
    "a seed of a tensor": (
        lambda: solvers.functional_tucker(solvers.Matern(), X, X[:, 0], 1, key=3), r"`key` must be .*jax.random.key",
    ),
    "a seed of a trace": (lambda: solvers.trace(jnp.eye(3, dtype=FLOAT), 3), r"trace: `key` must be .*jax.random.key"),
    "no key": (lambda: solvers.spectral_density(jnp.eye(3, dtype=FLOAT), None), r"`key` must be .*jax.random.key"),
    "a seed of eigenpairs": (lambda: solvers.extreme_eigenpairs(jnp.eye(3, dtype=FLOAT), 3), r"jax.random.key"),
    "a seed of paths": (
        lambda: solvers.simulate(lambda t, x, a: x, lambda t, x, a: x, X, jnp.arange(3.0), 3), r"jax.random.key",
    ),
    "a drift of two": (
        lambda: solvers.simulate(lambda t, x: x, lambda t, x, a: x, X, jnp.arange(3.0), KEY),
        r"simulate: `drift` must be a function of \(t, x, args\)",
    ),
    "a seed of a layer": (lambda: solvers.DiagonalSSM.create("s4d_lin", channels=1, states=2, key=3), "jax.random.key"),
    "a seed of noise": (lambda: solvers.diff2(1.0, **DIFF2, key=3), r"diff2: `key` must be .*jax.random.key"),
    "a seed of events": (lambda: solvers.dadao(lambda x, a: x, **DADAO, key=3), r"dadao: `key`"),
    "a gradient without data": (
        lambda: solvers.dadao(lambda x: x, **DADAO, key=KEY), r"dadao: `gradient` must be a function of \(x, args\)",
    ),
    "a loss for a gradient": (
        lambda: solvers.dadao(lambda x, a: jnp.sum(x), **DADAO, key=KEY), r"of a loss take jax.grad",
    ),
    "a level without args": (
        lambda: solvers.hypergradient(lambda x, y, a: y, lambda x, y: y, 1.0, 1.0),
        r"hypergradient: `lower` must be a function of \(x, y, args\)",
    ),
    "residuals for a loss": (
        lambda: solvers.hypergradient(lambda x, y, a: y, lambda x, y, a: jnp.sum(y), X[0], X[0]),
        r"hypergradient: `upper` must be a function with a scalar as its value",
    ),
    "a weight for a prior": (
        lambda: solvers.admm(Identity(jax.ShapeDtypeStruct((2,), FLOAT)), X[0], 3.0),
        r"admm: `g` must be a proximal map",
    ),
    "pairs for units": (
        lambda: solvers.parameter_groups({"w": X}, [("w", 1)]),
        r"`families` must be a sequence of Units, got \['tuple'\]",
    ),
    "a mean gradient": (
        lambda: solvers.EmpiricalFisher({"w": X, "b": X[0]}, 0.1), r"`grads` must be per-example gradients, jax.vmap",
    ),
    "a series": (lambda: solvers.kalman_smoother(LEVEL, X[:, 0]), r"a single series is `y\[:, None\]`"),
    "no budget": (lambda: solvers.diff2_noise(-1.0, 10, 5), r"diff2_noise: `rho` must be a positive number"),
    "no restart": (lambda: solvers.diff2_noise(1.0, 10, 0), r"diff2_noise: `restart` must be a positive integer"),
    "all of the budget": (lambda: solvers.diff2_noise(1.0, 10, 5, share=1.0), r"`share` must be between 0 and 1"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_message_names_the_cure(mistake):
    call, match = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError), match=match):
        jax.eval_shape(call)


@pytest.mark.parametrize("gradients", [X.mean(0), X[:, :1], X[:, None], X[:0]], ids=str)
def test_privacy_is_not_claimed_for_what_is_no_gradient_of_each_example(gradients):
    """A mean over the examples broadcasts against the parameters, but clipping it bounds nobody's influence."""
    optimiser = solvers.diff2(1.0, **DIFF2, key=KEY)
    params = jnp.zeros(2, FLOAT)
    state = optimiser.init(params)
    for given in ((gradients, X), (X, gradients)):
        with pytest.raises(ValueError, match="must be per-example gradients"):
            optimiser.update(given[0], state, params, before=given[1])
    with pytest.raises(ValueError, match="of the same 6 examples"):
        optimiser.update(X, state, params, before=X[:5])
    assert jax.eval_shape(lambda: optimiser.update(X, state, params, before=X))[0].shape == (2,)


def test_keys_of_both_kinds_are_keys():
    for key in (KEY, jax.random.PRNGKey(23)):
        assert solvers.ConvexReLU.sampled(X, X[:, 0], beta=0.1, patterns=3, key=key).gates.shape == (3, 2)


def test_the_cures_of_lists_are_cures():
    """Both as the messages word them; and a pytree of numbers stays one."""
    x0, bounds = jnp.asarray(START), tuple(jnp.asarray(BOX, float).T)
    solution = jax.eval_shape(lambda: solvers.interior_point(lambda x, a: jnp.sum((x * 0.5) ** 2), x0, bounds=bounds))
    assert solution.value.shape == (3,)
    pair = jax.eval_shape(lambda: solvers.interior_point(lambda x, a: x[0] ** 2 + x[1], (0.5, 0.5), bounds=BOX[:2]))
    assert [x.shape for x in pair.value] == [(), ()]


def test_what_a_function_gets_wrong_by_itself_is_its_own_message():
    with pytest.raises(KeyError, match="rate"):
        jax.eval_shape(lambda: solvers.interior_point(lambda x, a: a["rate"] * x[0], START, args={}))
