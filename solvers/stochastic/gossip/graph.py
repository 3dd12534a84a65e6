"""Gossip on a graph: what its edges' rates are worth, and the least total rate that is enough.

The first three are those of Nabli, Oyallon (DADAO, ICML 2023), numbered as in the comments:

(1) ``L = sum_e rate_e (e_i - e_j) (e_i - e_j)'``
(2) ``chi1 = 1 / lambda_2(L)``
(3) ``chi2 = max_e (e_i - e_j)' L^+ (e_i - e_j) / 2 = 1 / (2 min C)``, C the conductances ``C_e = 1 / (q_e' L^-1 q_e)``
(4) ``min sum_e r_e`` with ``chi1 chi2 <= 1/2``: ``r = total share``, ``total = 1 / sqrt(lambda_2 min C)`` of the shares
(5) ``max log t + log u`` over shares of sum one, ``t <= lambda_2``, ``u <= C_e``: the best shares
(6) ``error <= max_e (a_e / lambda_2 + c_e / min C) / 2 - 1``, see `certified_excess`

It departs from the paper in (4) to (6): there a semidefinite program bounds both factors by one number.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from ...core import checks
from ...core.loop import Limits, iterate
from ...core.precision import dot, eps, matmul
from ...core.search import backtrack
from ...core.solution import Solution, Status, StatusCode
from ...core.typing import Array, Float, Int, Progress, Scalar


class GraphStatus(StatusCode):
    """Why no rates were found, beyond `Status`."""

    DISCONNECTED = 100, "disconnected: no rates let every node hear of every other; add edges"


class RatesSolution(Solution):
    """What `gossip_rates` returns.

    Attributes
    ----------
    value : Float[Array, "E"]
        Rates of the edges; ``chi1 chi2 = 1/2``.
    total : Float[Array, ""]
        Their sum: messages exchanged while every node takes one gradient.
    least : Float[Array, ""]
        No rates with ``chi1 chi2 <= 1/2`` have a sum below this; ``total <= (1 + error) least``.
    chi1, chi2 : Float[Array, ""]
        Of these rates.
    """

    total: Float[Array, "..."]
    least: Float[Array, "..."]
    chi1: Float[Array, "..."]
    chi2: Float[Array, "..."]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, GraphStatus)


def laplacian(edges: Int[ArrayLike, "E 2"], rates: Float[Array, " E"], n: int) -> Float[Array, "n n"]:
    """Return ``sum_e rate_e (e_i - e_j) (e_i - e_j)'`` of edges e = (i, j)."""
    i, j = jnp.asarray(edges).T
    zero = jnp.zeros((n, n), rates.dtype)
    # (1)
    return zero.at[i, i].add(rates).at[j, j].add(rates).at[i, j].add(-rates).at[j, i].add(-rates)


def chi1(edges: Int[ArrayLike, "E 2"], rates: Float[ArrayLike, " E"], n: int) -> Float[Array, ""]:
    """Return the inverse of the Laplacian's second smallest eigenvalue: how long news takes to reach everybody.

    Parameters
    ----------
    edges : Int[Array, "E 2"]
    rates : Float[Array, "E"]
        Differentiable where the eigenvalue is simple.
    n : int
        Number of nodes; static.
    """
    edges, rates = as_graph("chi1", edges, rates, n)
    return 1 / extremes(frame_of(edges, n, rates.dtype), rates)[0]  # (2)


def chi2(edges: Int[ArrayLike, "E 2"], rates: Float[ArrayLike, " E"], n: int) -> Float[Array, ""]:
    """Return half the largest effective resistance over an edge: how much worse a pair is off than the whole.

    Parameters
    ----------
    edges : Int[Array, "E 2"]
    rates : Float[Array, "E"]
        Differentiable where one edge is the worst.
    n : int
        Number of nodes; static.
    """
    edges, rates = as_graph("chi2", edges, rates, n)
    return 1 / (2 * extremes(frame_of(edges, n, rates.dtype), rates)[1])  # (3)


class Interior(NamedTuple):
    """Strictly inside: shares of the edges, t < lambda_2, u < every conductance."""

    share: Float[Array, " E"]
    t: Array
    u: Array


class Central(NamedTuple):
    """A point near the central path, the weight of the objective there, and the certified excess."""

    point: Interior
    weight: Array
    excess: Array


class Frame(NamedTuple):
    """The edges in a basis of the vectors that sum to zero: rows q_e with ``L = sum_e share_e q_e q_e'``."""

    q: Float[Array, "E n1"]

    def system(self, share: Array) -> Float[Array, "n1 n1"]:
        """Return the Laplacian in that basis; positive definite for a connected graph."""
        return matmul(self.q.T * share[None, :], self.q)

    def conductance(self, share: Array) -> Float[Array, " E"]:
        """Return ``1 / (q_e' L^-1 q_e)``, concave in the shares."""
        # (3)
        return 1 / jnp.sum(self.q * jax.scipy.linalg.solve(self.system(share), self.q.T, assume_a="pos").T, axis=1)


def frame_of(edges: Array, n: int, dtype) -> Frame:
    """Return the edges in the basis of Helmert: ``(1, ..., 1, -k, 0, ...) / sqrt(k (k + 1))``."""
    k = np.arange(1, n)
    rows = np.tri(n - 1, n) - np.eye(n - 1, n, 1) * k[:, None]
    basis = jnp.asarray((rows / np.sqrt(k * (k + 1.0))[:, None]).T, dtype)
    return Frame(basis[edges[:, 0]] - basis[edges[:, 1]])


def barrier(frame: Frame, weight: Array, point: Interior) -> Array:
    """Return minus the weighted objective, ``log t + log u - 2 sum share``, with a barrier for every constraint.

    The last term of the objective takes the place of ``sum share = 1``, which it makes hold at the optimum.
    """
    gap = frame.system(point.share) - point.t * jnp.eye(frame.q.shape[1], dtype=point.t.dtype)
    inside = 2 * jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(gap))))
    inside += jnp.sum(jnp.log(frame.conductance(point.share) - point.u)) + jnp.sum(jnp.log(point.share))
    return -weight * (jnp.log(point.t) + jnp.log(point.u) - 2 * jnp.sum(point.share)) - inside  # (5)


def curvature(frame: Frame, weight: Array, point: Interior) -> tuple[Array, Array]:
    """Return gradient and Hessian of `barrier`, unknowns in the order shares, t, u.

    With ``K = q'L^-1 q`` over edges, ``dC_e / ds_f = C_e^2 K_ef^2`` and ``d2C_e / ds_f ds_g = 2 C_e^3 K_ef^2 K_eg^2 -
    2 C_e^2 K_ef K_fg K_eg``.
    """
    share, t, u = point
    L = frame.system(share)
    q, eye = frame.q, jnp.eye(L.shape[0], dtype=L.dtype)
    G = jax.scipy.linalg.solve(L - t * eye, eye, assume_a="pos")
    Gq = matmul(q, G)
    across = matmul(Gq, q.T)
    K = matmul(q, jax.scipy.linalg.solve(L, q.T, assume_a="pos"))
    C = 1 / jnp.diagonal(K)
    w = 1 / (C - u)
    first = C[:, None] ** 2 * K**2  # (e, f): dC_e / ds_f
    gradient = jnp.concatenate([
        2 * weight - jnp.diagonal(across) - matmul(w, first) - 1 / share,
        jnp.stack([jnp.trace(G) - weight / t, jnp.sum(w) - weight / u]),
    ])  # fmt: skip
    bent = matmul(first.T * w[None, :], first / C[:, None]) - matmul((K * (w * C**2)[:, None]).T, K) * K
    shares = across**2 - 2 * bent + matmul((first * w[:, None]).T, first * w[:, None]) + jnp.diag(1 / share**2)
    with_t, with_u = -jnp.sum(Gq**2, axis=1), -matmul(w**2, first)
    corner = jnp.diag(jnp.stack([jnp.sum(G**2) + weight / t**2, jnp.sum(w**2) + weight / u**2]))
    border = jnp.stack([with_t, with_u], axis=1)
    return gradient, jnp.block([[shares, border], [border.T, corner]])


def certified_excess(frame: Frame, point: Interior) -> Array:
    """Return by what factor, less one, the best total rate can be below that of these shares.

    Both factors are concave in the shares. For X positive semidefinite of trace one and w on the simplex, ``lambda_2 <=
    <a, share'>`` and ``min C <= <c, share'>`` at any other shares, ``a_e = q_e'X q_e, c_e = sum_f w_f (v_f,i -
    v_f,j)^2`` with v_f the potential of a unit drop over f. So by the inequality of the means the root of the product
    is nowhere larger than here by more than the largest ``(a_e / lambda_2 + c_e / min C) / 2``. The X and w of the
    central path are taken; any would do.
    """
    share = point.share / jnp.sum(point.share)
    L = frame.system(share)
    t, u = point.t / jnp.sum(point.share), point.u / jnp.sum(point.share)
    slowest, C = jnp.linalg.eigvalsh(L)[0], frame.conductance(share)
    X = jnp.linalg.inv(L - t * jnp.eye(L.shape[0], dtype=L.dtype))
    w = 1 / (C - u)
    a = jnp.sum(matmul(frame.q, X / jnp.trace(X)) * frame.q, axis=1)
    drops = matmul(frame.q, jax.scipy.linalg.solve(L, frame.q.T, assume_a="pos")) * C[None, :]
    c = matmul(drops**2, w / jnp.sum(w))
    return jnp.maximum(jnp.max(a / slowest + c / jnp.min(C)) / 2 - 1, 0)  # (6)


def gossip_rates(
    edges: Int[ArrayLike, "E 2"],
    n: int,
    *,
    tol: Scalar | None = None,
    max_steps: int | Array = 200,
    history: bool | int = False,
    progress: Progress | None = None,
) -> RatesSolution:
    """Find the edge rates of least sum with which `dadao` may gossip: ``min sum_e r_e`` with ``chi1 chi2 <= 1/2``.

    Equal rates waste messages wherever some edges are bridges and others are one of many. Both ``1 / chi1`` and ``1 /
    chi2`` are concave in the rates and of degree one, so the problem is the concave one of maximising ``log(1 / chi1) +
    log(1 / chi2)`` over shares of the edges that sum to one; its optimum is global and comes with a bound.

    Parameters
    ----------
    edges : Int[Array, "E 2"]
        Pairs of nodes that may talk; every node at least once.
    n : int
        Number of nodes, at least two; static.
    tol : scalar, optional
        Certified relative excess; traced. 1e-3 by default.
    max_steps : int
        Traced.
    history : bool or int
        Record the bound.
    progress : callable, optional
        ``progress(step, error)`` on the host.

    Returns
    -------
    RatesSolution
        ``error = total / least - 1``, with ``least`` a proven lower bound on the total of any admissible rates; status
        `GraphStatus.DISCONNECTED` where there are none.

    Raises
    ------
    ValueError
        Fewer than two nodes, edges of another shape, loops, or nodes that do not exist.

    Notes
    -----
    Newton's method along the central path of that problem; a step is one Newton step, some 40 do. The bound is
    computed from the point found, so it holds however the path was followed. Cost: a step builds and solves a Hessian
    of E + 2 unknowns, ``O(E n^3 + E^3)``; memory ``O(E n^2)``. The paper solves a semidefinite program with a common
    bound on both factors instead. Rates are not differentiable in anything.

    References
    ----------
    A. Nabli, E. Oyallon, *DADAO: decoupled accelerated decentralized asynchronous optimization*, ICML 2023, section 5;
    Boyd, Ghosh, Prabhakar, Shah, "Randomized gossip algorithms", IEEE Trans. Inf. Theory 52 (2006).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import gossip_rates
    >>> path = jnp.array([[0, 1], [1, 2], [2, 3]])
    >>> sol = gossip_rates(path, 4)
    >>> bool(sol.converged), bool(sol.value[1] > sol.value[0])
    (True, True)
    """
    dtype = jnp.zeros(()).dtype
    edges, _ = as_graph("gossip_rates", edges, np.ones(len(np.asarray(edges)), dtype), n)
    tol = checks.number("gossip_rates", "tol", 1e-3 if tol is None else tol, dtype=dtype)
    limits = Limits(tol, checks.count("gossip_rates", "max_steps", max_steps), history, progress)
    return _rates(edges, n, limits)


@partial(jax.jit, static_argnums=1)
def _rates(edges: Array, n: int, limits: Limits) -> RatesSolution:
    count, dtype = edges.shape[0], limits.tol.dtype
    frame = frame_of(edges, n, dtype)
    equal = jnp.full(count, 1 / count, dtype)
    slow, worst = extremes(frame, equal)
    connected = slow > 10 * n * eps(dtype) / count
    point = Interior(equal, slow / 2, worst / 2)

    def step(s: Central) -> Central:
        vector, unravel = ravel_pytree(s.point)
        value = lambda v: barrier(frame, s.weight, unravel(v))  # noqa: E731
        slope, bent = curvature(frame, s.weight, s.point)
        newton = -jax.scipy.linalg.solve(bent, slope, assume_a="pos")
        decrement = -dot(slope, newton)
        before = value(vector)
        found = backtrack(
            lambda t: value(vector + t * newton),
            lambda t, after: after <= before - 0.1 * t * decrement + 4 * eps(dtype) * jnp.abs(before),
            start=jnp.ones((), dtype),
        )
        moved = jnp.where(found.accepted, vector + found.length * newton, vector)
        near = (decrement < 1e-2) | ~found.accepted
        return central(unravel(moved), jnp.where(near, 8 * s.weight, s.weight))

    def central(point: Interior, weight: Array) -> Central:
        return Central(point, weight, certified_excess(frame, point))

    run = iterate(
        step,
        central(point, jnp.asarray(float(count), dtype)),
        limits,
        value=lambda s: s.point.share / jnp.sum(s.point.share),
        error=lambda s: s.excess,
        refused=lambda s: jnp.where(connected, Status.RUNNING, GraphStatus.DISCONNECTED),
        stall=30,
    )
    slow, worst = extremes(frame, run.value)
    total = 1 / jnp.sqrt(slow * worst)  # (4): chi1 chi2 = 1 / (2 slow worst total^2) = 1/2
    total = jnp.where(connected, total, jnp.nan)
    return RatesSolution(
        total * run.value, run.status, run.num_steps, jnp.where(connected, run.error, jnp.inf), limits.tol, run.history,
        total, total / (1 + run.error), 1 / (total * slow), 1 / (2 * total * worst),
    )  # fmt: skip


def extremes(frame: Frame, share: Array) -> tuple[Array, Array]:
    """Return lambda_2 and the least conductance."""
    return jnp.linalg.eigvalsh(frame.system(share))[0], jnp.min(frame.conductance(share))


def as_graph(name: str, edges: Any, rates: Any, n: int) -> tuple[Array, Array]:
    """Return edges and rates as arrays, or raise."""
    try:
        array = np.asarray(edges)
    except jax.errors.TracerArrayConversionError:
        array = None
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        checks.fail(name, "n", "an integer of at least 2", n)
    if np.ndim(edges) != 2 or np.shape(edges)[1] != 2 or np.shape(edges)[0] == 0:
        checks.fail(name, "edges", "pairs (E, 2)", f"shape {np.shape(edges)}")
    if array is not None:
        if array.dtype.kind not in "iu":
            checks.fail(name, "edges", "integers", f"dtype {array.dtype}", TypeError)
        if array.min() < 0 or array.max() >= n or np.any(array[:, 0] == array[:, 1]):
            checks.fail(name, "edges", f"two different nodes from 0 to {n - 1} each", array.tolist())
    rates = checks.float_array(name, "rates", rates, ndim=1)
    if rates.shape[0] != np.shape(edges)[0]:
        checks.fail(name, "rates", "one an edge", f"{rates.shape[0]} for {np.shape(edges)[0]} edges")
    return jnp.asarray(edges, jnp.int32), rates
