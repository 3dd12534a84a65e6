"""The Gibbs kernel around a pair of potentials, and what can be done with it by products alone.

A plan is held as ``diag(alpha) K diag(beta)`` with ``K = exp((f + g - C) / epsilon)``: exponentials are taken once,
after which Sinkhorn sweeps, trial points and marginals are products with K. When alpha or beta leave the range where
entries of K that underflowed could matter, they are absorbed into f and g and K is formed anew.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.precision import matmul
from ..core.precision import tiny as smallest
from ..core.typing import Array, Float
from .problem import Problem


class Kernel(eqx.Module):
    """The plan ``diag(alpha) K diag(beta)`` at regularisation `epsilon`.

    Attributes
    ----------
    K : Float[Array, "n m"]
        ``exp((f + g - (C - shift)) / epsilon)``.
    f, g : Float[Array, "n"], Float[Array, "m"]
        Potentials that K absorbed, of the cost minus its shift; zero where there is no mass.
    alpha, beta : Float[Array, "n"], Float[Array, "m"]
        Scalings since; one where there is no mass.
    epsilon : Float[Array, ""]
        Current regularisation, above the problem's while annealing.
    """

    K: Float[Array, "n m"]
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    alpha: Float[Array, " n"]
    beta: Float[Array, " m"]
    epsilon: Float[Array, ""]

    def rows(self, beta):
        """Row sums of ``K diag(beta)``."""
        return matmul(self.K, beta)

    def columns(self, alpha):
        """Column sums of ``diag(alpha) K``."""
        return matmul(alpha, self.K)

    @property
    def scalings(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The pair alpha, beta."""
        return self.alpha, self.beta

    def scaled(self, alpha, beta) -> "Kernel":
        """Return the same kernel with other scalings."""
        return Kernel(self.K, self.f, self.g, alpha, beta, self.epsilon)

    @property
    def row_sums(self) -> Float[Array, " n"]:
        """Row marginal of the plan."""
        return self.alpha * self.rows(self.beta)

    @property
    def potentials(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The potentials f, g with everything absorbed."""
        return self.f + self.epsilon * jnp.log(self.alpha), self.g + self.epsilon * jnp.log(self.beta)


def reach(dtype) -> float:
    """Largest absolute logarithm of a scaling before it is absorbed."""
    return 50.0 if jnp.finfo(dtype).bits == 64 else 15.0


def gibbs(problem: Problem, f, g, epsilon) -> Kernel:
    """Form the kernel around potentials f, g; two sums and one exponential an entry."""
    exponent = ((f[:, None] + g[None, :]) - (problem.cost - problem.shift)) / epsilon
    mask = problem.rows[:, None] & problem.columns[None, :]
    return Kernel(jnp.where(mask, jnp.exp(exponent), 0), f, g, jnp.ones_like(f), jnp.ones_like(g), epsilon)


def column_update(problem: Problem, f, epsilon) -> Float[Array, " m"]:
    """Return ``g = epsilon (log b - logsumexp_i((f - C) / epsilon))``: the columns' soft c-transform, log domain."""
    exponent = jnp.where(problem.rows[:, None], (f[:, None] - (problem.cost - problem.shift)) / epsilon, -jnp.inf)
    return _against(problem.b, jax.nn.logsumexp(exponent, axis=0), epsilon)


def row_update(problem: Problem, g, epsilon) -> Float[Array, " n"]:
    """Return ``f = epsilon (log a - logsumexp_j((g - C) / epsilon))``."""
    exponent = jnp.where(problem.columns[None, :], (g[None, :] - (problem.cost - problem.shift)) / epsilon, -jnp.inf)
    return _against(problem.a, jax.nn.logsumexp(exponent, axis=1), epsilon)


def _against(weights, logsumexp, epsilon):
    live = weights > 0
    return jnp.where(live, epsilon * (jnp.log(jnp.where(live, weights, 1)) - jnp.where(live, logsumexp, 0)), 0)


def absorb(problem: Problem, kernel: Kernel, f, g, epsilon) -> Kernel:
    """Form the kernel around f, g in the place of `kernel` and normalise its columns.

    If its sums under- or overflow, it is formed after a sweep in the log domain, which is exact whatever the exponents.
    """

    def body(carry):
        _, trips, _ = carry

        def log_domain():
            columns = column_update(problem, f, epsilon)
            return row_update(problem, columns, epsilon), columns

        new = gibbs(problem, *lax.cond(trips > 0, log_domain, lambda: (f, g)), epsilon)
        sums = new.columns(new.alpha)
        in_range = _in_range(new.row_sums, problem.a) & _in_range(sums, problem.b)
        return new.scaled(new.alpha, _ratio(problem.b, sums)), trips + 1, in_range

    start = (kernel, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    return lax.while_loop(lambda c: ~c[2] & (c[1] < 2), body, start)[0]


def empty(problem: Problem) -> Kernel:
    """Return a kernel of zeros, room for `absorb` to fill."""
    n, m = problem.cost.shape
    dtype = problem.cost.dtype
    return Kernel(
        jnp.zeros((n, m), dtype), jnp.zeros(n, dtype), jnp.zeros(m, dtype),
        jnp.ones(n, dtype), jnp.ones(m, dtype), problem.epsilon,
    )  # fmt: skip


def _in_range(sums, weights):
    ratio = sums / jnp.where(weights > 0, weights, 1)
    bound = jnp.exp(jnp.asarray(reach(sums.dtype), sums.dtype))
    return jnp.all((weights <= 0) | ((ratio * bound > 1) & (ratio < bound)))


def scale_rows(problem: Problem, kernel: Kernel) -> Float[Array, " n"]:
    """Return the alpha that makes the row sums of ``diag(alpha) K diag(beta)`` equal a (half a Sinkhorn sweep)."""
    return _ratio(problem.a, kernel.rows(kernel.beta))


def scale_columns(problem: Problem, kernel: Kernel, alpha) -> Float[Array, " m"]:
    """Return the beta that makes the column sums equal b for the given alpha."""
    return _ratio(problem.b, kernel.columns(alpha))


def _ratio(weights, sums):
    return jnp.where(weights > 0, weights / jnp.maximum(sums, smallest(sums.dtype)), 1)


def sweep(problem: Problem, kernel: Kernel) -> Kernel:
    """One Sinkhorn sweep: rows, then columns."""
    alpha = scale_rows(problem, kernel)
    beta = scale_columns(problem, kernel, alpha)
    return kernel.scaled(alpha, beta)


def check_potentials(function: str, init, data):
    """Return the pair of starting potentials as floating arrays, or None, or raise."""
    if init is None:
        return None
    cost = data[0]
    if not (isinstance(init, tuple | list) and len(init) == 2):
        checks.fail(function, "init", "a pair (f, g) of potentials", type(init).__name__, TypeError)
    f, g = (checks.float_array(function, "init", x, ndim=1, dtype=cost.dtype).astype(cost.dtype) for x in init)
    if (len(f), len(g)) != cost.shape:
        expected = f"potentials of lengths {cost.shape[0]} and {cost.shape[1]}"
        checks.fail(function, "init", expected, f"lengths {len(f)} and {len(g)}")
    return f, g


def reduced_potentials(problem: Problem, init):
    """Return potentials of the reduced, possibly transposed problem: those given, or zeros."""
    if init is None:
        return jnp.zeros_like(problem.a), jnp.zeros_like(problem.b)
    f, g = init[::-1] if problem.transposed else init
    half = (problem.shift + problem.epsilon * jnp.log(problem.mass)) / 2
    return jnp.where(problem.rows, f - half, 0), jnp.where(problem.columns, g - half, 0)


def row_error(problem: Problem, kernel: Kernel):
    """``|P 1 - a|_1``; the whole marginal error, since the columns are kept normalised."""
    return jnp.sum(jnp.abs(kernel.row_sums - problem.a))


def needs_absorbing(kernel: Kernel):
    """Whether a scaling has left the range in which K represents the plan to full precision."""
    bound = reach(kernel.K.dtype)
    return jnp.any(jnp.abs(jnp.log(kernel.alpha)) > bound) | jnp.any(jnp.abs(jnp.log(kernel.beta)) > bound)
