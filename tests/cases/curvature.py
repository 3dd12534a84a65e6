"""Contract entries of curvature."""

import optax

import solvers

from .transformation import Transformation


def _mfac(learning_rate=20.0, damping=2000.0):
    return solvers.mfac(learning_rate, num_grads=4, damping=damping)


def _scale_by_mfac(damping=2000.0):
    return optax.chain(solvers.scale_by_mfac(num_grads=4, damping=damping), optax.scale(-20.0))


TRANSFORMATIONS = [
    Transformation(name="mfac", make=_mfac, number=("learning_rate", 20.0), descends=0.1, steps=100),
    Transformation(name="scale_by_mfac", make=_scale_by_mfac, number=("damping", 2000.0)),
]
