"""All numbers of a field at once, by first-order methods: how the published fields are trained."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ...core.typing import Array
from .collocation_rows import Points, Statement


class Descent(NamedTuple):
    """A field, the optimiser's state, the equation's and the conditions' relative residual at other points."""

    field: Any
    inner: Any
    error: Array
    misfit: Array


def transformation(optimizer):
    """Return the Optax transformation that an option names."""
    return optax.lbfgs() if optimizer == "lbfgs" else optax.with_extra_args_support(optimizer)


def descend(statement: Statement, points: Points, checks: Points, optimizer):
    """Return the start and one step of an Optax transformation on the squared residuals."""
    rule = transformation(optimizer)

    def loss(field):
        return jnp.sum(statement.residuals(field, points) ** 2)

    def begin(field):
        return Descent(field, rule.init(field), *statement.judged(field, checks))

    def step(s: Descent) -> Descent:
        value, slope = jax.value_and_grad(loss)(s.field)
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes integers and floats
            updates, inner = rule.update(slope, s.inner, s.field, value=value, grad=slope, value_fn=loss)
            field = optax.apply_updates(s.field, updates)
        return Descent(field, inner, *statement.judged(field, checks))

    return begin, step
