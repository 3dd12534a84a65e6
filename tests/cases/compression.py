"""Contract entries of compression."""

import jax
import optax

import solvers

from .transformation import Transformation


def _groups():
    """On the tree of the contract, whose vector is called otherwise."""
    like = {"w": jax.ShapeDtypeStruct((4, 3), "float32"), "rest": [jax.ShapeDtypeStruct((5,), "float32")]}
    groups = solvers.parameter_groups(like, [solvers.Units([("w", 1)]), solvers.Units([("rest/0", 0)])])
    members = {("rest/first" if path == "rest/0" else path): entry for path, entry in groups.members.items()}
    return solvers.Groups(groups.count, groups.family, groups.size, members, {})


def _hesso(target_sparsity=0.5):
    return solvers.hesso(optax.sgd(0.01), _groups(), target_sparsity=target_sparsity, start=1, steps=3)


def _with_cycles(target_sparsity=0.5):
    options = {"cycles": 1, "sampling_steps": 2, "scores": {"magnitude": 1.0, "loss": 1.0}}
    return solvers.hesso(optax.sgd(0.01), _groups(), target_sparsity=target_sparsity, start=1, steps=2, **options)


TRANSFORMATIONS = [
    Transformation(name="hesso", make=_hesso, number=("target_sparsity", 0.5)),
    Transformation(
        name="hesso",
        make=_with_cycles,
        number=("target_sparsity", 0.5),
        extra=lambda loss, params, key: {"value_fn": loss},
    ),
]
