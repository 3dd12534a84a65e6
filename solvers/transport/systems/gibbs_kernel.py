"""The Gibbs kernel around a pair of potentials, and what can be done with it by products alone.

A plan is held as ``diag(alpha) K diag(beta)`` with ``K = exp((f + g - C) / epsilon)``: exponentials are taken once,
after which Sinkhorn sweeps, trial points and marginals are products with K. When alpha or beta leave the range where
entries of K that underflowed could matter, they are absorbed into f and g and K is formed anew.

Sinkhorn's iteration (M. Cuturi, NeurIPS 2013) as B. Schmitzer stabilises it (SIAM J. Sci. Comput. 41, 2019, section 3):

(1) ``P = diag(alpha) K diag(beta),  K = exp((f + g - C) / epsilon),  r = P 1``
(2) ``alpha <- alpha a / r``
(3) ``beta <- b / (K' alpha)``
(4) ``f <- f + epsilon log alpha,  g <- g + epsilon log beta``, the scalings absorbed
(5) ``g = epsilon (log b - log sum_i exp((f_i - C_ij) / epsilon))``, and f likewise: (2) and (3) in the log domain

The columns are always normalised after the rows, so that the error of the rows is the whole error.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from ...core.precision import tiny as smallest
from ...core.typing import Array, Float
from ..problem import Problem, rounding_floor


class Kernel(eqx.Module):
    """The plan ``diag(alpha) K diag(beta)`` at regularisation `epsilon`, its columns normalised.

    Attributes
    ----------
    K : StoredKernel or LazyKernel
        ``exp((f + g - (C - shift)) / epsilon)``.
    f, g : Float[Array, "n"], Float[Array, "m"]
        Potentials that K absorbed, of the cost minus its shift; zero where there is no mass.
    alpha, beta : Float[Array, "n"], Float[Array, "m"]
        Scalings since; one where there is no mass.
    r : Float[Array, "n"]
        Row sums of the plan; the column sums are b to rounding.
    epsilon : Float[Array, ""]
        Current regularisation, above the problem's while annealing.
    """

    K: Any
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    alpha: Float[Array, " n"]
    beta: Float[Array, " m"]
    r: Float[Array, " n"]
    epsilon: Float[Array, ""]

    @property
    def potentials(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The potentials f, g with everything absorbed."""
        return self.f + self.epsilon * jnp.log(self.alpha), self.g + self.epsilon * jnp.log(self.beta)  # (4)


def empty(problem: Problem) -> Kernel:
    """Return a kernel of zeros, room for `absorb` to fill."""
    a, b, K = problem.a, problem.b, problem.cost.blank()
    zero_a, zero_b = jnp.zeros_like(a), jnp.zeros_like(b)
    return Kernel(K, zero_a, zero_b, jnp.ones_like(a), jnp.ones_like(b), zero_a, problem.epsilon)


def rescale(problem: Problem, kernel: Kernel, alpha) -> Kernel:
    """Return the kernel with row scaling `alpha` and its columns normalised for it: two products."""
    beta = _ratio(problem.b, kernel.K.transposed_times(alpha))  # (3)
    r = alpha * kernel.K.times(beta)  # (1)
    return Kernel(kernel.K, kernel.f, kernel.g, alpha, beta, r, kernel.epsilon)


def sweep(problem: Problem, kernel: Kernel) -> Kernel:
    """One Sinkhorn sweep: rows, then columns."""
    return rescale(problem, kernel, kernel.alpha * _ratio(problem.a, kernel.r))  # (2), (3)


def _ratio(weights, sums):
    return jnp.where(weights > 0, weights / jnp.maximum(sums, smallest(sums.dtype)), 1)


def row_error(problem: Problem, kernel: Kernel):
    """``|P 1 - a|_1``: the whole marginal error, since the columns are normalised."""
    return jnp.sum(jnp.abs(kernel.r - problem.a))


def least_error(problem: Problem, kernel: Kernel):
    """Return a quarter of what rounding the potentials makes: a smaller error changes little in what is returned."""
    a, b, f, g = problem.a, problem.b, kernel.f, kernel.g
    drift = (jnp.sum(a * f) - jnp.sum(b * g)) / 2
    return rounding_floor((a, b), (f - drift, g + drift), kernel.epsilon) / 4


def absorb(problem: Problem, kernel: Kernel, f, g, epsilon) -> Kernel:
    """Form the kernel around f, g in the place of `kernel`: two sums and one exponential an entry.

    If its sums under- or overflow, it is formed after a sweep in the log domain, which is exact whatever the exponents.
    """
    widest = 50.0 if f.dtype == jnp.float64 else REACH

    def body(carry):
        _, trips, _ = carry

        def log_domain():
            columns = column_update(problem, f, epsilon)
            return row_update(problem, columns, epsilon), columns

        f_now, g_now = lax.cond(trips > 0, log_domain, lambda: (f, g))
        now = trips >= 0  # always: what the kernel makes of costs, rows and shift is no array made before the loop
        rows, shift = problem.rows & now, lax.select(now, problem.shift, jnp.zeros_like(problem.shift))
        K = problem.cost.kernel(f_now, g_now, rows, problem.columns, epsilon, shift)  # (1)
        ones = jnp.ones_like(f), jnp.ones_like(g)
        new = Kernel(K, f_now, g_now, *ones, ones[0], epsilon)
        new = rescale(problem, new, new.alpha)
        in_range = _within(widest, _ratio(problem.a, new.r), new.beta)
        return new, trips + 1, in_range

    start = (kernel, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def unfinished(carry):
        _, trips, in_range = carry
        return ~in_range & (trips < 2)

    return lax.while_loop(unfinished, body, start)[0]


REACH = 15.0
"""Largest absolute logarithm of a scaling before it is absorbed: its square is still a float32."""


def needs_absorbing(kernel: Kernel):
    """Whether a scaling has left the range in which K represents the plan to full precision."""
    return ~_within(REACH, kernel.alpha, kernel.beta)


def _within(reach: float, *scalings):
    bound = math.exp(reach)
    most, least = (extreme(jnp.stack([extreme(x) for x in scalings])) for extreme in (jnp.max, jnp.min))
    return (most < bound) & (least * bound > 1)


def column_update(problem: Problem, f, epsilon) -> Float[Array, " m"]:
    """Return ``g = epsilon (log b - logsumexp_i((f - C) / epsilon))``: the columns' soft c-transform, log domain."""
    return _against(problem.b, problem.cost.column_logsumexp(f, problem.rows, epsilon, problem.shift), epsilon)


def row_update(problem: Problem, g, epsilon) -> Float[Array, " n"]:
    """Return ``f = epsilon (log a - logsumexp_j((g - C) / epsilon))``."""
    return _against(problem.a, problem.cost.logsumexp(g, problem.columns, epsilon, problem.shift), epsilon)


def _against(weights, logsumexp, epsilon):
    # (5)
    live = weights > 0
    return jnp.where(live, epsilon * (jnp.log(jnp.where(live, weights, 1)) - jnp.where(live, logsumexp, 0)), 0)


def reduced_potentials(problem: Problem, init):
    """Return potentials of the reduced, possibly transposed problem: those given, or zeros."""
    if init is None:
        return jnp.zeros_like(problem.a), jnp.zeros_like(problem.b)
    f, g = init[::-1] if problem.transposed else init
    half = (problem.shift + problem.epsilon * jnp.log(problem.mass)) / 2
    return jnp.where(problem.rows, f - half, 0), jnp.where(problem.columns, g - half, 0)
