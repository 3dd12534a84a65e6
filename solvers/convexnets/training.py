"""Two-layer ReLU networks trained to a certificate of global optimality over their activation patterns."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.implicit import UNCONVERGED
from ..core.loop import Limits, iterate
from ..core.precision import binary_exponent
from ..core.solution import Status
from ..core.typing import Array, Progress, Scalar
from .derivatives import mean_product, path_end, with_derivatives
from .interior import Data, Point, advance, slope, start
from .problem import Blocks, ConvexReLU, dual_bound, network_objective
from .solution import ConvexReLUSolution

NAME = "train_relu"


class State(NamedTuple):
    """The interior point and the last one far from the end, the best network seen, the best bound and what gives it."""

    point: Point
    path: Point
    u: Array
    objective: Array
    slope: Array
    z: Array
    bound: Array


def step(problem: ConvexReLU, data: Data, s: State) -> State:
    """Take one interior-point step and keep what improves either bound."""
    point = advance(data, s.point)
    early = mean_product(data, point) >= path_end(data)
    path = jax.tree.map(lambda new, old: jnp.where(early, new, old), point, s.path)
    return improved(problem, data, s._replace(point=point, path=path), point.u, slope(data, point), point.z)


def improved(problem: ConvexReLU, data: Data, s: State, u: Array, steep: Array, z: Array) -> State:
    """Return the state with the better of both bounds."""
    args = data.blocks, problem.loss, data.y, data.beta
    objective = network_objective(*args, u)
    bound = dual_bound(*args, steep, z if data.blocks.cone else None)
    better, higher = objective < s.objective, bound > s.bound
    return s._replace(
        u=jnp.where(better, u, s.u),
        objective=jnp.where(better, objective, s.objective),
        slope=jnp.where(higher, steep, s.slope),
        z=jnp.where(higher, z, s.z),
        bound=jnp.where(higher, bound, s.bound),
    )


def train_relu(
    problem: ConvexReLU,
    *,
    sketch: int | None = None,
    x0: ConvexReLUSolution | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 200,
    history: bool | int = False,
    progress: Progress | None = None,
) -> ConvexReLUSolution:
    """Train a two-layer ReLU network to the global optimum over the problem's activation patterns.

    ``min loss(sum_j (X u_j)_+ a_j, y) + beta / 2 sum_j (|u_j|^2 + a_j^2)`` over all neurons with the patterns of
    `ConvexReLU`, or its gated relative, by a primal-dual interior-point method for the convex problem. Use it for some
    thousands of examples and hundreds of patterns, where the answer should be the best there is and known to be so.

    Parameters
    ----------
    problem : ConvexReLU
        See there; its arrays X, y and beta are traced and differentiable.
    sketch : int, optional
        Solve each step's n x n system by conjugate gradients, preconditioned by a Nystrom approximation of this rank,
        some times the number of weights of the active neurons; by default the matrix is formed and factorised. Static.
    x0 : ConvexReLUSolution, optional
        An earlier answer, whose network and certificate are kept until better ones are found. Its derivative is zero.
    unconverged : str
        Derivatives of a solve that did not converge: ``"nan"``, or ``"approximate"``, those of the equations at the
        point returned. Static.
    tol : scalar, optional
        Traced; 1e-6 in float64, 5e-3 in float32.
    max_steps : int
        Traced.
    history : bool or int
        Record the error after each step (the first 256, or as many as given). Static.
    progress : callable, optional
        ``progress(step, error)`` on the host.

    Returns
    -------
    ConvexReLUSolution
        ``value`` (2 p, d): the v_i, then the w_i; ``objective``, ``lower_bound``, ``duality_gap``, ``to_network()``.
        ``error = (objective - lower_bound) / objective`` (1), not below zero, with the objective of the network and a
        bound from a feasible point of the dual problem: no network with these patterns is better by more. One with
        other patterns may be. `Status.STAGNATED` where rounding ends it.

    Raises
    ------
    TypeError, ValueError
        `problem` is no `ConvexReLU`; an unknown option.

    Notes
    -----
    A step is Mehrotra's, with Nesterov and Todd's scaling of the neurons' lengths: the blocks are eliminated one by
    one, O(p n d^2), and an n x n matrix is formed in O(p d n^2) and factorised, or, with a `sketch`, multiplied some
    tens of times at O(p d n). Memory 2 p d n numbers. It starts inside all cones, at multiples of the gates. Examples
    and targets are scaled by powers of two, so their size does not matter.

    In float32 rounding may end it at a gap of some percent, as stagnated; take float64 for a certificate. Both bounds
    hold whatever the iterates are: the upper one is a network's own objective, the lower one scales the
    multipliers until they are feasible.

    Derivatives: of `objective`, by the envelope theorem, and of functions of the network's outputs, those of a point of
    the central path at a complementarity of the root of the rounding error, a thousand times that for the hinge; in X,
    y and beta, forward and reverse, of first order. The hinge's outputs have kinks where an example reaches its margin:
    what is returned there is the derivative of the smooth path. Neurons have derivatives of their own only where they
    are unique. Patterns are constant.

    References
    ----------
    Pilanci, Ergen, "Neural networks are convex regularizers", ICML 2020, theorem 1. Bai, Gautam, Sojoudi, "Efficient
    global optimization of two-layer ReLU networks", SIMODS 2023. Mehrotra, "On the implementation of a primal-dual
    interior point method", SIAM J. Optim. 2 (1992).

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import ConvexReLU, train_relu
    >>> x = jnp.linspace(-1.0, 1.0, 9)
    >>> X = jnp.stack([x, jnp.ones(9)], axis=1)
    >>> sol = train_relu(ConvexReLU.sampled(X, jnp.abs(x), beta=1e-2, patterns=30, key=jax.random.key(3)))
    >>> bool(sol.converged), bool(jnp.max(jnp.abs(jax.vmap(sol.to_network())(X) - jnp.abs(x))) < 0.1)
    (True, True)
    """
    if not isinstance(problem, ConvexReLU):
        checks.fail(NAME, "problem", "a ConvexReLU", type(problem).__name__, TypeError)
    checks.choice(NAME, "unconverged", unconverged, UNCONVERGED)
    dtype = problem.X.dtype
    tol = checks.number(NAME, "tol", (1e-6 if dtype == jnp.float64 else 5e-3) if tol is None else tol, dtype=dtype)
    if sketch is not None and (isinstance(sketch, bool) or not isinstance(sketch, int) or sketch < 1):
        checks.fail(NAME, "sketch", "a positive Python integer", sketch)
    return _solve(
        problem,
        x0,
        sketch or 0,
        Limits(tol, checks.count(NAME, "max_steps", max_steps), history, progress),
        unconverged,
    )


def unit_of(x: Array) -> Array:
    """Return the power of two that brings the largest entry near one."""
    return jnp.ldexp(jnp.ones((), x.dtype), -binary_exponent(jnp.max(jnp.abs(x))))


def scaled(problem: ConvexReLU, a: Array, b: Array) -> ConvexReLU:
    """Return the problem of ``a X`` and ``b y``, whose neurons are ``b / a`` times those of the given one."""
    return eqx.tree_at(lambda p: (p.X, p.y, p.beta), problem, (a * problem.X, b * problem.y, (a * b) * problem.beta))


@eqx.filter_jit
def _solve(problem: ConvexReLU, x0, sketch: int, limits: Limits, unconverged: str) -> ConvexReLUSolution:
    a = lax.stop_gradient(unit_of(problem.X))
    b = lax.stop_gradient(unit_of(problem.y)) if problem.loss == "squared" else jnp.ones_like(a)
    problem = scaled(problem, a, b)
    problem = eqx.tree_at(lambda p: p.beta, problem, jnp.where(problem.beta < 0, jnp.nan, problem.beta))  # no minimum
    frozen = lax.stop_gradient(problem)
    blocks = Blocks.of(frozen)
    data = Data(blocks, frozen.y, frozen.beta, frozen.loss, sketch)
    copies = blocks.sign.shape[0] // frozen.gates.shape[0]
    point = start(data, jnp.tile(frozen.gates, (copies, 1)))

    nothing = jnp.zeros_like(point.u)
    steep = -data.y  # of both losses at f = 0
    zero = jnp.zeros_like(point.z)
    least = jnp.full((), -jnp.inf, data.y.dtype)
    first = State(
        point, point, nothing, network_objective(blocks, frozen.loss, data.y, data.beta, nothing), steep, zero, least
    )
    first = improved(frozen, data, first, nothing, steep, zero)
    if x0 is not None:
        u, z, old = lax.stop_gradient((x0.value * (b / a), x0.multipliers * b, x0.slope * b))
        first = improved(frozen, data, first, u, old, z)
    run = iterate(
        lambda s: step(frozen, data, s),
        first,
        limits,
        value=lambda s: s,
        # (1)
        error=lambda s: jnp.maximum(s.objective - s.bound, 0) / jnp.where(s.objective > 0, s.objective, 1),
        stall=25,
    )
    best = run.value
    trusted = (run.status == Status.CONVERGED) | (unconverged == "approximate")
    u, value = with_derivatives(problem, best.u, best.objective, best.path, trusted, sketch)
    return ConvexReLUSolution(
        u * (a / b), run.status, run.num_steps, run.error, limits.tol, run.history, value / b**2, best.bound / b**2,
        best.slope / b, best.z / b, blocks.sign, problem.gates if problem.gated else None,
    )  # fmt: skip
