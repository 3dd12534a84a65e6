"""Barycenters of measures on a common support, with or without entropic bias."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from ...core import checks
from ...core.implicit import UNCONVERGED, attach, distrust, linear_solve
from ...core.krylov.gmres import gmres
from ...core.loop import iterate
from ...core.precision import eps as machine_eps
from ...core.precision import matmul
from ...core.solution import Solution, Status, StatusCode
from ...core.typing import Array, Float, Progress, Scalar
from ..costs.cost import Cost, as_cost
from ..costs.grid import Grid
from ..costs.pointcloud import stored_if_small
from ..entropic.derivatives import mended
from ..problem import Goal, TransportStatus, default_tol, first_fault, rounding_floor

FACTORED = 1500
"""Up to this many potentials the derivative's linear system is factored, above it solved by GMRES."""
SWEEPS = 200
"""Steps without a smaller error before the solve counts as stagnated."""

LARGEST = 40.0
"""Exponents of masses in an error are cut here: far from the solution it is large, not infinite."""


class BarycenterSolution(Solution):
    """A barycenter ``b`` and the potentials of the transport problems between it and the measures.

    ``value`` is b, of sum one.

    Attributes
    ----------
    f : Float[Array, "k n"]
        Potentials of the measures, in units of the cost; without meaning where a measure has no mass.
    g : Float[Array, "k m"]
        Potentials of the barycenter, of mean zero with respect to it; at the optimum their mean over the measures is
        constant, or the potential of b with itself when debiased.
    """

    f: Float[Array, "k n"]
    g: Float[Array, "k m"]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, TransportStatus)


class Data(NamedTuple):
    """What a barycenter depends on: costs to the support and within it, measures, their shares, epsilon."""

    cost: Cost
    within: Cost | None
    a: Array
    share: Array
    epsilon: Array


class State(NamedTuple):
    """Potentials of the barycenter for each measure and, if debiased, with itself; what the next step makes of them."""

    g: Array
    own: Array
    next: "Swept"


class Swept(NamedTuple):
    """One sweep from a pair of potentials: those of the measures, new ones, the barycenter's logarithm, the error."""

    f: Array
    g: Array
    own: Array
    log_b: Array
    error: Array


def barycenter(
    cost: Any,
    a: Float[Array, "k n"],
    *,
    epsilon: Scalar,
    shares: Float[Array, " k"] | None = None,
    debiased: bool = True,
    tol: Scalar | None = None,
    max_steps: Scalar = 10_000,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> BarycenterSolution:
    """Compute the barycenter of several measures among the measures on a given support.

    ``min over b of sum_k shares_k D(a_k, b)`` with D the Sinkhorn divergence, or the entropic transport value itself if
    not `debiased`, which blurs: the barycenter of one measure is then wider than the measure.

    Use it for averages of images (`Grid`) and histograms. For one target use `sinkhorn_divergence` or `sns_sinkhorn`.

    Parameters
    ----------
    cost : PointCloud, Grid, or pair of arrays
        Costs ``(n, m)`` from the points of the measures to those of the barycenter. A pair ``(C, C_bb)`` of arrays says
        those within the support too, (m, m) and symmetric; if not `debiased` one array C will do. Differentiable.
    a : Float[Array, "k n"]
        The measures, each non-negative and of sum one; images in their shape for a `Grid`. Differentiable.
    epsilon : scalar
        Regularisation, in the units of the cost; positive. Traced, differentiable.
    shares : Float[Array, "k"], optional
        Weight of each measure, non-negative and of sum one; equal by default. Differentiable.
    debiased : bool
        Static.
    tol : scalar, optional
        Target for `error`; by default 1e-6 in float64 and 1e-4 in float32 when debiased, else 1e-9 and 1e-5, or
        what rounding of the potentials allows where that is more (see `sns_sinkhorn`). Traced.
    max_steps : int
        Largest number of sweeps. Traced.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the error of that many steps (``True``: 256). Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``.

    Returns
    -------
    BarycenterSolution
        ``value = b``, shape (m,). ``error = sum_k shares_k (|P_k 1 - a_k|_1 + |P_k' 1 - b|_1)``, of the plans P_k of
        the potentials returned, plus what (2) lacks of mass one, plus ``|Q 1 - b|_1`` with Q the symmetric plan of b
        with itself when debiased.

    Raises
    ------
    ValueError, TypeError
        While tracing, if shapes do not fit, or a debiased barycenter lacks the costs within its support.

    Notes
    -----
    Sweeps of iterative Bregman projections [1]_ in the log domain, debiased as in [2]_, algorithm 1, with
    ``K = exp(-C / epsilon), u_k = exp(f_k / epsilon), v_k = exp(g_k / epsilon)``; d is one if not `debiased`:

    (1) ``u_k = a_k / (K v_k)``
    (2) ``b = d prod_k (K' u_k)^shares_k``
    (3) ``v_k = b / (K' u_k)``
    (4) ``d <- sqrt(d b / (K_bb d))``

    The error falls by a constant factor a sweep that
    tends to one with epsilon. A debiased barycenter may have no mass at some points, as at the edge of a support that
    cuts it off; the error then falls like one over the sweeps in the end, hence the looser default of `tol`. Stops when
    ``error <= tol``; `Status.STAGNATED` after 200 sweeps without a smaller one.
    A sweep costs 2 k soft minima over the cost, and the memory of the cost.

    Derivatives of b and the potentials in `cost`, `a`, `shares` and `epsilon`, to second order, by the implicit
    function theorem; their linear system has (k + 1) m unknowns and is factored up to 1,500.

    References
    ----------
    .. [1] J.-D. Benamou, G. Carlier, M. Cuturi, L. Nenna, G. Peyré, "Iterative Bregman projections for regularized
       transportation problems", SIAM J. Sci. Comput. 37 (2015), section 3.2.
    .. [2] H. Janati, M. Cuturi, A. Gramfort, "Debiased Sinkhorn barycenters", ICML 2020, algorithm 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import PointCloud, barycenter
    >>> x = jnp.linspace(-3, 3, 25)[:, None]
    >>> bump = lambda centre: jnp.exp(-((x[:, 0] - centre) ** 2) / 0.5)
    >>> a = jnp.stack([bump(-1.0) / bump(-1.0).sum(), bump(1.0) / bump(1.0).sum()])
    >>> sol = barycenter(PointCloud(x, x), a, epsilon=0.3)
    >>> bool(sol.converged), bool(abs(sol.value @ x[:, 0]) < 1e-3)
    (True, True)
    """
    name = "barycenter"
    cost, within = _costs(name, cost, debiased)
    a = _measures(name, a, cost)
    k = len(a)
    share = jnp.full(k, 1 / k, a.dtype) if shares is None else checks.float_array(name, "shares", shares, ndim=1)
    if share.shape != (k,):
        checks.fail(name, "shares", f"({k},), one for each measure", share.shape)
    epsilon = checks.number(name, "epsilon", epsilon, positive=True, dtype=a.dtype)
    usual = jnp.asarray(1e-6 if a.dtype == jnp.float64 else 1e-4, a.dtype) if debiased else default_tol(a.dtype)
    goal = Goal.of(name, tol, usual, max_steps, history, progress)
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    data = Data(cost, within, a, share.astype(a.dtype), epsilon)
    return _solve(data, goal, unconverged)


def _costs(name: str, cost: Any, debiased: bool) -> tuple[Cost, Cost | None]:
    """Return the costs to the support and, where they are wanted, those within it."""
    if isinstance(cost, tuple | list) and len(cost) == 2:
        between, within = (checks.float_array(name, "cost", c, ndim=2) for c in cost)
        if within.shape != (between.shape[1],) * 2:
            checks.fail(name, "cost", f"a pair (n, m), (m, m) with m = {between.shape[1]}", within.shape)
        return as_cost(between), as_cost(within.astype(between.dtype)) if debiased else None
    if not isinstance(cost, Cost):
        cost = as_cost(checks.float_array(name, "cost", cost, ndim=2))
        if debiased:
            expected = "a PointCloud, a Grid, or a pair (C, C_bb): debiasing needs the costs within the support"
            checks.fail(name, "cost", expected, f"one array {cost.shape}")
    within = cost.within(name)[1] if debiased else None
    return as_cost(stored_if_small(cost)), None if within is None else as_cost(stored_if_small(within))


def _measures(name: str, a: Any, cost: Cost) -> Float[Array, "k n"]:
    """Return the measures, a row each, or raise; those of a `Grid` may be images."""
    a = checks.float_array(name, "a", a, dtype=cost.dtype).astype(cost.dtype)
    image = cost.image_shapes[0] if isinstance(cost, Grid) else ()
    if a.ndim > 1 and a.shape[1:] == image:
        a = a.reshape(len(a), -1)
    if a.ndim != 2 or a.shape[1] != cost.shape[0] or len(a) == 0:
        images = f" or an image {image} each" if len(image) > 1 else ""
        checks.fail(name, "a", f"(k, {cost.shape[0]}), a measure a row{images}, k >= 1", a.shape)
    return a


def sweep(g: Array, own: Array, data: Data) -> Swept:
    """One sweep: the measures' potentials from g, the barycenter, its potentials from both ([2], algorithm 1)."""
    cost, within, a, share, epsilon = data
    rows, columns = a > 0, jnp.ones(g.shape[1], bool)
    zero = jnp.zeros((), a.dtype)

    def to_measure(g, a, rows):
        sums = cost.logsumexp(g, columns, epsilon, zero)
        return jnp.where(rows, epsilon * (jnp.log(jnp.where(rows, a, 1)) - sums), 0)

    f = jax.vmap(to_measure)(g, a, rows)  # (1)
    back = epsilon * jax.vmap(lambda f, rows: cost.column_logsumexp(f, rows, epsilon, zero))(f, rows)
    log_b = (own + matmul(share, back)) / epsilon  # (2)
    new = epsilon * log_b[None, :] - back  # (3)
    masses = jnp.exp(jnp.minimum(log_b, LARGEST))
    missing = jnp.abs(jnp.sum(masses) - 1)
    if within is None:
        return Swept(f, new, own, log_b, missing)
    half = epsilon * within.logsumexp(own, columns, epsilon, zero)
    sums = jnp.exp(jnp.minimum((own + half) / epsilon, LARGEST))
    error = jnp.sum(jnp.abs(sums - masses))
    return Swept(f, new, (own + epsilon * log_b - half) / 2, log_b, error + missing)  # (4)


@partial(jax.jit, static_argnums=2)
def _solve(data: Data, goal: Goal, unconverged: str) -> BarycenterSolution:
    fixed = lax.stop_gradient(data)
    share, epsilon, a = fixed.share, fixed.epsilon, fixed.a

    def step(state: State) -> State:
        g, own = state.next.g, state.next.own
        return State(g, own, judged(state.next, sweep(g, own, fixed)))

    def judged(before: Swept, after: Swept) -> Swept:
        """Rows of the plans before the sweep are ``a exp((f - new f) / epsilon)``: their error comes with the step."""
        rows = jnp.sum(a * jnp.abs(jnp.expm1(jnp.minimum((before.f - after.f) / epsilon, LARGEST))), 1)
        return after._replace(error=after.error + jnp.sum(share * rows))

    def value(state: State):
        return state.g, state.own

    zeros = jnp.zeros((a.shape[0], fixed.cost.shape[1]), a.dtype)
    first = sweep(zeros, zeros[0], fixed)
    start = State(first.g, first.own, judged(first, sweep(first.g, first.own, fixed)))
    limits = goal.within(jnp.max(jnp.abs(first.f)), epsilon)
    run = iterate(
        step, start, limits, value=value, error=lambda s: s.next.error, refused=lambda _: faults(fixed), stall=SWEEPS
    )
    g, own = attach(residual, centred(run.value, fixed), data, solve=solve_linear)
    end = sweep(g, own, data)
    b = jax.nn.softmax(end.log_b)
    step, error, floor = final_error((end.f, g, b), end, data)
    status, tol = goal.judge(run.status, error, floor)
    trusted = (status == Status.CONVERGED) | (unconverged == "approximate")
    b, f, g = distrust((b, end.f, g + step), trusted)
    return BarycenterSolution(b, status, run.num_steps, error, tol, run.history, f, g)


def final_error(returned, end: Swept, data: Data):
    """Return the last correction of g, the error of b and the potentials as they are returned, and its floor.

    They are not those of the loop: constants were moved, b was scaled to mass one, and all of it rounded.
    """
    (f, g, b), end, data = lax.stop_gradient((returned, end, data))
    epsilon, ones, zero = data.epsilon, jnp.ones_like(b), jnp.zeros_like(data.epsilon)

    def one(measure):
        f, g, a = measure
        step, r, c = mended(data.cost.plan((f, g), a, b, epsilon, zero), g, b, epsilon)
        lacking = jnp.sum(jnp.abs(r - a)) + jnp.sum(jnp.abs(c - b))
        return step, lacking, rounding_floor((a, b), (f, g), epsilon)

    step, lacking, floor = lax.map(one, (f, g, data.a))
    error = jnp.sum(data.share * lacking) + jnp.abs(jnp.sum(jnp.exp(jnp.minimum(end.log_b, LARGEST))) - 1)
    if data.within is not None:
        sums = data.within.plan((end.own, end.own), ones, ones, epsilon, zero).times(ones)
        error += jnp.sum(jnp.abs(sums - b))
    return step, error, jnp.sum(data.share * floor)


def faults(data: Data):
    """Return what is wrong with the data, `Status.RUNNING` if nothing is."""
    _, _, a, share, epsilon = data
    slack = 1e3 * machine_eps(a.dtype)
    off = jnp.any(jnp.abs(jnp.sum(a, 1) - 1) > slack) | (jnp.abs(jnp.sum(share) - 1) > slack)
    numbers = jnp.sum(a) + jnp.sum(share) + epsilon + jnp.sum(data.cost.least())
    return first_fault(
        (off, TransportStatus.UNEQUAL_MASSES),
        (jnp.any(a < 0) | jnp.any(share < 0), TransportStatus.NEGATIVE_WEIGHTS),
        (epsilon <= 0, TransportStatus.NOT_POSITIVE_EPSILON),
        (~jnp.isfinite(numbers), Status.NONFINITE),
    )


def centred(potentials, data: Data):
    """Return the potentials with the mean of each measure's that of their average: constants are free otherwise."""
    g, own = potentials
    means = jnp.mean(g, 1)
    return g - (means - jnp.sum(data.share * means))[:, None], own


def residual(potentials, data: Data):
    """Return what a sweep changes, plus the differences of the means, which makes the root unique."""
    g, own = potentials
    swept = sweep(g, own, data)
    means = jnp.mean(g, 1)
    free = (means - jnp.sum(data.share * means))[:, None]
    return g - swept.g + free, own - swept.own


def solve_linear(jacobian, b):
    """Solve for the derivative, densely up to `FACTORED` unknowns."""
    flat, unravel = ravel_pytree(b)
    if flat.size <= FACTORED:
        columns = jax.vmap(lambda e: ravel_pytree(jacobian(unravel(e)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
        return unravel(jnp.linalg.solve(columns.T, flat))

    def iterative(matvec, rhs):
        flat, _ = ravel_pytree(rhs)
        tol = 100 * machine_eps(flat.dtype) * jnp.sqrt(jnp.sum(flat**2))
        return gmres(matvec, rhs, tol=tol, max_steps=3000, memory=60).x

    return linear_solve(jacobian, b, iterative, symmetric=False)
