"""Hessian alignment: a penalty on how differently domains bend and tilt the loss of a classifier's head.

Hemati, Zhang, Estiri and Chen, ICCV 2023, U and g of domain e, their means over the E domains without derivative:

(1) ``mean_e L_e + (1/E) sum_e (alpha |U_e - mean U|^2 + beta |g_e - mean g|^2)``
(2) ``U_e = H_e g_e``, or ``mean_r z_r * (H_e z_r)``: as published
(3) ``U_e = H_e``, whose distances follow from inner products of pairs: here the default
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core import checks
from ..core.precision import matmul
from ..core.probes import probe
from ..core.typing import Array, Float, Int, Scalar
from .head import HeadHessian, head_hessian

PENALTIES = ("exact", "diagonal", "gradient_product", "hutchinson")


class Alignment(NamedTuple):
    """The parts of the penalised loss; `hessian_alignment` made it.

    Attributes
    ----------
    total : Float[Array, ""]
        ``loss + alpha hessian + beta gradient``.
    loss, hessian, gradient : Float[Array, ""]
        Mean loss of the domains, and mean squared distances of their Hessians and gradients from the mean.
    """

    total: Float[Array, ""]
    loss: Float[Array, ""]
    hessian: Float[Array, ""]
    gradient: Float[Array, ""]


def hessian_alignment(
    domains: Sequence[tuple[Float[Array, "n d"], Int[Array, " n"]]],
    weights: Float[Array, "C d"],
    *,
    alpha: Scalar = 1e-3,
    beta: Scalar = 5e-3,
    method: str = "exact",
    key: Array | None = None,
    num_probes: int = 300,
) -> Alignment:
    """Return the loss of a linear softmax head over several domains, plus how much their Hessians and gradients differ.

    ``mean_e L_e + (1/E) sum_e [alpha |U_e - sg(U)|^2 + beta |g_e - sg(g)|^2]``, U and g the means over domains and sg
    no derivative. Differentiable in features and weights: train the features through it.

    Parameters
    ----------
    domains : sequence of (features, labels)
        One pair a domain, of any numbers of examples.
    weights : Float[Array, "C d"]
        Of the head.
    alpha, beta : scalar
        Weights of the two penalties; traced.
    method : str
        What U is. "exact": the whole Hessian, by Gram matrices (`head_hessian`), O(n^2 (d + C)). "diagonal": its exact
        diagonal, O(n C d). As published: "gradient_product", ``H_e g_e``, and "hutchinson", the diagonal by probes.
    key : PRNG key
        Of the probes.
    num_probes : int
        Static.

    Returns
    -------
    Alignment
        Minimise its `total`.

    Raises
    ------
    TypeError, ValueError
        At trace time, when shapes do not fit, for an unknown method, or a missing key.

    References
    ----------
    S. Hemati, G. Zhang, A. Estiri, X. Chen, *Understanding Hessian alignment for domain generalization*, ICCV 2023.
    Published settings: alpha 1e-4 for the gradient product, 1e-3 and 300 probes for the other, beta 5e-3.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import hessian_alignment
    >>> x, y = jnp.eye(2), jnp.array([0, 1])
    >>> parts = hessian_alignment([(x, y), (x, y)], jnp.zeros((2, 2)))
    >>> print(parts.loss.round(4), parts.hessian, parts.gradient)
    0.6931 0.0 0.0
    """
    name = "hessian_alignment"
    checks.choice(name, "method", method, PENALTIES)
    if not domains:
        checks.fail(name, "domains", "at least one", len(domains))
    if key is None and method == "hutchinson":
        checks.fail(name, "key", "given for random probes", None)
    hessians = [head_hessian(features, weights) for features, _ in domains]
    losses, gradients = [], []
    for hessian, (features, labels) in zip(hessians, domains, strict=True):
        if labels.shape != features.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
            checks.fail(name, "domains", "features with one integer label each", (features.shape, labels.shape))
        target = jax.nn.one_hot(labels, weights.shape[0], dtype=weights.dtype)
        logits = matmul(features, weights.T)
        losses.append(jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.sum(target * logits, axis=1)))
        gradients.append(matmul((hessian.probabilities - target).T, features) / features.shape[0])
    apart = _spread(jnp.stack(gradients))
    if method == "exact":
        bend = _hessian_spread(hessians)
    elif method == "diagonal":
        bend = _spread(jnp.stack([h.diagonal() for h in hessians]))
    elif method == "gradient_product":
        bend = _spread(jnp.stack([h.mv(g) for h, g in zip(hessians, gradients, strict=True)]))  # (2)
    else:
        assert key is not None
        keys = jax.random.split(key, num_probes)

        def sampled(hessian):
            one = lambda k: (lambda z: z * hessian.mv(z))(probe("rademacher", k, weights))  # noqa: E731
            return jnp.mean(jax.vmap(one)(keys), axis=0)  # (2)

        bend = _spread(jnp.stack([sampled(h) for h in hessians]))
    loss = jnp.mean(jnp.stack(losses))
    total = loss + jnp.asarray(alpha, loss.dtype) * bend + jnp.asarray(beta, loss.dtype) * apart  # (1)
    return Alignment(total, loss, bend, apart)


def _spread(x: Float[Array, "E ..."]) -> Float[Array, ""]:
    """Return the mean squared distance from the mean, which has no derivative."""
    return jnp.sum((x - jax.lax.stop_gradient(jnp.mean(x, axis=0, keepdims=True))) ** 2) / x.shape[0]


def _hessian_spread(hessians: Sequence[HeadHessian]) -> Float[Array, ""]:
    """Return ``mean_e |H_e - sg(mean_f H_f)|_F^2`` from inner products of pairs."""
    frozen = [jax.lax.stop_gradient(h) for h in hessians]
    count = len(hessians)
    own = sum(h.inner(h) for h in hessians) / count
    cross = sum(h.inner(f) for h in hessians for f in frozen) / count**2
    fixed = sum(f.inner(g) for f in frozen for g in frozen) / count**2
    return jnp.maximum(own - 2 * cross + fixed, 0)  # (3)
