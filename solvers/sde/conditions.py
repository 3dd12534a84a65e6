"""Objectives and conditions whose solution is the value function, and one whose solution is not.

Of Jia, Zhou (JMLR 23, 2022), sums in the place of their integrals, numbered as in the comments; dM and G are those of
`paths`:

(1) ``E sum_k (G_k - J(t_k, X_k))^2 dt / 2``: the martingale loss
(2) ``E sum_k (dM_k / dt)^2 dt / 2``: the mean square of temporal differences
(3) ``E sum_k xi_k dM_k = 0``, xi any process known at t_k: orthogonality
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..core.typing import Array, Float
from .paths import Paths, over_paths

Value = Callable[[Any, Array, Array], Array]
"""``value(params, t, x)``, a scalar."""


class Moments(eqx.Module):
    """What `orthogonality` returns.

    Attributes
    ----------
    value : Float[Array, "p"]
        Means over paths.
    standard_error : Float[Array, "p"]
    """

    value: Float[Array, " p"]
    standard_error: Float[Array, " p"]


def along(value: Value, params: Any, track: Any) -> Float[Array, " K+1"]:
    """Return the value at every point of a path."""
    return jax.vmap(lambda t, x: value(params, t, x))(track.times, track.states)


def martingale_loss(value: Value, params: Any, paths: Paths) -> Float[Array, ""]:
    """Return ``E sum_k (G_k - J(t_k, X_k))^2 dt / 2``, G the discounted earnings from k on: regression on outcomes.

    Its minimiser is the best approximation of the value function in mean square along the paths. Minimise it by any
    optimiser, over a network or over coefficients; for coefficients alone `lstd` with ``lam=1`` does so by one solve.

    Parameters
    ----------
    value : callable
        ``value(params, t, x)``, a scalar; static.
    params : PyTree
        Differentiable.
    paths : Paths

    Returns
    -------
    Float[Array, ""]
        A mean over paths.

    References
    ----------
    Y. Jia, X. Y. Zhou, *Policy evaluation and temporal-difference learning in continuous time and space: a martingale
    approach*, JMLR 23 (2022), section 4.1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Paths, martingale_loss
    >>> paths = Paths(jnp.array([0.0, 0.5, 1.0]), jnp.zeros((1, 3, 1)), jnp.array([2.0]))
    >>> print(martingale_loss(lambda c, t, x: c, 1.0, paths))
    0.5
    """

    def one(track):
        missed = track.to_come() - along(value, params, track)[:-1]
        return jnp.sum(missed**2 * track.steps) / 2  # (1)

    return jnp.mean(over_paths(one, paths))


def squared_td_error(value: Value, params: Any, paths: Paths) -> Float[Array, ""]:
    """Return ``E sum_k dM_k^2 / dt / 2``, which looks like a martingale loss and is not: for comparison only.

    ``dM_k = e^{-discount dt} J_{k+1} - J_k + r_k dt``, the last J being the payoff. As dt falls it measures the
    quadratic variation of J along the paths, so that its minimiser is flat where the value function is not.

    Parameters
    ----------
    value, params, paths : as for `martingale_loss`

    References
    ----------
    Y. Jia, X. Y. Zhou, JMLR 23 (2022), section 3.
    """
    # (2)
    one = lambda track: jnp.sum(track.increments(along(value, params, track)) ** 2 / track.steps) / 2  # noqa: E731
    return jnp.mean(over_paths(one, paths))


def orthogonality(
    value: Value, params: Any, paths: Paths, *, test: Callable[[Any, Array, Array], Array] | None = None
) -> Moments:
    """Return ``E sum_k xi_k dM_k`` for test functions xi: zero, all of them, exactly at the value function.

    The residual to judge any fitted value by, with its standard error; and, as equations for the parameters, the
    conditions that temporal-difference learning solves.

    Parameters
    ----------
    value, params, paths : as for `martingale_loss`
    test : callable, optional
        ``test(params, t, x)``, a vector that depends on the path up to t alone; the gradient of the value in its
        parameters by default. Static.

    Returns
    -------
    Moments
        Means and their standard errors.

    References
    ----------
    Y. Jia, X. Y. Zhou, JMLR 23 (2022), section 4.2.
    """
    if test is None:
        test = lambda params, t, x: ravel_pytree(jax.grad(value)(params, t, x))[0]  # noqa: E731

    def one(track):
        xi = jax.vmap(lambda t, x: test(params, t, x))(track.times[:-1], track.states[:-1])
        return jnp.sum(xi * track.increments(along(value, params, track))[:, None], axis=0)  # (3)

    moments = over_paths(one, paths)
    count = moments.shape[0]
    return Moments(jnp.mean(moments, axis=0), jnp.std(moments, axis=0) / jnp.sqrt(jnp.asarray(count, moments.dtype)))
