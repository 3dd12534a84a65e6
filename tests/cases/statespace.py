"""Contract entries of state-space models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import solvers

from .belief import BeliefCase
from .module import ModuleCase

L, H, N = 12, 3, 4


@partial(jax.jit, static_argnums=1)
def _siso(key, dtype):
    return solvers.DiagonalSSM.create("s4d_inv", channels=H, states=N, key=key, dtype=dtype)


@partial(jax.jit, static_argnums=1)
def _mimo(key, dtype):
    return solvers.DiagonalMIMO.create(channels=H, states=N, key=key, blocks=2, dtype=dtype)


def _sequence(rng):
    return rng.standard_normal((L, H))


MODULES = [
    ModuleCase(
        name="DiagonalSSM",
        module=solvers.DiagonalSSM,
        make=_siso,
        example=_sequence,
        refuse=(
            lambda: solvers.DiagonalSSM(np.array([0.1j]), np.ones(1), step=0.1),
            lambda: solvers.DiagonalSSM(np.array([-1.0 + 0j]), np.ones(1), step=-0.1),
            lambda: solvers.DiagonalSSM(np.array([-1.0 + 0j]), np.ones(1), step=0.1, rule="euler"),
            lambda: _siso(jax.random.key(3), None).apply(jnp.zeros((L, H + 1))),
            lambda: _siso(jax.random.key(3), None).apply(jnp.zeros((L, H)), mode="magic"),
            lambda: _siso(jax.random.key(3), None).kernel(0),
        ),
    ),
    ModuleCase(
        name="DiagonalMIMO",
        module=solvers.DiagonalMIMO,
        make=_mimo,
        example=_sequence,
        refuse=(
            lambda: solvers.DiagonalMIMO(np.array([0.1j]), np.ones((1, 2)), np.ones((2, 1)), step=0.1),
            lambda: solvers.DiagonalMIMO(np.array([-1.0 + 0j]), np.ones((2, 2)), np.ones((2, 1)), step=0.1),
            lambda: _mimo(jax.random.key(3), None).apply(jnp.zeros((L, H + 1))),
            lambda: _mimo(jax.random.key(3), None).apply(jnp.zeros((L, H)), mode="magic"),
        ),
    ),
]

T = 7


def _model(rng):
    return {
        "A": 0.5 * rng.standard_normal((T - 1, 2, 2)),
        "Q": np.eye(2),
        "H": rng.standard_normal((1, 2)),
        "R": np.full((1, 1), 0.3),
        "mean": rng.standard_normal(2),
        "covariance": np.eye(2),
        "y": rng.standard_normal((T, 1)),
    }


def _kalman(solver, **how):
    def call(data):
        model = solvers.LinearGaussian(*(data[k] for k in ("A", "Q", "H", "R", "mean", "covariance")))
        seen = jnp.arange(T) != 3
        return solver(model, data["y"], observed=seen, **how)

    return call


def _regression(data):
    kernel = solvers.Matern(data["length"], jnp.ones_like(data["length"]), 1.5)
    return solvers.gp_regression(kernel, data["times"], data["y"], data["noise"], observed=jnp.arange(T) != 3)


BELIEFS = [
    BeliefCase("kalman_filter", solvers.Beliefs, _model, _kalman(solvers.kalman_filter), "y", 3, "R"),
    BeliefCase("kalman_smoother", solvers.Beliefs, _model, _kalman(solvers.kalman_smoother), "y", 3, "R"),
    BeliefCase(
        "kalman_smoother, parallel",
        solvers.Beliefs,
        _model,
        _kalman(solvers.kalman_smoother, method="parallel"),
        "y",
        3,
        "R",
    ),
    BeliefCase(
        "gp_regression",
        solvers.GPBeliefs,
        lambda rng: {
            "times": np.sort(rng.random(T)),
            "y": rng.standard_normal(T),
            "noise": np.asarray(0.1),
            "length": np.asarray(0.4),
        },
        _regression,
        "y",
        3,
        "noise",
    ),
]
