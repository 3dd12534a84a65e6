"""One step of the interior-point method, by mode.

========  ====================================================  ==================================================
mode      what a step does                                      what comes next
========  ====================================================  ==================================================
REFRESH   multipliers of the equations by least squares         NEWTON
NEWTON    a step for the barrier problem, by the filter         NEWTON; ENTER where nothing is accepted away from
                                                                feasibility
ENTER     barrier parameter and multipliers of the restoration  RESTORE
RESTORE   a step for ``min |c|^2/2 + |g + s|^2/2`` in bounds    REFRESH once the filter accepts, at 0.9 of the
                                                                violation; the end where that is stationary
========  ====================================================  ==================================================

The restoration's conditions are those of the problem with objective zero and ``c - y = 0, g + s - z = 0`` in place of
``c = 0, g + s = 0``, so one system serves both: with weight 0 for f, and d = 1 on its diagonal.

The numbers are those of Waechter and Biegler, Math. Program. 106 (2006):

(14) ``(x, s, y) <- (x, s, y) + alpha (dx, ds, dy),  (z, zl, zu) <- (z, zl, zu) + alpha_z (dz, dzl, dzu)``
(16) ``z <- max(mu / (kappa_sigma s), min(z, kappa_sigma mu / s))``, and so for the bounds

It departs from the paper in the restoration, which minimises the squared violation by the same Newton system.
"""

from __future__ import annotations

import jax.numpy as jnp

from ...core.loop import when
from ...core.precision import dot, eps, matmul
from ...core.solution import Status
from ...core.typing import Array
from ..kkt import at_minimum
from .acceptance import Filter, Found, Rules, Trial, barrier, boundary, empty_filter, search, violation
from .direction import Plan, plan
from .newton_system import Direction, multipliers, newton
from .standard import Iterate, Model, Residual, Standard, Values, columns, gradient, largest
from .state import ENTER, NEWTON, REFRESH, RESTORE, State, count, gaps_from, select

WARM_PUSH = 1e-3
"""The first step moves a warm start inside its bounds by this much."""
KAPPA_SIGMA = 1e10
"""Multipliers of bounds stay within this factor of ``mu`` over the distance."""
SOFT = 0.9999
"""A step that the filter refuses is taken all the same if the mean residual falls below this factor."""
SOFT_LENGTH, SOFT_MOST = 1e-2, 10
"""Such steps are at least this long, and this many in a row at most."""
RESTORED = 0.9
"""A restoration ends once the violation has fallen by this factor and the filter agrees."""
LARGE = 1e3
"""Multipliers start anew at ones where ``mu`` over the distance exceeds this after a restoration."""
WILD = 10.0
"""Multipliers of a shifted system mean little: beyond ten times those of least squares they are replaced by these."""
LEVEL = 0.999
"""A violation that falls by less than this factor in a step has stopped falling."""
STANDSTILL = 8
"""Steps without effect before the run counts as stagnated."""


def measure(problem: Standard, restoring, mu, x, slacks, values: Values) -> Trial:
    """Raise slacks that are smaller than they need be; return the trial with theta and phi.

    Restoring, phi is the barrier function of ``|c|^2/2 + |g + s|^2/2`` and theta zero: Armijo's test decides alone.
    """
    slacks = jnp.maximum(slacks, -values.g)
    theta, miss = violation(values, slacks), values.g + slacks
    squares = 0.5 * (dot(values.c, values.c) + dot(miss, miss))
    phi = jnp.where(restoring, squares, values.f) + barrier(problem, x, slacks, mu)
    finite = jnp.isfinite(theta) & jnp.isfinite(values.f)
    return Trial(x, slacks, values, jnp.where(restoring & finite, 0, jnp.where(finite, theta, jnp.inf)), phi)


def primal_boundary(problem: Standard, w: Iterate, direction: Direction, tau):
    """Return how far slacks and variables may go."""
    low, high = problem.gaps(w.x)
    down, up = jnp.where(problem.below, direction.x, 0), jnp.where(problem.above, -direction.x, 0)
    return boundary([(w.s, direction.s), (low, down), (high, up)], tau)


def look(s: State, problem: Standard, p: Plan, filter: Filter) -> Found:
    """Search along the direction of the plan."""
    w, restoring, mu = s.w, s.mode == RESTORE, p.target.mu

    def reach(direction):
        return s.reach * primal_boundary(problem, w, direction, p.tau)

    def evaluate(alpha, direction):
        x = w.x + alpha * direction.x
        return measure(problem, restoring, mu, x, w.s + alpha * direction.s, problem.values(x))

    def correct(rc, rg):
        return newton(problem, w, s.model, p.system, p.target._replace(rc=rc, rg=rg))

    dx, ds = p.direction.x, p.direction.s
    rise = dot(s.values.c, matmul(s.model.C, dx)) + dot(s.values.g + w.s, matmul(s.model.G, dx) + ds)
    slope = jnp.where(restoring, rise, dot(s.model.df, dx)) - mu * jnp.sum(ds / w.s)
    slope = slope + dot(problem.barrier_slope(w.x, mu), dx)
    here = measure(problem, restoring, mu, w.x, w.s, s.values)
    small = jnp.max(jnp.abs(dx) / (1 + jnp.abs(w.x)), initial=0) < 10 * eps(dx.dtype)
    rules = Rules(
        theta=here.theta,
        phi=here.phi,
        slope=slope,
        filter=select(restoring, empty_filter(dx.dtype), filter),
        theta_min=jnp.where(restoring, jnp.inf, s.theta_min).astype(dx.dtype),
        theta_max=s.theta_max,
        demand=jnp.where(s.probe & restoring & ~p.leave, eps(dx.dtype) ** 0.5 * here.phi, 0),
        lenient=small & ~restoring & (here.theta <= s.theta_min),
        willing=((s.mode == NEWTON) | restoring) & p.system.valid & (~s.suspect | p.leave),
    )
    return search(evaluate, correct, reach, here, p.direction, rules)


def taken(s: State, problem: Standard, p: Plan, found: Found) -> tuple[Iterate, Array]:
    """Return the iterate after the step that was found, or the whole step where none was, and the length of that."""
    w, d = s.w, found.direction
    whole = primal_boundary(problem, w, d, p.tau)
    alpha = jnp.where(found.accepted, found.alpha, jnp.minimum(whole, p.dual))
    dual = jnp.where(found.accepted, p.dual, alpha)
    x = jnp.where(found.accepted, found.trial.x, w.x + alpha * d.x)
    # (14)
    after = Iterate(
        x,
        jnp.where(found.accepted, found.trial.s, w.s + alpha * d.s),
        w.y + alpha * d.y,
        w.z + dual * d.z,
        w.zl + dual * d.zl,
        w.zu + dual * d.zu,
    )
    return after, alpha


def near(problem: Standard, w: Iterate, mu) -> Iterate:
    """Keep multipliers within `KAPPA_SIGMA` of ``mu`` over the distance; zero where there is no bound."""
    low, high = problem.gaps(w.x)
    # (16)
    clip = lambda z, gap: jnp.clip(z, mu / (KAPPA_SIGMA * gap), KAPPA_SIGMA * mu / gap)  # noqa: E731
    return w._replace(
        z=clip(w.z, w.s),
        zl=jnp.where(problem.below, clip(w.zl, low), 0),
        zu=jnp.where(problem.above, clip(w.zu, high), 0),
    )


def central(problem: Standard, w: Iterate, mu, cap) -> Iterate:
    """Return w with the multipliers ``mu`` over the distance of slacks and bounds, ones if that exceeds `cap`."""
    low, high = problem.gaps(w.x)
    z, zl, zu = mu / w.s, jnp.where(problem.below, mu / low, 0), jnp.where(problem.above, mu / high, 0)
    wild = jnp.maximum(largest(z), jnp.maximum(largest(zl), largest(zu))) > cap
    ones = (jnp.ones_like(z), problem.below.astype(z.dtype), problem.above.astype(z.dtype))
    z, zl, zu = (jnp.where(wild, one, own) for one, own in zip(ones, (z, zl, zu), strict=True))
    return w._replace(z=z, zl=zl, zu=zu)


def discord(problem: Standard, w: Iterate, values: Values, model: Model, mu):
    """Return the mean residual of the perturbed conditions, which a step refused by the filter must lower."""
    primal = violation(values, w.s) / max(w.y.size + w.s.size, 1)
    gaps = sum(jnp.sum(jnp.abs(part)) for part in gaps_from(problem, w, mu)) / count(problem, w)
    return jnp.sum(jnp.abs(gradient(w, model))) / w.x.size + primal + gaps


def candidate(s: State, problem: Standard, p: Plan, found: Found, restored) -> tuple[Iterate, Array]:
    """Return where the step leads in its mode, and its length.

    A restoration's multipliers of c and g + s are these residuals themselves.
    """
    refreshing, entering, restoring = (s.mode == mode for mode in (REFRESH, ENTER, RESTORE))
    w = s.w
    after, length = taken(s, problem, p, found)
    after = near(problem, after, p.target.mu)
    fitting = multipliers(w, s.model)
    wild = (p.system.shift > 0) & (largest(after.y) > WILD * jnp.maximum(WILD, largest(fitting)))
    y = jnp.where(wild, fitting, after.y)
    after = after._replace(y=jnp.where(restoring, found.trial.values.c, y))
    after = select(restored, central(problem, after, s.kept, LARGE), after)
    renewed = w._replace(x=jnp.where(s.moves == 0, problem.inside(w.x, WARM_PUSH), w.x), y=fitting)
    after = select(refreshing, renewed, after)
    return select(entering, central(problem, w._replace(y=s.values.c), s.mu, jnp.inf), after), length


def returns(s: State, problem: Standard, found: Found, filter: Filter, tol):
    """Whether a restoration ends here, and whether what is left of the violation is negligible."""
    trial = found.trial
    theta = violation(trial.values, trial.s)
    phi = trial.values.f + barrier(problem, trial.x, trial.s, s.kept)
    welcome = (theta <= RESTORED * s.entry) & (theta <= s.theta_max) & ~filter.refuses(theta, phi)
    negligible = theta <= 1e-2 * tol
    return (s.mode == RESTORE) & found.accepted & (welcome | negligible), negligible


def stationary(problem: Standard, w: Iterate, values: Values, model: Model, tol):
    """Whether a restoration's conditions hold at w: the violation has no descent within the bounds, to first order.

    That proves nothing yet: on the way to a singular root and on a plateau the constraints' gradients fade.
    """
    slope = gradient(w, model, jnp.zeros((), w.x.dtype))
    miss = jnp.sqrt(dot(values.c, values.c) + dot(values.g + w.s, values.g + w.s))
    gaps = [largest(part) for part in gaps_from(problem, w, 0.0)]
    parts = [largest(slope), largest(values.g + w.s - w.z), *gaps]
    return jnp.all(jnp.stack(parts) <= tol * jnp.minimum(1, miss))


def least(s: State, problem: Standard, p: Plan):
    """Whether a restoration stands at a minimum of the violation within the bounds, to second order."""
    w, model = s.w, s.model
    B = p.system.B + matmul(model.C.T, model.C)
    miss = s.values.g + w.s
    squares = dot(s.values.c, s.values.c) + dot(miss, miss)
    return at_minimum(B, columns(model), problem.columns, gradient(w, model, jnp.zeros((), w.x.dtype)), squares)


def beyond(problem: Standard, w: Iterate, values: Values, residual: Residual, tol):
    """Return the verdict on points out of range."""
    far = 1e20 if w.x.dtype == jnp.float64 else 1e12
    fallen = (values.f < -far * problem.scale.f) & (residual.violation <= tol)
    code = jnp.where(jnp.max(jnp.abs(w.x), initial=0) > far, Status.DIVERGED, Status.RUNNING)
    return jnp.where(fallen, Status.UNBOUNDED, code)


def moved(before: Iterate, after: Iterate):
    """Whether x or a slack changed by more than rounding."""
    pairs = ((before.x, after.x), (before.s, after.s))
    small = 10 * eps(before.x.dtype)
    return jnp.any(jnp.concatenate([jnp.abs(new - old) > small * (1 + jnp.abs(old)) for old, new in pairs]))


def step(s: State, problem: Standard, tol) -> State:
    """Take one step in the state's mode; see the table above."""
    refreshing, moving, entering, restoring = (s.mode == mode for mode in (REFRESH, NEWTON, ENTER, RESTORE))
    w, dtype, acting = s.w, s.w.x.dtype, moving | restoring
    p = plan(s, problem, tol)
    mu = p.target.mu
    filter = select(moving & (mu < s.mu), empty_filter(dtype), s.filter)
    found = look(s, problem, p, filter)
    settle = s.suspect & ~(p.leave & found.accepted)
    restored, negligible = returns(s, problem, found, filter, tol)
    after, length = candidate(s, problem, p, found, restored)
    sigma = jnp.where(entering | (restoring & ~restored), 0, 1).astype(dtype)
    values, model = problem.model(after.x, after.y, after.z, sigma)
    after = after._replace(s=jnp.maximum(after.s, -values.g))

    # Is it taken? A trial without finite derivatives is not, and the next step is shorter.
    finite = jnp.isfinite(values.f) & jnp.all(jnp.isfinite(model.H)) & jnp.all(jnp.isfinite(gradient(after, model)))
    softened = discord(problem, after, values, model, mu) <= SOFT * discord(problem, w, s.values, s.model, mu)
    allowed = (length >= SOFT_LENGTH) & (s.soft < SOFT_MOST) & p.system.valid
    soft = moving & ~found.accepted & ~settle & softened & allowed
    good = ((finite & (found.accepted | soft)) | ~acting) & ~settle
    after, values, model = select(good, (after, values, model), (w, s.values, s.model))
    residual = problem.residual(after, values, model)

    # What comes next?
    theta = violation(s.values, w.s)
    failed = moving & ~found.accepted & ~soft & ~settle
    give_up, stuck = failed & (theta > 0.1 * tol), failed & (theta <= 0.1 * tol)
    phi = s.values.f + barrier(problem, w.x, w.s, mu)
    filter = filter.add(theta, phi, moving & ((good & ~found.switched) | give_up))
    filter = select(stuck | (restored & negligible), empty_filter(dtype), filter)
    mode = jnp.where(give_up, ENTER, jnp.where(restored | stuck, REFRESH, s.mode))
    mode = jnp.where(refreshing, NEWTON, jnp.where(entering, RESTORE, mode))
    missed = dot(values.c, values.c) + dot(values.g + after.s, values.g + after.s)
    entered = jnp.minimum(s.mu, 0.1 * missed / count(problem, w))
    idle = jnp.where(moved(w, after), 0, s.idle + jnp.where(settle, 0, 1))

    # What may be claimed? Where the Hessian was shifted, not before its curvature has been looked at.
    level = restoring & ~restored & (residual.violation > 10 * tol)
    level = level & stationary(problem, after, values, model, tol) & (violation(values, after.s) >= LEVEL * theta)
    proved = when(level, lambda _: least(s, problem, p), jnp.zeros((), bool))
    solved = (moving | refreshing) & (mode == NEWTON) & (residual.error() <= tol)
    suspect = ((level & ~proved) | solved) & (refreshing | (p.system.shift > 0)) & ~settle
    verdict = jnp.where(idle >= STANDSTILL, Status.STAGNATED, beyond(problem, after, values, residual, tol))
    verdict = jnp.where(proved & s.probe & ~found.accepted, Status.INFEASIBLE, verdict)
    hidden = (entering | (restoring & ~restored)) & (verdict != Status.INFEASIBLE)
    return State(
        w=after,
        values=values,
        model=model,
        mu=jnp.where(give_up, entered, jnp.where(restored, s.kept, mu)).astype(dtype),
        mode=mode.astype(jnp.int32),
        shift=jnp.where(restored | entering, 0, jnp.where(p.system.shift > 0, p.system.shift, s.shift)),
        filter=filter,
        theta_min=s.theta_min,
        theta_max=s.theta_max,
        entry=jnp.where(give_up, theta, s.entry),
        kept=jnp.where(give_up, mu, s.kept),
        reach=jnp.where(acting & found.accepted & ~finite, 0.25 * found.alpha, 1).astype(dtype),
        soft=jnp.where(soft, s.soft + 1, 0),
        suspect=suspect,
        probe=proved & ~s.probe,
        residual=select(hidden, s.residual, residual),
        verdict=verdict.astype(jnp.int32),
        idle=jnp.where(acting, idle, s.idle).astype(jnp.int32),
        moves=s.moves + acting.astype(jnp.int32),
        evaluations=s.evaluations + found.tried,
        inner=s.inner + p.system.tries,
    )
