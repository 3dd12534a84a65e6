"""Functions of plans: costs, entropy, rounding to exact marginals; those of arrays take leading batch axes.

Rounding is algorithm 2 of Altschuler, Weed and Rigollet, NeurIPS 2017:

(1) ``s = min(1, a / (P 1))``
(2) ``t = min(1, b / (P' s))``
(3) ``p = a - diag(s) P t,  q = b - diag(t) P' s``, what is missing
(4) ``diag(s) P diag(t) + p q' / sum(p)``
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from ..core.typing import Array, Float
from .costs.cost import Cost, LazyKernel


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
    plan = plan * jnp.minimum(1, a / jnp.where(rows > 0, rows, 1))[..., :, None]  # (1)
    columns = jnp.sum(plan, -2)
    plan = plan * jnp.minimum(1, b / jnp.where(columns > 0, columns, 1))[..., None, :]  # (2)
    short_a, short_b = (jnp.maximum(w - jnp.sum(plan, axis), 0) for w, axis in ((a, -1), (b, -2)))  # (3)
    total = jnp.sum(short_a, -1)
    # (4)
    return plan + short_a[..., :, None] * (short_b / jnp.where(total > 0, total, 1)[..., None])[..., None, :]


class Rounding(eqx.Module):
    """A plan with the right marginals: ``diag(s) P diag(t) + p q' / sum(p)`` (Altschuler, Weed and Rigollet 2017)."""

    s: Float[Array, " n"]
    t: Float[Array, " m"]
    p: Float[Array, " n"]
    q: Float[Array, " m"]

    @classmethod
    def of(cls, plan, a, b) -> "Rounding":
        """Round a kernel in three products."""
        ones = jnp.ones_like(b)
        r = plan.times(ones)
        s = jnp.minimum(1, a / jnp.where(r > 0, r, 1))  # (1)
        c = plan.transposed_times(s)
        t = jnp.minimum(1, b / jnp.where(c > 0, c, 1))  # (2)
        return cls(s, t, jnp.maximum(a - s * plan.times(t), 0), jnp.maximum(b - t * c, 0))  # (3)

    @property
    def missing(self):
        """Mass of the product measure added."""
        return jnp.sum(self.p)

    @property
    def share(self):
        """``q / sum(p)``."""
        return self.q / jnp.where(self.missing > 0, self.missing, 1)

    @property
    def T(self) -> "Rounding":
        """The rounding of the transposed plan."""
        return Rounding(self.t, self.s, self.q, self.p)

    def times(self, plan, x):
        """Return the rounded plan's product with a vector."""
        return self.s * plan.times(self.t * x) + self.p * jnp.sum(self.share * x)  # (4)

    def cost(self, plan, cost: Cost):
        """Return the linear cost of the rounded plan; infinite where it had to use a forbidden pair."""
        return plan.costs(cost, self.s, self.t) + cost.of_product(self.p, self.share)

    def entropy_bound(self, plan: LazyKernel):
        """Return an upper bound of ``sum P (log P - 1)`` of the rounded plan, tight as ``p`` vanishes.

        By convexity: the sum of two measures is a mixture of both, each scaled up to the whole mass.
        """
        log = lambda x: jnp.log(jnp.where(x > 0, x, 1))  # noqa: E731
        r, c = self.s * plan.times(self.t), self.t * plan.transposed_times(self.s)
        logs = jnp.sum(jnp.where(r > 0, r * (log(self.s) + plan.scale * (plan.f + plan.shift)), 0))
        logs += jnp.sum(jnp.where(c > 0, c * (log(self.t) + plan.scale * plan.g), 0))
        logs -= plan.scale * plan.costs(plan.cost, self.s, self.t)
        kept, added = jnp.sum(r), self.missing
        whole = kept + added
        product = jnp.sum(self.p * log(self.p)) + jnp.sum(added * self.share * log(self.share))
        mixed = -kept * log(kept / whole) - added * log(added / whole)
        return logs + product + mixed - whole
