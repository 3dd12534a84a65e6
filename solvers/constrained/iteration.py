"""One step of Newton's method on the exact augmented Lagrangian, and what it does when the constraints resist.

========  =====================  ==================  ======================  =========================================
mode      linearised             descends on         multipliers             then
========  =====================  ==================  ======================  =========================================
NEWTON    the Lagrangian         exact augmented     move with the step      NEWTON; where it fails, RESTORE far from
                                 Lagrangian                                  the constraints and REFRESH near them
RESTORE   ``|c|^2 / 2``          the same            stay                    REFRESH once ``|c|`` is a tenth
REFRESH   the gradient, over     nothing: x stays    best by least squares   NEWTON
          the range of G'
========  =====================  ==================  ======================  =========================================

From a stationary point or a slow descent with an indefinite Hessian a step leaves along negative curvature (`escape`);
a stationary point reached with a shifted Hessian first gets its multipliers settled, without a step (`settle`).

A step of the method of Hong et al. (ICML 2023), M the merit function of `merit` and g the Lagrangian's gradient:

(1) ``[[B, G'], [G, 0]] (dx, dlam) = -(g, c)``, where ``B = H + shift I`` is positive definite on the null space of G
(2) ``(x, lam) <- (x, lam) + alpha (dx, dlam)``
(3) ``M(alpha) <= M(0) + beta (alpha M' + alpha^2 v'H v / 2)``, the last term along negative curvature v alone

It departs from the paper where it has no rule: the modes RESTORE and REFRESH, negative curvature, penalties that start
anew, and multipliers from ``-(g, 0)`` where a shift was needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ..core.loop import when
from ..core.precision import dot, eps
from ..core.solution import Status
from ..core.typing import Array, Bool, Float, Int
from . import merit
from .kkt import KKT, Answer, Question, norm
from .problem import Point, Problem

NEWTON, RESTORE, REFRESH = 0, 1, 2
"""What a step does: descend on the merit; descend on ``|c|^2/2`` alone; renew the multipliers by least squares."""

IDLE = 6
"""Steps without progress before the run counts as stagnated."""
SHORT = 12
"""So many shortened steps in a row mean that penalties, which only grow, hold the path too tightly: they start anew."""
LEVEL = 0.999
"""A violation that falls by less than this factor in a step has stopped falling."""
FAR = 4096.0
"""Times the step: there an inflection of the violation, where second derivatives vanish too, shows itself."""


class State(NamedTuple):
    """A primal-dual point with its values, the penalties, and where the method stands."""

    x: Float[Array, " n"]
    lam: Float[Array, " m"]
    point: Point
    eta1: Float[Array, ""]
    eta2: Float[Array, ""]
    shift: Float[Array, ""]
    mode: Int[Array, ""]
    entry: Float[Array, ""]
    """The violation at which the constraints' restoration began."""
    error: Float[Array, ""]
    verdict: Int[Array, ""]
    suspect: Bool[Array, ""]
    """Stationary, but reached with a shifted Hessian: perhaps a saddle or a maximiser."""
    slow: Bool[Array, ""]
    probe: Bool[Array, ""]
    """The violation looks minimal to second order: the next step looks `FAR` beyond before that is said."""
    least: Float[Array, ""]
    """The smallest error so far."""
    idle: Int[Array, ""]
    short: Int[Array, ""]
    """How many steps in a row were shortened to a quarter or less."""
    moves: Int[Array, ""]
    deficient: Bool[Array, ""]
    evaluations: Int[Array, ""]
    inner: Int[Array, ""]


def start(problem: Problem, x, lam, point: Point, *, tol, max_steps) -> State:
    """Return the state at ``(x, lam)`` with the values `point`."""
    error = problem.residual(point)
    zero, none, no = jnp.zeros((), x.dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    return State(
        x=x,
        lam=lam,
        point=point,
        eta1=zero + merit.ETA1,
        eta2=zero + merit.ETA2,
        shift=zero,
        mode=none + NEWTON,
        entry=zero,
        error=error,
        verdict=none + Status.RUNNING,
        suspect=(error <= tol) & (max_steps > 0),
        slow=no,
        probe=no,
        least=error,
        idle=none,
        short=none,
        moves=none,
        deficient=no,
        evaluations=none + 1,
        inner=none,
    )


class Direction(NamedTuple):
    """Where to go from a state, and what the merit function promises of it."""

    dx: Float[Array, " n"]
    dlam: Float[Array, " m"]
    eta1: Float[Array, ""]
    eta2: Float[Array, ""]
    slope: Float[Array, ""]
    bend: Float[Array, ""]
    """Curvature along an escape, where the slope is zero."""
    escape: Bool[Array, ""]
    settle: Bool[Array, ""]
    answer: Answer


class Move(NamedTuple):
    """The point that the line search accepted, and the merit before and after it."""

    x: Float[Array, " n"]
    lam: Float[Array, " m"]
    point: Point
    alpha: Float[Array, ""]
    """Its length, as a fraction of the direction."""
    accepted: Bool[Array, ""]
    trials: Int[Array, ""]
    before: Float[Array, ""]
    after: Float[Array, ""]
    noise: Float[Array, ""]


def step(s: State, problem: Problem, kkt: KKT, tol) -> State:
    """Take one step in the state's mode."""
    restore = s.mode == RESTORE
    # One linearisation serves all modes: of the Lagrangian, or of |c|^2/2, whose Hessian is that of mu'c at mu = c
    # plus G'G.
    sigma = jnp.where(restore, 0, 1).astype(s.x.dtype)
    model = kkt.model(problem, s.x, sigma, jnp.where(restore, s.point.c, s.lam))
    way = direction(s, model, kkt)
    move = search(s, way, problem, kkt.width)
    return following(s, model, way, move, problem, kkt, tol)


def direction(s: State, model, kkt: KKT) -> Direction:
    """Solve the KKT system of the state's mode and set the penalties so that its answer leads down."""
    newton, restore, refresh = (s.mode == mode for mode in (NEWTON, RESTORE, REFRESH))
    dtype = s.x.dtype
    c, g = s.point.c, s.point.g
    ask = Question(
        rx=jnp.where(restore, 0, -g),
        rc=-c,
        penalised=restore,
        renew=refresh,
        lam=s.lam,
        hint=s.shift,
        explore=s.suspect | s.slow,
        index=s.moves,
    )
    answer = kkt.solve(model, ask, (s.eta1, s.eta2))  # (1)
    escape = (s.suspect | s.slow) & (answer.curvature < 0) & ~refresh
    settle = s.suspect & ~escape & (s.moves == 0)

    dx = jnp.where(refresh | settle, 0, answer.dx)
    dlam = jnp.where(restore | settle, 0, answer.dlam)
    terms = merit.slope(s.point, model, dx, dlam)
    eta1, eta2 = merit.penalties(terms, s.eta1, s.eta2)
    slope = jnp.where(restore, terms.feasibility, terms.at(eta1, eta2))

    # At a saddle only curvature leads down, and only if the gradient's penalty does not undo it.
    uphill = dot(c, model.jacobian(answer.v)) + jnp.where(restore, 0, dot(g, answer.v))
    toward = jnp.where(uphill > 0, -1, 1) * jnp.maximum(norm(s.x), 1) * answer.v
    dx, dlam = jnp.where(escape, toward, jnp.where(s.probe & restore, FAR, 1) * dx), jnp.where(escape, 0, dlam)
    hv = model.hessian(answer.v)
    cap = 0.25 * jnp.abs(answer.curvature) / jnp.maximum(dot(hv, hv), jnp.finfo(dtype).tiny)
    return Direction(
        dx=dx,
        dlam=dlam,
        eta1=jnp.where(escape | ~newton, s.eta1, eta1),
        eta2=jnp.where(escape & newton, jnp.minimum(s.eta2, cap), jnp.where(newton, eta2, s.eta2)),
        slope=jnp.where(escape, 0, slope),
        bend=answer.curvature * dot(dx, dx) * escape.astype(dtype),
        escape=escape,
        settle=settle,
        answer=answer,
    )


def search(s: State, way: Direction, problem: Problem, width: int) -> Move:
    """Go along the direction as far as the merit function of the mode allows."""
    restore, refresh = s.mode == RESTORE, s.mode == REFRESH

    def measure(point, lam):
        return jnp.where(restore, 0.5 * dot(point.c, point.c), merit.value(point, lam, way.eta1, way.eta2))

    before = measure(s.point, s.lam)
    noise = jnp.where(restore, 10 * eps(s.x.dtype) * before, merit.rounding(s.point, s.lam, before))

    def trial(alpha):
        lam = s.lam + alpha * way.dlam
        point = problem.evaluate(s.x + alpha * way.dx, lam)  # (2)
        return measure(point, lam) - before, point

    def decrease(alpha):
        enough = merit.BETA * (alpha * way.slope + 0.5 * alpha**2 * way.bend)  # (3)
        return jnp.where(s.probe & restore & ~way.escape, -(eps(s.x.dtype) ** 0.5) * before, enough)

    willing = (way.answer.valid & ((way.slope < 0) | way.escape) | refresh) & ~way.settle
    found = merit.armijo(trial, decrease, s.point, noise=noise, willing=willing, always=refresh, width=width)
    x = jnp.where(found.accepted, s.x + found.alpha * way.dx, s.x)  # (2)
    lam = jnp.where(found.accepted, s.lam + found.alpha * way.dlam, s.lam)
    after = measure(found.point, lam)
    return Move(x, lam, found.point, found.alpha, found.accepted, found.trials, before, after, noise)


def following(s: State, model, way: Direction, move: Move, problem: Problem, kkt: KKT, tol) -> State:
    """Return the state after the move: its mode, what it has proved, and when to give up."""
    newton, restore, refresh = (s.mode == mode for mode in (NEWTON, RESTORE, REFRESH))
    dtype, answer, point, moved = s.x.dtype, way.answer, move.point, move.accepted
    violation, error = norm(s.point.c), problem.residual(point)

    # The constraints' restoration when their linearisation is hopeless or the search failed far from them.
    infeasible = problem.violation(s.point) > tol
    hopeless = norm(s.point.c + model.jacobian(way.dx)) > 0.9 * violation
    give_up = newton & ~way.escape & ~way.settle & (~moved | (hopeless & infeasible))
    restored = norm(point.c) <= 0.1 * s.entry
    short = jnp.where(newton & moved & (move.alpha <= 0.25), s.short + 1, 0)
    tired = short >= SHORT
    after_newton = jnp.where(give_up & infeasible, RESTORE, jnp.where(give_up | tired, REFRESH, NEWTON))
    after_restore = jnp.where(restored, REFRESH, RESTORE)
    mode = jnp.where(newton, after_newton, jnp.where(restore, after_restore, NEWTON)).astype(jnp.int32)
    changed = mode != s.mode

    stuck = (jnp.abs(move.after - move.before) <= move.noise) & (error > 0.9 * s.least)
    idle = jnp.where(moved & ~stuck, 0, s.idle + jnp.where(moved, 1, IDLE // 2))
    explored = (answer.shift == 0) | s.slow
    idle = jnp.where(refresh | way.settle | (restore & (changed | ~explored)), s.idle, idle)
    level = restore & infeasible & ~way.escape & ~restored & (norm(point.c) >= LEVEL * violation)
    least = when(level, lambda _: kkt.at_minimum(model, s.point.c, problem.columns), jnp.zeros((), bool))
    idle = jnp.where(least & ~s.probe, s.idle, idle)
    verdict = jnp.where(idle >= IDLE, Status.STAGNATED, Status.RUNNING)
    far = 1e20 if dtype == jnp.float64 else 1e12
    verdict = jnp.where((norm(move.x) > far) | (point.f < -far), Status.UNBOUNDED, verdict)
    verdict = jnp.where(least & s.probe & ~moved, Status.INFEASIBLE, verdict)
    return State(
        x=move.x,
        lam=move.lam,
        point=point,
        eta1=jnp.where(refresh, jnp.clip(10 * norm(move.lam), 1e-8, merit.ETA1), way.eta1).astype(dtype),
        eta2=jnp.where(refresh, merit.ETA2, way.eta2).astype(dtype),
        shift=jnp.where(changed, 0, answer.shift),
        mode=mode,
        entry=jnp.where(newton, norm(point.c), s.entry),
        error=error,
        verdict=verdict.astype(jnp.int32),
        suspect=(error <= tol) & (answer.shift > 0) & ~way.settle & ~(s.suspect & ~way.escape),
        probe=least & ~s.probe,
        slow=restore & ~changed & (norm(point.c) > 0.95 * violation) & ~(s.slow & ~way.escape),
        least=jnp.minimum(s.least, error),
        idle=idle.astype(jnp.int32),
        short=short.astype(jnp.int32),
        moves=s.moves + jnp.where(way.settle, 0, 1),
        deficient=jnp.where(restore | (answer.shift > 0), s.deficient, answer.deficient),
        evaluations=s.evaluations + move.trials,
        inner=s.inner + answer.inner,
    )
