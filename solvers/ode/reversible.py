"""BDIA for diffrax: a two-step method that runs back over its own steps, and a solve with that derivative.

By Zhang, Lewis, Kleijn (ECCV 2024), with Euler's increments ``Delta(t -> s) = f(t, y) (s - t)``, both from y[n]:

(1) ``y[n+1] = y[n-1] - (1 - gamma) (y[n-1] - y[n]) - gamma Delta(n -> n-1) + Delta(n -> n+1)``

Solved for y[n-1] this is (1) once more, of the pair (y[n+1], y[n]) and with 1 / gamma for gamma: a step back is a step.
In both f is asked once, at y[n].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

try:
    import diffrax
except ImportError as cause:
    raise ImportError('solvers.ode needs diffrax: pip install "jax-solvers[ode]"') from cause

from ..core import checks
from ..core.precision import eps
from ..core.reversible import missed, reversible_scan
from ..core.typing import Array, Float, Scalar


class Before(NamedTuple):
    """What `BDIA` remembers: the point before the last, and how long the step from it was (0 at the start)."""

    y: Any
    step: Any


class BDIA(diffrax.AbstractSolver):
    """The bidirectional integration approximation as a diffrax solver: two steps deep, one evaluation a step.

    Equation 1 of this module. With ``gamma = 1`` and constant steps it is the leapfrog rule, of second order, and
    going back over the same steps gives the same points to rounding; the first step is Euler's. Use it where a
    trajectory has to be retraced: oscillations, flows that preserve volume, samplers. For anything else diffrax's
    Runge-Kutta methods are better: the rule has no error estimate and is weakly unstable where solutions decay,
    with an oscillation from step to step that grows like the decaying part shrinks.

    Attributes
    ----------
    gamma : scalar
        1: second order and reversible. Below 1: first order, and going back multiplies errors by 1 / gamma a step.
        0: Euler's method, which cannot be run back. Traced.

    Notes
    -----
    *Back.* With ``SaveAt(t1=True, solver_state=True)`` a solution knows its last two points. Solve from the older of
    them, with ``solver.reversed()`` and ``solver_state=Before(last y, step)``, as in the example. The times must be the
    same both ways: diffrax adds steps up, so take one whose multiples have no rounding, such as a power of two.

    *Derivatives* by diffrax's adjoints, which store or recompute steps; `reversible_solve` needs no memory of them.
    At a jump (``made_jump``) it starts afresh with Euler's step, which is not reversible.

    References
    ----------
    G. Zhang, J. P. Lewis, W. B. Kleijn, "Exact diffusion inversion via bidirectional integration approximation", ECCV
    2024, (12). L. F. Shampine, "Stability of the leapfrog/midpoint method", Appl. Math. Comput. 208 (2009).

    Examples
    --------
    >>> import diffrax, jax.numpy as jnp
    >>> from solvers.ode import BDIA, Before
    >>> term = diffrax.ODETerm(lambda t, y, args: jnp.stack([y[1], -jnp.sin(y[0])]))
    >>> save, start = diffrax.SaveAt(t1=True, solver_state=True), jnp.asarray([1.0, 0.0])
    >>> there = diffrax.diffeqsolve(term, BDIA(), 0.0, 1.0, 0.125, start, saveat=save)
    >>> back = diffrax.diffeqsolve(term, BDIA().reversed(), 0.875, 0.0, -0.125, there.solver_state.y,
    ...                            solver_state=Before(there.ys[-1], 0.125))
    >>> bool(jnp.max(jnp.abs(back.ys[-1] - start)) < 1e-6)
    True
    """

    gamma: Any = 1.0

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = diffrax.LocalLinearInterpolation

    def order(self, terms):
        """Return 2 where gamma is 1, otherwise 1."""
        return 2 if isinstance(self.gamma, int | float) and self.gamma == 1 else 1

    def reversed(self) -> "BDIA":
        """Return the method that undoes this one's steps."""
        return BDIA(1 / self.gamma)

    def init(self, terms, t0, t1, y0, args):
        """Return a pair of equals: the first step is Euler's."""
        return Before(y0, jnp.zeros_like(t1 - t0))

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """Take one step."""
        older = jax.tree.map(lambda a, b: jnp.where(made_jump, a, b), y0, solver_state.y)
        last = jnp.where(made_jump, 0, solver_state.step)
        controls = terms.contr(t0 - last, t0), terms.contr(t0, t1)
        y1 = advanced(terms, self.gamma, (older, y0), (t0, *controls), args)
        return y1, None, {"y0": y0, "y1": y1}, Before(y0, t1 - t0), diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """Return the vector field."""
        return terms.vf(t0, y0, args)


def advanced(terms, gamma, pair, at, args):
    """Return the point after a pair, older first, of which the newer is at time t; `at` holds t and both controls."""
    (older, y), (t, before, after) = pair, at
    control = jax.tree.map(lambda a, b: gamma * a + b, before, after)
    moved = terms.vf_prod(t, y, args, control)
    return jax.tree.map(lambda o, y, m: o - (1 - gamma) * (o - y) + m, older, y, moved)  # (1)


class Retraceable(NamedTuple):
    """The end of `reversible_solve`.

    Attributes
    ----------
    value : PyTree
        y at the last time.
    previous : PyTree
        y one step before it: together they are what the way back starts from.
    ripple : Float[Array, ""]
        ``max |y[N] - 2 y[N-1] + y[N-2]| / (4 max |y[N-1]|)``: the oscillation from step to step. As long as it falls
        like the square of the step it is of the size of the error; otherwise the solution is lost in it.
    """

    value: Any
    previous: Any
    ripple: Float[Array, "..."]


class _Pair(NamedTuple):
    older: Any
    newer: Any


def reversible_solve(terms: Any, t0: Scalar, t1: Scalar, y0: Any, args: Any = None, *, steps: int) -> Retraceable:
    """Solve an ordinary differential equation so that reverse mode needs no memory of the steps.

    Constant steps of `BDIA` with gamma = 1. The derivative is that of the steps taken, as of diffrax's
    ``RecursiveCheckpointAdjoint``, not of the continuous equation; it runs back over them instead of storing them, at
    two evaluations and one derivative of the vector field a step. For long trajectories that oscillate; for what decays
    use diffrax with checkpoints.

    Parameters
    ----------
    terms : diffrax.AbstractTerm or callable
        The equation, ``f(t, y, args)`` where it is a callable. Differentiable in its arrays.
    t0, t1 : float
        Differentiable.
    y0 : PyTree of Float[Array, "..."]
        Differentiable.
    args : PyTree, optional
        Differentiable.
    steps : int
        At least two. Static.

    Returns
    -------
    Retraceable
        ``value``, ``previous`` and ``ripple``, which has no derivative.

    Raises
    ------
    ValueError
        Fewer than two steps.
    TypeError
        A `y0` that is not of real or complex floats.

    Notes
    -----
    Second order; no error control. One evaluation a step, memory of the derivative that of one step. Reverse mode,
    first order. Where the way back misses ``y0`` by more than the square root of rounding (relative to it, largest
    entry), as it does where solutions decay by more than that, derivatives are NaN.

    References
    ----------
    G. Zhang, J. P. Lewis, W. B. Kleijn, "Exact diffusion inversion via bidirectional integration approximation", ECCV
    2024.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import reversible_solve
    >>> end = reversible_solve(lambda t, y, rate: jnp.stack([y[1], -rate * y[0]]), 0.0, 1.0, jnp.array([1.0, 0.0]),
    ...                        4.0, steps=500)
    >>> bool(jnp.abs(end.value[0] - jnp.cos(2.0)) < 1e-4)
    True
    """
    name = "reversible_solve"
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        checks.fail(name, "steps", "a Python integer of at least 2", steps)
    leaves = jax.tree.leaves(y0)
    if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves):
        checks.fail(name, "y0", "a pytree of real or complex floating-point arrays", y0, TypeError)
    y0 = jax.tree.map(jnp.asarray, y0)
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(y0)]
    dtype = max(dtypes, key=lambda d: d.itemsize)
    terms = terms if isinstance(terms, diffrax.AbstractTerm) else diffrax.ODETerm(terms)
    begin, end = (jnp.asarray(t, dtype) for t in (t0, t1))
    times = begin + (end - begin) * jnp.asarray(np.arange(steps + 1) / steps, dtype)
    moving, still = eqx.partition((terms, args), eqx.is_inexact_array)

    def field(moving, t, y, control):
        terms, args = eqx.combine(moving, still)
        return terms.vf_prod(t, y, args, control)

    def control(terms, a, b):
        return terms.contr(a, b)

    first = control(terms, times[0], times[1])
    # A vector field may close over arrays that are differentiated; they become arguments here.
    pure, hoisted = jax.closure_convert(field, moving, times[0], y0, first)
    parameters = (moving, tuple(hoisted))

    def step(parameters, c: _Pair, x) -> _Pair:
        return _Pair(c.newer, jax.tree.map(jnp.add, c.older, _moved(parameters, c.newer, x)))

    def back(parameters, c: _Pair, x) -> _Pair:
        return _Pair(jax.tree.map(jnp.subtract, c.newer, _moved(parameters, c.older, x)), c.older)

    def _moved(parameters, y, x):
        moving, hoisted = parameters
        return pure(moving, *x[:1], y, x[1], *hoisted)

    def controls(a, b):  # of two steps at once; the first step stands alone
        return jax.vmap(lambda a, b: control(terms, a, b))(a, b)

    older = jnp.concatenate([times[:1], times[:-2]])
    xs = times[:-1], controls(older, times[1:])
    last = jax.tree.map(lambda v: v[-1], xs)
    most = jax.tree.map(lambda v: v[:-1], xs)
    before = reversible_scan(step, back, parameters, _Pair(y0, y0), most, rtol=float(eps(dtype) ** 0.5))
    pair = step(parameters, before, last)
    return Retraceable(pair.newer, pair.older, jax.lax.stop_gradient(_ripple(before.older, *pair)))


def _ripple(a, b, c) -> Array:
    """Return the second difference of three points over four, relative to the one in the middle."""
    return missed(jax.tree.map(lambda a, c: a / 4 + c / 4, a, c), jax.tree.map(lambda b: b / 2, b), c) / 2
