"""Functions of a plan given by potentials; all take leading batch axes."""

import jax.numpy as jnp

from ..core.typing import Array, Float


def allowed(cost, a, b):
    """Pairs that may carry mass."""
    return (cost < jnp.inf) & (a > 0)[..., :, None] & (b > 0)[..., None, :]


def log_plan(f, g, cost, a, b, epsilon):
    """``(f + g - C) / epsilon``, minus infinity where no mass may go; NaN-free derivatives."""
    mask = allowed(cost, a, b)
    reduced = f[..., :, None] + g[..., None, :] - jnp.where(mask, cost, 0)
    return jnp.where(mask, reduced / epsilon[..., None, None], -jnp.inf)


def linear_cost(cost, plan) -> Float[Array, "..."]:
    """``<C, P>`` with infinite costs of pairs without mass counted as zero."""
    return jnp.sum(jnp.where(plan > 0, cost, 0) * plan, axis=(-2, -1))


def entropy_term(plan) -> Float[Array, "..."]:
    """``sum P (log P - 1)``."""
    return jnp.sum(jnp.where(plan > 0, plan * (jnp.log(jnp.where(plan > 0, plan, 1)) - 1), 0), axis=(-2, -1))


def round_to_marginals(plan, a, b) -> Float[Array, "... n m"]:
    """Return a plan with marginals a and b to rounding, within ``2 |P 1 - a|_1 + 2 |P' 1 - b|_1`` of `plan`.

    Rows, then columns that carry too much are scaled down, and what is missing is added as a product measure
    (Altschuler, Weed and Rigollet 2017, algorithm 2). It may put mass on forbidden pairs.
    """
    rows = jnp.sum(plan, -1)
    plan = plan * jnp.minimum(1, a / jnp.where(rows > 0, rows, 1))[..., :, None]
    columns = jnp.sum(plan, -2)
    plan = plan * jnp.minimum(1, b / jnp.where(columns > 0, columns, 1))[..., None, :]
    short_a, short_b = (jnp.maximum(w - jnp.sum(plan, axis), 0) for w, axis in ((a, -1), (b, -2)))
    total = jnp.sum(short_a, -1)
    return plan + short_a[..., :, None] * (short_b / jnp.where(total > 0, total, 1)[..., None])[..., None, :]
