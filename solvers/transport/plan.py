"""Functions of a plan given by potentials; those of arrays take leading batch axes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.precision import matmul
from ..core.typing import Array, Float
from .costs.cost import Cost, Lazy, LazyKernel, Stored, StoredKernel, live_exponents


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


def kernel_of(potentials, cost: Cost, a, b, epsilon, shift) -> Any:
    """Return the plan of potentials of ``cost - shift`` as a kernel; differentiable."""
    f, g = potentials
    if isinstance(cost, Stored):
        return StoredKernel(jnp.exp(log_plan(f, g, cost.array - shift, a, b, epsilon)))
    assert isinstance(cost, Lazy)
    u, v = live_exponents(f + shift, g, a, b, epsilon)
    return LazyKernel(cost, cost.T, u, v, 1 / epsilon)


def marginals(plan) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Return row and column sums of a plan's kernel."""
    if isinstance(plan, StoredKernel):
        return jnp.sum(plan.array, 1), jnp.sum(plan.array, 0)
    return plan.times(jnp.ones_like(plan.v)), plan.transposed_times(jnp.ones_like(plan.u))


def streamed_cost(plan: LazyKernel, x=None, y=None) -> Float[Array, ""]:
    """Return ``sum x_i P_ij C_ij y_j``."""
    costs = plan.cost.product(plan.u, plan.v, jnp.ones_like(plan.v) if y is None else y, plan.scale, weighted=True)
    return jnp.sum(costs if x is None else x * costs)


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
        s = jnp.minimum(1, a / jnp.where(r > 0, r, 1))
        c = plan.transposed_times(s)
        t = jnp.minimum(1, b / jnp.where(c > 0, c, 1))
        return cls(s, t, jnp.maximum(a - s * plan.times(t), 0), jnp.maximum(b - t * c, 0))

    @property
    def missing(self):
        """Mass of the product measure added."""
        return jnp.sum(self.p)

    @property
    def share(self):
        """``q / sum(p)``."""
        return self.q / jnp.where(self.missing > 0, self.missing, 1)

    @property
    def T(self) -> "Rounding":  # noqa: N802
        """The rounding of the transposed plan."""
        return Rounding(self.t, self.s, self.q, self.p)

    def times(self, plan, x):
        """Return the rounded plan's product with a vector."""
        return self.s * plan.times(self.t * x) + self.p * jnp.sum(self.share * x)

    def cost(self, plan, cost: Cost):
        """Return the linear cost of the rounded plan; infinite where it had to use a forbidden pair."""
        if isinstance(cost, Stored):
            entries = jnp.where(plan.array > 0, cost.array, 0) * plan.array
            added = jnp.where((self.p[:, None] > 0) & (self.share[None, :] > 0), cost.array, 0)
            return jnp.sum(self.s * matmul(entries, self.t)) + jnp.sum(self.p * matmul(added, self.share))
        assert isinstance(cost, Lazy)
        return streamed_cost(plan, self.s, self.t) + jnp.sum(self.p * cost.times(self.share))

    def entropy_bound(self, plan: LazyKernel):
        """Return an upper bound of ``sum P (log P - 1)`` of the rounded plan, tight as ``p`` vanishes.

        By convexity: the sum of two measures is a mixture of both, each scaled up to the whole mass.
        """
        log = lambda x: jnp.log(jnp.where(x > 0, x, 1))  # noqa: E731
        r, c = self.s * plan.times(self.t), self.t * plan.transposed_times(self.s)
        logs = jnp.sum(jnp.where(r > 0, r * (log(self.s) + plan.u), 0))
        logs += jnp.sum(jnp.where(c > 0, c * (log(self.t) + plan.v), 0))
        logs -= plan.scale * streamed_cost(plan, self.s, self.t)
        kept, added = jnp.sum(r), self.missing
        whole = kept + added
        product = jnp.sum(self.p * log(self.p)) + jnp.sum(added * self.share * log(self.share))
        mixed = -kept * log(kept / whole) - added * log(added / whole)
        return logs + product + mixed - whole


def row_transform(g, cost: Cost, b, epsilon, shift) -> Float[Array, " n"]:
    """Return the soft c-transform ``-epsilon log sum_j exp((g_j - C_ij) / epsilon)`` over columns with mass."""
    if isinstance(cost, Stored):
        reduced = cost.array - shift
        mask = allowed(reduced, jnp.ones(reduced.shape[0], b.dtype), b)
        exponent = jnp.where(mask, (g[None, :] - jnp.where(mask, reduced, 0)) / epsilon, -jnp.inf)
        some = jnp.any(mask, 1)
        exponent = jnp.where(some[:, None], exponent, 0)
        return jnp.where(some, -epsilon * jax.nn.logsumexp(exponent, axis=1), 0)
    return -epsilon * cost.logsumexp(g, b > 0, epsilon, shift)
