"""Decentralised minimisation in lockstep: every node takes a gradient, then all gossip for some rounds.

By Ye, Luo, Zhou, Zhang (JMLR 24, 2023), numbered as in the comments; g has the gradients of all nodes:

(1) ``x <- mix(y + x - y_before - (g(y) - g(y_before)) / L)``
(2) ``y = x + m (x - x_before)``, ``m = (1 - sqrt(mu / L)) / (1 + sqrt(mu / L))``
(3) ``x_(k+1) = (1 + omega) W x_k - omega x_(k-1)``: a round of `mix`
(4) ``omega = (1 - r) / (1 + r)``, ``r = sqrt(1 - (1 - gap)^2)``
(5) ``W = I - Laplacian / lambda_max``, ``gap = lambda_2 / lambda_max``

It departs from the paper in the number of rounds, ``2 / sqrt(gap)``: its analysis asks for a logarithm of the condition
number more.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ...core import checks
from ...core.implicit import UNCONVERGED
from ...core.loop import Limits, iterate
from ...core.precision import eps, matmul
from ...core.solution import Status
from ...core.typing import Array, Float, Int, Progress, Scalar
from .decentralised import (
    DecentralisedSolution,
    DecentralisedStatus,
    Gradient,
    bend,
    contradiction,
    finish,
    patience,
    pose,
    prepare,
)
from .graph import laplacian


class State(NamedTuple):
    """Iterates x, extrapolated points y, what mixing has yet to undo; means for the error; the verdict on mu and L."""

    x: Float[Array, "n d"]
    y: Float[Array, "n d"]
    owed: Float[Array, "n d"]
    center: Float[Array, " d"]
    slope: Float[Array, " d"]
    bends: Array
    steps: Int[Array, ""]


def mudag(
    gradient: Gradient,
    x0: Float[Array, " d"],
    args: Any,
    edges: Int[ArrayLike, "E 2"],
    *,
    mu: Scalar,
    smoothness: Scalar,
    rounds: int | Array | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 2000,
    history: bool | int = False,
    progress: Progress | None = None,
) -> DecentralisedSolution:
    """Minimise ``(1/n) sum_i f_i(x)``, f_i known to node i alone, by accelerated gradients and rounds of gossip.

    Gradient tracking on Nesterov's method, ``x <- mix(y + x - y_before - (g(y) - g(y_before)) / L)``, with `rounds` of
    Chebyshev-accelerated gossip as the mixing. All nodes wait for the slowest; in exchange the means follow Nesterov's
    method exactly. Fewer messages than `dadao`, which needs no lockstep.

    Parameters
    ----------
    gradient, x0, args, edges, mu, smoothness, unconverged, tol, history, progress : as for `dadao`
        The smoothness of each f_i; strong convexity is needed of the mean only.
    rounds : int, optional
        Gossip rounds a step, one message over every edge each; traced. By default ``ceil(2 sqrt(1 / gap))`` with gap
        the smallest positive eigenvalue of the mixing matrix's complement.
    max_steps : int
        Steps; traced.

    Returns
    -------
    DecentralisedSolution
        ``error = (max_i |x_i - value| + |mean gradient at value| / mu) / max(|value|, |mean gradient at 0| /
        smoothness)``, as for `dadao`; `num_messages` counts exchanges over one edge.

    Raises
    ------
    ValueError, TypeError
        As `dadao`.

    Notes
    -----
    The mixing matrix is ``I - Laplacian / largest eigenvalue``, so the gossip is that of equal rates. Derivatives as
    for `dadao`. One multiplication n x n x d a round. Where `args` is sharded over its leading axis, every device takes
    the gradients of its own nodes.

    References
    ----------
    Ye, Luo, Zhou, Zhang, "Multi-consensus decentralized accelerated gradient descent", JMLR 24 (2023), algorithm 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import mudag
    >>> ring = jnp.array([[0, 1], [1, 2], [2, 0]])
    >>> targets = jnp.array([[1.0], [2.0], [6.0]])
    >>> sol = mudag(lambda x, t: x - t, jnp.zeros(1), targets, ring, mu=1.0, smoothness=1.0)
    >>> print(sol.value.round(3), bool(sol.converged))
    [3.] True
    """
    name = "mudag"
    problem, edges, limits, _, _ = prepare(
        name, gradient, x0, args, (edges, None), (mu, smoothness), (tol, max_steps, history, progress)
    )
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    x0 = checks.float_array(name, "x0", x0, ndim=1)
    rounds = None if rounds is None else checks.count(name, "rounds", rounds)
    run = _mudag(gradient, x0, (problem.args, edges, problem.mu, problem.smoothness), rounds, limits)
    return finish(gradient, run, problem.args, limits, unconverged)


@partial(jax.jit, static_argnums=0)
def _mudag(gradient: Gradient, x0: Array, data: Any, rounds: Array | None, limits: Limits):
    args, edges, mu, smoothness = lax.stop_gradient(data)
    n, dtype = jax.tree.leaves(args)[0].shape[0], x0.dtype
    problem = pose(gradient, args, mu, smoothness, x0)
    L = laplacian(edges, jnp.ones(edges.shape[0], dtype), n)
    values = jnp.linalg.eigvalsh(L)
    gap = values[1] / values[-1]  # (5)
    connected = gap > 10 * n * eps(dtype)
    mixing = jnp.eye(n, dtype=dtype) - L / values[-1]  # (5)
    if rounds is None:
        rounds = jnp.ceil(2 / jnp.sqrt(jnp.maximum(gap, 1e-8))).astype(jnp.int32)
    root = jnp.sqrt(1 - (1 - gap) ** 2)
    omega = (1 - root) / (1 + root)  # (4)
    # (2)
    momentum = (1 - jnp.sqrt(mu / smoothness)) / (1 + jnp.sqrt(mu / smoothness))
    each = jax.vmap(gradient)

    def mix(x):
        def once(_, pair):
            now, before = pair
            return (1 + omega) * matmul(mixing, now) - omega * before, now  # (3)

        return lax.fori_loop(0, rounds, once, (x, x))[0]

    def step(s: State) -> State:
        down = s.y - each(s.y, args) / smoothness
        x = mix(down + s.owed)  # (1)
        center = jnp.mean(x, axis=0)
        slope = problem.mean_gradient(center)
        y = x + momentum * (x - s.x)  # (2)
        return State(x, y, x - down, center, slope, bend(s.center, s.slope, center, slope), s.steps + 1)

    x = jnp.broadcast_to(x0[None], (n, x0.shape[0]))
    start = State(x, x, jnp.zeros_like(x), x0, problem.mean_gradient(x0), mu, jnp.zeros((), jnp.int32))
    run = iterate(
        step,
        start,
        limits,
        value=lambda s: (s.center, s.x),
        error=lambda s: problem.error(s.x, s.center, s.slope),
        status=lambda s: contradiction(s.bends, mu, smoothness),
        refused=lambda s: jnp.where(connected, Status.RUNNING, DecentralisedStatus.DISCONNECTED),
        stall=patience(smoothness / mu, 1),
        divergence=1e8,
    )
    return run, run.state.steps * n, run.state.steps * rounds * edges.shape[0]
