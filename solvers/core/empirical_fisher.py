"""The damped empirical Fisher matrix of m gradients, and everything about its inverse, from one m x m Cholesky."""

from __future__ import annotations

import functools
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular

from . import checks
from .precision import eps, matmul
from .typing import Array, Bool, Float, Scalar
from .vectors import combine, scale


def rows(tree: Any) -> list[Array]:
    """Return the leaves of stacked gradients as matrices of m rows."""
    return [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)]


def against(stack: Any, x: Any) -> Float[Array, " m"]:
    """Return ``G x``, the inner product of every stacked gradient with ``x``."""
    parts = [matmul(g, v.reshape(-1)) for g, v in zip(rows(stack), jax.tree.leaves(x), strict=True)]
    return functools.reduce(operator.add, parts)


def combined(stack: Any, c: Float[Array, " m"]) -> Any:
    """Return ``G^T c``, the combination of the stacked gradients."""
    return jax.tree.map(lambda g: matmul(c, g.reshape(g.shape[0], -1)).reshape(g.shape[1:]), stack)


class EmpiricalFisher(eqx.Module):
    """Hold ``F = damping I + (1/m) sum_i g_i g_i^T`` of ``m`` gradients as an operator with an exact inverse.

    With the gradients as rows of G and L the Cholesky factor of ``m damping I + G G^T``:

    (1) ``F = damping I + G^T G / m``
    (2) ``F^-1 = (I - G^T (L L^T)^-1 G) / damping``, by Woodbury
    (3) ``F^-1 G^T = m G^T (L L^T)^-1``
    (4) ``(F^-1)_kk = (1 - |L^-1 G e_k|^2) / damping``
    (5) ``log det F = (d - m) log damping + 2 sum log diag(L) - m log m``

    So one Cholesky factor of an m x m matrix serves every query and nothing of size d x d is formed. Use it for natural
    gradients, for saliencies of pruning, or to precondition. It is the Fisher matrix of the *observed* labels: near the
    Gauss-Newton matrix only where the model fits its data.

    Parameters
    ----------
    grads : PyTree of Float[Array, "m ..."]
        Per-example (or per-batch) gradients, stacked on the first axis of every leaf; all leaves of one dtype.
    damping : scalar
        Positive; traced. Zero or negative Python numbers raise, traced ones give NaN in every inverse query.

    Attributes
    ----------
    grads : PyTree
        As given.
    damping : Float[Array, ""]
        As given.
    factor : Float[Array, "m m"]
        Lower Cholesky factor of ``(m damping I + G G^T) / unit^2``.
    unit : Float[Array, ""]
        The larger of the largest entry of G and ``sqrt(m damping)``, by which the Gram matrix is kept from overflow.

    Raises
    ------
    TypeError, ValueError
        At trace time, when there are no gradients, the leaves disagree about m or dtype, or damping is not positive.

    Notes
    -----
    Construction costs O(d m^2 + m^3), `mv`, `solve` and `inverse_diagonal` O(d m) and O(d m^2), `inverse_element`
    O(m^2); memory is that of the gradients. Solutions lose digits with the condition of F, which is at most
    ``1 + ||G||^2 / (m damping)``; `solve_combination` is free of the division by `damping` and is the one to use for
    right-hand sides made of the gradients themselves.

    References
    ----------
    E. Frantar, E. Kurtic, D. Alistarh, *M-FAC: Efficient matrix-free approximations of second-order information*,
    NeurIPS 2021. It departs from their recurrence of m rank-one updates, which gives the same matrix.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import EmpiricalFisher
    >>> fisher = EmpiricalFisher(jnp.array([[3.0, 0.0], [0.0, 1.0]]), damping=0.5)
    >>> print(fisher.solve(jnp.array([10.0, 1.0])).round(4))
    [2. 1.]
    """

    grads: Any
    damping: Float[Array, ""]
    factor: Float[Array, "m m"]
    unit: Float[Array, ""]

    def __init__(self, grads: Any, damping: Scalar):
        name = "EmpiricalFisher"
        grads = jax.tree.map(lambda g: checks.float_array(name, "grads", g), grads)
        leaves = jax.tree.leaves(grads)
        if not leaves or any(g.ndim == 0 or g.shape[0] == 0 for g in leaves):
            checks.fail(name, "grads", "gradients stacked on a first axis", [g.shape for g in leaves])
        if len({(g.shape[0], g.dtype) for g in leaves}) > 1:
            wanted = "per-example gradients, jax.vmap(jax.grad(loss), ...), of one length and dtype"
            checks.fail(name, "grads", wanted, [(g.shape, str(g.dtype)) for g in leaves])
        self.grads = grads
        self.damping = checks.number(name, "damping", damping, positive=True, dtype=leaves[0].dtype)
        m = leaves[0].shape[0]
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g), initial=0) for g in leaves]))
        root = jnp.sqrt(m * self.damping)
        self.unit = jnp.maximum(largest, root)
        scaled = [g / self.unit for g in rows(grads)]
        gram = functools.reduce(operator.add, [matmul(g, g.T) for g in scaled])
        self.factor = jnp.linalg.cholesky(gram + jnp.diag(jnp.full(m, (root / self.unit) ** 2, gram.dtype)))

    @property
    def num_grads(self) -> int:
        """Number of gradients m."""
        return self.factor.shape[-1]

    @property
    def resolved(self) -> Bool[Array, ""]:
        """Whether the damping is large enough for this dtype: ``m damping >= 4 m eps max_i |g_i|^2``, factor finite.

        Where it is not, inverse queries are dominated by rounding: raise the damping or use float64.
        """
        m = self.num_grads
        largest = jnp.max(jnp.sum(self.factor**2, axis=-1), axis=-1)
        damping = (jnp.sqrt(m * self.damping) / self.unit) ** 2
        return jnp.all(jnp.isfinite(self.factor), axis=(-2, -1)) & (damping >= 4 * m * eps(self.factor.dtype) * largest)

    def _scaled(self) -> Any:
        return scale(1 / self.unit, self.grads)

    def mv(self, x: Any) -> Any:
        """Return ``F x`` for a pytree shaped like one gradient."""
        scaled = self._scaled()
        weight = self.unit / self.num_grads
        return combine((self.damping, x), (weight * self.unit, combined(scaled, against(scaled, x))))  # (1)

    def solve(self, x: Any) -> Any:
        """Return ``F^-1 x`` for a pytree shaped like one gradient."""
        scaled = self._scaled()
        c = cho_solve((self.factor, True), against(scaled, x))
        return jax.tree.map(lambda u, v: (u - v) / self.damping, x, combined(scaled, c))  # (2)

    def solve_combination(self, c: Float[Array, " m"]) -> Any:
        """Return ``F^-1 G^T c``, for right-hand sides that are combinations of the gradients.

        It equals ``G^T (damping I + G G^T / m)^-1 c``, in which nothing cancels however small the damping.
        """
        inner = cho_solve((self.factor, True), c)
        return combined(self._scaled(), inner * (self.num_grads / self.unit))  # (3)

    def diagonal(self) -> Any:
        """Return the diagonal of F, shaped like one gradient."""
        return jax.tree.map(lambda g: self.damping + jnp.mean(g**2, axis=0), self.grads)

    def inverse_diagonal(self) -> Any:
        """Return the diagonal of ``F^-1``, shaped like one gradient."""

        def leaf(g):
            half = solve_triangular(self.factor, g.reshape(g.shape[0], -1) / self.unit, lower=True)
            return ((1 - jnp.sum(half**2, axis=0)) / self.damping).reshape(g.shape[1:])  # (4)

        return jax.tree.map(leaf, self.grads)

    def inverse_element(self, i: Any, j: Any) -> Float[Array, ""]:
        """Return ``(F^-1)_ij``; coordinates count through the raveled leaves in the order of ``jax.tree.leaves``."""
        columns = jnp.concatenate(rows(self.grads), axis=1) if len(rows(self.grads)) > 1 else rows(self.grads)[0]
        left, right = columns[:, i] / self.unit, columns[:, j] / self.unit
        same = jnp.asarray(i == j, self.factor.dtype)
        return (same - matmul(left, cho_solve((self.factor, True), right))) / self.damping  # (2)

    def logdet(self) -> Float[Array, ""]:
        """Return ``log det F``."""
        m, d = self.num_grads, sum(g.shape[1] for g in rows(self.grads))
        half = jnp.sum(jnp.log(jnp.diagonal(self.factor)))
        # (5)
        return (d - m) * jnp.log(self.damping) + 2 * half + m * (2 * jnp.log(self.unit) - jnp.log(float(m)))
