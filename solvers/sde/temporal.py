"""Temporal-difference learning in continuous time: TD(lambda), GTD2 and TDC, path by path or step by step.

Numbered as in the comments; ``xi = grad_c J`` at t_k, a dash marks the time after, c are the parameters, w the second
ones. By Jia, Zhou (JMLR 23, 2022):

(1) ``dM = e^(-discount dt) J' - J + r dt``, the last J' being the payoff
(2) ``z <- (lam e^(-discount))^dt z + xi``, ``c <- c + rate sum z dM``: TD(lam)

After Sutton and others (ICML 2009), whose directions have no dt, see `td_learning`:

(3) ``w <- w + second_rate sum (xi dM - xi (xi . w) dt)``
(4) ``c <- c - rate sum (e^(-discount dt) xi' - xi) (xi . w)``: GTD2
(5) ``c <- c + rate sum (xi dM / dt - e^(-discount dt) xi' (xi . w))``: TDC
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..core import checks
from ..core.typing import Array, Float, Int, Scalar
from .conditions import Value
from .paths import Paths, tracks

METHODS = ("td", "gtd2", "tdc")


class TDState(eqx.Module):
    """What a `TDLearner` has learned so far.

    Attributes
    ----------
    params : PyTree
        Parameters of the value function.
    second : Float[Array, "p"]
        The second ones of GTD2 and TDC.
    count : Int[Array, ""]
        Batches of paths seen.
    """

    params: Any
    second: Float[Array, " p"]
    count: Int[Array, ""]


class TDLearner(eqx.Module):
    """Steps of `td_learning`, which makes it and says what its settings mean: ``init``, ``update``, ``run``.

    Attributes
    ----------
    value, method, online, rate, second_rate, lam
        As given to `td_learning`.
    """

    value: Value = eqx.field(static=True)
    method: str = eqx.field(static=True)
    online: bool = eqx.field(static=True)
    rate: Any
    second_rate: Any
    lam: Any

    def init(self, params: Any) -> TDState:
        """Return the state before any path."""
        flat = ravel_pytree(params)[0]
        return TDState(params, jnp.zeros_like(flat), jnp.zeros((), jnp.int32))

    def update(self, state: TDState, paths: Paths) -> TDState:
        """Learn from some paths, of which means are taken: all of them offline, or one as it comes in."""
        flat, unravel = ravel_pytree(state.params)
        track, _ = tracks(paths)
        dtype = flat.dtype
        rate, second_rate = (
            jnp.asarray(r(state.count) if callable(r) else r, dtype) for r in (self.rate, self.second_rate)
        )
        lam = jnp.asarray(self.lam, dtype)

        def slope(c, t, x):
            J, g = jax.vmap(lambda x: jax.value_and_grad(lambda c: self.value(unravel(c), t, x))(c))(x)
            return J, g

        def step(carry, data):
            c, w, trace, moved, tracked = carry
            t, after, x, y, earned, dt, decay, last = data
            J, g = slope(c, t, x)
            J_next, g_next = slope(c, after, y)
            J_next, g_next = jnp.where(last, track.terminal, J_next), jnp.where(last, 0, g_next)
            dM = decay * J_next - J + earned  # (1)
            trace = lam**dt * decay * trace + g  # (2)
            if self.method == "td":
                along = jnp.mean(trace * dM[:, None], axis=0)  # (2)
                aside = jnp.zeros_like(w)
            else:
                held = jnp.sum(g * w[None, :], axis=1, keepdims=True)
                aside = jnp.mean(g * dM[:, None] - g * held * dt, axis=0)  # (3)
                along = -jnp.mean((decay * g_next - g) * held, axis=0)  # (4)
                if self.method == "tdc":
                    along = jnp.mean(g * dM[:, None] / dt - decay * g_next * held, axis=0)  # (5)
            if self.online:
                c, w = c + rate * along, w + second_rate * aside
            return (c, w, trace, moved + along, tracked + aside), None

        K = track.steps.shape[0]
        zeros = jnp.zeros_like(flat)
        columns = (
            track.times[:-1], track.times[1:], jnp.swapaxes(track.states[:, :-1], 0, 1),
            jnp.swapaxes(track.states[:, 1:], 0, 1), track.earned.T, track.steps, track.decay, jnp.arange(K) == K - 1,
        )  # fmt: skip
        start = (flat, state.second, jnp.zeros((paths.states.shape[0], flat.size), dtype), zeros, zeros)
        (c, w, _, moved, tracked), _ = jax.lax.scan(step, start, columns)
        if not self.online:
            c, w = flat + rate * moved, state.second + second_rate * tracked
        return TDState(unravel(c), w, state.count + 1)

    def run(self, state: TDState, paths: Paths, steps: int, *, batch: int | None = None) -> TDState:
        """Learn `steps` times: from all paths, or from `batch` of them after the other, beginning again at the end."""
        if batch is None:
            return jax.lax.fori_loop(0, steps, lambda _, s: self.update(s, paths), state)
        N = paths.states.shape[0]

        def some(i, s):
            rows = (i * batch + jnp.arange(batch)) % N
            rewards = None if paths.rewards is None else paths.rewards[rows]
            return self.update(s, Paths(paths.times, paths.states[rows], paths.terminal[rows], rewards, paths.discount))

        return jax.lax.fori_loop(0, steps, some, state)


def td_learning(
    value: Value,
    *,
    method: str = "td",
    rate: Scalar,
    second_rate: Scalar = 1.0,
    lam: Scalar = 0.0,
    online: bool = False,
) -> TDLearner:
    """Return a learner of a value function from paths, for any differentiable model and for streams of paths.

    Stochastic approximation of the martingale conditions: no paths are kept and nothing is solved. Where the value is
    linear in its parameters and paths can be kept, `lstd` finds the same point in one solve.

    Parameters
    ----------
    value : callable
        ``value(params, t, x)``, a scalar; static.
    method : {"td", "gtd2", "tdc"}
        "td": ``c <- c + rate sum_k z_k dM_k``, TD(lam); may diverge away from the paths' own distribution or with
        networks. "gtd2", "tdc": descent on ``|E sum xi dM|^2`` in the metric of the features' second moments, by a
        second set of parameters; stable, slower. Static.
    rate, second_rate : scalar or schedule
        Of the parameters and of the second ones ("gtd2", "tdc"), which should move faster; a schedule is called with
        the number of batches seen. Traced.
    lam : scalar
        As for `lstd`, for "td"; traced.
    online : bool
        Move within a path, after every interval, instead of after it. Static.

    Returns
    -------
    TDLearner
        With ``init(params)``, ``update(state, paths)`` and ``run(state, paths, steps, batch=...)``. There is no test of
        convergence: judge the end by `orthogonality`.

    Raises
    ------
    ValueError
        An unknown method, or a `lam` outside [0, 1].

    Notes
    -----
    GTD2's and TDC's directions were derived here from the discrete ones, steps of time taken out: ``w`` tracks ``(E sum
    xi xi' dt)^-1 E sum xi dM``, GTD2 moves by ``-(d xi) xi'w``, TDC by ``xi dM / dt - xi_next xi'w``, whose mean is the
    same once w is right and whose noise grows as dt falls. For models that are not linear their curvature is left out.

    References
    ----------
    Y. Jia, X. Y. Zhou, *Policy evaluation and temporal-difference learning in continuous time and space: a martingale
    approach*, JMLR 23 (2022), section 4. Sutton et al., "Fast gradient-descent methods for temporal-difference learning
    with linear function approximation", ICML 2009.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import Paths, td_learning
    >>> paths = Paths(jnp.array([0.0, 0.5, 1.0]), jnp.zeros((1, 3, 1)), jnp.array([2.0]))
    >>> learner = td_learning(lambda c, t, x: c, rate=0.5)
    >>> print(learner.run(learner.init(jnp.array(0.0)), paths, 30).params.round(3))
    2.0
    """
    name = "td_learning"
    checks.choice(name, "method", method, METHODS)
    if isinstance(lam, int | float) and not 0 <= lam <= 1:
        checks.fail(name, "lam", "in [0, 1]", lam)
    return TDLearner(value, method, bool(online), rate, second_rate, lam)
