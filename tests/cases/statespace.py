"""Contract entries of state-space models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import solvers

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
