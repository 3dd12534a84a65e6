"""Sinkhorn-Newton-Sparse made safe: annealed, error-controlled, never worse than Sinkhorn."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.loop import history_length, iterate, when
from ..core.precision import default_tol
from ..core.precision import eps as machine_eps
from ..core.solution import Status
from ..core.typing import Array, Float, Int, Progress, Scalar
from .finish import finish
from .hessian import HESSIANS, Backend, System, choose_backend
from .kernel import (
    Kernel,
    absorb,
    check_potentials,
    column_update,
    empty,
    needs_absorbing,
    reduced_potentials,
    row_error,
    scale_columns,
    sweep,
)
from .problem import Problem, check, prepare
from .published import PublishedSNS, solve_published
from .solution import TransportSolution

START = 80
"""Annealing begins at the cost's spread divided by this."""
DECAY = 0.25
"""Each stage divides epsilon by four ..."""
STAGE_ERROR = 1e-2
"""... once the marginal error is this small."""
STAGE_STEPS = 6
"""... or after this many steps."""
LONGEST = 20
"""Largest change of a log scaling that a Newton step may make."""
DAMPING = 1e-3
"""The Hessian's relative shift is this times the error."""
EASY = 0.3
"""No annealing where three plain sweeps at the target epsilon come below this error."""
PATIENCE = 8
"""Steps without a smaller error before the solve counts as stagnated."""


class State(eqx.Module):
    """Where the method stands.

    Attributes
    ----------
    kernel : Kernel
        The plan, its columns normalised.
    error : Float[Array, ""]
        Marginal error of the plan at the current epsilon.
    steps, stage_steps : Int[Array, ""]
        Steps in all, and at this epsilon.
    before : tuple
        Row potential, column potential and epsilon at the end of the previous stage.
    prepared : PyTree
        What the Hessian backend keeps for this kernel.
    hard : Bool[Array, ""]
        Whether conjugate gradients have had trouble at this epsilon.
    cg_steps : Int[Array, ""]
        Conjugate-gradient steps so far.
    """

    kernel: Kernel
    error: Float[Array, ""]
    steps: Int[Array, ""]
    stage_steps: Int[Array, ""]
    before: tuple[Float[Array, " n"], Float[Array, " m"], Float[Array, ""]]
    prepared: Any
    hard: Array
    cg_steps: Int[Array, ""]


class Trial(eqx.Module):
    """A point tried along a direction: its scalings, what it gains in the dual, and its marginal error."""

    alpha: Float[Array, " n"]
    beta: Float[Array, " m"]
    r: Float[Array, " n"]
    gain: Float[Array, ""]
    error: Float[Array, ""]

    @classmethod
    def at(cls, problem: Problem, kernel: Kernel, alpha) -> "Trial":
        """Normalise the columns for `alpha` and measure: three products with the kernel's shape."""
        beta = scale_columns(problem, kernel, alpha)
        r = alpha * kernel.rows(beta)
        gain = jnp.sum(problem.a * jnp.log(alpha / kernel.alpha)) + jnp.sum(problem.b * jnp.log(beta / kernel.beta))
        return cls(alpha, beta, r, gain, jnp.sum(jnp.abs(r - problem.a)))


def search(problem: Problem, kernel: Kernel, r, error, d) -> Kernel:
    """Move along d until the dual rises by Armijo's condition; where that drowns in rounding, until the error falls.

    The kernel comes back unchanged when no step does.
    """
    slope = jnp.sum((problem.a - r) * d)
    rounding = machine_eps(r.dtype)

    def passes(trial: Trial, t):
        good = jnp.where(error**2 > rounding, trial.gain >= 1e-4 * t * slope, trial.error < error)
        return good & jnp.isfinite(trial.error)

    def at(t):
        trial = Trial.at(problem, kernel, kernel.alpha * jnp.exp(t * d))
        return trial, t, passes(trial, t)

    longest = jnp.max(jnp.abs(d))
    t = jnp.minimum(1, LONGEST / jnp.where(longest > 0, longest, 1)).astype(r.dtype)
    trial, _, good = lax.while_loop(lambda c: ~c[2] & (c[1] > 2e-3), lambda c: at(c[1] / 2), at(t))
    moved = jax.tree.map(lambda new, old: jnp.where(good, new, old), (trial.alpha, trial.beta), kernel.scalings)
    return kernel.scaled(*moved)


def newton_step(problem: Problem, state: State, tol, max_steps, hessian: Backend) -> State:
    """One outer step: a Newton direction searched, a Sinkhorn sweep, and the next stage of annealing if due."""
    kernel, error = state.kernel, state.error
    r = kernel.row_sums
    system = System.at(problem, kernel, r, error, DAMPING)
    direction = hessian.direction(state.prepared, problem, kernel, system, state.hard)
    kernel = sweep(problem, search(problem, kernel, r, error, direction.d))
    moved = State(
        kernel, row_error(problem, kernel), state.steps + 1, state.stage_steps + 1,
        state.before, state.prepared, direction.hard, state.cg_steps + direction.cg_steps,
    )  # fmt: skip
    return settle(problem, moved, tol, max_steps, hessian)


def settle(problem: Problem, state: State, tol, max_steps, hessian: Backend) -> State:
    """Lower epsilon where the stage is done; absorb the scalings where that, convergence or their range demands it."""
    epsilon = state.kernel.epsilon
    last = state.steps >= max_steps
    done = (state.error < STAGE_ERROR) | (state.stage_steps >= STAGE_STEPS) | last
    advance = (epsilon > problem.epsilon) & done

    def renew(state: State) -> State:
        potentials = state.kernel.potentials
        now = (*potentials, epsilon)
        lower = jnp.where(advance, jnp.maximum(jnp.where(last, 0, epsilon * DECAY), problem.epsilon), epsilon)
        known = state.before[2] > epsilon
        ratio = jnp.where(known & advance, (lower - epsilon) / jnp.where(known, epsilon - state.before[2], 1), 0)
        ahead = [p + ratio * (p - q) for p, q in zip(potentials, state.before[:2], strict=True)]
        before = jax.tree.map(lambda new, old: jnp.where(advance, new, old), now, state.before)
        kernel = absorb(problem, state.kernel, *ahead, lower)
        return State(
            kernel, row_error(problem, kernel), state.steps, jnp.where(advance, 0, state.stage_steps),
            before, hessian.prepare(problem, kernel), state.hard & ~advance, state.cg_steps,
        )  # fmt: skip

    return when(advance | (state.error <= tol) | needs_absorbing(state.kernel), renew, state)


def first_state(problem: Problem, f, g, warm: bool, anneal, tol, hessian: Backend) -> State:
    """Begin at the target epsilon if that is easy from here, else at the top of the annealing."""
    top = jnp.maximum(problem.epsilon, problem.spread / START)
    zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)

    def body(carry):
        kernel, _, trips, _ = carry
        epsilon = jnp.where(trips > 0, top, problem.epsilon)
        cold = jnp.asarray(not warm) | (trips > 0)
        g_start = lax.cond(cold, lambda: column_update(problem, f, epsilon), lambda: g)
        kernel = absorb(problem, kernel, f, g_start, epsilon)
        error = row_error(problem, kernel)
        swept = lax.fori_loop(
            0, 3, lambda _, scalings: sweep(problem, kernel.scaled(*scalings)).scalings, kernel.scalings
        )
        easy = jnp.sum(jnp.abs(kernel.scaled(*swept).row_sums - problem.a)) < EASY
        again = anneal & (trips == 0) & (error > tol) & ~easy & (top > epsilon) & (problem.status == Status.RUNNING)
        return kernel, error, trips + 1, again

    start = (empty(problem), jnp.zeros_like(problem.epsilon), zero, ~no)
    kernel, error, _, _ = lax.while_loop(lambda c: c[3], body, start)
    never = (kernel.f, kernel.g, jnp.zeros_like(kernel.epsilon))
    return State(kernel, error, zero, zero, never, hessian.prepare(problem, kernel), no, zero)


def sns_sinkhorn(
    cost: Float[Array, "n m"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: Scalar,
    tol: Scalar | None = None,
    max_steps: Scalar = 200,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    hessian: str = "auto",
    anneal: bool = True,
    published: PublishedSNS | None = None,
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
    cost : Float[Array, "n m"]
        Cost of moving a unit of mass from i to j; ``inf`` forbids a pair. Only its differences matter, and only
        relative to `epsilon`. Differentiable.
    a, b : Float[Array, "n"], Float[Array, "m"], optional
        Weights, non-negative, of equal sum; uniform of sum one by default. Zeros are allowed. Differentiable.
    epsilon : scalar
        Regularisation, in the units of `cost`; positive. Traced, differentiable.
    tol : scalar, optional
        Target for `error`; 1e-9 in float64, 1e-5 in float32. Traced.
    max_steps : int
        Largest number of outer steps, those of the annealing included. Traced.
    init : pair of arrays, optional
        Potentials ``(f, g)`` to start from, for instance of a similar problem; their derivative is zero.
    hessian : {"auto", "dense", "sparse", "direct"}
        How Newton systems are solved. Static. "dense": conjugate gradients on the kernel; "sparse": on its entries that
        matter, with a static number a row; "direct": Cholesky of the n x n Schur complement. "auto" factors up to 128
        rows, otherwise iterates (sparse on accelerators where the plan is sparse, else dense) and factors where that
        takes long.
    anneal : bool
        Approach `epsilon` from above, except where plain Sinkhorn does well. Static.
    published : PublishedSNS, optional
        Run the algorithm as published [1]_, without any safeguard, instead. Static.
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

    *Guarantee.* Every step ends with a Sinkhorn sweep from a point whose dual value is no lower than the step's start.
    A sweep gains at least ``epsilon KL(a | r) >= epsilon |a - r|_1^2 / 2``, so after K steps at the target epsilon the
    smallest error is at most ``sqrt(2 (D* - D_0) / (epsilon K))``, Sinkhorn's own bound, whatever the Hessian did. Near
    the solution convergence is superlinear.

    *Stopping.* ``error <= tol``, confirmed on freshly computed exponentials; `Status.STAGNATED` after eight steps
    without a smaller error, which is how float32 ends when `tol` is out of its reach (about ``1e-8 max(C) / epsilon``).
    Bad values (NaN, negative weights, unequal masses, a point that may go nowhere) are reported by status, without a
    step; the status codes are those of `Status` and of `TransportStatus`.

    *Cost.* A step is about ten products with an n x m matrix plus one a conjugate-gradient step; exponentials are
    taken once an epsilon. Memory: three arrays of the cost's shape.

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
    tol = checks.number(name, "tol", default_tol(dtype) if tol is None else tol, dtype=dtype)
    max_steps = checks.count(name, "max_steps", max_steps)
    checks.choice(name, "hessian", hessian, HESSIANS)
    init = check_potentials(name, init, data)
    return _solve(data, init, tol, max_steps, hessian, bool(anneal), published, history_length(history), progress)


@partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _solve(data, init, tol, max_steps, hessian, anneal, published, history, progress) -> TransportSolution:
    problem = prepare(*lax.stop_gradient(data), tol)
    f, g = reduced_potentials(problem, lax.stop_gradient(init))
    loop = {"tol": tol, "max_steps": max_steps, "history": history, "progress": progress}
    if published is not None:
        run, cg_steps = solve_published(problem, f, g, published, **loop)
        return finish(problem, run, tol, cg_steps, data)
    solver = choose_backend(hessian, problem)
    valid = problem.status == Status.RUNNING

    def error(state: State):
        annealing = state.kernel.epsilon > problem.epsilon
        beyond = 2 + state.kernel.epsilon / problem.epsilon
        return jnp.where(valid, jnp.where(annealing, beyond, state.error), 2)

    run = iterate(
        lambda s: newton_step(problem, s, tol, max_steps, solver),
        first_state(problem, f, g, init is not None, anneal & (max_steps > 0), tol, solver),
        value=lambda s: s.kernel.potentials,
        error=error,
        report=lambda s: s.error,
        status=lambda _: problem.status,
        stall=PATIENCE,
        **loop,
    )
    return finish(problem, run, tol, run.state.cg_steps, data)
