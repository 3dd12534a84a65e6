"""How much a group of parameters matters: the published scores, put on one scale and added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..core.typing import Array, Float, Int, Scalar
from .structure import Groups

DEFAULT = {
    "magnitude": 0.2, "avg_magnitude": 0.2, "cosine_similarity": 0.2, "taylor_first_order": 0.2,
    "taylor_second_order": 0.2,
}  # fmt: skip
"""The published weights."""


def checked(name: str, scores: Mapping[str, Any] | None, *, loss: bool = False) -> dict[str, Any]:
    """Return the weights, or raise for one that is unknown."""
    scores = dict(DEFAULT if scores is None else scores)
    known = (*DEFAULT, "loss") if loss else tuple(DEFAULT)
    if not scores:
        checks.fail(name, "scores", f"weights of some of {known}", scores)
    for key in scores:
        checks.choice(name, "scores", key, known)
    return scores


def group_scores(
    params: Any, direction: Any, groups: Groups, *, scores: Mapping[str, Scalar] | None = None
) -> Float[Array, " count"]:
    """Return the saliency of every group, ``sum_s weight_s score_s / |score_s|_2``; the least are redundant.

    (1) ``sum_s weight_s score_s / |score_s|_2``
    (2) ``|x|,  |x| / size,  x.d / (|x| |d|) + 1,  |x.d|,  (x.d)^2 / 2``

    The scores are "magnitude", "avg_magnitude", "cosine_similarity", "taylor_first_order" and "taylor_second_order", x
    being a group's parameters and d its descent direction (parameters move along -d).

    Parameters
    ----------
    params, direction : PyTree of arrays
        Of one structure. With the gradient as direction, the Taylor scores are the first-order change of the loss when
        the group goes and its square.
    groups : Groups
        Of `parameter_groups`.
    scores : mapping, optional
        Weight of each score by name, any real numbers; the published 0.2 each by default.

    Returns
    -------
    Float[Array, "count"]
        One number a group.

    Raises
    ------
    ValueError
        For an unknown score.

    Notes
    -----
    A positive cosine means that training shrinks the group already; as published it counts in favour of keeping it.
    A negative weight turns that round.

    References
    ----------
    T. Chen et al., *HESSO: Towards automatic efficient and user friendly any neural network training and pruning*,
    2024.
    """
    return weighed(raw_scores(params, direction, groups), checked("group_scores", scores))


def raw_scores(params: Any, direction: Any, groups: Groups) -> Float[Array, "5 count"]:
    """Return the scores as they are, a row each in the order of `DEFAULT`."""
    a, b = (groups.unit(tree) for tree in (params, direction))  # squares of large and small numbers leave the range
    x_of, d_of = (lambda x, u=u: x / u.astype(x.dtype) for u in (a, b))
    xx = groups.sums(lambda x, d: x_of(x) ** 2, params, direction)
    dd = groups.sums(lambda x, d: d_of(d) ** 2, params, direction)
    xd = groups.sums(lambda x, d: x_of(x) * d_of(d), params, direction)
    length, size = jnp.sqrt(xx), jnp.asarray(np.maximum(groups.size, 1), xx.dtype)
    both = length * jnp.sqrt(dd)
    cosine = jnp.where(both > 0, xd / jnp.where(both > 0, both, 1), 0)
    length, first = a.astype(xx.dtype) * length, jnp.abs(xd) * a.astype(xx.dtype) * b.astype(xx.dtype)
    return jnp.stack([length, length / size, cosine + 1, first, first**2 / 2])  # (2)


def weighed(raw: Float[Array, "5 count"], weights: Mapping[str, Scalar]) -> Float[Array, " count"]:
    """Return the weighted sum of the rows, each over its Euclidean norm."""
    largest = jnp.max(jnp.abs(raw), axis=1, keepdims=True)
    scaled = jnp.where(jnp.isinf(raw), 1, raw / jnp.where(largest > 0, largest, 1))
    norm = jnp.sqrt(jnp.sum(scaled**2, axis=1, keepdims=True))
    factors = jnp.stack([jnp.asarray(weights.get(name, 0.0), raw.dtype) for name in DEFAULT])
    # What has no weight must not spoil the sum where it overflows.
    # (1)
    return jnp.sum(
        jnp.where(factors[:, None] == 0, 0, factors[:, None] * scaled / jnp.where(norm > 0, norm, 1)), axis=0
    )


def lowest(score: Float[Array, " count"], count: Int[Array, ""], groups: Groups) -> Array:
    """Return a mask of the `count` groups of least score; the best of every family is spared."""
    family = jnp.asarray(groups.family)
    number = int(groups.family.max()) + 1
    order = jnp.argsort(score)
    rank = jnp.zeros(groups.count, jnp.int32).at[order].set(jnp.arange(groups.count, dtype=jnp.int32))
    best = jnp.full(number, -1, jnp.int32).at[family].max(rank)
    spared = rank == best[family]
    order = jnp.argsort(jnp.where(spared, groups.count, rank))
    rank = jnp.zeros(groups.count, jnp.int32).at[order].set(jnp.arange(groups.count, dtype=jnp.int32))
    return (rank < count) & ~spared
