"""Many lower-level problems at once, a few of them a step: BSVRB.

By Hu, Qiu, Guo, Zhang, Yang (ICML 2023), numbered as in the comments; g_i is block i's sampled lower gradient, H_i its
lower Hessian, a bar marks the point before, and I of m blocks are drawn:

(1) ``s_i <- (1 - e) s_i + e g_i + w (g_i - bar g_i)``, ``w = (m - I) / (I (1 - e)) + 1 - e``: MSVR, likewise of all
    that is tracked
(2) ``y_i <- y_i - y_step s_i``
(3) ``u_i = H_i v_i - grad_y upper_i``, tracked as in (1), then ``v_i <- P(v_i - v_step u_i)``, ``|P v| <= radius``
(4) ``v_i = H_i^-1 grad_y upper_i`` with H_i tracked as in (1), eigenvalues at least mu: "hessian"
(5) ``h = mean over i of grad_x upper_i - (d2 lower_i / dx dy) v_i``
(6) ``z <- h + (1 - b) (z - bar h)``, ``x <- x - x_step z``: STORM

It departs from the paper in the steps, all multiplied by ``I / m`` unless asked not to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.precision import dot, matmul
from ..core.typing import Array, Float, Int, Scalar
from ..core.variance_reduction import msvr_weight, track

Objective = Callable[[Array, Array, Any], Array]


class BlocksState(eqx.Module):
    """What BSVRB carries from step to step, with what it was before the step.

    Attributes
    ----------
    x, before : Float[Array, "p"]
    y, y_before : Float[Array, "m d"]
        Lower-level points of all blocks.
    v, v_before : Float[Array, "m d"]
        Solutions of ``H_i v_i = grad_y upper_i`` ("products"), else unused.
    slope : Float[Array, "m d"]
        Estimates of the lower gradients.
    dual : Float[Array, "m d"] or Float[Array, "m d d"]
        Estimates of ``H_i v_i - grad_y upper_i`` ("products") or of H_i ("hessian").
    estimate : Float[Array, "p"]
        Of the hypergradient.
    """

    x: Float[Array, " p"]
    before: Float[Array, " p"]
    y: Float[Array, "m d"]
    y_before: Float[Array, "m d"]
    v: Float[Array, "m d"]
    v_before: Float[Array, "m d"]
    slope: Float[Array, "m d"]
    dual: Array
    estimate: Float[Array, " p"]
    steps: Int[Array, ""]


class Rates(NamedTuple):
    """Steps of x, y, v, momenta of the trackers and of the hypergradient, the least curvature and largest v."""

    x: Array
    y: Array
    v: Array
    track: Array
    momentum: Array
    mu: Array
    radius: Array


class BSVRB(eqx.Module):
    """Block-wise stochastic variance-reduced bilevel steps; made by `bsvrb`."""

    upper: Objective = eqx.field(static=True)
    lower: Objective = eqx.field(static=True)
    sample: Callable = eqx.field(static=True)
    blocks: int = eqx.field(static=True)
    sampled: int = eqx.field(static=True)
    variant: str = eqx.field(static=True)
    rates: Rates

    def init(self, x: Float[Array, " p"], y: Float[Array, "m d"]) -> BlocksState:
        """Return the state before the first step."""
        m, d = y.shape
        if m != self.blocks:
            checks.fail("bsvrb", "y", f"of {self.blocks} blocks", f"shape {y.shape}")
        zeros = jnp.zeros_like(y)
        dual = jnp.tile(jnp.eye(d, dtype=y.dtype), (m, 1, 1)) if self.variant == "hessian" else zeros
        return BlocksState(x, x, y, y, zeros, zeros, zeros, dual, jnp.zeros_like(x), jnp.zeros((), jnp.int32))

    def update(self, state: BlocksState, key: Array) -> BlocksState:
        """Take one step, on `sampled` blocks drawn without replacement and one sample of each."""
        r, m, I = self.rates, self.blocks, self.sampled  # noqa: E741
        one, two = jax.random.split(key)
        i = jax.random.choice(one, m, (I,), replace=False)
        data = jax.vmap(self.sample)(i, jax.random.split(two, I))
        dtype = state.y.dtype
        e = r.track.astype(dtype)
        weight = msvr_weight(m, I, e)  # (1)
        y, v, old_y, old_v = state.y[i], state.v[i], state.y_before[i], state.v_before[i]

        lower_slope = jax.vmap(jax.grad(self.lower, argnums=1), (None, 0, 0))
        g, g_before = lower_slope(state.x, y, data), lower_slope(state.before, old_y, data)
        slope = track(state.slope[i], g, g - g_before, e, weight)  # (1)
        new_y = y - r.y.astype(dtype) * slope  # (2)
        if self.variant == "hessian":
            bends = jax.vmap(jax.hessian(self.lower, argnums=1), (None, 0, 0))
            h, h_before = bends(state.x, y, data), bends(state.before, old_y, data)
            dual = track(state.dual[i], h, h - h_before, e, weight)  # (4)
            solved = jax.vmap(self._solve)
            now, then = (solved(dual, self._pull(x, z, data)) for x, z in ((state.x, y), (state.before, old_y)))
            new_v = now  # (4)
        else:
            u, u_before = self._defect(state.x, y, v, data), self._defect(state.before, old_y, old_v, data)
            dual = track(state.dual[i], u, u - u_before, e, weight)  # (3)
            new_v = v - r.v.astype(dtype) * dual  # (3)
            size = jnp.sqrt(jnp.sum(new_v**2, axis=1, keepdims=True))
            radius = r.radius.astype(dtype)
            new_v = new_v * jnp.minimum(1, radius / jnp.where(size > 0, size, 1))
            now, then = v, old_v
        sampled = self._hyper(state.x, y, now, data)  # (5)
        earlier = self._hyper(state.before, old_y, then, data)
        b = jnp.where(state.steps == 0, 1, r.momentum.astype(dtype))
        estimate = track(state.estimate, sampled, sampled - earlier, b, 1 - b)  # (6)
        return BlocksState(
            # (6)
            state.x - r.x.astype(dtype) * estimate, state.x,
            state.y.at[i].set(new_y), state.y, state.v.at[i].set(new_v), state.v,
            state.slope.at[i].set(slope), state.dual.at[i].set(dual), estimate, state.steps + 1,
        )  # fmt: skip

    def run(self, state: BlocksState, key: Array, steps: int, measure: Callable | None = None):
        """Take many steps in one scan; return the state, and ``measure(state)`` after each (the estimate's norm)."""
        measure = measure or (lambda s: jnp.sqrt(jnp.sum(s.estimate**2)))

        def one(state, key):
            state = self.update(state, key)
            return state, measure(state)

        return lax.scan(one, state, jax.random.split(key, steps))

    def _pull(self, x, y, data):
        return jax.vmap(jax.grad(self.upper, argnums=1), (None, 0, 0))(x, y, data)

    def _defect(self, x, y, v, data):
        """Return ``H_i v_i - grad_y upper_i``, the gradient in v of ``v'H v / 2 - v'grad_y upper``."""

        def one(y, v, d):
            bent = jax.jvp(lambda y: jax.grad(self.lower, argnums=1)(x, y, d), (y,), (v,))[1]
            return bent - jax.grad(self.upper, argnums=1)(x, y, d)  # (3)

        return jax.vmap(one)(y, v, data)

    def _solve(self, H, b):
        values, vectors = jnp.linalg.eigh((H + H.T) / 2)
        values = jnp.maximum(values, self.rates.mu.astype(b.dtype))
        return matmul(vectors, matmul(vectors.T, b) / values)  # (4)

    def _hyper(self, x, y, v, data):
        def one(y, v, d):
            mixed = jax.grad(lambda x: dot(jax.grad(self.lower, argnums=1)(x, y, d), v))(x)
            return jax.grad(self.upper)(x, y, d) - mixed  # (5)

        return jnp.mean(jax.vmap(one)(y, v, data), axis=0)


VARIANTS = ("products", "hessian")


def bsvrb(
    upper: Objective,
    lower: Objective,
    sample: Callable[[Array, Array], Any],
    *,
    blocks: int,
    sampled: int,
    x_step: Scalar,
    y_step: Scalar,
    v_step: Scalar | None = None,
    tracking: Scalar = 0.5,
    momentum: Scalar = 0.1,
    mu: Scalar = 1e-3,
    radius: Scalar = 1e6,
    variant: str = "products",
    scaled: bool = True,
) -> BSVRB:
    """Return steps for ``min_x (1/m) sum_i upper(x, y_i(x), data_i)`` with m lower problems ``y_i(x) = argmin lower``.

    For hundreds of hyper-parameter problems, tasks or queries that share x, of which only a few can be touched a step.
    Trackers of the lower gradients and Hessian products carry every block's past (MSVR), so that I sampled blocks speed
    the method up by about I.

    Parameters
    ----------
    upper, lower : callable
        ``upper(x, y_i, data)``, ``lower(x, y_i, data)`` of one block's sample; vectors x, y_i. Static.
    sample : callable
        ``sample(i, key)``: one sample of block i, arrays. Static.
    blocks, sampled : int
        m and I; static.
    x_step, y_step, v_step : scalar
        Step sizes as they would be with all blocks sampled; `v_step` is `y_step` by default. Traced.
    tracking, momentum : scalar
        Weights of new samples in the trackers, and in the hypergradient; in (0, 1). Traced. With `scaled` the weight of
        the trackers is ``tracking``, that of the hypergradient ``momentum``, both as given.
    mu : scalar
        A lower bound on the lower curvature ("hessian").
    radius : scalar
        A bound on ``|v_i|`` ("products").
    variant : {"products", "hessian"}
        Track the solutions v_i by Hessian-vector products, or the d x d Hessians (for small d). Static.
    scaled : bool
        Whether to multiply all steps by ``sampled / blocks``. Without it the correction, whose weight is about
        ``blocks / sampled``, drives the trackers out of bounds. Static.

    Returns
    -------
    BSVRB
        With ``init(x, y)``, ``update(state, key)`` and ``run(state, key, steps, measure)``; a stochastic method has no
        test of convergence: `measure` what you can.

    Raises
    ------
    ValueError
        An unknown variant, more blocks sampled than there are, steps or weights out of range.

    Notes
    -----
    A step touches I blocks: two gradients, two Hessian products and two mixed products each; memory six m x d arrays.
    The weights were read in a summary of the paper.

    References
    ----------
    Q. Hu, Z.-H. Qiu, Z. Guo, L. Zhang, T. Yang, *Blockwise stochastic variance-reduced methods with parallel speedup
    for multi-block bilevel optimization*, ICML 2023, algorithms 1 and 2.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import bsvrb
    >>> lower = lambda x, y, d: 0.5 * jnp.sum((y - x - d) ** 2)
    >>> upper = lambda x, y, d: 0.5 * jnp.sum(y**2)
    >>> shifts = jnp.array([[1.0], [3.0]])
    >>> method = bsvrb(upper, lower, lambda i, key: shifts[i], blocks=2, sampled=2, x_step=0.3, y_step=0.9)
    >>> state = method.init(jnp.zeros(1), jnp.zeros((2, 1)))
    >>> state, _ = method.run(state, jax.random.key(3), 300)
    >>> print(state.x.round(2))
    [-2.]
    """
    name = "bsvrb"
    checks.choice(name, "variant", variant, VARIANTS)
    if not 1 <= sampled <= blocks:
        checks.fail(name, "sampled", f"from 1 to blocks = {blocks}", sampled)
    for label, w in (("tracking", tracking), ("momentum", momentum)):
        if isinstance(w, int | float) and not 0 < w < 1:
            checks.fail(name, label, "in (0, 1)", w)
    share = sampled / blocks if scaled else 1.0
    given = [x_step, y_step, y_step if v_step is None else v_step]
    steps = [share * checks.number(name, k, s, positive=True)
             for k, s in zip(("x_step", "y_step", "v_step"), given, strict=True)]  # fmt: skip
    rates = Rates(*steps, *(jnp.asarray(w, jnp.result_type(float)) for w in (tracking, momentum, mu, radius)))
    return BSVRB(upper, lower, sample, blocks, sampled, variant, rates)
