"""Estimates of a moving gradient from cheap samples: one recursion, of which the published ones are settings.

Numbered as in the comments; the sources are those of each function:

(1) ``d <- (1 - e) d + e g + w change``
(2) ``w = (m - I) / (I (1 - e)) + 1 - e``
(3) ``x + (1 - e) / e (x - x_before)``
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .typing import Array, Scalar


def track(estimate: Any, sample: Any, change: Any, momentum: Scalar, weight: Scalar) -> Any:
    """Return ``(1 - momentum) estimate + momentum sample + weight change``.

    Parameters
    ----------
    estimate, sample, change : PyTree of arrays
        The estimate d of the gradient at the last point, a stochastic gradient g at the new one, and the estimated
        change of the gradient between the two: a difference at the same sample, or a Hessian-vector product.
    momentum, weight : scalar
        Traced; taken in the dtype of each leaf.

    Notes
    -----
    ========================  ============  ===============================================================
    recursion                 momentum      weight of the change
    ========================  ============  ===============================================================
    moving average            e             0
    STORM, HARPG              e             ``1 - e``, so that d = ``g + (1 - e) (d - g_before)``
    SARAH, SPIDER, DIFF2      0             1
    MSVR                      e             `msvr_weight`: the other blocks' share too
    ========================  ============  ===============================================================

    References
    ----------
    Cutkosky, Orabona, "Momentum-based variance reduction in non-convex SGD", NeurIPS 2019. Nguyen et al., "SARAH",
    ICML 2017. Jiang et al., "Multi-block-single-probe variance reduced estimator", NeurIPS 2022.
    """

    def leaf(d, g, c):
        e, w = jnp.asarray(momentum).astype(d.dtype), jnp.asarray(weight).astype(d.dtype)
        return (1 - e) * d + e * g + w * c  # (1)

    return jax.tree.map(leaf, estimate, sample, change)


def msvr_weight(blocks: int, sampled: int, momentum: Scalar) -> Scalar:
    """Return ``(m - I) / (I (1 - e)) + 1 - e``: the weight with which MSVR corrects when I of m blocks are sampled.

    All blocks sampled, it is STORM's ``1 - e``.
    """
    return (blocks - sampled) / (sampled * (1 - momentum)) + 1 - momentum  # (2)


def transported(point: Any, previous: Any, momentum: Scalar) -> Any:
    """Return ``x + (1 - e) / e (x - x_before)``: where implicit gradient transport samples the gradient.

    A moving average of weight e over such samples estimates the gradient at x without bias wherever the Hessian is
    constant.

    References
    ----------
    Arnold et al., "Reducing the variance in online optimization by transporting past gradients", NeurIPS 2019.
    """

    def leaf(x, before):
        e = jnp.asarray(momentum).astype(x.dtype)
        return x + (1 - e) / e * (x - before)  # (3)

    return jax.tree.map(leaf, point, previous)


def unit(x: Any) -> Any:
    """Return ``x / |x|`` over all leaves, zero for zero; sizes near over- and underflow do no harm."""
    leaves = jax.tree.leaves(x)
    dtype = jnp.result_type(*leaves)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in leaves]))
    usable = jnp.where(largest > 0, largest, 1)
    scaled = jax.tree.map(lambda leaf: leaf / usable.astype(leaf.dtype), x)
    size = jnp.sqrt(sum(jnp.sum(leaf**2).astype(dtype) for leaf in jax.tree.leaves(scaled)))
    size = jnp.where(size > 0, size, 1)
    return jax.tree.map(lambda leaf: leaf / size.astype(leaf.dtype), scaled)


def schedule_at(value: Any, count: Array) -> Array:
    """Return a number, or a schedule of the step count at a count."""
    return jnp.asarray(value(count) if callable(value) else value)
