"""Sampled paths with what was earned on them, and an Euler-Maruyama simulator to make them.

Numbered as in the comments; J is the value function, k counts a path's times, h is the payoff:

(1) ``dM_k = e^(-discount dt) J_(k+1) - J_k + r_k dt``, the last J being ``h(X_T)``
(2) ``G_k = e^(-discount dt) G_(k+1) + r_k dt``, ``G_K = h(X_T)``
(3) ``X_(k+1) = X_k + drift dt + diffusion sqrt(dt) n``, n standard normal: Euler and Maruyama
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core import checks
from ..core.typing import Array, Float


class Paths(eqx.Module):
    """N paths at common times, the rewards between them, and the payoff at the end.

    The value sought is ``J(t, x) = E[integral_t^T e^{-discount (s - t)} r ds + e^{-discount (T - t)} h(X_T)]`` of paths
    with ``X_t = x``.

    Attributes
    ----------
    times : Float[Array, "K+1"]
        Increasing.
    states : Float[Array, "N K+1 d"]
    terminal : Float[Array, "N"]
        ``h(X_T)``.
    rewards : Float[Array, "N K"] or None
        Rates r at the start of every interval; None for none.
    discount : scalar
        Rate, 0 by default.
    """

    times: Float[Array, " K+1"]
    states: Float[Array, "N K+1 d"]
    terminal: Float[Array, " N"]
    rewards: Float[Array, "N K"] | None = None
    discount: Any = 0.0

    def __check_init__(self):
        """Refuse arrays that do not fit; batches of paths made by maps pass."""
        if not hasattr(self.states, "shape") or jnp.ndim(self.times) != 1:
            return
        N, points = jnp.shape(self.states)[:2] if jnp.ndim(self.states) == 3 else (-1, -1)
        if points != jnp.shape(self.times)[0] or points < 2:
            checks.fail("Paths", "states", f"(N, {jnp.shape(self.times)[0]}, d)", f"shape {jnp.shape(self.states)}")
        if jnp.shape(self.terminal) != (N,):
            checks.fail("Paths", "terminal", f"of shape ({N},)", jnp.shape(self.terminal))
        if self.rewards is not None and jnp.shape(self.rewards) != (N, points - 1):
            checks.fail("Paths", "rewards", f"of shape ({N}, {points - 1})", jnp.shape(self.rewards))


class Track(eqx.Module):
    """One path with its intervals: what the sums of every method run over."""

    times: Float[Array, " K+1"]
    states: Float[Array, "K+1 d"]
    terminal: Float[Array, ""]
    earned: Float[Array, " K"]
    steps: Float[Array, " K"]
    decay: Float[Array, " K"]

    def increments(self, values: Float[Array, " K+1"]) -> Float[Array, " K"]:
        """Return ``e^{-discount dt} J_{k+1} - J_k + r_k dt``, the last J being the payoff."""
        values = values.at[-1].set(self.terminal)
        return self.decay * values[1:] - values[:-1] + self.earned  # (1)

    def to_come(self) -> Float[Array, " K"]:
        """Return what is earned from every time on, discounted to it."""

        def back(later, one):
            decay, earned = one
            now = decay * later + earned  # (2)
            return now, now

        return jax.lax.scan(back, self.terminal, (self.decay, self.earned), reverse=True)[1]


def tracks(paths: Paths) -> tuple[Track, Any]:
    """Return the paths as a batch of tracks, and the axes to map over."""
    dtype = paths.states.dtype
    times = paths.times.astype(dtype)
    steps = jnp.diff(times)
    earned = jnp.zeros_like(paths.states[:, 1:, 0]) if paths.rewards is None else paths.rewards * steps[None, :]
    decay = jnp.exp(-jnp.asarray(paths.discount, dtype) * steps)
    axes = Track(None, 0, 0, 0, None, None)  # type: ignore
    return Track(times, paths.states, paths.terminal, earned, steps, decay), axes


def over_paths(function: Callable[[Track], Any], paths: Paths, batch: int = 4096) -> Any:
    """Return ``function`` of every path, a few thousand at a time."""
    all_, _ = tracks(paths)
    own = (all_.states, all_.terminal, all_.earned)
    one = lambda own: function(Track(all_.times, own[0], own[1], own[2], all_.steps, all_.decay))  # noqa: E731
    if all_.states.shape[0] <= batch:
        return jax.vmap(one)(own)
    return jax.lax.map(one, own, batch_size=batch)


def simulate(
    drift: Callable[[Array, Array, Any], Array],
    diffusion: Callable[[Array, Array, Any], Array],
    x0: Float[Array, "N d"],
    times: Float[Array, " K+1"],
    key: Array,
    args: Any = None,
) -> Float[Array, "N K+1 d"]:
    """Return paths of ``dX = drift(t, X) dt + diffusion(t, X) dW`` by Euler and Maruyama.

    For tests, notebooks and equations whose noise is additive or whose steps are small; for anything else bring paths
    from diffrax or from measurements.

    Parameters
    ----------
    drift, diffusion : callable
        ``drift(t, x, args)`` and ``diffusion(t, x, args)`` of one state, both of shape (d,): noise of every coordinate
        its own. Static.
    x0 : Float[Array, "N d"]
        Starts.
    times : Float[Array, "K+1"]
        Increasing; traced.
    key : PRNG key
    args : PyTree, optional

    Returns
    -------
    Float[Array, "N K+1 d"]
        Strong order 1/2, weak order 1 in the step.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import simulate
    >>> times, key = jnp.linspace(0, 1, 3), jax.random.key(3)
    >>> paths = simulate(lambda t, x, args: -x, lambda t, x, args: 0 * x, jnp.ones((1, 1)), times, key)
    >>> print(paths[0, :, 0])
    [1.   0.5  0.25]
    """
    x0 = checks.float_array("simulate", "x0", x0, ndim=2)
    times = checks.float_array("simulate", "times", times, ndim=1).astype(x0.dtype)
    for label, function in (("drift", drift), ("diffusion", diffusion)):
        checks.takes("simulate", label, function, "t", "x", "args")
    checks.random_key("simulate", "key", key)

    def step(x, data):
        t, dt, key = data
        noise = jax.random.normal(key, x.shape, x.dtype) * jnp.sqrt(dt)
        move = jax.vmap(lambda x, n: drift(t, x, args) * dt + diffusion(t, x, args) * n)(x, noise)  # (3)
        after = x + move
        return after, after

    keys = jax.random.split(key, times.shape[0] - 1)
    _, later = jax.lax.scan(step, x0, (times[:-1], jnp.diff(times), keys))
    return jnp.concatenate([x0[:, None], jnp.swapaxes(later, 0, 1)], axis=1)
