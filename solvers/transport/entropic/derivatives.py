"""From the loop's last potentials to a solution with exact derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ...core.implicit import attach, distrust, linear_solve
from ...core.krylov.cg import cg
from ...core.loop import Run
from ...core.precision import eps as machine_eps
from ...core.precision import matmul, tiny
from ...core.solution import Status
from ..costs.cost import as_cost
from ..problem import Goal, Problem, rounding_floor
from ..solution import TransportSolution

DIRECT = 1024
"""Up to this many rows the derivative's linear system is factored, above it solved by conjugate gradients."""


def finish(problem: Problem, run: Run, data, *, goal: Goal, linear_steps, unconverged: str) -> TransportSolution:
    """Attach derivatives to the potentials of the reduced, possibly transposed problem, fix their constant, judge them.

    Parameters
    ----------
    problem : Problem
        What was solved.
    run : Run
        How the loop ended; its value holds potentials of the reduced, unit-mass problem at the target epsilon.
    data : tuple of arrays
        Cost, a, b and epsilon as the user gave them: what derivatives are taken with respect to.
    goal : Goal
        What the loop was to reach.
    linear_steps : scalar
        To be reported.
    unconverged : {"nan", "approximate"}
        Derivatives where the loop did not converge. Static.
    """
    potentials = run.value[::-1] if problem.transposed else run.value
    given, a, b, epsilon = data
    cost = as_cost(given)
    shift, mass = lax.stop_gradient((problem.shift, problem.mass))
    f, g = attach_potentials(potentials, (cost, a / jnp.sum(a), b / jnp.sum(b), epsilon), shift)
    f = f + epsilon * jnp.log(jnp.where(mass > 0, jnp.sum(a), 1))
    f = _extend(f, g, cost, a, b, epsilon, shift)
    g = _extend(g, f, cost.T, b, a, epsilon, shift)
    drift = (_mean(a, f) - _mean(b, g)) / 2
    f, g = f - drift, g + drift
    (f, g), status, error, tol = judged((f, g), (cost, a, b, epsilon), shift, run, goal)
    trusted = (status == Status.CONVERGED) | (unconverged == "approximate")
    f, g = distrust((f, g), trusted)
    half = shift / 2
    return TransportSolution(
        (f + half, g + half), status, run.num_steps, error, tol, run.history, given, a, b, epsilon, trusted, shift,
        (f, g), linear_steps,
    )  # fmt: skip


NEAR = 0.1
"""Largest change of a log scaling that a last correction makes: the solve is to find the answer, not this."""


def judged(potentials, data, shift, run: Run, goal: Goal):
    """Return the potentials with their columns' last rounding mended, the status, the error, and its tolerance.

    The loop's error is that of a plan of potentials and scalings; this is that of the potentials as they are returned.
    """
    f, g = potentials
    (f_now, g_now), (cost, a, b, epsilon) = lax.stop_gradient((potentials, data))
    step, r, c = mended(cost.plan((f_now, g_now), a, b, epsilon, shift), g_now, b, epsilon)
    mass = jnp.sum(a)
    error = (jnp.sum(jnp.abs(r - a)) + jnp.sum(jnp.abs(c - b))) / mass
    status, tol = goal.judge(run.status, error, rounding_floor((a, b), (f_now, g_now), epsilon) / mass)
    return (f, g + step), status, error, tol


def mended(plan, g, b, epsilon):
    """Return what Sinkhorn's half step adds to g, and the sums of the rows and of the columns after it.

    Once it is rounded, the step multiplies columns by known factors, so that two products are enough. Where it is long
    it is not made: an answer is for the solve to find.
    """
    c = plan.transposed_times(jnp.ones(plan.shape[0], g.dtype))
    change = jnp.log(jnp.where(b > 0, b / jnp.maximum(c, tiny(c.dtype)), 1))
    step = epsilon * jnp.where(jnp.abs(change) < NEAR, change, 0)
    factor = jnp.exp(((g + step) - g) / epsilon)
    return step, plan.times(factor), factor * c


def attach_potentials(potentials, data, shift):
    """Return the potentials with the derivative of the root of ``(a - P 1, b - P' 1)``.

    Parameters
    ----------
    potentials : pair of arrays
        Solved potentials of ``cost - shift``.
    data : tuple of arrays
        Cost, unit-mass weights and epsilon.
    shift : Float[Array, ""]
        Constant subtracted from the cost.
    """

    def residual(fg, data):
        (f, g), (cost, a, b, epsilon) = fg, data
        r, c = cost.plan((f, g), a, b, epsilon, shift).sums()
        dead = jnp.where(a > 0, 0, f), jnp.where(b > 0, 0, g)
        return a - r - dead[0], b - c - dead[1]

    cost, a, b, epsilon = lax.stop_gradient(data)
    f, g = lax.stop_gradient(potentials)

    def solve(jacobian, rhs):
        plan = cost.plan((f, g), a, b, epsilon, shift)
        return solve_marginals(jacobian, rhs, epsilon, schur_solver(plan, plan.sums(), a > 0, b > 0, singular=True))

    return attach(residual, potentials, data, solve=solve)


def solve_marginals(jacobian, rhs, epsilon, solver):
    """Solve ``jacobian(x) = rhs`` for the Jacobian of both marginals in the potentials, ``-1 / epsilon`` of the plan's.

    `solver` is for the blocks ``[[D_r, P], [P', D_c]]``.
    """
    scaled = lambda x: jax.tree.map(lambda y: -epsilon * y, jacobian(x))  # noqa: E731
    nothing = 0 * (jnp.sum(rhs[0]) + jnp.sum(rhs[1]))  # the transposed solve wants all blocks to depend on the data
    return linear_solve(scaled, jax.tree.map(lambda y: nothing - epsilon * y, rhs), solver)


def schur_solver(plan, diagonals, rows, columns, *, singular: bool):
    """Solve ``[[D_r, P], [P', D_c]] (x, y) = (rho, sigma)`` on the live entries by the Schur complement of the columns.

    Parameters
    ----------
    plan : kernel
        P, known by its products.
    diagonals : pair of arrays
        r and c: the sums of P, or more where marginals are priced.
    rows, columns : Bool[Array, "n"], Bool[Array, "m"]
        Where there is mass.
    singular : bool
        The diagonals are the sums of P, so constants are in the null space: of all solutions the one with
        ``<r, x> = <c, y>``. Static.
    """
    if plan.shape[0] > plan.shape[1]:
        flipped = schur_solver(plan.T, diagonals[::-1], columns, rows, singular=singular)
        return lambda matvec, rhs: flipped(lambda x: matvec(x[::-1])[::-1], rhs[::-1])[::-1]
    r, c = diagonals
    inverse_c = jnp.where(columns, 1 / jnp.where(columns, c, 1), 0)
    direct = singular and plan.stored and plan.shape[0] <= DIRECT
    schur = (_factored if direct else _iterated)(plan, inverse_c, r, rows)

    def once(rho, sigma):
        if singular:
            excess = (jnp.sum(rho) - jnp.sum(sigma)) / 2
            rho, sigma = rho - excess * r / jnp.sum(r), sigma + excess * c / jnp.sum(c)
        x = schur(rho - plan.times(inverse_c * sigma))
        y = inverse_c * (sigma - plan.transposed_times(x))
        gauge = (jnp.sum(r * x) - jnp.sum(c * y)) / 2 if singular else 0
        return jnp.where(rows, x - gauge, 0), jnp.where(columns, y + gauge, 0)

    def solver(matvec, rhs):
        rhs = jnp.where(rows, rhs[0], 0), jnp.where(columns, rhs[1], 0)

        def refine(_, x):
            rho, sigma = (
                jnp.where(live, y - ax, 0) for live, y, ax in zip((rows, columns), rhs, matvec(x), strict=True)
            )
            dx, dy = once(rho, sigma)
            return x[0] + dx, x[1] + dy

        return lax.fori_loop(0, 3, refine, jax.tree.map(jnp.zeros_like, rhs))

    return solver


def _factored(plan, inverse_c, r, rows):
    half = plan.array * jnp.sqrt(inverse_c)[None, :]
    safe = jnp.where(rows, r, 1)
    scale = jnp.where(rows, jax.lax.rsqrt(safe), 1)
    shift = 50 * machine_eps(r.dtype)
    S = jnp.diag(jnp.where(rows, r * (1 + shift), 1)) - matmul(half, half.T) + r[:, None] * r[None, :]
    factor = jnp.linalg.cholesky(S * scale[:, None] * scale[None, :], symmetrize_input=False)
    return lambda rhs: scale * jax.scipy.linalg.cho_solve((factor, True), scale * rhs)


def _iterated(plan, inverse_c, r, rows):
    diagonal = jnp.maximum(r - plan.squares_times(inverse_c), 1e-3 * r)
    inverse = jnp.where(rows, 1 / jnp.where(rows, diagonal, 1), 0)
    norm = lambda x: jnp.sum(jnp.abs(x))  # noqa: E731

    def schur(rhs):
        return cg(
            lambda x: r * x - plan.times(inverse_c * plan.transposed_times(x)),
            rhs,
            tol=10 * machine_eps(r.dtype) * norm(rhs),
            max_steps=5000,
            precondition=lambda x: inverse * x,
            norm=norm,
        ).x

    return schur


def _extend(f, g, cost, a, b, epsilon, shift):
    """Give rows without mass the soft c-transform of g."""
    return lax.cond(jnp.any(a <= 0), lambda: jnp.where(a > 0, f, cost.transform(g, b, epsilon, shift)), lambda: f)


def _mean(weights, x):
    return jnp.sum(jnp.where(weights > 0, weights * x, 0)) / jnp.maximum(jnp.sum(weights), jnp.finfo(x.dtype).tiny)
