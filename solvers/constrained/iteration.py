"""One step of Newton's method on the exact augmented Lagrangian, and what it does when the constraints resist."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core.precision import dot, eps
from ..core.solution import Status
from ..core.typing import Array, Bool, Float, Int
from . import merit
from .kkt import KKT, Question, norm, unit
from .problem import Point, Problem

NEWTON, RESTORE, REFRESH = 0, 1, 2
"""What a step does: descend on the merit; descend on ``|c|^2/2`` alone; renew the multipliers by least squares."""

IDLE = 6
"""Steps without progress before the run counts as stagnated."""
FLATNESS = 0.6
"""``|G'c| <= eps^FLATNESS |G| |c|`` is evidence that the violation has a minimum here: 4e-10 in float64."""
LEVEL = 0.999
"""A violation that falls by less than this factor in a step has stopped falling."""


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
    least: Float[Array, ""]
    """The smallest error so far."""
    idle: Int[Array, ""]
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
        least=error,
        idle=none,
        moves=none,
        deficient=no,
        evaluations=none + 1,
        inner=none,
    )


def step(s: State, problem: Problem, kkt: KKT, tol) -> State:
    """Take one step in the state's mode."""
    newton, restore, refresh = (s.mode == mode for mode in (NEWTON, RESTORE, REFRESH))
    dtype = s.x.dtype
    c, g = s.point.c, s.point.g
    violation = norm(c)

    # One linearisation serves all modes: of the Lagrangian, or of |c|^2/2, whose Hessian is that of mu'c at mu = c
    # plus G'G.
    sigma = jnp.where(restore, 0, 1).astype(dtype)
    model = kkt.model(problem, s.x, sigma, jnp.where(restore, c, s.lam))
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
    answer = kkt.solve(model, ask, (s.eta1, s.eta2))
    escape = (s.suspect | s.slow) & (answer.curvature < 0) & ~refresh
    settle = s.suspect & ~escape & (s.moves == 0)
    still = refresh | settle

    dx = jnp.where(still, 0, answer.dx)
    dlam = jnp.where(restore | settle, 0, answer.dlam)
    terms = merit.slope(s.point, model, dx, dlam)
    eta1, eta2 = merit.penalties(terms, s.eta1, s.eta2)
    slope = jnp.where(restore, terms.feasibility, terms.at(eta1, eta2))

    # At a saddle only curvature leads down, and only if the gradient's penalty does not undo it.
    uphill = dot(c, model.jacobian(answer.v)) + jnp.where(restore, 0, dot(g, answer.v))
    toward = jnp.where(uphill > 0, -1, 1) * jnp.maximum(norm(s.x), 1) * answer.v
    dx, dlam = jnp.where(escape, toward, dx), jnp.where(escape, 0, dlam)
    bend = answer.curvature * dot(dx, dx) * escape.astype(dtype)
    hv = model.hessian(answer.v)
    cap = 0.25 * jnp.abs(answer.curvature) / jnp.maximum(dot(hv, hv), jnp.finfo(dtype).tiny)
    eta1 = jnp.where(escape | ~newton, s.eta1, eta1)
    eta2 = jnp.where(escape & newton, jnp.minimum(s.eta2, cap), jnp.where(newton, eta2, s.eta2))
    slope = jnp.where(escape, 0, slope)

    def measure(point, lam):
        return jnp.where(restore, 0.5 * dot(point.c, point.c), merit.value(point, lam, eta1, eta2))

    before = measure(s.point, s.lam)
    noise = jnp.where(restore, 10 * eps(dtype) * before, merit.rounding(s.point, s.lam, before))

    def trial(alpha):
        lam = s.lam + alpha * dlam
        point = problem.evaluate(s.x + alpha * dx, lam)
        return measure(point, lam) - before, point

    def decrease(alpha):
        return merit.BETA * (alpha * slope + 0.5 * alpha**2 * bend)

    willing = (answer.valid & ((slope < 0) | escape) | refresh) & ~settle
    search = merit.armijo(trial, decrease, s.point, noise=noise, willing=willing, always=refresh, width=kkt.width)
    moved, alpha = search.accepted, search.alpha
    x = jnp.where(moved, s.x + alpha * dx, s.x)
    lam = jnp.where(moved, s.lam + alpha * dlam, s.lam)
    point = search.point
    error = problem.residual(point)

    # What next: the constraints' restoration when their linearisation is hopeless or the search failed far from them.
    infeasible = problem.violation(s.point) > tol
    hopeless = norm(c + model.jacobian(dx)) > 0.9 * violation
    give_up = newton & ~escape & ~settle & (~moved | (hopeless & infeasible))
    restored = norm(point.c) <= 0.1 * s.entry
    after_newton = jnp.where(give_up, jnp.where(infeasible, RESTORE, REFRESH), NEWTON)
    after_restore = jnp.where(restored, REFRESH, RESTORE)
    mode = jnp.where(newton, after_newton, jnp.where(restore, after_restore, NEWTON)).astype(jnp.int32)
    changed = mode != s.mode

    after = measure(point, lam)
    stuck = (jnp.abs(after - before) <= noise) & (error > 0.9 * s.least)
    idle = jnp.where(moved & ~stuck, 0, s.idle + jnp.where(moved, 1, IDLE // 2))
    explored = (answer.shift == 0) | s.slow
    idle = jnp.where(refresh | settle | (restore & (changed | ~explored)), s.idle, idle)
    # On the way to a singular root G fades with c, so a gradient that is merely small proves nothing. Evidence is c
    # orthogonal to the range of G, or a G that vanishes beside a c that no longer falls: a singular root is approached
    # by a constant factor a step.
    pull = model.adjoint(c)
    size = jnp.maximum(norm(kkt.row_norms(model, c.shape[0], dtype)), norm(model.jacobian(unit(pull))))
    orthogonal = norm(pull) <= eps(dtype) ** FLATNESS * size * violation
    level = (norm(pull) <= tol * violation) & (norm(point.c) >= LEVEL * violation)
    stationary = orthogonal | level
    verdict = jnp.where(idle >= IDLE, Status.STAGNATED, Status.RUNNING)
    far = 1e20 if dtype == jnp.float64 else 1e12
    verdict = jnp.where((norm(x) > far) | (point.f < -far), Status.UNBOUNDED, verdict)
    settled = stationary & infeasible & explored & ~escape & ~restored
    verdict = jnp.where(restore & settled, Status.INFEASIBLE, verdict)
    return State(
        x=x,
        lam=lam,
        point=point,
        eta1=jnp.where(refresh, merit.ETA1, eta1).astype(dtype),
        eta2=jnp.where(refresh, merit.ETA2, eta2).astype(dtype),
        shift=jnp.where(changed, 0, answer.shift),
        mode=mode,
        entry=jnp.where(newton, norm(point.c), s.entry),
        error=error,
        verdict=verdict.astype(jnp.int32),
        suspect=(error <= tol) & (answer.shift > 0) & ~settle & ~(s.suspect & ~escape),
        slow=restore & ~changed & (norm(point.c) > 0.95 * violation) & ~(s.slow & ~escape),
        least=jnp.minimum(s.least, error),
        idle=idle.astype(jnp.int32),
        moves=s.moves + jnp.where(settle, 0, 1),
        deficient=jnp.where(restore | (answer.shift > 0), s.deficient, answer.deficient),
        evaluations=s.evaluations + search.trials,
        inner=s.inner + answer.inner,
    )
