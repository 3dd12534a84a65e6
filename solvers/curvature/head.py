"""The Hessian of softmax cross-entropy in the weights of a linear head, in closed form.

Where Hemati et al., ICCV 2023, draw random probes, p_i being the outputs of a linear head and x_i its inputs:

(1) ``H = (1/n) sum_i (diag(p_i) - p_i p_i^T) (x) x_i x_i^T``
(2) ``diag H = (1/n) sum_i p_i (1 - p_i) x_i^2``
(3) ``<H, K> = mean_ij (p.q + (p.q)^2 - p^2.q - p.q^2) (x_i.y_j)^2``, p and x of H at i, q and y of K at j
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core import checks
from ..core.precision import matmul
from ..core.typing import Array, Float


class HeadHessian(eqx.Module):
    """Hold ``H = (1/n) sum_i (diag(p_i) - p_i p_i^T) (x) x_i x_i^T``, the Hessian of a linear softmax head.

    It does not depend on the labels, and equals the Gauss-Newton and the true Fisher matrix. Made by `head_hessian`.

    Attributes
    ----------
    features : Float[Array, "n d"]
        Inputs ``x_i`` of the head; append a column of ones for a bias.
    probabilities : Float[Array, "n C"]
        Its outputs ``p_i``.
    """

    features: Float[Array, "n d"]
    probabilities: Float[Array, "n C"]

    def mv(self, v: Float[Array, "C d"]) -> Float[Array, "C d"]:
        """Return ``H v`` at the cost of two passes through the head, O(n C d)."""
        p = self.probabilities
        u = matmul(self.features, v.T)
        u = p * (u - jnp.sum(p * u, axis=1, keepdims=True))  # (1)
        return matmul(u.T, self.features) / p.shape[0]

    def diagonal(self) -> Float[Array, "C d"]:
        """Return the diagonal, ``(1/n) sum_i p_i (1 - p_i) x_i^2``."""
        p = self.probabilities
        return matmul((p * (1 - p)).T, self.features**2) / p.shape[0]  # (2)

    def trace(self) -> Float[Array, ""]:
        """Return the trace."""
        p = self.probabilities
        return jnp.mean(jnp.sum(p * (1 - p), axis=1) * jnp.sum(self.features**2, axis=1))

    def inner(self, other: "HeadHessian") -> Float[Array, ""]:
        """Return ``<H, K>``, the sum of products of all entries of two heads' Hessians, in O(n m (d + C))."""
        p, q = self.probabilities, other.probabilities
        both = matmul(p, q.T)
        blocks = both + both**2 - matmul(p**2, q.T) - matmul(p, (q**2).T)  # (3)
        return jnp.mean(blocks * matmul(self.features, other.features.T) ** 2)

    def squared_distance(self, other: "HeadHessian") -> Float[Array, ""]:
        """Return ``||H - K||_F^2`` without forming either; absolute accuracy is eps ``(||H||_F^2 + ||K||_F^2)``."""
        return jnp.maximum(self.inner(self) - 2 * self.inner(other) + other.inner(other), 0)

    def as_matrix(self) -> Float[Array, "Cd Cd"]:
        """Return the dense matrix, its rows ordered as ``weights.ravel()``."""
        p, x = self.probabilities, self.features
        s = p[:, :, None] * (jnp.eye(p.shape[1], dtype=p.dtype)[None] - p[:, None, :])
        blocks = jnp.einsum("nab,ni,nj->aibj", s, x, x, precision="highest") / p.shape[0]
        return blocks.reshape(p.shape[1] * x.shape[1], -1)


def head_hessian(features: Float[Array, "n d"], weights: Float[Array, "C d"]) -> HeadHessian:
    """Return the Hessian of mean softmax cross-entropy with logits ``features weights^T``, in ``weights``.

    Exact where random probes are noisy, and cheaper. For a loss other than cross-entropy, or weights further down, it
    does not apply.

    Parameters
    ----------
    features : Float[Array, "n d"]
        Inputs of the head, one row an example.
    weights : Float[Array, "C d"]
        Of the head.

    Returns
    -------
    HeadHessian
        With `mv`, `diagonal`, `trace`, `inner`, `squared_distance`, `as_matrix`.

    Raises
    ------
    TypeError, ValueError
        At trace time, when the shapes or dtypes do not fit.

    Notes
    -----
    Nothing of size (C d) x (C d) is formed but by `as_matrix`. Large logits are harmless.

    References
    ----------
    S. Hemati, G. Zhang, A. Estiri, X. Chen, *Understanding Hessian alignment for domain generalization*, ICCV 2023,
    which estimates the diagonal by random probes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import head_hessian
    >>> print(head_hessian(jnp.array([[2.0, 0.0]]), jnp.zeros((2, 2))).diagonal())
    [[1. 0.]
     [1. 0.]]
    """
    features = checks.float_array("head_hessian", "features", features, ndim=2)
    weights = checks.float_array("head_hessian", "weights", weights, ndim=2)
    if features.dtype != weights.dtype:
        checks.fail("head_hessian", "weights", f"of the features' dtype {features.dtype}", weights.dtype, TypeError)
    if features.shape[0] == 0 or features.shape[1] != weights.shape[1]:
        checks.fail("head_hessian", "weights", f"(C, {features.shape[1]}) for n >= 1 features", weights.shape)
    return HeadHessian(features, jax.nn.softmax(matmul(features, weights.T), axis=1))
