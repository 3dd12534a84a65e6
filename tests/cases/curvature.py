"""Contract entries of curvature."""

import optax

import solvers

from .transformation import Transformation


def _mfac(learning_rate=20.0, damping=2000.0):
    return solvers.mfac(learning_rate, num_grads=4, damping=damping)


def _scale_by_mfac(damping=2000.0):
    return optax.chain(solvers.scale_by_mfac(num_grads=4, damping=damping), optax.scale(-20.0))


def _objective(loss, params, key):
    return {"obj_fn": loss}


def _adahessian(learning_rate=0.2):
    return solvers.adahessian(learning_rate, update_every=2)


def _scale_by_adahessian(hessian_power=1.0):
    return optax.chain(solvers.scale_by_adahessian(hessian_power=hessian_power), optax.scale(-0.1))


def _slq_heavy_ball(scale=1.0):
    return solvers.slq_heavy_ball(num_steps=8, refresh_every=3, scale=scale)


TRANSFORMATIONS = [
    Transformation(
        name="adahessian", make=_adahessian, number=("learning_rate", 0.2), extra=_objective, descends=0.05, steps=100
    ),
    Transformation(
        name="scale_by_adahessian", make=_scale_by_adahessian, number=("hessian_power", 1.0), extra=_objective
    ),
    Transformation(
        name="slq_heavy_ball",
        make=_slq_heavy_ball,
        number=("scale", 1.0),
        extra=_objective,
        descends=1e-2,
        tol=(("float64", 1e-6), ("float32", 1e-2), ("bfloat16", 5e-2)),
    ),
    Transformation(name="mfac", make=_mfac, number=("learning_rate", 20.0), descends=0.1, steps=100),
    Transformation(name="scale_by_mfac", make=_scale_by_mfac, number=("damping", 2000.0)),
]
