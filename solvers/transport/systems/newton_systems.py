"""Newton directions of the semi-dual: solve ``(S + lam D_r) d = a - r`` with ``S = D_r - P D_b^-1 P'``.

S is the graph Laplacian of the plan seen from its rows: positive semidefinite, with the constants in its null space.
Each backend is a class with ``prepare`` (once a kernel) and ``direction`` (once a step); one that keeps `SlowModes` has
``modes`` too, and is given them from step to step.

The Newton step of Tang et al., "Accelerating Sinkhorn algorithm with sparse Newton iterations", ICLR 2024, eliminated:

(1) ``S = D_r - P D_b^-1 P' = D_r - diag(alpha) K diag(w) K' diag(alpha),  w = beta^2 / b``
(2) ``(S + lam D_r) d = a - r``
(3) ``lam = damping min(1, error)``, the shift; (2) is solved to ``0.1 min(1/2, sqrt(error))`` of its right-hand side

It departs from the paper, whose matrix ``[[D_r, P], [P', D_c]]`` acts on both potentials, unshifted and singular.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core import accelerator
from ...core.krylov.cg import cg
from ...core.krylov.result import KrylovResult
from ...core.loop import when
from ...core.precision import eps as machine_eps
from ...core.precision import matmul
from ...core.precision import tiny as smallest
from ...core.typing import Array, Bool, Float, Int, Scalar
from ..problem import Problem
from .gibbs_kernel import Kernel
from .slow_modes import SlowModes, coarse

LEAST = 1e-10
"""Diagonal entries of S count as at least this part of D_r: a row with one partner has one that is small."""
PATIENCE = 200
"""Conjugate-gradient steps without a smaller residual before they end: where masses hang together weakly, it rests."""
USEFUL = 0.02
"""A direction with this relative residual still gains a digit or more: conjugate gradients had no trouble."""


class Direction(eqx.Module):
    """A step of the logarithm of alpha, the conjugate-gradient steps it took, and whether they had trouble."""

    d: Float[Array, " n"]
    cg_steps: Int[Array, ""]
    hard: Bool[Array, ""]
    modes: Any = None

    @classmethod
    def of(cls, result: KrylovResult, system: "System", modes=None) -> "Direction":
        """Scale the solution of a `System` back."""
        d = result.x.astype(system.r.dtype) * system.scale
        useful = jnp.maximum(system.tol, USEFUL).astype(result.residual.dtype)
        modes = None if modes is None else modes.after(result.num_steps)
        return cls(d, result.num_steps, ~(result.residual <= useful), modes)


class System(eqx.Module):
    """The Newton system at a kernel whose columns are normalised, scaled to a right-hand side of unit 1-norm."""

    r: Float[Array, " n"]
    w: Float[Array, " m"]
    rhs: Float[Array, " n"]
    scale: Float[Array, ""]
    lam: Float[Array, ""]
    tol: Float[Array, ""]

    @classmethod
    def at(cls, problem: Problem, kernel: Kernel, error, goal: Scalar, damping: Scalar) -> "System":
        """Assemble the vectors of the system.

        It is solved to ``0.1 min(1/2, sqrt(error))`` relative, but no further than an error of `goal` asks for; the
        relative shift is ``damping * min(1, error)``.
        """
        w = jnp.where(problem.columns, kernel.beta**2 / jnp.where(problem.columns, problem.b, 1), 0)  # (1)
        safe = jnp.where(error > 0, error, 1)
        lam = damping * jnp.minimum(error, 1) + 10 * machine_eps(kernel.r.dtype)  # (3)
        tol = jnp.maximum(0.1 * jnp.minimum(0.5, jnp.sqrt(error)), jnp.minimum(0.2 * goal / safe, 0.1))  # (3)
        return cls(kernel.r, w, (problem.a - kernel.r) / safe, safe, lam, tol)

    def astype(self, dtype) -> "System":
        """Return the system in another precision."""
        return jax.tree.map(lambda x: x.astype(dtype), self)


class DenseCG(eqx.Module):
    """Conjugate gradients on products with K, preconditioned by the exact diagonal of S.

    In float64 the direction is found in float32: it needs a digit or two, and half the memory traffic is saved.
    """

    max_steps: int = eqx.field(static=True, default=2000)
    single: bool = eqx.field(static=True, default=True)
    coarse: bool = eqx.field(static=True, default=False)

    def modes(self, problem: Problem) -> SlowModes | None:
        """Return what the coarse space of `slow_modes` starts from, None where it is not used."""
        if not (self.coarse and problem.cost.stored):
            return None
        return SlowModes.random(problem.a.shape[0], self.dtype_for(problem.a.dtype))

    def prepare(self, problem: Problem, kernel: Kernel) -> Any:
        """Nothing to prepare."""
        return None

    def dtype_for(self, dtype):
        """Return the precision in which directions are found for data of `dtype`."""
        return jnp.dtype(jnp.float32) if self.single else dtype

    def direction(self, prepared, problem: Problem, kernel: Kernel, system: System, hard, modes=None) -> Direction:
        """Solve in float32 where allowed."""
        dtype = self.dtype_for(system.r.dtype)
        K, alpha, s = kernel.K.astype(dtype), kernel.alpha.astype(dtype), system.astype(dtype)
        if not K.stored and dtype != system.r.dtype:
            s = consistent(K, alpha, kernel.beta.astype(dtype), s)
        diagonal = s.r - alpha**2 * K.squares_times(s.w)
        product = lambda x: alpha * K.times(s.w * K.transposed_times(alpha * x))  # noqa: E731
        modes, correct = improve(modes, K, alpha, s, problem.rows)
        return Direction.of(pcg(product, diagonal, s, problem.rows, self, correct), system, modes)


def improve(modes: SlowModes | None, K, alpha, system: System, live):
    """Return better modes, and their correction; None where there are none."""
    if modes is None:
        return None, None

    def products(X):
        return alpha[:, None] * matmul(K.dense(), system.w[:, None] * matmul(K.dense().T, alpha[:, None] * X))

    return coarse(modes, products, system.r, live, system.lam)


def consistent(K, alpha, beta, system: System) -> System:
    """Return the system with the sums of the rounded kernel.

    Exponents recomputed in a lower precision change entries by far more than its rounding; with their own sums the
    matrix is a graph Laplacian still, hence semidefinite.
    """
    c = beta * K.transposed_times(alpha)
    w = jnp.where(system.w > 0, beta**2 / jnp.where(c > 0, c, 1), 0)
    r = jnp.where(system.r > 0, alpha * K.times(beta), system.r)
    return eqx.tree_at(lambda s: (s.r, s.w), system, (r, w))


class Cholesky(eqx.Module):
    """Form S and factor it: n^2 m operations and a copy of S, for small or very ill-conditioned problems."""

    def prepare(self, problem: Problem, kernel: Kernel) -> Any:
        """Nothing to prepare."""
        return None

    def direction(self, prepared, problem: Problem, kernel: Kernel, system: System, hard) -> Direction:
        """Solve ``(S + lam D_r + r r') d = a - r``; the last term pins the constants and changes nothing else."""
        live = problem.rows
        scale = jnp.where(live, lax.rsqrt(jnp.where(live, system.r, 1)), 1)
        A = ((scale * kernel.alpha)[:, None] * kernel.K.dense()) * jnp.sqrt(system.w)[None, :]
        diagonal, border = jnp.where(live, 1 + system.lam, 1), scale * system.r
        S = jnp.diag(diagonal) + border[:, None] * border[None, :] - matmul(A, A.T)  # (1), scaled to a unit diagonal
        rhs = jnp.where(live, system.rhs, 0)
        factor = jnp.linalg.cholesky(S, symmetrize_input=False)
        d = scale * jax.scipy.linalg.cho_solve((factor, True), scale * rhs)  # (2)
        return Direction(d * system.scale, jnp.zeros((), jnp.int32), jnp.ones((), bool))


class Escalating(eqx.Module):
    """Conjugate gradients; once they stagnate or take long at some epsilon, a sturdier backend for the rest of it.

    A factorisation costs about as much as ``patience * n`` products with K.
    """

    first: Any
    second: Any
    patience: float = eqx.field(static=True, default=0.3)

    def modes(self, problem: Problem) -> SlowModes | None:
        """Return those of the first backend."""
        return self.first.modes(problem)

    def prepare(self, problem: Problem, kernel: Kernel) -> Any:
        """Prepare the first backend."""
        return self.first.prepare(problem, kernel)

    def rescaled(self, prepared: Any, kernel: Kernel) -> Any:
        """Return what the first backend keeps, for the kernel with its scalings absorbed."""
        return prepared if prepared is None else self.first.rescaled(prepared, kernel)

    def direction(self, prepared, problem: Problem, kernel: Kernel, system: System, hard, modes=None) -> Direction:
        """Solve by the first backend unless it is known to fail, then by the second if it did."""
        skipped = eqx.tree_at(lambda s: s.tol, system, jnp.where(hard, jnp.inf, system.tol))
        quick = self.first.direction(prepared, problem, kernel, skipped, hard, modes)
        hard = hard | quick.hard | (quick.cg_steps > int(self.patience * problem.a.shape[0]))

        def sturdy(direction: Direction) -> Direction:
            other = self.second.direction(None, problem, kernel, system, hard)
            return Direction(other.d, direction.cg_steps + other.cg_steps, direction.hard, direction.modes)

        return when(hard, sturdy, Direction(quick.d, quick.cg_steps, hard, quick.modes))


def pcg(product, diagonal, system: System, live, settings: DenseCG, correct=None) -> KrylovResult:
    """Solve ``((1 + lam) D_r - product) x = rhs`` by conjugate gradients from zero.

    `diagonal` is that of the matrix without the shift: the preconditioner, to which `correct` adds a coarse space's.
    """
    r, lam = system.r, system.lam
    shifted = jnp.maximum(jnp.maximum(diagonal, LEAST * r) + lam * r, smallest(r.dtype))
    inverse = jnp.where(live, 1 / shifted, 0)
    return cg(
        lambda x: (1 + lam) * r * x - product(x),  # (2)
        jnp.where(live, system.rhs, 0),
        tol=system.tol,
        max_steps=settings.max_steps,
        precondition=lambda x: inverse * x if correct is None else inverse * x + correct(x),
        norm=lambda x: jnp.sum(jnp.abs(x)),
        stall=PATIENCE,
        unroll=4 if accelerator.present() else 1,
    )
