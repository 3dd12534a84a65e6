"""Unbiased gradients and Hessian-vector products of an expected return, each from one trajectory.

By Sutton and others (NeurIPS 1999) and Shen and others (ICML 2019), numbered as in the comments; one trajectory of
states s, actions a and rewards r:

(1) ``Psi_t = sum_(h >= t) discount^h r_h``
(2) ``g = grad Phi``, ``Phi(params) = sum_t (Psi_t - baseline_t) log pi(a_t | s_t)``
(3) ``B v = grad Phi (grad log p . v) + Hess Phi v``, ``log p = sum_t log pi(a_t | s_t)``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.typing import Array, Float, Scalar
from ..core.vectors import inner


class Trajectory(NamedTuple):
    """One run of a policy.

    Attributes
    ----------
    states, actions : PyTree of arrays with leading axis H
        What the policy saw and did.
    rewards : Float[Array, "H"]
        What came of it.
    """

    states: Any
    actions: Any
    rewards: Float[Array, " H"]


LogPolicy = Callable[[Any, Any, Any], Array]
"""``log_policy(params, state, action)``, the logarithm of the probability or density of an action."""


def rewards_to_go(rewards: Float[Array, " H"], discount: Scalar = 1.0) -> Float[Array, " H"]:
    """Return ``Psi_t = sum_{h >= t} discount^h r_h``, discounted from the start of the trajectory.

    Parameters
    ----------
    rewards : Float[Array, "H"]
    discount : scalar
        Traced.
    """
    powers = jnp.asarray(discount, rewards.dtype) ** jnp.arange(rewards.shape[0], dtype=rewards.dtype)
    return jnp.cumsum((rewards * powers)[::-1])[::-1]  # (1)


def policy_gradient(
    log_policy: LogPolicy,
    params: Any,
    trajectory: Trajectory,
    *,
    discount: Scalar = 1.0,
    baseline: Float[Array, " H"] | None = None,
) -> Any:
    """Return an unbiased sample of ``grad J``, J the expected discounted return (the policy gradient theorem).

    Equation 2 of this module, Psi being `rewards_to_go`. For many trajectories map:
    ``jax.vmap(lambda t: policy_gradient(log_policy, params, t))(trajectories)``; mean and standard error are yours.

    Parameters
    ----------
    log_policy : callable
        ``log_policy(params, state, action)``, twice differentiable in the parameters.
    params : PyTree
        Of the policy that made the trajectory.
    trajectory : Trajectory
        States, actions and rewards.
    discount : scalar
        In [0, 1]; traced.
    baseline : Float[Array, "H"], optional
        Values that do not depend on the action at their time or later, such as a value function of the states, in
        units of `rewards_to_go`. They change the variance, not the mean.

    Returns
    -------
    PyTree
        Like `params`; the direction in which the return grows.

    References
    ----------
    Sutton et al., "Policy gradient methods for reinforcement learning with function approximation", NeurIPS 1999.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import Trajectory, policy_gradient
    >>> log_policy = lambda logits, state, action: jax.nn.log_softmax(logits)[action]
    >>> one = Trajectory(jnp.zeros(2), jnp.array([0, 1]), jnp.array([1.0, 0.0]))
    >>> print(policy_gradient(log_policy, jnp.zeros(2), one))
    [ 0.5 -0.5]
    """
    weights = _weights(trajectory, discount, baseline)
    return jax.grad(lambda p: _score(log_policy, p, trajectory, weights))(params)  # (2)


def policy_hvp(
    log_policy: LogPolicy,
    params: Any,
    trajectory: Trajectory,
    direction: Any,
    *,
    discount: Scalar = 1.0,
    baseline: Float[Array, " H"] | None = None,
) -> Any:
    """Return an unbiased sample of ``Hess J`` times a direction.

    Equation 3 of this module, with `policy_gradient`'s Phi. The trajectory must come from the policy at these `params`.
    One forward pass over one gradient: about three times the cost of `policy_gradient`.

    Parameters
    ----------
    log_policy, params, trajectory, discount, baseline : as for `policy_gradient`
    direction : PyTree
        Like `params`.

    Returns
    -------
    PyTree
        Like `params`.

    References
    ----------
    Shen, Ribeiro, Hassani, Qian, Mi, "Hessian aided policy gradient", ICML 2019.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import Trajectory, policy_hvp
    >>> log_policy = lambda logits, state, action: jax.nn.log_softmax(logits)[action]
    >>> one = Trajectory(jnp.zeros(1), jnp.array([0]), jnp.array([1.0]))
    >>> print(policy_hvp(log_policy, jnp.zeros(2), one, jnp.array([1.0, 0.0])))
    [0. 0.]
    """
    weights = _weights(trajectory, discount, baseline)
    ones = jnp.ones_like(weights)
    gradient = lambda p: jax.grad(lambda q: _score(log_policy, q, trajectory, weights))(p)  # noqa: E731
    first, bent = jax.jvp(gradient, (params,), (direction,))
    likelihood = jax.grad(lambda p: _score(log_policy, p, trajectory, ones))(params)
    along = inner(likelihood, direction)
    return jax.tree.map(lambda g, h: g * along.astype(g.dtype) + h, first, bent)  # (3)


def _weights(trajectory: Trajectory, discount: Scalar, baseline: Array | None) -> Array:
    weights = rewards_to_go(trajectory.rewards, discount)
    return weights if baseline is None else weights - baseline


def _score(log_policy: LogPolicy, params: Any, trajectory: Trajectory, weights: Array) -> Array:
    logs = jax.vmap(lambda s, a: log_policy(params, s, a))(trajectory.states, trajectory.actions)
    return jnp.sum(weights * logs)  # (2)
