"""Decentralised minimisation of a mean of functions, one on each node of a graph: asynchronous, and in rounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ...core import checks
from ...core.implicit import UNCONVERGED, attach, distrust, linear_solve
from ...core.krylov.cg import cg
from ...core.loop import Limits, iterate
from ...core.precision import dot, eps, matmul
from ...core.solution import Solution, Status, StatusCode
from ...core.typing import Array, Float, Int, Progress, Scalar
from ...core.vectors import norm
from .graph import as_graph, chi1, chi2

Gradient = Callable[[Array, Any], Array]


class DecentralisedStatus(StatusCode):
    """Why a decentralised run stopped, beyond `Status`."""

    CURVATURE = 100, "curvature: the gradients contradict `mu` or `smoothness`, on which steps and error rest"
    DISCONNECTED = 101, "disconnected: news of some nodes never reaches others at these rates"


class DecentralisedSolution(Solution):
    """What `dadao` and `mudag` return.

    Attributes
    ----------
    value : Float[Array, "d"]
        The mean of the nodes.
    nodes : Float[Array, "n d"]
        What each node has.
    num_gradients, num_messages : Int[Array, ""]
        Gradients of one node, and exchanges over one edge, in all.
    """

    nodes: Float[Array, "..."]
    num_gradients: Int[Array, "..."]
    num_messages: Int[Array, "..."]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, DecentralisedStatus)


class Problem(NamedTuple):
    """Gradient of one node's function, the nodes' data, strong convexity, smoothness, ``|mean gradient at 0|``."""

    gradient: Gradient
    args: Any
    mu: Array
    smoothness: Array
    origin: Array

    def mean_gradient(self, x: Array) -> Array:
        """Return the gradient of the mean function."""
        return mean_gradient(self.gradient, x, self.args)

    def error(self, nodes: Array, center: Array, slope: Array) -> Array:
        """Return a bound on every node's distance from the minimiser, relative to the minimiser's size."""
        spread = jnp.sqrt(jnp.max(jnp.sum((nodes - center[None, :]) ** 2, axis=1)))
        scale = jnp.maximum(norm(center), self.origin / self.smoothness)
        return (spread + norm(slope) / self.mu) / jnp.where(scale > 0, scale, 1)


def mean_gradient(gradient: Gradient, x: Array, args: Any) -> Array:
    """Return the mean over nodes of ``gradient(x, args_i)``."""
    return jnp.mean(jax.vmap(lambda a: gradient(x, a))(args), axis=0)


class Flow(NamedTuple):
    """Constants of DADAO; ``nu = mu / 2`` and L the smoothness.

    Between events a node obeys, xx, yy, zz being the momenta:

    (1) ``x' = b (xx - x), xx' = b (x - xx), y' = a (yy - y), yy' = -theta (nu xx + y + z), z' = a (zz - z),
        zz' = b (z - zz)``
    (2) ``a = sqrt(nu / L) / 4``, ``b = sqrt(nu / L) / 8``, ``theta = sqrt(L / nu) / 2``
    """

    nu: Array
    a: Array
    b: Array
    theta: Array
    short: Array
    long: Array
    push: Array

    @classmethod
    def of(cls, mu: Array, smoothness: Array, slowness: Array) -> "Flow":
        """Return the constants that the authors' program uses."""
        nu = mu / 2
        root = jnp.sqrt(nu / smoothness)
        return cls(
            nu, root / 4, root / 8, 1 / (2 * root), 1 / (4 * smoothness), 1 / (4 * jnp.sqrt(smoothness * nu)),  # (2)
            2 * slowness / root,
        )  # fmt: skip

    def matrix(self, dt: Array) -> Float[Array, "6 6"]:
        """Return the exact flow over a time dt on ``(x, xx, y, yy, z, zz)``.

        x and z relax to conserved means; y is an oscillator, ``B = [[-a, a], [-theta, 0]]``, driven by them. For a
        drive ``exp(-s t)`` its particular solution is ``-(B + s)^-1 (0, 1) exp(-s t)``.
        """
        a, b, theta = self.a, self.b, self.theta
        fast, slow = 2 * b, a + b
        one, zero = jnp.ones_like(dt), jnp.zeros_like(dt)
        half = jnp.exp(-fast * dt) / 2
        x = jnp.stack([0.5 + half, 0.5 - half])
        decay = jnp.exp(-slow * dt)
        z = jnp.stack([(b + a * decay) / slow, (a - a * decay) / slow])
        zz = jnp.stack([(b - b * decay) / slow, (a + b * decay) / slow])

        w = jnp.sqrt(a * theta - a * a / 4)
        turn, sine = jnp.exp(-a * dt / 2) * jnp.cos(w * dt), jnp.exp(-a * dt / 2) * jnp.sin(w * dt) / w
        spin = jnp.stack([
            jnp.stack([turn - a / 2 * sine, a * sine]),
            jnp.stack([-theta * sine, turn + a / 2 * sine]),
        ])  # fmt: skip

        def driven(s):
            """Return what (y, yy) is after dt of the drive exp(-s t) on yy."""
            det = -(a - s) * s + a * theta
            particular = jnp.stack([a, a - s]) / det  # -(B + s)^-1 (0, 1) with det(B + s) = det
            return particular * jnp.exp(-s * dt) - matmul(spin, particular)

        still, quick, middle = driven(zero), driven(fast * one), driven(slow * one)
        by_x = -theta * self.nu * (still - quick) / 2
        by_xx = -theta * self.nu * (still + quick) / 2
        by_z = -theta * (b * still + a * middle) / slow
        by_zz = -theta * a * (still - middle) / slow
        none = jnp.zeros(2, dt.dtype)
        # (1)
        y = jnp.stack([by_x, by_xx, spin[:, 0], spin[:, 1], by_z, by_zz], axis=1)
        return jnp.concatenate([
            jnp.stack([jnp.concatenate([x, none, none]), jnp.concatenate([x[::-1], none, none])]),
            y,
            jnp.stack([jnp.concatenate([none, none, z]), jnp.concatenate([none, none, zz])]),
        ])  # fmt: skip


class Events(NamedTuple):
    """One after the other: the nodes i and j (the same for a gradient), and the flow since each was last touched."""

    i: Int[Array, " K"]
    j: Int[Array, " K"]
    flow_i: Float[Array, "K 6 6"]
    flow_j: Float[Array, "K 6 6"]


class State(NamedTuple):
    """Six vectors a node; mean, its gradient and their predecessors; the key; what was spent; the verdict on mu, L."""

    nodes: Float[Array, "n 6 d"]
    center: Float[Array, " d"]
    slope: Float[Array, " d"]
    key: Array
    gradients: Int[Array, ""]
    messages: Int[Array, ""]
    bends: Array


def sample(flow: Flow, edges: Array, rates: Array, n: int, key: Array, count: int) -> tuple[Events, Array]:
    """Return `count` events and, for the rest of the way, the flow of every node to the end of the block."""
    first, second = jax.random.split(key)
    total = n + jnp.sum(rates)
    gaps = jax.random.exponential(first, (count,), rates.dtype) / total
    draw = jax.random.uniform(second, (count,), rates.dtype) * total
    node = jnp.minimum(draw.astype(jnp.int32), n - 1)
    edge = jnp.minimum(jnp.searchsorted(jnp.cumsum(rates), draw - n), edges.shape[0] - 1)
    gossip = draw >= n
    i, j = (jnp.where(gossip, edges[edge, side], node) for side in (0, 1))

    def since(carry, event):
        idle = carry + event[2]
        elapsed = idle[event[0]], idle[event[1]]
        return idle.at[event[0]].set(0).at[event[1]].set(0), elapsed

    idle, (since_i, since_j) = lax.scan(since, jnp.zeros(n, rates.dtype), (i, j, gaps))
    flows = jax.vmap(flow.matrix)
    return Events(i, j, flows(since_i), flows(since_j)), flows(idle)


def happen(problem: Problem, flow: Flow, nodes: Array, event: Events) -> Array:
    """Return the nodes after one event: of a gradient at node i, or of gossip between i and j.

    (3) ``q = grad f_i(x) - nu x - yy``, ``x -= q / (4 L)``, ``xx -= q / (4 sqrt(L nu))``, ``yy += (1 + a) q``
    (4) ``p = (y + z)_i - (y + z)_j``, ``z_i -= p / 2``, ``zz_i -= push p``, and j the other way,
        ``push = 2 chi1 sqrt(L / nu)``
    """
    i, j = event.i, event.j
    here = matmul(event.flow_i, nodes[i])

    def descend(nodes):
        x, _, _, yy, _, _ = here
        local = jax.tree.map(lambda leaf: leaf[i], problem.args)
        q = problem.gradient(x, local) - flow.nu * x - yy
        # (3)
        change = jnp.stack([-flow.short * q, -flow.long * q, 0 * q, (1 + flow.a) * q, 0 * q, 0 * q])
        return nodes.at[i].set(here + change)

    def gossip(nodes):
        there = matmul(event.flow_j, nodes[j])
        p = here[2] + here[4] - there[2] - there[4]  # (4)
        weights = jnp.stack(
            [0 * flow.push, 0 * flow.push, 0 * flow.push, 0 * flow.push, 0 * flow.push + 0.5, flow.push]
        )
        change = weights[:, None] * p[None, :]  # (4)
        return nodes.at[i].set(here - change).at[j].set(there + change)

    return lax.cond(i == j, descend, gossip, nodes)


def dadao(
    gradient: Gradient,
    x0: Float[Array, " d"],
    args: Any,
    edges: Int[ArrayLike, "E 2"],
    *,
    mu: Scalar,
    smoothness: Scalar,
    key: Array,
    rates: Float[Array, " E"] | None = None,
    every: int | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 1000,
    history: bool | int = False,
    progress: Progress | None = None,
) -> DecentralisedSolution:
    """Minimise ``(1/n) sum_i f_i(x)``, f_i known to node i of a graph alone, by gradients and gossip at random times.

    Nodes take gradients, and pairs of neighbours exchange vectors, at the times of independent Poisson processes; no
    node waits for another. Both are accelerated: some ``sqrt(L / mu)`` gradients a node, and messages that depend on
    the graph through ``sqrt(chi1 chi2)``. Use it where waiting is what costs, to plan or study such systems, and to
    compare rates (`gossip_rates`); where messages are what costs and lockstep is no trouble, `mudag` needs fewer.

    Parameters
    ----------
    gradient : callable
        ``gradient(x, args_i)`` of one node's function, smooth and strongly convex; static.
    x0 : Float[Array, "d"]
        Where every node starts; its derivative is zero.
    args : PyTree of arrays with leading axis n
        The nodes' data; traced, differentiable.
    edges : Int[Array, "E 2"]
        Pairs of nodes that may talk; traced.
    mu, smoothness : scalar
        ``mu |v|^2 <= v'(Hessian of any f_i) v <= smoothness |v|^2``. Traced. Steps and error rest on them; where the
        gradients contradict them the status says so.
    key : PRNG key
        Of the events.
    rates : Float[Array, "E"], optional
        Exchanges over each edge while a node takes one gradient; ``chi1 chi2 <= 1/2`` is required for the rate of
        convergence. By default equal ones with ``chi1 chi2 = 1/2``; `gossip_rates` gives the best.
    every : int, optional
        Events a step, after which the error is measured (that costs n gradients and a mean which the method itself
        does not need, and are not counted). Static; ``16 n`` by default.
    unconverged : {"nan", "approximate"}
        Derivatives of a run that did not converge. Static.
    tol : scalar, optional
        Traced; 1e-8 in float64, 1e-4 in float32.
    max_steps : int
        Blocks of `every` events; traced.
    history : bool or int
        Record errors.
    progress : callable, optional
        ``progress(step, error)`` on the host.

    Returns
    -------
    DecentralisedSolution
        ``error = (max_i |x_i - value| + |mean gradient at value| / mu) / max(|value|, |mean gradient at 0| /
        smoothness)``, a bound on every node's relative distance from the minimiser; `num_gradients`, `num_messages`.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit, a graph that is none, numbers that are not positive.

    Notes
    -----
    The events of a block are drawn beforehand; then it is one scan. Between events each node follows a linear
    differential equation whose flow is applied in closed form when the node is next touched, so an event costs two
    products 6 x 6 x d and one gradient at most, whatever n. Memory: 6 n d. Derivatives: of the minimiser with respect
    to `args`, by conjugate gradients on the mean Hessian.

    References
    ----------
    A. Nabli, E. Oyallon, *DADAO: decoupled accelerated decentralized asynchronous optimization*, ICML 2023; constants
    as in the authors' program.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import dadao
    >>> ring = jnp.array([[0, 1], [1, 2], [2, 0]])
    >>> targets = jnp.array([[1.0], [2.0], [6.0]])
    >>> sol = dadao(lambda x, t: x - t, jnp.zeros(1), targets, ring, mu=1.0, smoothness=1.0, key=jax.random.key(3))
    >>> print(sol.value.round(3), bool(sol.converged))
    [3.] True
    """
    name = "dadao"
    problem, edges, limits, rates, n = prepare(
        name, gradient, x0, args, (edges, rates), (mu, smoothness), (tol, max_steps, history, progress)
    )
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    checks.random_key(name, "key", key)
    every = 16 * n if every is None else every
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        checks.fail(name, "every", "a positive integer", every)
    x0 = checks.float_array(name, "x0", x0, ndim=1)
    run = _dadao(gradient, every, x0, (problem.args, edges, rates, problem.mu, problem.smoothness), key, limits)
    return finish(gradient, run, problem.args, limits, unconverged)


@partial(jax.jit, static_argnums=(0, 1))
def _dadao(gradient: Gradient, every: int, x0: Array, data: Any, key: Array, limits: Limits):
    args, edges, rates, mu, smoothness = lax.stop_gradient(data)
    n = jax.tree.leaves(args)[0].shape[0]
    problem = pose(gradient, args, mu, smoothness, x0)
    slowness = chi1(edges, rates, n)
    connected = jnp.isfinite(slowness) & (slowness > 0) & (slowness * jnp.sum(rates) < 1 / (10 * n * eps(x0.dtype)))
    flow = Flow.of(mu, smoothness, slowness)

    def step(s: State) -> State:
        following, now = jax.random.split(s.key)
        events, rest = sample(flow, edges, rates, n, now, every)
        nodes, _ = lax.scan(lambda nodes, event: (happen(problem, flow, nodes, event), None), s.nodes, events)
        nodes = matmul(rest, nodes)
        center, taken = jnp.mean(nodes[:, 0], axis=0), jnp.sum(events.i == events.j)
        slope = problem.mean_gradient(center)
        return State(
            nodes, center, slope, following, s.gradients + taken.astype(jnp.int32),
            s.messages + (every - taken).astype(jnp.int32), bend(s.center, s.slope, center, slope),
        )  # fmt: skip

    zero = jnp.zeros((), jnp.int32)
    still = jnp.zeros_like(x0)
    nodes = jnp.broadcast_to(jnp.stack([x0, x0, still, still, still, still])[None], (n, 6, x0.shape[0]))
    start = State(nodes, x0, problem.mean_gradient(x0), key, zero, zero, mu)
    per_step = every / (n + jnp.sum(rates))
    run = iterate(
        step,
        start,
        limits,
        value=lambda s: (s.center, s.nodes[:, 0]),
        error=lambda s: problem.error(s.nodes[:, 0], s.center, s.slope),
        status=lambda s: contradiction(s.bends, mu, smoothness),
        refused=lambda s: jnp.where(connected, Status.RUNNING, DecentralisedStatus.DISCONNECTED),
        stall=patience(smoothness / mu, per_step),
        divergence=1e8,
    )
    return run, run.state.gradients, run.state.messages


def patience(condition: Array, per_step: Scalar) -> Array:
    """Return how many steps of `per_step` units of time may pass without a new smallest error."""
    steps = 100 + 40 * jnp.sqrt(condition) / per_step
    return jnp.where(steps < 1e9, steps, 1e9).astype(jnp.int32)


def pose(gradient: Gradient, args: Any, mu: Array, smoothness: Array, x0: Array) -> Problem:
    """Return the problem with the size of its mean gradient at the origin."""
    return Problem(gradient, args, mu, smoothness, norm(mean_gradient(gradient, jnp.zeros_like(x0), args)))


def bend(x: Array, g: Array, y: Array, h: Array) -> Array:
    """Return the mean function's curvature between two points; NaN where they are too close to tell."""
    d = y - x
    square = dot(d, d)
    far = jnp.sqrt(square) > eps(x.dtype) ** 0.5 * jnp.maximum(norm(x), norm(y))
    far &= norm(h - g) > eps(x.dtype) ** 0.5 * jnp.maximum(norm(g), norm(h))
    return jnp.where(far, dot(h - g, d) / jnp.where(square > 0, square, 1), jnp.nan)


def contradiction(bends: Array, mu: Array, smoothness: Array) -> Array:
    """Return `DecentralisedStatus.CURVATURE` where a measured curvature is outside what was promised."""
    slack = 1 + 100 * eps(mu.dtype) ** 0.5
    wrong = (bends * slack < mu) | (bends > smoothness * slack)
    return jnp.where(wrong, DecentralisedStatus.CURVATURE, Status.RUNNING)


def prepare(name: str, gradient: Gradient, x0: Any, args: Any, graph: Any, curvature: Any, asked: Any):
    """Check what both methods take and return it as arrays."""
    x0 = checks.float_array(name, "x0", x0, ndim=1)
    leaves = jax.tree.leaves(args)
    if not leaves or any(jnp.ndim(leaf) == 0 for leaf in leaves) or len({jnp.shape(leaf)[0] for leaf in leaves}) > 1:
        checks.fail(name, "args", "arrays with one leading axis of nodes", [jnp.shape(leaf) for leaf in leaves])
    n = jnp.shape(leaves[0])[0]
    args = jax.tree.map(jnp.asarray, args)
    checks.takes(name, "gradient", gradient, "x", "args")
    shape = jax.eval_shape(gradient, x0, jax.tree.map(lambda a: a[0], args)).shape
    if shape != x0.shape:
        of_a_loss = "; of a loss take jax.grad" if shape == () else ""
        checks.fail(name, "gradient", f"of shape {x0.shape}", f"{shape}{of_a_loss}")
    edges, rates = graph
    given = jnp.ones(np.shape(edges)[:1], x0.dtype) if rates is None else rates
    edges, given = as_graph(name, edges, given, n)
    given = given.astype(x0.dtype)
    if rates is None:
        given = given * jnp.sqrt(2 * chi1(edges, given, n) * chi2(edges, given, n))
    mu, smoothness = (
        checks.number(name, label, x, positive=True, dtype=x0.dtype)
        for label, x in zip(("mu", "smoothness"), curvature, strict=True)
    )
    tol, max_steps, history, progress = asked
    tol = checks.number(
        name, "tol", {8: 1e-8, 4: 1e-4}.get(x0.dtype.itemsize, 1e-2) if tol is None else tol, dtype=x0.dtype
    )
    limits = Limits(tol, checks.count(name, "max_steps", max_steps), history, progress)
    return Problem(gradient, args, mu, smoothness, mu), edges, limits, given, n


def finish(gradient: Gradient, run: Any, args: Any, limits: Limits, unconverged: str) -> DecentralisedSolution:
    """Attach derivatives and wrap up."""
    run, gradients, messages = run
    center, nodes = run.value[:2]
    trusted = (run.status == Status.CONVERGED) | (unconverged == "approximate")
    moving, fixed = eqx.partition(args, eqx.is_inexact_array)

    def residual(x, moving):
        return mean_gradient(gradient, x, eqx.combine(moving, fixed))

    def solve(jacobian, b):
        size = b.size
        inner = lambda A, b: cg(A, b, tol=10 * eps(b.dtype) * norm(b), max_steps=10 * size).x  # noqa: E731
        return linear_solve(jacobian, b, inner)

    value = distrust(attach(residual, center, moving, solve=solve), trusted)
    nodes = lax.stop_gradient(nodes - center[None, :]) + value[None, :]
    return DecentralisedSolution(
        value, run.status, run.num_steps, run.error, limits.tol, run.history, nodes, gradients, messages
    )
