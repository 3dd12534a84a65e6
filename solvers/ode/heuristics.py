"""Error and stiffness estimates of an adaptive Runge-Kutta solver, kept instead of thrown away, as penalties.

Of Pal, Ma, Shah, Rackauckas (ICML 2021) and, the fourth, of Shampine (1977), numbered as in the comments; sums run over
accepted steps h, g and f(g) are points and slopes of the last two stages at the step's end:

(1) ``E = |y_error / (atol + rtol max(|y|, |y_next|))|``, root mean square
(2) ``R_E = sum E |h|``
(3) ``R_E2 = sum E^2``
(4) ``S = |f(g_second) - f(g_first)| / |g_second - g_first|``
(5) ``R_S = sum S``, or their maximum

It departs from the paper in the maximum, the default here, and in (4), which the authors' program divides by the
method's stability size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

try:
    import diffrax
except ImportError as cause:
    raise ImportError('solvers.ode needs diffrax: pip install "jax-solvers[ode]"') from cause

from ..core import checks
from ..core.precision import HIGHEST
from ..core.typing import Array, Float, Int

ERRORS, STIFFNESSES = ("sum", "mean", "squared"), ("max", "mean", "sum")


class Heuristics(NamedTuple):
    """What `TrackHeuristics` has added up over the accepted steps.

    Attributes
    ----------
    error : Float[Array, ""]
        ``sum E |h|``, E the norm of the scaled error estimate and h the step.
    squared : Float[Array, ""]
        ``sum E^2``.
    stiffness, largest : Float[Array, ""] or None
        Sum and maximum of the stiffness estimates S; None where the solver has none.
    steps : Int[Array, ""]
        Accepted steps.
    """

    error: Float[Array, "..."]
    squared: Float[Array, "..."]
    stiffness: Float[Array, "..."] | None
    largest: Float[Array, "..."] | None
    steps: Int[Array, "..."]


class TrackHeuristics(diffrax.AbstractAdaptiveSolver, diffrax.AbstractWrappedSolver):
    """A diffrax solver that remembers how hard its steps were, at no evaluation of the vector field more.

    An embedded Runge-Kutta pair estimates its error in every step, ``E = |y_error / (atol + rtol max(|y|, |y_next|))|``
    (root mean square, as diffrax accepts steps by); one with two stages at the step's end shows the stiffness, ``S =
    |f(g) - f(y_next)| / |g - y_next|`` with g the last stage but one. Added to a loss, they teach a neural ordinary
    differential equation to be cheap to solve. Use it like the solver that it wraps, with ``saveat`` told to keep the
    solver's state, and read `error_penalty` and `stiffness_penalty` off the solution.

    Attributes
    ----------
    solver : diffrax.AbstractAdaptiveSolver
        Whose steps are kept: any with an error estimate. Stiffness needs an explicit Runge-Kutta method with two stages
        at the end, such as Tsit5, Dopri5 and Dopri8; without, `stiffness_penalty` refuses.
    rtol, atol : float
        What errors are measured in: those of the step size controller.

    Raises
    ------
    TypeError
        A solver that has no error estimate.

    Notes
    -----
    diffrax advances a solver's state on accepted steps only, which is what keeps refused ones out. Derivatives go
    through the estimates; the step sizes are constants in them, as in diffrax's controllers. They need an adjoint that
    differentiates the steps themselves: ``RecursiveCheckpointAdjoint``, ``DirectAdjoint`` or ``ForwardMode``;
    ``BacksolveAdjoint`` raises.

    References
    ----------
    A. Pal, Y. Ma, V. Shah, C. Rackauckas, *Opening the blackbox: accelerating neural differential equations by
    regularizing internal solver heuristics*, ICML 2021. L. F. Shampine, "Stiffness and nonstiff
    differential equation solvers II", ACM Trans. Math. Softw. 3 (1977).

    Examples
    --------
    >>> import diffrax, jax.numpy as jnp
    >>> from solvers import TrackHeuristics, stiffness_penalty
    >>> term = diffrax.ODETerm(lambda t, y, args: -7 * y)
    >>> sol = diffrax.diffeqsolve(term, TrackHeuristics(diffrax.Tsit5()), 0.0, 1.0, 0.01, jnp.ones(1),
    ...                           saveat=diffrax.SaveAt(t1=True, solver_state=True))
    >>> print(f"{stiffness_penalty(sol):.1f}")
    7.0
    """

    solver: diffrax.AbstractSolver
    rtol: float = 1e-3
    atol: float = 1e-6

    def __check_init__(self):
        """Refuse what has no error estimate."""
        if not isinstance(self.solver, diffrax.AbstractAdaptiveSolver):
            name = type(self.solver).__name__
            checks.fail("TrackHeuristics", "solver", "one with an error estimate", name, TypeError)

    @property
    def term_structure(self):
        """Of the wrapped solver."""
        return self.solver.term_structure

    @property
    def interpolation_cls(self):  # pyright: ignore
        """Of the wrapped solver."""
        return self.solver.interpolation_cls

    @property
    def term_compatible_contr_kwargs(self):
        """Of the wrapped solver."""
        return self.solver.term_compatible_contr_kwargs

    @property
    def scan_kind(self):
        """Of the wrapped solver; diffrax sets it for forward mode."""
        return self.solver.scan_kind  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def root_finder(self):
        """Of the wrapped solver, where it is implicit."""
        return self.solver.root_finder  # pyright: ignore[reportAttributeAccessIssue]

    def order(self, terms):
        """Return the wrapped solver's."""
        return self.solver.order(terms)

    def strong_order(self, terms):
        """Return the wrapped solver's."""
        return self.solver.strong_order(terms)

    def error_order(self, terms):
        """Return the wrapped solver's."""
        return self.solver.error_order(terms)

    def init(self, terms, t0, t1, y0, args):
        """Return the wrapped solver's state and sums of zero."""
        zero = jnp.zeros((), real_dtype(y0))
        stiff = None if last_stages(self.solver) is None else zero
        return self.solver.init(terms, t0, t1, y0, args), Heuristics(zero, zero, stiff, stiff, jnp.zeros((), jnp.int32))

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """Take the wrapped solver's step and add its estimates."""
        inner, seen = solver_state
        y1, y_error, dense_info, inner, result = self.solver.step(terms, t0, t1, y0, args, inner, made_jump)
        dtype = seen.error.dtype
        scale = jax.tree.map(lambda a, b: self.atol + self.rtol * jnp.maximum(jnp.abs(a), jnp.abs(b)), y0, y1)
        scaled = jax.tree.map(lambda e, s: e / s.astype(s.dtype), y_error, scale)
        count = sum(leaf.size for leaf in jax.tree.leaves(scaled))
        error = length(scaled).astype(dtype) / count**0.5  # (1)
        h = jnp.abs(t1 - t0).astype(dtype)
        stages = last_stages(self.solver)
        total = largest = None
        if stages is not None:
            stiff = stiffness(stages, dense_info["k"], h)
            total, largest = seen.stiffness + stiff, jnp.maximum(seen.largest, stiff)  # (5)
        # (2), (3)
        sums = Heuristics(seen.error + error * h, seen.squared + error**2, total, largest, seen.steps + 1)
        return y1, y_error, dense_info, (inner, sums), result

    def func(self, terms, t0, y0, args):
        """Return the vector field."""
        return self.solver.func(terms, t0, y0, args)


def real_dtype(y: Any) -> Any:
    """Return the real dtype that norms of a pytree have."""
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(y)]
    return max(dtypes, key=lambda d: d.itemsize)


def length(x: Any) -> Array:
    """Return the Euclidean norm of a pytree, with derivative zero at zero."""
    dtype = real_dtype(x)
    square = sum(jnp.sum(jnp.abs(leaf) ** 2).astype(dtype) for leaf in jax.tree.leaves(x))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def last_stages(solver: Any) -> tuple[int, int, np.ndarray] | None:
    """Return the two last stages at the end of the step and the difference of their points, or None.

    Points are ``g_i = y + sum_j a_ij k_j``, so the difference is a combination of the k alone.
    """
    tableau = getattr(solver, "tableau", None)
    if not isinstance(tableau, diffrax.ButcherTableau) or tableau.implicit:
        return None
    at_end = [i + 1 for i, c in enumerate(tableau.c) if c == 1]
    if len(at_end) < 2:
        return None
    first, second = at_end[-2:]
    rows = np.zeros((2, tableau.num_stages))
    for row, i in zip(rows, (first, second), strict=True):
        row[:i] = tableau.a_lower[i - 1]
    return first, second, rows[1] - rows[0]


def stiffness(stages: tuple[int, int, np.ndarray], k: Any, h: Array) -> Array:
    """Return ``|f(g_second) - f(g_first)| / |g_second - g_first|`` from ``k = h f``."""
    first, second, weights = stages
    change = length(jax.tree.map(lambda k: k[second] - k[first], k))
    apart = length(jax.tree.map(lambda k: jnp.tensordot(jnp.asarray(weights, k.dtype), k, 1, precision=HIGHEST), k))
    told = (apart > 0) & (h > 0)
    return jnp.where(told, change / jnp.where(told, apart * h.astype(apart.dtype), 1), 0).astype(h.dtype)  # (4)


def seen_by(name: str, solution: Any) -> Heuristics:
    """Return the sums that a diffrax solution holds, or raise."""
    state = getattr(solution, "solver_state", None)
    if not (isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Heuristics)):
        expected = "of a TrackHeuristics solver with SaveAt(solver_state=True)"
        checks.fail(name, "solution", expected, type(state).__name__)
    return state[1]


def error_penalty(solution: Any, *, kind: str = "sum") -> Float[Array, ""]:
    """Return how large the accepted steps' error estimates were, to be added to a loss.

    Parameters
    ----------
    solution : diffrax.Solution
        Of a `TrackHeuristics` solver, with ``SaveAt(solver_state=True)``.
    kind : {"sum", "mean", "squared"}
        ``sum E |h|``; the same over the number of steps; ``sum E^2``. Static.

    Returns
    -------
    Float[Array, ""]
        Differentiable in all that the solution depends on, step sizes held fixed.

    Raises
    ------
    ValueError
        A solution without estimates, or an unknown kind.

    References
    ----------
    A. Pal, Y. Ma, V. Shah, C. Rackauckas, *Opening the blackbox*, ICML 2021.

    Examples
    --------
    >>> import diffrax, jax.numpy as jnp
    >>> from solvers import TrackHeuristics, error_penalty
    >>> def cost(rate):
    ...     term = diffrax.ODETerm(lambda t, y, args: -rate * y)
    ...     solver = TrackHeuristics(diffrax.Heun(), rtol=0.0, atol=1.0)
    ...     sol = diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.25, jnp.ones(1),
    ...                               saveat=diffrax.SaveAt(t1=True, solver_state=True))
    ...     return error_penalty(sol)
    >>> bool(cost(2.0) > 2 * cost(1.0))
    True
    """
    checks.choice("error_penalty", "kind", kind, ERRORS)
    seen = seen_by("error_penalty", solution)
    if kind == "squared":
        return seen.squared
    return seen.error if kind == "sum" else seen.error / jnp.maximum(seen.steps, 1).astype(seen.error.dtype)


def stiffness_penalty(solution: Any, *, kind: str = "max") -> Float[Array, ""]:
    """Return how stiff the accepted steps looked, to be added to a loss.

    Parameters
    ----------
    solution : diffrax.Solution
        Of a `TrackHeuristics` solver, with ``SaveAt(solver_state=True)``.
    kind : {"max", "mean", "sum"}
        Over the accepted steps. Static.

    Returns
    -------
    Float[Array, ""]
        In one over time; of a scalar linear equation ``y' = rate y`` it is ``|rate|`` exactly (for "max" and "mean").

    Raises
    ------
    ValueError
        A solution without these estimates, or an unknown kind.

    Notes
    -----
    Divide by the method's stability size (3.5068 for Tsit5, as its authors use it) and multiply by the step to compare
    with its stability limit.

    References
    ----------
    A. Pal, Y. Ma, V. Shah, C. Rackauckas, *Opening the blackbox*, ICML 2021.
    """
    checks.choice("stiffness_penalty", "kind", kind, STIFFNESSES)
    seen = seen_by("stiffness_penalty", solution)
    if seen.largest is None or seen.stiffness is None:
        checks.fail("stiffness_penalty", "solution", "of a method with two stages at the end of a step", "another")
    if kind == "sum":
        return seen.stiffness
    return seen.largest if kind == "max" else seen.stiffness / jnp.maximum(seen.steps, 1).astype(seen.stiffness.dtype)
