"""Target surrogates: monotone on random problems, near the exact surrogate, Bregman and Optax within."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from solvers import Status
from solvers.stochastic import SurrogateStatus

from ..compiled import target_surrogate
from ..conftest import FLOAT

N, D = 40, 6


def logistic(z, args):
    return jnp.mean(jnp.logaddexp(0, z) - args["y"] * z)


def linear(w, args):
    return args["X"] @ w


def data(seed, spread=2.0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, D)) * np.logspace(0, -spread, D)
    p = 1 / (1 + np.exp(-X @ (rng.standard_normal(D) * np.logspace(0, spread, D))))
    return {"X": jnp.asarray(X, FLOAT), "y": jnp.asarray(rng.random(N) < 0.2 + 0.6 * p, FLOAT)}


def network(w, args):
    return jnp.tanh(args["X"] @ w["a"]) @ w["b"]


@pytest.mark.long
def test_loss_never_rises_on_a_hundred_networks():
    """The model is not linear, eta is 1 / L in the outputs; the losses after each step, by solving to each step."""

    def losses(key):
        one, two, three = jax.random.split(key, 3)
        args = {"X": jax.random.normal(one, (20, 3), FLOAT), "y": jax.random.bernoulli(two, 0.5, (20,)).astype(FLOAT)}
        w = {"a": jax.random.normal(three, (3, 4), FLOAT), "b": jnp.ones(4, FLOAT) / 2}

        def path(k):
            options = {"eta": 80.0, "inner_steps": 4, "tol": 0.0, "max_steps": k}
            return target_surrogate(network, logistic, w, args, **options).loss

        return jax.lax.map(path, jnp.arange(8))

    paths = np.asarray(jax.jit(jax.vmap(losses))(jax.random.split(jax.random.key(3), 100)))
    assert np.all(np.diff(paths, axis=1) <= 1e-6 * (FLOAT == "float32") + 1e-14)
    assert np.all(paths[:, -1] < paths[:, 0])


def exact_surrogate(args, steps):
    """The minimiser of every surrogate, by least squares: the best that any inner method can do."""
    X, y = (np.asarray(args[k], float) for k in ("X", "y"))
    w = np.zeros(D)
    for _ in range(steps):
        g = 1 / (1 + np.exp(-X @ w)) - y
        w = w - np.linalg.lstsq(X, 4 * g, rcond=None)[0]
    z = X @ w
    return np.mean(np.logaddexp(0, z) - y * z)


@pytest.mark.long
def test_conjugate_gradients_inside_are_the_exact_surrogate():
    args = data(3)
    for steps in (3, 10, 30):
        sol = target_surrogate(linear, logistic, jnp.zeros(D, FLOAT), args, eta=4.0 * N, tol=0.0, max_steps=steps)
        assert float(sol.loss) <= exact_surrogate(args, steps) * (1 + 1e-2 * (FLOAT == "float32") + 1e-6)
        assert sol.num_oracle == steps + 1


@pytest.mark.parametrize("inner", [optax.lbfgs(), optax.adam(0.1), optax.sgd(0.02)], ids=["lbfgs", "adam", "sgd"])
def test_any_method_may_be_inside(inner):
    args = data(4, spread=0.5)
    with jax.numpy_dtype_promotion("standard"):
        sol = target_surrogate(linear, logistic, jnp.zeros(D, FLOAT), args, eta=4.0 * N, inner=inner, inner_steps=15,
                               tol=2e-2, max_steps=300)  # fmt: skip
    assert sol.converged, sol
    slope = jax.grad(lambda w: logistic(linear(w, args), args))(sol.value)
    np.testing.assert_allclose(jnp.linalg.norm(slope), sol.error, rtol=1e-3)


def test_a_bregman_surrogate_of_the_loss_itself_needs_one_step():
    """With the loss as the potential and eta = 1 the surrogate is the loss."""
    args = data(5, spread=0.3)
    potential = lambda z: jnp.mean(jnp.logaddexp(0, z))  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):  # Optax's line search mixes integers
        sol = target_surrogate(linear, logistic, jnp.zeros(D, FLOAT), args, eta=1.0, potential=potential,
                               inner=optax.lbfgs(), inner_steps=60, tol=1e-3)  # fmt: skip
    assert sol.converged
    assert sol.num_steps == 1


def test_a_step_too_long_is_halved_and_said():
    args = data(6)
    sol = target_surrogate(linear, logistic, jnp.zeros(D, FLOAT), args, eta=4000.0 * N, tol=1e-3)
    assert sol.converged
    assert sol.num_oracle == sol.num_steps + 1
    start = target_surrogate(linear, logistic, jnp.zeros(D, FLOAT), args, eta=4000.0 * N, max_steps=0)
    assert sol.loss < start.loss


def test_a_gradient_that_leads_uphill_is_refused():
    """Its sign is wrong: no step, however short, lowers the loss, so none is taken and the status says so."""
    args = data(7)
    honest = lambda out, args: logistic(out, args)  # noqa: E731
    uphill = jax.custom_jvp(honest)
    uphill.defjvp(lambda primals, tangents: (lambda v, d: (v, -d))(*jax.jvp(honest, primals, tangents)))
    start = jnp.zeros(D, FLOAT)
    sol = target_surrogate(linear, uphill, start, args, eta=4.0 * N, tol=1e-6)
    # in float32 a step comes to be too short to change the loss before it was refused often enough
    assert sol.status == (SurrogateStatus.REFUSED if FLOAT == "float64" else Status.STAGNATED)
    assert not sol.converged
    np.testing.assert_allclose(sol.value, start, atol=0 if FLOAT == "float64" else 1e-4)


def test_separable_data_do_not_converge_to_a_claim_that_is_false():
    """No minimiser: the gradient falls below any tolerance on the way to infinity, and `error` is that gradient."""
    args = {"X": jnp.asarray([[1.0], [-1.0]], FLOAT), "y": jnp.asarray([1.0, 0.0], FLOAT)}
    sol = target_surrogate(linear, logistic, jnp.zeros(1, FLOAT), args, eta=8.0, tol=1e-12, max_steps=5)
    assert sol.status == Status.MAX_STEPS
    slope = jax.grad(lambda w: logistic(linear(w, args), args))(sol.value)
    np.testing.assert_allclose(jnp.abs(slope[0]), sol.error, rtol=1e-5)


def test_what_cannot_be_is_refused():
    args = data(3)
    for options, message in (
        ({"eta": -1.0}, "eta"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"unconverged": "x"}, "unconverged"),
    ):
        with pytest.raises(ValueError, match=f"target_surrogate: `{message}`"):
            target_surrogate(linear, logistic, jnp.zeros(D, FLOAT), args, **{"eta": 1.0, **options})
    with pytest.raises(TypeError, match="`loss` must be a real scalar"):
        target_surrogate(linear, lambda z, a: z, jnp.zeros(D, FLOAT), args, eta=1.0)
