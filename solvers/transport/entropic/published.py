"""Sinkhorn-Newton-Sparse as published: a fixed warm-up, a fixed number of Hessian entries, plain CG, no safeguard.

Kept for comparison. It has no convergence proof and needs its two settings chosen well; see `sns_sinkhorn`.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from ...core.krylov.cg import cg
from ...core.loop import Limits, Run, iterate
from ...core.precision import matmul
from ...core.search import backtrack
from ...core.typing import Array, Float, Int
from ..costs.cost import log_plan
from ..problem import Problem
from .gibbs_kernel import column_update, row_update


class PublishedSNS(eqx.Module):
    """Settings of the published algorithm (Tang et al. 2024, algorithm 1).

    Parameters
    ----------
    warmup : int
        Sinkhorn sweeps before the first Newton step (N1).
    density : float
        Fraction of the plan's entries kept in the Hessian (lambda); the paper takes 2/n or 15/n.
    cg_tol : float
        Relative residual at which conjugate gradients stop; the paper does not say.
    cg_steps : int
        At most so many of them a Newton step.
    """

    warmup: int = eqx.field(static=True, default=20)
    density: float = eqx.field(static=True, default=0.01)
    cg_tol: float = eqx.field(static=True, default=1e-10)
    cg_steps: int = eqx.field(static=True, default=2000)


class State(eqx.Module):
    """Potentials in units of epsilon, their marginal error, steps and CG steps so far."""

    u: Float[Array, " n"]
    v: Float[Array, " m"]
    error: Float[Array, ""]
    steps: Int[Array, ""]
    cg_steps: Int[Array, ""]


def solve_published(problem: Problem, f, g, settings: PublishedSNS, limits: Limits) -> tuple[Run, Int[Array, ""]]:
    """Run the published algorithm on a prepared problem."""
    epsilon, a, b = problem.epsilon, problem.a, problem.b
    cost = problem.cost.dense() - problem.shift
    kept = max(1, math.ceil(settings.density * cost.size))

    def plan(u, v):
        return jnp.exp(log_plan(epsilon * u, epsilon * v, cost, a, b, epsilon))

    def error(P):
        return jnp.sum(jnp.abs(jnp.sum(P, 1) - a)) + jnp.sum(jnp.abs(jnp.sum(P, 0) - b))

    def dual(u, v, P):
        return jnp.sum(a * u) + jnp.sum(b * v) - jnp.sum(P)

    def sinkhorn(state: State):  # algorithm 1, stage 1
        f = row_update(problem, epsilon * state.v, epsilon)
        return f / epsilon, column_update(problem, f, epsilon) / epsilon, jnp.zeros((), jnp.int32)

    def newton(state: State):  # algorithm 1, stage 2: sparsify, conjugate gradients, line search
        P = plan(state.u, state.v)
        r, c = jnp.sum(P, 1), jnp.sum(P, 0)
        sparse = jnp.where(lax.top_k(P.ravel(), kept)[0][-1] <= P, P, 0)
        gradient = (a - r, b - c)
        norm = jnp.sqrt(sum(jnp.sum(x * x) for x in gradient))
        solved = cg(
            lambda d: (r * d[0] + matmul(sparse, d[1]), matmul(d[0], sparse) + c * d[1]),
            gradient, tol=settings.cg_tol * norm, max_steps=settings.cg_steps,
        )  # fmt: skip
        du, dv = solved.x
        slope = sum(jnp.sum(x * d) for x, d in zip(gradient, solved.x, strict=True))
        before = dual(state.u, state.v, P)

        def at(t):
            u, v = state.u + t * du, state.v + t * dv
            return dual(u, v, plan(u, v))

        def rises(t, after):
            return after >= before + 1e-4 * t * slope - 1e-15 * jnp.abs(before)

        t = backtrack(at, rises, start=jnp.ones((), r.dtype), most=20).length
        return state.u + t * du, state.v + t * dv, solved.num_steps

    def step(state: State) -> State:
        u, v, cg_steps = lax.cond(state.steps < settings.warmup, sinkhorn, newton, state)
        return State(u, v, error(plan(u, v)), state.steps + 1, state.cg_steps + cg_steps)

    zero = jnp.zeros((), jnp.int32)
    u, v = f / epsilon, g / epsilon
    run = iterate(
        step,
        State(u, v, error(plan(u, v)), zero, zero),
        limits,
        value=lambda s: (epsilon * s.u, epsilon * s.v),
        error=lambda s: s.error,
        refused=lambda _: problem.status,
    )
    return run, run.state.cg_steps
