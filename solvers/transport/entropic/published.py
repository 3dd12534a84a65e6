"""Sinkhorn-Newton-Sparse as published: a fixed warm-up, a fixed number of Hessian entries, plain CG, no safeguard.

Kept for comparison. It has no convergence proof and needs its two settings chosen well; see `sns_sinkhorn`.

Algorithm 1 of Tang et al., "Accelerating Sinkhorn algorithm with sparse Newton iterations", ICLR 2024, in units of
epsilon (``u = f / epsilon, v = g / epsilon``), with r, c the sums of ``P = exp(u + v - C / epsilon)``:

(1) ``u = log a - logsumexp_j(v_j - C_ij / epsilon)``, then v likewise: stage 1
(2) ``Q_ij = P_ij`` where that is at least the ``ceil(lambda n m)``-th largest entry, else 0
(3) ``[[D_r, Q], [Q', D_c]] (du, dv) = (a - r, b - c)``, by conjugate gradients: stage 2
(4) ``D(u, v) = <a, u> + <b, v> - sum P``, to be raised
(5) ``u <- u + t du, v <- v + t dv``, t the first of 1, 1/2, ... that raises D by ``1e-4 t`` times its slope

It departs from the paper where that is silent or loose: potentials are without its constant in the exponent, the
system has the sign that makes its step an ascent, and the line search is ours.
"""

from __future__ import annotations

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
from ..systems.gibbs_kernel import column_update, row_update


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
    cost = problem.cost.dense()
    kept = max(1, math.ceil(settings.density * cost.size))

    def plan(u, v):
        return jnp.exp(log_plan(epsilon * u, epsilon * v, cost, a, b, epsilon, problem.shift))

    def error(P):
        return jnp.sum(jnp.abs(jnp.sum(P, 1) - a)) + jnp.sum(jnp.abs(jnp.sum(P, 0) - b))

    def dual(u, v, P):
        return jnp.sum(a * u) + jnp.sum(b * v) - jnp.sum(P)  # (4)

    def sinkhorn(state: State):  # algorithm 1, stage 1
        f = row_update(problem, epsilon * state.v, epsilon)  # (1)
        return f / epsilon, column_update(problem, f, epsilon) / epsilon, jnp.zeros((), jnp.int32)

    def newton(state: State):  # algorithm 1, stage 2: sparsify, conjugate gradients, line search
        P = plan(state.u, state.v)
        r, c = jnp.sum(P, 1), jnp.sum(P, 0)
        sparse = jnp.where(lax.top_k(P.ravel(), kept)[0][-1] <= P, P, 0)  # (2)
        gradient = (a - r, b - c)
        norm = jnp.sqrt(sum(jnp.sum(x * x) for x in gradient))
        # (3)
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
            return after >= before + 1e-4 * t * slope - 1e-15 * jnp.abs(before)  # (5)

        t = backtrack(at, rises, start=jnp.ones((), r.dtype), most=20).length
        return state.u + t * du, state.v + t * dv, solved.num_steps  # (5)

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
