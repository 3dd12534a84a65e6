"""Single-loop stochastic methods for one lower problem: SOBA, SABA and F2SA.

Numbered as in the comments; H and d2 are second derivatives of lower. SOBA and SABA, by Dagreou, Ablin, Vaiter, Moreau
(NeurIPS 2022), move x by x_step and y, v by y_step against means of

(1) ``d_y = grad_y lower``, ``d_v = H v - grad_y upper``, ``d_x = grad_x upper - (d2 lower / dx dy) v``

over a batch, or for SABA, with a table of past directions a_j of all n examples:

(2) ``d = new_i - a_i + mean a``, then ``a_i = new_i``

F2SA, by Kwon, Kwon, Wright, Nowak (ICML 2023), its lower points y and v:

(3) ``c = penalty (k + 1)^(1/7)``
(4) ``y <- y - y_step grad_y (upper / c + lower)(x, y)``, ``v <- v - y_step grad_y lower(x, v)``
(5) ``x <- x - x_step (grad_x upper(x, y) + c (grad_x lower(x, y) - grad_x lower(x, v)))``

In (1) v is minus that of the authors' later programs. In (4) and (5) one batch serves all gradients, and the step of y
is that of the sum over c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.precision import dot
from ..core.typing import Array, Float, Int, Scalar

Objective = Callable[[Array, Array, Any], Array]
METHODS = ("soba", "saba", "f2sa")


class SingleState(eqx.Module):
    """Upper and lower points, the linear system's solution (or F2SA's second lower point), SABA's table and means."""

    x: Float[Array, " p"]
    y: Float[Array, " d"]
    v: Float[Array, " d"]
    table: Any
    mean: Any
    steps: Int[Array, ""]


class SingleLoop(eqx.Module):
    """Steps of `single_loop`: ``init``, ``update``, ``run``."""

    upper: Objective = eqx.field(static=True)
    lower: Objective = eqx.field(static=True)
    method: str = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    data: Any
    x_step: Array
    y_step: Array
    penalty: Array

    def init(self, x: Float[Array, " p"], y: Float[Array, " d"]) -> SingleState:
        """Return the state before the first step; SABA fills its table, at the cost of one pass."""
        v = y if self.method == "f2sa" else jnp.zeros_like(y)
        table = mean = None
        if self.method == "saba":
            table = jax.vmap(lambda d: self._directions(x, y, v, d))(self.data)
            mean = jax.tree.map(lambda t: jnp.mean(t, axis=0), table)
        return SingleState(x, y, v, table, mean, jnp.zeros((), jnp.int32))

    def update(self, state: SingleState, key: Array) -> SingleState:
        """Take one step on a batch drawn with replacement."""
        n = jax.tree.leaves(self.data)[0].shape[0]
        i = jax.random.randint(key, (1 if self.method == "saba" else self.batch,), 0, n)
        data = jax.tree.map(lambda d: d[i], self.data)
        table, mean = state.table, state.mean
        x_step, y_step = self.x_step.astype(state.y.dtype), self.y_step.astype(state.y.dtype)
        if self.method == "f2sa":
            return self._penalised(state, data, x_step, y_step)
        fresh = jax.vmap(lambda d: self._directions(state.x, state.y, state.v, d))(data)
        if self.method == "saba":
            new, old = jax.tree.map(lambda f: f[0], fresh), jax.tree.map(lambda t: t[i[0]], table)
            along = jax.tree.map(lambda a, b, c: a - b + c, new, old, mean)  # (2)
            table = jax.tree.map(lambda t, a: t.at[i[0]].set(a), table, new)
            # (2)
            mean = jax.tree.map(lambda c, a, b: c + (a - b) / n, mean, new, old)
        else:
            along = jax.tree.map(lambda f: jnp.mean(f, axis=0), fresh)
        by_x, by_y, by_v = along
        return SingleState(
            state.x - x_step * by_x, state.y - y_step * by_y, state.v - y_step * by_v, table, mean, state.steps + 1
        )

    def run(self, state: SingleState, key: Array, steps: int, measure: Callable | None = None):
        """Take many steps in one scan; return the state, and ``measure(state)`` after each."""

        def one(state, key):
            state = self.update(state, key)
            return state, None if measure is None else measure(state)

        return lax.scan(one, state, jax.random.split(key, steps))

    def _directions(self, x, y, v, d):
        """Return the directions of x, y and v."""
        slope = lambda x, y: jax.grad(self.lower, argnums=1)(x, y, d)  # noqa: E731
        by_y, bent = jax.jvp(lambda y: slope(x, y), (y,), (v,))
        upper_x, upper_y = jax.grad(self.upper, argnums=(0, 1))(x, y, d)
        mixed = jax.grad(lambda x: dot(slope(x, y), v))(x)
        return upper_x - mixed, by_y, bent - upper_y  # (1)

    def _penalised(self, state, data, x_step, y_step):
        """Return F2SA's step: y follows ``upper / penalty + lower``, v (a second y) follows lower alone."""
        c = self.penalty.astype(state.y.dtype) * (state.steps + 1).astype(state.y.dtype) ** (1 / 7)  # (3)
        mean = lambda f: lambda x, y: jnp.mean(jax.vmap(lambda d: f(x, y, d))(data))  # noqa: E731
        upper, lower = mean(self.upper), mean(self.lower)
        # (4)
        joint = lambda x, y: upper(x, y) / c + lower(x, y)  # noqa: E731
        by_x, by_y = jax.grad(joint, argnums=(0, 1))(state.x, state.y)
        other_x, other_y = jax.grad(lower, argnums=(0, 1))(state.x, state.v)
        return SingleState(
            # (5), (4)
            state.x - x_step * c * (by_x - other_x), state.y - y_step * by_y, state.v - y_step * other_y,
            None, None, state.steps + 1,
        )  # fmt: skip


def single_loop(
    upper: Objective,
    lower: Objective,
    data: Any,
    *,
    method: str = "soba",
    x_step: Scalar,
    y_step: Scalar,
    batch: int = 1,
    penalty: Scalar = 10.0,
) -> SingleLoop:
    """Return stochastic steps for ``min_x mean upper(x, y*(x), d)`` with ``y*(x) = argmin_y mean lower(x, y, d)``.

    Parameters
    ----------
    upper, lower : callable
        ``upper(x, y, d)`` and ``lower(x, y, d)`` of one example; vectors x and y. Static.
    data : PyTree of arrays with leading axis n
        The examples of both.
    method : {"soba", "saba", "f2sa"}
        "soba": plain stochastic steps on x, y and the linear system together. "saba": the same with a table of past
        directions, variance-reduced, linear convergence on finite sums; memory n (p + 2 d). "f2sa": gradients only,
        with a penalty that grows as the seventh root of the step. Static.
    x_step, y_step : scalar
        Traced.
    batch : int
        Examples a step ("soba", "f2sa"); static.
    penalty : scalar
        Of "f2sa": its bias is of the order of one over it. Traced.

    Returns
    -------
    SingleLoop
        With ``init(x, y)``, ``update(state, key)`` and ``run(state, key, steps, measure)``.

    Raises
    ------
    ValueError
        An unknown method, or steps that are not positive.

    References
    ----------
    Dagreou, Ablin, Vaiter, Moreau, "A framework for bilevel optimization that enables stochastic and global variance
    reduction algorithms", NeurIPS 2022. Kwon, Kwon, Wright, Nowak, "A fully first-order method for stochastic bilevel
    optimization", ICML 2023.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import single_loop
    >>> lower = lambda x, y, d: 0.5 * jnp.sum((y - x - d) ** 2)
    >>> upper = lambda x, y, d: 0.5 * jnp.sum(y**2)
    >>> method = single_loop(upper, lower, jnp.array([[1.0], [3.0]]), method="saba", x_step=0.1, y_step=0.5)
    >>> state, _ = method.run(method.init(jnp.zeros(1), jnp.zeros(1)), jax.random.key(3), 500)
    >>> print(state.x.round(2))
    [-2.]
    """
    name = "single_loop"
    checks.choice(name, "method", method, METHODS)
    steps = (checks.number(name, k, s, positive=True)
             for k, s in (("x_step", x_step), ("y_step", y_step), ("penalty", penalty)))  # fmt: skip
    return SingleLoop(upper, lower, method, batch, jax.tree.map(jnp.asarray, data), *steps)
