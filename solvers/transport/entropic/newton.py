"""Sinkhorn-Newton-Sparse made safe: annealed, error-controlled, never worse than Sinkhorn."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.implicit import UNCONVERGED
from ...core.loop import Limits, Run, when
from ...core.solution import Status
from ...core.typing import Array, Float, Progress, Scalar
from ..costs.cost import Cost
from ..costs.pointcloud import stored_if_small
from ..problem import Goal, Problem, check, check_potentials, default_tol, prepare
from ..solution import TransportSolution
from ..systems.gibbs_kernel import Kernel, absorb, empty, reduced_potentials, row_error, sweep
from ..systems.system_choice import Backend, anneals_in_single, check_hessian, choose_backend
from .derivatives import finish
from .newton_step import DECAY, STAGE_ERROR, Counts, ascend, extrapolate, state_at
from .published import PublishedSNS, solve_published

START = 80
"""Annealing begins at the cost's spread divided by this."""
EASY = 0.5
"""No annealing where one Sinkhorn sweep at the target epsilon comes below this error."""
SINGLE = 2500
"""Annealing in float32 ends at the cost's spread divided by this: further down float32 sums lose the stage's digits."""


def sns_sinkhorn(
    cost: Float[Array, "n m"] | Cost,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: Scalar,
    tol: Scalar | None = None,
    max_steps: Scalar = 200,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    unbalanced: None = None,
    hessian: Any = "auto",
    anneal: bool = True,
    published: PublishedSNS | None = None,
    unconverged: str = "nan",
    history: bool | int = False,
    progress: Progress | None = None,
) -> TransportSolution:
    """Solve entropic optimal transport by a safeguarded Sinkhorn-Newton-Sparse method.

    ``min <C, P> + epsilon sum P (log P - 1)`` over plans P with row sums `a` and column sums `b`.

    The default choice: it needs no tuning, converges in some ten or twenty steps whatever `epsilon`, and is never worse
    than Sinkhorn's iteration, whose guarantee it keeps (Notes). When `epsilon` is large, a tenth of the mean cost say,
    `sinkhorn` is as good. For the unregularised problem with a few thousand points on a CPU, a network simplex
    (``ot.emd`` of POT) is faster than any entropic method.

    Parameters
    ----------
    cost : Float[Array, "n m"], PointCloud or Grid
        Cost of moving a unit of mass from i to j; ``inf`` forbids a pair in a matrix. Only its differences matter, and
        only relative to `epsilon`. Differentiable.
    a, b : Float[Array, "n"], Float[Array, "m"], optional
        Weights, non-negative, of equal sum; uniform of sum one by default. Zeros are allowed. Differentiable.
    epsilon : scalar
        Regularisation, in the units of `cost`; positive. Traced, differentiable.
    tol : scalar, optional
        Target for `error`; 1e-9 in float64, 1e-5 in float32, more where those round potentials further. Traced.
    max_steps : int
        Largest number of outer steps, those of the annealing included. Traced.
    init : pair of arrays, optional
        Potentials ``(f, g)`` to start from, for instance of a similar problem; their derivative is zero.
    unbalanced : None
        Moved: see `unbalanced_sinkhorn`, which prices the marginals instead of prescribing them.
    hessian : {"auto", "dense", "sparse", "direct"} or backend
        How Newton systems are solved. Static. "dense": conjugate gradients on the kernel; "sparse": on its entries that
        matter, with a static number a row; "direct": Cholesky of the n x n Schur complement. "auto" factors up to 128
        rows, otherwise iterates (sparse on accelerators where the plan is sparse, else dense) and factors where that
        takes long. Or an object with their methods, as `DenseCG(max_steps=50)` of `solvers.transport`.
    anneal : bool
        Approach `epsilon` from above, except where plain Sinkhorn does well. Static.
    published : PublishedSNS, optional
        Run the algorithm as published [1]_, without any safeguard, instead. Static.
    unconverged : {"nan", "approximate"}
        Derivatives of a solve that did not converge: NaN, or those of the equations at the point returned. Static.
    history : bool or int
        Record the marginal error of that many steps (``True``: 256), at each step's own epsilon. Static.
    progress : callable, optional
        Called on the host as ``progress(step, error)``.

    Returns
    -------
    TransportSolution
        ``value = (f, g)`` with shapes ``(n,), (m,)``; ``error = (|P 1 - a|_1 + |P' 1 - b|_1) / sum(a)``; the plan,
        costs and a certified duality gap follow from it. See `TransportSolution`.

    Raises
    ------
    ValueError, TypeError
        While tracing: if shapes do not fit, `cost` is not a real matrix, an option is unknown, or `epsilon` is a number
        that is not positive.

    Notes
    -----
    *Method.* Newton on the semi-dual of the shorter marginal, whose Hessian is the Laplacian of the plan: directions by
    preconditioned conjugate gradients with a forcing term, in float32 where the data are float64; a line search; a
    Sinkhorn sweep; epsilon divided by four whenever the marginal error is below 0.01, potentials extrapolated.

    *Guarantee.* A step ends with a Sinkhorn sweep from a point whose dual value is no lower than the step's start, or,
    where points far from all others have to move, is a leap that raises the dual value.
    A sweep gains at least ``epsilon KL(a | r) >= epsilon |a - r|_1^2 / 2``, so after K sweeps at the target epsilon the
    smallest error is at most ``sqrt(2 (D* - D_0) / (epsilon K))``, Sinkhorn's own bound, whatever the Hessian did. Near
    the solution convergence is superlinear.

    *Stopping.* ``error <= tol``, confirmed on freshly computed exponentials; `Status.STAGNATED` after eight steps
    without a smaller error, or once what is left is small beside the rounding of the potentials. Bad values (NaN,
    negative weights, unequal masses, a point that may go nowhere) are reported by status, without a step; the status
    codes are those of `Status` and of `TransportStatus`.

    *Precision.* `error` and the status are those of the potentials returned, rounded as they are, judged after the loop
    by exponents whose sums are not rounded, as in `plan`. Rounding a potential changes the marginals by up to
    ``d = spacing (<a, |f|> + <b, |g|>) / (2 epsilon sum(a))``: 1e-13 in float64, but 2e-5 in float32 where epsilon is a
    thousandth of the mean cost, 2e-4 at a ten-thousandth. A tolerance that is not given is raised to 2 d where that is
    more, to 1e-3 at most (the field `tol` says it): no float32 potentials do much better. One that is given is kept.

    *Cost.* A step is four products with an n x m matrix, two more for every point tried beyond the first and two for
    every conjugate-gradient step; exponentials are taken when epsilon changes or scalings are absorbed.
    Memory beside the cost: two to three arrays of its shape, one more while a system is factored.

    *Batches.* Under ``jax.vmap`` lanes give the same answers as alone; all wait for the slowest, and a lane whose
    systems need factoring makes every lane pay for it in that step.

    *Derivatives.* Potentials, plan and costs, to second order, forward and reverse, with respect to `cost`, `a`, `b`
    and `epsilon`, by the implicit function theorem; `regularized_cost` needs no linear solve for the first order.

    *Departures from the paper.* Entries are dropped by an error bound instead of a fixed count, the null space is
    handled exactly, steps are safeguarded, epsilon is annealed. The paper's potentials are these plus ``epsilon / 2``.

    References
    ----------
    .. [1] X. Tang, M. Shavlovsky, H. Rahmanian, E. Tardini, K. K. Thekumparampil, T. Xiao, L. Ying, "Accelerating
       Sinkhorn algorithm with sparse Newton iterations", ICLR 2024, algorithm 1.
    .. [2] J. Altschuler, J. Weed, P. Rigollet, "Near-linear time approximation algorithms for optimal transport via
       Sinkhorn iteration", NeurIPS 2017 (the bound, and the rounding behind `duality_gap`).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import sns_sinkhorn
    >>> x = jnp.linspace(0, 1, 8)
    >>> sol = sns_sinkhorn((x[:, None] - x) ** 2, epsilon=0.001)
    >>> bool(sol.converged), sol.plan().shape
    (True, (8, 8))
    """
    name = "sns_sinkhorn"
    data = check(name, cost, a, b, epsilon)
    dtype = data[0].dtype
    goal = Goal.of(name, tol, default_tol(dtype), max_steps, history, progress)
    check_hessian(name, hessian)
    if published is not None and not (hessian == "auto" and anneal):
        ignored = "`hessian`" if hessian != "auto" else "`anneal`"
        checks.fail(name, "published", f"None where {ignored} is given, which it has no use for", published)
    checks.choice(name, "unconverged", unconverged, UNCONVERGED)
    if unbalanced is not None:
        checks.fail(name, "unbalanced", "None: call `unbalanced_sinkhorn(cost, a, b, epsilon=, rho=)`", unbalanced)
    init = check_potentials(name, init, data)
    return _solve(data, init, goal, hessian, bool(anneal), published, unconverged).between(data[0])


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _solve(data, init, goal: Goal, hessian, anneal, published, unconverged) -> TransportSolution:
    data = (stored_if_small(data[0]), *data[1:])
    problem = prepare(*lax.stop_gradient(data), tol=goal.tol)
    f, g = reduced_potentials(problem, lax.stop_gradient(init))
    limits = goal.within(problem.spread, problem.epsilon)
    if published is not None:
        run, cg_steps = solve_published(problem, f, g, published, limits)
        return finish(problem, run, data, goal=goal, linear_steps=cg_steps, unconverged=unconverged)
    solver = choose_backend(hessian, problem)
    state, earlier = begin(problem, (f, g), init is None, anneal, solver, limits)
    run = ascend(problem, state, solver, limits, after=earlier)
    return finish(problem, run, data, goal=goal, linear_steps=run.state.cg_steps, unconverged=unconverged)


def begin(problem: Problem, potentials, cold: bool, anneal: bool, hessian: Backend, limits: Limits):
    """Return the first state, at the target epsilon if that is easy from here, and the run that led to it, if any."""
    f, g = potentials
    if cold:
        g = problem.least
    if not anneal:
        return state_at(problem, absorb(problem, empty(problem), f, g, problem.epsilon), hessian), None
    top = jnp.maximum(problem.epsilon, problem.spread / START)
    flat, single = jnp.zeros_like(problem.a), anneals_in_single(problem)
    worth = (top > problem.epsilon) & (problem.status == Status.RUNNING) & (limits.max_steps > 0)

    def form(c: _Forming) -> _Forming:
        kernel = absorb(problem, c.kernel, c.f, c.g, c.epsilon)
        hard = (row_error(problem, kernel) > limits.tol) & ~(row_error(problem, sweep(problem, kernel)) < EASY)
        hard = jnp.where(c.first, hard & worth, c.hard)
        return _Forming(kernel, flat, problem.least, top, hard, jnp.zeros((), bool))

    # at the target, and anew at the top if that is hard: a loop of at most two trips, whose body is compiled once
    yes = jnp.ones((), bool)
    start = _Forming(empty(problem), f, g, problem.epsilon, yes, yes)
    again = (lambda c: c.first) if single else (lambda c: c.first | (c.hard & (c.kernel.epsilon < top)))
    formed = lax.while_loop(again, form, start)
    kernel, hard = formed.kernel, formed.hard
    if not single:
        return state_at(problem, kernel, hessian), None

    run = anneal_in_single(problem, hard, top, hessian, limits)
    lower = run.state.kernel.epsilon.astype(top.dtype) * DECAY
    lower = jnp.where(lower > 1.01 * problem.epsilon, lower, problem.epsilon)  # no stage for a rounding error's sake
    lower = jnp.where(run.num_steps >= limits.max_steps, problem.epsilon, lower)
    ahead, before = jax.tree.map(lambda x: x.astype(top.dtype), extrapolate(run.state, lower.astype(jnp.float32)))
    kernel = when(hard, lambda k: absorb(problem, k, *ahead, epsilon=lower), kernel)
    counts = Counts(run.num_steps, 0, run.state.cg_steps)
    return state_at(problem, kernel, hessian, before, counts, modes=run.state.modes), run


class _Forming(NamedTuple):
    """A kernel and whether it is to be annealed to; what to form next, and whether nothing was formed yet."""

    kernel: Kernel
    f: Array
    g: Array
    epsilon: Array
    hard: Array
    first: Array


def anneal_in_single(problem: Problem, hard, top, hessian: Backend, limits: Limits) -> Run:
    """Anneal in float32, where asked for, as far down as its sums carry a stage's accuracy."""
    bottom = jnp.minimum(top, jnp.maximum(problem.epsilon / DECAY, problem.spread / SINGLE))
    rough = problem.astype(jnp.float32, bottom)
    flat = jnp.zeros_like(rough.a)
    start = rough.spread / START
    kernel = when(hard, lambda k: absorb(rough, k, flat, rough.least, jnp.maximum(start, rough.epsilon)), empty(rough))
    state = state_at(rough, kernel, hessian)
    tol, max_steps = jnp.asarray(STAGE_ERROR, jnp.float32), jnp.where(hard, limits.max_steps, 0)
    return ascend(rough, state, hessian, Limits(tol, max_steps, limits.history, limits.progress))
