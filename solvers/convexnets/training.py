"""Two-layer ReLU networks trained to a certificate of global optimality over their activation patterns."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.implicit import UNCONVERGED, distrust
from ..core.loop import Limits, iterate
from ..core.precision import matmul, unit_of
from ..core.solution import Status
from ..core.typing import Array, Progress, Scalar
from . import robust_interior
from .derivatives import mean_product, path_end, with_derivatives
from .interior import Data, advance, slope, start
from .problem import Blocks, ConvexReLU, dual_bound, network_objective
from .robust import gradients, robust_bound, robust_lagrangian, robust_objective
from .robust_interior import RobustData
from .solution import ConvexReLUSolution

NAME = "train_relu"


class State(NamedTuple):
    """The interior point and the last one far from the end, the best network seen, the best bound and what gives it."""

    point: Any
    path: Any
    u: Array
    objective: Array
    slope: Array
    z: Array
    bound: Array


def step(data: Data | RobustData, s: State) -> State:
    """Take one interior-point step and keep what improves either bound."""
    if isinstance(data, RobustData):
        point = robust_interior.advance(data, s.point)
        evidence = robust_interior.slopes(data, point), point.z.cone
        return improved(data, s._replace(point=point, path=point), point.u, *evidence)
    point = advance(data, s.point)
    early = mean_product(data, point) >= path_end(data)
    path = jax.tree.map(lambda new, old: jnp.where(early, new, old), point, s.path)
    return improved(data, s._replace(point=point, path=path), point.u, slope(data, point), point.z)


def bounds(data: Data | RobustData, u: Array, steep: Array, z: Array) -> tuple[Array, Array]:
    """Return the objective of a network, and the bound that slopes of the loss and multipliers give."""
    args = data.blocks, data.loss, data.y, data.beta
    if isinstance(data, RobustData):
        return robust_objective(*args, data.radius, u), robust_bound(*args, data.radius, steep, z)
    return network_objective(*args, u), dual_bound(*args, steep, z if data.blocks.cone else None)


def improved(data: Data | RobustData, s: State, u: Array, steep: Array, z: Array) -> State:
    """Return the state with the better of both bounds."""
    objective, bound = bounds(data, u, steep, z)
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
    tens of times at O(p d n). Of the squared loss it is a matrix of 2 p d rows, in O((p d)^2 n), where that is smaller.
    Memory 2 p d n numbers. It starts inside all cones, at multiples of the gates. Examples and targets are scaled by
    powers of two, so their size does not matter.

    In float32 rounding may end it at a gap of some percent, as stagnated; take float64 for a certificate. Both bounds
    hold whatever the iterates are: the upper one is a network's own objective, the lower one scales the
    multipliers until they are feasible.

    With a radius, ``ConvexReLU.sampled(...).robust(0.1)``, the loss of each example is the worst of its box, and
    `objective` that of the network, exactly; the bound is for networks whose neurons change sides within no box. Others
    are left out, as by Bai, Gautam and Sojoudi, and where boxes are wide or many they may stand the perturbations
    better: with few patterns left (`ConvexReLU.distinct`), compare with the network of a smaller radius. A step
    solves one system in all neurons, (2 p d)^3 / 3, for up to some thousand weights. Only `objective` has derivatives
    then, in the radius too.

    Derivatives: of `objective`, by the envelope theorem, and of functions of the network's outputs, those of a point of
    the central path at a complementarity of the root of the rounding error, a thousand times that for the hinge; in X,
    y and beta, forward and reverse, of first order. The hinge's outputs have kinks where an example reaches its margin:
    what is returned there is the derivative of the smooth path. Neurons have derivatives of their own only where they
    are unique. Patterns are constant.

    References
    ----------
    Pilanci, Ergen, "Neural networks are convex regularizers", ICML 2020, theorem 1. Bai, Gautam, Sojoudi, "Efficient
    global optimization of two-layer ReLU networks", SIMODS 2023, for the robust problem too. Mehrotra, "On the
    implementation of a primal-dual interior point method", SIAM J. Optim. 2 (1992).

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
    if sketch is not None and problem.radius is not None:
        checks.fail(NAME, "sketch", "None with a `radius`: the system of a step is in the neurons there", sketch)
    return _solve(
        problem,
        x0,
        sketch or 0,
        Limits(tol, checks.count(NAME, "max_steps", max_steps), history, progress),
        unconverged,
    )


def scaled(problem: ConvexReLU, a: Array, b: Array) -> ConvexReLU:
    """Return the problem of ``a X`` and ``b y``, whose neurons are ``b / a`` times those of the given one."""
    radius = None if problem.radius is None else a * problem.radius
    return eqx.tree_at(
        lambda p: (p.X, p.y, p.beta, p.radius), problem, (a * problem.X, b * problem.y, (a * b) * problem.beta, radius),
        is_leaf=lambda x: x is None,
    )  # fmt: skip


def sensible(problem: ConvexReLU) -> ConvexReLU:
    """Return the problem, NaN where it has no minimum: negative weight decay, or radii."""
    problem = eqx.tree_at(lambda p: p.beta, problem, jnp.where(problem.beta < 0, jnp.nan, problem.beta))
    if problem.radius is None:
        return problem
    return eqx.tree_at(lambda p: p.radius, problem, jnp.where(problem.radius < 0, jnp.nan, problem.radius))


def begin(problem: ConvexReLU, sketch: int) -> tuple[Data | RobustData, State]:
    """Return what a step needs, and the state at the start: no network, and the bound that its slope gives."""
    blocks, y, beta = Blocks.of(problem), problem.y, problem.beta
    gates = jnp.tile(problem.gates, (blocks.sign.shape[0] // problem.gates.shape[0], 1))
    nothing = jnp.zeros_like(gates)
    zero = jnp.zeros((gates.shape[0], y.shape[0]), y.dtype)
    if problem.radius is None:
        data = Data(blocks, y, beta, problem.loss, sketch)
        point, steep = start(data, gates), -y  # of both losses at f = 0
    else:
        data = RobustData.of(blocks, problem.loss, y, beta, problem.radius)
        point = robust_interior.start(data, gates)
        steep = jnp.concatenate([-y[:, None], jnp.zeros_like(problem.X)], axis=1)
    objective, bound = bounds(data, nothing, steep, zero)
    return data, State(point, point, nothing, objective, steep, zero, bound)


def units(problem: ConvexReLU, a: Array, b: Array) -> Array:
    """Return the unit of each entry of `slope`: of its gradients' columns, behind the outputs', it is another."""
    if problem.radius is None:
        return b
    return jnp.concatenate([b[None], jnp.broadcast_to(a * b, problem.radius.shape)])[None, :]


def attached(problem: ConvexReLU, best: State, trusted: Array, sketch: int) -> tuple[Array, Array]:
    """Return neurons and objective with their derivatives; the neurons of a robust network have none."""
    if problem.radius is None:
        return with_derivatives(problem, best.u, best.objective, best.path, trusted, sketch)
    u, a, z, y = lax.stop_gradient((best.u, best.slope[:, 0], best.z, problem.y))
    fit = Blocks.of(lax.stop_gradient(problem)).fit(u)
    spread = matmul(jnp.abs(gradients(Blocks.of(lax.stop_gradient(problem)), u)), lax.stop_gradient(problem.radius))
    rise = jnp.abs(fit - y) + spread if problem.loss == "squared" else jnp.clip(-a * y, 0, 1)
    blocks = eqx.tree_at(lambda b: b.active, Blocks.of(problem), lax.stop_gradient(Blocks.of(problem).active))
    value = robust_lagrangian(blocks, problem.loss, problem.y, problem.beta, problem.radius, u, (a, rise, z))
    value = lax.stop_gradient(best.objective) + (value - lax.stop_gradient(value))
    none = jnp.zeros_like(trusted)
    return distrust(u + 0 * value, none), distrust(value, trusted)


@eqx.filter_jit
def _solve(problem: ConvexReLU, x0, sketch: int, limits: Limits, unconverged: str) -> ConvexReLUSolution:
    a = lax.stop_gradient(unit_of(problem.X))
    b = lax.stop_gradient(unit_of(problem.y)) if problem.loss == "squared" else jnp.ones_like(a)
    problem = sensible(scaled(problem, a, b))
    frozen = lax.stop_gradient(problem)
    data, first = begin(frozen, sketch)
    unit = units(frozen, a, b)
    if x0 is not None:
        u, z, old = lax.stop_gradient((x0.value * (b / a), x0.multipliers * b, x0.slope * unit))
        first = improved(data, first, u, old, z)
    run = iterate(
        lambda s: step(data, s),
        first,
        limits,
        value=lambda s: s,
        # (1)
        error=lambda s: jnp.maximum(s.objective - s.bound, 0) / jnp.where(s.objective > 0, s.objective, 1),
        stall=25,
    )
    best = run.value
    trusted = (run.status == Status.CONVERGED) | (unconverged == "approximate")
    u, value = attached(problem, best, trusted, sketch)
    return ConvexReLUSolution(
        u * (a / b), run.status, run.num_steps, run.error, limits.tol, run.history, value / b**2, best.bound / b**2,
        best.slope / unit, best.z / b, data.blocks.sign, problem.gates if problem.gated else None,
    )  # fmt: skip
