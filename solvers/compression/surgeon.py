"""Optimal brain surgeon with the empirical Fisher matrix: which weights to prune, and how the others make up for it.

Hassibi and Stork, NIPS 1992, with the empirical Fisher matrix F of gradients G in the place of the Hessian; p the
pruned weights, k the kept ones, d the change:

(1) ``score_k = w_k^2 / (2 (F^-1)_kk)``
(2) ``d = -sum_p w_p F^-1 e_p / (F^-1)_pp``, the published sum of single updates
(3) ``d_p = -w_p,  d_k = F_kk^-1 G_k^T (G_p w_p) / m``, the minimum of ``d^T F d / 2``: here the default
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core import checks
from ..core.empirical_fisher import EmpiricalFisher, against
from ..core.typing import Array, Float
from ..core.vectors import axpy, inner, scale

METHODS = ("jointly", "one_by_one")


class Surgery(eqx.Module):
    """Weights after pruning; made by `obs_update`.

    Attributes
    ----------
    weights : PyTree
        Exactly zero where pruned.
    rise : Float[Array, ""]
        ``d^T F d / 2`` of the change d: the rise of the loss that the quadratic model expects.
    """

    weights: Any
    rise: Float[Array, ""]


def _fitting(name: str, weights: Any, fisher: EmpiricalFisher) -> None:
    shapes = [jnp.shape(w) for w in jax.tree.leaves(weights)]
    wanted = [g.shape[1:] for g in jax.tree.leaves(fisher.grads)]
    if shapes != wanted or jax.tree.structure(weights) != jax.tree.structure(fisher.grads):
        checks.fail(name, "weights", f"shaped like one gradient, {wanted}", shapes)


def obs_scores(weights: Any, fisher: EmpiricalFisher) -> Any:
    """Return ``w_k^2 / (2 [F^-1]_kk)``: the rise of a quadratic loss when one weight goes and all others adapt.

    Parameters
    ----------
    weights : PyTree of arrays
        Trained weights, at which the gradient is small.
    fisher : EmpiricalFisher
        Of per-example gradients at `weights`.

    Returns
    -------
    PyTree
        Like `weights`; prune the smallest.

    Raises
    ------
    ValueError
        When `weights` is not shaped like one gradient.

    References
    ----------
    B. Hassibi, D. G. Stork, *Second order derivatives for network pruning: optimal brain surgeon*, NIPS 1992;
    E. Frantar, E. Kurtic, D. Alistarh, *M-FAC*, NeurIPS 2021.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import EmpiricalFisher, obs_scores
    >>> fisher = EmpiricalFisher(jnp.array([[2.0, 0.0], [0.0, 1.0]]), damping=0.5)
    >>> print(obs_scores(jnp.array([1.0, 1.0]), fisher).round(4))
    [1.25 0.5 ]
    """
    _fitting("obs_scores", weights, fisher)
    return jax.tree.map(lambda w, v: w**2 / (2 * v), weights, fisher.inverse_diagonal())  # (1)


def obs_update(weights: Any, fisher: EmpiricalFisher, prune: Any, *, method: str = "jointly") -> Surgery:
    """Return the weights of least ``d^T F d / 2`` among those that are zero where ``prune`` says so.

    Parameters
    ----------
    weights : PyTree of arrays
        Trained weights.
    fisher : EmpiricalFisher
        Of per-example gradients at `weights`.
    prune : PyTree of Bool arrays
        Like `weights`.
    method : str
        "jointly": the exact minimum over the kept weights. "one_by_one": the published sum of single updates
        ``-w_k F^-1 e_k / [F^-1]_kk``, which ignores that pruned weights answer to each other; for comparison.

    Returns
    -------
    Surgery
        Pruned weights are exactly zero.

    Raises
    ------
    TypeError, ValueError
        At trace time, when shapes do not fit, `prune` is not boolean, or for an unknown method.

    Notes
    -----
    The block of F of the kept weights is again a damped empirical Fisher matrix, that of the gradients with the pruned
    entries left out, so ``d_kept = F_kk^-1 G_k^T (G_p w_p) / m`` costs one more m x m factor, O(d m^2), for any number
    of pruned weights, and nothing cancels. Joint pruning needs no order and no repetition; where the loss is not
    quadratic, prune in several rounds with new gradients.

    References
    ----------
    As `obs_scores`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import EmpiricalFisher, obs_update
    >>> fisher = EmpiricalFisher(jnp.array([[1.0, 1.0]]), damping=0.5)
    >>> print(obs_update(jnp.array([3.0, 1.0]), fisher, jnp.array([True, False])).weights)
    [0. 3.]
    """
    checks.choice("obs_update", "method", method, METHODS)
    _fitting("obs_update", weights, fisher)
    masks = jax.tree.leaves(prune)
    if [jnp.shape(p) for p in masks] != [jnp.shape(w) for w in jax.tree.leaves(weights)]:
        checks.fail("obs_update", "prune", "shaped like `weights`", [jnp.shape(p) for p in masks])
    if not all(jnp.result_type(p) == jnp.bool_ for p in masks):
        checks.fail("obs_update", "prune", "boolean", [str(jnp.result_type(p)) for p in masks], TypeError)
    pruned = jax.tree.map(lambda p, w: jnp.where(p, w, jnp.zeros_like(w)), prune, weights)
    if method == "jointly":
        kept_grads = jax.tree.map(lambda p, g: jnp.where(p, 0, g), _stacked(prune, fisher.grads), fisher.grads)
        pull = against(fisher.grads, pruned) / fisher.num_grads
        change = axpy(-1, pruned, EmpiricalFisher(kept_grads, fisher.damping).solve_combination(pull))  # (3)
    else:
        ratio = jax.tree.map(lambda w, v: w / v, pruned, fisher.inverse_diagonal())
        change = scale(-1, fisher.solve(ratio))  # (2)
    after = jax.tree.map(lambda p, w, d: jnp.where(p, jnp.zeros_like(w), w + d), prune, weights, change)
    moved = axpy(-1, weights, after)
    return Surgery(after, inner(moved, fisher.mv(moved)) / 2)


def _stacked(prune: Any, grads: Any) -> Any:
    return jax.tree.map(lambda p, g: jnp.broadcast_to(p[None], g.shape), prune, grads)
