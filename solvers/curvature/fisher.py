"""Fisher matrices of a model: the true one as an operator, and the empirical one layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core import checks
from ..core.empirical_fisher import EmpiricalFisher
from ..core.operators import LinearOperator, gauss_newton
from ..core.typing import Array, Float, Scalar

LIKELIHOODS = ("categorical", "gaussian", "bernoulli")


def fisher(
    model: Callable[[Any], Float[Array, "n ..."]], params: Any, *, likelihood: str = "categorical"
) -> LinearOperator:
    """Return the true Fisher matrix ``(1/n) sum_i J_i^T F(model(params)_i) J_i`` of n outputs, as an operator.

    Labels are averaged over the model's own predictions, so none are needed: it equals the generalised Gauss-Newton
    matrix of the likelihood's loss and is positive semidefinite everywhere.

    Parameters
    ----------
    model : callable
        ``model(params)``: outputs of n examples, logits or means, with the examples on the first axis.
    params : PyTree of arrays
        Where.
    likelihood : str
        "categorical": logits over the last axis. "bernoulli": one logit an entry. "gaussian": means, variance 1.

    Returns
    -------
    LinearOperator
        Symmetric, on pytrees like `params`; a product costs a forward and a reverse pass.

    Raises
    ------
    ValueError
        For an unknown likelihood.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers.curvature import fisher
    >>> print(fisher(lambda w: jnp.array([[1.0], [3.0]]) * w, jnp.array(2.0), likelihood="gaussian").mv(jnp.array(1.0)))
    5.0
    """
    checks.choice("fisher", "likelihood", likelihood, LIKELIHOODS)

    def loss(outputs):
        # Expectations over labels drawn from the model: any loss whose Hessian in the outputs is theirs.
        if likelihood == "gaussian":
            total = jnp.sum(outputs**2) / 2
        elif likelihood == "bernoulli":
            total = jnp.sum(jax.nn.softplus(outputs))
        else:
            total = jnp.sum(jax.nn.logsumexp(outputs, axis=-1))
        return total / outputs.shape[0]

    return gauss_newton(model, loss, params)


class BlockFisher(eqx.Module):
    """Hold the damped empirical Fisher matrix with the blocks between different leaves left out.

    One `EmpiricalFisher` for every leaf: coarser than the whole, but the damping counts for each layer, and m gradients
    determine every block as well as they determine the whole.

    Parameters
    ----------
    grads : PyTree of Float[Array, "m ..."]
        Stacked gradients.
    damping : scalar
        Positive; traced.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers.curvature import BlockFisher
    >>> blocks = BlockFisher({"a": jnp.array([[1.0]]), "b": jnp.array([[3.0]])}, damping=1.0)
    >>> print(blocks.solve({"a": jnp.array([2.0]), "b": jnp.array([10.0])}))
    {'a': Array([1.], dtype=...), 'b': Array([1.], dtype=...)}
    """

    blocks: Any

    def __init__(self, grads: Any, damping: Scalar):
        self.blocks = jax.tree.map(lambda leaf: EmpiricalFisher(leaf, damping), grads)

    def _each(self, method: str, *trees: Any) -> Any:
        is_block = lambda b: isinstance(b, EmpiricalFisher)  # noqa: E731
        return jax.tree.map(lambda block, *x: getattr(block, method)(*x), self.blocks, *trees, is_leaf=is_block)

    def mv(self, x: Any) -> Any:
        """Return ``F x``."""
        return self._each("mv", x)

    def solve(self, x: Any) -> Any:
        """Return ``F^-1 x``."""
        return self._each("solve", x)

    def diagonal(self) -> Any:
        """Return the diagonal."""
        return self._each("diagonal")

    def inverse_diagonal(self) -> Any:
        """Return the diagonal of the inverse."""
        return self._each("inverse_diagonal")

    def logdet(self) -> Float[Array, ""]:
        """Return ``log det F``."""
        return sum(jax.tree.leaves(self._each("logdet")), start=jnp.zeros(()))
