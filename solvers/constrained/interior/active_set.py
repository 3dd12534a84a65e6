"""Derivatives of a solution through its active set, and how that set is found.

At the end of a run multipliers and distances are not in the same units, and where both nearly vanish, their product
being at `tol`, a bound that is not active can have the larger multiplier. So the search goes on, where derivatives are
taken, by two kinds of steps. One of the interior-point method, with mu a tenth of the mean product,

(1) ``s dz + z ds = mu - s z,  ds = -(g + s) - G dx``, so that ``z+ / z + s+ / s`` is about one, and so for the bounds

says which constraints count as active: those with the larger share ``z+ / z``, whatever the units. Then Newton's method
on the equations that are left,

(2) ``f' + C'y + G'z - zl + zu = 0,  c = 0``, ``g = 0`` or ``z = 0``, ``x`` on a bound or its multiplier zero

drops constraints with negative multipliers and takes in what is violated, beyond rounding, until it settles; where it
does not, the next step is one of (1), from where the last of these led. Of dependent gradients those of larger
multipliers are kept, equations and bounds first. The end satisfies all conditions, so that derivatives hold at least on
one side, and it is this point, exact to rounding, that is differentiated, not the one returned.

The iteration: M. Hintermueller, K. Ito, K. Kunisch, "The primal-dual active set strategy as a semismooth Newton
method", SIAM J. Optim. 13 (2002). Shares as indicators: A. S. El-Bakry, R. A. Tapia, Y. Zhang, "A study of indicators
for identifying zero variables in interior-point methods", SIAM Review 36 (1994).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core.implicit import attach, distrust, linear_solve
from ...core.precision import dot, eps, matmul
from ...core.typing import Array, Bool, Float, Int
from .acceptance import boundary
from .standard import Iterate, Model, Standard, bounded, largest
from .state import count, select

ROUNDS, PATIENCE = 40, 4
"""Steps of the search, which takes two or three as a rule; at most so many by (2) after one by (1)."""
CENTRE, TAU = 0.1, 0.99
"""mu is this fraction of the mean product; how far steps by (1) go to the boundary."""
NOISE = 10.0
"""Multipliers and distances below so many roundings of what they are summed from leave their constraint what it was."""
DEPENDENT = 0.375
"""Gradients count as dependent where less than ``eps^DEPENDENT`` of one is left outside the span of others."""
STRAY = 10.0
"""How far the search may lead, relative to its first step."""


class Active(NamedTuple):
    """Which inequalities and bounds hold with equality."""

    pressed: Bool[Array, " q"]
    low: Bool[Array, " n"]
    high: Bool[Array, " n"]


class Base(NamedTuple):
    """A point of the interior-point method, with its distances to the bounds: they can be below what x resolves."""

    w: Iterate
    low: Float[Array, " n"]
    high: Float[Array, " n"]

    def product(self, problem: Standard):
        """Return the mean of multiplier times distance."""
        total = dot(self.w.s, self.w.z) + dot(self.low, self.w.zl) + dot(self.high, self.w.zu)
        return total / count(problem, self.w)

    def weights(self, problem: Standard, g, mu) -> tuple[Array, Array, Array]:
        """Return ``z / s``, what (1) adds to z and to the slope at dx = 0, and the bounds' part of the Hessian."""
        w, weight = self.w, self.w.z / self.w.s
        low, high = (jnp.where(side, 1 / gap, 0) for side, gap in self.sides(problem))
        push = jnp.concatenate([weight * g + mu / w.s, mu * (high - low)])
        return weight, push, w.zl * low + w.zu * high

    def sides(self, problem: Standard):
        """Return which bounds there are, and how far."""
        return (problem.below, self.low), (problem.above, self.high)

    def moved(self, problem: Standard, to: Iterate) -> "Base":
        """Go towards `to` and stay inside."""
        w, dx = self.w, to.x - self.w.x
        (below, low), (above, high) = self.sides(problem)
        ahead = w._replace(zl=jnp.where(below, to.zl, 0), zu=jnp.where(above, to.zu, 0), x=to.x, s=to.s, y=to.y, z=to.z)
        down, up = jnp.where(below, dx, 0), jnp.where(above, -dx, 0)
        primal = boundary([(w.s, to.s - w.s), (low, down), (high, up)], TAU)
        dual = boundary([(a, b - a) for a, b in zip(w[3:], ahead[3:], strict=True)], TAU)
        along = Iterate(*(a + t * (b - a) for a, b, t in zip(w, ahead, [primal] * 3 + [dual] * 3, strict=True)))
        return Base(along, low + primal * down, high + primal * up)


class _Search(NamedTuple):
    base: Base
    w: Iterate
    active: Active
    rounds: Int[Array, ""]
    age: Int[Array, ""]
    """Steps since the last one by (1); the next is one where this is zero."""
    length: Float[Array, ""]
    """Of the first step."""
    settled: Bool[Array, ""]
    """The last step was one by (2), confirmed its active set, and determined x."""
    exact: Bool[Array, ""]


class _Step(NamedTuple):
    """A step of the search, and what it says about the constraints."""

    inner: Bool[Array, ""]
    """By (1), not (2)."""
    after: Iterate
    """With the multipliers that bounds would have, were they all active."""
    dx: Float[Array, " n"]
    model: Model
    mean: Float[Array, ""]
    """Of multiplier times distance, before the step."""
    used: Active
    sound: Bool[Array, ""]
    """x was determined."""


def differentiable(functions: Callable, w: Iterate, data, rest, trusted) -> tuple:
    """Return ``x, y, z, zl, zu, f`` with the derivatives that the conditions of the active set give them in `data`.

    ``functions(data, rest)`` returns ``posed, lower, upper``; w is that of the problem as posed. `trusted` are whether
    the run converged, and whether derivatives are wanted all the same. The active set is looked for only where
    derivatives are taken.
    """

    @jax.custom_jvp
    def solution(data, rest, w, trusted):
        return *_parts(w), functions(data, rest)[0](w.x)[0]

    @solution.defjvp
    def _(primals, tangents):
        data, rest, w, (converged, approximate) = primals
        posed, lower, upper = functions(data, rest)
        problem = bounded(posed, lower, upper, w.y.size, w.z.size)
        fixed = jax.tree.map(lax.stop_gradient, (problem._replace(posed=None), w))
        still = functions(lax.stop_gradient(data), rest)[0]
        found = search(fixed[0]._replace(posed=still), fixed[1])
        use = converged & found.settled
        point, active = jax.tree.map(
            lambda new, old: jnp.where(use, new, old), (found.w, found.active), (w, by_size(problem, w))
        )
        held = ~problem.free
        active = active._replace(low=active.low | held, high=active.high & ~held)
        solved = lambda data: implicit(functions, point, active, data, rest, use | approximate)  # noqa: E731
        return solution(*primals), jax.jvp(solved, (data,), (tangents[0],))[1]

    return solution(data, rest, lax.stop_gradient(w), trusted)


def _parts(w: Iterate) -> tuple:
    return w.x, w.y, w.z, w.zl, w.zu


def by_size(problem: Standard, w: Iterate) -> Active:
    """Return the constraints whose multiplier exceeds its distance."""
    low, high = problem.gaps(w.x)
    below = problem.below & (w.zl > low)
    return Active(w.z > w.s, below, problem.above & (w.zu > high) & ~below)


def implicit(functions, w: Iterate, active: Active, data, rest, trusted) -> tuple:
    """Return the parts of w and the objective, with derivatives by the equations of the active set.

    Active variables sit on their bounds, multipliers of inactive constraints are zero, and what is left is a system of
    equations with a symmetric Jacobian.
    """
    pressed, at_low, at_high = active
    held, n, p = at_low | at_high, w.x.size, w.y.size

    def lagrangian_gradient(x, y, z, data):
        posed, lower, upper = functions(data, rest)
        x = jnp.where(at_low, lower, jnp.where(at_high, upper, x))

        def lagrangian(x):
            f, c, g = posed(x)
            return f + dot(y, c) + dot(jnp.where(pressed, z, 0), g), (f, c, g)

        gradient, values = jax.grad(lagrangian, has_aux=True)(x)
        return gradient, values, x

    def residual(v, data):
        x, y, z = v[:n], v[n : n + p], v[n + p :]
        gradient, (_, c, g), onto = lagrangian_gradient(x, y, z, data)
        return jnp.concatenate([jnp.where(held, x - onto, gradient), c, jnp.where(pressed, g, z)])

    idle = jnp.concatenate([jnp.zeros(n + p, bool), ~pressed])

    def solve(jacobian, b):
        def solver(matvec, b):
            A = jax.vmap(matvec)(jnp.eye(b.size, dtype=b.dtype))
            v, sound = solved(jnp.where(idle[None] | idle[:, None], 0, A), jnp.where(idle, 0, b), n)
            return jnp.where(sound, jnp.where(idle, b, v), jnp.nan)

        return linear_solve(jacobian, b, solver)

    v = attach(residual, jnp.concatenate([w.x, w.y, w.z]), data, solve=solve, trusted=trusted)
    x, y, z = v[:n], v[n : n + p], v[n + p :]

    # The multipliers of bounds are what the gradient leaves where a variable is held.
    gradient, (f, _, _), _ = lagrangian_gradient(x, y, z, data)
    zl, zu = jnp.where(at_low, gradient, 0), jnp.where(at_high, -gradient, 0)
    return x, y, z, *distrust((zl, zu, f), trusted)


def solved(A, b, n: int) -> tuple[Array, Array]:
    """Solve ``A v = b``, A symmetric, its first n rows those of x; also say whether x is determined.

    A is scaled to entries of size one first. What is not determined otherwise is zero.
    """
    size = jnp.ones_like(b)
    for _ in range(3):
        most = jnp.max(jnp.abs(A) * size[None] * size[:, None], axis=1)
        size = size * lax.rsqrt(jnp.where(most > 0, most, 1))
    A, b = A * size[None] * size[:, None], size * b
    index, whole = jnp.arange(b.size), jnp.concatenate([A, jnp.eye(b.size, dtype=b.dtype)], axis=1)

    def eliminate(k, carry):
        whole, rows, found = carry
        column = whole[:, k]
        taken = jnp.any((rows[None] == index[:, None]) & found[None], axis=1)
        r = jnp.argmax(jnp.where(taken, -1, jnp.abs(column))).astype(index.dtype)
        good = ~taken[r] & (jnp.abs(column[r]) > eps(b.dtype) ** 0.75)
        row = whole[r] / jnp.where(good, column[r], 1)
        here = index == r
        less = jnp.where(here[:, None], row[None], whole - column[:, None] * row[None])
        at = index == k
        return jnp.where(good, less, whole), jnp.where(at, r, rows), found | (at & good)

    start = whole, jnp.zeros_like(index), jnp.zeros(b.shape, bool)
    whole, rows, found = lax.fori_loop(0, b.size, eliminate, start)
    inverse = jnp.where(found[:, None], whole[rows, b.size :], 0)
    v = lax.fori_loop(0, 3, lambda _, v: v + matmul(inverse, b - matmul(A, v)), jnp.zeros_like(b))
    return size * v, jnp.all(found[:n])


def search(problem: Standard, end: Iterate) -> _Search:
    """Find the active set of the solution near the end of a run, and that solution."""

    def ends(t: _Search):
        return (t.rounds < ROUNDS) & ~(t.settled & t.exact)

    def one(t: _Search) -> _Search:
        taken = newton(problem, t)
        return proceed(problem, end, t, taken, counting(problem, end, t, taken))

    low, high = problem.gaps(end.x)
    small = jnp.finfo(end.x.dtype).tiny ** 0.5
    base = Base(end._replace(s=jnp.maximum(end.s, small)), jnp.maximum(low, small), jnp.maximum(high, small))
    no, none = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    nothing = Active(jnp.zeros(end.z.shape, bool), jnp.zeros(end.x.shape, bool), jnp.zeros(end.x.shape, bool))
    return lax.while_loop(ends, one, _Search(base, end, nothing, none, none, jnp.zeros_like(small), no, no))


def newton(problem: Standard, t: _Search) -> _Step:
    """Take a step by (1), or else by (2)."""
    inner = t.age == 0
    w, base = select(inner, t.base.w, t.w), t.base
    values, model = problem.model(w.x, w.y, w.z, jnp.ones((), w.x.dtype))
    held = (~inner & (t.active.low | t.active.high)) | ~problem.free
    pressed = independent(model.C, model.G, held, t.active.pressed & ~inner, base.w.z)
    mean = base.product(problem)
    mu = CENTRE * mean
    weight, push, stiff = (jnp.where(inner, part, 0) for part in base.weights(problem, values.g, mu))
    kept = jnp.where(inner | pressed, w.z, 0) + push[: w.z.size]
    B = model.H + jnp.diag(stiff) + matmul(model.G.T * weight[None], model.G)
    onto = jnp.where(t.active.low | ~problem.free, problem.lower, problem.upper)
    slope = model.df + matmul(w.y, model.C)
    start = slope + matmul(kept, model.G) + push[w.z.size :]
    v, sound = step(B, model, (held, pressed), (jnp.where(held, onto, w.x) - w.x, start, values))
    dx, dy, dz = jnp.split(v, [w.x.size, w.x.size + w.y.size])
    gone = matmul(model.G, dx)
    # (1), (2)
    z = kept + jnp.where(inner, weight * gone, jnp.where(pressed, dz, 0))
    after = w._replace(x=w.x + dx, s=-values.g - gone, y=w.y + dy, z=z)
    pull = slope + matmul(dy, model.C) + matmul(z, model.G) + matmul(model.H, dx)
    after = after._replace(
        zl=jnp.where(inner, (mu - w.zl * dx) / base.low, pull),
        zu=jnp.where(inner, (mu + w.zu * dx) / base.high, -pull),
    )
    return _Step(inner, after, dx, model, mean, Active(pressed, t.active.low, t.active.high), sound)


def counting(problem: Standard, end: Iterate, t: _Search, taken: _Step) -> Active:
    """Return which constraints count after a step: the larger share decides at first, then signs beyond rounding."""
    inner, after, dx, model, mean, used, _ = taken
    base, tiny, sizes = t.base, NOISE * eps(dx.dtype), jnp.abs(model.G)
    extent = jnp.abs(end.x) + jnp.abs(dx)
    forces = jnp.abs(model.df) + matmul(jnp.abs(after.y), jnp.abs(model.C)) + matmul(jnp.abs(after.z), sizes)
    forces = forces + matmul(jnp.abs(model.H), extent)
    widest = jnp.max(sizes, axis=1, initial=0)
    dual = tiny * (end.z + largest(forces) / jnp.where(widest > 0, widest, 1))

    def decide(was, z, gap, z0, gap0, noise):
        larger = z * gap0 > gap * jnp.maximum(z0, mean / gap0)
        return jnp.where(inner, larger, jnp.where(was, z > -noise[0], gap < -noise[1]))

    gaps = after.x - problem.lower, problem.upper - after.x
    rooms = [(tiny * forces, tiny * (extent + jnp.abs(bound))) for bound in (problem.lower, problem.upper)]
    slack = dual, tiny * (matmul(sizes, extent) + end.s)
    low = problem.below & decide(used.low, after.zl, gaps[0], base.w.zl, base.low, rooms[0])
    high = problem.above & ~low & decide(used.high, after.zu, gaps[1], base.w.zu, base.high, rooms[1])
    return Active(decide(used.pressed, after.z, after.s, base.w.z, base.w.s, slack), low, high)


def proceed(problem: Standard, end: Iterate, t: _Search, taken: _Step, active: Active) -> _Search:
    """Return the search after a step: whether its active set is confirmed, and which kind of step comes next."""
    inner, after, dx, _, _, used, sound = taken
    tiny = NOISE * eps(dx.dtype)
    same = jnp.all(jnp.concatenate([a == b for a, b in zip(active, used, strict=True)]))
    length = jnp.where(inner & (t.rounds == 0), largest(dx), t.length)
    near = largest(after.x - end.x) <= STRAY * length + tiny * largest(end.x)
    after = after._replace(zl=jnp.where(active.low, after.zl, 0), zu=jnp.where(active.high, after.zu, 0))
    base = select(inner, t.base.moved(problem, after), t.base)
    settled = same & ~inner & sound & near
    return _Search(
        base=base,
        w=select(inner, base.w, after),
        active=select(settled, used, active),
        rounds=t.rounds + 1,
        age=jnp.where(near & (t.age < PATIENCE), t.age + 1, 0),
        length=length,
        settled=settled,
        exact=largest(dx) <= eps(dx.dtype) ** 0.5 * (1 + largest(after.x)),
    )


def step(B, model, where, aim) -> tuple[Array, Array]:
    """Solve ``B dx + C'dy + G'dz = -slope, C dx = -c, G dx = -g``, for held variables ``dx = onto``.

    `where` are the variables held and the inequalities that count, ``aim = (onto, slope, values)``.
    """
    (held, pressed), (onto, slope, values) = where, aim
    n = onto.size
    J = jnp.concatenate([model.C, model.G])
    use = jnp.concatenate([jnp.ones(model.C.shape[0], bool), pressed])
    moved = jnp.where(held, onto, 0)
    rows = jnp.where(use[:, None] & ~held[None], J, 0)
    either = held[None] | held[:, None]
    block = jnp.where(either, jnp.diag(held.astype(B.dtype)), B)
    A = jnp.block([[block, rows.T], [rows, jnp.zeros((J.shape[0],) * 2, B.dtype)]])
    missed = jnp.concatenate([values.c, values.g]) + matmul(J, moved)
    b = jnp.concatenate([jnp.where(held, onto, -slope - matmul(B, moved)), jnp.where(use, -missed, 0)])
    return solved(A, b, n)


def independent(C, G, held, pressed, sizes):
    """Return `pressed` without those inequalities whose gradients depend on others, larger `sizes` being kept."""
    p, dtype = C.shape[0], C.dtype
    if not G.shape[0]:
        return pressed
    J = jnp.concatenate([C, G])
    J = jnp.where(held[None], 0, J)
    # In units in which the largest entry of each column is one, and so is each row's length.
    for axis in (0, 1):
        most = jnp.max(jnp.abs(J), axis=axis, keepdims=True)
        J = J / jnp.where(most > 0, most, 1)
    J = J * lax.rsqrt(jnp.maximum(jnp.sum(J**2, axis=1, keepdims=True), 1))
    J = jnp.where(jnp.concatenate([jnp.ones(p, bool), pressed])[:, None], J, 0)
    order = jnp.concatenate([jnp.full(p, jnp.inf, dtype), sizes / jnp.maximum(largest(sizes), jnp.finfo(dtype).tiny)])

    def take(_, carry):
        J, left = carry
        length = jnp.sqrt(jnp.sum(J**2, axis=1))
        fit = left & (length > eps(dtype) ** DEPENDENT)
        k = jnp.argmax(jnp.where(fit, jnp.minimum(order, 2) * length, -1))
        q = jnp.where(fit[k], J[k] / length[k], 0)
        for _ in range(2):
            J = J - matmul(J, q)[:, None] * q[None]
        return J, left & ~(fit & (jnp.arange(left.size) == k))

    _, left = lax.fori_loop(0, min(J.shape), take, (J, jnp.ones(J.shape[0], bool)))
    return pressed & ~left[p:]
