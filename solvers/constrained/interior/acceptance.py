"""Which trial points are accepted: the filter of violation and barrier function, and its search along a direction.

The numbers are those of Waechter and Biegler, Math. Program. 106 (2006), theta the violation and phi the barrier
function:

(3) ``phi = f - mu sum log(s, x - lower, upper - x)``, and mu times `DAMPING` times the distance where there is one
    bound
(15) ``alpha = max {a in (0, 1] : v + a dv >= (1 - tau) v}`` for slacks, distances and multipliers v
(18) ``theta_new <= (1 - gamma) theta`` or ``phi_new <= phi - gamma theta``
(19) ``phi' < 0`` and ``alpha (-phi')^s_phi > theta^s_theta``, asked for where ``theta <= theta_min``
(20) ``phi_new <= phi + eta alpha phi'``
(22) ``filter <- filter + {theta_new >= (1 - gamma) theta, phi_new >= phi - gamma theta}``
(23) ``alpha_min = 0.05 min(gamma, gamma theta / (-phi'), theta^s_theta / (-phi')^s_phi)``

It departs from the paper in allowing for rounding in 18 and 20, and in a filter of `CAPACITY` entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core.precision import eps
from ...core.typing import Array, Bool, Float, Int
from .newton_system import Direction
from .standard import DAMPING, Standard, Values

CAPACITY = 32
"""Entries of the filter; the oldest is overwritten, which only makes it more lenient."""
GAMMA = 1e-5
"""A trial improves on a violation by this fraction, or on the barrier function by this fraction of the violation."""
ETA = 1e-8
"""Fraction of the predicted decrease that Armijo's test asks for."""
S_PHI, S_THETA = 2.3, 1.1
"""Exponents of the switching condition."""
CORRECTIONS, GAIN = 4, 0.99
"""How many second-order corrections are tried, as long as each brings the violation below this factor."""
HALVINGS = 50


class Filter(NamedTuple):
    """Pairs that no trial may be as bad as in both parts; empty places hold infinity."""

    theta: Float[Array, " k"]
    phi: Float[Array, " k"]
    count: Int[Array, ""]

    def refuses(self, theta, phi):
        """Whether some entry is at least as good in both."""
        return jnp.any((theta >= self.theta) & (phi >= self.phi))

    def add(self, theta, phi, condition) -> "Filter":
        """Add a pair, a little enlarged, where the condition holds."""
        here = condition & (jnp.arange(CAPACITY, dtype=jnp.int32) == self.count % CAPACITY)
        put = lambda new, old: jnp.where(here, new, old)  # noqa: E731
        return Filter(
            put((1 - GAMMA) * theta, self.theta),  # (22)
            put(phi - GAMMA * theta, self.phi),
            self.count + condition.astype(jnp.int32),
        )


def empty_filter(dtype) -> Filter:
    """Return a filter that accepts everything."""
    nothing = jnp.full(CAPACITY, jnp.inf, dtype)
    return Filter(nothing, nothing, jnp.zeros((), jnp.int32))


class Trial(NamedTuple):
    """A point with its slacks and values, violation theta and the function phi that should fall."""

    x: Float[Array, " n"]
    s: Float[Array, " q"]
    values: Values
    theta: Float[Array, ""]
    phi: Float[Array, ""]


def violation(values: Values, s):
    """Return ``|c|_1 + |g + s|_1``."""
    return jnp.sum(jnp.abs(values.c)) + jnp.sum(jnp.abs(values.g + s))


def barrier(problem: Standard, x, s, mu):
    """Return ``-mu`` times the sum of the logarithms of slacks and distances to bounds, damped where there is one."""
    low, high = problem.gaps(x)
    least = jnp.minimum(jnp.min(s, initial=1), jnp.minimum(jnp.min(low, initial=1), jnp.min(high, initial=1)))
    logs = sum(jnp.sum(jnp.log(jnp.where(gap > 0, gap, 1))) for gap in (s, low, high))
    single = problem.single()
    damping = DAMPING * jnp.sum(jnp.where(single > 0, low, jnp.where(single < 0, high, 0)))
    return jnp.where(least > 0, mu * (damping - logs), jnp.inf)  # (3): its second and third term


class Rules(NamedTuple):
    """What decides about trials from one point: its theta and phi, phi's slope, the filter, and the limits of theta.

    Restoring, theta counts as zero: then Armijo's test on phi alone decides.
    """

    theta: Float[Array, ""]
    phi: Float[Array, ""]
    slope: Float[Array, ""]
    filter: Filter
    demand: Float[Array, ""]
    """By how much phi must fall at least, zero but where the search is to look for what derivatives cannot tell."""
    theta_min: Float[Array, ""]
    theta_max: Float[Array, ""]
    lenient: Bool[Array, ""]
    """Take any finite trial: the step is too small for differences to mean anything."""
    willing: Bool[Array, ""]
    """Search at all."""

    def switched(self, alpha):
        """Whether the step promises a decrease that the violation cannot spoil."""
        promise = jnp.maximum(-self.slope, 0) ** S_PHI
        # (19)
        return (self.slope < 0) & (alpha * promise > self.theta**S_THETA) & (self.theta <= self.theta_min)

    def accept(self, alpha, trial: Trial):
        """Apply Armijo's test where switched, else ask for progress in theta or phi; and consult the filter."""
        noise = 10 * eps(self.phi.dtype) * jnp.maximum(jnp.abs(self.phi), 1)
        armijo = trial.phi - self.phi <= ETA * alpha * self.slope + noise - self.demand  # (20)
        # (18)
        progress = (trial.theta <= (1 - GAMMA) * self.theta) | (trial.phi - self.phi <= -GAMMA * self.theta + noise)
        welcome = (trial.theta <= self.theta_max) & ~self.filter.refuses(trial.theta, trial.phi)
        finite = jnp.isfinite(trial.theta) & jnp.isfinite(trial.phi)
        strict = self.switched(alpha) | (self.demand > 0)
        return finite & (self.lenient | (welcome & jnp.where(strict, armijo, progress)))

    def shortest(self):
        """Return the length below which the search gives up."""
        fall = jnp.where(self.slope < 0, -self.slope, 1)
        by_phi = GAMMA * self.theta / fall
        by_switch = jnp.where(self.theta <= self.theta_min, self.theta**S_THETA / fall**S_PHI, jnp.inf)
        # (23)
        least = 0.05 * jnp.where(self.slope < 0, jnp.minimum(GAMMA, jnp.minimum(by_phi, by_switch)), GAMMA)
        return jnp.maximum(least, eps(self.phi.dtype) ** 0.9)


class Found(NamedTuple):
    """Where the search ended: the trial, the length and direction that led to it, and how many were tried."""

    trial: Trial
    alpha: Float[Array, ""]
    direction: Direction
    accepted: Bool[Array, ""]
    switched: Bool[Array, ""]
    tried: Int[Array, ""]


class _Search(NamedTuple):
    found: Found
    reach: Float[Array, ""]
    """The length to try next, along `ahead`."""
    ahead: Direction
    rc: Float[Array, " p"]
    rg: Float[Array, " q"]
    corrections: Int[Array, ""]
    least: Float[Array, ""]
    """The smallest violation that a correction must improve on."""
    alpha: Float[Array, ""]
    """The length of the uncorrected step that counts in the tests."""


def search(
    evaluate: Callable, correct: Callable, reach: Callable, start: Trial, direction: Direction, rules: Rules
) -> Found:
    """Shorten the direction until a trial is accepted; a full step that adds violation is corrected first, sec. 2.4.

    ``evaluate(alpha, direction)`` returns a `Trial`, ``correct(rc, rg)`` the direction for other residuals of the
    constraints, ``reach(direction)`` how far it may go.
    """
    longest = reach(direction)
    none, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    begin = _Search(
        Found(start, longest, direction, no, no, none),
        longest,
        direction,
        start.values.c,
        start.values.g + start.s,
        none,
        start.theta,
        longest,
    )
    shortest = rules.shortest()

    def body(s: _Search) -> _Search:
        trial = evaluate(s.reach, s.ahead)
        accepted = rules.accept(s.alpha, trial)
        found = Found(trial, s.reach, s.ahead, accepted, rules.switched(s.alpha), s.found.tried + 1)
        worth = jnp.where(s.corrections == 0, trial.theta >= s.least, trial.theta <= GAIN * s.least)
        again = (s.found.tried == s.corrections) & (s.corrections < CORRECTIONS) & worth & (rules.theta > 0)
        again = again & jnp.isfinite(trial.theta) & ~accepted

        def corrected(_):
            rc = s.reach * s.rc + trial.values.c
            rg = s.reach * s.rg + trial.values.g + start.s + s.reach * s.ahead.s
            ahead = correct(rc, rg)
            return reach(ahead), ahead, rc, rg

        def shortened(_):
            return 0.5 * s.alpha, direction, s.rc, s.rg

        length, ahead, rc, rg = lax.cond(again, corrected, shortened, None)
        alpha = jnp.where(again, s.alpha, 0.5 * s.alpha)
        least = jnp.where(again & (s.corrections > 0), trial.theta, s.least)
        return _Search(found, length, ahead, rc, rg, s.corrections + again.astype(jnp.int32), least, alpha)

    def unfinished(s: _Search):
        more = (s.found.tried < HALVINGS) & ((s.alpha >= shortest) | (s.found.tried == 0))
        return rules.willing & ~s.found.accepted & more

    return lax.while_loop(unfinished, body, begin).found


def boundary(values_steps, tau):
    """Return the largest length up to one at which no value falls below ``(1 - tau)`` times itself."""
    lengths = [
        # (15)
        jnp.min(jnp.where(step < 0, tau * value / jnp.where(step < 0, -step, 1), 1), initial=1)
        for value, step in values_steps
    ]
    return jax.tree.reduce(jnp.minimum, lengths)
